/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verifier, tried on plans written by hand: it accepts the right ones under
 * every alias and schedule, and rejects each of many defects for the right reason.
 */
#include "byhand.h"

#include <string.h>

#include "base/alloc.h"

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
    held(ok && allocations > 3, "every allocation may fail");
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
    test_memory();
    return done();
}
