/* SPDX-License-Identifier: Apache-2.0 */
/* Our reader of sysfs held against hwloc's own view of the same files; and hwloc's export read back. */
#include <stdlib.h>
#include <string.h>

#include "machine.h"
#include "tap.h"

#if HAVE_HWLOC
#include <hwloc.h>

/* "pci0000:40/0000:40:03.0/0000:43:00.0", from hwloc's objects. */
static void path_of(hwloc_obj_t dev, char *path, size_t room)
{
    char part[64], rest[512];

    path[0] = 0;
    for (hwloc_obj_t o = dev; o && (o->type == HWLOC_OBJ_PCI_DEVICE || o->type == HWLOC_OBJ_BRIDGE); o = o->parent) {
        if (o->type == HWLOC_OBJ_BRIDGE && o->attr->bridge.upstream_type == HWLOC_OBJ_BRIDGE_HOST) {
            snprintf(part, sizeof part, "pci%04x:%02x", o->attr->bridge.downstream.pci.domain,
                     o->attr->bridge.downstream.pci.secondary_bus);
        } else {
            const struct hwloc_pcidev_attr_s *p = &o->attr->pcidev;
            snprintf(part, sizeof part, "%04x:%02x:%02x.%x", p->domain, p->bus, p->dev, p->func);
        }
        snprintf(rest, sizeof rest, "%s%s%s", part, path[0] ? "/" : "", path);
        snprintf(path, room, "%s", rest);
    }
}

static int compare_devices(hwloc_topology_t h, const gsi_topology *t)
{
    int n = 0;

    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_pcidev(h, o));) {
        const struct hwloc_pcidev_attr_s *p = &o->attr->pcidev;
        char addr[GSI_PCI_ADDR], path[512];
        if (p->class_id >> 8 == 0x06) /* bridges to the host or to ISA: of no interest to us */
            continue;
        snprintf(addr, sizeof addr, "%04x:%02x:%02x.%x", p->domain, p->bus, p->dev, p->func);
        path_of(o, path, sizeof path);
        const gsi_pci_device *d = gsi_topology_device(t, addr);
        tap_ok(d && !strcmp(d->path, path) && d->vendor == p->vendor_id && d->device == p->device_id &&
                   d->class_code >> 8 == p->class_id,
               "%s: %s", addr, d ? d->path : "not found");
        hwloc_obj_t above = hwloc_get_non_io_ancestor_obj(h, o);
        int only = hwloc_bitmap_weight(above->nodeset) == 1;
        tap_ok(d && (d->numa_node < 0 || hwloc_bitmap_isset(above->nodeset, (unsigned)d->numa_node)) &&
                   (!only || d->numa_node < 0 || d->numa_node == hwloc_bitmap_first(above->nodeset)),
               "%s: its node %d is among hwloc's %d", addr, d ? d->numa_node : -2, hwloc_bitmap_weight(above->nodeset));
        n++;
    }
    return n;
}

static void compare_nodes(hwloc_topology_t h, const gsi_topology *t)
{
    struct hwloc_distances_s *d = NULL;
    unsigned nr = 1;
    int n = hwloc_get_nbobjs_by_type(h, HWLOC_OBJ_NUMANODE), same = n == t->nnodes;

    for (int i = 0; same && i < n; i++) {
        hwloc_obj_t o = hwloc_get_obj_by_type(h, HWLOC_OBJ_NUMANODE, (unsigned)i), up = o->parent;
        while (up && up->type != HWLOC_OBJ_PACKAGE)
            up = up->parent;
        same = (int)o->os_index == t->nodes[i].id && (!up || (int)up->os_index == t->nodes[i].package);
    }
    tap_ok(same, "%d NUMA nodes with their sockets", n);
    if (hwloc_distances_get_by_name(h, "NUMALatency", &nr, &d, 0) || !nr) {
        tap_skip(1, "hwloc has no distances here");
        return;
    }
    same = (int)d->nbobjs == t->nnodes;
    for (unsigned i = 0; same && i < d->nbobjs * d->nbobjs; i++)
        same = (int)d->values[i] == t->numa_distance[i];
    tap_ok(same, "the firmware's distances");
    hwloc_distances_release(h, d);
}

int main(int argc, char **argv)
{
    char file[512], exported[128];
    hwloc_topology_t h;
    gsi_topology t, back;
    machine m;

    machine_new(&m);
    snprintf(file, sizeof file, "%s/intel-2groups.sysfs", argc > 1 ? argv[1] : "data");
    machine_unpack(&m, file);
    setenv("HWLOC_FSROOT", m.root, 1);
    setenv("HWLOC_COMPONENTS", "linux,stop", 1);
    if (hwloc_topology_init(&h) || hwloc_topology_set_io_types_filter(h, HWLOC_TYPE_FILTER_KEEP_ALL) ||
        hwloc_topology_load(h))
        return tap_ok(0, "hwloc reads the machine"), tap_done();
    tap_ok(!gsi_topology_read(m.root, NULL, &t), "we read the machine");
    compare_nodes(h, &t);
    int n = compare_devices(h, &t);
    tap_ok(n > 5, "%d PCI devices were compared", n);
    snprintf(exported, sizeof exported, "%s/exported.xml", m.root);
    tap_ok(!hwloc_topology_export_xml(h, exported, 0), "hwloc exports it");
    machine empty;
    machine_new(&empty);
    tap_ok(!gsi_topology_read(empty.root, exported, &back), "and the export is read");
    compare_nodes(h, &back);
    tap_ok(compare_devices(h, &back) == n, "with the same devices");
    gsi_topology_free(&back);
    gsi_topology_free(&t);
    hwloc_topology_destroy(h);
    machine_remove(&empty);
    machine_remove(&m);
    return tap_done();
}
#else
int main(void)
{
    tap_skip(1, "built without hwloc, which this compares with: install libhwloc-dev");
    return tap_done();
}
#endif
