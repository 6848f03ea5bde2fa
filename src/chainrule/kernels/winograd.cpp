// 3x3 convolutions of channels-last maps by Winograd's F(2x2, 3x3); convolution.py says what is computed and calls it.
//
// A block is some tiles (2x2 results each) of one image. Its inputs are normalised, activated and transformed 16
// channels at a time, so that they stay in the first cache; then, for 64 outputs at a time, come the products and the
// transform back, to which bias and residual are added. An image's numbers do not depend on the batch or on threads.
#include <algorithm>

#include "convolution.h"

INTERFACE(1, sizeof(Shape), sizeof(Call))

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
extern "C" int supported() { return 1; }

namespace {

constexpr int64_t kPanel = 64;  // outputs at a time
constexpr int64_t kUnit = 16;   // of which weights hold a multiple, and of inputs too
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

// Inputs as they are multiplied with weights in bfloat16: pairs in bfloat16 where there are instructions for them, else
// float32.
#if defined(HAS_BFLOAT16)
typedef uint16_t Factor;
inline void store_factors(uint16_t* p, Vector v) { _mm256_store_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v)); }
#else
typedef float Factor;
inline void store_factors(float* p, Vector v) { store(p, v); }
#endif
constexpr int kAcross = kManyRegisters ? 4 : 2, kSums = kManyRegisters ? 24 : 12;  // vectors of outputs, and sums, at a time

// M (N, 16 R) = V (N, inputs) times R vectors of outputs of a panel of weights, of which there are `width`.
template <int N, int R>
inline void products(const Factor* v, const uint16_t* panel, int64_t width, int64_t inputs, float* m) {
    Vector sum[N][R] = {};
    for (int64_t k = 0; k < inputs; k += 2, panel += 2 * width) {
        const float* pairs = (const float*)panel;
#if defined(HAS_BFLOAT16)
        Vector w[R];
        UNROLL for (int r = 0; r < R; r++) w[r] = load(pairs + r * kLanes);
        UNROLL for (int n = 0; n < N; n++) {
            const Vector x = all(*(const float*)(v + n * inputs + k));
            UNROLL for (int r = 0; r < R; r++)
                sum[n][r] = (Vector)_mm512_dpbf16_ps((__m512)sum[n][r], (__m512bh)w[r], (__m512bh)x);
        }
#else
        UNROLL for (int second = 0; second < 2; second++) {  // of the pairs
            Vector w[R];
            UNROLL for (int r = 0; r < R; r++) {
                const Words both = (Words)load(pairs + r * kLanes);
                w[r] = (Vector)(second ? both & 0xffff0000 : both << 16);
            }
            UNROLL for (int n = 0; n < N; n++) {
                const Vector x = all(v[n * inputs + k + second]);
                UNROLL for (int r = 0; r < R; r++) sum[n][r] = fused(w[r], x, sum[n][r]);
            }
        }
#endif
    }
    UNROLL for (int n = 0; n < N; n++) UNROLL for (int r = 0; r < R; r++) store(m + n * kPanel + r * kLanes, sum[n][r]);
}

// As `products`, of any number of tiles.
template <int R>
void multiply(const Factor* v, const uint16_t* panel, int64_t width, int64_t tiles, int64_t inputs, float* m) {
    constexpr int kBest = kSums / R;
    int64_t n = 0;
    for (; n + kBest <= tiles; n += kBest) products<kBest, R>(v + n * inputs, panel, width, inputs, m + n * kPanel);
    for (; n + 2 <= tiles; n += 2) products<2, R>(v + n * inputs, panel, width, inputs, m + n * kPanel);
    for (; n < tiles; n++) products<1, R>(v + n * inputs, panel, width, inputs, m + n * kPanel);
}

// One dimension of the transforms. When the map is doubled, rows 1 and 2 of the four are one, and component 2 is zero.
inline void forward(const Vector (&d)[4], Vector (&t)[4]) {
    t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
}
inline void forward(const Vector (&d)[3], Vector (&t)[3]) { t[0] = d[0] - d[1], t[1] = d[1] + d[1], t[2] = d[1] - d[2]; }
inline void backward(const Vector (&m)[4], Vector (&y)[2]) { y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3]; }
inline void backward(const Vector (&m)[3], Vector (&y)[2]) { y[0] = m[0] + m[1], y[1] = m[1] - m[2]; }

// V (components, tiles, inputs) of a block; S: side of a tile's inputs.
template <int S, class X>
void transform_inputs(const Tiling& s, const Block& b, const X* x, const float* scale, const float* shift,
                      float* patch, Factor* v) {
    constexpr int kStep = S - 2;
    const int64_t inputs = round_up(s.inputs, kUnit), tiles = b.rows * b.columns;
    const int64_t top = b.row * kStep - 1, left = b.column * kStep - 1;
    const int64_t height = b.rows * kStep + 2, width = b.columns * kStep + 2;
    for (int64_t c = 0; c < inputs; c += kLanes) {
        const auto mask = lanes(s.inputs - c);
        Vector a = {}, o = {};
        if (s.activated) a = load(scale + b.image * s.inputs + c, mask), o = load(shift + b.image * s.inputs + c, mask);
        for (int64_t i = 0; i < height; i++) {
            for (int64_t j = 0; j < width; j++) {
                const int64_t row = top + i, column = left + j;
                Vector value = {};
                if (row >= 0 && row < s.height && column >= 0 && column < s.width) {
                    const X* p = x + ((b.image * s.height + row) * s.width + column) * s.inputs + c;
                    value = load(p, mask);
                    if (s.activated) value = swish(fused(value, a, o));
                    __builtin_prefetch(p + kLanes);  // the next channels of the same pixel
                }
                store(patch + (i * width + j) * kLanes, value);
            }
        }
        for (int64_t t = 0; t < tiles; t++) {
            const float* p = patch + (t / b.columns * kStep * width + t % b.columns * kStep) * kLanes;
            Vector half[S][S];  // [column][component of rows]
            UNROLL for (int j = 0; j < S; j++) {
                Vector d[S];
                UNROLL for (int i = 0; i < S; i++) d[i] = load(p + (i * width + j) * kLanes);
                forward(d, half[j]);
            }
            UNROLL for (int i = 0; i < S; i++) {
                Vector d[S], done[S];
                UNROLL for (int j = 0; j < S; j++) d[j] = half[j][i];
                forward(d, done);
                UNROLL for (int j = 0; j < S; j++) store_factors(v + ((i * S + j) * tiles + t) * inputs + c, done[j]);
            }
        }
    }
}

// 16 outputs of all tiles of a block, from M (components, tiles, 64), and their sums and sums of squares (2, outputs).
template <int S, class Y>
void transform_outputs(const Tiling& s, const Block& b, const float* m, int64_t channel, const float* bias,
                       const Y* residual, Y* y, float* sums) {
    const int64_t tiles = b.rows * b.columns, height = s.rows * s.factor, width = s.columns * s.factor;
    const auto mask = lanes(s.outputs - channel);
    const Vector offset = load(bias + channel, mask);
    Vector sum = {}, squares = {};
    for (int64_t t = 0; t < tiles; t++) {
        const float* p = m + t * kPanel;
        Vector half[S][2], done[2][2];
        UNROLL for (int j = 0; j < S; j++) {
            Vector d[S];
            UNROLL for (int i = 0; i < S; i++) d[i] = load(p + (i * S + j) * tiles * kPanel);
            backward(d, half[j]);
        }
        UNROLL for (int i = 0; i < 2; i++) {
            Vector d[S];
            UNROLL for (int j = 0; j < S; j++) d[j] = half[j][i];
            backward(d, done[i]);
        }
        const int64_t row = 2 * (b.row + t / b.columns), column = 2 * (b.column + t % b.columns);
        UNROLL for (int i = 0; i < 2; i++) {
            UNROLL for (int j = 0; j < 2; j++) {
                if (row + i >= height || column + j >= width) continue;
                const int64_t at = ((b.image * height + row + i) * width + column + j) * s.outputs + channel;
                Vector value = done[i][j] + offset;
                if (residual) value += load(residual + at, mask);
                if (residual) __builtin_prefetch(residual + at + kLanes);
                store(y + at, value, mask);
                sum += value, squares = fused(value, value, squares);
            }
        }
    }
    store(sums + channel, sum, mask), store(sums + s.outputs + channel, squares, mask);
}

template <int S>
void convolve_blocks(const Call& call, int64_t begin, int64_t end) {
    const Tiling s(call.shape);
    constexpr int64_t kComponents = S * S;
    const int64_t inputs = round_up(s.inputs, kUnit), outputs = round_up(s.outputs, kUnit), most = s.block_rows() * s.block_columns();
    Array<Factor> v(kComponents * most * inputs);
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
            const int64_t width = std::min(kPanel, outputs - channel);
            for (int64_t component = 0; component < kComponents; component++, panel += inputs * width) {
                const Factor* from = v.get() + component * tiles * inputs;
                for (int64_t c = 0; c < width; c += kAcross * kLanes) {
                    float* to = m.get() + component * tiles * kPanel + c;
                    const uint16_t* weight = panel + 2 * c;
                    switch (std::min<int64_t>(kAcross, (width - c) / kLanes)) {
                        case 1: multiply<1>(from, weight, width, tiles, inputs, to); break;
                        case 2: multiply<2>(from, weight, width, tiles, inputs, to); break;
                        case 3: multiply<3>(from, weight, width, tiles, inputs, to); break;
                        default: multiply<4>(from, weight, width, tiles, inputs, to);
                    }
                }
            }
            for (int64_t c = 0; c < width; c += kLanes) {
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
