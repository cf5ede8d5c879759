/* SPDX-License-Identifier: Apache-2.0 */
/* Communicators: made wrongly, split, several at once, forked, asked. */
#include "ranks.h"
#include "tap.h"
#include "unit.h"

#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "comm/comm.h"

/* ---- Made wrongly ------------------------------------------------------------------- */

typedef struct wrong {
    const char *name;
    int claimed_rank, claimed_n, algo; /* what rank 1 says, where the others say the truth */
    int code;
    const char *env, *value;
    const char *message;
    const char *transport; /* of all ranks */
} wrong;

static const wrong wrongs[] = {
    {"a rank that is there twice", 0, 3, 0, GRADSYNC_ERR_MISMATCH, NULL, NULL, "rank"},
    {"another number of ranks", 1, 4, 0, GRADSYNC_ERR_MISMATCH, NULL, NULL, "1 of 4"},
    {"another fixed algorithm", 1, 3, GRADSYNC_ALGO_RING, GRADSYNC_ERR_MISMATCH, NULL, NULL, "ring"},
    {"an algorithm that is none", 1, 3, 0, GRADSYNC_ERR_INVALID, "GRADSYNC_ALGO", "fastest", "fastest"},
    {"another host", 1, 3, 0, GRADSYNC_ERR_UNSUPPORTED, "GRADSYNC_HOST_ID", "elsewhere", "shm is asked for", "shm"},
    {"another transport", 1, 3, 0, GRADSYNC_ERR_MISMATCH, "GRADSYNC_TRANSPORT", "tcp", "GRADSYNC_TRANSPORT"},
};

static int join_wrongly(ranks_world *world, int rank, void *arg)
{
    const wrong *w = arg;
    gradsync_comm_config config = GRADSYNC_COMM_CONFIG_INIT;
    gradsync_config settings = GRADSYNC_CONFIG_INIT;
    gradsync_context *ctx;
    gradsync_comm *comm = NULL;
    int odd = rank == 1, bad = 0;

    if (odd && w->env)
        setenv(w->env, w->value, 1);
    settings.transport = w->transport;
    if (gradsync_context_create(&settings, &ctx))
        return 1;
    config.algo = odd ? w->algo : 0;
    /* The exchange gathers three places, whatever a rank believes: the fourth stays empty. */
    int rc = gradsync_comm_create(ctx, odd ? w->claimed_rank : rank, odd ? w->claimed_n : 3, ranks_allgather,
                                  ranks_exchange_of(world, rank), &config, &comm);
    if (rc != w->code || comm || (!odd && !strstr(unit_error().message, w->message))) {
        ranks_complain(rank, w->name, rc);
        bad++;
    }
    bad += gradsync_context_destroy(ctx) != 0;
    return bad;
}

/* A callback that fails is not called again, and its failure is not taken for an older one. */
typedef struct failing {
    int calls, fail_at, result;
} failing;

static int failing_allgather(void *arg, const void *send, void *recv, size_t bytes)
{
    failing *f = arg;
    if (++f->calls == f->fail_at)
        return f->result;
    memcpy(recv, send, bytes);
    return 0;
}

static void test_callback(void)
{
    gradsync_context *ctx;
    gradsync_comm *comm;
    int bad = 0, fds = unit_count_fds();

    gradsync_context_create(NULL, &ctx);
    for (int at = 1; at <= 2; at++)
        for (int result = -1; result <= 1; result += 2) {
            failing f = {0, at, result};
            gradsync_comm_create(NULL, 0, 1, NULL, NULL, NULL, &comm); /* an older error of the same code, -1 */
            int rc = gradsync_comm_create(ctx, 0, 1, failing_allgather, &f, NULL, &comm);
            if (rc != GRADSYNC_ERR_SYSTEM || comm || f.calls != at || !strstr(unit_error().message, "callback")) {
                tap_note("at %d: %d after %d calls: %s", at, rc, f.calls, unit_error().message);
                bad++;
            }
        }
    tap_ok(!bad, "a callback that fails is not called again, and blamed");
    tap_ok(gradsync_comm_create(ctx, 0, 2, NULL, NULL, NULL, &comm) == GRADSYNC_ERR_INVALID && !comm &&
               gradsync_comm_create(ctx, -1, 2, failing_allgather, NULL, NULL, &comm) == GRADSYNC_ERR_INVALID &&
               gradsync_comm_create(ctx, 2, 2, failing_allgather, NULL, NULL, &comm) == GRADSYNC_ERR_INVALID &&
               gradsync_comm_create(ctx, 0, 0, failing_allgather, NULL, NULL, &comm) == GRADSYNC_ERR_INVALID &&
               gradsync_comm_create(ctx, 0, 1, NULL, NULL, NULL, NULL) == GRADSYNC_ERR_INVALID,
           "ranks that cannot be are INVALID");
    tap_ok(!gradsync_comm_create(ctx, 0, 1, NULL, NULL, NULL, &comm), "one rank needs no callback");
    tap_ok(gradsync_context_destroy(ctx) == GRADSYNC_ERR_INVALID && strstr(unit_error().message, "1 communicators"),
           "the context does not end before it");
    gradsync_comm_destroy(comm);
    tap_ok(gradsync_comm_destroy(NULL) == 0 && gradsync_comm_rank(NULL) == -1 && gradsync_comm_size(NULL) == -1 &&
               gradsync_comm_abort(NULL, NULL) == GRADSYNC_ERR_INVALID &&
               gradsync_comm_split(NULL, 0, 0, NULL, &comm) == GRADSYNC_ERR_INVALID,
           "NULL is told from a communicator");
    tap_ok(!gradsync_context_destroy(ctx) && !gradsync_context_destroy(NULL) && unit_count_fds() == fds, "all gone");
}

/* ---- Split ----------------------------------------------------------------------------------- */

/* Sums ranks of the parent over the part. */
static int part_sum(gradsync_comm *part, int parent_rank, int64_t *sum)
{
    int64_t x = parent_rank;
    int rc = gradsync_all_reduce(part, &x, &x, 1, GRADSYNC_I64, GRADSYNC_SUM, NULL);
    *sum = x;
    return rc;
}

static int split_rank(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx), *parts[4] = {0}, *inner = NULL;
    int n = ranks_count(world), bad = 0;
    int64_t sum = 0, all = n * (n - 1) / 2;

    (void)arg;
    if (!comm)
        return 1;
    /* All of one colour, in reverse order. */
    int rc = gradsync_comm_split(comm, 7, -rank, NULL, &parts[0]);
    bad += rc || gradsync_comm_size(parts[0]) != n || gradsync_comm_rank(parts[0]) != n - 1 - rank ||
           part_sum(parts[0], rank, &sum) || sum != all;
    if (rc)
        ranks_complain(rank, "split", rc);
    /* Each alone. */
    bad += gradsync_comm_split(comm, rank, 0, NULL, &parts[1]) || gradsync_comm_size(parts[1]) != 1 ||
           part_sum(parts[1], rank, &sum) || sum != rank;
    /* Odd and even, equal keys: in the order of the ranks; rank 2 in none. */
    bad += gradsync_comm_split(comm, rank == 2 ? -1 : rank % 2, 5, NULL, &parts[2]) != 0;
    bad += (parts[2] == NULL) != (rank == 2);
    if (parts[2]) {
        int64_t want = 0;
        int place = 0;
        for (int r = rank % 2; r < n; r += 2) {
            want += r == 2 ? 0 : r;
            place += r < rank && r != 2;
        }
        bad += part_sum(parts[2], rank, &sum) || sum != want || gradsync_comm_rank(parts[2]) != place;
    }
    /* Extreme keys and colours, with a configuration of its own. */
    gradsync_comm_config config = GRADSYNC_COMM_CONFIG_INIT;
    gradsync_report report = {.size = sizeof report};
    config.algo = GRADSYNC_ALGO_RING;
    config.timeout_ms = 12345;
    bad += gradsync_comm_split(comm, INT32_MAX, rank % 2 ? INT32_MIN : INT32_MAX, &config, &parts[3]) != 0;
    bad += part_sum(parts[3], rank, &sum) || sum != all || gradsync_comm_report(parts[3], &report) ||
           report.algo != GRADSYNC_ALGO_RING || gradsync_comm_rank(parts[3]) != rank / 2 + (rank % 2 ? 0 : n / 2);
    /* A part of a part; and the parent goes on. */
    bad += gradsync_comm_split(parts[0], rank / 2, 0, NULL, &inner) != 0;
    bad += part_sum(inner, rank, &sum) || sum != (rank / 2 * 2) + (rank / 2 * 2 + 1 < n ? rank / 2 * 2 + 1 : 0);
    bad += part_sum(comm, rank, &sum) || sum != all;
    /* Nobody in any. */
    gradsync_comm *none = comm;
    bad += gradsync_comm_split(comm, -1, 0, NULL, &none) || none;
    /* A part breaks, its parent does not. */
    if (rank == 0)
        gradsync_comm_abort(parts[0], "for the test");
    rc = part_sum(parts[0], rank, &sum);
    bad += rc != GRADSYNC_ERR_PEER_LOST || !strstr(unit_error().message, "for the test");
    bad += part_sum(comm, rank, &sum) != 0;
    /* Split by some, an all-reduce by others. */
    if (rank == 0)
        rc = gradsync_comm_split(comm, 0, 0, NULL, &none);
    else
        rc = part_sum(comm, rank, &sum);
    bad += rc != GRADSYNC_ERR_MISMATCH || !strstr(unit_error().message, "the library's") || none;
    gradsync_comm_destroy(inner);
    for (int i = 0; i < 4; i++)
        gradsync_comm_destroy(parts[i]);
    bad += part_sum(comm, rank, &sum) || sum != all;
    ranks_end(ctx, comm);
    return bad;
}

/* ---- Several communicators, several threads ------------------------------------------------------- */

typedef struct worker {
    gradsync_comm *comm;
    gradsync_context *ctx;
    int id, n, bad;
} worker;

static void *work(void *arg)
{
    worker *w = arg;
    enum { ROUNDS = 40 };
    size_t bytes = (size_t)40000 * (size_t)(w->id + 1);

    for (int i = 0; i < ROUNDS && !w->bad; i++) {
        gradsync_mem *mem;
        w->bad += gradsync_mem_alloc(w->ctx, bytes, NULL, &mem) != 0;
        int32_t *x = gradsync_mem_addr(mem);
        size_t count = bytes / 4;
        for (size_t k = 0; k < count; k++)
            x[k] = i + (int)(k % 3);
        int rc = gradsync_all_reduce(w->comm, x, x, count, GRADSYNC_I32, GRADSYNC_SUM, NULL);
        for (size_t k = 0; !rc && k < count; k++)
            w->bad += x[k] != w->n * (i + (int)(k % 3));
        if (rc)
            ranks_complain(w->id, "all_reduce", rc);
        w->bad += rc != 0 || gradsync_mem_free(mem) != 0;
    }
    return NULL;
}

static int several(ranks_world *world, int rank, void *arg)
{
    enum { COMMS = 3 };
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx), *comms[COMMS];
    pthread_t threads[COMMS];
    worker workers[COMMS];
    int bad = 0;

    (void)arg;
    if (!comm)
        return 1;
    for (int i = 0; i < COMMS; i++)
        if (gradsync_comm_split(comm, 0, 0, NULL, &comms[i]))
            return 1;
    for (int i = 0; i < COMMS; i++) {
        workers[i] = (worker){comms[i], ctx, i, ranks_count(world), 0};
        pthread_create(&threads[i], NULL, work, &workers[i]);
    }
    for (int i = 0; i < COMMS; i++) {
        pthread_join(threads[i], NULL);
        bad += workers[i].bad;
        gradsync_comm_destroy(comms[i]);
    }
    ranks_end(ctx, comm);
    return bad;
}

/* ---- Fork ------------------------------------------------------------------------------------------ */

/* What a data loader's worker does at its end: everything that it inherited is destroyed. */
static int child_of_rank(gradsync_context *ctx, gradsync_comm *comm, gradsync_mem *mem, gradsync_mem *registered,
                         gradsync_request *request, char *buf)
{
    gradsync_counters counters = {.size = sizeof counters};
    gradsync_request *none;
    gradsync_comm *part;
    int bad = 0;

    bad += gradsync_barrier(comm, NULL) != GRADSYNC_ERR_INVALID || !strstr(unit_error().message, "fork");
    bad += gradsync_barrier_post(comm, NULL, &none) != GRADSYNC_ERR_INVALID;
    bad += gradsync_comm_split(comm, 0, 0, NULL, &part) != GRADSYNC_ERR_INVALID;
    bad += gradsync_comm_abort(comm, "child") != GRADSYNC_ERR_INVALID;
    bad += gradsync_comm_counters(comm, &counters) != GRADSYNC_ERR_INVALID;
    bad += gradsync_test(request) != GRADSYNC_ERR_INVALID || gradsync_wait(request) != GRADSYNC_ERR_INVALID;
    /* One of its own works. */
    gradsync_context *own;
    gradsync_comm *alone;
    int32_t x = 5;
    bad += gradsync_context_create(NULL, &own) || gradsync_comm_create(own, 0, 1, NULL, NULL, NULL, &alone) ||
           gradsync_all_reduce(alone, &x, &x, 1, GRADSYNC_I32, GRADSYNC_SUM, NULL) || x != 5 ||
           gradsync_comm_destroy(alone) || gradsync_context_destroy(own);
    gradsync_request_free(request);
    bad += gradsync_mem_deregister(registered) != 0;
    memset(buf, 9, 1 << 20); /* its own copy by now */
    bad += gradsync_mem_free(mem) != 0;
    gradsync_comm_destroy(comm);
    bad += gradsync_context_destroy(ctx) != 0;
    return bad;
}

static int fork_rank(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    gradsync_mem *mem, *registered;
    gradsync_mem_config config = GRADSYNC_MEM_CONFIG_INIT;
    gradsync_request *request;
    int bad = 0, status = 0, n = ranks_count(world);
    size_t bytes = 1 << 20;
    char *buf = malloc(bytes);

    (void)arg;
    config.flags = GRADSYNC_MEM_REMAP;
    memset(buf, 1, bytes);
    if (!comm || gradsync_mem_alloc(ctx, bytes, NULL, &mem) ||
        gradsync_mem_register(ctx, buf, bytes, &config, &registered)) {
        free(buf);
        return 1;
    }
    char *p = gradsync_mem_addr(mem);
    memset(p, 1, bytes);
    bad += gradsync_all_reduce(comm, p, p, bytes, GRADSYNC_U8, GRADSYNC_SUM, NULL);
    bad += gradsync_all_reduce(comm, buf, buf, bytes, GRADSYNC_U8, GRADSYNC_SUM, NULL);
    bad += gradsync_barrier_post(comm, NULL, &request); /* there is a progress thread, and something in flight */
    pid_t child = fork();
    if (!child)
        _exit(child_of_rank(ctx, comm, mem, registered, request, buf));
    waitpid(child, &status, 0);
    if (status) {
        printf("# rank %d: the child says %d\n", rank, status);
        bad++;
    }
    bad += gradsync_wait(request);
    gradsync_request_free(request);
    /* The parent has not noticed: nobody left, nothing is unmapped, nothing changed. */
    int rc = gradsync_all_reduce(comm, p, p, bytes, GRADSYNC_U8, GRADSYNC_SUM, NULL);
    bad += rc || p[0] != n * n || p[bytes - 1] != n * n;
    if (rc)
        ranks_complain(rank, "all_reduce", rc);
    rc = gradsync_all_reduce(comm, buf, buf, bytes, GRADSYNC_U8, GRADSYNC_SUM, NULL);
    bad += rc || buf[0] != n * n || buf[bytes - 1] != n * n;
    bad += gradsync_mem_deregister(registered) || gradsync_mem_free(mem);
    free(buf);
    ranks_end(ctx, comm);
    return bad;
}

/* ---- Queries ------------------------------------------------------------------------------------------- */

static int query_rank(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    gradsync_comm_info info = {.size = sizeof info};
    gradsync_peer_info peer = {.size = sizeof peer};
    gradsync_rail_info rail = {.size = sizeof rail};
    gradsync_system_info system = {.size = sizeof system};
    gradsync_transport_info transport = {.size = sizeof transport};
    int n = ranks_count(world), bad = 0;
    char text[4096];

    (void)arg;
    if (!comm)
        return 1;
    bad += gradsync_comm_query(comm, &info) || info.rank != rank || info.nranks != n || info.local_ranks != n ||
           info.local_rank != rank || info.nrails || strcmp(info.transport, "shm") || info.create_ms <= 0 ||
           !info.memory_bytes || info.memory_bytes > 8 << 20;
    for (int r = 0; r < n; r++)
        bad += gradsync_comm_peer(comm, r, &peer) || peer.rank != r || peer.pid != ranks_pid(world, r) || !peer.alive ||
               !peer.same_host || strcmp(peer.transport, r == rank ? "self" : "shm") || !peer.host[0];
    bad += gradsync_comm_peer(comm, n, &peer) != GRADSYNC_ERR_INVALID;
    bad += gradsync_comm_peer(comm, -1, &peer) != GRADSYNC_ERR_INVALID;
    bad += gradsync_comm_rail(comm, 0, &rail) != GRADSYNC_ERR_INVALID;
    bad += gradsync_context_query(ctx, &system) || system.cpus < 1 || system.numa_nodes < 1 || !system.cpu_tier[0] ||
           system.page_bytes < 4096 || !system.huge_pages[0];
    bad += gradsync_context_transport(ctx, 0, &transport) || strcmp(transport.name, "shm") || !transport.usable;
    int i = 0;
    while (!gradsync_context_transport(ctx, i, &transport))
        bad += !transport.name[0] || !transport.reason[0] || ++i > 10;
    bad += gradsync_context_transport(ctx, -1, &transport) != GRADSYNC_ERR_INVALID;
    /* Explanations: one line for each algorithm, the choice marked, within any room. */
    for (int coll = 0; coll < GRADSYNC_COLL_COUNT; coll++)
        for (uint64_t bytes = 0; bytes <= 1 << 24; bytes = bytes ? bytes * 16 : 8)
            for (int kind = 0; kind < 3; kind++) {
                bad += gradsync_comm_explain(comm, coll, bytes, GRADSYNC_F32, GRADSYNC_SUM, 0, kind, text, sizeof text);
                bad += !strstr(text, gradsync_coll_name(coll)) || !strstr(text, "chosen") || !strstr(text, "measured");
                for (int a = 1; a < GRADSYNC_ALGO_COUNT; a++)
                    bad += !strstr(text, gradsync_algo_name(a));
            }
    for (size_t room = 1; room < 700; room++) {
        memset(text, 'x', sizeof text);
        bad +=
            gradsync_comm_explain(comm, 0, 4096, 0, 0, 0, 0, text, room) || !memchr(text, 0, room) || text[room] != 'x';
    }
    bad += gradsync_comm_explain(comm, 6, 1, 0, 0, 0, 0, text, 10) != GRADSYNC_ERR_INVALID;
    bad += gradsync_comm_explain(comm, 0, 1, 10, 0, 0, 0, text, 10) != GRADSYNC_ERR_INVALID;
    bad += gradsync_comm_explain(comm, 0, 1, 0, 0, 0, 3, text, 10) != GRADSYNC_ERR_INVALID;
    bad += gradsync_comm_explain(comm, 0, 1, 0, 0, 0, 0, text, 0) != GRADSYNC_ERR_INVALID;
    /* An older caller's struct gets what it has room for, a newer one's what there is. */
    struct {
        gradsync_comm_info info;
        char more[64];
    } newer;
    memset(&newer, 0x77, sizeof newer);
    newer.info.size = sizeof newer;
    bad += gradsync_comm_query(comm, &newer.info) || newer.info.size != sizeof newer.info || newer.more[0] != 0x77;
    memset(&newer, 0x77, sizeof newer);
    newer.info.size = 12;
    bad += gradsync_comm_query(comm, &newer.info) || newer.info.size != 12 || newer.info.nranks != n ||
           newer.info.local_rank != 0x77777777;
    newer.info.size = 0;
    bad += gradsync_comm_query(comm, &newer.info) != GRADSYNC_ERR_INVALID;
    bad += gradsync_comm_query(comm, NULL) != GRADSYNC_ERR_INVALID;
    gradsync_barrier(comm, NULL);
    ranks_end(ctx, comm);
    return bad;
}

/* ---- Log ------------------------------------------------------------------------------------------------- */

static _Thread_local gradsync_comm *logging;
static _Thread_local int warned, locked;

static void look_at_lock(void *arg, int level, const char *message)
{
    (void)arg, (void)message;
    if (level != GRADSYNC_LOG_WARN || !logging)
        return;
    warned++;
    if (pthread_mutex_trylock(&logging->engine.lock))
        locked++;
    else
        pthread_mutex_unlock(&logging->engine.lock);
}

static int log_rank(ranks_world *world, int rank, void *arg)
{
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    gradsync_context *ctx;
    gradsync_request *request;
    size_t bytes = 2 << 20;
    char *buf;
    int bad = 0, posted = *(int *)arg;

    config.log = look_at_lock;
    config.progress = GRADSYNC_PROGRESS_MANUAL; /* so that it is this thread that logs */
    logging = NULL, warned = locked = 0;
    gradsync_comm *comm = ranks_comm(world, rank, &config, &ctx);
    if (!comm)
        return 1;
    buf = calloc(1, bytes);
    logging = comm;
    if (posted) {
        bad += gradsync_all_reduce_post(comm, buf, buf, bytes, GRADSYNC_U8, GRADSYNC_SUM, NULL, &request);
        bad += posted == 1 ? gradsync_wait(request) : 0;
        while (posted == 2 && gradsync_test(request) == GRADSYNC_IN_PROGRESS)
            ;
        gradsync_request_free(request);
    } else {
        bad += gradsync_all_reduce(comm, buf, buf, bytes, GRADSYNC_U8, GRADSYNC_SUM, NULL);
    }
    bad += warned != 1 || locked;
    logging = NULL;
    free(buf);
    ranks_end(ctx, comm);
    return bad;
}

/* ---- Arguments of collectives ---------------------------------------------------------------------------- */

static void test_arguments(void)
{
    gradsync_context *ctx;
    gradsync_comm *comm;
    gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;
    float x[64] = {0};
    int bad = 0;

    gradsync_context_create(NULL, &ctx);
    gradsync_comm_create(ctx, 0, 1, NULL, NULL, NULL, &comm);
    bad += gradsync_all_reduce(NULL, x, x, 1, 0, 0, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_all_reduce(comm, NULL, x, 1, 0, 0, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_all_reduce(comm, x, NULL, 1, 0, 0, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_all_reduce(comm, NULL, NULL, 0, 0, 0, NULL) != 0;
    bad += gradsync_all_reduce(comm, x, x, 1, 10, 0, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_all_reduce(comm, x, x, 1, -1, 0, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_all_reduce(comm, x, x, 1, 0, 6, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_all_reduce(comm, x, x + 1, 2, 0, 0, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_all_reduce(comm, x + 1, x, 2, 0, 0, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_all_reduce(comm, x, x + 2, 2, 0, 0, NULL) != 0;
    bad += gradsync_all_reduce(comm, x, x, UINT64_MAX, 0, 0, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_all_reduce(comm, x, x, INT64_MAX / 4 + 1, 0, 0, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_broadcast(comm, x, x, 1, 0, 1, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_broadcast(comm, x, x, 1, 0, -1, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_reduce(comm, x, x, 1, 0, 0, 1, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_all_reduce(comm, x, x, 1, 0, GRADSYNC_PREMUL_SUM, NULL) != GRADSYNC_ERR_INVALID;
    opts.flags = GRADSYNC_PRESCALE;
    bad += gradsync_all_reduce(comm, x, x, 1, GRADSYNC_I32, 0, &opts) != GRADSYNC_ERR_INVALID;
    bad += gradsync_all_reduce(comm, x, x, 1, 0, GRADSYNC_MAX, &opts) != GRADSYNC_ERR_INVALID;
    bad += gradsync_all_gather(comm, x, x, 1, 0, &opts) != GRADSYNC_ERR_INVALID;
    opts.flags = 4;
    bad += gradsync_barrier(comm, &opts) != GRADSYNC_ERR_INVALID;
    opts.flags = 0;
    opts.timeout_ms = -1;
    bad += gradsync_barrier(comm, &opts) != GRADSYNC_ERR_INVALID;
    opts.timeout_ms = INT64_MAX;
    bad += gradsync_barrier(comm, &opts) != 0;
    opts.algo = GRADSYNC_ALGO_COUNT;
    bad += gradsync_barrier(comm, &opts) != GRADSYNC_ERR_INVALID;
    opts.algo = 0;
    opts.stream = x;
    bad += gradsync_barrier(comm, &opts) != GRADSYNC_ERR_UNSUPPORTED;
    opts.stream = NULL;
    opts.size = 0;
    bad += gradsync_barrier(comm, &opts) != GRADSYNC_ERR_INVALID;
    bad += gradsync_barrier_post(comm, NULL, NULL) != GRADSYNC_ERR_INVALID;
    /* An older caller's options end after the flags. */
    struct {
        gradsync_coll_opts opts;
    } old;
    memset(&old, 0xff, sizeof old);
    old.opts.size = 8;
    old.opts.flags = GRADSYNC_ORDERED;
    bad += gradsync_barrier(comm, &old.opts) != 0;
    tap_ok(!bad, "arguments are checked (%d wrong)", bad);
    gradsync_comm_destroy(comm);
    /* The context's own. */
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    gradsync_context *none;
    bad = gradsync_context_create(NULL, NULL) != GRADSYNC_ERR_INVALID;
    config.log_level = 9;
    bad += gradsync_context_create(&config, &none) != GRADSYNC_ERR_INVALID || none;
    config.log_level = 0, config.progress = 3;
    bad += gradsync_context_create(&config, &none) != GRADSYNC_ERR_INVALID;
    config.progress = 0, config.timeout_ms = -5;
    bad += gradsync_context_create(&config, &none) != GRADSYNC_ERR_INVALID;
    config.timeout_ms = 0, config.transport = "carrier pigeons";
    bad +=
        gradsync_context_create(&config, &none) != GRADSYNC_ERR_UNSUPPORTED || !strstr(unit_error().message, "pigeons");
    config.transport = NULL;
    static const char *const times[] = {"x", "-1", "0", "nan", "5s", "1e300"};
    for (int i = 0; i < 6; i++) {
        setenv("GRADSYNC_TIMEOUT", times[i], 1);
        bad += gradsync_context_create(&config, &none) != GRADSYNC_ERR_INVALID;
    }
    setenv("GRADSYNC_TIMEOUT", "0.0001", 1);
    bad += gradsync_context_create(&config, &none) || gradsync_context_destroy(none);
    unsetenv("GRADSYNC_TIMEOUT");
    tap_ok(!bad, "the context's configuration is checked (%d wrong)", bad);
    gradsync_context_destroy(ctx);
}

int main(void)
{
    for (size_t i = 0; i < sizeof wrongs / sizeof *wrongs; i++) {
        wrong w = wrongs[i];
        tap_ok(!ranks_run_processes(3, join_wrongly, &w), "%s is told on every rank", w.name);
    }
    test_callback();
    for (int n = 3; n <= 5; n++)
        tap_ok(!ranks_run_processes(n, split_rank, NULL), "split over %d processes", n);
    tap_ok(!ranks_run_threads(4, split_rank, NULL), "split over 4 threads");
    tap_ok(!ranks_run_processes(3, several, NULL), "3 communicators in 3 threads of each of 3 processes");
    tap_ok(!ranks_run_threads(2, several, NULL), "3 communicators in 3 threads of each of 2 threads");
    tap_ok(!ranks_run_processes(2, fork_rank, NULL), "a forked child changes nothing for its parent's job");
    tap_ok(!ranks_run_processes(3, query_rank, NULL), "queries, processes");
    tap_ok(!ranks_run_threads(3, query_rank, NULL), "queries, threads");
    for (int posted = 0; posted < 3; posted++)
        tap_ok(!ranks_run_processes(2, log_rank, &posted), "no lock is held where the log function is called, %s",
               posted == 0   ? "blocking"
               : posted == 1 ? "wait"
                             : "test");
    test_arguments();
    return tap_done();
}
