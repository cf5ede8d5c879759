/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NUMA nodes, the PCI tree, and how far things are from each other. Read from sysfs under a root;
 * a topology file (NCCL's XML, or hwloc's) puts right what a virtual machine hides.
 */
#ifndef GSI_TOPO_TOPOLOGY_H
#define GSI_TOPO_TOPOLOGY_H

#include "topo/port.h"

enum { GSI_PCI_PATH = 256 };

/* From near to far; what is unknown comes last. */
enum gsi_distance_kind {
    GSI_DISTANCE_SAME,   /* the device itself */
    GSI_DISTANCE_SWITCH, /* they share a PCI bridge below the host's: one switch, or one card */
    GSI_DISTANCE_ROOT,   /* the same root complex (host bridge) */
    GSI_DISTANCE_NODE,   /* the same NUMA node */
    GSI_DISTANCE_SOCKET, /* another NUMA node of the same socket */
    GSI_DISTANCE_FAR,    /* another socket */
    GSI_DISTANCE_UNKNOWN
};
#define GSI_DISTANCE_COUNT 7

typedef struct gsi_distance {
    int32_t kind;   /* enum gsi_distance_kind */
    int32_t detail; /* orders within a kind: PCI bridges between them, or the firmware's NUMA distance */
} gsi_distance;

typedef struct gsi_numa_node {
    int id;
    int package; /* the socket; -1: unknown */
} gsi_numa_node;

typedef struct gsi_pci_device {
    char addr[GSI_PCI_ADDR]; /* "0000:81:00.0", lower case */
    char path[GSI_PCI_PATH]; /* from the host bridge: "pci0000:80/0000:80:01.0/0000:81:00.0". A file that says
                                nothing of host bridges: "node1/..." */
    uint32_t class_code;     /* 0x030200 */
    uint16_t vendor, device;
    int32_t numa_node; /* -1: unknown */
} gsi_pci_device;

typedef struct gsi_topology {
    gsi_numa_node *nodes; /* by id */
    int nnodes;
    int *numa_distance;      /* nnodes x nnodes, by position in nodes; as the firmware's: 10 is local */
    gsi_pci_device *devices; /* all but bridges, by address */
    int ndevices;
    char file[256]; /* the topology file that was read; "": none */
} gsi_topology;

/* Reads sysfs under root ("": the real machine), then `file` (NULL or "": none), which replaces what
 * sysfs says of the devices that it names. The file's name is taken as it is, without root.
 * Errors: NOMEM; INVALID, SYSTEM (the file). Then *out is empty. Free with gsi_topology_free(). */
int gsi_topology_read(const char *root, const char *file, gsi_topology *out);
/* The same from the text of a topology file alone; for tests and fuzzing. Errors: NOMEM, INVALID. */
int gsi_topology_parse(const char *text, size_t bytes, gsi_topology *out);
void gsi_topology_free(gsi_topology *t);

/* Looks up a PCI device; NULL. Addresses as "0000:81:00.0" or "81:00.0", in any case. */
const gsi_pci_device *gsi_topology_device(const gsi_topology *t, const char *addr);
/* 1 for a GPU or accelerator that computes, not the display chip of a server's console. */
int gsi_pci_is_gpu(const gsi_pci_device *d);

/* Pure, symmetric. A place that names a device of the topology is that device; else its NUMA node counts. */
gsi_distance gsi_topology_distance(const gsi_topology *t, const gsi_place *a, const gsi_place *b);
/* As strcmp(): below 0 if a is nearer than b. */
int gsi_distance_compare(gsi_distance a, gsi_distance b);
/* "same PCI switch", "other socket": for sentences and tables. Static storage. */
const char *gsi_distance_name(int kind);
/* The short form for tables: "self", "switch", "root", "node", "socket", "far", "?". Static storage. */
const char *gsi_distance_short(int kind);

#endif
