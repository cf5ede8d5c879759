/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control segment: one memfd that all ranks of a communicator on one host map.
 * It holds flags, headers, small payloads and staging; never user data of length.
 *
 * Who writes what: every word has one writer, the rank it is named after, except the
 * doorbells and sleeper masks (atomic read-modify-write by all) and the failure record
 * (claimed by compare-and-swap). Nothing read from here is trusted as an index or
 * length: a peer may be of another build or hostile, and must not be able to crash us.
 */
#ifndef GSI_SHM_SEGMENT_H
#define GSI_SHM_SEGMENT_H

#include <stdatomic.h>

#include "plan/plan.h"
#include "transport/shm/shm.h"
#include "transport/transport.h"

enum {
    SHM_LANES = 4,
    SHM_SLOT_BYTES = GSI_SHM_SLOT_BYTES,
    SHM_STAGE_BYTES = GSI_SHM_STAGE_BYTES,
    SHM_MAX_RANKS = 1024,
};

/* A rank's state towards the others. */
enum shm_state { SHM_ABSENT = 0, SHM_READY = 1, SHM_LEFT = 2 };

/* Written by its rank, read by all, now and then. */
typedef struct shm_control {
    _Atomic uint64_t done;
    _Atomic uint32_t state;
    _Atomic uint32_t mem_epoch; /* memory messages sent on the links so far */
    char pad[112];
} shm_control;

/* Rung by those who wake this rank. */
typedef struct shm_doorbell {
    _Atomic uint32_t rings;
    char pad[124];
} shm_doorbell;

/* A rank's entry into one collective. `flag` is its seq << 32 | signals raised to all;
 * storing it with release publishes everything before it (pairs with the acquire in flag_is).
 * A cache line, and its neighbour, which comes along by the adjacent-line prefetcher: a payload
 * that fits there arrives with the flag. */
enum { SHM_NEIGHBOUR_BYTES = 64 };
typedef struct shm_entry {
    _Atomic uint64_t flag;
    gsi_header header;
    unsigned char payload[SHM_NEIGHBOUR_BYTES];
} shm_entry;
_Static_assert(sizeof(gsi_header) == 56 && sizeof(shm_entry) == 128, "an entry is a cache line and its neighbour");

/* seq << 32 | signals from one rank to one other on one stream. */
typedef struct shm_pair {
    _Atomic uint64_t flag;
    char pad[56];
} shm_pair;

enum { SHM_FAILURE_NONE = 0, SHM_FAILURE_CLAIMED = 1, SHM_FAILURE_SET = 2 };

typedef struct shm_head {
    _Atomic uint32_t failure_state; /* SET is stored with release after the record */
    gsi_failure failure;
    char pad2[128];
    _Atomic uint64_t sleepers[(SHM_MAX_RANKS + 63) / 64]; /* bit r: rank r sleeps, or is about to */
} shm_head;

/* Where things lie in a segment of n ranks: the same arithmetic on every rank. */
typedef struct shm_layout {
    int n;
    uint64_t controls, doorbells, entries, pairs, slots, stages, mail_masks, mailboxes, total;
} shm_layout;

void shm_layout_of(int n, shm_layout *out);

#endif
