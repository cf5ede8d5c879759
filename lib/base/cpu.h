/* SPDX-License-Identifier: Apache-2.0 */
/* A pause in a spin loop, and a cheap monotonic tick counter. */
#ifndef GSI_BASE_CPU_H
#define GSI_BASE_CPU_H

#include <stdint.h>

#include "base/clock.h"

static inline void gsi_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Ticks of an unspecified but constant rate: a few ns to read, where a clock call costs
 * tens. gsi_ticks_us() converts a difference. */
static inline uint64_t gsi_ticks(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t t;
    __asm__ __volatile__("mrs %0, cntvct_el0" : "=r"(t));
    return t;
#else
    return (uint64_t)gsi_now_ns();
#endif
}

/* Microseconds of a tick difference. Measured against the clock since the first call
 * of gsi_ticks_start() in this process; exact to a part in 1,000 after a millisecond. */
void gsi_ticks_start(void);
double gsi_ticks_us(uint64_t ticks);

#endif
