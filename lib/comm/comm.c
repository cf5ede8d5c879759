/* SPDX-License-Identifier: Apache-2.0 */
/* Making, splitting and ending communicators. */
#include "comm/comm.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/process.h"
#include "comm/connect.h"

/* ---- Making ------------------------------------------------------------------- */

static const char *last_message(gradsync_error_info *info)
{
    *info = (gradsync_error_info)GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(info);
    return info->message;
}

static int algo_from_env(int *algo)
{
    const char *name = getenv("GRADSYNC_ALGO");
    if (!name || !*name || !strcmp(name, "auto"))
        return 0;
    for (int i = 1; i < GRADSYNC_ALGO_COUNT; i++)
        if (!strcmp(name, gradsync_algo_name(i))) {
            *algo = i;
            return 0;
        }
    return gsi_fail(GRADSYNC_ERR_INVALID,
                    "GRADSYNC_ALGO=%.40s is no algorithm; use auto, oneshot, direct, staged, ring, tree, doubling, "
                    "pairwise or hierarchical",
                    name);
}

static void free_comm(gsi_engine *engine)
{
    free((char *)engine - offsetof(gradsync_comm, engine));
}

static void enlist(gradsync_comm *comm)
{
    pthread_mutex_lock(&comm->ctx->lock);
    comm->next = comm->ctx->comms;
    comm->ctx->comms = comm;
    pthread_mutex_unlock(&comm->ctx->lock);
}

int gsi_comm_create(gradsync_context *ctx, int rank, int n, gradsync_allgather_fn allgather, void *arg, int rows,
                    const gradsync_comm_config *config, gradsync_comm **out)
{
    int64_t start = gsi_now_ns();
    int algo = config->algo, rc = algo ? 0 : algo_from_env(&algo);
    gradsync_comm *comm = gsi_calloc(1, sizeof *comm);

    if (!comm)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a communicator");
    comm->ctx = ctx;
    comm->engine.gone = free_comm;
    comm->timeout_ms = config->timeout_ms > 0 ? config->timeout_ms : ctx->timeout_ms;
    const gsi_connect_args args = {.ctx = ctx,
                                   .allgather = allgather,
                                   .arg = arg,
                                   .rank = rank,
                                   .n = n,
                                   .rows = rows,
                                   .algo = algo,
                                   .status = rc,
                                   .deadline_ns = gsi_deadline_ns(start, comm->timeout_ms)};
    gsi_connected made;
    rc = gsi_connect(&args, &made);
    if (rc) {
        free(comm);
        return rc;
    }
    comm->far = made.far;
    memcpy(comm->transport, made.transport, sizeof comm->transport);
    rc = gsi_engine_init(&comm->engine, made.ep, &ctx->reg, &ctx->log);
    comm->engine.id = made.id;
    comm->engine.default_algo = algo;
    comm->engine.progress = ctx->progress;
    comm->engine.strict = made.strict;
    if (!rc)
        rc = gsi_comm_calibrate(comm);
    if (rc) {
        gradsync_error_info info;
        gsi_engine_abort(&comm->engine, last_message(&info)); /* unless that is what a peer has told already */
        gsi_engine_free(&comm->engine);
        return rc;
    }
    enlist(comm);
    comm->create_ms = (double)(gsi_now_ns() - start) / 1e6;
    gsi_logf(&ctx->log, GRADSYNC_LOG_INFO, "rank %d of %d joined in %.1f ms over %s", rank, n, comm->create_ms,
             comm->transport);
    *out = comm;
    return 0;
}

void gsi_comm_destroy(gradsync_comm *comm)
{
    gradsync_context *ctx = comm->ctx;
    int own = ctx->process == gsi_process(); /* in a forked child nobody unlocks what was locked at the fork */

    if (own)
        pthread_mutex_lock(&ctx->lock);
    for (gradsync_comm **at = &ctx->comms; *at; at = &(*at)->next)
        if (*at == comm) {
            *at = comm->next;
            break;
        }
    if (own)
        pthread_mutex_unlock(&ctx->lock);
    gsi_engine_free(&comm->engine);
}

/* ---- Splitting ----------------------------------------------------------------- */

typedef struct split_vote {
    int32_t color, key;
} split_vote;

/* The out-of-band exchange of a part: an all-gather over the whole, of which the part's blocks count. */
typedef struct split_exchange {
    gradsync_comm *parent;
    int *members; /* ranks in the parent, by rank in the part */
    int count, rounds;
} split_exchange;

static int gather_over(gradsync_comm *parent, const void *send, void *recv, size_t bytes)
{
    gsi_call call = {.send = send,
                     .recv = recv,
                     .count = bytes,
                     .esize = 1,
                     .coll = GRADSYNC_ALL_GATHER,
                     .dtype = GRADSYNC_U8,
                     .timeout_ms = parent->timeout_ms,
                     .tag = GSI_TAG_SPLIT};
    return gsi_engine_run(&parent->engine, &call);
}

static int split_allgather(void *arg, const void *send, void *recv, size_t bytes)
{
    split_exchange *x = arg;
    char *all = gsi_calloc((size_t)x->parent->engine.n, bytes);
    if (!all)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to split a communicator");
    x->rounds++;
    int rc = gather_over(x->parent, send, all, bytes);
    for (int i = 0; !rc && i < x->count; i++)
        memcpy((char *)recv + (size_t)i * bytes, all + (size_t)x->members[i] * bytes, bytes);
    free(all);
    return rc;
}

/* The rounds that this rank did not need, because it is in no part or failed early, but others do. */
static int skip_rounds(split_exchange *x)
{
    int rc = 0, rows = x->parent->far ? x->parent->engine.n : 0, rounds = rows ? GSI_FAR_ROUNDS : GSI_NEAR_ROUNDS;

    while (!rc && x->rounds < rounds) {
        size_t size = gsi_connect_round_bytes(x->rounds++, rows);
        char *nothing = gsi_calloc(1, size), *all = gsi_calloc((size_t)x->parent->engine.n, size);
        rc = nothing && all ? gather_over(x->parent, nothing, all, size)
                            : gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to split a communicator");
        free(nothing);
        free(all);
    }
    return rc;
}

/* The members of this rank's part in order of key, then rank; returns its rank among them. */
static int find_members(const split_vote *votes, int n, int rank, split_exchange *x)
{
    int own = 0;

    for (int r = 0; r < n; r++) {
        if (votes[r].color != votes[rank].color)
            continue;
        int at = x->count++;
        for (; at > 0 && votes[x->members[at - 1]].key > votes[r].key; at--)
            x->members[at] = x->members[at - 1];
        x->members[at] = r;
    }
    while (x->members[own] != rank)
        own++;
    return own;
}

int gsi_comm_split(gradsync_comm *parent, int color, int key, const gradsync_comm_config *config, gradsync_comm **out)
{
    int n = parent->engine.n, rank = parent->engine.rank, rc;
    split_vote vote = {color, key}, *votes = gsi_calloc((size_t)n, sizeof *votes);
    split_exchange x = {.parent = parent, .members = gsi_calloc((size_t)n, sizeof *x.members)};

    *out = NULL;
    if (!votes || !x.members) {
        free(votes);
        free(x.members);
        /* The others would wait for this rank's vote. */
        gsi_engine_abort(&parent->engine, "no memory to split the communicator");
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to split a communicator of %d ranks", n);
    }
    rc = gather_over(parent, &vote, votes, sizeof vote);
    int voted = !rc;
    if (voted && color >= 0) {
        int own = find_members(votes, n, rank, &x);
        rc = gsi_comm_create(parent->ctx, own, x.count, split_allgather, &x, parent->far ? n : 0, config, out);
    }
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    int skipped = voted ? skip_rounds(&x) : 0;
    if (rc)
        gsi_fail_info(&info);
    else if (skipped) {
        rc = skipped;
        if (*out)
            gsi_comm_destroy(*out);
        *out = NULL;
    }
    free(votes);
    free(x.members);
    return rc;
}
