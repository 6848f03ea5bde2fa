// Products of packed weights with a batch of inputs: what all precisions share, and float32; tiles.h has the others.
#pragma once
#include <cmath>

#include "common.h"

namespace {

typedef int8_t Bytes __attribute__((vector_size(kBytes / 4), aligned(1)));

constexpr int kUnit = 32;  // outputs that are not divided among threads
constexpr int kLine = 16;  // numbers of a cache line in float32

inline Quarter totals(Vector v0, Vector v1, Vector v2, Vector v3) {
    Quarter a = fold(v0), b = fold(v1), c = fold(v2), d = fold(v3);
    Quarter e = __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
    Quarter f = __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
    return __builtin_shufflevector(e, f, 0, 2, 4, 6) + __builtin_shufflevector(e, f, 1, 3, 5, 7);
}
inline Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
inline float greatest(Vector v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float top = v[0];
    for (int k = 1; k < kLanes; k++) top = v[k] > top ? v[k] : top;
    return top;
#endif
}

// Eight bits: the largest absolute value of n numbers, at least 1e-30, or NaN where one of them is infinite or NaN; and
// numbers times `inverse`, rounded to whole ones.
inline float largest(const float* x, int64_t n) {
    Vector top = {}, undefined = {};
    for (int64_t k = 0; k < n; k += kLanes) {
        const Vector v = load(x + k);
        top = maximum(top, maximum(v, -v)), undefined += v * 0;
    }
    const float found = greatest(top);
    return (found > 1e-30f ? found : 1e-30f) + total(undefined);
}
inline Integers rounded(Vector x, float inverse) {
    const Vector magic = all(12582912.f), whole = (x * all(inverse) + magic) - magic;
    return __builtin_convertvector(whole, Integers);
}
inline void store(int8_t* p, Integers v) { *(Bytes*)p = __builtin_convertvector(v, Bytes); }
inline Vector load(const int8_t* p) {
#if defined(__AVX512F__)
    return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
    return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    return __builtin_convertvector(*(const Bytes*)p, Vector);
#endif
}

// Asks for N cache lines of weights that are needed soon.
template <int N>
inline void ask(const void* w) {
    UNROLL for (int n = 0; n < N; n++) __builtin_prefetch((const char*)w + 64 * n, 0, 2);
}

struct Range {
    int64_t begin, end;
    bool has(int64_t i) const { return i >= begin && i < end; }
};

struct Linear {
    const void* weight;
    const float *scale, *bias;  // of the outputs: scale in int8 only; bias may be null
};

// to (batch, outputs) = weight x * scale + bias, or += it.
struct Product {
    const Linear& linear;
    int64_t batch, inputs, outputs;
    float* to;
    bool add;
};

// The keys or values of a token, of one head, as the cache holds them: features, in int8 with a scale behind them.
template <class T>
struct Token {
    static int64_t size(int64_t features) { return features; }
    static float scale(const T*, int64_t) { return 1; }
    static void set(T* to, const float* x, int64_t features) {
        for (int64_t f = 0; f < features; f += kLanes) store(to + f, load(x + f));
    }
};
template <>
struct Token<int8_t> {
    static int64_t size(int64_t features) { return features + sizeof(float); }
    static float scale(const int8_t* token, int64_t features) {
        float scale;
        std::memcpy(&scale, token + features, sizeof(scale));
        return scale;
    }
    static void set(int8_t* to, const float* x, int64_t features) {
        const float top = largest(x, features), scale = top / 127;
        for (int64_t f = 0; f < features; f += kLanes) store(to + f, rounded(load(x + f), 127 / top));
        std::memcpy(to + features, &scale, sizeof(scale));
    }
};

struct Nothing {
    explicit Nothing(int64_t) {}
};

// Each precision has `Inputs`, a batch of vectors in the form that it multiplies, whose `places()` hold the rows that `row`
// gives; `Registers`, which a thread holds while it multiplies them; and `product`, which computes outputs row .. end - 1.
struct Float32 {
    typedef float Cache;
    static constexpr int kRows = 4;                         // outputs at a time, whose weights alternate line by line
    static constexpr int kImages = kManyRegisters ? 4 : 3;  // at a time

    struct Inputs {
        const int64_t batch;
        Array<float> values;
        Inputs(int64_t batch, int64_t width) : batch(batch), values(batch * width) {}
        int64_t places() const { return batch; }
        int64_t row(int64_t place) const { return place; }
        void set(int64_t place, const float* x, int64_t width) {
            std::memcpy(values.get() + place * width, x, width * sizeof(float));
        }
    };
    struct Registers {
        explicit Registers(const Inputs&) {}
    };

    static void product(const Product& to, const Inputs& in, int64_t row, int64_t end) {
        for (; row + kRows <= end; row += kRows) tiles<kRows>(to, in, row);
        for (; row < end; row++) tiles<1>(to, in, row);
    }

    template <int R>
    static void tiles(const Product& to, const Inputs& in, int64_t row) {
        int64_t b = 0;
        for (; b + kImages < to.batch; b += kImages) tile<R, kImages>(to, in, row, b);
        switch (to.batch - b) {
            case 1: return tile<R, 1>(to, in, row, b);
            case 2: return tile<R, 2>(to, in, row, b);
            case 3: return tile<R, 3>(to, in, row, b);
            default: return tile<R, 4>(to, in, row, b);
        }
    }

    // Outputs row .. row + R - 1 of images b .. b + B - 1, which ask for their share of the weights of the next outputs.
    template <int R, int B>
    static void tile(const Product& to, const Inputs& in, int64_t row, int64_t b) {
        Vector sum[R][B] = {};
        const Range next{to.inputs * b / to.batch, to.inputs * (b + B) / to.batch};
        const float *x = in.values.get() + b * to.inputs, *w = (const float*)to.linear.weight + row * to.inputs;
        for (int64_t k = 0; k < to.inputs; k += kLine) {
            if (kManyRegisters && next.has(k)) ask<R>(w + (to.inputs + k) * R);
            UNROLL for (int part = 0; part < kLine; part += kLanes) {
                Vector value[B];
                UNROLL for (int i = 0; i < B; i++) value[i] = load(x + i * to.inputs + k + part);
                UNROLL for (int r = 0; r < R; r++) {
                    const Vector line = load(w + k * R + r * kLine + part);
                    UNROLL for (int i = 0; i < B; i++) sum[r][i] = fused(line, value[i], sum[r][i]);
                }
            }
        }
        UNROLL for (int i = 0; i < B; i++) {
            float value[R], *place = to.to + (b + i) * to.outputs + row;
            if constexpr (R == 4) {
                Quarter four = totals(sum[0][i], sum[1][i], sum[2][i], sum[3][i]);
                std::memcpy(value, &four, sizeof(value));
            } else
                value[0] = total(sum[0][i]);
            for (int r = 0; r < R; r++) {
                const float output = to.linear.bias ? value[r] + to.linear.bias[row + r] : value[r];
                place[r] = to.add ? place[r] + output : output;
            }
        }
    }
};

}  // namespace
