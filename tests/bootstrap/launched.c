/* SPDX-License-Identifier: Apache-2.0 */
/* A rank that a real launcher starts: finds the others by the environment alone.
 * launchers.sh runs it. Rank 0 prints one line. */
#include "bootstrap/bootstrap.h"

#include <stdio.h>
#include <stdlib.h>

static const char *lookup(void *arg, const char *name)
{
    (void)arg;
    return getenv(name);
}

static int fail(const char *what)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

    gradsync_last_error(&info);
    fprintf(stderr, "%s: %s\n", what, info.message);
    return 1;
}

int main(void)
{
    unsigned char key[GSI_KEY_BYTES];
    gsi_bootstrap *b;
    gsi_job job;
    int all[64], good = 1;

    if (gsi_job_from_env(lookup, NULL, &job))
        return fail("environment");
    if (gsi_job_key(NULL, lookup, NULL, 0, key))
        return fail("key");
    if (gsi_bootstrap_create(&job, key, 30000, NULL, &b))
        return fail("rendezvous");
    if (job.nranks > 64 || gsi_bootstrap_allgather(b, &job.rank, all, sizeof job.rank))
        return fail("all-gather");
    gsi_bootstrap_destroy(b);
    for (int i = 0; i < job.nranks; i++)
        good &= all[i] == i;
    if (job.rank == 0)
        printf("%s %d ranks %s\n", job.launcher, job.nranks, good ? "met" : "wrong");
    return !good;
}
