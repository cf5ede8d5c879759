/* SPDX-License-Identifier: Apache-2.0 */
/* Telling a forked child from the process that made something: the child has the memory and the
 * descriptors, but not the threads, and must not act in its parent's name. */
#ifndef GSI_BASE_PROCESS_H
#define GSI_BASE_PROCESS_H

#include <stdatomic.h>
#include <stdint.h>

extern _Atomic uint32_t gsi_forks; /* how many forks lie between the first process and this one */

/* Starts the counting; before the first gsi_process(). */
void gsi_process_start(void);

/* Equal for as long as it is the same process. As cheap as a load. */
static inline uint32_t gsi_process(void)
{
    return atomic_load_explicit(&gsi_forks, memory_order_relaxed);
}

#endif
