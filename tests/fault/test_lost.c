/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks that die, leave, abort or stall: every survivor is told who, none hangs, and nothing
 * stays behind in /dev/shm. Kills come at random moments, between and inside of collectives.
 */
#include "ranks.h"
#include "tap.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <time.h>
#include <unistd.h>

/* What parent, ranks and killer tell each other. */
typedef struct shared {
    _Atomic int victim, killed, slow_seen;
    _Atomic long kill_us, told_us[16];
    _Atomic int bytes, kind, mode;
} shared;
enum { KILL, EXIT, LEAVE, ABORT, STALL };

static shared *sh;

static long now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* A /dev/shm of our own, since other programs use the machine's; where that is not allowed, ours are told by name. */
static int shm_is_ours;

static void make_shm_ours(void)
{
    shm_is_ours = !unshare(CLONE_NEWNS) && !mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
                  !mount("tmpfs", "/dev/shm", "tmpfs", 0, NULL);
    tap_note("/dev/shm is %s", shm_is_ours ? "this test's own" : "shared with others");
}

static int count_files(const char *folder)
{
    int count = 0;
    DIR *d = opendir(folder);
    for (const struct dirent *entry; d && (entry = readdir(d));)
        count += shm_is_ours || strstr(entry->d_name, "gradsync");
    if (d)
        closedir(d);
    return count;
}

/* All-reduces until one fails; the victim dies at a moment that the parent draws. */
static int run_rank(ranks_world *world, int rank, void *arg)
{
    (void)arg;
    gradsync_context *ctx;
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    config.timeout_ms = sh->mode == STALL ? 700 : 60000;
    gradsync_comm *comm = ranks_comm(world, rank, &config, &ctx);
    size_t count = (size_t)sh->bytes / 4;
    gradsync_mem *mem = NULL;
    float *buf;
    int rc = 0, victim = sh->victim;

    if (!comm || (sh->kind && gradsync_mem_alloc(ctx, (size_t)sh->bytes, NULL, &mem)))
        return 1;
    buf = mem ? gradsync_mem_addr(mem) : calloc(count, 4);
    long start = now_us();
    while (!rc) {
        if (rank == victim && now_us() - start >= sh->kill_us) {
            if (sh->mode == KILL && !sh->killed++)
                sh->kill_us = now_us();
            if (sh->mode == KILL)
                raise(SIGKILL);
            if (sh->mode == EXIT)
                _exit(0);
            if (sh->mode == ABORT) {
                gradsync_comm_abort(comm, "the test says so");
            } else if (sh->mode == STALL) {
                struct timespec t = {2, 0};
                nanosleep(&t, NULL); /* this is the fault: a rank that does something else */
            } else {
                break;
            }
        }
        rc = gradsync_all_reduce(comm, buf, buf, count, GRADSYNC_F32, GRADSYNC_MAX, NULL);
    }
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    sh->told_us[rank] = now_us();
    int want = sh->mode == STALL ? GRADSYNC_ERR_TIMEOUT : GRADSYNC_ERR_PEER_LOST;
    int good = (rank == victim && sh->mode == LEAVE) || (rc == want && info.peer == victim);
    if (!good)
        printf("# rank %d: rc %d, peer %d (victim %d): %s\n", rank, rc, info.peer, victim, info.message);
    /* A broken communicator fails fast, and says why. */
    if (rc) {
        int again = gradsync_all_reduce(comm, buf, buf, count, GRADSYNC_F32, GRADSYNC_MAX, NULL);
        gradsync_last_error(&info);
        good &= again == GRADSYNC_ERR_BROKEN && strstr(info.message, "earlier");
    }
    if (mem)
        gradsync_mem_free(mem);
    else
        free(buf);
    ranks_end(ctx, comm);
    return !good;
}

static int one_round(int mode, int n, unsigned *seed, long *told_ms)
{
    sh->mode = mode;
    sh->victim = rand_r(seed) % n;
    sh->bytes = 4 << (rand_r(seed) % 23);
    sh->kind = rand_r(seed) % 2;
    sh->kill_us = rand_r(seed) % 20000;
    sh->killed = 0;
    for (int r = 0; r < n; r++)
        sh->told_us[r] = 0;
    int failed = ranks_run_processes(n, run_rank, NULL);
    for (int r = 0; r < n; r++)
        if (r != sh->victim && mode == KILL && (sh->told_us[r] - sh->kill_us) / 1000 > *told_ms)
            *told_ms = (sh->told_us[r] - sh->kill_us) / 1000;
    return failed - (mode == KILL); /* the killed rank counts as failed */
}

static void test_rounds(const char *name, int mode, int rounds)
{
    unsigned seed = 20261120u + (unsigned)mode;
    int failed = 0, files = count_files("/dev/shm");
    long told_ms = 0;

    for (int i = 0; i < rounds; i++)
        failed += one_round(mode, 2 + i % 7, &seed, &told_ms) != 0;
    tap_ok(!failed, "%s: %d rounds over 2 to 8 ranks, the culprit named on every survivor", name, rounds);
    tap_ok(count_files("/dev/shm") == files, "%s: nothing is left in /dev/shm", name);
    if (mode == KILL)
        tap_note("the last survivor was told at most %ld ms after the kill", told_ms);
}

/* ---- Abort from another thread, while this one waits for ranks that never come -------- */

static void *aborter(void *arg)
{
    gradsync_comm_abort(arg, "from another thread");
    return NULL;
}

static int abort_rank(ranks_world *world, int rank, void *arg)
{
    (void)arg;
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    pthread_t thread;
    float x = 1;

    ranks_barrier(world, rank); /* both are made: an abort also ends a making that the other is still in */
    if (!comm)
        return 1;
    if (rank == 1) /* never calls: it waits until rank 0 has given up */
        ranks_barrier(world, rank);
    if (rank == 0)
        pthread_create(&thread, NULL, aborter, comm);
    int rc = gradsync_all_reduce(comm, &x, &x, 1, GRADSYNC_F32, GRADSYNC_SUM, NULL);
    gradsync_last_error(&info);
    if (rank == 0) {
        pthread_join(thread, NULL);
        ranks_barrier(world, rank);
    }
    int good = (rc == GRADSYNC_ERR_PEER_LOST || rc == GRADSYNC_ERR_BROKEN) && strstr(info.message, "another thread");
    if (!good)
        printf("# rank %d: rc %d: %s\n", rank, rc, info.message);
    ranks_end(ctx, comm);
    return !good;
}

/* ---- Destroy with requests in progress --------------------------------------------------- */

static int destroy_rank(ranks_world *world, int rank, void *arg)
{
    (void)arg;
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    gradsync_request *requests[20] = {0};
    static float x[20][64];
    int good = 1;

    if (!comm)
        return 1;
    if (rank == 0) {
        for (int i = 0; i < 20; i++)
            good &= !gradsync_all_reduce_post(comm, x[i], x[i], 64, GRADSYNC_F32, GRADSYNC_SUM, NULL, &requests[i]);
        good &= gradsync_test(requests[19]) == GRADSYNC_IN_PROGRESS;
    }
    gradsync_comm_destroy(comm);
    for (int i = 0; rank == 0 && i < 20; i++) {
        int rc = gradsync_wait(requests[i]);
        /* Rank 1 may have left first. */
        good &= rc == GRADSYNC_ERR_BROKEN || rc == GRADSYNC_ERR_PEER_LOST;
        gradsync_request_free(requests[i]);
    }
    good &= !gradsync_context_destroy(ctx);
    return !good;
}

int main(void)
{
    int full = getenv("GRADSYNC_TEST_FULL") != NULL;

    make_shm_ours();
    sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    test_rounds("killed", KILL, full ? 100 : 50);
    test_rounds("ended without a word", EXIT, full ? 20 : 7);
    test_rounds("left the communicator", LEAVE, full ? 20 : 7);
    test_rounds("aborted", ABORT, full ? 20 : 7);
    test_rounds("stalled", STALL, full ? 7 : 3);
    tap_ok(!ranks_run_processes(2, abort_rank, NULL), "abort from another thread ends a wait, processes");
    tap_ok(!ranks_run_threads(2, abort_rank, NULL), "abort from another thread ends a wait, threads");
    tap_ok(!ranks_run_processes(2, destroy_rank, NULL), "destroy ends requests in progress, processes");
    tap_ok(!ranks_run_threads(2, destroy_rank, NULL), "destroy ends requests in progress, threads");
    return tap_done();
}
