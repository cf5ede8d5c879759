/* SPDX-License-Identifier: Apache-2.0 */
/* Measures one pair of rails with the library's own transport: a communicator of two ranks that has no other rail. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rails.h"

enum { WARM_UP = 20, ROUNDS = 300, TAG = 7, TRIES = 2, LEAST_CHUNKS = PAIR_WINDOW };

/* What two ranks tell each other by the control communicator. */
typedef struct note {
    gradsync_key key;
    int32_t status;
    char why[240];
    double gbps;
} note;

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Swaps bytes with the peer. */
static int swap(const measure_config *c, const void *mine, void *theirs, size_t bytes)
{
    gradsync_request *request = NULL;
    int rc = gradsync_send_post(c->control, c->peer, mine, bytes, TAG, &request);

    if (!rc)
        rc = gradsync_recv(c->control, c->peer, theirs, bytes, TAG, NULL);
    if (request) {
        int sent = gradsync_wait(request);
        gradsync_request_free(request);
        rc = rc ? rc : sent;
    }
    return rc;
}

/* A gradsync_allgather_fn of the two. */
static int gather(void *arg, const void *send, void *recv, size_t bytes)
{
    const measure_config *c = arg;
    char *all = recv;

    memcpy(all + (c->first ? 0 : bytes), send, bytes);
    return swap(c, send, all + (c->first ? bytes : 0), bytes);
}

static void note_error(int rc, note *out)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

    if (!rc)
        return;
    gradsync_last_error(&info);
    out->status = rc;
    snprintf(out->why, sizeof out->why, "%.239s", info.message);
}

/* Only this rail: the library reads the variable when a communicator is made. */
static void choose_rail(const measure_config *c)
{
    char value[80];

    snprintf(value, sizeof value, "=%s", c->rail);
    setenv(strcmp(c->wire, "tcp") ? "GRADSYNC_HCA" : "GRADSYNC_IFNAME", value, 1);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Half a round trip of 8 bytes, the median. */
static int ping(gradsync_comm *comm, int first, double *latency_us)
{
    static double times[ROUNDS];
    int peer = first ? 1 : 0, rc = 0;
    uint64_t ball = 0;

    for (int i = -WARM_UP; i < ROUNDS && !rc; i++) {
        double start = now();
        if (first)
            rc = gradsync_send(comm, peer, &ball, sizeof ball, TAG);
        if (!rc)
            rc = gradsync_recv(comm, peer, &ball, sizeof ball, TAG, NULL);
        if (!first && !rc)
            rc = gradsync_send(comm, peer, &ball, sizeof ball, TAG);
        if (i >= 0)
            times[i] = (now() - start) * 1e6 / 2;
    }
    qsort(times, ROUNDS, sizeof *times, compare);
    *latency_us = times[ROUNDS / 2];
    return rc;
}

/* Writes into the peer's memory for a while, a window of chunks at a time; tells the peer when it is over. *gbps is
 * raised to what it did: the better of several tries is less of what else the machines did meanwhile. */
static int pour(const measure_config *c, gradsync_comm *comm, const char *source, const gradsync_key *key, double *gbps)
{
    gradsync_request *requests[PAIR_WINDOW] = {NULL};
    int peer = c->first ? 1 : 0, rc = 0;
    uint64_t chunks = 0, done = 0;
    double start = 0, end;

    /* The first window warms up: memory is registered on first use. */
    for (;; chunks++) {
        int at = (int)(chunks % PAIR_WINDOW);
        if (requests[at]) {
            rc = gradsync_wait(requests[at]);
            gradsync_request_free(requests[at]);
            requests[at] = NULL;
            done++;
        }
        if (done == PAIR_WINDOW && start == 0) {
            start = now();
            done = 0;
        }
        if (rc || (start > 0 && done >= LEAST_CHUNKS && now() - start > c->seconds / TRIES))
            break;
        uint64_t offset = (uint64_t)at * PAIR_CHUNK;
        rc = gradsync_put_post(comm, peer, source + offset, key, offset, PAIR_CHUNK, &requests[at]);
        if (rc)
            break;
    }
    for (int i = 0; i < PAIR_WINDOW; i++) {
        int at = (int)((chunks + (uint64_t)i) % PAIR_WINDOW);
        if (!requests[at])
            continue;
        int waited = gradsync_wait(requests[at]);
        gradsync_request_free(requests[at]);
        rc = rc ? rc : waited;
        done++;
    }
    end = now();
    double rate = start > 0 && end > start ? (double)done * PAIR_CHUNK * 8 / (end - start) / 1e9 : 0;
    *gbps = rate > *gbps ? rate : *gbps;
    return rc ? rc : gradsync_send(comm, peer, &chunks, sizeof chunks, TAG);
}

static int drain(const measure_config *c, gradsync_comm *comm)
{
    uint64_t chunks;

    return gradsync_recv(comm, c->first ? 1 : 0, &chunks, sizeof chunks, TAG, NULL);
}

static void run(const measure_config *c, gradsync_context *ctx, gradsync_comm *comm, note *mine, double *latency_us)
{
    gradsync_mem *memory = NULL;
    note theirs = {.status = 0};
    int rc = gradsync_mem_alloc(ctx, (size_t)PAIR_WINDOW * PAIR_CHUNK, NULL, &memory);

    if (!rc)
        rc = gradsync_mem_key(comm, memory, &mine->key);
    note_error(rc, mine);
    rc = swap(c, mine, &theirs, sizeof theirs);
    note_error(rc, mine);
    if (!mine->status && !theirs.status) {
        rc = ping(comm, c->first, latency_us);
        for (int turn = 0; turn < 2 * TRIES && !rc; turn++)
            rc = (turn % 2 == 0) == (c->first != 0) ? pour(c, comm, gradsync_mem_addr(memory), &theirs.key, &mine->gbps)
                                                    : drain(c, comm);
        note_error(rc, mine);
    }
    gradsync_comm_destroy(comm); /* a peer that still waits is told */
    gradsync_mem_free(memory);
}

void measure(const measure_config *c, pairing *out)
{
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    gradsync_context *ctx = NULL;
    gradsync_comm *comm = NULL;
    note mine = {.status = 0}, theirs = {.status = 0};

    config.transport = c->wire;
    config.timeout_ms = c->timeout_ms;
    config.progress = GRADSYNC_PROGRESS_MANUAL;
    choose_rail(c);
    note_error(gradsync_context_create(&config, &ctx), &mine);
    if (swap(c, &mine, &theirs, sizeof theirs))
        note_error(GRADSYNC_ERR_PEER_LOST, &mine);
    if (!mine.status && !theirs.status)
        note_error(gradsync_comm_create(ctx, c->first ? 0 : 1, 2, gather, (void *)c, NULL, &comm), &mine);
    out->connected = comm != NULL;
    if (comm)
        run(c, ctx, comm, &mine, &out->latency_us);
    gradsync_context_destroy(ctx);
    /* Both have one result: the first error of the two, and each direction from who sent. */
    if (swap(c, &mine, &theirs, sizeof theirs))
        note_error(GRADSYNC_ERR_PEER_LOST, &mine);
    const note *bad = mine.status ? &mine : &theirs;
    out->status = bad->status;
    snprintf(out->why, sizeof out->why, "%.239s", bad->why);
    out->gbps[c->first ? 0 : 1] = mine.gbps;
    out->gbps[c->first ? 1 : 0] = theirs.gbps;
}
