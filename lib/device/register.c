/* SPDX-License-Identifier: Apache-2.0 */
/* The register of known memory: ranges sorted by address. */
#include "device/device.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

static atomic_uint last_id;

int gsi_register_init(gsi_register *reg)
{
    *reg = (gsi_register){0};
    return pthread_mutex_init(&reg->lock, NULL) ? gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a lock") : 0;
}

void gsi_register_free(gsi_register *reg)
{
    free(reg->entries);
    pthread_mutex_destroy(&reg->lock);
}

/* The index of the first entry that ends after addr. */
static size_t first_after(const gsi_register *reg, const char *addr)
{
    size_t low = 0, high = reg->count;
    while (low < high) {
        size_t mid = (low + high) / 2;
        const gsi_memory *m = reg->entries[mid];
        if (m->addr + m->bytes <= addr)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

int gsi_register_add(gsi_register *reg, gsi_memory *mem)
{
    int rc = 0;

    pthread_mutex_lock(&reg->lock);
    size_t at = first_after(reg, mem->addr);
    if (at < reg->count && reg->entries[at]->addr < mem->addr + mem->bytes) {
        const gsi_memory *other = reg->entries[at];
        rc = gsi_fail(GRADSYNC_ERR_INVALID,
                      "memory at %p overlaps what is registered at %p (%llu bytes); register every range once",
                      (void *)mem->addr, (void *)other->addr, (unsigned long long)other->bytes);
    } else if (reg->count == reg->room) {
        size_t room = reg->room ? 2 * reg->room : 16;
        gsi_memory **bigger = gsi_realloc(reg->entries, room * sizeof *bigger);
        if (bigger)
            reg->entries = bigger, reg->room = room;
        else
            rc = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to note a registration");
    }
    if (!rc) {
        memmove(reg->entries + at + 1, reg->entries + at, (reg->count - at) * sizeof *reg->entries);
        reg->entries[at] = mem;
        reg->count++;
        do
            mem->id = atomic_fetch_add(&last_id, 1) + 1;
        while (!mem->id);
        mem->users = 0;
    }
    pthread_mutex_unlock(&reg->lock);
    return rc;
}

static int in_use(const gsi_memory *mem)
{
    return mem->users
               ? gsi_fail(GRADSYNC_ERR_INVALID, "memory at %p is used by %d collectives in flight; wait for them first",
                          (void *)mem->addr, mem->users)
               : 0;
}

int gsi_register_begin_change(gsi_register *reg, gsi_memory *mem)
{
    pthread_mutex_lock(&reg->lock);
    int rc = in_use(mem);
    if (!rc)
        mem->changing = 1;
    pthread_mutex_unlock(&reg->lock);
    return rc;
}

void gsi_register_end_change(gsi_register *reg, gsi_memory *mem, const gsi_memory *now)
{
    pthread_mutex_lock(&reg->lock);
    uint32_t id = mem->id;
    *mem = *now;
    mem->id = id;
    mem->users = mem->changing = 0;
    pthread_mutex_unlock(&reg->lock);
}

int gsi_register_remove(gsi_register *reg, gsi_memory *mem)
{
    pthread_mutex_lock(&reg->lock);
    size_t at = first_after(reg, mem->addr);
    int rc = in_use(mem);
    if (!rc && at < reg->count && reg->entries[at] == mem)
        memmove(reg->entries + at, reg->entries + at + 1, (--reg->count - at) * sizeof *reg->entries);
    pthread_mutex_unlock(&reg->lock);
    return rc;
}

gsi_memory *gsi_register_get(gsi_register *reg, const void *addr, uint64_t bytes)
{
    gsi_memory *found = NULL;

    pthread_mutex_lock(&reg->lock);
    size_t at = first_after(reg, addr);
    if (at < reg->count) {
        gsi_memory *m = reg->entries[at];
        if (!m->changing && m->addr <= (const char *)addr &&
            bytes <= m->bytes - (uint64_t)((const char *)addr - m->addr))
            found = m, m->users++;
    }
    pthread_mutex_unlock(&reg->lock);
    return found;
}

void gsi_register_put(gsi_register *reg, gsi_memory *mem)
{
    pthread_mutex_lock(&reg->lock);
    mem->users--;
    pthread_mutex_unlock(&reg->lock);
}
