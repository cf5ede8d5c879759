/* SPDX-License-Identifier: Apache-2.0 */
#include "comm/exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

/* Ranks share memory if they run under one kernel (boot id) and see the same /dev/shm; the name tells
 * apart containers and simulated hosts that have both in common but are meant to be hosts of their own. */
void gsi_host_identity(char *id, size_t room, char *name, size_t name_room)
{
    const char *given = getenv("GRADSYNC_HOST_ID");
    char boot[64] = "";
    struct stat shm = {0};

    if (gethostname(name, name_room))
        snprintf(name, name_room, "?");
    name[name_room - 1] = 0;
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f) {
        if (!fgets(boot, sizeof boot, f))
            boot[0] = 0;
        boot[strcspn(boot, "\n")] = 0;
        fclose(f);
    }
    if (stat("/dev/shm", &shm))
        shm.st_dev = 0;
    if (given && *given)
        snprintf(id, room, "=%s", given);
    else
        snprintf(id, room, "%s/%lx/%s", boot, (unsigned long)shm.st_dev, name);
}

int gsi_exchange(gradsync_allgather_fn allgather, void *arg, const void *send, void *recv, size_t bytes)
{
    if (!allgather) {
        memcpy(recv, send, bytes);
        return 0;
    }
    /* The built-in exchanges say why they fail; an older error must not be taken for it. */
    gradsync_error_info before = GRADSYNC_ERROR_INFO_INIT, none = GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&before);
    gsi_fail_info(&none);
    int rc = allgather(arg, send, recv, bytes);
    if (rc < 0 && gradsync_last_error(NULL) == rc)
        return rc;
    gsi_fail_info(&before);
    if (!rc)
        return 0;
    return gsi_fail(GRADSYNC_ERR_SYSTEM, "the out-of-band all-gather callback failed with %d; see its own messages",
                    rc);
}

int gsi_addresses_check(const gsi_address *a, int rank, int n)
{
    for (int r = 0; r < n; r++) {
        /* In a split one that failed before has nothing to say, but says so. */
        if (!a[r].magic && !a[r].abi)
            return gsi_fail(GRADSYNC_ERR_PEER_LOST, "rank %d failed before it could join; its own error tells why", r);
        if (a[r].magic != GSI_ADDRESS_MAGIC || a[r].abi != GSI_ABI)
            return gsi_fail(GRADSYNC_ERR_MISMATCH,
                            "rank %d runs another build of libgradsync; use the same one on every rank", r);
        if (a[r].rank != r || a[r].n != n)
            return gsi_fail(GRADSYNC_ERR_MISMATCH,
                            "at place %d of %d stands a rank that says it is %d of %d; check what each rank passes to "
                            "gradsync_comm_create, and the order in which the callback gathers",
                            r, n, a[r].rank, a[r].n);
        if (a[r].algo != a[rank].algo)
            return gsi_fail(GRADSYNC_ERR_MISMATCH, "rank %d fixes the algorithm to %s, rank %d to %s", r,
                            gradsync_algo_name(a[r].algo), rank, gradsync_algo_name(a[rank].algo));
        if (a[r].wire != a[rank].wire || a[r].local_only != a[rank].local_only)
            return gsi_fail(GRADSYNC_ERR_MISMATCH,
                            "rank %d and rank %d ask for different transports; set GRADSYNC_TRANSPORT alike on all "
                            "ranks",
                            r, rank);
    }
    for (int r = 0; r < n; r++)
        if (a[r].status)
            return r == rank ? a[r].status : gsi_fail(a[r].status, "rank %d cannot join: %.200s", r, a[r].error);
    for (int r = 0; r < n; r++)
        if (a[rank].local_only && strncmp(a[r].host_id, a[rank].host_id, sizeof a[r].host_id))
            return gsi_fail(GRADSYNC_ERR_UNSUPPORTED,
                            "rank %d is on %.63s, rank %d on %.63s, and transport shm is asked for, which does not "
                            "reach other hosts; use auto (or set GRADSYNC_HOST_ID alike if they share memory)",
                            r, a[r].shm.host, rank, a[rank].shm.host);
    return 0;
}

int gsi_outcomes_check(const gsi_outcome *outcomes, int rank, int n)
{
    if (outcomes[rank].status)
        return outcomes[rank].status;
    for (int r = 0; r < n; r++)
        if (outcomes[r].status)
            return gsi_fail(outcomes[r].status, "rank %d could not make the communicator: %.200s", r,
                            outcomes[r].error);
    return 0;
}
