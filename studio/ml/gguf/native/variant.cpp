// One variant of the kernels: setup.py compiles this file once for each, with LANES, VARIANT and the instructions that it may use.
// kernels.py calls what is exported here.

#include "kquants.h"
#include "merging.h"

#define JOINED(name, variant) name##_##variant
#define NAMED(name, variant) JOINED(name, variant)
#define EXPORT(result, name) extern "C" __attribute__((visibility("default"))) result NAMED(name, VARIANT)

namespace {

// ggml_type
enum Kind { F16 = 1, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30 };

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

// All blocks of some rows, which lie one after the other; the last few are filled up with zeros to as many as are made at once.
template <class Type> void write_blocks(uint8_t *out, const float *x, int64_t blocks) {
    int64_t b = 0;
    for (; b + Type::BLOCKS <= blocks; b += Type::BLOCKS) Type::write(out + b * Type::BYTES, x + b * BLOCK, nullptr);
    if (b >= blocks) return;
    float filled[Type::BLOCKS * BLOCK] = {};
    uint8_t written[Type::BLOCKS * Type::BYTES];
    memcpy(filled, x + b * BLOCK, (size_t)(blocks - b) * BLOCK * sizeof(float));
    Type::write(written, filled, nullptr);
    memcpy(out + b * Type::BYTES, written, (size_t)((blocks - b) * Type::BYTES));
}

}  // namespace

// Rows of shape (rows, columns) as `kind`. Answers the bits of the largest magnitude among them, as largest() does.
EXPORT(uint32_t, quantize)(int32_t kind, const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *) {
    const UsualArithmetic usual;
    const int64_t count = rows * columns;
    const uint32_t largest = largest_bits(x, count);
    switch (kind) {
    case F16: narrow_f16((uint16_t *)out, x, count); break;
    case BF16: narrow_bf16((uint16_t *)out, x, count); break;
    case Q4_K: write_blocks<Lines<Q4K>>(out, x, count / BLOCK); break;
    case Q5_K: write_blocks<Lines<Q5K>>(out, x, count / BLOCK); break;
    case Q6_K: write_blocks<Q6K>(out, x, count / BLOCK); break;
    }
    return largest;
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
