/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that the device can reach. */
#include "transport/verbs/verbs.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/resource.h>

static int refused(const gsi_verbs_rail *rail, const void *base, uint64_t bytes, int err)
{
    struct rlimit limit;
    unsigned long long n = bytes;

    switch (err) {
    case ENOMEM:
        if (!getrlimit(RLIMIT_MEMLOCK, &limit) && limit.rlim_cur != RLIM_INFINITY)
            return gsi_verbs_host.fail(
                GRADSYNC_ERR_NOMEM,
                "%s cannot register %llu bytes: the limit of locked memory is %llu KiB; raise it "
                "(ulimit -l unlimited, LimitMEMLOCK=infinity, --ulimit memlock=-1), or give the "
                "process CAP_IPC_LOCK",
                rail->rail.name, n, (unsigned long long)limit.rlim_cur / 1024);
        return gsi_verbs_host.fail(
            GRADSYNC_ERR_NOMEM,
            "%s cannot register %llu bytes: the system, or the device's table of regions, is full; "
            "register less memory",
            rail->rail.name, n);
    case EFAULT:
        return gsi_verbs_host.fail(
            GRADSYNC_ERR_UNSUPPORTED,
            "%s cannot register %llu bytes at %p: not all of it is mapped and writable, or it is "
            "memory of a device; pass ordinary writable memory",
            rail->rail.name, n, base);
    case EINVAL:
    case EOPNOTSUPP:
        errno = err;
        return gsi_verbs_host.fail(GRADSYNC_ERR_UNSUPPORTED,
                                   "%s cannot register %llu bytes at %p (%m); pass ordinary memory", rail->rail.name, n,
                                   base);
    default:
        errno = err;
        return gsi_verbs_host.fail(GRADSYNC_ERR_SYSTEM, "%s cannot register %llu bytes at %p: %m", rail->rail.name, n,
                                   base);
    }
}

int gsi_verbs_reg(gsi_rail *base_rail, void *base, uint64_t bytes, gsi_region *out)
{
    gsi_verbs_rail *rail = (gsi_verbs_rail *)base_rail;
    int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;

    if (!bytes)
        return refused(rail, base, bytes, EINVAL);
    gsi_verbs_region *region = calloc(1, sizeof *region);
    if (!region)
        return refused(rail, base, bytes, ENOMEM);
    /* Kernels and devices that do not know the flag ignore it: it is one of the optional ones. */
    if (rail->config.relaxed_ordering)
        region->mr = ibv_reg_mr(rail->pd, base, bytes, access | IBV_ACCESS_RELAXED_ORDERING);
    else
        region->mr = ibv_reg_mr(rail->pd, base, bytes, access);
    if (!region->mr) {
        int err = errno;

        free(region);
        return refused(rail, base, bytes, err);
    }
    region->lkey = region->mr->lkey;
    region->next = rail->regions;
    if (region->next)
        region->next->prev = region;
    rail->regions = region;
    *out = (gsi_region){.handle = region, .base = base, .bytes = bytes, .remote_key = region->mr->rkey};
    return 0;
}

void gsi_verbs_dereg(gsi_rail *base_rail, gsi_region *handle)
{
    gsi_verbs_rail *rail = (gsi_verbs_rail *)base_rail;
    gsi_verbs_region *region = handle->handle;

    if (!region || gsi_verbs_is_child(rail))
        return;
    ibv_dereg_mr(region->mr);
    if (region->prev)
        region->prev->next = region->next;
    else
        rail->regions = region->next;
    if (region->next)
        region->next->prev = region->prev;
    free(region);
    *handle = (gsi_region){0};
}
