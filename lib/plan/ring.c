/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ring: reduce-scatter and all-gather on a ring (Patarasuk & Yuan 2009). In round t a
 * rank sends on the slice that it got in round t - 1; after n - 1 rounds it has one
 * slice in full, after n - 1 more all of them. Data go to the next rank only.
 *
 * Pipelined: `depth` pieces of every slice make a group; a group goes through all its
 * rounds, piece after piece, then comes the next one. So a rank sends one piece while it
 * reduces another, and what it sends on is still in its caches. Arriving pieces land in
 * STAGE slots used in turn, `depth` of them, or more between hosts, where a round takes
 * too long to wait for a slot; the receiver tells when one is free (a credit), if it will
 * be used again. A credit also tells that the source of that piece's PUT is free.
 *
 * What has a beginning and an end runs as a chain: see chain.c.
 */
#include "plan/builder.h"

enum { ENTER, DATA, CREDIT }; /* events */

#define STEPS      5  /* of one piece in one round */
#define MOST_SLOTS 16 /* between hosts */

typedef struct ring {
    uint64_t piece, grain; /* elements of a slot, and of borders */
    int depth, groups;
    int slots;                 /* at least depth */
    int reduce_rounds, rounds; /* reduce-scatter, in all */
    int slot_rounds;           /* in which pieces land in slots: the first ones */
    int partial_stage;         /* partial results have no room in RECV: they are kept in STAGE */
} ring;

static int rounds_of(const gsi_plan_args *args)
{
    return (args->coll == GRADSYNC_ALL_REDUCE ? 2 : 1) * (args->n - 1);
}

/* Pieces of a slice that a plan should have at most. */
static uint64_t most_pieces(const gsi_plan_args *args)
{
    uint64_t most = GSI_PLAN_STEPS / (STEPS * (uint64_t)rounds_of(args)), depth = (uint64_t)gsi_depth(args);

    return most > depth ? most : depth;
}

static uint64_t lay_out(const gsi_plan_args *args, uint64_t count, ring *r)
{
    uint64_t slice = args->coll == GRADSYNC_ALL_REDUCE && count ? (count - 1) / (uint64_t)args->n + 1 : count;
    uint64_t want = gsi_want(args, slice * args->esize, 4, 0, most_pieces(args));
    /* Partial results in STAGE need twice the slots: one is written before the next rank tells
     * that it has reduced the piece that is `depth` older, and all ranks do so at once. */
    uint64_t buffers = args->coll == GRADSYNC_REDUCE_SCATTER              ? 3
                       : args->coll == GRADSYNC_ALL_GATHER && args->reach ? 0
                                                                          : 1;

    r->partial_stage = args->coll == GRADSYNC_REDUCE_SCATTER;
    r->depth = gsi_depth(args);
    r->piece = 0;
    if (!buffers)
        r->piece = gsi_elements(want, args->esize);
    for (; buffers && !r->piece && r->depth >= 1; r->depth -= !r->piece)
        r->piece = gsi_piece(want, args->stage_bytes, buffers * (uint64_t)r->depth, args->esize);
    r->grain = gsi_grain(r->piece, args->esize);
    return r->piece;
}

uint64_t gsi_segment_ring(const gsi_plan_args *args)
{
    ring r;

    if (gsi_is_chain(args))
        return gsi_segment_chain(args);
    if (!lay_out(args, 0, &r))
        return 1;
    return gsi_mul(gsi_mul(r.piece, most_pieces(args)), args->coll == GRADSYNC_ALL_REDUCE ? (uint64_t)args->n : 1);
}

const char *gsi_unfit_ring(const gsi_plan_args *args)
{
    ring r;

    if (args->coll == GRADSYNC_BARRIER || !args->count)
        return NULL;
    if (gsi_is_chain(args))
        return gsi_unfit_chain(args);
    return lay_out(args, args->count, &r) ? NULL : "there is too little staging memory";
}

/* One piece in one round, as sender and receiver number it. */
typedef struct hop {
    int round, piece; /* of the slice */
    int slot;         /* which use of the slots this is; -1: it does not land in one */
} hop;

static hop hop_of(const ring *r, int i)
{
    int per_group = r->rounds * r->depth, group = i / per_group, in = i % per_group;
    hop h = {in / r->depth, group * r->depth + in % r->depth, -1};

    if (h.round < r->slot_rounds)
        h.slot = group * r->slot_rounds * r->depth + in;
    return h;
}

static int slot_uses(const ring *r)
{
    return r->groups * r->slot_rounds * r->depth;
}

/* Piece k of the slice of the rank at `place`: its bytes; *vector: where in a space that has all
 * slices, *block: where in one that has only this slice. */
static uint64_t find(const gsi_builder *b, int place, int k, uint64_t *vector, uint64_t *block)
{
    const gsi_plan_args *args = b->args;
    const ring *r = b->shape;
    int owner = gsi_at_place(args, place);
    uint64_t off, len, at, bytes;

    if (args->coll == GRADSYNC_ALL_REDUCE) {
        gsi_plan_slice(args->count, r->grain, b->n, owner, &off, &len);
    } else {
        off = (uint64_t)owner * args->stride;
        len = args->count;
    }
    gsi_plan_slice(len, r->grain, r->groups * r->depth, k, &at, &bytes);
    *vector = (off + at) * args->esize;
    *block = at * args->esize;
    return bytes * args->esize;
}

static gsi_place slot(const gsi_builder *b, int rank, int use, int from)
{
    const ring *r = b->shape;

    return gsi_raw(GSI_STAGE, rank, (uint64_t)(use % r->slots) * r->piece * b->args->esize, from);
}

/* Where the partial result waits that will land in its slot as its use number `use`. */
static gsi_place partial(const gsi_builder *b, int use, uint64_t vector)
{
    const ring *r = b->shape;

    if (!r->partial_stage)
        return gsi_at(GSI_RECV, b->rank, vector);
    return gsi_at(GSI_STAGE, b->rank, (uint64_t)(r->slots + use % (2 * r->slots)) * r->piece * b->args->esize);
}

/* Send i. */
static void send(gsi_builder *b, int place, int i)
{
    const ring *r = b->shape;
    hop h = hop_of(r, i);
    int next = gsi_at_place(b->args, place + 1);
    uint64_t vector, block, bytes = find(b, place - (r->reduce_rounds ? 1 : 0) - h.round, h.piece, &vector, &block);
    gsi_place src = gsi_at(GSI_RECV, b->rank, vector);

    if (h.round == 0)
        src = gsi_raw(GSI_SEND, b->rank, r->reduce_rounds ? vector : block, b->rank);
    else if (h.round < r->reduce_rounds)
        src = partial(b, h.slot, vector);
    if (h.slot >= r->slots)
        gsi_add_wait(b, next, GSI_EVENT(CREDIT, h.slot - r->slots));
    gsi_add_put(b, next, GSI_EVENT(DATA, i), src,
                h.slot >= 0 ? slot(b, next, h.slot, GSI_PARTIAL) : gsi_at(GSI_RECV, next, vector), bytes);
}

/* The arrival of the previous rank's send i, which is passed on as send i + depth. */
static void receive(gsi_builder *b, int place, int i)
{
    const ring *r = b->shape;
    hop h = hop_of(r, i);
    int prev = gsi_at_place(b->args, place - 1), next = gsi_at_place(b->args, place + 1);
    uint64_t vector, block, bytes = find(b, place - (r->reduce_rounds ? 2 : 1) - h.round, h.piece, &vector, &block);

    gsi_add_wait(b, prev, GSI_EVENT(DATA, i));
    if (h.round < r->reduce_rounds) {
        int last = h.round == r->reduce_rounds - 1, use = h.slot + r->depth;
        /* The buffer of a partial result is free when its last use has its credit. */
        if (!last && r->partial_stage && use >= 2 * r->slots)
            gsi_add_wait(b, next, GSI_EVENT(CREDIT, use - 2 * r->slots));
        gsi_add_step(b, GSI_STEP_REDUCE, last ? GSI_STEP_FINAL : 0, bytes);
        gsi_add_src(b, slot(b, b->rank, h.slot, h.round == 0 ? prev : GSI_PARTIAL));
        gsi_add_src(b, gsi_raw(GSI_SEND, b->rank, vector, b->rank));
        if (last)
            gsi_add_dst(b, gsi_at(GSI_RECV, b->rank, r->partial_stage ? block : vector));
        else
            gsi_add_dst(b, partial(b, use, vector));
    } else if (h.slot >= 0) {
        gsi_add_copy(b, slot(b, b->rank, h.slot, GSI_PARTIAL), gsi_at(GSI_RECV, b->rank, vector), bytes);
    }
    if (h.slot >= 0 && h.slot + r->slots < slot_uses(r))
        gsi_add_signal(b, prev, GSI_EVENT(CREDIT, h.slot));
}

static void program(gsi_builder *b)
{
    const ring *r = b->shape;
    int place = gsi_place_of(b->args, b->rank), lag = r->depth - 1, total = r->groups * r->rounds * r->depth;

    if (!b->gathered) {
        gsi_add_signal(b, gsi_at_place(b->args, place - 1), GSI_EVENT(ENTER, 0));
        gsi_add_wait(b, gsi_at_place(b->args, place + 1), GSI_EVENT(ENTER, 0));
    }
    for (int i = 0; i < total + lag; i++) {
        if (i < total)
            send(b, place, i);
        if (i >= lag)
            receive(b, place, i - lag);
        if (i == 0 && !r->reduce_rounds)
            gsi_add_copy(b, gsi_raw(GSI_SEND, b->rank, 0, b->rank),
                         gsi_at(GSI_RECV, b->rank, (uint64_t)b->rank * b->args->stride * b->args->esize),
                         b->args->count * b->args->esize);
    }
    gsi_add_flush(b, GSI_ALL);
}

int gsi_build_ring(gsi_builder *b)
{
    const gsi_plan_args *args = b->args;
    gsi_plan *plan = b->plan;
    ring r;

    if (args->coll == GRADSYNC_BARRIER || !args->count)
        return gsi_build_dissemination(b);
    if (gsi_is_chain(args))
        return gsi_build_chain(b);
    if (!lay_out(args, args->count, &r))
        return gsi_no_room(b);
    uint64_t slice = args->count;
    if (args->coll == GRADSYNC_ALL_REDUCE) {
        uint64_t grains = (args->count - 1) / r.grain + 1;
        slice = ((grains - 1) / (uint64_t)args->n + 1) * r.grain;
    }
    uint64_t pieces = (slice - 1) / r.piece + 1;
    r.reduce_rounds = args->coll == GRADSYNC_ALL_GATHER ? 0 : args->n - 1;
    r.rounds = rounds_of(args);
    r.slot_rounds = args->reach ? r.reduce_rounds : r.rounds;
    if ((uint64_t)r.depth > pieces)
        r.depth = (int)pieces;
    uint64_t groups = (pieces - 1) / (uint64_t)r.depth + 1;
    if (groups * (uint64_t)(r.rounds * r.depth) > INT32_MAX / 2)
        return gsi_too_long(b);
    r.groups = (int)groups;
    r.slots = r.depth;
    uint64_t each = (r.partial_stage ? 3 : 1) * r.piece * args->esize;
    /* As many credits as there are slots may be on their way. */
    while (args->hosts && r.slots < MOST_SLOTS && (!args->credits || r.slots < (int)args->credits / 2) &&
           r.slots < slot_uses(&r) && (uint64_t)(r.slots + 1) * each <= args->stage_bytes)
        r.slots++;
    plan->ordered = args->coll == GRADSYNC_ALL_GATHER;
    plan->user_memory = args->reach && args->coll != GRADSYNC_REDUCE_SCATTER;
    gsi_settle_gather(b);
    plan->stage_bytes = r.slot_rounds ? (uint64_t)r.slots * each : 0;
    return gsi_run_program(b, program, &r);
}
