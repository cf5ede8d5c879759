/* SPDX-License-Identifier: Apache-2.0 */
/* What each point-to-point call promises, and what it refuses. */
#include "ranks.h"
#include "tap.h"

#include <pthread.h>
#include <string.h>

enum { MOST = 3 << 20, PAGE = 4096 };

/* A rank's world, and how many of its expectations failed. */
typedef struct side {
    ranks_world *world;
    gradsync_context *ctx;
    gradsync_comm *comm;
    int rank, n, failed;
    int over_net; /* peers reach all that is registered, of any kind */
} side;

static void expect(side *s, int good, const char *what)
{
    if (good)
        return;
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    printf("# rank %d: %s (last error: %s)\n", s->rank, what, info.message);
    fflush(stdout);
    s->failed = 1;
}

static int refused(int rc, int code, const char *words)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    return rc == code && strstr(info.message, words) != NULL;
}

static void fill(unsigned char *at, size_t bytes, unsigned seed)
{
    for (size_t i = 0; i < bytes; i++)
        at[i] = (unsigned char)((i * 2654435761u + seed * 97u) >> 7);
}

static int holds(const unsigned char *at, size_t bytes, unsigned seed)
{
    for (size_t i = 0; i < bytes; i++)
        if (at[i] != (unsigned char)((i * 2654435761u + seed * 97u) >> 7))
            return 0;
    return 1;
}

/* Keys of all ranks' memory. */
static void exchange(side *s, gradsync_mem *mem, gradsync_key *keys)
{
    gradsync_key own;
    expect(s, !gradsync_mem_key(s->comm, mem, &own), "a key of allocated memory");
    expect(s, !gradsync_all_gather(s->comm, &own, keys, sizeof own, GRADSYNC_U8, NULL), "keys are gathered");
}

/* ---- Messages ----------------------------------------------------------------------- */

static const size_t lengths[] = {0, 1, 7, 240, 241, 4096, 65535, 65536, 65537, 1 << 20, MOST};

static void test_lengths(side *s)
{
    int right = (s->rank + 1) % s->n, left = (s->rank + s->n - 1) % s->n;
    unsigned char *out = malloc(MOST), *in = malloc(MOST + 1);
    gradsync_mem *mem;

    expect(s, !gradsync_mem_alloc(s->ctx, MOST, NULL, &mem), "memory");
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        for (int kind = 0; kind < 4; kind++) {
            size_t bytes = lengths[i];
            uint64_t got = 99;
            gradsync_request *request;
            unsigned char *from = kind & 1 ? gradsync_mem_addr(mem) : out;
            /* Into the same memory only half the time: it is read meanwhile. */
            unsigned char *to = kind == 2 ? gradsync_mem_addr(mem) : in;
            fill(from, bytes, (unsigned)(s->rank + 10 * kind));
            to[bytes == MOST && kind == 2 ? 0 : bytes] = 77;
            expect(s, !gradsync_send_post(s->comm, right, from, bytes, 5, &request), "a send is posted");
            expect(s, !gradsync_recv(s->comm, left, to, bytes, 5, &got), "a message is received");
            expect(s, got == bytes && holds(to, bytes, (unsigned)(left + 10 * kind)), "it is what was sent");
            if (bytes < MOST)
                expect(s, to[bytes] == 77, "nothing is written behind it");
            expect(s, !gradsync_wait(request), "the send ends");
            gradsync_report report = {.size = sizeof report};
            expect(s,
                   !gradsync_request_report(request, &report) && report.coll == GRADSYNC_SEND &&
                       report.bytes == bytes && !report.result,
                   "its report says so");
            gradsync_request_free(request);
        }
    expect(s, !gradsync_mem_free(mem), "the memory is freed");
    free(out);
    free(in);
}

/* Tags are met in any order; messages of one tag keep theirs. */
static void test_tags(side *s)
{
    enum { TAGS = 3, EACH = 100 };
    int right = (s->rank + 1) % s->n, left = (s->rank + s->n - 1) % s->n, in_order = 1;
    gradsync_request *sends[TAGS * EACH];
    static const int tags[TAGS] = {-7, 0, 1 << 30};
    unsigned *data = calloc(TAGS * EACH, sizeof *data);

    for (unsigned i = 0; i < TAGS * EACH; i++) {
        data[i] = i;
        expect(s, !gradsync_send_post(s->comm, right, &data[i], sizeof *data, tags[i % TAGS], &sends[i]), "a send");
    }
    for (int t = TAGS - 1; t >= 0; t--)
        for (unsigned i = 0; i < EACH; i++) {
            unsigned got = ~0u;
            expect(s, !gradsync_recv(s->comm, left, &got, sizeof got, tags[t], NULL), "a receive");
            in_order &= got == i * TAGS + (unsigned)t;
        }
    expect(s, in_order, "messages of a tag arrive in their order");
    expect(s, !gradsync_wait_all(sends, TAGS * EACH), "all sends end");
    for (int i = 0; i < TAGS * EACH; i++)
        gradsync_request_free(sends[i]);
    free(data);
}

/* Long and short messages of one tag keep their order too, received before or after they come. */
static void test_mixed(side *s)
{
    enum { COUNT = 24 };
    int right = (s->rank + 1) % s->n, left = (s->rank + s->n - 1) % s->n;
    static const size_t bytes[] = {8, 300000, 1, 5000, 0, 70000, 240, 2000000};
    gradsync_request *requests[2 * COUNT];
    unsigned char *out[COUNT], *in[COUNT];
    uint64_t got[COUNT];

    for (int i = 0; i < COUNT; i++) {
        size_t length = bytes[i % 8];
        out[i] = malloc(length + 1);
        in[i] = malloc(length + 1);
        fill(out[i], length, (unsigned)i);
        if (i < COUNT / 2)
            expect(s, !gradsync_recv_post(s->comm, left, in[i], length, 1, &got[i], &requests[COUNT + i]), "a receive");
    }
    for (int i = 0; i < COUNT; i++)
        expect(s, !gradsync_send_post(s->comm, right, out[i], bytes[i % 8], 1, &requests[i]), "a send");
    expect(s, !gradsync_barrier(s->comm, NULL), "a barrier amid messages");
    for (int i = COUNT / 2; i < COUNT; i++)
        expect(s, !gradsync_recv_post(s->comm, left, in[i], bytes[i % 8], 1, &got[i], &requests[COUNT + i]),
               "a receive");
    expect(s, !gradsync_wait_all(requests, 2 * COUNT), "all end");
    for (int i = 0; i < COUNT; i++) {
        expect(s, got[i] == bytes[i % 8] && holds(in[i], bytes[i % 8], (unsigned)i), "each is what was sent");
        free(out[i]);
        free(in[i]);
    }
    for (int i = 0; i < 2 * COUNT; i++)
        gradsync_request_free(requests[i]);
}

/* A message that is too long is an error on both sides, if both are still there, and nothing else. */
static void test_too_long(side *s)
{
    static const size_t longs[] = {100, 5000, 200000};
    unsigned char *buf = malloc(200000), small[51];

    for (int i = 0; s->rank < 2 && i < 3; i++) {
        if (s->rank == 0) {
            int rc = gradsync_send(s->comm, 1, buf, longs[i], 3);
            expect(s, !rc || refused(rc, GRADSYNC_ERR_MISMATCH, "receives at most 50 bytes"), "the sender's view");
            expect(s, longs[i] <= 65536 || rc == GRADSYNC_ERR_MISMATCH, "the sender of a long message is told");
        } else {
            char words[40];
            snprintf(words, sizeof words, "sent %zu bytes", longs[i]);
            memset(small, 1, sizeof small);
            int rc = gradsync_recv(s->comm, 0, small, 50, 3, NULL);
            expect(s, refused(rc, GRADSYNC_ERR_MISMATCH, words), "the receiver is told both lengths");
            for (int k = 0; k < 51; k++)
                expect(s, small[k] == 1, "nothing is written");
        }
    }
    if (s->rank == 0) {
        fill(buf, 50, 9);
        expect(s, !gradsync_send(s->comm, 1, buf, 50, 3), "the next message");
    } else if (s->rank == 1) {
        uint64_t got = 0;
        expect(s, !gradsync_recv(s->comm, 0, small, 51, 3, &got) && got == 50 && holds(small, 50, 9), "arrives");
    }
    expect(s, !gradsync_barrier(s->comm, NULL), "the communicator is whole");
    free(buf);
}

/* ---- Access --------------------------------------------------------------------------- */

static void test_put_get(side *s)
{
    enum { AREA = 1500000 };
    int n = s->n;
    gradsync_mem *mem;
    gradsync_key *keys = calloc((size_t)n, sizeof *keys);
    unsigned char *out = malloc(AREA), *in = malloc(AREA);

    expect(s, !gradsync_mem_alloc(s->ctx, (size_t)AREA * (size_t)n, NULL, &mem), "memory");
    unsigned char *own = gradsync_mem_addr(mem);
    exchange(s, mem, keys);
    for (unsigned round = 1; round <= 3; round++) {
        for (int r = 0; r < n; r++) { /* this rank itself among them */
            fill(out, AREA, round * 16 + (unsigned)s->rank);
            uint64_t at = (uint64_t)AREA * (uint64_t)s->rank;
            expect(s, !gradsync_put(s->comm, r, out, &keys[r], at, AREA), "a put");
            memset(out, 0, AREA); /* it is free again */
            expect(s, !gradsync_signal(s->comm, r, 63), "a signal");
        }
        for (int r = 0; r < n; r++) {
            expect(s, !gradsync_wait_signal(s->comm, r, 63, round), "a signal is awaited");
            expect(s, holds(own + (size_t)AREA * (size_t)r, AREA, round * 16 + (unsigned)r), "the put came before it");
        }
        expect(s, !gradsync_barrier(s->comm, NULL), "a barrier");
        for (int r = 0; r < n; r++) {
            int from = (s->rank + r) % n, of = (s->rank + 2 * r) % n;
            memset(in, 0, AREA);
            expect(s, !gradsync_get(s->comm, from, in, &keys[from], (uint64_t)AREA * (uint64_t)of, AREA), "a get");
            expect(s, holds(in, AREA, round * 16 + (unsigned)of), "it is what lies there");
        }
        expect(s, !gradsync_barrier(s->comm, NULL), "a barrier");
    }
    uint64_t count = 0;
    expect(s, !gradsync_signal_count(s->comm, (s->rank + 1) % n, 63, &count) && count == 3, "signals are counted");
    expect(s, !gradsync_signal_count(s->comm, (s->rank + 1) % n, 62, &count) && count == 0, "each slot by itself");
    expect(s, !gradsync_wait_signal(s->comm, 0, 5, 0), "no signal is awaited at once");
    /* Posted, with the signal behind them. */
    gradsync_request *requests[4];
    int right = (s->rank + 1) % n, left = (s->rank + n - 1) % n;
    fill(out, AREA, 1000u + (unsigned)s->rank);
    for (uint64_t i = 0; i < 3; i++)
        expect(s,
               !gradsync_put_post(s->comm, right, out + i * (AREA / 3), &keys[right],
                                  (uint64_t)AREA * (uint64_t)s->rank + i * (AREA / 3), AREA / 3, &requests[i]),
               "a posted put");
    expect(s, !gradsync_signal_post(s->comm, right, 0, &requests[3]), "a posted signal");
    expect(s, !gradsync_wait_signal(s->comm, left, 0, 1), "it comes");
    expect(s, holds(own + (size_t)AREA * (size_t)left, AREA, 1000u + (unsigned)left), "after the puts");
    expect(s, !gradsync_wait_all(requests, 4), "all end");
    for (int i = 0; i < 4; i++)
        gradsync_request_free(requests[i]);
    expect(s,
           !gradsync_get_post(s->comm, right, in, &keys[right], 0, AREA, &requests[0]) && !gradsync_wait(requests[0]),
           "a posted get");
    gradsync_request_free(requests[0]);
    expect(s, !gradsync_barrier(s->comm, NULL), "a barrier");
    expect(s, !gradsync_mem_free(mem), "the memory is freed");
    free(keys);
    free(out);
    free(in);
}

static void test_misuse(side *s)
{
    gradsync_mem *mem, *plain, *remapped;
    gradsync_key key, *keys = calloc((size_t)s->n, sizeof *keys), *others = calloc((size_t)s->n, sizeof *keys);
    gradsync_request *request = (gradsync_request *)&key;
    char buf[64] = {0}, *pages = NULL;
    int peer = (s->rank + 1) % s->n;
    gradsync_comm *comm = s->comm, *other;

    expect(s, !gradsync_mem_alloc(s->ctx, 10000, NULL, &mem), "memory");
    exchange(s, mem, keys);
    expect(s, !gradsync_comm_split(comm, 0, s->rank, NULL, &other), "a split");
    expect(s, !gradsync_mem_key(other, mem, &key), "a key of the part");
    expect(s, !gradsync_all_gather(comm, &key, others, sizeof key, GRADSYNC_U8, NULL), "keys are gathered");
    memset(gradsync_mem_addr(mem), 3, 10000);
    expect(s, !gradsync_barrier(comm, NULL), "a barrier");

    expect(s, refused(gradsync_put(comm, peer, buf, &keys[peer], 9999, 2), GRADSYNC_ERR_INVALID, "beyond the 10000"),
           "a put past the end");
    expect(s, refused(gradsync_get(comm, peer, buf, &keys[peer], UINT64_MAX, 2), GRADSYNC_ERR_INVALID, "beyond"),
           "a get that wraps around");
    expect(s, refused(gradsync_put(comm, peer, buf, &keys[peer], 10001, 0), GRADSYNC_ERR_INVALID, "beyond"),
           "nothing, put beyond the end");
    expect(s, !gradsync_put(comm, peer, NULL, &keys[peer], 10000, 0), "nothing, put at the end, is fine");
    if (s->n > 1)
        expect(s, refused(gradsync_put(comm, s->rank, buf, &keys[peer], 0, 1), GRADSYNC_ERR_INVALID, "memory of rank"),
               "a key of another rank");
    expect(s, refused(gradsync_put(comm, peer, buf, &others[peer], 0, 1), GRADSYNC_ERR_INVALID, "another communicator"),
           "a key of another communicator");
    key = keys[peer];
    ((char *)&key)[30] ^= 1;
    expect(s, refused(gradsync_put(comm, peer, buf, &key, 0, 1), GRADSYNC_ERR_INVALID, "no key"), "a damaged key");
    memset(&key, 0, sizeof key);
    expect(s, refused(gradsync_get(comm, peer, buf, &key, 0, 1), GRADSYNC_ERR_INVALID, "no key"), "an empty key");
    expect(s, refused(gradsync_get(comm, peer, buf, NULL, 0, 1), GRADSYNC_ERR_INVALID, "key is NULL"), "no key");
    expect(s, refused(gradsync_put(comm, peer, NULL, &keys[peer], 0, 1), GRADSYNC_ERR_INVALID, "no memory"), "NULL");
    expect(s, refused(gradsync_send(comm, s->n, buf, 1, 0), GRADSYNC_ERR_INVALID, "no rank"), "a rank too high");
    expect(s, refused(gradsync_recv(comm, -1, buf, 1, 0, NULL), GRADSYNC_ERR_INVALID, "no rank"), "a rank too low");
    expect(s, refused(gradsync_recv(comm, peer, NULL, 1, 0, NULL), GRADSYNC_ERR_INVALID, "no memory"), "NULL");
    expect(s, refused(gradsync_send(comm, peer, buf, UINT64_MAX, 0), GRADSYNC_ERR_INVALID, "no memory"), "too long");
    expect(s, refused(gradsync_signal(comm, peer, 64), GRADSYNC_ERR_INVALID, "slot"), "a slot too high");
    expect(s, refused(gradsync_wait_signal(comm, peer, -1, 1), GRADSYNC_ERR_INVALID, "slot"), "a slot too low");
    expect(s, refused(gradsync_signal_count(comm, peer, 0, NULL), GRADSYNC_ERR_INVALID, "NULL"), "no place");
    expect(s, refused(gradsync_send_post(comm, peer, buf, 1, 0, NULL), GRADSYNC_ERR_INVALID, "request"), "no place");
    expect(s, gradsync_recv_post(comm, 99, buf, 1, 0, NULL, &request) == GRADSYNC_ERR_INVALID && !request,
           "no request after an error");
    expect(s, refused(gradsync_send(NULL, 0, buf, 1, 0), GRADSYNC_ERR_INVALID, "communicator is NULL"), "no comm");
    expect(s, refused(gradsync_mem_key(comm, NULL, &key), GRADSYNC_ERR_INVALID, "NULL"), "no memory");

    expect(s, !gradsync_mem_register(s->ctx, buf, sizeof buf, NULL, &plain), "plain memory is registered");
    int rc = gradsync_mem_key(comm, plain, &key);
    expect(s, s->over_net ? !rc : refused(rc, GRADSYNC_ERR_UNSUPPORTED, "gradsync_mem_alloc"),
           "only over a network others can reach it");
    expect(s, !gradsync_mem_deregister(plain), "it is deregistered");

    /* Remapped memory: whole pages can be reached. */
    gradsync_mem_config config = GRADSYNC_MEM_CONFIG_INIT;
    config.flags = GRADSYNC_MEM_REMAP;
    pages = aligned_alloc(PAGE, 64 * PAGE);
    memset(pages, 5, 64 * PAGE);
    expect(s, !gradsync_mem_register(s->ctx, pages + 100, 40 * PAGE, &config, &remapped), "memory is remapped");
    exchange(s, remapped, keys);
    char big[3 * PAGE];
    if (s->n > 1 && !s->over_net)
        expect(s, refused(gradsync_get(comm, peer, big, &keys[peer], 0, 8), GRADSYNC_ERR_UNSUPPORTED, "whole pages"),
               "its first bytes are out of reach");
    expect(s,
           !gradsync_get(comm, peer, big, &keys[peer], PAGE - 100, sizeof big) && big[0] == 5 &&
               big[sizeof big - 1] == 5,
           "its pages are not");
    expect(s, !gradsync_barrier(comm, NULL), "a barrier");
    expect(s, !gradsync_mem_deregister(remapped), "it is deregistered");
    expect(s, !gradsync_barrier(comm, NULL), "a barrier");
    expect(s, gradsync_get(comm, peer, big, &keys[peer], PAGE - 100, 8) == GRADSYNC_ERR_INVALID,
           "then its key is good for nothing");
    free(pages);

    char *own = gradsync_mem_addr(mem);
    for (int i = 0; i < 10000; i++)
        expect(s, own[i] == 3, "nothing of that has written anything");
    expect(s, !gradsync_barrier(comm, NULL), "the communicator is whole");
    gradsync_comm_destroy(other);
    expect(s, !gradsync_mem_free(mem), "the memory is freed");
    free(keys);
    free(others);
}

/* ---- A rank by itself --------------------------------------------------------------------- */

static void test_self(side *s)
{
    static const size_t bytes[] = {0, 100, 300000};
    unsigned char *out = malloc(300000), *in = malloc(300000);
    gradsync_request *request;

    for (int i = 0; i < 3; i++) {
        uint64_t got = 0;
        fill(out, bytes[i], (unsigned)i);
        expect(s, !gradsync_send_post(s->comm, s->rank, out, bytes[i], i, &request), "a send to itself");
        expect(s, !gradsync_recv(s->comm, s->rank, in, bytes[i], i, &got) && got == bytes[i], "arrives");
        expect(s, holds(in, bytes[i], (unsigned)i) && !gradsync_wait(request), "as it was");
        gradsync_request_free(request);
        expect(s, !gradsync_recv_post(s->comm, s->rank, in, bytes[i], i, &got, &request), "a receive from itself");
        fill(out, bytes[i], 5u + (unsigned)i);
        expect(s, !gradsync_send(s->comm, s->rank, out, bytes[i], i) && !gradsync_wait(request), "meets its send");
        expect(s, holds(in, bytes[i], 5u + (unsigned)i), "as it was");
        gradsync_request_free(request);
    }
    expect(s, !gradsync_send(s->comm, s->rank, out, 200, 9), "a short message to itself");
    expect(s, refused(gradsync_recv(s->comm, s->rank, in, 199, 9, NULL), GRADSYNC_ERR_MISMATCH, "at most 199"),
           "that is too long");
    free(out);
    free(in);
}

/* ---- Running ------------------------------------------------------------------------------- */

typedef struct part {
    const char *name;
    void (*run)(side *s);
} part;

static int run_part(ranks_world *world, int rank, void *arg)
{
    const part *p = arg;
    side s = {.world = world, .rank = rank, .n = ranks_count(world)};
    gradsync_config config = GRADSYNC_CONFIG_INIT;

    config.timeout_ms = 60000;
    s.comm = ranks_comm(world, rank, &config, &s.ctx);
    if (!s.comm)
        return 1;
    gradsync_comm_info info = {.size = sizeof info};
    s.over_net =
        !gradsync_comm_query(s.comm, &info) && !strstr(info.transport, "shm") && strcmp(info.transport, "self");
    p->run(&s);
    gradsync_comm_destroy(s.comm);
    expect(&s, !gradsync_context_destroy(s.ctx), "the context ends");
    return s.failed;
}

int main(void)
{
    static const part parts[] = {
        {"messages of all lengths and kinds of memory", test_lengths},
        {"tags and order", test_tags},
        {"long and short ones of one tag", test_mixed},
        {"messages that are too long", test_too_long},
        {"puts, gets and signals", test_put_get},
        {"misuse is refused with nothing done", test_misuse},
        {"a rank and itself", test_self},
    };

    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        for (int n = 1; n <= 4; n++) {
            if (n == 3 || (n == 1 && parts[i].run == test_too_long))
                continue;
            part p = parts[i];
            tap_ok(!ranks_run_processes(n, run_part, &p), "%s: %d processes", p.name, n);
            tap_ok(!ranks_run_threads(n, run_part, &p), "%s: %d threads", p.name, n);
        }
    return tap_done();
}
