// What the compiled convolutions share: the call, which convolution.py makes, and 16 channels of a position at a time.
#pragma once
#include "common.h"

namespace {

// Sizes. Output (factor i + a, factor j + b), of phase (a, b), reads inputs step i - before + a + row, row = 0 .. side - 1,
// and columns likewise; there are rows x columns positions (i, j).
struct Shape {
    int64_t batch, height, width, inputs, rows, columns, outputs, side, step, factor, before, activated;
    int64_t narrow_inputs, narrow_outputs;  // bfloat16
};
// y = bias + residual + convolution of act(x), act(x) = swish(scale x + shift) or x; null where there is none.
struct Call {
    Shape shape;
    const void* x;
    const float *scale, *shift;
    const void* weight;
    const float* bias;
    const void* residual;  // of the type of y
    void* y;
    float* sums;  // (blocks, 2, outputs), of the results and of their squares
};

struct Block {
    int64_t image, row, column, rows, columns;  // of positions or tiles
};

inline int64_t divide_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
inline int64_t round_up(int64_t n, int64_t unit) { return divide_up(n, unit) * unit; }

}  // namespace

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512BF16__)
#define HAS_BFLOAT16

namespace {

inline __mmask16 lanes(int64_t count) { return count >= kLanes ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }

// x / (1 + 2^(-x log2 e)), for results in bfloat16: relative error below 2e-4. `scalef` takes the whole part of its
// exponent itself and saturates.
inline __m512 swish(__m512 x) {
    const __m512 one = _mm512_set1_ps(1);
    const __m512 y = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
    const __m512 f = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // y - floor(y)
    __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(0.0780243f), _mm512_set1_ps(0.2260678f));
    p = _mm512_fmadd_ps(_mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6958331f)), f, _mm512_set1_ps(0.9999253f));
    return _mm512_mul_ps(x, _mm512_rcp14_ps(_mm512_add_ps(one, _mm512_scalef_ps(p, y))));
}

inline __m512 load(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load(const uint16_t* p, __mmask16 mask) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16);
}
inline void store(float* p, __m512 v, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, v); }
inline void store(uint16_t* p, __m512 v, __mmask16 mask) {
    _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
}

}  // namespace
#else

namespace {

inline Lanes lanes(int64_t count) { return Lanes(std::min<int64_t>(std::max<int64_t>(count, 0), kLanes)); }
inline Vector swish(Vector x) { return x / (1 + exponential(-x)); }

// As above: channels beyond the last are zero where they are loaded, and are not stored.
inline Vector load(const float* p, const Lanes& lanes) { return lanes.load(p); }
inline void store(float* p, Vector v, const Lanes& lanes) { lanes.store(p, v); }
inline Vector load(const uint16_t* p, const Lanes& lanes) {
    if (lanes.count == kLanes) return load(p);
    uint16_t whole[kLanes] = {};
    std::memcpy(whole, p, lanes.count * sizeof(uint16_t));
    return load(whole);
}
inline void store(uint16_t* p, Vector v, const Lanes& lanes) {
    uint16_t whole[kLanes];
    store(whole, v);
    std::memcpy(p, whole, lanes.count * sizeof(uint16_t));
}

}  // namespace
#endif
