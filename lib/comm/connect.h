/* SPDX-License-Identifier: Apache-2.0 */
/* Making a communicator's endpoint: who is where, which transport reaches whom, and the rounds of the out-of-band
 * exchange that this takes. */
#ifndef GSI_COMM_CONNECT_H
#define GSI_COMM_CONNECT_H

#include "comm/context.h"
#include "transport/transport.h"

/* Rounds: addresses; then, if ranks are on several hosts (or a network transport is asked for), offers of rails and
 * their connections; then outcomes. In a part of a communicator over several hosts (rows > 0) always all of them,
 * and of the same sizes as in every other part, so that the parts stay in step. */
enum { GSI_NEAR_ROUNDS = 2, GSI_FAR_ROUNDS = 4 };

typedef struct gsi_connect_args {
    gradsync_context *ctx;
    gradsync_allgather_fn allgather; /* NULL only for n == 1 */
    void *arg;
    int rank, n;
    int rows;   /* ranks of the whole that this is split from, if that is over several hosts; 0: none */
    int algo;   /* the communicator's fixed algorithm: must agree */
    int status; /* an earlier error of this rank: it takes part all the same, since the others would wait for it */
    int64_t deadline_ns;
} gsi_connect_args;

typedef struct gsi_connected {
    gsi_endpoint *ep;
    int strict;         /* a rank wants no fall-back: then nobody takes one */
    int far;            /* made with all rounds */
    uint64_t id;        /* random, the same on all ranks, another one for every communicator */
    char transport[16]; /* "shm", "verbs", "shm+tcp", "self" */
} gsi_connected;

/* Errors: those of the ranks, alike on all. On error nothing is left. */
int gsi_connect(const gsi_connect_args *args, gsi_connected *out);
/* Bytes that a rank gives in a round, for who has to take part in rounds that it does not need. */
size_t gsi_connect_round_bytes(int round, int rows);

#endif
