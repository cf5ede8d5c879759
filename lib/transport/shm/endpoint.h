/* SPDX-License-Identifier: Apache-2.0 */
/* The endpoint as the files of this transport know it: shm.c moves data and tells of it, memory.c hands users'
 * memory around, create.c makes and frees it. */
#ifndef GSI_SHM_ENDPOINT_H
#define GSI_SHM_ENDPOINT_H

#include <poll.h>

#include "transport/shm/mail.h"
#include "transport/shm/peermem.h"
#include "transport/shm/segment.h"
#include "transport/shm/shm.h"

typedef struct shm_peer {
    char *slot, *stage;    /* in the segment; slot of lane 0 */
    shm_mappings mappings; /* of its memory */
    uint32_t mem_epoch;    /* up to here its messages have been read */
    shm_link link;
    shm_mail_state mail;
    int same_process, lost;
    int bell;   /* an eventfd that wakes it, where it sleeps on more than this segment; -1: its doorbell */
    int forgot; /* it offered memory that could not be noted down */
    int64_t pid;
    char host[64];
} shm_peer;

/* A mapping that its owner has freed, kept while a collective in flight might name it. */
typedef struct shm_grave {
    void *base;
    uint64_t bytes, until; /* until: this rank has finished this collective */
} shm_grave;

typedef struct shm_endpoint {
    gsi_endpoint base;
    char *map;
    shm_layout layout;
    shm_head *head;
    shm_control *controls;
    shm_doorbell *doorbells;
    shm_entry *entries;                     /* [lane][rank] */
    shm_pair *pairs;                        /* [lane][stream][receiver][sender] */
    char *slots;                            /* [lane][rank] */
    shm_mailbox *mailboxes;                 /* [receiver][sender] */
    shm_mail_mask *mail_masks;              /* [receiver] */
    uint64_t mail_from[SHM_MAX_RANKS / 64]; /* whose rings this rank has yet to look at */
    shm_peer *peers;
    struct pollfd *watch; /* n entries for check() */
    shm_mappings shared;  /* own memory that the peers have been told of */
    uint32_t *unsent;     /* ids whose end some peers have not been told yet, and how far that got */
    uint32_t *unsent_peer;
    size_t nunsent, unsent_room;
    shm_grave *graves;
    size_t ngraves, graves_room;
    uint64_t entered, finished; /* seq, of this rank */
    int bell;                   /* this rank's; -1: none. The creator's */
    int unannounced;            /* flags have been stored since the last announce */
    uint32_t process;           /* gsi_process() of who made it: a forked child must not speak for its parent */
    int sleepers;               /* threads of this rank between sleep_begin and sleep_end; under the engine's lock */
    uint64_t sleeps;
    _Atomic uint64_t wakes;
} shm_endpoint;

extern const gsi_endpoint_ops shm_ops;

static inline shm_endpoint *shm_of(gsi_endpoint *ep)
{
    return (shm_endpoint *)ep;
}

/* shm.c: wakes the ranks that sleep, or only one of them, after a flag was stored (seq_cst). */
void shm_wake_sleepers(shm_endpoint *ep, int only);
uint32_t shm_sleep_begin(gsi_endpoint *base);
void shm_sleep(gsi_endpoint *base, uint32_t ticket, int64_t timeout_ns);
void shm_sleep_end(gsi_endpoint *base);
int shm_check(gsi_endpoint *base, uint64_t seq, int *peer, char *text, size_t room);

/* memory.c */
int shm_share(gsi_endpoint *base, const gsi_memory *mem);
void shm_unshare(gsi_endpoint *base, uint32_t id);
int shm_resolve(gsi_endpoint *base, int rank, uint32_t id, void **addr, uint64_t *bytes);
/* Reads what the peers have to say about their memory. Nothing may depend on a collective that needs it to do
 * so: a peer whose messages nobody reads finds its socket full one day, and waits. */
void shm_drain_all(shm_endpoint *ep);
/* Unmaps what was kept for collectives that are finished by now. */
void shm_clear_graves(shm_endpoint *ep);
/* Unmaps everything of the peers'. */
void shm_free_memory(shm_endpoint *ep);

/* create.c */
void shm_free(shm_endpoint *ep);

#endif
