/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Point to point: puts, gets, signals, sends and receives between two ranks, beside the collectives of the same
 * communicator and apart from their numbers, driven by the same progress, waits and failures.
 *
 * What goes out to one peer goes in the order of the calls: a queue per peer. A message travels
 *   - in the mail itself (EAGER), if it fits there and the receiver is not far behind;
 *   - through a chunk of the sender's staging memory (STAGED), where peers can load it;
 *   - else by rendezvous: the sender announces it (ANNOUNCE), and the receiver either reads it from the sender's
 *     memory, if that is shared, and says that it is DONE; or GRANTs windows, of its buffer if that is shared or of
 *     its staging memory, into which the sender puts, telling of each that it is FILLED.
 *
 * All of it is under the engine's lock, but for the queue of posted calls, which is under the queue's lock.
 */
#ifndef GSI_ENGINE_P2P_H
#define GSI_ENGINE_P2P_H

#include "engine/engine.h"

enum {
    GSI_SIGNAL_SLOTS = GRADSYNC_SIGNAL_SLOTS,
    GSI_P2P_WINDOWS = 8,
    GSI_P2P_TICKETS = 4,
    GSI_P2P_EAGER = GSI_MAIL_BYTES - 16, /* bytes of a message that fit into its mail */
    GSI_P2P_EAGER_AHEAD = 64,            /* eager messages to a peer that it has not received yet */
    GSI_P2P_CHUNK = 64 << 10,
    GSI_P2P_CHUNKS = 32,
    GSI_P2P_PIECE = 1 << 20, /* long transfers go in pieces, so that a failure is seen in between */
};

enum gsi_p2p_mail_kind {
    GSI_MAIL_EAGER = 1,
    GSI_MAIL_STAGED,   /* the message lies in a chunk of the sender */
    GSI_MAIL_ANNOUNCE, /* a message that waits for its receiver */
    GSI_MAIL_GRANT,    /* receiver: put [at, at + bytes) there */
    GSI_MAIL_FILLED,   /* sender: a window is filled */
    GSI_MAIL_DONE,     /* receiver: the message is here, or `tag` is the error */
    GSI_MAIL_RELEASE,  /* receiver: a chunk is free again */
    GSI_MAIL_CREDIT,   /* receiver: `bytes` eager messages have been received */
    GSI_MAIL_SIGNAL,
};

typedef struct gsi_p2p_mail {
    uint32_t kind;
    int32_t tag;    /* of the message; SIGNAL: the slot */
    uint64_t bytes; /* of the message or window; DONE with an error: the receiver's room */
    union {
        struct {
            uint64_t to, from; /* ops at the receiver and the sender of this mail */
            uint64_t at;       /* of a window in the message */
            uint64_t off;
            uint32_t mem;    /* where the message lies or the window is; 0: out of the peers' reach */
            uint32_t window; /* its index, or that of the chunk */
        } at;
        unsigned char data[GSI_P2P_EAGER];
    } u;
} gsi_p2p_mail;
_Static_assert(sizeof(gsi_p2p_mail) == GSI_MAIL_BYTES, "a message is a mail");

/* What the caller asked for, checked by api/. */
typedef struct gsi_p2p_call {
    void *buf; /* put and send only read it */
    uint64_t bytes;
    uint64_t off;   /* put, get: from the start of the shareable part of the peer's memory */
    char *self;     /* the same as an address, if the peer is this rank */
    uint64_t value; /* wait_signal */
    uint64_t *got;  /* recv: the length of the message, or NULL */
    int64_t timeout_ms;
    uint32_t mem, slot;
    int32_t kind; /* enum gradsync_p2p */
    int32_t peer, tag;
} gsi_p2p_call;

/* One range that is being put or got, in pieces. Zeroed: nothing done. */
typedef struct gsi_p2p_transfer {
    uint64_t issued, done;
    uint64_t tickets[GSI_P2P_TICKETS], bytes[GSI_P2P_TICKETS];
    uint32_t first, count; /* tickets that are out */
    int32_t failed;        /* the error that ends it when no ticket is out any more */
} gsi_p2p_transfer;

enum gsi_p2p_window_state { GSI_WINDOW_FREE, GSI_WINDOW_OPEN, GSI_WINDOW_OUT, GSI_WINDOW_FULL };

typedef struct gsi_p2p_window {
    int32_t
        state; /* receiver: OPEN is to be granted, OUT is granted; sender: OPEN is to be filled, FULL to be told of */
    int32_t chunk; /* receiver: of the staging memory; < 0: the user's own */
    uint32_t mem, index;
    uint64_t off, at, bytes;
    gsi_p2p_transfer transfer;
} gsi_p2p_window;

enum gsi_p2p_phase {
    GSI_P2P_BEGUN,     /* in a queue */
    GSI_P2P_MOVING,    /* put, get; recv: reads from the sender's memory */
    GSI_P2P_STAGED,    /* recv: reads from the sender's chunk */
    GSI_P2P_BY_WINDOW, /* send, recv: by windows */
    GSI_P2P_ANSWER,    /* recv: DONE or RELEASE has yet to be told */
};

typedef struct gsi_p2p_op {
    gsi_op op; /* first: it is the request */
    gsi_p2p_call call;
    struct gsi_p2p_op *next;            /* in the one queue that it is in */
    struct gsi_p2p_op *before, *behind; /* among all */
    uint64_t id;                        /* 0: none */
    int32_t phase, working, outcome;    /* outcome: of an op that has yet to answer */
    gsi_memory *mem;                    /* held: the user's buffer is part of it */
    gsi_p2p_transfer transfer;          /* of put, get, and of a message that is read */
    uint64_t size, theirs, src_off;     /* of the message; the sender's op; where it lies */
    uint32_t src_mem, src_chunk;
    uint64_t granted, copied;
    gsi_p2p_window *windows; /* of those that need them */
} gsi_p2p_op;

typedef struct gsi_p2p_queue {
    gsi_p2p_op *head, *tail;
} gsi_p2p_queue;

/* A message that has come before it was asked for. */
typedef struct gsi_p2p_early {
    struct gsi_p2p_early *next;
    gsi_p2p_mail mail; /* cut off after what it has */
} gsi_p2p_early;

typedef struct gsi_p2p_peer {
    gsi_p2p_queue out;   /* puts, gets, signals, sends that are not under way yet */
    gsi_p2p_queue recvs; /* that no message has come for */
    gsi_p2p_queue waits; /* for signals */
    gsi_p2p_early *early, *early_tail;
    uint32_t ahead;    /* eager messages that the peer has not received */
    uint32_t owed;     /* received here, and not told */
    uint32_t puts;     /* under way: signals wait for them */
    uint64_t *signals; /* [slot]; NULL: none has come yet */
} gsi_p2p_peer;

typedef struct gsi_p2p {
    int loadstore; /* puts and gets are copies, done at once: the endpoint's */
    gsi_p2p_peer *peers;
    gsi_p2p_queue posted; /* under the queue's lock */
    _Atomic int has_posted;
    gsi_p2p_op *all;
    gsi_p2p_queue work;                /* ops that have something to do */
    uint32_t blocked;                  /* peers whose `out` is not empty, at most */
    int owing;                         /* some peer is owed a credit that found no room */
    gsi_p2p_op **table;                /* by id */
    uint32_t room, generation, lowest; /* lowest: all places of the table before it are taken */
    gsi_memory stage;
    int staging;                        /* 0: not made yet, 1: made, 2: known to all, < 0: cannot be made */
    uint32_t chunks;                    /* bit: this chunk is in use */
    int32_t chunk_peer[GSI_P2P_CHUNKS]; /* the peer that is to release it; -1: this rank itself */
    uint32_t lent;                      /* chunks with messages for peers in them */
} gsi_p2p;

/* A key as gradsync_key holds it. */
typedef struct gsi_p2p_key {
    uint32_t magic, check; /* check: of all the rest, against garbage */
    uint64_t comm;
    uint64_t addr, bytes;       /* the memory, in its rank */
    uint64_t head, share_bytes; /* the part of it that peers can reach: starts `head` bytes behind addr */
    int32_t rank;
    uint32_t mem;
} gsi_p2p_key;
_Static_assert(sizeof(gsi_p2p_key) <= sizeof(gradsync_key), "a key fits its public struct");

/* ---- p2p.c ---------------------------------------------------------------------- */

/* Runs a call to its end, or posts it. */
int gsi_p2p_run(gsi_engine *e, const gsi_p2p_call *call);
int gsi_p2p_post(gsi_engine *e, const gsi_p2p_call *call, gsi_op **out);
/* 1 if anything moved. lock is held, as for all below. */
int gsi_p2p_progress(gsi_engine *e);
/* Everything ends with the engine's failure. */
void gsi_p2p_fail_all(gsi_engine *e);
/* After a while without progress: 1 if the communicator broke, or something moved after all. */
int gsi_p2p_look_for_trouble(gsi_engine *e);
void gsi_p2p_free(gsi_engine *e);
/* Makes the memory known to the peers and fills *out. Errors: UNSUPPORTED, NOMEM, TIMEOUT, BROKEN. */
int gsi_p2p_make_key(gsi_engine *e, const gsi_memory *mem, int64_t timeout_ms, gsi_p2p_key *out);
/* How many signals of a peer have come. */
int gsi_p2p_signals(gsi_engine *e, int peer, uint32_t slot, uint64_t *out);

/* ---- Between its files ------------------------------------------------------------ */

static inline gsi_p2p_op *gsi_p2p_op_of(gsi_op *op)
{
    return (gsi_p2p_op *)op;
}
/* p2p.c: an op ends: it is in no queue any more. It may be gone afterwards. rc < 0: as gsi_fail() has noted it. */
void gsi_p2p_end(gsi_engine *e, gsi_p2p_op *o, int rc);
/* The communicator breaks with what gsi_fail() has noted. */
void gsi_p2p_break(gsi_engine *e, int rc);
/* Sends mail of 16 bytes and `bytes` of its union: 1, or 0 if there is no room now; < 0: it breaks. To this rank
 * itself: handles it. */
int gsi_p2p_send_mail(gsi_engine *e, int peer, const gsi_p2p_mail *mail, uint32_t bytes);
enum { GSI_P2P_PLACE = 40 }; /* of mails that name a place */
void gsi_p2p_append(gsi_p2p_queue *queue, gsi_p2p_op *o);
void gsi_p2p_remove(gsi_p2p_queue *queue, gsi_p2p_op *o);
/* The op goes on in the rounds of progress. */
void gsi_p2p_work(gsi_p2p *p, gsi_p2p_op *o);
/* Gives the op an id that its peer can name it by: 0 or NOMEM. */
int gsi_p2p_give_id(gsi_p2p *p, gsi_p2p_op *o);
/* The op of an id, if it is of that kind and with that peer; else NULL. */
gsi_p2p_op *gsi_p2p_find(const gsi_p2p *p, uint64_t id, int kind, int peer);

/* What a step of an op comes to. */
enum { GSI_P2P_ENDED = -1, GSI_P2P_IDLE = 0, GSI_P2P_BUSY = 1 };

/* p2p_access.c */
/* Moves on [issued, bytes): 1 done, 0 not yet, or an error when nothing is under way any more. */
int gsi_p2p_transfer_step(gsi_engine *e, gsi_p2p_transfer *t, int get, int peer, uint32_t mem, uint64_t off, void *buf,
                          uint64_t bytes, int *moved);
int gsi_p2p_step_access(gsi_engine *e, gsi_p2p_op *o, int *moved);
/* 1: it is out of the queue; 0: it has to wait. */
int gsi_p2p_issue_access(gsi_engine *e, gsi_p2p_op *o);
int gsi_p2p_issue_signal(gsi_engine *e, gsi_p2p_op *o);
void gsi_p2p_wait_signal(gsi_engine *e, gsi_p2p_op *o);
void gsi_p2p_on_signal(gsi_engine *e, int peer, const gsi_p2p_mail *mail);

/* p2p_message.c */
int gsi_p2p_issue_send(gsi_engine *e, gsi_p2p_op *o);
void gsi_p2p_begin_recv(gsi_engine *e, gsi_p2p_op *o);
int gsi_p2p_step_send(gsi_engine *e, gsi_p2p_op *o, int *moved);
int gsi_p2p_step_recv(gsi_engine *e, gsi_p2p_op *o, int *moved);
/* A message's first mail; then the others. bytes: of the mail. */
void gsi_p2p_on_message(gsi_engine *e, int peer, const gsi_p2p_mail *mail, uint32_t bytes);
void gsi_p2p_on_grant(gsi_engine *e, int peer, const gsi_p2p_mail *mail);
void gsi_p2p_on_filled(gsi_engine *e, int peer, const gsi_p2p_mail *mail);
void gsi_p2p_on_done(gsi_engine *e, int peer, const gsi_p2p_mail *mail);
void gsi_p2p_pay(gsi_engine *e);

/* p2p_stage.c: chunks of memory that peers can reach. */
/* A free chunk, which `peer` will release (-1: this rank), or -1: none now; -2: there can be none (gsi_fail). */
int gsi_p2p_take_chunk(gsi_engine *e, int peer);
void gsi_p2p_free_chunk(gsi_p2p *p, int chunk);
void gsi_p2p_on_release(gsi_engine *e, int peer, const gsi_p2p_mail *mail);
static inline char *gsi_p2p_chunk(const gsi_p2p *p, int chunk)
{
    return p->stage.addr + (uint64_t)chunk * GSI_P2P_CHUNK;
}
void gsi_p2p_free_stage(gsi_engine *e);

#endif
