/* SPDX-License-Identifier: Apache-2.0 */
/* Posted collectives: many at once, in any order, from many threads, by descriptor, without a thread. */
#include "ranks.h"
#include "tap.h"
#include "unit.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

static gradsync_comm *open_comm(ranks_world *world, int rank, int progress, gradsync_context **ctx)
{
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    config.progress = progress;
    config.timeout_ms = 60000;
    return ranks_comm(world, rank, &config, ctx);
}

static int complain(int rank, const char *what, int rc)
{
    ranks_complain(rank, what, rc);
    return 1;
}

/* ---- Many outstanding ------------------------------------------------------------------ */

/* 24 posted at once, of all lengths and algorithms; each rank ends them in an order of its own. */
static int many(ranks_world *world, int rank, void *arg)
{
    enum { MANY = 24, MOST = 70000 };
    static const int algos[] = {0,
                                GRADSYNC_ALGO_RING,
                                GRADSYNC_ALGO_STAGED,
                                GRADSYNC_ALGO_DOUBLING,
                                GRADSYNC_ALGO_PAIRWISE,
                                GRADSYNC_ALGO_TREE,
                                0,
                                GRADSYNC_ALGO_ONESHOT};
    gradsync_context *ctx;
    gradsync_comm *comm = open_comm(world, rank, *(int *)arg, &ctx);
    int n = ranks_count(world), sum = n * (n - 1) / 2, bad = 0; /* sum: of all ranks */
    float *buf[MANY];
    gradsync_request *requests[MANY];
    gradsync_mem *mems[MANY] = {0};
    uint64_t seed = (uint64_t)rank + 5;

    if (!comm)
        return 1;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < MANY; i++) {
            gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;
            uint64_t count = i % 8 == 7 ? 100 : (uint64_t)(1 + (i * 7919 + round * 104729) % MOST);
            opts.algo = algos[i % 8];
            if (i % 3 == 0)
                bad |= gradsync_mem_alloc(ctx, MOST * 4, NULL, &mems[i]);
            buf[i] = mems[i] ? gradsync_mem_addr(mems[i]) : malloc(MOST * 4);
            for (uint64_t k = 0; k < count; k++)
                buf[i][k] = (float)(rank + i + (int)(k % 5));
            buf[i][MOST - 1] = (float)count;
            int rc =
                gradsync_all_reduce_post(comm, buf[i], buf[i], count, GRADSYNC_F32, GRADSYNC_SUM, &opts, &requests[i]);
            if (rc)
                return complain(rank, "post", rc);
        }
        for (int left = MANY; left; left--) {
            int k = (int)(unit_random(&seed) % (uint64_t)left), rc;
            if (unit_random(&seed) % 2)
                rc = gradsync_wait(requests[k]);
            else
                while ((rc = gradsync_test(requests[k])) == GRADSYNC_IN_PROGRESS)
                    ;
            if (rc)
                return complain(rank, "wait", rc);
            bad += gradsync_test(requests[k]) != 0 || gradsync_wait(requests[k]) != 0;
            gradsync_request_free(requests[k]);
            requests[k] = requests[left - 1];
        }
        for (int i = 0; i < MANY; i++) {
            uint64_t count = i % 8 == 7 ? 100 : (uint64_t)(1 + (i * 7919 + round * 104729) % MOST);
            for (uint64_t k = 0; k < count && k < MOST - 1; k++)
                bad += buf[i][k] != (float)(n * (i + (int)(k % 5)) + sum);
            if (mems[i])
                bad += gradsync_mem_free(mems[i]) != 0;
            else
                free(buf[i]);
            mems[i] = NULL;
        }
    }
    ranks_end(ctx, comm);
    return bad;
}

/* ---- Descriptors -------------------------------------------------------------------------- */

static int descriptors(ranks_world *world, int rank, void *arg)
{
    enum { REQUESTS = 6 };
    gradsync_context *ctx;
    gradsync_comm *comm = open_comm(world, rank, GRADSYNC_PROGRESS_AUTO, &ctx);
    gradsync_request *requests[REQUESTS];
    struct pollfd fds[REQUESTS];
    float x[REQUESTS][500];
    int bad = 0, before, alone = ranks_pid(world, 0) != ranks_pid(world, 1); /* nobody else opens any here */

    (void)arg;
    if (!comm)
        return 1;
    before = unit_count_fds();
    memset(x, 0, sizeof x);
    for (int i = 0; i < REQUESTS; i++) {
        bad += gradsync_all_reduce_post(comm, x[i], x[i], 500, GRADSYNC_F32, GRADSYNC_SUM, NULL, &requests[i]);
        fds[i] = (struct pollfd){gradsync_request_fd(requests[i]), POLLIN, 0};
        bad += fds[i].fd < 0 || gradsync_request_fd(requests[i]) != fds[i].fd;
        bad += !(fcntl(fds[i].fd, F_GETFD) & FD_CLOEXEC);
        if (rank == 0 && i == 2) /* the others cannot be done before this rank posts the rest */
            bad += poll(&fds[i], 1, 0) > 0 && gradsync_test(requests[i]) != 0;
    }
    for (int left = REQUESTS; left;) {
        if (poll(fds, REQUESTS, -1) <= 0)
            return complain(rank, "poll", -1);
        for (int i = 0; i < REQUESTS; i++)
            if (fds[i].revents) {
                bad += gradsync_test(requests[i]) != 0; /* readable is done */
                fds[i].fd = -1;
                left--;
            }
    }
    for (int i = 0; i < REQUESTS; i++)
        gradsync_request_free(requests[i]);
    bad += alone && unit_count_fds() != before;
    /* A descriptor that is asked for after the end is readable at once. */
    bad += gradsync_barrier_post(comm, NULL, &requests[0]) || gradsync_wait(requests[0]);
    fds[0] = (struct pollfd){gradsync_request_fd(requests[0]), POLLIN, 0};
    bad += poll(fds, 1, 0) != 1;
    gradsync_request_free(requests[0]);
    bad += alone && unit_count_fds() != before;
    ranks_end(ctx, comm);
    return bad;
}

/* ---- Without a thread ------------------------------------------------------------------------ */

static int manual(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    int threads = unit_count_threads(), bad = 0, rc;
    gradsync_comm *comm = open_comm(world, rank, GRADSYNC_PROGRESS_MANUAL, &ctx);
    gradsync_request *request;
    int32_t x = rank + 1, n = ranks_count(world);

    (void)arg;
    if (!comm)
        return 1;
    bad += gradsync_all_reduce_post(comm, &x, &x, 1, GRADSYNC_I32, GRADSYNC_SUM, NULL, &request);
    bad += gradsync_request_fd(request) != GRADSYNC_ERR_UNSUPPORTED || !strstr(unit_error().message, "MANUAL");
    ranks_barrier(world, rank);
    /* Posted everywhere, but nobody has moved anything. */
    bad += x != rank + 1;
    ranks_barrier(world, rank);
    while ((rc = gradsync_test(request)) == GRADSYNC_IN_PROGRESS)
        ;
    bad += rc || x != n * (n + 1) / 2;
    gradsync_request_free(request);
    bad += unit_count_threads() > threads + n; /* the ranks' own, if they are threads */
    /* A blocking call moves what was posted before it. */
    bad += gradsync_barrier_post(comm, NULL, &request) || gradsync_barrier(comm, NULL);
    bad += gradsync_test(request) != 0;
    gradsync_request_free(request);
    /* A lost peer is noticed by who only tests. */
    if (rank == 0) {
        bad += gradsync_barrier_post(comm, NULL, &request);
        ranks_barrier(world, rank);
        while ((rc = gradsync_test(request)) == GRADSYNC_IN_PROGRESS)
            ;
        if (rc != GRADSYNC_ERR_PEER_LOST || unit_error().peer <= 0)
            bad += complain(rank, "test", rc);
        gradsync_request_free(request);
    }
    if (rank)
        gradsync_comm_destroy(comm);
    if (rank) /* left before rank 0 looks */
        ranks_barrier(world, rank);
    else
        gradsync_comm_destroy(comm);
    bad += gradsync_context_destroy(ctx) != 0;
    return bad;
}

/* ---- wait_all, detached, errors ------------------------------------------------------------------ */

static int together(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    gradsync_comm *comm = open_comm(world, rank, GRADSYNC_PROGRESS_AUTO, &ctx);
    gradsync_request *requests[8];
    static float shared_x[8][8][1000];
    float(*x)[1000] = shared_x[rank];
    int bad = 0, n = ranks_count(world), rc;

    (void)arg;
    if (!comm)
        return 1;
    for (int i = 0; i < 8; i++) {
        for (int k = 0; k < 1000; k++)
            x[i][k] = (float)i;
        /* The fourth and the sixth are called with other counts here and there. */
        uint64_t count = i == 3 || i == 5 ? 900 + (uint64_t)(rank == 1) * (uint64_t)i : 1000;
        bad += gradsync_all_reduce_post(comm, x[i], x[i], count, GRADSYNC_F32, GRADSYNC_SUM, NULL, &requests[i]);
    }
    rc = gradsync_wait_all(requests, 8);
    bad += rc != GRADSYNC_ERR_MISMATCH || !strstr(unit_error().message, "903 elements");
    for (int i = 0; i < 8; i++) {
        int wrong = i == 3 || i == 5;
        bad += gradsync_test(requests[i]) != (wrong ? GRADSYNC_ERR_MISMATCH : 0);
        bad += x[i][0] != (float)(wrong ? i : n * i) || x[i][999] != (float)(wrong ? i : n * i);
        gradsync_request_free(requests[i]);
    }
    bad += gradsync_wait_all(NULL, 0) != 0 || gradsync_wait_all(NULL, 1) != GRADSYNC_ERR_INVALID;
    bad += gradsync_wait(NULL) != GRADSYNC_ERR_INVALID || gradsync_test(NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_request_fd(NULL) != GRADSYNC_ERR_INVALID || gradsync_request_free(NULL) != 0;
    /* Freed at once, done all the same: the barrier behind them says when. */
    for (int i = 0; i < 8; i++) {
        for (int k = 0; k < 1000; k++)
            x[i][k] = 1;
        bad += gradsync_all_reduce_post(comm, x[i], x[i], 1000, GRADSYNC_F32, GRADSYNC_SUM, NULL, &requests[i]);
        if (i % 2)
            bad += gradsync_request_fd(requests[i]) < 0;
        gradsync_request_free(requests[i]);
    }
    /* Done in any order: each lane's last is waited for by the collective that uses the lane next. */
    for (int i = 0; i < 8; i++)
        bad += gradsync_barrier(comm, NULL) != 0;
    for (int i = 0; i < 8; i++)
        bad += x[i][0] != (float)n || x[i][999] != (float)n;
    ranks_end(ctx, comm);
    return bad;
}

/* ---- Reports --------------------------------------------------------------------------------------- */

static int reports(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    gradsync_comm *comm = open_comm(world, rank, GRADSYNC_PROGRESS_AUTO, &ctx);
    gradsync_report r = {.size = sizeof r};
    gradsync_counters c = {.size = sizeof c}, before;
    gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;
    gradsync_request *request, *late;
    static double shared_x[8][3000];
    double *x = shared_x[rank];
    int bad = 0;

    (void)arg;
    if (!comm)
        return 1;
    bad += gradsync_comm_report(comm, &r) != GRADSYNC_ERR_INVALID || !strstr(unit_error().message, "no collective");
    bad += gradsync_comm_counters(comm, &c) != 0 || c.operations || c.bytes || c.failures;
    bad += gradsync_all_reduce(comm, x, x, 3000, GRADSYNC_F64, GRADSYNC_MAX, NULL);
    bad += gradsync_comm_report(comm, &r) || r.seq != 1 || r.coll != GRADSYNC_ALL_REDUCE || r.bytes != 24000 ||
           r.result || !r.algo || r.measured_us <= 0 || r.predicted_us <= 0 || r.wait_us > r.measured_us ||
           !strstr(r.reason, gradsync_algo_name(r.algo));
    opts.algo = GRADSYNC_ALGO_RING;
    bad += gradsync_all_reduce_post(comm, x, x, 3000, GRADSYNC_F64, GRADSYNC_MAX, &opts, &request);
    bad += gradsync_wait(request);
    bad += gradsync_request_report(request, &r) || r.seq != 2 || r.algo != GRADSYNC_ALGO_RING ||
           !strstr(r.reason, "asked for by the call");
    gradsync_request_free(request);
    before = c;
    bad += gradsync_comm_counters(comm, &c) || c.operations != 2 || c.bytes != 48000 ||
           c.by_algo[GRADSYNC_ALGO_RING] != before.by_algo[GRADSYNC_ALGO_RING] + 1;
    bad += gradsync_reduce_scatter(comm, x, NULL, 10, GRADSYNC_F64, GRADSYNC_MAX, NULL) != GRADSYNC_ERR_INVALID;
    bad += gradsync_comm_counters(comm, &c) || c.operations != 2 || c.failures; /* it never began */
    if (rank == 0) {
        bad += gradsync_barrier_post(comm, NULL, &late);
        bad +=
            gradsync_request_report(late, &r) != GRADSYNC_ERR_INVALID || !strstr(unit_error().message, "not finished");
    }
    ranks_barrier(world, rank);
    if (rank)
        bad += gradsync_barrier_post(comm, NULL, &late);
    bad += gradsync_wait(late);
    /* Requests outlive the communicator, with what they know. */
    gradsync_comm_destroy(comm);
    bad += gradsync_request_report(late, &r) || r.seq != 3 || r.coll != GRADSYNC_BARRIER || !r.reason[0];
    bad += gradsync_test(late) || gradsync_wait(late);
    int fd = gradsync_request_fd(late);
    struct pollfd p = {fd, POLLIN, 0};
    bad += fd < 0 || poll(&p, 1, 0) != 1;
    gradsync_request_free(late);
    bad += gradsync_context_destroy(ctx) != 0;
    return bad;
}

/* ---- Deadlines ---------------------------------------------------------------------------------------- */

static int deadlines(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    gradsync_comm *comm = open_comm(world, rank, *(int *)arg, &ctx);
    gradsync_request *requests[10];
    gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;
    int bad = 0;

    if (!comm)
        return 1;
    if (rank == 0) {
        /* The ninth has the shortest deadline, and waits behind eight others. */
        for (int i = 0; i < 10; i++) {
            opts.timeout_ms = i == 8 ? 200 : 50000;
            bad += gradsync_barrier_post(comm, &opts, &requests[i]);
        }
        int rc = gradsync_wait(requests[8]);
        gradsync_error_info info = unit_error();
        bad += rc != GRADSYNC_ERR_TIMEOUT || info.peer != 1 || info.rank != 0 || !strstr(info.message, "rank 1");
        if (bad)
            complain(rank, "wait", rc);
        for (int i = 0; i < 10; i++) {
            bad += gradsync_wait(requests[i]) != GRADSYNC_ERR_TIMEOUT;
            gradsync_request_free(requests[i]);
        }
        requests[0] = (gradsync_request *)&requests;
        bad += gradsync_barrier_post(comm, NULL, &requests[0]) != GRADSYNC_ERR_BROKEN || requests[0];
        bad += !strstr(unit_error().message, "earlier") || !strstr(unit_error().message, "TIMEOUT");
    }
    ranks_barrier(world, rank);
    if (rank) { /* who was waited for learns of it too */
        int rc = gradsync_barrier(comm, NULL);
        bad += rc != GRADSYNC_ERR_TIMEOUT || unit_error().peer != 1;
    }
    ranks_end(ctx, comm);
    return bad;
}

/* ---- Many threads --------------------------------------------------------------------------------------- */

typedef struct crowd {
    gradsync_comm *comm;
    gradsync_request *common;
    int n, bad;
} crowd;

static void *one_of_many(void *arg)
{
    crowd *c = arg;
    enum { EACH = 60 };
    gradsync_request *requests[EACH];
    int32_t x[EACH];
    int bad = gradsync_wait(c->common) != 0;

    for (int i = 0; i < EACH; i++) {
        x[i] = 1;
        if (i % 5 == 4) {
            /* Blocking ones between; all calls are alike, so their order is of no matter. */
            bad += gradsync_all_reduce(c->comm, &x[i], &x[i], 1, GRADSYNC_I32, GRADSYNC_SUM, NULL) != 0;
            requests[i] = NULL;
        } else {
            bad += gradsync_all_reduce_post(c->comm, &x[i], &x[i], 1, GRADSYNC_I32, GRADSYNC_SUM, NULL, &requests[i]);
        }
        if (i % 7 == 0 && requests[i])
            gradsync_test(requests[i]);
    }
    for (int i = EACH - 1; i >= 0; i--) {
        if (requests[i])
            bad += gradsync_wait(requests[i]) != 0;
        bad += x[i] != c->n;
        gradsync_request_free(requests[i]);
    }
    gradsync_counters counters = {.size = sizeof counters};
    gradsync_report report = {.size = sizeof report};
    bad += gradsync_comm_counters(c->comm, &counters) != 0 || gradsync_comm_report(c->comm, &report) != 0;
    c->bad = bad;
    return NULL;
}

static int threads_on_one(ranks_world *world, int rank, void *arg)
{
    enum { THREADS = 4 };
    gradsync_context *ctx;
    gradsync_comm *comm = open_comm(world, rank, *(int *)arg, &ctx);
    pthread_t threads[THREADS];
    crowd crowds[THREADS];
    gradsync_request *common;
    int bad = 0;

    if (!comm || gradsync_barrier_post(comm, NULL, &common))
        return 1;
    for (int t = 0; t < THREADS; t++) {
        crowds[t] = (crowd){comm, common, ranks_count(world), 0};
        pthread_create(&threads[t], NULL, one_of_many, &crowds[t]);
    }
    for (int t = 0; t < THREADS; t++) {
        pthread_join(threads[t], NULL);
        bad += crowds[t].bad;
    }
    gradsync_request_free(common);
    ranks_end(ctx, comm);
    return bad;
}

int main(void)
{
    static int automatic = GRADSYNC_PROGRESS_AUTO, by_hand = GRADSYNC_PROGRESS_MANUAL;
    static const struct {
        const char *name;
        ranks_fn fn;
        int n, *arg;
    } tests[] = {
        {"24 outstanding, ended in any order", many, 3, &automatic},
        {"24 outstanding, without a thread", many, 2, &by_hand},
        {"descriptors become readable", descriptors, 2, NULL},
        {"no thread, no progress but by test and wait", manual, 2, NULL},
        {"wait_all tells the first error; freed requests go on", together, 2, NULL},
        {"reports and counters", reports, 2, NULL},
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        tap_ok(!ranks_run_processes(tests[i].n, tests[i].fn, tests[i].arg), "%s, processes", tests[i].name);
        tap_ok(!ranks_run_threads(tests[i].n, tests[i].fn, tests[i].arg), "%s, threads", tests[i].name);
    }
    tap_ok(!ranks_run_processes(2, deadlines, &automatic), "a deadline in the queue counts");
    tap_ok(!ranks_run_processes(2, deadlines, &by_hand), "a deadline in the queue counts, without a thread");
    tap_ok(!ranks_run_threads(2, threads_on_one, &automatic), "4 threads a rank on one communicator");
    tap_ok(!ranks_run_processes(2, threads_on_one, &by_hand), "4 threads a rank, without a thread of the library's");
    return tap_done();
}
