/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of peers that this rank has mapped, found by (peer, id). */
#ifndef GSI_SHM_PEERMEM_H
#define GSI_SHM_PEERMEM_H

#include <stddef.h>
#include <stdint.h>

typedef struct shm_mapping {
    uint32_t id;        /* 0: an empty place */
    uint32_t next_peer; /* own memory: the peers below have been told */
    void *base;
    uint64_t bytes;
    int error; /* errno: why it could not be mapped */
} shm_mapping;

/* A hash table by id, open addressing; ids are never 0. Zeroed is empty. */
typedef struct shm_mappings {
    shm_mapping *table;
    size_t room, count; /* room is a power of two, or 0 */
} shm_mappings;

shm_mapping *shm_mappings_find(const shm_mappings *m, uint32_t id);
/* A new entry; NULL without memory. The id must not be there. Moves entries: older pointers end. */
shm_mapping *shm_mappings_add(shm_mappings *m, uint32_t id);
void shm_mappings_remove(shm_mappings *m, uint32_t id);

#endif
