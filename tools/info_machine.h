/* SPDX-License-Identifier: Apache-2.0 */
/* gradsync-info's part about GPUs, RDMA ports, distances and rails. */
#ifndef TOOLS_INFO_MACHINE_H
#define TOOLS_INFO_MACHINE_H

#include <gradsync/gradsync.h>

typedef struct info_options {
    const char *root; /* NULL: this machine */
    const char
        *memory;     /* where the local ranks' memory is: "gpu0,gpu1", "node0", "0000:81:00.0"; NULL: see info_read */
    int rank;        /* whose reasons are told */
    int rails, topo; /* sections that are wanted */
} info_options;

typedef struct info_machine info_machine;

/* Reads everything. Without `memory`: a rank a GPU, or where there is none a rank a NUMA node.
 * Returns 0; 1 (the library cannot tell) or 2 (options) with a message on stderr. */
int info_read(const char *program, const info_options *options, info_machine **out);
void info_free(info_machine *m);
void info_print_text(const info_machine *m);
#if HAVE_JANSSON
#include <jansson.h>
/* Adds members to an object: ports, gpus, numa_nodes, and the sections that are wanted. */
void info_add_json(const info_machine *m, json_t *root);
#endif

#endif
