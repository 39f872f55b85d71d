// One variant of the kernels: setup.py compiles this file once for each, with LANES, VARIANT and the instructions that it may use.
// kernels.py calls what is exported here.

#include "merging.h"
#include "smallblocks.h"

#define JOINED(name, variant) name##_##variant
#define NAMED(name, variant) JOINED(name, variant)
#define EXPORT(result, name) extern "C" __attribute__((visibility("default"))) result NAMED(name, VARIANT)

namespace {

// ggml_type
enum Kind { KIND_F16 = 1, KIND_Q4_0 = 2, KIND_Q5_0 = 6, KIND_Q5_1 = 7, KIND_Q8_0 = 8, KIND_Q2_K = 10, KIND_Q3_K, KIND_Q4_K, KIND_Q5_K, KIND_Q6_K, KIND_BF16 = 30 };

// Denormal numbers count, and numbers are rounded to the nearest: libraries in this process may have told the processor otherwise.
struct UsualArithmetic {
#if defined(__SSE2__)
    unsigned before = _mm_getcsr();
    UsualArithmetic() { _mm_setcsr(0x1f80); }
    ~UsualArithmetic() { _mm_setcsr(before); }
#else
    UsualArithmetic() {}
    ~UsualArithmetic() {}
#endif
};

constexpr int64_t PIECE = 4096;  // weights that are looked at and then written, so that they are read from memory once

template <class Write> uint32_t in_pieces(const float *x, int64_t count, Write write) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i += PIECE) {
        const int64_t some = count - i < PIECE ? count - i : PIECE;
        const uint32_t here = largest_bits(x + i, some);
        largest = here > largest ? here : largest;
        write(x + i, i, some);
    }
    return largest;
}

// The blocks of some rows, which lie one after the other; the last few are filled up with zeros to as many as are made at once.
template <class Type> uint32_t write_blocks(uint8_t *out, const float *x, int64_t rows, int64_t columns, const float *importance) {
    constexpr int BLOCKS = Type::BLOCKS, WEIGHTS = Type::WEIGHTS, BYTES = Type::BYTES;
    static_assert(PIECE % (BLOCKS * WEIGHTS) == 0, "");
    const int64_t per_row = columns / WEIGHTS;
    return in_pieces(x, rows * columns, [&](const float *piece, int64_t start, int64_t count) {
        for (int64_t done = 0; done < count; done += BLOCKS * WEIGHTS) {
            const int64_t block = (start + done) / WEIGHTS, left = (count - done) / WEIGHTS, here = left < BLOCKS ? left : BLOCKS;
            const float *weights[BLOCKS];
            for (int b = 0; b < BLOCKS; b++) weights[b] = importance ? importance + (block + (b < here ? b : 0)) % per_row * WEIGHTS : nullptr;
            if (here == BLOCKS) {
                Type::write(out + block * BYTES, piece + done, weights);
            } else {
                float filled[BLOCKS * WEIGHTS] = {};
                uint8_t written[BLOCKS * BYTES];
                memcpy(filled, piece + done, sizeof(float) * WEIGHTS * (size_t)here);
                Type::write(written, filled, weights);
                memcpy(out + block * BYTES, written, BYTES * (size_t)here);
            }
        }
    });
}

template <template <bool> class Type> uint32_t write_blocks_of(uint8_t *out, const float *x, int64_t rows, int64_t columns, const float *importance) {
    return importance ? write_blocks<Type<true>>(out, x, rows, columns, importance) : write_blocks<Type<false>>(out, x, rows, columns, nullptr);
}
template <bool WEIGHED> using Q2Ks = OnLines<Q2K, WEIGHED>;
template <bool WEIGHED> using Q4Ks = OnLines<Q4K, WEIGHED>;
template <bool WEIGHED> using Q5Ks = OnLines<Q5K, WEIGHED>;

}  // namespace

// Rows of shape (rows, columns) as `kind`. Answers the bits of the largest magnitude among them, as largest() does.
EXPORT(uint32_t, quantize)(int32_t kind, const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance) {
    const UsualArithmetic usual;
    uint16_t *halves = (uint16_t *)out;
    switch (kind) {
    case KIND_F16: return in_pieces(x, rows * columns, [&](const float *piece, int64_t at, int64_t n) { narrow_f16(halves + at, piece, n); });
    case KIND_BF16: return in_pieces(x, rows * columns, [&](const float *piece, int64_t at, int64_t n) { narrow_bf16(halves + at, piece, n); });
    case KIND_Q4_0: return write_blocks<SmallBlocks<Q4_0>>(out, x, rows, columns, nullptr);
    case KIND_Q5_0: return write_blocks<SmallBlocks<Q5_0>>(out, x, rows, columns, nullptr);
    case KIND_Q5_1: return write_blocks<SmallBlocks<Q5_1>>(out, x, rows, columns, nullptr);
    case KIND_Q8_0: return write_blocks<SmallBlocks<Q8_0>>(out, x, rows, columns, nullptr);
    case KIND_Q2_K: return write_blocks_of<Q2Ks>(out, x, rows, columns, importance);
    case KIND_Q3_K: return write_blocks_of<Q3K>(out, x, rows, columns, importance);
    case KIND_Q4_K: return write_blocks_of<Q4Ks>(out, x, rows, columns, importance);
    case KIND_Q5_K: return write_blocks_of<Q5Ks>(out, x, rows, columns, importance);
    case KIND_Q6_K: return write_blocks_of<Q6K>(out, x, rows, columns, importance);
    }
    return largest_bits(x, rows * columns);
}

EXPORT(void, add_product)(float *rows, const float *b, const float *a, int64_t count, int64_t columns, int64_t rank, float scale) {
    const UsualArithmetic usual;
    add_product(rows, b, a, count, columns, rank, scale);
}

EXPORT(void, row_lengths)(const float *rows, float *lengths, int64_t count, int64_t columns) {
    const UsualArithmetic usual;
    for (int64_t r = 0; r < count; r++) lengths[r] = row_length(rows + r * columns, columns);
}

EXPORT(uint32_t, largest)(const float *values, int64_t count) { return largest_bits(values, count); }
EXPORT(void, widen_bf16)(const uint16_t *from, float *to, int64_t count) { widen_bf16(to, from, count); }
EXPORT(void, narrow_bf16)(const float *from, uint16_t *to, int64_t count) { narrow_bf16(to, from, count); }
EXPORT(void, widen_f16)(const uint16_t *from, float *to, int64_t count) {
    const UsualArithmetic usual;
    widen_f16(to, from, count);
}
EXPORT(void, narrow_f16)(const float *from, uint16_t *to, int64_t count) {
    const UsualArithmetic usual;
    narrow_f16(to, from, count);
}
