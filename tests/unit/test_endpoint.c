/* SPDX-License-Identifier: Apache-2.0 */
/* The shared-memory endpoint, driven by hand: two ranks in one thread. */
#include "tap.h"
#include "unit.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "plan/plan.h"
#include "transport/shm/shm.h"

enum { PAGE = 4096 };

typedef struct side {
    gsi_endpoint *ep;
    int rank, rc, listen_fd;
    gsi_shm_peer peers[2];
} side;

static void *create(void *arg)
{
    side *s = arg;
    s->rc = gsi_shm_create(s->listen_fd, s->rank, 2, s->peers, gsi_deadline_ns(gsi_now_ns(), 60000), NULL, &s->ep);
    return NULL;
}

static int open_pair(side *sides)
{
    pthread_t threads[2];
    memset(sides, 0, 2 * sizeof *sides);
    for (int r = 0; r < 2; r++) {
        sides[r].rank = r;
        if (shm_listen(&sides[r].listen_fd, &sides[0].peers[r].address))
            return -1;
        snprintf(sides[0].peers[r].host, sizeof sides[0].peers[r].host, "unit");
    }
    memcpy(sides[1].peers, sides[0].peers, sizeof sides[0].peers);
    for (int r = 0; r < 2; r++)
        pthread_create(&threads[r], NULL, create, &sides[r]);
    for (int r = 0; r < 2; r++)
        pthread_join(threads[r], NULL);
    return sides[0].rc | sides[1].rc;
}

static void test_entering(gsi_endpoint *a, gsi_endpoint *b)
{
    gsi_header h = {.fingerprint = 42, .count = 7, .kind = GSI_HEADER_PAYLOAD, .scale = 2};
    char payload[1000];
    int next = 0;

    memset(payload, 'x', sizeof payload);
    tap_ok(!b->ops->entered(b, 1, &next) && next == 0, "nobody has entered at first");
    a->ops->enter(a, 1, &h, payload, sizeof payload);
    tap_ok(b->ops->entered(b, 1, &next) == 1, "an entry is seen");
    const gsi_header *seen = b->ops->header(b, 1, 0);
    tap_ok(seen->fingerprint == 42 && seen->count == 7 && seen->scale == 2 &&
               !memcmp(b->ops->slot(b, 1, 0, sizeof payload), payload, sizeof payload),
           "its header and payload with it");
    a->ops->enter(a, 2, &h, payload, GSI_INLINE_BYTES);
    next = 0;
    tap_ok(b->ops->entered(b, 2, &next) &&
               !memcmp(b->ops->slot(b, 2, 0, GSI_INLINE_BYTES), payload, GSI_INLINE_BYTES) &&
               b->ops->slot(b, 2, 0, GSI_INLINE_BYTES) == (const void *)b->ops->header(b, 2, 0)->u.inl,
           "a small payload lies in the header itself");
    a->ops->signal_all(a, 1);
    a->ops->signal_all(a, 1);
    tap_ok(b->ops->signals(b, 1, 3, 0, 1) == 2 && b->ops->signals(b, 2, 3, 0, 1) == 0,
           "signals to all are counted, for their collective only");
}

/* The flags hold the low half of seq; a pair may have been idle for any number of collectives. */
static void test_wrap(gsi_endpoint *a, gsi_endpoint *b)
{
    static const uint64_t later[] = {4, 1u << 30, (1ull << 31) - 4, 1ull << 31, (1ull << 31) + 4, (3ull << 31) - 4};
    int bad = 0;

    a->ops->signal(a, 8, 2, 1);
    tap_ok(b->ops->signals(b, 8, 2, 0, 0) == 1 && b->ops->signals(b, 8, 1, 0, 0) == 0, "a signal to one is seen");
    for (size_t i = 0; i < sizeof later / sizeof *later; i++)
        bad += b->ops->signals(b, 8 + later[i], 2, 0, 0) != 0;
    tap_ok(!bad, "an old signal does not count for a later collective, however much later");
    /* Across the wrap of the low half. */
    gsi_header h = {.fingerprint = 1, .scale = 1};
    for (uint64_t seq = (1ull << 32) - 6; seq < (1ull << 32) + 6; seq++) {
        int next = 0;
        bad += b->ops->entered(b, seq, &next);
        a->ops->enter(a, seq, &h, NULL, 0);
        b->ops->enter(b, seq, &h, NULL, 0);
        next = 0;
        bad += !b->ops->entered(b, seq, &next);
        a->ops->signal_all(a, seq);
        a->ops->signal(a, seq, 0, 1);
        a->ops->signal(a, seq, 0, 1);
        bad += b->ops->signals(b, seq, 0, 0, 1) != 1 || b->ops->signals(b, seq, 0, 0, 0) != 2;
        a->ops->finish(a, seq);
        bad += a->ops->done(a) == seq;
        b->ops->finish(b, seq);
        bad += a->ops->done(a) != seq || b->ops->done(b) != seq;
    }
    tap_ok(!bad, "entries, signals and ends are right across 2^32 collectives");
}

static void test_puts(gsi_endpoint *a, gsi_endpoint *b, uint64_t seq)
{
    char *stage = b->ops->stage(b, 1);
    uint64_t room = b->stage_bytes;
    gsi_target end = {room - 5, 0, GSI_STAGE}, over = {room - 4, 0, GSI_STAGE}, far = {UINT64_MAX - 2, 0, GSI_STAGE};

    tap_ok(!a->ops->put(a, seq, 0, 1, &end, "hello", 5, 1) && !memcmp(stage + room - 5, "hello", 5) &&
               b->ops->signals(b, seq, 0, 0, 0) == 1 && a->ops->flushed(a, seq, 0, 1),
           "a put lands at the end of the staging memory and is told");
    tap_ok(a->ops->put(a, seq, 0, 1, &over, "hello", 5, 1) == GRADSYNC_ERR_INTERNAL &&
               a->ops->put(a, seq, 0, 1, &far, "hello", 5, 1) == GRADSYNC_ERR_INTERNAL &&
               b->ops->signals(b, seq, 0, 0, 0) == 1,
           "a put beyond it is refused, and not told");
}

static gsi_memory make_memory(uint32_t id, uint64_t bytes)
{
    gsi_memory mem;
    if (gsi_host_alloc(bytes, 0, -1, &mem))
        abort();
    mem.id = id;
    return mem;
}

static void test_memory(gsi_endpoint *a, gsi_endpoint *b, uint64_t seq)
{
    gsi_memory mem = make_memory(77, 3 * PAGE);
    void *base;
    uint64_t bytes;

    tap_ok(!b->ops->resolve(b, 0, 77, &base, &bytes) && !base, "memory is unknown before it is shared");
    tap_ok(!a->ops->share(a, &mem) && !a->ops->share(a, &mem), "it is shared, once");
    tap_ok(!b->ops->resolve(b, 0, 77, &base, &bytes) && base && base != mem.addr && bytes == 3 * PAGE,
           "the peer has it at an address of its own");
    mem.addr[PAGE] = 'm';
    tap_ok(base && ((char *)base)[PAGE] == 'm', "it is the same memory");
    gsi_target end = {3 * PAGE - 5, 77, GSI_RECV}, over = {3 * PAGE - 4, 77, GSI_RECV};
    tap_ok(!b->ops->put(b, seq, 1, 0, &end, "hello", 5, 0) && !memcmp(mem.addr + 3 * PAGE - 5, "hello", 5) &&
               b->ops->put(b, seq, 1, 0, &over, "hello", 5, 0) == GRADSYNC_ERR_INTERNAL,
           "puts go there, to the last byte");
    void *gone;
    a->ops->unshare(a, 77);
    tap_ok(!b->ops->resolve(b, 0, 77, &gone, &bytes) && !gone && !unit_is_mapped(base),
           "the peer lets go of it when it is told to");
    /* While b is in a collective it keeps the pages, since it may have bound them. */
    gsi_header h = {.fingerprint = 1, .scale = 1};
    mem.id = 78;
    a->ops->share(a, &mem);
    b->ops->enter(b, seq + 1, &h, NULL, 0);
    b->ops->resolve(b, 0, 78, &base, &bytes);
    a->ops->unshare(a, 78);
    b->ops->resolve(b, 0, 78, &gone, &bytes);
    tap_ok(base && !gone && unit_is_mapped(base) && ((volatile char *)base)[PAGE] == 'm',
           "in a collective what is freed can still be read");
    b->ops->finish(b, seq + 1);
    tap_ok(!unit_is_mapped(base), "and goes with its end");
    gsi_host_free(&mem);
}

/* Neither rank ever resolves: what they tell each other must not pile up until the sockets are full. */
static void test_unread(gsi_endpoint *a, gsi_endpoint *b)
{
    gsi_memory mem = make_memory(0, PAGE);
    int stuck = 0, fds = unit_count_fds(), mappings = unit_count_mappings();

    for (uint32_t id = 1000; id < 3000; id++) {
        mem.id = id;
        for (int tries = 0; a->ops->share(a, &mem); tries++) {
            uint32_t ticket = b->ops->sleep_begin(b); /* what a rank does that waits for the other */
            (void)ticket;
            b->ops->sleep_end(b);
            if (tries > 3) {
                stuck = 1;
                break;
            }
        }
        a->ops->unshare(a, id);
        if (id % 500 == 0 && b->ops->share(b, &mem) < 0)
            stuck = 1;
    }
    b->ops->sleep_begin(b);
    b->ops->sleep_end(b);
    tap_ok(!stuck, "a peer that only waits reads what it is told of memory");
    tap_ok(unit_count_fds() == fds && unit_count_mappings() <= mappings + 4,
           "and keeps nothing of what has been freed");
    gsi_host_free(&mem);
}

/* What a peer offers is checked before it is mapped. */
static void test_bad_memory(gsi_endpoint *a, gsi_endpoint *b)
{
    void *base;
    uint64_t bytes;
    gsi_memory good = make_memory(0, 2 * PAGE);
    int unsealed = memfd_create("unit", MFD_CLOEXEC), bad = 0;
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (ftruncate(unsealed, 2 * PAGE))
        bad = 1;
    struct {
        const char *what;
        int fd;
        uint64_t bytes, off;
    } offers[] = {{"a memfd that can shrink", unsealed, 2 * PAGE, 0},
                  {"a file", file, PAGE, 0},
                  {"more than there is", good.fd, 3 * PAGE, 0},
                  {"an offset beyond the end", good.fd, PAGE, 2 * PAGE},
                  {"an offset that wraps", good.fd, 2 * PAGE, UINT64_MAX - PAGE + 1},
                  {"an odd offset", good.fd, PAGE, 16},
                  {"an odd length", good.fd, 100, 0},
                  {"nothing", good.fd, 0, 0}};
    int mappings = unit_count_mappings();
    for (size_t i = 0; i < sizeof offers / sizeof *offers; i++) {
        gsi_memory mem = good;
        mem.id = 5000 + (uint32_t)i;
        mem.fd = offers[i].fd;
        mem.share_bytes = offers[i].bytes;
        mem.file_off = offers[i].off;
        a->ops->share(a, &mem);
        int rc = b->ops->resolve(b, 0, mem.id, &base, &bytes);
        if (rc != GRADSYNC_ERR_INTERNAL || base || !strstr(unit_error().message, "rank 0")) {
            tap_note("%s: %d %s", offers[i].what, rc, unit_error().message);
            bad++;
        }
    }
    tap_ok(!bad && unit_count_mappings() == mappings, "memory that could fault is not mapped, and the offer named");
    close(unsealed);
    close(file);
    gsi_host_free(&good);
}

static void *sleeper(void *arg)
{
    gsi_endpoint *ep = arg;
    gsi_header h = {.fingerprint = 1, .scale = 1};
    int next = 0;
    /* Enters, then waits for the peer without a time limit: a lost wake-up hangs. */
    for (uint64_t seq = (1ull << 32) + 100; seq < (1ull << 32) + 2100; seq++, next = 0) {
        ep->ops->enter(ep, seq, &h, NULL, 0);
        ep->ops->announce(ep);
        for (;;) {
            uint32_t ticket = ep->ops->sleep_begin(ep);
            int there = ep->ops->entered(ep, seq, &next);
            if (!there)
                ep->ops->sleep(ep, ticket, -1);
            ep->ops->sleep_end(ep);
            if (there)
                break;
        }
        ep->ops->finish(ep, seq);
        ep->ops->announce(ep);
        /* The lane is used again only when both are done with it. */
        for (;;) {
            uint32_t ticket = ep->ops->sleep_begin(ep);
            int done = ep->ops->done(ep) + 2 >= seq;
            if (!done)
                ep->ops->sleep(ep, ticket, -1);
            ep->ops->sleep_end(ep);
            if (done)
                break;
        }
    }
    return NULL;
}

static void test_sleep(gsi_endpoint *a, gsi_endpoint *b)
{
    pthread_t threads[2];
    uint32_t ticket = b->ops->sleep_begin(b);

    b->ops->wake(b);
    b->ops->sleep(b, ticket, -1); /* rung since: returns at once, or the test hangs */
    b->ops->sleep_end(b);
    pthread_create(&threads[0], NULL, sleeper, a);
    pthread_create(&threads[1], NULL, sleeper, b);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    gradsync_counters c = {.size = sizeof c};
    a->ops->counters(a, &c);
    tap_ok(c.sleeps > 2000, "2000 meetings, each side asleep without a limit: no wake-up is lost");
}

static void test_failure(gsi_endpoint *a, gsi_endpoint *b)
{
    gsi_failure first = {GRADSYNC_ERR_TIMEOUT, 0, 1, "first"}, second = {GRADSYNC_ERR_PEER_LOST, 1, 0, "second"}, got;

    tap_ok(!a->ops->failure(a, &got) && !b->ops->failure(b, &got), "no failure at first");
    a->ops->fail(a, &first);
    b->ops->fail(b, &second);
    tap_ok(b->ops->failure(b, &got) && got.code == GRADSYNC_ERR_TIMEOUT && got.peer == 1 && !strcmp(got.text, "first"),
           "of two failures the first counts for all");
}

static void test_leaving(gsi_endpoint *a, gsi_endpoint *b, uint64_t seq)
{
    char text[200] = "";
    int peer = -1;

    tap_ok(!a->ops->check(a, seq, &peer, text, sizeof text), "nobody is missed");
    b->ops->destroy(b);
    tap_ok(!a->ops->check(a, seq, &peer, text, sizeof text), "one that left after its last collective is not missed");
    tap_ok(a->ops->check(a, seq + 1, &peer, text, sizeof text) == GRADSYNC_ERR_PEER_LOST && peer == 1 &&
               strstr(text, "rank 1") && strstr(text, "left"),
           "one that left before is: %s", text);
    gradsync_peer_info info = {0};
    a->ops->peer_info(a, 1, &info);
    tap_ok(info.rank == 1 && !info.alive && info.pid == getpid() && !strcmp(info.host, "unit"), "and known to be gone");
}

int main(void)
{
    side sides[2];
    int fds = unit_count_fds(), mappings = unit_count_mappings();

    if (!tap_ok(!open_pair(sides), "two endpoints"))
        return tap_done();
    gsi_endpoint *a = sides[0].ep, *b = sides[1].ep;
    test_entering(a, b);
    test_wrap(a, b);
    test_puts(a, b, (1ull << 32) + 6);
    test_memory(a, b, (1ull << 32) + 7);
    test_unread(a, b);
    test_bad_memory(a, b);
    test_sleep(a, b);
    test_failure(a, b);
    test_leaving(a, b, (1ull << 32) + 2099);
    a->ops->destroy(a);
    tap_ok(unit_count_fds() == fds, "no descriptor is left");
    tap_ok(unit_count_mappings() == mappings, "no mapping is left");
    return tap_done();
}
