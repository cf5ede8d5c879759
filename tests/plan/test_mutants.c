/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verifier against real plans and their mutants. Each mutant has one defect at
 * random: a step dropped, two swapped, an offset, a peer, a value or a flag changed.
 * Not every mutant is wrong (two independent copies may be swapped), so a brute-force
 * prover that shares no code with the verifier says which are, and both must agree.
 */
#include "plan/verify.h"
#include "reference.h"
#include "tap.h"

#include <string.h>

enum { MAX_RANKS = 6, MUTANTS = 40 };

enum { DROP, SWAP, MOVE, OFFSET, OWNER, FROM, PEER, VALUE, FLAG, BYTES, KINDS };
static const char *const names[KINDS] = {
    "a step dropped", "neighbours swapped", "steps swapped",   "an offset changed", "an owner changed",
    "`from` changed", "a peer changed",     "a value changed", "a flag changed",    "a length changed"};

static uint64_t rng = 88172645463325252u;
static struct {
    int tried, rejected, missed, wronged, untimely;
} count[KINDS];
static char first_miss[700];

static uint32_t draw(uint32_t below)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (uint32_t)(rng >> 33) % below;
}

static void *clone(const void *from, size_t bytes)
{
    void *to = calloc(1, bytes ? bytes : 1); /* zeroed: a plan may be without places */

    if (!to)
        abort();
    if (bytes)
        memcpy(to, from, bytes);
    return to;
}

static gsi_plan *copy_plan(const gsi_plan *plan)
{
    gsi_plan *copy = clone(plan, sizeof *plan);

    copy->steps = clone(plan->steps, plan->nsteps * sizeof *plan->steps);
    copy->places = clone(plan->places, plan->nplaces * sizeof *plan->places);
    copy->awaits = clone(plan->awaits, (size_t)plan->nstreams * (size_t)plan->n * sizeof *plan->awaits);
    return copy;
}

/* What the plan's waits come to: a mutant lies about nothing but its one defect. */
static void recount(gsi_plan *plan)
{
    memset(plan->awaits, 0, (size_t)plan->nstreams * (size_t)plan->n * sizeof *plan->awaits);
    for (int s = 0; s < plan->nstreams; s++)
        for (uint32_t i = 0; i < plan->streams[s].count; i++) {
            const gsi_step *step = &plan->steps[plan->streams[s].first + i];
            for (int p = 0; p < plan->n && step->kind == GSI_STEP_WAIT; p++)
                if (p != plan->rank && (step->peer == p || step->peer == GSI_ALL) &&
                    plan->awaits[s * plan->n + p] < step->value)
                    plan->awaits[s * plan->n + p] = step->value;
        }
}

static void drop(gsi_plan *plan, int stream, uint32_t at)
{
    memmove(&plan->steps[at], &plan->steps[at + 1], (plan->nsteps - at - 1) * sizeof *plan->steps);
    plan->nsteps--;
    plan->streams[stream].count--;
    for (int s = 0; s < plan->nstreams; s++)
        if (plan->streams[s].first > at)
            plan->streams[s].first--;
}

static void swap(gsi_plan *plan, uint32_t a, uint32_t b)
{
    gsi_step step = plan->steps[a];

    plan->steps[a] = plan->steps[b];
    plan->steps[b] = step;
}

/* Changes one thing; 0 if this step has no such thing. */
static int mutate(gsi_plan *plan, const gsi_plan_args *args, int kind)
{
    int stream = (int)draw((uint32_t)plan->nstreams);
    const gsi_stream *range = &plan->streams[stream];
    uint32_t at = range->count ? range->first + draw(range->count) : 0;
    gsi_step *step = &plan->steps[at];
    gsi_place *place;
    int32_t other = (int32_t)draw((uint32_t)args->n);
    uint32_t flag = 1u << draw(4);

    if (!range->count)
        return 0;
    place = step->nsrc ? &plan->places[step->place + draw((uint32_t)step->nsrc + step->ndst)] : NULL;
    switch (kind) {
    case DROP:
        drop(plan, stream, at);
        return 1;
    case SWAP:
        if (at + 1 == range->first + range->count)
            return 0;
        swap(plan, at, at + 1);
        return 1;
    case MOVE:
        swap(plan, at, range->first + draw(range->count));
        return 1;
    case OFFSET:
        if (!place)
            return 0;
        place->off += (uint64_t)args->esize * (draw(4) ? 1 : 1 + draw(16)) * (draw(2) ? 1 : UINT64_MAX);
        return 1;
    case OWNER:
        if (!place || other == place->rank)
            return 0;
        place->rank = other;
        return 1;
    case FROM:
        if (!place)
            return 0;
        place->from = draw(2) ? other : GSI_PARTIAL;
        return 1;
    case PEER:
        if (step->kind < GSI_STEP_PUT || other == plan->rank || other == step->peer)
            return 0;
        step->peer = other;
        if (step->kind == GSI_STEP_PUT)
            plan->places[step->place + 1].rank = other;
        return 1;
    case VALUE:
        if (step->kind != GSI_STEP_WAIT)
            return 0;
        step->value += draw(2) ? 1 : UINT32_MAX;
        return 1;
    case FLAG:
        if (step->kind != GSI_STEP_PUT && step->kind != GSI_STEP_REDUCE)
            return 0;
        step->flags ^= (uint8_t)flag;
        return 1;
    default:
        if (!place)
            return 0;
        step->bytes += args->esize * (draw(2) ? 1 : UINT64_MAX);
        return 1;
    }
}

static int verify(gsi_plan *const *plans, const gsi_plan_args *args, int alias, int races, uint64_t seed, char *why)
{
    gsi_verify_opts opts = {.alias = alias, .seed = seed, .races = races};

    return gsi_plan_verify(plans, args, &opts, why, 400);
}

static void judge(gsi_plan *const *plans, const gsi_plan_args *args, int kind)
{
    int alias = (int)draw(3), right;
    const char *reason;
    char why[400] = "", values[400] = "";
    int strict = verify(plans, args, alias, 1, draw(1000), why);
    int again = verify(plans, args, alias, 1, draw(1000), why);
    int loose = verify(plans, args, alias, 0, draw(1000), values);

    right = reference_verify(plans, args, alias, &reason);
    if (right < 0)
        return;
    count[kind].tried++;
    count[kind].rejected += strict != 0;
    if (!right && (!strict || !again))
        count[kind].missed++;
    if (right && (strict || again || loose))
        count[kind].wronged++;
    if ((strict == 0) != right && !first_miss[0])
        snprintf(first_miss, sizeof first_miss, "%s, %s of %d, alias %d, %s: the reference says %s, the verifier %s",
                 gradsync_algo_name(args->algo), gradsync_coll_name(args->coll), (int)args->n, alias, names[kind],
                 right ? "right" : reason, strict ? why : "right");
    /* Without looking for races only some schedules show it. */
    count[kind].untimely += !right && !loose;
}

/* The plans of all ranks; 0 if there are none for these arguments. */
static int build(gsi_plan_args *args, gsi_plan **plans)
{
    int ok = 1;

    for (int r = 0; r < args->n; r++) {
        args->rank = r;
        plans[r] = NULL;
        ok = ok && gsi_plan_build(args, &plans[r]) == 0;
    }
    return ok;
}

static void mutants_of(gsi_plan *const *plans, const gsi_plan_args *args)
{
    gsi_plan *set[MAX_RANKS];

    for (int i = 0; i < MUTANTS; i++) {
        int r = (int)draw((uint32_t)args->n), kind = (int)draw(KINDS);
        memcpy(set, plans, sizeof set);
        set[r] = copy_plan(plans[r]);
        if (mutate(set[r], args, kind)) {
            recount(set[r]);
            judge(set, args, kind);
        }
        gsi_plan_free(set[r]);
    }
    /* Every wait, once. */
    for (int r = 0; r < args->n && r < 2; r++)
        for (int s = 0; s < plans[r]->nstreams; s++)
            for (uint32_t k = 0; k < plans[r]->streams[s].count; k++) {
                uint32_t at = plans[r]->streams[s].first + k;
                if (plans[r]->steps[at].kind != GSI_STEP_WAIT)
                    continue;
                memcpy(set, plans, sizeof set);
                set[r] = copy_plan(plans[r]);
                drop(set[r], s, at);
                recount(set[r]);
                judge(set, args, DROP);
                gsi_plan_free(set[r]);
            }
}

/* One algorithm, every collective, few ranks, in pieces small enough to make pipelines. */
static void algorithm(int algo)
{
    static const int32_t hosts_of[3][MAX_RANKS] = {{0, 1, 0, 1, 1}, {0, 0, 1, 1, 2}, {0, 1, 1, 2, 2}};
    int sets = 0, bad = 0, small = 0;
    char why[400] = "";

    for (int coll = 0; coll < GRADSYNC_COLL_COUNT; coll++)
        for (int n = 2; n < MAX_RANKS; n++)
            for (int variant = 0; variant < 3; variant++) {
                gsi_plan *plans[MAX_RANKS] = {NULL};
                const char *reason;
                gsi_plan_args args = {
                    .algo = algo,
                    .coll = coll,
                    .n = n,
                    .root = n - 1,
                    .esize = variant == 1 ? 2 : 8,
                    .acc_esize = variant == 1 ? 4 : 8,
                    .count = variant == 1 ? 101 : 37,
                    .stage_bytes = 1024,
                    .slot_bytes = 2048,
                    .chunk = variant == 2 ? 0 : 64,
                    .credits = variant == 2 ? 8 : 4,
                    .flags = variant == 1 ? GRADSYNC_ORDERED : 0,
                    .reach = (uint32_t)(n + coll) % 2,
                };
                gsi_hosts *hosts = NULL;
                if (algo == GRADSYNC_ALGO_HIER && !gsi_hosts_make(hosts_of[n == 2 ? 0 : variant], n, &hosts)) {
                    args.hosts = hosts;
                    args.share = (uint32_t)(n + coll) / 2 % 2;
                }
                args.stride = args.count + (variant == 2 && algo != GRADSYNC_ALGO_ONESHOT ? 3 : 0);
                if (build(&args, plans)) {
                    int right = reference_verify(plans, &args, variant, &reason);
                    sets++;
                    small += right >= 0;
                    if (right == 0 || verify(plans, &args, variant, 1, 1, why)) {
                        bad++;
                        tap_note("%s of %d, variant %d: %s; %s", gradsync_coll_name(coll), n, variant,
                                 right ? "" : reason, why);
                    } else if (right > 0) {
                        mutants_of(plans, &args);
                    }
                }
                for (int r = 0; r < n; r++)
                    gsi_plan_free(plans[r]);
                free(hosts);
            }
    tap_ok(sets && !bad && small, "%s: %d of %d sets of plans are right, %d also by brute force",
           gradsync_algo_name(algo), sets - bad, sets, small);
}

int main(void)
{
    int tried = 0, rejected = 0, unseen = 0;

    for (int algo = GRADSYNC_ALGO_AUTO + 1; algo < GRADSYNC_ALGO_COUNT; algo++)
        algorithm(algo);
    for (int k = 0; k < KINDS; k++) {
        tap_ok(count[k].tried > 20 && !count[k].missed && !count[k].wronged,
               "%s: %d of %d mutants rejected; %d wrong ones missed, %d right ones rejected", names[k],
               count[k].rejected, count[k].tried, count[k].missed, count[k].wronged);
        tried += count[k].tried;
        rejected += count[k].rejected;
        unseen += count[k].untimely;
    }
    if (first_miss[0])
        tap_note("%s", first_miss);
    tap_note("%d of %d mutants rejected; the others are right by brute force as well", rejected, tried);
    tap_note("%d of the wrong ones passed one schedule without the race check", unseen);
    return tap_done();
}
