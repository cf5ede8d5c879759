/* SPDX-License-Identifier: Apache-2.0 */
/* Runs the ranks of a small job as threads or as processes, and keeps what each got. */
#ifndef TESTS_BOOTSTRAP_RANKS_H
#define TESTS_BOOTSTRAP_RANKS_H

#include "base/clock.h"
#include "bootstrap/bootstrap.h"
#include "tap.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_RANKS = 24 };

struct result {
    int done, code, peer;
    char message[448];
};

/* One job. Lives in memory that processes share. */
struct job {
    int nranks, port, ports;
    int64_t timeout_ms;
    const char *addr, *id, *ifname;
    unsigned char key; /* its first byte */
    const gsi_log *log;
    void (*run)(struct job *j, int rank, struct result *out);
    /* For the tests' own use, by threads and processes alike. */
    atomic_int flags[8];
    struct result results[MAX_RANKS];
};

__attribute__((unused)) static struct job *job_new(int nranks, void (*run)(struct job *, int, struct result *))
{
    struct job *j = mmap(NULL, sizeof *j, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (j == MAP_FAILED)
        exit(99);
    j->nranks = nranks;
    j->run = run;
    j->timeout_ms = 20000;
    j->addr = "127.0.0.1";
    j->id = "test";
    j->key = 7;
    j->ports = 1;
    /* A port that nobody listens on, below those that the system gives to outgoing connections. */
    static unsigned next;
    for (;;) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        j->port = 10000 + (int)(((unsigned)getpid() * 131 + next++ * 17) % 9000);
        a.sin_port = htons((uint16_t)j->port);
        int fd = socket(AF_INET, SOCK_STREAM, 0), r = bind(fd, (struct sockaddr *)&a, sizeof a);
        close(fd);
        if (!r)
            return j;
    }
}

__attribute__((unused)) static void job_free(struct job *j)
{
    munmap(j, sizeof *j);
}

/* The same job seen by one rank, which may change what it sees. */
__attribute__((unused)) static struct job job_view(const struct job *j)
{
    return (struct job){.nranks = j->nranks,
                        .port = j->port,
                        .ports = j->ports,
                        .timeout_ms = j->timeout_ms,
                        .addr = j->addr,
                        .id = j->id,
                        .ifname = j->ifname,
                        .key = j->key,
                        .log = j->log};
}

/* Keeps a call's result; returns its code. */
__attribute__((unused)) static int keep(struct result *out, int code)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

    out->code = code;
    out->peer = -1;
    out->message[0] = 0;
    if (code) {
        gradsync_last_error(&info);
        out->peer = info.peer;
        memcpy(out->message, info.message, sizeof out->message);
        if (info.code != code)
            snprintf(out->message, sizeof out->message, "the last error is %d, not %d", info.code, code);
    }
    return code;
}

__attribute__((unused)) static int create(const struct job *j, int rank, int nranks, unsigned char key,
                                          gsi_bootstrap **b, struct result *out)
{
    gsi_job g = {.rank = rank, .nranks = nranks, .local_rank = -1, .local_ranks = -1, .port = j->port};
    unsigned char k[GSI_KEY_BYTES] = {key, 1, 2, 3};

    g.ports = j->ports;
    snprintf(g.addr, sizeof g.addr, "%s", j->addr);
    snprintf(g.id, sizeof g.id, "%s", j->id);
    snprintf(g.ifname, sizeof g.ifname, "%s", j->ifname ? j->ifname : "");
    *b = NULL;
    return keep(out, gsi_bootstrap_create(&g, k, j->timeout_ms, j->log, b));
}

static unsigned char pattern(int rank, size_t i, int round)
{
    return (unsigned char)((unsigned)rank * 37 + (unsigned)round * 101 + (unsigned)(i * 2654435761u >> 13));
}

/* One all-gather with known contents. in_place: send lies inside recv. */
__attribute__((unused)) static int gather(gsi_bootstrap *b, int rank, int nranks, size_t bytes, int round, int in_place,
                                          struct result *out)
{
    unsigned char *recv = malloc((size_t)nranks * bytes + 1), *own = malloc(bytes + 1);
    unsigned char *send = in_place ? recv + (size_t)rank * bytes : own;
    int r, bad = 0;

    memset(recv, 0xee, (size_t)nranks * bytes + 1);
    for (size_t i = 0; i < bytes; i++)
        send[i] = pattern(rank, i, round);
    r = keep(out, gsi_bootstrap_allgather(b, send, recv, bytes));
    for (int k = 0; k < nranks && !r; k++)
        for (size_t i = 0; i < bytes; i++)
            bad += recv[(size_t)k * bytes + i] != pattern(k, i, round);
    bad += recv[(size_t)nranks * bytes] != 0xee;
    free(own);
    free(recv);
    if (bad) {
        out->code = 1;
        snprintf(out->message, sizeof out->message, "%d wrong bytes in all-gather %d", bad, round);
        return 1;
    }
    return r;
}

__attribute__((unused)) static int wait_flag(struct job *j, int flag, int value)
{
    while (atomic_load(&j->flags[flag]) < value)
        poll(NULL, 0, 2);
    return 0;
}

struct start {
    struct job *j;
    int rank;
};

static void *thread_main(void *arg)
{
    struct start s = *(struct start *)arg;

    s.j->run(s.j, s.rank, &s.j->results[s.rank]);
    s.j->results[s.rank].done = 1;
    return NULL;
}

/* Both run `n` (>= nranks: more are for the test's own purposes) and wait for them. */
__attribute__((unused)) static void as_threads(struct job *j, int n)
{
    pthread_t threads[MAX_RANKS];
    struct start starts[MAX_RANKS];

    for (int i = 0; i < n; i++) {
        starts[i] = (struct start){j, i};
        if (pthread_create(&threads[i], NULL, thread_main, &starts[i]))
            exit(99);
    }
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
}

/* Returns how many of them ended with another status than 0 (killed ones included). */
__attribute__((unused)) static int as_processes(struct job *j, int n)
{
    pid_t pids[MAX_RANKS];
    int bad = 0, status;

    fflush(NULL);
    for (int i = 0; i < n; i++) {
        pids[i] = fork();
        if (pids[i] < 0)
            exit(99);
        if (pids[i] == 0) {
            struct start s = {j, i};
            thread_main(&s);
            exit(0); /* with the leak check, where there is one */
        }
    }
    for (int i = 0; i < n; i++)
        bad += waitpid(pids[i], &status, 0) != pids[i] || status != 0;
    return bad;
}

/* True if ranks first..last have this code (and peer, unless -2); notes those that have not. */
__attribute__((unused)) static int all_have(const struct job *j, int first, int last, int code, int peer)
{
    int good = 1;

    for (int i = first; i <= last; i++) {
        const struct result *r = &j->results[i];
        if (r->done && r->code == code && (peer == -2 || r->peer == peer))
            continue;
        good = 0;
        tap_note("rank %d: done %d code %d peer %d: %s", i, r->done, r->code, r->peer, r->message);
    }
    return good;
}

__attribute__((unused)) static int says(const struct result *r, const char *text)
{
    if (strstr(r->message, text))
        return 1;
    tap_note("'%s' is not in: %s", text, r->message);
    return 0;
}

/* A connection to the job's port; retries until somebody listens. */
__attribute__((unused)) static int dial(const struct job *j, int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    (void)j;
    a.sin_port = htons((uint16_t)port);
    for (;;) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
            return -1;
        if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0)
            return fd;
        close(fd);
        poll(NULL, 0, 2);
    }
}

__attribute__((unused)) static int listen_at(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;

    a.sin_port = htons((uint16_t)port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) < 0 || listen(fd, 64) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

#endif
