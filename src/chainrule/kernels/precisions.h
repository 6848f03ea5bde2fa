// Products of packed weights with a batch of inputs: what all precisions share, and float32; tiles.h has the others.
#pragma once
#include <cmath>

#include "common.h"

namespace {

typedef float Half __attribute__((vector_size(32), aligned(4)));
typedef float Quarter __attribute__((vector_size(16), aligned(4)));

constexpr int kUnit = 32;  // outputs that are not divided among threads

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

struct Nothing {
    explicit Nothing(int64_t) {}
};

// Each precision has `Inputs`, a batch of vectors in the form that it multiplies, whose `places()` hold the rows that `row`
// gives; `Registers`, which a thread holds while it multiplies them; and `product`, which computes outputs row .. end - 1.
struct Float32 {
    typedef float Cache;
    static constexpr int kRows = 4;  // outputs at a time, whose weights alternate in parts of 64 bytes

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
        for (; b + 4 < to.batch; b += 4) tile<R, 4>(to, in, row, b);
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
        for (int64_t k = 0; k < to.inputs; k += kLanes) {
            if (next.has(k)) ask<R>(w + (to.inputs + k) * R);
            Vector value[B];
            UNROLL for (int i = 0; i < B; i++) value[i] = load(x + i * to.inputs + k);
            UNROLL for (int r = 0; r < R; r++) {
                Vector line = load(w + k * R + r * kLanes);
                UNROLL for (int i = 0; i < B; i++) sum[r][i] += line * value[i];
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
