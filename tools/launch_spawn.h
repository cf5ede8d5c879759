/* SPDX-License-Identifier: Apache-2.0 */
/* One rank: its environment, descriptors, CPU, and execution. */
#ifndef TOOLS_LAUNCH_SPAWN_H
#define TOOLS_LAUNCH_SPAWN_H

#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "launch.h"

/* What all ranks of a job have in common. */
typedef struct launch_setup {
    const launch_config *config;
    char root[32];       /* "127.0.0.1:port" for gradsync */
    char master_port[8]; /* another free port, for other software */
    int root_fd;         /* holds root's port until the ranks are there to take it */
    char job_id[33];
    char key[65]; /* "": the environment has one */
    int null_fd;
    cpu_set_t *cpus; /* usable ones, if ranks are to be bound */
    size_t cpus_bytes;
    int ncpus;
    struct rlimit files; /* the limit that ranks get: ours is raised for the pipes */
    char warning[160];
} launch_setup;

typedef struct launch_child {
    pid_t pid;
    int out, err; /* read ends, non-blocking; -1: not relayed */
    int feed;     /* write end of its stdin; -1: none */
} launch_child;

/* Returns 0, or -1 with a sentence. End it with launch_setup_end() once all ranks run. */
int launch_setup_init(launch_setup *setup, const launch_config *config, char *why, size_t room);
void launch_setup_end(launch_setup *setup);

/* Starts a rank and waits until it runs the program. Returns 0, or an exit status of
 * the launcher's (enum in launch.h) with a sentence. old[i] is the disposition of
 * signal numbers[i] that the rank is to have. */
int launch_spawn(launch_setup *setup, int rank, const struct sigaction *old, const int *numbers, int n,
                 launch_child *child, char *why, size_t room);

#endif
