/* SPDX-License-Identifier: Apache-2.0 */
/* How far things are from each other. Pure. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "topo/topology_build.h"

enum {
    VENDOR_NVIDIA = 0x10de,
    VENDOR_AMD = 0x1002,
    VENDOR_INTEL = 0x8086,
    CLASS_DISPLAY = 0x03,
    CLASS_3D = 0x0302,
    CLASS_ACCELERATOR = 0x12
};

const char *gsi_distance_name(int kind)
{
    static const char *const names[] = {"the same device", "same PCI switch",          "same root complex",
                                        "same NUMA node",  "other node of the socket", "other socket",
                                        "unknown distance"};

    return names[kind >= 0 && kind < GSI_DISTANCE_COUNT ? kind : GSI_DISTANCE_UNKNOWN];
}

const char *gsi_distance_short(int kind)
{
    static const char *const names[] = {"self", "switch", "root", "node", "socket", "far", "?"};

    return names[kind >= 0 && kind < GSI_DISTANCE_COUNT ? kind : GSI_DISTANCE_UNKNOWN];
}

int gsi_distance_compare(gsi_distance a, gsi_distance b)
{
    if (a.kind != b.kind)
        return a.kind < b.kind ? -1 : 1;
    return (a.detail > b.detail) - (a.detail < b.detail);
}

int gsi_pci_is_gpu(const gsi_pci_device *d)
{
    if (d->class_code >> 8 == CLASS_3D || d->class_code >> 16 == CLASS_ACCELERATOR)
        return 1;
    /* Intel's graphics inside the CPU has the same address everywhere. */
    return d->class_code >> 16 == CLASS_DISPLAY && strcmp(d->addr, "0000:00:02.0") &&
           (d->vendor == VENDOR_NVIDIA || d->vendor == VENDOR_AMD || d->vendor == VENDOR_INTEL);
}

int gsi_pci_normalize(const char *text, char addr[GSI_PCI_ADDR])
{
    unsigned domain = 0, bus, slot, function;
    int n = 0;

    for (const char *p = text; *p; p++)
        if (!isxdigit((unsigned char)*p) && *p != ':' && *p != '.')
            return -1;
    if ((sscanf(text, "%8x:%2x:%2x.%1x%n", &domain, &bus, &slot, &function, &n) != 4 || text[n]) &&
        (domain = 0, n = 0, sscanf(text, "%2x:%2x.%1x%n", &bus, &slot, &function, &n) != 3 || text[n]))
        return -1;
    if (slot > 31 || function > 7)
        return -1;
    snprintf(addr, GSI_PCI_ADDR, "%04x:%02x:%02x.%x", domain, bus, slot, function);
    return 0;
}

const gsi_pci_device *gsi_topology_device(const gsi_topology *t, const char *addr)
{
    char wanted[GSI_PCI_ADDR];
    int low = 0, high = t->ndevices;

    if (gsi_pci_normalize(addr, wanted))
        return NULL;
    while (low < high) {
        int mid = low + (high - low) / 2, c = strcmp(wanted, t->devices[mid].addr);
        if (!c)
            return &t->devices[mid];
        if (c < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

static gsi_distance between_nodes(const gsi_topology *t, int a, int b)
{
    if (a >= 0 && a == b)
        return (gsi_distance){GSI_DISTANCE_NODE, 0};
    if (t->nnodes == 1 && (a < 0 || b < 0)) /* there is nothing else than this node */
        return (gsi_distance){GSI_DISTANCE_NODE, 0};
    int i = gsi_topology_node_at(t, a), k = gsi_topology_node_at(t, b);
    if (a < 0 || b < 0)
        return (gsi_distance){GSI_DISTANCE_UNKNOWN, 0};
    if (i < 0 || k < 0)
        return (gsi_distance){GSI_DISTANCE_FAR, 0};
    /* Firmware tables need not be symmetric; a distance is. */
    int there = t->numa_distance[i * t->nnodes + k], back = t->numa_distance[k * t->nnodes + i];
    int package = t->nodes[i].package;
    return (gsi_distance){package >= 0 && package == t->nodes[k].package ? GSI_DISTANCE_SOCKET : GSI_DISTANCE_FAR,
                          there > back ? there : back};
}

/* Parts of a path: those that both begin with, and those in all. */
static int shared_parts(const char *a, const char *b, int *in_a, int *in_b)
{
    int shared = 0, same = 1;

    *in_a = *in_b = 0;
    for (;;) {
        size_t n = strcspn(a, "/"), m = strcspn(b, "/");
        if (!n && !m)
            return shared;
        same = same && n == m && !memcmp(a, b, n);
        shared += same;
        *in_a += n > 0;
        *in_b += m > 0;
        a += n + (a[n] == '/');
        b += m + (b[m] == '/');
    }
}

gsi_distance gsi_topology_distance(const gsi_topology *t, const gsi_place *a, const gsi_place *b)
{
    const gsi_pci_device *d = a->pci[0] ? gsi_topology_device(t, a->pci) : NULL;
    const gsi_pci_device *e = b->pci[0] ? gsi_topology_device(t, b->pci) : NULL;
    int node_a = d && d->numa_node >= 0 ? d->numa_node : a->numa_node;
    int node_b = e && e->numa_node >= 0 ? e->numa_node : b->numa_node;
    gsi_distance by_node = between_nodes(t, node_a, node_b);

    if ((d && d == e) || (a->pci[0] && !strcmp(a->pci, b->pci)))
        return (gsi_distance){GSI_DISTANCE_SAME, 0};
    if (!d || !e || !d->path[0] || !e->path[0])
        return by_node;
    int in_a, in_b, shared = shared_parts(d->path, e->path, &in_a, &in_b);
    if (shared >= 2)
        return (gsi_distance){GSI_DISTANCE_SWITCH, in_a + in_b - 2 * shared};
    /* A virtual machine may put all cards on one root complex and still know their nodes: believe the nodes. */
    if (shared == 1 && !strncmp(d->path, "pci", 3) && by_node.kind != GSI_DISTANCE_SOCKET &&
        by_node.kind != GSI_DISTANCE_FAR)
        return (gsi_distance){GSI_DISTANCE_ROOT, 0};
    return by_node;
}
