/* SPDX-License-Identifier: Apache-2.0 */
#include "ranks.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_RANKS = 64, ROOM = 1 << 20 };

/* In memory that threads and processes share. */
struct ranks_world {
    int n;
    int elsewhere; /* the other ranks are processes that somebody else has started */
    pthread_barrier_t barrier;
    _Atomic int pids[MAX_RANKS];
    char room[ROOM];
};

typedef struct exchange {
    ranks_world *world;
    int rank;
} exchange;

static exchange exchanges[MAX_RANKS]; /* of this process */

typedef struct thread_arg {
    ranks_world *world;
    int rank, result;
    ranks_fn fn;
    void *arg;
} thread_arg;

static ranks_world *make_world(int n)
{
    ranks_world *w = mmap(NULL, sizeof *w, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_barrierattr_t attr;

    if (w == MAP_FAILED || n > MAX_RANKS)
        abort();
    w->n = n;
    pthread_barrierattr_init(&attr);
    pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&w->barrier, &attr, (unsigned)n);
    return w;
}

static void *thread_main(void *p)
{
    thread_arg *t = p;
    t->result = t->fn(t->world, t->rank, t->arg);
    return NULL;
}

int ranks_run_threads(int n, ranks_fn fn, void *arg)
{
    ranks_world *w = make_world(n);
    pthread_t threads[MAX_RANKS];
    thread_arg args[MAX_RANKS];
    int failed = 0;

    for (int r = 0; r < n; r++) {
        w->pids[r] = getpid();
        args[r] = (thread_arg){w, r, 0, fn, arg};
        if (pthread_create(&threads[r], NULL, thread_main, &args[r]))
            abort();
    }
    for (int r = 0; r < n; r++) {
        pthread_join(threads[r], NULL);
        failed += args[r].result != 0;
    }
    munmap(w, sizeof *w);
    return failed;
}

/* The host of a rank by a map such as "3,1" (see ranks.h). */
static int host_of(const char *map, int rank)
{
    const char *at = map;
    int host = 0, left;

    if (*map == '%')
        return rank % (atoi(map + 1) > 0 ? atoi(map + 1) : 1);
    for (;; host++) {
        left = atoi(at) > 0 ? atoi(at) : 1;
        if (rank < left)
            return host;
        rank -= left;
        at += strcspn(at, ",");
        at = *at ? at + 1 : map;
    }
}

static void move_to_host(int rank)
{
    const char *map = getenv("TEST_HOSTS");
    char host[32];

    if (!map || !*map)
        return;
    snprintf(host, sizeof host, "host%d", host_of(map, rank));
    setenv("GRADSYNC_HOST_ID", host, 1);
}

int ranks_run_processes(int n, ranks_fn fn, void *arg)
{
    ranks_world *w = make_world(n);
    int failed = 0;

    fflush(stdout);
    for (int r = 0; r < n; r++) {
        pid_t pid = fork();
        if (pid < 0)
            abort();
        if (pid == 0) {
            w->pids[r] = getpid();
            move_to_host(r);
            int rc = fn(w, r, arg);
            fflush(stdout);
            exit(rc ? 1 : 0); /* with the handlers of sanitizers: leaks count */
        }
        w->pids[r] = pid;
    }
    for (int r = 0; r < n; r++) {
        int status = 0;
        while (waitpid(w->pids[r], &status, 0) < 0 && errno == EINTR)
            ;
        failed += !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    }
    munmap(w, sizeof *w);
    return failed;
}

int ranks_run_environment(ranks_fn fn, void *arg)
{
    const char *size = getenv("GRADSYNC_SIZE"), *rank = getenv("GRADSYNC_RANK");
    int n = size ? atoi(size) : 0, own = rank ? atoi(rank) : -1;

    if (n < 1 || n > MAX_RANKS || own < 0 || own >= n) {
        printf("# not started as a rank: GRADSYNC_RANK and GRADSYNC_SIZE (at most %d) are needed\n", MAX_RANKS);
        return -1;
    }
    ranks_world *w = make_world(n);
    w->elsewhere = 1;
    w->pids[own] = getpid();
    int rc = fn(w, own, arg);
    munmap(w, sizeof *w);
    return rc != 0;
}

void *ranks_exchange_of(ranks_world *world, int rank)
{
    exchanges[rank] = (exchange){world, rank};
    return &exchanges[rank];
}

void ranks_barrier(ranks_world *world, int rank)
{
    (void)rank;
    if (world->elsewhere)
        abort(); /* nothing but the library connects these ranks */
    pthread_barrier_wait(&world->barrier);
}

int ranks_allgather(void *arg, const void *send, void *recv, size_t bytes)
{
    exchange *x = arg;
    ranks_world *w = x->world;

    if (w->elsewhere || bytes * (size_t)w->n > ROOM)
        return -1;
    memcpy(w->room + (size_t)x->rank * bytes, send, bytes);
    pthread_barrier_wait(&w->barrier);
    memcpy(recv, w->room, bytes * (size_t)w->n);
    pthread_barrier_wait(&w->barrier);
    return 0;
}

int ranks_count(const ranks_world *world)
{
    return world->n;
}

int ranks_pid(const ranks_world *world, int rank)
{
    return world->pids[rank];
}

void ranks_complain(int rank, const char *what, int rc)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    printf("# rank %d: %s: %s: %s\n", rank, what, gradsync_error_name(rc), info.message);
}

gradsync_comm *ranks_comm(ranks_world *world, int rank, const gradsync_config *config, gradsync_context **ctx)
{
    gradsync_comm *comm = NULL;
    int rc = gradsync_context_create(config, ctx);

    if (rc) {
        ranks_complain(rank, "gradsync_context_create", rc);
        return NULL;
    }
    if (world->elsewhere)
        rc = gradsync_comm_create_from_env(*ctx, NULL, &comm);
    else
        rc = gradsync_comm_create(*ctx, rank, world->n, ranks_allgather, ranks_exchange_of(world, rank), NULL, &comm);
    if (!rc)
        return comm;
    ranks_complain(rank, "gradsync_comm_create", rc);
    gradsync_context_destroy(*ctx);
    return NULL;
}

void ranks_end(gradsync_context *ctx, gradsync_comm *comm)
{
    gradsync_comm_destroy(comm);
    if (gradsync_context_destroy(ctx))
        ranks_complain(-1, "gradsync_context_destroy", GRADSYNC_ERR_INVALID);
}
