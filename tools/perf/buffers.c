/* SPDX-License-Identifier: Apache-2.0 */
#include "buffers.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { FILL = 0xa5 };

int perf_area_make(perf_area *a, gradsync_context *ctx, const perf_options *o, size_t most, int regions)
{
    gradsync_mem_config config = GRADSYNC_MEM_CONFIG_INIT;
    int rc;

    memset(a, 0, sizeof *a);
    a->regions = regions;
    a->pitch = (most + PERF_GUARD - 1) / PERF_GUARD * PERF_GUARD + PERF_GUARD;
    a->bytes = PERF_GUARD + a->pitch * (size_t)regions;
    if (a->pitch < most || a->bytes / (size_t)regions < a->pitch)
        return GRADSYNC_ERR_NOMEM;
    if (o->memory == PERF_MEMORY_LIBRARY) {
        rc = gradsync_mem_alloc(ctx, a->bytes, NULL, &a->mem);
        if (rc != 0)
            return rc;
        a->allocated = 1;
        a->base = gradsync_mem_addr(a->mem);
        memset(a->base, 0, a->bytes);
        return 0;
    }
    void *base;
    if (posix_memalign(&base, PERF_GUARD, a->bytes) != 0)
        return GRADSYNC_ERR_NOMEM;
    a->base = base;
    memset(a->base, 0, a->bytes); /* touched: page faults are not what is measured */
    if (o->memory == PERF_MEMORY_REMAP)
        config.flags = GRADSYNC_MEM_REMAP;
    if (o->memory == PERF_MEMORY_REMAP || o->register_memory) {
        rc = gradsync_mem_register(ctx, a->base, a->bytes, &config, &a->mem);
        if (rc != 0) {
            free(a->base);
            a->base = NULL;
            return rc;
        }
    }
    return 0;
}

void perf_area_free(perf_area *a)
{
    if (a->allocated) {
        gradsync_mem_free(a->mem);
    } else {
        if (a->mem)
            gradsync_mem_deregister(a->mem);
        free(a->base);
    }
    memset(a, 0, sizeof *a);
}

void *perf_area_at(const perf_area *a, int g)
{
    return a->base + PERF_GUARD + a->pitch * (size_t)g;
}

void perf_area_guard(perf_area *a, size_t used)
{
    memset(a->base, FILL, PERF_GUARD);
    for (int g = 0; g < a->regions; g++)
        memset((unsigned char *)perf_area_at(a, g) + used, FILL, PERF_GUARD);
}

static size_t changed(const unsigned char *at)
{
    size_t n = 0;

    for (size_t i = 0; i < PERF_GUARD; i++)
        n += at[i] != FILL;
    return n;
}

size_t perf_area_damage(const perf_area *a, size_t used)
{
    size_t n = changed(a->base);

    for (int g = 0; g < a->regions; g++)
        n += changed((const unsigned char *)perf_area_at(a, g) + used);
    return n;
}
