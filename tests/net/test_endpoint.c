/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The endpoint between hosts over a provider that delays, reorders and fails as a seed says: every byte and signal
 * arrives once and in order as long as one connection lives, nothing hangs, and who cannot be reached any more is
 * named.
 */
#include "tap.h"
#include "world.h"

#include <string.h>

static int rounds = 1; /* times as many, with GRADSYNC_TEST_FULL */

static const world_options usual = {.n = 3,
                                    .rails = 2,
                                    .crossed = 1,
                                    .lazy = 40,
                                    .collectives = 12,
                                    .longest = 60000,
                                    .max_inline = 64,
                                    .gbps = {100, 100, 100, 100, 100, 100, 100, 100}};

/* 1 if it went as it must. */
static int good(const world_options *o, world_result *out)
{
    world_run(o, out);
    if (out->end == WORLD_GOOD && !out->violations && (o->fail_at || o->refuse || !out->warnings))
        return 1;
    static const char *const ends[] = {"good", "wrong", "stuck", "lost"};
    tap_note(
        "seed %llu, %d ranks, %d rails, fail at %llu: %s: rank %d told of %d: %s (%llu events, %llu failures, %llu "
        "violations, %llu denied)",
        (unsigned long long)o->seed, o->n, o->rails, (unsigned long long)o->fail_at, ends[out->end], out->teller,
        out->culprit, out->text, (unsigned long long)out->events, (unsigned long long)out->failures,
        (unsigned long long)out->violations, (unsigned long long)out->denied);
    return 0;
}

static void test_striping(void)
{
    for (int rails = 1; rails <= 8; rails++) {
        int bad = 0;
        world_result result;
        for (int i = 0; i < 6 * rounds; i++) {
            world_options o = usual;
            o.seed = (uint64_t)rails * 1000 + (uint64_t)i;
            o.rails = rails;
            o.n = 2 + i % 3;
            o.lazy = i % 3 * 40;
            o.crossed = i % 2;
            o.plain = i % 4 == 1;
            o.fresh = i % 5 == 2;
            o.max_inline = i % 2 ? 64 : 0;
            o.longest = i % 6 == 3 ? 1500000 : 60000;
            o.max_bytes = i % 6 == 4 ? 70000 : 0;
            o.collectives = o.longest > 1000000 ? 3 : 20;
            bad += !good(&o, &result);
        }
        tap_ok(!bad, "%d rails, nothing fails: %d bad of %d", rails, bad, 6 * rounds);
    }
}

/* Every step of one run in turn is the one at which a connection fails. */
static void test_failures(void)
{
    world_result result;
    world_options o = usual;
    int bad = 0, runs = 0, failed = 0;

    o.seed = 77;
    o.n = 2;
    o.collectives = 6;
    if (!tap_ok(good(&o, &result), "the run that is to be disturbed"))
        return;
    uint64_t events = result.events;
    for (uint64_t at = 1; at < events && bad<4; at += rounds> 1 ? 1 : 1 + events / 400) {
        o.fail_at = at;
        o.seed = 77 + at;
        bad += !good(&o, &result);
        failed += result.failures > 0;
        runs++;
    }
    tap_ok(!bad && failed > runs / 2, "a connection fails at each of %d steps: %d bad, %d had a failure", runs, bad,
           failed);
}

static void test_many_failures(void)
{
    for (int rails = 2; rails <= 8; rails += 2) {
        world_result result;
        int bad = 0;
        uint64_t failures = 0;
        for (int i = 0; i < 25 * rounds && bad < 4; i++) {
            world_options o = usual;
            o.seed = (uint64_t)rails * 5000 + (uint64_t)i;
            o.rails = rails;
            o.n = 2 + i % 3;
            o.lazy = i % 2 ? 70 : 20;
            o.crossed = i % 3 != 0;
            o.plain = i % 4 == 1;
            o.fail_at = 1 + (uint64_t)i * 13;
            o.fail_every = 40 + (uint64_t)i % 100;
            o.collectives = 16;
            bad += !good(&o, &result);
            failures += result.failures;
        }
        tap_ok(!bad && failures, "%d rails, all but one fail: %d bad of %d, %llu failures", rails, bad, 25 * rounds,
               (unsigned long long)failures);
    }
}

static void test_refusals(void)
{
    world_result result;
    int bad = 0;

    for (int i = 0; i < 40 * rounds && bad < 4; i++) {
        world_options o = usual;
        o.seed = 9000 + (uint64_t)i;
        o.rails = 2 + i % 4;
        o.n = 2 + i % 2;
        o.lazy = i % 2 ? 80 : 20;
        o.refuse = 1 + i % 3;
        bad += !good(&o, &result);
    }
    tap_ok(!bad, "connections that take no more work: %d bad of %d", bad, 40 * rounds);
}

/* Memory comes and goes while other connections fail. */
static void test_sharing(void)
{
    world_result result;
    int bad = 0;
    uint64_t denied = 0;

    for (int i = 0; i < 60 * rounds && bad < 4; i++) {
        world_options o = usual;
        o.seed = 12000 + (uint64_t)i;
        o.rails = 2 + i % 3;
        o.fresh = 1;
        o.collectives = 30;
        o.longest = 20000;
        bad += !good(&o, &result);
        denied += result.denied;
    }
    tap_ok(!bad && !denied,
           "memory of every collective shared and let go of: %d bad of %d, %llu writes to what was gone", bad,
           60 * rounds, (unsigned long long)denied);
}

static void test_lost(void)
{
    world_result result;
    int bad = 0, lost = 0, runs = 30 * rounds;

    for (int i = 0; i < runs && bad < 4; i++) {
        world_options o = usual;
        o.seed = 15000 + (uint64_t)i;
        o.rails = 1 + i % 3;
        o.n = 2;
        o.fail_at = 1 + (uint64_t)i * 7;
        o.fail_every = 1;
        o.fail_last = 1;
        o.collectives = 40;
        world_run(&o, &result);
        lost += result.end == WORLD_LOST;
        if (result.violations || result.end == WORLD_WRONG || result.end == WORLD_STUCK ||
            (result.end == WORLD_LOST && (result.culprit != !result.teller || !strstr(result.text, "lost")))) {
            tap_note("seed %llu: end %d, rank %d told of %d: %s", (unsigned long long)o.seed, result.end, result.teller,
                     result.culprit, result.text);
            bad++;
        }
    }
    tap_ok(!bad && lost == runs, "no connection is left: the rank is named, %d times of %d", lost, runs);
}

/* Rank 0 has finished and leaves; rank 1 still waits for rank 2, and must not take rank 0 for missing. */
static void test_leaving(void)
{
    world w;
    world_options o = usual;
    gsi_header header = {.count = 1};
    char why[300] = "";
    int culprit = -1, rc = 0;

    o.seed = 5;
    if (!tap_ok(!world_make(&w, &o, why, sizeof why), "three ranks: %s", why))
        return;
    for (int r = 0; r < 3; r++)
        w.eps[r]->ops->enter(w.eps[r], 1, &header, "", 0);
    for (int i = 0; i < 300; i++)
        w.eps[i % 3]->ops->progress(w.eps[i % 3]);
    w.eps[0]->ops->finish(w.eps[0], 1);
    w.eps[0]->ops->destroy(w.eps[0]);
    w.eps[0] = NULL;
    for (int i = 0; i < 300 && !rc; i++) {
        w.eps[1 + i % 2]->ops->progress(w.eps[1 + i % 2]);
        rc = w.eps[1]->ops->check(w.eps[1], 1, &culprit, why, sizeof why);
    }
    tap_ok(!rc, "who has finished and left is not missed: %s", rc ? why : "");
    rc = w.eps[1]->ops->check(w.eps[1], 2, &culprit, why, sizeof why);
    tap_ok(rc == GRADSYNC_ERR_PEER_LOST && culprit == 0 && strstr(why, "left"), "but in the next collective: %s", why);
    world_end(&w);
}

int main(int argc, char **argv)
{
    rounds = getenv("GRADSYNC_TEST_FULL") ? 4 : 1;
    if (argc > 2 && !strcmp(argv[1], "--rounds"))
        rounds = atoi(argv[2]);
    test_striping();
    test_failures();
    test_many_failures();
    test_refusals();
    test_sharing();
    test_lost();
    test_leaving();
    return tap_done();
}
