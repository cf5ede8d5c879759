/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cpu.h"

#include <pthread.h>
#include <stdatomic.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static uint64_t first_ticks;
static int64_t first_ns;
static _Atomic double us_per_tick;

static void start(void)
{
    first_ns = gsi_now_ns();
    first_ticks = gsi_ticks();
}

void gsi_ticks_start(void)
{
    pthread_once(&once, start);
}

/* The rate is taken anew until it rests on 20 ms, then kept; and never on less than 100 us. */
double gsi_ticks_us(uint64_t ticks)
{
    double rate = atomic_load_explicit(&us_per_tick, memory_order_relaxed);

    if (rate == 0) {
        int64_t ns;
        gsi_ticks_start();
        do
            ns = gsi_now_ns() - first_ns;
        while (ns < 100000);
        rate = (double)ns / 1000 / (double)(gsi_ticks() - first_ticks);
        if (ns > 20000000)
            atomic_store_explicit(&us_per_tick, rate, memory_order_relaxed);
    }
    return (double)ticks * rate;
}
