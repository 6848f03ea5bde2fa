// 3x3 convolutions of channels-last maps by Winograd's F(2x2, 3x3); winograd.py says what is computed and calls it.
//
// A block is some tiles (2x2 results each) of one image. Its inputs are normalised, activated and transformed 16
// channels at a time, so that they stay in the first cache; then, for 64 outputs at a time, come the products and the
// transform back, to which bias and residual are added. An image's numbers do not depend on the batch or on threads.
#include <algorithm>
#include <cstdint>

#include "common.h"
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#define SUPPORTED 1
#else
#define SUPPORTED 0  // with AMX, ordinary convolutions are faster
#endif

extern "C" int supported() { return SUPPORTED; }

namespace {

// A convolution: sizes; whether the map is doubled first, activated first, and narrow (bfloat16) before and after.
struct Shape {
    int64_t batch, height, width, inputs, outputs, doubled, activated, narrow_inputs, narrow_outputs;
};
struct Call {
    Shape shape;
    const void* x;
    const float *scale, *shift;
    const void* weight;
    const float *bias, *residual;
    void* y;
    float* sums;
};

}  // namespace

INTERFACE(1, sizeof(Shape), sizeof(Call))

#if SUPPORTED
namespace {

constexpr int64_t kPanel = 64;  // outputs at a time
constexpr int64_t kColumns = 16, kTiles = 48, kTilesWide = 32;  // of a block; Wide: of many channels

struct Tiling : Shape {
    Tiling(const Shape& shape) : Shape(shape) {}
    int64_t tile_rows() const { return doubled ? height : (height + 1) / 2; }
    int64_t tile_columns() const { return doubled ? width : (width + 1) / 2; }
    int64_t columns() const { return std::min(kColumns, tile_columns()); }
    int64_t rows() const { return std::min(tile_rows(), (inputs > 256 ? kTilesWide : kTiles) / columns()); }
    int64_t blocks_across() const { return (tile_columns() + columns() - 1) / columns(); }
    int64_t blocks_down() const { return (tile_rows() + rows() - 1) / rows(); }
};

inline int64_t round_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }
inline __mmask16 lanes(int64_t count) { return count >= kLanes ? 0xffff : (1u << count) - 1; }

inline __m512 swish(__m512 x) {  // relative error below 1e-6
    const __m512 one = _mm512_set1_ps(1), log2e = _mm512_set1_ps(-1.44269504f), ln2 = _mm512_set1_ps(0.69314718f);
    __m512 y = _mm512_max_ps(_mm512_min_ps(_mm512_mul_ps(x, log2e), _mm512_set1_ps(126)), _mm512_set1_ps(-126));
    __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_mul_ps(_mm512_sub_ps(y, n), ln2), p = _mm512_set1_ps(1.f / 720);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f / 120));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f / 24));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f / 6));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, f, one);
    __m512 d = _mm512_add_ps(one, _mm512_scalef_ps(_mm512_fmadd_ps(p, f, one), n)), r = _mm512_rcp14_ps(d);
    r = _mm512_mul_ps(r, _mm512_fnmadd_ps(d, r, _mm512_set1_ps(2)));
    return _mm512_mul_ps(x, r);
}

// Maps are float32 or bfloat16; 16 channels of a position at a time.
inline __m512 load(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load(const uint16_t* p, __mmask16 mask) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16);
}
inline void store(float* p, __m512 v, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, v); }
inline void store(uint16_t* p, __m512 v, __mmask16 mask) {
    _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
}

inline void store_aligned(float* p, __m512 v) { _mm512_store_ps(p, v); }
inline void store_aligned(uint16_t* p, __m512 v) { _mm256_store_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }

// sum + w x; in bfloat16, of pairs of inputs at once.
template <class T>
inline __m512 add_products(__m512 sum, __m512 w, __m512 x) {
    if constexpr (sizeof(T) == 2) return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
    return _mm512_fmadd_ps(w, x, sum);
}

// M (N, 16 R) = V (N, inputs) times a panel of weights.
template <int N, int R, class T>
inline void products(const T* v, const T* panel, int64_t inputs, float* m, int64_t stride) {
    constexpr int64_t kTogether = sizeof(float) / sizeof(T);
    __m512 sum[N][R];
    UNROLL for (int n = 0; n < N; n++) UNROLL for (int r = 0; r < R; r++) sum[n][r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < inputs; k += kTogether) {
        __m512 w[R];
        UNROLL for (int r = 0; r < R; r++) w[r] = _mm512_load_ps(panel + (k * R + r * kTogether) * kLanes);
        UNROLL for (int n = 0; n < N; n++) {
            __m512 x = _mm512_set1_ps(*(const float*)(v + n * inputs + k));
            UNROLL for (int r = 0; r < R; r++) sum[n][r] = add_products<T>(sum[n][r], w[r], x);
        }
    }
    UNROLL for (int n = 0; n < N; n++)
        UNROLL for (int r = 0; r < R; r++) _mm512_store_ps(m + n * stride + r * kLanes, sum[n][r]);
}

// As `products`, of any number of tiles; 24 registers are sums.
template <int R, class T>
void multiply(const T* v, const T* panel, int64_t tiles, int64_t inputs, float* m) {
    constexpr int kBest = 24 / R;
    int64_t n = 0;
    for (; n + kBest <= tiles; n += kBest) products<kBest, R>(v + n * inputs, panel, inputs, m + n * kPanel, kPanel);
    for (; n + 2 <= tiles; n += 2) products<2, R>(v + n * inputs, panel, inputs, m + n * kPanel, kPanel);
    for (; n < tiles; n++) products<1, R>(v + n * inputs, panel, inputs, m + n * kPanel, kPanel);
}

// One dimension of the transforms. When the map is doubled, rows 1 and 2 of the four are one, and component 2 is zero.
inline void forward(const __m512 (&d)[4], __m512 (&t)[4]) {
    t[0] = _mm512_sub_ps(d[0], d[2]), t[1] = _mm512_add_ps(d[1], d[2]);
    t[2] = _mm512_sub_ps(d[2], d[1]), t[3] = _mm512_sub_ps(d[1], d[3]);
}
inline void forward(const __m512 (&d)[3], __m512 (&t)[3]) {
    t[0] = _mm512_sub_ps(d[0], d[1]), t[1] = _mm512_add_ps(d[1], d[1]), t[2] = _mm512_sub_ps(d[1], d[2]);
}
inline void backward(const __m512 (&m)[4], __m512 (&y)[2]) {
    y[0] = _mm512_add_ps(_mm512_add_ps(m[0], m[1]), m[2]), y[1] = _mm512_sub_ps(_mm512_sub_ps(m[1], m[2]), m[3]);
}
inline void backward(const __m512 (&m)[3], __m512 (&y)[2]) {
    y[0] = _mm512_add_ps(m[0], m[1]), y[1] = _mm512_sub_ps(m[1], m[2]);
}

struct Block {
    int64_t image, row, column, rows, columns;  // in tiles
};

// V (components, tiles, inputs) of a block; S: side of a tile's inputs.
template <int S, class T, class X>
void transform_inputs(const Tiling& s, const Block& b, const X* x, const float* scale, const float* shift,
                      float* patch, T* v) {
    constexpr int kStep = S - 2;
    const int64_t inputs = round_up(s.inputs), tiles = b.rows * b.columns;
    const int64_t top = b.row * kStep - 1, left = b.column * kStep - 1;
    const int64_t height = b.rows * kStep + 2, width = b.columns * kStep + 2;
    for (int64_t c = 0; c < inputs; c += kLanes) {
        const __mmask16 mask = lanes(s.inputs - c);
        __m512 a = _mm512_setzero_ps(), o = a;
        if (s.activated) {
            a = _mm512_maskz_loadu_ps(mask, scale + b.image * s.inputs + c);
            o = _mm512_maskz_loadu_ps(mask, shift + b.image * s.inputs + c);
        }
        for (int64_t i = 0; i < height; i++) {
            for (int64_t j = 0; j < width; j++) {
                const int64_t row = top + i, column = left + j;
                __m512 value = _mm512_setzero_ps();
                if (row >= 0 && row < s.height && column >= 0 && column < s.width) {
                    const X* p = x + ((b.image * s.height + row) * s.width + column) * s.inputs + c;
                    value = load(p, mask);
                    _mm_prefetch((const char*)(p + kLanes), _MM_HINT_T0);  // the next channels of the same pixel
                    if (s.activated) value = swish(_mm512_fmadd_ps(value, a, o));
                }
                _mm512_store_ps(patch + (i * width + j) * kLanes, value);
            }
        }
        for (int64_t t = 0; t < tiles; t++) {
            const float* p = patch + (t / b.columns * kStep * width + t % b.columns * kStep) * kLanes;
            __m512 half[S][S];  // [column][component of rows]
            UNROLL for (int j = 0; j < S; j++) {
                __m512 d[S];
                UNROLL for (int i = 0; i < S; i++) d[i] = _mm512_load_ps(p + (i * width + j) * kLanes);
                forward(d, half[j]);
            }
            UNROLL for (int i = 0; i < S; i++) {
                __m512 d[S], done[S];
                UNROLL for (int j = 0; j < S; j++) d[j] = half[j][i];
                forward(d, done);
                UNROLL for (int j = 0; j < S; j++) store_aligned(v + ((i * S + j) * tiles + t) * inputs + c, done[j]);
            }
        }
    }
}

// 16 outputs of all tiles of a block, from M (components, tiles, 64), and their sums and sums of squares (2, outputs).
template <int S, class Y>
void transform_outputs(const Tiling& s, const Block& b, const float* m, int64_t channel, const float* bias,
                       const float* residual, Y* y, float* sums) {
    const int64_t tiles = b.rows * b.columns, height = s.height << s.doubled, width = s.width << s.doubled;
    const __mmask16 mask = lanes(s.outputs - channel);
    const __m512 offset = _mm512_maskz_loadu_ps(mask, bias + channel);
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (int64_t t = 0; t < tiles; t++) {
        const float* p = m + t * kPanel;
        __m512 half[S][2], done[2][2];
        UNROLL for (int j = 0; j < S; j++) {
            __m512 d[S];
            UNROLL for (int i = 0; i < S; i++) d[i] = _mm512_load_ps(p + (i * S + j) * tiles * kPanel);
            backward(d, half[j]);
        }
        UNROLL for (int i = 0; i < 2; i++) {
            __m512 d[S];
            UNROLL for (int j = 0; j < S; j++) d[j] = half[j][i];
            backward(d, done[i]);
        }
        const int64_t row = 2 * (b.row + t / b.columns), column = 2 * (b.column + t % b.columns);
        UNROLL for (int i = 0; i < 2; i++) {
            UNROLL for (int j = 0; j < 2; j++) {
                if (row + i >= height || column + j >= width) continue;
                const int64_t at = ((b.image * height + row + i) * width + column + j) * s.outputs + channel;
                __m512 value = _mm512_add_ps(done[i][j], offset);
                if (residual) value = _mm512_add_ps(value, load(residual + at, mask));
                if (residual) _mm_prefetch((const char*)(residual + at + kLanes), _MM_HINT_T0);
                store(y + at, value, mask);
                sum = _mm512_add_ps(sum, value), squares = _mm512_fmadd_ps(value, value, squares);
            }
        }
    }
    _mm512_mask_storeu_ps(sums + channel, mask, sum);
    _mm512_mask_storeu_ps(sums + s.outputs + channel, mask, squares);
}

template <int S, class T>
void convolve_blocks(const Call& call, int64_t begin, int64_t end) {
    const Tiling s(call.shape);
    constexpr int64_t kComponents = S * S;
    const int64_t inputs = round_up(s.inputs), outputs = round_up(s.outputs), most = s.rows() * s.columns();
    Array<T> v(kComponents * most * inputs);
    Array<float> m(kComponents * most * kPanel), patch((2 * s.rows() + 2) * (2 * s.columns() + 2) * kLanes);
    const int64_t across = s.blocks_across(), down = s.blocks_down();
    for (int64_t index = begin; index < end; index++) {
        Block b;
        b.image = index / (across * down);
        b.row = index / across % down * s.rows(), b.column = index % across * s.columns();
        b.rows = std::min(s.rows(), s.tile_rows() - b.row), b.columns = std::min(s.columns(), s.tile_columns() - b.column);
        const int64_t tiles = b.rows * b.columns;
        if (s.narrow_inputs)
            transform_inputs<S>(s, b, (const uint16_t*)call.x, call.scale, call.shift, patch.get(), v.get());
        else
            transform_inputs<S>(s, b, (const float*)call.x, call.scale, call.shift, patch.get(), v.get());
        const T* panel = (const T*)call.weight;
        for (int64_t channel = 0; channel < outputs; channel += kPanel) {
            const int64_t vectors = std::min(kPanel, outputs - channel) / kLanes;
            for (int64_t component = 0; component < kComponents; component++, panel += inputs * vectors * kLanes) {
                const T* from = v.get() + component * tiles * inputs;
                float* to = m.get() + component * tiles * kPanel;
                switch (vectors) {
                    case 1: multiply<1>(from, panel, tiles, inputs, to); break;
                    case 2: multiply<2>(from, panel, tiles, inputs, to); break;
                    case 3: multiply<3>(from, panel, tiles, inputs, to); break;
                    default: multiply<4>(from, panel, tiles, inputs, to);
                }
            }
            for (int64_t c = 0; c < vectors * kLanes; c += kLanes) {
                const float* from = m.get() + c;
                float* sum = call.sums + index * 2 * s.outputs;
                if (s.narrow_outputs)
                    transform_outputs<S>(s, b, from, channel + c, call.bias, call.residual, (uint16_t*)call.y, sum);
                else
                    transform_outputs<S>(s, b, from, channel + c, call.bias, call.residual, (float*)call.y, sum);
            }
        }
    }
}

}  // namespace

extern "C" int64_t num_blocks(const Call* call) {
    const Tiling s(call->shape);
    return s.batch * s.blocks_across() * s.blocks_down();
}

// Blocks begin .. end - 1.
#define EXPORT(NAME, T)                                                                \
    extern "C" void convolve_##NAME(const Call* call, int64_t begin, int64_t end) {    \
        (call->shape.doubled ? convolve_blocks<3, T> : convolve_blocks<4, T>)(*call, begin, end); \
    }
EXPORT(float32, float)
EXPORT(bfloat16, uint16_t)
#endif
