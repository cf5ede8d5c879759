/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Direct: one pass over the ranks' own memory. Every rank reduces its slice from all
 * contributions into all results; the bytes move once. Needs memory that all ranks
 * can reach.
 */
#include "plan/builder.h"

/* Slices of several pages get page borders, so that two ranks do not fault in, or
 * keep in their TLBs, the same pages. */
#define PAGE 4096

static void slice(const gsi_builder *b, uint64_t count, uint64_t *off, uint64_t *len)
{
    uint32_t esize = b->args->esize;
    uint64_t grain = count * esize / (uint64_t)b->n >= 16 * PAGE ? PAGE / esize : 64 / esize;

    gsi_plan_slice(count, grain, b->n, b->rank, off, len);
    *off *= esize;
    *len *= esize;
}

/* My own contribution's first or last bytes, which the peers cannot reach, to STAGE. */
static void publish(gsi_builder *b, uint64_t off, uint64_t stage, uint64_t bytes)
{
    gsi_add_copy(b, gsi_raw(GSI_SEND, b->rank, off, b->rank), gsi_at(GSI_STAGE, b->rank, stage), bytes);
}

/* Everyone reduces them for itself. */
static void reduce_published(gsi_builder *b, uint64_t off, uint64_t stage, uint64_t bytes)
{
    gsi_add_step(b, GSI_STEP_REDUCE, GSI_STEP_FINAL, bytes);
    for (int r = 0; r < b->n; r++)
        gsi_add_src(b, gsi_raw(GSI_STAGE, r, stage, r));
    gsi_add_dst(b, gsi_at(GSI_RECV, b->rank, off));
}

/* [off, off + bytes) of all contributions into all results, or the root's. */
static void reduce_reached(gsi_builder *b, uint64_t off, uint64_t bytes, int root)
{
    gsi_add_step(b, GSI_STEP_REDUCE, GSI_STEP_FINAL, bytes);
    for (int r = 0; r < b->n; r++)
        gsi_add_src(b, gsi_raw(GSI_SEND, r, off, r));
    for (int r = 0; r < b->n; r++)
        if (root < 0 || r == root)
            gsi_add_dst(b, gsi_at(GSI_RECV, r, off));
}

static void all_reduce(gsi_builder *b, uint64_t head, uint64_t tail)
{
    uint32_t esize = b->args->esize;
    uint64_t off, len, end = (b->args->count - tail) * esize;

    head *= esize;
    tail *= esize;
    slice(b, (end - head) / esize, &off, &len);
    /* One exchange of signals serves both: the ends are published, the middle is done.
     * Peers may still read my STAGE when I end, as after every plan with `gather`. */
    publish(b, 0, 0, head);
    publish(b, end, head, tail);
    reduce_reached(b, head + off, len, -1);
    gsi_add_signal_all(b);
    gsi_add_wait_all(b, 1);
    reduce_published(b, 0, 0, head);
    reduce_published(b, end, head, tail);
}

/* Elements at both ends that go by STAGE. */
static void ends(const gsi_plan_args *args, uint64_t *head, uint64_t *tail)
{
    *head = args->head / args->esize + (args->head % args->esize != 0);
    *tail = args->tail / args->esize + (args->tail % args->esize != 0);
    if (*head > args->count)
        *head = args->count;
    if (*tail > args->count - *head)
        *tail = args->count - *head;
}

const char *gsi_unfit_direct(const gsi_plan_args *args)
{
    uint64_t head, tail;

    if (args->coll == GRADSYNC_BARRIER || (!args->head && !args->tail))
        return NULL;
    if (args->coll != GRADSYNC_ALL_REDUCE)
        return "peers do not reach the buffers to the last byte: allocate them with gradsync_mem_alloc()";
    ends(args, &head, &tail);
    if ((head + tail) * args->esize > args->stage_bytes)
        return "more bytes at the ends of the buffers are out of the peers' reach than there is staging";
    return NULL;
}

int gsi_build_direct(gsi_builder *b)
{
    const gsi_plan_args *args = b->args;
    gsi_plan *plan = b->plan;
    int coll = args->coll, me = b->rank;
    uint32_t esize = args->esize;
    uint64_t off, len, bytes = args->count * esize;

    plan->gather = 1;
    plan->loadstore = 1;
    plan->signal_all = 1;
    plan->user_memory = coll != GRADSYNC_BARRIER;
    plan->ordered = 1;
    /* The exchange of headers is a barrier already. */
    if (coll == GRADSYNC_BARRIER || !args->count)
        return 0;
    if (coll == GRADSYNC_ALL_REDUCE) {
        uint64_t head, tail;
        ends(args, &head, &tail);
        plan->stage_bytes = (head + tail) * esize;
        all_reduce(b, head, tail);
        return b->error;
    }
    if (coll == GRADSYNC_REDUCE) {
        slice(b, args->count, &off, &len);
        reduce_reached(b, off, len, args->root);
    } else if (coll == GRADSYNC_REDUCE_SCATTER) {
        gsi_add_step(b, GSI_STEP_REDUCE, GSI_STEP_FINAL, bytes);
        for (int r = 0; r < b->n; r++)
            gsi_add_src(b, gsi_raw(GSI_SEND, r, (uint64_t)me * args->stride * esize, r));
        gsi_add_dst(b, gsi_at(GSI_RECV, me, 0));
    } else {
        /* Pushing reads every byte once; pulling would read it on every rank. A broadcast is
         * pushed by all ranks together, a slice each. */
        int from = coll == GRADSYNC_BROADCAST ? args->root : me;
        off = 0;
        len = bytes;
        if (coll == GRADSYNC_BROADCAST)
            slice(b, args->count, &off, &len);
        gsi_add_step(b, GSI_STEP_COPY, 0, len);
        gsi_add_src(b, gsi_raw(GSI_SEND, from, off, from));
        uint64_t at = coll == GRADSYNC_BROADCAST ? off : (uint64_t)me * args->stride * esize;
        for (int r = 0; r < b->n; r++)
            gsi_add_dst(b, gsi_at(GSI_RECV, r, at));
    }
    gsi_add_signal_all(b);
    gsi_add_wait_all(b, 1);
    return b->error;
}
