/* SPDX-License-Identifier: Apache-2.0 */
/* A rank that waits costs no CPU: its process's CPU time over a wait of about a second. This is a
 * property of how it waits, not of how fast anything is, so the bound is a share of the time that
 * passed: well under 2 % where nothing else happens, and 2 % is what is promised. */
#include "ranks.h"
#include "tap.h"
#include "unit.h"

#include <poll.h>
#include <time.h>

#include "base/clock.h"

enum { WAIT_MS = 700 };
enum { BLOCKING, POSTED, DESCRIPTOR, MANUAL, IDLE };

static void stay_away(void)
{
    struct timespec t = {WAIT_MS / 1000, WAIT_MS % 1000 * 1000000};
    nanosleep(&t, NULL); /* this is what the others wait for */
}

static int wait_rank(ranks_world *world, int rank, void *arg)
{
    int how = *(int *)arg, rc;
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    gradsync_context *ctx;
    gradsync_request *request;

    config.progress = how == MANUAL ? GRADSYNC_PROGRESS_MANUAL : GRADSYNC_PROGRESS_AUTO;
    gradsync_comm *comm = ranks_comm(world, rank, &config, &ctx);
    if (!comm)
        return 1;
    /* The thread is started, the tick's length measured. */
    rc = gradsync_barrier_post(comm, NULL, &request);
    rc = rc ? rc : gradsync_wait(request);
    gradsync_request_free(request);
    ranks_barrier(world, rank);
    long cpu = unit_cpu_us();
    int64_t start = gsi_now_ns();
    if (rank == 0 || how == IDLE)
        stay_away();
    if (how == BLOCKING || (how == IDLE && !rc)) {
        rc = rc ? rc : gradsync_barrier(comm, NULL);
    } else {
        rc = rc ? rc : gradsync_barrier_post(comm, NULL, &request);
        if (how == DESCRIPTOR && !rc) {
            struct pollfd p = {gradsync_request_fd(request), POLLIN, 0};
            poll(&p, 1, -1);
        }
        rc = rc ? rc : gradsync_wait(request);
        gradsync_request_free(request);
    }
    cpu = unit_cpu_us() - cpu;
    double share = (double)cpu * 1000 / (double)(gsi_now_ns() - start);
    ranks_end(ctx, comm);
    if (!rc && share < 0.02)
        return 0;
    printf("# rank %d: %.2f %% of a core (error %d)\n", rank, share * 100, rc);
    return 1;
}

int main(void)
{
    static const char *const names[] = {"in a blocking call", "for a request", "for a descriptor",
                                        "for a request, without a thread", "between two calls"};
    /* With more ranks than cores, as that is when waiting ranks are in each other's way. */
    for (int how = BLOCKING; how <= IDLE; how++)
        tap_ok(!ranks_run_processes(how == BLOCKING ? 8 : 3, wait_rank, &how), "waiting %s costs under 2 %% of a core",
               names[how]);
    return tap_done();
}
