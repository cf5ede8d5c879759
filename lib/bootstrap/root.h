/* SPDX-License-Identifier: Apache-2.0 */
/* Rank 0's side: who is connected, what is to be sent to them, and one event loop. */
#ifndef GSI_ROOT_H
#define GSI_ROOT_H

#include "bootstrap/rendezvous.h"

/* Bytes to send; own data, or (own_bytes 0) data that outlives it. */
struct gsi_segment {
    struct gsi_segment *next;
    const unsigned char *data;
    size_t n;
    unsigned char own[];
};

enum gsi_peer_state {
    GSI_PEER_UNKNOWN, /* nothing sensible received yet */
    GSI_PEER_HELLO,   /* has sent a hello that a holder of the key has made, once */
    GSI_PEER_RANK,    /* has proved the key and is one of our ranks */
    GSI_PEER_REFUSED, /* holds the key, but gets an error and then an end */
    GSI_PEER_GONE,    /* a rank that closed when nothing was due any more */
};

typedef struct gsi_peer {
    int fd;
    int rank; /* -1 before GSI_PEER_RANK */
    enum gsi_peer_state state;
    uint32_t interest; /* epoll events asked for */
    gsi_link link;
    struct gsi_segment *head, **tail;
    size_t head_at;
    unsigned char *body;  /* of the frame that is arriving, or of an early block */
    uint32_t block_seq;   /* the last all-gather for which the block is here */
    uint64_t block_bytes; /* of an early block: one that came before we were asked for it; in body */
    /* Those that are not ranks, by age; the first is the oldest. */
    struct gsi_peer *older, *newer;
    int64_t until;
    char name[GSI_ADDR_TEXT];
} gsi_peer;

struct gsi_root {
    gsi_bootstrap *b;
    int epoll;
    int listeners[GSI_ADDRS_MAX], nlisteners;
    gsi_peer **ranks;     /* [nranks], NULL where nobody is; [0] always NULL */
    unsigned char *there; /* [nranks]: 1 where nothing is waited for (joined, or block is here) */
    int missing;          /* zeros in `there` */
    gsi_peer *oldest, *newest;
    int nguests;
    unsigned char group[GSI_KEY_BYTES];
    unsigned char *result; /* sealed; shared by the segments of all peers */
    int unsent;            /* peers with something queued */
    int64_t next_status;   /* ns */
    int64_t status_every;
    int open;    /* ranks with a connection */
    int closing; /* the job has failed: what is queued is the last word */
    /* The all-gather that runs. */
    int running;
    unsigned char *recv;
    uint64_t bytes;
    /* Warnings about strangers are rationed. */
    unsigned warned, swallowed, bad_keys;
    int64_t warned_at; /* ns: of the last one */
};

/* ---- root.c ---- */

/* Watches a socket; owner is a gsi_peer, or the address of a listener. 0 or errno. */
int gsi_root_watch(gsi_root *r, int fd, void *owner);
/* Queues a frame sealed with the peer's own key. 0 or NOMEM (recorded). */
int gsi_root_queue(gsi_root *r, gsi_peer *p, uint32_t type, const void *body, size_t n);
/* Queues plain bytes (of the handshake). */
int gsi_root_queue_raw(gsi_root *r, gsi_peer *p, const void *data, size_t n);
/* A segment with room for `own` bytes; NULL: NOMEM is recorded. */
struct gsi_segment *gsi_root_segment(gsi_root *r, size_t own);
/* Queues a segment, which has n bytes at `data`. */
void gsi_root_append(gsi_root *r, gsi_peer *p, struct gsi_segment *s, const unsigned char *data, size_t n);
/* Sends what can be sent now. 0, or -1 if the connection is over. */
int gsi_root_push(gsi_root *r, gsi_peer *p);
/* Closes and frees a connection. */
void gsi_root_drop(gsi_root *r, gsi_peer *p);
/* Records the failure, if it is the first, and tells every rank but `peer`. */
__attribute__((format(printf, 4, 5))) int gsi_root_fail(gsi_root *r, int code, int peer, const char *format, ...);
int gsi_root_fail_info(gsi_root *r, const gradsync_error_info *info);
/* Nothing more is waited for from this rank. */
void gsi_root_here(gsi_root *r, int rank);
/* Handles epoll events of a connection, which may be gone afterwards. */
void gsi_root_on_peer(gsi_root *r, gsi_peer *p, uint32_t events);
/* Waits for events until `until` (ns) at most and handles them. Failures are in r->b->failure. */
void gsi_root_step(gsi_root *r, int64_t until);
/* When to give up, so that the ranks, whose deadlines are near ours, learn from us who is missing. */
int64_t gsi_root_give_up(int64_t now, int64_t deadline);
/* After a failure: lets the ranks hear of it, until `until` (ns) at most. */
void gsi_root_farewell(gsi_root *r, int64_t until);
/* Sends STATUS to the ranks that wait, when it is time. */
void gsi_root_status(gsi_root *r);

/* ---- root_join.c ---- */

void gsi_root_on_listener(gsi_root *r, int listener);
/* The handshake's events. 0, or -1 if the peer was dropped or must not be fed any more. */
int gsi_root_on_guest(gsi_root *r, gsi_peer *p, enum gsi_event event);
/* Drops guests whose time is up; returns when the next one's is. */
int64_t gsi_root_expire(gsi_root *r, int64_t now);
void gsi_root_unlink_guest(gsi_root *r, gsi_peer *p);

#endif
