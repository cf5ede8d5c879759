/* SPDX-License-Identifier: Apache-2.0 */
#include "contract.h"
#include "base/clock.h"

#include <gradsync/gradsync.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int rounds = 1;

static int post(contract_side *from, int conn, const gsi_rail_work *work, int read)
{
    const gsi_rail_ops *ops = from->rail->ops;

    return read ? ops->read(from->conns[conn], work) : ops->write(from->conns[conn], work);
}

/* A work from `at` of one side's memory to `to` of the other's. */
static gsi_rail_work work_of(contract_pair *pair, int s, size_t at, size_t to, size_t bytes, uint32_t flags)
{
    contract_side *mine = &pair->side[s], *other = &pair->side[!s];

    return (gsi_rail_work){
        .local = mine->memory + at,
        .region = &mine->region,
        .bytes = bytes,
        .remote = (uint64_t)(uintptr_t)(other->memory + to),
        .remote_key = other->region.remote_key,
        .flags = flags,
    };
}

static int is(const gsi_rail_event *e, uint32_t kind, int conn)
{
    return e && e->kind == kind && e->conn == (uint32_t)conn;
}

/* ---- One thing at a time ------------------------------------------------------------ */

static void test_sizes(contract_pair *pair)
{
    static const size_t sizes[] = {1, 7, 8, 64, 1000, 4096, 4097, 65536, 100001, 1 << 20, PAIR_MEMORY / 2 - 3};
    int good = 1;

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int s = i & 1;
        size_t n = sizes[i], at = test_below(64), to = PAIR_MEMORY / 2 + test_below(3);
        gsi_rail_work w = work_of(pair, s, at, to, n, GSI_RAIL_IMM | GSI_RAIL_SIGNAL);
        w.imm = 0xabcd0000u + (uint32_t)i;
        w.id = ~(uint64_t)i;
        test_fill(pair->side[s].memory + at, n, w.imm);
        unsigned char *target = pair->side[!s].memory + to, before = target[-1], after = target[n];
        good &= post(&pair->side[s], 0, &w, 0) == 0;
        const gsi_rail_event *e = pair_next(pair, !s);
        good &= is(e, GSI_RAIL_ARRIVED, 0) && e->imm == w.imm && test_same(target, n, w.imm) && target[-1] == before &&
                target[n] == after;
        e = pair_next(pair, s);
        good &= is(e, GSI_RAIL_SENT, 0) && e->id == w.id;
    }
    test_ok(good, "writes of 1 byte to 2 MiB arrive whole and touch nothing beside");
}

static void test_empty(contract_pair *pair)
{
    int good = 1;

    for (int s = 0; s < 2; s++) {
        gsi_rail_work w = {.imm = 77, .flags = GSI_RAIL_IMM | GSI_RAIL_SIGNAL, .id = 5};
        good &= post(&pair->side[s], 0, &w, 0) == 0;
        const gsi_rail_event *e = pair_next(pair, !s);
        good &= is(e, GSI_RAIL_ARRIVED, 0) && e->imm == 77;
        good &= is(pair_next(pair, s), GSI_RAIL_SENT, 0);
        w = (gsi_rail_work){.flags = GSI_RAIL_SIGNAL | GSI_RAIL_INLINE, .id = 6};
        good &= post(&pair->side[s], 0, &w, 0) == 0;
        e = pair_next(pair, s);
        good &= is(e, GSI_RAIL_SENT, 0) && e->id == 6;
    }
    test_ok(good && pair_quiet(pair), "writes of 0 bytes need no memory; without immediate the peer is told nothing");
}

static void test_inline(contract_pair *pair)
{
    uint32_t max = pair->side[0].rail->max_inline;
    int good = max >= 16;
    unsigned char stack[4096];

    for (uint32_t n = 1; n <= max && n <= sizeof stack; n = n < 8         ? n + 1
                                                            : n == max    ? max + 1
                                                            : max / 2 > n ? n * 2
                                                                          : max) {
        for (uint32_t k = 0; k < 8; k++) {
            gsi_rail_work w = work_of(pair, 0, 0, k * sizeof stack, n,
                                      GSI_RAIL_INLINE | GSI_RAIL_IMM | (k == 7 ? GSI_RAIL_SIGNAL : GSI_RAIL_MORE));
            w.local = stack;
            w.region = NULL;
            w.imm = k;
            test_fill(stack, n, n + k);
            good &= post(&pair->side[0], 0, &w, 0) == 0;
            memset(stack, 0xee, sizeof stack); /* it has been copied */
        }
        for (uint32_t k = 0; k < 8; k++) {
            const gsi_rail_event *e = pair_next(pair, 1);
            good &= is(e, GSI_RAIL_ARRIVED, 0) && e->imm == k &&
                    test_same(pair->side[1].memory + k * sizeof stack, n, n + k);
        }
        good &= is(pair_next(pair, 0), GSI_RAIL_SENT, 0);
    }
    test_ok(good, "an inline source may be used again as soon as write() returns (up to %u bytes)", max);
}

static void test_chain(contract_pair *pair)
{
    int good = 1;

    for (uint32_t round = 0; round < 4; round++) {
        uint32_t n = 1 + test_below(PAIR_DEPTH - 1);
        for (uint32_t i = 0; i < n; i++) {
            int last = i == n - 1;
            gsi_rail_work w =
                work_of(pair, 1, i * 8192, i * 8192, 1 + test_below(8192), GSI_RAIL_IMM | (last ? GSI_RAIL_SIGNAL : 0));
            if (!last || round & 1)
                w.flags |= GSI_RAIL_MORE;
            w.imm = i;
            good &= post(&pair->side[1], 0, &w, 0) == 0;
        }
        if (round & 1)
            pair->side[1].rail->ops->ring(pair->side[1].conns[0]);
        for (uint32_t i = 0; i < n; i++) {
            const gsi_rail_event *e = pair_next(pair, 0);
            good &= is(e, GSI_RAIL_ARRIVED, 0) && e->imm == i;
        }
        good &= is(pair_next(pair, 1), GSI_RAIL_SENT, 0);
    }
    test_ok(good, "chains end by a write without MORE, or by ring(), and arrive in order");
}

static void test_read(contract_pair *pair)
{
    static const size_t sizes[] = {1, 9, 4096, 50000, 1 << 20};
    int good = 1;

    for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++) {
        int s = i & 1;
        size_t n = sizes[i / 2];
        gsi_rail_work w = work_of(pair, s, 3, 64, n, GSI_RAIL_SIGNAL);
        w.id = i + 1;
        test_fill(pair->side[!s].memory + 64, n, (uint32_t)i);
        memset(pair->side[s].memory, 0x5a, n + 8);
        good &= post(&pair->side[s], 0, &w, 1) == 0;
        const gsi_rail_event *e = pair_next(pair, s);
        good &= is(e, GSI_RAIL_SENT, 0) && e->id == i + 1 && test_same(pair->side[s].memory + 3, n, (uint32_t)i) &&
                pair->side[s].memory[2] == 0x5a && pair->side[s].memory[3 + n] == 0x5a;
    }
    test_ok(good && pair_quiet(pair), "reads bring the peer's bytes, and the peer is told nothing");
}

/* The event is late on purpose, and several at once; the fd must tell of each. */
static void test_sleep(contract_pair *pair)
{
    int good = 1, slept = 0;

    for (int i = 0; i < 200 && good; i++) {
        int s = i & 1, early = test_below(3) == 0;
        contract_side *sleeper = &pair->side[s];
        gsi_rail *rail = sleeper->rail;
        gsi_rail_work w = work_of(pair, !s, 0, 0, test_below(3) ? 8 : 20000,
                                  GSI_RAIL_IMM | GSI_RAIL_SOLICIT | (i % 3 ? 0 : GSI_RAIL_SIGNAL));
        struct pollfd p = {rail->fd, POLLIN, 0};
        int n = 0, wakes = 0;
        w.imm = (uint32_t)i;
        if (early)
            good &= post(&pair->side[!s], 0, &w, 0) == 0;
        good &= rail->ops->arm(rail) == 0;
        n = rail->ops->poll(rail, sleeper->log, PAIR_LOG);
        if (!early)
            good &= post(&pair->side[!s], 0, &w, 0) == 0;
        /* A wake-up need not have an event with it; then the owner goes to sleep again. */
        while (n == 0 && good && wakes++ < 100000) {
            gsi_rail_event other[64];
            int r = poll(&p, 1, 20);
            if (r == 0) { /* the peer may have to go on sending */
                good &= pair->side[!s].rail->ops->poll(pair->side[!s].rail, other, 64) == 0 && wakes < 1000;
                continue;
            }
            slept++;
            rail->ops->disarm(rail);
            n = rail->ops->poll(rail, sleeper->log, PAIR_LOG);
            if (n == 0) {
                good &= rail->ops->arm(rail) == 0;
                n = rail->ops->poll(rail, sleeper->log, PAIR_LOG);
            }
        }
        rail->ops->disarm(rail);
        good &= n == 1 && is(&sleeper->log[0], GSI_RAIL_ARRIVED, 0) && sleeper->log[0].imm == w.imm;
        if (i % 3 == 0)
            good &= is(pair_next(pair, !s), GSI_RAIL_SENT, 0);
    }
    test_ok(good && pair_quiet(pair), "a sleeper is woken by what is solicited, before and after arm()");
    test_note("%d of 200 were slept for", slept);
}

/* SENT of the last of many works wakes as well. */
static void test_sleep_sent(contract_pair *pair)
{
    contract_side *side = &pair->side[0];
    gsi_rail *rail = side->rail;
    int good = 1;

    for (int i = 0; i < 50 && good; i++) {
        gsi_rail_work w = work_of(pair, 0, 0, 0, i & 1 ? 8 : 200000, GSI_RAIL_SIGNAL);
        struct pollfd p = {rail->fd, POLLIN, 0};
        int n = 0;
        w.id = (uint64_t)i + 1;
        good &= post(side, 0, &w, 0) == 0;
        for (int wakes = 0; n == 0 && wakes < 100000; wakes++) {
            gsi_rail_event other[4];
            good &= rail->ops->arm(rail) == 0;
            n = rail->ops->poll(rail, side->log, 4);
            while (n == 0 && poll(&p, 1, 0) == 0)
                good &= pair->side[1].rail->ops->poll(pair->side[1].rail, other, 4) == 0;
            rail->ops->disarm(rail);
            if (n == 0)
                n = rail->ops->poll(rail, side->log, 4);
        }
        good &= n == 1 && is(&side->log[0], GSI_RAIL_SENT, 0) && side->log[0].id == w.id;
    }
    test_ok(good, "a sleeper is woken by SENT");
}

/* A rank that goes back to its own work has said idle(), and does not poll: its peer must get SENT all the same. */
static void test_idle(contract_pair *pair)
{
    static const size_t sizes[] = {0, 8, 1000, 5000, 100000};
    int good = 1;

    for (int i = 0; i < 60 && good; i++) {
        int s = i & 1, arrived = 0, sent = 0;
        gsi_rail *mine = pair->side[s].rail, *other = pair->side[!s].rail;
        gsi_rail_work w = work_of(pair, s, 0, 0, sizes[i % 5], GSI_RAIL_IMM | GSI_RAIL_SIGNAL);
        int64_t end = gsi_deadline_ns(gsi_now_ns(), 20000);
        gsi_rail_event e;
        if (w.bytes && w.bytes <= mine->max_inline && i % 3)
            w.flags |= GSI_RAIL_INLINE;
        good &= post(&pair->side[s], 0, &w, 0) == 0;
        while (!arrived && gsi_now_ns() < end) {
            arrived = other->ops->poll(other, &e, 1) == 1 && e.kind == GSI_RAIL_ARRIVED;
            sent += mine->ops->poll(mine, &e, 1) == 1 && e.kind == GSI_RAIL_SENT;
        }
        if (other->ops->idle)
            other->ops->idle(other);
        while (!sent && gsi_now_ns() < end)
            sent += mine->ops->poll(mine, &e, 1) == 1 && e.kind == GSI_RAIL_SENT;
        good &= arrived && sent == 1;
    }
    test_ok(good, "a peer that is idle keeps nobody waiting for SENT");
}

/* ---- Much at once ---------------------------------------------------------------------- */

enum { QUEUE = 2 * PAIR_DEPTH, LONG = 48 << 10 };

/* What is expected of one direction of one connection. Each owns a slice of both memories. */
struct traffic {
    struct expected {
        uint64_t id;
        size_t at, to, bytes;
        uint32_t seed, imm;
        uint8_t read, signal, with_imm;
    } queue[QUEUE];
    uint32_t posted, sent, arrived;
};

static struct traffic traffic[2][64];

/* Memory of side s, connection c: a quarter each for what it sends, its reads' results, what it receives, and what
 * its peer reads; each with room for QUEUE pieces in turn. */
static size_t place(int conns, int c, int quarter, uint32_t number, size_t *room)
{
    size_t slice = PAIR_MEMORY / (size_t)conns / 4, pieces = conns > 8 ? 8 : 32;

    *room = slice / pieces;
    return PAIR_MEMORY / (size_t)conns * (size_t)c + slice * (size_t)quarter + *room * (number % pieces);
}

static int post_random(contract_pair *pair, int s, int c, uint32_t *number)
{
    struct traffic *t = &traffic[s][c];
    struct expected *e = &t->queue[t->posted % QUEUE];
    contract_side *mine = &pair->side[s];
    int conns = mine->nconns, quarter;
    size_t room;

    *e = (struct expected){.id = (uint64_t)test_random() << 32 | ++*number, .seed = test_random()};
    e->read = test_below(6) == 0;
    e->signal = e->read || test_below(3) == 0 || t->posted - t->sent > 4;
    e->with_imm = !e->read && test_below(2);
    e->imm = test_random();
    quarter = e->read ? 1 : 0;
    e->at = place(conns, c, quarter, t->posted, &room);
    e->to = place(conns, c, e->read ? 3 : 2, t->posted, &room);
    size_t max = room < LONG ? room : LONG;
    e->bytes = test_below(8) == 0 ? 0
               : test_below(3)    ? test_below(200 < max ? 200 : (uint32_t)max)
                                  : test_below((uint32_t)max);
    gsi_rail_work w = work_of(pair, s, e->at, e->to, e->bytes, 0);
    unsigned char scratch[256];
    w.id = e->id;
    w.imm = e->imm;
    w.flags =
        (e->signal ? GSI_RAIL_SIGNAL : 0) | (e->with_imm ? GSI_RAIL_IMM : 0) | (test_below(4) ? 0 : GSI_RAIL_SOLICIT);
    if (e->read) {
        test_fill(pair->side[!s].memory + e->to, e->bytes, e->seed);
    } else {
        test_fill(mine->memory + e->at, e->bytes, e->seed);
        if (e->bytes <= mine->rail->max_inline && e->bytes <= sizeof scratch && test_below(2)) {
            memcpy(scratch, w.local, e->bytes);
            w.local = scratch;
            w.region = NULL;
            w.flags |= GSI_RAIL_INLINE;
        }
        if (test_below(3) == 0)
            w.flags |= GSI_RAIL_MORE;
    }
    if (e->bytes == 0 && test_below(2))
        w = (gsi_rail_work){.id = w.id, .imm = w.imm, .flags = w.flags};
    t->posted++;
    return post(mine, c, &w, e->read);
}

/* Checks an event against what was posted. */
static const char *check(contract_pair *pair, int s, const gsi_rail_event *ev)
{
    if (ev->conn >= (uint32_t)pair->side[s].nconns)
        return "an event of no connection";
    if (ev->kind == GSI_RAIL_SENT) {
        struct traffic *t = &traffic[s][ev->conn];
        while (t->sent < t->posted && !t->queue[t->sent % QUEUE].signal)
            t->sent++;
        if (t->sent == t->posted)
            return "SENT without SIGNAL";
        const struct expected *e = &t->queue[t->sent++ % QUEUE];
        if (ev->id != e->id)
            return "SENT out of order";
        const unsigned char *result = e->read ? pair->side[s].memory + e->at : pair->side[!s].memory + e->to;
        return test_same(result, e->bytes, e->seed) ? NULL : "SENT, but the bytes are not there";
    }
    if (ev->kind == GSI_RAIL_ARRIVED) {
        struct traffic *t = &traffic[!s][ev->conn];
        while (t->arrived < t->posted && !t->queue[t->arrived % QUEUE].with_imm)
            t->arrived++;
        if (t->arrived == t->posted)
            return "ARRIVED without IMM";
        const struct expected *e = &t->queue[t->arrived++ % QUEUE];
        if (ev->imm != e->imm)
            return "ARRIVED out of order";
        return test_same(pair->side[s].memory + e->to, e->bytes, e->seed) ? NULL
                                                                          : "ARRIVED, but the bytes are not there";
    }
    return ev->kind == GSI_RAIL_FAILED ? ev->why : "an event of an unknown kind";
}

/* Works whose pieces of memory are in use, or have still to be looked at. */
static uint32_t in_flight(struct traffic *t)
{
    while (t->arrived < t->posted && !t->queue[t->arrived % QUEUE].with_imm)
        t->arrived++;
    return t->posted - (t->sent < t->arrived ? t->sent : t->arrived);
}

/* 1: an event of it is still to come. The last works, if they were not signalled, are not waited for. */
static int expects(struct traffic *t)
{
    uint32_t sent = t->sent;

    while (sent < t->posted && !t->queue[sent % QUEUE].signal)
        sent++;
    in_flight(t);
    return sent < t->posted || t->arrived < t->posted;
}

static void test_random_traffic(const contract_factory *factory, int conns, int max, uint32_t works, const char *what)
{
    static contract_pair pair;
    const char *wrong = NULL;
    uint32_t number = 0, events = 0, pieces = conns > 8 ? 8 : 32;
    int64_t patience = 0;

    if (pair_open(&pair, factory, conns) < 0)
        return;
    memset(traffic, 0, sizeof traffic);
    pair.side[0].max = pair.side[1].max = max;
    while (!wrong) {
        int busy = 0;
        for (uint32_t k = test_below(12); k > 0 && number < works && !wrong; k--) {
            int s = (int)test_below(2), c = (int)test_below((uint32_t)conns);
            if (in_flight(&traffic[s][c]) < pieces && post_random(&pair, s, c, &number) < 0)
                wrong = "a work was refused";
        }
        for (int s = 0; s < 2; s++)
            for (int c = 0; c < conns; c++)
                pair.side[s].rail->ops->ring(pair.side[s].conns[c]);
        pair_poll(&pair);
        for (int s = 0; s < 2 && !wrong; s++)
            while (pair.side[s].seen < pair.side[s].nlog && !wrong) {
                wrong = check(&pair, s, &pair.side[s].log[pair.side[s].seen++]);
                events++;
                patience = 0;
            }
        for (int s = 0; s < 2; s++)
            for (int c = 0; c < conns; c++)
                busy |= expects(&traffic[s][c]);
        if (!busy && number >= works)
            break;
        if (!patience)
            patience = gsi_deadline_ns(gsi_now_ns(), 20000);
        else if (gsi_now_ns() > patience)
            wrong = "nothing has happened for 20 seconds";
    }
    test_ok(!wrong, "%u random works on %d connections, %s%s%s", works, conns, what, wrong ? ": " : "",
            wrong ? wrong : "");
    test_note("%u events", events);
    pair_close(&pair);
}

/* ---- Loss --------------------------------------------------------------------------------- */

static void test_refused(const contract_factory *factory)
{
    static contract_pair pair;
    static const char *const cases[] = {"a key of nobody", "an address before the region", "an end behind the region",
                                        "an address that wraps around", "a region that is gone"};
    int n = (int)(sizeof cases / sizeof *cases);

    if (pair_open(&pair, factory, n + 1) < 0)
        return;
    for (int i = 0; i < n; i++) {
        contract_side *victim = &pair.side[1];
        gsi_rail_work w = work_of(&pair, 0, 0, 0, 4096, GSI_RAIL_SIGNAL | GSI_RAIL_IMM);
        gsi_region other = {0};
        w.id = 40 + (uint64_t)i;
        memset(victim->memory, 0x11, PAIR_MEMORY);
        memset(pair.side[0].memory, 0x22, 4096);
        switch (i) {
        case 0:
            w.remote_key ^= (uint64_t)0x5a5a5a << 8;
            break;
        case 1:
            w.remote -= 8;
            break;
        case 2:
            w.remote += PAIR_MEMORY - 4095;
            break;
        case 3:
            w.remote = ~(uint64_t)0 - 100;
            break;
        default:
            if (victim->rail->ops->reg(victim->rail, victim->memory, 8192, &other) < 0)
                test_ok(0, "reg()");
            w.remote_key = other.remote_key;
            victim->rail->ops->dereg(victim->rail, &other);
            break;
        }
        int good = post(&pair.side[0], i, &w, i == 2) == 0, harmed = 0;
        const gsi_rail_event *e = pair_next(&pair, 0);
        good &= is(e, GSI_RAIL_FAILED, i) && e->why && (e->id == w.id || e->id == 0);
        test_ok(good, "%s: FAILED, '%s'", cases[i], e && e->why ? e->why : "");
        for (size_t k = 0; k < PAIR_MEMORY; k++)
            harmed |= victim->memory[k] != 0x11;
        /* The victim's side fails too, now or when it uses the connection. */
        w = work_of(&pair, 1, 0, 0, 8, GSI_RAIL_SIGNAL);
        good = post(victim, i, &w, 0) == 0;
        e = pair_next(&pair, 1);
        good &= is(e, GSI_RAIL_FAILED, i) && pair_quiet(&pair) && !harmed;
        test_ok(good, "%s: memory is as it was, and each side is told once", cases[i]);
    }
    gsi_rail_work w = work_of(&pair, 0, 0, 0, 100, GSI_RAIL_SIGNAL | GSI_RAIL_IMM);
    int good = post(&pair.side[0], n, &w, 0) == 0 && is(pair_next(&pair, 1), GSI_RAIL_ARRIVED, n) &&
               is(pair_next(&pair, 0), GSI_RAIL_SENT, n);
    test_ok(good, "another connection of the same rails did not notice");
    pair_close(&pair);
}

static void test_disconnect(const contract_factory *factory)
{
    static contract_pair pair;
    int good = 1;

    if (pair_open(&pair, factory, 3) < 0)
        return;
    gsi_rail_work w = work_of(&pair, 0, 0, 0, 300000, GSI_RAIL_IMM | GSI_RAIL_SIGNAL);
    good &= post(&pair.side[0], 1, &w, 0) == 0 && is(pair_next(&pair, 1), GSI_RAIL_ARRIVED, 1) &&
            is(pair_next(&pair, 0), GSI_RAIL_SENT, 1);
    /* Events that are there when a connection is ended do not come any more. */
    for (int i = 0; i < 10; i++)
        good &= post(&pair.side[0], 2, &w, 0) == 0;
    pair.side[0].rail->ops->disconnect(pair.side[0].conns[2]);
    good &= post(&pair.side[1], 2, &w, 0) == 0;
    const gsi_rail_event *e;
    while (is(e = pair_next(&pair, 1), GSI_RAIL_ARRIVED, 2))
        ;
    good &= is(e, GSI_RAIL_FAILED, 2) && e->why;
    test_ok(good, "a connection that the peer ends has FAILED: %s", e && e->why ? e->why : "");
    good = 1;
    for (int i = 0; i < 2 * PAIR_DEPTH; i++)
        good &= post(&pair.side[1], 2, &w, i & 1) == 0;
    pair.side[1].rail->ops->ring(pair.side[1].conns[2]);
    test_ok(good && pair_quiet(&pair), "works on a dead connection are dropped, and FAILED is not told again");
    pair.side[1].rail->ops->disconnect(pair.side[1].conns[2]);
    good = pair_connect(&pair, 2) == 0;
    w.bytes = 8;
    for (int i = 0; i < 10; i++)
        good &= post(&pair.side[0], 2, &w, 0) == 0;
    pair.side[1].max = 1;
    good &= is(pair_next(&pair, 1), GSI_RAIL_ARRIVED, 2);
    pair.side[1].rail->ops->disconnect(pair.side[1].conns[2]);
    pair.side[1].nlog = pair.side[1].seen = pair.side[1].max = 0;
    pair.side[0].rail->ops->disconnect(pair.side[0].conns[2]);
    pair.side[0].nlog = pair.side[0].seen = 0;
    test_ok(good && pair_quiet(&pair), "after disconnect() no event of the connection comes any more");
    good = pair_connect(&pair, 2) == 0;
    for (int c = 0; c < 3; c++)
        good &= post(&pair.side[0], c, &w, 0) == 0 && is(pair_next(&pair, 1), GSI_RAIL_ARRIVED, c) &&
                is(pair_next(&pair, 0), GSI_RAIL_SENT, c);
    test_ok(good && pair_quiet(&pair), "a new connection can take its number; the others did not notice");
    pair_close(&pair);
}

/* ---- Two processes ----------------------------------------------------------------------------- */

struct hello {
    gsi_rail_address address;
    uint64_t base, key;
};

static int swap(int fd, const struct hello *mine, struct hello *theirs)
{
    return write(fd, mine, sizeof *mine) == sizeof *mine && read(fd, theirs, sizeof *theirs) == sizeof *theirs;
}

/* Waits for one event, asleep. */
static int sleep_for(gsi_rail *rail, gsi_rail_event *event)
{
    int64_t end = gsi_deadline_ns(gsi_now_ns(), 30000);

    while (gsi_now_ns() < end) {
        struct pollfd p = {rail->fd, POLLIN, 0};
        if (rail->ops->poll(rail, event, 1) || rail->ops->arm(rail) < 0 || rail->ops->poll(rail, event, 1)) {
            rail->ops->disarm(rail);
            return 1;
        }
        poll(&p, 1, 5000);
        rail->ops->disarm(rail);
    }
    return 0;
}

enum { LAPS = 400 };

/* Sends each lap's bytes back, changed. Exits with 0 if all was well. */
static int run_process(const contract_factory *factory, int side, int fd, pid_t child)
{
    static unsigned char memory[1 << 20];
    gsi_rail_config config = {.gid_index = -1, .numa_node = -1, .connections = 1, .send_depth = 16, .recv_depth = 16};
    struct hello mine = {.base = (uint64_t)(uintptr_t)memory}, theirs;
    gsi_rail *rail;
    gsi_region region;
    gsi_conn *conn;
    gsi_rail_event e;
    int ready = 0, sent = 1;

    if (factory->open(factory->arg, side, &config, &rail) < 0 ||
        rail->ops->reg(rail, memory, sizeof memory, &region) < 0)
        return 1;
    mine.key = region.remote_key;
    if (rail->ops->conn(rail, 9, &conn, &mine.address) < 0 || !swap(fd, &mine, &theirs) ||
        rail->ops->connect(conn, &theirs.address) < 0)
        return 2;
    for (int64_t end = gsi_deadline_ns(gsi_now_ns(), 20000); ready == 0 && gsi_now_ns() < end;)
        ready = rail->ops->ready(conn);
    if (ready != 1)
        return 3;
    for (uint32_t lap = 0; lap < 2 * LAPS; lap++) {
        size_t n = lap % 7 == 0 ? 200000 + lap : lap;
        gsi_rail_work w = {memory,     &region, n,   theirs.base + sizeof memory / 2,
                           theirs.key, lap,     lap, GSI_RAIL_IMM | GSI_RAIL_SIGNAL | GSI_RAIL_SOLICIT};
        if ((lap & 1) == (uint32_t)side) {
            while (!sent)
                if (!sleep_for(rail, &e) || e.kind != GSI_RAIL_SENT)
                    return 4;
                else
                    sent = 1;
            test_fill(memory, n, lap);
            if (rail->ops->write(conn, &w) < 0)
                return 5;
            sent = 0;
        } else {
            do {
                if (!sleep_for(rail, &e) || e.kind == GSI_RAIL_FAILED)
                    return 6;
                sent |= e.kind == GSI_RAIL_SENT;
            } while (e.kind != GSI_RAIL_ARRIVED);
            if (e.imm != lap || e.conn != 9 || !test_same(memory + sizeof memory / 2, n, lap))
                return 7;
        }
    }
    if (side == 1) { /* never answers again */
        if (write(fd, "x", 1) == 1)
            for (;;)
                pause();
        return 8;
    }
    if (read(fd, memory, 1) != 1)
        return 9;
    kill(child, SIGKILL);
    do {
        gsi_rail_work w = {.flags = GSI_RAIL_SIGNAL};
        if (rail->ops->write(conn, &w) < 0 || !sleep_for(rail, &e))
            return 10;
    } while (e.kind == GSI_RAIL_SENT);
    if (e.kind != GSI_RAIL_FAILED || e.conn != 9 || !e.why)
        return 11;
    test_note("killed: %s", e.why);
    rail->ops->close(rail);
    return 0;
}

static void test_processes(const contract_factory *factory)
{
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
        test_ok(0, "socketpair");
        return;
    }
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        close(fds[0]);
        int r = run_process(factory, 1, fds[1], 0);
        fprintf(stderr, "# the other process: %d\n", r);
        _exit(r);
    }
    close(fds[1]);
    int r = run_process(factory, 0, fds[0], child), status = 0;
    close(fds[0]);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    test_ok(r == 0, "two processes that sleep, %d laps, then one is killed: %d", LAPS, r);
}

/* ---- All ------------------------------------------------------------------------------------------ */

void contract_run(const contract_factory *factory)
{
    static contract_pair pair;
    const char *seed = getenv("GRADSYNC_TEST_SEED"), *more = getenv("GRADSYNC_TEST_ROUNDS");
    uint32_t n = seed ? (uint32_t)strtoul(seed, NULL, 0) : (uint32_t)gsi_now_ns();
    int many = factory->connections ? factory->connections : 64;

    if (more)
        rounds = (int)strtol(more, NULL, 0);
    test_note("%s: GRADSYNC_TEST_SEED=%u", factory->name, n);
    test_seed(n);
    if (pair_open(&pair, factory, 1) == 0) {
        const gsi_rail *rail = pair.side[0].rail;
        test_ok(rail->ops->name && rail->name[0] && rail->fd >= 0 && rail->max_bytes >= 1 << 20, "rail %s of %s",
                rail->name, rail->ops->name);
        test_sizes(&pair);
        test_empty(&pair);
        test_inline(&pair);
        test_chain(&pair);
        test_read(&pair);
        test_sleep(&pair);
        test_sleep_sent(&pair);
        test_idle(&pair);
        pair_close(&pair);
    }
    for (int i = 0; i < rounds; i++) {
        test_random_traffic(factory, 1, 0, 3000, "events as they come");
        test_random_traffic(factory, 3, 1, 3000, "one event at a time");
        test_random_traffic(factory, many, 0, 6000, "events as they come");
    }
    if (!factory->no_loss) {
        test_refused(factory);
        test_disconnect(factory);
    }
    if (!factory->one_process)
        test_processes(factory);
}
