/* SPDX-License-Identifier: Apache-2.0 */
/* The selector: what it takes by typical costs, its reasons, and that what it calls eligible has a plan. */
#include "plan/select.h"
#include "base/clock.h"
#include "tap.h"

#include <string.h>

/* Shared memory, a core for every rank; and a network. Times in us, rates in bytes per ns. */
static const gsi_costs shm = {.signal_us = 0.3,
                              .step_us = 0.03,
                              .put_us = 0.3,
                              .copy_GBps = 25,
                              .reduce_GBps = 50,
                              .mem_copy_GBps = 12,
                              .mem_reduce_GBps = 25,
                              .transfer_GBps = 20,
                              .cache_bytes = 1 << 20,
                              .ranks_per_core = 1};
static const gsi_costs net = {.signal_us = 8,
                              .step_us = 0.05,
                              .put_us = 3,
                              .copy_GBps = 10,
                              .reduce_GBps = 30,
                              .mem_copy_GBps = 10,
                              .mem_reduce_GBps = 20,
                              .cache_bytes = 1 << 20,
                              .ranks_per_core = 1};

/* Wires of 140 MiB/s, 15 us, 18 us a message; and of 400 Gb/s. */
static const gsi_costs slow = {.signal_us = 1,
                               .step_us = 0.3,
                               .put_us = 1,
                               .copy_GBps = 4,
                               .reduce_GBps = 1.2,
                               .mem_copy_GBps = 4,
                               .mem_reduce_GBps = 1.2,
                               .cache_bytes = 1 << 20,
                               .ranks_per_core = 1,
                               .wire_us = 15,
                               .wire_GBps = 0.147,
                               .message_bytes = 2646};
static const gsi_costs fast = {.signal_us = 0.3,
                               .step_us = 0.03,
                               .put_us = 0.3,
                               .copy_GBps = 12,
                               .reduce_GBps = 25,
                               .mem_copy_GBps = 12,
                               .mem_reduce_GBps = 25,
                               .cache_bytes = 1 << 20,
                               .ranks_per_core = 1,
                               .wire_us = 2,
                               .wire_GBps = 50,
                               .message_us = 0.1,
                               .message_bytes = 5000};

static gsi_hosts *hosts_of(int hosts, int ranks)
{
    static gsi_hosts *made[65][9];
    int32_t host[256];

    for (int r = 0; r < hosts * ranks; r++)
        host[r] = r / ranks;
    if (!made[hosts][ranks] && gsi_hosts_make(host, hosts * ranks, &made[hosts][ranks]))
        abort();
    return made[hosts][ranks];
}

static gsi_select_args args_of(int coll, int n, uint64_t bytes, int loadstore, int shareable)
{
    return (gsi_select_args){.coll = coll,
                             .n = n,
                             .bytes = bytes,
                             .esize = 4,
                             .shareable = shareable,
                             .slot_bytes = 16384,
                             .stage_bytes = 4 << 20,
                             .loadstore = loadstore};
}

static gsi_select_args wired(int coll, int hosts, int ranks)
{
    gsi_select_args a = args_of(coll, hosts * ranks, 0, ranks > 1, 1);

    a.hosts = hosts_of(hosts, ranks);
    a.share = 1;
    a.credits = 32;
    return a;
}

static int pick(const gsi_costs *costs, const gsi_select_args *args)
{
    gsi_choice choice;

    gsi_select(costs, args, 1, &choice);
    return choice.algo;
}

/* Small to large must go through `expected` (algorithms, 0 at the end) in this order, none twice. */
static void crossovers(const char *what, const gsi_costs *costs, gsi_select_args args, const int *expected)
{
    char went[256] = "";
    int at = 0, last = 0, right = 1;

    for (args.bytes = 8; args.bytes <= UINT64_C(1) << 30; args.bytes *= 2) {
        int algo = pick(costs, &args);
        if (algo == last)
            continue;
        last = algo;
        size_t used = strlen(went);
        snprintf(went + used, sizeof went - used, " %s from %llu", gradsync_algo_name(algo),
                 (unsigned long long)args.bytes);
        right = right && expected[at] == algo;
        at += expected[at] != 0;
    }
    if (!tap_ok(right && !expected[at], "%s, %d ranks: small to large", what, (int)args.n))
        tap_note("went%s", went);
}

static void test_crossovers(void)
{
    static const int reach[] = {GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALGO_DIRECT, 0};
    static const int plain[] = {GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALGO_STAGED, 0};
    static const int wire[] = {GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALGO_DOUBLING, GRADSYNC_ALGO_TREE,
                               GRADSYNC_ALGO_PAIRWISE, 0};

    for (int n = 2; n <= 64; n *= 2)
        for (int transfer = 0; transfer <= 20; transfer += 10) {
            gsi_costs costs = shm;
            char what[64];
            costs.transfer_GBps = transfer;
            snprintf(what, sizeof what, "shareable memory, %d GB/s between cores", transfer);
            crossovers(what, &costs, args_of(GRADSYNC_ALL_REDUCE, n, 0, 1, 1), reach);
            snprintf(what, sizeof what, "plain memory, %d GB/s between cores", transfer);
            crossovers(what, &costs, args_of(GRADSYNC_ALL_REDUCE, n, 0, 1, 0), plain);
        }
    for (int n = 16; n <= 64; n *= 2)
        crossovers("network", &net, args_of(GRADSYNC_ALL_REDUCE, n, 0, 0, 0), wire);
}

static void test_wires(void)
{
    enum { MOST = 6 };
    static const struct {
        const gsi_costs *costs;
        const char *name;
        int hosts, ranks, flags, expected[MOST];
    } cases[] = {
        {&slow, "slow wire", 2, 1, 0, {GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALGO_DOUBLING, GRADSYNC_ALGO_RING}},
        {&slow, "slow wire", 4, 1, 0, {GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALGO_PAIRWISE}},
        {&slow, "slow wire", 8, 1, 0, {GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALGO_DOUBLING, GRADSYNC_ALGO_PAIRWISE}},
        {&slow, "slow wire, ordered", 4, 1, GRADSYNC_ORDERED, {GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALGO_PAIRWISE}},
        {&slow, "slow wire", 2, 4, 0, {GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALGO_HIER}},
        {&slow, "slow wire", 4, 4, 0, {GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALGO_HIER}},
        {&fast, "fast wire", 4, 1, 0, {GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALGO_PAIRWISE}},
        {&fast, "fast wire", 2, 8, 0, {GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALGO_DOUBLING, GRADSYNC_ALGO_HIER}},
        {&fast, "fast wire", 16, 8, 0, {GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALGO_HIER}},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gsi_select_args a = wired(GRADSYNC_ALL_REDUCE, cases[i].hosts, cases[i].ranks);
        char what[80];
        a.flags = (uint32_t)cases[i].flags;
        snprintf(what, sizeof what, "%s, %d hosts", cases[i].name, cases[i].hosts);
        crossovers(what, cases[i].costs, a, cases[i].expected);
    }
}

/* More bytes never take less time, for any algorithm while it is eligible. */
static void test_monotone(void)
{
    for (int coll = 0; coll < GRADSYNC_BARRIER; coll++) {
        int right = 1;
        char which[128] = "";
        for (int k = 0; k < 12; k++) {
            gsi_select_args a = args_of(coll, k % 3 == 0 ? 2 : k % 3 == 1 ? 7 : 64, 0, 1, k / 3 % 2);
            double last[GRADSYNC_ALGO_COUNT] = {0};
            a.flags = k / 6 ? GRADSYNC_ORDERED : 0;
            for (a.bytes = 0; a.bytes <= UINT64_C(1) << 32; a.bytes = a.bytes ? a.bytes * 3 / 2 / 4 * 4 : 4) {
                gsi_choice c;
                gsi_select(&shm, &a, 0, &c);
                for (int i = 1; i < GRADSYNC_ALGO_COUNT; i++) {
                    if (!c.candidates[i].eligible)
                        continue;
                    if (c.candidates[i].predicted_us < last[i] * (1 - 1e-9) || c.candidates[i].predicted_us <= 0) {
                        right = 0;
                        snprintf(which, sizeof which, "%s n %d bytes %llu", gradsync_algo_name(i), (int)a.n,
                                 (unsigned long long)a.bytes);
                    }
                    last[i] = c.candidates[i].predicted_us;
                }
                if (a.bytes == 4)
                    a.bytes = 8;
            }
        }
        if (!tap_ok(right, "%s: more bytes never take less", gradsync_coll_name(coll)))
            tap_note("%s", which);
    }
}

static gsi_hosts *dealt(int n)
{
    static gsi_hosts *made[32];
    int32_t host[32];

    for (int r = 0; r < n; r++)
        host[r] = r * 7 % 5 % 4;
    if (!made[n] && gsi_hosts_make(host, n, &made[n]))
        abort();
    return made[n];
}

/* Eligible means that gsi_plan_build() has a plan; not eligible, with an unlimited transport, that it has none. */
static void test_eligible(void)
{
    static const uint64_t stages[] = {0, 16, 300, 4096, 1 << 20};
    int right = 1, tried = 0;
    char which[256] = "";

    for (int coll = 0; coll < GRADSYNC_COLL_COUNT; coll++)
        for (int n = 1; n <= 25; n += n < 4 ? 1 : 7)
            for (int s = 0; s < 5; s++)
                for (int k = 0; k < 48; k += k < 24 ? 1 : 3) {
                    gsi_select_args a = args_of(coll, n, (uint64_t[]){0, 4, 400, 20000}[k % 4], 1, 1);
                    a.stage_bytes = stages[s];
                    a.flags = k / 4 % 2 ? GRADSYNC_ORDERED : 0;
                    a.head = k / 8 % 3 == 1 ? 64 : 0;
                    a.tail = k / 8 % 3 == 2 ? 4096 : 0;
                    /* on one host, or up to four of several sizes */
                    a.hosts = k < 24 || n == 1 ? NULL : dealt(n);
                    a.share = k % 2;
                    a.esize = k % 3 ? 4 : 2;
                    gsi_choice c;
                    gsi_select(&shm, &a, 0, &c);
                    for (int algo = 1; algo < GRADSYNC_ALGO_COUNT; algo++) {
                        gsi_plan_args p = {.algo = algo,
                                           .coll = coll,
                                           .n = n,
                                           .esize = a.esize,
                                           .acc_esize = 4,
                                           .count = a.bytes / a.esize,
                                           .stride = a.bytes / a.esize,
                                           .stage_bytes = a.stage_bytes,
                                           .slot_bytes = a.slot_bytes,
                                           .head = a.head,
                                           .tail = a.tail,
                                           .flags = a.flags,
                                           .hosts = a.hosts,
                                           .share = (uint32_t)a.share,
                                           .reach = !a.head && !a.tail};
                        gsi_plan *plan;
                        int built = gsi_plan_build(&p, &plan) == 0;
                        gsi_plan_free(plan);
                        tried++;
                        if (built == c.candidates[algo].eligible && *c.candidates[algo].reason)
                            continue;
                        right = 0;
                        snprintf(which, sizeof which, "%s by %s, n %d, built %d: %s", gradsync_coll_name(coll),
                                 gradsync_algo_name(algo), n, built, c.candidates[algo].reason);
                    }
                }
    if (!tap_ok(right && tried > 1000, "eligible is what has a plan, in %d cases", tried))
        tap_note("%s", which);
}

static int says(const gsi_choice *c, int algo, const char *words)
{
    const char *text = algo ? c->candidates[algo].reason : c->reason;

    return strstr(text, words) != NULL;
}

static void test_reasons(void)
{
    gsi_select_args a = args_of(GRADSYNC_ALL_REDUCE, 4, 1 << 20, 1, 0);
    gsi_choice c;

    gsi_select(&shm, &a, 0, &c);
    tap_ok(c.algo == GRADSYNC_ALGO_STAGED && says(&c, 0, "staged: ") && says(&c, 0, "us predicted, next best "),
           "the choice in a sentence: %s", c.reason);
    tap_ok(!c.candidates[GRADSYNC_ALGO_DIRECT].eligible && says(&c, GRADSYNC_ALGO_DIRECT, "gradsync_mem_alloc"),
           "direct: %s", c.candidates[GRADSYNC_ALGO_DIRECT].reason);
    tap_ok(!c.candidates[GRADSYNC_ALGO_ONESHOT].eligible && says(&c, GRADSYNC_ALGO_ONESHOT, "slot"), "oneshot: %s",
           c.candidates[GRADSYNC_ALGO_ONESHOT].reason);
    tap_ok(c.candidates[GRADSYNC_ALGO_RING].eligible && says(&c, GRADSYNC_ALGO_RING, "exchanges"), "ring: %s",
           c.candidates[GRADSYNC_ALGO_RING].reason);
    double staged = c.predicted_us;
    a.fixed = GRADSYNC_ALGO_RING;
    gsi_select(&shm, &a, 0, &c);
    tap_ok(c.algo == GRADSYNC_ALGO_RING && c.predicted_us > staged && says(&c, 0, "asked for"), "%s", c.reason);
    a.fixed = GRADSYNC_ALGO_DIRECT;
    gsi_select(&shm, &a, 0, &c);
    tap_ok(c.algo == 0 && says(&c, 0, "direct cannot serve this: not every rank's memory"), "%s", c.reason);
    a.fixed = 99;
    gsi_select(&shm, &a, 0, &c);
    tap_ok(c.algo == 0, "an algorithm that there is not: %s", c.reason);
    a = args_of(GRADSYNC_ALL_REDUCE, 4, 1 << 20, 0, 0);
    a.flags = GRADSYNC_ORDERED;
    gsi_select(&net, &a, 0, &c);
    tap_ok(!c.candidates[GRADSYNC_ALGO_TREE].eligible && says(&c, GRADSYNC_ALGO_TREE, "order") &&
               !c.candidates[GRADSYNC_ALGO_STAGED].eligible && says(&c, GRADSYNC_ALGO_STAGED, "load and store"),
           "tree and staged: %s; %s", c.candidates[GRADSYNC_ALGO_TREE].reason,
           c.candidates[GRADSYNC_ALGO_STAGED].reason);
    a.stage_bytes = 0;
    gsi_select(&net, &a, 0, &c);
    tap_ok(c.algo == 0 && says(&c, 0, "cannot serve"), "no staging at all: %s", c.reason);
    a = args_of(GRADSYNC_BARRIER, 4, 0, 1, 0);
    a.stage_bytes = a.slot_bytes = a.esize = 0;
    gsi_select(&shm, &a, 0, &c);
    tap_ok(c.algo == GRADSYNC_ALGO_ONESHOT, "equal times: the first in order (%s)", c.reason);
    a.n = 1;
    gsi_select(&shm, &a, 0, &c);
    tap_ok(c.algo != 0, "one rank: %s", c.reason);
}

/* brief fills the same numbers; a choice takes no more than the time of a few divisions. */
static void test_brief(void)
{
    int right = 1;

    for (int k = 0; k < 600; k++) {
        gsi_select_args a = args_of(k % 6, 1 + k % 17, (uint64_t)k * k * 40, k % 5 != 0, k % 3 == 0);
        gsi_choice full, brief;
        memset(&full, 0xaa, sizeof full);
        memset(&brief, 0x55, sizeof brief);
        gsi_select(k % 2 ? &shm : &net, &a, 0, &full);
        gsi_select(k % 2 ? &shm : &net, &a, 1, &brief);
        right = right && full.algo == brief.algo && full.predicted_us == brief.predicted_us &&
                strlen(full.reason) < sizeof full.reason && full.candidates[0].algo == 0;
    }
    tap_ok(right, "brief or in full, the same choice");
    gsi_select_args a = args_of(GRADSYNC_ALL_REDUCE, 8, 1 << 20, 1, 0);
    gsi_choice c;
    uint64_t start = gsi_now_ns();
    for (int k = 0; k < 10000; k++) {
        a.bytes = 4096 + (uint64_t)k * 4;
        gsi_select(&shm, &a, 1, &c);
    }
    tap_note("a brief choice takes %.0f ns", (double)(gsi_now_ns() - start) / 10000);
}

int main(void)
{
    test_crossovers();
    test_wires();
    test_monotone();
    test_eligible();
    test_reasons();
    test_brief();
    return tap_done();
}
