/* SPDX-License-Identifier: Apache-2.0 */
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "launch_spawn.h"
#include "relay.h"

enum { KILL_AFTER_S = 5 }; /* from SIGTERM to SIGKILL */

typedef struct member {
    pid_t pid;
    int running;
    int status; /* as waitpid's, once it ran */
    int swept;  /* it ended after we had signalled the job to end */
    int64_t started, ended;
    relay_source out, err;
} member;

typedef struct job {
    const launch_config *config;
    member *members;
    int started, running;
    relay_sink out, err;                  /* the launcher's own stdout and stderr */
    int64_t timeout_at, term_at, kill_at; /* 0: not set */
    int first;                            /* the member that failed first; -1 */
    int timed_out, sweeping, interrupts;
    int lost_output; /* stdout could not be written: said */
    /* A terminal's input cannot be read by ranks, which are in other process
     * groups: it goes to its rank through this pipe. */
    int feed_fd; /* write end, -1: none */
    int feed_paused;
    char feed[4096];
    size_t feed_head, feed_used;
    struct pollfd *polls;
} job;

/* Signals end up in this pipe, one byte each: the handler's whole work. */
static int signal_pipe[2];

static const int watched[] = {SIGPIPE, SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGTSTP, SIGCONT};
enum { WATCHED = sizeof watched / sizeof watched[0] };
static struct sigaction before[WATCHED];

static void on_signal(int number)
{
    int saved = errno;
    unsigned char byte = (unsigned char)number;

    if (write(signal_pipe[1], &byte, 1) < 0) {
        /* full: as many are waiting to be read */
    }
    errno = saved;
}

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t after_s(double seconds)
{
    return now_ns() + (int64_t)(seconds * 1e9);
}

__attribute__((format(printf, 2, 3))) static void say(job *j, const char *format, ...)
{
    char text[1024];
    va_list args;
    int at = snprintf(text, sizeof text / 2, "%s: ", j->config->name);

    va_start(args, format);
    /* The analyser loses va_start() where it inlines a variadic function. */
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized) */
    int n = vsnprintf(text + at, sizeof text - (size_t)at - 1, format, args);
    va_end(args);
    at += n < 0 ? 0 : n;
    if (at > (int)sizeof text - 2)
        at = (int)sizeof text - 2;
    text[at++] = '\n';
    relay_put(&j->err, text, (size_t)at);
}

static const char *signal_name(int number)
{
    static char other[16];
    static const struct {
        int number;
        const char *name;
    } names[] = {{SIGHUP, "SIGHUP"},   {SIGINT, "SIGINT"},   {SIGQUIT, "SIGQUIT"}, {SIGILL, "SIGILL"},
                 {SIGTRAP, "SIGTRAP"}, {SIGABRT, "SIGABRT"}, {SIGBUS, "SIGBUS"},   {SIGFPE, "SIGFPE"},
                 {SIGKILL, "SIGKILL"}, {SIGSEGV, "SIGSEGV"}, {SIGUSR1, "SIGUSR1"}, {SIGUSR2, "SIGUSR2"},
                 {SIGPIPE, "SIGPIPE"}, {SIGALRM, "SIGALRM"}, {SIGTERM, "SIGTERM"}, {SIGXCPU, "SIGXCPU"},
                 {SIGXFSZ, "SIGXFSZ"}, {SIGSYS, "SIGSYS"}};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (names[i].number == number)
            return names[i].name;
    }
    snprintf(other, sizeof other, "signal %d", number);
    return other;
}

static int failed(const member *m)
{
    return !m->running && m->status != 0;
}

static int exit_status(const member *m)
{
    return WIFSIGNALED(m->status) ? 128 + WTERMSIG(m->status) : WEXITSTATUS(m->status);
}

/* To every running rank's process group; SIGKILL to what ended ranks left behind, too. */
static void signal_all(job *j, int number)
{
    for (int r = 0; r < j->started; r++) {
        if (j->members[r].running || number == SIGKILL)
            kill(-j->members[r].pid, number);
    }
}

static void report(job *j, int rank)
{
    const member *m = &j->members[rank];
    double s = (double)(m->ended - m->started) / 1e9;

    if (WIFSIGNALED(m->status))
        say(j, "rank %d (pid %d) was killed by %s after %.1f s%s", rank, (int)m->pid, signal_name(WTERMSIG(m->status)),
            s, WCOREDUMP(m->status) ? " (core dumped)" : "");
    else
        say(j, "rank %d (pid %d) exited with status %d after %.1f s", rank, (int)m->pid, WEXITSTATUS(m->status), s);
}

/* The failures after the first, in one line: "ranks 0, 2 (status 1), 3 (SIGABRT)". */
static void report_rest(job *j)
{
    char text[512];
    size_t at = 0;
    int more = 0;

    for (int r = 0; r < j->started; r++) {
        const member *m = &j->members[r];
        char what[64];

        if (r == j->first || !failed(m) || m->swept || j->config->keep_going)
            continue;
        if (WIFSIGNALED(m->status))
            snprintf(what, sizeof what, "%s%d (%s)", more ? ", " : "", r, signal_name(WTERMSIG(m->status)));
        else
            snprintf(what, sizeof what, "%s%d (status %d)", more ? ", " : "", r, WEXITSTATUS(m->status));
        if (at + strlen(what) < sizeof text - 8)
            at += (size_t)snprintf(text + at, sizeof text - at, "%s", what);
        else if (at < sizeof text - 6)
            at += (size_t)snprintf(text + at, sizeof text - at, ", ...");
        more++;
    }
    if (more)
        say(j, "then %d other rank%s failed: %s", more, more > 1 ? "s" : "", text);
}

static void first_failure(job *j, int rank)
{
    j->first = rank;
    report(j, rank);
    if (j->running == 0 || j->config->keep_going || j->sweeping)
        return;
    j->term_at = after_s(j->config->grace_s);
}

/* Looks which ranks have ended. They stay zombies until the end of the job, which
 * keeps their process group numbers from being used for anything else. */
static void collect(job *j)
{
    int failure = -1;
    int64_t now = now_ns();

    for (int r = 0; r < j->started; r++) {
        member *m = &j->members[r];
        siginfo_t info = {0};

        if (!m->running || waitid(P_PID, (id_t)m->pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0)
            continue;
        m->running = 0;
        m->ended = now;
        m->swept = j->sweeping;
        j->running--;
        m->status = info.si_code == CLD_EXITED ? (info.si_status & 0xff) << 8
                                               : info.si_status | (info.si_code == CLD_DUMPED ? 0x80 : 0);
        if (m->status == 0 || m->swept)
            continue;
        if (j->first >= 0) {
            if (j->config->keep_going)
                report(j, r);
            continue;
        }
        /* Of several at once, a killed rank is the cause and the others its consequence. */
        if (failure < 0 || (WIFSIGNALED(m->status) && !WIFSIGNALED(j->members[failure].status)))
            failure = r;
    }
    if (failure >= 0) {
        first_failure(j, failure);
        for (int r = 0; r < j->started && j->config->keep_going; r++) {
            if (r != failure && failed(&j->members[r]) && j->members[r].ended == now)
                report(j, r);
        }
    }
}

static void stop_self(job *j)
{
    /* The ranks' groups have our session's terminal, but not its stop signals. */
    signal_all(j, SIGTSTP);
    raise(SIGSTOP);
}

static void take_signals(job *j)
{
    unsigned char bytes[256];
    ssize_t n;

    while ((n = read(signal_pipe[0], bytes, sizeof bytes)) > 0) {
        for (ssize_t i = 0; i < n; i++) {
            int number = bytes[i];

            if (number == SIGCHLD || number == SIGPIPE)
                continue;
            if (number == SIGTSTP) {
                stop_self(j);
                continue;
            }
            if (number == SIGCONT)
                j->feed_paused = 0;
            if (number == SIGINT && ++j->interrupts > 1) {
                say(j, "interrupted twice: killing the ranks");
                j->sweeping = 1;
                number = SIGKILL;
            }
            signal_all(j, number);
        }
    }
    collect(j);
}

static void check_deadlines(job *j)
{
    int64_t now = now_ns();

    if (j->timeout_at && now >= j->timeout_at) {
        j->timeout_at = 0;
        j->timed_out = 1;
        if (!j->kill_at) {
            say(j, "not finished after %g s: ending %d rank%s", j->config->timeout_s, j->running,
                j->running > 1 ? "s" : "");
            j->term_at = now;
        }
    }
    if (j->term_at && now >= j->term_at) {
        j->term_at = 0;
        if (!j->timed_out)
            say(j, "%d rank%s still running %g s after the first failure: sending SIGTERM", j->running,
                j->running > 1 ? "s" : "", j->config->grace_s);
        j->sweeping = 1;
        signal_all(j, SIGTERM);
        signal_all(j, SIGCONT);
        j->kill_at = after_s(KILL_AFTER_S);
    }
    if (j->kill_at && now >= j->kill_at) {
        j->kill_at = 0;
        say(j, "%d rank%s still running %d s after SIGTERM: sending SIGKILL", j->running, j->running > 1 ? "s" : "",
            KILL_AFTER_S);
        signal_all(j, SIGKILL);
    }
}

static int poll_timeout(const job *j)
{
    int64_t at = INT64_MAX;

    if (j->timeout_at)
        at = j->timeout_at;
    if (j->term_at && j->term_at < at)
        at = j->term_at;
    if (j->kill_at && j->kill_at < at)
        at = j->kill_at;
    if (at == INT64_MAX)
        return -1;
    int64_t ms = (at - now_ns() + 999999) / 1000000;
    return ms < 0 ? 0 : ms > INT_MAX ? INT_MAX : (int)ms;
}

static void feed_close(job *j)
{
    if (j->feed_fd >= 0)
        close(j->feed_fd);
    j->feed_fd = -1;
}

/* Terminal input on its way to a rank, both ways without blocking. */
static void feed_step(job *j, int can_read, int can_write)
{
    if (can_read && j->feed_used == 0) {
        if (tcgetpgrp(STDIN_FILENO) != getpgrp()) {
            j->feed_paused = 1; /* in the background; SIGCONT tells when that changes */
            return;
        }
        ssize_t n = read(STDIN_FILENO, j->feed, sizeof j->feed);
        if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
            feed_close(j);
        if (n > 0)
            j->feed_used = (size_t)n;
    } else if (can_write && j->feed_used > 0) {
        ssize_t n = write(j->feed_fd, j->feed + j->feed_head, j->feed_used - j->feed_head);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            feed_close(j);
        if (n > 0 && (j->feed_head += (size_t)n) == j->feed_used)
            j->feed_head = j->feed_used = 0;
    }
}

/* A reader that left is a pipeline's usual end; all else is an error of ours. */
static void check_output(job *j)
{
    if (j->out.failed == 0 || j->out.failed == EPIPE || j->lost_output)
        return;
    j->lost_output = 1;
    say(j, "cannot write standard output: %s", strerror(j->out.failed));
}

enum { AT_SIGNALS, AT_OUT, AT_ERR, AT_FEED, AT_SOURCES };

static void step(job *j)
{
    struct pollfd *p = j->polls;
    int full = relay_waiting(&j->out) >= RELAY_SINK_FULL || relay_waiting(&j->err) >= RELAY_SINK_FULL;
    nfds_t n = AT_SOURCES;

    p[AT_SIGNALS] = (struct pollfd){.fd = signal_pipe[0], .events = POLLIN};
    p[AT_OUT] = (struct pollfd){.fd = relay_waiting(&j->out) ? j->out.fd : -1, .events = POLLOUT};
    p[AT_ERR] = (struct pollfd){.fd = relay_waiting(&j->err) ? j->err.fd : -1, .events = POLLOUT};
    p[AT_FEED] = (struct pollfd){.fd = -1};
    if (j->feed_fd >= 0 && j->feed_used > 0)
        p[AT_FEED] = (struct pollfd){.fd = j->feed_fd, .events = POLLOUT};
    else if (j->feed_fd >= 0 && !j->feed_paused)
        p[AT_FEED] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
    for (int r = 0; r < j->started && !full; r++) {
        p[n++] = (struct pollfd){.fd = j->members[r].out.fd, .events = POLLIN};
        p[n++] = (struct pollfd){.fd = j->members[r].err.fd, .events = POLLIN};
    }
    if (poll(p, n, poll_timeout(j)) < 0)
        return; /* EINTR: the signal is in the pipe */
    if (p[AT_SIGNALS].revents)
        take_signals(j);
    if (p[AT_OUT].revents)
        relay_write(&j->out);
    check_output(j);
    if (p[AT_ERR].revents)
        relay_write(&j->err);
    if (p[AT_FEED].revents && j->feed_fd >= 0)
        feed_step(j, p[AT_FEED].fd == STDIN_FILENO, p[AT_FEED].fd != STDIN_FILENO);
    for (nfds_t i = AT_SOURCES; i < n; i++) {
        member *m = &j->members[(i - AT_SOURCES) / 2];

        if (p[i].fd >= 0 && p[i].revents)
            relay_read((i - AT_SOURCES) % 2 ? &m->err : &m->out);
    }
    check_deadlines(j);
}

/* Everything that ended ranks have written is in their pipes; what a process that
 * outlives them may yet write is not waited for. */
static void drain(job *j)
{
    for (int r = 0; r < j->started; r++) {
        member *m = &j->members[r];
        relay_source *both[] = {&m->out, &m->err};

        for (int i = 0; i < 2; i++) {
            while (both[i]->fd >= 0 && relay_read(both[i])) {
                if (relay_waiting(both[i]->sink) >= RELAY_SINK_FULL)
                    relay_flush(both[i]->sink);
            }
            relay_close(both[i]);
        }
    }
}

static int start_signals(void)
{
    if (pipe2(signal_pipe, O_CLOEXEC | O_NONBLOCK) != 0)
        return -1;
    for (int i = 0; i < WATCHED; i++) {
        /* Not SA_RESTART: a write to a stopped terminal must not hold a signal up. */
        struct sigaction action = {.sa_handler = on_signal};
        int number = watched[i];

        sigaction(number, NULL, &before[i]);
        /* nohup and background shells ignore some on purpose: so do we, and the ranks. */
        if (before[i].sa_handler == SIG_IGN && number != SIGCHLD && number != SIGPIPE)
            continue;
        sigaction(number, &action, NULL);
    }
    return 0;
}

/* From here on signals end the launcher as they end any program; but SIGPIPE, which
 * is the first of them. */
static void end_signals(void)
{
    signal(SIGPIPE, SIG_IGN);
    for (int i = 1; i < WATCHED; i++)
        sigaction(watched[i], &before[i], NULL);
    close(signal_pipe[0]);
    close(signal_pipe[1]);
}

/* Starts the ranks; returns 0, or the exit status for a job that could not start. */
static int start_ranks(job *j, launch_setup *setup)
{
    const launch_config *c = j->config;

    for (int r = 0; r < c->ranks; r++) {
        member *m = &j->members[r];
        launch_child child = {.out = -1, .err = -1, .feed = -1};
        char why[512];

        int rc = launch_spawn(setup, r, before, watched, WATCHED, &child, why, sizeof why);
        if (rc != 0) {
            say(j, "%s", why);
            return rc;
        }
        m->pid = child.pid;
        m->running = 1;
        m->started = now_ns();
        m->out = (relay_source){.fd = child.out, .rank = r, .sink = &j->out};
        m->err = (relay_source){.fd = child.err, .rank = r, .sink = &j->err};
        if (child.feed >= 0)
            j->feed_fd = child.feed;
        j->started++;
        j->running++;
    }
    return 0;
}

static int result(const job *j)
{
    if (j->timed_out)
        return LAUNCH_EXIT_TIMEOUT;
    if (j->lost_output)
        return LAUNCH_EXIT_FAILED;
    if (j->interrupts > 1 && j->first < 0)
        return 128 + SIGINT;
    if (j->first >= 0)
        return exit_status(&j->members[j->first]);
    return j->out.failed ? 128 + SIGPIPE : 0;
}

int launch(const launch_config *config)
{
    job j = {.config = config, .first = -1, .feed_fd = -1};
    launch_setup setup;
    char why[512];
    int status;

    /* A descriptor below 3 that was closed would be taken by a pipe. */
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (fd >= 0 && fd <= STDERR_FILENO)
        fd = fcntl(fd, F_DUPFD, 0);
    if (fd >= 0)
        close(fd);
    j.out.fd = STDOUT_FILENO;
    j.err.fd = STDERR_FILENO;
    j.members = calloc((size_t)config->ranks, sizeof *j.members);
    j.polls = calloc(AT_SOURCES + 2 * (size_t)config->ranks, sizeof *j.polls);
    if (!j.members || !j.polls || start_signals() != 0) {
        say(&j, "cannot start: %s", strerror(errno));
        status = LAUNCH_EXIT_FAILED;
        goto out;
    }
    if (launch_setup_init(&setup, config, why, sizeof why) != 0) {
        say(&j, "%s", why);
        status = LAUNCH_EXIT_FAILED;
    } else {
        if (setup.warning[0])
            say(&j, "%s", setup.warning);
        if (config->timeout_s > 0)
            j.timeout_at = after_s(config->timeout_s);
        status = start_ranks(&j, &setup);
        if (status != 0) { /* the first ranks run alone: of no use */
            j.sweeping = 1;
            signal_all(&j, SIGKILL);
        }
        launch_setup_end(&setup);
        while (j.running > 0)
            step(&j);
        drain(&j);
        end_signals();
        relay_flush(&j.out);
        check_output(&j);
        if (status == 0) {
            report_rest(&j);
            status = result(&j);
        }
        if (status != 0 && !config->keep_going)
            signal_all(&j, SIGKILL); /* what failed ranks have started may hang about */
        for (int r = 0; r < j.started; r++) {
            while (waitpid(j.members[r].pid, NULL, 0) < 0 && errno == EINTR)
                ;
        }
    }
    feed_close(&j);
out:
    relay_flush(&j.err);
    free(j.out.data);
    free(j.err.data);
    free(j.members);
    free(j.polls);
    return status;
}
