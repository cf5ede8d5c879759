/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the hierarchical plans: what the work between hosts (hier_exchange.c,
 * hier_ring.c, hier_chain.c) and the work inside a host (hier.c) have in common.
 *
 * On every host the first `leaders` ranks own one slice each of the message (of every
 * block, for reduce-scatter and all-gather). Leader i of a host works on its slice with
 * the leaders i of the other hosts, in items (pieces), one after the other.
 *
 * Inside a host, with args->share, leaders load all local ranks' SEND and store their
 * RECV; the others only wait until that is done. Else every rank copies an item of its
 * contribution into its STAGE (IN), and the leader lays the results into an area of its
 * own STAGE (OUT), from where every rank copies them. In an exchange OUT also tells that
 * the contribution has been taken, and the IN of a later item that the results have been;
 * in a chain there may be many turns between them, so both are told (TAKEN, FREE).
 * A rank that has its host to itself is its own leader and needs none of this.
 */
#ifndef GSI_PLAN_HIER_H
#define GSI_PLAN_HIER_H

#include "plan/builder.h"

/* Events: between leaders, then inside a host. */
enum { HIER_DATA, HIER_CREDIT, HIER_RESULT, HIER_LANDED, HIER_IN, HIER_TAKEN, HIER_OUT, HIER_FREE, HIER_DONE };

typedef struct gsi_hier {
    uint64_t unit, part;    /* elements, at most: of an item (in one block), of the part of it that one host reduces */
    uint64_t grain;         /* of borders, elements */
    int leaders, items;     /* of every host; of every leader */
    int depth, deep;        /* items under way: buffers of each kind; result areas */
    int slots;              /* ring: for parts that arrive */
    int ring;               /* the hosts form a ring, each sends to its neighbour only */
    int chain;              /* along the hosts, one after the other; else an exchange between all of them */
    int whole;              /* exchange: every host gets all partial results, and reduces all of the item */
    int reduces, wide;      /* contributions are combined; partial results are f32 of f16 or bf16 */
    int start;              /* chain: the host whose contribution comes first */
    int origin, turn, hops; /* chain: results go from host origin to origin + turn, ..., origin + hops * turn */
    uint64_t in, slot, out, area, end; /* where in STAGE, bytes */
} gsi_hier;

/* A range of elements: its bytes, and where it lies in a SEND, in a RECV, and in its item. */
typedef struct gsi_hier_range {
    uint64_t bytes, send, recv, rel;
} gsi_hier_range;

/* Item k of a leader's slice, in the block of rank `block` where there are blocks. */
gsi_hier_range gsi_hier_item(const gsi_builder *b, int leader, int k, int block);
/* The part of it that is host h's to reduce. */
gsi_hier_range gsi_hier_part(const gsi_builder *b, int leader, int k, int h);

/* My host, my number among its ranks, its ranks, and the leader with my number on host h. */
int gsi_hier_host(const gsi_builder *b);
int gsi_hier_index(const gsi_builder *b);
int gsi_hier_ranks(const gsi_builder *b, int h);
int gsi_hier_local(const gsi_builder *b, int i);
int gsi_hier_peer(const gsi_builder *b, int h);
/* The ranks of host h share their memory, or are one. */
int gsi_hier_shared(const gsi_builder *b, int h);
/* Results for host h land in its leader's RECV; else in its area. */
int gsi_hier_straight(const gsi_builder *b, int h);
/* Does rank r contribute? Does it get a result? */
int gsi_hier_gives(const gsi_plan_args *args, int r);
int gsi_hier_gets(const gsi_plan_args *args, int r);

/* As its leader sees it: local rank q's contribution. */
gsi_place gsi_hier_raw(const gsi_builder *b, int q, int k, int block, gsi_hier_range range);
/* All local contributions, as sources of the step under way. */
void gsi_hier_add_raws(gsi_builder *b, int k, int block, gsi_hier_range range);
/* Where it lies in the area of results of that leader; `block`: of that rank's block. */
gsi_place gsi_hier_area(const gsi_builder *b, int rank, int k, int block, gsi_hier_range range, int from);
/* RECV of all local ranks that get results, but not of rank `but`, as destinations of the step under way. */
void gsi_hier_add_recvs(gsi_builder *b, gsi_hier_range range, int but);
/* Copies that to all of them: from `src`, my own. */
void gsi_hier_hand_out(gsi_builder *b, gsi_place src, gsi_hier_range range);

/* A leader's dealings with the other ranks of its host; no steps where they share memory. */
void gsi_hier_wait_in(gsi_builder *b, int k);
void gsi_hier_taken(gsi_builder *b, int k);
void gsi_hier_out(gsi_builder *b, int k);
/* Nobody reads the results of item k in my area any more; k < 0: nothing to wait for. */
void gsi_hier_wait_free(gsi_builder *b, int k);

/* My own results of item k, from my area. */
void gsi_hier_keep(gsi_builder *b, int k);

/* The results of item k, complete at the leader but for its own part, on to the local ranks. */
void gsi_hier_deliver(gsi_builder *b, int k);
/* Items of a ring's group. */
static inline int gsi_hier_width(const gsi_hier *l)
{
    return l->depth > 1 ? l->depth / 2 : 1;
}

/* What a leader does in turn t, and after how many turns the results of an item are taken up on host h. */
void gsi_hier_fetch(gsi_builder *b, int k); /* of an exchange: the results of item k, to begin a turn with */
void gsi_hier_exchange(gsi_builder *b, int t);
void gsi_hier_chain(gsi_builder *b, int t);
void gsi_hier_ring(gsi_builder *b, int t);
int gsi_hier_lag(const gsi_builder *b, int h);

#endif
