/* SPDX-License-Identifier: Apache-2.0 */
/* What this machine is, read from sysfs and procfs under a root that tests can set. */
#ifndef GSI_TOPO_SYSTEM_H
#define GSI_TOPO_SYSTEM_H

#include <stddef.h>

typedef struct gsi_system {
    int numa_nodes;   /* at least 1 */
    int rdma_devices; /* in /sys/class/infiniband */
    char cpu_model[96];
} gsi_system;

/* root: "" for the real machine. What cannot be read is left at its default. */
void gsi_system_read(const char *root, gsi_system *out);

#endif
