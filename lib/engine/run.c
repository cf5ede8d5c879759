/* SPDX-License-Identifier: Apache-2.0 */
/* The interpreter: steps the streams of a lane's plan as far as they can go. */
#include "engine/engine.h"

#include "base/cpu.h"
#include "base/error.h"
#include "reduce/reduce.h"

/* A long step goes in pieces, so that an abort or a failure is seen between them. */
enum { PIECE_BYTES = 1 << 20, TIMED_BYTES = 16 << 10 };

static const gsi_plan *plan_of(const gsi_lane *lane)
{
    return lane->op->entry->plan;
}

/* Where a place lies in this process; NULL: out of reach, which no plan that was chosen may name. */
static char *address_of(const gsi_lane *lane, int n, const gsi_place *place)
{
    char *base = lane->base[place->space * n + place->rank];
    if (!base)
        return NULL;
    return base + place->off + (place->space == GSI_STAGE ? 0 : lane->seg_bytes);
}

static int out_of_reach(const gsi_lane *lane, const gsi_place *place)
{
    return gsi_fail(GRADSYNC_ERR_INTERNAL, "the plan for %s names memory of rank %d that cannot be reached",
                    gradsync_coll_name(lane->op->call.coll), place->rank);
}

void gsi_engine_start_plan(gsi_engine *e, gsi_lane *lane)
{
    const gsi_plan *plan = plan_of(lane);
    (void)e;
    for (int s = 0; s < plan->nstreams; s++)
        lane->streams[s] = (gsi_stream_state){0};
}

/* Fills the lane's scratch with the step's operands from byte `from` of it on. */
static int bind(const gsi_engine *e, gsi_lane *lane, const gsi_step *step, uint64_t from)
{
    const gsi_place *place = plan_of(lane)->places + step->place;
    /* Partial results in f32 are twice as long as f16 and bf16 themselves. */
    uint64_t wide_src = step->flags & GSI_STEP_ACC_IN ? 4 / lane->op->call.esize : 1;
    uint64_t wide_dst = step->flags & GSI_STEP_ACC_OUT ? 4 / lane->op->call.esize : 1;

    for (int i = 0; i < step->nsrc; i++, place++) {
        char *at = address_of(lane, e->n, place);
        if (!at)
            return out_of_reach(lane, place);
        lane->src[i] = at + from * (i == 0 ? wide_src : 1);
        if (lane->scaled)
            lane->src_scale[i] = place->from == GSI_PARTIAL ? 1 : lane->scale[place->from];
    }
    for (int i = 0; i < step->ndst; i++, place++) {
        char *at = address_of(lane, e->n, place);
        if (!at)
            return out_of_reach(lane, place);
        lane->dst[i] = at + from * wide_dst;
    }
    return 0;
}

/* Non-temporal stores pay where the step goes through more than the caches hold and writes what it has not read:
 * reading has brought the other lines in already. The operands are bound. */
static int past_caches(const gsi_engine *e, const gsi_lane *lane, const gsi_step *step)
{
    if (!plan_of(lane)->user_memory || step->bytes * ((uint64_t)step->nsrc + step->ndst) <= e->nt_bytes)
        return 0;
    for (int d = 0; d < step->ndst; d++)
        for (int s = 0; s < step->nsrc; s++)
            if (lane->dst[d] == lane->src[s])
                return 0;
    return 1;
}

static int do_reduce(gsi_engine *e, gsi_lane *lane, const gsi_step *step, uint64_t from, uint64_t bytes)
{
    const gsi_call *call = &lane->op->call;
    int rc = bind(e, lane, step, from);
    if (rc)
        return rc;
    int average = call->op == GRADSYNC_AVG, sum = average || call->op == GRADSYNC_PREMUL_SUM;
    gsi_reduce_args args = {
        .dst = lane->dst,
        .src = lane->src,
        .scale = lane->scaled ? lane->src_scale : NULL,
        .count = bytes / call->esize,
        .divisor = average && (step->flags & GSI_STEP_FINAL) ? (uint64_t)e->n : 1,
        .ndst = step->ndst,
        .nsrc = step->nsrc,
        .flags = (step->flags & GSI_STEP_ACC_IN ? GSI_REDUCE_ACC_IN : 0) |
                 (step->flags & GSI_STEP_ACC_OUT ? GSI_REDUCE_ACC_OUT : 0) |
                 (past_caches(e, lane, step) ? GSI_REDUCE_NT : 0),
        .dtype = call->dtype,
        .op = sum ? GRADSYNC_SUM : call->op,
    };
    gsi_reduce(&args);
    return 0;
}

static int do_copy(gsi_engine *e, gsi_lane *lane, const gsi_step *step, uint64_t from, uint64_t bytes)
{
    int rc = bind(e, lane, step, from), ndst = 0;
    if (rc)
        return rc;
    for (int i = 0; i < step->ndst; i++) /* a call in place may name its source as destination */
        if (lane->dst[i] != lane->src[0])
            lane->dst[ndst++] = lane->dst[i];
    if (ndst)
        gsi_copy(lane->dst, (uint32_t)ndst, lane->src[0], bytes, past_caches(e, lane, step));
    return 0;
}

static int do_put(gsi_engine *e, gsi_lane *lane, const gsi_step *step, int stream)
{
    const gsi_place *src = plan_of(lane)->places + step->place, *dst = src + 1;
    char *from = address_of(lane, e->n, src);
    gsi_target target = {dst->off, 0, dst->space};

    if (!from)
        return out_of_reach(lane, src);
    if (dst->space != GSI_STAGE) {
        int at = dst->space * e->n + dst->rank;
        if (!lane->mem[at])
            return out_of_reach(lane, dst);
        target.mem = lane->mem[at];
        target.off += lane->mem_off[at] + lane->seg_bytes;
    }
    return e->ep->ops->put(e->ep, lane->op->seq, stream, step->peer, &target, from, step->bytes,
                           step->flags & GSI_STEP_NOTIFY);
}

/* 1: reached. */
static int do_wait(gsi_engine *e, gsi_lane *lane, const gsi_step *step, int stream)
{
    gsi_stream_state *state = &lane->streams[stream];
    const uint32_t *awaited = lane->awaited + stream * e->n;
    int all = plan_of(lane)->signal_all;

    if (step->peer != GSI_ALL)
        return e->ep->ops->signals(e->ep, lane->op->seq, stream, step->peer, all) >= awaited[step->peer] + step->value;
    for (; state->waiting < e->n; state->waiting++)
        if (state->waiting != e->rank && e->ep->ops->signals(e->ep, lane->op->seq, stream, state->waiting, all) <
                                             awaited[state->waiting] + step->value)
            return 0;
    state->waiting = 0;
    return 1;
}

/* Does the step, or a piece of it: 1 done, 0 blocked or not done yet, or an error. */
static int do_step(gsi_engine *e, gsi_lane *lane, const gsi_step *step, int stream, int *moved)
{
    gsi_stream_state *state = &lane->streams[stream];
    int rc = 0;

    switch (step->kind) {
    case GSI_STEP_COPY:
    case GSI_STEP_REDUCE: {
        uint64_t bytes = step->bytes - state->moved;
        if (bytes > PIECE_BYTES)
            bytes = PIECE_BYTES;
        uint64_t start = bytes >= TIMED_BYTES ? gsi_ticks() : 0;
        if (start)
            e->ep->ops->announce(e->ep); /* whoever sleeps may as well work meanwhile */
        if (bytes)
            rc = step->kind == GSI_STEP_COPY ? do_copy(e, lane, step, state->moved, bytes)
                                             : do_reduce(e, lane, step, state->moved, bytes);
        if (start)
            lane->op->work_ticks += gsi_ticks() - start;
        *moved = 1;
        state->moved += bytes;
        if (rc || state->moved < step->bytes)
            return rc;
        state->moved = 0;
        return 1;
    }
    case GSI_STEP_PUT:
        rc = do_put(e, lane, step, stream);
        return rc == GRADSYNC_IN_PROGRESS ? 0 : rc ? rc : 1;
    case GSI_STEP_SIGNAL:
        if (step->peer == GSI_ALL)
            e->ep->ops->signal_all(e->ep, lane->op->seq);
        else
            e->ep->ops->signal(e->ep, lane->op->seq, stream, step->peer);
        return 1;
    case GSI_STEP_WAIT:
        return do_wait(e, lane, step, stream);
    case GSI_STEP_FLUSH:
        return e->ep->ops->flushed(e->ep, lane->op->seq, stream, step->peer);
    }
    return gsi_fail(GRADSYNC_ERR_INTERNAL, "a plan has a step of unknown kind %d", step->kind);
}

int gsi_engine_run_plan(gsi_engine *e, gsi_lane *lane, int *moved)
{
    const gsi_plan *plan = plan_of(lane);
    int finished = 1;

    for (int s = 0; s < plan->nstreams; s++) {
        gsi_stream_state *state = &lane->streams[s];
        const gsi_step *steps = plan->steps + plan->streams[s].first;
        while (state->pc < plan->streams[s].count) {
            int rc = do_step(e, lane, &steps[state->pc], s, moved);
            if (rc < 0)
                return rc;
            if (!rc)
                break;
            state->pc++;
            *moved = 1;
        }
        finished &= state->pc == plan->streams[s].count;
    }
    return finished;
}

int gsi_engine_waits_for(const gsi_engine *e, const gsi_lane *lane, int *step)
{
    const gsi_op *op = lane->op;
    *step = -1;
    if (op->state == GSI_OP_ENTERED || op->state == GSI_OP_MEETING)
        return op->entered_next < e->n ? op->entered_next : -1;
    if (op->state != GSI_OP_RUNNING)
        return -1;
    const gsi_plan *plan = plan_of(lane);
    for (int s = 0; s < plan->nstreams; s++) {
        const gsi_stream_state *state = &lane->streams[s];
        if (state->pc == plan->streams[s].count)
            continue;
        const gsi_step *at = &plan->steps[plan->streams[s].first + state->pc];
        *step = (int)(plan->streams[s].first + state->pc);
        if (at->kind == GSI_STEP_WAIT)
            return at->peer == GSI_ALL ? state->waiting : at->peer;
        return at->peer;
    }
    return -1;
}
