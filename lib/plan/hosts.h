/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which ranks share a host: made once for a communicator, never changed, read by any
 * thread. Ranks of one host can load and store each other's STAGE (and SEND and RECV,
 * where gsi_plan_args.share says so); to ranks of other hosts there is PUT and SIGNAL.
 *
 * Hosts are numbered anew, by their lowest rank: host 0 is that of rank 0.
 */
#ifndef GSI_PLAN_HOSTS_H
#define GSI_PLAN_HOSTS_H

#include <stdint.h>

typedef struct gsi_hosts {
    int32_t n, hosts;
    int32_t least, most;  /* ranks of the smallest and the largest host */
    int32_t neighbours;   /* 1: the ranks of every host follow each other */
    const int32_t *of;    /* n: a rank's host */
    const int32_t *index; /* n: which of its host's ranks it is, counted by rank */
    const int32_t *order; /* n: ranks by host, then by number: the order of a ring over hosts */
    const int32_t *first; /* hosts + 1: where the ranks of a host begin in `order` */
} gsi_hosts;

/* From each rank's host, by any numbers that are equal for ranks of one host. The
 * caller owns *out, one block of memory, and frees it with free(). Errors: INVALID, NOMEM. */
int gsi_hosts_make(const int32_t *host, int n, gsi_hosts **out);

static inline int gsi_hosts_size(const gsi_hosts *h, int host)
{
    return h->first[host + 1] - h->first[host];
}

/* The index-th rank of a host. */
static inline int gsi_hosts_rank(const gsi_hosts *h, int host, int index)
{
    return h->order[h->first[host] + index];
}

/* Can one rank load and store the other's memory? NULL: all ranks are on one host. */
static inline int gsi_hosts_same(const gsi_hosts *h, int a, int b)
{
    return !h || h->of[a] == h->of[b];
}

#endif
