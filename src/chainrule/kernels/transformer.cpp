// One token through a stack of transformer blocks on the CPU; transformer.py says what is computed and calls it.
//
// The work is bound by reading the weights, once per token for the whole batch. Weights are (outputs, inputs) row
// after row, in float32, bfloat16, or uint8 (128 + a whole number in -127..127, and a scale per output). Threads share
// the outputs of each product and meet at a barrier between products; what is cheap (norms, rounding of the inputs)
// each does for itself. An image's numbers do not depend on how many are in the batch, nor on the number of threads.
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <pthread.h>
#include <sys/mman.h>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define UNROLL _Pragma("GCC unroll 8")  // so that arrays of accumulators become registers

namespace {

typedef float Vector __attribute__((vector_size(64), aligned(4)));
typedef float Half __attribute__((vector_size(32), aligned(4)));
typedef float Quarter __attribute__((vector_size(16), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(64), aligned(1), may_alias));
typedef uint32_t Words __attribute__((vector_size(64), aligned(4)));
typedef uint16_t Shorts __attribute__((vector_size(32), aligned(2)));
typedef int8_t Bytes __attribute__((vector_size(16), aligned(1)));

constexpr int kLanes = 16;
constexpr int kGroup = 128;  // inputs that share a scale in int8; widths are multiples of its half
constexpr int kRows = 4;     // outputs at a time
constexpr int kUnit = 16;    // outputs that are not divided among threads
constexpr int kSpins = 4000;

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
};
struct Call {
    int64_t batch, capacity, t, threads;
    float *x, *out;              // (B, E) states; (B, K) outputs
    void *keys, *values;         // (B, L, H, capacity, F), of which t tokens are filled
    void *memory_keys, *memory_values;  // (B, L, H, memory, F) for cross attention
    int64_t memory;
    const int64_t* lengths;      // (B,) tokens of the memory that are seen, from the first
    const int64_t* places;       // tokens that are seen, the new one among them; null for all up to it
    int64_t num_places;
};

inline Vector load(const float* p) { return *(const Vector*)p; }
inline void store(float* p, Vector v) { *(Vector*)p = v; }
inline Vector fused(Vector a, float b, Vector c) {  // a b + c, rounded alike wherever it stands
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, _mm512_set1_ps(b), (__m512)c);
#else
    return a * b + c;
#endif
}
inline Vector load(const uint16_t* p) {  // bfloat16 -> float32
#if defined(__AVX512F__)
    return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#else
    return (Vector)(__builtin_convertvector(*(const Shorts*)p, Words) << 16);
#endif
}
inline void store(uint16_t* p, Vector v) {  // to the nearest, ties to even
    Words bits = (Words)v;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *(Shorts*)p = __builtin_convertvector(bits, Shorts);
}
inline Quarter fold(Vector v) {
    Half h[2];
    std::memcpy(h, &v, 64);
    Half half = h[0] + h[1];
    Quarter q[2];
    std::memcpy(q, &half, 32);
    return q[0] + q[1];
}
inline float total(Vector v) {
    Quarter q = fold(v);
    return (q[0] + q[2]) + (q[1] + q[3]);
}
inline Quarter totals(Vector v0, Vector v1, Vector v2, Vector v3) {
    Quarter a = fold(v0), b = fold(v1), c = fold(v2), d = fold(v3);
    Quarter e = __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
    Quarter f = __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
    return __builtin_shufflevector(e, f, 0, 2, 4, 6) + __builtin_shufflevector(e, f, 1, 3, 5, 7);
}
inline Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
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

// Asks for R vectors of weights that are needed soon.
template <int R>
inline void ask(const void* w) {
    UNROLL for (int r = 0; r < R; r++) __builtin_prefetch((const char*)w + 64 * r, 0, 2);
}

struct Range {
    int64_t begin, end;
    bool has(int64_t i) const { return i >= begin && i < end; }
};

// Memory that begins with a cache line, so that no vector lies across two.
template <class T>
class Array {
  public:
    explicit Array(int64_t size) : data_((T*)std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64)) {}
    ~Array() { std::free(data_); }
    Array(const Array&) = delete;
    T* get() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

  private:
    T* const data_;
};

// How weights are stored: `Inputs` are a batch of vectors in the form that `dot` multiplies with the weights.
struct Float32 {
    typedef float Weight;
    typedef float Cache;
    static constexpr int batch = 4;
    struct Inputs {
        const float* values;
        int64_t size;
        Inputs(int64_t, int64_t) {}
        void set(const float* x, int64_t, int64_t width) { values = x, size = width; }
    };
    template <int R, int B>
    static void dot(Vector (&sum)[R][B], const float* w, const Inputs& in, int64_t b, Range next) {
        const float* x = in.values + b * in.size;
        for (int64_t k = 0; k < in.size; k += kLanes) {
            if (next.has(k)) ask<R>(w + (in.size + k) * R);
            Vector value[B];
            UNROLL for (int i = 0; i < B; i++) value[i] = load(x + i * in.size + k);
            UNROLL for (int r = 0; r < R; r++) {
                Vector line = load(w + k * R + r * kLanes);
                UNROLL for (int i = 0; i < B; i++) sum[r][i] += line * value[i];
            }
        }
    }
};

struct BFloat16 {
    typedef uint16_t Weight;
    typedef uint16_t Cache;
    static constexpr int batch = 4;
    struct Inputs {
        Array<uint16_t> values;
        int64_t size;
        Inputs(int64_t n, int64_t width) : values(n * width) {}
        void set(const float* x, int64_t n, int64_t width) {
            size = width;
            for (int64_t i = 0; i < n * width; i += kLanes) store(values.get() + i, load(x + i));
        }
    };
    template <int R, int B>
    static void dot(Vector (&sum)[R][B], const uint16_t* w, const Inputs& in, int64_t b, Range next) {
        const uint16_t* x = in.values.get() + b * in.size;
        for (int64_t k = 0; k < in.size; k += 2 * kLanes) {
            if (next.has(k)) ask<R>(w + (in.size + k) * R);
#if defined(__AVX512BF16__)
            __m512bh value[B];
            UNROLL for (int i = 0; i < B; i++) value[i] = (__m512bh)_mm512_loadu_si512(x + i * in.size + k);
            UNROLL for (int r = 0; r < R; r++) {
                __m512bh line = (__m512bh)_mm512_loadu_si512(w + k * R + r * 2 * kLanes);
                UNROLL for (int i = 0; i < B; i++)
                    sum[r][i] = (Vector)_mm512_dpbf16_ps((__m512)sum[r][i], line, value[i]);
            }
#else
            UNROLL for (int r = 0; r < R; r++) {
                const uint16_t* line = w + k * R + r * 2 * kLanes;
                UNROLL for (int i = 0; i < B; i++)
                    sum[r][i] += load(line) * load(x + i * in.size + k) +
                                 load(line + kLanes) * load(x + i * in.size + k + kLanes);
            }
#endif
        }
    }
};

struct Int8 {
    typedef uint8_t Weight;
    typedef uint16_t Cache;
    static constexpr int batch = 3;
    struct Inputs {
        Array<int8_t> values;    // x / scale, rounded to -127..127
        Array<float> scales;     // of each group
        Array<int32_t> offsets;  // -128 * the sums of fours of a group, since weights are 128 too large
        int64_t size;
        Inputs(int64_t n, int64_t width)
            : values(n * width), scales(n * groups(width)), offsets(n * groups(width) * kLanes) {}
        static int64_t groups(int64_t width) { return (width + kGroup - 1) / kGroup; }
        void set(const float* x, int64_t n, int64_t width) {
            size = width;
            const Vector round = Vector{} + 12582912.f;
            const Integers shift = Integers{} + (int32_t)0x80808080;
            const int64_t count = groups(width);
            for (int64_t g = 0; g < n * count; g++) {
                const int64_t first = g % count * kGroup, place = g / count * width + first;
                const int end = width - first < kGroup ? kGroup / 2 : kGroup;
                const float* from = x + place;
                Vector largest = {}, undefined = {};  // the latter becomes NaN with any input that is infinite or NaN
                for (int k = 0; k < end; k += kLanes) {
                    Vector v = load(from + k);
                    largest = maximum(largest, maximum(v, -v)), undefined += v * 0;
                }
                float top = 1e-30f;
                for (int k = 0; k < kLanes; k++) top = largest[k] > top ? largest[k] : top;
                scales[g] = top / 127 + total(undefined);
                const Vector inverse = Vector{} + 127 / top;
                int8_t* to = values.get() + place;
                for (int k = 0; k < end; k += kLanes) {
                    Vector v = (load(from + k) * inverse + round) - round;
                    *(Bytes*)(to + k) = __builtin_convertvector(__builtin_convertvector(v, Integers), Bytes);
                }
                Integers sums = {};
                for (int k = 0; k < end; k += 4 * kLanes) sums = fours(sums, shift, bytes(to + k));
                *(Integers*)(offsets.get() + g * kLanes) = -sums;
            }
        }
    };
    static Integers bytes(const void* p) { return *(const Integers*)p; }  // four in each lane
    static Integers fours(Integers sum, Integers w, Integers x) {  // sum[l] += four products of lane l
#if defined(__AVX512VNNI__)
        return (Integers)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#else
        const uint8_t* a = (const uint8_t*)&w;
        const int8_t* b = (const int8_t*)&x;
        for (int k = 0; k < 4 * kLanes; k++) sum[k / 4] += (int32_t)a[k] * b[k];
        return sum;
#endif
    }
    template <int R, int B>
    static void dot(Vector (&sum)[R][B], const uint8_t* w, const Inputs& in, int64_t b, Range next) {
        const int64_t groups = Inputs::groups(in.size);
        const int8_t* x = in.values.get() + b * in.size;
        const float* scale = in.scales.get() + b * groups;
        const Integers* offset = (const Integers*)in.offsets.get() + b * groups;
        for (int64_t g = 0; g < groups; g++) {
            Integers whole[R][B];
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int i = 0; i < B; i++) whole[r][i] = offset[i * groups + g];
            UNROLL for (int k = 0; k < kGroup; k += 4 * kLanes) {
                if (g * kGroup + k == in.size) break;
                if (next.has(g * kGroup)) ask<R>(w + (in.size + k) * R);
                Integers value[B];
                UNROLL for (int i = 0; i < B; i++) value[i] = bytes(x + i * in.size + k);
                UNROLL for (int r = 0; r < R; r++) {
                    Integers line = bytes(w + k * R + r * 4 * kLanes);
                    UNROLL for (int i = 0; i < B; i++) whole[r][i] = fours(whole[r][i], line, value[i]);
                }
            }
            w += kGroup * R, x += kGroup;
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int i = 0; i < B; i++)
                    sum[r][i] = fused(__builtin_convertvector(whole[r][i], Vector), scale[i * groups + g], sum[r][i]);
        }
    }
};

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

// Threads meet here; they spin, as the next to come is due within microseconds.
class Barrier {
  public:
    void wait(int count) {
        const int phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
            if (spins > kSpins) std::this_thread::yield();
            pause();
        }
    }

  private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> phase_{0};
};

// The OpenMP runtime that the caller has already loaded, given by `use_openmp`: its threads spin for milliseconds after
// other work, and would keep threads of our own from running.
struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
    int (*thread)();                                               // omp_get_thread_num
    int (*threads)();                                              // omp_get_num_threads
} openmp;

// Without OpenMP, threads that wait for the next step: awake at first, as it follows soon while an image is drawn, then asleep.
class Team {
  public:
    std::mutex busy;  // held by the caller of `run`

    void run(int threads, const std::function<void(int)>& work) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (members_ < threads - 1) std::thread(&Team::serve, this, ++members_, round_.load()).detach();
            work_ = &work, active_ = threads, left_.store(threads - 1, std::memory_order_relaxed);
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        work(0);
        for (int spins = 0; left_.load(std::memory_order_acquire); spins++) {
            if (spins > kSpins) std::this_thread::yield();
            pause();
        }
    }

  private:
    void serve(int id, int64_t seen) {
        for (;; seen++) {
            for (int spins = 0; spins < kSpins && round_.load(std::memory_order_acquire) == seen; spins++) pause();
            const std::function<void(int)>* work;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return round_.load() != seen; });
                seen = round_.load() - 1;
                work = id < active_ ? work_ : nullptr;
            }
            if (!work) continue;
            (*work)(id);
            left_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    const std::function<void(int)>* work_ = nullptr;
    int members_ = 0, active_ = 0;
    std::atomic<int64_t> round_{0};
    std::atomic<int> left_{0};
};

Team* team = new Team;  // never destroyed, as its threads are not joined; a forked process has none and begins anew

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

    // Attention of query `q` to n tokens: those at `places` or, without these, the first n.
    void attend(const float* q, const Cache* key, const Cache* value, const int64_t* places, int64_t n, float* scores,
                float* to) const {
        const int64_t features = model.width / model.heads;
        const float scale = 1 / std::sqrt((float)features);
        const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;  // scores beyond n are not used
        for (int64_t s = 0; s < n; s += 4) {
            Vector sum[4] = {};
            const Cache* row[4];
            UNROLL for (int j = 0; j < 4; j++) {
                const int64_t i = s + j < n ? s + j : n - 1;
                row[j] = key + (places ? places[i] : i) * features;
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
        for (; f + 4 * kLanes <= features; f += 4 * kLanes) mix<4>(value + f, places, n, scores, inverse, to + f);
        for (; f < features; f += kLanes) mix<1>(value + f, places, n, scores, inverse, to + f);
    }

    template <int N>  // N vectors of features of the values, weighted
    void mix(const Cache* value, const int64_t* places, int64_t n, const float* scores, Vector inverse,
             float* to) const {
        const int64_t features = model.width / model.heads;
        Vector y[N] = {};
        for (int64_t s = 0; s < n; s++) {
            const Cache* row = value + (places ? places[s] : s) * features;
            UNROLL for (int i = 0; i < N; i++) y[i] += scores[s] * load(row + i * kLanes);
        }
        UNROLL for (int i = 0; i < N; i++) store(to + i * kLanes, y[i] * inverse);
    }

    void self(int64_t layer, int64_t b, int64_t head, float* scores) const {
        const int64_t width = model.width, features = width / model.heads;
        const int64_t at = ((b * model.layers + layer) * model.heads + head) * call.capacity * features;
        const float* q = heads.get() + b * 3 * width + head * features;
        Cache *key = (Cache*)call.keys + at, *value = (Cache*)call.values + at;
        for (int64_t f = 0; f < features; f += kLanes) {
            store(key + call.t * features + f, load(q + width + f));
            store(value + call.t * features + f, load(q + 2 * width + f));
        }
        const int64_t n = call.places ? call.num_places : call.t + 1;
        attend(q, key, value, call.places, n, scores, mixed.get() + b * width + head * features);
    }

    void cross(int64_t layer, int64_t b, int64_t head, float* scores) const {
        const int64_t features = model.width / model.heads, place = b * model.width + head * features;
        const int64_t at = ((b * model.layers + layer) * model.heads + head) * call.memory * features;
        attend(heads.get() + place, (const Cache*)call.memory_keys + at, (const Cache*)call.memory_values + at, nullptr,
               call.lengths[b], scores, mixed.get() + place);
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
        const int64_t most = size > width ? size : width, seen = call.t + 1 > call.memory ? call.t + 1 : call.memory;
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

template <class P>
void step(const Model& model, const Call& call) {
    Step<P> step(model, call);
    const int threads = (int)call.threads;
    if (threads == 1) return step.run(0, 1);
    if (openmp.parallel) {
        const auto work = [](void* step) { ((Step<P>*)step)->run(openmp.thread(), openmp.threads()); };
        return openmp.parallel(work, &step, threads, 0);
    }
    std::unique_lock<std::mutex> lock(team->busy, std::try_to_lock);
    if (!lock.owns_lock()) return step.run(0, 1);  // somebody else decodes at the same time
    team->run(threads, [&](int id) { step.run(id, threads); });
}

const int forked = pthread_atfork(nullptr, nullptr, [] { team = new Team; });

}  // namespace

// Keys and values are float32, or bfloat16 with narrower weights.
#define EXPORT(NAME, P) \
    extern "C" void NAME(const Model* model, const Call* call) { step<P>(*model, *call); }
extern "C" void use_huge_pages(void* memory, int64_t size) {  // they are read 1.7 times as fast here
#if defined(MADV_HUGEPAGE)
    madvise(memory, size, MADV_HUGEPAGE);
#endif
}
extern "C" void use_openmp(void* parallel, void* thread, void* threads) {
    openmp = {(decltype(OpenMP::parallel))parallel, (int (*)())thread, (int (*)())threads};
}
EXPORT(step_float32, Float32)
EXPORT(step_bfloat16, BFloat16)
EXPORT(step_int8, Int8)
