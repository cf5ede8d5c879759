/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A peer that sends nonsense by mail, amid messages that make sense: it can spoil its own traffic, but must not
 * crash this rank, nor make it write beyond its buffers, nor touch what it does with others. Best run under the
 * address sanitizer.
 */
#include "ranks.h"
#include "tap.h"

#include <string.h>

#include "comm/comm.h"
#include "engine/p2p.h"

enum { ROUNDS = 40, MAILS = 300, GUARD = 64 };

static uint64_t next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    return z ^ (z >> 27);
}

/* Mostly near what is valid, so that it gets far. */
static uint64_t number(uint64_t *state)
{
    switch (next(state) % 4) {
    case 0:
        return next(state) % 10;
    case 1:
        return next(state) % 100000;
    case 2:
        return (next(state) % 40) << 32 | (next(state) % 20); /* like an op's id */
    default:
        return next(state);
    }
}

/* Rank 1: floods rank 0 with mail. */
static void flood(gsi_engine *e, uint64_t *state)
{
    for (int i = 0; i < MAILS;) {
        gsi_p2p_mail mail;
        for (size_t k = 0; k < sizeof mail / 8; k++)
            ((uint64_t *)(void *)&mail)[k] = next(state);
        mail.kind = (uint32_t)(next(state) % 11);
        mail.tag = (int32_t)(next(state) % 3);
        mail.bytes = number(state);
        mail.u.at.to = number(state);
        mail.u.at.from = number(state);
        mail.u.at.at = number(state);
        mail.u.at.off = number(state);
        mail.u.at.mem = (uint32_t)number(state);
        mail.u.at.window = (uint32_t)number(state);
        uint32_t bytes = 16 + GSI_P2P_PLACE;
        if (mail.kind == GSI_MAIL_EAGER && next(state) % 4) {
            bytes = 16 + (uint32_t)(next(state) % (GSI_P2P_EAGER + 1));
            mail.bytes = bytes - 16;
        } else if (next(state) % 8 == 0) {
            bytes = 1 + (uint32_t)(next(state) % GSI_MAIL_BYTES);
        }
        pthread_mutex_lock(&e->lock);
        if (e->broken) {
            pthread_mutex_unlock(&e->lock);
            return;
        }
        i += e->ep->ops->mail(e->ep, 0, &mail, bytes) == 1;
        gsi_engine_progress(e);
        pthread_mutex_unlock(&e->lock);
    }
}

static int guarded(const unsigned char *at, size_t bytes)
{
    for (size_t i = 0; i < GUARD; i++)
        if (at[bytes + i] != 0xd7)
            return 0;
    return 1;
}

/* Rank 0: receives and sends with the hostile rank, and talks to rank 2, which is what it seems. */
static int endure(ranks_world *world, gradsync_comm *comm, gradsync_context *ctx, uint64_t *state)
{
    enum { OPS = 12 };
    gradsync_request *requests[2 * OPS];
    unsigned char *in[OPS], *out = calloc(1, 300000);
    size_t rooms[OPS];
    gradsync_mem *mem;
    int failed = gradsync_mem_alloc(ctx, 1 << 20, NULL, &mem);
    uint64_t count = 0, x = 0;

    for (int i = 0; i < OPS; i++) {
        static const size_t sizes[] = {10, 1000, 100000, 300000};
        rooms[i] = sizes[next(state) % 4];
        in[i] = malloc(rooms[i] + GUARD);
        memset(in[i] + rooms[i], 0xd7, GUARD);
        failed |= gradsync_recv_post(comm, 1, in[i], rooms[i], i % 3, NULL, &requests[2 * i]) != 0;
        failed |= gradsync_send_post(comm, 1, i % 2 ? gradsync_mem_addr(mem) : (void *)out, rooms[i], i % 3,
                                     &requests[2 * i + 1]) != 0;
    }
    /* Rank 2 signals when rank 1 is done with its flood. */
    while (!failed && !count)
        failed = gradsync_signal_count(comm, 2, 0, &count) != 0;
    if (gradsync_recv(comm, 2, &x, sizeof x, 5, NULL) || x != 12345) {
        printf("# what rank 2 sent has not arrived\n");
        failed = 1;
    }
    ranks_barrier(world, 0);
    gradsync_comm_destroy(comm);
    for (int i = 0; i < OPS; i++) {
        if (!guarded(in[i], rooms[i])) {
            printf("# a receive of %zu bytes has written beyond its room\n", rooms[i]);
            failed = 1;
        }
        gradsync_wait(requests[2 * i]); /* any result will do */
        gradsync_wait(requests[2 * i + 1]);
        gradsync_request_free(requests[2 * i]);
        gradsync_request_free(requests[2 * i + 1]);
        free(in[i]);
    }
    free(out);
    gradsync_mem_free(mem);
    return failed;
}

static int run_rank(ranks_world *world, int rank, void *arg)
{
    uint64_t state = *(uint64_t *)arg + (uint64_t)rank, x = 12345;
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    int failed = 0;

    if (!comm)
        return 1;
    if (rank == 0) {
        failed = endure(world, comm, ctx, &state);
    } else {
        if (rank == 1)
            flood(&comm->engine, &state);
        if (rank == 1)
            gradsync_send(comm, 2, &x, 1, 0);
        else
            failed = gradsync_recv(comm, 1, &x, 1, 0, NULL) || (x = 12345, 0) ||
                     gradsync_send(comm, 0, &x, sizeof x, 5) || gradsync_signal(comm, 0, 0);
        ranks_barrier(world, rank); /* who leaves earlier is lost to rank 0, which waits for it */
        gradsync_comm_destroy(comm);
    }
    return failed || gradsync_context_destroy(ctx);
}

int main(void)
{
    int failed = 0;

    for (uint64_t i = 0; i < ROUNDS; i++) {
        uint64_t seed = i * 1000;
        failed += ranks_run_processes(3, run_rank, &seed) != 0;
    }
    tap_ok(!failed, "%d floods of %d mails of nonsense", ROUNDS, MAILS);
    return tap_done();
}
