/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What plans between hosts cost, on a modelled machine (timing.h): latencies one after the
 * other, bytes and messages on the wire, and the time that follows from them. Nothing
 * here is measured: the model is arithmetic, the same on every machine.
 */
#include "plan/builder.h"
#include "plan/select.h"
#include "tap.h"
#include "timing.h"

enum { MAX_RANKS = 64 };

/* An emulated wire: slow, so much a message that 2.6 KB could go instead. And one of 400 Gb/s. */
static const timing slow = {
    .latency = 15, .wire = 147, .message = 18, .signal = 1, .copy = 4000, .reduce = 1200, .step = 0.3};
static const timing fast = {
    .latency = 2, .wire = 50000, .message = 0.2, .signal = 0.3, .copy = 12000, .reduce = 25000, .step = 0.03};
/* Only latency counts. */
static const timing latency = {.latency = 1, .wire = 1e30, .copy = 1e30, .reduce = 1e30};

typedef struct cost {
    double time, bytes, messages;
} cost;

static gsi_hosts *hosts_of(int hosts, int ranks)
{
    static gsi_hosts *made[9][9];
    int32_t host[MAX_RANKS];

    for (int r = 0; r < hosts * ranks; r++)
        host[r] = r / ranks;
    if (!made[hosts][ranks] && gsi_hosts_make(host, hosts * ranks, &made[hosts][ranks]))
        abort();
    return made[hosts][ranks];
}

static gsi_plan_args args_of(int algo, int coll, int hosts, int ranks, uint64_t bytes)
{
    return (gsi_plan_args){.algo = algo,
                           .coll = coll,
                           .n = hosts * ranks,
                           .esize = 4,
                           .acc_esize = 4,
                           .count = bytes / 4,
                           .stride = bytes / 4,
                           .stage_bytes = 4 << 20,
                           .slot_bytes = 64 << 10,
                           .credits = 32,
                           .reach = 1,
                           .share = 1,
                           .hosts = hosts_of(hosts, ranks)};
}

/* Of all its plans, one for each segment; time -1: there is no plan. */
static cost cost_of(gsi_plan_args a, const timing *with)
{
    gsi_plan *plans[MAX_RANKS];
    uint64_t left = a.count, most;
    cost sum = {0, 0, 0};

    if (gsi_unfit(&a))
        return (cost){-1, 0, 0};
    most = gsi_plan_segment(&a);
    do {
        cost one;
        a.count = left < most ? left : most;
        left -= a.count;
        for (a.rank = 0; a.rank < a.n; a.rank++)
            if (gsi_plan_build(&a, &plans[a.rank]))
                abort();
        one.time = timing_of(plans, &a, with, &one.bytes, &one.messages);
        sum.time += one.time;
        sum.bytes += one.bytes;
        sum.messages += one.messages;
        for (int r = 0; r < a.n; r++)
            gsi_plan_free(plans[r]);
    } while (left);
    return sum;
}

/* Latencies one after the other: the headers, the data, and where the caller's memory is a source, the word that it
 * has been read. */
static void test_latencies(void)
{
    static const struct {
        int algo, hosts, ranks, coll;
        uint64_t bytes;
        double latencies;
    } cases[] = {
        {GRADSYNC_ALGO_ONESHOT, 2, 1, GRADSYNC_ALL_REDUCE, 8, 1},
        {GRADSYNC_ALGO_ONESHOT, 8, 1, GRADSYNC_ALL_REDUCE, 8, 1},
        {GRADSYNC_ALGO_DOUBLING, 2, 1, GRADSYNC_ALL_REDUCE, 16384, 2},
        {GRADSYNC_ALGO_DOUBLING, 8, 1, GRADSYNC_ALL_REDUCE, 16384, 4},
        {GRADSYNC_ALGO_PAIRWISE, 2, 1, GRADSYNC_ALL_REDUCE, 8192, 4},
        {GRADSYNC_ALGO_PAIRWISE, 2, 1, GRADSYNC_ALL_REDUCE, 1 << 20, 4},
        {GRADSYNC_ALGO_PAIRWISE, 8, 1, GRADSYNC_ALL_REDUCE, 1 << 20, 4},
        {GRADSYNC_ALGO_PAIRWISE, 4, 1, GRADSYNC_REDUCE_SCATTER, 1 << 20, 3},
        {GRADSYNC_ALGO_PAIRWISE, 4, 1, GRADSYNC_ALL_GATHER, 1 << 20, 3},
        {GRADSYNC_ALGO_HIER, 2, 4, GRADSYNC_ALL_REDUCE, 8192, 2},
        {GRADSYNC_ALGO_HIER, 4, 4, GRADSYNC_ALL_REDUCE, 4096, 2},
        {GRADSYNC_ALGO_HIER, 2, 4, GRADSYNC_ALL_REDUCE, 2 << 20, 4},
        {GRADSYNC_ALGO_HIER, 4, 2, GRADSYNC_ALL_REDUCE, 1 << 20, 4},
        {GRADSYNC_ALGO_HIER, 4, 2, GRADSYNC_REDUCE_SCATTER, 1 << 17, 2},
        {GRADSYNC_ALGO_HIER, 4, 2, GRADSYNC_ALL_GATHER, 1 << 20, 3},
        {GRADSYNC_ALGO_HIER, 4, 2, GRADSYNC_BROADCAST, 4096, 5},
        {GRADSYNC_ALGO_HIER, 4, 2, GRADSYNC_BARRIER, 0, 1},
        {GRADSYNC_ALGO_PAIRWISE, 4, 1, GRADSYNC_BARRIER, 0, 1},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gsi_plan_args a = args_of(cases[i].algo, cases[i].coll, cases[i].hosts, cases[i].ranks, cases[i].bytes);
        /* Pieces under way one after the other are for another test. */
        a.chunk = 1 << 20;
        if (cases[i].algo == GRADSYNC_ALGO_HIER)
            a.chunk = cases[i].bytes <= 8192 ? 0 : 1 << 18;
        double took = cost_of(a, &latency).time;
        tap_ok(took >= cases[i].latencies - 1e-6 && took <= cases[i].latencies + 1e-6,
               "%s by %s, %d x %d ranks, %llu bytes: %.0f latencies", gradsync_coll_name(a.coll),
               gradsync_algo_name(a.algo), cases[i].hosts, cases[i].ranks, (unsigned long long)cases[i].bytes, took);
    }
}

/* No byte goes over a wire more often than it must: 2 (hosts - 1) / hosts of an all-reduce, however many ranks. */
static void test_bytes(void)
{
    for (int hosts = 2; hosts <= 4; hosts++)
        for (int ranks = 1; ranks <= 4; ranks++) {
            uint64_t bytes = 1 << 20;
            double least = (double)(hosts - 1) / hosts;
            int n = hosts * ranks, right = 1;
            static const int colls[] = {GRADSYNC_ALL_REDUCE, GRADSYNC_REDUCE_SCATTER, GRADSYNC_ALL_GATHER,
                                        GRADSYNC_BROADCAST, GRADSYNC_REDUCE};
            double want[] = {2 * least, (double)(n - ranks), (double)(ranks * (hosts - 1)), 1, 1};
            for (int k = 0; k < 10; k++) {
                gsi_plan_args a = args_of(GRADSYNC_ALGO_HIER, colls[k % 5], hosts, ranks, bytes);
                a.reach = a.share = (uint32_t)k / 5;
                cost c = cost_of(a, &slow);
                int ok = c.bytes <= want[k % 5] * (double)bytes * 1.001 + 4096;
                if (!ok)
                    tap_note("%s: %.0f bytes, %.0f is enough", gradsync_coll_name(a.coll), c.bytes,
                             want[k % 5] * (double)bytes);
                right = right && ok;
            }
            tap_ok(right, "hierarchical, %d hosts of %d ranks: bytes of a host's wire", hosts, ranks);
        }
}

/* The time is near what the bytes take: 1.25 times that and the latencies, from 64 KiB on, over the slow wire. */
static void test_times(void)
{
    for (int hosts = 2; hosts <= 4; hosts += 2)
        for (int ranks = 1; ranks <= 4; ranks += 3) {
            int right = 1;
            for (uint64_t bytes = 64 << 10; bytes <= 16 << 20; bytes *= 2) {
                double pure = 2.0 * (hosts - 1) / hosts * (double)bytes / slow.wire + 4 * slow.latency;
                int algo = ranks > 1 ? GRADSYNC_ALGO_HIER : GRADSYNC_ALGO_PAIRWISE;
                /* The headers go everywhere, and every leader has its own messages. */
                double messages = 2.0 * (hosts - 1) * ranks * slow.message + (hosts - 1) * ranks * ranks * slow.message;
                double took = cost_of(args_of(algo, GRADSYNC_ALL_REDUCE, hosts, ranks, bytes), &slow).time;
                if (took > 1.25 * pure + messages) {
                    tap_note("%llu bytes: %.0f us, the wire alone %.0f, messages %.0f", (unsigned long long)bytes, took,
                             pure, messages);
                    right = 0;
                }
            }
            tap_ok(right, "all-reduce, %d hosts of %d ranks: at the speed of the wire", hosts, ranks);
        }
    /* Hierarchical plans are there for several ranks a host. */
    for (int hosts = 2; hosts <= 4; hosts++) {
        const timing *const wires[] = {&slow, &fast};
        for (int w = 0; w < 2; w++) {
            double hier = cost_of(args_of(GRADSYNC_ALGO_HIER, GRADSYNC_ALL_REDUCE, hosts, 4, 4 << 20), wires[w]).time;
            double ring = cost_of(args_of(GRADSYNC_ALGO_RING, GRADSYNC_ALL_REDUCE, hosts, 4, 4 << 20), wires[w]).time;
            double pair =
                cost_of(args_of(GRADSYNC_ALGO_PAIRWISE, GRADSYNC_ALL_REDUCE, hosts, 4, 4 << 20), wires[w]).time;
            tap_ok(hier < ring && hier < pair,
                   "%d hosts of 4 ranks, %s wire: hierarchical %.0f us, ring %.0f, pairwise %.0f", hosts,
                   w ? "fast" : "slow", hier, ring, pair);
        }
    }
}

/* The selector's formulas against the model: what it chooses takes at most `worst` times the time of the best, and what
 * it predicts for that is within a factor of 1.7. */
static void test_predictions(const char *name, const timing *t, double worst)
{
    const gsi_costs costs = {.signal_us = t->signal,
                             .step_us = t->step,
                             .put_us = t->signal,
                             .copy_GBps = t->copy / 1e3,
                             .reduce_GBps = t->reduce / 1e3,
                             .mem_copy_GBps = t->copy / 1e3,
                             .mem_reduce_GBps = t->reduce / 1e3,
                             .cache_bytes = 1e12,
                             .ranks_per_core = 1,
                             .wire_us = t->latency,
                             .wire_GBps = t->wire / 1e3,
                             .message_bytes = t->message * t->wire};
    static const int shapes[][2] = {{2, 1}, {3, 1}, {4, 1}, {8, 1}, {2, 4}, {4, 2}, {4, 4}};

    for (int coll = 0; coll < GRADSYNC_BARRIER; coll++) {
        double slowest = 1, far = 1;
        int tried = 0;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (uint64_t bytes = 8; bytes <= 8 << 20; bytes *= 8) {
                gsi_plan_args a = args_of(0, coll, shapes[i][0], shapes[i][1], bytes);
                gsi_select_args s = {.coll = coll,
                                     .n = a.n,
                                     .bytes = bytes,
                                     .esize = 4,
                                     .shareable = 1,
                                     .slot_bytes = a.slot_bytes,
                                     .stage_bytes = a.stage_bytes,
                                     .hosts = a.hosts,
                                     .share = 1,
                                     .credits = a.credits};
                double best = 0, chosen = 0;
                gsi_choice choice;
                gsi_select(&costs, &s, 0, &choice);
                a.message = (uint64_t)costs.message_bytes;
                for (a.algo = 1; a.algo < GRADSYNC_ALGO_COUNT; a.algo++) {
                    double took = cost_of(a, t).time;
                    if (took < 0)
                        continue;
                    best = best > 0 && best < took ? best : took;
                    chosen = a.algo == choice.algo ? took : chosen;
                }
                double off = choice.predicted_us > chosen ? choice.predicted_us / chosen : chosen / choice.predicted_us;
                tried++;
                slowest = chosen / best > slowest ? chosen / best : slowest;
                far = off > far ? off : far;
            }
        tap_ok(tried == 49 && slowest <= worst && far < 1.7,
               "%s by what is predicted, %s: at most %.2f times the best, %.2f times off", gradsync_coll_name(coll),
               name, slowest, far);
    }
}

int main(void)
{
    test_predictions("slow wire", &slow, 1.2);
    test_predictions("fast wire", &fast, 1.6);
    test_latencies();
    test_bytes();
    test_times();
    return tap_done();
}
