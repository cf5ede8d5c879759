/* SPDX-License-Identifier: Apache-2.0 */
/* gradsync-doctor on several hosts at once, one rank or more on each: everybody's findings, and all pairs of rails. */
#ifndef TOOLS_DOCTOR_HOSTS_H
#define TOOLS_DOCTOR_HOSTS_H

#include "rails.h"
#include "report.h"

typedef struct hosts_config {
    double seconds;     /* of each direction of each pair */
    int64_t timeout_ms; /* of each pair */
} hosts_config;

typedef struct hosts {
    gradsync_context *ctx;
    gradsync_comm *comm; /* over TCP: for talking about rails, not by them */
    survey s;            /* on rank 0 of all pairs, elsewhere of its own */
    int rank;
} hosts;
/* Collective over all ranks of the job that the environment describes. mine: this host's findings. On rank 0 *all
 * becomes the findings of all hosts (each with its host's name) and of the pairs; elsewhere it stays empty. Returns 0,
 * or -1 after saying why on stderr. Free with hosts_end(). */
int hosts_survey(const char *program, const hosts_config *config, const report *mine, hosts *h, report *all);
/* Gives every rank rank 0's exit status. */
int hosts_status(hosts *h, int status);
void hosts_end(hosts *h);

#endif
