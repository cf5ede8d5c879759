/* SPDX-License-Identifier: Apache-2.0 */
/* The public questions about a machine. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "machine.h"
#include "tap.h"

#include <gradsync/gradsync.h>

static const char *last_message(void)
{
    static gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

    gradsync_last_error(&info);
    return info.message;
}

static gradsync_place gpu_place(const gradsync_gpu_info *g)
{
    gradsync_place p = {.numa_node = g->numa_node};

    memcpy(p.pci, g->pci, sizeof p.pci);
    return p;
}

static void test_dgx(void)
{
    machine m;
    char gpu[8][GSI_PCI_ADDR];
    gradsync_machine *g = NULL;
    gradsync_machine_info info = {.size = sizeof info};
    gradsync_port_info port = {.size = sizeof port};
    gradsync_gid_info gid = {.size = sizeof gid};
    gradsync_gpu_info card = {.size = sizeof card};
    gradsync_place places[8];
    gradsync_rail_choice choices[9];
    int right = 0;

    machine_dgx(&m, gpu);
    tap_ok(!gradsync_machine_read(m.root, &g), "a DGX is read");
    machine_remove(&m);
    tap_ok(!gradsync_machine_query(g, &info) && info.numa_nodes == 2 && info.ports == 9 && info.gpus == 8 &&
               !info.topology_file[0],
           "2 nodes, 9 ports, 8 GPUs");
    tap_ok(gradsync_machine_node(g, 1) == 1 && gradsync_machine_node(g, 2) == GRADSYNC_ERR_INVALID, "nodes 0 and 1");
    tap_ok(!gradsync_machine_port(g, 5, &port) && !strcmp(port.device, "mlx5_5") && port.number == 1 &&
               port.state == 4 && !strcmp(port.state_name, "ACTIVE") && port.rate_mbps == 200000 &&
               port.numa_node == 1 && port.lid == 15 && !strcmp(port.pci, "0000:8c:00.0") &&
               strstr(port.pci_path, "pci0000:80/0000:80:01.1/") && !strcmp(port.link_layer, "InfiniBand") &&
               port.ngids == 1 && !port.access,
           "a port: %s", port.pci_path);
    tap_ok(!gradsync_machine_gid(g, 8, 0, &gid) && !strcmp(gid.gid, "10.0.0.5") && !strcmp(gid.type, "RoCE v2") &&
               !strcmp(gid.netdev, "eno1"),
           "a GID: %s", gid.gid);
    for (int i = 0; i < 8; i++) {
        right += !gradsync_machine_gpu(g, i, &card) && !strcmp(card.pci, gpu[i]) && card.vendor == 0x10de;
        places[i] = gpu_place(&card);
    }
    tap_ok(right == 8, "the GPUs");
    gradsync_place nic = {.numa_node = -1};
    strcpy(nic.pci, port.pci);
    tap_ok(gradsync_machine_distance(g, &places[4], &nic) == GRADSYNC_DISTANCE_SWITCH &&
               gradsync_machine_distance(g, &places[0], &nic) == GRADSYNC_DISTANCE_FAR,
           "distances");
    for (int i = 0; i < 9; i++)
        choices[i].size = sizeof choices[i];
    tap_ok(gradsync_machine_rails(g, places, 8, 5, choices) == 1 && choices[5].rail == 0 && choices[5].ranks == 1 &&
               choices[5].distance == GRADSYNC_DISTANCE_SWITCH && choices[5].usable && choices[4].rail == -1 &&
               choices[4].usable && !choices[8].usable && choices[8].reason[0],
           "rank 5 of 8: %s", choices[5].reason);
    gradsync_machine_free(g);
}

static void test_arguments(const char *root)
{
    gradsync_machine *g = NULL;
    gradsync_machine_info info = {.size = sizeof info};
    gradsync_port_info port = {.size = sizeof port}, unset = {.size = 0};
    gradsync_gid_info gid = {.size = sizeof gid};
    gradsync_gpu_info card = {.size = sizeof card};
    gradsync_place place = {.numa_node = 0}, endless;
    gradsync_rail_choice none = {.size = 0};

    memset(&endless, 'x', sizeof endless);
    tap_ok(gradsync_machine_read(root, NULL) == GRADSYNC_ERR_INVALID && !gradsync_machine_free(NULL), "NULL");
    tap_ok(!gradsync_machine_read(root, &g), "the lab is read");
    tap_ok(gradsync_machine_query(NULL, &info) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_query(g, NULL) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_node(NULL, 0) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_port(NULL, 0, &port) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_gid(NULL, 0, 0, &gid) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_gpu(NULL, 0, &card) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_distance(NULL, &place, &place) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_rails(NULL, &place, 1, 0, &none) == GRADSYNC_ERR_INVALID,
           "no machine is an error everywhere");
    tap_ok(gradsync_machine_port(g, 2, &port) == GRADSYNC_ERR_INVALID && strstr(last_message(), "the machine has 2") &&
               gradsync_machine_port(g, -1, &port) == GRADSYNC_ERR_INVALID,
           "past the last port: %s", last_message());
    tap_ok(gradsync_machine_gid(g, 0, 2, &gid) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_gid(g, 2, 0, &gid) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_gpu(g, 0, &card) == GRADSYNC_ERR_INVALID,
           "past the last GID, port, GPU");
    tap_ok(gradsync_machine_port(g, 0, &unset) == GRADSYNC_ERR_INVALID && strstr(last_message(), "gradsync_port_info"),
           "%s", last_message());
    tap_ok(gradsync_machine_distance(g, &endless, &place) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_distance(g, NULL, &place) == GRADSYNC_ERR_INVALID,
           "a place that does not end");
    tap_ok(gradsync_machine_rails(g, &place, 0, 0, &none) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_rails(g, &place, 1, 1, &none) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_rails(g, NULL, 1, 0, &none) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_rails(g, &place, 1, 0, NULL) == GRADSYNC_ERR_INVALID &&
               gradsync_machine_rails(g, &place, 1, 0, &none) == GRADSYNC_ERR_INVALID &&
               strstr(last_message(), "gradsync_rail_choice"),
           "%s", last_message());
    struct {
        uint32_t size;
        int32_t number;
    } head = {.size = sizeof head};
    tap_ok(!gradsync_machine_port(g, 0, (gradsync_port_info *)(void *)&head) && head.size == sizeof head &&
               head.number == 1,
           "a caller of an older header gets what it knows");
    tap_ok(!strcmp(gradsync_distance_name(GRADSYNC_DISTANCE_SWITCH), "same PCI switch") &&
               !strcmp(gradsync_distance_name(-1), "?") && !strcmp(gradsync_distance_name(7), "?"),
           "names of distances");
    gradsync_machine_free(g);
}

static void test_environment(const char *root)
{
    gradsync_machine *g = NULL;
    gradsync_place place = {.numa_node = 0};
    gradsync_rail_choice c[2] = {{.size = sizeof c[0]}, {.size = sizeof c[0]}};

    setenv("GRADSYNC_HCA", "^rxe0", 1);
    tap_ok(!gradsync_machine_read(root, &g) && gradsync_machine_rails(g, &place, 1, 0, c) == 1 && c[0].rail == -1 &&
               !c[0].usable && c[1].rail == 0,
           "the filter holds: %s", c[0].reason);
    gradsync_machine_free(g);
    g = NULL;
    setenv("GRADSYNC_HCA", "rxe0;", 1);
    tap_ok(gradsync_machine_read(root, &g) == GRADSYNC_ERR_INVALID && !g && strstr(last_message(), "GRADSYNC_HCA"),
           "%s", last_message());
    unsetenv("GRADSYNC_HCA");
    setenv("NCCL_TOPO_FILE", "/nowhere", 1);
    tap_ok(gradsync_machine_read(root, &g) == GRADSYNC_ERR_SYSTEM && !g && strstr(last_message(), "/nowhere"), "%s",
           last_message());
    unsetenv("NCCL_TOPO_FILE");
}

static void test_memory(const char *root)
{
    gradsync_machine *g = NULL;
    int bad = 0;

    gsi_alloc_fail_at(LONG_MAX); /* counts */
    gradsync_machine_read(root, &g);
    long allocations = gsi_alloc_count();
    gradsync_machine_free(g);
    for (long i = 1; i <= allocations; i++) {
        g = NULL;
        gsi_alloc_fail_at(i);
        bad += gradsync_machine_read(root, &g) != GRADSYNC_ERR_NOMEM || g;
    }
    gsi_alloc_fail_at(0);
    tap_ok(allocations > 20 && !bad, "each of %ld allocations may fail", allocations);
}

int main(void)
{
    static const char *const ours[] = {"GRADSYNC_HCA", "GRADSYNC_RAILS", "GRADSYNC_TOPO_FILE", "GRADSYNC_IB_GID_INDEX",
                                       "NCCL_IB_HCA",  "NCCL_TOPO_FILE", "NCCL_IB_GID_INDEX"};
    gradsync_machine *g = NULL;
    machine lab;

    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
        unsetenv(ours[i]);
    test_dgx();
    machine_lab(&lab, 1, 0, 2, 1);
    test_arguments(lab.root);
    test_environment(lab.root);
    test_memory(lab.root);
    machine_remove(&lab);
    tap_ok(!gradsync_machine_read(NULL, &g), "this machine");
    gradsync_machine_free(g);
    return tap_done();
}
