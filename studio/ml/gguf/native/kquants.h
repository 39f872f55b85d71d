// Q2_K … Q6_K: 256 weights in a block, whose scales are quantized themselves. Source of all formulas: llama.cpp, ggml/src/ggml-quants.c.
//
// ggml tries some twenty scales for each sub-block of 32 or 16 weights, one sub-block after the other, and keeps the one with the least
// error. Here each lane of a vector has a sub-block of its own: the same operations in the same order, LANES sub-blocks at once.
// WEIGHED stands for an importance matrix, with which ggml searches differently.
#pragma once

#include "searches.h"

namespace {

constexpr int BLOCK = 256, GROUPS = 4;

// Lane k of column i is weight i of sub-block k; sub-block k begins at `from(k)`.
template <int LENGTH, class From> INLINE void load_columns(floats (&columns)[LENGTH], From from) {
    for (int start = 0; start < LENGTH; start += LANES) {
        floats square[LANES];
        for (int k = 0; k < LANES; k++) square[k] = load(from(k) + start);
        transpose(square);
        for (int k = 0; k < LANES; k++) columns[start + k] = square[k];
    }
}

// GROUPS · LANES sub-blocks in columns, with their weights in the error, and what becomes of whole blocks.
template <int LENGTH> struct Columns {
    static constexpr int PER_BLOCK = BLOCK / LENGTH, BLOCKS = GROUPS * LANES / PER_BLOCK;
    floats x[GROUPS][LENGTH], w[GROUPS][LENGTH];

    INLINE void read(Columns &self, const float *x) {
        for (int g = 0; g < GROUPS; g++) load_columns(self.x[g], [&](int k) { return x + (g * LANES + k) * LENGTH; });
    }

    // The importance of each weight alone, as in q6_K. `importance` points to that of each block.
    INLINE void weigh(Columns &self, const float *const *importance) {
        for (int g = 0; g < GROUPS; g++)
            load_columns(self.w[g], [&](int k) {
                const int j = g * LANES + k;
                return importance[j / PER_BLOCK] + j % PER_BLOCK * LENGTH;
            });
    }

    // importance · √(FACTOR · mean square of the block + x²), as in q2_K (1) and in q3_K, q4_K and q5_K (2).
    template <int FACTOR> INLINE void weigh(Columns &self, const float *x, const float *const *importance) {
        float spread[GROUPS * LANES], squares[BLOCKS] = {};
        for (int i = 0; i < BLOCK; i++)
#pragma GCC unroll 8
            for (int b = 0; b < BLOCKS; b++) squares[b] += x[b * BLOCK + i] * x[b * BLOCK + i];
        for (int j = 0; j < GROUPS * LANES; j++) spread[j] = FACTOR * squares[j / PER_BLOCK] / BLOCK;
        weigh(self, importance);
        for (int g = 0; g < GROUPS; g++)
            for (int i = 0; i < LENGTH; i++) self.w[g][i] *= root(load(spread + g * LANES) + self.x[g][i] * self.x[g][i]);
    }
};

// One lane for each block, of values that stand block after block, `count` to a block.
INLINE floats across(const float *values, int count, int blocks, int j) {
    floats lanes = floats{};
    for (int b = 0; b < blocks; b++) lanes[b] = values[b * count + j];
    return lanes;
}

// How the levels of a sub-block come of its weights: level = (x + add) / factor, or (x + add) · factor.
struct Rule {
    float add, factor;
    bool divides;
    bool guarded;  // before rounding, what is too small or too large is cut off
};

// Levels of LANES weights, cut off at `low` and `high` and counted from `low`.
INLINE ints levels_of(const float *x, const Rule &rule, float low, float high) {
    const floats moved = load(x) + rule.add;
    floats level = rule.divides ? moved / rule.factor : moved * rule.factor;
    if (rule.guarded) level = smaller(larger(level, all(low)), all(high));
    level = larger(smaller(nearest(level), all(high)), all(low)) - low;
    return __builtin_convertvector(level, ints);
}

INLINE void store_bytes(uint8_t *to, ints values) {
    const bytes narrow = __builtin_convertvector(values, bytes);
    memcpy(to, &narrow, sizeof narrow);
}

// Levels of two bits, four in a byte, as in q2_K and q3_K. `level(i)` are the levels of LANES weights from weight i on.
template <class Level> INLINE void pack_two_bits(uint8_t *out, Level level) {
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 32; i += LANES) {
            const int at = half * 128 + i;
            store_bytes(out + half * 32 + i, (level(at) & 3) | (level(at + 32) & 3) << 2 | (level(at + 64) & 3) << 4 | (level(at + 96) & 3) << 6);
        }
}

// ---- Levels on a line: x ≈ scale · level − min

// Eight scales and eight mins of 6 bits in 12 bytes.
struct SixBits {
    static constexpr int TOP = 63, BYTES = 12;
    INLINE void write(uint8_t *packed, const uint8_t *scales, const uint8_t *mins) {
        for (int j = 0; j < 4; j++) {
            packed[j] = (uint8_t)(scales[j] | (scales[j + 4] >> 4 << 6));
            packed[j + 4] = (uint8_t)(mins[j] | (mins[j + 4] >> 4 << 6));
            packed[j + 8] = (uint8_t)((scales[j + 4] & 15) | (mins[j + 4] & 15) << 4);
        }
    }
    INLINE int scale(const uint8_t *packed, int j) { return j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4); }
    INLINE int min(const uint8_t *packed, int j) { return j < 4 ? packed[j + 4] & 63 : packed[j + 4] >> 4 | (packed[j] >> 6 << 4); }
};

// Sixteen scales and mins of 4 bits in 16 bytes.
struct FourBits {
    static constexpr int TOP = 15, BYTES = 16;
    INLINE void write(uint8_t *packed, const uint8_t *scales, const uint8_t *mins) {
        for (int j = 0; j < 16; j++) packed[j] = (uint8_t)(scales[j] | mins[j] << 4);
    }
    INLINE int scale(const uint8_t *packed, int j) { return packed[j] & 15; }
    INLINE int min(const uint8_t *packed, int j) { return packed[j] >> 4; }
};

struct Q2K {
    typedef FourBits Scales;
    static constexpr int LENGTH = 16, TOP = 3, STEPS = 15, BYTES = 84, SPREAD = 1;
    static constexpr float FIRST = -0.5f, STEP = 0.1f;
    static constexpr bool ABSOLUTE = true, CUT_OFF = false, CUT_OFF_WEIGHED = false;
    static constexpr int SCALES_AT = 0, D_AT = 80;

    INLINE floats weight(floats x, floats) { return magnitude(x); }
    template <class Level> INLINE void pack(uint8_t *out, Level level) { pack_two_bits(out + 16, level); }
};

struct Q4K {
    typedef SixBits Scales;
    static constexpr int LENGTH = 32, TOP = 15, STEPS = 20, BYTES = 144, SPREAD = 2;
    static constexpr float FIRST = -1.f, STEP = 0.1f;
    static constexpr bool ABSOLUTE = false, CUT_OFF = true, CUT_OFF_WEIGHED = false;
    static constexpr int SCALES_AT = 4, D_AT = 0;

    INLINE floats weight(floats x, floats average) { return average + magnitude(x); }
    template <class Level> INLINE void pack(uint8_t *out, Level level) {
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < 32; i += LANES) store_bytes(out + 16 + j * 32 + i, level(j * 64 + i) | level(j * 64 + 32 + i) << 4);
    }
};

struct Q5K {
    typedef SixBits Scales;
    static constexpr int LENGTH = 32, TOP = 31, STEPS = 15, BYTES = 176, SPREAD = 2;
    static constexpr float FIRST = -0.5f, STEP = 0.1f;
    static constexpr bool ABSOLUTE = false, CUT_OFF = true, CUT_OFF_WEIGHED = true;
    static constexpr int SCALES_AT = 4, D_AT = 0;

    INLINE floats weight(floats x, floats average) { return average + magnitude(x); }
    template <class Level> INLINE void pack(uint8_t *out, Level level) {
        for (int i = 0; i < 32; i += LANES) {
            ints high = ints{};
            for (int j = 0; j < 4; j++) {
                const ints first = level(j * 64 + i), second = level(j * 64 + 32 + i);
                high |= first >> 4 << (2 * j) | second >> 4 << (2 * j + 1);
                store_bytes(out + 48 + j * 32 + i, (first & 15) | (second & 15) << 4);
            }
            store_bytes(out + 16 + i, high);
        }
    }
};

// Several blocks of Q2_K, Q4_K or Q5_K: ggml's quantize_row_…_ref, and quantize_row_…_impl with an importance.
template <class Type, bool WEIGHED> struct OnLines {
    typedef Columns<Type::LENGTH> Read;
    static constexpr int WEIGHTS = BLOCK, BYTES = Type::BYTES, BLOCKS = Read::BLOCKS, LENGTH = Type::LENGTH, COUNT = Read::PER_BLOCK;

    // What a search found, sub-block after sub-block.
    struct Found {
        float scale[GROUPS * LANES], min[GROUPS * LANES], inverse[GROUPS * LANES], base[GROUPS * LANES], weight[GROUPS * LANES];
    };
    // The same as it is written: d and m are float16.
    struct Small {
        uint16_t d[BLOCKS], m[BLOCKS];
        uint8_t scale[BLOCKS][COUNT], min[BLOCKS][COUNT];
    };

    static void write(uint8_t *out, const float *x, const float *const *importance) {
        Read columns;
        Read::read(columns, x);
        if constexpr (WEIGHED)
            Read::template weigh<Type::SPREAD>(columns, x, importance);
        else
            for (int g = 0; g < GROUPS; g++) {
                floats squares = floats{};
                for (int i = 0; i < LENGTH; i++) squares += columns.x[g][i] * columns.x[g][i];
                const floats average = root(squares / (float)LENGTH);
                for (int i = 0; i < LENGTH; i++) columns.w[g][i] = Type::weight(columns.x[g][i], average);
            }
        Line lines[GROUPS];
        fit_lines<Type, WEIGHED>(lines, columns.x, columns.w);
        Found found;
        for (int g = 0; g < GROUPS; g++) {
            store(found.scale + g * LANES, lines[g].scale);
            store(found.min + g * LANES, -lines[g].min);
            store(found.inverse + g * LANES, lines[g].inverse);
            store(found.base + g * LANES, lines[g].base);
            store(found.weight + g * LANES, lines[g].weight);
        }
        Small small;
        if constexpr (WEIGHED)
            search_scales(small, found);
        else
            round_scales(small, found);
        for (int b = 0; b < BLOCKS; b++) write_block(out + b * BYTES, x + b * BLOCK, small, found, b);
    }

    INLINE void round_scales(Small &small, const Found &found) {
        constexpr float TOP = Type::Scales::TOP;
        for (int b = 0; b < BLOCKS; b++) {
            const float *scale = found.scale + b * COUNT, *min = found.min + b * COUNT;
            float most_scale = 0, most_min = 0;
            for (int j = 0; j < COUNT; j++) {
                if (scale[j] > most_scale) most_scale = scale[j];
                if (min[j] > most_min) most_min = min[j];
            }
            small.d[b] = narrowed(most_scale / TOP);
            small.m[b] = narrowed(most_min / TOP);
            const float per_scale = most_scale > 0 ? TOP / most_scale : 0.f, per_min = most_min > 0 ? TOP / most_min : 0.f;
            for (int j = 0; j < COUNT; j++) {
                small.scale[b][j] = cut_off((uint8_t)nearest(per_scale * scale[j]));
                small.min[b][j] = cut_off((uint8_t)nearest(per_min * min[j]));
            }
        }
    }

    // A search of its own, for all scales and all mins: a lane for each block's scales, and one for its mins.
    INLINE void search_scales(Small &small, const Found &found) {
        static_assert(2 * BLOCKS <= LANES, "");
        floats values[COUNT], weights[COUNT], levels[COUNT];
        for (int j = 0; j < COUNT; j++) {
            values[j] = weights[j] = floats{};
            for (int b = 0; b < BLOCKS; b++) {
                values[j][b] = found.scale[b * COUNT + j];
                values[j][BLOCKS + b] = found.min[b * COUNT + j];
                weights[j][b] = weights[j][BLOCKS + b] = found.weight[b * COUNT + j];
            }
        }
        const floats factors = fit_positive<COUNT>(levels, values, weights, Type::Scales::TOP);
        for (int b = 0; b < BLOCKS; b++) {
            small.d[b] = narrowed((float)factors[b]);
            small.m[b] = narrowed((float)factors[BLOCKS + b]);
            for (int j = 0; j < COUNT; j++) {
                small.scale[b][j] = cut_off((uint8_t)levels[j][b]);
                small.min[b][j] = cut_off((uint8_t)levels[j][BLOCKS + b]);
            }
        }
    }

    INLINE uint8_t cut_off(uint8_t scale) { return (WEIGHED ? Type::CUT_OFF_WEIGHED : Type::CUT_OFF) && scale > 63 ? 63 : scale; }

    INLINE void write_block(uint8_t *out, const float *x, const Small &small, const Found &found, int b) {
        uint8_t *scales = out + Type::SCALES_AT;
        Type::Scales::write(scales, small.scale[b], small.min[b]);
        memcpy(out + Type::D_AT, &small.d[b], 2);
        memcpy(out + Type::D_AT + 2, &small.m[b], 2);
        const float d = widened(small.d[b]), m = widened(small.m[b]);
        Rule rules[COUNT];
        for (int j = 0; j < COUNT; j++) {
            const float step = d * Type::Scales::scale(scales, j), lift = m * Type::Scales::min(scales, j);
            const float inverse = found.inverse[b * COUNT + j];
            rules[j] = {lift, step, true, false};
            if (step == 0)  // the search's own levels stay; its first try, which is the best where inverse is infinite, is not guarded
                rules[j] = {-found.base[b * COUNT + j], inverse, false, WEIGHED && inverse < __builtin_inff()};
        }
        Type::pack(out, [&](int i) __attribute__((always_inline)) { return levels_of(x + i, rules[i / LENGTH], 0, Type::TOP); });
    }
};

// ---- Levels on a slope, through zero: x ≈ scale · level

// Several blocks of Q6_K: ggml's quantize_row_q6_K_ref and quantize_row_q6_K_impl.
template <bool WEIGHED> struct Q6K {
    typedef Columns<16> Read;
    static constexpr int WEIGHTS = BLOCK, BYTES = 210, BLOCKS = Read::BLOCKS;

    static void write(uint8_t *out, const float *x, const float *const *importance) {
        Read columns;
        Read::read(columns, x);
        if constexpr (WEIGHED)
            Read::weigh(columns, importance);
        else
            for (int g = 0; g < GROUPS; g++)
                for (int i = 0; i < 16; i++) columns.w[g][i] = columns.x[g][i] * columns.x[g][i];
        Slope slopes[GROUPS];
        fit_slopes<32>(slopes, columns.x, columns.w);
        float scales[GROUPS * LANES], inverses[GROUPS * LANES];
        int32_t zeros[GROUPS * LANES];
        for (int g = 0; g < GROUPS; g++) {
            store(scales + g * LANES, slopes[g].scale);
            store(inverses + g * LANES, slopes[g].inverse);
            memcpy(zeros + g * LANES, &slopes[g].zero, sizeof slopes[g].zero);
        }
        for (int b = 0; b < BLOCKS; b++) write_block(out + b * BYTES, x + b * BLOCK, scales + b * 16, inverses + b * 16, zeros + b * 16);
    }

    INLINE void write_block(uint8_t *out, const float *x, const float *scales, const float *inverses, const int32_t *zeros) {
        const float most = of_largest_magnitude(scales);
        if (__builtin_fabsf(most) < ALL_ZERO) {
            memset(out, 0, BYTES);
            return;
        }
        const float per_scale = -128.f / most;
        const uint16_t half = narrowed(1 / per_scale);
        const floats d = all(widened(half));
        float steps[16];
        ints nothing = ints{};
        for (int j = 0; j < 16; j += LANES) {
            const floats small = smaller(nearest(per_scale * load(scales + j)), all(127)), step = d * small;
            store_bytes(out + 192 + j, __builtin_convertvector(small, ints) & 255);
            store(steps + j, step);
            nothing |= step == floats{};
        }
        if (any(nothing)) {
            Rule rules[16];
            for (int j = 0; j < 16; j++) {
                rules[j] = {0, steps[j], true, false};
                if (steps[j] == 0) rules[j] = zeros[j] ? Rule{-__builtin_inff(), 1, false, true} : Rule{0, inverses[j], false, false};
            }
            pack(out, [&](int i) __attribute__((always_inline)) { return levels_of(x + i, rules[i / 16], -32, 31); });
        } else {
            pack(out, [&](int i) __attribute__((always_inline)) { return levels_of(x + i, Rule{0, steps[i / 16], true, false}, -32, 31); });
        }
        memcpy(out + 208, &half, 2);
    }

    template <class Level> INLINE void pack(uint8_t *out, Level level) {
        for (int half = 0; half < 2; half++)
            for (int i = 0; i < 32; i += LANES) {
                const ints l0 = level(half * 128 + i), l1 = level(half * 128 + 32 + i), l2 = level(half * 128 + 64 + i), l3 = level(half * 128 + 96 + i);
                store_bytes(out + half * 64 + i, (l0 & 15) | (l2 & 15) << 4);
                store_bytes(out + half * 64 + 32 + i, (l1 & 15) | (l3 & 15) << 4);
                store_bytes(out + 128 + half * 32 + i, l0 >> 4 | l1 >> 4 << 2 | l2 >> 4 << 4 | l3 >> 4 << 6);
            }
    }
};

// Several blocks of Q3_K: ggml's quantize_row_q3_K_ref and quantize_row_q3_K_impl.
template <bool WEIGHED> struct Q3K {
    typedef Columns<16> Read;
    static constexpr int WEIGHTS = BLOCK, BYTES = 110, BLOCKS = Read::BLOCKS;

    static void write(uint8_t *out, const float *x, const float *const *importance) {
        Read columns;
        Read::read(columns, x);
        floats levels[GROUPS][16];  // of the search
        float scales[GROUPS * LANES], d[BLOCKS];
        uint8_t small[BLOCKS][16];
        if constexpr (WEIGHED) {
            Read::template weigh<2>(columns, x, importance);
            Slope slopes[GROUPS];
            fit_slopes<4>(slopes, columns.x, columns.w);
            float weights[GROUPS * LANES];
            for (int g = 0; g < GROUPS; g++) {
                floats sum = floats{};
                for (int i = 0; i < 16; i++) {
                    sum += columns.w[g][i];
                    levels[g][i] = slope_level<4>(slopes[g], columns.x[g][i]);
                }
                store(weights + g * LANES, sum);
                store(scales + g * LANES, slopes[g].scale);
            }
            search_scales(d, small, scales, weights);
        } else {
            floats fitted[GROUPS];
            fit_three_bits(fitted, levels, columns.x);
            for (int g = 0; g < GROUPS; g++) store(scales + g * LANES, fitted[g]);
            round_scales(d, small, scales);
        }
        for (int b = 0; b < BLOCKS; b++) write_block(out + b * BYTES, x + b * BLOCK, d[b], small[b], levels, b);
    }

    INLINE void round_scales(float (&d)[BLOCKS], uint8_t (&small)[BLOCKS][16], const float *scales) {
        for (int b = 0; b < BLOCKS; b++) {
            const float most = of_largest_magnitude(scales + b * 16), per_scale = -32.f / most;
            d[b] = most != 0 ? 1 / per_scale : 0.f;
            for (int j = 0; j < 16; j++) {
                const int8_t level = (int8_t)nearest(per_scale * scales[b * 16 + j]);
                small[b][j] = most != 0 ? (uint8_t)((level < -32 ? -32 : level > 31 ? 31 : level) + 32) : 0;
            }
        }
    }

    INLINE void search_scales(float (&d)[BLOCKS], uint8_t (&small)[BLOCKS][16], const float *scales, const float *weights) {
        Slope slopes[1];
        floats x[1][16], w[1][16];
        for (int j = 0; j < 16; j++) {
            x[0][j] = across(scales, 16, BLOCKS, j);
            w[0][j] = across(weights, 16, BLOCKS, j);
        }
        fit_slopes<32>(slopes, x, w);
        for (int b = 0; b < BLOCKS; b++) d[b] = slopes[0].scale[b];
        for (int j = 0; j < 16; j++) {
            const floats level = slope_level<32>(slopes[0], x[0][j]);
            for (int b = 0; b < BLOCKS; b++) small[b][j] = (uint8_t)level[b];
        }
    }

    INLINE void write_block(uint8_t *out, const float *x, float d, const uint8_t *small, const floats (&searched)[GROUPS][16], int b) {
        const uint16_t half = narrowed(d);
        const auto level = [&](int i) {
            const int j = i / 16, k = b * 16 + j;
            const float step = widened(half) * (small[j] - 32);
            if (step != 0) return levels_of(x + i, Rule{0, step, true, false}, -4, 3);
            ints kept;
            for (int lane = 0; lane < LANES; lane++) kept[lane] = (int32_t)searched[k / LANES][i % 16 + lane][k % LANES];
            return kept;
        };
        for (int i = 0; i < 32; i += LANES) {
            ints high = ints{};
            for (int j = 0; j < 8; j++) high |= level(j * 32 + i) >> 2 << j;
            store_bytes(out + i, high);
        }
        pack_two_bits(out + 32, level);
        for (int j = 0; j < 8; j++) out[96 + j] = (uint8_t)((small[j] & 15) | (small[j + 8] & 15) << 4);
        for (int j = 0; j < 4; j++)
            out[104 + j] = (uint8_t)(small[j] >> 4 | small[j + 4] >> 4 << 2 | small[j + 8] >> 4 << 4 | small[j + 12] >> 4 << 6);
        memcpy(out + 108, &half, 2);
    }
};

}  // namespace
