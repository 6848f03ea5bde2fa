// One token through a stack of transformer blocks on the CPU; transformer.py says what is computed and calls it.
//
// The work is bound by reading the weights, once per token for the whole batch. Threads share the outputs of each
// product and meet at a barrier between products; what is cheap (norms, rounding of the inputs) each does for itself.
// An image's numbers do not depend on how many are in the batch, nor on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <sys/mman.h>

#include "common.h"
#include "precisions.h"
#include "threads.h"

namespace {

constexpr int kRows = 4;     // outputs at a time
constexpr int kUnit = 16;    // outputs that are not divided among threads

struct Linear {
    const void* weight;
    const float *scale, *bias;  // scale in int8 only; bias may be null
};
struct Norm {
    const float *weight, *shift;  // both null: no norm
};
struct Attention {
    Norm norm, out;  // before it, and of what it gives
    Linear in, projection;
};
struct Layer {
    Attention self, cross;  // `in` gives queries, keys and values; of cross, queries, and its weight may be null
    Norm norm, hidden_norm;
    Linear gate, expand, contract;  // the weight of gate may be null
};
struct Model {
    int64_t layers, width, heads, outputs;  // outputs 0: no head
    int64_t hidden, padding;                // features of the MLPs, and how many of these, the last, are always 0
    double epsilon;
    const Layer* layer;
    Norm norm;
    Linear head;
    const int64_t* distances;  // ascending: how far back the tokens stand that a token sees; null for all up to it
    int64_t num_distances;
};
struct Call {
    int64_t batch, capacity, threads;
    float *x, *out;            // (B, E) states; (B, K) outputs
    void *keys, *values;       // (B, L, H, capacity, F)
    const int64_t* positions;  // (B,) of the new token, before which all tokens are filled
    void *memory_keys, *memory_values;  // (B, L, H, memory, F) for cross attention
    int64_t memory;
    const int64_t* lengths;  // (B,) tokens of the memory that are seen, from the first
};

// The tokens that a query sees: the first `count`, or those at `distances` before `position`.
struct Seen {
    int64_t count, position;
    const int64_t* distances;
    int64_t operator[](int64_t i) const { return distances ? position - distances[i] : i; }
};

inline Vector exponential(Vector x) {  // 2^n * p(fraction); relative error below 2e-7
    const Vector round = Vector{} + 12582912.f, top = Vector{} + 126.f;
    x = x * 1.44269504f;
    x = x < -top ? -top : x > top ? top : x;
    Vector n = (x + round) - round, f = (x - n) * 0.69314718f, p = Vector{} + 1.f / 5040;
    p = p * f + 1.f / 720, p = p * f + 1.f / 120, p = p * f + 1.f / 24, p = p * f + 1.f / 6;
    p = p * f + 0.5f, p = p * f + 1, p = p * f + 1;
    return (Vector)((Integers)p + (__builtin_convertvector(n, Integers) << 23));
}
inline Vector gelu(Vector x) {  // erf of Abramowitz and Stegun 7.1.26; absolute error below 2e-7
    Vector z = x * 0.70710678f, a = z < 0 ? -z : z, t = 1 / (1 + 0.3275911f * a), p = Vector{} + 1.061405429f;
    p = p * t - 1.453152027f, p = p * t + 1.421413741f, p = p * t - 0.284496736f, p = p * t + 0.254829592f;
    Vector erf = 1 - p * t * exponential(-a * a);
    return 0.5f * x * (1 + (z < 0 ? -erf : erf));
}

template <class P>
struct Step {
    typedef typename P::Cache Cache;
    const Model& model;
    const Call& call;
    const int64_t batch;
    float* const x;
    Barrier barrier;
    Array<float> heads, mixed, branch;  // (B, 3E), (B, E), (B, E)
    Array<float> hidden, gates;         // (B, hidden)

    Step(const Model& model, const Call& call)
        : model(model), call(call), batch(call.batch), x(call.x), heads(batch * 3 * model.width),
          mixed(batch * model.width), branch(batch * model.width), hidden(batch * model.hidden),
          gates(batch * model.hidden) {}

    // One vector of `width` features, of which the last `padding` are 0 and stay so; `add` adds it to what is there.
    template <bool add>
    void normalize(const float* from, const Norm& norm, int64_t width, int64_t padding, float* to) const {
        Vector sum = {}, square = {};
        for (int64_t k = 0; k < width; k += kLanes) sum += load(from + k);
        const float mean = total(sum) / (width - padding);
        for (int64_t k = 0; k < width; k += kLanes) {
            Vector d = load(from + k) - mean;
            square += d * d;
        }
        const float variance = (total(square) - padding * mean * mean) / (width - padding);
        const Vector inverse = Vector{} + 1 / std::sqrt(variance + (float)model.epsilon);
        for (int64_t k = 0; k < width; k += kLanes) {
            const Vector y = (load(from + k) - mean) * inverse * load(norm.weight + k) + load(norm.shift + k);
            store(to + k, add ? load(to + k) + y : y);
        }
    }

    void normalize(const Norm& norm, float* to) const {
        for (int64_t b = 0; b < batch; b++)
            normalize<false>(x + b * model.width, norm, model.width, 0, to + b * model.width);
    }

    // Outputs row .. row + R - 1 of images b .. b + B - 1, which ask for their share of the weights of the next outputs.
    template <int R, int B, bool add>
    void tile(const Linear& linear, const typename P::Inputs& in, int64_t row, int64_t b, float* to,
              int64_t stride) const {
        Vector sum[R][B] = {};
        const Range next{in.size * b / batch, in.size * (b + B) / batch};
        P::template dot<R, B>(sum, (const typename P::Weight*)linear.weight + row * in.size, in, b, next);
        UNROLL for (int i = 0; i < B; i++) {
            float value[R], *place = to + (b + i) * stride + row;
            if constexpr (R == 4) {
                Quarter four = totals(sum[0][i], sum[1][i], sum[2][i], sum[3][i]);
                std::memcpy(value, &four, sizeof(value));
            } else
                for (int r = 0; r < R; r++) value[r] = total(sum[r][i]);
            for (int r = 0; r < R; r++) {
                const float scale = linear.scale ? linear.scale[row + r] : 1, bias = linear.bias ? linear.bias[row + r] : 0;
                const float output = std::fma(value[r], scale, bias);  // said, so that it is rounded alike for any B
                place[r] = add ? place[r] + output : output;
            }
        }
    }

    template <int R, bool add>
    void tiles(const Linear& linear, const typename P::Inputs& in, int64_t row, float* to, int64_t stride) const {
        int64_t b = 0;
        for (; b + P::batch < batch; b += P::batch) tile<R, P::batch, add>(linear, in, row, b, to, stride);
        switch (batch - b) {
            case 1: return tile<R, 1, add>(linear, in, row, b, to, stride);
            case 2: return tile<R, 2, add>(linear, in, row, b, to, stride);
            case 3: return tile<R, 3, add>(linear, in, row, b, to, stride);
            default: return tile<R, P::batch, add>(linear, in, row, b, to, stride);
        }
    }

    int64_t share(int64_t rows, int id, int threads) const {  // the first row of a thread
        const int64_t units = (rows + kUnit - 1) / kUnit, first = units * id / threads * kUnit;
        return first < rows ? first : rows;
    }

    // This thread's share of to (B, rows) = weight x + bias, or += it.
    template <bool add>
    void product(const Linear& linear, int64_t rows, const typename P::Inputs& in, int id, int threads,
                 float* to) const {
        int64_t row = share(rows, id, threads);
        const int64_t end = share(rows, id + 1, threads);
        for (; row + kRows <= end; row += kRows) tiles<kRows, add>(linear, in, row, to, rows);
        for (; row < end; row++) tiles<1, add>(linear, in, row, to, rows);
    }

    // Attention of query `q` to the tokens that are seen.
    void attend(const float* q, const Cache* key, const Cache* value, const Seen& seen, float* scores,
                float* to) const {
        const int64_t n = seen.count;
        const int64_t features = model.width / model.heads;
        const float scale = 1 / std::sqrt((float)features);
        const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;  // scores beyond n are not used
        for (int64_t s = 0; s < n; s += 4) {
            Vector sum[4] = {};
            const Cache* row[4];
            UNROLL for (int j = 0; j < 4; j++) {
                const int64_t i = s + j < n ? s + j : n - 1;
                row[j] = key + seen[i] * features;
            }
            for (int64_t f = 0; f < features; f += kLanes) {
                const Vector part = load(q + f);
                UNROLL for (int j = 0; j < 4; j++) sum[j] += part * load(row[j] + f);
            }
            *(Quarter*)(scores + s) = totals(sum[0], sum[1], sum[2], sum[3]) * scale;
        }
        for (int64_t s = n; s < padded; s++) scores[s] = -INFINITY;
        Vector largest = load(scores), sum = {};
        for (int64_t s = kLanes; s < n; s += kLanes) largest = maximum(largest, load(scores + s));
        float top = largest[0];
        for (int l = 1; l < kLanes; l++) top = largest[l] > top ? largest[l] : top;
        for (int64_t s = 0; s < n; s += kLanes) {
            Vector p = load(scores + s), e = exponential(p - top);
            e = p == -INFINITY ? Vector{} : e;
            store(scores + s, e);
            sum += e;
        }
        const Vector inverse = Vector{} + 1 / total(sum);
        int64_t f = 0;
        for (; f + 4 * kLanes <= features; f += 4 * kLanes) mix<4>(value + f, seen, scores, inverse, to + f);
        for (; f < features; f += kLanes) mix<1>(value + f, seen, scores, inverse, to + f);
    }

    template <int N>  // N vectors of features of the values, weighted
    void mix(const Cache* value, const Seen& seen, const float* scores, Vector inverse, float* to) const {
        const int64_t features = model.width / model.heads;
        Vector y[N] = {};
        for (int64_t s = 0; s < seen.count; s++) {
            const Cache* row = value + seen[s] * features;
            UNROLL for (int i = 0; i < N; i++) y[i] += scores[s] * load(row + i * kLanes);
        }
        UNROLL for (int i = 0; i < N; i++) store(to + i * kLanes, y[i] * inverse);
    }

    void self(int64_t layer, int64_t b, int64_t head, float* scores) const {
        const int64_t width = model.width, features = width / model.heads;
        const int64_t at = ((b * model.layers + layer) * model.heads + head) * call.capacity * features;
        const int64_t t = call.positions[b], *near = model.distances, *far = near + model.num_distances;
        const float* q = heads.get() + b * 3 * width + head * features;
        Cache *key = (Cache*)call.keys + at, *value = (Cache*)call.values + at;
        for (int64_t f = 0; f < features; f += kLanes) {
            store(key + t * features + f, load(q + width + f));
            store(value + t * features + f, load(q + 2 * width + f));
        }
        const int64_t count = near ? std::upper_bound(near, far, t) - near : t + 1;
        attend(q, key, value, Seen{count, t, near}, scores, mixed.get() + b * width + head * features);
    }

    void cross(int64_t layer, int64_t b, int64_t head, float* scores) const {
        const int64_t features = model.width / model.heads, place = b * model.width + head * features;
        const int64_t at = ((b * model.layers + layer) * model.heads + head) * call.memory * features;
        attend(heads.get() + place, (const Cache*)call.memory_keys + at, (const Cache*)call.memory_values + at,
               Seen{call.lengths[b], 0, nullptr}, scores, mixed.get() + place);
    }

    // x += weight y, or its norm.
    void add(const Linear& linear, const Norm& norm, const typename P::Inputs& in, int id, int threads) {
        const int64_t width = model.width;
        if (!norm.weight) return product<true>(linear, width, in, id, threads, x);
        product<false>(linear, width, in, id, threads, branch.get());
        barrier.wait(threads);
        for (int64_t b = batch * id / threads; b < batch * (id + 1) / threads; b++)
            normalize<true>(branch.get() + b * width, norm, width, 0, x + b * width);
    }

    void run(int id, int threads) {
        const int64_t width = model.width, size = model.hidden, pairs = batch * model.heads;
        const int64_t most = std::max(size, width), seen = std::max(call.capacity, call.memory);
        typename P::Inputs in(batch, most);
        Array<float> normal(batch * most), scores(seen + 2 * kLanes);
        for (int64_t l = 0; l < model.layers; l++) {
            const Layer& layer = model.layer[l];
            for (int kind = 0; kind < (layer.cross.in.weight ? 2 : 1); kind++) {
                const Attention& part = kind ? layer.cross : layer.self;
                normalize(part.norm, normal.get());
                in.set(normal.get(), batch, width);
                product<false>(part.in, kind ? width : 3 * width, in, id, threads, heads.get());
                barrier.wait(threads);
                for (int64_t pair = pairs * id / threads; pair < pairs * (id + 1) / threads; pair++)
                    if (kind)
                        cross(l, pair / model.heads, pair % model.heads, scores.get());
                    else
                        self(l, pair / model.heads, pair % model.heads, scores.get());
                barrier.wait(threads);
                in.set(mixed.get(), batch, width);
                add(part.projection, part.out, in, id, threads);
                barrier.wait(threads);
            }
            normalize(layer.norm, normal.get());
            in.set(normal.get(), batch, width);
            product<false>(layer.expand, size, in, id, threads, hidden.get());
            if (layer.gate.weight) product<false>(layer.gate, size, in, id, threads, gates.get());
            for (int64_t b = 0; b < batch; b++)
                for (int64_t row = share(size, id, threads); row < share(size, id + 1, threads); row += kLanes) {
                    float* h = &hidden[b * size + row];
                    store(h, layer.gate.weight ? gelu(load(&gates[b * size + row])) * load(h) : gelu(load(h)));
                }
            barrier.wait(threads);
            if (layer.hidden_norm.weight)
                for (int64_t b = 0; b < batch; b++)
                    normalize<false>(&hidden[b * size], layer.hidden_norm, size, model.padding, &normal[b * size]);
            in.set(layer.hidden_norm.weight ? normal.get() : hidden.get(), batch, size);
            product<true>(layer.contract, width, in, id, threads, x);
            barrier.wait(threads);
        }
        if (!model.outputs) return;
        normalize(model.norm, normal.get());
        in.set(normal.get(), batch, width);
        product<false>(model.head, model.outputs, in, id, threads, call.out);
    }
};

}  // namespace

INTERFACE(2, sizeof(Layer), sizeof(Model), sizeof(Call))

// Keys and values are float32, or bfloat16 with narrower weights.  Gives 0, and does nothing, where a row of the cache is
// full.
#define EXPORT(NAME, P)                                                                       \
    extern "C" int NAME(const Model* model, const Call* call) {                               \
        for (int64_t b = 0; b < call->batch; b++)                                             \
            if (call->positions[b] < 0 || call->positions[b] >= call->capacity) return 0;     \
        Step<P> step(*model, *call);                                                          \
        together((int)call->threads, [&](int id, int threads) { step.run(id, threads); });    \
        return 1;                                                                             \
    }
extern "C" void use_huge_pages(void* memory, int64_t size) {  // they are read 1.7 times as fast here
#if defined(MADV_HUGEPAGE)
    madvise(memory, size, MADV_HUGEPAGE);
#endif
}
EXPORT(step_float32, Float32)
EXPORT(step_bfloat16, Narrow)
EXPORT(step_int8, Int8)
