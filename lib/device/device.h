/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory: what a pointer is, memory that peers can reach, and the register of what
 * a context knows. Host memory here; a GPU's kinds join behind the same structs.
 */
#ifndef GSI_DEVICE_H
#define GSI_DEVICE_H

#include <pthread.h>

#include "base/log.h"

/* One piece of memory that the library made or knows. */
typedef struct gsi_memory {
    uint32_t id;  /* unique in the process, never 0 */
    int32_t kind; /* enum gradsync_mem_kind */
    char *addr;   /* as the user sees it */
    uint64_t bytes;
    int fd;           /* memfd behind the shareable part; -1: none */
    char *share_addr; /* the shareable part: whole pages within [addr, addr + bytes) */
    uint64_t share_bytes;
    uint64_t file_off;  /* of share_addr in the memfd; congruent to the address modulo a huge page */
    uint64_t map_bytes; /* of the mapping (allocated memory: bytes rounded up to pages) */
    uint64_t page_bytes;
    int32_t users;    /* collectives in flight that use it; under the register's lock */
    int32_t changing; /* its pages are being moved: gsi_register_get() does not see it; under the same lock */
    char reason[160];
} gsi_memory;

/* A memfd of `bytes` whose size is sealed: a peer cannot shrink it under a reader. -1: errno says why. */
int gsi_host_memfd(const char *name, uint64_t bytes);
/* Memory in one memfd, mapped and zeroed; fills all of *mem but id and users.
 * numa_node < 0: anywhere. Errors: NOMEM, SYSTEM. */
int gsi_host_alloc(size_t bytes, int huge, int numa_node, gsi_memory *mem);
void gsi_host_free(gsi_memory *mem);
/* Moves the whole pages of [addr, addr + bytes), which must be private anonymous
 * read-write memory, onto a memfd at the same addresses. An error changes nothing.
 * Errors: UNSUPPORTED, NOMEM, SYSTEM. */
int gsi_host_remap(void *addr, size_t bytes, gsi_memory *mem);
/* The reverse: private pages again, contents kept. After an error it can be tried again; the memory is as
 * usable as before, but no longer shareable as a whole. Errors: SYSTEM. */
int gsi_host_unmap(gsi_memory *mem);
/* Maps `bytes` of a memfd from file_off at an address of its own, congruent to
 * file_off modulo a huge page. NULL: errno says why. Unmap with munmap(). */
void *gsi_host_map(int fd, uint64_t file_off, uint64_t bytes);
/* Pages of [addr, addr + bytes) that are not there yet are to come from this node, if it has room; < 0: from anywhere.
 * Of a memfd's mapping the policy is the file's own, so it holds for peers that touch a page first. 0, or -1. */
int gsi_host_prefer_node(void *addr, uint64_t bytes, int node);
/* The NUMA node of a page, -1 if unknown. */
int gsi_host_node_of(const void *addr);
/* What gsi_host_alloc() will get of huge pages: their size, or 0, and why. */
uint64_t gsi_host_huge_pages(char *text, size_t room);

/* The register: disjoint ranges, found by address. */
typedef struct gsi_register {
    pthread_mutex_t lock;
    gsi_memory **entries; /* by address */
    size_t count, room;
} gsi_register;

int gsi_register_init(gsi_register *reg);
void gsi_register_free(gsi_register *reg);
/* Takes note of mem and gives it its id. INVALID if it overlaps another; NOMEM. */
int gsi_register_add(gsi_register *reg, gsi_memory *mem);
/* mem's pages are about to be moved: nobody gets it meanwhile. INVALID if a collective in flight uses it. */
int gsi_register_begin_change(gsi_register *reg, gsi_memory *mem);
/* They have been moved: mem becomes what `now` says, but for its place in the register. */
void gsi_register_end_change(gsi_register *reg, gsi_memory *mem, const gsi_memory *now);
/* INVALID if a collective in flight uses it. */
int gsi_register_remove(gsi_register *reg, gsi_memory *mem);
/* The memory that holds all of [addr, addr + bytes), with users + 1; NULL if none does. */
gsi_memory *gsi_register_get(gsi_register *reg, const void *addr, uint64_t bytes);
void gsi_register_put(gsi_register *reg, gsi_memory *mem);

#endif
