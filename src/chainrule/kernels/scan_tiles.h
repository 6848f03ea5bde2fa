// The recurrences of scan.cpp by the tiles of AMX, for inputs in bfloat16 and states of a multiple of 32 features.
//
// States, weights and gradients of gates are rounded to bfloat16 where they are multiplied; cells, gates and sums are
// float32. Maps that are multiplied have a border of zeros, so that taps need no bounds, and steps of a diagonal lie at
// equal distances in them.
#pragma once
#include <vector>

#include "tiles.h"

#if defined(HAS_AMX)
namespace {

// m (32, 32) = sum over s of A(s) (32, 32) times B(s) (32, 32); each is two tiles, the second at `next` numbers.
template <class A, class B>
inline void block(int64_t count, A a, int64_t a_line, int64_t a_next, B b, int64_t b_line, int64_t b_next, float* m,
                  int64_t m_line) {
    amx_zero<0>(), amx_zero<1>(), amx_zero<2>(), amx_zero<3>();
    for (int64_t s = 0; s < count; s++) {
        const uint16_t *p = a(s), *q = b(s);
        amx_load<4>(p, 2 * a_line), amx_load<5>(p + a_next, 2 * a_line);
        amx_load<6>(q, 2 * b_line), amx_load<7>(q + b_next, 2 * b_line);
        amx_bfloat16<0, 4, 6>(), amx_bfloat16<1, 4, 7>(), amx_bfloat16<2, 5, 6>(), amx_bfloat16<3, 5, 7>();
    }
    amx_store<0>(m, 4 * m_line), amx_store<1>(m + 16, 4 * m_line);
    amx_store<2>(m + 16 * m_line, 4 * m_line), amx_store<3>(m + 16 * m_line + 16, 4 * m_line);
}

// 1 / (1 + 2^(-x log2 e)), with an error below 1e-5.
inline __m512 logistic(__m512 x) {
    const __m512 one = _mm512_set1_ps(1), y = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
    const __m512 f = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // y - floor(y)
    __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(0.0134268f), _mm512_set1_ps(0.0522423f));
    p = _mm512_fmadd_ps(_mm512_fmadd_ps(p, f, _mm512_set1_ps(0.2412803f)), f, _mm512_set1_ps(0.6930448f));
    const __m512 d = _mm512_min_ps(_mm512_fmadd_ps(_mm512_fmadd_ps(p, f, one), _mm512_scalef_ps(one, y), one),
                                   _mm512_set1_ps(1e30f));
    const __m512 r = _mm512_rcp14_ps(d);
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(d, r, _mm512_set1_ps(2)));
}
inline __m512 tanh(__m512 x) {
    return _mm512_fmsub_ps(logistic(_mm512_add_ps(x, x)), _mm512_set1_ps(2), _mm512_set1_ps(1));
}

// As `update` of scan.cpp, with the sums z + m, which keeps the state s in bfloat16, too.
inline void update_tiles(const uint16_t* z, const float* m, float* r, const float* last, float* next, float* s,
                         uint16_t* kept, int64_t h) {
    for (int64_t u = 0; u < h; u += kLanes) {
        __m512 sum[4];
        UNROLL for (int g = 0; g < 4; g++) sum[g] = (__m512)(load(z + g * h + u) + load(m + g * h + u));
        const __m512 o = logistic(sum[0]), f = logistic(sum[1]), in = logistic(sum[2]), g = tanh(sum[3]);
        const __m512 value = _mm512_fmadd_ps(f, _mm512_loadu_ps(last + u), _mm512_mul_ps(in, g));
        const __m512 state = _mm512_mul_ps(o, tanh(value));
        _mm512_storeu_ps(r + u, o), _mm512_storeu_ps(r + h + u, f);
        _mm512_storeu_ps(r + 2 * h + u, in), _mm512_storeu_ps(r + 3 * h + u, g);
        _mm512_storeu_ps(next + u, value), _mm512_storeu_ps(s + u, state);
        store(kept + u, (Vector)state);
    }
}

inline uint16_t narrow(float x) { return BFloat16(x).bits; }

// Weights (taps, depth, columns) as tiles: for each 32 columns, tap and 32 of depth two tiles of pairs of depth.
inline std::vector<uint16_t> pack(const float* weight, int64_t taps, int64_t depth, int64_t columns) {
    std::vector<uint16_t> packed(taps * depth * columns);
    uint16_t* to = packed.data();
    for (int64_t n = 0; n < columns; n += 32)
        for (int64_t d = 0; d < taps * depth; d += 32)
            for (int64_t tile = 0; tile < 2; tile++)
                for (int64_t pair = 0; pair < 16; pair++)
                    for (int64_t i = 0; i < 16; i++)
                        for (int64_t k = 0; k < 2; k++)
                            *to++ = narrow(weight[(d + 2 * pair + k) * columns + n + 16 * tile + i]);
    return packed;
}

// A map in bfloat16 with a border of one position.
struct Bordered {
    const Scan& scan;
    int64_t depth, line;  // features; positions of a row
    std::vector<uint16_t> values;
    Bordered(const Scan& scan, int64_t depth)
        : scan(scan), depth(depth), line(scan.width + 2), values(((scan.height + 2) * line + 32 * (line + 1)) * depth) {}
    int64_t size() const { return (scan.height + 2) * line; }
    int64_t at(Pixel p) const { return (p.row + 1) * line + p.column + 1; }
    int64_t shift(Pixel tap) const { return tap.row * line + tap.column; }
    int64_t distance() const { return !scan.diagonal ? 1 : scan.mirrored ? line + 1 : line - 1; }  // in a step
    // m (32, columns) of the 32 positions from p on: their taps, forwards or backwards, times packed weights.
    void multiply(Pixel p, int sign, const std::vector<uint16_t>& weight, int64_t columns, float* m) const {
        const int64_t each = depth / 32, count = scan.taps() * each;
        const uint16_t* from[kMaxTaps];
        for (int k = 0; k < scan.taps(); k++) from[k] = values.data() + (at(p) + sign * shift(scan.tap(k))) * depth;
        for (int64_t n = 0; n < columns; n += 32) {
            const uint16_t* w = weight.data() + n * count * 32;
            block(count, [&](int64_t s) { return from[s / each] + s % each * 32; }, distance() * depth,
                  16 * distance() * depth, [&](int64_t s) { return w + s * 1024; }, 32, 512, m + n, columns);
        }
    }
};

inline void forward_tiles(const Scan& scan, const BFloat16* z, const float* weight, float* gates, float* c, float* out,
                          int64_t begin, int64_t end) {
    const AMX registers(16);
    const int64_t size = scan.size(), h = scan.hidden;
    const std::vector<uint16_t> packed = pack(weight, scan.taps(), h, 4 * h);
    const std::vector<float> zeros(h, 0.f);
    std::vector<float> m(32 * 4 * h);
    Bordered states(scan, h);
    for (int64_t b = begin; b < end; b++) {
        float *gate = gates + b * size * 4 * h, *cell = c + b * size * h, *state = out + b * size * h;
        std::fill(states.values.begin(), states.values.end(), 0);
        for (int64_t t = 0; t < scan.steps(); t++)
            for (int64_t j = 0, n = scan.count(t); j < n; j += 32) {
                states.multiply(scan.pixel(t, j), 1, packed, 4 * h, m.data());
                for (int64_t i = 0; i < std::min<int64_t>(32, n - j); i++) {
                    const Pixel p = scan.pixel(t, j + i);
                    const int64_t here = scan.at(p), before = scan.at(p, scan.cell(), 1);
                    float *r = gate + here * 4 * h, *next = cell + here * h, *s = state + here * h;
                    const float *sum = m.data() + i * 4 * h, *last = before < 0 ? zeros.data() : cell + before * h;
                    const uint16_t* source = (const uint16_t*)(z + (b * size + here) * 4 * h);
                    update_tiles(source, sum, r, last, next, s, states.values.data() + states.at(p) * h, h);
                }
            }
    }
}

// dweight (taps, h, 4h) += sum over positions p of state(p + tap) transposed, times gradient(p).
inline void outer_tiles(const Scan& scan, const float* state, const Bordered& gradient, float* dweight) {
    const int64_t h = scan.hidden, size = (gradient.size() + 31) / 32 * 32, margin = gradient.line + 1;
    const int64_t length = size + 2 * margin;
    std::vector<uint16_t> turned(h * length);
    std::vector<uint32_t> pairs(size / 2 * 4 * h);
    std::vector<uint16_t> line(scan.width * h);
    for (int64_t row = 0; row < scan.height; row++) {
        for (int64_t i = 0; i < scan.width * h; i += kLanes) store(line.data() + i, load(state + row * scan.width * h + i));
        for (int64_t u = 0; u < h; u++) {
            uint16_t* to = turned.data() + u * length + margin + gradient.at({row, 0});
            for (int64_t column = 0; column < scan.width; column++) to[column] = line[column * h + u];
        }
    }
    for (int64_t p = 0; p < size; p += 2) {
        const uint16_t* d = gradient.values.data() + p * 4 * h;
        for (int64_t u = 0; u < 4 * h; u++) pairs[p * 2 * h + u] = d[u] | (uint32_t)d[4 * h + u] << 16;
    }
    alignas(64) float m[32 * 32];
    for (int k = 0; k < scan.taps(); k++)
        for (int64_t u = 0; u < h; u += 32)
            for (int64_t v = 0; v < 4 * h; v += 32) {
                const uint16_t* a = turned.data() + u * length + margin + gradient.shift(scan.tap(k));
                const uint16_t* d = (const uint16_t*)(pairs.data() + v);
                block(size / 32, [&](int64_t s) { return a + 32 * s; }, length, 16 * length,
                      [&](int64_t s) { return d + s * 128 * h; }, 8 * h, 32, m, 32);
                for (int64_t i = 0; i < 32; i++)
                    for (int64_t n = 0; n < 32; n += kLanes) {
                        float* to = dweight + (k * h + u + i) * 4 * h + v + n;
                        store(to, load(to) + load(m + 32 * i + n));
                    }
            }
}

inline void backward_tiles(const Scan& scan, const float* dout, const float* weight, const float* gates, const float* c,
                           const float* out, BFloat16* dz, float* dweight, int64_t begin, int64_t end) {
    const AMX registers(16);
    const int64_t size = scan.size(), h = scan.hidden;
    const std::vector<uint16_t> packed = pack(weight, scan.taps(), 4 * h, h);
    const std::vector<float> zeros(h, 0.f);
    std::vector<float> m(32 * h), carry(size * h), r(4 * h), bent(h);
    Bordered gradient(scan, 4 * h);
    for (int64_t b = begin; b < end; b++) {
        std::fill(gradient.values.begin(), gradient.values.end(), 0);
        for (int64_t t = scan.steps() - 1; t >= 0; t--)
            for (int64_t j = 0, n = scan.count(t); j < n; j += 32) {
                gradient.multiply(scan.pixel(t, j), -1, packed, h, m.data());
                for (int64_t i = 0; i < std::min<int64_t>(32, n - j); i++) {
                    const Pixel p = scan.pixel(t, j + i);
                    const int64_t here = scan.at(p), from = scan.at(p, scan.cell(), 1), to = scan.at(p, scan.cell(), -1);
                    const float *cell = c + b * size * h, *last = from < 0 ? zeros.data() : cell + from * h;
                    const float* later = to < 0 ? zeros.data() : carry.data() + to * h;
                    float* e = m.data() + i * h;
                    for (int64_t u = 0; u < h; u += kLanes) {
                        store(e + u, load(e + u) + load(dout + (b * size + here) * h + u));
                        store(bent.data() + u, (Vector)tanh((__m512)load(cell + here * h + u)));
                    }
                    differentiate(gates + (b * size + here) * 4 * h, bent.data(), last, later, e, r.data(),
                                  carry.data() + here * h, h);
                    uint16_t *kept = gradient.values.data() + gradient.at(p) * 4 * h, *result = (uint16_t*)dz;
                    for (int64_t u = 0; u < 4 * h; u += kLanes) {
                        store(kept + u, load(r.data() + u));
                        store(result + (b * size + here) * 4 * h + u, load(r.data() + u));
                    }
                }
            }
        outer_tiles(scan, out + b * size * h, gradient, dweight);
    }
}

}  // namespace
#endif
