/* SPDX-License-Identifier: Apache-2.0 */
#include "base/alloc.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static atomic_long count, fail_at;

static int fails(void)
{
    long at = atomic_load_explicit(&fail_at, memory_order_relaxed);
    if (!at)
        return 0;
    return atomic_fetch_add_explicit(&count, 1, memory_order_relaxed) + 1 == at;
}

void gsi_alloc_fail_at(long n)
{
    atomic_store(&count, 0);
    atomic_store(&fail_at, n);
}

long gsi_alloc_count(void)
{
    return atomic_load(&count);
}

void *gsi_calloc(size_t n, size_t size)
{
    return fails() ? NULL : calloc(n, size);
}

void *gsi_realloc(void *p, size_t size)
{
    return fails() ? NULL : realloc(p, size);
}

char *gsi_strdup(const char *s)
{
    return fails() ? NULL : strdup(s);
}

void *gsi_calloc_aligned(size_t size)
{
    if (fails() || size > SIZE_MAX - 63)
        return NULL;
    size = (size + 63) & ~(size_t)63;
    void *p = aligned_alloc(64, size ? size : 64);
    if (p)
        memset(p, 0, size);
    return p;
}
