/* SPDX-License-Identifier: Apache-2.0 */
/* Checks: limits and settings of the host. */
#include <stdio.h>
#include <string.h>

#include "doctor/doctor.h"

#define MIB (1024.0 * 1024)

enum { SMALL_SHM = 64 << 20, FEW_FILES = 256, SOME_FILES = 1024 };
static const int64_t least_locked = 64 << 20; /* the library's own queues and slots, with several peers */

static void put_bytes(int64_t bytes, char *text, size_t room)
{
    if (bytes >= 1 << 30)
        snprintf(text, room, "%.4g GiB", (double)bytes / MIB / 1024);
    else if (bytes >= 1 << 20)
        snprintf(text, room, "%.4g MiB", (double)bytes / MIB);
    else
        snprintf(text, room, "%.4g KiB", (double)bytes / 1024);
}

void gsi_check_memlock(const gsi_facts *f, gsi_findings *list)
{
    char limit[32], memory[32];

    if (f->memlock == -2) {
        gsi_find(list, GRADSYNC_FINDING_SKIPPED, "", "the limits of this process could not be read");
        return;
    }
    /* The capability lifts the limit. */
    if (f->memlock == -1 || f->ipc_lock == 1 || (f->memory_bytes && f->memlock >= f->memory_bytes))
        return;
    put_bytes(f->memlock, limit, sizeof limit);
    put_bytes(f->memory_bytes, memory, sizeof memory);
    gsi_find(list, f->memlock < least_locked ? GRADSYNC_FINDING_ERROR : GRADSYNC_FINDING_WARNING, "",
             "this process may lock %s of memory%s%s, and RDMA locks all that it sends from or writes to", limit,
             f->memory_bytes ? " of " : "", f->memory_bytes ? memory : "");
    if (f->container[0])
        gsi_remedy(list, "start the container with --ulimit memlock=-1, or the capability IPC_LOCK (Kubernetes: "
                         "securityContext.capabilities.add)");
    else
        gsi_remedy(list, "ulimit -l unlimited; for good: 'memlock unlimited' in /etc/security/limits.conf, and "
                         "LimitMEMLOCK=infinity in the service of the scheduler (slurmd) or of sshd");
}

void gsi_check_files(const gsi_facts *f, gsi_findings *list)
{
    if (f->files == -2) {
        gsi_find(list, GRADSYNC_FINDING_SKIPPED, "", "the limits of this process could not be read");
        return;
    }
    if (f->files == -1 || f->files >= SOME_FILES)
        return;
    gsi_find(list, f->files < FEW_FILES ? GRADSYNC_FINDING_WARNING : GRADSYNC_FINDING_HINT, "",
             "this process may open %lld files; each peer takes a few", (long long)f->files);
    gsi_remedy(list, "ulimit -n 65536");
}

void gsi_check_shm(const gsi_facts *f, gsi_findings *list)
{
    char total[32];

    if (f->shm_bytes == -2) {
        gsi_find(list, GRADSYNC_FINDING_SKIPPED, "", "the size of /dev/shm is not known");
        return;
    }
    if (f->shm_bytes == -1) {
        gsi_find(list, GRADSYNC_FINDING_HINT, "/dev/shm",
                 "it is not there, and ranks of one host find each other by it");
        gsi_remedy(list,
                   "mount a tmpfs there, the same one for all containers of a host whose ranks should share memory");
        return;
    }
    if (f->shm_bytes > SMALL_SHM)
        return;
    put_bytes(f->shm_bytes, total, sizeof total);
    gsi_find(list, GRADSYNC_FINDING_HINT, "/dev/shm",
             "it has %s: this library needs none of it (it uses memfd), but data loaders of frameworks do", total);
    gsi_remedy(list, "docker run --shm-size=8g, or --ipc=host; Kubernetes: an emptyDir of medium Memory at /dev/shm");
}

void gsi_check_huge_pages(const gsi_facts *f, gsi_findings *list)
{
    if (f->huge_pages > 0 || !f->thp_shmem[0] || !strcmp(f->thp_shmem, "advise") || !strcmp(f->thp_shmem, "always") ||
        !strcmp(f->thp_shmem, "within_size") || !strcmp(f->thp_shmem, "force"))
        return;
    gsi_find(list, GRADSYNC_FINDING_HINT, "",
             "shared memory gets no huge pages (shmem_enabled is '%s', none are reserved): more page-table misses, and "
             "slower registration of large buffers",
             f->thp_shmem);
    gsi_remedy(list, "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled");
}

void gsi_check_governor(const gsi_facts *f, gsi_findings *list)
{
    if (!f->governor[0] || !strcmp(f->governor, "performance"))
        return;
    gsi_find(list, GRADSYNC_FINDING_HINT, "", "the CPU's frequency governor is '%s': latency varies", f->governor);
    gsi_remedy(list, "cpupower frequency-set -g performance, for measurements and for large jobs");
}

void gsi_check_numa_balancing(const gsi_facts *f, gsi_findings *list)
{
    if (f->numa_balancing <= 0)
        return;
    gsi_find(
        list, GRADSYNC_FINDING_HINT, "",
        "automatic NUMA balancing is on: it unmaps pages to see who uses them, which costs time in every reduction");
    gsi_remedy(list, "sysctl kernel.numa_balancing=0 where ranks are bound to their NUMA nodes");
}
