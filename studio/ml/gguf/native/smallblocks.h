// Q4_0, Q5_0, Q5_1 and Q8_0 without an importance: 32 weights and a scale. Source: llama.cpp, ggml/src/ggml-quants.c, quantize_row_…_ref.
#pragma once

#include "kquants.h"

namespace {

// What fits into a whole number; zero for the rest, whose last byte is zero after x86's conversion too.
INLINE floats fitting(floats a) { return magnitude(a) < all(0x1p31f) ? a : floats{}; }
INLINE ints truncated(floats a) { return __builtin_convertvector(a, ints); }

// LANES blocks of 32 weights; `Type` says how one is written, from what find() says of it.
template <class Type> struct SmallBlocks {
    static constexpr int WEIGHTS = 32, BYTES = Type::BYTES, BLOCKS = LANES;

    static void write(uint8_t *out, const float *x, const float *const *) {
        floats columns[32];
        load_columns(columns, [&](int k) { return x + k * 32; });
        floats d, m;
        Type::find(d, m, columns);
        const floats inverse = d != floats{} ? 1.f / d : floats{};
        for (int b = 0; b < LANES; b++) Type::write(out + b * BYTES, x + b * 32, d[b], m[b], inverse[b]);
    }
};

INLINE void write_half(uint8_t *out, float value) {
    const uint16_t half = narrowed(value);
    memcpy(out, &half, 2);
}

struct Q8_0 {
    static constexpr int BYTES = 34;
    INLINE void find(floats &d, floats &m, const floats (&x)[32]) {
        m = floats{};
        for (int i = 0; i < 32; i++) m = larger(m, magnitude(x[i]));
        d = m / 127.f;
    }
    INLINE void write(uint8_t *out, const float *x, float d, float, float inverse) {
        write_half(out, d);
        for (int i = 0; i < 32; i += LANES) {
            const floats scaled = fitting(load(x + i) * inverse), whole = __builtin_convertvector(truncated(scaled), floats), rest = scaled - whole;
            // roundf: halves go away from zero
            const ints level = truncated(whole + (rest >= all(0.5f) ? all(1) : floats{}) - (rest <= all(-0.5f) ? all(1) : floats{}));
            const bytes narrow = __builtin_convertvector(level, bytes);
            memcpy(out + 2 + i, &narrow, sizeof narrow);
        }
    }
};

// Bytes 0 … 31 of levels, as ggml computes them: (x − least) · inverse + a half, towards zero, in eight bits.
INLINE void half_up(uint8_t *levels, const float *x, float least, float inverse, float half, int top) {
    for (int i = 0; i < 32; i += LANES) {
        ints level = truncated(fitting((load(x + i) - least) * inverse + half)) << 24 >> 24;
        level = level < top ? level : ints{} + top;
        const bytes narrow = __builtin_convertvector(level & 255, bytes);
        memcpy(levels + i, &narrow, sizeof narrow);
    }
}
INLINE void pack_nibbles(uint8_t *out, const uint8_t *levels) {
    for (int i = 0; i < 16; i++) out[i] = (uint8_t)((levels[i] & 15) | (levels[i + 16] & 15) << 4);
}
INLINE void pack_fifth_bits(uint8_t *out, const uint8_t *levels) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++) bits |= (uint32_t)(levels[i] >> 4 & 1) << i;
    memcpy(out, &bits, 4);
}

struct Q4_0 {
    static constexpr int BYTES = 18;
    INLINE void find(floats &d, floats &m, const floats (&x)[32]) {
        find_most(m, x);
        d = m / -8.f;
    }
    INLINE void write(uint8_t *out, const float *x, float d, float, float inverse) {
        uint8_t levels[32];
        half_up(levels, x, 0, inverse, 8.5f, 15);
        write_half(out, d);
        for (int i = 0; i < 16; i++) out[2 + i] = (uint8_t)(levels[i] | levels[i + 16] << 4);
    }
};

struct Q5_0 {
    static constexpr int BYTES = 22;
    INLINE void find(floats &d, floats &m, const floats (&x)[32]) {
        find_most(m, x);
        d = m / -16.f;
    }
    INLINE void write(uint8_t *out, const float *x, float d, float, float inverse) {
        uint8_t levels[32];
        half_up(levels, x, 0, inverse, 16.5f, 31);
        write_half(out, d);
        pack_fifth_bits(out + 2, levels);
        pack_nibbles(out + 6, levels);
    }
};

struct Q5_1 {
    static constexpr int BYTES = 24;
    INLINE void find(floats &d, floats &m, const floats (&x)[32]) {
        floats most = m = x[0];
        for (int i = 1; i < 32; i++) {
            m = smaller(x[i], m);
            most = larger(x[i], most);
        }
        d = (most - m) / 31.f;
    }
    INLINE void write(uint8_t *out, const float *x, float d, float m, float inverse) {
        uint8_t levels[32];
        half_up(levels, x, m, inverse, 0.5f, 255);
        write_half(out, d);
        write_half(out + 2, m);
        pack_fifth_bits(out + 4, levels);
        pack_nibbles(out + 8, levels);
    }
};

}  // namespace
