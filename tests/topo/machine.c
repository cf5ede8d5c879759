/* SPDX-License-Identifier: Apache-2.0 */
#include "machine.h"

#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What fails here is no result of a test: end. */
static void must(int ok, const char *what)
{
    if (ok)
        return;
    printf("Bail out! %s: %s\n", what, strerror(errno));
    exit(99);
}

void machine_new(machine *m)
{
    const char *tmp = getenv("TMPDIR");

    *m = (machine){.uverbs = 0};
    snprintf(m->root, sizeof m->root, "%.40s/gradsync-XXXXXX", tmp && *tmp && strlen(tmp) < 40 ? tmp : "/tmp");
    must(mkdtemp(m->root) != NULL, m->root);
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

void machine_remove(machine *m)
{
    must(!nftw(m->root, remove_one, 16, FTW_DEPTH | FTW_PHYS), m->root);
    m->root[0] = 0;
}

/* The folders above a path. */
static void make_folders(char *path)
{
    for (char *p = path + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        must(!mkdir(path, 0777) || errno == EEXIST, path);
        *p = '/';
    }
}

static void append(const machine *m, const char *text, const char *path, const char *mode)
{
    char full[2 * PATH_MAX];

    snprintf(full, sizeof full, "%s/%s", m->root, path);
    make_folders(full);
    FILE *f = fopen(full, mode);
    must(f != NULL, full);
    fprintf(f, "%s\n", text);
    must(!fclose(f), full);
}

__attribute__((format(printf, 1, 0))) static char *formatted(const char *format, va_list args)
{
    char *text = NULL;

    must(vasprintf(&text, format, args) >= 0, format);
    return text;
}

void machine_file(const machine *m, const char *text, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    char *path = formatted(format, args);
    va_end(args);
    append(m, text, path, "we");
    free(path);
}

static void make_link(const machine *m, const char *target, const char *path)
{
    char full[2 * PATH_MAX];

    snprintf(full, sizeof full, "%s/%s", m->root, path);
    make_folders(full);
    must(!symlink(target, full) || errno == EEXIST, full);
}

void machine_link(const machine *m, const char *target, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    char *path = formatted(format, args);
    va_end(args);
    make_link(m, target, path);
    free(path);
}

static void write_bytes(const machine *m, const char *hex, const char *path)
{
    char full[2 * PATH_MAX];
    unsigned byte;

    snprintf(full, sizeof full, "%s/%s", m->root, path);
    make_folders(full);
    FILE *f = fopen(full, "we");
    must(f != NULL, full);
    for (; sscanf(hex, "%2x", &byte) == 1; hex += 2)
        fputc((int)byte, f);
    must(!fclose(f), full);
}

void machine_unpack(const machine *m, const char *file)
{
    char line[4096];
    FILE *f = fopen(file, "re");

    must(f != NULL, file);
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        char *tab = strchr(line, '\t');
        must(tab && line[1] == ' ', line);
        *tab = 0;
        if (line[0] == 'L')
            make_link(m, tab + 1, line + 2);
        else if (line[0] == 'H')
            write_bytes(m, tab + 1, line + 2);
        else
            append(m, tab + 1, line + 2, "ae");
    }
    fclose(f);
}

static const char *number(int n)
{
    static char text[4][16];
    static int next;
    char *t = text[next++ % 4];

    snprintf(t, sizeof text[0], "%d", n);
    return t;
}

void machine_node(const machine *m, int id, int package, int cpu, const char *distances)
{
    machine_file(m, distances, "sys/devices/system/node/node%d/distance", id);
    machine_file(m, number(cpu), "sys/devices/system/node/node%d/cpulist", id);
    machine_file(m, number(package), "sys/devices/system/cpu/cpu%d/topology/physical_package_id", cpu);
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

void machine_pci(const machine *m, const char *path, const char *class_code, const char *vendor, int node)
{
    char target[512];

    machine_file(m, class_code, "sys/devices/%s/class", path);
    machine_file(m, vendor, "sys/devices/%s/vendor", path);
    machine_file(m, "0x1000", "sys/devices/%s/device", path);
    machine_file(m, number(node), "sys/devices/%s/numa_node", path);
    snprintf(target, sizeof target, "../../../devices/%s", path);
    machine_link(m, target, "sys/bus/pci/devices/%s", last_part(path));
}

void machine_netdev(const machine *m, const char *name, const char *pci, const char *lower, int mtu)
{
    char folder[512], target[600];

    snprintf(folder, sizeof folder, "%s/net/%s", pci ? pci : "virtual", name);
    machine_file(m, number(mtu), "sys/devices/%s/mtu", folder);
    if (pci)
        machine_link(m, "../..", "sys/devices/%s/device", folder);
    if (lower) {
        snprintf(target, sizeof target, "../../../../class/net/%s", lower);
        machine_link(m, target, "sys/devices/%s/lower_%s", folder, lower);
    }
    snprintf(target, sizeof target, "../../devices/%s", folder);
    machine_link(m, target, "sys/class/net/%s", name);
}

static void put_gids(const machine *m, const char *folder, const rdma_card *c)
{
    for (int i = 0; i < 6; i++) {
        const gid_entry *g = &c->gids[i];
        /* Real tables have hundreds of empty entries; a few stand for them here. */
        machine_file(m, g->gid ? g->gid : "0000:0000:0000:0000:0000:0000:0000:0000", "sys/devices/%s/gids/%d", folder,
                     i);
        if (!g->gid)
            continue;
        machine_file(m, g->type ? g->type : "IB/RoCE v1", "sys/devices/%s/gid_attrs/types/%d", folder, i);
        if (g->netdev)
            machine_file(m, g->netdev, "sys/devices/%s/gid_attrs/ndevs/%d", folder, i);
    }
}

void machine_rdma(machine *m, const rdma_card *c)
{
    char device[300], folder[400], target[400];
    int port = c->port ? c->port : 1;

    snprintf(device, sizeof device, "%s/infiniband/%s", c->pci ? c->pci : "virtual", c->device);
    if (port == 1) {
        machine_file(m, "20.31.1014", "sys/devices/%s/fw_ver", device);
        machine_file(m, "MT_0000000223", "sys/devices/%s/board_id", device);
        machine_file(m, "b859:9f03:0012:3456", "sys/devices/%s/node_guid", device);
        if (c->pci)
            machine_link(m, "../..", "sys/devices/%s/device", device);
        if (c->parent)
            machine_file(m, c->parent, "sys/devices/%s/parent", device);
        snprintf(target, sizeof target, "../../devices/%s", device);
        machine_link(m, target, "sys/class/infiniband/%s", c->device);
        machine_file(m, c->device, "sys/class/infiniband_verbs/uverbs%d/ibdev", m->uverbs);
        if (!c->no_node)
            machine_file(m, "", "dev/infiniband/uverbs%d", m->uverbs);
        m->uverbs++;
    }
    snprintf(folder, sizeof folder, "%s/ports/%d", device, port);
    machine_file(m, c->state ? c->state : "4: ACTIVE", "sys/devices/%s/state", folder);
    machine_file(m, c->phys_state ? c->phys_state : "5: LinkUp", "sys/devices/%s/phys_state", folder);
    machine_file(m, c->rate ? c->rate : "200 Gb/sec (4X HDR)", "sys/devices/%s/rate", folder);
    machine_file(m, c->lid ? "InfiniBand" : "Ethernet", "sys/devices/%s/link_layer", folder);
    snprintf(target, sizeof target, "0x%x", (unsigned)c->lid);
    machine_file(m, target, "sys/devices/%s/lid", folder);
    machine_file(m, c->lid ? "0x1" : "0x0", "sys/devices/%s/sm_lid", folder);
    put_gids(m, folder, c);
}

/* ---- Machines of our own ---------------------------------------------------------------- */

void machine_dgx(machine *m, char gpu[8][GSI_PCI_ADDR])
{
    static const char *const root[4] = {"pci0000:00/0000:00:01.1", "pci0000:40/0000:40:01.1", "pci0000:80/0000:80:01.1",
                                        "pci0000:c0/0000:c0:01.1"};
    char path[256], device[16], gid[64];

    machine_new(m);
    machine_node(m, 0, 0, 0, "10 32");
    machine_node(m, 1, 1, 64, "32 10");
    for (int i = 0; i < 8; i++) {
        /* Root port, switch (up, down), device: each pair of GPUs and NICs hangs on one switch. */
        int sw = i / 2, bus = sw * 0x40 + 2, node = i / 4;
        snprintf(gpu[i], GSI_PCI_ADDR, "0000:%02x:00.0", (unsigned)(bus + 5 + i % 2));
        snprintf(path, sizeof path, "%s/0000:%02x:00.0/0000:%02x:%02x.0/%s", root[sw], (unsigned)bus,
                 (unsigned)(bus + 1), (unsigned)(i % 2 * 8), gpu[i]);
        machine_pci(m, path, "0x030200", "0x10de", node);
        snprintf(path, sizeof path, "%s/0000:%02x:00.0/0000:%02x:%02x.0/0000:%02x:00.0", root[sw], (unsigned)bus,
                 (unsigned)(bus + 1), (unsigned)(0x10 + i % 2 * 8), (unsigned)(bus + 9 + i % 2));
        machine_pci(m, path, "0x020700", "0x15b3", node);
        snprintf(device, sizeof device, "mlx5_%d", i);
        snprintf(gid, sizeof gid, "fe80:0000:0000:0000:b859:9f03:0012:%04x", 0x100u + (unsigned)i);
        machine_rdma(m, &(rdma_card){.device = device, .pci = path, .lid = 10 + i, .gids = {{gid, NULL, NULL}}});
    }
    machine_pci(m, "pci0000:00/0000:00:05.0/0000:30:00.0", "0x020000", "0x15b3", 0);
    machine_netdev(m, "eno1", "pci0000:00/0000:00:05.0/0000:30:00.0", NULL, 1500);
    machine_rdma(m, &(rdma_card){.device = "mlx5_8",
                                 .pci = "pci0000:00/0000:00:05.0/0000:30:00.0",
                                 .rate = "25 Gb/sec (1X EDR)",
                                 .gids = {{"0000:0000:0000:0000:0000:ffff:0a00:0005", "RoCE v2", "eno1"}}});
    machine_pci(m, "pci0000:00/0000:00:06.0/0000:31:00.0", "0x030000", "0x1a03", 0);
}

void machine_40_ports(machine *m)
{
    char path[256], device[16], netdev[16], gid[64];

    machine_new(m);
    machine_node(m, 0, 0, 0, "10 21");
    machine_node(m, 1, 1, 32, "21 10");
    for (int card = 0; card < 20; card++) {
        int node = card / 10;
        snprintf(path, sizeof path, "pci0000:%s/0000:%s:%02x.0/0000:%02x:00.0", node ? "80" : "00", node ? "80" : "00",
                 (unsigned)(card % 10 + 1), (unsigned)(card % 10 + (node ? 0x81 : 0x01)));
        machine_pci(m, path, "0x020000", "0x15b3", node);
        snprintf(device, sizeof device, "roce%d", card);
        for (int port = 1; port <= 2; port++) {
            snprintf(netdev, sizeof netdev, "eth%dp%d", card, port);
            machine_netdev(m, netdev, path, NULL, 9000);
            snprintf(gid, sizeof gid, "0000:0000:0000:0000:0000:ffff:0a%02x:0001", (unsigned)(card * 2 + port));
            machine_rdma(m, &(rdma_card){.device = device,
                                         .pci = path,
                                         .port = port,
                                         .rate = "100 Gb/sec (4X EDR)",
                                         .gids = {{gid, "RoCE v2", netdev}}});
        }
    }
}

void machine_workstation(machine *m, char gpu[2][GSI_PCI_ADDR])
{
    static const char nic[] = "pci0000:00/0000:00:03.0/0000:03:00.0";

    machine_new(m);
    machine_node(m, 0, 0, 0, "10");
    strcpy(gpu[0], "0000:01:00.0");
    strcpy(gpu[1], "0000:02:00.0");
    machine_pci(m, "pci0000:00/0000:00:01.0/0000:01:00.0", "0x030000", "0x10de", -1);
    machine_pci(m, "pci0000:00/0000:00:04.0/0000:02:00.0", "0x030000", "0x10de", -1);
    machine_pci(m, "pci0000:00/0000:00:02.0", "0x030000", "0x8086", -1);
    machine_pci(m, nic, "0x020000", "0x14e4", -1);
    machine_netdev(m, "enp3s0", nic, NULL, 1500);
    machine_rdma(m, &(rdma_card){.device = "bnxt_re0",
                                 .pci = nic,
                                 .rate = "25 Gb/sec (1X EDR)",
                                 .gids = {{"fe80:0000:0000:0000:5054:00ff:fe12:3456", "IB/RoCE v1", "enp3s0"},
                                          {"fe80:0000:0000:0000:5054:00ff:fe12:3456", "RoCE v2", "enp3s0"},
                                          {"0000:0000:0000:0000:0000:ffff:c0a8:0105", "IB/RoCE v1", "enp3s0"},
                                          {"0000:0000:0000:0000:0000:ffff:c0a8:0105", "RoCE v2", "enp3s0"}}});
    machine_file(m,
                 "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
                 "enp3s0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
                 "enp3s0\t0000A8C0\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0",
                 "proc/net/route");
    machine_file(m, "fe80000000000000505400fffe123456 02 40 20 80   enp3s0", "proc/net/if_inet6");
}

void machine_lab(machine *m, int hosts, int host, int rails, int numa)
{
    char path[256], netdev[32], lower[16], device[16], local[64], ipv4[64], text[128];

    machine_new(m);
    machine_node(m, 0, 0, 0, numa ? "10 20" : "10");
    if (numa)
        machine_node(m, 1, 1, 1, "20 10");
    for (int r = 0; numa && r < rails; r++) {
        snprintf(path, sizeof path, "pci0000:%s/0000:%s:%02x.0/0000:%02x:00.0", r % 2 ? "20" : "10",
                 r % 2 ? "20" : "10", (unsigned)(r / 2), (unsigned)(0x11 + r / 2 + r % 2 * 16));
        machine_pci(m, path, "0x020000", "0x1af4", r % 2);
        /* virtio's device has no numa_node of its own. */
        snprintf(path + strlen(path), sizeof path - strlen(path), "/virtio%d", r);
        snprintf(lower, sizeof lower, "wire%d", r);
        machine_netdev(m, lower, path, NULL, 4200);
    }
    for (int k = 0; k < hosts * rails; k++) {
        int h = k / rails, r = k % rails;
        snprintf(netdev, sizeof netdev, "h%dr%d", h, r);
        snprintf(lower, sizeof lower, "wire%d", r);
        machine_netdev(m, netdev, NULL, numa ? lower : NULL, 4200);
        snprintf(device, sizeof device, "rxe%d", k);
        snprintf(local, sizeof local, "fe80:0000:0000:0000:5054:00ff:fe%02x:%04x", (unsigned)h, (unsigned)r);
        snprintf(ipv4, sizeof ipv4, "0000:0000:0000:0000:0000:ffff:0a4d:%02x%02x", (unsigned)r, (unsigned)(h + 1));
        machine_rdma(m, &(rdma_card){.device = device,
                                     .rate = "2.5 Gb/sec (1X SDR)",
                                     .parent = netdev,
                                     .no_node = h != host,
                                     .gids = {{local, "RoCE v2", netdev}, {ipv4, "RoCE v2", netdev}}});
        snprintf(text, sizeof text, "%s\t00%02X4D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0", netdev, (unsigned)r);
        append(m, text, "proc/net/route", "ae");
    }
}
