/* SPDX-License-Identifier: Apache-2.0 */
#include "pair.h"

#include "transport/verbs/load.h"

#include <gradsync/gradsync.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

double pair_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- the socket ---- */

static void die(const char *what)
{
    perror(what);
    exit(2);
}

void pair_swap(pair *p, const void *mine, void *theirs, unsigned bytes)
{
    unsigned done = 0;

    if (send(p->sock, mine, bytes, MSG_NOSIGNAL) != (ssize_t)bytes)
        die("the peer is gone");
    while (done < bytes) {
        ssize_t n = recv(p->sock, (char *)theirs + done, bytes - done, 0);

        if (n <= 0)
            die("the peer is gone");
        done += (unsigned)n;
    }
}

int pair_meet(pair *p, int ok)
{
    char mine = ok ? 1 : 0, theirs = 0;

    pair_swap(p, &mine, &theirs, 1);
    return mine && theirs;
}

static int stream(const char *host, const char *port, int listens)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = listens ? AI_PASSIVE : 0}, *list;
    int one = 1, fd = -1;

    if (getaddrinfo(host, port, &hints, &list))
        return -1;
    double until = pair_seconds() + 20;
    do {
        if (fd >= 0)
            close(fd);
        fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (listens) {
            if (bind(fd, list->ai_addr, list->ai_addrlen) || listen(fd, 1))
                die("listen");
            int peer = accept(fd, NULL, NULL);

            close(fd);
            freeaddrinfo(list);
            return peer;
        }
    } while (connect(fd, list->ai_addr, list->ai_addrlen) && pair_seconds() < until);
    freeaddrinfo(list);
    return fd;
}

/* ---- the command line ---- */

static const char usage[] =
    "usage: %s --devices D0[,D1] [options]         both sides here, as two processes\n"
    "       %s --devices D --listen PORT [options] one side; the other:\n"
    "       %s --devices D --connect HOST:PORT\n"
    "  --port N (1)  --gid INDEX (1; -1: none)  --mtu BYTES  --timeout N  --retry N  --relaxed\n"
    "  --module FILE     the module to use\n"
    "  --bench lat|bw|all    measure instead of testing\n"
    "  --down CMD --up CMD   shell commands that take side 0's port down and up again\n";

static int split_fork(pair *p)
{
    int both[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both))
        die("socketpair");
    pid_t child = fork();
    if (child < 0)
        die("fork");
    p->role = child == 0;
    p->sock = both[p->role];
    close(both[!p->role]);
    return 0;
}

int pair_options(pair *p, int argc, char **argv, const char **bench, const char **down, const char **up)
{
    const char *devices = NULL, *module = NULL, *listens = NULL;
    char *host = NULL;

    p->config = (gsi_rail_config){.port = 1,
                                  .gid_index = 1,
                                  .numa_node = -1,
                                  .connections = 4,
                                  .send_depth = PAIR_DEPTH,
                                  .recv_depth = PAIR_DEPTH};
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";

        i++;
        if (!strcmp(name, "--devices"))
            devices = value;
        else if (!strcmp(name, "--listen"))
            listens = value;
        else if (!strcmp(name, "--connect"))
            host = argv[i];
        else if (!strcmp(name, "--module"))
            module = value;
        else if (!strcmp(name, "--down"))
            *down = value;
        else if (!strcmp(name, "--up"))
            *up = value;
        else if (!strcmp(name, "--port"))
            p->config.port = atoi(value);
        else if (!strcmp(name, "--gid"))
            p->config.gid_index = atoi(value);
        else if (!strcmp(name, "--mtu"))
            p->config.mtu = atoi(value);
        else if (!strcmp(name, "--timeout"))
            p->config.timeout = atoi(value);
        else if (!strcmp(name, "--retry"))
            p->config.retry_count = atoi(value);
        else if (!strcmp(name, "--bench"))
            *bench = value;
        else if (i--, !strcmp(name, "--relaxed"))
            p->config.relaxed_ordering = 1;
        else
            devices = NULL, i = argc;
    }
    if (!devices) {
        fprintf(stderr, usage, argv[0], argv[0], argv[0]);
        return -1;
    }
    int rc = module ? gsi_verbs_load_from(module, &p->open) : gsi_verbs_load(&p->open);
    if (rc) {
        gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

        gradsync_last_error(&info);
        fprintf(stderr, "%s\n", info.message);
        return rc;
    }
    if (listens) {
        p->sock = stream(NULL, listens, 1);
    } else if (host) {
        char *colon = strrchr(host, ':');

        if (!colon)
            return -1;
        *colon = 0;
        p->role = 1;
        p->sock = stream(host, colon + 1, 0);
    } else {
        split_fork(p);
    }
    const char *comma = strchr(devices, ',');
    size_t n = comma ? (size_t)(comma - devices) : strlen(devices);
    if (p->role && comma)
        devices = comma + 1, n = strlen(devices);
    snprintf(p->config.device, sizeof p->config.device, "%.*s", (int)n, devices);
    return p->sock < 0 ? -1 : 0;
}

/* ---- rail and connection ---- */

int pair_open(pair *p)
{
    int rc = p->open(&p->config, &p->rail);

    if (rc)
        return rc;
    if (!p->mem) {
        p->mem = mmap(NULL, PAIR_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p->mem == MAP_FAILED)
            die("mmap");
    }
    return p->rail->ops->reg(p->rail, p->mem, PAIR_BYTES, &p->region);
}

void pair_close(pair *p)
{
    if (p->rail)
        p->rail->ops->close(p->rail);
    p->rail = NULL;
    p->conn = NULL;
    pair_forget_events(p);
}

int pair_connect(pair *p)
{
    struct {
        gsi_rail_address address;
        uint64_t mem, key;
        int32_t rc;
    } mine = {{{0}}, 0, 0, 0}, theirs = {{{0}}, 0, 0, 0};

    if (p->conn)
        p->rail->ops->disconnect(p->conn);
    p->conn = NULL;
    mine.rc = p->rail->ops->conn(p->rail, 7, &p->conn, &mine.address);
    mine.mem = (uintptr_t)p->mem;
    mine.key = p->region.remote_key;
    pair_swap(p, &mine, &theirs, sizeof mine);
    if (mine.rc || theirs.rc)
        return -1;
    p->peer_mem = theirs.mem;
    p->peer_key = theirs.key;
    int rc = p->rail->ops->connect(p->conn, &theirs.address);
    double until = pair_seconds() + 20;
    while (!rc && !(rc = p->rail->ops->ready(p->conn)) && pair_seconds() < until)
        ;
    return pair_meet(p, rc == 1) ? 0 : -1;
}

/* ---- events ---- */

void pair_forget_events(pair *p)
{
    p->first = p->last = 0;
}

int pair_try_event(pair *p, uint32_t kind, gsi_rail_event *event)
{
    for (int tries = 0; tries < 2; tries++) {
        for (unsigned i = p->first; i != p->last; i++) {
            if (p->events[i % PAIR_EVENTS].kind != kind)
                continue;
            *event = p->events[i % PAIR_EVENTS];
            /* Those before it move up, so that the order of each kind stays. */
            for (unsigned k = i; k != p->first; k--)
                p->events[k % PAIR_EVENTS] = p->events[(k - 1) % PAIR_EVENTS];
            p->first++;
            return 1;
        }
        if (tries == 0) {
            gsi_rail_event got[16];
            int n = p->rail->ops->poll(p->rail, got, 16);

            for (int i = 0; i < n; i++)
                p->events[p->last++ % PAIR_EVENTS] = got[i];
        }
    }
    return 0;
}

int pair_event(pair *p, uint32_t kind, gsi_rail_event *event)
{
    double until = pair_seconds() + 20;

    while (!pair_try_event(p, kind, event))
        if (pair_seconds() > until)
            return 0;
    return 1;
}

int pair_write(pair *p, uint64_t from, uint64_t to, uint64_t bytes, uint32_t flags, uint32_t imm, uint64_t id)
{
    gsi_rail_work work = {.local = p->mem + from,
                          .region = &p->region,
                          .bytes = bytes,
                          .remote = p->peer_mem + to,
                          .remote_key = p->peer_key,
                          .id = id,
                          .imm = imm,
                          .flags = flags};

    return p->rail->ops->write(p->conn, &work);
}

int pair_read(pair *p, uint64_t into, uint64_t from, uint64_t bytes, uint32_t flags, uint64_t id)
{
    gsi_rail_work work = {.local = p->mem + into,
                          .region = &p->region,
                          .bytes = bytes,
                          .remote = p->peer_mem + from,
                          .remote_key = p->peer_key,
                          .id = id,
                          .flags = flags};

    return p->rail->ops->read(p->conn, &work);
}

/* ---- patterns ---- */

unsigned char pair_byte(uint64_t seed, uint64_t i)
{
    uint64_t x = (seed * 0x9E3779B97F4A7C15u) ^ (i * 0xD6E8FEB86659FD93u);

    return (unsigned char)(x >> 29);
}

void pair_fill(unsigned char *p, uint64_t seed, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i++)
        p[i] = pair_byte(seed, i);
}

int pair_check(const unsigned char *p, uint64_t seed, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i++)
        if (p[i] != pair_byte(seed, i)) {
            fprintf(stderr, "# byte %llu of %llu: %02x, not %02x\n", (unsigned long long)i, (unsigned long long)bytes,
                    p[i], pair_byte(seed, i));
            return 0;
        }
    return 1;
}
