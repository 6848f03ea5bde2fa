// Products with weights in bfloat16 and int8, by AMX or by vectors.
//
// A step is 64 bytes of inputs: 16 words, each of 2 inputs in bfloat16 and of 4 in int8.  A tile of weights is one step by
// 16 outputs, word after word (1 KB); of 32 outputs, the two tiles alternate.  A tile of inputs is one step by up to 16
// rows.  AMX multiplies whole tiles; vectors have an output in each lane, and there are as many sums at a time as
// registers have room for.
//
// Weights in int8 are uint8, 128 + a whole number in -127..127, with a scale per output; inputs have a scale per 128.
// Sums of these 128 are whole numbers, so AMX and vectors give the same numbers.  In bfloat16 they round differently.  In
// either precision, a row's numbers do not depend on the other rows.
#pragma once
#include <algorithm>
#include <type_traits>

#include "precisions.h"
#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__linux__)
#define HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int kWords = 16, kStep = 64, kTile = kWords * 64;  // a step in words and in bytes; bytes of a tile of weights
constexpr int kOutputs = kUnit;                                // two tiles of 16
constexpr int kHeight = 16, kImages = kManyRegisters ? 8 : 4;  // the most rows of a tile of inputs: AMX, vectors
constexpr int kGroup = 2;                                      // steps that share a scale in int8; the last may have one

inline int32_t total(Integers v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t sum = 0;
    for (int k = 0; k < kLanes; k++) sum += v[k];
    return sum;
#endif
}
inline Integers words(const char* p) { return *(const Integers*)p; }
// Where word k of outputs from `first` on stands in two tiles.
inline const char* place(const char* w, int first, int k) { return w + first / 16 * kTile + k * 64 + first % 16 * 4; }
inline void ask(const char* w, int first, int k) {  // for the cache lines of two vectors of them
    __builtin_prefetch(place(w, first, k), 0, 2);
    if (kLanes == 16) __builtin_prefetch(place(w, first + kLanes, k), 0, 2);
}
inline Integers word(const char* p) {  // in all lanes
    int32_t one;
    std::memcpy(&one, p, 4);
    return Integers{} + one;
}

// Rows of a batch in tiles of equal height; the last tile is filled up with copies of the last row.
struct Rows {
    int64_t batch, count, height;
    Rows(int64_t batch, int64_t most)
        : batch(batch), count((batch + most - 1) / most), height((batch + count - 1) / count) {}
    int64_t places() const { return count * height; }
    int64_t row(int64_t place) const { return place < batch ? place : batch - 1; }
    int64_t first(int64_t place, int64_t parts) const {  // of a row's parts, of which a tile has all first ones first
        return place / height * height * parts + place % height;
    }
};

#if defined(HAS_AMX)
// AMX: registers 0 to 3 take sums, 4 and 5 inputs, 6 and 7 weights.
template <int T> inline void amx_zero() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
template <int T> inline void amx_load(const void* p, long stride = 64) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T> inline void amx_store(void* p, long stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
template <int C, int A, int B> inline void amx_bfloat16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B> inline void amx_int8() {  // signed inputs, unsigned weights
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

// The shapes of the registers, of this thread, while this lives.
struct AMX {
    explicit AMX(int64_t height) {
        struct {
            uint8_t palette = 1, start = 0, none[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {};
        } config;
        for (int t = 0; t < 8; t++) config.rows[t] = t < 6 ? height : kWords;
        asm volatile("ldtilecfg %0" ::"m"(config));
    }
    ~AMX() { asm volatile("tilerelease"); }
    AMX(const AMX&) = delete;
};
#else
struct AMX {};
#endif

// Vectors of outputs at a time, for B images: as many as registers have room for.  With few registers, the processors that
// were measured (AMD Zen 3) read the weights of one or two images faster unasked.
constexpr int across(int B) { return kManyRegisters || B > 2 ? 2 : 4; }
constexpr bool asks(int B) { return kManyRegisters || B > 2; }

struct Narrow {
    typedef uint16_t Cache;
    static constexpr int64_t kSize = 2;  // bytes of a weight

    struct Inputs : Rows {
        Array<uint16_t> values;
        Inputs(int64_t batch, int64_t most, int64_t width) : Rows(batch, most), values(places() * width) {}
        void set(int64_t place, const float* x, int64_t width) {
            uint16_t* to = values.get() + first(place, width / 32) * 32;
            for (int64_t k = 0; k < width; k += kLanes) store(to + k / 32 * height * 32 + k % 32, load(x + k));
        }
        const char* tile(int64_t t, int64_t steps) const { return (const char*)&values[t * height * steps * 32]; }
    };

    static Vector twos(Vector sum, Integers w, Integers x) {  // sum[l] += two products of lane l
#if defined(__AVX512BF16__)
        return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
#else
        const Integers high = Integers{} + (int32_t)0xffff0000;
        return fused((Vector)(w & high), (Vector)(x & high), fused((Vector)(w << 16), (Vector)(x << 16), sum));
#endif
    }

    // Sums (B, 32) of the rows of a tile, of the outputs from `first` on that are kept in registers.  In each step, the words
    // of `next` ask for the weights of the next outputs.
    template <int B>
    static void vectors(const Inputs& in, int64_t t, int64_t steps, const char* w, Range next, int first, float* sums) {
        constexpr int kAcross = across(B);
        const char* x = in.tile(t, steps);
        Vector sum[B][kAcross] = {};
        for (int64_t s = 0; s < steps; s++, w += 2 * kTile, x += B * kStep) {
            UNROLL for (int n = 0; n < kAcross; n += 2)
                _Pragma("GCC unroll 2") for (int k = 0; k < kWords; k++) {
                    if (asks(B) && next.has(k)) ask(w + steps * 2 * kTile, first + n * kLanes, k);
                    const Integers a = words(place(w, first + n * kLanes, k)), b = words(place(w, first + (n + 1) * kLanes, k));
                    UNROLL for (int i = 0; i < B; i++) {
                        const Integers value = word(x + i * kStep + k * 4);
                        sum[i][n] = twos(sum[i][n], a, value), sum[i][n + 1] = twos(sum[i][n + 1], b, value);
                    }
                }
        }
        UNROLL for (int i = 0; i < B; i++)
            UNROLL for (int n = 0; n < kAcross; n++) store(sums + i * kOutputs + n * kLanes, sum[i][n]);
    }
#if defined(HAS_AMX)
    template <int M>
    static void amx(const Inputs& in, int64_t t, int64_t steps, const char* w, Range next, float* sums) {
        const char* x = in.tile(t, steps);
        const int64_t row = in.height * kStep, tile = row * steps;
        amx_zero<0>(), amx_zero<1>();
        if (M > 1) amx_zero<2>(), amx_zero<3>();
        for (int64_t s = 0; s < steps; s++, w += 2 * kTile, x += row) {
            for (int64_t k = next.begin; k < next.end; k++) ask(w + steps * 2 * kTile, 0, k);
            amx_load<4>(x), amx_load<6>(w), amx_bfloat16<0, 4, 6>();
            amx_load<7>(w + kTile), amx_bfloat16<1, 4, 7>();
            if (M > 1) amx_load<5>(x + tile), amx_bfloat16<2, 5, 6>(), amx_bfloat16<3, 5, 7>();
        }
        amx_store<0>(sums, kOutputs * 4), amx_store<1>(sums + kLanes, kOutputs * 4);
        sums += in.height * kOutputs;
        if (M > 1) amx_store<2>(sums, kOutputs * 4), amx_store<3>(sums + kLanes, kOutputs * 4);
    }
#endif
};

struct Int8 {
    typedef int8_t Cache;
    static constexpr int64_t kSize = 1;

    struct Inputs : Rows {
        Array<int8_t> values;    // x / scale, rounded to -127..127
        Array<float> scales;     // of the groups of a row
        Array<int32_t> offsets;  // -128 * the sum of the group, since weights are 128 too large
        Inputs(int64_t batch, int64_t most, int64_t width)
            : Rows(batch, most), values(places() * width), scales(places() * groups(width / kStep)),
              offsets(places() * groups(width / kStep)) {}
        static int64_t groups(int64_t steps) { return (steps + kGroup - 1) / kGroup; }
        void set(int64_t place, const float* x, int64_t width) {
            const int64_t steps = width / kStep, group = first(place, groups(steps));
            int8_t* to = values.get() + first(place, steps) * kStep;
            for (int64_t g = 0; g < groups(steps); g++) {
                const int parts = g * kGroup + 1 < steps ? 2 : 1;
                round(x, parts, to, scales[group + g * height], offsets[group + g * height]);
                x += parts * kStep, to += parts * height * kStep;
            }
        }
        void round(const float* x, int parts, int8_t* to, float& scale, int32_t& offset) const {
            const float top = largest(x, parts * kStep), inverse = 127 / top;
            scale = top / 127;
            Integers sums = {};
            for (int part = 0; part < parts; part++, x += kStep, to += height * kStep)
                for (int k = 0; k < kStep; k += kLanes) {
                    const Integers whole = rounded(load(x + k), inverse);
                    store(to + k, whole);
                    sums += whole;
                }
            offset = -128 * total(sums);
        }
        const char* tile(int64_t t, int64_t steps) const { return (const char*)&values[t * height * steps * kStep]; }
    };

    // Weights as `fours` multiplies them: bytes 0..255, or, where only products of 0..127 and -127..127 fit, sizes and
    // signs of the numbers -127..127.
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(__AVXVNNI__)
    static constexpr bool kSigned = true;
    struct Weight {
        __m256i size, sign;
        explicit Weight(Integers w)
            : size(_mm256_abs_epi8(_mm256_xor_si256((__m256i)w, _mm256_set1_epi8(-128)))),
              sign(_mm256_xor_si256((__m256i)w, _mm256_set1_epi8(-128))) {}
    };
#else
    static constexpr bool kSigned = false;
    typedef Integers Weight;
#endif
    static Integers fours(Integers sum, Weight w, Integers x) {  // sum[l] += four products of lane l
#if defined(__AVX512VNNI__)
        return (Integers)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
        return (Integers)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#elif defined(__AVX2__) && !defined(__AVX512F__)
        const __m256i pairs = _mm256_maddubs_epi16(w.size, _mm256_sign_epi8((__m256i)x, w.sign));
        return sum + (Integers)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
        UNROLL for (int k = 0; k < 32; k += 8) sum += (w >> k & 255) * (x << (24 - k) >> 24);
        return sum;
#endif
    }

    template <int B>
    static void vectors(const Inputs& in, int64_t t, int64_t steps, const char* w, Range next, int first, float* sums) {
        constexpr int kAcross = across(B);
        const char* x = in.tile(t, steps);
        const float* scale = &in.scales[t * in.groups(steps) * B];
        const int32_t* offset = &in.offsets[t * in.groups(steps) * B];
        for (int i = 0; i < B * kOutputs; i += kOutputs)
            for (int n = 0; n < kAcross; n++) store(sums + i + n * kLanes, Vector{});
        for (int64_t s = 0; s < steps; scale += B, offset += B) {
            Integers whole[B][kAcross];
            UNROLL for (int i = 0; i < B; i++)
                UNROLL for (int n = 0; n < kAcross; n++) whole[i][n] = Integers{} + (kSigned ? 0 : offset[i]);
            for (int part = 0; part < kGroup && s < steps; part++, s++, w += 2 * kTile, x += B * kStep) {
                UNROLL for (int n = 0; n < kAcross; n += 2)
                    _Pragma("GCC unroll 2") for (int k = 0; k < kWords; k++) {
                        if (asks(B) && next.has(k)) ask(w + steps * 2 * kTile, first + n * kLanes, k);
                        const Weight a(words(place(w, first + n * kLanes, k))), b(words(place(w, first + (n + 1) * kLanes, k)));
                        UNROLL for (int i = 0; i < B; i++) {
                            const Integers value = word(x + i * kStep + k * 4);
                            whole[i][n] = fours(whole[i][n], a, value);
                            whole[i][n + 1] = fours(whole[i][n + 1], b, value);
                        }
                    }
            }
            UNROLL for (int i = 0; i < B; i++)
                UNROLL for (int n = 0; n < kAcross; n++) {
                    float* sum = sums + i * kOutputs + n * kLanes;
                    store(sum, fused(__builtin_convertvector(whole[i][n], Vector), all(scale[i]), load(sum)));
                }
        }
    }
#if defined(HAS_AMX)
    template <int M>
    static void amx(const Inputs& in, int64_t t, int64_t steps, const char* w, Range next, float* sums) {
        alignas(64) int32_t whole[2 * M][kHeight * kLanes];
        const char* x = in.tile(t, steps);
        const int64_t row = in.height * kStep, tile = row * steps, place = t * in.groups(steps) * in.height;
        const float* scale = &in.scales[place];
        const int32_t* offset = &in.offsets[place];
        const auto add = [&] {  // the last group of sums
            UNROLL for (int m = 0; m < M; m++)
                for (int64_t i = 0; i < in.height; i++)
                    UNROLL for (int n = 0; n < 2; n++) {
                        const int64_t other = m * in.groups(steps) * in.height + i;
                        const Integers value = words((const char*)&whole[2 * m + n][i * kLanes]) + offset[other];
                        float* sum = sums + (m * in.height + i) * kOutputs + n * kLanes;
                        store(sum, fused(__builtin_convertvector(value, Vector), all(scale[other]), load(sum)));
                    }
            scale += in.height, offset += in.height;
        };
        for (int64_t i = 0; i < M * in.height * kOutputs; i += kLanes) store(sums + i, Vector{});
        for (int64_t s = 0; s < steps;) {
            const bool first = s == 0;
            amx_zero<0>(), amx_zero<1>();
            if (M > 1) amx_zero<2>(), amx_zero<3>();
            for (int part = 0; part < kGroup && s < steps; part++, s++, w += 2 * kTile, x += row) {
                for (int64_t k = next.begin; k < next.end; k++) ask(w + steps * 2 * kTile, 0, k);
                amx_load<4>(x), amx_load<6>(w), amx_int8<0, 4, 6>();
                amx_load<7>(w + kTile), amx_int8<1, 4, 7>();
                if (M > 1) amx_load<5>(x + tile), amx_int8<2, 5, 6>(), amx_int8<3, 5, 7>();
            }
            if (!first) add();  // while AMX multiplies
            amx_store<0>(whole[0], 64), amx_store<1>(whole[1], 64);
            if (M > 1) amx_store<2>(whole[2 * M - 2], 64), amx_store<3>(whole[2 * M - 1], 64);
        }
        add();
    }
#endif
};

// One row of sums (32) with scale and bias to its place; scales and biases are filled up to 32.
inline void finish(const Product& to, const float* sums, int64_t row, int64_t b) {
    for (int64_t k = 0; k < kOutputs && row + k < to.outputs; k += kLanes) {
        float *place = to.to + b * to.outputs + row + k, ends[kLanes];
        const int64_t count = std::min(to.outputs - row - k, kLanes);
        Vector y = load(sums + k);
        if (to.linear.scale) y *= load(to.linear.scale + row + k);
        if (to.linear.bias) y += load(to.linear.bias + row + k);
        if (count == kLanes) {
            store(place, to.add ? load(place) + y : y);
        } else {
            store(ends, y);
            for (int64_t i = 0; i < count; i++) place[i] = to.add ? place[i] + ends[i] : ends[i];
        }
    }
}

// A precision by AMX or by vectors.
template <class P, bool amx>
struct Tiled {
    typedef typename P::Cache Cache;
    static constexpr int kTiles = amx ? 2 : 1;  // of inputs at a time

    struct Inputs : P::Inputs {
        Inputs(int64_t batch, int64_t width) : P::Inputs(batch, amx ? kHeight : kImages, width) {}
    };
    struct Registers : std::conditional_t<amx, AMX, Nothing> {
        explicit Registers(const Inputs& in) : std::conditional_t<amx, AMX, Nothing>(in.height) {}
    };

    static void product(const Product& to, const Inputs& in, int64_t row, int64_t end) {
        alignas(64) float sums[kTiles * kHeight * kOutputs];
        const int64_t steps = to.inputs * P::kSize / kStep, parts = (in.count + kTiles - 1) / kTiles;
        for (; row < end; row += kOutputs) {
            const char* w = (const char*)to.linear.weight + row * steps * kStep;
            for (int64_t part = 0; part < parts; part++) {
                const int64_t t = part * kTiles, tiles = std::min<int64_t>(kTiles, in.count - t);
                const int64_t first = t * in.height, last = std::min(first + tiles * in.height, in.batch);
                multiply(in, t, tiles, steps, w, {kWords * part / parts, kWords * (part + 1) / parts}, sums);
                for (int64_t b = first; b < last; b++) finish(to, sums + (b - first) * kOutputs, row, b);
            }
        }
    }

    static void multiply(const Inputs& in, int64_t t, int64_t tiles, int64_t steps, const char* w, Range next,
                         float* sums) {
        if constexpr (amx) {
            if (tiles == 2) return P::template amx<2>(in, t, steps, w, next, sums);
            return P::template amx<1>(in, t, steps, w, next, sums);
        } else
            for (int first = 0; first < kOutputs; first += across(in.height) * kLanes)
                vectors(in, t, steps, w, next, first, sums + first);
    }

    static void vectors(const Inputs& in, int64_t t, int64_t steps, const char* w, Range next, int first, float* sums) {
        switch (in.height) {
            case 1: return P::template vectors<1>(in, t, steps, w, next, first, sums);
            case 2: return P::template vectors<2>(in, t, steps, w, next, first, sums);
            case 3: return P::template vectors<3>(in, t, steps, w, next, first, sums);
            case 4: return P::template vectors<4>(in, t, steps, w, next, first, sums);
            case 5: return P::template vectors<5>(in, t, steps, w, next, first, sums);
            case 6: return P::template vectors<6>(in, t, steps, w, next, first, sums);
            case 7: return P::template vectors<7>(in, t, steps, w, next, first, sums);
            default: return P::template vectors<8>(in, t, steps, w, next, first, sums);
        }
    }
};

}  // namespace

// Whether AMX may be used: compiled in, and allowed by the system, which must be asked once in a process.
extern "C" int allow_amx() {
#if defined(HAS_AMX)
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */) == 0;
#else
    return 0;
#endif
}
