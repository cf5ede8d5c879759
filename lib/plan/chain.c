/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring's collectives that have a beginning and an end, as pipelined chains: the
 * message goes along in pieces (items), each rank working on another.
 *
 * A broadcast runs from the root round to the last rank; a reduce from the rank after
 * the root round to the root. An ORDERED reduction gathers its contributions along
 * 0 -> 1 -> ... -> n-1, in f32 for f16 and bf16, which is the canonical order; the
 * results then go on round from n-1 as far as they are wanted: one rank for reduce and
 * for a block of reduce-scatter, all of them for all-reduce.
 *
 * Credits as on the ring. Positions: v along the contributions, w along the results.
 */
#include "plan/builder.h"

enum { ENTER, DATA, CREDIT, RESULT, RESULT_CREDIT }; /* events */

#define STEPS 10 /* of one item on one rank */

typedef struct chain {
    uint64_t piece, grain; /* elements of an item, and of borders */
    int pieces;            /* of the message, or of a block of reduce-scatter */
    int items;
    int depth;
    int reduces;
    int wide;                                 /* partial results are f32 of f16 or bf16 */
    int start;                                /* place of the first contribution */
    int origin;                               /* place where results start */
    int hops;                                 /* the furthest that a result goes */
    int relay;                                /* results pass through ranks that do not want them, by STAGE */
    int straight;                             /* results go straight into RECV */
    uint64_t slot, out, result, relayed, end; /* where in STAGE, bytes: each `depth` pieces */
} chain;

int gsi_is_chain(const gsi_plan_args *args)
{
    return args->coll == GRADSYNC_BROADCAST || args->coll == GRADSYNC_REDUCE ||
           ((args->flags & GRADSYNC_ORDERED) && args->coll != GRADSYNC_ALL_GATHER);
}

static int ring_distance(const gsi_plan_args *args, int from, int to)
{
    return to >= from ? to - from : to - from + args->n;
}

/* Pieces of the message, or of a block, that a plan should have at most. */
static uint64_t most_pieces(const gsi_plan_args *args)
{
    uint64_t most = GSI_PLAN_STEPS / STEPS / (args->coll == GRADSYNC_REDUCE_SCATTER ? (uint64_t)args->n : 1);

    return most ? most : 1;
}

static uint64_t lay_out(const gsi_plan_args *args, uint64_t count, chain *c)
{
    int ordered = (args->flags & GRADSYNC_ORDERED) && args->coll != GRADSYNC_BROADCAST, n = args->n;
    int root = gsi_place_of(args, args->root);
    uint64_t want = gsi_want(args, count * args->esize, 16, args->n - 1, most_pieces(args));
    uint64_t esize = args->esize;

    c->reduces = args->coll != GRADSYNC_BROADCAST;
    c->wide = ordered && args->acc_esize > esize;
    c->start = 0;
    c->origin = n - 1;
    c->hops = n - 1;
    if (args->coll == GRADSYNC_BROADCAST) {
        c->origin = root;
    } else if (args->coll == GRADSYNC_REDUCE) {
        c->start = ordered ? 0 : (root + 1) % n;
        c->origin = ordered ? n - 1 : root;
        c->hops = ordered ? ring_distance(args, n - 1, args->root) : 0;
    }
    c->straight = args->reach && (args->coll == GRADSYNC_BROADCAST || args->coll == GRADSYNC_ALL_REDUCE);
    c->relay = args->coll == GRADSYNC_REDUCE_SCATTER || (args->coll == GRADSYNC_REDUCE && c->hops);
    uint64_t width = c->wide ? args->acc_esize : esize;
    /* Bytes of STAGE for each element of a piece and unit of depth. */
    uint64_t each = (c->reduces ? 2 * width : 0) + (c->hops && !c->straight ? esize : 0) + (c->relay ? esize : 0);
    c->depth = gsi_depth(args);
    c->piece = 0;
    if (!each)
        c->piece = gsi_elements(want, args->esize);
    for (; each && !c->piece && c->depth >= 1; c->depth -= !c->piece)
        c->piece = gsi_piece(want, args->stage_bytes / each * esize, (uint64_t)c->depth, args->esize);
    c->grain = gsi_grain(c->piece, args->esize);
    uint64_t deep = (uint64_t)c->depth * c->piece;
    c->slot = 0;
    c->out = deep * (c->reduces ? width : 0);
    c->result = c->out * 2;
    c->relayed = c->result + deep * (c->hops && !c->straight ? esize : 0);
    c->end = c->relayed + deep * (c->relay ? esize : 0);
    return c->piece;
}

const char *gsi_unfit_chain(const gsi_plan_args *args)
{
    chain c;

    return lay_out(args, args->count, &c) ? NULL : "there is too little staging memory";
}

uint64_t gsi_segment_chain(const gsi_plan_args *args)
{
    chain c;

    if (!lay_out(args, 0, &c))
        return 1;
    return gsi_mul(c.piece, most_pieces(args));
}

/* The ORDERED chain goes by rank; the others by the ring's order. */
static int at(const gsi_builder *b, int place)
{
    if (b->args->flags & GRADSYNC_ORDERED && b->args->coll != GRADSYNC_BROADCAST)
        return place % b->n;
    return gsi_at_place(b->args, place);
}

/* How far the result of item k goes. */
static int reach_of(const gsi_builder *b, int k)
{
    const chain *c = b->shape;

    return b->args->coll == GRADSYNC_REDUCE_SCATTER ? ring_distance(b->args, b->n - 1, k / c->pieces) : c->hops;
}

/* Does the result of item k go from w to w + 1? */
static int travels(const gsi_builder *b, int k, int w)
{
    const chain *c = b->shape;

    return k >= 0 && k < c->items && reach_of(b, k) > w;
}

/* Item k: its bytes, and where it lies among the contributions and in its results. */
static uint64_t find(const gsi_builder *b, int k, uint64_t *send, uint64_t *recv)
{
    const chain *c = b->shape;
    uint64_t off, len, block = (uint64_t)(k / c->pieces) * b->args->stride;

    gsi_plan_slice(b->args->count, c->grain, c->pieces, k % c->pieces, &off, &len);
    *recv = off * b->args->esize;
    *send = b->args->coll == GRADSYNC_REDUCE_SCATTER ? (block + off) * b->args->esize : *recv;
    return len * b->args->esize;
}

/* Buffer k of the `depth` that lie at `base` in a rank's STAGE; wide: for f32 partial results. */
static gsi_place buffer(const gsi_builder *b, int rank, uint64_t base, int k, int wide, int from)
{
    const chain *c = b->shape;
    uint64_t width = wide && c->wide ? b->args->acc_esize : b->args->esize;

    return gsi_raw(GSI_STAGE, rank, base + (uint64_t)(k % c->depth) * c->piece * width, from);
}

/* The contributions to item k, as far as this rank, at place v of the chain, sees them. */
static void gather_item(gsi_builder *b, int v, int w, int k)
{
    const chain *c = b->shape;
    int me = b->rank, last = v == b->n - 1;
    int prev = v ? at(b, c->start + v - 1) : -1, next = last ? -1 : at(b, c->start + v + 1);
    uint64_t send, recv, bytes = find(b, k, &send, &recv);
    gsi_place mine = gsi_raw(GSI_SEND, me, send, me);

    if (prev >= 0)
        gsi_add_wait(b, prev, GSI_EVENT(DATA, k));
    if (!last && k >= c->depth)
        gsi_add_wait(b, next, GSI_EVENT(CREDIT, k - c->depth));
    if (prev >= 0) {
        int flags = last ? GSI_STEP_FINAL : c->wide ? GSI_STEP_ACC_OUT : 0;
        int relay = last && reach_of(b, k) && c->relay;
        if (c->wide && v > 1)
            flags |= GSI_STEP_ACC_IN;
        if (relay && travels(b, k - c->depth, w))
            gsi_add_wait(b, at(b, c->origin + 1), GSI_EVENT(RESULT_CREDIT, k - c->depth));
        gsi_add_step(b, GSI_STEP_REDUCE, flags, bytes);
        gsi_add_src(b, buffer(b, me, c->slot, k, 1, v == 1 ? prev : GSI_PARTIAL));
        gsi_add_src(b, mine);
        if (!last)
            gsi_add_dst(b, buffer(b, me, c->out, k, 1, GSI_PARTIAL));
        else if (relay)
            gsi_add_dst(b, buffer(b, me, c->relayed, k, 0, GSI_PARTIAL));
        else
            gsi_add_dst(b, gsi_at(GSI_RECV, me, recv));
        if (k + c->depth < c->items)
            gsi_add_signal(b, prev, GSI_EVENT(CREDIT, k));
    }
    if (!last)
        gsi_add_put(b, next, GSI_EVENT(DATA, k), v ? buffer(b, me, c->out, k, 1, GSI_PARTIAL) : mine,
                    buffer(b, next, c->slot, k, 1, GSI_PARTIAL),
                    v && c->wide ? bytes / b->args->esize * b->args->acc_esize : bytes);
}

/* The result of item k, at distance w from where the results start. */
static void spread_item(gsi_builder *b, int w, int k)
{
    const chain *c = b->shape;
    int me = b->rank, on = reach_of(b, k) > w; /* goes on from here */
    int prev = at(b, c->origin + w - 1 + b->n), next = at(b, c->origin + w + 1);
    uint64_t send, recv, bytes = find(b, k, &send, &recv);
    gsi_place result = gsi_at(GSI_RECV, me, recv), relayed = buffer(b, me, c->relayed, k, 0, GSI_PARTIAL), src = result;

    if (w > reach_of(b, k))
        return;
    if (w == 0 && !c->reduces)
        src = gsi_raw(GSI_SEND, me, send, me);
    else if (c->relay)
        src = relayed;
    if (w > 0) {
        gsi_add_wait(b, prev, GSI_EVENT(RESULT, k));
        /* The buffer that is passed on is free when its last use has its credit. */
        if (on && c->relay && travels(b, k - c->depth, w))
            gsi_add_wait(b, next, GSI_EVENT(RESULT_CREDIT, k - c->depth));
        if (!c->straight) {
            gsi_add_copy(b, buffer(b, me, c->result, k, 0, GSI_PARTIAL), on && c->relay ? relayed : result, bytes);
            if (travels(b, k + c->depth, w - 1))
                gsi_add_signal(b, prev, GSI_EVENT(RESULT_CREDIT, k));
        }
    }
    if (on) {
        if (!c->relay && !c->straight && travels(b, k - c->depth, w))
            gsi_add_wait(b, next, GSI_EVENT(RESULT_CREDIT, k - c->depth));
        gsi_add_put(b, next, GSI_EVENT(RESULT, k), src,
                    c->straight ? gsi_at(GSI_RECV, next, recv) : buffer(b, next, c->result, k, 0, GSI_PARTIAL), bytes);
    }
    if (w == 0 && !c->reduces)
        gsi_add_copy(b, src, result, bytes);
}

/* Leave to write to my STAGE goes to those who will; theirs is awaited. */
static void enter(gsi_builder *b, int v, int w)
{
    const chain *c = b->shape;
    int up = c->reduces && v > 0 ? at(b, c->start + v - 1) : -1;
    int up_next = c->reduces && v < b->n - 1 ? at(b, c->start + v + 1) : -1;
    int down = w > 0 && w <= c->hops ? at(b, c->origin + w - 1) : -1;
    int down_next = w < c->hops ? at(b, c->origin + w + 1) : -1;

    if (up >= 0)
        gsi_add_signal(b, up, GSI_EVENT(ENTER, 0));
    if (down >= 0 && down != up)
        gsi_add_signal(b, down, GSI_EVENT(ENTER, 0));
    if (up_next >= 0)
        gsi_add_wait(b, up_next, GSI_EVENT(ENTER, 0));
    if (down_next >= 0 && down_next != up_next)
        gsi_add_wait(b, down_next, GSI_EVENT(ENTER, 0));
}

static void program(gsi_builder *b)
{
    const chain *c = b->shape;
    int ordered = (b->args->flags & GRADSYNC_ORDERED) && c->reduces;
    int place = ordered ? b->rank : gsi_place_of(b->args, b->rank);
    int v = ring_distance(b->args, c->start, place), w = ring_distance(b->args, c->origin, place);
    /* A result is here n items of time after its contributions were: go on with those meanwhile. One
     * less if the result waits in a buffer for leave to go on: or all would wait at a depth of 1. */
    int lag = c->reduces && w ? b->n - c->relay : 0;

    if (!b->gathered)
        enter(b, v, w);
    for (int k = 0; k < c->items + lag; k++) {
        if (c->reduces && k < c->items)
            gather_item(b, v, w, k);
        if (c->hops && k >= lag)
            spread_item(b, w, k - lag);
    }
    gsi_add_flush(b, GSI_ALL);
}

int gsi_build_chain(gsi_builder *b)
{
    const gsi_plan_args *args = b->args;
    gsi_plan *plan = b->plan;
    chain c;

    if (!lay_out(args, args->count, &c))
        return gsi_no_room(b);
    uint64_t pieces = (args->count - 1) / c.piece + 1,
             blocks = args->coll == GRADSYNC_REDUCE_SCATTER ? (uint64_t)args->n : 1;
    if (pieces * blocks > INT32_MAX / 2)
        return gsi_too_long(b);
    c.pieces = (int)pieces;
    c.items = c.pieces * (int)blocks;
    plan->ordered = !c.reduces || (args->flags & GRADSYNC_ORDERED);
    plan->user_memory = c.straight != 0;
    gsi_settle_gather(b);
    plan->stage_bytes = c.end;
    return gsi_run_program(b, program, &c);
}
