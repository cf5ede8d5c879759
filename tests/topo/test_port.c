/* SPDX-License-Identifier: Apache-2.0 */
/* Ports as sysfs shows them. */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "machine.h"
#include "tap.h"
#include "topo/address.h"
#include "topo/sysfs.h"

static const char *name_of(const gsi_port *p)
{
    static char text[80];

    gsi_port_name(p, text, sizeof text);
    return text;
}

static void test_infiniband(void)
{
    machine m;
    gsi_ports ports;
    char gpu[8][GSI_PCI_ADDR];

    machine_dgx(&m, gpu);
    tap_ok(!gsi_ports_read(m.root, &ports) && ports.n == 9, "a DGX has 9 ports: %d", ports.n);
    const gsi_port *p = &ports.items[3];
    tap_ok(!strcmp(name_of(p), "mlx5_3:1") && p->state == GSI_PORT_ACTIVE && !strcmp(p->phys_state, "LinkUp"),
           "%s is active", name_of(p));
    tap_ok(p->link_layer == GSI_LINK_INFINIBAND && p->rate_mbps == 200000 && p->lid == 13 && p->sm_lid == 1,
           "link layer, rate %u, LID %u, SM %u", p->rate_mbps, p->lid, p->sm_lid);
    tap_ok(p->node_guid == 0xb8599f0300123456u && !strcmp(p->firmware, "20.31.1014") &&
               !strcmp(p->board, "MT_0000000223"),
           "GUID %llx, firmware, board", (unsigned long long)p->node_guid);
    tap_ok(!strcmp(p->uverbs, "uverbs3") && p->access == 0, "its device node is %s", p->uverbs);
    tap_ok(p->place.numa_node == 0 && !strcmp(p->place.pci, "0000:4c:00.0"), "it is %s at node %d", p->place.pci,
           p->place.numa_node);
    tap_ok(ports.items[4].place.numa_node == 1, "the fifth is at the other socket");
    tap_ok(p->ngids == 1 && p->gids[0].type == GSI_GID_IB && p->gids[0].index == 0 && p->gids[0].raw[15] == 3,
           "one GID; empty entries are left out");
    p = &ports.items[8];
    tap_ok(p->rate_mbps == 25000 && p->link_layer == GSI_LINK_ETHERNET && !strcmp(p->netdev, "eno1") &&
               p->netdev_mtu == 1500 && p->active_mtu == 1024,
           "the management port: MTU %u makes %u", p->netdev_mtu, p->active_mtu);
    gsi_ports_free(&ports);
    tap_ok(ports.n == 0 && !ports.items, "freed");
    machine_remove(&m);
}

static void test_many(void)
{
    machine m;
    gsi_ports ports;
    int ordered = 1, active = 0;

    machine_40_ports(&m);
    tap_ok(!gsi_ports_read(m.root, &ports) && ports.n == 40, "more than 32 ports: %d", ports.n);
    for (int i = 0; i < ports.n; i++) {
        char expected[32];
        snprintf(expected, sizeof expected, "roce%d:%d", i / 2, i % 2 + 1);
        ordered = ordered && !strcmp(expected, name_of(&ports.items[i]));
        active += ports.items[i].state == GSI_PORT_ACTIVE && ports.items[i].active_mtu == 4096;
    }
    tap_ok(ordered, "in the order of numbers, not of letters, both ports of each");
    tap_ok(active == 40, "all are active, with an MTU of 4096");
    tap_ok(!strcmp(ports.items[7].netdev, "eth3p2"), "each port has its own network device: %s", ports.items[7].netdev);
    gsi_ports_free(&ports);
    machine_remove(&m);
}

static void test_soft_roce(void)
{
    machine m;
    gsi_ports ports;
    char text[64];

    machine_lab(&m, 2, 1, 4, 1);
    tap_ok(!gsi_ports_read(m.root, &ports) && ports.n == 8, "all devices of the lab are seen: %d", ports.n);
    for (int i = 0; i < ports.n && i < 8; i++) {
        const gsi_port *p = &ports.items[i];
        snprintf(text, sizeof text, "h%dr%d", i / 4, i % 4);
        tap_ok(p->place.numa_node == i % 2 && !strcmp(p->netdev, text) && p->place.pci[0] && p->node_guid != 0,
               "%s is on %s, whose card %s is at node %d", p->device, p->netdev, p->place.pci, p->place.numa_node);
        tap_ok(p->access == (i < 4 ? ENOENT : 0), "%s has %s device node", p->device, i < 4 ? "no" : "a");
    }
    const gsi_port *p = &ports.items[6];
    gsi_gid_text(p->gids[1].raw, text, sizeof text);
    tap_ok(p->ngids == 2 && p->gids[1].type == GSI_GID_ROCE_V2 && !strcmp(text, "10.77.2.2") &&
               p->gids[1].prefix == 96 + 24,
           "GID 1 is %s/%d", text, p->gids[1].prefix - 96);
    tap_ok(p->rate_mbps == 2500, "2.5 Gb/s is %u Mb/s", p->rate_mbps);
    gsi_ports_free(&ports);
    machine_remove(&m);

    machine_lab(&m, 1, 0, 2, 0);
    tap_ok(!gsi_ports_read(m.root, &ports) && ports.n == 2 && ports.items[0].place.numa_node == -1 &&
               !ports.items[0].place.pci[0],
           "on veth, no node is known");
    gsi_ports_free(&ports);
    machine_remove(&m);
}

static void test_real_copy(const char *data)
{
    machine m;
    gsi_ports ports;
    char file[512];

    machine_new(&m);
    snprintf(file, sizeof file, "%s/intel-2groups.sysfs", data);
    machine_unpack(&m, file);
    tap_ok(!gsi_ports_read(m.root, &ports) && ports.n == 1, "a real machine's sysfs has one port");
    if (ports.n == 1) {
        const gsi_port *p = &ports.items[0];
        tap_ok(!strcmp(p->device, "qib0") && p->link_layer == GSI_LINK_INFINIBAND && p->lid == 0x12a &&
                   p->rate_mbps == 40000,
               "qib0, LID 0x%x, %u Mb/s", p->lid, p->rate_mbps);
        tap_ok(!strcmp(p->place.pci, "0000:43:00.0") && p->place.numa_node == 2, "%s, node %d", p->place.pci,
               p->place.numa_node);
        tap_ok(p->ngids == 1, "4 of its 5 GIDs are empty");
    }
    gsi_ports_free(&ports);
    machine_remove(&m);
}

static void test_pkeys(void)
{
    machine m;
    gsi_ports ports;
    char gpu[8][GSI_PCI_ADDR];
    static const char table[] = "sys/class/infiniband/mlx5_0/ports/1/pkeys";
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

    machine_dgx(&m, gpu);
    machine_file(&m, "0xffff", "%s/0", table);
    machine_file(&m, "0x0001", "%s/1", table);
    machine_file(&m, "0x0000", "%s/2", table);
    machine_file(&m, "0x8001", "%s/10", table);
    gsi_ports_read(m.root, &ports);
    const gsi_port *p = &ports.items[0];
    tap_ok(gsi_port_find_pkey(m.root, p, 0xffff) == 0 && gsi_port_find_pkey(m.root, p, 0x8001) == 10 &&
               gsi_port_find_pkey(m.root, p, 0x0001) == 1 && gsi_port_find_pkey(m.root, p, 0x7fff) == 0,
           "partition keys are found, exactly or by partition");
    int rc = gsi_port_find_pkey(m.root, p, 0x8002);
    gradsync_last_error(&info);
    tap_ok(rc == GRADSYNC_ERR_INVALID && strstr(info.message, "mlx5_0:1") &&
               strstr(info.message, "0xffff, 0x0001, 0x8001"),
           "%s", info.message);
    tap_ok(gsi_port_find_pkey(m.root, &ports.items[1], 0x8001) == GRADSYNC_ERR_INVALID, "a port without a table");
    gsi_ports_free(&ports);
    machine_remove(&m);
}

/* States, a torn table, an old kernel, a card whose files cannot be read. */
static void test_odd(void)
{
    machine m;
    gsi_ports ports;

    machine_new(&m);
    tap_ok(!gsi_ports_read(m.root, &ports) && ports.n == 0, "no device is no error");
    machine_rdma(
        &m,
        &(rdma_card){
            .device = "a0", .state = "1: DOWN", .phys_state = "2: Polling", .rate = "10 Gb/sec (4X SDR)", .lid = 1});
    machine_rdma(&m, &(rdma_card){.device = "a1",
                                  .state = "2: INIT",
                                  .gids = {{"no GID at all", "RoCE v2", "x"},
                                           {"fe80:0000:0000:0000:0000:0000:0000:0001:9", "RoCE v2", "x"},
                                           {"fe80:0000:0000:0000:0000:0000:0000:0001", "RoCE v2",
                                            "a-name-that-is-much-too-long-for-a-network-device"}}});
    machine_file(&m, "", "sys/class/infiniband/a2/ports/1/state");
    machine_file(&m, "garbage", "sys/class/infiniband/a2/ports/1/rate");
    machine_file(&m, "4: ACTIVE", "sys/class/infiniband/a2/ports/999/state");
    machine_file(&m, "4: ACTIVE", "sys/class/infiniband/a2/ports/x/state");
    machine_file(&m, "4: ACTIVE", "sys/class/infiniband/a3");
    tap_ok(!gsi_ports_read(m.root, &ports) && ports.n == 3, "3 ports can be told: %d", ports.n);
    if (ports.n == 3) {
        tap_ok(ports.items[0].state == GSI_PORT_DOWN && !strcmp(ports.items[0].phys_state, "Polling"),
               "down and polling");
        tap_ok(ports.items[1].state == GSI_PORT_INIT && ports.items[1].ngids == 1 && ports.items[1].gids[0].index == 2,
               "a GID table with garbage");
        tap_ok(ports.items[2].state == GSI_PORT_NOP && ports.items[2].rate_mbps == 0 && ports.items[2].access == ENOENT,
               "a port about which nothing is known");
        tap_ok(ports.items[2].link_layer == GSI_LINK_INFINIBAND, "a kernel without link_layer knows InfiniBand only");
    }
    gsi_ports_free(&ports);
    machine_remove(&m);
}

static void test_names(void)
{
    tap_ok(gsi_natural_compare("mlx5_2", "mlx5_10") < 0 && gsi_natural_compare("mlx5_10", "mlx5_10") == 0 &&
               gsi_natural_compare("mlx5_b", "mlx5_10") > 0 && gsi_natural_compare("a07", "a7") == 0 &&
               gsi_natural_compare("a", "ab") < 0,
           "names are ordered as people do");
    tap_ok(gsi_sys_is_pci("0000:81:00.0", 12) && gsi_sys_is_pci("10000:e1:00.0", 13) && !gsi_sys_is_pci("virtio0", 7) &&
               !gsi_sys_is_pci("0000:81:00.8", 12) && !gsi_sys_is_pci("pci0000:80", 10) && !gsi_sys_is_pci("", 0),
           "PCI addresses are told from other names");
    tap_ok(!strcmp(gsi_port_state_name(4), "ACTIVE") && !strcmp(gsi_port_state_name(-3), "?") &&
               !strcmp(gsi_port_state_name(99), "?") && !strcmp(gsi_gid_type_name(2), "RoCE v2"),
           "numbers have names, wrong ones too");
    uint8_t a[16] = {0x0a, 0, 0x80}, b[16] = {0x0a, 0, 0xc0};
    tap_ok(gsi_same_prefix(a, b, 17) && !gsi_same_prefix(a, b, 18) && gsi_same_prefix(a, b, 0) &&
               gsi_same_prefix(a, a, 128),
           "prefixes are compared to the bit");
}

static void test_memory(void)
{
    machine m;
    gsi_ports ports;
    int bad = 0;

    machine_lab(&m, 1, 0, 2, 1);
    gsi_alloc_fail_at(LONG_MAX); /* counts */
    gsi_ports_read(m.root, &ports);
    long allocations = gsi_alloc_count();
    gsi_ports_free(&ports);
    for (long i = 1; i <= allocations; i++) {
        gsi_alloc_fail_at(i);
        int rc = gsi_ports_read(m.root, &ports);
        bad += rc != GRADSYNC_ERR_NOMEM || ports.n || ports.items;
        gsi_ports_free(&ports);
    }
    gsi_alloc_fail_at(0);
    tap_ok(allocations > 10 && !bad, "each of %ld allocations may fail: NOMEM and nothing left", allocations);
    machine_remove(&m);
}

int main(int argc, char **argv)
{
    gsi_ports ports;

    test_infiniband();
    test_many();
    test_soft_roce();
    if (argc > 1)
        test_real_copy(argv[1]);
    test_pkeys();
    test_odd();
    test_names();
    test_memory();
    tap_ok(!gsi_ports_read("", &ports), "this machine can be read: %d ports", ports.n);
    gsi_ports_free(&ports);
    return tap_done();
}
