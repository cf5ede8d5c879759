/* SPDX-License-Identifier: Apache-2.0 */
/* Plans as data: slices, segments, what a plan says about itself, errors, the listing. */
#include "plan/builder.h"
#include "plan/verify.h"
#include "base/alloc.h"
#include "tap.h"

#include <string.h>

/* Hierarchical plans are for several hosts: two, where nothing else is said. */
static const gsi_hosts *hosts_of(int algo, int n)
{
    static gsi_hosts *made[512];
    static int32_t host[512];

    if (algo != GRADSYNC_ALGO_HIER || n < 2 || n >= 512)
        return NULL;
    for (int r = 0; r < n; r++)
        host[r] = r >= n / 2;
    if (!made[n] && gsi_hosts_make(host, n, &made[n]))
        abort();
    return made[n];
}

static gsi_plan_args args_of(int algo, int coll, int n, uint64_t count)
{
    return (gsi_plan_args){.hosts = hosts_of(algo, n),
                           .share = 1,
                           .algo = algo,
                           .coll = coll,
                           .n = n,
                           .esize = 4,
                           .acc_esize = 4,
                           .count = count,
                           .stride = count,
                           .stage_bytes = 8u << 20,
                           .slot_bytes = 8192,
                           .credits = 64};
}

/* Parts in order, without gaps, borders on the grain, lengths that differ by a grain at most. */
static int slices_right(uint64_t count, uint64_t grain, int parts)
{
    uint64_t next = 0, least = UINT64_MAX, most = 0;

    for (int r = 0; r < parts; r++) {
        uint64_t off, len;
        gsi_plan_slice(count, grain, parts, r, &off, &len);
        if (off != next || (off % grain && off != count))
            return 0;
        next = off + len;
        uint64_t grains = len / grain + (len % grain != 0);
        if (grains < least)
            least = grains;
        if (grains > most)
            most = grains;
    }
    return next == count && most - least <= 1;
}

static void test_slices(void)
{
    static const uint64_t counts[] = {0, 1, 2, 15, 16, 17, 1000, 4096, 65537, UINT64_C(1) << 40, UINT64_MAX / 8 - 1};
    static const uint64_t grains[] = {1, 3, 16, 1024};
    static const int parts[] = {1, 2, 3, 7, 64, 1000};

    for (int g = 0; g < 4; g++)
        for (int p = 0; p < 6; p++) {
            int right = 1;
            for (int c = 0; c < 11; c++)
                right = right && slices_right(counts[c], grains[g], parts[p]);
            tap_ok(right, "%d slices on a grain of %d tile every message", parts[p], (int)grains[g]);
        }
}

static const char *algo_coll(int algo, int coll)
{
    static char text[64];

    snprintf(text, sizeof text, "%s by %s", gradsync_coll_name(coll), gradsync_algo_name(algo));
    return text;
}

/* Plans of a full segment are no longer than a plan should be, or cannot be shorter. */
static void test_segments(void)
{
    static const int ranks[] = {2, 3, 8, 61, 300};

    for (int algo = 1; algo < GRADSYNC_ALGO_COUNT; algo++)
        for (int coll = 0; coll < GRADSYNC_BARRIER; coll++) {
            uint32_t most = 0;
            int built = 0, sane = 1;
            for (int i = 0; i < 20; i++) {
                gsi_plan_args a = args_of(algo, coll, ranks[i / 4], UINT64_C(1) << 40);
                a.slot_bytes = UINT64_C(1) << 50;
                a.flags = i % 2 ? GRADSYNC_ORDERED : 0;
                a.reach = i / 2 % 2;
                if (algo == GRADSYNC_ALGO_DOUBLING)
                    a.count = a.stride = 1000;
                if (gsi_unfit(&a))
                    continue;
                gsi_plan *plan;
                uint64_t segment = gsi_plan_segment(&a);
                sane = sane && segment >= 1 && segment <= a.count;
                a.count = segment;
                /* the segment of a segment is itself: engines may ask again */
                sane = sane && gsi_plan_segment(&a) == segment;
                a.rank = a.n / 2;
                if (gsi_plan_build(&a, &plan))
                    continue;
                built++;
                /* a ring over many ranks takes its rounds, in four pieces, however short the message */
                uint32_t needed = (uint32_t)a.n * 50;
                if (plan->nsteps > GSI_PLAN_STEPS + needed)
                    most = plan->nsteps;
                gsi_plan_free(plan);
                a.count = 3;
                sane = sane && gsi_plan_segment(&a) <= 3;
                a.count = 0;
                sane = sane && gsi_plan_segment(&a) == 1;
            }
            gsi_plan_args any = args_of(algo, coll, 5, 100);
            if (!gsi_unfit(&any))
                tap_ok(built && sane && !most, "%s: segments keep plans short", algo_coll(algo, coll));
            if (most)
                tap_note("%u steps", (unsigned)most);
        }
}

/* The properties by which the engine decides what it must do before and around a plan. */
static void test_properties(void)
{
    for (int algo = 1; algo < GRADSYNC_ALGO_COUNT; algo++) {
        int right = 1, loads = algo <= GRADSYNC_ALGO_STAGED, plans = 0;
        for (int coll = 0; coll < GRADSYNC_COLL_COUNT; coll++)
            for (int n = 1; n <= 9; n++)
                for (uint32_t reach = 0; reach < 2; reach++) {
                    gsi_plan_args a = args_of(algo, coll, n, 333);
                    gsi_plan *p;
                    a.reach = reach;
                    if (gsi_plan_build(&a, &p))
                        continue;
                    plans++;
                    int user = 0, peers = 0, singles = 0, stage = 0;
                    for (uint32_t i = 0; i < p->nplaces; i++) {
                        peers |= p->places[i].rank != p->rank;
                        user |= p->places[i].rank != p->rank && p->places[i].space != GSI_STAGE;
                        stage |= p->places[i].space == GSI_STAGE && p->places[i].off >= p->stage_bytes;
                    }
                    for (uint32_t i = 0; i < p->nsteps; i++)
                        singles |= p->steps[i].kind == GSI_STEP_PUT || p->steps[i].peer != GSI_ALL;
                    right = right && p->algo == algo && p->coll == coll && p->n == n && !stage;
                    right = right && (!user || p->user_memory) && (p->loadstore || !peers || singles);
                    right = right && p->stage_bytes <= a.stage_bytes;
                    if (algo == GRADSYNC_ALGO_HIER && n > 1)
                        right = right && p->gather && !p->signal_all && !p->slot && (singles || !p->nsteps) &&
                                (!p->nsteps || p->loadstore == (n > 2));
                    else if (n > 1)
                        right = right && p->loadstore == loads && p->signal_all == loads && (!loads || p->gather) &&
                                (!p->user_memory || p->gather) && p->slot == (algo == GRADSYNC_ALGO_ONESHOT) &&
                                !(loads && singles);
                    else
                        right = right && !p->gather && p->nsteps == (coll == GRADSYNC_BARRIER ? 0u : 1u);
                    gsi_plan_free(p);
                }
        tap_ok(right && plans, "%s: plans say what they need", gradsync_algo_name(algo));
    }
}

static void test_refusals(void)
{
    gsi_plan *plan = NULL;
    gsi_plan_args a;

#define REFUSED(code, what) tap_ok(gsi_plan_build(&a, &plan) == (code) && !plan, "refused: %s", what)
    a = args_of(GRADSYNC_ALGO_ONESHOT, GRADSYNC_ALL_REDUCE, 4, 2049);
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "oneshot of more than a slot");
    a.count = 2048;
    tap_ok(gsi_plan_build(&a, &plan) == 0 && plan->eager == 8192, "oneshot of just a slot");
    gsi_plan_free(plan);
    plan = NULL;
    a = args_of(GRADSYNC_ALGO_ONESHOT, GRADSYNC_REDUCE_SCATTER, 4, 10);
    a.stride = 11;
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "oneshot of a segment");
    a.stride = 9;
    REFUSED(GRADSYNC_ERR_INVALID, "blocks that overlap");
    a = args_of(GRADSYNC_ALGO_STAGED, GRADSYNC_ALL_REDUCE, 4, 10);
    a.stage_bytes = 30;
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "staged with less than an element a slot");
    a = args_of(GRADSYNC_ALGO_DIRECT, GRADSYNC_BROADCAST, 4, 10);
    a.head = 4;
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "direct broadcast with bytes out of reach");
    a = args_of(GRADSYNC_ALGO_DIRECT, GRADSYNC_ALL_REDUCE, 4, 10000);
    a.head = a.tail = 4096;
    a.stage_bytes = 8191;
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "direct with larger ends than staging");
    a = args_of(GRADSYNC_ALGO_TREE, GRADSYNC_ALL_REDUCE, 3, 10);
    a.flags = GRADSYNC_ORDERED;
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "an ordered tree of three");
    a = args_of(GRADSYNC_ALGO_TREE, GRADSYNC_ALL_GATHER, 3, 10);
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "a tree for all-gather");
    a = args_of(GRADSYNC_ALGO_DOUBLING, GRADSYNC_ALL_REDUCE, 8, 1u << 20);
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "doubling of more than the staging");
    a = args_of(GRADSYNC_ALGO_RING, GRADSYNC_ALL_REDUCE, 8, 100);
    a.credits = 3;
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "a ring with three signals in flight");
    a.credits = 4;
    a.stage_bytes = 0;
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "a ring without staging");
    a = args_of(GRADSYNC_ALGO_RING, GRADSYNC_ALL_REDUCE, 8, UINT64_C(1) << 60);
    a.chunk = 64;
    REFUSED(GRADSYNC_ERR_INVALID, "a message of an exabyte in one plan");
    a = args_of(GRADSYNC_ALGO_AUTO, GRADSYNC_ALL_REDUCE, 8, 1);
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "no algorithm");
    a = args_of(GRADSYNC_ALGO_RING, GRADSYNC_BROADCAST, 8, 1);
    a.root = 8;
    REFUSED(GRADSYNC_ERR_INVALID, "a root that is no rank");
    a.root = 0;
    a.rank = 8;
    REFUSED(GRADSYNC_ERR_INVALID, "a rank that is none");
    a.rank = 0;
    a.esize = 3;
    REFUSED(GRADSYNC_ERR_INVALID, "elements of three bytes");
    a = args_of(GRADSYNC_ALGO_PAIRWISE, GRADSYNC_ALL_GATHER, 8, UINT64_MAX / 16);
    REFUSED(GRADSYNC_ERR_INVALID, "a result that does not fit in memory");
    a = args_of(GRADSYNC_ALGO_HIER, GRADSYNC_ALL_REDUCE, 4, 100);
    a.hosts = NULL;
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "a hierarchy of one host");
    a = args_of(GRADSYNC_ALGO_HIER, GRADSYNC_REDUCE_SCATTER, 4, 100);
    a.flags = GRADSYNC_ORDERED;
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "an ordered hierarchical reduce-scatter");
    static const int32_t turns[4] = {0, 1, 0, 1};
    gsi_hosts *dealt;
    if (gsi_hosts_make(turns, 4, &dealt))
        abort();
    a = args_of(GRADSYNC_ALGO_HIER, GRADSYNC_ALL_REDUCE, 4, 100);
    a.hosts = dealt;
    a.flags = GRADSYNC_ORDERED;
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "an ordered hierarchy of hosts whose ranks are no neighbours");
    a.n = 3;
    REFUSED(GRADSYNC_ERR_INVALID, "hosts of another number of ranks");
    a = args_of(GRADSYNC_ALGO_STAGED, GRADSYNC_ALL_REDUCE, 4, 100);
    a.hosts = dealt;
    REFUSED(GRADSYNC_ERR_UNSUPPORTED, "loads and stores between two hosts");
    free(dealt);
#undef REFUSED
}

/* Every allocation that building makes fails once. */
static void test_no_memory(void)
{
    for (int algo = 1; algo < GRADSYNC_ALGO_COUNT; algo++) {
        int coll =
            algo == GRADSYNC_ALGO_TREE || algo == GRADSYNC_ALGO_DOUBLING ? GRADSYNC_ALL_REDUCE : GRADSYNC_ALL_GATHER;
        gsi_plan_args a = args_of(algo, coll, 7, 300);
        gsi_plan *plan;
        int right = 1, fails = 0, error;
        a.chunk = 64;
        do {
            gsi_alloc_fail_at(fails + 1);
            error = gsi_plan_build(&a, &plan);
            right = right && (error == GRADSYNC_ERR_NOMEM ? !plan : !error);
            fails += error != 0;
        } while (error && fails < 1000);
        gsi_alloc_fail_at(0);
        gsi_plan_free(plan);
        tap_ok(right && !error && fails > 2, "%s: out of memory at each of %d allocations", gradsync_algo_name(algo),
               fails);
    }
}

static void test_order(void)
{
    static const int32_t order[7] = {3, 0, 6, 5, 1, 2, 4};
    gsi_plan *plans[7];
    char why[512] = "";

    for (int coll = 0; coll < GRADSYNC_COLL_COUNT; coll++) {
        int right = 1;
        for (uint32_t i = 0; i < 8; i++) {
            gsi_plan_args a = args_of(GRADSYNC_ALGO_RING, coll, 7, 100);
            a.order = order;
            a.chunk = 32;
            a.root = 5;
            a.reach = i & 1;
            a.flags = i & 2 ? GRADSYNC_ORDERED : 0;
            gsi_verify_opts opts = {.alias = i & 4 ? GSI_VERIFY_MIXED : GSI_VERIFY_IN_PLACE, .seed = i, .races = 1};
            int error = 0;
            for (a.rank = 0; a.rank < 7; a.rank++)
                error |= gsi_plan_build(&a, &plans[a.rank]);
            right = right && !error && !gsi_plan_verify(plans, &a, &opts, why, sizeof why);
            for (int r = 0; r < 7; r++)
                gsi_plan_free(plans[r]);
        }
        if (!tap_ok(right, "%s on a ring in another order", gradsync_coll_name(coll)))
            tap_note("%s", why);
    }
    gsi_plan_args a = args_of(GRADSYNC_ALGO_RING, GRADSYNC_ALL_REDUCE, 7, 100);
    a.order = order;
    a.rank = 6;
    int right = gsi_plan_build(&a, &plans[0]) == 0;
    for (uint32_t i = 0; right && i < plans[0]->nsteps; i++)
        if (plans[0]->steps[i].kind == GSI_STEP_PUT)
            right = plans[0]->steps[i].peer == 5;
    tap_ok(right, "a ring in another order goes to its own next rank");
    gsi_plan_free(plans[0]);
}

static void test_hosts(void)
{
    static const int32_t host[7] = {9, -4, 9, 2, -4, 9, 2};
    static const int32_t of[7] = {0, 1, 0, 2, 1, 0, 2}, index[7] = {0, 0, 1, 0, 1, 2, 1};
    static const int32_t order[7] = {0, 2, 5, 1, 4, 3, 6}, first[4] = {0, 3, 5, 7};
    gsi_hosts *h = NULL;
    int rc = gsi_hosts_make(host, 7, &h);

    tap_ok(!rc && h->n == 7 && h->hosts == 3 && h->least == 2 && h->most == 3 && !h->neighbours &&
               !memcmp(h->of, of, sizeof of) && !memcmp(h->index, index, sizeof index) &&
               !memcmp(h->order, order, sizeof order) && !memcmp(h->first, first, sizeof first),
           "seven ranks on three hosts");
    tap_ok(!rc && gsi_hosts_same(h, 0, 5) && !gsi_hosts_same(h, 0, 1) && gsi_hosts_same(NULL, 0, 1) &&
               gsi_hosts_size(h, 0) == 3 && gsi_hosts_rank(h, 2, 1) == 6,
           "which ranks share a host");
    /* The ring goes host by host: between ranks 5 and 1, 4 and 3, 6 and 0 only is there a wire. */
    gsi_plan_args a = args_of(GRADSYNC_ALGO_RING, GRADSYNC_ALL_REDUCE, 7, 100);
    int wires = 0;
    a.hosts = h;
    for (a.rank = 0; !rc && a.rank < 7; a.rank++) {
        gsi_plan *plan;
        int peer = -1;
        rc = gsi_plan_build(&a, &plan);
        for (uint32_t i = 0; !rc && i < plan->nsteps; i++)
            peer = plan->steps[i].kind == GSI_STEP_PUT ? plan->steps[i].peer : peer;
        wires += !rc && h->of[peer] != h->of[a.rank];
        gsi_plan_free(rc ? NULL : plan);
    }
    tap_ok(!rc && wires == 3, "a ring over three hosts has three wires (%d)", wires);
    free(h);
    tap_ok(gsi_hosts_make(host, 0, &h) == GRADSYNC_ERR_INVALID && !h && gsi_hosts_make(NULL, 2, &h) && !h,
           "hosts of no ranks are none");
    gsi_alloc_fail_at(1);
    rc = gsi_hosts_make(host, 7, &h);
    gsi_alloc_fail_at(0);
    tap_ok(rc == GRADSYNC_ERR_NOMEM && !h, "no memory for hosts");
    rc = gsi_hosts_make(of, 1, &h);
    tap_ok(!rc && h->hosts == 1 && h->neighbours && h->least == 1, "one rank on one host");
    free(h);
    a.hosts = NULL;
}

static void test_print(void)
{
    static const char *const expected =
        "all_reduce by direct, rank 1 of 2: gather loadstore signal-all user-memory ordered eager 0 stage 8\n"
        " stream 0:\n"
        "  copy 8 bytes: send1+0(of 1) -> stage1+0\n"
        "  reduce 264 bytes: send0+328(of 0) send1+328(of 1) -> recv0+328 recv1+328 final\n"
        "  signal all\n"
        "  wait all #1\n"
        "  reduce 8 bytes: stage0+0(of 0) stage1+0(of 1) -> recv1+0 final\n";
    gsi_plan_args a = args_of(GRADSYNC_ALGO_DIRECT, GRADSYNC_ALL_REDUCE, 2, 148);
    gsi_plan *plan;
    char text[1024], few[20];

    a.rank = 1;
    a.head = 5;
    if (gsi_plan_build(&a, &plan)) {
        tap_ok(0, "a plan to print");
        return;
    }
    int length = gsi_plan_print(plan, text, sizeof text);
    if (!tap_ok(!strcmp(text, expected) && length == (int)strlen(expected), "the listing of a plan"))
        tap_note("%s", text);
    tap_ok(gsi_plan_print(plan, few, sizeof few) == length && strlen(few) == sizeof few - 1 &&
               !strncmp(few, expected, sizeof few - 1),
           "a listing cut short says how long it is");
    tap_ok(gsi_plan_print(plan, NULL, 0) == length, "a listing without room says how long it is");
    gsi_plan_free(plan);
    gsi_plan_free(NULL);
}

int main(void)
{
    test_slices();
    test_segments();
    test_properties();
    test_refusals();
    test_no_memory();
    test_order();
    test_hosts();
    test_print();
    return tap_done();
}
