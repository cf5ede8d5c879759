/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Doubling: log2 n rounds, for small messages.
 *
 * All-reduce: recursive doubling (Thakur, Rabenseifner & Gropp 2005): in round j a
 * rank exchanges its partial result with the one whose number differs in bit j. If n
 * is no power of two, the ranks from the power on first hand their contributions to
 * partners below it, and get the result from them at the end.
 *
 * All-gather, and ORDERED all-reduce, which gathers all contributions and reduces them
 * in rank order: Bruck et al. 1997: after round j a rank has the contributions of the
 * 2^(j+1) ranks from its own on.
 *
 * Every round has STAGE of its own, so there are no credits: only leave to begin.
 */
#include "plan/builder.h"

enum { ENTER, FOLD, ROUND, RESULT }; /* events */

/* A copy of so much takes less than half a wire's latency. */
#define COPIED_BYTES (16u << 10)

static int rounds_of(int n)
{
    int rounds = 0;

    while ((1 << rounds) < n)
        rounds++;
    return rounds;
}

/* The largest power of two that is not above n. */
static int power_of(int n)
{
    int power = 1;

    while (power <= n / 2)
        power *= 2;
    return power;
}

static int gathers(const gsi_plan_args *args)
{
    return args->coll == GRADSYNC_ALL_GATHER || (args->flags & GRADSYNC_ORDERED);
}

/* STAGE: gather: all contributions, by rank. Else what is folded in or comes back, then one
 * buffer a round for what arrives, then one a round for what is sent. */
static uint64_t stage_of(const gsi_plan_args *args)
{
    uint64_t bytes = args->count * args->esize;

    if (gathers(args))
        return args->coll == GRADSYNC_ALL_GATHER && args->reach ? 0 : gsi_mul(bytes, (uint64_t)args->n);
    return gsi_mul(bytes, 1 + 2 * (uint64_t)rounds_of(power_of(args->n)));
}

const char *gsi_unfit_doubling(const gsi_plan_args *args)
{
    if (args->coll == GRADSYNC_BARRIER)
        return NULL;
    if (args->coll != GRADSYNC_ALL_REDUCE && args->coll != GRADSYNC_ALL_GATHER)
        return "it does all-reduce, all-gather and barrier only";
    return stage_of(args) <= args->stage_bytes ? NULL : "the message of every round does not fit in the staging memory";
}

static void disseminate(gsi_builder *b)
{
    for (int j = 0, step = 1; step < b->n; j++, step *= 2) {
        gsi_add_signal(b, (b->rank + step) % b->n, GSI_EVENT(ROUND, j));
        gsi_add_wait(b, (b->rank + b->n - step) % b->n, GSI_EVENT(ROUND, j));
    }
}

int gsi_build_dissemination(gsi_builder *b)
{
    b->plan->ordered = 1;
    gsi_settle_gather(b);
    /* The exchange of headers is a barrier already. */
    return b->gathered ? b->error : gsi_run_program(b, disseminate, NULL);
}

/* ---- all-reduce ---- */

static gsi_place stage(const gsi_builder *b, int rank, int buffer, int from)
{
    return gsi_raw(GSI_STAGE, rank, (uint64_t)buffer * b->args->count * b->args->esize, from);
}

/* Whether to send a copy of a short contribution: then nobody waits until the wire has read it. */
static int copies_first(const gsi_plan_args *args)
{
    return args->hosts && args->count * args->esize <= COPIED_BYTES;
}

/* A rank from the power of two on: hands over, and gets the result. */
static void outer(gsi_builder *b, int partner)
{
    uint64_t bytes = b->args->count * b->args->esize;

    if (!b->gathered)
        gsi_add_wait(b, partner, GSI_EVENT(ENTER, 0));
    gsi_add_put(b, partner, GSI_EVENT(FOLD, 0), gsi_raw(GSI_SEND, b->rank, 0, b->rank),
                stage(b, partner, 0, GSI_PARTIAL), bytes);
    gsi_add_wait(b, partner, GSI_EVENT(RESULT, 0));
    if (!b->args->reach)
        gsi_add_copy(b, stage(b, b->rank, 0, GSI_PARTIAL), gsi_at(GSI_RECV, b->rank, 0), bytes);
}

static void inner(gsi_builder *b, int power)
{
    int me = b->rank, rounds = rounds_of(power), folds = me + power < b->n;
    uint64_t bytes = b->args->count * b->args->esize;
    gsi_place mine = gsi_raw(GSI_SEND, me, 0, me);

    if (!b->gathered) {
        if (folds)
            gsi_add_signal(b, me + power, GSI_EVENT(ENTER, 0));
        for (int j = 0; j < rounds; j++)
            gsi_add_signal(b, me ^ 1 << j, GSI_EVENT(ENTER, 0));
    }
    if (folds) {
        gsi_place sum = stage(b, me, 1 + rounds, GSI_PARTIAL);
        gsi_add_wait(b, me + power, GSI_EVENT(FOLD, 0));
        gsi_add_step(b, GSI_STEP_REDUCE, 0, bytes);
        gsi_add_src(b, mine);
        gsi_add_src(b, stage(b, me, 0, me + power));
        gsi_add_dst(b, sum);
        mine = sum;
    }
    if (!folds && copies_first(b->args)) {
        gsi_place copy = stage(b, me, 1 + rounds, me);
        gsi_add_copy(b, mine, copy, bytes);
        mine = copy;
    }
    for (int j = 0; j < rounds; j++) {
        int peer = me ^ 1 << j, last = j == rounds - 1;
        gsi_place theirs = stage(b, me, 1 + j, j || peer + power < b->n ? GSI_PARTIAL : peer);
        gsi_place sum = last ? gsi_at(GSI_RECV, me, 0) : stage(b, me, 2 + rounds + j, GSI_PARTIAL);
        if (!b->gathered)
            gsi_add_wait(b, peer, GSI_EVENT(ENTER, 0));
        gsi_add_put(b, peer, GSI_EVENT(ROUND, j), mine, stage(b, peer, 1 + j, GSI_PARTIAL), bytes);
        gsi_add_wait(b, peer, GSI_EVENT(ROUND, j));
        /* RECV may be SEND, which the first round's PUT may still read. */
        if (last && !folds && !copies_first(b->args))
            gsi_add_flush(b, me ^ 1);
        /* Both compute the same: the lower half of the ranks comes first. */
        gsi_add_step(b, GSI_STEP_REDUCE, last ? GSI_STEP_FINAL : 0, bytes);
        gsi_add_src(b, peer < me ? theirs : mine);
        gsi_add_src(b, peer < me ? mine : theirs);
        gsi_add_dst(b, sum);
        mine = sum;
    }
    if (folds)
        gsi_add_put(b, me + power, GSI_EVENT(RESULT, 0), mine,
                    b->args->reach ? gsi_at(GSI_RECV, me + power, 0) : stage(b, me + power, 0, GSI_PARTIAL), bytes);
}

static void all_reduce(gsi_builder *b)
{
    int power = power_of(b->n);

    if (b->rank >= power)
        outer(b, b->rank - power);
    else
        inner(b, power);
    /* STAGE may be read until everyone has entered the next call. */
    if (b->rank >= power || b->rank + power < b->n || !copies_first(b->args))
        gsi_add_flush(b, GSI_ALL);
}

/* ---- all-gather ---- */

/* Where rank `owner`'s contribution lies at `rank`. */
static gsi_place kept(const gsi_builder *b, int rank, int owner)
{
    const gsi_plan_args *args = b->args;

    if (args->coll == GRADSYNC_ALL_GATHER && args->reach)
        return gsi_raw(GSI_RECV, rank, (uint64_t)owner * args->stride * args->esize, owner);
    return gsi_raw(GSI_STAGE, rank, (uint64_t)owner * args->count * args->esize, owner);
}

/* PUTs of the contributions of `count` ranks from `first` on; the last one notifies. */
static void pass(gsi_builder *b, int peer, int j, int first, int count)
{
    const gsi_plan_args *args = b->args;
    uint64_t bytes = args->count * args->esize;
    /* In STAGE, or where there are no gaps, neighbours lie side by side. */
    int dense = kept(b, 0, 0).space == GSI_STAGE || args->stride == args->count;

    while (count) {
        int run = dense ? b->n - first : 1;
        if (run > count)
            run = count;
        count -= run;
        if (count)
            gsi_add_quiet_put(b, peer, kept(b, b->rank, first), kept(b, peer, first), bytes * (uint64_t)run);
        else
            gsi_add_put(b, peer, GSI_EVENT(ROUND, j), kept(b, b->rank, first), kept(b, peer, first),
                        bytes * (uint64_t)run);
        first = (first + run) % b->n;
    }
}

static void all_gather(gsi_builder *b)
{
    const gsi_plan_args *args = b->args;
    int me = b->rank, n = b->n;
    uint64_t bytes = args->count * args->esize;

    for (int step = 1; !b->gathered && step < n; step *= 2)
        gsi_add_signal(b, (me + step) % n, GSI_EVENT(ENTER, 0));
    gsi_add_copy(b, gsi_raw(GSI_SEND, me, 0, me), kept(b, me, me), bytes);
    for (int j = 0, step = 1; step < n; j++, step *= 2) {
        int to = (me + n - step) % n, from = (me + step) % n;
        if (!b->gathered)
            gsi_add_wait(b, to, GSI_EVENT(ENTER, 0));
        pass(b, to, j, me, step < n - step ? step : n - step);
        gsi_add_wait(b, from, GSI_EVENT(ROUND, j));
    }
    if (args->coll == GRADSYNC_ALL_REDUCE) {
        gsi_add_step(b, GSI_STEP_REDUCE, GSI_STEP_FINAL, bytes);
        for (int r = 0; r < n; r++)
            gsi_add_src(b, kept(b, me, r));
        gsi_add_dst(b, gsi_at(GSI_RECV, me, 0));
    } else if (!args->reach) {
        for (int r = 0; r < n; r++)
            gsi_add_copy(b, r == me ? gsi_raw(GSI_SEND, me, 0, me) : kept(b, me, r),
                         gsi_at(GSI_RECV, me, (uint64_t)r * args->stride * args->esize), bytes);
    }
    gsi_add_flush(b, GSI_ALL);
}

int gsi_build_doubling(gsi_builder *b)
{
    const gsi_plan_args *args = b->args;
    gsi_plan *plan = b->plan;
    int power = power_of(args->n);

    if (args->coll == GRADSYNC_BARRIER || !args->count)
        return gsi_build_dissemination(b);
    plan->ordered = gathers(args);
    plan->user_memory = args->reach && (args->coll == GRADSYNC_ALL_GATHER || (!plan->ordered && power < args->n));
    gsi_settle_gather(b);
    plan->stage_bytes = stage_of(args);
    return gsi_run_program(b, gathers(args) ? all_gather : all_reduce, NULL);
}
