// One token through a stack of transformer blocks on the CPU; transformer.py says what is computed and calls it.
//
// The work is bound by reading the weights, once per token for the whole batch, and in a large batch by reading the keys
// and values. Threads share the outputs of each product and meet at a barrier between products.
// An image's numbers do not depend on how many are in the batch, nor on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <sys/mman.h>

#include "common.h"
#include "precisions.h"
#include "threads.h"
#include "tiles.h"

namespace {

constexpr int64_t kShared = 8;  // rows of a batch whose preparation threads share

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
    void *keys, *values;       // (B, L, H, capacity) tokens, each of F features, see `Token`
    const int64_t* positions;  // (B,) of the new token, before which all tokens are filled
    void *memory_keys, *memory_values;  // (B, L, H, memory) tokens, for cross attention
    int64_t memory;
    const int64_t* lengths;  // (B,) tokens of the memory that are seen, from the first
};

// The tokens that a query sees: the first `count`, or those at `distances` before `position`.
struct Seen {
    int64_t count, position;
    const int64_t* distances;
    int64_t operator[](int64_t i) const { return distances ? position - distances[i] : i; }
};

inline Vector gelu(Vector x) {  // erf of Abramowitz and Stegun 7.1.26; absolute error below 2e-7
    Vector z = x * 0.70710678f, a = z < 0 ? -z : z, t = 1 / (1 + 0.3275911f * a), p = Vector{} + 1.061405429f;
    p = p * t - 1.453152027f, p = p * t + 1.421413741f, p = p * t - 0.284496736f, p = p * t + 0.254829592f;
    Vector erf = 1 - p * t * exponential(-a * a);
    return 0.5f * x * (1 + (z < 0 ? -erf : erf));
}

template <class P>
struct Step {
    typedef typename P::Cache Cache;
    typedef typename P::Inputs Inputs;
    typedef Token<Cache> Cached;
    const Model& model;
    const Call& call;
    const int64_t batch;
    float* const x;
    Barrier barrier;
    Array<float> heads, mixed, branch;  // (B, 3E), (B, E), (B, E)
    Array<float> hidden, gates;         // (B, hidden)
    const bool shared;                  // whether threads share the inputs of products, or each has its own
    std::deque<Inputs> inputs;

    Step(const Model& model, const Call& call)
        : model(model), call(call), batch(call.batch), x(call.x), heads(batch * 3 * model.width),
          mixed(batch * model.width), branch(batch * model.width), hidden(batch * model.hidden),
          gates(batch * model.hidden), shared(batch >= kShared) {
        const int64_t most = std::max(model.hidden, model.width);
        for (int64_t i = 0; i < (shared ? 1 : call.threads); i++) inputs.emplace_back(batch, most);
    }

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
        const Vector inverse = all(1 / std::sqrt(variance + (float)model.epsilon));
        for (int64_t k = 0; k < width; k += kLanes) {
            const Vector y = (load(from + k) - mean) * inverse * load(norm.weight + k) + load(norm.shift + k);
            store(to + k, add ? load(to + k) + y : y);
        }
    }

    // Inputs of products: vectors of `width` features, of which the last `padding` are 0, or their norm.  Threads share
    // many vectors; of few, each thread prepares all, which takes less time than to wait.
    void prepare(const float* from, const Norm& norm, int64_t width, int64_t padding, int id, int threads) {
        Inputs& in = inputs[shared ? 0 : id];
        const int64_t places = in.places(), begin = shared ? places * id / threads : 0;
        Array<float> normal(width);
        for (int64_t i = begin; i < (shared ? places * (id + 1) / threads : places); i++) {
            const float* row = from + in.row(i) * width;
            if (norm.weight) normalize<false>(row, norm, width, padding, normal.get());
            in.set(i, norm.weight ? normal.get() : row, width);
        }
        if (shared) barrier.wait(threads);
    }

    int64_t share(int64_t rows, int id, int threads) const {  // the first row of a thread
        const int64_t units = (rows + kUnit - 1) / kUnit, first = units * id / threads * kUnit;
        return first < rows ? first : rows;
    }

    // This thread's share of to (B, rows) = weight x + bias, or += it, for the inputs x (B, width).
    template <bool add>
    void product(const Linear& linear, int64_t width, int64_t rows, int id, int threads, float* to) const {
        const Inputs& in = inputs[shared ? 0 : id];
        P::product({linear, batch, width, rows, to, add}, in, share(rows, id, threads), share(rows, id + 1, threads));
    }

    static void ask(const Cache* row, int64_t features) {  // for features of a token
        for (int64_t f = 0; f < features; f += 64 / sizeof(Cache)) __builtin_prefetch(row + f, 0, 2);
    }

    // Attention of query `q` to the tokens that are seen.  It asks for the values while it reads the keys, and then for
    // the keys of the next query.
    void attend(const float* q, const Cache* key, const Cache* value, const Cache* next, const Seen& seen,
                float* scores, float* to) const {
        const int64_t n = seen.count;
        const int64_t features = model.width / model.heads, size = Cached::size(features);
        const float scale = 1 / std::sqrt((float)features);
        const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;  // scores beyond n are not used
        for (int64_t s = 0; s < n; s += 4) {
            Vector sum[4] = {};
            const Cache* row[4];
            UNROLL for (int j = 0; j < 4; j++) {
                const int64_t i = s + j < n ? s + j : n - 1;
                row[j] = key + seen[i] * size;
                ask(value + seen[i] * size, size);
            }
            for (int64_t f = 0; f < features; f += kLanes) {
                const Vector part = load(q + f);
                UNROLL for (int j = 0; j < 4; j++) sum[j] += part * load(row[j] + f);
            }
            Quarter four = totals(sum[0], sum[1], sum[2], sum[3]) * scale;
            if constexpr (std::is_same_v<Cache, int8_t>)
                UNROLL for (int j = 0; j < 4; j++) four[j] *= Cached::scale(row[j], features);
            *(Quarter*)(scores + s) = four;
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
        const Vector inverse = all(1 / total(sum));
        int64_t f = 0;
        for (; f + 4 * kLanes <= features; f += 4 * kLanes) mix<4>(f, value, next, seen, scores, inverse, to);
        for (; f < features; f += kLanes) mix<1>(f, value, next, seen, scores, inverse, to);
    }

    template <int N>  // N vectors of features of the values, from feature `first`, weighted
    void mix(int64_t first, const Cache* value, const Cache* next, const Seen& seen, const float* scores,
             Vector inverse, float* to) const {
        const int64_t features = model.width / model.heads, size = Cached::size(features);
        Vector y[N] = {};
        for (int64_t s = 0; s < seen.count; s++) {
            const int64_t place = seen[s] * size;
            const float weight = scores[s] * Cached::scale(value + place, features);
            ask(next + place + first, N * kLanes);
            UNROLL for (int i = 0; i < N; i++) y[i] += weight * load(value + place + first + i * kLanes);
        }
        UNROLL for (int i = 0; i < N; i++) store(to + first + i * kLanes, y[i] * inverse);
    }

    void self(int64_t layer, int64_t b, int64_t head, float* scores) const {
        const int64_t width = model.width, features = width / model.heads;
        const int64_t size = Cached::size(features), room = call.capacity * size;
        const int64_t at = ((b * model.layers + layer) * model.heads + head) * room;
        const int64_t t = call.positions[b], *near = model.distances, *far = near + model.num_distances;
        const float* q = heads.get() + b * 3 * width + head * features;
        Cache *key = (Cache*)call.keys + at, *value = (Cache*)call.values + at;
        Cached::set(key + t * size, q + width, features);
        Cached::set(value + t * size, q + 2 * width, features);
        const int64_t count = near ? std::upper_bound(near, far, t) - near : t + 1;
        attend(q, key, value, key + room, Seen{count, t, near}, scores,
               mixed.get() + b * width + head * features);
    }

    void cross(int64_t layer, int64_t b, int64_t head, float* scores) const {
        const int64_t features = model.width / model.heads, place = b * model.width + head * features;
        const int64_t room = call.memory * Cached::size(features);
        const int64_t at = ((b * model.layers + layer) * model.heads + head) * room;
        const Cache *key = (const Cache*)call.memory_keys + at, *value = (const Cache*)call.memory_values + at;
        attend(heads.get() + place, key, value, key + room, Seen{call.lengths[b], 0, nullptr}, scores,
               mixed.get() + place);
    }

    // x += weight y, or its norm.
    void add(const Linear& linear, const Norm& norm, int id, int threads) {
        const int64_t width = model.width;
        if (!norm.weight) return product<true>(linear, width, width, id, threads, x);
        product<false>(linear, width, width, id, threads, branch.get());
        barrier.wait(threads);
        for (int64_t b = batch * id / threads; b < batch * (id + 1) / threads; b++)
            normalize<true>(branch.get() + b * width, norm, width, 0, x + b * width);
    }

    void attention(int64_t l, bool crossing, float* scores, int id, int threads) {
        const int64_t width = model.width, pairs = batch * model.heads;
        const Attention& part = crossing ? model.layer[l].cross : model.layer[l].self;
        prepare(x, part.norm, width, 0, id, threads);
        product<false>(part.in, width, crossing ? width : 3 * width, id, threads, heads.get());
        barrier.wait(threads);
        for (int64_t pair = pairs * id / threads; pair < pairs * (id + 1) / threads; pair++)
            if (crossing)
                cross(l, pair / model.heads, pair % model.heads, scores);
            else
                self(l, pair / model.heads, pair % model.heads, scores);
        barrier.wait(threads);
        prepare(mixed.get(), Norm{}, width, 0, id, threads);
        add(part.projection, part.out, id, threads);
        barrier.wait(threads);
    }

    void mlp(const Layer& layer, int id, int threads) {
        const int64_t width = model.width, size = model.hidden;
        prepare(x, layer.norm, width, 0, id, threads);
        product<false>(layer.expand, width, size, id, threads, hidden.get());
        if (layer.gate.weight) product<false>(layer.gate, width, size, id, threads, gates.get());
        for (int64_t b = 0; b < batch; b++)
            for (int64_t row = share(size, id, threads); row < share(size, id + 1, threads); row += kLanes) {
                float* h = &hidden[b * size + row];
                store(h, layer.gate.weight ? gelu(load(&gates[b * size + row])) * load(h) : gelu(load(h)));
            }
        barrier.wait(threads);
        prepare(hidden.get(), layer.hidden_norm, size, model.padding, id, threads);
        product<true>(layer.contract, size, width, id, threads, x);
        barrier.wait(threads);
    }

    void run(int id, int threads) {
        const typename P::Registers registers(inputs[shared ? 0 : id]);
        Array<float> scores(std::max(call.capacity, call.memory) + 2 * kLanes);
        for (int64_t l = 0; l < model.layers; l++) {
            attention(l, false, scores.get(), id, threads);
            if (model.layer[l].cross.in.weight) attention(l, true, scores.get(), id, threads);
            mlp(model.layer[l], id, threads);
        }
        if (!model.outputs) return;
        prepare(x, model.norm, model.width, 0, id, threads);
        product<false>(model.head, model.width, model.outputs, id, threads, call.out);
    }
};

}  // namespace

INTERFACE(3, sizeof(Layer), sizeof(Model), sizeof(Call))

// Keys and values are in the precision of the weights.  Gives 0, and does nothing, where a row of the cache is full.
#define EXPORT(NAME, ...)                                                                  \
    extern "C" int NAME(const Model* model, const Call* call) {                            \
        for (int64_t b = 0; b < call->batch; b++)                                          \
            if (call->positions[b] < 0 || call->positions[b] >= call->capacity) return 0;  \
        if (call->batch == 0) return 1;                                                    \
        Step<__VA_ARGS__> step(*model, *call);                                             \
        together((int)call->threads, [&](int id, int threads) { step.run(id, threads); }); \
        return 1;                                                                          \
    }
extern "C" void use_huge_pages(void* memory, int64_t size) {  // they are read 1.7 times as fast here
#if defined(MADV_HUGEPAGE)
    madvise(memory, size, MADV_HUGEPAGE);
#endif
}
EXPORT(step_float32, Float32)
EXPORT(step_bfloat16, Tiled<Narrow, false>)
EXPORT(step_int8, Tiled<Int8, false>)
#if defined(HAS_AMX)
EXPORT(step_bfloat16_amx, Tiled<Narrow, true>)
EXPORT(step_int8_amx, Tiled<Int8, true>)
#endif
