/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One shot: every rank's contribution travels with its header, so when the headers
 * are exchanged everyone has everything and works out its own result. No signals:
 * the engine does not reuse a slot before all ranks are done with it.
 */
#include "plan/builder.h"

/* Bytes that travel with the header. */
static uint64_t published(const gsi_plan_args *args)
{
    if (args->coll == GRADSYNC_BARRIER)
        return 0;
    return args->count * args->esize * (args->coll == GRADSYNC_REDUCE_SCATTER ? (uint64_t)args->n : 1);
}

const char *gsi_unfit_oneshot(const gsi_plan_args *args)
{
    if (args->coll == GRADSYNC_REDUCE_SCATTER && args->stride != args->count)
        return "a segment of a reduce-scatter is not one piece to publish";
    if (published(args) > args->slot_bytes)
        return "the contribution is larger than a slot";
    return NULL;
}

int gsi_build_oneshot(gsi_builder *b)
{
    const gsi_plan_args *args = b->args;
    gsi_plan *plan = b->plan;
    int coll = args->coll, me = b->rank;
    uint64_t block = coll == GRADSYNC_BARRIER ? 0 : args->count * args->esize;

    plan->gather = 1;
    plan->loadstore = 1;
    plan->signal_all = 1;
    plan->slot = 1;
    plan->ordered = 1;
    plan->eager = published(args);
    plan->stage_bytes = plan->eager;

    uint64_t part = coll == GRADSYNC_REDUCE_SCATTER ? block * (uint64_t)me : 0;
    switch (coll) {
    case GRADSYNC_REDUCE:
        if (me != args->root)
            break;
        /* fall through */
    case GRADSYNC_ALL_REDUCE:
    case GRADSYNC_REDUCE_SCATTER:
        gsi_add_step(b, GSI_STEP_REDUCE, GSI_STEP_FINAL, block);
        for (int r = 0; r < b->n; r++)
            gsi_add_src(b, gsi_raw(GSI_STAGE, r, part, r));
        gsi_add_dst(b, gsi_at(GSI_RECV, me, 0));
        break;
    case GRADSYNC_ALL_GATHER:
        for (int r = 0; r < b->n; r++)
            gsi_add_copy(b, r == me ? gsi_raw(GSI_SEND, me, 0, me) : gsi_raw(GSI_STAGE, r, 0, r),
                         gsi_at(GSI_RECV, me, (uint64_t)r * args->stride * args->esize), block);
        break;
    case GRADSYNC_BROADCAST:
        gsi_add_copy(b, me == args->root ? gsi_raw(GSI_SEND, me, 0, me) : gsi_raw(GSI_STAGE, args->root, 0, args->root),
                     gsi_at(GSI_RECV, me, 0), block);
        break;
    default:
        break;
    }
    return b->error;
}
