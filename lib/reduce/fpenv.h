/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The floating-point environment that the kernels compute in: round to nearest
 * even, denormals kept, no traps. A host process may have set another one (flush
 * to zero is common in training frameworks); it is put back as it was. Reading
 * the register is cheap, writing it is not, so it is written only if it differs.
 */
#ifndef GSI_REDUCE_FPENV_H
#define GSI_REDUCE_FPENV_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>

#define FPENV_CONTROL 0xffc0u /* DAZ, exception masks, rounding, FTZ; the rest are sticky flags */
#define FPENV_DEFAULT 0x1f80u

static inline uint64_t fpenv_read(void)
{
    return _mm_getcsr();
}

static inline void fpenv_write(uint64_t env)
{
    _mm_setcsr((unsigned)env);
}

#elif defined(__aarch64__)
#define FPENV_CONTROL (~UINT64_C(0))
#define FPENV_DEFAULT 0u

static inline uint64_t fpenv_read(void)
{
    uint64_t env;
    __asm__ volatile("mrs %0, fpcr" : "=r"(env) : : "memory");
    return env;
}

static inline void fpenv_write(uint64_t env)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(env) : "memory");
}

#else /* no tier of ours sets anything there: the host process's environment is used */
#define FPENV_CONTROL 0u
#define FPENV_DEFAULT 0u

static inline uint64_t fpenv_read(void)
{
    return 0;
}

static inline void fpenv_write(uint64_t env)
{
    (void)env;
}
#endif

static inline int fpenv_is_default(void)
{
    return __builtin_expect((fpenv_read() & FPENV_CONTROL) == FPENV_DEFAULT, 1);
}

/* Returns what fpenv_leave() needs. The arithmetic between the two must be in
 * functions that are not inlined here, so that none of it can move out. */
static inline uint64_t fpenv_enter(void)
{
    uint64_t env = fpenv_read();
    if (__builtin_expect((env & FPENV_CONTROL) != FPENV_DEFAULT, 0))
        fpenv_write(FPENV_DEFAULT);
    return env;
}

static inline void fpenv_leave(uint64_t env)
{
    if (__builtin_expect((env & FPENV_CONTROL) != FPENV_DEFAULT, 0))
        fpenv_write(env);
}

#endif
