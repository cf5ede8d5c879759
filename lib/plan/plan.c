/* SPDX-License-Identifier: Apache-2.0 */
/* Building a plan: what is common to all algorithms. */
#include "plan/builder.h"
#include "base/alloc.h"
#include "base/error.h"

#include <stdlib.h>

void gsi_plan_slice(uint64_t count, uint64_t grain, int parts, int r, uint64_t *off, uint64_t *len)
{
    uint64_t grains = count / grain + (count % grain != 0);
    /* floor(grains * r / parts) without the product, which could overflow. */
    uint64_t each = grains / (uint64_t)parts, over = grains % (uint64_t)parts;
    uint64_t from = each * (uint64_t)r + over * (uint64_t)r / (uint64_t)parts;
    uint64_t to = each * ((uint64_t)r + 1) + over * ((uint64_t)r + 1) / (uint64_t)parts;

    from = from >= grains ? count : from * grain;
    to = to >= grains ? count : to * grain;
    *off = from;
    *len = to - from;
}

static int reduces(int coll)
{
    return coll == GRADSYNC_ALL_REDUCE || coll == GRADSYNC_REDUCE_SCATTER || coll == GRADSYNC_REDUCE;
}

static int check(const gsi_plan_args *args)
{
    if (args->n < 1 || args->n > UINT16_MAX || args->rank < 0 || args->rank >= args->n)
        return gsi_fail(GRADSYNC_ERR_INVALID, "plan: rank %d of %d is no rank", (int)args->rank, (int)args->n);
    if (args->hosts && args->hosts->n != args->n)
        return gsi_fail(GRADSYNC_ERR_INVALID, "plan: the hosts are of %d ranks, not of %d", (int)args->hosts->n,
                        (int)args->n);
    if (args->coll < 0 || args->coll >= GRADSYNC_COLL_COUNT)
        return gsi_fail(GRADSYNC_ERR_INVALID, "plan: %d is no collective", (int)args->coll);
    if ((args->coll == GRADSYNC_BROADCAST || args->coll == GRADSYNC_REDUCE) &&
        (args->root < 0 || args->root >= args->n))
        return gsi_fail(GRADSYNC_ERR_INVALID, "plan: root %d is not among %d ranks", (int)args->root, (int)args->n);
    if (args->coll == GRADSYNC_BARRIER)
        return 0;
    if (args->esize != 1 && args->esize != 2 && args->esize != 4 && args->esize != 8)
        return gsi_fail(GRADSYNC_ERR_INVALID, "plan: elements of %u bytes", (unsigned)args->esize);
    if (reduces(args->coll) && args->acc_esize < args->esize)
        return gsi_fail(GRADSYNC_ERR_INVALID, "plan: partial results of %u bytes", (unsigned)args->acc_esize);
    uint64_t elements = args->count;
    if (args->coll == GRADSYNC_REDUCE_SCATTER || args->coll == GRADSYNC_ALL_GATHER) {
        if (args->stride < args->count)
            return gsi_fail(GRADSYNC_ERR_INVALID, "plan: blocks of %llu elements every %llu overlap",
                            (unsigned long long)args->count, (unsigned long long)args->stride);
        elements = gsi_mul(args->stride, (uint64_t)args->n);
    }
    if (gsi_mul(elements, args->esize) > INT64_MAX)
        return gsi_fail(GRADSYNC_ERR_INVALID, "a message of %llu elements does not fit in memory",
                        (unsigned long long)args->count);
    return 0;
}

/* One rank: its contribution is the result. A REDUCE of one source rather than a
 * COPY, because a prescale and the rule for NaN hold for one rank too. */
static int build_local(gsi_builder *b)
{
    const gsi_plan_args *args = b->args;
    uint64_t bytes = args->coll == GRADSYNC_BARRIER ? 0 : args->count * args->esize;

    b->plan->ordered = 1;
    gsi_add_step(b, reduces(args->coll) ? GSI_STEP_REDUCE : GSI_STEP_COPY, reduces(args->coll) ? GSI_STEP_FINAL : 0,
                 bytes);
    gsi_add_src(b, gsi_raw(GSI_SEND, 0, 0, 0));
    gsi_add_dst(b, gsi_at(GSI_RECV, 0, 0));
    return b->error;
}

/* Fills awaits[], the highest number awaited from each rank, and leaves out the WAITs that a WAIT for
 * a later signal of the same peer has made void. */
static int settle_waits(gsi_plan *plan)
{
    uint32_t to = 0;

    plan->awaits = gsi_calloc((size_t)plan->nstreams * (size_t)plan->n, sizeof *plan->awaits);
    if (!plan->awaits)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the plan of a collective");
    for (int s = 0; s < plan->nstreams; s++) {
        uint32_t *row = plan->awaits + (size_t)s * (size_t)plan->n, all = 0;
        uint32_t from = plan->streams[s].first, end = from + plan->streams[s].count;
        plan->streams[s].first = to;
        for (; from < end; from++) {
            const gsi_step *step = &plan->steps[from];
            if (step->kind == GSI_STEP_WAIT) {
                uint32_t *most = step->peer == GSI_ALL ? &all : &row[step->peer];
                if (step->value <= *most)
                    continue;
                *most = step->value;
            }
            plan->steps[to++] = *step;
        }
        plan->streams[s].count = to - plan->streams[s].first;
        for (int r = 0; all && r < plan->n; r++)
            row[r] = r == plan->rank ? 0 : all;
    }
    plan->nsteps = to;
    return 0;
}

typedef struct algorithm {
    const char *(*unfit)(const gsi_plan_args *args);
    int (*build)(gsi_builder *b);
    uint64_t (*segment)(const gsi_plan_args *args); /* NULL: any length */
} algorithm;

static const algorithm algorithms[GRADSYNC_ALGO_COUNT] = {
    [GRADSYNC_ALGO_ONESHOT] = {gsi_unfit_oneshot, gsi_build_oneshot, NULL},
    [GRADSYNC_ALGO_DIRECT] = {gsi_unfit_direct, gsi_build_direct, NULL},
    [GRADSYNC_ALGO_STAGED] = {gsi_unfit_staged, gsi_build_staged, gsi_segment_staged},
    [GRADSYNC_ALGO_RING] = {gsi_unfit_ring, gsi_build_ring, gsi_segment_ring},
    [GRADSYNC_ALGO_TREE] = {gsi_unfit_tree, gsi_build_tree, gsi_segment_tree},
    [GRADSYNC_ALGO_DOUBLING] = {gsi_unfit_doubling, gsi_build_doubling, NULL},
    [GRADSYNC_ALGO_PAIRWISE] = {gsi_unfit_pairwise, gsi_build_pairwise, gsi_segment_pairwise},
    [GRADSYNC_ALGO_HIER] = {gsi_unfit_hier, gsi_build_hier, gsi_segment_hier},
};

const char *gsi_unfit(const gsi_plan_args *args)
{
    if (args->algo <= GRADSYNC_ALGO_AUTO || args->algo >= GRADSYNC_ALGO_COUNT || !algorithms[args->algo].unfit)
        return "there is no such algorithm";
    if (args->n > 1 && args->algo >= GRADSYNC_ALGO_RING && args->credits && args->credits < 4)
        return "fewer than 4 signals may be in flight";
    if (args->n > 1 && args->hosts && (args->algo == GRADSYNC_ALGO_DIRECT || args->algo == GRADSYNC_ALGO_STAGED)) {
        if (args->hosts->hosts > 1)
            return "the ranks are on different hosts";
        if (args->algo == GRADSYNC_ALGO_DIRECT && !args->share && args->coll != GRADSYNC_BARRIER)
            return "peers do not reach the buffers: allocate them with gradsync_mem_alloc()";
    }
    return args->n > 1 ? algorithms[args->algo].unfit(args) : NULL;
}

int gsi_plan_build(const gsi_plan_args *args, gsi_plan **out)
{
    gsi_builder b = {.args = args, .n = args->n, .rank = args->rank, .watch = -1};
    int error = check(args);

    *out = NULL;
    if (error)
        return error;
    const char *why = gsi_unfit(args);
    if (why)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED, "%s cannot serve this %s: %s; let AUTO choose",
                        gradsync_algo_name(args->algo), gradsync_coll_name(args->coll), why);
    b.plan = gsi_calloc(1, sizeof *b.plan);
    if (!b.plan)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the plan of a collective");
    b.plan->nstreams = 1;
    b.plan->n = args->n;
    b.plan->rank = args->rank;
    b.plan->algo = (uint8_t)args->algo;
    b.plan->coll = (uint8_t)args->coll;
    error = args->n == 1 ? build_local(&b) : algorithms[args->algo].build(&b);
    /* b.error too: an append that ran out of memory shows only there. */
    if (!error)
        error = b.error;
    if (!error)
        error = settle_waits(b.plan);
    if (error) {
        gsi_plan_free(b.plan);
        return error;
    }
    *out = b.plan;
    return 0;
}

void gsi_plan_free(gsi_plan *plan)
{
    if (!plan)
        return;
    free(plan->steps);
    free(plan->places);
    free(plan->awaits);
    free(plan);
}

uint64_t gsi_plan_segment(const gsi_plan_args *args)
{
    uint64_t most = UINT64_MAX;

    if (args->n > 1 && args->coll != GRADSYNC_BARRIER && algorithms[args->algo].segment)
        most = algorithms[args->algo].segment(args);
    if (most > args->count)
        most = args->count;
    return most ? most : 1;
}
