// Q4_K, Q5_K and Q6_K: 256 weights in a block, its scales quantized themselves. Source of all formulas: llama.cpp, ggml/src/ggml-quants.c.
//
// ggml tries some twenty scales for each sub-block of 32 or 16 weights, one sub-block after the other, and keeps the one with the least
// error. Here each lane of a vector has a sub-block of its own: the same operations in the same order, LANES sub-blocks at once.
#pragma once

#include "lanes.h"

namespace {

constexpr int BLOCK = 256;
constexpr float ALL_ZERO = 1e-15f;  // ggml's GROUP_MAX_EPS

// Lane k of column i is weight i of sub-block k; `from` are LANES sub-blocks of LENGTH weights, one after the other.
template <int LENGTH> INLINE void load_columns(floats (&columns)[LENGTH], const float *from) {
    for (int start = 0; start < LENGTH; start += LANES) {
        floats square[LANES];
        for (int k = 0; k < LANES; k++) square[k] = load(from + k * LENGTH + start);
        transpose(square);
        for (int k = 0; k < LANES; k++) columns[start + k] = square[k];
    }
}

// Levels 0 … TOP of weights x ≈ scale · level + min.
struct Line {
    floats scale, min;
    // Where the block's own scale becomes zero, ggml keeps the search's levels: nearest(inverse · (x − base)).
    floats inverse, base;
};

// ggml's make_qkx2_quants for GROUPS · LANES sub-blocks; GROUPS of them are interleaved, since each sum waits for its last addition.
template <class Type, int GROUPS> INLINE void fit_lines(Line (&lines)[GROUPS], const floats (&x)[GROUPS][Type::LENGTH], const floats (&w)[GROUPS][Type::LENGTH]) {
    constexpr int LENGTH = Type::LENGTH;
    constexpr float TOP = Type::TOP;
    floats least[GROUPS], most[GROUPS], sum_w[GROUPS], sum_x[GROUPS], error[GROUPS], levels[GROUPS][LENGTH];
    ints flat[GROUPS];
    for (int g = 0; g < GROUPS; g++) {
        least[g] = most[g] = x[g][0];
        sum_w[g] = w[g][0];
        sum_x[g] = w[g][0] * x[g][0];
        for (int i = 1; i < LENGTH; i++) {
            least[g] = smaller(x[g][i], least[g]);
            most[g] = larger(x[g][i], most[g]);
            sum_w[g] += w[g][i];
            sum_x[g] += w[g][i] * x[g][i];
        }
        Line &line = lines[g];
        line.min = line.base = least[g] > floats{} ? floats{} : least[g];
        flat[g] = most[g] == line.min;
        line.inverse = TOP / (most[g] - line.min);
        line.scale = 1.f / line.inverse;
        error[g] = floats{};
        for (int i = 0; i < LENGTH; i++) {
            const floats level = larger(smaller(nearest(line.inverse * (x[g][i] - line.min)), all(TOP)), floats{});
            const floats off = line.scale * level + line.min - x[g][i];
            error[g] += w[g][i] * (off * off);
        }
    }
    for (int step = 0; step <= Type::STEPS; step++) {
        floats inverse[GROUPS], sum_l[GROUPS], sum_l2[GROUPS], sum_xl[GROUPS];
        ints wraps = ints{};
        for (int g = 0; g < GROUPS; g++) {
            inverse[g] = (Type::FIRST + Type::STEP * step + TOP) / (most[g] - lines[g].min);
            sum_l[g] = sum_l2[g] = sum_xl[g] = floats{};
            const floats low = inverse[g] * (least[g] - lines[g].min), high = inverse[g] * (most[g] - lines[g].min);
            wraps |= ~((low > -WRAPS_AT) & (high < WRAPS_AT));
        }
        const auto sum = [&](auto round) __attribute__((always_inline)) {
            for (int i = 0; i < LENGTH; i++)
#pragma GCC unroll 4
                for (int g = 0; g < GROUPS; g++) {
                    const floats level = larger(smaller(round(inverse[g] * (x[g][i] - lines[g].min)), all(TOP)), floats{});
                    const floats wl = w[g][i] * level;
                    levels[g][i] = level;
                    sum_l[g] += wl;
                    sum_l2[g] += wl * level;
                    sum_xl[g] += wl * x[g][i];
                }
        };
        if (any(wraps))  // cannot be told from weights as they come in models; in those that are all the same, it can
            sum([](floats a) { return nearest(a); });
        else
            sum([](floats a) { return rounded(a); });
        floats determinant[GROUPS], scale[GROUPS], min[GROUPS], now[GROUPS];
        for (int g = 0; g < GROUPS; g++) {
            determinant[g] = sum_w[g] * sum_l2[g] - sum_l[g] * sum_l[g];
            scale[g] = (sum_w[g] * sum_xl[g] - sum_x[g] * sum_l[g]) / determinant[g];
            min[g] = (sum_l2[g] * sum_x[g] - sum_l[g] * sum_xl[g]) / determinant[g];
            const ints above = min[g] > floats{};
            if (any(above)) {
                scale[g] = above ? sum_xl[g] / sum_l2[g] : scale[g];
                min[g] = above ? floats{} : min[g];
            }
            now[g] = floats{};
        }
        for (int i = 0; i < LENGTH; i++)
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) {
                const floats off = scale[g] * levels[g][i] + min[g] - x[g][i];
                now[g] += w[g][i] * (off * off);
            }
        for (int g = 0; g < GROUPS; g++) {
            const ints better = (determinant[g] > floats{}) & (now[g] < error[g]);
            Line &line = lines[g];
            line.inverse = better ? inverse[g] : line.inverse;
            line.base = better ? line.min : line.base;
            line.scale = better ? scale[g] : line.scale;
            line.min = better ? min[g] : line.min;
            error[g] = better ? now[g] : error[g];
        }
    }
    for (int g = 0; g < GROUPS; g++) {
        Line &line = lines[g];
        const floats lowest = least[g] > floats{} ? floats{} : least[g];
        line.scale = flat[g] ? floats{} : line.scale;
        line.min = flat[g] ? lowest : line.min;
        line.inverse = flat[g] ? floats{} : line.inverse;  // all levels are 0
    }
}

// The levels of LENGTH weights of one sub-block, 0 … TOP, each in a byte: what dequantizing with d and m comes closest to.
template <int LENGTH> INLINE void write_levels(uint8_t *levels, const float *x, float add, float factor, bool divides, float low, float high) {
    for (int i = 0; i < LENGTH; i += LANES) {
        const floats moved = load(x + i) + add;
        const floats level = larger(smaller(nearest(divides ? moved / factor : moved * factor), all(high)), all(low)) - low;
        const bytes narrow = __builtin_convertvector(__builtin_convertvector(level, ints), bytes);
        memcpy(levels + i, &narrow, sizeof narrow);
    }
}

// Scales and mins of 8 sub-blocks, 6 bits each, in 12 bytes. Read back by ggml's get_scale_min_k4.
INLINE void write_scales(uint8_t *packed, const uint8_t (&scales)[8], const uint8_t (&mins)[8]) {
    for (int j = 0; j < 4; j++) {
        packed[j] = (uint8_t)(scales[j] | (scales[j + 4] >> 4 << 6));
        packed[j + 4] = (uint8_t)(mins[j] | (mins[j + 4] >> 4 << 6));
        packed[j + 8] = (uint8_t)((scales[j + 4] & 15) | ((mins[j + 4] & 15) << 4));
    }
}

struct Q4K {
    static constexpr int LENGTH = 32, TOP = 15, STEPS = 20, BYTES = 144;
    static constexpr float FIRST = -1.f, STEP = 0.1f;

    INLINE void pack(uint8_t *out, const uint8_t *levels) {
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < 32; i++) out[j * 32 + i] = (uint8_t)(levels[j * 64 + i] | (levels[j * 64 + 32 + i] << 4));
    }
};

struct Q5K {
    static constexpr int LENGTH = 32, TOP = 31, STEPS = 15, BYTES = 176;
    static constexpr float FIRST = -0.5f, STEP = 0.1f;

    INLINE void pack(uint8_t *out, const uint8_t *levels) {
        for (int i = 0; i < 32; i++) {
            int high = 0;
            for (int j = 0; j < 8; j++) high |= (levels[j * 32 + i] >> 4) << j;
            out[i] = (uint8_t)high;
        }
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < 32; i++) out[32 + j * 32 + i] = (uint8_t)((levels[j * 64 + i] & 15) | ((levels[j * 64 + 32 + i] & 15) << 4));
    }
};

// Several blocks of Q4_K or Q5_K, without an importance: ggml's quantize_row_q4_K_ref and quantize_row_q5_K_ref.
template <class Type> struct Lines {
    static constexpr int GROUPS = 4, BLOCKS = GROUPS * LANES / 8, BYTES = Type::BYTES;

    static void write(uint8_t *out, const float *x, const float *) {
        Line lines[GROUPS];
        floats columns[GROUPS][32], weights[GROUPS][32];
        for (int g = 0; g < GROUPS; g++) {
            load_columns(columns[g], x + g * LANES * 32);
            floats squares = floats{};
            for (int i = 0; i < 32; i++) squares += columns[g][i] * columns[g][i];
            const floats average = root(squares / 32.f);
            for (int i = 0; i < 32; i++) weights[g][i] = average + magnitude(columns[g][i]);
        }
        fit_lines<Type>(lines, columns, weights);
        float scales[8 * BLOCKS], mins[8 * BLOCKS], inverses[8 * BLOCKS], bases[8 * BLOCKS];
        for (int g = 0; g < GROUPS; g++) {
            store(scales + g * LANES, lines[g].scale);
            store(mins + g * LANES, -lines[g].min);
            store(inverses + g * LANES, lines[g].inverse);
            store(bases + g * LANES, lines[g].base);
        }
        for (int b = 0; b < BLOCKS; b++) write_block(out + b * BYTES, x + b * BLOCK, scales + b * 8, mins + b * 8, inverses + b * 8, bases + b * 8);
    }

    INLINE void write_block(uint8_t *out, const float *x, const float *scales, const float *mins, const float *inverses, const float *bases) {
        float most_scale = 0, most_min = 0;
        for (int j = 0; j < 8; j++) {
            if (scales[j] > most_scale) most_scale = scales[j];
            if (mins[j] > most_min) most_min = mins[j];
        }
        const float per_scale = most_scale > 0 ? 63.f / most_scale : 0.f, per_min = most_min > 0 ? 63.f / most_min : 0.f;
        const uint16_t d = narrowed(most_scale / 63.f), m = narrowed(most_min / 63.f);
        uint8_t small_scales[8], small_mins[8], levels[BLOCK];
        for (int j = 0; j < 8; j++) {
            const uint8_t scale = (uint8_t)nearest(per_scale * scales[j]), min = (uint8_t)nearest(per_min * mins[j]);
            small_scales[j] = scale > 63 ? 63 : scale;
            small_mins[j] = min > 63 ? 63 : min;
            const float step = widened(d) * small_scales[j], lift = widened(m) * small_mins[j];
            if (step != 0)  // also where it is not a number, as in ggml
                write_levels<32>(levels + j * 32, x + j * 32, lift, step, true, 0, Type::TOP);
            else
                write_levels<32>(levels + j * 32, x + j * 32, -bases[j], inverses[j], false, 0, Type::TOP);
        }
        memcpy(out, &d, 2);
        memcpy(out + 2, &m, 2);
        write_scales(out + 4, small_scales, small_mins);
        Type::pack(out + 16, levels);
    }
};

// Levels −32 … 31 of weights x ≈ scale · level, the search's own being nearest(inverse · x). `zero` where all weights are.
struct Slope {
    floats scale, inverse;
    ints zero;
};

// ggml's make_qx_quants with rmse_type 1: an error weighs as much as the square of its weight.
template <int GROUPS> INLINE void fit_slopes(Slope (&slopes)[GROUPS], const floats (&x)[GROUPS][16]) {
    floats most[GROUPS], best[GROUPS], w[GROUPS][16], wx[GROUPS][16];
    for (int g = 0; g < GROUPS; g++) {
        floats size = floats{};
        most[g] = floats{};
        for (int i = 0; i < 16; i++) {
            const floats here = magnitude(x[g][i]);
            const ints above = here > size;
            size = above ? here : size;
            most[g] = above ? x[g][i] : most[g];
            w[g][i] = x[g][i] * x[g][i];
            wx[g][i] = w[g][i] * x[g][i];
        }
        slopes[g].zero = size < all(ALL_ZERO);
    }
    // The sums for one try: levels of x, rounded after a multiplication with `inverse`.
    floats sum_xl[GROUPS], sum_l2[GROUPS];
    const auto sum = [&](const floats(&inverse)[GROUPS]) __attribute__((always_inline)) {
        for (int g = 0; g < GROUPS; g++) sum_xl[g] = sum_l2[g] = floats{};
        for (int i = 0; i < 16; i++)
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) {
                const floats level = larger(smaller(rounded(inverse[g] * x[g][i]), all(31)), all(-32));
                sum_xl[g] += wx[g][i] * level;
                sum_l2[g] += w[g][i] * level * level;
            }
    };
    floats inverse[GROUPS];
    for (int g = 0; g < GROUPS; g++) slopes[g].inverse = inverse[g] = -32.f / most[g];
    sum(inverse);
    for (int g = 0; g < GROUPS; g++) {
        slopes[g].scale = sum_l2[g] != floats{} ? sum_xl[g] / sum_l2[g] : floats{};
        best[g] = slopes[g].scale * sum_xl[g];
    }
    for (int step = -9; step <= 9; step++) {
        if (step == 0) continue;
        for (int g = 0; g < GROUPS; g++) inverse[g] = -(32 + 0.1f * step) / most[g];
        sum(inverse);
        for (int g = 0; g < GROUPS; g++) {
            const ints better = (sum_l2[g] > floats{}) & (sum_xl[g] * sum_xl[g] > best[g] * sum_l2[g]);
            const floats scale = sum_xl[g] / sum_l2[g];
            slopes[g].scale = better ? scale : slopes[g].scale;
            slopes[g].inverse = better ? inverse[g] : slopes[g].inverse;
            best[g] = better ? scale * sum_xl[g] : best[g];
        }
    }
    for (int g = 0; g < GROUPS; g++) slopes[g].scale = slopes[g].zero ? floats{} : slopes[g].scale;
}

// Several blocks of Q6_K: ggml's quantize_row_q6_K_ref.
struct Q6K {
    static constexpr int GROUPS = 4, BLOCKS = GROUPS * LANES / 16, BYTES = 210;

    static void write(uint8_t *out, const float *x, const float *) {
        Slope slopes[GROUPS];
        floats columns[GROUPS][16];
        for (int g = 0; g < GROUPS; g++) load_columns(columns[g], x + g * LANES * 16);
        fit_slopes(slopes, columns);
        float scales[16 * BLOCKS], inverses[16 * BLOCKS];
        int32_t zeros[16 * BLOCKS];
        for (int g = 0; g < GROUPS; g++) {
            store(scales + g * LANES, slopes[g].scale);
            store(inverses + g * LANES, slopes[g].inverse);
            memcpy(zeros + g * LANES, &slopes[g].zero, sizeof slopes[g].zero);
        }
        for (int b = 0; b < BLOCKS; b++) write_block(out + b * BYTES, x + b * BLOCK, scales + b * 16, inverses + b * 16, zeros + b * 16);
    }

    INLINE void write_block(uint8_t *out, const float *x, const float *scales, const float *inverses, const int32_t *zeros) {
        float most = 0, size = 0;
        for (int j = 0; j < 16; j++) {
            const float here = __builtin_fabsf(scales[j]);
            if (here > size) {
                size = here;
                most = scales[j];
            }
        }
        if (size < ALL_ZERO) {
            memset(out, 0, BYTES);
            return;
        }
        const float per_scale = -128.f / most;
        const uint16_t d = narrowed(1 / per_scale);
        uint8_t levels[BLOCK];
        for (int j = 0; j < 16; j++) {
            const int scale = nearest(per_scale * scales[j]);
            const int8_t small = (int8_t)(scale > 127 ? 127 : scale);
            memcpy(out + 192 + j, &small, 1);
            const float step = widened(d) * small;
            if (step != 0)
                write_levels<16>(levels + j * 16, x + j * 16, 0, step, true, -32, 31);
            else if (zeros[j])
                memset(levels + j * 16, 0, 16);
            else
                write_levels<16>(levels + j * 16, x + j * 16, 0, inverses[j], false, -32, 31);
        }
        pack(out, levels);
        memcpy(out + 208, &d, 2);
    }

    INLINE void pack(uint8_t *out, const uint8_t *levels) {
        for (int half = 0; half < 2; half++) {
            const uint8_t *l = levels + half * 128;
            uint8_t *low = out + half * 64, *high = out + 128 + half * 32;
            for (int i = 0; i < 64; i++) low[i] = (uint8_t)((l[i] & 15) | ((l[i + 64] & 15) << 4));
            for (int i = 0; i < 32; i++) high[i] = (uint8_t)((l[i] >> 4) | (l[i + 32] >> 4 << 2) | (l[i + 64] >> 4 << 4) | (l[i + 96] >> 4 << 6));
        }
    }
};

}  // namespace
