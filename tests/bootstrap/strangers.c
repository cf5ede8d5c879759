/* SPDX-License-Identifier: Apache-2.0 */
/* Who else may turn up at the port while a job starts, and that the job does not notice. */
#include "ranks.h"

#include <sys/resource.h>

static void run_well(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;

    /* The last rank comes when the strangers have been. */
    if (rank == j->nranks - 1)
        wait_flag(j, 0, 1);
    if (create(j, rank, j->nranks, j->key, &b, out))
        return;
    for (int i = 0; i < 3; i++)
        if (gather(b, rank, j->nranks, 100, i, 0, out))
            break;
    gsi_bootstrap_destroy(b);
}

static void say(int fd, const void *data, size_t n)
{
    while (n) {
        ssize_t sent = send(fd, data, n, MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        data = (const char *)data + sent;
        n -= (size_t)sent;
    }
}

/* Waits until the other side has closed; returns the bytes that came before. */
static size_t until_closed(int fd)
{
    char data[512];
    size_t total = 0;
    ssize_t n;

    while ((n = recv(fd, data, sizeof data, 0)) > 0)
        total += (size_t)n;
    return total;
}

static atomic_int warnings;

static void count_warnings(void *arg, int level, const char *message)
{
    (void)arg;
    (void)message;
    if (level <= GRADSYNC_LOG_WARN)
        atomic_fetch_add(&warnings, 1);
}

static const gsi_log counting = {count_warnings, NULL, GRADSYNC_LOG_WARN};

struct visit {
    struct job *j;
    void (*come)(struct job *j);
};

static void *visitor(void *arg)
{
    struct visit *v = arg;

    v->come(v->j);
    atomic_store(&v->j->flags[0], 1);
    return NULL;
}

/* A job of three whose last rank waits for the visitor to be done. */
static void host(const char *what, void (*come)(struct job *j))
{
    struct job *j = job_new(3, run_well);
    struct visit v = {j, come};
    pthread_t thread;

    j->log = &counting;
    if (pthread_create(&thread, NULL, visitor, &v))
        exit(99);
    as_threads(j, 3);
    pthread_join(thread, NULL);
    tap_ok(all_have(j, 0, 2, 0, -2), "%s", what);
    job_free(j);
}

static void come_random(struct job *j)
{
    unsigned x = 12345;

    for (int i = 0; i < 50; i++) {
        unsigned char data[300];
        int fd = dial(j, j->port);
        for (size_t k = 0; k < sizeof data; k++)
            data[k] = (unsigned char)((x = x * 1103515245 + 12345) >> 16);
        if (i % 2)
            memcpy(data, "GRADSYNC\1\0\1\0", 12);
        say(fd, data, sizeof data);
        until_closed(fd);
        close(fd);
    }
}

static void come_http(struct job *j)
{
    static const char text[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    int fd = dial(j, j->port);

    say(fd, text, sizeof text - 1);
    if (until_closed(fd))
        atomic_fetch_add(&j->flags[1], 1);
    close(fd);
}

static void come_tls(struct job *j)
{
    static const unsigned char hello[] = {0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    int fd = dial(j, j->port);

    say(fd, hello, sizeof hello);
    until_closed(fd);
    close(fd);
}

static void come_slowly(struct job *j)
{
    int fd = dial(j, j->port);

    /* Stays, in the middle of a hello, while the job starts around it. */
    say(fd, "GRADS", 5);
    atomic_store(&j->flags[0], 1);
    until_closed(fd);
    close(fd);
}

static void come_and_go(struct job *j)
{
    for (int i = 0; i < 100; i++) {
        struct linger reset = {1, 0};
        int fd = dial(j, j->port);
        if (i % 2)
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(fd);
    }
}

enum { CROWD = 350 };

static void come_in_crowds(struct job *j)
{
    int fds[CROWD];

    for (int i = 0; i < CROWD; i++) {
        fds[i] = dial(j, j->port);
        if (fds[i] >= 0 && i % 3 == 0)
            say(fds[i], "GRADSYNC", 8);
    }
    /* They stay until the job is complete. */
    atomic_store(&j->flags[0], 1);
    for (int i = 0; i < CROWD; i++)
        if (fds[i] >= 0) {
            until_closed(fds[i]);
            close(fds[i]);
        }
}

/* ---- Replay ---- */

struct record {
    unsigned char up[4096];
    atomic_size_t n; /* bytes that are there */
};

struct proxy {
    int listener, port; /* where it leads */
    struct record record;
};

/* Passes one connection through and keeps what the client says. */
static void *proxy_main(void *arg)
{
    struct proxy *p = arg;
    int client = accept(p->listener, NULL, NULL), server = -1;
    unsigned char data[2048];

    close(p->listener);
    if (client < 0)
        return NULL;
    server = dial(NULL, p->port);
    for (;;) {
        struct pollfd fds[2] = {{client, POLLIN, 0}, {server, POLLIN, 0}};
        poll(fds, 2, -1);
        int from = fds[0].revents ? 0 : 1;
        ssize_t n = recv(fds[from].fd, data, sizeof data, 0);
        if (n <= 0)
            break;
        if (from == 0 && p->record.n + (size_t)n <= sizeof p->record.up) {
            memcpy(p->record.up + p->record.n, data, (size_t)n);
            p->record.n += (size_t)n;
        }
        say(fds[!from].fd, data, (size_t)n);
    }
    close(client);
    close(server);
    return NULL;
}

static void run_behind_proxy(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;
    struct job through = job_view(j);

    if (rank == 1)
        through.port = atomic_load(&j->flags[2]);
    if (rank == 2)
        wait_flag(j, 0, 1);
    if (create(&through, rank, j->nranks, j->key, &b, out))
        return;
    gather(b, rank, j->nranks, 100, 0, 0, out);
    gsi_bootstrap_destroy(b);
}

static struct record recorded;

static void replay(struct job *j)
{
    /* All at once, and piece by piece with time for the answers. */
    int fd = dial(j, j->port);
    say(fd, recorded.up, recorded.n);
    until_closed(fd);
    close(fd);
    fd = dial(j, j->port);
    char answer[76];
    say(fd, recorded.up, 92);
    if (recv(fd, answer, sizeof answer, MSG_WAITALL) != sizeof answer)
        atomic_fetch_add(&j->flags[1], 1);
    say(fd, recorded.up + 92, recorded.n - 92);
    /* Not even an error comes back: that would be a frame. */
    if (until_closed(fd) != 0)
        atomic_fetch_add(&j->flags[1], 1);
    close(fd);
}

static void test_replay(void)
{
    struct job *j = job_new(3, run_behind_proxy), *k;
    struct proxy p = {.port = j->port};
    pthread_t thread;

    k = job_new(1, NULL);
    p.listener = listen_at(k->port);
    atomic_store(&j->flags[2], k->port);
    atomic_store(&j->flags[0], 1);
    if (p.listener < 0 || pthread_create(&thread, NULL, proxy_main, &p))
        exit(99);
    as_threads(j, 3);
    pthread_join(thread, NULL);
    tap_ok(all_have(j, 0, 2, 0, -2) && p.record.n > 92 + 44, "a job one rank of which is overheard (%zu bytes)",
           p.record.n);
    memcpy(recorded.up, p.record.up, sizeof recorded.up);
    recorded.n = p.record.n;
    job_free(j);
    job_free(k);
    host("what was overheard, replayed to a job of the same key and id", replay);
}

/* The same while the very job that was overheard is still starting: rank 1 is in. */
static void *replay_now(void *arg)
{
    struct job *j = arg;

    wait_flag(j, 3, 1);
    replay(j);
    atomic_store(&j->flags[0], 1);
    return NULL;
}

static void *watch_proxy(void *arg)
{
    struct proxy *p = ((void **)arg)[0];
    struct job *j = ((void **)arg)[1];

    while (atomic_load(&p->record.n) < 92 + 44)
        poll(NULL, 0, 2);
    recorded.n = 92 + 44;
    memcpy(recorded.up, p->record.up, recorded.n);
    atomic_store(&j->flags[3], 1);
    return NULL;
}

static void test_replay_now(void)
{
    struct job *j = job_new(3, run_behind_proxy), *k = job_new(1, NULL);
    struct proxy p = {.port = j->port};
    void *both[2] = {&p, j};
    pthread_t threads[3];

    p.listener = listen_at(k->port);
    atomic_store(&j->flags[2], k->port);
    if (p.listener < 0 || pthread_create(&threads[0], NULL, proxy_main, &p) ||
        pthread_create(&threads[1], NULL, watch_proxy, both) || pthread_create(&threads[2], NULL, replay_now, j))
        exit(99);
    as_threads(j, 3);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    tap_ok(all_have(j, 0, 2, 0, -2) && atomic_load(&j->flags[1]) == 0,
           "the same to the very job, while it waits for its last rank");
    job_free(j);
    job_free(k);
}

/* ---- Others on our ports ---- */

static void *other_listener(void *arg)
{
    int *fds = arg;

    /* The first says nothing, the second answers in its own language, the third hangs up. */
    for (;;) {
        struct pollfd p[4] = {{fds[0], 0, 0}, {fds[1], POLLIN, 0}, {fds[2], POLLIN, 0}, {fds[3], POLLIN, 0}};
        poll(p, 4, -1);
        if (p[3].revents)
            return NULL;
        for (int i = 1; i < 3; i++)
            if (p[i].revents) {
                int fd = accept(fds[i], NULL, NULL);
                if (i == 1)
                    say(fd, "HTTP/1.1 400 Bad Request\r\n\r\n", 28);
                close(fd);
            }
    }
}

static void test_other_listeners(void)
{
    struct job *j = job_new(3, run_well);
    int fds[4], end[2];
    pthread_t thread;

    j->ports = 5;
    for (int i = 0; i < 3; i++)
        fds[i] = listen_at(j->port + i);
    if (pipe(end) || fds[0] < 0 || fds[1] < 0 || fds[2] < 0) {
        tap_skip(1, "the ports are not free");
        return;
    }
    fds[3] = end[0];
    if (pthread_create(&thread, NULL, other_listener, fds))
        exit(99);
    atomic_store(&j->flags[0], 1);
    as_threads(j, 3);
    close(end[1]);
    pthread_join(thread, NULL);
    for (int i = 0; i < 4; i++)
        close(fds[i]);
    tap_ok(all_have(j, 0, 2, 0, -2), "others listen on the first three ports: the ranks meet on the fourth");
    job_free(j);
}

/* Two jobs with one range of ports: of one user (another id), and of another (another key). */
static void run_two_jobs(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;
    struct job mine = job_view(j);
    int second = rank >= 3;

    if (second && atomic_load(&j->flags[1]))
        mine.key = 200;
    else if (second)
        mine.id = "another";
    rank %= 3;
    if (create(&mine, rank, 3, mine.key, &b, out))
        return;
    if (!gather(b, rank, 3, 64, second, 0, out)) /* the contents differ between the jobs */
        gather(b, rank, 3, 10, 7, 0, out);
    gsi_bootstrap_destroy(b);
}

static void test_two_jobs(void)
{
    for (int by_key = 0; by_key < 2; by_key++) {
        struct job *j = job_new(3, run_two_jobs);
        j->ports = 4;
        atomic_store(&j->flags[1], by_key);
        as_threads(j, 6);
        tap_ok(all_have(j, 0, 5, 0, -2), "two jobs on the same ports, with another %s, do not mix",
               by_key ? "key" : "id");
        job_free(j);
    }
}

/* ---- No file descriptors left ---- */

static void run_scarce(struct job *j, int rank, struct result *out)
{
    struct rlimit few = {48, 48};

    if (rank == 0)
        setrlimit(RLIMIT_NOFILE, &few);
    run_well(j, rank, out);
}

static void test_scarce(void)
{
    struct job *j = job_new(2, run_scarce);
    struct visit v = {j, come_in_crowds};
    pid_t pid;

    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        visitor(&v);
        exit(0);
    }
    int bad = as_processes(j, 2);
    waitpid(pid, NULL, 0);
    tap_ok(!bad && all_have(j, 0, 1, 0, -2), "%d strangers and 48 file descriptors", CROWD);
    job_free(j);
}

int main(void)
{
    alarm(110);
    /* Before there are threads: it forks. */
    test_scarce();
    host("random bytes", come_random);
    host("an HTTP request", come_http);
    host("a TLS hello", come_tls);
    host("one that speaks slowly", come_slowly);
    host("connections that close at once", come_and_go);
    atomic_store(&warnings, 0);
    host("hundreds that stay and say nothing", come_in_crowds);
    tap_ok(atomic_load(&warnings) > 0 && atomic_load(&warnings) <= 12, "a few warnings tell of them, not hundreds (%d)",
           atomic_load(&warnings));
    test_replay();
    test_replay_now();
    test_other_listeners();
    test_two_jobs();
    return tap_done();
}
