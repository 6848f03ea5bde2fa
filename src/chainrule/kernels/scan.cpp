// The recurrences of PixelRNN on the CPU; scan.py says what they compute and calls them.
//
// One image at a time: its maps fit in the cache, and images need no synchronisation, so that callers run
// ranges of images in threads. All arrays are contiguous, features last: h of them (a multiple of 16) in c, out
// and dout, 4h in z, dz and gates. z and dz may be in bfloat16, everything else is in float or double.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common.h"

namespace {

inline double exponential(double x) { return std::exp(x); }

inline float exponential(float x) {  // 2^n * p(fraction); relative error below 2e-7
    x = x * 1.44269504f;
    x = x < -126.f ? -126.f : x > 126.f ? 126.f : x;
    float n = __builtin_floorf(x + 0.5f), f = (x - n) * 0.69314718f;
    float p = 1.f / 720;
    p = p * f + 1.f / 120, p = p * f + 1.f / 24, p = p * f + 1.f / 6, p = p * f + 0.5f, p = p * f + 1, p = p * f + 1;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

template <class T> inline T sigmoid(T x) { return 1 / (1 + exponential(-x)); }
template <class T> inline T tangent(T x) { return 1 - 2 / (1 + exponential(2 * x)); }

struct Pixel { int64_t row, column; };

// Sizes, the order of visits, and where a pixel reads from.
struct Scan {
    int64_t height, width, hidden, diagonal, mirrored;

    int64_t size() const { return height * width; }
    int taps() const { return diagonal ? 2 : 3; }
    int64_t steps() const { return diagonal ? height + width - 1 : height; }
    int64_t first(int64_t t) const { return diagonal && t >= width ? t - width + 1 : 0; }
    int64_t count(int64_t t) const { return diagonal ? (t < height ? t : height - 1) - first(t) + 1 : width; }
    Pixel pixel(int64_t t, int64_t j) const {
        if (!diagonal) return {t, j};
        int64_t row = first(t) + j, column = t - row;
        return {row, mirrored ? width - 1 - column : column};
    }
    Pixel tap(int k) const {
        if (!diagonal) return {-1, k - 1};
        return k == 0 ? Pixel{-1, 0} : Pixel{0, mirrored ? 1 : -1};
    }
    Pixel cell() const { return tap(1); }
    int64_t at(Pixel p) const { return p.row * width + p.column; }
    int64_t at(Pixel p, Pixel offset, int sign) const {  // of p + sign * offset; -1 outside the image
        Pixel q{p.row + sign * offset.row, p.column + sign * offset.column};
        return q.row < 0 || q.row >= height || q.column < 0 || q.column >= width ? -1 : at(q);
    }
};

constexpr int kRows = kManyRegisters ? 7 : 6;  // pixels that a tile holds in registers
constexpr int kMaxTaps = 3;

// out[m] += sum over taps k of a[k * M + m] (depth) times w[k] (depth, columns), in NV vectors of columns at a time.
template <class T, int M, int NV>
void product(T* const* out, const T* const* a, int taps, int64_t depth, const T* w, int64_t columns) {
    using V = typename VectorOf<T>::type;
    constexpr int L = VectorOf<T>::lanes;
    for (int64_t j = 0; j < columns; j += NV * L) {
        V sum[M][NV];
        for (int m = 0; m < M; m++)
            for (int v = 0; v < NV; v++) sum[m][v] = *(const V*)(out[m] + j + v * L);
        const T* line = w + j;
        for (int k = 0; k < taps; k++)
            for (int64_t d = 0; d < depth; d++, line += columns) {
                V b[NV];
                for (int v = 0; v < NV; v++) b[v] = *(const V*)(line + v * L);
                for (int m = 0; m < M; m++)
                    for (int v = 0; v < NV; v++) sum[m][v] += a[k * M + m][d] * b[v];
            }
        for (int m = 0; m < M; m++)
            for (int v = 0; v < NV; v++) *(V*)(out[m] + j + v * L) = sum[m][v];
    }
}

template <class T>
void product(int m, T* const* out, const T* const* a, int taps, int64_t depth, const T* w, int64_t columns) {
    constexpr int N = 16 / VectorOf<T>::lanes;  // vectors in 16 columns
    constexpr int wide = N == 1 ? 4 : N, middle = N == 1 ? 2 : N;
#define CASE(M)                                                                             \
    case M:                                                                                 \
        return columns % 64 == 0 ? product<T, M, wide>(out, a, taps, depth, w, columns)     \
             : columns % 32 == 0 ? product<T, M, middle>(out, a, taps, depth, w, columns)   \
                                 : product<T, M, N>(out, a, taps, depth, w, columns);
    switch (m) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) }
#undef CASE
}

// dweight (depth, columns) += sum over pixels p of a(p + tap) transposed, times d(p).
template <class T>
void outer(const Scan& scan, Pixel tap, const T* a, int64_t depth, const T* d, int64_t columns, T* dweight) {
    using V = typename VectorOf<T>::type;
    constexpr int L = VectorOf<T>::lanes, M = 4, NV = kManyRegisters ? 4 : 2;
    const int64_t begin_row = tap.row < 0 ? -tap.row : 0, begin = tap.column < 0 ? -tap.column : 0;
    const int64_t end = tap.column > 0 ? scan.width - tap.column : scan.width;
    const int64_t shift = scan.at(tap);
    for (int64_t u = 0; u < depth; u += M)
        for (int64_t v = 0; v < columns; v += NV * L) {
            V sum[M][NV] = {};
            for (int64_t r = begin_row; r < scan.height; r++)
                for (int64_t p = r * scan.width + begin; p < r * scan.width + end; p++) {
                    const T *s = a + (p + shift) * depth + u, *q = d + p * columns + v;
                    for (int m = 0; m < M; m++)
                        for (int n = 0; n < NV; n++) sum[m][n] += s[m] * *(const V*)(q + n * L);
                }
            for (int m = 0; m < M; m++)
                for (int n = 0; n < NV; n++) *(V*)(dweight + (u + m) * columns + v + n * L) += sum[m][n];
        }
}

// Where the taps of m pixels lie in a map, forwards (sign 1) or backwards (-1); zeros outside.
template <class T>
void gather(const Scan& scan, const Pixel* p, int m, int sign, const T* map, int64_t depth, const T* zeros,
            const T** a) {
    for (int k = 0; k < scan.taps(); k++)
        for (int i = 0; i < m; i++) {
            int64_t from = scan.at(p[i], scan.tap(k), sign);
            a[k * m + i] = from < 0 ? zeros : map + from * depth;
        }
}

// A pixel's gates r (4h), from their sums, its cells and its state.
template <class T>
inline void update(T* r, const T* last, T* next, T* s, int64_t h) {
#pragma GCC ivdep
    for (int64_t u = 0; u < h; u++) {
        T o = sigmoid(r[u]), f = sigmoid(r[h + u]), in = sigmoid(r[2 * h + u]), g = tangent(r[3 * h + u]);
        T value = f * last[u] + in * g;
        r[u] = o, r[h + u] = f, r[2 * h + u] = in, r[3 * h + u] = g;
        next[u] = value, s[u] = o * tangent(value);
    }
}

// The gradient r (4h) of a pixel's gates q, and what its cells hand on, from tanh of its cells and the gradient e of its
// state.
template <class T>
inline void differentiate(const T* q, const T* bent, const T* last, const T* later, const T* e, T* r, T* kept, int64_t h) {
#pragma GCC ivdep
    for (int64_t u = 0; u < h; u++) {
        T o = q[u], f = q[h + u], in = q[2 * h + u], g = q[3 * h + u], s = bent[u];
        T dc = later[u] + e[u] * o * (1 - s * s);
        r[u] = e[u] * s * o * (1 - o);
        r[h + u] = dc * last[u] * f * (1 - f);
        r[2 * h + u] = dc * g * in * (1 - in);
        r[3 * h + u] = dc * in * (1 - g * g);
        kept[u] = dc * f;
    }
}

template <class T, class Z>
void forward(const Scan& scan, const Z* z, const T* weight, T* gates, T* c, T* out, int64_t begin, int64_t end) {
    const int64_t size = scan.size(), h = scan.hidden;
    const std::vector<T> zeros(h, T(0));
    for (int64_t b = begin; b < end; b++) {
        const Z* source = z + b * size * 4 * h;
        T *gate = gates + b * size * 4 * h, *cell = c + b * size * h, *state = out + b * size * h;
        for (int64_t t = 0; t < scan.steps(); t++)
            for (int64_t j = 0, n = scan.count(t); j < n; j += kRows) {
                const int m = n - j < kRows ? n - j : kRows;
                Pixel p[kRows];
                T* q[kRows];
                const T* a[kMaxTaps * kRows];
                for (int i = 0; i < m; i++) {
                    p[i] = scan.pixel(t, j + i);
                    const int64_t here = scan.at(p[i]) * 4 * h;
                    q[i] = gate + here;
                    for (int64_t u = 0; u < 4 * h; u++) q[i][u] = source[here + u];
                }
                gather<T>(scan, p, m, 1, state, h, zeros.data(), a);
                product<T>(m, q, a, scan.taps(), h, weight, 4 * h);
                for (int i = 0; i < m; i++) {
                    const int64_t here = scan.at(p[i]) * h, from = scan.at(p[i], scan.cell(), 1);
                    const T* last = from < 0 ? zeros.data() : cell + from * h;
                    T *r = q[i], *next = cell + here, *s = state + here;
                    update(r, last, next, s, h);
                }
            }
    }
}

// dz is written, dweight is added to.
template <class T, class Z>
void backward(const Scan& scan, const T* dout, const T* weight, const T* gates, const T* c, const T* out, Z* dz,
              T* dweight, int64_t begin, int64_t end) {
    const int64_t size = scan.size(), h = scan.hidden;
    const std::vector<T> zeros(4 * h, T(0));
    std::vector<T> gradient(size * 4 * h), carry(size * h), dh(kRows * h), bent(h);
    for (int64_t b = begin; b < end; b++) {
        const T *gate = gates + b * size * 4 * h, *cell = c + b * size * h, *state = out + b * size * h;
        Pixel p[kRows];
        T* d[kRows];
        const T* a[kMaxTaps * kRows];
        for (int64_t t = scan.steps() - 1; t >= 0; t--)
            for (int64_t j = 0, n = scan.count(t); j < n; j += kRows) {
                const int m = n - j < kRows ? n - j : kRows;
                for (int i = 0; i < m; i++) {
                    p[i] = scan.pixel(t, j + i);
                    d[i] = dh.data() + i * h;
                    std::memcpy(d[i], dout + (b * size + scan.at(p[i])) * h, sizeof(T) * h);
                }
                gather<T>(scan, p, m, -1, gradient.data(), 4 * h, zeros.data(), a);
                product<T>(m, d, a, scan.taps(), 4 * h, weight, h);
                for (int i = 0; i < m; i++) {
                    const int64_t here = scan.at(p[i]), from = scan.at(p[i], scan.cell(), 1);
                    const int64_t to = scan.at(p[i], scan.cell(), -1);
                    const T *q = gate + here * 4 * h, *now = cell + here * h, *e = d[i];
                    const T *last = from < 0 ? zeros.data() : cell + from * h;
                    const T *later = to < 0 ? zeros.data() : carry.data() + to * h;
                    T *r = gradient.data() + here * 4 * h, *kept = carry.data() + here * h;
#pragma GCC ivdep
                    for (int64_t u = 0; u < h; u++) bent[u] = tangent(now[u]);
                    differentiate(q, bent.data(), last, later, e, r, kept, h);
                }
            }
        for (int k = 0; k < scan.taps(); k++)
            outer(scan, scan.tap(k), state, h, gradient.data(), 4 * h, dweight + k * h * 4 * h);
        Z* result = dz + b * size * 4 * h;
        for (int64_t i = 0; i < size * 4 * h; i++) result[i] = Z(gradient[i]);
    }
}

}  // namespace

#include "scan_tiles.h"

namespace {

struct Call {
    Scan scan;
    const void *z, *weight;  // weight: forward (taps, h, 4h); backward transposed to (taps, 4h, h)
    void *gates, *c, *out;
    const void* dout;
    void *dz, *dweight;
};

}  // namespace

INTERFACE(1, sizeof(Scan), sizeof(Call))

// Images begin .. end - 1.
#define EXPORT(NAME, T, Z)                                                                                  \
    extern "C" void forward_##NAME(const Call* p, int64_t begin, int64_t end) {                             \
        forward(p->scan, (const Z*)p->z, (const T*)p->weight, (T*)p->gates, (T*)p->c, (T*)p->out, begin, end); \
    }                                                                                                       \
    extern "C" void backward_##NAME(const Call* p, int64_t begin, int64_t end) {                            \
        backward(p->scan, (const T*)p->dout, (const T*)p->weight, (const T*)p->gates, (const T*)p->c,       \
                 (const T*)p->out, (Z*)p->dz, (T*)p->dweight, begin, end);                                  \
    }
EXPORT(float32, float, float)
EXPORT(float64, double, double)
EXPORT(bfloat16, float, BFloat16)

#if defined(HAS_AMX)
extern "C" void forward_tiles(const Call* p, int64_t begin, int64_t end) {
    forward_tiles(p->scan, (const BFloat16*)p->z, (const float*)p->weight, (float*)p->gates, (float*)p->c,
                  (float*)p->out, begin, end);
}
extern "C" void backward_tiles(const Call* p, int64_t begin, int64_t end) {
    backward_tiles(p->scan, (const float*)p->dout, (const float*)p->weight, (const float*)p->gates, (const float*)p->c,
                   (const float*)p->out, (BFloat16*)p->dz, (float*)p->dweight, begin, end);
}
#endif
