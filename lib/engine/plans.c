/* SPDX-License-Identifier: Apache-2.0 */
/* The plan cache: which algorithm, which plan, found again in some ten ns. */
#include "engine/engine.h"

#include <string.h>

#include "base/error.h"

enum { WAYS = 4 };

static uint32_t hash(const gsi_plan_key *key)
{
    uint64_t h = key->count * 0x9e3779b97f4a7c15u;
    h ^= (key->head + key->tail * 31 + key->stride * 7) * 0xc2b2ae3d27d4eb4fu;
    h ^= ((uint64_t)key->root << 32 | key->flags << 16 | (uint32_t)(key->coll << 12 | key->esize << 4 | key->fixed)) *
         0x165667b19e3779f9u;
    h ^= (uint64_t)(key->shareable << 1 | key->attached) << 17;
    return (uint32_t)(h >> 32) & (GSI_PLAN_CACHE / WAYS - 1);
}

void gsi_engine_choose(const gsi_engine *e, const gsi_call *call, int shareable, int unsent, uint64_t head,
                       uint64_t tail, int brief, gsi_choice *out)
{
    gsi_select_args args = {
        .coll = call->coll,
        .n = e->n,
        .bytes = call->count * call->esize,
        .esize = call->esize,
        .flags = call->flags,
        .shareable = shareable,
        .head = head,
        .tail = tail,
        .fixed = call->algo ? call->algo : e->default_algo,
        .slot_bytes = e->ep->slot_bytes,
        .stage_bytes = e->ep->stage_bytes,
        .loadstore = e->ep->loadstore,
        .hosts = e->hosts,
        .share = shareable && !head && !tail,
        .unsent = unsent,
    };
    gsi_select(&e->costs, &args, brief, out);
}

static gsi_plan_args plan_args(const gsi_engine *e, const gsi_plan_key *key, int algo, uint64_t count)
{
    return (gsi_plan_args){
        .algo = algo,
        .coll = key->coll,
        .n = e->n,
        .rank = e->rank,
        .root = key->root,
        .esize = key->esize,
        .acc_esize = key->half ? 4 : key->esize,
        .count = count,
        .stride = key->stride,
        .stage_bytes = e->ep->stage_bytes,
        .slot_bytes = e->ep->slot_bytes,
        .head = key->head,
        .tail = key->tail,
        .reach = key->shareable && !key->head && !key->tail,
        .share = key->shareable && !key->head && !key->tail,
        .hosts = e->hosts,
        .message = (uint64_t)e->costs.message_bytes,
        .flags = key->flags,
    };
}

/* Chooses and builds. Every rank has the same key, so every rank comes to the same result. */
static int build(const gsi_engine *e, const gsi_call *call, const gsi_plan_key *key, gsi_plan_entry *out)
{
    gsi_call fixed = *call;
    gsi_choice choice;

    fixed.algo = key->attached && !key->fixed ? GRADSYNC_ALGO_ONESHOT : key->fixed;
    /* Some ranks may have sent their payload where others can be reached, so that nobody has all of it. */
    gsi_engine_choose(e, &fixed, key->shareable, !key->attached, key->head, key->tail, 0, &choice);
    if (choice.algo == GRADSYNC_ALGO_ONESHOT && !key->attached) {
        fixed.algo = GRADSYNC_ALGO_STAGED;
        gsi_engine_choose(e, &fixed, key->shareable, 1, key->head, key->tail, 0, &choice);
    }
    if (!choice.algo)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED, "%s", choice.reason);
    gsi_plan_args args = plan_args(e, key, choice.algo, key->count);
    uint64_t most = gsi_plan_segment(&args);
    if (args.count > most)
        args.count = most;
    int rc = gsi_plan_build(&args, &out->plan);
    if (rc)
        return rc;
    out->key = *key;
    out->segment = args.count;
    out->predicted_us = choice.predicted_us;
    return 0;
}

int gsi_engine_plan(gsi_engine *e, const gsi_op *op, int shareable, int attached, uint64_t head, uint64_t tail,
                    const gsi_plan_entry **out)
{
    const gsi_call *call = &op->call;
    int fixed = call->algo ? call->algo : e->default_algo;
    gsi_plan_key key;

    memset(&key, 0, sizeof key); /* compared as bytes */
    key.count = call->count - op->segment;
    key.stride = call->count;
    key.head = head;
    key.tail = tail;
    key.root = call->root;
    key.flags = call->flags & GRADSYNC_ORDERED;
    key.esize = call->esize;
    key.coll = call->coll;
    key.shareable = (uint8_t)shareable;
    key.attached = (uint8_t)attached;
    key.fixed = (uint8_t)(op->segment ? op->algo : fixed); /* a long message goes on as it began */
    key.half = call->dtype == GRADSYNC_F16 || call->dtype == GRADSYNC_BF16;

    gsi_plan_entry *set = &e->plans[hash(&key) * WAYS], *victim = NULL;
    for (int i = 0; i < WAYS; i++) {
        gsi_plan_entry *entry = &set[i];
        if (entry->plan && !memcmp(&entry->key, &key, sizeof key)) {
            entry->users++;
            *out = entry;
            return 0;
        }
        if (!entry->users && (!victim || !entry->plan))
            victim = entry;
    }
    /* There are more ways than a set can have users at once only if lanes <= WAYS. */
    if (!victim)
        return gsi_fail(GRADSYNC_ERR_INTERNAL, "the plan cache has no room");
    gsi_plan_entry fresh = {0};
    int rc = build(e, call, &key, &fresh);
    if (rc)
        return rc;
    gsi_plan_free(victim->plan);
    *victim = fresh;
    victim->users = 1;
    *out = victim;
    return 0;
}

void gsi_engine_plan_done(const gsi_plan_entry *entry)
{
    ((gsi_plan_entry *)(uintptr_t)entry)->users--; /* the engine's own, handed out as const */
}

void gsi_engine_free_plans(gsi_engine *e)
{
    for (int i = 0; i < GSI_PLAN_CACHE; i++)
        gsi_plan_free(e->plans[i].plan);
}

/* What of a rank's contribution would have to travel with the header. */
static uint64_t payload_bytes(int coll, uint64_t bytes, int n)
{
    return coll == GRADSYNC_REDUCE_SCATTER ? bytes * (uint64_t)n : bytes;
}

void gsi_engine_set_costs(gsi_engine *e, const gsi_costs *costs)
{
    e->costs = *costs;
    for (int coll = 0; coll < GRADSYNC_BARRIER; coll++) {
        gsi_eager_limits *limits = &e->eager[coll];
        *limits = (gsi_eager_limits){0, 0};
        for (uint64_t bytes = 8; payload_bytes(coll, bytes, e->n) <= e->ep->slot_bytes; bytes *= 2) {
            gsi_call call = {.coll = (uint8_t)coll, .esize = 4, .count = bytes / 4};
            gsi_choice choice;
            uint64_t payload = payload_bytes(coll, bytes, e->n);
            gsi_engine_choose(e, &call, 1, 0, 0, 0, 1, &choice);
            if (choice.algo == GRADSYNC_ALGO_ONESHOT)
                limits->always = payload;
            gsi_engine_choose(e, &call, 0, 0, 0, 0, 1, &choice);
            if (choice.algo == GRADSYNC_ALGO_ONESHOT)
                limits->private = payload;
        }
        if (limits->private < limits->always)
            limits->private = limits->always;
    }
}
