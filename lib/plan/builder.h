/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the algorithms build plans with: functions that append one step each.
 *
 * Signals have names here (events), and a WAIT names the event that it awaits. Which
 * number that event has among the signals from that peer depends on the peer's
 * program, so an algorithm is one function, the program, that can append the steps of
 * any rank: gsi_run_program() runs it for the plan's own rank, then rehearses it for
 * each peer that is awaited, to number the peer's events. So no algorithm counts
 * signals, and neighbours that are the same rank (a ring of 2) are nothing special.
 */
#ifndef GSI_PLAN_BUILDER_H
#define GSI_PLAN_BUILDER_H

#include "plan/plan.h"

#include <stddef.h>

/* Steps that a plan may have, about: what gsi_plan_segment() aims at. */
#define GSI_PLAN_STEPS 4096

/* Names an event: unique among the signals from one rank to another on one stream. */
#define GSI_EVENT(kind, index) ((uint64_t)(kind) << 48 | (uint64_t)(index))

typedef struct gsi_event_number {
    uint64_t event;
    uint32_t stream, number;
} gsi_event_number;

/* A WAIT and the event that it awaits. */
typedef struct gsi_awaited {
    uint64_t event;
    uint32_t step, stream;
    int32_t peer; /* -1: its number is known by now */
} gsi_awaited;

typedef struct gsi_builder {
    const gsi_plan_args *args;
    const void *shape; /* what the algorithm worked out for its program; the same for all ranks */
    gsi_plan *plan;    /* NULL in a rehearsal, which only notes the events towards `watch` */
    int32_t n, rank, watch;
    int32_t stream; /* the stream being appended to */
    int error;      /* the first error; later appends do nothing */
    int gathered;   /* all ranks have entered the call before the first step */
    int skip;       /* the step under way has no bytes: leave it out, with its places */
    uint32_t room_steps, room_places, room_waits, room_numbers;
    gsi_awaited *waits; /* the WAITs whose number is not known yet */
    uint32_t nwaits;
    gsi_event_number *numbers; /* a rehearsal's result: the events towards `watch` */
    uint32_t nnumbers;
    uint32_t raised; /* signals towards `watch` on this stream */
} gsi_builder;

typedef void gsi_program(gsi_builder *b);

/* A place; `from` is GSI_PARTIAL unless gsi_raw() says otherwise. */
gsi_place gsi_at(int space, int rank, uint64_t off);
/* A place that holds the untouched contribution of rank `from`. */
gsi_place gsi_raw(int space, int rank, uint64_t off, int from);

/* The first stream is there from the start; this begins another. */
void gsi_add_stream(gsi_builder *b);
/* A COPY or REDUCE, to be followed by its sources, then its destinations. Without
 * bytes the step and its places are left out. */
void gsi_add_step(gsi_builder *b, int kind, int flags, uint64_t bytes);
void gsi_add_src(gsi_builder *b, gsi_place place);
void gsi_add_dst(gsi_builder *b, gsi_place place);
/* COPY of one source to one destination. */
void gsi_add_copy(gsi_builder *b, gsi_place src, gsi_place dst, uint64_t bytes);
/* PUT that notifies of `event`; a bare SIGNAL where there are no bytes. */
void gsi_add_put(gsi_builder *b, int peer, uint64_t event, gsi_place src, gsi_place dst, uint64_t bytes);
/* PUT that does not notify: a later signal to the same peer tells of it. */
void gsi_add_quiet_put(gsi_builder *b, int peer, gsi_place src, gsi_place dst, uint64_t bytes);
void gsi_add_signal(gsi_builder *b, int peer, uint64_t event);
void gsi_add_wait(gsi_builder *b, int peer, uint64_t event);
/* WAIT whose number the caller knows: programs in which every pair does the same. */
void gsi_add_wait_number(gsi_builder *b, int peer, uint32_t number);
void gsi_add_signal_all(gsi_builder *b);
void gsi_add_wait_all(gsi_builder *b, uint32_t number);
/* peer or GSI_ALL. */
void gsi_add_flush(gsi_builder *b, int peer);

/* Runs the program for the plan's rank and numbers what it awaits; returns the
 * builder's error. `shape` is at the program's disposal as b->shape. */
int gsi_run_program(gsi_builder *b, gsi_program *program, const void *shape);

/* The algorithms: each fills b->plan; n >= 2 and the algorithm fits. Returns b->error. */
int gsi_build_oneshot(gsi_builder *b);
int gsi_build_direct(gsi_builder *b);
int gsi_build_staged(gsi_builder *b);
int gsi_build_ring(gsi_builder *b);
int gsi_build_tree(gsi_builder *b);
int gsi_build_doubling(gsi_builder *b);
int gsi_build_pairwise(gsi_builder *b);
int gsi_build_hier(gsi_builder *b);

/* How the hierarchical plan of these arguments, which fit, would be. */
typedef struct gsi_hier_cost {
    int leaders, items; /* of a host; of a leader */
    int whole, chain;
    int ring; /* items of a group; 0: no ring */
} gsi_hier_cost;
void gsi_hier_costs(const gsi_plan_args *args, gsi_hier_cost *out);

/* Why the algorithm has no plan for these arguments, in a clause; NULL: it has one. */
const char *gsi_unfit_oneshot(const gsi_plan_args *args);
const char *gsi_unfit_direct(const gsi_plan_args *args);
const char *gsi_unfit_staged(const gsi_plan_args *args);
const char *gsi_unfit_ring(const gsi_plan_args *args);
const char *gsi_unfit_tree(const gsi_plan_args *args);
const char *gsi_unfit_doubling(const gsi_plan_args *args);
const char *gsi_unfit_pairwise(const gsi_plan_args *args);
const char *gsi_unfit_hier(const gsi_plan_args *args);
/* The one of args->algo. */
const char *gsi_unfit(const gsi_plan_args *args);

/* The parts of ring that are chains. */
int gsi_is_chain(const gsi_plan_args *args);
int gsi_build_chain(gsi_builder *b);
const char *gsi_unfit_chain(const gsi_plan_args *args);
uint64_t gsi_segment_chain(const gsi_plan_args *args);

/* A barrier by dissemination (Hensgen, Finkel & Manber 1988): log2 n rounds of single
 * signals. Also what ring, doubling and tree do with a message of no elements. */
int gsi_build_dissemination(gsi_builder *b);

/* Elements that one plan of these arguments should cover at most, by algorithm;
 * UINT64_MAX: any number. */
uint64_t gsi_segment_staged(const gsi_plan_args *args);
uint64_t gsi_segment_ring(const gsi_plan_args *args);
uint64_t gsi_segment_tree(const gsi_plan_args *args);
uint64_t gsi_segment_pairwise(const gsi_plan_args *args);
uint64_t gsi_segment_hier(const gsi_plan_args *args);

/* Elements that staged does in one block (of a rank's block, for reduce-scatter and all-gather). */
uint64_t gsi_staged_block(const gsi_plan_args *args);

/* Elements of a pipelined piece: `want` bytes, no more than `slots` of them fit in
 * `stage` bytes, whole cache lines if it can be. 0: not even one element fits. */
uint64_t gsi_piece(uint64_t want, uint64_t stage, uint64_t slots, uint32_t esize);
/* Whole elements in `bytes`, at least one. */
uint64_t gsi_elements(uint64_t bytes, uint32_t esize);
/* The grain (elements) of borders inside something cut into pieces of `piece` elements. */
uint64_t gsi_grain(uint64_t piece, uint32_t esize);
/* Bytes wanted in a piece of something of `bytes`, of which a plan should have no more than `most`
 * pieces: a 1/share of it, within limits, if args->chunk does not say. Between hosts it is told from what a message
 * costs, and over how many `hops` the bytes go one after the other; 0: to and fro. bytes 0: the largest that is
 * ever wanted. */
uint64_t gsi_want(const gsi_plan_args *args, uint64_t bytes, uint64_t share, int hops, uint64_t most);
/* Says what the plan needs besides user memory; with hosts it always has the headers. */
void gsi_settle_gather(gsi_builder *b);
/* Pieces that may be under way from one rank to another at once. */
int gsi_depth(const gsi_plan_args *args);
/* Fails: the message has more pieces than one plan can have. */
int gsi_too_long(gsi_builder *b);
/* Fails: gsi_unfit() was not asked whether there is staging for this. */
int gsi_no_room(gsi_builder *b);
/* The order of ranks on a ring: the place of a rank, and the rank at a place >= -n. */
int gsi_place_of(const gsi_plan_args *args, int rank);
int gsi_at_place(const gsi_plan_args *args, int place);
/* a * b, or UINT64_MAX where that is less than the product. */
uint64_t gsi_mul(uint64_t a, uint64_t b);

#endif
