/* SPDX-License-Identifier: Apache-2.0 */
/* One test for each bug that was fixed; its comment says what went wrong. */
#include "ranks.h"
#include "tap.h"

#include <string.h>
#include <time.h>

static int all_are(const float *x, size_t n, float want)
{
    for (size_t i = 0; i < n; i++)
        if (x[i] != want)
            return 0;
    return 1;
}

/* A fixed oneshot did not refuse a payload longer than a slot: it overwrote the slots behind it. And the error of
 * an UNSUPPORTED collective came out as success. */
static int long_oneshot(ranks_world *world, int rank, void *arg)
{
    enum { LONG = 200000, SHORT = 500 };
    gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    float *x, y[SHORT];
    int n = ranks_count(world), bad = 0;

    (void)arg;
    if (!comm)
        return 1;
    x = calloc(LONG, sizeof *x);
    opts.algo = GRADSYNC_ALGO_ONESHOT;
    for (int round = 0; round < 6; round++) {
        int rc = gradsync_all_reduce(comm, x, x, LONG, GRADSYNC_F32, GRADSYNC_SUM, &opts);
        gradsync_last_error(&info);
        bad += rc != GRADSYNC_ERR_UNSUPPORTED || info.code != rc || !strstr(info.message, "oneshot");
        for (int i = 0; i < SHORT; i++)
            y[i] = (float)round;
        rc = gradsync_all_reduce(comm, y, y, SHORT, GRADSYNC_F32, GRADSYNC_SUM, &opts);
        bad += rc || !all_are(y, SHORT, (float)(n * round));
    }
    free(x);
    ranks_end(ctx, comm);
    return bad;
}

/* Two collectives in flight that both need the staging memory could get it in another order on another rank:
 * wrong sums, or a deadlock. */
static int many_staged(ranks_world *world, int rank, void *arg)
{
    enum { POSTED = 12, COUNT = 5000, ROUNDS = 40 };
    static const int algos[] = {GRADSYNC_ALGO_STAGED, GRADSYNC_ALGO_RING, GRADSYNC_ALGO_PAIRWISE, GRADSYNC_ALGO_TREE};
    gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    gradsync_request *requests[POSTED];
    float *x;
    int n = ranks_count(world), sum = n * (n - 1) / 2, bad = 0; /* sum: of all ranks */

    (void)arg;
    if (!comm)
        return 1;
    x = malloc(POSTED * COUNT * sizeof *x);
    opts.timeout_ms = 60000;
    for (int round = 0; round < ROUNDS && !bad; round++) {
        for (int k = 0; k < POSTED; k++) {
            opts.algo = algos[(k + round) % 4];
            for (int i = 0; i < COUNT; i++)
                x[k * COUNT + i] = (float)(k + rank);
            bad += gradsync_all_reduce_post(comm, x + k * COUNT, x + k * COUNT, COUNT, GRADSYNC_F32, GRADSYNC_SUM,
                                            &opts, &requests[k]) != 0;
        }
        for (int k = POSTED - 1; k >= 0; k--) {
            int rc = gradsync_wait(requests[k]);
            if (rc)
                ranks_complain(rank, "a posted all-reduce", rc);
            bad += rc || !all_are(x + k * COUNT, COUNT, (float)(n * k + sum));
            gradsync_request_free(requests[k]);
        }
    }
    free(x);
    ranks_end(ctx, comm);
    return bad;
}

/* A root that had sent all it had to could free its memory before a slow rank had looked it up: INTERNAL, though
 * that rank did not need it any more. */
static int freed_early(ranks_world *world, int rank, void *arg)
{
    enum { COUNT = 3000, ROUNDS = 60 };
    gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    int n = ranks_count(world), bad = 0;

    (void)arg;
    if (!comm)
        return 1;
    for (int round = 0; round < ROUNDS && !bad; round++) {
        int root = round % n;
        gradsync_mem *mem;
        opts.algo = round & 1 ? GRADSYNC_ALGO_TREE : GRADSYNC_ALGO_RING;
        if (gradsync_mem_alloc(ctx, COUNT * sizeof(float), NULL, &mem))
            return 1;
        float *x = gradsync_mem_addr(mem);
        for (int i = 0; rank == root && i < COUNT; i++)
            x[i] = (float)round;
        int rc = gradsync_broadcast(comm, x, x, COUNT, GRADSYNC_F32, root, &opts);
        if (rc)
            ranks_complain(rank, "broadcast", rc);
        bad += rc || !all_are(x, COUNT, (float)round);
        bad += gradsync_mem_free(mem) != 0;
    }
    ranks_end(ctx, comm);
    return bad;
}

/* test() said IN_PROGRESS after the request's descriptor was readable; and seq counted the library's own calls. */
static int first_seq(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    gradsync_report report = {.size = sizeof report};
    float x = 1;

    (void)arg;
    if (!comm)
        return 1;
    int bad = gradsync_all_reduce(comm, &x, &x, 1, GRADSYNC_F32, GRADSYNC_SUM, NULL) != 0;
    bad += gradsync_comm_report(comm, &report) || report.seq != 1;
    ranks_end(ctx, comm);
    return bad;
}

int main(void)
{
    for (int n = 2; n <= 5; n++) {
        tap_ok(!ranks_run_processes(n, long_oneshot, NULL), "a oneshot longer than a slot is refused, %d ranks", n);
        tap_ok(!ranks_run_processes(n, many_staged, NULL), "staging is handed out in one order, %d processes", n);
        tap_ok(!ranks_run_threads(n, many_staged, NULL), "staging is handed out in one order, %d threads", n);
        tap_ok(!ranks_run_processes(n, freed_early, NULL), "memory may be freed by who is finished, %d ranks", n);
    }
    tap_ok(!ranks_run_threads(2, first_seq, NULL), "the first collective is number 1");
    return tap_done();
}
