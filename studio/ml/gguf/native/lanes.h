// Vectors of LANES float32 and the few operations that the kernels need. Compiled once for each width: 16, 8 and 4.
//
// Each lane does what scalar code would do, operation by operation, so that the bytes are the same at every width. That is why nothing
// here may be compiled with -ffast-math or with fused multiplications (-ffp-contract=off). Everything is in an anonymous namespace: the
// variants are linked into one library, and no function of one may stand in for another's.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#ifndef LANES
#error "LANES is 16, 8 or 4"
#endif
#define INLINE static inline __attribute__((always_inline))

namespace {

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));

constexpr float MAGIC = 12582912.f;  // 1.5 · 2^23: a float32 this large has no bits left for fractions
constexpr float WRAPS_AT = 4194303.f;  // nearest() is exact up to here

INLINE floats all(float value) { return value - floats{}; }  // not +: that would turn −0 into 0
INLINE floats load(const float *from) {
    floats values;
    memcpy(&values, from, sizeof values);
    return values;
}
INLINE void store(float *to, floats values) { memcpy(to, &values, sizeof values); }

// a < b ? a : b and a > b ? a : b, which is what x86's own instructions do, also for what is no number. GCC does not see that.
INLINE floats smaller(floats a, floats b) {
#if defined(__AVX512F__) && LANES == 16
    return (floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__) && LANES == 8
    return (floats)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__) && LANES == 4
    return (floats)_mm_min_ps((__m128)a, (__m128)b);
#else
    return a < b ? a : b;
#endif
}
INLINE floats larger(floats a, floats b) {
#if defined(__AVX512F__) && LANES == 16
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__) && LANES == 8
    return (floats)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__) && LANES == 4
    return (floats)_mm_max_ps((__m128)a, (__m128)b);
#else
    return a > b ? a : b;
#endif
}
INLINE floats magnitude(floats a) { return (floats)((ints)a & 0x7fffffff); }
INLINE floats root(floats a) {
    for (int k = 0; k < LANES; k++) a[k] = __builtin_sqrtf(a[k]);
    return a;
}

// True where any lane of a comparison is.
INLINE bool any(ints mask) {
#if defined(__AVX512DQ__) && LANES == 16
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX__) && LANES == 8
    return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__SSE2__) && LANES == 4
    return _mm_movemask_ps((__m128)mask) != 0;
#else
    uint64_t parts[LANES / 2], found = 0;
    memcpy(parts, &mask, sizeof mask);
    for (int k = 0; k < LANES / 2; k++) found |= parts[k];
    return found != 0;
#endif
}

// Rounded to the nearest whole number, to even where two are as near; for magnitudes below WRAPS_AT.
INLINE floats rounded(floats a) { return (a + MAGIC) - MAGIC; }

// ggml's nearest_int (ggml-quants.c), also where it wraps around, at infinity and for what is not a number.
INLINE floats nearest(floats a) { return (floats)(((ints)(a + MAGIC) & 0x007fffff) | 0x4b000000) - MAGIC; }
INLINE int nearest(float a) {
    const float shifted = a + MAGIC;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return (bits & 0x007fffff) - 0x00400000;
}

// Float16 and back as IEEE 754 has it, to even where two are as near. Source of the bit operations: ggml-impl.h.
INLINE uint32_t bits_of(float a) {
    uint32_t bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}
INLINE float float_of(uint32_t bits) {
    float a;
    memcpy(&a, &bits, sizeof a);
    return a;
}
INLINE uint16_t narrowed(float a) {
    const uint32_t twice = bits_of(a) << 1, exponent = twice & 0xff000000u;
    const float shifted = (float_of(bits_of(a) & 0x7fffffffu) * 0x1p+112f) * 0x1p-110f;  // too large becomes infinite here
    const uint32_t bits = bits_of(float_of(((exponent < 0x71000000u ? 0x71000000u : exponent) >> 1) + 0x07800000u) + shifted);
    const uint32_t unsigned_half = ((bits >> 13) & 0x7c00u) + (bits & 0x0fffu);
    return (uint16_t)((bits_of(a) >> 16 & 0x8000u) | (twice > 0xff000000u ? 0x7e00u : unsigned_half));
}
INLINE float widened(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16, twice = bits << 1;
    const float normal = float_of((twice >> 4) + 0x70000000u) * 0x1p-112f, denormal = float_of((twice >> 17) | 0x3f000000u) - 0.5f;
    return float_of((bits & 0x80000000u) | bits_of(twice < 0x08000000u ? denormal : normal));
}
INLINE halves narrowed(floats a) {
#if defined(__AVX512F__) && LANES == 16
    return (halves)_mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__) && LANES == 8
    return (halves)_mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__ARM_NEON) && defined(__aarch64__) && LANES == 4
    return (halves)vcvt_f16_f32((float32x4_t)a);
#else
    const ints bits = (ints)a, size = bits & 0x7fffffff, exponent = size & 0x7f800000;
    const floats shifted = (magnitude(a) * 0x1p+112f) * 0x1p-110f;
    const ints sum = (ints)((floats)((exponent > 0x38800000 ? exponent : ints{} + 0x38800000) + 0x07800000) + shifted);
    const ints half = (sum >> 13 & 0x7c00) + (sum & 0x0fff);
    return __builtin_convertvector((words)((bits >> 16 & 0x8000) | (size > 0x7f800000 ? ints{} + 0x7e00 : half)), halves);
#endif
}
INLINE floats widened(halves a) {
#if defined(__AVX512F__) && LANES == 16
    return (floats)_mm512_cvtph_ps((__m256i)a);
#elif defined(__F16C__) && LANES == 8
    return (floats)_mm256_cvtph_ps((__m128i)a);
#elif defined(__ARM_NEON) && defined(__aarch64__) && LANES == 4
    return (floats)vcvt_f32_f16((float16x4_t)a);
#else
    floats result;
    for (int k = 0; k < LANES; k++) result[k] = widened((uint16_t)a[k]);
    return result;
#endif
}

// Lane k of row i becomes lane i of row k, in log2(LANES) rounds that swap ever smaller squares.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES 1
#endif
#endif
#ifdef SHUFFLES
template <int... K> struct Numbers {};
template <int N, int... K> struct Counted : Counted<N - 1, N - 1, K...> {};
template <int... K> struct Counted<0, K...> { typedef Numbers<K...> type; };

template <int WIDTH, int... K> INLINE void swap_squares(floats &upper, floats &lower, Numbers<K...>) {
    const floats first = __builtin_shufflevector(upper, lower, (K & WIDTH ? K - WIDTH + LANES : K)...);
    lower = __builtin_shufflevector(upper, lower, (K & WIDTH ? K + LANES : K + WIDTH)...);
    upper = first;
}
template <int WIDTH> INLINE void transpose(floats (&rows)[LANES]) {
    if constexpr (WIDTH > 0) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & WIDTH)) swap_squares<WIDTH>(rows[i], rows[i + WIDTH], typename Counted<LANES>::type{});
        transpose<WIDTH / 2>(rows);
    }
}
INLINE void transpose(floats (&rows)[LANES]) { transpose<LANES / 2>(rows); }
#else
INLINE void transpose(floats (&rows)[LANES]) {
    float from[LANES][LANES], to[LANES][LANES];
    memcpy(from, rows, sizeof from);
    for (int i = 0; i < LANES; i++)
        for (int k = 0; k < LANES; k++) to[k][i] = from[i][k];
    memcpy(rows, to, sizeof to);
}
#endif

}  // namespace
