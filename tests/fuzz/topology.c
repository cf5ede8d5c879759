/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes topology files: NCCL's XML and hwloc's. Input: the file. */
#include "base/error.h"
#include "fuzz.h"
#include "topo/topology.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    gsi_topology t;
    int rc = gsi_topology_parse((const char *)data, size, &t);

    if (rc) {
        must(rc == GRADSYNC_ERR_INVALID || rc == GRADSYNC_ERR_NOMEM);
        must(!t.nodes && !t.devices && !t.numa_distance);
        return 0;
    }
    must(t.nnodes >= 1 && t.nodes && t.numa_distance);
    for (int i = 0; i < t.ndevices; i++) {
        const gsi_pci_device *d = &t.devices[i];
        must(strlen(d->addr) < GSI_PCI_ADDR && strlen(d->path) < GSI_PCI_PATH && d->numa_node >= -1);
        must(gsi_topology_device(&t, d->addr) == d);
    }
    for (int i = 0; i < t.ndevices && i < 16; i++)
        for (int k = 0; k < t.ndevices && k < 16; k++) {
            gsi_place a = {.numa_node = -1}, b = {.numa_node = k};
            memcpy(a.pci, t.devices[i].addr, sizeof a.pci);
            memcpy(b.pci, t.devices[k].addr, sizeof b.pci);
            gsi_distance there = gsi_topology_distance(&t, &a, &b), back = gsi_topology_distance(&t, &b, &a);
            must(there.kind >= 0 && there.kind < GSI_DISTANCE_COUNT && !gsi_distance_compare(there, back));
            must((there.kind == GSI_DISTANCE_SAME) == (i == k));
        }
    gsi_topology_free(&t);
    return 0;
}
