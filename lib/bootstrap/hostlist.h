/* SPDX-License-Identifier: Apache-2.0 */
/* The list notations of Slurm's environment. Pure. */
#ifndef GSI_HOSTLIST_H
#define GSI_HOSTLIST_H

#include <stddef.h>

/* Writes the first host of a list such as "node[003-010,20],gpu-a" to out.
 * Returns NULL, or what is wrong with the list, in a few words (static). */
const char *gsi_hostlist_first(const char *list, char *out, size_t room);

/* The tasks on node `node` (from 0) of a list such as "4(x3),2"; -1 if the list
 * is garbage or shorter. */
int gsi_tasks_on_node(const char *list, int node);

#endif
