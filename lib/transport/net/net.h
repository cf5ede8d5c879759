/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The endpoint between hosts, as its files know it: headers, counted signals, puts and mail over several rails.
 * net.c holds the seam's operations, conn.c posts and completes work, arrive.c takes what peers send, memory.c knows
 * memory, mail.c carries small messages, create.c makes and ends it.
 *
 * Idempotence. Whatever is sent can be sent again on another connection: data goes to fixed places, headers and mail
 * to numbered cells, and every piece of a put carries its number in its flow (collective, stream, peer); the receiver
 * ignores what it has seen.
 *
 * A dead connection. Each side takes what has come by it, closes it, so that nothing can come late, and says how many
 * immediates it took (NET_GONE). With that the other side knows what of its work in flight is there; the rest goes to
 * the front of the peer's queue. Nothing is sent twice blindly: a receiver that has all it waits for may let go of the
 * memory, and one write to memory that is gone would kill the next connection too. Who gives up a connection that
 * works says so first (NET_LOST), and closes it when the peer has given it up too: else something could come, and be
 * acknowledged, between the last look and the closing.
 *
 * Striping. A put waits in its peer's queue until a connection has room, and is cut into pieces then: a connection
 * takes as much as it gets done, so shares follow the rails' rates by themselves (self-scheduling).
 */
#ifndef GSI_NET_H
#define GSI_NET_H

#include <poll.h>
#include <stdatomic.h>
#include <stddef.h>

#include "plan/plan.h"
#include "transport/net/create.h"
#include "transport/net/rail.h"
#include "transport/transport.h"

enum {
    NET_LANES = 4,
    NET_SLOT_BYTES = 32 << 10, /* up to here one message does it */
    NET_STAGE_BYTES = 4 << 20,
    NET_CELL_HEADER = 64, /* a header, padded: the payload follows */
    NET_CELL_BYTES = NET_CELL_HEADER + NET_SLOT_BYTES,
    NET_SEND_DEPTH = 64, /* work in flight on a connection; the last few only for what is not data */
    NET_SEND_SPARE = 16,
    NET_RECV_DEPTH = 128, /* immediates on their way to one side of a connection */
    NET_RECV_SPARE = 16,
    NET_CREDIT_EVERY = 32,
    NET_WINDOW = 64, /* pieces of a flow whose arrival the sender does not know of */
    /* What the receiver can note out of order: those, and all that has come and was told of by SENT, but still waits to
     * be polled on other rails. */
    NET_AHEAD = NET_WINDOW + GSI_NET_CONNS * NET_RECV_DEPTH,
    NET_BOUNCE_BYTES = 128 << 10,
    NET_BOUNCES = 32,
    NET_RINGS = 2, /* mail: of the endpoint itself, and of the engine (point to point) */
    NET_MAIL_SLOTS = 16,
    NET_MAIL_BYTES = 320,
};

/* ---- What stands in an immediate ------------------------------------------------- */

enum net_imm_kind {
    NET_DATA = 0,   /* bit 28: the last piece of a put that signals, or a signal; stream, seq, number */
    NET_HEADER = 1, /* seq */
    NET_MAIL = 2,   /* ring, number */
    NET_DONE = 3,   /* seq: all up to it are finished at the sender */
    NET_CONTROL = 4,
};
enum net_control {
    NET_HELLO = 1,
    NET_FAIL = 2,
    NET_BYE = 3,
    NET_ROOM = 4, /* mail was read: only to wake the sender */
    NET_LOST = 6, /* this side has given up connection `conn`: sends nothing by it, and takes no SENT of it */
    NET_GONE = 5  /* this side has closed connection `conn`, after it had taken `consumed` immediates from it */
};
enum { NET_NUMBER_BITS = 17, NET_SIGNALS = 1 << 28 };

static inline uint32_t net_imm_data(uint64_t seq, int stream, uint32_t number, int signals)
{
    return (uint32_t)NET_DATA << 29 | (signals ? (uint32_t)NET_SIGNALS : 0) | (uint32_t)stream << 25 |
           (uint32_t)(seq & 255) << NET_NUMBER_BITS | (number & ((1u << NET_NUMBER_BITS) - 1));
}

static inline uint32_t net_imm(int kind, uint32_t value)
{
    return (uint32_t)kind << 29 | (value & 0xffffff);
}

static inline uint32_t net_imm_conn(int control, int conn, uint64_t consumed)
{
    return net_imm(NET_CONTROL, (uint32_t)(consumed & 0xffff) << 8 | (uint32_t)conn << 4 | (uint32_t)control);
}

/* ---- Memory that peers write to: one area a rank ------------------------------------ */

typedef struct net_letter {
    uint32_t number; /* from 1 */
    uint16_t bytes, kind;
    unsigned char body[NET_MAIL_BYTES - 8];
} net_letter;

/* What one peer writes here. */
typedef struct net_inbox {
    _Atomic uint64_t credits[GSI_NET_CONNS]; /* immediates that it has taken from each connection */
    _Atomic uint64_t mail_read[NET_RINGS];   /* mails that it has read */
    gsi_failure failure;                     /* valid once NET_FAIL arrived */
    char pad[68];
    net_letter mail[NET_RINGS][NET_MAIL_SLOTS];
    unsigned char cells[NET_LANES][NET_CELL_BYTES];
} net_inbox;
_Static_assert(offsetof(net_inbox, mail) % 64 == 0 && sizeof(net_inbox) % 64 == 0, "headers are read in place");

/* What this rank sends from: registered, untouched until the peer has it. */
typedef struct net_outbox {
    unsigned char cells[NET_LANES][NET_CELL_BYTES];
    gsi_failure failure;
    char pad[16];
} net_outbox;

/* What goes to one peer only. */
typedef struct net_outmail {
    net_letter mail[NET_RINGS][NET_MAIL_SLOTS];
    uint64_t credits[GSI_NET_CONNS];
    uint64_t mail_read[NET_RINGS];
} net_outmail;

/* ---- Own memory -------------------------------------------------------------------- */

/* Memory of this rank that the rails know. */
typedef struct net_memory {
    uint32_t id; /* of the context's register; 0: the endpoint's own */
    char *base;
    uint64_t bytes;
    gsi_region regions[GSI_NET_RAILS];
    int32_t next_peer; /* whom to tell of it next; n: all have been told */
    int32_t users;     /* work queued or in flight that reads or writes it */
    int32_t gone;      /* to be let go of when nobody uses it any more */
} net_memory;

/* A peer's, as it told. */
typedef struct net_remote {
    uint32_t id; /* 0: an empty place */
    uint64_t base, bytes;
    uint64_t keys[GSI_NET_RAILS];
} net_remote;

/* ---- Work ------------------------------------------------------------------------------ */

enum net_space { NET_TO_AREA, NET_TO_STAGE, NET_TO_MEMORY };

/* One write or read: in a queue, or in flight on a connection. */
typedef struct net_work {
    struct net_work *next;
    char *local;
    net_memory *memory; /* that holds local; NULL: inline, bounced, or no bytes */
    struct net_ticket *ticket;
    uint64_t bytes;
    uint64_t off; /* in the target */
    uint64_t seq; /* DATA: its collective */
    uint32_t mem; /* NET_TO_MEMORY */
    uint32_t imm;
    uint32_t number;  /* DATA: in its flow, once it has one */
    uint32_t ordinal; /* among the immediates of its connection */
    uint8_t space;    /* enum net_space */
    uint8_t has_imm, data, signals, read, numbered;
    uint8_t signalled, ask; /* a SENT was, or is to be, asked for */
    uint8_t probe, direct;  /* direct: never queued */
    int8_t stream;
    int16_t bounce; /* -1: none */
    char *user;     /* a bounced read: where it goes in the end */
} net_work;

typedef struct net_queue {
    net_work *head, *tail;
} net_queue;

/* A one-sided access of point-to-point operations. */
typedef struct net_ticket {
    uint32_t pieces; /* queued or in flight */
    int32_t status;
    uint64_t number; /* as the engine knows it */
    struct net_ticket *next;
} net_ticket;

/* ---- Connections and peers --------------------------------------------------------------- */

enum net_conn_state { NET_CONN_NONE, NET_CONN_NEW, NET_CONN_UP, NET_CONN_DEAD };

typedef struct net_conn {
    gsi_conn *conn;
    uint8_t rail, peer_rail; /* of this rank, of the peer */
    uint8_t state, heard, reached;
    uint8_t closing; /* dead, and still to be closed and told of */
    uint8_t settled; /* dead, and the peer has said what it got */
    uint8_t failed, told_lost, heard_lost;
    uint32_t in_flight; /* works, of which the last `quiet` did not ask for a SENT */
    uint32_t quiet;
    uint64_t in_flight_bytes;
    net_queue posted;                  /* in order */
    uint64_t sent_imm, consumed, told; /* immediates sent; taken from the peer; told to the peer */
    uint64_t bytes;                    /* sent in all */
    int64_t busy_ns;                   /* since when it has been working on what is in flight */
    uint64_t sampled;                  /* bytes completed since then */
    double rate;                       /* bytes per ns, measured; 0: not yet */
} net_conn;

/* Pieces sent of one stream of one collective: which numbers are through. Numbers up to base are; of those above it,
 * bit i of `seen` is base + 1 + i. */
typedef struct net_flow {
    uint64_t seq;
    uint64_t seen;
    uint32_t base;
    uint32_t next; /* the last number given */
    uint32_t open; /* puts and pieces that still need their source */
} net_flow;

/* Pieces received: up to base all have come; of those above it, number x is bit x modulo NET_AHEAD. */
typedef struct net_rx {
    uint64_t seq;
    uint32_t base;
    uint32_t signals; /* of those up to base */
    uint64_t seen[NET_AHEAD / 64], flagged[NET_AHEAD / 64];
} net_rx;

typedef struct net_peer {
    int rank; /* -1: not reached by this endpoint */
    int nconns, nrails;
    net_conn conns[GSI_NET_CONNS];
    uint64_t area, stage; /* addresses at the peer */
    uint64_t inbox;       /* offset in its area of what this rank writes */
    uint64_t area_keys[GSI_NET_RAILS], stage_keys[GSI_NET_RAILS];
    net_remote *remotes; /* open addressing by id */
    uint32_t nremotes, remotes_room;
    net_queue urgent, bulk;
    net_flow tx[NET_LANES][GSI_MAX_STREAMS];
    net_rx rx[NET_LANES][GSI_MAX_STREAMS];
    uint64_t entered[NET_LANES]; /* seq of the header that lies in the inbox */
    uint64_t done;
    uint64_t mail_sent[NET_RINGS], mail_got[NET_RINGS], mail_taken[NET_RINGS];
    uint32_t mail_seen[NET_RINGS]; /* bit i: mail_got + 1 + i has come */
    net_inbox *in;
    net_outmail *out;
    int heard;   /* something came since check() last looked */
    int probing; /* a probe is in flight */
    int left, lost;
    char why[160]; /* it is lost */
    int64_t pid;
    char host[64];
} net_peer;

typedef struct net_rail {
    gsi_rail *rail;
    uint64_t bytes;
    int down;
    char reason[160];
} net_rail;

typedef struct net_endpoint {
    gsi_endpoint base;
    int nrails;
    net_rail rails[GSI_NET_RAILS];
    net_peer *peers; /* n */
    char *map;       /* the area's pages: inboxes, outboxes, bounce buffers, and the stage if it is its own */
    uint64_t map_bytes;
    net_inbox *inboxes; /* n */
    net_outbox *out;
    net_outmail *outmail; /* n */
    char *stage;
    net_memory area_memory, stage_memory;
    net_memory **memories; /* users', by address */
    size_t nmemories, memories_room;
    char *bounces;
    int32_t free_bounces[NET_BOUNCES];
    int nfree_bounces;
    net_work *free_work;
    net_ticket *tickets, *free_tickets;
    uint64_t last_ticket;
    uint32_t *unsaid; /* ids of memory that is gone, whose end not all peers have been told: and how far that got */
    int32_t *unsaid_peer;
    size_t nunsaid, unsaid_room;
    uint64_t entered, finished, told_done;
    int closing; /* connections */
    int moved;   /* something has arrived or been completed since progress() was last asked */
    int mail_at; /* the peer whose mail is to be looked at next */
    uint32_t process;
    int wake_fd; /* an eventfd */
    int sleepers;
    uint64_t sleeps;
    _Atomic uint64_t wakes;
    /* The failure record: claimed by compare-and-swap, since fail() is called without the lock. */
    _Atomic int failure_state;
    _Atomic int failure_told;
    gsi_failure failure;
} net_endpoint;

enum { NET_FAILURE_NONE, NET_FAILURE_CLAIMED, NET_FAILURE_SET };

extern const gsi_endpoint_ops net_ops;

static inline net_endpoint *net_of(gsi_endpoint *ep)
{
    return (net_endpoint *)ep;
}

/* ---- Between the files ------------------------------------------------------------------- */

/* net.c */
/* Tells all how far this rank has finished, if they have not been told. */
void net_tell_done(net_endpoint *ep);

/* conn.c */
net_work *net_work_new(net_endpoint *ep);
void net_work_free(net_endpoint *ep, net_work *work);
/* Queues work for a peer; pump() posts what it can. Urgent work is what is not data: it never waits behind data. */
void net_queue_urgent(net_endpoint *ep, net_peer *peer, net_work *work);
void net_queue_bulk(net_endpoint *ep, net_peer *peer, net_work *work);
void net_pump(net_endpoint *ep, net_peer *peer);
/* A write of no bytes with an immediate. */
void net_tell(net_endpoint *ep, net_peer *peer, uint32_t imm);
/* The same, and nothing comes after it: it asks for a SENT of itself and all before. */
void net_tell_last(net_endpoint *ep, net_peer *peer, uint32_t imm);
/* The same on one connection; posted at once, past what waits. Errors: NOMEM. */
int net_tell_on(net_endpoint *ep, net_peer *peer, net_conn *conn, uint32_t imm);
/* Takes what the rails have to say; 1 if anything happened. */
int net_poll(net_endpoint *ep);
void net_conn_failed(net_endpoint *ep, net_peer *peer, net_conn *conn, const char *why);
/* The peer has closed a connection after it had taken `consumed` (16 bits) immediates from it. */
void net_conn_gone(net_endpoint *ep, net_peer *peer, net_conn *conn, uint32_t consumed);
void net_peer_lost(net_endpoint *ep, net_peer *peer, const char *why);
/* This rank may not poll for a while. */
void net_idle(net_endpoint *ep);

/* arrive.c: an immediate has arrived on a connection. */
void net_arrived(net_endpoint *ep, net_peer *peer, net_conn *conn, uint32_t imm);

/* memory.c */
int net_share(gsi_endpoint *base, const gsi_memory *mem);
void net_say_unsaid(net_endpoint *ep);
void net_unshare(gsi_endpoint *base, uint32_t id);
int net_resolve(gsi_endpoint *base, int rank, uint32_t id, void **addr, uint64_t *bytes);
/* The memory that holds [addr, addr + bytes); NULL: the rails do not know it. */
net_memory *net_memory_of(net_endpoint *ep, const void *addr, uint64_t bytes);
int net_memory_register(net_endpoint *ep, net_memory *memory, void *base, uint64_t bytes);
void net_memory_deregister(net_endpoint *ep, net_memory *memory);
void net_memory_put(net_endpoint *ep, net_memory *memory);
const net_remote *net_remote_find(const net_peer *peer, uint32_t id);
/* What a peer says of its memory. 0, or -1: nonsense. */
int net_remote_told(net_endpoint *ep, net_peer *peer, const net_letter *mail);
void net_free_memories(net_endpoint *ep);

/* mail.c */
enum net_mail_kind { NET_MAIL_SHARE = 1, NET_MAIL_UNSHARE = 2, NET_MAIL_USER = 3 };
typedef struct net_share_note {
    uint64_t base, bytes;
    uint64_t keys[GSI_NET_RAILS];
    uint32_t id, pad;
} net_share_note;
/* 1 sent, 0 no room now. */
int net_mail_send(net_endpoint *ep, net_peer *peer, int ring, int kind, const void *body, uint32_t bytes);
/* The oldest mail of a ring that has not been taken; NULL: none. net_mail_taken() lets the peer use its place again. */
const net_letter *net_mail_first(net_endpoint *ep, net_peer *peer, int ring);
void net_mail_taken(net_endpoint *ep, net_peer *peer, int ring);
int net_mail(gsi_endpoint *base, int peer, const void *msg, uint32_t bytes);
int net_mail_next(gsi_endpoint *base, int *peer, void *msg, uint32_t *bytes);
int net_rput(gsi_endpoint *base, int peer, uint32_t mem, uint64_t off, const void *src, uint64_t bytes,
             uint64_t *ticket);
int net_rget(gsi_endpoint *base, int peer, uint32_t mem, uint64_t off, void *dst, uint64_t bytes, uint64_t *ticket);
int net_rdone(gsi_endpoint *base, uint64_t ticket);
void net_ticket_done(net_ticket *ticket, int status);

/* create.c */
void net_free(net_endpoint *ep);
/* Until something happens, or a millisecond. */
void net_sleep_briefly(net_endpoint *ep, struct pollfd *fds);

#endif
