/* SPDX-License-Identifier: Apache-2.0 */
/* The verifier's frame: memory, the start state, the judgement of the results. */
#include "plan/verify_sim.h"

#include "base/alloc.h"
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kinds[] = {"COPY", "REDUCE", "PUT", "SIGNAL", "WAIT", "FLUSH"};

int gsi_verify_stream(const gsi_plan *plan, uint32_t step)
{
    for (int s = 0; s < plan->nstreams; s++)
        if (step >= plan->streams[s].first && step - plan->streams[s].first < plan->streams[s].count)
            return s;
    return -1;
}

int gsi_verify_defect(gsi_sim *sim, int rank, uint32_t step, const char *format, ...)
{
    char text[320];
    char where[80] = "";
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (rank >= 0 && step != GSI_NO_STEP) {
        const gsi_plan *plan = sim->plans[rank];
        unsigned kind = plan->steps[step].kind;
        snprintf(where, sizeof where, "rank %d, stream %d, step %u (%s): ", rank, gsi_verify_stream(plan, step),
                 (unsigned)step, kind <= GSI_STEP_FLUSH ? kinds[kind] : "?");
    } else if (rank >= 0) {
        snprintf(where, sizeof where, "rank %d: ", rank);
    }
    if (sim->why && sim->room)
        snprintf(sim->why, sim->room, "%s%s", where, text);
    return gsi_fail(GRADSYNC_ERR_INVALID, "plan is wrong: %s%s", where, text);
}

void *gsi_verify_alloc(gsi_sim *sim, uint64_t n, size_t size)
{
    const size_t header = (sizeof(gsi_vblock) + 15) & ~(size_t)15;
    gsi_vblock *block = sim->blocks;
    size_t bytes;

    if (n > SIZE_MAX / 2 / size)
        return NULL;
    bytes = ((size_t)n * size + 15) & ~(size_t)15;
    if (!block || block->room - block->used < bytes) {
        size_t room = bytes > 65536 ? bytes : 262144;
        block = gsi_calloc(1, header + room);
        if (!block)
            return NULL;
        block->room = room;
        block->next = sim->blocks;
        sim->blocks = block;
    }
    block->used += bytes;
    return (char *)block + header + block->used - bytes;
}

uint32_t gsi_verify_take(gsi_vpool *pool, size_t size)
{
    uint32_t item = pool->free;

    if (item) {
        memcpy(&pool->free, (char *)pool->items + item * size, sizeof pool->free);
        return item;
    }
    if (pool->used >= pool->room) {
        uint32_t room = pool->room ? 2 * pool->room : 128;
        void *items = room > pool->room ? gsi_realloc(pool->items, room * size) : NULL;
        if (!items)
            return 0;
        if (!pool->room) {
            memset(items, 0, size);
            pool->used = 1;
        }
        pool->items = items;
        pool->room = room;
    }
    return pool->used++;
}

uint32_t gsi_verify_random(gsi_sim *sim)
{
    sim->rng ^= sim->rng << 13;
    sim->rng ^= sim->rng >> 7;
    sim->rng ^= sim->rng << 17;
    return (uint32_t)(sim->rng >> 32);
}

const char *gsi_verify_space(int space)
{
    return space == GSI_SEND ? "SEND" : space == GSI_RECV ? "RECV" : "STAGE";
}

static int in_place(const gsi_sim *sim, int rank)
{
    int root_only = sim->args->coll == GRADSYNC_BROADCAST || sim->args->coll == GRADSYNC_REDUCE;

    if (root_only && rank != sim->args->root)
        return 0;
    return sim->opts.alias == GSI_VERIFY_IN_PLACE || (sim->opts.alias == GSI_VERIFY_MIXED && rank % 2 == 0);
}

/* The lengths of SEND and RECV, as gradsync.h defines each collective. */
static void set_lengths(gsi_sim *sim)
{
    const gsi_plan_args *args = sim->args;
    uint64_t all = args->count ? (uint64_t)(sim->n - 1) * sim->stride + args->count : 0;

    for (int r = 0; r < sim->n; r++) {
        int root = r == args->root;
        uint64_t *len = sim->ranks[r].len;
        switch (args->coll) {
        case GRADSYNC_ALL_REDUCE:
            len[GSI_SEND] = len[GSI_RECV] = args->count;
            break;
        case GRADSYNC_REDUCE_SCATTER:
            len[GSI_SEND] = all;
            len[GSI_RECV] = args->count;
            break;
        case GRADSYNC_ALL_GATHER:
            len[GSI_SEND] = args->count;
            len[GSI_RECV] = all;
            break;
        case GRADSYNC_BROADCAST:
            len[GSI_SEND] = root ? args->count : 0;
            len[GSI_RECV] = args->count;
            break;
        case GRADSYNC_REDUCE:
            len[GSI_SEND] = args->count;
            len[GSI_RECV] = root ? args->count : 0;
            break;
        default:
            break;
        }
    }
}

/* Lays the spaces out, one after the other but for those that alias. */
static void set_layout(gsi_sim *sim)
{
    uint64_t at = 0;

    for (int r = 0; r < sim->n; r++) {
        gsi_vrank *rank = &sim->ranks[r];
        uint64_t block = (uint64_t)r * sim->stride;
        int same = in_place(sim, r);
        rank->base[GSI_SEND] = rank->base[GSI_RECV] = at;
        if (same && sim->args->coll == GRADSYNC_REDUCE_SCATTER) {
            rank->base[GSI_RECV] += rank->len[GSI_SEND] ? block : 0;
            at += rank->len[GSI_SEND];
        } else if (same && sim->args->coll == GRADSYNC_ALL_GATHER) {
            rank->base[GSI_SEND] += rank->len[GSI_RECV] ? block : 0;
            at += rank->len[GSI_RECV];
        } else if (same) {
            at += rank->len[GSI_RECV];
        } else {
            rank->base[GSI_RECV] += rank->len[GSI_SEND];
            at += rank->len[GSI_SEND] + rank->len[GSI_RECV];
        }
        rank->base[GSI_STAGE] = at;
        at += rank->stage_used;
    }
}

static int set_contents(gsi_sim *sim)
{
    uint64_t total = 0;

    for (int r = 0; r < sim->n; r++)
        total += sim->ranks[r].len[0] + sim->ranks[r].len[1] + sim->ranks[r].stage_used;
    sim->cells = gsi_verify_alloc(sim, total, sizeof *sim->cells);
    sim->marks = sim->opts.races ? gsi_verify_alloc(sim, total, sizeof *sim->marks) : NULL;
    if (!sim->cells || (sim->opts.races && !sim->marks))
        return GRADSYNC_ERR_NOMEM;

    for (int r = 0; r < sim->n; r++) {
        const gsi_vrank *rank = &sim->ranks[r];
        gsi_vcell *send = sim->cells + rank->base[GSI_SEND];
        gsi_vcell *stage = sim->cells + rank->base[GSI_STAGE];
        int blocks = sim->args->coll == GRADSYNC_REDUCE_SCATTER;
        for (uint64_t e = 0; e < rank->len[GSI_SEND]; e++)
            if (!blocks || e % sim->stride < sim->args->count)
                send[e] = (gsi_vcell){GSI_FORM_RAW + (uint32_t)r, (uint32_t)e};
        for (uint64_t e = 0; e < sim->plans[r]->eager / sim->esize && e < rank->len[GSI_SEND]; e++)
            stage[e] = send[e];
    }
    return 0;
}

static int check_args(gsi_sim *sim)
{
    const gsi_plan_args *args = sim->args;
    uint64_t span;

    if (args->n < 1 || args->n > 65535 || args->coll < 0 || args->coll >= GRADSYNC_COLL_COUNT ||
        (args->coll != GRADSYNC_BARRIER && !args->esize) ||
        (sim->reduces && (args->acc_esize < args->esize || args->acc_esize % args->esize)))
        return gsi_verify_defect(sim, -1, GSI_NO_STEP, "the arguments are nonsense: n, coll, esize or acc_esize");
    if ((args->coll == GRADSYNC_BROADCAST || args->coll == GRADSYNC_REDUCE) &&
        (args->root < 0 || args->root >= args->n))
        return gsi_verify_defect(sim, -1, GSI_NO_STEP, "the arguments are nonsense: no rank %d to be the root",
                                 (int)args->root);
    sim->stride = args->stride ? args->stride : args->count;
    if ((args->coll == GRADSYNC_REDUCE_SCATTER || args->coll == GRADSYNC_ALL_GATHER) && sim->stride < args->count)
        return gsi_verify_defect(sim, -1, GSI_NO_STEP, "the arguments are nonsense: stride is less than count");
    if (!sim->stride)
        sim->stride = 1; /* nothing to stride over, but it divides */
    span = args->count > sim->stride ? args->count : sim->stride;
    if (span > UINT32_MAX / (uint64_t)args->n)
        return gsi_verify_defect(sim, -1, GSI_NO_STEP, "count is too large to verify; use a small one");
    return 0;
}

static int setup(gsi_sim *sim)
{
    const gsi_plan_args *args = sim->args;
    uint64_t n, streams;
    int rc;

    sim->reduces =
        args->coll == GRADSYNC_ALL_REDUCE || args->coll == GRADSYNC_REDUCE_SCATTER || args->coll == GRADSYNC_REDUCE;
    rc = check_args(sim);
    if (rc)
        return rc;
    sim->n = args->n;
    sim->esize = args->esize ? args->esize : 1; /* a barrier moves none */
    sim->wide = sim->reduces ? args->acc_esize / sim->esize : 1;
    sim->rng = (sim->opts.seed + 1) * 0x9e3779b97f4a7c15u;
    sim->rng ^= sim->rng >> 31;
    sim->rng |= 1;
    sim->policy = (int)(sim->opts.seed % 4);
    for (int r = 0; r < sim->n; r++)
        if (!sim->plans[r])
            return gsi_verify_defect(sim, r, GSI_NO_STEP, "there is no plan");
    sim->nstreams = sim->plans[0]->nstreams;
    if (sim->nstreams < 0 || sim->nstreams > GSI_MAX_STREAMS)
        return gsi_verify_defect(sim, 0, GSI_NO_STEP, "the plan has %d streams", (int)sim->nstreams);
    sim->gather = sim->plans[0]->gather;
    sim->ordered = sim->plans[0]->ordered;

    n = (uint64_t)sim->n;
    streams = (uint64_t)sim->nstreams;
    sim->ranks = gsi_verify_alloc(sim, n, sizeof *sim->ranks);
    sim->agents = gsi_verify_alloc(sim, n * streams, sizeof *sim->agents);
    sim->ready = gsi_verify_alloc(sim, n * streams, sizeof *sim->ready);
    sim->chans = gsi_verify_alloc(sim, n * n * streams, sizeof *sim->chans);
    if (!sim->ranks || !sim->agents || !sim->ready || !sim->chans)
        return GRADSYNC_ERR_NOMEM;
    set_lengths(sim);
    for (int r = 0; r < sim->n; r++)
        sim->ranks[r].stage_used = sim->plans[r]->stage_bytes / sim->esize;
    set_layout(sim); /* for overlaps; then again, with only what is touched of STAGE */
    rc = gsi_verify_check(sim);
    if (rc)
        return rc;
    set_layout(sim);
    rc = set_contents(sim);
    if (!rc)
        rc = gsi_verify_forms(sim);
    /* A barrier without headers must itself meet everyone: only the clocks can tell. */
    sim->clocks = sim->opts.races || (args->coll == GRADSYNC_BARRIER && !sim->gather);
    if (!rc && sim->clocks)
        rc = gsi_verify_clocks(sim);
    return rc;
}

static int wrong(gsi_sim *sim, int rank, uint64_t at, gsi_vcell have, gsi_vcell want)
{
    char text[2][128];

    return gsi_verify_defect(sim, rank, GSI_NO_STEP, "element %llu of RECV ends as %s, not as %s",
                             (unsigned long long)at, gsi_verify_describe(sim, have, text[0], sizeof text[0]),
                             gsi_verify_describe(sim, want, text[1], sizeof text[1]));
}

static int judge(gsi_sim *sim)
{
    const gsi_plan_args *args = sim->args;

    for (int r = 0; r < sim->n; r++) {
        const gsi_vrank *rank = &sim->ranks[r];
        const gsi_vcell *recv = sim->cells + rank->base[GSI_RECV];
        for (uint64_t e = 0; e < rank->len[GSI_RECV]; e++) {
            gsi_vcell want = {sim->full, (uint32_t)e};
            if (args->coll == GRADSYNC_REDUCE_SCATTER)
                want.elem = (uint32_t)((uint64_t)r * sim->stride + e);
            if (args->coll == GRADSYNC_BROADCAST)
                want.form = GSI_FORM_RAW + (uint32_t)args->root;
            if (args->coll == GRADSYNC_ALL_GATHER) {
                if (e % sim->stride >= args->count)
                    continue; /* between blocks: nobody writes there, gsi_verify_check() saw to it */
                want.form = GSI_FORM_RAW + (uint32_t)(e / sim->stride);
                want.elem = (uint32_t)(e % sim->stride);
            }
            if (recv[e].form != want.form || recv[e].elem != want.elem)
                return wrong(sim, r, e, recv[e], want);
        }
    }
    return 0;
}

int gsi_plan_verify(gsi_plan *const *plans, const gsi_plan_args *args, const gsi_verify_opts *opts, char *why,
                    size_t room)
{
    gsi_sim sim = {.plans = plans, .args = args, .why = why, .room = room};
    int rc;

    if (opts)
        sim.opts = *opts;
    if (why && room)
        why[0] = '\0';
    rc = setup(&sim);
    if (!rc)
        rc = gsi_verify_run(&sim);
    if (!rc && sim.clocks)
        rc = gsi_verify_ends(&sim);
    if (!rc)
        rc = judge(&sim);

    while (sim.blocks) {
        gsi_vblock *next = sim.blocks->next;
        free(sim.blocks);
        sim.blocks = next;
    }
    free(sim.active.items);
    free(sim.puts.items);
    free(sim.items.items);
    free(sim.forms.items);
    free(sim.bits.items);
    free(sim.form_hash);
    free(sim.readers.items);
    free(sim.clock_pool.items);
    if (rc == GRADSYNC_ERR_NOMEM)
        return gsi_fail(rc, "no memory to verify a plan of %d ranks; use fewer ranks or a smaller count", args->n);
    return rc;
}
