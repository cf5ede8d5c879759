/* SPDX-License-Identifier: Apache-2.0 */
/* Monotonic time and deadlines, in nanoseconds. */
#ifndef GSI_BASE_CLOCK_H
#define GSI_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t gsi_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The deadline `ms` milliseconds from `now`, without overflow for any int64. */
static inline int64_t gsi_deadline_ns(int64_t now, int64_t ms)
{
    return ms > (INT64_MAX - now) / 1000000 ? INT64_MAX : now + ms * 1000000;
}

#endif
