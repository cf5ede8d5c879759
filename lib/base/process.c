/* SPDX-License-Identifier: Apache-2.0 */
#include "base/process.h"

#include <pthread.h>

_Atomic uint32_t gsi_forks;

static void in_child(void)
{
    atomic_fetch_add_explicit(&gsi_forks, 1, memory_order_relaxed);
}

static void start(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

void gsi_process_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start);
}
