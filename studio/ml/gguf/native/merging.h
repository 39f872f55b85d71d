// What an adapter adds to weights, the lengths of rows, and types of weights into each other. fallback.py does the same in numpy.
#pragma once

#include <cstdlib>

#include "lanes.h"

namespace {

// Bits of the largest magnitude of `count` values. As integers, magnitudes are in order; infinity and what is no number come last.
INLINE uint32_t largest_bits(const float *values, int64_t count) {
    ints most[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int k = 0; k < 4; k++) {
            const ints bits = (ints)load(values + i + k * LANES) & 0x7fffffff;
            most[k] = bits > most[k] ? bits : most[k];
        }
    int32_t found = 0;
    for (int k = 0; k < 4; k++)
        for (int lane = 0; lane < LANES; lane++) found = most[k][lane] > found ? most[k][lane] : found;
    for (; i < count; i++) {
        const int32_t bits = (int32_t)(bits_of(values[i]) & 0x7fffffffu);
        found = bits > found ? bits : found;
    }
    return (uint32_t)found;
}

// ROWS × (VECTORS · LANES) elements of rows += scale · (b @ a), their sums in registers. Rows of a lie `stride` apart.
template <int ROWS, int VECTORS>
INLINE void add_tile(float *rows, int64_t columns, const float *b, const float *a, int64_t stride, int64_t rank, float scale) {
    floats sums[ROWS][VECTORS] = {};
    for (int64_t k = 0; k < rank; k++) {
        floats factors[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) factors[v] = load(a + k * stride + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) sums[r][v] += b[r * rank + k] * factors[v];
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) {
            float *at = rows + r * columns + v * LANES;
            store(at, load(at) + scale * sums[r][v]);
        }
}

template <int VECTORS>
INLINE void add_stripe(float *rows, int64_t count, int64_t columns, const float *b, const float *a, int64_t stride, int64_t rank, float scale) {
    int64_t r = 0;
    for (; r + 4 <= count; r += 4) add_tile<4, VECTORS>(rows + r * columns, columns, b + r * rank, a, stride, rank, scale);
    for (; r < count; r++) add_tile<1, VECTORS>(rows + r * columns, columns, b + r * rank, a, stride, rank, scale);
}

// Stripes of a few vectors' width, so that the part of a that all rows need stays in the nearest cache. That part is
// copied first: rows that lie a power of two apart would push each other out. Without the memory for it, this is only slower.
INLINE void add_product(float *rows, const float *b, const float *a, int64_t count, int64_t columns, int64_t rank, float scale) {
    constexpr int VECTORS = LANES == 16 ? 4 : 2, WIDTH = VECTORS * LANES;
    float *copied = rank > 4 && count > 16 ? (float *)malloc(sizeof(float) * WIDTH * (size_t)rank) : nullptr;
    int64_t c = 0;
    for (; c + WIDTH <= columns; c += WIDTH) {
        if (copied)
            for (int64_t k = 0; k < rank; k++) memcpy(copied + k * WIDTH, a + k * columns + c, sizeof(float) * WIDTH);
        add_stripe<VECTORS>(rows + c, count, columns, b, copied ? copied : a + c, copied ? WIDTH : columns, rank, scale);
    }
    free(copied);
    for (; c + LANES <= columns; c += LANES) add_stripe<1>(rows + c, count, columns, b, a + c, columns, rank, scale);
    for (; c < columns; c++)
        for (int64_t r = 0; r < count; r++) {
            float sum = 0;
            for (int64_t k = 0; k < rank; k++) sum += b[r * rank + k] * a[k * columns + c];
            rows[r * columns + c] += scale * sum;
        }
}

// Sixteen running sums of squares, column i in sum i modulo 16; then halves are added to each other, 8, 4, 2 and 1 apart.
INLINE float row_length(const float *row, int64_t columns) {
    constexpr int SUMS = 16, VECTORS = SUMS / LANES;
    floats sums[VECTORS] = {};
    int64_t i = 0;
    for (; i + SUMS <= columns; i += SUMS)
        for (int v = 0; v < VECTORS; v++) {
            const floats values = load(row + i + v * LANES);
            sums[v] += values * values;
        }
    float parts[SUMS];
    memcpy(parts, sums, sizeof parts);
    for (int k = 0; i + k < columns; k++) parts[k] += row[i + k] * row[i + k];
    for (int width = SUMS / 2; width > 0; width /= 2)
        for (int k = 0; k < width; k++) parts[k] += parts[k + width];
    return __builtin_sqrtf(parts[0]);
}

INLINE void widen_bf16(float *to, const uint16_t *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = float_of((uint32_t)from[i] << 16);
}

INLINE void narrow_bf16(uint16_t *to, const float *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = (uint16_t)((bits_of(from[i]) + 0x7fffu + (bits_of(from[i]) >> 16 & 1u)) >> 16);
}

INLINE void widen_f16(float *to, const uint16_t *from, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        halves stored;
        memcpy(&stored, from + i, sizeof stored);
        store(to + i, widened(stored));
    }
    for (; i < count; i++) to[i] = widened(from[i]);
}

INLINE void narrow_f16(uint16_t *to, const float *from, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const halves narrow = narrowed(load(from + i));
        memcpy(to + i, &narrow, sizeof narrow);
    }
    for (; i < count; i++) to[i] = narrowed(from[i]);
}

}  // namespace
