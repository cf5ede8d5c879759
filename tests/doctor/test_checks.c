/* SPDX-License-Identifier: Apache-2.0 */
/* Each check, on a machine that has just that wrong with it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "patient.h"
#include "tap.h"

enum {
    SKIPPED = GRADSYNC_FINDING_SKIPPED,
    OK = GRADSYNC_FINDING_OK,
    HINT = GRADSYNC_FINDING_HINT,
    WARNING = GRADSYNC_FINDING_WARNING,
    ERROR = GRADSYNC_FINDING_ERROR
};

static machine m;

static void drop(const char *path)
{
    char full[512];

    snprintf(full, sizeof full, "%s/%s", m.root, path);
    if (unlink(full)) {
        printf("Bail out! cannot remove %s\n", full);
        exit(99);
    }
}

/* The file of a port: "state". */
static void set_port(int i, const char *file, const char *text)
{
    machine_file(&m, text, "sys/class/infiniband/mlx5_%d/ports/1/%s", i, file);
}

/* One test: see patient_has(). */
static void has(const char *peer, const char *id, const char *subject, int severity, const char *cause,
                const char *remedy)
{
    char text[512];
    int good = patient_has(&m, peer, id, subject, severity, cause, remedy, text, sizeof text);

    tap_ok(good, "%s", text);
}

static void test_healthy(void)
{
    gsi_findings list;
    int n, bad = 0;
    const gsi_check *checks = gsi_checks(&n);

    patient_new(&m);
    patient_examine(&m, "10.0.0.2", "", &list);
    for (int i = 0; i < list.n; i++) {
        const gradsync_finding *f = &list.items[i];
        /* The size of /dev/shm cannot be copied. */
        if (f->severity == OK || !strcmp(f->id, "shm-size"))
            continue;
        tap_note("%s %s: %d %s", f->id, f->subject, f->severity, f->cause);
        bad++;
    }
    tap_ok(bad == 0 && list.n == n, "nothing is wrong with a healthy machine: %d findings of %d checks", list.n, n);
    int named = 1, whole = 1;
    for (int i = 0; i < n; i++) {
        named &= patient_find(&list, checks[i].id, NULL) != NULL && strlen(checks[i].id) < 32;
        for (int k = 0; k < i; k++)
            named &= strcmp(checks[i].id, checks[k].id) != 0;
    }
    for (int i = 0; i < list.n; i++)
        whole &= list.items[i].size == sizeof list.items[i] && list.items[i].cause[0];
    tap_ok(named && whole, "every check has a name of its own and says something");
    free(list.items);
    machine_remove(&m);
}

static void test_ports(void)
{
    patient_new(&m);
    set_port(1, "state", "1: DOWN");
    set_port(1, "phys_state", "2: Polling");
    has(NULL, "port-down", "mlx5_1:1", WARNING, "DOWN, its physical state Polling", "eth1");
    set_port(1, "phys_state", "3: Disabled");
    has(NULL, "port-down", "mlx5_1:1", WARNING, "Disabled", "ip link set eth1 up");
    set_port(0, "state", "1: DOWN");
    has(NULL, "port-down", "mlx5_0:1", ERROR, "DOWN", NULL);
    has(NULL, "tcp-fallback", "", ERROR, "mlx5_0:1 cannot be used: it is DOWN", "cable");
    patient_env = (const char *[]){"GRADSYNC_HCA=mlx5_1", NULL};
    set_port(1, "state", "4: ACTIVE");
    has(NULL, "port-down", "", OK, NULL, NULL); /* nobody wants the one that is down */
    patient_env = NULL;
    set_port(0, "state", "2: INIT");
    has(NULL, "port-init", "mlx5_0:1", WARNING, "INIT", "bring eth0 up");
    set_port(0, "link_layer", "InfiniBand");
    set_port(0, "sm_lid", "0x0");
    has(NULL, "port-init", "mlx5_0:1", WARNING, "no subnet manager", "opensm");
    set_port(0, "sm_lid", "0x1");
    has(NULL, "port-init", "mlx5_0:1", WARNING, "not finished", "log");
    set_port(0, "state", "4: ACTIVE");
    machine_file(&m, "17", "sys/class/infiniband/mlx5_0/ports/1/counters/symbol_error");
    machine_file(&m, "0", "sys/class/infiniband/mlx5_0/ports/1/counters/link_downed");
    machine_file(&m, "3", "sys/class/infiniband/mlx5_0/ports/1/hw_counters/out_of_sequence");
    has(NULL, "port-errors", "mlx5_0:1", HINT, "symbol_error 17, out_of_sequence 3", "cable");
    machine_file(&m, "20.28.1002", "sys/class/infiniband/mlx5_1/fw_ver");
    has(NULL, "firmware", "mlx5_1", HINT, "20.28.1002, that of mlx5_0, the same board, 20.31.1014", NULL);
    machine_remove(&m);
}

static void test_rate(void)
{
    gsi_facts facts;
    gsi_findings list = {.n = 0};
    int n;
    const gsi_check *check = gsi_checks(&n);

    patient_new(&m);
    set_port(1, "rate", "100 Gb/sec (2X HDR)");
    has(NULL, "port-rate", "mlx5_1:1", WARNING, "100 Gb/s, while mlx5_0:1", "cable");
    set_port(0, "rate", "100 Gb/sec (2X HDR)");
    has(NULL, "port-rate", "", OK, NULL, NULL); /* on Ethernet the lanes say nothing */
    set_port(0, "link_layer", "InfiniBand");
    set_port(1, "link_layer", "InfiniBand");
    has(NULL, "port-rate", "mlx5_0:1", HINT, "2 lanes of 4", "split cable");
    set_port(0, "rate", "50 Gb/sec (1X HDR)");
    set_port(1, "rate", "50 Gb/sec (1X HDR)");
    has(NULL, "port-rate", "mlx5_1:1", WARNING, "1 lane of 4", "cable");
    set_port(1, "link_layer", "Ethernet");
    /* What ethtool says is not in a copy. */
    while (strcmp(check->id, "port-rate") != 0)
        check++;
    if (!gsi_facts_read(m.root, NULL, NULL, NULL, "", &facts)) {
        facts.more[1].can_mbps = 200000;
        gsi_doctor_run(check, &facts, &list);
        const gradsync_finding *f = patient_find(&list, "port-rate", "mlx5_1:1");
        tap_ok(f && f->severity == WARNING && strstr(f->cause, "runs at 50 Gb/s, the card can do 200 Gb/s"),
               "port-rate: %s", f ? f->cause : "nothing");
        free(list.items);
        gsi_facts_free(&facts);
    }
    machine_remove(&m);
}

static void test_mtu(void)
{
    patient_new(&m);
    machine_file(&m, "1500", "sys/class/net/eth1/mtu");
    has(NULL, "mtu-small", "mlx5_1:1", WARNING, "the MTU of eth1 is 1500, so that an RDMA packet carries 1024",
        "mtu 9000");
    has(NULL, "mtu-differs", "mlx5_1:1", WARNING, "is 1024 (eth1 has 1500), that of mlx5_0:1 4096",
        "ip link set eth1 mtu 9000");
    machine_file(&m, "1500", "sys/class/net/eth0/mtu");
    has(NULL, "mtu-differs", "", OK, NULL, NULL);
    machine_remove(&m);
}

static void test_access(void)
{
    char path[512];

    patient_new(&m);
    drop("dev/infiniband/uverbs1");
    has(NULL, "device-access", "mlx5_1", HINT, "1 RDMA device has no node", "pass the node in");
    drop("dev/infiniband/uverbs0");
    has(NULL, "device-access", "mlx5_0", ERROR, "/dev/infiniband/uverbs0 is missing", "ib_uverbs");
    has(NULL, "tcp-fallback", "", ERROR, "uverbs0 is missing", "container");
    machine_file(&m, "", ".dockerenv");
    has(NULL, "device-access", "mlx5_0", ERROR, "this container (docker)", "--device=/dev/infiniband");
    drop(".dockerenv");
    machine_file(&m, "0::/kubepods.slice/pod1", "proc/1/cgroup");
    has(NULL, "device-access", "mlx5_0", ERROR, "this container (kubernetes)", "device plugin");
    machine_file(&m, "", "dev/infiniband/uverbs0");
    snprintf(path, sizeof path, "%s/dev/infiniband/uverbs0", m.root);
    chmod(path, 0);
    int root = !geteuid(); /* access() asks for the real user */
    if (root && setreuid(65534, 0))
        printf("Bail out! setreuid\n");
    has(NULL, "device-access", "mlx5_0", ERROR, "may not open /dev/infiniband/uverbs0", "udev");
    if (root && setreuid(0, 0))
        printf("Bail out! setreuid\n");
    chmod(path, 0666);
    drop("dev/infiniband/rdma_cm");
    has(NULL, "rdma-cm", "", HINT, "rdma_cm is missing", "rdma_ucm");
    drop("sys/class/infiniband_verbs/uverbs0/ibdev");
    has(NULL, "rdma-driver", "mlx5_0", ERROR, "no access", "ib_uverbs");
    machine_remove(&m);
}

static void test_fallback(void)
{
    gsi_findings list;

    machine_new(&m);
    has(NULL, "tcp-fallback", "", WARNING, "the kernel has no RDMA device", "network card with RDMA");
    has("10.0.0.2", "gid-subnet", "", SKIPPED, "no RoCE port", NULL);
    machine_pci(&m, "pci0000:00/0000:00:01.0/0000:01:00.0", "0x020700", "0x15b3", 0);
    has(NULL, "rdma-driver", "0000:01:00.0 (no driver)", WARNING, "has no driver", "mlx5_core");
    machine_file(&m, "", "sys/bus/pci/drivers/mlx5_core/bind");
    machine_link(&m, "../../../../bus/pci/drivers/mlx5_core",
                 "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/driver");
    has(NULL, "rdma-driver", "0000:01:00.0 (mlx5_core)", WARNING, "network half", "mlx5_ib");
    has(NULL, "tcp-fallback", "", WARNING, "though there is a card", "rdma-driver");
    machine_remove(&m);

    patient_new(&m);
    patient_examine(&m, NULL, "libibverbs.so.1: cannot open shared object file; install it", &list);
    const gradsync_finding *f = patient_find(&list, "rdma-module", NULL);
    tap_ok(f && f->severity == ERROR && !strcmp(f->cause, "libibverbs.so.1: cannot open shared object file") &&
               strstr(f->remedy, "ibverbs-providers"),
           "rdma-module: %s", f ? f->cause : "nothing");
    f = patient_find(&list, "tcp-fallback", NULL);
    tap_ok(f && f->severity == ERROR && strstr(f->cause, "module cannot be loaded"), "tcp-fallback: %s",
           f ? f->cause : "nothing");
    free(list.items);
    patient_examine(&m, NULL, NULL, &list);
    f = patient_find(&list, "rdma-module", NULL);
    tap_ok(f && f->severity == SKIPPED, "a copy without libraries tells nothing about them");
    free(list.items);
    machine_file(&m, "", "usr/lib/x86_64-linux-gnu/libc.so.6");
    machine_file(&m, "", "usr/lib/x86_64-linux-gnu/libibverbs.so.1.14");
    patient_examine(&m, NULL, NULL, &list);
    f = patient_find(&list, "rdma-module", NULL);
    tap_ok(f && f->severity == ERROR && strstr(f->cause, "librdmacm.so.1 is not installed"), "rdma-module: %s",
           f ? f->cause : "nothing");
    free(list.items);
    machine_file(&m, "", "usr/lib/x86_64-linux-gnu/librdmacm.so.1");
    machine_file(&m, "", "usr/local/lib/libgradsync-verbs.so.0");
    patient_examine(&m, NULL, NULL, &list);
    f = patient_find(&list, "rdma-module", NULL);
    tap_ok(f && f->severity == OK, "rdma-module: with all of them it is well");
    free(list.items);
    patient_env = (const char *[]){"NCCL_IB_DISABLE=1", NULL};
    has(NULL, "tcp-fallback", "", WARNING, "switched off by a variable", "NCCL_IB_DISABLE");
    has(NULL, "settings", "", WARNING, "switched off", "unset");
    patient_env = (const char *[]){"GRADSYNC_HCA=mlx4", NULL};
    has(NULL, "settings", "", ERROR, "GRADSYNC_HCA lets none of the 2 RDMA ports pass", "unset");
    has(NULL, "tcp-fallback", "", ERROR, "GRADSYNC_HCA does not name it", NULL);
    patient_env = (const char *[]){"NCCL_IB_TC=900", NULL};
    has(NULL, "settings", "", ERROR, "NCCL_IB_TC is '900'", "0 to 255");
    patient_env = (const char *[]){"GRADSYNC_TOPO_FILE=/no/such/file", NULL};
    has(NULL, "settings", "", ERROR, "/no/such/file", "GRADSYNC_TOPO_FILE");
    patient_env = NULL;
    machine_remove(&m);
}

/* An entry of a GID table; type NULL: empty. */
static void set_gid(int i, int index, const char *gid, const char *type)
{
    machine_file(&m, gid, "sys/class/infiniband/mlx5_%d/ports/1/gids/%d", i, index);
    machine_file(&m, type, "sys/class/infiniband/mlx5_%d/ports/1/gid_attrs/types/%d", i, index);
    machine_file(&m, i ? "eth1" : "eth0", "sys/class/infiniband/mlx5_%d/ports/1/gid_attrs/ndevs/%d", i, index);
}

static void test_gids(void)
{
    static const char none[] = "0000:0000:0000:0000:0000:0000:0000:0000";

    patient_new(&m);
    has("10.0.0.2", "gid-subnet", "10.0.0.2", OK, "mlx5_0:1", NULL);
    has("10.0.0.2,10.0.1.2", "gid-subnet", "10.0.1.2", OK, "mlx5_1:1", NULL);
    has("10.0.0.0/16", "gid-subnet", "10.0.0.0/16", OK, "mlx5_0:1, mlx5_1:1", NULL);
    has("10.0.2.2", "gid-subnet", "10.0.2.2", WARNING, "mlx5_0:1 has 10.0.0.1/24, mlx5_1:1 has 10.0.1.1/24", "routes");
    has("192.168.0.7", "gid-subnet", "192.168.0.7", ERROR, "in the subnet of eno1, which has no RDMA", "RDMA address");
    has("fd00::2", "gid-subnet", "fd00::2", WARNING, "no RoCE v2 GID is in its subnet", NULL);
    set_gid(1, 2, "fd00:0000:0000:0000:0000:0000:0000:0001", "RoCE v2");
    has("fd00::2", "gid-subnet", "fd00::2", OK, "mlx5_1:1", NULL);
    patient_env = (const char *[]){"NCCL_IB_GID_INDEX=1", NULL};
    has("fd00::2", "gid-subnet", "fd00::2", WARNING, "of the index that is set", "NCCL_IB_GID_INDEX");
    has(NULL, "gid-index", "", OK, NULL, NULL);
    patient_env = (const char *[]){"NCCL_IB_GID_INDEX=0", NULL};
    has(NULL, "gid-index", "mlx5_0:1", WARNING, "NCCL_IB_GID_INDEX is 0, which is fe80::", "unset");
    patient_env = (const char *[]){"GRADSYNC_IB_GID_INDEX=3", NULL};
    has(NULL, "gid-index", "mlx5_0:1", ERROR, "GRADSYNC_IB_GID_INDEX is 3, which is empty", "unset");
    patient_env = NULL;

    set_gid(0, 1, none, "RoCE v2");
    has(NULL, "gid-missing", "mlx5_0:1", WARNING, "only link-local", "eth0");
    set_gid(0, 0, "fe80:0000:0000:0000:b859:9fff:fe12:3456", "IB/RoCE v1");
    has(NULL, "gid-missing", "mlx5_0:1", WARNING, "no RoCE v2 GID, only: 0: fe80::", "RoCE v1");
    set_gid(0, 0, none, "RoCE v2");
    has(NULL, "gid-missing", "mlx5_0:1", ERROR, "no GID: eth0 has no address", "ip addr add");
    set_gid(1, 1, none, "RoCE v2");
    set_gid(1, 2, none, "RoCE v2");
    has("10.0.0.2", "gid-subnet", "10.0.0.2", ERROR, "could reach", NULL);
    machine_remove(&m);

    /* Two rails in one subnet. */
    patient_new(&m);
    set_gid(1, 1, "0000:0000:0000:0000:0000:ffff:0a00:0002", "RoCE v2");
    machine_file(&m,
                 "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
                 "eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
                 "eth1\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0",
                 "proc/net/route");
    has(NULL, "arp-flux", "", OK, NULL, NULL); /* whether they answer for each other is not known */
    machine_file(&m, "0", "proc/sys/net/ipv4/conf/all/arp_ignore");
    has(NULL, "arp-flux", "mlx5_1:1", WARNING, "eth1 and eth0 (mlx5_0:1) are in one subnet", "arp_ignore=1");
    machine_file(&m, "1", "proc/sys/net/ipv4/conf/all/arp_ignore");
    has(NULL, "arp-flux", "", OK, NULL, NULL);
    machine_remove(&m);
}

static void test_pci(void)
{
    static const char first[] = "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0";

    patient_new(&m);
    patient_link(&m, patient_nic(0), "8.0 GT/s PCIe", "16.0 GT/s PCIe", 16, 16);
    has(NULL, "pcie-link", "mlx5_0 (0000:03:00.0)", WARNING,
        "runs at 8 GT/s x16 (126 Gb/s), the card can do 16 GT/s x16", "reseat");
    has(NULL, "pcie-narrow", "mlx5_0 (0000:03:00.0)", WARNING, "carries 126 Gb/s, less than the 200 Gb/s", "slot");
    patient_link(&m, first, "8.0 GT/s PCIe", "8.0 GT/s PCIe", 16, 16);
    has(NULL, "pcie-link", "mlx5_0 (0000:03:00.0)", HINT, "the slot cannot do more", "pcie-narrow");
    patient_link(&m, patient_nic(0), "16.0 GT/s PCIe", "16.0 GT/s PCIe", 8, 16);
    has(NULL, "pcie-link", "mlx5_0 (0000:03:00.0)", WARNING, "16 GT/s x8", "reseat");
    patient_link(&m, patient_nic(0), "Unknown", "Unknown", 255, 255);
    has(NULL, "pcie-link", "", OK, NULL, NULL);
    patient_link(&m, patient_nic(0), "16.0 GT/s PCIe", "16.0 GT/s PCIe", 16, 16);
    patient_link(&m, patient_gpu(1), "2.5 GT/s PCIe", "16.0 GT/s PCIe", 4, 16);
    has(NULL, "pcie-link", "GPU 0000:84:00.0", WARNING, "has 4 lanes, the card can do 16", "riser");
    /* A second port on the card: both together are more than the link. */
    machine_rdma(&m, &(rdma_card){.device = "mlx5_0", .pci = patient_nic(0), .port = 2});
    has(NULL, "pcie-narrow", "mlx5_0 (0000:03:00.0)", HINT,
        "carries 252.1 Gb/s, less than the 400 Gb/s of its "
        "ports together",
        NULL);

    patient_config(&m, patient_nic(1), 0, 512, 0);
    has(NULL, "pcie-relaxed", "mlx5_1 (0000:83:00.0)", HINT, "relaxed ordering is off", "setpci -s 0000:83");
    has(NULL, "pcie-read", "mlx5_1 (0000:83:00.0)", HINT, "at most 512 bytes", "setpci -s 0000:83");
    machine_file(&m, "short", "sys/devices/%s/config", patient_nic(1));
    has(NULL, "pcie-relaxed", "", SKIPPED, "1 of 2 fast cards", "root");
    has(NULL, "pcie-read", "", OK, NULL, NULL);

    patient_config(&m, first, 1, 512, 0x1d);
    has(NULL, "acs", "0000:02:00.0", WARNING, "on 1 PCI bridge", "ECAP_ACS");
    patient_config(&m, "pci0000:00/0000:00:01.0", 1, 512, 0x1d);
    has(NULL, "acs", "0000:02:00.0", WARNING, "on 1 PCI bridge",
        NULL); /* the port above the switch is not on the way */
    machine_file(&m, "short", "sys/devices/%s/config", first);
    has(NULL, "acs", "", SKIPPED, "1 bridges", "root");

    machine_file(&m, "DMA-FQ", "sys/kernel/iommu_groups/0/type");
    has(NULL, "iommu", "mlx5_0 (0000:03:00.0)", WARNING, "DMA-FQ", "iommu=pt");
    machine_remove(&m);

    char gpu[2][GSI_PCI_ADDR];
    machine_workstation(&m, gpu);
    machine_file(&m, "root=/dev/sda1 intel_iommu=on", "proc/cmdline");
    has(NULL, "iommu", "", HINT, "not with iommu=pt", "command line");
    machine_file(&m, "5.4.0-80", "proc/sys/kernel/osrelease");
    has(NULL, "peer-memory", "", WARNING, "nvidia_peermem is not loaded, and kernel 5.4", "modprobe");
    machine_file(&m, "6.1.0", "proc/sys/kernel/osrelease");
    has(NULL, "peer-memory", "", HINT, "dma-buf, which needs the open kernel modules", "nvidia_peermem");
    machine_file(&m, "", "sys/module/nvidia_peermem/refcnt");
    has(NULL, "peer-memory", "", OK, NULL, NULL);
    has(NULL, "numa-unknown", "", SKIPPED, "one NUMA node", NULL);
    machine_node(&m, 1, 1, 8, "21 10");
    has(NULL, "numa-unknown", "bnxt_re0:1", HINT, "2 NUMA nodes", "GRADSYNC_TOPO_FILE");
    machine_remove(&m);
}

static void limits(const char *locked, const char *files)
{
    char text[256];

    snprintf(text, sizeof text,
             "Limit                     Soft Limit           Hard Limit           Units\n"
             "Max open files            %-20s 1048576              files\n"
             "Max locked memory         %-20s unlimited            bytes",
             files, locked);
    machine_file(&m, text, "proc/self/limits");
}

static void test_host(void)
{
    patient_new(&m);
    limits("65536", "200");
    has(NULL, "memlock", "", ERROR, "may lock 64 KiB of memory of 1008 GiB", "ulimit -l unlimited");
    has(NULL, "open-files", "", WARNING, "may open 200 files", "ulimit -n");
    limits("1073741824", "1000");
    has(NULL, "memlock", "", WARNING, "may lock 1 GiB", "limits.conf");
    has(NULL, "open-files", "", HINT, "1000", NULL);
    machine_file(&m, "", "run/.containerenv");
    has(NULL, "memlock", "", WARNING, "1 GiB", "--ulimit memlock=-1");
    machine_file(&m, "Name:\tx\nCapEff:\t0000000000004000", "proc/self/status");
    has(NULL, "memlock", "", OK, NULL, NULL);
    drop("proc/self/limits");
    has(NULL, "memlock", "", SKIPPED, "could not be read", NULL);
    machine_file(&m, "always within_size advise [never] deny force",
                 "sys/kernel/mm/transparent_hugepage/shmem_enabled");
    has(NULL, "huge-pages", "", HINT, "'never'", "advise");
    machine_file(&m, "MemTotal: 1000 kB\nHugePages_Free:   512", "proc/meminfo");
    has(NULL, "huge-pages", "", OK, NULL, NULL);
    machine_file(&m, "powersave", "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    has(NULL, "cpu-governor", "", HINT, "powersave", "performance");
    machine_file(&m, "1", "proc/sys/kernel/numa_balancing");
    has(NULL, "numa-balancing", "", HINT, "NUMA balancing is on", "sysctl");
    machine_remove(&m);
}

/* What a copy cannot hold. */
static void test_shm(void)
{
    gsi_facts facts;
    gsi_findings list = {.n = 0};
    int n;
    const gsi_check *check = gsi_checks(&n);
    static const struct {
        int64_t bytes;
        int severity;
        const char *cause;
    } cases[] = {{-1, HINT, "not there"},
                 {64 << 20, HINT, "64 MiB"},
                 {(int64_t)8 << 30, OK, "room"},
                 {-2, SKIPPED, "not known"}};

    while (strcmp(check->id, "shm-size") != 0)
        check++;
    patient_new(&m);
    if (gsi_facts_read(m.root, NULL, NULL, NULL, "", &facts)) {
        printf("Bail out! no facts\n");
        exit(99);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        facts.shm_bytes = cases[i].bytes;
        list.n = 0;
        gsi_doctor_run(check, &facts, &list);
        tap_ok(list.n == 1 && list.items[0].severity == cases[i].severity &&
                   strstr(list.items[0].cause, cases[i].cause),
               "shm-size: %s", list.n ? list.items[0].cause : "nothing");
        free(list.items);
        list.items = NULL;
    }
    gsi_facts_free(&facts);
    machine_remove(&m);
}

/* The lab's host 0 sees the devices of host 1 without their nodes. */
static void test_lab(void)
{
    gsi_findings list;
    int worst = 0;

    machine_lab(&m, 2, 0, 2, 1);
    patient_examine(&m, "10.77.0.2,10.77.1.2", "", &list);
    for (int i = 0; i < list.n; i++) {
        worst = list.items[i].severity > worst ? list.items[i].severity : worst;
        if (list.items[i].severity > HINT)
            tap_note("%s %s: %s", list.items[i].id, list.items[i].subject, list.items[i].cause);
    }
    tap_ok(worst == HINT, "a host of the lab is well, but for hints");
    const gradsync_finding *f = patient_find(&list, "gid-subnet", "10.77.1.2");
    tap_ok(f && f->severity == OK && !strcmp(f->cause, "in one subnet with rxe1:1"), "only its own port counts: %s",
           f ? f->cause : "nothing");
    free(list.items);
    machine_remove(&m);
}

/* Machines of other tests: only what is really wrong with them is told. */
static void test_machines(void)
{
    char gpu[8][GSI_PCI_ADDR];

    machine_dgx(&m, gpu);
    has(NULL, "mtu-small", "", SKIPPED, NULL, NULL); /* mlx5_8 has a small MTU, but is for management */
    has(NULL, "pcie-relaxed", "", SKIPPED, "8 of 8 fast cards", "root");
    has(NULL, "acs", "", SKIPPED, "could not be read", "root");
    patient_env = (const char *[]){"GRADSYNC_HCA=mlx5_8", NULL};
    has(NULL, "mtu-small", "mlx5_8:1", WARNING, "eno1", NULL); /* unless it is wanted */
    patient_env = NULL;
    machine_remove(&m);
    machine_40_ports(&m);
    has("10.90.0.9", "gid-subnet", "10.90.0.9", WARNING, "roce0:1 has 10.1.0.1", NULL);
    has(NULL, "tcp-fallback", "", OK, NULL, NULL);
    machine_remove(&m);
}

/* Memory that runs out at any point gives an error, or a list that says so. */
static void test_memory(void)
{
    int reads = 0, wrong = 0;

    patient_new(&m);
    for (long at = 1; at < 5000; at++) {
        gsi_facts facts;
        gsi_findings list = {.n = 0};
        gsi_alloc_fail_at(at);
        int rc = gsi_facts_read(m.root, "10.0.0.2", NULL, NULL, "", &facts);
        if (!rc) {
            gsi_doctor_run(NULL, &facts, &list);
            gsi_facts_free(&facts);
        }
        int ran = gsi_alloc_count() >= at;
        gsi_alloc_fail_at(0);
        free(list.items);
        if (!ran)
            break;
        wrong += rc ? rc != GRADSYNC_ERR_NOMEM : !list.failed;
        reads++;
    }
    tap_ok(reads > 50 && !wrong, "no memory at any of %d allocations is told: %d were not", reads, wrong);
    machine_remove(&m);
}

static void count_one(void *arg, const gradsync_finding *f)
{
    *(int *)arg += f->size == sizeof *f;
}

static void test_public(void)
{
    int n = 0, checks;
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

    gsi_checks(&checks);
    patient_new(&m);
    tap_ok(!gradsync_diagnose(m.root, NULL, count_one, &n) && n >= checks, "gradsync_diagnose() of a copy: %d", n);
    n = 0;
    tap_ok(!gradsync_diagnose(NULL, "10.0.0.2", count_one, &n) && n >= checks, "of this machine: %d", n);
    n = 0;
    tap_ok(gradsync_diagnose(m.root, "host-b", count_one, &n) == GRADSYNC_ERR_INVALID && !n, "a name is no address");
    gradsync_last_error(&info);
    tap_ok(strstr(info.message, "host-b") != NULL, "the message says: %s", info.message);
    tap_ok(gradsync_diagnose(NULL, NULL, NULL, NULL) == GRADSYNC_ERR_INVALID, "without a function: INVALID");
    n = 0;
    tap_ok(!gradsync_diagnose("/no/such/folder", NULL, count_one, &n) && n >= checks, "an empty root has no RDMA: %d",
           n);
    machine_remove(&m);
}

int main(void)
{
    test_healthy();
    test_ports();
    test_rate();
    test_mtu();
    test_access();
    test_fallback();
    test_gids();
    test_pci();
    test_host();
    test_shm();
    test_lab();
    test_machines();
    test_memory();
    test_public();
    return tap_done();
}
