/* SPDX-License-Identifier: Apache-2.0 */
/* Memory, descriptors and patience that run out: errors that say so, no crash, no hang, nothing left. */
#include "ranks.h"
#include "tap.h"
#include "unit.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/alloc.h"

enum { BYTES = 300000 };

/* ---- An exchange that a rank can leave ----------------------------------------------------- */

typedef struct meeting {
    pthread_mutex_t lock;
    pthread_cond_t news;
    int arrived, round, gone;
    char room[2][2][8192]; /* of odd and even rounds, since one rank may be a round ahead */
} meeting;

typedef struct seat {
    meeting *m;
    int rank;
} seat;

static int gather(void *arg, const void *send, void *recv, size_t bytes)
{
    seat *s = arg;
    meeting *m = s->m;
    int rc = 0;

    pthread_mutex_lock(&m->lock);
    int round = m->round;
    memcpy(m->room[round % 2][s->rank], send, bytes);
    if (++m->arrived == 2) {
        m->arrived = 0;
        m->round++;
        pthread_cond_broadcast(&m->news);
    }
    while (m->round == round && !m->gone)
        pthread_cond_wait(&m->news, &m->lock);
    if (m->round == round)
        rc = 1;
    for (int r = 0; r < 2; r++)
        memcpy((char *)recv + (size_t)r * bytes, m->room[round % 2][r], bytes);
    pthread_mutex_unlock(&m->lock);
    return rc;
}

static void leave(meeting *m)
{
    pthread_mutex_lock(&m->lock);
    m->gone = 1;
    pthread_cond_broadcast(&m->news);
    pthread_mutex_unlock(&m->lock);
}

/* ---- Allocations that fail ------------------------------------------------------------------ */

/* Everything a rank does; the first error ends it. 1: it said so as it should, or there was none. */
static int live(seat *s)
{
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    gradsync_mem_config remap = GRADSYNC_MEM_CONFIG_INIT;
    gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;
    gradsync_context *ctx = NULL;
    gradsync_comm *comm = NULL, *part = NULL;
    gradsync_mem *mem = NULL, *registered = NULL, *plain = NULL;
    gradsync_request *requests[3] = {0};
    char *own = calloc(1, BYTES);
    int rc, good = 1;

    config.timeout_ms = 20000;
    remap.flags = GRADSYNC_MEM_REMAP;
    rc = gradsync_context_create(&config, &ctx);
    if (!rc)
        rc = gradsync_comm_create(ctx, s->rank, 2, gather, s, NULL, &comm);
    if (!rc)
        rc = gradsync_mem_alloc(ctx, BYTES, NULL, &mem);
    if (!rc)
        rc = gradsync_mem_register(ctx, own, BYTES, &remap, &registered);
    if (!rc) {
        char *p = gradsync_mem_addr(mem);
        rc = gradsync_all_reduce(comm, p, p, BYTES, GRADSYNC_U8, GRADSYNC_SUM, NULL);
        if (!rc)
            rc = gradsync_all_reduce(comm, own, own, BYTES, GRADSYNC_U8, GRADSYNC_SUM, NULL);
        if (!rc)
            rc = gradsync_mem_deregister(registered);
        registered = rc ? registered : NULL;
        if (!rc)
            rc = gradsync_mem_register(ctx, own, BYTES, NULL, &plain);
        for (int i = 0; !rc && i < 3; i++) {
            opts.algo = i == 1 ? GRADSYNC_ALGO_RING : i == 2 ? GRADSYNC_ALGO_DOUBLING : 0;
            rc = gradsync_all_reduce_post(comm, own + i * 90000, own + i * 90000, 90000, GRADSYNC_U8, GRADSYNC_SUM,
                                          &opts, &requests[i]);
        }
        if (!rc)
            rc = gradsync_request_fd(requests[0]) < 0 ? -1 : 0;
        for (int i = 0; i < 3; i++)
            if (requests[i]) {
                int result = gradsync_wait(requests[i]);
                rc = rc ? rc : result;
                gradsync_request_free(requests[i]);
            }
    }
    if (!rc)
        rc = gradsync_comm_split(comm, 0, 0, NULL, &part);
    if (!rc)
        rc = gradsync_barrier(part, NULL);
    if (rc) {
        gradsync_error_info info = unit_error();
        /* The one whose allocation failed, or its peer, who is told of that. After a post that found the
         * communicator broken, those before it were waited for, and the last error is theirs. */
        good = rc != GRADSYNC_ERR_TIMEOUT && rc != GRADSYNC_ERR_INTERNAL && rc != GRADSYNC_ERR_MISMATCH &&
               (info.code == rc || rc == GRADSYNC_ERR_BROKEN) && strlen(info.message) > 10;
        if (!good)
            printf("# rank %d: %d: %s\n", s->rank, rc, info.message);
        leave(s->m);
        if (comm)
            gradsync_comm_abort(comm, "its memory ran out");
    }
    gradsync_comm_destroy(part);
    gradsync_comm_destroy(comm);
    if (mem)
        good &= !gradsync_mem_free(mem);
    if (registered)
        good &= !gradsync_mem_deregister(registered);
    if (plain)
        good &= !gradsync_mem_deregister(plain);
    good &= !gradsync_context_destroy(ctx);
    free(own);
    return good;
}

static void *live_thread(void *arg)
{
    return (void *)(intptr_t)live(arg);
}

static int live_twice(void)
{
    meeting m = {.arrived = 0};
    seat seats[2] = {{&m, 0}, {&m, 1}};
    pthread_t thread;
    void *other;

    pthread_mutex_init(&m.lock, NULL);
    pthread_cond_init(&m.news, NULL);
    pthread_create(&thread, NULL, live_thread, &seats[1]);
    int good = live(&seats[0]);
    pthread_join(thread, &other);
    pthread_mutex_destroy(&m.lock);
    pthread_cond_destroy(&m.news);
    return good && other;
}

static void test_allocations(void)
{
    long most = 0;
    int bad = 0, full = getenv("GRADSYNC_TEST_FULL") != NULL;

    gsi_alloc_fail_at(1000000);
    int good = live_twice();
    most = gsi_alloc_count();
    gsi_alloc_fail_at(0);
    tap_ok(good && most > 50, "two ranks live on %ld allocations", most);
    int fds = unit_count_fds(), mappings = unit_count_mappings(), threads = unit_count_threads();
    for (long n = 1; n <= most + 3 && bad < 3; n += full || n < 60 ? 1 : 5) {
        gsi_alloc_fail_at(n);
        good = live_twice();
        gsi_alloc_fail_at(0);
        if (good && unit_count_fds() == fds && unit_count_mappings() == mappings && unit_count_threads() == threads)
            continue;
        tap_note("allocation %ld: good %d, %d descriptors, %d mappings more", n, good, unit_count_fds() - fds,
                 unit_count_mappings() - mappings);
        bad++;
    }
    tap_ok(!bad, "whichever of them fails: an error on both, and nothing left");
    tap_ok(live_twice(), "and all is well afterwards");
}

/* ---- Descriptors --------------------------------------------------------------------------------- */

static int lack_descriptors(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx = NULL;
    gradsync_comm *comm = NULL;
    gradsync_mem *mems[4] = {0};
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    struct rlimit limit;
    int bad = 0, fds = unit_count_fds(), spare = *(int *)arg, rc;

    config.timeout_ms = 20000;
    getrlimit(RLIMIT_NOFILE, &limit);
    struct rlimit before = limit;
    /* All below the limit but `spare` are taken. */
    int taken[256], ntaken = 0, top = 0, fd;
    for (fd = 0; fd < 4096; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            top = fd;
    while ((fd = dup(1)) < top && ntaken < 256)
        taken[ntaken++] = fd;
    close(fd);
    limit.rlim_cur = (rlim_t)top + 1 + (rlim_t)spare;
    if (rank == 0)
        setrlimit(RLIMIT_NOFILE, &limit);
    rc = gradsync_context_create(&config, &ctx);
    if (!rc)
        rc = gradsync_comm_create(ctx, rank, ranks_count(world), ranks_allgather, ranks_exchange_of(world, rank), NULL,
                                  &comm);
    for (int i = 0; !rc && i < 4; i++) {
        rc = gradsync_mem_alloc(ctx, BYTES, NULL, &mems[i]);
        if (rc) /* so that the peer does not wait for what never comes */
            gradsync_comm_abort(comm, unit_error().message);
        else
            rc = gradsync_all_reduce(comm, gradsync_mem_addr(mems[i]), gradsync_mem_addr(mems[i]), BYTES, GRADSYNC_U8,
                                     GRADSYNC_SUM, NULL);
    }
    if (rc) {
        gradsync_error_info info = unit_error();
        int told = rc == GRADSYNC_ERR_SYSTEM || rc == GRADSYNC_ERR_PEER_LOST || rc == GRADSYNC_ERR_UNSUPPORTED;
        if (!told || (rank == 0 && rc == GRADSYNC_ERR_SYSTEM && !strstr(info.message, "open files"))) {
            printf("# rank %d with %d descriptors: %d: %s\n", rank, spare, rc, info.message);
            bad++;
        }
    } else if (spare < 6 && rank == 0) {
        printf("# %d descriptors were enough?\n", spare);
        bad++;
    }
    setrlimit(RLIMIT_NOFILE, &before);
    while (ntaken)
        close(taken[--ntaken]);
    gradsync_comm_destroy(comm);
    for (int i = 0; i < 4; i++)
        if (mems[i])
            bad += gradsync_mem_free(mems[i]) != 0;
    bad += gradsync_context_destroy(ctx) != 0;
    if (unit_count_fds() != fds) {
        printf("# rank %d with %d descriptors: %d are left\n", rank, spare, unit_count_fds() - fds);
        bad++;
    }
    return bad;
}

static void test_descriptors(void)
{
    int failed = 0;
    for (int spare = 0; spare <= 14; spare++)
        failed += ranks_run_processes(2, lack_descriptors, &spare) != 0;
    tap_ok(!failed, "a rank short of 0 to 14 descriptors: told on both sides, none left");
}

/* ---- Memory of a communicator --------------------------------------------------------------------- */

static int weigh(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    long before, after;
    size_t count = 1 << 20;
    (void)arg;

    /* The user's own first, touched, so that it is not counted. */
    char *x = malloc(count), *y = malloc(count);
    memset(x, 1, count);
    memset(y, 1, count);
    ranks_barrier(world, rank);
    before = unit_rollup_kb("Pss:");
    ranks_barrier(world, rank);
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    int bad = !comm;
    for (size_t n = 1; !bad && n <= count; n *= 4)
        bad = gradsync_all_reduce(comm, x, x, n, GRADSYNC_U8, GRADSYNC_SUM, NULL) ||
              gradsync_all_gather(comm, x, y, n / 8, GRADSYNC_U8, NULL) ||
              gradsync_broadcast(comm, x, x, n, GRADSYNC_U8, 0, NULL);
    ranks_barrier(world, rank);
    after = unit_rollup_kb("Pss:");
    ranks_barrier(world, rank);
    if (comm)
        ranks_end(ctx, comm);
    free(x), free(y);
    if (!bad && after - before < 8 << 10)
        return 0;
    printf("# rank %d: %ld KiB\n", rank, after - before);
    return 1;
}

/* ---- Again and again -------------------------------------------------------------------------------- */

static int cycle(ranks_world *world, int rank, void *arg)
{
    enum { CYCLES = 200 };
    int fds = 0, threads = 0, mappings = 0, bad = 0;
    long rss = 0;

    (void)arg;
    for (int i = 0; i < CYCLES && !bad; i++) {
        gradsync_context *ctx;
        gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx), *part = NULL;
        gradsync_mem *mem;
        gradsync_request *request;
        if (!comm || gradsync_mem_alloc(ctx, 100000, NULL, &mem))
            return 1;
        char *p = gradsync_mem_addr(mem);
        bad += gradsync_all_reduce_post(comm, p, p, 100000, GRADSYNC_U8, GRADSYNC_MAX, NULL, &request);
        bad += gradsync_wait(request);
        gradsync_request_free(request);
        if (i % 20 == 0)
            bad += gradsync_comm_split(comm, rank, 0, NULL, &part) != 0;
        gradsync_comm_destroy(part);
        if (i % 2) /* in one order and in the other */
            bad += gradsync_mem_free(mem);
        gradsync_comm_destroy(comm);
        if (i % 2 == 0)
            bad += gradsync_mem_free(mem);
        bad += gradsync_context_destroy(ctx) != 0;
        if (i == 20) {
            fds = unit_count_fds();
            threads = unit_count_threads();
            mappings = unit_count_mappings();
            rss = unit_rollup_kb("Rss:");
        }
    }
    long grown = unit_rollup_kb("Rss:") - rss;
    if (bad || unit_count_fds() != fds || unit_count_threads() != threads || unit_count_mappings() != mappings ||
        grown > 2048) {
        printf("# rank %d: %d errors, %d descriptors, %d threads, %d mappings, %ld KiB more\n", rank, bad,
               unit_count_fds() - fds, unit_count_threads() - threads, unit_count_mappings() - mappings, grown);
        return 1;
    }
    return 0;
}

int main(void)
{
    test_allocations();
    test_descriptors();
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    tap_skip(2, "a sanitizer's own memory counts");
    (void)weigh, (void)cycle;
#else
    tap_ok(!ranks_run_processes(8, weigh, NULL), "a communicator of 8 takes less than 8 MiB of a rank");
    tap_ok(!ranks_run_processes(2, cycle, NULL), "200 times made and destroyed: no descriptor, thread, page is left");
#endif
    return tap_done();
}
