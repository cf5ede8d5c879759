/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/shm/peermem.h"

#include <stdlib.h>

#include "base/alloc.h"

static size_t home(const shm_mappings *m, uint32_t id)
{
    return (id * 0x9e3779b1u) & (m->room - 1);
}

/* Where id is, or the empty place where it would be. room > count always. */
static size_t place_of(const shm_mappings *m, uint32_t id)
{
    size_t at = home(m, id);
    while (m->table[at].id && m->table[at].id != id)
        at = (at + 1) & (m->room - 1);
    return at;
}

shm_mapping *shm_mappings_find(const shm_mappings *m, uint32_t id)
{
    if (!m->room)
        return NULL;
    size_t at = place_of(m, id);
    return m->table[at].id ? &m->table[at] : NULL;
}

static int grow(shm_mappings *m)
{
    shm_mappings bigger = {.room = m->room ? 2 * m->room : 16, .count = m->count};
    bigger.table = gsi_calloc(bigger.room, sizeof *bigger.table);
    if (!bigger.table)
        return -1;
    for (size_t i = 0; i < m->room; i++)
        if (m->table[i].id)
            bigger.table[place_of(&bigger, m->table[i].id)] = m->table[i];
    free(m->table);
    *m = bigger;
    return 0;
}

shm_mapping *shm_mappings_add(shm_mappings *m, uint32_t id)
{
    if (2 * (m->count + 1) > m->room && grow(m))
        return NULL;
    shm_mapping *entry = &m->table[place_of(m, id)];
    *entry = (shm_mapping){.id = id};
    m->count++;
    return entry;
}

void shm_mappings_remove(shm_mappings *m, uint32_t id)
{
    if (!shm_mappings_find(m, id))
        return;
    size_t hole = place_of(m, id);
    m->count--;
    /* Entries behind the hole move up if their home is not between the hole and them (Knuth 6.4 R). */
    for (size_t at = (hole + 1) & (m->room - 1); m->table[at].id; at = (at + 1) & (m->room - 1)) {
        size_t from_home = (at - home(m, m->table[at].id)) & (m->room - 1);
        if (from_home >= ((at - hole) & (m->room - 1))) {
            m->table[hole] = m->table[at];
            hole = at;
        }
    }
    m->table[hole] = (shm_mapping){0};
}
