/* SPDX-License-Identifier: Apache-2.0 */
#include "patient.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *const *patient_env;

static const char *const nics[2] = {"pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0",
                                    "pci0000:80/0000:80:01.0/0000:81:00.0/0000:82:00.0/0000:83:00.0"};
static const char *const gpus[2] = {"pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:08.0/0000:04:00.0",
                                    "pci0000:80/0000:80:01.0/0000:81:00.0/0000:82:08.0/0000:84:00.0"};

const char *patient_nic(int i)
{
    return nics[i];
}

const char *patient_gpu(int i)
{
    return gpus[i];
}

static void put16(unsigned char *config, size_t at, unsigned value)
{
    config[at] = (unsigned char)value;
    config[at + 1] = (unsigned char)(value >> 8);
}

void patient_config(const machine *m, const char *path, int relaxed, int max_read, int acs)
{
    unsigned char config[4096] = {0};
    unsigned read = 0;
    char file[512];

    while (128 << read < max_read)
        read++;
    put16(config, 0x06, 0x10);
    config[0x34] = 0x60;
    put16(config, 0x60, 0x0010);
    put16(config, 0x68, read << 12 | (unsigned)relaxed << 4);
    put16(config, 0x100, 0x000d);
    put16(config, 0x102, 0x0001);
    put16(config, 0x106, (unsigned)acs);
    machine_file(m, "", "sys/devices/%s/config", path); /* makes the folders */
    snprintf(file, sizeof file, "%s/sys/devices/%s/config", m->root, path);
    FILE *f = fopen(file, "we");
    if (!f || fwrite(config, sizeof config, 1, f) != 1 || fclose(f)) {
        printf("Bail out! cannot write %s\n", file);
        exit(99);
    }
}

void patient_link(const machine *m, const char *path, const char *speed, const char *max_speed, int width,
                  int max_width)
{
    char text[16];

    machine_file(m, speed, "sys/devices/%s/current_link_speed", path);
    machine_file(m, max_speed, "sys/devices/%s/max_link_speed", path);
    snprintf(text, sizeof text, "%d", width);
    machine_file(m, text, "sys/devices/%s/current_link_width", path);
    snprintf(text, sizeof text, "%d", max_width);
    machine_file(m, text, "sys/devices/%s/max_link_width", path);
}

/* A bridge: path up to its own address. */
static void make_bridges(const machine *m, const char *path, int node)
{
    char part[256];

    for (const char *slash = strchr(path, '/'); slash && (slash = strchr(slash + 1, '/'));) {
        snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
        machine_pci(m, part, "0x060400", "0x1000", node);
        patient_link(m, part, "16.0 GT/s PCIe", "16.0 GT/s PCIe", 16, 16);
        patient_config(m, part, 1, 512, 1);
    }
}

void patient_new(machine *m)
{
    char text[64], gid[64], netdev[16], device[24];

    machine_new(m);
    machine_node(m, 0, 0, 0, "10 21");
    machine_node(m, 1, 1, 32, "21 10");
    for (int i = 0; i < 2; i++) {
        make_bridges(m, nics[i], i);
        make_bridges(m, gpus[i], i);
        machine_pci(m, nics[i], "0x020000", "0x15b3", i);
        machine_pci(m, gpus[i], "0x030200", "0x10de", i);
        patient_link(m, nics[i], "16.0 GT/s PCIe", "16.0 GT/s PCIe", 16, 16);
        patient_link(m, gpus[i], "2.5 GT/s PCIe", "16.0 GT/s PCIe", 16, 16); /* idle */
        patient_config(m, nics[i], 1, 4096, 0);
        snprintf(netdev, sizeof netdev, "eth%d", i);
        snprintf(device, sizeof device, "mlx5_%d", i);
        snprintf(gid, sizeof gid, "0000:0000:0000:0000:0000:ffff:0a00:0%d01", i);
        machine_netdev(m, netdev, nics[i], NULL, 9000);
        machine_rdma(m, &(rdma_card){.device = device,
                                     .pci = nics[i],
                                     .gids = {{"fe80:0000:0000:0000:b859:9fff:fe12:3456", "RoCE v2", netdev},
                                              {gid, "RoCE v2", netdev}}});
        snprintf(text, sizeof text, "sys/kernel/iommu_groups/%d/type", i);
        machine_file(m, "identity", "%s", text);
        snprintf(text, sizeof text, "../../../../../../kernel/iommu_groups/%d", i);
        machine_link(m, text, "sys/devices/%s/iommu_group", nics[i]);
    }
    machine_file(m,
                 "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
                 "eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
                 "eth1\t0001000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
                 "eno1\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0",
                 "proc/net/route");
    machine_file(m, "", "dev/infiniband/rdma_cm");
    machine_file(m, "", "dev/shm/.keep");
    machine_file(m, "6.1.0-18-amd64", "proc/sys/kernel/osrelease");
    machine_file(m, "0", "proc/sys/kernel/numa_balancing");
    machine_file(m, "BOOT_IMAGE=/vmlinuz root=/dev/sda1 iommu=pt intel_iommu=on", "proc/cmdline");
    machine_file(m,
                 "Limit                     Soft Limit           Hard Limit           Units\n"
                 "Max open files            65536                1048576              files\n"
                 "Max locked memory         unlimited            unlimited            bytes",
                 "proc/self/limits");
    machine_file(m, "Name:\tx\nCapEff:\t0000000000000000", "proc/self/status");
    machine_file(m, "MemTotal:       1056768000 kB\nHugePages_Free:        0", "proc/meminfo");
    machine_file(m, "always within_size [advise] never deny force", "sys/kernel/mm/transparent_hugepage/shmem_enabled");
    machine_file(m, "performance", "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    machine_file(m, "", "sys/module/nvidia_peermem/refcnt");
}

static const char *get(void *arg, const char *name)
{
    size_t n = strlen(name);

    (void)arg;
    for (const char *const *e = patient_env; e && *e; e++)
        if (!strncmp(*e, name, n) && (*e)[n] == '=')
            return *e + n + 1;
    return NULL;
}

void patient_examine(const machine *m, const char *peer, const char *verbs_error, gsi_findings *list)
{
    gsi_facts facts;

    *list = (gsi_findings){.n = 0};
    if (gsi_facts_read(m->root, peer, get, NULL, verbs_error, &facts)) {
        printf("Bail out! the facts cannot be read\n");
        exit(99);
    }
    gsi_doctor_run(NULL, &facts, list);
    gsi_facts_free(&facts);
}

const gradsync_finding *patient_find(const gsi_findings *list, const char *id, const char *subject)
{
    for (int i = 0; i < list->n; i++)
        if (!strcmp(list->items[i].id, id) && (!subject || !strcmp(list->items[i].subject, subject)))
            return &list->items[i];
    return NULL;
}

int patient_has(const machine *m, const char *peer, const char *id, const char *subject, int severity,
                const char *cause, const char *remedy, char *text, size_t room)
{
    gsi_findings list;

    patient_examine(m, peer, "", &list);
    const gradsync_finding *f = patient_find(&list, id, subject);
    int good = f && f->severity == severity && (!cause || strstr(f->cause, cause)) &&
               (!remedy || strstr(f->remedy, remedy)) &&
               (severity < GRADSYNC_FINDING_HINT || (f->cause[0] && f->remedy[0]));
    snprintf(text, room, "%s%s%s: %s", id, f && f->subject[0] ? " " : "", f ? f->subject : "",
             f ? f->cause : "no finding");
    if (!good) {
        printf("# wanted severity %d for '%s' with '%s' and '%s'\n", severity, subject ? subject : "any",
               cause ? cause : "", remedy ? remedy : "");
        if (f)
            printf("# severity %d; remedy: %s\n", f->severity, f->remedy);
        if (!f && (f = patient_find(&list, id, NULL)))
            printf("# there is: '%s' %d %s\n", f->subject, f->severity, f->cause);
    }
    free(list.items);
    return good;
}
