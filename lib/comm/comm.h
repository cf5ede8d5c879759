/* SPDX-License-Identifier: Apache-2.0 */
/* A communicator: an engine, and how it came to be. */
#ifndef GSI_COMM_H
#define GSI_COMM_H

#include "comm/context.h"
#include "engine/engine.h"

struct gradsync_comm {
    gsi_engine engine;
    gradsync_context *ctx;
    struct gradsync_comm *next; /* in the context's list */
    int64_t timeout_ms;
    double create_ms;
    char transport[16];
    int far; /* made over several hosts, or over a network: parts of it are made with as many rounds */
};

/* Makes a communicator over an out-of-band exchange (NULL only for n == 1). rows: see gsi_connect_args. */
int gsi_comm_create(gradsync_context *ctx, int rank, int n, gradsync_allgather_fn allgather, void *arg, int rows,
                    const gradsync_comm_config *config, gradsync_comm **out);
int gsi_comm_split(gradsync_comm *parent, int color, int key, const gradsync_comm_config *config, gradsync_comm **out);
void gsi_comm_destroy(gradsync_comm *comm);

/* calibrate.c: measures the costs that the selector works with, and agrees on them. Collective. */
int gsi_comm_calibrate(gradsync_comm *comm);

/* What the library calls itself is told apart in fingerprints. */
enum gsi_tag { GSI_TAG_USER = 0, GSI_TAG_CALIBRATE = 1, GSI_TAG_SPLIT = 2 };

#endif
