/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verifier, tried on plans written by hand: it accepts the right ones under
 * every alias and schedule, and rejects each of many defects for the right reason.
 */
#include "plan/verify.h"
#include "base/alloc.h"
#include "tap.h"

#include <string.h>

enum { MAX_RANKS = 4, MAX_STEPS = 48, MAX_PLACES = 160, SEEDS = 24 };

/* The plans of all ranks of one collective, in static memory. */
typedef struct world {
    gsi_plan_args args;
    gsi_plan plan[MAX_RANKS];
    gsi_step steps[MAX_RANKS][MAX_STEPS];
    gsi_place places[MAX_RANKS][MAX_PLACES];
    uint32_t awaits[MAX_RANKS][GSI_MAX_STREAMS * MAX_RANKS];
} world;

static world w; /* the one under test */
static char why[512];

/* A place by element, not by byte. */
static gsi_place at(int rank, int space, uint64_t element, int from)
{
    return (gsi_place){.off = element * w.args.esize, .rank = rank, .from = from, .space = (uint8_t)space};
}

static void start(int coll, int n, uint64_t count)
{
    memset(&w, 0, sizeof w);
    w.args = (gsi_plan_args){.algo = GRADSYNC_ALGO_DIRECT, .coll = coll, .n = n, .esize = 4, .acc_esize = 4};
    w.args.count = w.args.stride = count;
    w.args.stage_bytes = w.args.slot_bytes = 1024;
    w.args.reach = 1;
    for (int r = 0; r < n; r++) {
        gsi_plan *p = &w.plan[r];
        p->steps = w.steps[r];
        p->places = w.places[r];
        p->awaits = w.awaits[r];
        p->nstreams = 1;
        p->n = n;
        p->rank = r;
        p->algo = GRADSYNC_ALGO_DIRECT;
        p->coll = (uint8_t)coll;
        p->stage_bytes = 256;
    }
}

static gsi_step *add(int r, int kind, int flags, int peer, uint32_t value, uint64_t elements)
{
    gsi_plan *p = &w.plan[r];
    gsi_step *s = &p->steps[p->nsteps++];

    *s = (gsi_step){.kind = (uint8_t)kind, .flags = (uint8_t)flags, .peer = peer, .value = value};
    s->place = p->nplaces;
    s->bytes = elements * w.args.esize;
    p->streams[0].count = p->nsteps;
    return s;
}

static void source(int r, gsi_place place)
{
    gsi_plan *p = &w.plan[r];

    p->steps[p->nsteps - 1].nsrc++;
    p->places[p->nplaces++] = place;
}

static void target(int r, gsi_place place)
{
    gsi_plan *p = &w.plan[r];

    p->steps[p->nsteps - 1].ndst++;
    p->places[p->nplaces++] = place;
}

static void copy(int r, uint64_t elements, gsi_place src, gsi_place dst)
{
    add(r, GSI_STEP_COPY, 0, 0, 0, elements);
    source(r, src);
    target(r, dst);
}

static void put(int r, int peer, int notify, uint64_t elements, gsi_place src, gsi_place dst)
{
    add(r, GSI_STEP_PUT, notify ? GSI_STEP_NOTIFY : 0, peer, 0, elements);
    source(r, src);
    target(r, dst);
}

static void notify(int r, int peer)
{
    add(r, GSI_STEP_SIGNAL, 0, peer, 0, 0);
}

static void await(int r, int peer, uint32_t value)
{
    add(r, GSI_STEP_WAIT, 0, peer, value, 0);
    for (int p = 0; p < w.args.n; p++)
        if (p != r && (peer == GSI_ALL || peer == p) && w.awaits[r][p] < value)
            w.awaits[r][p] = value;
}

static void flags(int gather, int loadstore, int signal_all, int user_memory, int ordered)
{
    for (int r = 0; r < w.args.n; r++) {
        w.plan[r].gather = (uint8_t)gather;
        w.plan[r].loadstore = (uint8_t)loadstore;
        w.plan[r].signal_all = (uint8_t)signal_all;
        w.plan[r].user_memory = (uint8_t)user_memory;
        w.plan[r].ordered = (uint8_t)ordered;
    }
}

static void streams_of(int r, uint32_t first)
{
    gsi_plan *p = &w.plan[r];

    p->nstreams = 2;
    p->streams[0] = (gsi_stream){0, first};
    p->streams[1] = (gsi_stream){first, p->nsteps - first};
}

static int verify(int alias, int races, uint64_t seed)
{
    gsi_plan *plans[MAX_RANKS];
    gsi_verify_opts opts = {.alias = alias, .seed = seed, .races = races};

    for (int r = 0; r < w.args.n; r++)
        plans[r] = &w.plan[r];
    return gsi_plan_verify(plans, &w.args, &opts, why, sizeof why);
}

static void accepted(const char *name)
{
    int rc = 0;

    for (int alias = GSI_VERIFY_OUT_OF_PLACE; alias <= GSI_VERIFY_MIXED; alias++)
        for (int races = 0; races < 2; races++)
            for (uint64_t seed = 0; seed < SEEDS && !rc; seed++)
                rc = verify(alias, races, seed);
    tap_ok(rc == 0, "accepts %s%s%s", name, rc ? ": " : "", why);
}

/* Some schedule shows the defect without looking for races, and every schedule shows it with. */
enum { STATIC = 1, ALWAYS = 2, SOMETIMES = 4, RACES = 8, IN_PLACE = 16 };

static int expected(const char *text, int rc)
{
    return rc == GRADSYNC_ERR_INVALID && strstr(why, text);
}

/* STATIC, ALWAYS: by every schedule; SOMETIMES: by one at least; RACES: with races by every one. */
static void rejected(const char *name, const char *text, int how)
{
    int alias = how & IN_PLACE ? GSI_VERIFY_IN_PLACE : GSI_VERIFY_OUT_OF_PLACE;
    int hits = 0, races = 0, ok = 1;
    char bad[600] = "";

    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        int rc = verify(alias, 0, seed);
        if (expected(text, rc))
            hits++;
        else if (rc)
            snprintf(bad, sizeof bad, "%s", why);
        rc = verify(alias, 1, seed);
        if (expected(text, rc) || (how & RACES && expected("race: ", rc)))
            races++;
        else
            snprintf(bad, sizeof bad, "(races) %s", rc ? why : "accepted");
    }
    if (how & (STATIC | ALWAYS))
        ok = hits == SEEDS && races == SEEDS;
    if (how & SOMETIMES)
        ok = hits > 0;
    if (how & RACES)
        ok = ok && races == SEEDS;
    tap_ok(ok, "rejects %s (%d and %d of %d schedules)%s%s", name, hits, races, SEEDS, ok ? "" : ": ", ok ? "" : bad);
}

/* ---- Right plans ------------------------------------------------------------- */

/* All-reduce of 6 elements by 3 ranks, each reducing a third straight from all to all. */
static void direct(void)
{
    start(GRADSYNC_ALL_REDUCE, 3, 6);
    flags(1, 1, 1, 1, 1);
    for (int r = 0; r < 3; r++) {
        add(r, GSI_STEP_REDUCE, GSI_STEP_FINAL, 0, 0, 2);
        for (int p = 0; p < 3; p++)
            source(r, at(p, GSI_SEND, 2 * (uint64_t)r, p));
        for (int p = 0; p < 3; p++)
            target(r, at(p, GSI_RECV, 2 * (uint64_t)r, 0));
        notify(r, GSI_ALL);
        await(r, GSI_ALL, 1);
    }
}

/* The same by ring over PUT: reduce-scatter and all-gather, two slots in STAGE and one to send from. */
static void ring(void)
{
    start(GRADSYNC_ALL_REDUCE, 3, 6);
    flags(1, 0, 0, 1, 0);
    for (int r = 0; r < 3; r++) {
        int next = (r + 1) % 3, prev = (r + 2) % 3;
        uint64_t mine = 2 * (uint64_t)r, before = 2 * (uint64_t)prev, other = 2 * (uint64_t)next;
        put(r, next, 1, 2, at(r, GSI_SEND, mine, 0), at(next, GSI_STAGE, 0, 0)); /* 0 */
        await(r, prev, 1);
        add(r, GSI_STEP_REDUCE, 0, 0, 0, 2); /* 2 */
        source(r, at(r, GSI_STAGE, 0, prev));
        source(r, at(r, GSI_SEND, before, r));
        target(r, at(r, GSI_STAGE, 8, 0));
        put(r, next, 1, 2, at(r, GSI_STAGE, 8, 0), at(next, GSI_STAGE, 4, 0)); /* 3 */
        await(r, prev, 2);
        add(r, GSI_STEP_REDUCE, GSI_STEP_FINAL, 0, 0, 2); /* 5 */
        source(r, at(r, GSI_STAGE, 4, GSI_PARTIAL));
        source(r, at(r, GSI_SEND, other, r));
        target(r, at(r, GSI_RECV, other, 0));
        put(r, next, 1, 2, at(r, GSI_RECV, other, 0), at(next, GSI_RECV, other, 0)); /* 6 */
        await(r, prev, 3);
        put(r, next, 1, 2, at(r, GSI_RECV, mine, 0), at(next, GSI_RECV, mine, 0)); /* 8 */
        await(r, prev, 4);
        add(r, GSI_STEP_FLUSH, 0, GSI_ALL, 0, 0); /* 10 */
    }
}

/* Broadcast in 3 chunks from rank 0 to rank 1, through one slot, each answered by a signal. */
static void slots(void)
{
    start(GRADSYNC_BROADCAST, 2, 6);
    flags(1, 0, 0, 0, 0);
    copy(0, 6, at(0, GSI_SEND, 0, 0), at(0, GSI_RECV, 0, 0));
    for (uint32_t c = 0; c < 3; c++) {
        copy(0, 2, at(0, GSI_SEND, 2 * c, 0), at(0, GSI_STAGE, 0, 0)); /* 1 + 3c */
        put(0, 1, 1, 2, at(0, GSI_STAGE, 0, 0), at(1, GSI_STAGE, 0, 0));
        await(0, 1, c + 1);
        await(1, 0, c + 1); /* 3c */
        copy(1, 2, at(1, GSI_STAGE, 0, 0), at(1, GSI_RECV, 2 * c, 0));
        notify(1, 0);
    }
}

/* bf16 by a chain of 3 ranks with unrounded partial results, in canonical order; root 2 hands the result back. */
static void chain(void)
{
    start(GRADSYNC_ALL_REDUCE, 3, 4);
    w.args.esize = 2;
    w.args.flags = GRADSYNC_ORDERED;
    flags(1, 0, 0, 1, 1);
    add(0, GSI_STEP_REDUCE, GSI_STEP_ACC_OUT, 0, 0, 4); /* 0 */
    source(0, at(0, GSI_SEND, 0, 0));
    target(0, at(0, GSI_STAGE, 0, 0));
    put(0, 1, 1, 8, at(0, GSI_STAGE, 0, 0), at(1, GSI_STAGE, 0, 0));
    await(1, 0, 1);
    add(1, GSI_STEP_REDUCE, GSI_STEP_ACC_IN | GSI_STEP_ACC_OUT, 0, 0, 4); /* 1 */
    source(1, at(1, GSI_STAGE, 0, GSI_PARTIAL));
    source(1, at(1, GSI_SEND, 0, 1));
    target(1, at(1, GSI_STAGE, 16, 0));
    put(1, 2, 1, 8, at(1, GSI_STAGE, 16, 0), at(2, GSI_STAGE, 0, 0));
    await(2, 1, 1);
    add(2, GSI_STEP_REDUCE, GSI_STEP_ACC_IN | GSI_STEP_FINAL, 0, 0, 4); /* 1 */
    source(2, at(2, GSI_STAGE, 0, GSI_PARTIAL));
    source(2, at(2, GSI_SEND, 0, 2));
    target(2, at(2, GSI_RECV, 0, 0));
    put(2, 0, 1, 4, at(2, GSI_RECV, 0, 0), at(0, GSI_RECV, 0, 0));
    put(2, 1, 1, 4, at(2, GSI_RECV, 0, 0), at(1, GSI_RECV, 0, 0));
    add(2, GSI_STEP_FLUSH, 0, GSI_ALL, 0, 0);
    await(0, 2, 1);
    await(1, 2, 1);
}

/* All-gather of 3 elements by 2 ranks out of the slots that came with the headers; blocks 4 apart. */
static void eager(void)
{
    start(GRADSYNC_ALL_GATHER, 2, 3);
    w.args.stride = 4;
    flags(1, 1, 0, 0, 0);
    for (int r = 0; r < 2; r++) {
        w.plan[r].slot = 1;
        w.plan[r].eager = 12;
        for (int p = 0; p < 2; p++)
            copy(r, 3, at(p, GSI_STAGE, 0, 0), at(r, GSI_RECV, 4 * (uint64_t)p, 0));
    }
}

/* Reduce-scatter of 2 elements by 2 ranks, blocks 3 apart, straight from the peer's SEND; no headers before. */
static void scatter(void)
{
    start(GRADSYNC_REDUCE_SCATTER, 2, 2);
    w.args.stride = 3;
    flags(0, 1, 0, 1, 0);
    for (int r = 0; r < 2; r++) {
        notify(r, !r);
        await(r, !r, 1);
        add(r, GSI_STEP_REDUCE, GSI_STEP_FINAL, 0, 0, 2);
        source(r, at(0, GSI_SEND, 3 * (uint64_t)r, 0));
        source(r, at(1, GSI_SEND, 3 * (uint64_t)r, 1));
        target(r, at(r, GSI_RECV, 0, 0));
        notify(r, !r);
        await(r, !r, 2);
    }
}

/* Reduce to rank 1 of 2, on two streams, one element each. */
static void two_streams(void)
{
    start(GRADSYNC_REDUCE, 2, 2);
    w.args.root = 1;
    flags(1, 0, 0, 0, 0);
    for (uint64_t s = 0; s < 2; s++) {
        put(0, 1, 1, 1, at(0, GSI_SEND, s, 0), at(1, GSI_STAGE, s, 0));
        add(0, GSI_STEP_FLUSH, 0, 1, 0, 0);
        await(1, 0, 1);
        add(1, GSI_STEP_REDUCE, GSI_STEP_FINAL, 0, 0, 1);
        source(1, at(1, GSI_STAGE, s, 0));
        source(1, at(1, GSI_SEND, s, 1));
        target(1, at(1, GSI_RECV, s, 0));
        w.awaits[1][2 * s] = 1;
    }
    streams_of(0, 2);
    streams_of(1, 2);
}

/* A barrier of 4 by dissemination, no headers. */
static void barrier(void)
{
    start(GRADSYNC_BARRIER, 4, 0);
    for (int r = 0; r < 4; r++) {
        notify(r, (r + 1) % 4);
        await(r, (r + 3) % 4, 1);
        notify(r, (r + 2) % 4);
        await(r, (r + 2) % 4, 1);
    }
}

/* Each of 2 ranks sends three PUTs without a single wait before: needs 3 credits. */
static void burst(void)
{
    start(GRADSYNC_ALL_GATHER, 2, 3);
    flags(1, 0, 0, 1, 0);
    for (int r = 0; r < 2; r++) {
        uint64_t mine = 3 * (uint64_t)r;
        for (uint64_t c = 0; c < 3; c++)
            put(r, !r, 1, 1, at(r, GSI_SEND, c, 0), at(!r, GSI_RECV, mine + c, 0));
        copy(r, 3, at(r, GSI_SEND, 0, 0), at(r, GSI_RECV, mine, 0));
        await(r, !r, 3);
        add(r, GSI_STEP_FLUSH, 0, !r, 0, 0);
    }
}

/* A 1-rank all-reduce still applies prescale and divisor. */
static void alone(void)
{
    start(GRADSYNC_ALL_REDUCE, 1, 5);
    add(0, GSI_STEP_REDUCE, GSI_STEP_FINAL, 0, 0, 5);
    source(0, at(0, GSI_SEND, 0, 0));
    target(0, at(0, GSI_RECV, 0, 0));
}

static void test_accepts(void)
{
    direct();
    accepted("direct all-reduce");
    w.args.flags = GRADSYNC_ORDERED;
    accepted("direct all-reduce, ordered");
    ring();
    accepted("ring all-reduce");
    w.args.credits = 2;
    accepted("ring all-reduce with 2 credits");
    slots();
    accepted("a broadcast through one slot");
    w.args.credits = 1;
    accepted("a broadcast through one slot with 1 credit");
    chain();
    accepted("an ordered chain of unrounded partials");
    eager();
    accepted("an eager all-gather in blocks");
    scatter();
    accepted("a reduce-scatter without headers");
    two_streams();
    accepted("a reduce on two streams");
    barrier();
    accepted("a barrier");
    burst();
    w.args.credits = 3;
    accepted("an all-gather in a burst with 3 credits");
    alone();
    accepted("an all-reduce of one rank");
    start(GRADSYNC_BARRIER, 2, 0);
    flags(1, 0, 0, 0, 0);
    accepted("an empty plan after the headers");
}

/* ---- Wrong plans ------------------------------------------------------------- */

#define STEP(r, i)     (&w.steps[r][i])
#define PLACE(r, i, k) (&w.places[r][w.steps[r][i].place + (k)])

/* Takes a step out of a plan of one stream. */
static void drop(int r, int i)
{
    gsi_plan *p = &w.plan[r];

    memmove(STEP(r, i), STEP(r, i + 1), (--p->nsteps - (uint32_t)i) * sizeof *p->steps);
    p->streams[0].count--;
}

static void swap(int r, int i, int k)
{
    gsi_step s = *STEP(r, i);
    *STEP(r, i) = *STEP(r, k);
    *STEP(r, k) = s;
}

static void test_values(void)
{
    direct();
    PLACE(1, 0, 2)->off += 4;
    rejected("a source shifted by an element", "combines element 2 (source 0) with element 3", ALWAYS);
    direct();
    PLACE(1, 0, 3)->off += 4;
    PLACE(1, 0, 4)->off += 4;
    PLACE(1, 0, 5)->off += 4;
    rejected("a result shifted by an element", "of RECV ends as", SOMETIMES | RACES);
    direct();
    *PLACE(2, 0, 1) = *PLACE(2, 0, 0);
    rejected("a contribution counted twice",
             "rank 2, stream 0, step 0 (REDUCE): contribution of rank 0 counted twice at element 4 of rank 0's RECV",
             ALWAYS);
    direct();
    flags(1, 1, 1, 1, 0);
    STEP(2, 0)->nsrc = 2;
    STEP(2, 0)->place++;
    rejected("a contribution left out", "FINAL with 2 of 3 contributions", ALWAYS);
    direct();
    STEP(2, 0)->bytes -= 4;
    rejected("an element left out", "element 5 of RECV ends as undefined", ALWAYS);
    direct();
    PLACE(0, 0, 1)->from = 2;
    rejected("a contribution of the wrong rank", "`from` names the wrong rank", ALWAYS);
    direct();
    PLACE(0, 0, 1)->from = GSI_PARTIAL;
    rejected("a contribution called partial", "its prescale would be lost", ALWAYS);
    ring();
    PLACE(0, 5, 0)->from = 2;
    rejected("a partial called a contribution", "its prescale would apply again", ALWAYS);
    ring();
    STEP(1, 5)->flags = 0;
    rejected("a result without FINAL", "the complete partial result of element 4, not FINAL", SOMETIMES);
    ring();
    STEP(1, 2)->flags = GSI_STEP_FINAL;
    rejected("FINAL on part of the sum", "FINAL with 2 of 3", ALWAYS);
    direct();
    add(0, GSI_STEP_REDUCE, GSI_STEP_FINAL, 0, 0, 2);
    source(0, at(0, GSI_RECV, 0, GSI_PARTIAL));
    target(0, at(0, GSI_RECV, 0, 0));
    rejected("FINAL twice", "reduces a final result again", ALWAYS);
    alone();
    STEP(0, 0)->kind = GSI_STEP_COPY;
    STEP(0, 0)->flags = 0;
    rejected("a copy in place of a reduction", "ends as rank 0's untouched contribution", ALWAYS);
    ring();
    PLACE(0, 2, 0)->off = 32;
    rejected("a read of the wrong slot", "reads undefined memory", ALWAYS);
    slots();
    w.args.root = 1;
    rejected("the wrong root", "which has 0", STATIC);
    eager();
    PLACE(0, 1, 0)->rank = 0;
    rejected("a block of the wrong rank", "element 4 of RECV ends as rank 0's untouched contribution to element 0",
             ALWAYS);
}

static void test_order(void)
{
    gsi_place p;

    direct();
    p = *PLACE(1, 0, 0);
    *PLACE(1, 0, 0) = *PLACE(1, 0, 1);
    *PLACE(1, 0, 1) = p;
    rejected("swapped sources", "canonical order broken", ALWAYS);
    flags(1, 1, 1, 1, 0);
    accepted("swapped sources where order is free");
    ring();
    flags(1, 0, 0, 1, 1);
    rejected("a ring that claims to be ordered", "canonical order broken", ALWAYS);
    direct();
    flags(1, 1, 1, 1, 0);
    w.args.flags = GRADSYNC_ORDERED;
    rejected("an unordered plan where order was asked for", "does not claim to be", STATIC);
}

static void test_acc(void)
{
    chain();
    STEP(1, 1)->flags = GSI_STEP_ACC_OUT;
    rejected("an unrounded value read without ACC_IN", "without ACC_IN", ALWAYS);
    chain();
    STEP(0, 0)->flags = 0;
    STEP(0, 1)->bytes = 8;
    rejected("a rounded value read with ACC_IN", "rounded value with ACC_IN", ALWAYS);
    chain();
    STEP(0, 0)->flags = 0;
    STEP(0, 1)->bytes = 8;
    STEP(1, 1)->flags = 0;
    STEP(1, 2)->bytes = 8;
    STEP(2, 1)->flags = GSI_STEP_FINAL;
    rejected("rounding twice in an ordered plan", "rounds twice", ALWAYS);
    flags(1, 0, 0, 1, 0);
    w.args.flags = 0;
    accepted("rounding twice where order is free");
    chain();
    STEP(0, 1)->bytes = 14;
    rejected("half an unrounded value", "partly overwritten", ALWAYS);
    chain();
    PLACE(1, 1, 0)->off += 2;
    rejected("an unrounded value from its middle", "middle of an unrounded value", ALWAYS);
    chain();
    STEP(2, 1)->flags |= GSI_STEP_ACC_OUT;
    rejected("a final result that is not rounded", "ACC_OUT contradicts", STATIC);
    direct();
    STEP(1, 0)->flags |= GSI_STEP_ACC_IN;
    rejected("ACC_IN where partial results are as wide as elements", "are for f16 and bf16", STATIC);
}

static void test_waits(void)
{
    ring();
    drop(1, 1);
    rejected("a missing wait (a later one covers it)", "", SOMETIMES | RACES);
    direct();
    drop(0, 2);
    rejected("a missing last wait", "stream 0 waits for 0 signals of rank 1, but awaits says 1", STATIC);
    w.awaits[0][1] = w.awaits[0][2] = 0;
    rejected("an unawaited signal", "awaits 0 signals of rank 1, which raises 1", STATIC);
    direct();
    drop(0, 1);
    rejected("a missing signal", "awaits 1 signals of rank 0, which raises 0", STATIC);
    ring();
    STEP(0, 7)->value = 1;
    rejected("waits that go back", "waits for signal 1 after having waited for signal 2", STATIC);
    ring();
    for (int r = 0; r < 3; r++)
        swap(r, 0, 1);
    rejected("a cyclic wait", "deadlock (3 streams stuck): waits for signal 1 of rank 2, which has raised 0", ALWAYS);
    burst();
    w.args.credits = 2;
    rejected(
        "too few credits",
        "rank 0, stream 0, step 2 (PUT): deadlock (2 streams stuck): no credit for rank 1, which has awaited 0 of 2",
        ALWAYS);
    barrier();
    for (int r = 0; r < 4; r++) {
        STEP(r, 2)->peer = (r + 1) % 4;
        STEP(r, 3)->peer = (r + 3) % 4;
        STEP(r, 3)->value = 2;
        memset(w.awaits[r], 0, sizeof w.awaits[r]);
        w.awaits[r][(r + 3) % 4] = 2;
    }
    rejected("a barrier that does not meet everyone", "without having met rank", ALWAYS);
    two_streams();
    w.plan[1].streams[1].count--;
    rejected("a stream cut short", "element 1 of RECV ends as", ALWAYS);
    two_streams();
    memset(STEP(1, 2), 0, sizeof *STEP(1, 2));
    STEP(1, 2)->kind = GSI_STEP_WAIT;
    STEP(1, 2)->value = 1;
    STEP(1, 2)->peer = 0;
    PLACE(1, 3, 0)->off = 0;
    PLACE(1, 3, 1)->off = 0;
    rejected("a stream that uses another's data", "", SOMETIMES | RACES);
}

static void test_races(void)
{
    slots();
    drop(0, 3);
    rejected("a source overwritten before it was sent", "", SOMETIMES | RACES);
    slots();
    swap(1, 1, 2);
    rejected("a slot freed before it was read", "", SOMETIMES | RACES);
    slots();
    swap(0, 4, 3);
    rejected("a slot reused too early", "", SOMETIMES | RACES);
    ring();
    drop(1, 10);
    rejected("a return before the source was sent", "which may have returned", SOMETIMES | RACES);
    scatter();
    drop(1, 4);
    memset(w.awaits[1], 0, sizeof w.awaits[1]);
    w.awaits[1][0] = 1;
    drop(0, 3);
    rejected("a return while a peer still reads", "", SOMETIMES | RACES);
    scatter();
    swap(0, 1, 2);
    rejected("a read before the peer has entered", "may not have entered the call yet", SOMETIMES | RACES);
    direct();
    STEP(0, 0)->bytes = 12;
    rejected("slices that overlap", "", RACES);
    direct();
    for (int r = 0; r < 3; r++)
        for (int k = 0; k < 3; k++)
            PLACE(r, 0, 3 + k)->off = PLACE((r + 1) % 3, 0, 0)->off;
    rejected("results on the peers' inputs in place", "", SOMETIMES | RACES | IN_PLACE);
}

static void test_bounds(void)
{
    direct();
    PLACE(2, 0, 3)->off = 20;
    rejected("a write beyond the result", "out of bounds: writes bytes [20, +8) of rank 0's RECV, which has 24",
             STATIC);
    direct();
    PLACE(2, 0, 0)->off = UINT64_MAX - 3;
    rejected("an offset that wraps", "out of bounds", STATIC);
    ring();
    PLACE(0, 0, 1)->off = 252;
    rejected("a slot beyond the stage", "out of bounds", STATIC);
    ring();
    w.args.stage_bytes = 128;
    rejected("a stage larger than there is", "stage_bytes is 256, but there are 128", STATIC);
    direct();
    PLACE(0, 0, 3)->off += 2;
    rejected("a piece of an element", "no whole elements", STATIC);
    eager();
    STEP(0, 1)->bytes = 16;
    rejected("a read beyond a block", "out of bounds", STATIC);
    eager();
    PLACE(0, 0, 1)->off += 4;
    rejected("a write between blocks", "beyond a block", STATIC);
    direct();
    PLACE(0, 0, 4)->space = GSI_SEND;
    rejected("a write to SEND", "writes SEND of rank 1", STATIC);
    two_streams();
    PLACE(1, 1, 2)->rank = 0;
    flags(1, 1, 0, 1, 0);
    rejected("a write to RECV of a rank without result", "rank 0's RECV, which has 0", STATIC);
    direct();
    STEP(2, 0)->place = 5;
    rejected("places that are not there", "go beyond the 6 there are", STATIC);
    direct();
    w.plan[1].streams[0].count = 9;
    rejected("steps that are not there", "goes beyond the 3 steps", STATIC);
    direct();
    *PLACE(0, 0, 4) = *PLACE(0, 0, 3);
    PLACE(0, 0, 4)->off += 4;
    rejected("destinations that overlap", "destination 1 overlaps destination 0", STATIC);
    alone();
    STEP(0, 0)->bytes -= 4;
    PLACE(0, 0, 1)->off += 4;
    rejected("a destination across a source in place", "destination 0 overlaps source 0", STATIC | IN_PLACE);
}

static void test_flags(void)
{
    direct();
    flags(1, 0, 1, 1, 1);
    rejected("loads without loadstore", "not marked loadstore", STATIC);
    direct();
    flags(1, 1, 1, 0, 1);
    rejected("peers' buffers without user_memory", "not marked user_memory", STATIC);
    ring();
    flags(1, 0, 0, 0, 0);
    rejected("PUT to a peer's RECV without user_memory", "not marked user_memory", STATIC);
    direct();
    flags(1, 1, 0, 1, 1);
    rejected("signals to all without signal_all", "signals all ranks, but the plan is not marked", STATIC);
    ring();
    flags(1, 0, 1, 1, 0);
    rejected("signals to one with signal_all", "signals one rank, but the plan is marked", STATIC);
    direct();
    w.plan[2].gather = 0;
    rejected("ranks that differ in gather", "gather differs", STATIC);
    direct();
    w.args.head = 4;
    rejected("a peer's head", "head or tail", STATIC);
    direct();
    w.args.tail = 4;
    rejected("a peer's tail", "head or tail", STATIC);
    ring();
    w.args.reach = 0;
    rejected("a PUT to a peer's RECV out of reach", "out of reach", STATIC);
    eager();
    w.plan[0].eager = w.plan[1].eager = 8;
    rejected("half of SEND with the header", "eager is 8 bytes, but SEND has 12", STATIC);
    ring();
    PLACE(1, 0, 1)->rank = 1;
    rejected("a PUT to itself", "writes memory of rank 1", STATIC);
    ring();
    STEP(1, 8)->flags = 0;
    notify(1, 2);
    swap(1, 8, 11);
    rejected("a PUT that no signal follows", "no signal to rank 2 follows", STATIC);
    direct();
    w.plan[1].rank = 2;
    rejected("a plan of another rank", "the plan is of rank 2 of 3", STATIC);
    direct();
    STEP(0, 0)->kind = 9;
    rejected("a step of no kind", "means nothing", STATIC);
}

/* The same plan as the one before, by ranks on these hosts. */
static void on_hosts(int a, int b, int c, uint32_t share)
{
    static gsi_hosts *hosts;
    const int32_t host[] = {a, b, c, c};

    free(hosts);
    if (gsi_hosts_make(host, w.args.n, &hosts))
        abort();
    w.args.hosts = hosts;
    w.args.share = share;
}

/* Between hosts there is nothing but PUTs, single signals and what came with the headers. */
static void test_hosts(void)
{
    ring();
    on_hosts(0, 1, 2, 0);
    accepted("a ring of PUTs over three hosts");
    ring();
    on_hosts(5, 5, 1, 0);
    accepted("a ring of PUTs over two hosts");
    barrier();
    on_hosts(0, 1, 2, 0);
    accepted("a barrier of single signals over hosts");
    eager();
    on_hosts(0, 1, 1, 0);
    accepted("what came with the headers from another host");
    direct();
    on_hosts(3, 3, 3, 1);
    accepted("loads and stores on one host that shares its memory");
    direct();
    on_hosts(3, 3, 3, 0);
    rejected("loads of memory that is not shared", "which only that rank can load and store", STATIC);
    direct();
    on_hosts(0, 0, 1, 1);
    rejected("a load from another host", "reads SEND of rank 2, which is on another host", STATIC);
    direct();
    for (int r = 0; r < 3; r++)
        w.plan[r].steps[0].ndst = 0;
    for (int r = 0; r < 3; r++)
        w.plan[r].steps[0].nsrc = 1;
    w.plan[0].places[0].rank = 0;
    w.plan[0].steps[0].ndst = 1;
    on_hosts(0, 1, 0, 1);
    PLACE(0, 0, 1)->rank = 1;
    PLACE(0, 0, 1)->space = GSI_RECV;
    rejected("a store to another host", "writes RECV of rank 1, which is on another host", STATIC);
    eager();
    on_hosts(0, 1, 1, 0);
    w.plan[0].stage_bytes = w.plan[1].stage_bytes = 64;
    PLACE(0, 1, 0)->off = 4;
    rejected("more of another host's STAGE than came with the header", "which is on another host", STATIC);
    eager();
    on_hosts(0, 1, 1, 0);
    PLACE(0, 1, 1)->rank = 1;
    PLACE(0, 1, 1)->space = GSI_STAGE;
    rejected("a store to another host's header", "writes STAGE of rank 1, which is on another host", STATIC);
    start(GRADSYNC_BARRIER, 3, 0);
    flags(1, 0, 1, 0, 0);
    for (int r = 0; r < 3; r++) {
        notify(r, GSI_ALL);
        await(r, GSI_ALL, 1);
    }
    on_hosts(0, 0, 0, 0);
    accepted("one signal to all on one host");
    on_hosts(0, 0, 1, 0);
    rejected("one signal to all on two hosts", "signals all ranks, but they are on different hosts", STATIC);
}

/* Out of memory is an error of its own, at whichever allocation it strikes. */
static void test_memory(void)
{
    long allocations;
    int ok = 1;

    ring();
    gsi_alloc_fail_at(1000000);
    ok = verify(GSI_VERIFY_OUT_OF_PLACE, 1, 1) == 0;
    allocations = gsi_alloc_count();
    for (long i = 1; i <= allocations; i++) {
        gsi_alloc_fail_at(i);
        if (verify(GSI_VERIFY_OUT_OF_PLACE, 1, 1) != GRADSYNC_ERR_NOMEM)
            ok = 0;
    }
    gsi_alloc_fail_at(0);
    tap_ok(ok && allocations > 3, "each of %ld allocations may fail", allocations);
}

int main(void)
{
    test_accepts();
    test_values();
    test_order();
    test_acc();
    test_waits();
    test_races();
    test_bounds();
    test_flags();
    test_hosts();
    test_memory();
    return tap_done();
}
