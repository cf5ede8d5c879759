/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pairwise: every slice straight to its owner, who reduces all contributions in rank
 * order, and the result straight to everybody. Each rank starts with another peer.
 *
 * Pipelined in pieces, a few STAGE slots for each peer, and no credits of their own:
 * what a peer sends next tells that it has done with what it got before. The programs
 * of all pairs are alike, so that signals are numbered by formula (`*_number`).
 */
#include "plan/builder.h"

enum { ENTER, DATA, RESULT, CREDIT }; /* events; only their numbers matter here */

typedef struct pairwise {
    uint64_t piece, grain; /* elements */
    int pieces;            /* of a slice */
    int ahead;             /* pieces sent before the result of one is awaited, at least 2 */
    int lag;               /* pieces sent before one is reduced: then its result is on the way in time */
} pairwise;

static int gathers(const gsi_plan_args *args)
{
    return args->coll == GRADSYNC_ALL_GATHER || args->coll == GRADSYNC_BROADCAST;
}

/* Elements that are cut into slices, and how many. A broadcast's root has none of its own. */
static uint64_t sliced(const gsi_plan_args *args, uint64_t *slices)
{
    *slices = args->coll == GRADSYNC_ALL_REDUCE || args->coll == GRADSYNC_REDUCE ? (uint64_t)args->n
              : args->coll == GRADSYNC_BROADCAST                                 ? (uint64_t)args->n - 1
                                                                                 : 1;
    return args->count;
}

/*
 * STAGE in pieces, for a rank that has n - 1 peers:
 *   reductions: `ahead` contributions of each peer, then as many results of each, then of mine
 *   gathers:    2 `ahead` pieces of each peer, then `ahead` from the root of a broadcast
 */
static uint64_t slots_of(const gsi_plan_args *args, int ahead)
{
    uint64_t peers = (uint64_t)args->n - 1, deep = (uint64_t)ahead, through = args->reach ? 0 : deep;

    switch (args->coll) {
    case GRADSYNC_ALL_REDUCE:
        return (deep + through) * peers;
    case GRADSYNC_REDUCE:
        return (deep + through) * peers + deep;
    case GRADSYNC_REDUCE_SCATTER:
        return deep * peers;
    case GRADSYNC_ALL_GATHER:
        return 2 * through * peers;
    default:
        return 2 * through * peers + through;
    }
}

/* Pieces of a slice that a plan should have at most. */
static uint64_t most_pieces(const gsi_plan_args *args)
{
    uint64_t most = GSI_PLAN_STEPS / (5 * (uint64_t)args->n);

    return most > 2 ? most : 2;
}

static uint64_t lay_out(const gsi_plan_args *args, uint64_t count, pairwise *p)
{
    uint64_t slices;

    sliced(args, &slices);
    uint64_t slice = count / slices + (count % slices != 0);
    uint64_t want = gsi_want(args, slice * args->esize, 4, 0, most_pieces(args)), slots;
    /* Between hosts a piece's result is not back before the next one is on the wire. */
    p->ahead = args->hosts && gsi_depth(args) > 2 ? gsi_depth(args) : 2;
    for (;; p->ahead--) {
        slots = slots_of(args, p->ahead);
        if (slots)
            p->piece = gsi_piece(want, args->stage_bytes, slots, args->esize);
        else
            /* Nothing is staged: a slice is one PUT, except where it is passed on. */
            p->piece = args->coll == GRADSYNC_ALL_GATHER ? slice : gsi_elements(want, args->esize);
        if (p->ahead == 2 || gsi_mul(slots, want) <= args->stage_bytes)
            break;
    }
    p->lag = p->ahead / 2;
    p->grain = gsi_grain(p->piece, args->esize);
    return p->piece;
}

uint64_t gsi_segment_pairwise(const gsi_plan_args *args)
{
    pairwise p;
    uint64_t slices;

    if (args->coll == GRADSYNC_ALL_GATHER && args->reach)
        return UINT64_MAX;
    sliced(args, &slices);
    if (!lay_out(args, 0, &p))
        return 1;
    return gsi_mul(gsi_mul(p.piece, most_pieces(args)), slices);
}

const char *gsi_unfit_pairwise(const gsi_plan_args *args)
{
    pairwise p;

    if (args->coll == GRADSYNC_BARRIER || !args->count)
        return NULL;
    return lay_out(args, args->count, &p) ? NULL : "there is too little staging memory for so many ranks";
}

/* Piece k of rank `owner`'s slice: its bytes; *send, *recv: where among the contributions and the results. */
static uint64_t find(const gsi_builder *b, int owner, int k, uint64_t *send, uint64_t *recv)
{
    const gsi_plan_args *args = b->args;
    const pairwise *p = b->shape;
    uint64_t slices, off = 0, len = sliced(args, &slices), at, bytes, stride = (uint64_t)owner * args->stride;
    int index = args->coll == GRADSYNC_BROADCAST ? (owner - args->root - 1 + b->n) % b->n : owner;

    if (slices > 1)
        gsi_plan_slice(args->count, p->grain, (int)slices, index, &off, &len);
    gsi_plan_slice(len, p->grain, p->pieces, k, &at, &bytes);
    off += at;
    *send = (off + (args->coll == GRADSYNC_REDUCE_SCATTER ? stride : 0)) * args->esize;
    *recv = (off + (args->coll == GRADSYNC_ALL_GATHER ? stride : 0)) * args->esize;
    return bytes * args->esize;
}

static gsi_place slot(const gsi_builder *b, int rank, uint64_t index, int from)
{
    const pairwise *p = b->shape;

    return gsi_raw(GSI_STAGE, rank, index * p->piece * b->args->esize, from);
}

/* The slot at `rank` for piece k from `peer`, of `deep` ones each, the first at `base`. */
static gsi_place slot_of(const gsi_builder *b, int base, int deep, int rank, int peer, int k, int from)
{
    uint64_t peers = (uint64_t)b->n - 1;

    return slot(b, rank, (uint64_t)base + (uint64_t)(k % deep) * peers + (uint64_t)(peer < rank ? peer : peer - 1),
                from);
}

static int peer_at(const gsi_builder *b, int i)
{
    return (b->rank + i) % b->n;
}

/* ---- reductions ---- */

/* Does rank `to` get the results, rather than only the news that it may send on? */
static int wanted(const gsi_builder *b, int to)
{
    return b->args->coll == GRADSYNC_ALL_REDUCE || (b->args->coll == GRADSYNC_REDUCE && to == b->args->root);
}

/* From each rank to each: DATA(0), ..., DATA(lag), RESULT(0), DATA(lag + 1), RESULT(1), ... The last RESULTs
 * are missing where they would be no more than leave to send. */
static uint32_t data_number(const gsi_builder *b, int k)
{
    const pairwise *p = b->shape;
    int results = k >= p->lag ? k - p->lag : 0, most = p->pieces > p->ahead ? p->pieces - p->ahead : 0;

    if (!wanted(b, b->rank) && results > most)
        results = most;
    return (uint32_t)(!b->gathered + k + 1 + results);
}

static uint32_t result_number(const gsi_builder *b, int k)
{
    const pairwise *p = b->shape;

    return (uint32_t)(!b->gathered + k + 1 + (k + p->lag < p->pieces ? k + p->lag + 1 : p->pieces));
}

/* The exchange with one peer in round k: its result k - p->ahead, then my contribution k. */
static void exchange(gsi_builder *b, int peer, int k)
{
    const pairwise *p = b->shape;
    int me = b->rank, deep = p->ahead * (b->n - 1);
    uint64_t send, recv;

    if (k >= p->ahead && (wanted(b, me) || k < p->pieces)) {
        gsi_add_wait_number(b, peer, result_number(b, k - p->ahead));
        if (wanted(b, me) && !b->args->reach) {
            uint64_t bytes = find(b, peer, k - p->ahead, &send, &recv);
            gsi_add_copy(b, slot_of(b, deep, p->ahead, me, peer, k, GSI_PARTIAL), gsi_at(GSI_RECV, me, recv), bytes);
        }
    }
    if (k < p->pieces) {
        uint64_t bytes = find(b, peer, k, &send, &recv);
        gsi_add_put(b, peer, GSI_EVENT(DATA, k), gsi_raw(GSI_SEND, me, send, me),
                    slot_of(b, 0, p->ahead, peer, me, k, GSI_PARTIAL), bytes);
    }
}

static void reduce_piece(gsi_builder *b, int k)
{
    const pairwise *p = b->shape;
    int me = b->rank, deep = p->ahead * (b->n - 1), keeps = b->args->coll == GRADSYNC_REDUCE && me != b->args->root;
    uint64_t send, recv, bytes = find(b, me, k, &send, &recv);
    gsi_place result = gsi_at(GSI_RECV, me, recv);

    if (keeps)
        result = slot(b, me, slots_of(b->args, p->ahead) - (uint64_t)p->ahead + (uint64_t)(k % p->ahead), GSI_PARTIAL);
    for (int i = 1; i < b->n; i++)
        gsi_add_wait_number(b, peer_at(b, i), data_number(b, k));
    gsi_add_step(b, GSI_STEP_REDUCE, GSI_STEP_FINAL, bytes);
    for (int r = 0; r < b->n; r++)
        gsi_add_src(b, r == me ? gsi_raw(GSI_SEND, me, send, me) : slot_of(b, 0, p->ahead, me, r, k, r));
    gsi_add_dst(b, result);
    for (int i = 1; i < b->n; i++) {
        int peer = peer_at(b, i);
        if (wanted(b, peer))
            gsi_add_put(b, peer, GSI_EVENT(RESULT, k), result,
                        b->args->reach ? gsi_at(GSI_RECV, peer, recv)
                                       : slot_of(b, deep, p->ahead, peer, me, k, GSI_PARTIAL),
                        bytes);
        else if (k + p->ahead < p->pieces)
            gsi_add_signal(b, peer, GSI_EVENT(RESULT, k));
    }
}

static void reduction(gsi_builder *b)
{
    const pairwise *p = b->shape;

    for (int k = 0; k < p->pieces + p->ahead; k++) {
        for (int i = 1; i < b->n; i++)
            exchange(b, peer_at(b, i), k);
        if (k >= p->lag && k - p->lag < p->pieces)
            reduce_piece(b, k - p->lag);
    }
}

/* ---- gathers ---- */

/* From each rank to each, or from and to the root: one kind of signal only. */
static uint32_t number(int entered, int k)
{
    return (uint32_t)(entered + k + 1);
}

/* Round k with one peer: its piece k - p->ahead, then mine, which lies at `space`. */
static void trade(gsi_builder *b, int peer, int space, int k)
{
    const pairwise *p = b->shape;
    int me = b->rank, deep = 2 * p->ahead;
    uint64_t send, recv;

    if (k >= p->ahead) {
        uint64_t bytes = find(b, peer, k - p->ahead, &send, &recv);
        gsi_add_wait_number(b, peer, number(!b->gathered, k - p->ahead));
        if (!b->args->reach)
            gsi_add_copy(b, slot_of(b, 0, deep, me, peer, k - p->ahead, GSI_PARTIAL), gsi_at(GSI_RECV, me, recv),
                         bytes);
    }
    if (k < p->pieces) {
        uint64_t bytes = find(b, me, k, &send, &recv);
        gsi_add_put(b, peer, GSI_EVENT(DATA, k),
                    space == GSI_SEND ? gsi_raw(GSI_SEND, me, send, me) : gsi_at(GSI_RECV, me, recv),
                    b->args->reach ? gsi_at(GSI_RECV, peer, recv) : slot_of(b, 0, deep, peer, me, k, GSI_PARTIAL),
                    bytes);
    }
}

static void all_gather(gsi_builder *b)
{
    const pairwise *p = b->shape;
    const gsi_plan_args *args = b->args;

    for (int k = 0; k < p->pieces + p->ahead; k++) {
        for (int i = 1; i < b->n; i++)
            trade(b, peer_at(b, i), GSI_SEND, k);
        if (k == 0)
            gsi_add_copy(b, gsi_raw(GSI_SEND, b->rank, 0, b->rank),
                         gsi_at(GSI_RECV, b->rank, (uint64_t)b->rank * args->stride * args->esize),
                         args->count * args->esize);
    }
}

/* The slot for what comes from the root. */
static gsi_place root_slot(const gsi_builder *b, int rank, int k)
{
    const pairwise *p = b->shape;

    return slot(b, rank, slots_of(b->args, p->ahead) - (uint64_t)p->ahead + (uint64_t)(k % p->ahead), GSI_PARTIAL);
}

/* The root gives every other rank its slice. */
static void scatter(gsi_builder *b)
{
    const pairwise *p = b->shape;
    int me = b->rank;
    uint64_t send, recv;

    for (int k = 0; k < p->pieces; k++)
        for (int i = 1; i < b->n; i++) {
            int peer = peer_at(b, i);
            uint64_t bytes = find(b, peer, k, &send, &recv);
            if (!b->args->reach && k >= p->ahead)
                gsi_add_wait_number(b, peer, number(!b->gathered, k - p->ahead));
            gsi_add_put(b, peer, GSI_EVENT(DATA, k), gsi_raw(GSI_SEND, me, send, me),
                        b->args->reach ? gsi_at(GSI_RECV, peer, recv) : root_slot(b, peer, k), bytes);
        }
    gsi_add_copy(b, gsi_raw(GSI_SEND, me, 0, me), gsi_at(GSI_RECV, me, 0), b->args->count * b->args->esize);
}

/* The others pass theirs on to each other. */
static void pass_on(gsi_builder *b)
{
    const pairwise *p = b->shape;
    int me = b->rank, root = b->args->root;
    uint64_t send, recv;

    for (int k = 0; k < p->pieces + p->ahead; k++) {
        if (k < p->pieces) {
            uint64_t bytes = find(b, me, k, &send, &recv);
            gsi_add_wait_number(b, root, number(0, k));
            if (!b->args->reach) {
                gsi_add_copy(b, root_slot(b, me, k), gsi_at(GSI_RECV, me, recv), bytes);
                if (k + p->ahead < p->pieces)
                    gsi_add_signal(b, root, GSI_EVENT(CREDIT, k));
            }
        }
        for (int i = 1; i < b->n; i++)
            if (peer_at(b, i) != root)
                trade(b, peer_at(b, i), GSI_RECV, k);
    }
}

static void program(gsi_builder *b)
{
    int cast = b->args->coll == GRADSYNC_BROADCAST, root = b->args->root;

    if (!b->gathered) {
        /* Nobody writes to the root of a broadcast. */
        for (int i = 1; i < b->n && !(cast && b->rank == root); i++)
            gsi_add_signal(b, peer_at(b, i), GSI_EVENT(ENTER, 0));
        for (int i = 1; i < b->n; i++)
            if (!cast || peer_at(b, i) != root)
                gsi_add_wait_number(b, peer_at(b, i), 1);
    }
    if (!gathers(b->args))
        reduction(b);
    else if (!cast)
        all_gather(b);
    else if (b->rank == root)
        scatter(b);
    else
        pass_on(b);
    gsi_add_flush(b, GSI_ALL);
}

int gsi_build_pairwise(gsi_builder *b)
{
    const gsi_plan_args *args = b->args;
    gsi_plan *plan = b->plan;
    pairwise p;
    uint64_t slices;

    if (args->coll == GRADSYNC_BARRIER || !args->count)
        return gsi_build_dissemination(b);
    if (!lay_out(args, args->count, &p))
        return gsi_no_room(b);
    sliced(args, &slices);
    uint64_t grains = (args->count - 1) / p.grain + 1, slice = args->count;
    if (slices > 1)
        slice = ((grains - 1) / slices + 1) * p.grain;
    uint64_t pieces = (slice - 1) / p.piece + 1;
    if (pieces > INT32_MAX / 4)
        return gsi_too_long(b);
    p.pieces = (int)pieces;
    plan->ordered = 1;
    plan->user_memory = args->reach && args->coll != GRADSYNC_REDUCE_SCATTER;
    gsi_settle_gather(b);
    plan->stage_bytes = slots_of(args, p.ahead) * p.piece * args->esize;
    return gsi_run_program(b, program, &p);
}
