// Which variants this library holds and this processor can run. Compiled for the oldest processor, unlike the variants.

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

#if defined(__x86_64__)
EXPORT int32_t runs_avx512() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}
EXPORT int32_t runs_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") != 0;  // F16C is older than AVX2, and no processor has the one without the other
}
#endif
EXPORT int32_t runs_plain() { return 1; }
