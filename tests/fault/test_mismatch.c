/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks that call different things: MISMATCH on every rank, naming who called what; buffers
 * untouched; and the communicator goes on. */
#include "ranks.h"
#include "tap.h"

#include <string.h>

enum { COUNT = 100000 };

typedef struct variant {
    const char *name;
    int coll, dtype, op, root;
    uint64_t count;
    uint32_t flags;
    const char *expect; /* in the message */
} variant;

/* What the odd rank calls; the others call an all-reduce of f32, sum, COUNT. */
static const variant variants[] = {
    {"another count", GRADSYNC_ALL_REDUCE, GRADSYNC_F32, GRADSYNC_SUM, 0, COUNT - 1, 0, "99999 elements"},
    {"a small count", GRADSYNC_ALL_REDUCE, GRADSYNC_F32, GRADSYNC_SUM, 0, 1, 0, "1 elements"},
    {"another dtype", GRADSYNC_ALL_REDUCE, GRADSYNC_BF16, GRADSYNC_SUM, 0, COUNT, 0, "bf16"},
    {"another op", GRADSYNC_ALL_REDUCE, GRADSYNC_F32, GRADSYNC_MAX, 0, COUNT, 0, "max"},
    {"another collective", GRADSYNC_BROADCAST, GRADSYNC_F32, GRADSYNC_SUM, 0, COUNT, 0, "broadcast"},
    {"a barrier", GRADSYNC_BARRIER, GRADSYNC_U8, GRADSYNC_SUM, 0, 0, 0, "barrier"},
    {"another flag", GRADSYNC_ALL_REDUCE, GRADSYNC_F32, GRADSYNC_SUM, 0, COUNT, GRADSYNC_ORDERED, "ordered"},
};
enum { VARIANTS = sizeof variants / sizeof *variants };

static int call(gradsync_comm *comm, const variant *v, float *buf)
{
    gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;
    opts.flags = v->flags;
    opts.timeout_ms = 20000;
    if (v->coll == GRADSYNC_BARRIER)
        return gradsync_barrier(comm, &opts);
    if (v->coll == GRADSYNC_BROADCAST)
        return gradsync_broadcast(comm, buf, buf, v->count, v->dtype, v->root, &opts);
    return gradsync_all_reduce(comm, buf, buf, v->count, v->dtype, v->op, &opts);
}

static int untouched(const float *buf, int rank)
{
    for (int i = 0; i < COUNT; i++)
        if (buf[i] != (float)(rank + 1))
            return 0;
    return 1;
}

static int run_rank(ranks_world *world, int rank, void *arg)
{
    static const variant usual = {"", GRADSYNC_ALL_REDUCE, GRADSYNC_F32, GRADSYNC_SUM, 0, COUNT, 0, ""};
    int n = ranks_count(world), odd = n - 1, bad = 0, library = *(int *)arg;
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    gradsync_mem *mem = NULL;
    float *buf;

    if (!comm || (library && gradsync_mem_alloc(ctx, COUNT * sizeof *buf, NULL, &mem)))
        return 1;
    buf = library ? gradsync_mem_addr(mem) : malloc(COUNT * sizeof *buf);
    for (int k = 0; k < VARIANTS; k++) {
        gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
        for (int i = 0; i < COUNT; i++)
            buf[i] = (float)(rank + 1);
        int rc = call(comm, rank == odd ? &variants[k] : &usual, buf);
        gradsync_last_error(&info);
        int good = rc == GRADSYNC_ERR_MISMATCH && info.code == rc && strstr(info.message, variants[k].expect) &&
                   untouched(buf, rank) && info.rank == rank && (n == 2 ? info.peer == 1 - rank : info.peer == odd);
        if (!good) {
            printf("# rank %d, %s: rc %d peer %d: %s\n", rank, variants[k].name, rc, info.peer, info.message);
            bad++;
        }
        for (int i = 0; i < COUNT; i++)
            buf[i] = 1;
        rc = call(comm, &usual, buf);
        if (rc || buf[0] != (float)n || buf[COUNT - 1] != (float)n) {
            ranks_complain(rank, "the communicator did not go on", rc);
            bad++;
        }
    }
    if (library)
        gradsync_mem_free(mem);
    else
        free(buf);
    ranks_end(ctx, comm);
    return bad;
}

int main(void)
{
    for (int n = 2; n <= 5; n++)
        for (int library = 0; library < 2; library++) {
            tap_ok(!ranks_run_processes(n, run_rank, &library), "%d mismatches named by %d processes, %s memory",
                   VARIANTS, n, library ? "library" : "plain");
            tap_ok(!ranks_run_threads(n, run_rank, &library), "%d mismatches named by %d threads, %s memory", VARIANTS,
                   n, library ? "library" : "plain");
        }
    return tap_done();
}
