// Convolutions of channels-last maps by the tiles of AMX; convolution.py says what is computed and calls it.
//
// A block is some rows and columns of positions of one image. Its inputs are normalised, activated and rounded once,
// with what lies around them, into memory that stays in the second cache. Then, for 32 outputs at a time, a tile of
// 16 positions x 32 channels is read from there for each place of the kernel, and multiplied with the weights; bias and
// residual are added to the sums of all. An image's numbers do not depend on the batch or on threads.
#include "convolution.h"
#include "tiles.h"

INTERFACE(1, sizeof(Shape), sizeof(Call))

#if defined(HAS_BFLOAT16) && defined(HAS_AMX)
extern "C" int supported() { return allow_amx(); }

namespace {

constexpr int64_t kPositions = 16, kChannels = 32, kPanel = 32;  // of a tile, a tile, and a panel of outputs
constexpr int64_t kWeights = 16 * kChannels;                     // of a tile

struct Tiling : Shape {
    Tiling(const Shape& shape) : Shape(shape) {}
    int64_t block_columns() const { return std::min(2 * kPositions, round_up(columns, kPositions)); }
    int64_t block_rows() const { return std::min(int64_t(16), std::max(int64_t(2), divide_up(rows, 2))); }
    int64_t across() const { return divide_up(columns, block_columns()); }
    int64_t down() const { return divide_up(rows, block_rows()); }
    int64_t channels() const { return round_up(inputs, kChannels); }
    // Numbers from one position to the next: an odd number of cache lines, so that a tile lies in different sets.
    int64_t stride() const { return channels() / kChannels % 2 ? channels() : channels() + kChannels; }
    int64_t patch_rows() const { return (block_rows() - 1) * step + side + factor - 1; }
    int64_t patch_columns() const { return (block_columns() - 1) * step + side + factor - 1; }
};

// The activated inputs (patch rows, patch columns, stride) of a block.
template <class X>
void read_inputs(const Tiling& s, const Block& b, const X* x, const float* scale, const float* shift, uint16_t* patch) {
    const int64_t top = b.row * s.step - s.before, left = b.column * s.step - s.before, stride = s.stride();
    for (int64_t i = 0; i < s.patch_rows(); i++) {
        for (int64_t j = 0; j < s.patch_columns(); j++) {
            uint16_t* to = patch + (i * s.patch_columns() + j) * stride;
            const int64_t row = top + i, column = left + j;
            if (row < 0 || row >= s.height || column < 0 || column >= s.width) {
                std::memset(to, 0, s.channels() * sizeof(uint16_t));
                continue;
            }
            const X* p = x + ((b.image * s.height + row) * s.width + column) * s.inputs;
            for (int64_t c = 0; c < s.channels(); c += 2 * kLanes) {
                __m512 half[2];
                UNROLL for (int n = 0; n < 2; n++) {
                    const int64_t at = c + n * kLanes;
                    const __mmask16 mask = lanes(s.inputs - at);
                    __m512 a = _mm512_setzero_ps(), o = a;
                    if (s.activated) a = load(scale + b.image * s.inputs + at, mask), o = load(shift + b.image * s.inputs + at, mask);
                    half[n] = load(p + at, mask);
                    if (s.activated) half[n] = swish(_mm512_fmadd_ps(half[n], a, o));
                }
                _mm512_storeu_si512(to + c, (__m512i)_mm512_cvtne2ps_pbh(half[1], half[0]));
            }
        }
    }
}

// M (16 A, 32): products of A tiles of positions, whose first inputs begin at `from`, with B tiles of outputs.
template <int A, int B>
inline void products(const Tiling& s, const uint16_t* const (&from)[2], const uint16_t* weight, float* m) {
    const int64_t stride = s.stride() * s.step * sizeof(uint16_t), channels = s.channels();
    amx_zero<0>();
    if (B == 2) amx_zero<1>();
    if (A == 2) amx_zero<2>();
    if (A == 2 && B == 2) amx_zero<3>();
    for (int64_t row = 0; row < s.side; row++) {
        for (int64_t column = 0; column < s.side; column++) {
            const int64_t at = (row * s.patch_columns() + column) * s.stride();
            for (int64_t c = 0; c < channels; c += kChannels, weight += B * kWeights) {
                amx_load<4>(from[0] + at + c, stride);
                amx_load<6>(weight);
                amx_bfloat16<0, 4, 6>();
                if (B == 2) amx_load<7>(weight + kWeights);
                if (B == 2) amx_bfloat16<1, 4, 7>();
                if (A == 2) amx_load<5>(from[1] + at + c, stride);
                if (A == 2) amx_bfloat16<2, 5, 6>();
                if (A == 2 && B == 2) amx_bfloat16<3, 5, 7>();
            }
        }
    }
    constexpr int64_t kRow = kPanel * sizeof(float);
    amx_store<0>(m, kRow);
    if (B == 2) amx_store<1>(m + kLanes, kRow);
    if (A == 2) amx_store<2>(m + kPositions * kPanel, kRow);
    if (A == 2 && B == 2) amx_store<3>(m + kPositions * kPanel + kLanes, kRow);
}

// Results of one tile of positions, from (row, column) on, for up to 32 outputs, from M (16, 32).
template <class Y>
void write_outputs(const Call& call, const Block& b, int64_t row, int64_t column, int64_t phase, int64_t channel,
                   const float* m, float* sums) {
    const Shape& s = call.shape;
    Y* y = (Y*)call.y;
    const Y* residual = (const Y*)call.residual;
    const int64_t count = std::min(kPositions, s.columns - column), width = s.columns * s.factor;
    const int64_t first = ((b.image * s.rows + row) * s.factor + phase / s.factor) * width + column * s.factor + phase % s.factor;
    for (int64_t c = 0; c < kPanel && channel + c < s.outputs; c += kLanes) {
        const __mmask16 mask = lanes(s.outputs - channel - c);
        const __m512 offset = load(call.bias + channel + c, mask);
        __m512 sum = load(sums + channel + c, mask), squares = load(sums + s.outputs + channel + c, mask);
        for (int64_t n = 0; n < count; n++) {
            const int64_t at = (first + n * s.factor) * s.outputs + channel + c;
            __m512 value = _mm512_add_ps(_mm512_loadu_ps(m + n * kPanel + c), offset);
            if (residual) value = _mm512_add_ps(value, load(residual + at, mask));
            store(y + at, value, mask);
            sum = _mm512_mask_add_ps(sum, mask, sum, value), squares = _mm512_fmadd_ps(value, value, squares);
        }
        store(sums + channel + c, sum, mask), store(sums + s.outputs + channel + c, squares, mask);
    }
}

// The results of a phase for one panel of outputs, two tiles of positions ("strips") at a time.
template <int B, class Y>
void panel(const Call& call, const Tiling& s, const Block& b, const uint16_t* patch, const uint16_t* weight, int64_t phase,
           int64_t channel, float* sums) {
    alignas(64) float m[2 * kPositions * kPanel];
    const int64_t across = divide_up(b.columns, kPositions), count = across * b.rows;
    for (int64_t strip = 0; strip < count; strip += 2) {
        const uint16_t* from[2];
        const int64_t together = std::min(int64_t(2), count - strip);
        for (int64_t n = 0; n < together; n++) {
            const int64_t i = (strip + n) / across * s.step + phase / s.factor;
            const int64_t j = (strip + n) % across * kPositions * s.step + phase % s.factor;
            from[n] = patch + (i * s.patch_columns() + j) * s.stride();
        }
        together == 2 ? products<2, B>(s, from, weight, m) : products<1, B>(s, from, weight, m);
        for (int64_t n = 0; n < together; n++) {
            const int64_t row = b.row + (strip + n) / across, column = b.column + (strip + n) % across * kPositions;
            write_outputs<Y>(call, b, row, column, phase, channel, m + n * kPositions * kPanel, sums);
        }
    }
}

template <class Y>
void convolve_block(const Call& call, const Tiling& s, const Block& b, const uint16_t* patch, float* sums) {
    const uint16_t* weight = (const uint16_t*)call.weight;
    std::fill(sums, sums + 2 * s.outputs, 0.f);
    for (int64_t channel = 0; channel < s.outputs; channel += kPanel) {
        const bool whole = s.outputs - channel > kLanes;
        for (int64_t phase = 0; phase < s.factor * s.factor; phase++) {
            whole ? panel<2, Y>(call, s, b, patch, weight, phase, channel, sums)
                  : panel<1, Y>(call, s, b, patch, weight, phase, channel, sums);
            weight += s.side * s.side * s.channels() * (whole ? kPanel : kLanes);
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
    const Tiling s(call->shape);
    Array<uint16_t> patch(s.patch_rows() * s.patch_columns() * s.stride());
    const int64_t across = s.across(), down = s.down();
    const AMX registers(kPositions);
    for (int64_t index = begin; index < end; index++) {
        Block b;
        b.image = index / (across * down);
        b.row = index / across % down * s.block_rows(), b.column = index % across * s.block_columns();
        b.rows = std::min(s.block_rows(), s.rows - b.row), b.columns = std::min(s.block_columns(), s.columns - b.column);
        float* sums = call->sums + index * 2 * s.outputs;
        if (s.narrow_inputs)
            read_inputs(s, b, (const uint16_t*)call->x, call->scale, call->shift, patch.get());
        else
            read_inputs(s, b, (const float*)call->x, call->scale, call->shift, patch.get());
        if (s.narrow_outputs)
            convolve_block<uint16_t>(*call, s, b, patch.get(), sums);
        else
            convolve_block<float>(*call, s, b, patch.get(), sums);
    }
}
#else
extern "C" int supported() { return 0; }
#endif
