/* SPDX-License-Identifier: Apache-2.0 */
#include "local.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { GRACE_MS = 30000, TICK_MS = 50 };

/* All of it, or -1: the other end is gone. */
static int write_all(int fd, const void *data, size_t bytes)
{
    const char *p = data;

    while (bytes > 0) {
        ssize_t n = send(fd, p, bytes, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        p += n;
        bytes -= (size_t)n;
    }
    return 0;
}

static int read_all(int fd, void *data, size_t bytes)
{
    char *p = data;

    while (bytes > 0) {
        ssize_t n = recv(fd, p, bytes, 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        p += n;
        bytes -= (size_t)n;
    }
    return 0;
}

int local_allgather(void *arg, const void *send_data, void *recv_data, size_t bytes)
{
    const local_rank *self = arg;
    uint64_t header = bytes;

    if (write_all(self->fd, &header, sizeof(header)) || write_all(self->fd, send_data, bytes))
        return -1;
    return read_all(self->fd, recv_data, bytes * (size_t)self->nranks);
}

void local_done(local_rank *self)
{
    if (self->fd >= 0)
        close(self->fd);
    self->fd = -1;
}

/* One exchange: from every rank the same number of bytes, to every rank all of
 * them. -1 at the end: a rank that closed its socket is past its last exchange, in
 * which it had everybody's data, or it died. */
static int relay_once(const int *fds, int nranks)
{
    uint64_t bytes = 0;
    char *all = NULL;
    int rc = 0;

    for (int r = 0; r < nranks && rc == 0; r++) {
        uint64_t header;

        rc = read_all(fds[r], &header, sizeof(header));
        if (rc == 0 && r == 0) {
            bytes = header;
            all = malloc(bytes * (size_t)nranks + 1);
        }
        if (rc == 0 && (!all || header != bytes))
            rc = -1;
        if (rc == 0)
            rc = read_all(fds[r], all + bytes * (size_t)r, bytes);
    }
    for (int r = 0; r < nranks && rc == 0; r++)
        rc = write_all(fds[r], all, bytes * (size_t)nranks);
    free(all);
    return rc;
}

/* Reaps all ranks. Once one has failed, the others have GRACE_MS to notice it and
 * end by themselves. */
static int reap(const char *name, pid_t *pids, int nranks)
{
    const struct timespec tick = {.tv_nsec = TICK_MS * 1000000L};
    int left = nranks, failed = 0, waited_ms = 0;

    while (left > 0) {
        int status, rank = 0;
        pid_t pid = waitpid(-1, &status, failed ? WNOHANG : 0);

        if (pid < 0 && errno == EINTR)
            continue;
        if (pid < 0)
            return EXIT_FAILURE;
        if (pid == 0) {
            nanosleep(&tick, NULL);
            waited_ms += TICK_MS;
            for (int r = 0; r < nranks && waited_ms == GRACE_MS; r++)
                if (pids[r] > 0)
                    kill(pids[r], SIGKILL);
            continue;
        }
        while (rank < nranks && pids[rank] != pid)
            rank++;
        if (rank == nranks)
            continue;
        pids[rank] = 0;
        left--;
        if (WIFSIGNALED(status))
            fprintf(stderr, "%s: rank %d (pid %ld) was killed by signal %d (%s)\n", name, rank, (long)pid,
                    WTERMSIG(status), strsignal(WTERMSIG(status)));
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            failed = 1;
    }
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

int local_run(const char *name, int nranks, int (*body)(void *arg, local_rank *self), void *arg)
{
    pid_t parent = getpid(), *pids = calloc((size_t)nranks, sizeof(*pids));
    int *fds = calloc((size_t)nranks, sizeof(*fds));
    int started = 0, status;

    fflush(NULL);
    for (; pids && fds && started < nranks; started++) {
        int pair[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
            break;
        pids[started] = fork();
        if (pids[started] < 0) {
            close(pair[0]);
            close(pair[1]);
            break;
        }
        if (pids[started] == 0) {
            local_rank self = {.rank = started, .nranks = nranks, .fd = pair[1]};

            prctl(PR_SET_PDEATHSIG, SIGTERM);
            if (getppid() != parent)
                _exit(EXIT_FAILURE);
            close(pair[0]);
            for (int r = 0; r < started; r++)
                close(fds[r]); /* else nobody would see the parent close them */
            free(fds);
            free(pids);
            exit(body(arg, &self));
        }
        close(pair[1]);
        fds[started] = pair[0];
    }
    if (started == nranks)
        while (relay_once(fds, nranks) == 0)
            ;
    else
        fprintf(stderr, "%s: cannot start %d ranks: %s\n", name, nranks, strerror(errno));
    for (int r = 0; r < started; r++)
        close(fds[r]);
    status = reap(name, pids, started);
    if (started < nranks)
        status = EXIT_FAILURE;
    free(fds);
    free(pids);
    return status;
}
