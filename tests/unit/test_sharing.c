/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that comes and goes while ranks run ahead of each other: the peers must neither be missed
 * nor be needed where the collective does not need them. */
#include "ranks.h"
#include "tap.h"
#include "unit.h"

#include <string.h>

enum { BYTES = 1 << 20 };

static gradsync_comm *open_comm(ranks_world *world, int rank, gradsync_context **ctx)
{
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    config.progress = GRADSYNC_PROGRESS_MANUAL;
    config.timeout_ms = 60000;
    return ranks_comm(world, rank, &config, ctx);
}

/* The root of a broadcast has done its part, frees its memory and leaves, before the others have
 * even looked at the headers. They have all they need. */
static int leave_early(ranks_world *world, int rank, void *arg)
{
    gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;
    gradsync_context *ctx;
    gradsync_mem *mem;
    gradsync_request *request = NULL;
    gradsync_comm *comm = open_comm(world, rank, &ctx);
    int rc = 0;

    opts.algo = *(int *)arg;
    if (!comm || gradsync_mem_alloc(ctx, BYTES, NULL, &mem))
        return 1;
    char *buf = gradsync_mem_addr(mem);
    memset(buf, rank + 1, BYTES);
    if (rank) {
        rc = gradsync_broadcast_post(comm, buf, buf, BYTES, GRADSYNC_U8, 0, &opts, &request);
        if (!rc)
            rc = gradsync_test(request) == GRADSYNC_IN_PROGRESS ? 0 : -1;
    }
    ranks_barrier(world, rank);
    if (!rank) {
        rc = gradsync_broadcast(comm, buf, buf, BYTES, GRADSYNC_U8, 0, &opts);
        gradsync_mem_free(mem);
        ranks_end(ctx, comm);
    }
    ranks_barrier(world, rank);
    if (rank && !rc) {
        rc = gradsync_wait(request);
        if (rc)
            ranks_complain(rank, "wait", rc);
        else
            rc = buf[0] != 1 || buf[BYTES / 2] != 1 || buf[BYTES - 1] != 1;
    }
    if (rank) {
        gradsync_request_free(request);
        gradsync_mem_free(mem);
        ranks_end(ctx, comm);
    }
    return rc;
}

/* One rank allocates, uses and frees again and again, the other's memory is plain: so nothing that the
 * first says of its memory is of use to the second, and its pages must go all the same. */
static int plain_peer(ranks_world *world, int rank, void *arg)
{
    enum { ROUNDS = 700, SIZE = 64 << 10 };
    gradsync_context *ctx;
    gradsync_comm *comm = open_comm(world, rank, &ctx);
    char *plain;
    int rc = 0;

    (void)arg;
    if (!comm)
        return 1;
    plain = calloc(1, SIZE);
    int mappings = unit_count_mappings(), fds = unit_count_fds();
    for (int i = 0; !rc && i < ROUNDS; i++) {
        gradsync_mem *mem = NULL;
        char *buf = plain;
        if (rank == 0) {
            rc = gradsync_mem_alloc(ctx, SIZE, NULL, &mem);
            if (rc)
                break;
            buf = gradsync_mem_addr(mem);
        }
        buf[i] = 1;
        rc = gradsync_all_reduce(comm, buf, buf, SIZE, GRADSYNC_U8, GRADSYNC_SUM, NULL);
        if (!rc && buf[i] != 2)
            rc = -1;
        buf[i] = 0;
        if (mem)
            gradsync_mem_free(mem);
    }
    if (rc)
        ranks_complain(rank, "memory or its all-reduce", rc);
    if (rank && (unit_count_mappings() > mappings + 400 || unit_count_fds() > fds)) {
        printf("# rank %d holds %d mappings, %d descriptors more\n", rank, unit_count_mappings() - mappings,
               unit_count_fds() - fds);
        rc = 1;
    }
    free(plain);
    ranks_end(ctx, comm);
    return rc;
}

int main(void)
{
    static const int algos[] = {GRADSYNC_ALGO_RING, GRADSYNC_ALGO_TREE, GRADSYNC_ALGO_PAIRWISE};
    for (int i = 0; i < 3; i++) {
        int algo = algos[i];
        tap_ok(!ranks_run_processes(2, leave_early, &algo), "broadcast by %s: the root leaves early, processes",
               gradsync_algo_name(algo));
        tap_ok(!ranks_run_threads(2, leave_early, &algo), "broadcast by %s: the root leaves early, threads",
               gradsync_algo_name(algo));
    }
    tap_ok(!ranks_run_processes(2, plain_peer, NULL), "memory comes and goes beside a peer that cannot use it");
    return tap_done();
}
