/* SPDX-License-Identifier: Apache-2.0 */
/* Building a topology: shared by the reader of sysfs and that of files. */
#ifndef GSI_TOPO_TOPOLOGY_BUILD_H
#define GSI_TOPO_TOPOLOGY_BUILD_H

#include "topo/topology.h"

/* More than any machine has; a hostile file ends here. */
enum { GSI_TOPO_DEVICES = 16384, GSI_TOPO_NODES = 1024, GSI_TOPO_FILE_BYTES = 16 << 20 };

/* "0000:81:00.0" from "0000:81:00.0", "00000000:81:00.0", "81:00.0", in any case. 0, or -1. */
int gsi_pci_normalize(const char *text, char addr[GSI_PCI_ADDR]);
/* Appends. Errors: NOMEM; INVALID (too many). */
int gsi_topology_add_device(gsi_topology *t, const gsi_pci_device *d);
int gsi_topology_add_node(gsi_topology *t, int id, int package);
/* Sorts devices and nodes, drops doubles, makes the table of distances (10, and 20 off the diagonal). NOMEM. */
int gsi_topology_finish(gsi_topology *t);
/* Position of a node; -1. */
int gsi_topology_node_at(const gsi_topology *t, int id);
/* `file` replaces what `t` has of its devices and adds the rest; its nodes count only if `t` has fewer than two. NOMEM.
 */
int gsi_topology_merge(gsi_topology *t, const gsi_topology *file);
/* A file's text into an empty topology. Errors: NOMEM, INVALID. On error t is left to be freed. */
int gsi_topology_read_xml(const char *text, size_t bytes, gsi_topology *t);

#endif
