// Products of a batch of rows with a matrix, rounded alike for any number of rows and threads; rows.py calls them, and
// chain.py several of them, one after the other.
//
// Each output is one sum over the inputs in an order that depends on the sizes of the matrix alone.
#include <algorithm>
#include <cstdint>
#include <functional>

#include "common.h"
#include "threads.h"

namespace {

constexpr int64_t kPanel = 16;       // outputs that lie side by side for each input where a matrix is packed
constexpr int64_t kBlock = 4;        // panels that a thread takes at once
constexpr int kVectors = kPanel / kLanes;
constexpr int kSums = kManyRegisters ? 16 : 12;                       // vectors of sums that registers hold
constexpr int kRows = kManyRegisters ? 4 : std::min(6, 12 / kVectors);  // rows of the batch at a time
constexpr int64_t kNear = 1 << 16;   // numbers of the batch that stay in a near cache
constexpr int64_t kShare = 4;        // images that are worth a thread
constexpr int64_t kMany = 64;        // rows that are worth a copy of the matrix
constexpr int64_t kWorth = 1 << 18;  // multiplications that are worth a second thread

struct Product {
    int64_t rows, inputs, outputs;
    int64_t x_stride, matrix_stride, add_stride, out_stride;  // from one row to the next
    int64_t panel_stride;                                     // from one panel of a matrix to the next
    int64_t transposed;                                       // the matrix is (outputs, inputs) in memory, without panels
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
    const float *matrix, *bias;  // the matrix in panels (outputs / kPanel, inputs, kPanel)
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

// P panels of outputs, from output k, of rows b .. b + R - 1: rows of the matrix, each times one input.  Of the last panel
// a part may be missing.
template <int R, int P, bool whole>
void combine(const Product& p, int64_t b, int64_t k) {
    constexpr int C = P * kVectors;
    Vector sum[R][C] = {}, bias[C] = {};
    const auto there = [&](int c) { return Lanes(std::clamp(p.outputs - k - c * kLanes, int64_t(0), kLanes)); };
    const auto read = [&](const float* at, int c) { return whole ? load(at) : there(c).load(at); };
    if (p.add)
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int c = 0; c < C; c++) sum[r][c] = read(p.add + (b + r) * p.add_stride + k + c * kLanes, c);
    if (p.bias) {
        UNROLL for (int c = 0; c < C; c++) bias[c] = read(p.bias + k + c * kLanes, c);
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) sum[r][c] += bias[c];
    }
    const float *x = p.x + b * p.x_stride, *line = p.matrix + k / kPanel * p.panel_stride;
    for (int64_t e = 0; e < p.inputs; e++, line += p.matrix_stride) {
        Vector column[C];
        UNROLL for (int c = 0; c < C; c++) column[c] = read(line + c / kVectors * p.panel_stride + c % kVectors * kLanes, c);
        UNROLL for (int r = 0; r < R; r++) {
            const Vector value = all(x[r * p.x_stride + e]);
            UNROLL for (int c = 0; c < C; c++) sum[r][c] = fused(value, column[c], sum[r][c]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        float* out = p.out + (b + r) * p.out_stride + k;
        UNROLL for (int c = 0; c < C; c++)
            if (whole)
                store(out + c * kLanes, sum[r][c]);
            else
                there(c).store(out + c * kLanes, sum[r][c]);
    }
}

// Outputs from k to before `end`, as many at a time as the registers have room for, and then fewer.
template <int R, int C = kSums / R>
void dots(const Product& p, int64_t b, int64_t k, int64_t end) {
    for (; k + C <= end; k += C) dot<R, C>(p, b, k);
    if constexpr (C > 1)
        if (k < end) dots<R, C / 2>(p, b, k, end);
}
template <int R, int P = std::clamp<int>(kSums / (R * kVectors), 1, kBlock)>
void panels(const Product& p, int64_t b, int64_t k, int64_t end) {
    for (; k + P * kPanel <= end; k += P * kPanel) combine<R, P, true>(p, b, k);
    if constexpr (P > 1) {
        if (k < end) panels<R, P / 2>(p, b, k, end);
    } else if (k < end)
        combine<R, P, false>(p, b, k);
}

// The same of rows b to before `last`.
template <int R = kRows>
void tiles(const Product& p, int64_t b, int64_t last, int64_t k, int64_t end) {
    for (; b + R <= last; b += R) p.transposed ? dots<R>(p, b, k, end) : panels<R>(p, b, k, end);
    if constexpr (R > 1)
        if (b < last) tiles<R - 1>(p, b, last, k, end);
}

int64_t block(const Product& p) { return p.transposed ? kSums : kBlock * kPanel; }

// The outputs from block `begin` to before block `end`.
void run(const Product& p, int64_t begin, int64_t end) {
    const int64_t size = block(p), rows = std::max<int64_t>(kRows, kNear / p.inputs / kRows * kRows);
    for (int64_t b = 0; b < p.rows; b += rows)
        for (int64_t k = begin * size; k < std::min(end * size, p.outputs); k += size)
            tiles(p, b, std::min(b + rows, p.rows), k, std::min(k + size, p.outputs));
}

void multiply_one(const Product& p) {
    const int64_t blocks = (p.outputs + block(p) - 1) / block(p);
    const int64_t threads = p.rows * p.inputs * p.outputs < kWorth ? 1 : std::min(p.threads, blocks);
    if (threads == 1) return run(p, 0, blocks);
    together((int)threads, [&](int id, int threads) { run(p, blocks * id / threads, blocks * (id + 1) / threads); });
}

inline Vector sigmoid(Vector x) { return 1 / (1 + exponential(-x)); }
inline Vector tangent(Vector x) { return 2 * sigmoid(2 * x) - 1; }

// compute(k, lanes) for all of `size` numbers, a vector of those from k on at a time.
template <class Compute>
void each(int64_t size, const Compute& compute) {
    for (int64_t k = 0; k < size; k += kLanes) compute(k, Lanes(std::min(size - k, kLanes)));
}

// All links, for the images from `first` to before `last`.
void run_links(const Call& call, int64_t first, int64_t last, int64_t threads) {
    int64_t rows = last - first, most = 0;
    for (int64_t i = 0; i < call.count; i++) most = std::max({most, call.links[i].inputs, call.links[i].outputs});
    Array<float> inputs(rows * most), results(rows * most);
    for (int64_t i = 0; i < call.count; i++) {
        const Link& link = call.links[i];
        const auto stride = [&](const Place& place) { return place.buffer < 0 ? 0 : call.strides[place.buffer]; };
        const auto at = [&](const Place& place) -> float* {
            if (place.buffer < 0) return nullptr;
            return call.buffers[place.buffer] + first * stride(place) + place.offset + call.column * place.step;
        };
        float* out = at(link.out);
        const int64_t out_stride = stride(link.out);
        Product p{rows, link.inputs, link.outputs, stride(link.x), kPanel, stride(link.add), out_stride,
                  link.inputs * kPanel, 0, threads, at(link.x), link.matrix, link.bias, at(link.add), out};
        if (link.before == kRelu) {
            for (int64_t b = 0; b < rows; b++)
                for (int64_t e = 0; e < link.inputs; e++)
                    inputs[b * link.inputs + e] = std::max(p.x[b * p.x_stride + e], 0.f);
            p.x = inputs.get(), p.x_stride = link.inputs;
        }
        if (link.after >= kGate) p.out = results.get(), p.out_stride = link.outputs;
        multiply_one(p);
        const float* cells = at(link.cells);
        float* new_cells = at(link.new_cells);
        for (int64_t b = 0; b < rows && link.after; b++) {
            float* to = out + b * out_stride;
            const float* from = p.out + b * p.out_stride;
            if (link.after == kRelu)
                for (int64_t k = 0; k < link.outputs; k++) to[k] = std::max(to[k], 0.f);
            if (link.after == kGate)
                each(link.outputs / 2, [&](int64_t k, Lanes lanes) {
                    const Vector gated = lanes.load(from + link.outputs / 2 + k);
                    lanes.store(to + k, tangent(lanes.load(from + k)) * sigmoid(gated));
                });
            if (link.after == kLstm) {
                const int64_t size = link.outputs / 4;
                const float* old = cells + b * stride(link.cells);
                float* fresh = new_cells + b * stride(link.new_cells);
                each(size, [&](int64_t k, Lanes lanes) {
                    const auto at = [&](int i) { return lanes.load(from + i * size + k); };
                    const Vector c = sigmoid(at(1)) * lanes.load(old + k) + sigmoid(at(2)) * tangent(at(3));
                    lanes.store(fresh + k, c);
                    lanes.store(to + k, sigmoid(at(0)) * tangent(c));
                });
            }
        }
    }
}

}  // namespace

INTERFACE(4, sizeof(Product), sizeof(Link), sizeof(Call))

// For many rows the matrix is copied into panels: lines whose distance is a power of two share few places of a cache.
extern "C" void multiply(const Product* product) {
    Product p = *product;
    const bool copy = !p.transposed && p.rows >= kMany;
    Array<float> panels(copy ? (p.outputs + kPanel - 1) / kPanel * kPanel * p.inputs : 0);
    if (copy) {
        for (int64_t e = 0; e < p.inputs; e++)
            for (int64_t k = 0; k < p.outputs; k += kPanel)
                std::copy_n(p.matrix + e * p.matrix_stride + k, std::min(kPanel, p.outputs - k),
                            panels.get() + k * p.inputs + e * kPanel);
        p.matrix = panels.get(), p.matrix_stride = kPanel, p.panel_stride = p.inputs * kPanel;
    }
    multiply_one(p);
}

// Threads share the images where there are some for each, and the outputs of every link elsewhere.
extern "C" void run_chain(const Call* call) {
    const int64_t rows = call->rows, shares = std::min(call->threads, rows / kShare);
    int64_t work = 0;
    for (int64_t i = 0; i < call->count; i++) work += rows * call->links[i].inputs * call->links[i].outputs;
    if (shares < 2 || work < kWorth) return run_links(*call, 0, rows, call->threads);
    together((int)shares, [&](int id, int threads) { run_links(*call, rows * id / threads, rows * (id + 1) / threads, 1); });
}
