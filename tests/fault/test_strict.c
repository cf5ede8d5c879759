/* SPDX-License-Identifier: Apache-2.0 */
/* A fallback is never silent: staging of long messages is told of once, and refused on every rank
 * if any rank is strict; library memory needs no fallback. */
#include "ranks.h"
#include "tap.h"

#include <string.h>

enum { COUNT = 1 << 19 };

typedef struct scenario {
    int strict_rank; /* -1: none */
    int library;
} scenario;

static _Thread_local int told;

static void count_warnings(void *arg, int level, const char *message)
{
    (void)arg;
    told += level == GRADSYNC_LOG_WARN && strstr(message, "staging") && strstr(message, "GRADSYNC_MEM_REMAP");
}

static int run_rank(ranks_world *world, int rank, void *arg)
{
    const scenario *s = arg;
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    gradsync_context *ctx;
    gradsync_mem *mem = NULL;
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    int want = s->strict_rank >= 0 && !s->library ? GRADSYNC_ERR_UNSUPPORTED : 0, bad = 0;

    told = 0;
    config.log = count_warnings;
    config.strict = rank == s->strict_rank;
    gradsync_comm *comm = ranks_comm(world, rank, &config, &ctx);
    if (!comm || (s->library && gradsync_mem_alloc(ctx, COUNT * 4, NULL, &mem)))
        return 1;
    float *buf = mem ? gradsync_mem_addr(mem) : calloc(COUNT, 4);
    for (int i = 0; i < 3; i++) {
        int rc = gradsync_all_reduce(comm, buf, buf, COUNT, GRADSYNC_F32, GRADSYNC_SUM, NULL);
        gradsync_last_error(&info);
        bad += rc != want || (rc && !strstr(info.message, "strict"));
    }
    /* Short messages need no reach, and a refusal leaves the communicator whole. */
    bad += gradsync_all_reduce(comm, buf, buf, 16, GRADSYNC_F32, GRADSYNC_SUM, NULL) != 0;
    bad += told != (s->strict_rank < 0 && !s->library);
    if (bad)
        printf("# rank %d: told %d times, %s\n", rank, told, info.message);
    if (mem)
        gradsync_mem_free(mem);
    else
        free(buf);
    ranks_end(ctx, comm);
    return bad;
}

int main(void)
{
    scenario plain = {-1, 0}, strict = {1, 0}, library = {1, 1};

    tap_ok(!ranks_run_processes(3, run_rank, &plain), "staging is told of, once");
    tap_ok(!ranks_run_threads(3, run_rank, &plain), "staging is told of, once, threads");
    tap_ok(!ranks_run_processes(3, run_rank, &strict), "one strict rank: staging is refused on all");
    tap_ok(!ranks_run_processes(3, run_rank, &library), "library memory satisfies a strict rank");
    return tap_done();
}
