/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans: a collective as pure data. No I/O, no threads, no clocks in this folder.
 *
 * A plan is what ONE rank does: a few streams, each a straight-line program of
 * steps that run strictly in order; streams of one plan run independently of each
 * other. Every rank's plan is built from the same arguments but for the rank, so
 * the plans of all ranks fit together, which the verifier (verify.h) proves.
 *
 * Memory. Each rank has three spaces: SEND (its contribution), RECV (its result)
 * and STAGE (scratch that the transport owns). In a call in place SEND and RECV are
 * the same memory (as gradsync.h defines per collective), so every plan must be
 * right with and without that alias, and even if ranks differ in it.
 *
 * Signals. A stream of rank p and the same stream of rank q are connected: SIGNAL
 * raises p's counter at q by one, WAIT(p, v) on q continues when that counter has
 * reached v (counted from 1, from the start of the plan). A signal tells that all
 * earlier steps of the sender's stream are done and visible: local writes, and PUTs
 * to that peer. Signals of a stream arrive in order. A plan uses either signals to
 * ALL ranks (one store, on transports where peers' memory can be loaded) or to single
 * peers, never both. Every signal that is raised at a rank is awaited by it before
 * its plan ends: so a finished plan leaves nothing in flight, and plans can run one
 * after the other with the counters just going on.
 *
 * Start. With `gather` set, all ranks have exchanged headers before the first step
 * (so everyone has entered the call), and the first `eager` bytes of every rank's
 * STAGE hold what came with the header: the rank's whole SEND (of the root only, for
 * a broadcast). Without it nothing is known of the other ranks at the start.
 *
 * Hosts. Ranks of different hosts cannot load or store each other's memory: between them
 * there are PUTs and signals to single peers, and what came with the headers, only.
 *
 * PUT is asynchronous: its source may be read until a FLUSH of that peer, or until a
 * signal has been awaited that the peer raised after awaiting this PUT's own signal. A plan
 * with `gather` may end while its own STAGE is still read so: until everyone has entered
 * the next call.
 */
#ifndef GSI_PLAN_H
#define GSI_PLAN_H

#include "plan/hosts.h"

#include <gradsync/gradsync.h>

enum gsi_space { GSI_SEND = 0, GSI_RECV = 1, GSI_STAGE = 2 };
enum { GSI_ALL = -1, GSI_PARTIAL = -1, GSI_MAX_STREAMS = 8 };

/* Where bytes lie, or what lies there. */
typedef struct gsi_place {
    uint64_t off;  /* bytes from the start of the space */
    int32_t rank;  /* whose memory; another rank's only in plans with `loadstore` */
    int32_t from;  /* a source of REDUCE: the rank whose untouched contribution it is (its
                      prescale applies), or GSI_PARTIAL for a partial result */
    uint8_t space; /* enum gsi_space */
} gsi_place;

enum gsi_step_kind {
    GSI_STEP_COPY,   /* 1 source, ndst >= 1 destinations */
    GSI_STEP_REDUCE, /* nsrc >= 1 sources in this order, ndst >= 1 destinations; see reduce.h */
    GSI_STEP_PUT,    /* write src (mine) to dst (peer's memory), then, with GSI_STEP_NOTIFY, SIGNAL peer */
    GSI_STEP_SIGNAL, /* peer, or GSI_ALL */
    GSI_STEP_WAIT,   /* peer, or GSI_ALL (all others), to reach `value` */
    GSI_STEP_FLUSH,  /* wait until my PUTs of this stream to peer (or GSI_ALL) no longer need their source */
};
enum gsi_step_flags {
    GSI_STEP_NOTIFY = 1,  /* PUT: signals the peer when the data is there */
    GSI_STEP_FINAL = 2,   /* REDUCE: writes final results: the divisor of avg applies */
    GSI_STEP_ACC_IN = 4,  /* REDUCE: source 0 is an f32 partial result of f16/bf16 */
    GSI_STEP_ACC_OUT = 8, /* REDUCE: writes f32 partial results of f16/bf16 */
};

typedef struct gsi_step {
    uint8_t kind;  /* enum gsi_step_kind */
    uint8_t flags; /* enum gsi_step_flags */
    uint16_t nsrc, ndst;
    int32_t peer;
    uint32_t value; /* WAIT */
    uint32_t place; /* index of the first of its nsrc + ndst places: sources first */
    uint64_t bytes; /* COPY, PUT: of memory. REDUCE: elements times the size of the message's dtype */
} gsi_step;

typedef struct gsi_stream {
    uint32_t first, count; /* its steps */
} gsi_stream;

typedef struct gsi_plan {
    gsi_step *steps;
    gsi_place *places;
    uint32_t nsteps, nplaces;
    gsi_stream streams[GSI_MAX_STREAMS];
    int32_t nstreams;
    int32_t n, rank;
    uint8_t algo, coll;
    uint8_t gather;       /* needs the exchange of headers first */
    uint8_t loadstore;    /* reads or writes other ranks' memory directly */
    uint8_t signal_all;   /* its SIGNALs go to GSI_ALL */
    uint8_t user_memory;  /* reads or writes other ranks' SEND or RECV: it must be shareable */
    uint8_t ordered;      /* keeps the canonical order (GRADSYNC_ORDERED) */
    uint8_t slot;         /* its STAGE is the small slot that travels with the header (eager) */
    uint64_t eager;       /* bytes of SEND published with the header */
    uint64_t stage_bytes; /* of STAGE that it uses, on every rank */
    uint32_t *awaits;     /* nstreams x n: signals that this rank awaits from each rank in all */
} gsi_plan;

/* What a plan is built from. The same on every rank but for `rank`. */
typedef struct gsi_plan_args {
    int32_t algo, coll;
    int32_t n, rank, root;
    uint32_t esize;     /* bytes of an element */
    uint32_t acc_esize; /* bytes of an unrounded partial result: 4 for f16 and bf16, else esize */
    uint64_t count;     /* elements, as the collective's own count argument (a block for reduce-scatter, all-gather) */
    uint64_t stride;    /* elements from one rank's block to the next in SEND (reduce-scatter) or RECV (all-gather):
                           count, or more when a long message is done in segments */
    uint64_t stage_bytes; /* of STAGE that there are, on every rank */
    uint64_t slot_bytes;  /* of STAGE for eager plans */
    uint64_t chunk;       /* wanted bytes of a pipelined piece; 0: the builder's choice */
    uint64_t message;     /* between hosts: bytes that a message is worth besides its own; 0: 2048 */
    uint64_t head, tail; /* all-reduce, direct: bytes at both ends that not every rank's peers can reach: go by STAGE */
    uint32_t credits;    /* signals in flight from one rank to another on one stream, at most */
    uint32_t flags;      /* enum gradsync_coll_flags: ORDERED matters */
    uint32_t reach;      /* 1: PUTs of every rank reach all of every rank's RECV; else results go by STAGE too */
    uint32_t share;      /* with hosts: 1: ranks of a host can load and store all of each other's SEND and RECV */
    const gsi_hosts *hosts; /* which ranks share a host, the caller's; NULL: all of them. With hosts given the exchange
                               of headers comes before every plan: nobody has to ask for leave to begin */
    const int32_t *order;   /* n ranks in the order of the ring, the caller's; NULL: by host, or by number */
} gsi_plan_args;

/* Builds the plan of args->rank. The caller owns *out and frees it with
 * gsi_plan_free(). Errors: UNSUPPORTED (this algorithm has no plan for that: the
 * message says why), NOMEM, INVALID (nonsense, e.g. no stage at all). */
int gsi_plan_build(const gsi_plan_args *args, gsi_plan **out);
void gsi_plan_free(gsi_plan *plan);

/* The most elements that one plan of these arguments should cover: longer messages
 * are run as several plans one after the other, so that plans stay small. Pure. */
uint64_t gsi_plan_segment(const gsi_plan_args *args);

/* Rank r's part of count elements in `parts` parts whose borders are multiples of
 * `grain` elements: [*off, *off + *len). Parts differ by at most one grain. */
void gsi_plan_slice(uint64_t count, uint64_t grain, int parts, int r, uint64_t *off, uint64_t *len);

/* A readable listing, for tests and explanations; returns the length as snprintf. */
int gsi_plan_print(const gsi_plan *plan, char *text, size_t room);

#endif
