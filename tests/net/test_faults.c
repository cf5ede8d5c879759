/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks on hosts that they believe to be different ones, over TCP: communicators split across them, ranks that want
 * another transport, a rank that is stopped, and making and ending communicators again and again.
 */
#include "ranks.h"
#include "tap.h"

#include <dirent.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef struct shared {
    _Atomic int told;
} shared;
static shared *sh;

/* ---- Splitting ---------------------------------------------------------------------- */

enum { BY_HOST, ACROSS, SOME, LONE, WAYS };

static int color_of(int way, int rank)
{
    switch (way) {
    case BY_HOST:
        return rank / 2;
    case ACROSS:
        return rank % 2;
    case SOME:
        return rank == 0 || rank == 3 ? -1 : 7;
    default:
        return rank == 5 ? 1 : 0;
    }
}

/* The sum of the ranks' numbers + 1, of all that have the same color. */
static int sum_is_wrong(gradsync_comm *part, int way, int rank, int n)
{
    enum { COUNT = 40000 };
    float *x = malloc(COUNT * sizeof *x), want = 0;
    int bad = 0;

    for (int i = 0; i < COUNT; i++)
        x[i] = (float)(rank + 1);
    for (int r = 0; r < n; r++)
        if (color_of(way, r) == color_of(way, rank))
            want += (float)(r + 1);
    int rc = gradsync_all_reduce(part, x, x, COUNT, GRADSYNC_F32, GRADSYNC_SUM, NULL);
    if (rc)
        ranks_complain(rank, "all_reduce in a part", rc);
    for (int i = 0; i < COUNT; i++)
        bad |= x[i] < want || x[i] > want;
    free(x);
    return rc || bad;
}

static int split_rank(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx), *parts[WAYS] = {0}, *again = NULL;
    int bad = 0, n = ranks_count(world);

    (void)arg;
    if (!comm)
        return 1;
    for (int way = 0; way < WAYS; way++) {
        int rc = gradsync_comm_split(comm, color_of(way, rank), -rank, NULL, &parts[way]);
        if (rc) {
            ranks_complain(rank, "gradsync_comm_split", rc);
            bad++;
            break;
        }
        bad += (parts[way] == NULL) != (color_of(way, rank) < 0);
        if (parts[way])
            bad += sum_is_wrong(parts[way], way, rank, n);
    }
    if (!bad && parts[ACROSS]) { /* a part of a part: every rank by itself, on one host or not */
        bad += gradsync_comm_split(parts[ACROSS], rank, 0, NULL, &again) != 0 || gradsync_comm_size(again) != 1;
        gradsync_comm_destroy(again);
    }
    for (int way = 0; way < WAYS; way++)
        gradsync_comm_destroy(parts[way]);
    ranks_end(ctx, comm);
    return bad;
}

/* ---- Who wants something else ----------------------------------------------------------- */

typedef struct wish {
    int strict;
    const char *first, *others; /* transports */
    int want;
    const char *text;
} wish;

static int wish_rank(ranks_world *world, int rank, void *arg)
{
    const wish *w = arg;
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    gradsync_context *ctx;
    gradsync_comm *comm = NULL;
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

    config.strict = rank == 0 && w->strict;
    config.transport = rank == 0 ? w->first : w->others;
    if (gradsync_context_create(&config, &ctx))
        return 1;
    int rc = gradsync_comm_create(ctx, rank, ranks_count(world), ranks_allgather, ranks_exchange_of(world, rank), NULL,
                                  &comm);
    gradsync_last_error(&info);
    int good = rc == w->want && (!rc || strstr(info.message, w->text));
    if (!good)
        printf("# rank %d: rc %d, not %d: %s\n", rank, rc, w->want, info.message);
    gradsync_comm_destroy(comm);
    return !good || gradsync_context_destroy(ctx);
}

/* ---- A rank that is stopped ----------------------------------------------------------------- */

static int stopped_rank(ranks_world *world, int rank, void *arg)
{
    int n = ranks_count(world), victim = n - 1, rc = 0;
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    gradsync_context *ctx;
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    float x[1000] = {0};

    (void)arg;
    config.timeout_ms = 1000;
    gradsync_comm *comm = ranks_comm(world, rank, &config, &ctx);
    if (!comm)
        return 1;
    rc = gradsync_all_reduce(comm, x, x, 1000, GRADSYNC_F32, GRADSYNC_SUM, NULL);
    if (!rc && rank == victim)
        raise(SIGSTOP);
    if (!rc)
        rc = gradsync_all_reduce(comm, x, x, 1000, GRADSYNC_F32, GRADSYNC_SUM, NULL);
    gradsync_last_error(&info);
    int good = rc == GRADSYNC_ERR_TIMEOUT && info.peer == victim;
    if (rank == victim) /* it hears of it, or finds that the others have gone */
        good = rc == GRADSYNC_ERR_TIMEOUT || rc == GRADSYNC_ERR_PEER_LOST || rc == GRADSYNC_ERR_BROKEN;
    else if (atomic_fetch_add(&sh->told, 1) == n - 2)
        kill(ranks_pid(world, victim), SIGCONT);
    if (!good)
        printf("# rank %d: rc %d, peer %d: %s\n", rank, rc, info.peer, info.message);
    ranks_end(ctx, comm);
    return !good;
}

/* ---- Again and again --------------------------------------------------------------------------- */

static int count_fds(void)
{
    int count = 0;
    DIR *d = opendir("/proc/self/fd");

    while (d && readdir(d))
        count++;
    if (d)
        closedir(d);
    return count;
}

/* 0 where a sanitizer holds on to freed memory; it looks for leaks itself. */
static long resident_kb(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return 0;
#endif
    char line[256];
    long kb = -1;
    FILE *f = fopen("/proc/self/status", "r");

    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "VmRSS:", 6))
            kb = atol(line + 6);
    if (f)
        fclose(f);
    return kb;
}

static int cycle_rank(ranks_world *world, int rank, void *arg)
{
    int cycles = *(int *)arg, fds = 0, bad = 0;
    long before = 0;

    for (int i = 0; i < cycles && !bad; i++) {
        gradsync_context *ctx;
        gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
        float x[500] = {0};
        if (!comm)
            return 1;
        /* In some cycles a rank leaves without a word while requests are in progress. */
        gradsync_request *request = NULL;
        if (i % 3)
            bad += gradsync_all_reduce(comm, x, x, 500, GRADSYNC_F32, GRADSYNC_SUM, NULL) != 0;
        else if (rank == 0)
            bad += gradsync_all_reduce_post(comm, x, x, 500, GRADSYNC_F32, GRADSYNC_SUM, NULL, &request) != 0;
        gradsync_comm_destroy(comm);
        if (request)
            gradsync_wait(request);
        gradsync_request_free(request);
        bad += gradsync_context_destroy(ctx) != 0;
        if (i == cycles / 4) {
            fds = count_fds();
            before = resident_kb();
        }
    }
    if (count_fds() != fds || resident_kb() > before + 4096) {
        printf("# rank %d: %d descriptors, then %d; %ld KB, then %ld\n", rank, fds, count_fds(), before, resident_kb());
        bad++;
    }
    return bad;
}

static void test_wishes(void)
{
    static const wish strict = {1, "auto", "auto", GRADSYNC_ERR_UNSUPPORTED, "strict"},
                      differ = {0, "tcp", "auto", GRADSYNC_ERR_MISMATCH, "transport"},
                      shm = {0, "shm", "shm", GRADSYNC_ERR_UNSUPPORTED, "shm"}, tcp = {1, "tcp", "tcp", 0, ""};

    tap_ok(!ranks_run_processes(4, wish_rank, (void *)(uintptr_t)&strict), "one strict rank: nobody falls back to TCP");
    tap_ok(!ranks_run_processes(4, wish_rank, (void *)(uintptr_t)&tcp), "who asks for TCP gets it, strict or not");
    tap_ok(!ranks_run_processes(4, wish_rank, (void *)(uintptr_t)&differ), "different transports are told to all");
    tap_ok(!ranks_run_processes(4, wish_rank, (void *)(uintptr_t)&shm), "shared memory does not reach other hosts");
}

int main(void)
{
    int cycles = getenv("GRADSYNC_TEST_FULL") ? 1000 : 200;

    sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    setenv("GRADSYNC_IB_DISABLE", "1", 1); /* TCP is what is tested, wherever this runs */
    setenv("TEST_HOSTS", "2", 1);
    tap_ok(!ranks_run_processes(6, split_rank, NULL), "parts by host, across hosts, without some, of one rank");
    setenv("TEST_HOSTS", "3,1,2", 1);
    tap_ok(!ranks_run_processes(6, split_rank, NULL), "the same where hosts have different numbers of ranks");
    test_wishes();
    sh->told = 0;
    tap_ok(!ranks_run_processes(4, stopped_rank, NULL), "a stopped rank on another host is named");
    setenv("TEST_HOSTS", "1", 1);
    sh->told = 0;
    tap_ok(!ranks_run_processes(3, stopped_rank, NULL), "and where every rank has a host of its own");
    tap_ok(!ranks_run_processes(2, cycle_rank, &cycles), "%d communicators over TCP leave nothing behind", cycles);
    setenv("TEST_HOSTS", "2", 1);
    cycles /= 2;
    tap_ok(!ranks_run_processes(4, cycle_rank, &cycles), "nor do %d over two hosts of two ranks", cycles);
    return tap_done();
}
