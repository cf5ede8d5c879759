/* SPDX-License-Identifier: Apache-2.0 */
/* Limits, access and settings of the host (or container) as a whole. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "doctor/facts.h"
#include "topo/sysfs.h"

enum { CAPABILITY_IPC_LOCK = 14, UNLIMITED = -1, UNKNOWN = -2 };

/* The rest of the first line of a file that starts with `key`; 0, or -1. */
static int find_line(const char *root, const char *file, const char *key, char *rest, size_t room)
{
    char path[PATH_MAX], line[512];
    int found = -1;

    if (snprintf(path, sizeof path, "%s%s", root, file) >= (int)sizeof path)
        return -1;
    FILE *f = fopen(path, "re");
    if (!f)
        return -1;
    while (found && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, key, strlen(key))) {
            const char *p = line + strlen(key);
            snprintf(rest, room, "%s", p + strspn(p, " \t:"));
            found = 0;
        }
    }
    fclose(f);
    return found;
}

static int64_t read_limit(const char *root, const char *name)
{
    char text[128], *end;

    if (find_line(root, "/proc/self/limits", name, text, sizeof text))
        return UNKNOWN;
    if (!strncmp(text, "unlimited", 9))
        return UNLIMITED;
    long long n = strtoll(text, &end, 10);
    return end == text || n < 0 ? UNKNOWN : n;
}

static int read_ipc_lock(const char *root)
{
    char text[64], *end;

    if (find_line(root, "/proc/self/status", "CapEff", text, sizeof text))
        return -1;
    unsigned long long caps = strtoull(text, &end, 16);
    return end == text ? -1 : (int)(caps >> CAPABILITY_IPC_LOCK & 1);
}

static int can(const char *root, const char *path, int mode)
{
    char full[PATH_MAX];

    if (snprintf(full, sizeof full, "%s%s", root, path) >= (int)sizeof full)
        return ENAMETOOLONG;
    return access(full, mode) ? errno : 0;
}

static void read_container(const char *root, char *name, size_t room)
{
    char text[512];
    const char *found = "";

    if (!can(root, "/.dockerenv", F_OK))
        found = "docker";
    else if (!can(root, "/run/.containerenv", F_OK))
        found = "podman";
    else if (!can(root, "/var/run/secrets/kubernetes.io", F_OK))
        found = "kubernetes";
    else if (!gsi_sys_line(root, text, sizeof text, "/proc/1/cgroup"))
        found = strstr(text, "kubepods") ? "kubernetes"
                : strstr(text, "docker") ? "docker"
                : strstr(text, "lxc")    ? "lxc"
                                         : "";
    snprintf(name, room, "%s", found);
}

/* Of "always [madvise] never" the word in brackets. */
static void read_choice(const char *root, const char *path, char *word, size_t room)
{
    char line[128];

    gsi_sys_line(root, line, sizeof line, "%s", path);
    char *open = strchr(line, '['), *close = open ? strchr(open, ']') : NULL;
    if (close)
        *close = 0;
    snprintf(word, room, "%.23s", close ? open + 1 : "");
}

static void read_shm(const char *root, gsi_facts *f)
{
    char path[PATH_MAX];
    struct statvfs s;

    f->shm_bytes = UNKNOWN;
    if (snprintf(path, sizeof path, "%s/dev/shm", root) >= (int)sizeof path)
        return;
    if (access(path, F_OK))
        f->shm_bytes = f->real ? -1 : UNKNOWN;
    else if (f->real && !statvfs(path, &s)) { /* a copy has the size of its own disk */
        f->shm_bytes = (int64_t)s.f_blocks * (int64_t)s.f_frsize;
        f->shm_free = (int64_t)s.f_bavail * (int64_t)s.f_frsize;
    }
}

static int has_word(const char *line, const char *word)
{
    size_t n = strlen(word);

    for (const char *p = line; (p = strstr(p, word)); p += n)
        if ((p == line || p[-1] == ' ' || p[-1] == ',') && (!p[n] || p[n] == ' ' || p[n] == ','))
            return 1;
    return 0;
}

static void read_kernel(const char *root, gsi_facts *f)
{
    char text[4096];

    if (!gsi_sys_line(root, text, sizeof text, "/proc/sys/kernel/osrelease"))
        sscanf(text, "%d.%d", &f->kernel[0], &f->kernel[1]);
    gsi_sys_line(root, text, sizeof text, "/proc/cmdline");
    f->iommu_off = has_word(text, "intel_iommu=off") || has_word(text, "amd_iommu=off") || has_word(text, "iommu=off");
    f->iommu_pt = has_word(text, "iommu=pt") || has_word(text, "iommu.passthrough=1");
    f->iommu_on = has_word(text, "intel_iommu=on") || has_word(text, "amd_iommu=on");
}

void gsi_facts_read_host(const char *root, gsi_facts *f)
{
    char text[128];

    f->infiniband_folder = can(root, "/dev/infiniband", R_OK | X_OK);
    f->rdma_cm = can(root, "/dev/infiniband/rdma_cm", R_OK | W_OK);
    f->memlock = read_limit(root, "Max locked memory");
    f->files = read_limit(root, "Max open files");
    f->ipc_lock = read_ipc_lock(root);
    read_container(root, f->container, sizeof f->container);
    read_shm(root, f);
    if (!find_line(root, "/proc/meminfo", "MemTotal", text, sizeof text))
        f->memory_bytes = strtoll(text, NULL, 10) * 1024;
    f->huge_pages = find_line(root, "/proc/meminfo", "HugePages_Free", text, sizeof text) ? 0 : strtol(text, NULL, 10);
    read_choice(root, "/sys/kernel/mm/transparent_hugepage/shmem_enabled", f->thp_shmem, sizeof f->thp_shmem);
    gsi_sys_line(root, f->governor, sizeof f->governor, "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    f->numa_balancing = gsi_sys_number(root, -1, "/proc/sys/kernel/numa_balancing");
    f->peermem = !can(root, "/sys/module/nvidia_peermem", F_OK) || !can(root, "/sys/module/nv_peer_mem", F_OK);
    read_kernel(root, f);
}
