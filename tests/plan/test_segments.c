/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Long messages are run as several plans, one after the other, with one exchange of
 * headers before the first. Plans may leave STAGE in use by slower peers, so the engine
 * lets all ranks signal each other between them. Here the plans of such a message are
 * joined to one, those signals included, and verified: what the next plan does to STAGE
 * is held against what the last one left unfinished.
 */
#include "plan/verify.h"
#include "tap.h"

#include <string.h>

enum { MAX_RANKS = 17, SEGMENTS = 3 };

/* Appends a rank's plan to what is there, as the engine goes on with it: counters count on, and the
 * buffers begin `done` elements further on. */
static void append(gsi_plan *all, const gsi_plan *next, int stream, uint64_t done, uint32_t esize)
{
    const gsi_stream *range = &next->streams[stream];

    for (uint32_t i = 0; i < range->count; i++) {
        gsi_step step = next->steps[range->first + i];
        uint32_t from = step.place, places = (uint32_t)step.nsrc + step.ndst;
        if (step.kind == GSI_STEP_WAIT && step.peer != GSI_ALL)
            step.value += all->awaits[stream * next->n + step.peer];
        else if (step.kind == GSI_STEP_WAIT)
            step.value += all->awaits[stream * next->n + (next->rank + 1) % next->n];
        step.place = all->nplaces;
        for (uint32_t k = 0; k < places; k++) {
            gsi_place place = next->places[from + k];
            place.off += place.space == GSI_STAGE ? 0 : done * esize;
            all->places[all->nplaces++] = place;
        }
        all->steps[all->nsteps++] = step;
    }
    all->streams[stream].count = all->nsteps - all->streams[stream].first;
}

/* What the engine does between two plans: every rank tells every other that it is done, and waits to be told. */
static void append_meeting(gsi_plan *all, int stream)
{
    uint32_t *row = all->awaits + stream * all->n;
    gsi_step signal = {.kind = GSI_STEP_SIGNAL, .peer = GSI_ALL}, wait = {.kind = GSI_STEP_WAIT};

    if (all->signal_all)
        all->steps[all->nsteps++] = signal;
    for (int p = 0; p < all->n && !all->signal_all; p++) {
        signal.peer = p;
        if (p != all->rank)
            all->steps[all->nsteps++] = signal;
    }
    for (int p = 0; p < all->n; p++) {
        wait.peer = p;
        wait.value = row[p] + 1;
        if (p == all->rank)
            continue;
        row[p]++;
        all->steps[all->nsteps++] = wait;
    }
    all->streams[stream].count = all->nsteps - all->streams[stream].first;
}

/* A WAIT for all counts on by one number, so all must have the same behind them. */
static int uniform(const gsi_plan *plan, int stream)
{
    const uint32_t *row = plan->awaits + stream * plan->n;
    int waits = 0;

    for (uint32_t i = 0; i < plan->streams[stream].count; i++) {
        const gsi_step *step = &plan->steps[plan->streams[stream].first + i];
        waits |= step->kind == GSI_STEP_WAIT && step->peer == GSI_ALL;
    }
    for (int p = 0; p < plan->n && waits; p++)
        if (p != plan->rank && row[p] != row[(plan->rank + 1) % plan->n])
            return 0;
    return 1;
}

/* The plans of one rank for all segments as one; NULL if they do not fit together. */
static gsi_plan *join(gsi_plan *const segments[SEGMENTS], const uint64_t done[SEGMENTS], uint32_t esize)
{
    gsi_plan *all = malloc(sizeof *all);
    uint32_t steps = 0, places = 0;
    int ok = 1;

    if (!all)
        abort();
    *all = *segments[0];
    for (int g = 0; g < SEGMENTS; g++) {
        steps += segments[g]->nsteps;
        places += segments[g]->nplaces;
        ok = ok && segments[g]->signal_all == all->signal_all;
        if (segments[g]->nstreams > all->nstreams)
            all->nstreams = segments[g]->nstreams;
        if (segments[g]->stage_bytes > all->stage_bytes)
            all->stage_bytes = segments[g]->stage_bytes;
        all->ordered &= segments[g]->ordered;
    }
    all->steps = malloc((steps + 2u * SEGMENTS * GSI_MAX_STREAMS * (uint32_t)all->n + 1) * sizeof *all->steps);
    all->places = malloc((places + 1) * sizeof *all->places);
    all->awaits = calloc((size_t)all->nstreams * (size_t)all->n + 1, sizeof *all->awaits);
    if (!all->steps || !all->places || !all->awaits)
        abort();
    all->nsteps = all->nplaces = 0;
    for (int s = 0; s < all->nstreams && ok; s++) {
        all->streams[s] = (gsi_stream){all->nsteps, 0};
        for (int g = 0; g < SEGMENTS; g++) {
            if (s >= segments[g]->nstreams)
                continue; /* too short to be worth it */
            append(all, segments[g], s, done[g], esize);
            ok = ok && uniform(segments[g], s);
            for (int p = 0; p < all->n; p++)
                all->awaits[s * all->n + p] += segments[g]->awaits[s * all->n + p];
            if (g + 1 < SEGMENTS && s < segments[g + 1]->nstreams)
                append_meeting(all, s);
        }
    }
    if (!ok) {
        gsi_plan_free(all);
        return NULL;
    }
    return all;
}

typedef struct tally {
    int cases, failed;
    char first[700];
} tally;

/* Two equal segments and a shorter one. */
static void try_case(tally *t, gsi_plan_args args, uint64_t rest)
{
    gsi_plan *parts[MAX_RANKS][SEGMENTS] = {{NULL}}, *all[MAX_RANKS] = {NULL};
    const uint64_t counts[SEGMENTS] = {args.count, args.count, rest};
    uint64_t done[SEGMENTS] = {0, args.count, 2 * args.count};
    char why[500] = "the segments do not fit together";
    int ok = 1, bad = 0;

    args.stride = 2 * args.count + rest;
    for (int r = 0; r < args.n; r++)
        for (int g = 0; g < SEGMENTS && ok; g++) {
            args.rank = r;
            args.count = counts[g];
            ok = gsi_plan_build(&args, &parts[r][g]) == 0;
        }
    args.count = args.stride;
    for (int r = 0; r < args.n && ok; r++) {
        all[r] = join(parts[r], done, args.esize);
        bad |= !all[r];
    }
    for (int alias = GSI_VERIFY_OUT_OF_PLACE; alias <= GSI_VERIFY_MIXED && ok && !bad; alias++) {
        gsi_verify_opts opts = {.alias = alias, .seed = (uint64_t)(t->cases + alias), .races = 1};
        bad = gsi_plan_verify(all, &args, &opts, why, sizeof why) != 0;
    }
    t->cases += ok;
    if (bad && !t->failed++)
        snprintf(t->first, sizeof t->first,
                 "%s of %d, 2 x %llu + %llu elements of %u bytes, chunk %llu, stage %llu, reach %u: %s",
                 gradsync_coll_name(args.coll), (int)args.n, (unsigned long long)counts[0], (unsigned long long)rest,
                 (unsigned)args.esize, (unsigned long long)args.chunk, (unsigned long long)args.stage_bytes,
                 (unsigned)args.reach, why);
    for (int r = 0; r < args.n; r++) {
        for (int g = 0; g < SEGMENTS; g++)
            gsi_plan_free(parts[r][g]);
        gsi_plan_free(all[r]);
    }
}

static void algorithm(int algo)
{
    static const int ranks[] = {2, 3, 4, 5, 7, 8, 16};
    static const uint64_t counts[] = {64, 101, 520}, rests[] = {1, 40, 500};
    tally t = {0};

    for (int coll = 0; coll < GRADSYNC_BARRIER; coll++)
        for (int i = 0; i < (int)(sizeof ranks / sizeof *ranks); i++)
            for (int c = 0; c < 9; c++)
                for (int shape = (c + i) % 3; shape < 8; shape += 3) {
                    gsi_plan_args args = {.algo = algo, .coll = coll, .n = ranks[i], .count = counts[c % 3]};
                    args.root = (c + shape) % args.n;
                    args.esize = shape & 1 ? 2 : 8;
                    args.acc_esize = shape & 1 ? 4 : 8;
                    args.flags = shape & 2 ? GRADSYNC_ORDERED : 0;
                    args.reach = shape >> 2;
                    args.chunk = c % 2 ? 64 : 16;
                    args.stage_bytes = (uint64_t[]){2048, 8192, 1 << 16}[(c + shape) % 3];
                    args.slot_bytes = 4096;
                    args.credits = c % 2 ? 8 : 64;
                    gsi_hosts *hosts = NULL;
                    if (algo == GRADSYNC_ALGO_HIER || c % 3 == 2) {
                        int32_t host[MAX_RANKS];
                        for (int r = 0; r < args.n; r++)
                            host[r] = shape & 2 ? r * 3 / args.n : r % (2 + i % 2);
                        if (gsi_hosts_make(host, args.n, &hosts))
                            abort();
                        args.hosts = hosts;
                        args.share = (uint32_t)c % 2;
                    }
                    /* blocks are n times as much */
                    if (coll == GRADSYNC_REDUCE_SCATTER || coll == GRADSYNC_ALL_GATHER)
                        args.count /= args.n > 5 ? 8 : 2;
                    try_case(&t, args, rests[c / 3] < args.count ? rests[c / 3] : args.count - 1);
                    free(hosts);
                }
    tap_ok(t.cases > 50 && !t.failed, "%s: %d of %d messages in segments are right%s%s", gradsync_algo_name(algo),
           t.cases - t.failed, t.cases, t.failed ? ": " : "", t.first);
}

int main(void)
{
    /* Those that gsi_plan_segment() ever cuts: oneshot and direct serve any length with one plan. */
    static const int cut[] = {GRADSYNC_ALGO_STAGED, GRADSYNC_ALGO_RING, GRADSYNC_ALGO_TREE, GRADSYNC_ALGO_PAIRWISE,
                              GRADSYNC_ALGO_HIER};

    for (int i = 0; i < 5; i++)
        algorithm(cut[i]);
    return tap_done();
}
