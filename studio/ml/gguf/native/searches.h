// The searches for scales, one in each lane. Source: llama.cpp, ggml/src/ggml-quants.c, make_qkx2_quants and its relatives.
//
// Several groups of lanes are interleaved where it says GROUPS, since each sum waits for its last addition.
#pragma once

#include "lanes.h"

namespace {

constexpr float ALL_ZERO = 1e-15f;  // ggml's GROUP_MAX_EPS

// x ≈ scale · level + min, with levels 0 … TOP.
struct Line {
    floats scale, min;
    floats weight;  // sum of the weights in the error
    // Where the block's own scale becomes zero, ggml keeps the search's levels: nearest(inverse · (x − base)).
    floats inverse, base;
};

// The tries of make_qkx2_quants, and those of make_qkx3_quants, which is called with an importance.
template <class Type, bool WEIGHED> struct Tries {
    static constexpr int COUNT = (WEIGHED ? 36 : Type::STEPS) + 1;
    static constexpr float FIRST = WEIGHED ? -0.9f : Type::FIRST, STEP = WEIGHED ? 0.05f : Type::STEP;
    static constexpr bool ABSOLUTE = !WEIGHED && Type::ABSOLUTE;

    INLINE floats error(floats off) { return ABSOLUTE ? magnitude(off) : off * off; }
};

// ggml's make_qkx2_quants, or make_qkx3_quants.
template <class Type, bool WEIGHED, int GROUPS, int LENGTH>
INLINE void fit_lines(Line (&lines)[GROUPS], const floats (&x)[GROUPS][LENGTH], const floats (&w)[GROUPS][LENGTH]) {
    typedef Tries<Type, WEIGHED> Tries;
    constexpr float TOP = Type::TOP;
    const floats top = all(TOP), zero = floats{};
    floats least[GROUPS], most[GROUPS], sum_x[GROUPS], error[GROUPS], levels[GROUPS][LENGTH];
    for (int g = 0; g < GROUPS; g++) {
        Line &line = lines[g];
        least[g] = most[g] = x[g][0];
        line.weight = w[g][0];
        sum_x[g] = w[g][0] * x[g][0];
        for (int i = 1; i < LENGTH; i++) {
            least[g] = smaller(x[g][i], least[g]);
            most[g] = larger(x[g][i], most[g]);
            line.weight += w[g][i];
            sum_x[g] += w[g][i] * x[g][i];
        }
        line.min = line.base = least[g] > zero ? zero : least[g];
        line.inverse = TOP / (most[g] - line.min);
        line.scale = 1.f / line.inverse;
        error[g] = zero;
        for (int i = 0; i < LENGTH; i++) {
            const floats level = larger(smaller(nearest(line.inverse * (x[g][i] - line.min)), top), zero);
            error[g] += w[g][i] * Tries::error(line.scale * level + line.min - x[g][i]);
        }
    }
    for (int step = 0; step < Tries::COUNT; step++) {
        floats inverse[GROUPS], sum_l[GROUPS], sum_l2[GROUPS], sum_xl[GROUPS];
        ints wraps = ints{}, above = ints{};
        for (int g = 0; g < GROUPS; g++) {
            inverse[g] = (Tries::FIRST + Tries::STEP * step + TOP) / (most[g] - lines[g].min);
            sum_l[g] = sum_l2[g] = sum_xl[g] = zero;
            const floats low = inverse[g] * (least[g] - lines[g].min), high = inverse[g] * (most[g] - lines[g].min);
            wraps |= ~((low > -WRAPS_AT) & (high < WRAPS_AT));
            above |= ~(high < TOP + 0.5f);
        }
        const auto sum = [&](auto level_of) __attribute__((always_inline)) {
            for (int i = 0; i < LENGTH; i++)
#pragma GCC unroll 4
                for (int g = 0; g < GROUPS; g++) {
                    const floats level = level_of(inverse[g] * (x[g][i] - lines[g].min)), wl = w[g][i] * level;
                    levels[g][i] = level;
                    sum_l[g] += wl;
                    sum_l2[g] += wl * level;
                    sum_xl[g] += wl * x[g][i];
                }
        };
        if (WEIGHED)
            sum([&](floats a) __attribute__((always_inline)) { return rounded(smaller(larger(a, zero), top)); });
        else if (any(wraps))  // not with weights as they come in models, but in sub-blocks that are all zero
            sum([&](floats a) __attribute__((always_inline)) { return larger(smaller(nearest(a), top), zero); });
        else if (any(above))
            sum([&](floats a) __attribute__((always_inline)) { return larger(smaller(rounded(a), top), zero); });
        else  // in the first half of the tries all levels are below the top, and to cut off there would take time for nothing
            sum([&](floats a) __attribute__((always_inline)) { return larger(rounded(a), zero); });
        floats determinant[GROUPS], scale[GROUPS], min[GROUPS], now[GROUPS];
        for (int g = 0; g < GROUPS; g++) {
            determinant[g] = lines[g].weight * sum_l2[g] - sum_l[g] * sum_l[g];
            scale[g] = (lines[g].weight * sum_xl[g] - sum_x[g] * sum_l[g]) / determinant[g];
            min[g] = (sum_l2[g] * sum_x[g] - sum_l[g] * sum_xl[g]) / determinant[g];
            const ints positive = min[g] > zero;
            if (any(positive)) {
                scale[g] = positive ? sum_xl[g] / sum_l2[g] : scale[g];
                min[g] = positive ? zero : min[g];
            }
            now[g] = zero;
        }
        for (int i = 0; i < LENGTH; i++)
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) now[g] += w[g][i] * Tries::error(scale[g] * levels[g][i] + min[g] - x[g][i]);
        for (int g = 0; g < GROUPS; g++) {
            const ints better = (determinant[g] > zero) & (now[g] < error[g]);
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
        const floats lowest = least[g] > zero ? zero : least[g];
        const ints flat = most[g] == lowest;
        line.scale = flat ? zero : line.scale;
        line.min = flat ? lowest : line.min;
        line.inverse = flat ? zero : line.inverse;  // all levels are 0
    }
}

// ggml's make_qp_quants: levels 0 … top of values that are not negative. The result is their scale.
template <int COUNT> INLINE floats fit_positive(floats (&levels)[COUNT], const floats (&x)[COUNT], const floats (&w)[COUNT], float top) {
    const auto as_byte = [](floats level) { return __builtin_convertvector(__builtin_convertvector(level, ints) & 255, floats); };
    const floats zero = floats{};
    floats most = zero;
    for (int i = 0; i < COUNT; i++) most = larger(most, x[i]);
    floats inverse = top / most, scale = 1.f / inverse, error = zero;
    for (int i = 0; i < COUNT; i++) {
        const floats off = x[i] - scale * as_byte(nearest(inverse * x[i]));
        error += w[i] * off * off;
    }
    for (int step = -4; step <= 4; step++) {
        if (step == 0) continue;
        const floats try_inverse = (0.1f * step + top) / most, try_scale = 1.f / try_inverse;
        floats now = zero;
        for (int i = 0; i < COUNT; i++) {
            const floats off = x[i] - try_scale * smaller(nearest(try_inverse * x[i]), all(top));
            now += w[i] * off * off;
        }
        const ints better = now < error;
        error = better ? now : error;
        inverse = better ? try_inverse : inverse;
    }
    floats sum_xl = zero, sum_l2 = zero;
    for (int i = 0; i < COUNT; i++) {
        const floats level = smaller(nearest(inverse * x[i]), all(top));
        levels[i] = as_byte(level);
        sum_xl += w[i] * x[i] * level;
        sum_l2 += w[i] * level * level;
    }
    ints changed = ~ints{};
    for (int round = 0; round < 5 && any(changed); round++) {
        changed = ints{};
        for (int i = 0; i < COUNT; i++) {
            const floats other_xl = sum_xl - w[i] * x[i] * levels[i], other_l2 = sum_l2 - w[i] * levels[i] * levels[i];
            const floats level = smaller(nearest(x[i] * other_l2 / other_xl), all(top));
            const floats xl = other_xl + w[i] * x[i] * level, l2 = other_l2 + w[i] * level * level;
            const ints better = (other_xl > zero) & (other_l2 > zero) & (level != levels[i]) & (xl * xl * sum_l2 > sum_xl * sum_xl * l2);
            levels[i] = better ? as_byte(level) : levels[i];
            sum_xl = better ? xl : sum_xl;
            sum_l2 = better ? l2 : sum_l2;
            changed |= better;
        }
    }
    const ints nothing = most < all(ALL_ZERO);
    for (int i = 0; i < COUNT; i++) levels[i] = nothing ? zero : levels[i];
    return (nothing | ~(sum_l2 > zero)) ? zero : sum_xl / sum_l2;
}

// x ≈ scale · level, with levels −TOP … TOP − 1; the search's own are nearest(inverse · x). `zero` where all weights are.
struct Slope {
    floats scale, inverse;
    ints zero;
};

// Where all weights are zero, ggml has the level 0 at the bottom of the scale, not in its middle.
template <int TOP> INLINE floats slope_level(const Slope &slope, floats x) {
    const floats level = larger(smaller(rounded(slope.inverse * x), all(TOP - 1)), all(-TOP)) + (float)TOP;
    return slope.zero ? floats{} : level;
}

// The first of the largest magnitude, and whether that counts as zero.
template <int LENGTH> INLINE ints find_most(floats &most, const floats (&x)[LENGTH]) {
    floats size = most = floats{};
    for (int i = 0; i < LENGTH; i++) {
        const floats here = magnitude(x[i]);
        const ints above = here > size;
        size = above ? here : size;
        most = above ? x[i] : most;
    }
    return size < all(ALL_ZERO);
}
INLINE float of_largest_magnitude(const float *scales) {
    float most = 0;
    for (int j = 0; j < 16; j++)
        if (__builtin_fabsf(scales[j]) > __builtin_fabsf(most)) most = scales[j];
    return most;
}

// ggml's make_qx_quants with rmse_type 1, whose weights in the error are given.
template <int TOP, int GROUPS, int LENGTH> INLINE void fit_slopes(Slope (&slopes)[GROUPS], const floats (&x)[GROUPS][LENGTH], const floats (&w)[GROUPS][LENGTH]) {
    floats most[GROUPS], best[GROUPS], wx[GROUPS][LENGTH], inverse[GROUPS], sum_xl[GROUPS], sum_l2[GROUPS];
    for (int g = 0; g < GROUPS; g++) {
        slopes[g].zero = find_most(most[g], x[g]);
        for (int i = 0; i < LENGTH; i++) wx[g][i] = w[g][i] * x[g][i];
    }
    const auto sum = [&](auto level_of) __attribute__((always_inline)) {
        for (int g = 0; g < GROUPS; g++) sum_xl[g] = sum_l2[g] = floats{};
        for (int i = 0; i < LENGTH; i++)
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) {
                const floats level = level_of(inverse[g] * x[g][i]);
                sum_xl[g] += wx[g][i] * level;
                sum_l2[g] += w[g][i] * level * level;
            }
    };
    const auto above_bottom = [](floats a) __attribute__((always_inline)) { return smaller(rounded(a), all(TOP - 1)); };
    const auto anywhere = [](floats a) __attribute__((always_inline)) { return larger(smaller(rounded(a), all(TOP - 1)), all(-TOP)); };
    for (int g = 0; g < GROUPS; g++) slopes[g].inverse = inverse[g] = (float)-TOP / most[g];
    sum(above_bottom);
    for (int g = 0; g < GROUPS; g++) {
        slopes[g].scale = sum_l2[g] != floats{} ? sum_xl[g] / sum_l2[g] : floats{};
        best[g] = slopes[g].scale * sum_xl[g];
    }
    for (int step = -9; step <= 9; step++) {
        if (step == 0) continue;
        for (int g = 0; g < GROUPS; g++) inverse[g] = -(TOP + 0.1f * step) / most[g];
        if (step < 5)  // the largest magnitude times inverse is less than TOP + 0.5, which is rounded to TOP
            sum(above_bottom);
        else
            sum(anywhere);
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

// ggml's make_q3_quants: levels −4 … 3, one after the other moved where that lessens the error. `levels` are counted from the bottom.
template <int GROUPS> INLINE void fit_three_bits(floats (&scales)[GROUPS], floats (&levels)[GROUPS][16], const floats (&x)[GROUPS][16]) {
    const auto cut_off = [](floats level) { return larger(smaller(level, all(3)), all(-4)); };
    floats sum_xl[GROUPS], sum_l2[GROUPS];
    ints zero[GROUPS], changed = ~ints{};
    for (int g = 0; g < GROUPS; g++) {
        floats most;
        zero[g] = find_most(most, x[g]);
        const floats inverse = -4.f / most;
        sum_xl[g] = sum_l2[g] = floats{};
        for (int i = 0; i < 16; i++) {
            const floats level = cut_off(rounded(inverse * x[g][i])), w = x[g][i] * x[g][i];
            levels[g][i] = level;
            sum_xl[g] += w * x[g][i] * level;
            sum_l2[g] += w * level * level;
        }
    }
    for (int round = 0; round < 5 && any(changed); round++) {
        changed = ints{};
        for (int i = 0; i < 16; i++)
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) {
                const floats w = x[g][i] * x[g][i], before = levels[g][i];
                const floats other_xl = sum_xl[g] - w * x[g][i] * before, other_l2 = sum_l2[g] - w * before * before;
                const floats level = cut_off(nearest(x[g][i] * other_l2 / other_xl));
                const floats xl = other_xl + w * x[g][i] * level, l2 = other_l2 + w * level * level;
                const ints better = (other_xl > floats{}) & (level != before) & (l2 > floats{}) & (xl * xl * sum_l2[g] > sum_xl[g] * sum_xl[g] * l2);
                levels[g][i] = better ? level : before;
                sum_xl[g] = better ? xl : sum_xl[g];
                sum_l2[g] = better ? l2 : sum_l2[g];
                changed |= better;
            }
    }
    for (int g = 0; g < GROUPS; g++) {
        scales[g] = (~zero[g] & (sum_l2[g] > floats{})) ? sum_xl[g] / sum_l2[g] : floats{};
        for (int i = 0; i < 16; i++) levels[g][i] = zero[g] ? floats{} : levels[g][i] + 4.f;
    }
}

}  // namespace
