/* SPDX-License-Identifier: Apache-2.0 */
#include "launch_spawn.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* A socket bound to a free port of the loopback address. While it is held, the
 * kernel gives the port to nobody who does not ask for it by number with
 * SO_REUSEADDR, as a listener that is to take it over does. */
static int bind_free_port(int *port)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof addr;
    int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        bind(fd, (struct sockaddr *)&addr, sizeof addr) != 0 || getsockname(fd, (struct sockaddr *)&addr, &len) != 0) {
        close(fd);
        return -1;
    }
    *port = ntohs(addr.sin_port);
    return fd;
}

static int random_hex(char *text, size_t bytes)
{
    unsigned char raw[32];

    if (getrandom(raw, bytes, 0) != (ssize_t)bytes)
        return -1;
    for (size_t i = 0; i < bytes; i++)
        snprintf(text + 2 * i, 3, "%02x", raw[i]);
    return 0;
}

static int usable_cpus(launch_setup *s)
{
    for (int most = 1024; most <= 1 << 20; most *= 2) {
        s->cpus = CPU_ALLOC((size_t)most);
        s->cpus_bytes = CPU_ALLOC_SIZE((size_t)most);
        if (!s->cpus)
            return -1;
        if (sched_getaffinity(0, s->cpus_bytes, s->cpus) == 0) {
            s->ncpus = CPU_COUNT_S(s->cpus_bytes, s->cpus);
            return 0;
        }
        CPU_FREE(s->cpus);
        s->cpus = NULL;
        if (errno != EINVAL)
            return -1;
    }
    return -1;
}

/* Two pipes a rank may be more than the usual 1024 descriptors. */
static void raise_file_limit(launch_setup *s)
{
    rlim_t want = (rlim_t)s->config->ranks * 2 + 64;

    if (getrlimit(RLIMIT_NOFILE, &s->files) != 0) {
        s->files.rlim_cur = 0;
        return;
    }
    if (s->config->output == LAUNCH_OUTPUT_PREFIX && s->files.rlim_cur != RLIM_INFINITY && s->files.rlim_cur < want) {
        struct rlimit more = s->files;

        more.rlim_cur = more.rlim_max == RLIM_INFINITY || more.rlim_max > want ? want : more.rlim_max;
        setrlimit(RLIMIT_NOFILE, &more); /* if not, pipe2() will say so */
    }
}

int launch_setup_init(launch_setup *s, const launch_config *config, char *why, size_t room)
{
    int port, other;

    memset(s, 0, sizeof *s);
    s->config = config;
    s->root_fd = s->null_fd = -1;
    s->root_fd = bind_free_port(&port);
    int other_fd = s->root_fd < 0 ? -1 : bind_free_port(&other);
    if (other_fd < 0) {
        snprintf(why, room, "cannot find a free port of 127.0.0.1: %s", strerror(errno));
        goto fail;
    }
    close(other_fd); /* its users may not set SO_REUSEADDR */
    snprintf(s->root, sizeof s->root, "127.0.0.1:%d", port);
    snprintf(s->master_port, sizeof s->master_port, "%d", (uint16_t)other);
    if (random_hex(s->job_id, 16) != 0 ||
        (!getenv("GRADSYNC_KEY") && !getenv("GRADSYNC_KEY_FILE") && random_hex(s->key, 32) != 0)) {
        snprintf(why, room, "cannot get random bytes: %s", strerror(errno));
        goto fail;
    }
    s->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (s->null_fd < 0) {
        snprintf(why, room, "cannot open /dev/null: %s", strerror(errno));
        goto fail;
    }
    if (config->output == LAUNCH_OUTPUT_SEPARATE && mkdir(config->output_dir, 0777) != 0 && errno != EEXIST) {
        snprintf(why, room, "cannot make the output directory '%s': %s", config->output_dir, strerror(errno));
        goto fail;
    }
    if (config->bind_core && usable_cpus(s) != 0) {
        snprintf(why, room, "cannot tell the usable CPUs: %s", strerror(errno));
        goto fail;
    }
    if (config->bind_core && s->ncpus < config->ranks)
        snprintf(s->warning, sizeof s->warning, "%d ranks on %d usable CPUs: some are bound to the same one",
                 config->ranks, s->ncpus);
    raise_file_limit(s);
    return 0;

fail:
    launch_setup_end(s);
    return -1;
}

void launch_setup_end(launch_setup *s)
{
    if (s->root_fd >= 0)
        close(s->root_fd);
    if (s->null_fd >= 0)
        close(s->null_fd);
    if (s->cpus)
        CPU_FREE(s->cpus);
    s->root_fd = s->null_fd = -1;
    s->cpus = NULL;
    explicit_bzero(s->key, sizeof s->key);
}

/* ---- In the child ----------------------------------------------------------- */

/* What the child tells through a close-on-exec pipe when it cannot go on. */
typedef struct failure {
    int step; /* enum below */
    int error;
} failure;
enum { STEP_DIED, STEP_ENVIRONMENT, STEP_DESCRIPTORS, STEP_BIND, STEP_EXEC };

static int set_number(const char *name, int value)
{
    char text[16];

    snprintf(text, sizeof text, "%d", value);
    return setenv(name, text, 1);
}

static int set_environment(const launch_setup *s, int rank)
{
    int n = s->config->ranks;

    return set_number("GRADSYNC_RANK", rank) || set_number("GRADSYNC_SIZE", n) ||
           set_number("GRADSYNC_LOCAL_RANK", rank) || set_number("GRADSYNC_LOCAL_SIZE", n) ||
           setenv("GRADSYNC_ROOT", s->root, 1) || setenv("GRADSYNC_JOB", s->job_id, 1) ||
           (s->key[0] && setenv("GRADSYNC_KEY", s->key, 1)) || set_number("RANK", rank) ||
           set_number("WORLD_SIZE", n) || set_number("LOCAL_RANK", rank) || set_number("LOCAL_WORLD_SIZE", n) ||
           setenv("MASTER_ADDR", "127.0.0.1", 1) || setenv("MASTER_PORT", s->master_port, 1);
}

/* The rank-th usable CPU, round and round. */
static int bind_cpu(const launch_setup *s, int rank)
{
    int want = rank % s->ncpus;
    int cpu = 0;

    while (!CPU_ISSET_S((size_t)cpu, s->cpus_bytes, s->cpus) || want-- > 0)
        cpu++;
    CPU_ZERO_S(s->cpus_bytes, s->cpus);
    CPU_SET_S((size_t)cpu, s->cpus_bytes, s->cpus);
    return sched_setaffinity(0, s->cpus_bytes, s->cpus);
}

/* Puts `from` at `to`, where it survives exec. from == to: only the latter. */
static int place(int from, int to)
{
    if (from < 0)
        return 0;
    return from == to ? fcntl(from, F_SETFD, 0) : dup2(from, to) < 0 ? -1 : 0;
}

static _Noreturn void run_child(const launch_setup *s, int rank, pid_t parent, const int fds[3], int tell)
{
    failure f = {STEP_DIED, 0};

    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* the launcher died before the line above */
        _exit(LAUNCH_EXIT_FAILED);
    f.step = STEP_ENVIRONMENT;
    if (set_environment(s, rank) != 0)
        goto fail;
    f.step = STEP_DESCRIPTORS;
    if (place(fds[0], STDIN_FILENO) != 0 || place(fds[1], STDOUT_FILENO) != 0 || place(fds[2], STDERR_FILENO) != 0)
        goto fail;
    if (s->files.rlim_cur)
        setrlimit(RLIMIT_NOFILE, &s->files);
    f.step = STEP_BIND;
    if (s->cpus && bind_cpu(s, rank) != 0)
        goto fail;
    f.step = STEP_EXEC;
    if (s->config->path)
        execv(s->config->path, s->config->argv);
    else
        execvp(s->config->argv[0], s->config->argv);
fail:
    f.error = errno;
    if (write(tell, &f, sizeof f) < 0) {
        /* then the launcher sees an early end */
    }
    _exit(LAUNCH_EXIT_FAILED);
}

/* ---- In the launcher -------------------------------------------------------- */

static void close_all(int *fds, int n)
{
    for (int i = 0; i < n; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
        fds[i] = -1;
    }
}

static int open_separate(const launch_setup *s, int rank, const char *suffix, char *why, size_t room)
{
    char path[4096];

    if (snprintf(path, sizeof path, "%s/rank.%d.%s", s->config->output_dir, rank, suffix) >= (int)sizeof path) {
        snprintf(why, room, "the output directory's name is too long");
        return -1;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0)
        snprintf(why, room, "cannot write '%.300s': %s", path, strerror(errno));
    return fd;
}

/* Fills fds[0..2], the child's, and child's ends of ours. */
static int open_streams(const launch_setup *s, int rank, int fds[3], launch_child *child, char *why, size_t room)
{
    const launch_config *c = s->config;
    int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1};

    fds[0] = fds[1] = fds[2] = -1;
    if (rank != c->stdin_rank) {
        fds[0] = fcntl(s->null_fd, F_DUPFD_CLOEXEC, 3);
        if (fds[0] < 0)
            goto system;
    } else if (isatty(STDIN_FILENO)) {
        if (pipe2(in, O_CLOEXEC) != 0)
            goto system;
        fds[0] = in[0];
        child->feed = in[1];
        fcntl(in[1], F_SETFL, O_NONBLOCK);
    }
    if (c->output == LAUNCH_OUTPUT_PREFIX) {
        if (pipe2(out, O_CLOEXEC) != 0)
            goto system;
        fds[1] = out[1];
        child->out = out[0];
        if (pipe2(err, O_CLOEXEC) != 0)
            goto system;
        fds[2] = err[1];
        child->err = err[0];
        fcntl(out[0], F_SETFL, O_NONBLOCK);
        fcntl(err[0], F_SETFL, O_NONBLOCK);
    } else if (c->output == LAUNCH_OUTPUT_SEPARATE) {
        fds[1] = open_separate(s, rank, "out", why, room);
        if (fds[1] >= 0)
            fds[2] = open_separate(s, rank, "err", why, room);
        if (fds[1] < 0 || fds[2] < 0)
            return -1;
    }
    return 0;

system:
    snprintf(why, room, "cannot make the pipes of rank %d: %s", rank, strerror(errno));
    return -1;
}

static int explain_failure(const launch_setup *s, int rank, const failure *f, char *why, size_t room)
{
    static const char *const what[] = {"start", "set its environment", "set up its input and output",
                                       "bind it to a CPU"};
    const char *file = s->config->path ? s->config->path : s->config->argv[0];

    if (f->step != STEP_EXEC) {
        snprintf(why, room, "cannot start rank %d: cannot %s: %s", rank, what[f->step], strerror(f->error));
        return LAUNCH_EXIT_FAILED;
    }
    if (f->error == ENOENT && strchr(file, '/') && access(file, F_OK) == 0)
        snprintf(why, room, "cannot run '%.300s': the interpreter that it names is missing", file);
    else if (f->error == ENOENT && !strchr(file, '/'))
        snprintf(why, room,
                 "cannot run '%.300s': there is no such program in PATH (for one in this directory write './%.100s')",
                 file, file);
    else
        snprintf(why, room, "cannot run '%.300s': %s", file, strerror(f->error));
    return f->error == ENOENT || f->error == ENOTDIR ? LAUNCH_EXIT_NOT_FOUND : LAUNCH_EXIT_NOT_EXECUTABLE;
}

int launch_spawn(launch_setup *s, int rank, const struct sigaction *old, const int *numbers, int n, launch_child *child,
                 char *why, size_t room)
{
    int tell[2] = {-1, -1}, fds[3];
    sigset_t all, mask;
    failure f = {STEP_DIED, 0};
    pid_t parent = getpid();
    ssize_t got;

    if (open_streams(s, rank, fds, child, why, room) != 0)
        goto fail;
    if (pipe2(tell, O_CLOEXEC) != 0) {
        snprintf(why, room, "cannot make the pipes of rank %d: %s", rank, strerror(errno));
        goto fail;
    }
    /* No signal may meet the launcher's handlers in the child. */
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &mask);
    child->pid = fork();
    if (child->pid == 0) {
        for (int i = 0; i < n; i++)
            sigaction(numbers[i], &old[i], NULL);
        sigprocmask(SIG_SETMASK, &mask, NULL);
        run_child(s, rank, parent, fds, tell[1]);
    }
    int error = errno;
    sigprocmask(SIG_SETMASK, &mask, NULL);
    if (child->pid < 0) {
        snprintf(why, room, "cannot start rank %d: %s", rank, strerror(error));
        goto fail;
    }
    setpgid(child->pid, child->pid); /* both sides: whoever comes first */
    close(tell[1]);
    tell[1] = -1;
    do
        got = read(tell[0], &f, sizeof f);
    while (got < 0 && errno == EINTR);
    close(tell[0]);
    close_all(fds, 3);
    if (got != (ssize_t)sizeof f)
        return 0; /* closed by exec; or killed before it, which its status will tell */
    waitpid(child->pid, NULL, 0);
    close_all((int[]){child->out, child->err, child->feed}, 3);
    return explain_failure(s, rank, &f, why, room);

fail:
    close_all(tell, 2);
    close_all(fds, 3);
    close_all((int[]){child->out, child->err, child->feed}, 3);
    return LAUNCH_EXIT_FAILED;
}
