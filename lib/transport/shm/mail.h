/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mail: a ring of small messages for each ordered pair of ranks, in the control segment. The sender fills a place and
 * stores its number; the receiver tells how many it has taken. A mask per receiver says whose rings to look at, so
 * that looking costs one load where there is nothing.
 */
#ifndef GSI_SHM_MAIL_H
#define GSI_SHM_MAIL_H

#include "transport/shm/segment.h"

/* Of the places and the rings; zeroed is empty. Pages that are not used cost nothing. */
enum { SHM_MAIL_PLACES = 25 };

typedef struct shm_mail {
    _Atomic uint64_t number; /* of the message that lies here, from 1: stored by the sender after the rest */
    uint32_t bytes, pad;
    unsigned char data[GSI_MAIL_BYTES];
    char pad2[48];
} shm_mail;

typedef struct shm_mailbox {
    _Atomic uint64_t taken; /* by the receiver */
    char pad[56];
    shm_mail places[SHM_MAIL_PLACES];
    char pad2[128];
} shm_mailbox;
_Static_assert(sizeof(shm_mail) % 64 == 0 && sizeof(shm_mailbox) == 8192, "a ring of mail is two pages");

/* Bit s: rank s has sent something since this was last looked at. Written by all. */
typedef struct shm_mail_mask {
    _Atomic uint64_t from[SHM_MAX_RANKS / 64];
} shm_mail_mask;

/* How far this rank is with the rings to and from one peer. */
typedef struct shm_mail_state {
    uint64_t sent, taken_there; /* by this rank; of those, known to be taken by the peer */
    uint64_t taken;             /* of what the peer sent */
} shm_mail_state;

int shm_mail_send(gsi_endpoint *base, int peer, const void *msg, uint32_t bytes);
int shm_mail_next(gsi_endpoint *base, int *peer, void *msg, uint32_t *bytes);
int shm_rput(gsi_endpoint *base, int peer, uint32_t mem, uint64_t off, const void *src, uint64_t bytes,
             uint64_t *ticket);
int shm_rget(gsi_endpoint *base, int peer, uint32_t mem, uint64_t off, void *dst, uint64_t bytes, uint64_t *ticket);
int shm_rdone(gsi_endpoint *base, uint64_t ticket);

#endif
