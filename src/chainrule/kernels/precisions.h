// The weights of products in three precisions, and the inputs as each multiplies them.
//
// Weights are (outputs, inputs) row after row, in float32, bfloat16, or uint8 (128 + a whole number in -127..127, and a
// scale per output).
#pragma once
#include "common.h"

namespace {

typedef float Half __attribute__((vector_size(32), aligned(4)));
typedef float Quarter __attribute__((vector_size(16), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(64), aligned(1), may_alias));
typedef int8_t Bytes __attribute__((vector_size(16), aligned(1)));

constexpr int kGroup = 128;  // inputs that share a scale in int8; widths are multiples of its half

inline Vector fused(Vector a, float b, Vector c) {  // a b + c, rounded alike wherever it stands
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, _mm512_set1_ps(b), (__m512)c);
#else
    return a * b + c;
#endif
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

// Asks for R vectors of weights that are needed soon.
template <int R>
inline void ask(const void* w) {
    UNROLL for (int r = 0; r < R; r++) __builtin_prefetch((const char*)w + 64 * r, 0, 2);
}

struct Range {
    int64_t begin, end;
    bool has(int64_t i) const { return i >= begin && i < end; }
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

struct Narrow {
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

}  // namespace
