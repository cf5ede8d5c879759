/* SPDX-License-Identifier: Apache-2.0 */
#include "byhand.h"

#include <stdio.h>

#include <string.h>

#include "tap.h"

world w;
static char why[512];

/* A place by element, not by byte. */
gsi_place at(int rank, int space, uint64_t element, int from)
{
    return (gsi_place){.off = element * w.args.esize, .rank = rank, .from = from, .space = (uint8_t)space};
}

void start(int coll, int n, uint64_t count)
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

gsi_step *add(int r, int kind, int flags, int peer, uint32_t value, uint64_t elements)
{
    gsi_plan *p = &w.plan[r];
    gsi_step *s = &p->steps[p->nsteps++];

    *s = (gsi_step){.kind = (uint8_t)kind, .flags = (uint8_t)flags, .peer = peer, .value = value};
    s->place = p->nplaces;
    s->bytes = elements * w.args.esize;
    p->streams[0].count = p->nsteps;
    return s;
}

void source(int r, gsi_place place)
{
    gsi_plan *p = &w.plan[r];

    p->steps[p->nsteps - 1].nsrc++;
    p->places[p->nplaces++] = place;
}

void target(int r, gsi_place place)
{
    gsi_plan *p = &w.plan[r];

    p->steps[p->nsteps - 1].ndst++;
    p->places[p->nplaces++] = place;
}

void copy(int r, uint64_t elements, gsi_place src, gsi_place dst)
{
    add(r, GSI_STEP_COPY, 0, 0, 0, elements);
    source(r, src);
    target(r, dst);
}

void put(int r, int peer, int notify, uint64_t elements, gsi_place src, gsi_place dst)
{
    add(r, GSI_STEP_PUT, notify ? GSI_STEP_NOTIFY : 0, peer, 0, elements);
    source(r, src);
    target(r, dst);
}

void notify(int r, int peer)
{
    add(r, GSI_STEP_SIGNAL, 0, peer, 0, 0);
}

void await(int r, int peer, uint32_t value)
{
    add(r, GSI_STEP_WAIT, 0, peer, value, 0);
    for (int p = 0; p < w.args.n; p++)
        if (p != r && (peer == GSI_ALL || peer == p) && w.awaits[r][p] < value)
            w.awaits[r][p] = value;
}

void flags(int gather, int loadstore, int signal_all, int user_memory, int ordered)
{
    for (int r = 0; r < w.args.n; r++) {
        w.plan[r].gather = (uint8_t)gather;
        w.plan[r].loadstore = (uint8_t)loadstore;
        w.plan[r].signal_all = (uint8_t)signal_all;
        w.plan[r].user_memory = (uint8_t)user_memory;
        w.plan[r].ordered = (uint8_t)ordered;
    }
}

void streams_of(int r, uint32_t first)
{
    gsi_plan *p = &w.plan[r];

    p->nstreams = 2;
    p->streams[0] = (gsi_stream){0, first};
    p->streams[1] = (gsi_stream){first, p->nsteps - first};
}

int verify(int alias, int races, uint64_t seed)
{
    gsi_plan *plans[MAX_RANKS];
    gsi_verify_opts opts = {.alias = alias, .seed = seed, .races = races};

    for (int r = 0; r < w.args.n; r++)
        plans[r] = &w.plan[r];
    return gsi_plan_verify(plans, &w.args, &opts, why, sizeof why);
}

void accepted(const char *name)
{
    int rc = 0;

    for (int alias = GSI_VERIFY_OUT_OF_PLACE; alias <= GSI_VERIFY_MIXED; alias++)
        for (int races = 0; races < 2; races++)
            for (uint64_t seed = 0; seed < SEEDS && !rc; seed++)
                rc = verify(alias, races, seed);
    tap_ok(rc == 0, "accepts %s%s%s", name, rc ? ": " : "", why);
}

static int expected(const char *text, int rc)
{
    return rc == GRADSYNC_ERR_INVALID && strstr(why, text);
}

/* STATIC, ALWAYS: by every schedule; SOMETIMES: by one at least; RACES: with races by every one. */
void rejected(const char *name, const char *text, int how)
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
void direct(void)
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
void ring(void)
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
void slots(void)
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
void chain(void)
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
void eager(void)
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
void scatter(void)
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
void two_streams(void)
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
void barrier(void)
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
void burst(void)
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
void alone(void)
{
    start(GRADSYNC_ALL_REDUCE, 1, 5);
    add(0, GSI_STEP_REDUCE, GSI_STEP_FINAL, 0, 0, 5);
    source(0, at(0, GSI_SEND, 0, 0));
    target(0, at(0, GSI_RECV, 0, 0));
}

void held(int ok, const char *name)
{
    tap_ok(ok, "%s", name);
}

int done(void)
{
    return tap_done();
}
