/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Staged: what direct does, for memory that peers cannot reach, through STAGE in
 * pieces that stay in the caches. A rank copies in only what others reduce, reduces
 * its piece from the peers' STAGE and its own private memory, and fetches the rest.
 *
 * The message is done in blocks of one piece a rank. An all-reduce takes two exchanges of
 * signals a block; STAGE holds two blocks in turn, since one that is two blocks old is
 * no longer read. The others pipeline their blocks, so that one exchange is enough:
 *
 *     copy-in(k)  SIGNAL  reduce or fetch(k-1)  WAIT
 *
 * There an area is read after the SIGNAL of a phase, so three copies of it are needed.
 */
#include "plan/builder.h"
#include "base/error.h"

typedef struct layout {
    uint64_t piece; /* elements a rank and block */
    uint64_t grain; /* of borders in a block */
    uint64_t width; /* elements of a block at most */
    uint64_t slots; /* pieces of STAGE */
} layout;

static int lay_out(const gsi_plan_args *args, layout *l)
{
    uint64_t n = (uint64_t)args->n;
    /* Measured, see select.c: larger pieces leave the second-level caches. */
    uint64_t want = args->chunk ? args->chunk : n == 2 ? 256u << 10 : 128u << 10;

    switch (args->coll) {
    case GRADSYNC_ALL_REDUCE:
    case GRADSYNC_REDUCE:
        l->slots = 2 * n + 2;
        break;
    case GRADSYNC_REDUCE_SCATTER:
        l->slots = 3 * (n - 1);
        break;
    default:
        l->slots = 3;
    }
    l->piece = gsi_piece(want, args->stage_bytes, l->slots, args->esize);
    if (!l->piece)
        return 0;
    l->grain = gsi_grain(l->piece, args->esize);
    l->width = args->coll == GRADSYNC_ALL_REDUCE || args->coll == GRADSYNC_REDUCE ? l->piece * n : l->piece;
    return 1;
}

uint64_t gsi_segment_staged(const gsi_plan_args *args)
{
    layout l;
    uint64_t blocks = GSI_PLAN_STEPS / ((uint64_t)args->n + 6);

    if (!lay_out(args, &l))
        return 1;
    return gsi_mul(l.width, blocks ? blocks : 1);
}

uint64_t gsi_staged_block(const gsi_plan_args *args)
{
    layout l;

    return lay_out(args, &l) ? l.width : 1;
}

/* Block k of the message: elements [*off, *off + *len). */
static void block(const gsi_builder *b, const layout *l, int blocks, int k, uint64_t *off, uint64_t *len)
{
    gsi_plan_slice(b->args->count, l->grain, blocks, k, off, len);
}

/* ---- all-reduce and reduce ---- */

/* Copies of everyone's part but mine: STAGE mirrors the block, so two pieces. */
static void copy_in(gsi_builder *b, const layout *l, int blocks, int k)
{
    uint32_t esize = b->args->esize;
    uint64_t at, len, off, mine, stage = (uint64_t)(k % 2) * l->width * esize;

    block(b, l, blocks, k, &at, &len);
    gsi_plan_slice(len, l->grain, b->n, b->rank, &off, &mine);
    gsi_add_copy(b, gsi_raw(GSI_SEND, b->rank, at * esize, b->rank), gsi_at(GSI_STAGE, b->rank, stage), off * esize);
    off += mine;
    gsi_add_copy(b, gsi_raw(GSI_SEND, b->rank, (at + off) * esize, b->rank),
                 gsi_at(GSI_STAGE, b->rank, stage + off * esize), (len - off) * esize);
}

/* Where rank r's result of block k lies in its STAGE. */
static gsi_place result(const gsi_builder *b, const layout *l, int r, int k)
{
    return gsi_at(GSI_STAGE, r, (2 * l->width + (uint64_t)(k % 2) * l->piece) * b->args->esize);
}

static void reduce_mine(gsi_builder *b, const layout *l, int blocks, int k)
{
    uint32_t esize = b->args->esize;
    int me = b->rank, all = b->args->coll == GRADSYNC_ALL_REDUCE;
    uint64_t at, len, off, mine, stage = (uint64_t)(k % 2) * l->width * esize;

    block(b, l, blocks, k, &at, &len);
    gsi_plan_slice(len, l->grain, b->n, me, &off, &mine);
    gsi_add_step(b, GSI_STEP_REDUCE, GSI_STEP_FINAL, mine * esize);
    for (int r = 0; r < b->n; r++)
        gsi_add_src(b, r == me ? gsi_raw(GSI_SEND, me, (at + off) * esize, me)
                               : gsi_raw(GSI_STAGE, r, stage + off * esize, r));
    if (all || me == b->args->root)
        gsi_add_dst(b, gsi_at(GSI_RECV, me, (at + off) * esize));
    if (all || me != b->args->root)
        gsi_add_dst(b, result(b, l, me, k));
}

static void fetch(gsi_builder *b, const layout *l, int blocks, int k)
{
    uint32_t esize = b->args->esize;
    uint64_t at, len, off, bytes;

    if (b->args->coll == GRADSYNC_REDUCE && b->rank != b->args->root)
        return;
    block(b, l, blocks, k, &at, &len);
    /* Everyone starts at another rank's result, so that they do not crowd. */
    for (int i = 1; i < b->n; i++) {
        int r = (b->rank + i) % b->n;
        gsi_plan_slice(len, l->grain, b->n, r, &off, &bytes);
        gsi_add_copy(b, result(b, l, r, k), gsi_at(GSI_RECV, b->rank, (at + off) * esize), bytes * esize);
    }
}

/* One block after the other, nothing overlapped: what copy_in has read is still in this core's cache when fetch
 * writes it, and the results are still in their owners'. (Overlapping two blocks was 10 % slower from 4 MiB on
 * with a core for every rank, and no faster with fewer: there the ranks of a core overlap by themselves.) */
static void add_all_reduce(gsi_builder *b, const layout *l, int blocks)
{
    for (int k = 0; k < blocks; k++) {
        copy_in(b, l, blocks, k);
        gsi_add_signal_all(b);
        gsi_add_wait_all(b, 2 * (uint32_t)k + 1);
        reduce_mine(b, l, blocks, k);
        gsi_add_signal_all(b);
        gsi_add_wait_all(b, 2 * (uint32_t)k + 2);
        fetch(b, l, blocks, k);
    }
}

/* ---- reduce-scatter: copy-in(k)  SIGNAL  reduce(k-1)  WAIT ---- */

/* Where rank r keeps its contribution to rank j's block. */
static gsi_place contribution(const gsi_builder *b, const layout *l, int r, int j, int k)
{
    uint64_t slot = (uint64_t)(k % 3) * (uint64_t)(b->n - 1) + (uint64_t)(j < r ? j : j - 1);

    return gsi_raw(GSI_STAGE, r, slot * l->piece * b->args->esize, r);
}

static void add_reduce_scatter(gsi_builder *b, const layout *l, int blocks)
{
    const gsi_plan_args *args = b->args;
    uint32_t esize = args->esize;
    int me = b->rank;
    uint64_t at, len;

    for (int k = 0; k <= blocks; k++) {
        if (k < blocks) {
            block(b, l, blocks, k, &at, &len);
            for (int j = 0; j < b->n; j++)
                if (j != me)
                    gsi_add_copy(b, gsi_raw(GSI_SEND, me, ((uint64_t)j * args->stride + at) * esize, me),
                                 contribution(b, l, me, j, k), len * esize);
            gsi_add_signal_all(b);
        }
        if (k >= 1) {
            block(b, l, blocks, k - 1, &at, &len);
            gsi_add_step(b, GSI_STEP_REDUCE, GSI_STEP_FINAL, len * esize);
            for (int r = 0; r < b->n; r++)
                gsi_add_src(b, r == me ? gsi_raw(GSI_SEND, me, ((uint64_t)me * args->stride + at) * esize, me)
                                       : contribution(b, l, r, me, k - 1));
            gsi_add_dst(b, gsi_at(GSI_RECV, me, at * esize));
        }
        if (k < blocks)
            gsi_add_wait_all(b, (uint32_t)k + 1);
    }
}

/* ---- all-gather and broadcast: copy-in(k)  SIGNAL  fetch(k-1)  WAIT ---- */

static void add_gather(gsi_builder *b, const layout *l, int blocks)
{
    const gsi_plan_args *args = b->args;
    uint32_t esize = args->esize;
    int me = b->rank, cast = args->coll == GRADSYNC_BROADCAST;
    uint64_t at, len;

    for (int k = 0; k <= blocks; k++) {
        if (k < blocks) {
            block(b, l, blocks, k, &at, &len);
            if (!cast || me == args->root) {
                uint64_t mine = cast ? 0 : (uint64_t)me * args->stride;
                gsi_add_step(b, GSI_STEP_COPY, 0, len * esize);
                gsi_add_src(b, gsi_raw(GSI_SEND, me, at * esize, me));
                gsi_add_dst(b, gsi_at(GSI_STAGE, me, (uint64_t)(k % 3) * l->piece * esize));
                gsi_add_dst(b, gsi_at(GSI_RECV, me, (mine + at) * esize));
            }
            gsi_add_signal_all(b);
        }
        if (k >= 1) {
            block(b, l, blocks, k - 1, &at, &len);
            for (int i = 1; i < b->n; i++) {
                int r = (me + i) % b->n;
                if (cast && r != args->root)
                    continue;
                uint64_t theirs = cast ? 0 : (uint64_t)r * args->stride;
                gsi_add_copy(b, gsi_raw(GSI_STAGE, r, (uint64_t)((k - 1) % 3) * l->piece * esize, r),
                             gsi_at(GSI_RECV, me, (theirs + at) * esize), len * esize);
            }
        }
        if (k < blocks)
            gsi_add_wait_all(b, (uint32_t)k + 1);
    }
}

const char *gsi_unfit_staged(const gsi_plan_args *args)
{
    layout l;

    if (args->coll != GRADSYNC_BARRIER && !lay_out(args, &l))
        return "there is too little staging memory for so many ranks";
    return NULL;
}

int gsi_build_staged(gsi_builder *b)
{
    const gsi_plan_args *args = b->args;
    gsi_plan *plan = b->plan;
    layout l;

    plan->gather = 1;
    plan->loadstore = 1;
    plan->signal_all = 1;
    plan->ordered = 1;
    /* The exchange of headers is a barrier already. */
    if (args->coll == GRADSYNC_BARRIER || !args->count)
        return 0;
    if (!lay_out(args, &l))
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "plan: %llu bytes of staging memory hold no element of every rank; give more",
                        (unsigned long long)args->stage_bytes);
    uint64_t blocks = (args->count - 1) / l.width + 1;
    if (blocks > INT32_MAX / 2)
        return gsi_fail(GRADSYNC_ERR_INVALID, "plan: %llu blocks: build it in segments", (unsigned long long)blocks);
    plan->stage_bytes = l.slots * l.piece * args->esize;
    if (args->coll == GRADSYNC_REDUCE_SCATTER)
        add_reduce_scatter(b, &l, (int)blocks);
    else if (args->coll == GRADSYNC_ALL_GATHER || args->coll == GRADSYNC_BROADCAST)
        add_gather(b, &l, (int)blocks);
    else
        add_all_reduce(b, &l, (int)blocks);
    return b->error;
}
