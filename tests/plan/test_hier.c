/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans over several hosts: hierarchical and flat ones, over many maps of ranks to hosts,
 * are built for all ranks and verified. The verifier sees to it that nothing but PUT,
 * signals and headers passes between hosts.
 */
#include "plan/verify.h"
#include "plan/builder.h"
#include "reference.h"
#include "tap.h"

#include <string.h>

enum { MAX_RANKS = 40 };

/* Hosts as ranks per host, then how the ranks are dealt out. */
typedef struct map {
    int hosts, ranks[18];
    int dealt; /* 0: host after host; 1: in turns; 2: backwards in turns */
} map;

static const map maps[] = {
    {2, {1, 1}, 0},
    {2, {2, 2}, 0},
    {2, {2, 2}, 1},
    {2, {3, 3}, 0},
    {2, {4, 4}, 0},
    {2, {4, 4}, 2},
    {2, {1, 3}, 0},
    {2, {4, 2}, 0},
    {2, {3, 2}, 1},
    {3, {1, 1, 1}, 0},
    {3, {2, 2, 2}, 0},
    {3, {2, 2, 2}, 1},
    {3, {3, 3, 3}, 0},
    {3, {4, 4, 4}, 0},
    {3, {1, 2, 3}, 0},
    {3, {3, 1, 4}, 2},
    {4, {1, 1, 1, 1}, 0},
    {4, {2, 2, 2, 2}, 0},
    {4, {3, 3, 3, 3}, 1},
    {4, {4, 4, 4, 4}, 0},
    {4, {2, 4, 1, 3}, 0},
    {4, {2, 3, 2, 2}, 1},
    {5, {1, 1, 1, 1, 1}, 0},
    {5, {2, 1, 2, 1, 1}, 0},
    {6, {2, 2, 2, 2, 2, 2}, 0},
    {9, {1, 1, 1, 2, 1, 1, 1, 1, 1}, 1},
    {17, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 0},
    {18, {2, 2, 2, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2}, 0},
    {17, {2, 1, 2, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 3, 1, 1, 1}, 1},
};
enum { MAPS = sizeof maps / sizeof *maps };

typedef struct tally {
    long cases, unsupported, failed, brute;
    char first[900];
} tally;

static uint64_t turn;

static int deal(const map *m, int32_t *host)
{
    int left[18], n = 0, total = 0;

    for (int h = 0; h < m->hosts; h++) {
        left[h] = m->ranks[h];
        total += left[h];
    }
    for (int h = m->dealt == 2 ? m->hosts - 1 : 0; n < total;) {
        if (left[h]) {
            left[h]--;
            host[n++] = 100 + 7 * h; /* any numbers */
        }
        if (m->dealt == 0 && left[h])
            continue;
        h = m->dealt == 2 ? (h + m->hosts - 1) % m->hosts : (h + 1) % m->hosts;
    }
    return n;
}

static void free_all(int n, gsi_plan **plans)
{
    for (int r = 0; r < n; r++)
        gsi_plan_free(plans[r]);
}

static void failure(tally *t, const map *m, const gsi_plan_args *a, int alias, const char *why)
{
    if (t->failed++)
        return;
    snprintf(t->first, sizeof t->first,
             "%s, hosts of %d %d %d %d %d %d dealt %d, root %d count %llu stride %llu esize %u chunk %llu stage %llu "
             "credits %u flags %u reach %u share %u alias %d: %s",
             gradsync_coll_name(a->coll), m->ranks[0], m->ranks[1], m->ranks[2], m->ranks[3], m->ranks[4], m->ranks[5],
             m->dealt, (int)a->root, (unsigned long long)a->count, (unsigned long long)a->stride, (unsigned)a->esize,
             (unsigned long long)a->chunk, (unsigned long long)a->stage_bytes, (unsigned)a->credits, (unsigned)a->flags,
             (unsigned)a->reach, (unsigned)a->share, alias, why);
}

static void try_case(tally *t, const map *m, gsi_plan_args a, int alias, int brute)
{
    gsi_plan *plans[MAX_RANKS] = {NULL};
    char why[512] = "";
    int error = 0;

    for (int r = 0; r < a.n && !error; r++) {
        a.rank = r;
        error = gsi_plan_build(&a, &plans[r]);
    }
    if (error == GRADSYNC_ERR_UNSUPPORTED) {
        t->unsupported++;
    } else if (error) {
        gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
        gradsync_last_error(&info);
        failure(t, m, &a, alias, info.message);
    } else {
        gsi_verify_opts opts = {.alias = alias, .seed = ++turn, .races = 1};
        const char *reason = "";
        int right = 1;
        t->cases++;
        if (gsi_plan_verify(plans, &a, &opts, why, sizeof why))
            failure(t, m, &a, alias, why);
        else if (brute && a.n <= 8) {
            right = reference_verify(plans, &a, alias, &reason);
            t->brute += right > 0;
        }
        if (!right)
            failure(t, m, &a, alias, reason);
    }
    free_all(a.n, plans);
}

/* The least staging that the algorithm accepts for this, up to a factor below 1.5. */
static uint64_t least_stage(gsi_plan_args a)
{
    for (a.stage_bytes = a.esize; gsi_unfit(&a); a.stage_bytes += a.stage_bytes / 3 + 1)
        if (a.stage_bytes > 1u << 20)
            break;
    return a.stage_bytes;
}

static void sweep_map(tally *t, gsi_plan_args a, const map *m)
{
    uint64_t n = (uint64_t)a.n, counts[] = {0, 1, n - 1, n + 1, 16 * n + 3, 40 * n + 1, 200 + 13 * n};
    int rooted = a.coll == GRADSYNC_BROADCAST || a.coll == GRADSYNC_REDUCE;
    int blocks = a.coll == GRADSYNC_REDUCE_SCATTER || a.coll == GRADSYNC_ALL_GATHER;

    for (int c = 0; c < 7; c++)
        for (int shape = 0; shape < 6; shape++) {
            gsi_plan_args v = a;
            v.count = blocks ? (counts[c] + 2) / 3 : counts[c];
            v.stride = v.count + (shape == 4 ? 3 : 0);
            v.esize = shape % 2 ? 2 : 4;
            v.acc_esize = 4;
            v.chunk = (uint64_t[]){16, 4, 64, 128, 0, 8}[shape];
            v.credits = (uint32_t[]){0, 4, 16, 32, 5, 8}[(shape + 2 * c) % 6];
            v.slot_bytes = v.stage_bytes = UINT64_C(1) << 30;
            if (shape % 3 == 0)
                v.stage_bytes = least_stage(v);
            else if (shape == 2)
                v.stage_bytes = least_stage(v) * 4 + 30;
            for (int root = 0; root < (rooted ? 3 : 1); root++) {
                v.root = root == 0 ? 0 : root == 1 ? v.n / 2 : v.n - 1;
                /* a third of them, or a sixth, and others for every map and shape */
                if ((c + root + shape + (int)(m - maps)) % (a.algo == GRADSYNC_ALGO_HIER ? 3 : 6) == 0)
                    try_case(t, m, v, (c + shape + root) % 3, shape == 0 && c < 4);
            }
        }
}

static void sweep(int algo, int coll, uint32_t reach, uint32_t share, uint32_t ordered)
{
    tally t = {0};

    for (int i = 0; i < MAPS; i++) {
        int32_t host[MAX_RANKS];
        gsi_hosts *hosts;
        gsi_plan_args a = {.algo = algo, .coll = coll, .reach = reach, .share = share, .flags = ordered};
        a.n = deal(&maps[i], host);
        if (gsi_hosts_make(host, a.n, &hosts))
            abort();
        a.hosts = hosts;
        /* Many hosts make a difference to one only: a ring. */
        if (maps[i].hosts <= 9 || (algo == GRADSYNC_ALGO_HIER && coll == GRADSYNC_ALL_REDUCE))
            sweep_map(&t, a, &maps[i]);
        free(hosts);
    }
    if (!tap_ok(!t.failed && (t.cases || t.unsupported),
                "%s by %s%s%s%s: %ld verified, %ld of them by brute force too, %ld without a plan",
                gradsync_coll_name(coll), gradsync_algo_name(algo), reach ? ", reach" : "", share ? ", share" : "",
                ordered ? ", ordered" : "", t.cases, t.brute, t.unsupported))
        tap_note("%ld failed, the first: %s", t.failed, t.first);
}

int main(void)
{
    for (int coll = 0; coll < GRADSYNC_COLL_COUNT; coll++)
        for (uint32_t k = 0; k < 8; k++)
            sweep(GRADSYNC_ALGO_HIER, coll, k & 1, k >> 1 & 1, k >> 2);
    static const int flat[] = {GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALGO_RING, GRADSYNC_ALGO_TREE, GRADSYNC_ALGO_DOUBLING,
                               GRADSYNC_ALGO_PAIRWISE};
    for (int i = 0; i < 5; i++)
        for (int coll = 0; coll < GRADSYNC_COLL_COUNT; coll++)
            for (uint32_t k = 0; k < 4; k++)
                sweep(flat[i], coll, k & 1, 0, k >> 1);
    return tap_done();
}
