// What the compiled kernels share: vectors, bfloat16, aligned memory, and the check of the interface.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define UNROLL _Pragma("GCC unroll 24")  // so that arrays of accumulators become registers

// The version of the interface and the sizes of its structures, one after the other, then -1; compared by native.py.
#define INTERFACE(...)                                                        \
    extern "C" int64_t interface(int64_t index) {                             \
        constexpr int64_t values[] = {__VA_ARGS__, -1};                       \
        constexpr int64_t last = (int64_t)(sizeof(values) / sizeof(int64_t)); \
        return values[index < last ? index : last - 1];                       \
    }

namespace {

// Bytes of a vector register, which vectors fill: longer ones would live in memory.
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr bool kManyRegisters = kBytes == 64;  // 32 of them, else 16

template <class T>
struct VectorOf {
    typedef T type __attribute__((vector_size(kBytes), aligned(sizeof(T))));  // unaligned loads
    static constexpr int lanes = kBytes / sizeof(T);
};
typedef VectorOf<float>::type Vector;
typedef VectorOf<uint32_t>::type Words;
typedef int32_t Integers __attribute__((vector_size(kBytes), aligned(1), may_alias));
typedef float Quarter __attribute__((vector_size(16), aligned(4)));
typedef uint16_t Shorts __attribute__((vector_size(kBytes / 2), aligned(2)));

constexpr int64_t kLanes = VectorOf<float>::lanes;

inline Vector all(float x) { return x - Vector{}; }  // x in all lanes, without the addition of `Vector{} + x`
inline Vector load(const float* p) { return *(const Vector*)p; }
inline void store(float* p, Vector v) { *(Vector*)p = v; }
inline Vector load(const uint16_t* p) {  // bfloat16 -> float32
#if defined(__AVX512F__)
    return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
    return (Vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
    return (Vector)(__builtin_convertvector(*(const Shorts*)p, Words) << 16);
#endif
}
inline void store(uint16_t* p, Vector v) {  // to the nearest, ties to even
    Words bits = (Words)v;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *(Shorts*)p = __builtin_convertvector(bits, Shorts);
}

inline Vector fused(Vector a, Vector b, Vector c) {  // a b + c, rounded alike wherever it stands
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// The first lanes of a vector: the others are zero where it is loaded, and are not stored.
struct Lanes {
    int64_t count;
#if defined(__AVX512F__)
    __mmask16 mask;
    explicit Lanes(int64_t count) : count(count), mask((1u << count) - 1) {}
    Vector load(const float* p) const { return (Vector)_mm512_maskz_loadu_ps(mask, p); }
    void store(float* p, Vector v) const { _mm512_mask_storeu_ps(p, mask, (__m512)v); }
#elif defined(__AVX2__)
    __m256i mask;
    explicit Lanes(int64_t count)
        : count(count), mask(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))) {}
    Vector load(const float* p) const { return (Vector)_mm256_maskload_ps(p, mask); }
    void store(float* p, Vector v) const {  // the instruction for a part is slow
        if (count == 8)
            ::store(p, v);
        else
            _mm256_maskstore_ps(p, mask, (__m256)v);
    }
#else
    explicit Lanes(int64_t count) : count(count) {}
    Vector load(const float* p) const {
        Vector v = {};
        std::memcpy(&v, p, count * sizeof(float));
        return v;
    }
    void store(float* p, Vector v) const { std::memcpy(p, &v, count * sizeof(float)); }
#endif
};

inline Vector exponential(Vector x) {  // 2^n * p(fraction); relative error below 2e-7
    const Vector round = all(12582912.f), top = all(126.f);
    x = x * 1.44269504f;
    x = x < -top ? -top : x > top ? top : x;
    Vector n = (x + round) - round, f = (x - n) * 0.69314718f, p = all(1.f / 5040);
    p = p * f + 1.f / 720, p = p * f + 1.f / 120, p = p * f + 1.f / 24, p = p * f + 1.f / 6;
    p = p * f + 0.5f, p = p * f + 1, p = p * f + 1;
    return (Vector)((Integers)p + (__builtin_convertvector(n, Integers) << 23));
}

inline Quarter fold(Vector v) {
    Quarter q[kBytes / 16];
    std::memcpy(q, &v, kBytes);
    for (int n = kBytes / 32; n > 0; n /= 2)
        for (int i = 0; i < n; i++) q[i] += q[i + n];
    return q[0];
}
inline float total(Vector v) {
    Quarter q = fold(v);
    return (q[0] + q[2]) + (q[1] + q[3]);
}

// One bfloat16.
struct BFloat16 {
    uint16_t bits;
    BFloat16() = default;
    explicit BFloat16(float x) {  // to the nearest, ties to even; a NaN stays one
        uint32_t wide;
        std::memcpy(&wide, &x, 4);
        bits = x != x ? 0x7fc0 : (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    }
    operator float() const {
        uint32_t wide = (uint32_t)bits << 16;
        float x;
        std::memcpy(&x, &wide, 4);
        return x;
    }
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

}  // namespace
