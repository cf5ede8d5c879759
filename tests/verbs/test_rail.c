/* SPDX-License-Identifier: Apache-2.0 */
/* The verbs provider against real libibverbs and a real driver, through rail.h only. Both sides run every case; the
 * first tells what both found. Needs RDMA devices: see --help, and lab.sh for the ones of the lab. */
#include "pair.h"
#include "tap.h"

#include <errno.h>
#include <gradsync/gradsync.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Side 0's memory: what it sends is in the first half, what it gets in the second; so for side 1. */
enum { HALF = PAIR_BYTES / 2 };

#define EXPECT(cond)                                                                                                   \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "# side %d, line %d: %s\n", p->role, __LINE__, #cond);                                     \
            return 0;                                                                                                  \
        }                                                                                                              \
    } while (0)

static const char *last_message(void)
{
    static gradsync_error_info info;

    info = (gradsync_error_info)GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    return info.message;
}

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

static int wrong_addresses(pair *p)
{
    gsi_rail_address good, bad = {{0}};
    gsi_conn *conn = NULL;

    EXPECT(!p->rail->ops->conn(p->rail, 3, &conn, &good));
    EXPECT(p->rail->ops->connect(conn, &bad) == GRADSYNC_ERR_DEVICE);
    bad = good;
    bad.blob[4] ^= 1; /* of the other link layer */
    EXPECT(p->rail->ops->connect(conn, &bad) == GRADSYNC_ERR_DEVICE);
    EXPECT(p->rail->ops->ready(conn) == 0);
    EXPECT(p->rail->ops->write(conn, &(gsi_rail_work){.flags = GSI_RAIL_IMM}) == GRADSYNC_ERR_SYSTEM);
    p->rail->ops->disconnect(conn);
    return 1;
}

/* One side by rdma_cm, the other not. */
static int mixed_managers(pair *p)
{
    const char *was = getenv("GRADSYNC_CONNECT");
    int cm = was && !strcmp(was, "cm");
    gsi_rail *other = NULL;
    gsi_rail_address mine, theirs;
    gsi_conn *conn = NULL;

    setenv("GRADSYNC_CONNECT", "pigeon", 1);
    EXPECT(p->open(&p->config, &other) == GRADSYNC_ERR_INVALID && strstr(last_message(), "pigeon"));
    setenv("GRADSYNC_CONNECT", cm != (p->role == 1) ? "cm" : "exchange", 1);
    int rc = p->open(&p->config, &other);
    if (was)
        setenv("GRADSYNC_CONNECT", was, 1);
    else
        unsetenv("GRADSYNC_CONNECT");
    /* A GID that is no IP address cannot be connected to by rdma_cm. */
    EXPECT(!rc || (rc == GRADSYNC_ERR_UNSUPPORTED && strstr(last_message(), "IP address")));
    if (!pair_meet(p, !rc)) {
        if (!rc)
            other->ops->close(other);
        return 1;
    }
    EXPECT(!other->ops->conn(other, 1, &conn, &mine));
    pair_swap(p, &mine, &theirs, sizeof mine);
    EXPECT(other->ops->connect(conn, &theirs) == GRADSYNC_ERR_INVALID && strstr(last_message(), "GRADSYNC_CONNECT"));
    other->ops->close(other);
    return 1;
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

static int wrong_memory(pair *p)
{
    gsi_region region;
    void *read_only = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    EXPECT(p->rail->ops->reg(p->rail, read_only, 8192, &region) == GRADSYNC_ERR_UNSUPPORTED);
    munmap(read_only, 8192);
    EXPECT(p->rail->ops->reg(p->rail, read_only, 8192, &region) == GRADSYNC_ERR_UNSUPPORTED);
    EXPECT(p->rail->ops->reg(p->rail, p->mem, 0, &region) == GRADSYNC_ERR_UNSUPPORTED);
    /* Many, given back in another order. */
    gsi_region many[20];
    for (unsigned i = 0; i < 20; i++)
        EXPECT(!p->rail->ops->reg(p->rail, p->mem + 4096 * (size_t)i, 4096, &many[i]));
    for (unsigned i = 0; i < 20; i++)
        p->rail->ops->dereg(p->rail, &many[i * 7 % 20]);
    return 1;
}

/* As a user without privileges and with a small limit of locked memory. */
static int memlock(pair *p)
{
    pid_t child = fork();

    if (child == 0) {
        struct rlimit limit = {65536, 65536};
        gsi_rail *rail;
        gsi_region region;
        int rc;

        if (setrlimit(RLIMIT_MEMLOCK, &limit) || setgid(65534) || setuid(65534))
            _exit(2);
        rc = p->open(&p->config, &rail);
        if (!rc)
            rc = rail->ops->reg(rail, p->mem, 1 << 20, &region);
        if (rc != GRADSYNC_ERR_NOMEM || !strstr(last_message(), "ulimit -l unlimited"))
            fprintf(stderr, "# %d: %s\n", rc, last_message());
        _exit(rc == GRADSYNC_ERR_NOMEM && strstr(last_message(), "ulimit -l unlimited") ? 0 : 1);
    }
    int status = -1;
    EXPECT(waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status) == 0;
}

static int refuses(pair *p, gsi_rail_config config, int code, const char *text)
{
    gsi_rail *rail = NULL;
    int rc = p->open(&config, &rail);

    if (rc != code || !strstr(last_message(), text)) {
        fprintf(stderr, "# %d '%s', not %d '%s'\n", rc, rc ? last_message() : "", code, text);
        if (!rc)
            rail->ops->close(rail);
        return 0;
    }
    return 1;
}

static int wrong_configs(pair *p)
{
    gsi_rail_config c = p->config;

    strcpy(c.device, "no_such_0");
    EXPECT(refuses(p, c, GRADSYNC_ERR_DEVICE, p->config.device));
    c = p->config, c.port = 9;
    EXPECT(refuses(p, c, GRADSYNC_ERR_DEVICE, "no port 9"));
    c = p->config, c.gid_index = 200;
    EXPECT(refuses(p, c, GRADSYNC_ERR_DEVICE, "index 200"));
    c = p->config, c.gid_index = 256;
    EXPECT(refuses(p, c, GRADSYNC_ERR_INVALID, "GID index 256"));
    c = p->config, c.mtu = 1500;
    EXPECT(refuses(p, c, GRADSYNC_ERR_INVALID, "1500"));
    c = p->config, c.connections = 60000;
    EXPECT(refuses(p, c, GRADSYNC_ERR_UNSUPPORTED, "completion queue"));
    c = p->config, c.traffic_class = 256;
    EXPECT(refuses(p, c, GRADSYNC_ERR_INVALID, "traffic class"));
    c = p->config, c.retry_count = 8;
    EXPECT(refuses(p, c, GRADSYNC_ERR_INVALID, "retries"));
    return 1;
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

/* Queues go to the rail's node; the caller's own memory goes on going where it did. */
static int memory_policy(pair *p)
{
    enum { INTERLEAVE = 3, BITS = 1024 };
    unsigned long mine[BITS / 64] = {1}, now[BITS / 64] = {0};
    gsi_rail_config config = p->config;
    gsi_rail_address address;
    gsi_rail *rail;
    gsi_conn *conn;
    int mode = -1;

    if (syscall(SYS_set_mempolicy, INTERLEAVE, mine, BITS)) {
        tap_note("no memory policies here: %s", strerror(errno));
        return 1;
    }
    config.numa_node = 0;
    EXPECT(!p->open(&config, &rail));
    EXPECT(rail->numa_node == 0);
    EXPECT(!rail->ops->conn(rail, 0, &conn, &address));
    EXPECT(!syscall(SYS_get_mempolicy, &mode, now, BITS, NULL, 0));
    EXPECT(mode == INTERLEAVE && now[0] == 1);
    EXPECT(!syscall(SYS_set_mempolicy, 0, NULL, 0));
    rail->ops->disconnect(conn);
    rail->ops->close(rail);
    EXPECT(!syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0));
    return mode == 0;
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
        EXPECT(refuses(p, config, GRADSYNC_ERR_DEVICE, "not active"));
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
        {refused_write, "a refused write fails the connection once, and a new one works"},
        {peer_gone, "a peer that is gone"},
        {wrong_addresses, "wrong addresses are refused"},
        {mixed_managers, "both sides must connect in one way"},
        {forking, "a forked child closes all, and the parent does not notice"},
        {wrong_memory, "memory that cannot be registered"},
        {memlock, "the limit of locked memory is told with the remedy"},
        {wrong_configs, "what cannot be opened is refused with the reason"},
        {memory_policy, "the caller's memory policy stays"},
        {port_events, "the port's events, and a connection after them"},
    };
    static pair p;
    const char *bench = NULL;

    if (pair_options(&p, argc, argv, &bench, &down_command, &up_command))
        return 2;
    int rc = pair_open(&p);
    if (rc)
        fprintf(stderr, "# side %d: %s\n", p.role, last_message());
    if (!pair_meet(&p, !rc))
        return 2;
    tap_note("side %d: %s, inline %u, %.0f Gbit/s", p.role, p.rail->name, p.rail->max_inline, p.rail->gbps);
    rc = pair_connect(&p);
    if (rc)
        fprintf(stderr, "# side %d: %s\n", p.role, last_message());
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
