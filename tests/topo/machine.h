/* SPDX-License-Identifier: Apache-2.0 */
/* Makes the /sys, /proc and /dev of a machine in a temporary folder, which then is the root that is read. */
#ifndef TESTS_TOPO_MACHINE_H
#define TESTS_TOPO_MACHINE_H

#include "topo/rails.h"

typedef struct machine {
    char root[64];
    int uverbs; /* devices made so far */
} machine;

/* An entry of a GID table. */
typedef struct gid_entry {
    const char *gid, *type, *netdev; /* "fe80:0000:...", "RoCE v2", "eth0"; type NULL: InfiniBand */
} gid_entry;

typedef struct rdma_card {
    const char *device, *pci; /* "mlx5_0", "pci0000:00/0000:00:01.0/0000:01:00.0"; pci NULL: Soft-RoCE */
    int port;                 /* 0: 1 */
    const char *state;        /* NULL: "4: ACTIVE" */
    const char *phys_state;   /* NULL: "5: LinkUp" */
    const char *rate;         /* NULL: "200 Gb/sec (4X HDR)" */
    int lid;                  /* 0: RoCE */
    const char *parent;       /* Soft-RoCE: its network device */
    gid_entry gids[6];
    int no_node; /* 1: /dev/infiniband has none */
} rdma_card;

void machine_new(machine *m);
void machine_remove(machine *m);
/* Writes text and a newline; folders on the way are made. */
__attribute__((format(printf, 3, 4))) void machine_file(const machine *m, const char *text, const char *format, ...);
__attribute__((format(printf, 3, 4))) void machine_link(const machine *m, const char *target, const char *format, ...);
/* A NUMA node whose first CPU is `cpu`. distances: "10 21". */
void machine_node(const machine *m, int id, int package, int cpu, const char *distances);
/* A PCI function; the bridges on its path need not exist. node -1: as kernels say "unknown". */
void machine_pci(const machine *m, const char *path, const char *class_code, const char *vendor, int node);
/* A network device: of a PCI path, or on top of another one, or by itself (both NULL). */
void machine_netdev(const machine *m, const char *name, const char *pci, const char *lower, int mtu);
void machine_rdma(machine *m, const rdma_card *card);
/* Unpacks a .sysfs file. */
void machine_unpack(const machine *m, const char *file);

/* ---- Machines of our own ---------------------------------------------------------------- */

/* 2 sockets, 4 PCI switches of 2 GPUs and 2 NICs (HDR InfiniBand), a slow management NIC, a console chip.
 * GPU i is gpu[i], NIC i is mlx5_i. */
void machine_dgx(machine *m, char gpu[8][GSI_PCI_ADDR]);
/* 20 two-port cards on 2 sockets: 40 ports, RoCE. */
void machine_40_ports(machine *m);
/* Two GPUs and one RoCE card on one root complex. */
void machine_workstation(machine *m, char gpu[2][GSI_PCI_ADDR]);
/* A simulated host of the Soft-RoCE lab: `hosts` x `rails` devices of which only those of `host` have a device
 * node. numa: card of rail r at node r % 2, by virtio and a macvlan on it; else veth. */
void machine_lab(machine *m, int hosts, int host, int rails, int numa);

#endif
