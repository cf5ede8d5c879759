/* SPDX-License-Identifier: Apache-2.0 */
/* Communicators: making, splitting, ending. */
#include <stdlib.h>

#include "api/check.h"
#include "bootstrap/bootstrap.h"
#include "comm/comm.h"

static int check_config(const gradsync_comm_config *config, gradsync_comm_config *own)
{
    int rc = gsi_take_config(own, config, sizeof *own, "gradsync_comm_config");
    if (rc)
        return rc;
    if (own->flags || own->timeout_ms < 0 || own->algo < 0 || own->algo >= GRADSYNC_ALGO_COUNT)
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "gradsync_comm_config: flags 0x%x, timeout_ms %lld or algo %d is out of range", own->flags,
                        (long long)own->timeout_ms, own->algo);
    return 0;
}

int gradsync_comm_create(gradsync_context *ctx, int rank, int nranks, gradsync_allgather_fn allgather, void *arg,
                         const gradsync_comm_config *config, gradsync_comm **out)
{
    gradsync_comm_config own = GRADSYNC_COMM_CONFIG_INIT;

    if (!ctx || !out)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is NULL", ctx ? "out" : "the context");
    *out = NULL;
    if (nranks < 1 || rank < 0 || rank >= nranks)
        return gsi_fail(GRADSYNC_ERR_INVALID, "rank %d of %d does not exist", rank, nranks);
    if (!allgather && nranks > 1)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%d ranks need an all-gather callback to find each other", nranks);
    int rc = check_config(config, &own);
    return rc ? rc : gsi_comm_create(ctx, rank, nranks, allgather, arg, 0, &own, out);
}

static const char *environment(void *arg, const char *name)
{
    (void)arg;
    return getenv(name);
}

int gradsync_comm_create_from_env(gradsync_context *ctx, const gradsync_comm_config *config, gradsync_comm **out)
{
    gradsync_comm_config own = GRADSYNC_COMM_CONFIG_INIT;
    unsigned char key[GSI_KEY_BYTES];
    gsi_bootstrap *bootstrap = NULL;
    gsi_job job;

    if (!ctx || !out)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is NULL", ctx ? "out" : "the context");
    *out = NULL;
    int rc = check_config(config, &own);
    if (!rc)
        rc = gsi_job_from_env(environment, NULL, &job);
    if (rc)
        return rc;
    if (job.nranks == 1)
        return gsi_comm_create(ctx, 0, 1, NULL, NULL, 0, &own, out);
    rc = gsi_job_key(ctx->key, environment, NULL, job.local_ranks == job.nranks, key);
    if (!rc)
        rc = gsi_bootstrap_create(&job, key, own.timeout_ms ? own.timeout_ms : ctx->timeout_ms, &ctx->log, &bootstrap);
    explicit_bzero(key, sizeof key);
    if (rc)
        return rc;
    rc = gsi_comm_create(ctx, job.rank, job.nranks, gsi_bootstrap_allgather, bootstrap, 0, &own, out);
    gsi_bootstrap_destroy(bootstrap);
    return rc;
}

int gradsync_comm_split(gradsync_comm *comm, int color, int key, const gradsync_comm_config *config,
                        gradsync_comm **out)
{
    gradsync_comm_config own = GRADSYNC_COMM_CONFIG_INIT;

    if (!comm || !out)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is NULL", comm ? "out" : "the communicator");
    *out = NULL;
    int rc = gsi_engine_check_process(&comm->engine);
    if (!rc)
        rc = check_config(config, &own);
    if (rc)
        return rc;
    if (!own.timeout_ms)
        own.timeout_ms = comm->timeout_ms;
    if (!own.algo)
        own.algo = comm->engine.default_algo;
    return gsi_comm_split(comm, color, key, &own, out);
}

int gradsync_comm_abort(gradsync_comm *comm, const char *reason)
{
    if (!comm)
        return gsi_fail(GRADSYNC_ERR_INVALID, "the communicator is NULL");
    int rc = gsi_engine_check_process(&comm->engine);
    if (!rc)
        gsi_engine_abort(&comm->engine, reason);
    return rc;
}

int gradsync_comm_destroy(gradsync_comm *comm)
{
    if (comm)
        gsi_comm_destroy(comm);
    return 0;
}

int gradsync_comm_rank(const gradsync_comm *comm)
{
    return comm ? comm->engine.rank : -1;
}

int gradsync_comm_size(const gradsync_comm *comm)
{
    return comm ? comm->engine.n : -1;
}
