// 3x3 convolutions of channels-last maps by Winograd's F(2x2, 3x3); convolution.py says what is computed and calls it.
//
// A block is some tiles (2x2 results each) of one image. Its inputs are normalised, activated and transformed 16
// channels at a time, so that they stay in the first cache; then, for 64 outputs at a time, come the products and the
// transform back, to which bias and residual are added. An image's numbers do not depend on the batch or on threads.
#include <algorithm>

#include "convolution.h"

INTERFACE(1, sizeof(Shape), sizeof(Call))

#if defined(HAS_BFLOAT16)
extern "C" int supported() { return 1; }

namespace {

constexpr int64_t kPanel = 64;  // outputs at a time
constexpr int64_t kColumns = 16, kTiles = 48, kTilesWide = 32;  // of a block; Wide: of many channels

struct Tiling : Shape {
    Tiling(const Shape& shape) : Shape(shape) {}
    int64_t tile_rows() const { return divide_up(rows * factor, 2); }
    int64_t tile_columns() const { return divide_up(columns * factor, 2); }
    int64_t block_columns() const { return std::min(kColumns, tile_columns()); }
    int64_t block_rows() const { return std::min(tile_rows(), (inputs > 256 ? kTilesWide : kTiles) / block_columns()); }
    int64_t across() const { return divide_up(tile_columns(), block_columns()); }
    int64_t down() const { return divide_up(tile_rows(), block_rows()); }
};

// sum + w x, of pairs of inputs at once.
inline __m512 add_products(__m512 sum, __m512 w, __m512 x) { return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x); }

inline void store_aligned(uint16_t* p, __m512 v) { _mm256_store_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }

// M (N, 16 R) = V (N, inputs) times a panel of weights.
template <int N, int R>
inline void products(const uint16_t* v, const uint16_t* panel, int64_t inputs, float* m, int64_t stride) {
    __m512 sum[N][R];
    UNROLL for (int n = 0; n < N; n++) UNROLL for (int r = 0; r < R; r++) sum[n][r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < inputs; k += 2) {
        __m512 w[R];
        UNROLL for (int r = 0; r < R; r++) w[r] = _mm512_load_ps(panel + (k * R + r * 2) * kLanes);
        UNROLL for (int n = 0; n < N; n++) {
            __m512 x = _mm512_set1_ps(*(const float*)(v + n * inputs + k));
            UNROLL for (int r = 0; r < R; r++) sum[n][r] = add_products(sum[n][r], w[r], x);
        }
    }
    UNROLL for (int n = 0; n < N; n++)
        UNROLL for (int r = 0; r < R; r++) _mm512_store_ps(m + n * stride + r * kLanes, sum[n][r]);
}

// As `products`, of any number of tiles; 24 registers are sums.
template <int R>
void multiply(const uint16_t* v, const uint16_t* panel, int64_t tiles, int64_t inputs, float* m) {
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

// V (components, tiles, inputs) of a block; S: side of a tile's inputs.
template <int S, class X>
void transform_inputs(const Tiling& s, const Block& b, const X* x, const float* scale, const float* shift,
                      float* patch, uint16_t* v) {
    constexpr int kStep = S - 2;
    const int64_t inputs = round_up(s.inputs, kLanes), tiles = b.rows * b.columns;
    const int64_t top = b.row * kStep - 1, left = b.column * kStep - 1;
    const int64_t height = b.rows * kStep + 2, width = b.columns * kStep + 2;
    for (int64_t c = 0; c < inputs; c += kLanes) {
        const __mmask16 mask = lanes(s.inputs - c);
        __m512 a = _mm512_setzero_ps(), o = a;
        if (s.activated) a = load(scale + b.image * s.inputs + c, mask), o = load(shift + b.image * s.inputs + c, mask);
        for (int64_t i = 0; i < height; i++) {
            for (int64_t j = 0; j < width; j++) {
                const int64_t row = top + i, column = left + j;
                __m512 value = _mm512_setzero_ps();
                if (row >= 0 && row < s.height && column >= 0 && column < s.width) {
                    const X* p = x + ((b.image * s.height + row) * s.width + column) * s.inputs + c;
                    value = load(p, mask);
                    if (s.activated) value = swish(_mm512_fmadd_ps(value, a, o));
                    _mm_prefetch((const char*)(p + kLanes), _MM_HINT_T0);  // the next channels of the same pixel
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
                       const Y* residual, Y* y, float* sums) {
    const int64_t tiles = b.rows * b.columns, height = s.rows * s.factor, width = s.columns * s.factor;
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

template <int S>
void convolve_blocks(const Call& call, int64_t begin, int64_t end) {
    const Tiling s(call.shape);
    constexpr int64_t kComponents = S * S;
    const int64_t inputs = round_up(s.inputs, kLanes), outputs = round_up(s.outputs, kLanes), most = s.block_rows() * s.block_columns();
    Array<uint16_t> v(kComponents * most * inputs);
    Array<float> m(kComponents * most * kPanel), patch((2 * s.block_rows() + 2) * (2 * s.block_columns() + 2) * kLanes);
    const int64_t across = s.across(), down = s.down();
    for (int64_t index = begin; index < end; index++) {
        Block b;
        b.image = index / (across * down);
        b.row = index / across % down * s.block_rows(), b.column = index % across * s.block_columns();
        b.rows = std::min(s.block_rows(), s.tile_rows() - b.row), b.columns = std::min(s.block_columns(), s.tile_columns() - b.column);
        const int64_t tiles = b.rows * b.columns;
        if (s.narrow_inputs)
            transform_inputs<S>(s, b, (const uint16_t*)call.x, call.scale, call.shift, patch.get(), v.get());
        else
            transform_inputs<S>(s, b, (const float*)call.x, call.scale, call.shift, patch.get(), v.get());
        const uint16_t* panel = (const uint16_t*)call.weight;
        for (int64_t channel = 0; channel < outputs; channel += kPanel) {
            const int64_t vectors = std::min(kPanel, outputs - channel) / kLanes;
            for (int64_t component = 0; component < kComponents; component++, panel += inputs * vectors * kLanes) {
                const uint16_t* from = v.get() + component * tiles * inputs;
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
                    transform_outputs<S>(s, b, from, channel + c, call.bias, (const uint16_t*)call.residual, (uint16_t*)call.y, sum);
                else
                    transform_outputs<S>(s, b, from, channel + c, call.bias, (const float*)call.residual, (float*)call.y, sum);
            }
        }
    }
}

}  // namespace

extern "C" int64_t num_blocks(const Call* call) {
    const Tiling s(call->shape);
    return s.batch * s.across() * s.down();
}

// Blocks begin .. end - 1.
extern "C" void convolve(const Call* call, int64_t begin, int64_t end) {
    (call->shape.factor == 2 ? convolve_blocks<3> : convolve_blocks<4>)(*call, begin, end);
}
#else
extern "C" int supported() { return 0; }
#endif
