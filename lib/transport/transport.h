/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The transport seam: one-sided writes and counted notifications between the ranks
 * of one communicator, as verbs has them. An endpoint is one rank's side of it.
 *
 * Collectives are numbered: `seq` counts from 1 in every communicator, the same on
 * all ranks. Collective seq runs in lane seq % lanes, so `lanes` of them may be in
 * flight; a rank may use a lane again for seq only when every rank is done with
 * seq - lanes (gsi_endpoint_ops.done).
 *
 * All calls on one endpoint but wake(), fail() and failure() are made with the engine's lock held.
 * None blocks, but for create and sleep.
 */
#ifndef GSI_TRANSPORT_H
#define GSI_TRANSPORT_H

#include "base/log.h"
#include "device/device.h"

/* What a rank tells the others when it enters a collective. Fits a cache line
 * together with the flag that tells of its arrival. */
typedef struct gsi_header {
    uint64_t fingerprint; /* collective, dtype, op, algorithm, flags, root: equal on all ranks, or MISMATCH */
    uint64_t count : 56;
    uint64_t kind : 8;   /* enum gsi_header_kind */
    uint32_t done;       /* all collectives up to this one are finished on that rank (modulo 2^32) */
    uint16_t head, tail; /* bytes at the ends of this rank's buffers that lie beside the whole pages which peers
                            can reach: the greater of send's and recv's; less than a page */
    union {
        struct {
            uint32_t send, recv;        /* memory ids; 0: plain memory, out of the peers' reach */
            int64_t send_off, recv_off; /* of the buffers from the start of the memory; < 0: begins before it */
        } mem;
        unsigned char inl[24]; /* the payload instead, where it is this small */
    } u;
    double scale; /* this rank's prescale; 1 if there is none */
} gsi_header;

enum { GSI_INLINE_BYTES = 24 };
enum gsi_header_kind {
    GSI_HEADER_PAYLOAD = 1,   /* the contribution came along */
    GSI_HEADER_SHAREABLE = 2, /* u.mem names memory that peers can reach */
};

enum { GSI_MAIL_BYTES = 256 };

/* The communicator's one common failure. The first to be published counts, so that
 * every rank names the same culprit. */
typedef struct gsi_failure {
    int32_t code; /* PEER_LOST, TIMEOUT, ... */
    int32_t by;   /* the rank that found it */
    int32_t peer; /* the culprit */
    char text[224];
} gsi_failure;

/* The destination of a put. */
typedef struct gsi_target {
    uint64_t off;
    uint32_t mem; /* memory id at the peer (SEND, RECV) */
    uint8_t space;
} gsi_target;

typedef struct gsi_endpoint gsi_endpoint;

typedef struct gsi_endpoint_ops {
    const char *name;

    /* Takes what has arrived and sends what has been waiting for room: called in every round of progress. 1 if
     * anything happened. NULL: there is nothing to do, peers' stores are simply there. */
    int (*progress)(gsi_endpoint *ep);

    /* Entering a collective: publishes this rank's header and `bytes` of payload (its
     * contribution; 0: none) to all. The payload may be at most slot_bytes. */
    void (*enter)(gsi_endpoint *ep, uint64_t seq, const gsi_header *header, const void *payload, uint64_t bytes);
    /* 1 when all others have entered seq. *next is the caller's, 0 at first: where to go on
     * looking; it then names the first rank that is not there. */
    int (*entered)(gsi_endpoint *ep, uint64_t seq, int *next);
    /* After entered(): a rank's header and payload. Valid until this rank has finished seq. */
    const gsi_header *(*header)(gsi_endpoint *ep, uint64_t seq, int rank);
    const void *(*slot)(gsi_endpoint *ep, uint64_t seq, int rank, uint64_t bytes);

    /* Signals of plan.h. A signal is seen only after everything the sender wrote before it. */
    void (*signal_all)(gsi_endpoint *ep, uint64_t seq);
    void (*signal)(gsi_endpoint *ep, uint64_t seq, int stream, int peer);
    /* How many of peer's signals have arrived in seq; `all`: those of signal_all. */
    uint32_t (*signals)(gsi_endpoint *ep, uint64_t seq, int stream, int peer, int all);
    /* Writes to a peer's memory; with `notify`, signals it afterwards. 0, or a negative error. */
    int (*put)(gsi_endpoint *ep, uint64_t seq, int stream, int peer, const gsi_target *dst, const void *src,
               uint64_t bytes, int notify);
    /* 1 when the sources of all puts of the stream to peer (or all: -1) are free again. */
    int (*flushed)(gsi_endpoint *ep, uint64_t seq, int stream, int peer);

    /* Tells the others that this rank has finished all up to seq. */
    void (*finish)(gsi_endpoint *ep, uint64_t seq);
    /* The number up to which every rank has finished. */
    uint64_t (*done)(gsi_endpoint *ep);

    /* Wakes the ranks that sleep and may wait for what enter(), signal_all() and finish() have told since the last
     * call. Apart from those, so that a rank goes on to look for its peers' news while its own is on the way. */
    void (*announce)(gsi_endpoint *ep);

    /* Scratch. A rank's own is writable by its peers' puts (and loads and stores). */
    void *(*stage)(gsi_endpoint *ep, int rank);
    /* Makes memory reachable for the peers, before a header names it. 0, or IN_PROGRESS: try again later. Errors:
     * UNSUPPORTED (this kind of memory cannot be), NOMEM. */
    int (*share)(gsi_endpoint *ep, const gsi_memory *mem);
    /* Memory `id` is about to go: tells the peers to let go of it. */
    void (*unshare)(gsi_endpoint *ep, uint32_t id);
    /* Peer's memory `id` as this rank sees it: *base and *bytes; NULL if the peer has let go of it. Errors: NOMEM,
     * INTERNAL. */
    int (*resolve)(gsi_endpoint *ep, int peer, uint32_t id, void **base, uint64_t *bytes);

    /* Point to point, apart from collectives and their numbers. NULL: this transport has none of it. `peer` is never
     * this rank itself.
     *
     * mail: a small message of 1 to GSI_MAIL_BYTES bytes, reliable, in order per peer; it is seen only after every
     * rput to that peer that is done. Wakes the peer if it sleeps. 1 sent, 0 no room now (try again after progress),
     * or a negative error. */
    int (*mail)(gsi_endpoint *ep, int peer, const void *msg, uint32_t bytes);
    /* 1 and the next message that has arrived of any peer (msg: GSI_MAIL_BYTES of room), else 0. As cheap as a load
     * or two where there is none: it is called in every round of progress. A rank that sleeps wakes for mail. */
    int (*mail_next)(gsi_endpoint *ep, int *peer, void *msg, uint32_t *bytes);
    /* Asynchronous one-sided access to a peer's shared memory `mem` (its id, as in share and resolve; off counts from
     * its share_addr). src and dst are memory of any kind, and left alone by the caller until rdone. 0 and *ticket,
     * or GRADSYNC_IN_PROGRESS (no room now), or an error: INVALID if the peer has let go of the memory or it is too
     * short. Any number of tickets may be asked for in any order; each until it is told to be done. */
    int (*rput)(gsi_endpoint *ep, int peer, uint32_t mem, uint64_t off, const void *src, uint64_t bytes,
                uint64_t *ticket);
    int (*rget)(gsi_endpoint *ep, int peer, uint32_t mem, uint64_t off, void *dst, uint64_t bytes, uint64_t *ticket);
    /* 1: the put is visible at the peer, or the get's data is here; 0 not yet; or a negative error. Asked once more
     * after 1 is not allowed. */
    int (*rdone)(gsi_endpoint *ep, uint64_t ticket);

    /* Sleeping without missing anything: sleep_begin() gives a ticket; look again for what is awaited;
     * then sleep(ticket) returns when something may have changed since sleep_begin, or at the timeout;
     * and sleep_end(). sleep() is called WITHOUT the lock. */
    uint32_t (*sleep_begin)(gsi_endpoint *ep);
    void (*sleep)(gsi_endpoint *ep, uint32_t ticket, int64_t timeout_ns);
    void (*sleep_end)(gsi_endpoint *ep);
    /* Wakes every sleeper of this rank. Any thread, no lock. */
    void (*wake)(gsi_endpoint *ep);

    /* Looks whether the peers are alive that have not finished seq: 0, or PEER_LOST with *peer and text. With seq 0
     * it only takes note of who is lost, for peer_info. A system call. */
    int (*check)(gsi_endpoint *ep, uint64_t seq, int *peer, char *text, size_t room);
    /* Publishes a failure to all ranks, unless there is one already. */
    void (*fail)(gsi_endpoint *ep, const gsi_failure *failure);
    /* 1 and *out if a failure was published by any rank. Cheap. */
    int (*failure)(gsi_endpoint *ep, gsi_failure *out);

    void (*peer_info)(gsi_endpoint *ep, int peer, gradsync_peer_info *out);
    uint64_t (*memory_bytes)(gsi_endpoint *ep);
    void (*counters)(gsi_endpoint *ep, gradsync_counters *out);
    /* Tells the peers that this rank leaves, and frees everything. Never waits. */
    void (*destroy)(gsi_endpoint *ep);
} gsi_endpoint_ops;

struct gsi_endpoint {
    const gsi_endpoint_ops *ops;
    int rank, n;
    uint32_t lanes;
    uint64_t slot_bytes, stage_bytes;
    int loadstore;    /* peers' shared memory can be loaded and stored by its resolved address */
    int whole_memory; /* peers reach all of registered memory, not only the whole pages of a memfd in it */
    int local_rank, local_ranks;
    /* Where ranks are on several hosts: the host of each, from 0. NULL: all can load from each other (loadstore) or
     * none can. The endpoint's own. */
    const int32_t *host;
    /* The endpoint connects some ranks of a greater group: what they are called there, in messages and in failure
     * records, and how many there are. NULL: as they are. The creator's. */
    const int32_t *called;
    int called_of;
    const gsi_log *log;
};

static inline int gsi_rank_called(const gsi_endpoint *ep, int rank)
{
    return ep->called ? ep->called[rank] : rank;
}

/* The out-of-band exchange that endpoints are made with. */
typedef struct gsi_oob {
    gradsync_allgather_fn allgather;
    void *arg;
    int rank, n;
    int64_t deadline_ns;
} gsi_oob;

#endif
