/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every algorithm, every collective, many sizes: all plans are built and verified
 * (verify.h). Pieces and staging are tiny, so that pipelines run and slots are reused.
 * Time is limited by leaving cases out, evenly; PLAN_FULL=1 leaves out none and takes hours.
 */
#include "plan/verify.h"
#include "plan/builder.h"
#include "base/error.h"
#include "tap.h"

#include <string.h>

enum { REACH_BOTH = GRADSYNC_ALGO_RING }; /* algorithms from this one on have plans with and without reach */

/* Steps that a case should take, about. */
#ifndef QUOTA
#define QUOTA 18
#endif

typedef struct tally {
    long cases, unsupported, failed;
    char first[768]; /* failure */
} tally;

static int full;
static uint64_t turn; /* of the cases, for leaving out */

/* First, middle, last. */
static int root_at(int n, int which)
{
    return which == 0 ? 0 : which == 1 ? n / 2 : n - 1;
}

static void build_error(char *text, size_t room)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

    gradsync_last_error(&info);
    snprintf(text, room, "%s", info.message);
}

static void failure(tally *t, const gsi_plan_args *a, int alias, const char *why)
{
    if (t->failed++)
        return;
    snprintf(t->first, sizeof t->first,
             "n %d root %d count %llu stride %llu esize %u acc %u chunk %llu stage %llu credits %u flags %u reach %u "
             "head %llu tail %llu alias %d: %s",
             (int)a->n, (int)a->root, (unsigned long long)a->count, (unsigned long long)a->stride, (unsigned)a->esize,
             (unsigned)a->acc_esize, (unsigned long long)a->chunk, (unsigned long long)a->stage_bytes,
             (unsigned)a->credits, (unsigned)a->flags, (unsigned)a->reach, (unsigned long long)a->head,
             (unsigned long long)a->tail, alias, why);
}

/* Builds the plans of all ranks: 0, or the error of the first that fails. */
static int build_all(gsi_plan_args *a, gsi_plan **plans)
{
    int error = 0;

    memset(plans, 0, (size_t)a->n * sizeof *plans);
    for (int r = 0; r < a->n && !error; r++) {
        a->rank = r;
        error = gsi_plan_build(a, &plans[r]);
    }
    return error;
}

static void free_all(int n, gsi_plan **plans)
{
    for (int r = 0; r < n; r++)
        gsi_plan_free(plans[r]);
}

static void try_case(tally *t, gsi_plan_args a, int alias, int races)
{
    static gsi_plan *plans[1024];
    char why[512];

    int error = build_all(&a, plans);
    if (error == GRADSYNC_ERR_UNSUPPORTED) {
        t->unsupported++;
    } else if (error) {
        build_error(why, sizeof why);
        failure(t, &a, alias, why);
    } else {
        gsi_verify_opts opts = {.alias = alias, .seed = ++turn, .races = races};
        t->cases++;
        if (gsi_plan_verify(plans, &a, &opts, why, sizeof why))
            failure(t, &a, alias, why);
    }
    free_all(a.n, plans);
}

/* The least staging that the algorithm accepts for this, up to a factor below 1.5. */
static uint64_t least_stage(gsi_plan_args a)
{
    for (a.stage_bytes = a.esize; gsi_unfit(&a); a.stage_bytes += a.stage_bytes / 3 + 1)
        if (a.stage_bytes > 1u << 20)
            break; /* it is not for want of staging */
    return a.stage_bytes;
}

/* About how much work the verification is: steps of all ranks, and what they wait for or touch. */
static uint64_t work_of(gsi_plan_args a)
{
    gsi_plan *plan;

    a.rank = 0;
    if (gsi_plan_build(&a, &plan))
        return 0;
    uint64_t one = plan->nsteps + plan->nplaces + (plan->signal_all ? plan->nsteps * (uint64_t)a.n / 2 : 0);
    gsi_plan_free(plan);
    /* PUTs are under way for a while, which the race checker follows. */
    return one * (uint64_t)a.n * (a.algo >= REACH_BOTH ? 3 : 1);
}

/* Is it the turn of a case of so much work? So many that the work of each kind is about the same in
 * sum, evenly spread by a multiplicative hash. */
static int picked(uint64_t work, uint64_t quota)
{
    static uint64_t counter;
    uint64_t turn_of = ++counter * UINT64_C(0x9E3779B97F4A7C15) >> 32;

    return full || turn_of % (work + quota) < quota;
}

/* One of six mixtures of the arguments that shape a plan. */
static gsi_plan_args shaped(gsi_plan_args a, uint64_t count, int shape)
{
    a.count = count;
    /* what is not divided among the ranks need not grow with them */
    if (a.coll != GRADSYNC_ALL_REDUCE && a.coll != GRADSYNC_REDUCE && count > 70 && a.n > 8)
        a.count = 40 + count % 31;
    a.stride = a.count + (shape == 4 ? 3 : 0);
    a.esize = shape % 2 ? 2 : 4;
    a.acc_esize = 4;
    a.chunk = (uint64_t[]){16, 4, 64, 40, 0, 2}[shape];
    a.credits = (uint32_t[]){0, 4, 16, 5, 8, 64}[shape];
    a.slot_bytes = a.stage_bytes = UINT64_C(1) << 30;
    if (a.algo == GRADSYNC_ALGO_DIRECT && a.coll == GRADSYNC_ALL_REDUCE && shape >= 3) {
        a.head = (uint64_t[]){12, 0, 7}[shape - 3];
        a.tail = (uint64_t[]){0, 2 * (uint64_t)a.n, 1}[shape - 3];
    }
    if (shape % 3 == 0)
        a.stage_bytes = least_stage(a);
    else if (shape == 2)
        a.stage_bytes = least_stage(a) * 4 + 30;
    return a;
}

static void sweep_n(tally *t, gsi_plan_args a)
{
    uint64_t n = (uint64_t)a.n;
    const uint64_t counts[] = {0, 1, n - 1, n, n + 1, 3 * n + 5, 16 * n + 3, 40 * n + 1};
    int rooted = a.coll == GRADSYNC_BROADCAST || a.coll == GRADSYNC_REDUCE;

    for (int c = 0; c < 8; c++)
        for (int shape = 0; shape < 6; shape++) {
            gsi_plan_args v = shaped(a, counts[c], shape);
            uint64_t work = work_of(v) + 200;
            for (int root = 0; root < (rooted ? 3 : 1); root++)
                for (int alias = 0; alias < 3; alias++) {
                    v.root = root_at(a.n, root);
                    if (picked(work, QUOTA))
                        try_case(t, v, alias, 1);
                }
        }
}

static void name_of(char *name, size_t room, const gsi_plan_args *a)
{
    snprintf(name, room, "%s by %s%s%s", gradsync_coll_name(a->coll), gradsync_algo_name(a->algo),
             a->flags & GRADSYNC_ORDERED ? ", ordered" : "", a->reach ? ", reaching the results" : "");
}

static void verdict(const char *name, const char *ranks, const tally *t)
{
    if (!tap_ok(!t->failed && (t->cases || t->unsupported), "%s, %s: %ld verified, %ld without a plan", name, ranks,
                t->cases, t->unsupported))
        tap_note("%ld failed, the first: %s", t->failed, t->first);
}

/* Has the algorithm plans for this at all? (The header of gradsync.h's algorithms and docs say so.) */
static int serves(const gsi_plan_args *a)
{
    int reduces = a->coll == GRADSYNC_ALL_REDUCE || a->coll == GRADSYNC_REDUCE;

    if (a->algo == GRADSYNC_ALGO_TREE)
        return (reduces && !(a->flags & GRADSYNC_ORDERED)) || a->coll == GRADSYNC_BROADCAST ||
               a->coll == GRADSYNC_BARRIER;
    if (a->algo == GRADSYNC_ALGO_DOUBLING)
        return a->coll == GRADSYNC_ALL_REDUCE || a->coll == GRADSYNC_ALL_GATHER || a->coll == GRADSYNC_BARRIER;
    return 1;
}

static void sweep(const gsi_plan_args *a)
{
    static const int large[] = {127, 128, 200, 255, 257, 512, 777, 1024};
    tally small = {0}, big = {0};
    char name[128];

    name_of(name, sizeof name, a);
    for (int n = 1; n <= 64; n++) {
        gsi_plan_args v = *a;
        v.n = n;
        sweep_n(&small, v);
    }
    /* A case in three has 2-byte elements and no room, so that some are without a plan: never most. */
    verdict(name, "1 to 64 ranks", &small);
    if (serves(a) && small.unsupported > small.cases)
        tap_ok(0, "%s: more cases without a plan than with one", name);
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        gsi_plan_args v = *a;
        v.n = large[i];
        v.esize = v.acc_esize = 4;
        v.chunk = 16;
        v.slot_bytes = v.stage_bytes = UINT64_C(1) << 30;
        v.root = v.n / 3;
        v.count = a->coll == GRADSYNC_REDUCE_SCATTER || a->coll == GRADSYNC_ALL_GATHER ? 3 : 2 * (uint64_t)v.n + 7;
        v.stride = v.count;
        if (picked(work_of(v), 40 * QUOTA))
            try_case(&big, v, (int)(i % 3), 0);
    }
    if (big.cases + big.unsupported)
        verdict(name, "up to 1024 ranks", &big);
}

int main(void)
{
    const char *env = getenv("PLAN_FULL");

    full = env && *env && strcmp(env, "0") != 0;
    /* Hierarchical plans have a sweep of their own: test_hier.c. */
    for (int algo = 1; algo < GRADSYNC_ALGO_HIER; algo++)
        for (int coll = 0; coll < GRADSYNC_COLL_COUNT; coll++)
            for (uint32_t reach = 0; reach <= (algo >= REACH_BOTH); reach++)
                for (uint32_t ordered = 0; ordered <= 1; ordered++) {
                    gsi_plan_args a = {.algo = algo, .coll = coll, .reach = reach, .flags = ordered};
                    sweep(&a);
                }
    return tap_done();
}
