// Products of a batch of rows with a matrix, rounded alike for any number of rows and threads; rows.py calls them, and
// chain.py several of them, one after the other.
//
// Each output is one sum over the inputs in an order that depends on the sizes of the matrix alone.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>

#include "common.h"
#include "threads.h"

namespace {

constexpr int kRows = 4;             // rows of the batch at a time
constexpr int kColumns = 4;          // outputs, or vectors of outputs, at a time
constexpr int64_t kWorth = 1 << 18;  // multiplications that are worth a second thread

struct Product {
    int64_t rows, inputs, outputs;
    int64_t x_stride, matrix_stride, add_stride, out_stride;  // from one row to the next
    int64_t transposed;                                       // the matrix is (outputs, inputs) in memory
    int64_t threads;
    const float *x, *matrix;
    const float *bias, *add;  // of all rows, and of each; either may be null
    float* out;
};

// Where numbers of each image lie: in a buffer, at `offset` from the image's first, and `step` further for each column.
struct Place {
    int64_t buffer, offset, step;  // buffer -1: nowhere
};
// Gate: tanh of the first half times the sigmoid of the second.  LSTM: of the gates output, forget, input and content, with
// the cells at `cells`, which go on to `new_cells`.
enum Function { kNone, kRelu, kGate, kLstm };
struct Link {
    Place x, add, out, cells, new_cells;
    int64_t inputs, outputs;
    int64_t before, after;  // functions of the input, and of the result
    const float *matrix, *bias;
};
struct Call {
    int64_t count, rows, column, threads;
    const Link* links;
    float* const* buffers;
    const int64_t* strides;  // of the buffers, from one image to the next
};

// Outputs k .. k + C - 1 of rows b .. b + R - 1, each a product of two rows.
template <int R, int C>
void dot(const Product& p, int64_t b, int64_t k) {
    Vector sum[R][C] = {};
    const float *x = p.x + b * p.x_stride, *matrix = p.matrix + k * p.matrix_stride;
    const auto add = [&](auto read, int64_t e) {
        Vector column[C];
        UNROLL for (int c = 0; c < C; c++) column[c] = read(matrix + c * p.matrix_stride + e);
        UNROLL for (int r = 0; r < R; r++) {
            const Vector value = read(x + r * p.x_stride + e);
            UNROLL for (int c = 0; c < C; c++) sum[r][c] = fused(value, column[c], sum[r][c]);
        }
    };
    const int64_t rest = p.inputs % kLanes, whole = p.inputs - rest;
    for (int64_t e = 0; e < whole; e += kLanes) add([](const float* at) { return load(at); }, e);
    if (rest) add([lanes = Lanes(rest)](const float* at) { return lanes.load(at); }, whole);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++) {
            const float bias = p.bias ? p.bias[k + c] : 0, add = p.add ? p.add[(b + r) * p.add_stride + k + c] : 0;
            p.out[(b + r) * p.out_stride + k + c] = total(sum[r][c]) + bias + add;
        }
}

// C vectors of outputs, from output k, of rows b .. b + R - 1: rows of the matrix, each times one input.
template <int R, int C>
void combine(const Product& p, int64_t b, int64_t k) {
    Vector sum[R][C] = {}, bias[C] = {};
    const Lanes last(std::min(p.outputs - k - (C - 1) * kLanes, kLanes));
    const auto read = [last](const float* at, Vector (&to)[C]) {
        UNROLL for (int c = 0; c < C - 1; c++) to[c] = load(at + c * kLanes);
        to[C - 1] = last.load(at + (C - 1) * kLanes);
    };
    if (p.add) UNROLL for (int r = 0; r < R; r++) read(p.add + (b + r) * p.add_stride + k, sum[r]);
    if (p.bias) {
        read(p.bias + k, bias);
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) sum[r][c] += bias[c];
    }
    const float *x = p.x + b * p.x_stride, *line = p.matrix + k;
    for (int64_t e = 0; e < p.inputs; e++, line += p.matrix_stride) {
        Vector column[C];
        read(line, column);
        UNROLL for (int r = 0; r < R; r++) {
            const Vector value = all(x[r * p.x_stride + e]);
            UNROLL for (int c = 0; c < C; c++) sum[r][c] = fused(value, column[c], sum[r][c]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        float* out = p.out + (b + r) * p.out_stride + k;
        UNROLL for (int c = 0; c < C - 1; c++) store(out + c * kLanes, sum[r][c]);
        last.store(out + (C - 1) * kLanes, sum[r][C - 1]);
    }
}

// In halves where the registers have no room for all sums.
template <int R, int C>
void tile(const Product& p, int64_t b, int64_t k) {
    if constexpr (!kManyRegisters && R * C > 8) {
        tile<R, C / 2>(p, b, k);
        tile<R, C - C / 2>(p, b, k + C / 2 * (p.transposed ? 1 : kLanes));
    } else
        p.transposed ? dot<R, C>(p, b, k) : combine<R, C>(p, b, k);
}
template <int C>
void tiles(const Product& p, int64_t k) {
    int64_t b = 0;
    for (; b + kRows <= p.rows; b += kRows) tile<kRows, C>(p, b, k);
    switch (p.rows - b) {
        case 3: return tile<3, C>(p, b, k);
        case 2: return tile<2, C>(p, b, k);
        case 1: return tile<1, C>(p, b, k);
    }
}

// The outputs, in blocks of `kColumns`, from block `begin` to before block `end`.
void run(const Product& p, int64_t begin, int64_t end) {
    const int64_t unit = p.transposed ? 1 : kLanes, units = (p.outputs + unit - 1) / unit;
    for (int64_t block = begin; block < end; block++) {
        const int64_t k = block * kColumns * unit;
        switch (std::min<int64_t>(kColumns, units - block * kColumns)) {
            case 4: tiles<4>(p, k); break;
            case 3: tiles<3>(p, k); break;
            case 2: tiles<2>(p, k); break;
            case 1: tiles<1>(p, k); break;
        }
    }
}

void multiply_one(const Product& p) {
    const int64_t unit = kColumns * (p.transposed ? 1 : kLanes), blocks = (p.outputs + unit - 1) / unit;
    const int64_t threads = p.rows * p.inputs * p.outputs < kWorth ? 1 : std::min(p.threads, blocks);
    if (threads == 1) return run(p, 0, blocks);
    together((int)threads, [&](int id, int threads) { run(p, blocks * id / threads, blocks * (id + 1) / threads); });
}

inline float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

INTERFACE(3, sizeof(Product), sizeof(Link), sizeof(Call))

extern "C" void multiply(const Product* product) { multiply_one(*product); }

extern "C" void run_chain(const Call* call) {
    int64_t most = 0;
    for (int64_t i = 0; i < call->count; i++) most = std::max({most, call->links[i].inputs, call->links[i].outputs});
    Array<float> inputs(call->rows * most), results(call->rows * most);
    for (int64_t i = 0; i < call->count; i++) {
        const Link& link = call->links[i];
        const auto at = [&](const Place& place) -> float* {
            return place.buffer < 0 ? nullptr
                                    : call->buffers[place.buffer] + place.offset + call->column * place.step;
        };
        const auto stride = [&](const Place& place) { return place.buffer < 0 ? 0 : call->strides[place.buffer]; };
        float* out = at(link.out);
        const int64_t out_stride = stride(link.out);
        Product p{call->rows, link.inputs, link.outputs, stride(link.x), link.outputs, stride(link.add), out_stride, 0,
                  call->threads, at(link.x), link.matrix, link.bias, at(link.add), out};
        if (link.before == kRelu) {
            for (int64_t b = 0; b < call->rows; b++)
                for (int64_t e = 0; e < link.inputs; e++)
                    inputs[b * link.inputs + e] = std::max(p.x[b * p.x_stride + e], 0.f);
            p.x = inputs.get(), p.x_stride = link.inputs;
        }
        if (link.after >= kGate) p.out = results.get(), p.out_stride = link.outputs;
        multiply_one(p);
        const float* cells = at(link.cells);
        float* new_cells = at(link.new_cells);
        for (int64_t b = 0; b < call->rows && link.after; b++) {
            float* to = out + b * out_stride;
            const float* from = p.out + b * p.out_stride;
            if (link.after == kRelu)
                for (int64_t k = 0; k < link.outputs; k++) to[k] = std::max(to[k], 0.f);
            if (link.after == kGate)
                for (int64_t k = 0, half = link.outputs / 2; k < half; k++)
                    to[k] = (2 * sigmoid(2 * from[k]) - 1) * sigmoid(from[half + k]);
            if (link.after == kLstm)
                for (int64_t k = 0, size = link.outputs / 4; k < size; k++) {
                    const float old = cells[b * stride(link.cells) + k];
                    const float c = sigmoid(from[size + k]) * old + sigmoid(from[2 * size + k]) * std::tanh(from[3 * size + k]);
                    new_cells[b * stride(link.new_cells) + k] = c;
                    to[k] = sigmoid(from[k]) * std::tanh(c);
                }
        }
    }
}
