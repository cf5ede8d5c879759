/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What waiting costs: CPU time of every rank while nothing is to be done, and while a collective
 * waits for a late rank. One process is one rank, by the environment; rank 0 prints TAP for all.
 *
 *   idle [SECONDS]
 *
 * A thread that polls uses all of a CPU; one that sleeps, next to nothing, and less than a fifth
 * on the slowest machine. That is all that is told apart here: no time is measured against a clock.
 */
#include "tap.h"

#include <gradsync/gradsync.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

enum { COUNT = 16384, MOST_RANKS = 64 };

static double cpu_seconds(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void sleep_for(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};

    while (nanosleep(&t, &t))
        ;
}

static int complain(const char *what)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

    gradsync_last_error(&info);
    printf("# %s: %s\n", what, info.message);
    return 1;
}

/* Rank 0 tells what every rank has used of the time. */
static int report(gradsync_comm *comm, double used, double seconds, const char *when)
{
    double all[MOST_RANKS];

    if (gradsync_all_gather(comm, &used, all, 1, GRADSYNC_F64, NULL))
        return complain("gradsync_all_gather");
    if (gradsync_comm_rank(comm) != 0)
        return 0;
    for (int r = 0; r < gradsync_comm_size(comm); r++)
        tap_ok(all[r] < seconds / 5, "rank %d %s: %.3f s of CPU in %.1f s", r, when, all[r], seconds);
    return 0;
}

static int measure(gradsync_comm *comm, float *data, double seconds)
{
    double begin;

    for (int i = 0; i < 20; i++) {
        if (gradsync_all_reduce(comm, data, data, COUNT, GRADSYNC_F32, GRADSYNC_SUM, NULL))
            return complain("gradsync_all_reduce");
    }
    begin = cpu_seconds();
    sleep_for(seconds);
    if (report(comm, cpu_seconds() - begin, seconds, "idle"))
        return 1;

    begin = cpu_seconds();
    if (gradsync_comm_rank(comm) == 0)
        sleep_for(seconds);
    if (gradsync_all_reduce(comm, data, data, COUNT, GRADSYNC_F32, GRADSYNC_SUM, NULL))
        return complain("gradsync_all_reduce");
    if (report(comm, cpu_seconds() - begin, seconds, "waiting for a late rank"))
        return 1;

    gradsync_request *request = NULL;
    begin = cpu_seconds();
    if (gradsync_comm_rank(comm) == 0)
        sleep_for(seconds);
    if (gradsync_all_reduce_post(comm, data, data, COUNT, GRADSYNC_F32, GRADSYNC_SUM, NULL, &request) ||
        gradsync_wait(request))
        return complain("gradsync_all_reduce_post");
    gradsync_request_free(request);
    return report(comm, cpu_seconds() - begin, seconds, "waiting for a late post");
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 3;
    gradsync_context *ctx = NULL;
    gradsync_comm *comm = NULL;
    int rank, bad = 1;

    if (gradsync_context_create(NULL, &ctx))
        return complain("gradsync_context_create");
    if (gradsync_comm_create_from_env(ctx, NULL, &comm)) {
        complain("gradsync_comm_create_from_env");
        gradsync_context_destroy(ctx);
        return 1;
    }
    float *data = calloc(COUNT, sizeof *data);
    rank = gradsync_comm_rank(comm);
    if (data && gradsync_comm_size(comm) <= MOST_RANKS)
        bad = measure(comm, data, seconds);
    gradsync_comm_destroy(comm);
    gradsync_context_destroy(ctx);
    free(data);
    if (rank == 0 && !bad)
        return tap_done();
    return bad;
}
