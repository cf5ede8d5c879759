/* SPDX-License-Identifier: Apache-2.0 */
/* Which rails the ranks of a host use, with the expected pairing written out. */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "machine.h"
#include "tap.h"

static const char *data;

/* 0 to n - 1. */
static int draw(uint32_t *seed, int n)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (int)(*seed >> 16) % n;
}

typedef struct host {
    gsi_topology t;
    gsi_ports ports;
} host;

static gsi_place at_gpu(const char *addr)
{
    gsi_place p = {.numa_node = -1};

    snprintf(p.pci, sizeof p.pci, "%s", addr);
    return p;
}

static gsi_place at_node(int id)
{
    return (gsi_place){.numa_node = id};
}

static void read_host(machine *m, host *h)
{
    tap_ok(!gsi_topology_read(m->root, NULL, &h->t) && !gsi_ports_read(m->root, &h->ports), "the machine is read");
    machine_remove(m);
}

static void free_host(host *h)
{
    gsi_topology_free(&h->t);
    gsi_ports_free(&h->ports);
}

/* "mlx5_0 mlx5_1": the rails of one rank; the port's number only where it is not 1. */
static const char *rails_of(const host *h, const gsi_place *places, int n, int me, const gsi_settings *s, int max)
{
    static char text[1024];
    gsi_rails rails;
    size_t at = 0;

    text[0] = 0;
    if (gsi_rails_select(&h->t, &h->ports, places, n, me, s, max, &rails))
        return "(error)";
    for (int i = 0; i < rails.nrails; i++) {
        const gsi_port *p = &h->ports.items[rails.rails[i].port];
        at += (size_t)snprintf(text + at, sizeof text - at, p->number > 1 ? "%s%s:%d" : "%s%s", i ? " " : "", p->device,
                               p->number);
    }
    gsi_rails_free(&rails);
    return text;
}

static void expect(const host *h, const gsi_place *places, int n, const gsi_settings *s, const char *const *wanted,
                   const char *what)
{
    for (int r = 0; r < n; r++) {
        const char *got = rails_of(h, places, n, r, s, 0);
        tap_ok(!strcmp(got, wanted[r]), "%s: rank %d of %d uses %s (%s wanted)", what, r, n, got, wanted[r]);
    }
}

/* Every rank has a rail; the loads of equal ports differ by at most one rank. */
static int loads_are_equal(const host *h, const gsi_place *places, int n, int most, int least)
{
    int load[64] = {0}, ok = 1;

    for (int r = 0; r < n; r++) {
        gsi_rails rails;
        if (gsi_rails_select(&h->t, &h->ports, places, n, r, NULL, 0, &rails) || !rails.nrails)
            ok = 0;
        for (int i = 0; i < rails.nrails; i++)
            load[rails.rails[i].port]++;
        gsi_rails_free(&rails);
    }
    for (int p = 0; p < h->ports.n; p++)
        ok = ok && load[p] >= least && load[p] <= most;
    return ok;
}

/* ---- Machines -------------------------------------------------------------------------- */

static void test_dgx(void)
{
    static const char *const own[] = {"mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3", "mlx5_4", "mlx5_5", "mlx5_6", "mlx5_7"};
    static const char *const one[] = {"mlx5_0 mlx5_1"}, *const far_first[] = {"mlx5_6 mlx5_7"};
    static const char *const two[] = {"mlx5_0", "mlx5_1"};
    static const char *const sixteen[] = {"mlx5_0", "mlx5_1", "mlx5_0", "mlx5_1"};
    static const char *const three[] = {"mlx5_0", "mlx5_1", "mlx5_0 mlx5_1"};
    static const char *const by_node[] = {"mlx5_0 mlx5_1 mlx5_2 mlx5_3", "mlx5_4 mlx5_5 mlx5_6 mlx5_7"};
    static const char *const lone[] = {"mlx5_4 mlx5_5 mlx5_6 mlx5_7 mlx5_0 mlx5_1 mlx5_2 mlx5_3"};
    /* The GPU has both rails of its switch; host memory takes what is left, the near ones first. */
    static const char *const mixed[] = {"mlx5_0 mlx5_1", "mlx5_2 mlx5_3 mlx5_4 mlx5_5 mlx5_6 mlx5_7"};
    machine m;
    host h;
    char gpu[8][GSI_PCI_ADDR];
    gsi_place p[16];

    machine_dgx(&m, gpu);
    read_host(&m, &h);
    for (int i = 0; i < 16; i++)
        p[i] = at_gpu(gpu[i % 8]);
    expect(&h, p, 8, NULL, own, "DGX, a rank a GPU");
    expect(&h, p, 1, NULL, one, "DGX, one rank");
    expect(&h, &p[7], 1, NULL, far_first, "DGX, one rank on the last GPU");
    expect(&h, p, 2, NULL, two, "DGX, two ranks");
    gsi_place four[] = {p[0], p[0], p[1], p[1]};
    expect(&h, four, 4, NULL, sixteen, "DGX, four ranks on two GPUs");
    expect(&h, four, 3, NULL, three, "DGX, three ranks on two rails");
    gsi_place nodes[] = {at_node(0), at_node(1)};
    expect(&h, nodes, 2, NULL, by_node, "DGX, host memory of each node");
    expect(&h, &nodes[1], 1, NULL, lone, "DGX, host memory: farther rails last");
    gsi_place both[] = {p[0], at_node(0)};
    gsi_place reversed[16];
    for (int i = 0; i < 8; i++)
        reversed[i] = p[7 - i];
    expect(&h, both, 2, NULL, mixed, "DGX, a GPU and host memory");
    int ok = 1;
    for (int i = 0; i < 8; i++) {
        char wanted[16];
        snprintf(wanted, sizeof wanted, "mlx5_%d", (7 - i) / 2 * 2 + i % 2);
        ok = ok && !strcmp(rails_of(&h, reversed, 8, i, NULL, 0), wanted);
    }
    tap_ok(ok, "DGX, GPUs in reverse: every GPU a rail of its own switch");
    tap_ok(loads_are_equal(&h, p, 8, 1, 0) && loads_are_equal(&h, p, 16, 2, 0), "DGX: equal loads for 8 and 16 ranks");
    free_host(&h);
}

/* Ports for the cards of a topology file: the machine itself is not here. */
static void add_cards(host *h, const char *file, uint16_t vendor)
{
    char path[512];
    machine m;

    machine_new(&m);
    snprintf(path, sizeof path, "%s/%s", data, file);
    tap_ok(!gsi_topology_read(m.root, path, &h->t), "%s is read", file);
    for (int i = 0, n = 0; i < h->t.ndevices; i++) {
        const gsi_pci_device *d = &h->t.devices[i];
        char sys[128], device[16];
        if (d->vendor != vendor || d->class_code >> 16 != 2)
            continue;
        snprintf(sys, sizeof sys, "pci%.7s/%s", d->addr, d->addr);
        machine_pci(&m, sys, "0x020700", "0x15b3", -1);
        snprintf(device, sizeof device, "nic%d", n++);
        machine_rdma(&m, &(rdma_card){.device = device, .pci = sys, .lid = n});
    }
    tap_ok(!gsi_ports_read(m.root, &h->ports), "its ports are read");
    machine_remove(&m);
}

static void test_azure(void)
{
    /* In the order of addresses 0101 .. 0108, on nodes 1 1 0 0 3 3 2 2. */
    static const char *const gpus[] = {"0001:00:00.0", "0002:00:00.0", "0003:00:00.0", "0004:00:00.0",
                                       "000b:00:00.0", "000c:00:00.0", "000d:00:00.0", "000e:00:00.0"};
    static const char *const wanted[] = {"nic0", "nic1", "nic2", "nic3", "nic4", "nic5", "nic6", "nic7"};
    static const char *const by_node[] = {"nic2 nic3", "nic0 nic1", "nic6 nic7", "nic4 nic5"};
    gsi_place p[8], nodes[4];
    host h;

    add_cards(&h, "azure-nd-a100-v4.xml", 0x15b3);
    for (int i = 0; i < 8; i++)
        p[i] = at_gpu(gpus[i]);
    for (int i = 0; i < 4; i++)
        nodes[i] = at_node(i);
    expect(&h, p, 8, NULL, wanted, "Azure ND A100 v4");
    expect(&h, nodes, 4, NULL, by_node, "Azure, a rank a NUMA node");
    tap_ok(loads_are_equal(&h, p, 8, 1, 1), "Azure: every rail carries one rank");
    free_host(&h);
}

static void test_aws(void)
{
    static const char *const gpus[] = {"0000:10:1c.0", "0000:10:1d.0", "0000:20:1c.0", "0000:20:1d.0",
                                       "0000:90:1c.0", "0000:90:1d.0", "0000:a0:1c.0", "0000:a0:1d.0"};
    static const char *const wanted[] = {"nic0", "nic0", "nic1", "nic1", "nic2", "nic2", "nic3", "nic3"};
    static const char *const by_node[] = {"nic0 nic1", "nic2 nic3"};
    gsi_place p[8], nodes[] = {at_node(0), at_node(1)};
    host h;

    add_cards(&h, "aws-p4d-24xlarge.xml", 0x1d0f);
    for (int i = 0; i < 8; i++)
        p[i] = at_gpu(gpus[i]);
    expect(&h, p, 8, NULL, wanted, "AWS p4d");
    expect(&h, nodes, 2, NULL, by_node, "AWS, a rank a NUMA node");
    tap_ok(loads_are_equal(&h, p, 8, 2, 2), "AWS: every rail carries two ranks");
    free_host(&h);
}

static void test_hwloc_machines(void)
{
    static const char *const gpus[] = {"0000:84:00.0", "0000:83:00.0", "0000:03:00.0"};
    static const char *const one[] = {"nic0", "nic0", "nic0"}, *const qib[] = {"qib0", "qib0"};
    static const int kinds[] = {GSI_DISTANCE_SWITCH, GSI_DISTANCE_ROOT, GSI_DISTANCE_FAR};
    char file[512];
    machine m;
    gsi_place p[3], nodes[] = {at_node(2), at_node(0)};
    host h;
    gsi_rails rails;

    add_cards(&h, "hwloc-2sockets.xml", 0x15b3);
    for (int i = 0; i < 3; i++)
        p[i] = at_gpu(gpus[i]);
    expect(&h, p, 3, NULL, one, "hwloc's 2 sockets");
    for (int i = 0; i < 3; i++) {
        int rc = gsi_rails_select(&h.t, &h.ports, p, 3, i, NULL, 0, &rails);
        tap_ok(!rc && rails.rails[0].distance.kind == kinds[i] && rails.rails[0].ranks == 3, "GPU %s: %s", gpus[i],
               rails.verdicts[0].reason);
        gsi_rails_free(&rails);
    }
    free_host(&h);

    machine_new(&m);
    snprintf(file, sizeof file, "%s/intel-2groups.sysfs", data);
    machine_unpack(&m, file);
    machine_file(&m, "", "dev/infiniband/uverbs0");
    machine_link(&m, "../../devices/pci0000:40/0000:40:03.0/0000:43:00.0/infiniband_verbs/uverbs0",
                 "sys/class/infiniband_verbs/uverbs0");
    read_host(&m, &h);
    expect(&h, nodes, 2, NULL, qib, "the machine of 2 groups");
    int rc = gsi_rails_select(&h.t, &h.ports, nodes, 2, 1, NULL, 0, &rails);
    tap_ok(!rc && !strcmp(rails.verdicts[0].reason, "rail 0: other socket; shared by 2 local ranks"), "%s",
           rails.verdicts[0].reason);
    gsi_rails_free(&rails);
    free_host(&h);
}

static void test_40_ports(void)
{
    machine m;
    host h;
    gsi_place p[40];

    machine_40_ports(&m);
    read_host(&m, &h);
    for (int i = 0; i < 40; i++)
        p[i] = at_node(i / 20);
    int own = 1;
    for (int i = 0; i < 40; i++) {
        char wanted[32];
        snprintf(wanted, sizeof wanted, i % 2 ? "roce%d:2" : "roce%d", i / 2);
        own = own && !strcmp(rails_of(&h, p, 40, i, NULL, 0), wanted);
    }
    tap_ok(own, "40 ports, 40 ranks: each its own");
    for (int i = 0; i < 10; i++)
        p[i] = at_node(i % 2);
    tap_ok(loads_are_equal(&h, p, 10, 1, 1), "40 ports, 10 ranks: all ports, 4 a rank");
    tap_ok(loads_are_equal(&h, p, 6, 3, 1), "40 ports, 6 ranks: 6 a rank, the rest shared by three");
    const char *got = rails_of(&h, p, 6, 0, NULL, 0);
    tap_ok(!strcmp(got, "roce0 roce1:2 roce3 roce4:2 roce6 roce7:2 roce9 roce9:2"), "rank 0 of 6: %s", got);
    got = rails_of(&h, p, 1, 0, NULL, 4);
    tap_ok(!strcmp(got, "roce0 roce1 roce2 roce3"), "at most 4, of 4 cards: %s", got);
    got = rails_of(&h, p, 1, 0, NULL, 12);
    tap_ok(!strncmp(got, "roce0 roce1 ", 12) && strstr(got, "roce9 roce0:2 roce1:2"), "at most 12: %s", got);
    free_host(&h);
}

static void test_workstation(void)
{
    static const char *const wanted[] = {"bnxt_re0", "bnxt_re0"};
    machine m;
    host h;
    char gpu[2][GSI_PCI_ADDR];

    machine_workstation(&m, gpu);
    read_host(&m, &h);
    gsi_place p[] = {at_gpu(gpu[0]), at_gpu(gpu[1])}, nodes[] = {at_node(-1), at_node(0)};
    expect(&h, p, 2, NULL, wanted, "2 GPUs, 1 NIC");
    expect(&h, nodes, 2, NULL, wanted, "host memory of an unknown node");
    free_host(&h);
}

static void test_lab(void)
{
    static const char *const one[] = {"rxe4 rxe6 rxe5 rxe7"}, *const two[] = {"rxe4 rxe6", "rxe5 rxe7"};
    static const char *const four[] = {"rxe4", "rxe5", "rxe6", "rxe7"}, *const near[] = {"rxe4 rxe6"};
    static const char *const flat[] = {"rxe0 rxe2", "rxe1 rxe3"}, *const all[] = {"rxe0 rxe1 rxe2 rxe3"};
    static const char *const all_far[] = {"rxe5 rxe7 rxe4 rxe6"};
    gsi_place p[] = {at_node(0), at_node(1), at_node(0), at_node(1)};
    gsi_settings s = {.gid_index = -1, .rails = GSI_RAILS_NEAR};
    machine m;
    host h;

    machine_lab(&m, 2, 1, 4, 1);
    read_host(&m, &h);
    expect(&h, p, 1, NULL, one, "lab with NUMA, one rank");
    expect(&h, p, 1, &s, near, "lab with NUMA, one rank, near rails only");
    expect(&h, p, 2, NULL, two, "lab with NUMA, two ranks");
    expect(&h, p, 4, NULL, four, "lab with NUMA, four ranks");
    s.rails = GSI_RAILS_ALL;
    expect(&h, &p[1], 1, &s, all_far, "lab with NUMA, all rails");
    free_host(&h);
    machine_lab(&m, 1, 0, 4, 0);
    read_host(&m, &h);
    gsi_place unknown[] = {at_node(0), at_node(0)};
    expect(&h, unknown, 1, NULL, all, "lab without NUMA, one rank");
    expect(&h, unknown, 2, NULL, flat, "lab without NUMA, two ranks");
    free_host(&h);
}

/* ---- Why not ------------------------------------------------------------------------------ */

static const char *reason(const host *h, const gsi_settings *s, const char *device, int *usable)
{
    static char text[256];
    gsi_place p = at_node(0);
    gsi_rails rails;

    *usable = 0;
    snprintf(text, sizeof text, "(no such port)");
    if (gsi_rails_select(&h->t, &h->ports, &p, 1, 0, s, 0, &rails))
        return "(error)";
    for (int i = 0; i < rails.nports; i++)
        if (!strcmp(h->ports.items[i].device, device)) {
            snprintf(text, sizeof text, "%s", rails.verdicts[i].reason);
            *usable = rails.verdicts[i].usable;
        }
    gsi_rails_free(&rails);
    return text;
}

static void says(const host *h, const gsi_settings *s, const char *device, const char *what)
{
    int usable = 1;
    const char *text = reason(h, s, device, &usable);

    tap_ok(!usable && strstr(text, what), "%s is not used: %s", device, text);
}

static gsi_port *port_of(host *h, const char *device)
{
    for (int i = 0; i < h->ports.n; i++)
        if (!strcmp(h->ports.items[i].device, device))
            return &h->ports.items[i];
    return NULL;
}

static void test_reasons(void)
{
    machine m;
    host h;
    gsi_settings s = {.gid_index = -1};
    char gpu[8][GSI_PCI_ADDR];
    int usable = 0;

    machine_dgx(&m, gpu);
    read_host(&m, &h);
    says(&h, NULL, "mlx5_8", "less than a quarter");
    gsi_filter_parse("GRADSYNC_HCA", "mlx5_8,mlx5_1", 1, &s.hca);
    tap_ok(strstr(reason(&h, &s, "mlx5_8", &usable), "rail 1") && usable, "unless the filter names it");
    says(&h, &s, "mlx5_2", "GRADSYNC_HCA does not name it");
    gsi_filter_parse("NCCL_IB_HCA", "^mlx5_2", 1, &s.hca);
    says(&h, &s, "mlx5_2", "NCCL_IB_HCA excludes it (^mlx5_2)");
    s.hca.n = 0;
    port_of(&h, "mlx5_0")->state = GSI_PORT_DOWN;
    port_of(&h, "mlx5_1")->state = GSI_PORT_INIT;
    port_of(&h, "mlx5_2")->state = GSI_PORT_ARMED;
    port_of(&h, "mlx5_3")->access = EACCES;
    port_of(&h, "mlx5_4")->access = ENOENT;
    port_of(&h, "mlx5_5")->uverbs[0] = 0;
    port_of(&h, "mlx5_6")->link_layer = GSI_LINK_UNKNOWN;
    port_of(&h, "mlx5_7")->link_layer = GSI_LINK_ETHERNET;
    port_of(&h, "mlx5_7")->ngids = 0;
    says(&h, NULL, "mlx5_0", "it is DOWN (physical state LinkUp); check the cable");
    says(&h, NULL, "mlx5_1", "opensm");
    says(&h, NULL, "mlx5_2", "ARMED");
    says(&h, NULL, "mlx5_3", "give this user");
    says(&h, NULL, "mlx5_4", "container");
    says(&h, NULL, "mlx5_5", "ib_uverbs");
    says(&h, NULL, "mlx5_6", "link layer");
    says(&h, NULL, "mlx5_7", "no GID");
    tap_ok(strstr(reason(&h, NULL, "mlx5_8", &usable), "rail 0") && usable,
           "the slow one is used if the fast ones cannot be");
    s.gid_index = 3;
    strcpy(s.gid_index_variable, "NCCL_IB_GID_INDEX");
    says(&h, &s, "mlx5_8", "its GID index 3 (NCCL_IB_GID_INDEX) is empty");
    gsi_place p = at_node(0);
    gsi_rails rails;
    tap_ok(!gsi_rails_select(&h.t, &h.ports, &p, 1, 0, &s, 0, &rails) && rails.nrails == 0 && rails.nports == 9,
           "no usable port is no error");
    gsi_rails_free(&rails);
    tap_ok(gsi_rails_select(&h.t, &h.ports, &p, 1, 1, &s, 0, &rails) == GRADSYNC_ERR_INVALID,
           "a rank that is not there");
    free_host(&h);
}

static void test_farther(void)
{
    machine m;
    host h;
    char gpu[8][GSI_PCI_ADDR];
    gsi_rails r;

    machine_dgx(&m, gpu);
    read_host(&m, &h);
    gsi_place p[] = {at_gpu(gpu[0]), at_gpu(gpu[1])};
    tap_ok(!gsi_rails_select(&h.t, &h.ports, p, 2, 0, NULL, 0, &r), "rank 0 of 2");
    tap_ok(!strcmp(r.verdicts[0].reason, "rail 0: same PCI switch"), "mlx5_0: %s", r.verdicts[0].reason);
    tap_ok(!strcmp(r.verdicts[1].reason, "same PCI switch, as near as mlx5_0:1, but used by local rank 1"),
           "mlx5_1: %s", r.verdicts[1].reason);
    tap_ok(!strcmp(r.verdicts[2].reason, "farther (same NUMA node) than mlx5_0:1 (same PCI switch)"), "mlx5_2: %s",
           r.verdicts[2].reason);
    tap_ok(!strcmp(r.verdicts[7].reason, "farther (other socket) than mlx5_0:1 (same PCI switch)"), "mlx5_7: %s",
           r.verdicts[7].reason);
    gsi_rails_free(&r);
    int bad = 0;
    gsi_alloc_fail_at(LONG_MAX);
    gsi_rails_select(&h.t, &h.ports, p, 2, 0, NULL, 0, &r);
    long allocations = gsi_alloc_count();
    gsi_rails_free(&r);
    for (long i = 1; i <= allocations; i++) {
        gsi_alloc_fail_at(i);
        bad += gsi_rails_select(&h.t, &h.ports, p, 2, 0, NULL, 0, &r) != GRADSYNC_ERR_NOMEM || r.rails || r.verdicts;
    }
    gsi_alloc_fail_at(0);
    tap_ok(allocations > 5 && !bad, "each of %ld allocations may fail", allocations);
    free_host(&h);
}

/* Random hosts: every rank has a rail where any is usable, only usable and, for GPUs, only nearest ones. */
static void test_random(void)
{
    uint32_t seed = 20261120;
    int bad = 0, checked = 0;

    for (int round = 0; round < 400; round++) {
        gsi_port ports[12];
        gsi_place places[12];
        gsi_numa_node nodes[4] = {{0, 0}, {1, 0}, {2, 1}, {3, 1}};
        int table[16], used[12] = {0}, usable[12];
        gsi_topology t = {.nodes = nodes, .nnodes = 4, .numa_distance = table};
        int np = 1 + draw(&seed, 12), nr = 1 + draw(&seed, 12);
        for (int i = 0; i < 16; i++)
            table[i] = i / 4 == i % 4 ? 10 : i / 8 == i % 4 / 2 ? 12 : 32;
        for (int i = 0; i < np; i++) {
            ports[i] = (gsi_port){.number = 1,
                                  .state = draw(&seed, 5) ? GSI_PORT_ACTIVE : GSI_PORT_DOWN,
                                  .lid = 1,
                                  .link_layer = GSI_LINK_INFINIBAND,
                                  .rate_mbps = 100000};
            snprintf(ports[i].device, sizeof ports[i].device, "mlx5_%d", i);
            strcpy(ports[i].uverbs, "uverbs0");
            ports[i].place = at_node(draw(&seed, 5) - 1);
            usable[i] = ports[i].state == GSI_PORT_ACTIVE;
        }
        for (int i = 0; i < nr; i++) {
            places[i] = at_node(draw(&seed, 5) - 1);
            if (draw(&seed, 2)) /* a GPU that the topology does not list: its node counts */
                snprintf(places[i].pci, sizeof places[i].pci, "%04x:01:00.0", (unsigned)i);
        }
        gsi_ports list = {ports, np};
        int any = 0;
        for (int i = 0; i < np; i++)
            any += usable[i];
        for (int r = 0; r < nr; r++) {
            gsi_rails rails;
            gsi_distance nearest = {GSI_DISTANCE_COUNT, 0};
            bad += gsi_rails_select(&t, &list, places, nr, r, NULL, 0, &rails) != 0;
            bad += (any > 0) != (rails.nrails > 0);
            for (int i = 0; i < np; i++) {
                gsi_distance d = gsi_topology_distance(&t, &places[r], &ports[i].place);
                if (usable[i] && gsi_distance_compare(d, nearest) < 0)
                    nearest = d;
                bad += !rails.verdicts[i].reason[0];
            }
            bad += any && gsi_distance_compare(rails.rails[0].distance, nearest) != 0;
            for (int i = 0; i < rails.nrails; i++) {
                bad += !usable[rails.rails[i].port];
                bad += places[r].pci[0] && gsi_distance_compare(rails.rails[i].distance, nearest) != 0;
                used[rails.rails[i].port]++;
            }
            gsi_rails_free(&rails);
            checked++;
        }
        int hosts = 0;
        for (int r = 0; r < nr; r++)
            hosts += !places[r].pci[0];
        for (int i = 0; hosts && i < np; i++) /* host memory leaves no rail idle */
            bad += usable[i] && !used[i];
    }
    tap_ok(!bad && checked > 1000, "%d ranks of 400 random hosts: %d broken rules", checked, bad);
}

int main(int argc, char **argv)
{
    data = argc > 1 ? argv[1] : "data";
    test_dgx();
    test_azure();
    test_aws();
    test_hwloc_machines();
    test_40_ports();
    test_workstation();
    test_lab();
    test_reasons();
    test_farther();
    test_random();
    return tap_done();
}
