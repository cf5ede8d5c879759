/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_tcp --bench [ADDRESS]: two processes over ADDRESS (127.0.0.1), first with plain blocking sockets, then with
 * rails that poll and rails that sleep. Half a round trip, and the rate of one direction, by size.
 */
#include "test_tcp.h"
#include "base/clock.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MEMORY = 64 << 20, MAX_LAPS = 5000, WINDOW = 16 };

static const size_t sizes[] = {8, 256, 4096, 16384, 65536, 262144, 1 << 20, 8 << 20};
static char *memory;

static uint32_t laps_of(size_t n, int64_t bytes)
{
    int64_t laps = bytes / (int64_t)n;

    return laps > MAX_LAPS ? MAX_LAPS : laps < 20 ? 20 : (uint32_t)laps;
}

static void swap(int fd, const void *mine, void *theirs, size_t n)
{
    if (write(fd, mine, n) != (ssize_t)n || recv(fd, theirs, n, MSG_WAITALL) != (ssize_t)n)
        _exit(1);
}

static void row(const char *what, size_t n, double half_us, double gbps, double cpu)
{
    printf("%-14s %8zu B %9.2f us %8.2f Gb/s %6.2f CPU s/GB\n", what, n, half_us, gbps, cpu);
    fflush(stdout);
}

static double cpu_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- Plain sockets ---- */

static void whole(int fd, int out, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t r = out ? send(fd, memory + at, n - at, 0) : recv(fd, memory + at, n - at, 0);
        if (r <= 0)
            _exit(1);
        at += (size_t)r;
    }
}

static void plain(int side, int pipe, const char *address)
{
    struct sockaddr_in to = {.sin_family = AF_INET}, theirs;
    socklen_t length = sizeof to;
    int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;

    inet_pton(AF_INET, address, &to.sin_addr);
    if (side == 0) {
        int listener = fd;
        if (bind(listener, (struct sockaddr *)&to, sizeof to) || listen(listener, 1) ||
            getsockname(listener, (struct sockaddr *)&to, &length))
            _exit(1);
        swap(pipe, &to, &theirs, sizeof to);
        fd = accept(listener, NULL, NULL);
        close(listener);
    } else {
        swap(pipe, &to, &theirs, sizeof to);
        if (connect(fd, (struct sockaddr *)&theirs, sizeof theirs))
            _exit(1);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i];
        uint32_t laps = laps_of(n, 64 << 20);
        int64_t begin = gsi_now_ns();
        for (uint32_t k = 0; k < laps; k++) {
            whole(fd, side == 0, n);
            whole(fd, side == 1, n);
        }
        double half = (double)(gsi_now_ns() - begin) / laps / 2e3, cpu = cpu_now();
        laps = laps_of(n, 1 << 29);
        begin = gsi_now_ns();
        for (uint32_t k = 0; k < laps; k++)
            whole(fd, side == 0, n);
        whole(fd, side == 1, 1);
        double seconds = (double)(gsi_now_ns() - begin) * 1e-9, bytes = (double)laps * (double)n;
        if (side == 0)
            row("plain sockets", n, half, bytes * 8e-9 / seconds, (cpu_now() - cpu) / bytes * 1e9);
    }
    close(fd);
}

/* ---- Rails ---- */

struct place {
    gsi_rail_address address;
    uint64_t base, key;
};

static gsi_rail *rail;
static gsi_conn *conn;
static int sleeps;
static uint32_t arrived, sent;

static void take(void)
{
    gsi_rail_event e[16];
    int n = rail->ops->poll(rail, e, 16);

    if (n == 0 && sleeps) {
        struct pollfd p = {rail->fd, POLLIN, 0};
        rail->ops->arm(rail);
        n = rail->ops->poll(rail, e, 16);
        if (n == 0)
            poll(&p, 1, 1000);
        rail->ops->disarm(rail);
    } else if (n == 0) {
        sched_yield(); /* there may be one core for both */
    }
    for (int i = 0; i < n; i++) {
        arrived += e[i].kind == GSI_RAIL_ARRIVED;
        sent += e[i].kind == GSI_RAIL_SENT;
        if (e[i].kind == GSI_RAIL_FAILED) {
            fprintf(stderr, "%s\n", e[i].why);
            _exit(1);
        }
    }
}

static void rails(int side, int fd, const char *address)
{
    gsi_rail_config config = {.gid_index = -1, .numa_node = -1, .connections = 1, .send_depth = 64, .recv_depth = 64};
    struct place mine = {.base = (uint64_t)(uintptr_t)memory}, theirs;
    gsi_region region;
    int ready = 0;

    snprintf(config.address, sizeof config.address, "%s", address);
    if (gsi_tcp_rail_open(&config, &rail) < 0 || rail->ops->reg(rail, memory, MEMORY, &region) < 0 ||
        rail->ops->conn(rail, 0, &conn, &mine.address) < 0)
        _exit(1);
    mine.key = region.remote_key;
    swap(fd, &mine, &theirs, sizeof mine);
    if (rail->ops->connect(conn, &theirs.address) < 0)
        _exit(1);
    while (ready == 0)
        ready = rail->ops->ready(conn);
    arrived = sent = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i];
        uint32_t laps = laps_of(n, 64 << 20), posted = 0;
        gsi_rail_work w = {memory, &region, n, theirs.base, theirs.key, 0, 0, GSI_RAIL_IMM | GSI_RAIL_SOLICIT};
        w.flags |= n <= rail->max_inline ? GSI_RAIL_INLINE : 0;
        int64_t begin = gsi_now_ns();
        arrived = sent = 0;
        for (uint32_t k = 0; k < laps; k++) {
            gsi_rail_work it = w;
            while (arrived < k + (uint32_t)side)
                take();
            /* As an endpoint does: now and then SENT is wanted, to know the depth; always if memory is held. */
            it.flags |= n > rail->max_inline || k % 16 == 0 ? GSI_RAIL_SIGNAL : 0;
            rail->ops->write(conn, &it);
            posted += it.flags & GSI_RAIL_SIGNAL ? 1 : 0;
            while (posted - sent > 2)
                take();
        }
        while (arrived < laps || sent < posted)
            take();
        double half = (double)(gsi_now_ns() - begin) / laps / 2e3, cpu = cpu_now();
        swap(fd, "x", (char[1]){0}, 1);
        laps = laps_of(n, 1 << 29);
        arrived = sent = posted = 0;
        swap(fd, "x", (char[1]){0}, 1);
        begin = gsi_now_ns();
        for (uint32_t k = 0; side == 0 && k < laps; k++) {
            w.flags |= GSI_RAIL_SIGNAL;
            while (k - sent > WINDOW)
                take();
            rail->ops->write(conn, &w);
            posted++;
        }
        while (side == 0 ? sent < posted : arrived < laps)
            take();
        if (side == 1) {
            w = (gsi_rail_work){.flags = GSI_RAIL_IMM | GSI_RAIL_SOLICIT};
            rail->ops->write(conn, &w); /* so little that it leaves at once, without another poll() */
        } else {
            while (arrived < 1)
                take();
            double seconds = (double)(gsi_now_ns() - begin) * 1e-9, bytes = (double)laps * (double)n;
            row(sleeps ? "rail, sleeping" : "rail, polling", n, half, bytes * 8e-9 / seconds,
                (cpu_now() - cpu) / bytes * 1e9);
        }
    }
    swap(fd, "x", (char[1]){0}, 1);
    rail->ops->close(rail);
}

static void empty_poll(const char *address)
{
    static contract_pair pair;
    contract_factory factory = {.name = "tcp", .open = tcp_open_at, .arg = (void *)(uintptr_t)address};
    gsi_rail_event e[8];

    for (int n = 1; n <= 64; n *= 4) {
        int64_t begin;
        if (pair_open(&pair, &factory, n) < 0)
            return;
        gsi_rail *r = pair.side[0].rail;
        begin = gsi_now_ns();
        for (int i = 0; i < 100000; i++)
            r->ops->poll(r, e, 8);
        printf("poll() with nothing to do, %d connections: %.0f ns\n", n, (double)(gsi_now_ns() - begin) / 100000);
        pair_close(&pair);
    }
}

int tcp_bench(const char *address)
{
    int fds[2], status;

    memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM, 0, fds))
        return EXIT_FAILURE;
    empty_poll(address);
    pid_t child = fork();
    int side = child == 0;
    plain(side, fds[side], address);
    for (sleeps = 0; sleeps < 2; sleeps++)
        rails(side, fds[side], address);
    if (side)
        _exit(0);
    waitpid(child, &status, 0);
    return status;
}
