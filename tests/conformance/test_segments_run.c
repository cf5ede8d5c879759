/* SPDX-License-Identifier: Apache-2.0 */
/* Messages so long that their plans come in several segments: every algorithm that segments, every
 * collective, with a tail that is no multiple of anything; each result compared bit for bit. With all
 * of its staging memory a communicator does hundreds of MiB in one segment; here it is given little. */
#include "ranks.h"
#include "reference.h"
#include "tap.h"

#include <string.h>

#include "comm/comm.h"

enum { STAGE = 4096, MOST = 3 << 20 };

typedef struct long_case {
    int algo, coll, dtype, n;
    uint64_t count;
    int kind; /* 0: plain, 1: library memory */
} long_case;

/* The number of segments that the engine will make of it, by the library's own arithmetic. */
static uint64_t segments_of(const long_case *c)
{
    gsi_plan_args args = {.algo = c->algo,
                          .coll = c->coll,
                          .n = c->n,
                          .root = c->n - 1,
                          .esize = (uint32_t)gradsync_dtype_size(c->dtype),
                          .count = c->count,
                          .stride = c->count,
                          .stage_bytes = STAGE,
                          .slot_bytes = STAGE,
                          .reach = c->kind};
    args.acc_esize = args.esize < 4 && c->dtype <= GRADSYNC_BF16 ? 4 : args.esize;
    uint64_t most = gsi_plan_segment(&args);
    return (c->count - 1) / most + 1;
}

static int post(gradsync_comm *comm, const reference_case *c, int algo, const void *send, void *recv,
                gradsync_request **request)
{
    gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;
    opts.algo = algo;
    switch (c->coll) {
    case GRADSYNC_ALL_REDUCE:
        return gradsync_all_reduce_post(comm, send, recv, c->count, c->dtype, c->op, &opts, request);
    case GRADSYNC_REDUCE_SCATTER:
        return gradsync_reduce_scatter_post(comm, send, recv, c->count, c->dtype, c->op, &opts, request);
    case GRADSYNC_ALL_GATHER:
        return gradsync_all_gather_post(comm, send, recv, c->count, c->dtype, &opts, request);
    case GRADSYNC_BROADCAST:
        return gradsync_broadcast_post(comm, send, recv, c->count, c->dtype, c->root, &opts, request);
    default:
        return gradsync_reduce_post(comm, send, recv, c->count, c->dtype, c->op, c->root, &opts, request);
    }
}

/* Two at once, so that they take turns with the staging memory; the second finds its plans in the cache. */
static int run_rank(ranks_world *world, int rank, void *arg)
{
    const long_case *l = arg;
    reference_case c = {.seed = 20261120,
                        .coll = l->coll,
                        .dtype = l->dtype,
                        .op = GRADSYNC_SUM,
                        .n = l->n,
                        .root = l->n - 1,
                        .data = REFERENCE_EXACT,
                        .count = l->count};
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    gradsync_mem *mems[3] = {0};
    gradsync_request *requests[2] = {0};
    gradsync_report report = {.size = sizeof report};
    size_t size = gradsync_dtype_size(l->dtype);
    uint64_t recv = reference_recv_count(&c, rank), counts[3] = {reference_send_count(&c, rank), recv, recv};
    uint64_t first = 0, wrong = 0;
    unsigned char *buf[3];
    int bad = 0, rc = 0;

    if (!comm)
        return 1;
    comm->engine.ep->stage_bytes = STAGE; /* on all ranks, before there are plans that use more */
    for (int i = 0; i < 3; i++) {
        size_t bytes = counts[i] * size + 64;
        if (l->kind && gradsync_mem_alloc(ctx, bytes, NULL, &mems[i]))
            return 1;
        buf[i] = l->kind ? gradsync_mem_addr(mems[i]) : calloc(1, bytes);
        memset(buf[i] + bytes - 64, 0xa5, 64);
    }
    reference_fill(&c, rank, 0, counts[0], buf[0]);
    for (int i = 0; !rc && i < 2; i++)
        rc = post(comm, &c, l->algo, buf[0], buf[1 + i], &requests[i]);
    for (int i = 1; !rc && i >= 0; i--) {
        rc = gradsync_wait(requests[i]);
        gradsync_request_report(requests[i], &report);
        gradsync_request_free(requests[i]);
        bad += report.algo != l->algo;
    }
    if (!rc)
        wrong = reference_check(&c, rank, buf[1], &first);
    bad += memcmp(buf[1], buf[2], recv * size) != 0;
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 64; k++)
            bad += buf[i][counts[i] * size + (size_t)k] != 0xa5;
    if (rc)
        ranks_complain(rank, gradsync_coll_name(l->coll), rc);
    else if (wrong || bad)
        printf("# rank %d: %llu wrong, the first %llu; %d others; ran %s\n", rank, (unsigned long long)wrong,
               (unsigned long long)first, bad, gradsync_algo_name(report.algo));
    for (int i = 0; i < 3; i++) {
        if (mems[i])
            gradsync_mem_free(mems[i]);
        else
            free(buf[i]);
    }
    ranks_end(ctx, comm);
    return rc || wrong || bad;
}

/* The first length, going up, that makes `wanted` segments, and a bit more. 0: no length that is worth the time. */
static uint64_t long_enough(long_case *c, uint64_t wanted)
{
    uint64_t most = MOST / gradsync_dtype_size(c->dtype);
    if (c->coll == GRADSYNC_REDUCE_SCATTER || c->coll == GRADSYNC_ALL_GATHER)
        most /= (uint64_t)c->n;
    for (c->count = 5003; c->count < most; c->count += c->count / 4)
        if (segments_of(c) >= wanted) {
            c->count += 13;
            return c->count;
        }
    c->count = 0;
    return 0;
}

int main(void)
{
    static const int algos[] = {GRADSYNC_ALGO_STAGED, GRADSYNC_ALGO_RING, GRADSYNC_ALGO_TREE, GRADSYNC_ALGO_PAIRWISE};
    static const int colls[] = {GRADSYNC_ALL_REDUCE, GRADSYNC_REDUCE_SCATTER, GRADSYNC_ALL_GATHER, GRADSYNC_BROADCAST,
                                GRADSYNC_REDUCE};
    int segmented = 0, full = getenv("GRADSYNC_TEST_FULL") != NULL;

    for (int a = 0; a < 4; a++)
        for (int k = 0; k < 5; k++) {
            for (int n = 2; n <= 5; n++) {
                int tree = algos[a] == GRADSYNC_ALGO_TREE; /* which has no plan where every rank has a block */
                long_case c = {algos[a], colls[k], n == 3 ? GRADSYNC_BF16 : GRADSYNC_U8, n, 0, n / 2 % 2};
                if ((!full && (n + a + k) % 2) ||
                    (tree && (c.coll == GRADSYNC_REDUCE_SCATTER || c.coll == GRADSYNC_ALL_GATHER)))
                    continue;
                if (!long_enough(&c, 3))
                    c.kind = 0;
                if (!c.count && !long_enough(&c, 3))
                    continue;
                uint64_t segments = segments_of(&c);
                int failed = n % 2 ? ranks_run_threads(n, run_rank, &c) : ranks_run_processes(n, run_rank, &c);
                tap_ok(!failed, "%s %s of %llu %s in %llu segments over %d ranks, %s memory",
                       gradsync_algo_name(c.algo), gradsync_coll_name(c.coll), (unsigned long long)c.count,
                       gradsync_dtype_name(c.dtype), (unsigned long long)segments, n, c.kind ? "library" : "plain");
                segmented++;
            }
        }
    tap_ok(segmented >= 25, "%d cases were long enough", segmented);
    return tap_done();
}
