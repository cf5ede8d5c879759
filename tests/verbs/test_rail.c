/* SPDX-License-Identifier: Apache-2.0 */
/* The verbs provider against real libibverbs and a real driver, through rail.h only. Both sides run every case; the
 * first tells what both found. Needs RDMA devices: see --help, and tests/rdma/cases/provider.sh. */
#include "cases.h"
#include "pair.h"
#include "tap.h"

#include <errno.h>
#include <gradsync/gradsync.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Side 0's memory: what it sends is in the first half, what it gets in the second; so for side 1. */
enum { HALF = PAIR_BYTES / 2 };

static int one_write(pair *p)
{
    gsi_rail_event event;

    pair_fill(p->mem, 1 + (uint64_t)p->role, 5000);
    EXPECT(!pair_write(p, 0, HALF, 5000, GSI_RAIL_IMM | GSI_RAIL_SIGNAL | GSI_RAIL_SOLICIT,
                       0xC0FFEE00u + (uint32_t)p->role, 77));
    EXPECT(pair_event(p, GSI_RAIL_ARRIVED, &event));
    EXPECT(event.imm == 0xC0FFEE01u - (uint32_t)p->role && event.conn == 7);
    EXPECT(pair_check(p->mem + HALF, 2 - (uint64_t)p->role, 5000));
    EXPECT(pair_event(p, GSI_RAIL_SENT, &event));
    return event.id == 77 && event.conn == 7;
}

/* The data goes by plain writes, and an immediate without data tells of it. */
static int imm_after_writes(pair *p)
{
    gsi_rail_event event;

    pair_fill(p->mem, 11 + (uint64_t)p->role, 3 * 4097);
    for (unsigned i = 0; i < 3; i++)
        EXPECT(!pair_write(p, i * 4097, HALF + i * 4097, 4097, 0, 0, i));
    gsi_rail_work bell = {.id = 99, .imm = 5, .flags = GSI_RAIL_IMM | GSI_RAIL_SIGNAL};
    EXPECT(!p->rail->ops->write(p->conn, &bell));
    EXPECT(pair_event(p, GSI_RAIL_ARRIVED, &event) && event.imm == 5);
    EXPECT(pair_check(p->mem + HALF, 12 - (uint64_t)p->role, 3 * 4097));
    EXPECT(pair_event(p, GSI_RAIL_SENT, &event));
    EXPECT(event.id == 99 && !pair_try_event(p, GSI_RAIL_SENT, &event));
    return 1;
}

static int reads(pair *p)
{
    static const uint64_t sizes[] = {1, 64, 4096, 65537, 1 << 20};
    gsi_rail_event event;

    pair_fill(p->mem, 21 + (uint64_t)p->role, 1 << 20);
    EXPECT(pair_meet(p, 1));
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        memset(p->mem + HALF, 0, sizes[i]);
        EXPECT(!pair_read(p, HALF, 0, sizes[i], GSI_RAIL_SIGNAL, 1000 + i));
        EXPECT(pair_event(p, GSI_RAIL_SENT, &event) && event.id == 1000 + i);
        EXPECT(pair_check(p->mem + HALF, 22 - (uint64_t)p->role, sizes[i]));
    }
    return 1;
}

/* Inline: the source may be changed as soon as write() is back, even while the chain waits. */
static int inlines(pair *p)
{
    uint32_t size = p->rail->max_inline < 60 ? p->rail->max_inline : 60;
    unsigned char local[60];
    gsi_rail_event event;

    EXPECT(p->rail->max_inline >= 8);
    for (unsigned i = 0; i < 100; i++) {
        gsi_rail_work work = {.local = local,
                              .bytes = size,
                              .remote = p->peer_mem + HALF + i * 64,
                              .remote_key = p->peer_key,
                              .imm = i,
                              .flags = GSI_RAIL_INLINE};

        pair_fill(local, 300 + i + (uint64_t)p->role, size);
        work.flags |= i % 10 == 9 ? GSI_RAIL_IMM | GSI_RAIL_SIGNAL : GSI_RAIL_MORE;
        EXPECT(!p->rail->ops->write(p->conn, &work));
        memset(local, 0xEE, sizeof local);
        if (i % 10 == 9)
            EXPECT(pair_event(p, GSI_RAIL_SENT, &event));
    }
    for (unsigned i = 9; i < 100; i += 10)
        EXPECT(pair_event(p, GSI_RAIL_ARRIVED, &event) && event.imm == i);
    for (unsigned i = 0; i < 100; i++)
        EXPECT(pair_check(p->mem + HALF + i * 64, 301 + i - (uint64_t)p->role, size));
    EXPECT(pair_meet(p, 1)); /* both have looked */
    /* The largest, many to a chain: more than what may wait at once. */
    size = p->rail->max_inline;
    unsigned char large[4096];
    for (unsigned i = 0; i < 40 && size <= sizeof large; i++) {
        gsi_rail_work work = {.local = large,
                              .bytes = size,
                              .remote = p->peer_mem + HALF + (uint64_t)i * size,
                              .remote_key = p->peer_key,
                              .imm = 1,
                              .flags = GSI_RAIL_INLINE | (i == 39 ? GSI_RAIL_IMM | GSI_RAIL_SIGNAL : GSI_RAIL_MORE)};

        pair_fill(large, 500 + i + (uint64_t)p->role, size);
        EXPECT(!p->rail->ops->write(p->conn, &work));
        memset(large, 0xEE, size);
    }
    EXPECT(pair_event(p, GSI_RAIL_SENT, &event) && pair_event(p, GSI_RAIL_ARRIVED, &event));
    for (unsigned i = 0; i < 40; i++)
        EXPECT(pair_check(p->mem + HALF + (uint64_t)i * size, 501 + i - (uint64_t)p->role, size));
    return 1;
}

/* Longer chains than the provider holds, ended by ring(), arrive in order. */
static int chains(pair *p)
{
    gsi_rail_event event;

    for (unsigned round = 0; round < 20; round++) {
        unsigned n = 1 + (round * 7) % PAIR_DEPTH;

        for (unsigned i = 0; i < n; i++) {
            memcpy(p->mem + i * 4, &i, 4);
            EXPECT(!pair_write(p, i * 4, HALF + i * 4, 4,
                               GSI_RAIL_IMM | GSI_RAIL_MORE | (i + 1 == n ? GSI_RAIL_SIGNAL : 0), round << 16 | i, i));
        }
        p->rail->ops->ring(p->conn);
        p->rail->ops->ring(p->conn); /* nothing waits: nothing happens */
        for (unsigned i = 0; i < n; i++) {
            EXPECT(pair_event(p, GSI_RAIL_ARRIVED, &event));
            EXPECT(event.imm == (round << 16 | i));
        }
        EXPECT(pair_event(p, GSI_RAIL_SENT, &event) && event.id == n - 1);
        EXPECT(pair_meet(p, 1)); /* both have polled all: the credits are back */
    }
    return 1;
}

/* The peer does not poll until all that it can hold is there: no send may fail or wait for that. */
static int credits(pair *p)
{
    gsi_rail_event event;

    for (unsigned round = 0; round < 50; round++) {
        if (p->role == 0) {
            for (unsigned i = 0; i < PAIR_DEPTH; i++)
                EXPECT(
                    !pair_write(p, 0, HALF, 8, GSI_RAIL_IMM | (i + 1 == PAIR_DEPTH ? GSI_RAIL_SIGNAL : 0), i, round));
            EXPECT(pair_event(p, GSI_RAIL_SENT, &event) && event.id == round);
        }
        EXPECT(pair_meet(p, 1));
        for (unsigned i = 0; p->role == 1 && i < PAIR_DEPTH; i++)
            EXPECT(pair_event(p, GSI_RAIL_ARRIVED, &event) && event.imm == i);
        EXPECT(pair_meet(p, 1));
    }
    /* Too many at once are refused, and harm nothing. */
    for (unsigned i = 0; i < PAIR_DEPTH; i++)
        EXPECT(!pair_write(p, 0, HALF, 8, GSI_RAIL_SIGNAL, 0, i));
    EXPECT(pair_write(p, 0, HALF, 8, GSI_RAIL_SIGNAL, 0, 64) == GRADSYNC_ERR_SYSTEM);
    for (unsigned i = 0; i < PAIR_DEPTH; i++)
        EXPECT(pair_event(p, GSI_RAIL_SENT, &event) && event.id == i);
    return 1;
}

static int large(pair *p)
{
    static const uint64_t sizes[] = {1, 7, 4095, 4096, 4097, 65537, (1 << 20) + 3, 8 << 20};
    gsi_rail_event event;

    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint64_t seed = 40 + 2 * i;

        EXPECT(sizes[i] <= p->rail->max_bytes);
        pair_fill(p->mem + i, seed + (uint64_t)p->role, sizes[i]);
        memset(p->mem + HALF, 0, sizes[i] + 2 * i + 1);
        EXPECT(pair_meet(p, 1));
        EXPECT(!pair_write(p, i, HALF + 2 * i, sizes[i], GSI_RAIL_IMM | GSI_RAIL_SIGNAL, i, i));
        EXPECT(pair_event(p, GSI_RAIL_ARRIVED, &event) && event.imm == i);
        EXPECT(pair_event(p, GSI_RAIL_SENT, &event) && event.id == i);
        EXPECT(pair_check(p->mem + HALF + 2 * i, seed + 1 - (uint64_t)p->role, sizes[i]));
        EXPECT(p->mem[HALF + 2 * i + sizes[i]] == 0);
    }
    return 1;
}

/* Sleeps on the rail's fd, as the endpoint does. */
static int sleep_for(pair *p, uint32_t kind, gsi_rail_event *event)
{
    double until = pair_seconds() + 20;

    while (pair_seconds() < until) {
        struct pollfd fds[2] = {{.fd = p->rail->fd, .events = POLLIN}, {.fd = p->rail->async_fd, .events = POLLIN}};

        if (p->rail->ops->arm(p->rail))
            return 0;
        if (pair_try_event(p, kind, event))
            return 1;
        if (poll(fds, 2, 20000) < 0 && errno != EINTR)
            return 0;
        p->rail->ops->disarm(p->rail);
        if (pair_try_event(p, kind, event))
            return 1;
    }
    return 0;
}

static int sleeping(pair *p)
{
    gsi_rail_event event;

    for (unsigned i = 0; i < 200; i++) {
        if (p->role == (int)(i % 2))
            EXPECT(!pair_write(p, 0, HALF, 64, GSI_RAIL_IMM | GSI_RAIL_SIGNAL | GSI_RAIL_SOLICIT, i, i));
        EXPECT(sleep_for(p, p->role == (int)(i % 2) ? GSI_RAIL_SENT : GSI_RAIL_ARRIVED, &event));
        EXPECT(p->role == (int)(i % 2) ? event.id == i : event.imm == i);
    }
    /* An idle rail does not wake anyone. */
    EXPECT(pair_meet(p, 1));
    EXPECT(!p->rail->ops->arm(p->rail));
    EXPECT(!pair_try_event(p, GSI_RAIL_SENT, &event));
    struct pollfd fd = {.fd = p->rail->fd, .events = POLLIN};
    if (poll(&fd, 1, 0) > 0) /* one wake-up may be left from before */
        p->rail->ops->disarm(p->rail);
    EXPECT(!p->rail->ops->arm(p->rail));
    EXPECT(poll(&fd, 1, 50) == 0);
    return 1;
}

/* Sends in flight when the connection goes: the next one of the same number hears nothing of them. */
static int reconnect(pair *p)
{
    gsi_rail_event event;

    for (unsigned round = 0; round < 10; round++) {
        for (unsigned i = 0; i < 20; i++)
            EXPECT(!pair_write(p, 0, HALF, 65536, GSI_RAIL_IMM | GSI_RAIL_SIGNAL, 0xDEAD, 0xDEAD));
        p->rail->ops->ring(p->conn);
        pair_forget_events(p);
        EXPECT(!pair_connect(p));
        EXPECT(!pair_write(p, 0, HALF, 16, GSI_RAIL_IMM | GSI_RAIL_SIGNAL, round, round));
        EXPECT(pair_event(p, GSI_RAIL_ARRIVED, &event) && event.imm == round);
        EXPECT(pair_event(p, GSI_RAIL_SENT, &event) && event.id == round);
        EXPECT(!pair_try_event(p, GSI_RAIL_FAILED, &event));
        EXPECT(pair_meet(p, 1));
    }
    return 1;
}

/* Three connections of one rail: when one goes, what has come on the others and was not yet polled is not lost. */
static int neighbours(pair *p)
{
    enum { N = 3, EACH = 50 };
    gsi_conn *conns[N], *none;
    gsi_rail_address mine[N], theirs[N];
    gsi_rail_event events[7];

    for (unsigned k = 0; k < N; k++)
        EXPECT(!p->rail->ops->conn(p->rail, 100 + k, &conns[k], &mine[k]));
    EXPECT(p->rail->ops->conn(p->rail, 200, &none, &theirs[0]) == GRADSYNC_ERR_INTERNAL); /* all are in use */
    pair_swap(p, mine, theirs, sizeof mine);
    for (unsigned k = 0; k < N; k++)
        EXPECT(!p->rail->ops->connect(conns[k], &theirs[k]));
    double until = pair_seconds() + 20;
    for (unsigned k = 0; k < N; k++)
        while (p->rail->ops->ready(conns[k]) != 1)
            EXPECT(pair_seconds() < until);
    EXPECT(pair_meet(p, 1));
    for (unsigned i = 0; i < EACH; i++)
        for (unsigned k = 0; k < N; k++) {
            gsi_rail_work work = {.id = k << 16 | i, .imm = k << 16 | i, .flags = GSI_RAIL_IMM | GSI_RAIL_SIGNAL};

            EXPECT(!p->rail->ops->write(conns[k], &work));
        }
    /* One read of the peer on each: when it is back, all before it has arrived there. Nothing is polled meanwhile. */
    volatile uint32_t *back = (volatile uint32_t *)(void *)(p->mem + HALF);
    memset(p->mem, 1, 64), memset(p->mem + HALF, 0, 64);
    EXPECT(pair_meet(p, 1));
    for (unsigned k = 0; k < N; k++) {
        gsi_rail_work work = {.local = p->mem + HALF + 4 * (size_t)k,
                              .region = &p->region,
                              .bytes = 4,
                              .remote = p->peer_mem,
                              .remote_key = p->peer_key};

        EXPECT(!p->rail->ops->read(conns[k], &work));
    }
    while (!back[0] || !back[1] || !back[2])
        EXPECT(pair_seconds() < until);
    EXPECT(pair_meet(p, 1));
    p->rail->ops->disconnect(conns[1]);
    unsigned sent[N] = {0}, arrived[N] = {0};
    while (sent[0] < EACH || sent[2] < EACH || arrived[0] < EACH || arrived[2] < EACH) {
        int n = p->rail->ops->poll(p->rail, events, 7);

        for (int i = 0; i < n; i++) {
            unsigned k = events[i].conn - 100;
            EXPECT(k == 0 || k == 2);
            if (events[i].kind == GSI_RAIL_SENT)
                EXPECT(events[i].id == (k << 16 | sent[k]++));
            else
                EXPECT(events[i].kind == GSI_RAIL_ARRIVED && events[i].imm == (k << 16 | arrived[k]++));
        }
        EXPECT(pair_seconds() < until);
    }
    EXPECT(pair_meet(p, 1));
    p->rail->ops->disconnect(conns[2]);
    p->rail->ops->disconnect(conns[0]);
    return pair_meet(p, 1) && one_write(p);
}

/* A write that the peer's memory refuses: one FAILED, with the work's id, and nothing afterwards. */
static int refused_write(pair *p)
{
    gsi_rail_event event;

    if (p->role == 0) {
        for (unsigned i = 0; i < 5; i++)
            EXPECT(!pair_write(p, 0, HALF, 64, GSI_RAIL_SIGNAL | GSI_RAIL_MORE, 0, i));
        p->peer_key += 0x1000;
        EXPECT(!pair_write(p, 0, HALF, 64, GSI_RAIL_IMM, 0, 55));
        p->peer_key -= 0x1000;
        for (unsigned i = 0; i < 5; i++)
            EXPECT(!pair_write(p, 0, HALF, 64, GSI_RAIL_SIGNAL, 0, 60 + i));
        EXPECT(pair_event(p, GSI_RAIL_FAILED, &event));
        EXPECT(event.id == 55 && event.conn == 7 && event.status != 0 && event.why && event.why[0]);
        tap_note("a refused write: status %d, %s", (int)event.status, event.why);
        for (unsigned i = 0; i < 1000; i++)
            EXPECT(!pair_try_event(p, GSI_RAIL_FAILED, &event));
        EXPECT(!pair_write(p, 0, HALF, 64, GSI_RAIL_SIGNAL, 0, 70)); /* dropped silently */
    }
    EXPECT(pair_meet(p, 1));
    pair_forget_events(p);
    EXPECT(!pair_connect(p));
    return one_write(p);
}

/* The peer's end of the connection vanishes: the retries run out. */
static int peer_gone(pair *p)
{
    gsi_rail_event event;

    pair_close(p);
    p->config.timeout = 10;
    p->config.retry_count = 2;
    EXPECT(!pair_open(p) && !pair_connect(p));
    if (p->role == 1) {
        p->rail->ops->disconnect(p->conn);
        p->conn = NULL;
    }
    EXPECT(pair_meet(p, 1));
    if (p->role == 0) {
        for (unsigned i = 0; i < 10; i++)
            EXPECT(!pair_write(p, 0, HALF, 64, GSI_RAIL_IMM | GSI_RAIL_SIGNAL, 0, 80 + i));
        EXPECT(sleep_for(p, GSI_RAIL_FAILED, &event)); /* failures wake a sleeper */
        if (getenv("GRADSYNC_CONNECT"))                /* the connection manager tells, before the retries run out */
            EXPECT(strstr(event.why, "disconnected"));
        else
            EXPECT(event.id == 80 && event.status == 12 /* IBV_WC_RETRY_EXC_ERR */);
        tap_note("a peer that is gone: status %d, %s", (int)event.status, event.why);
        EXPECT(!pair_try_event(p, GSI_RAIL_SENT, &event));
    }
    EXPECT(pair_meet(p, 1));
    pair_close(p);
    p->config.timeout = p->config.retry_count = 0;
    return !pair_open(p) && !pair_connect(p) && one_write(p);
}

/* A forked child may close what it has inherited, and live on: the parent and its memory do not notice. */
static int forking(pair *p)
{
    int hold[2], status = -1;
    gsi_rail_event event;
    char byte;

    EXPECT(!pipe(hold));
    pid_t child = fork();
    if (child == 0) {
        close(hold[1]);
        p->rail->ops->disconnect(p->conn);
        p->rail->ops->dereg(p->rail, &p->region);
        p->rail->ops->close(p->rail);
        _exit(read(hold[0], &byte, 1) == 0 ? 0 : 1);
    }
    close(hold[0]);
    EXPECT(child > 0 && one_write(p));
    /* Written after the fork: the device must see the parent's page, not one that has become the child's. */
    pair_fill(p->mem, 900 + (uint64_t)p->role, 10000);
    EXPECT(pair_meet(p, 1));
    EXPECT(!pair_read(p, HALF, 0, 10000, GSI_RAIL_SIGNAL, 1));
    EXPECT(pair_event(p, GSI_RAIL_SENT, &event) && pair_check(p->mem + HALF, 901 - (uint64_t)p->role, 10000));
    close(hold[1]);
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    return pair_meet(p, 1) && one_write(p);
}

/* Random sizes, flags and places in both directions at once, with as many in flight as are allowed. */
static int storm(pair *p)
{
    enum { SLOTS = 32, SLOT = 128 << 10, TOTAL = 3000 };
    uint64_t random = 88172645463325252u + (uint64_t)p->role, seen = 0;
    unsigned sent = 0, complete = 0;
    gsi_rail_event event;
    double until = pair_seconds() + 60;

    /* Slot i % SLOTS takes message i: its number, its size, its pattern. One in flight for each slot: the peer
     * answers each by the same number, with the top bit set. */
    unsigned answered = 0, told = 0;
    while ((told < 2 * TOTAL || seen < TOTAL || answered < TOTAL || sent < TOTAL) && pair_seconds() < until) {
        if (sent < TOTAL && sent - answered < SLOTS - 1 && sent - complete < 24) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            uint64_t bytes = random % 3 == 0 ? 16 + random % 4000 : 16 + random % (random % 5 == 0 ? SLOT - 16 : 400);
            uint64_t at = sent % SLOTS * (uint64_t)SLOT;

            memcpy(p->mem + at, &sent, 4);
            memcpy(p->mem + at + 8, &bytes, 8);
            pair_fill(p->mem + at + 16, sent, bytes - 16);
            EXPECT(!pair_write(p, at, HALF + at, bytes,
                               GSI_RAIL_IMM | GSI_RAIL_SIGNAL | (random & 64 ? GSI_RAIL_MORE : 0), sent, sent));
            if (!(random & 64) || random & 128)
                p->rail->ops->ring(p->conn);
            sent++;
        } else {
            p->rail->ops->ring(p->conn);
        }
        while (pair_try_event(p, GSI_RAIL_SENT, &event)) {
            if (event.id < TOTAL)
                complete = (unsigned)event.id + 1;
            told++;
        }
        while (pair_try_event(p, GSI_RAIL_ARRIVED, &event)) {
            if (event.imm >> 31) {
                EXPECT((event.imm & 0x7fffffff) == answered);
                answered++;
                continue;
            }
            uint64_t bytes, at = HALF + event.imm % SLOTS * (uint64_t)SLOT;
            uint32_t number;

            memcpy(&number, p->mem + at, 4);
            memcpy(&bytes, p->mem + at + 8, 8);
            EXPECT(event.imm == seen && number == seen && bytes >= 16 && bytes <= SLOT);
            EXPECT(pair_check(p->mem + at + 16, seen, bytes - 16));
            gsi_rail_work answer = {
                .imm = 1u << 31 | event.imm, .flags = GSI_RAIL_IMM | GSI_RAIL_SIGNAL, .id = TOTAL + seen};
            EXPECT(!p->rail->ops->write(p->conn, &answer));
            seen++;
        }
        EXPECT(!pair_try_event(p, GSI_RAIL_FAILED, &event));
    }
    EXPECT(seen == TOTAL && answered == TOTAL && complete == TOTAL);
    return 1;
}

static const char *down_command, *up_command;

static int run_command(const char *command)
{
    return system(command) == 0; /* NOLINT(cert-env33-c): the caller's own command line */
}

static int port_events(pair *p)
{
    gsi_rail_event event;

    if (p->role == 0) {
        EXPECT(run_command(down_command));
        EXPECT(sleep_for(p, GSI_RAIL_DOWN, &event));
        EXPECT(event.why && event.why[0]);
        gsi_rail_config config = p->config;
        EXPECT(case_refuses(p, config, GRADSYNC_ERR_DEVICE, "not active"));
        EXPECT(!pair_write(p, 0, HALF, 64, GSI_RAIL_SIGNAL, 0, 1));
        EXPECT(run_command(up_command));
        EXPECT(sleep_for(p, GSI_RAIL_UP, &event));
        EXPECT(!pair_try_event(p, GSI_RAIL_UP, &event));
    }
    EXPECT(pair_meet(p, 1));
    pair_forget_events(p);
    EXPECT(!pair_connect(p));
    return one_write(p);
}

int main(int argc, char **argv)
{
    static const struct {
        int (*run)(pair *p);
        const char *name;
    } cases[] = {
        {one_write, "a write with an immediate, both ways"},
        {imm_after_writes, "plain writes are there when the immediate after them is"},
        {reads, "reads"},
        {inlines, "inline data is copied, in chains too"},
        {chains, "chains of any length arrive in order"},
        {credits, "recv_depth immediates need no poll by the receiver, and send_depth is held"},
        {large, "1 byte to 8 MiB"},
        {storm, "3000 random writes in each direction"},
        {sleeping, "arrivals and completions wake a sleeper"},
        {reconnect, "a new connection hears nothing of the old one's sends"},
        {neighbours, "a connection that goes takes nothing of the others with it"},
        {refused_write, "a refused write fails the connection once, and a new one works"},
        {peer_gone, "a peer that is gone"},
        {case_wrong_addresses, "wrong addresses are refused"},
        {case_mixed_managers, "both sides must connect in one way"},
        {forking, "a forked child closes all, and the parent does not notice"},
        {case_wrong_memory, "memory that cannot be registered"},
        {case_memlock, "the limit of locked memory is told with the remedy"},
        {case_no_access, "a device without its nodes, or without access to them"},
        {case_wrong_configs, "what cannot be opened is refused with the reason"},
        {case_memory_policy, "the caller's memory policy stays"},
        {port_events, "the port's events, and a connection after them"},
    };
    static pair p;
    const char *bench = NULL;

    if (pair_options(&p, argc, argv, &bench, &down_command, &up_command))
        return 2;
    int rc = pair_open(&p);
    if (rc)
        fprintf(stderr, "# side %d: %s\n", p.role, case_message());
    if (!pair_meet(&p, !rc))
        return 2;
    tap_note("side %d: %s, inline %u, %.0f Gbit/s", p.role, p.rail->name, p.rail->max_inline, p.rail->gbps);
    rc = pair_connect(&p);
    if (rc)
        fprintf(stderr, "# side %d: %s\n", p.role, case_message());
    if (rc)
        return 2;
    if (bench) {
        rc = pair_bench(&p, bench);
        pair_close(&p);
        return rc;
    }
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (cases[i].run == port_events && !down_command) {
            if (p.role == 0)
                tap_skip(1, "no --down and --up commands are given");
            continue;
        }
        int ok = pair_meet(&p, cases[i].run(&p));

        if (p.role == 0)
            tap_ok(ok, "%s", cases[i].name);
        if (!ok)
            break; /* the connection may be anything now */
    }
    pair_close(&p);
    if (p.role == 1)
        return 0;
    return tap_done();
}
