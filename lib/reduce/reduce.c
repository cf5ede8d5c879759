/* SPDX-License-Identifier: Apache-2.0 */
/* The table of tiers, and the choice of one. */
#include "reduce/internal.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* From the reference to the fastest. */
static const gsi_reduce_tier *const tiers[] = {
    &gsi_reduce_tier_c,
#if defined(__x86_64__)
    &gsi_reduce_tier_avx2,
    &gsi_reduce_tier_avx512,
#elif defined(__aarch64__)
    &gsi_reduce_tier_neon,
#endif
};
#define TIERS ((int)(sizeof tiers / sizeof *tiers))

/* NULL until the first call. Threads that race to be first choose the same, and all
 * it points to is constant, so relaxed order will do. */
static _Atomic(const gsi_reduce_tier *) chosen;

const gsi_reduce_tier *gsi_reduce_tier_at(int index)
{
    return index >= 0 && index < TIERS ? tiers[index] : NULL;
}

/* A name that this build or CPU does not have is passed over. */
static const gsi_reduce_tier *choose(void)
{
    const char *wanted = getenv("GRADSYNC_CPU_TIER");
    const gsi_reduce_tier *best = tiers[0], *none = NULL;

    for (int i = 0; i < TIERS; i++) {
        if (!tiers[i]->supported())
            continue;
        if (wanted && !strcmp(wanted, tiers[i]->name)) {
            best = tiers[i];
            break;
        }
        if (!GSI_REDUCE_SANITIZED)
            best = tiers[i];
    }
    /* The first choice stays, even if the environment changed meanwhile. */
    if (!atomic_compare_exchange_strong_explicit(&chosen, &none, best, memory_order_relaxed, memory_order_relaxed))
        best = none;
    return best;
}

const gsi_reduce_tier *gsi_reduce_tier_best(void)
{
    const gsi_reduce_tier *tier = atomic_load_explicit(&chosen, memory_order_relaxed);

    return __builtin_expect(tier != NULL, 1) ? tier : choose();
}

void gsi_reduce(const gsi_reduce_args *args)
{
    gsi_reduce_tier_best()->reduce(args);
}

void gsi_copy(void *const *dst, uint32_t ndst, const void *src, uint64_t bytes, int nt)
{
    gsi_reduce_tier_best()->copy(dst, ndst, src, bytes, nt);
}
