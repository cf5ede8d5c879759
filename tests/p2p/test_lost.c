/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks that die, leave, abort or stall amid messages, puts and signals: every survivor is told who, none hangs, what
 * the lost rank had done before still counts, and who has nothing to do with it goes on.
 */
#include "ranks.h"
#include "tap.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { KILL, EXIT, LEAVE, ABORT, STALL };
enum { MESSAGES, ACCESS, POSTED, KINDS };
enum { MOST_BYTES = 3000000 };

typedef struct round_of {
    int mode, kind, victim, turns; /* turns: what the victim still does */
    size_t bytes;
} round_of;

static int complain(int rank, const char *what, int rc)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    printf("# rank %d: %s: %d, peer %d: %s\n", rank, what, rc, info.peer, info.message);
    fflush(stdout);
    return 1;
}

/* The fault of a rank that does something else for so long. */
static void be_slow(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* ---- A ring in which one is lost ------------------------------------------------------- */

typedef struct ring {
    gradsync_comm *comm;
    int right, left, tag;
    char *out, *in;
    gradsync_key keys[16];
    gradsync_request *requests[8];
    int nrequests;
} ring;

static int turn(ring *g, const round_of *r, int number)
{
    int rc = 0, first;

    switch (r->kind) {
    case MESSAGES:
        rc = gradsync_send_post(g->comm, g->right, g->out, r->bytes, number, &g->requests[0]);
        g->nrequests = !rc;
        if (!rc)
            rc = gradsync_recv(g->comm, g->left, g->in, r->bytes, number, NULL);
        first = g->nrequests ? gradsync_wait(g->requests[0]) : 0;
        break;
    case ACCESS:
        first = gradsync_put(g->comm, g->right, g->out, &g->keys[g->right], 0, r->bytes);
        if (!first)
            first = gradsync_signal(g->comm, g->right, 1);
        if (!first)
            rc = gradsync_wait_signal(g->comm, g->left, 1, (uint64_t)number);
        break;
    default:
        for (int i = 0; !rc && i < 8; i++) {
            rc = i < 4 ? gradsync_recv_post(g->comm, g->left, g->in, r->bytes / 4, i, NULL, &g->requests[i])
                       : gradsync_send_post(g->comm, g->right, g->out, r->bytes / 4, i - 4, &g->requests[i]);
            g->nrequests += !rc;
        }
        first = gradsync_wait_all(g->requests, (size_t)g->nrequests);
    }
    for (int i = 0; i < g->nrequests; i++)
        gradsync_request_free(g->requests[i]);
    g->nrequests = 0;
    return rc ? rc : first;
}

static int run_ring(ranks_world *world, int rank, void *arg)
{
    const round_of *r = arg;
    int n = ranks_count(world), rc = 0;
    gradsync_context *ctx;
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    gradsync_mem *mem;
    gradsync_key key;
    static char out[MOST_BYTES], in[MOST_BYTES]; /* ranks are processes here */
    ring g = {.right = (rank + 1) % n, .left = (rank + n - 1) % n};

    config.timeout_ms = r->mode == STALL ? 1500 : 60000;
    g.comm = ranks_comm(world, rank, &config, &ctx);
    if (!g.comm || gradsync_mem_alloc(ctx, r->bytes + 64, NULL, &mem) || gradsync_mem_key(g.comm, mem, &key) ||
        gradsync_all_gather(g.comm, &key, g.keys, sizeof key, GRADSYNC_U8, NULL))
        return complain(rank, "setting up", -1);
    ranks_barrier(world, rank); /* whoever aborts at once does not end the others' setting up */
    g.out = out;
    g.in = in;
    for (int number = 1; !rc; number++) {
        if (rank == r->victim && number > r->turns) {
            if (r->mode == KILL)
                raise(SIGKILL);
            if (r->mode == EXIT)
                _exit(0);
            if (r->mode == LEAVE)
                break;
            if (r->mode == STALL)
                be_slow(4000);
            else
                gradsync_comm_abort(g.comm, "the test says so");
        }
        rc = turn(&g, r, number);
    }
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    int good;
    if (rank == r->victim && r->mode == LEAVE)
        good = !rc;
    else if (r->mode == STALL) /* who waits for who waits for the culprit may be the first to lose patience */
        good = (rc == GRADSYNC_ERR_TIMEOUT || rc == GRADSYNC_ERR_BROKEN) && info.peer >= 0 && info.peer < n;
    else /* one that had failed before the call, by another's word, says BROKEN */
        good =
            rc == GRADSYNC_ERR_PEER_LOST ? info.peer == r->victim : rc == GRADSYNC_ERR_BROKEN && info.peer == r->victim;
    if (!good)
        complain(rank, "the end of the ring", rc);
    if (rc) {
        rc = gradsync_send(g.comm, g.right, g.out, 1, 0);
        gradsync_last_error(&info);
        if (rc != GRADSYNC_ERR_BROKEN || !strstr(info.message, "earlier"))
            good = !complain(rank, "a broken communicator fails fast", rc);
    }
    gradsync_comm_destroy(g.comm);
    gradsync_mem_free(mem);
    return !good || gradsync_context_destroy(ctx);
}

static void test_rounds(const char *name, int mode, int rounds)
{
    static const size_t bytes[] = {8, 4000, 100000, MOST_BYTES};
    unsigned seed = 777u + (unsigned)mode;
    int failed = 0;

    for (int i = 0; i < rounds; i++) {
        int n = 2 + i % 4;
        round_of r = {.mode = mode,
                      .kind = i % KINDS,
                      .victim = rand_r(&seed) % n,
                      .turns = rand_r(&seed) % 40,
                      .bytes = bytes[rand_r(&seed) % 4]};
        failed += ranks_run_processes(n, run_ring, &r) != (mode == KILL);
    }
    tap_ok(!failed, "a rank %s: %d rings of 2 to 5 ranks, the culprit named on every survivor", name, rounds);
}

/* ---- What had been done ------------------------------------------------------------------- */

enum { SHORT = 30, MIDDLE = 5, MIDDLE_BYTES = 40000 };

/* Rank 0 sends, puts, signals and goes; rank 1 looks only then. */
static int run_legacy(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    gradsync_mem *mem;
    gradsync_key keys[2], own;
    static unsigned char data[MIDDLE_BYTES];
    int failed = 0;

    (void)arg;
    if (!comm || gradsync_mem_alloc(ctx, MIDDLE_BYTES, NULL, &mem) || gradsync_mem_key(comm, mem, &own) ||
        gradsync_all_gather(comm, &own, keys, sizeof own, GRADSYNC_U8, NULL))
        return complain(rank, "setting up", -1);
    /* Over a network a message that is not short is sent only when it is received. */
    gradsync_comm_info info = {.size = sizeof info};
    uint64_t middle = !gradsync_comm_query(comm, &info) && !strcmp(info.transport, "shm") ? MIDDLE_BYTES : 200;
    if (rank == 0) {
        for (int i = 0; i < SHORT + MIDDLE; i++) {
            memset(data, i, MIDDLE_BYTES);
            failed |= gradsync_send(comm, 1, data, i < SHORT ? 100u : middle, i) != 0;
        }
        failed |= gradsync_put(comm, 1, data, &keys[1], 0, MIDDLE_BYTES) || gradsync_signal(comm, 1, 9);
        gradsync_comm_destroy(comm);
        gradsync_mem_free(mem);
        ranks_barrier(world, rank);
    } else {
        /* The mail has room for some of them; the rest rank 0 can only send while this rank makes progress. */
        uint64_t count = 0;
        while (!failed && !count)
            failed |= gradsync_signal_count(comm, 0, 9, &count) != 0;
        ranks_barrier(world, rank);
        for (int i = SHORT + MIDDLE - 1; i >= 0; i--) {
            uint64_t got = 0, want = i < SHORT ? 100u : middle;
            int rc = gradsync_recv(comm, 0, data, MIDDLE_BYTES, i, &got);
            if (rc || got != want || data[0] != i || data[want - 1] != i)
                failed = complain(rank, "a message of a rank that has left", rc);
        }
        const unsigned char *put = gradsync_mem_addr(mem);
        failed |= put[0] != SHORT + MIDDLE - 1 || put[MIDDLE_BYTES - 1] != SHORT + MIDDLE - 1;
        int rc = gradsync_recv(comm, 0, data, 1, 0, NULL);
        if (rc != GRADSYNC_ERR_PEER_LOST)
            failed = complain(rank, "a message that never came", rc);
        gradsync_comm_destroy(comm);
        gradsync_mem_free(mem);
    }
    return failed || gradsync_context_destroy(ctx);
}

/* Rank 2 leaves; the other two, slow as they are, go on. */
static int run_others(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    int x = 0, rc = 0;

    (void)arg;
    if (!comm)
        return 1;
    for (int i = 0; rank < 2 && !rc && i < 3; i++) {
        if (rank == i % 2) {
            be_slow(300); /* long enough for the other one to look who is alive */
            rc = gradsync_send(comm, 1 - rank, &i, sizeof i, 4);
        } else {
            rc = gradsync_recv(comm, 1 - rank, &x, sizeof x, 4, NULL);
            if (!rc && x != i)
                rc = 1;
        }
    }
    if (rc)
        complain(rank, "two of three", rc);
    ranks_end(ctx, comm);
    return rc != 0;
}

/* ---- Deadlines, aborts, ends --------------------------------------------------------------- */

static int expect_timeout(int rank, int rc, int peer, const char *words)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    return rc == GRADSYNC_ERR_TIMEOUT && info.peer == peer && strstr(info.message, words)
               ? 0
               : complain(rank, "a deadline", rc);
}

/* arg: what rank 0 waits for in vain, 0 to 4. */
static int run_deadline(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    gradsync_request *request = NULL;
    int what = *(int *)arg, failed = 0;

    config.timeout_ms = 300;
    config.progress = what == 4 ? GRADSYNC_PROGRESS_MANUAL : GRADSYNC_PROGRESS_AUTO;
    gradsync_comm *comm = ranks_comm(world, rank, &config, &ctx);
    static char buf[1 << 20];
    if (!comm)
        return 1;
    if (rank == 0) {
        int rc;
        switch (what) {
        case 0:
            failed = expect_timeout(0, gradsync_recv(comm, 1, buf, 77, 6, NULL), 1, "recv (77 bytes, tag 6)");
            break;
        case 1:
            failed = expect_timeout(0, gradsync_send(comm, 1, buf, 1 << 20, 6), 1, "send (1048576 bytes, tag 6)");
            break;
        case 2:
            failed = expect_timeout(0, gradsync_wait_signal(comm, 1, 3, 1), 1, "wait_signal (slot 3)");
            break;
        case 3: /* nobody waits: the progress thread sees to it */
            rc = gradsync_recv_post(comm, 1, buf, 5, 0, NULL, &request);
            failed = rc || expect_timeout(0, gradsync_wait(request), 1, "recv (5 bytes");
            break;
        default: /* nor does a thread: test does */
            rc = gradsync_recv_post(comm, 1, buf, 5, 0, NULL, &request);
            for (int tested = GRADSYNC_IN_PROGRESS; !rc && tested == GRADSYNC_IN_PROGRESS;)
                if ((tested = gradsync_test(request)) != GRADSYNC_IN_PROGRESS)
                    failed = expect_timeout(0, tested, 1, "recv (5 bytes");
        }
        gradsync_request_free(request);
    }
    ranks_barrier(world, rank); /* rank 1 is alive, and does nothing */
    ranks_end(ctx, comm);
    return failed;
}

static int run_destroy(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    gradsync_request *requests[40];
    static char buf[40][100000];
    int failed = 0;

    (void)arg;
    if (!comm)
        return 1;
    for (int i = 0; i < 40; i++)
        failed |= i % 2 ? gradsync_recv_post(comm, 1 - rank, buf[i], 1000, 1, NULL, &requests[i]) != 0
                        : gradsync_send_post(comm, 1 - rank, buf[i], sizeof buf[i], 2, &requests[i]) != 0;
    gradsync_request_free(requests[38]); /* goes on by itself */
    gradsync_request_free(requests[39]);
    gradsync_comm_destroy(comm);
    for (int i = 0; i < 38; i++) {
        int rc = gradsync_wait(requests[i]);
        if (rc != GRADSYNC_ERR_BROKEN && rc != GRADSYNC_ERR_PEER_LOST)
            failed = complain(rank, "a request whose communicator has ended", rc);
        gradsync_request_free(requests[i]);
    }
    return failed || gradsync_context_destroy(ctx);
}

int main(void)
{
    test_rounds("is killed", KILL, 24);
    test_rounds("ends without a word", EXIT, 12);
    test_rounds("leaves", LEAVE, 12);
    test_rounds("aborts", ABORT, 12);
    test_rounds("stalls", STALL, 2);
    tap_ok(!ranks_run_processes(2, run_legacy, NULL), "what a rank did before it left counts, processes");
    tap_ok(!ranks_run_threads(2, run_legacy, NULL), "what a rank did before it left counts, threads");
    tap_ok(!ranks_run_processes(3, run_others, NULL), "two ranks go on when a third has left, processes");
    tap_ok(!ranks_run_threads(3, run_others, NULL), "two ranks go on when a third has left, threads");
    static const char *const names[] = {"a receive", "a send", "a signal", "a posted receive",
                                        "a posted receive that is tested"};
    for (int what = 0; what < 5; what++)
        tap_ok(!ranks_run_processes(2, run_deadline, &what), "%s in vain ends at its deadline", names[what]);
    tap_ok(!ranks_run_processes(2, run_destroy, NULL), "destroy ends messages in progress, processes");
    tap_ok(!ranks_run_threads(2, run_destroy, NULL), "destroy ends messages in progress, threads");
    return tap_done();
}
