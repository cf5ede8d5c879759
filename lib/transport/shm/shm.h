/* SPDX-License-Identifier: Apache-2.0 */
/* The shared-memory transport: ranks of one host, as processes or as threads. */
#ifndef GSI_SHM_H
#define GSI_SHM_H

#include "transport/shm/link.h"
#include "transport/transport.h"

/* What a rank tells its peers about itself, beside its socket. */
typedef struct gsi_shm_peer {
    gsi_shm_address address;
    char host[64];
} gsi_shm_peer;

/* Makes the endpoint of `rank` among n ranks that are all on this host. listen_fd is
 * from shm_listen() and is closed in any case; peers are indexed by rank. Errors: see
 * shm_links_make(), NOMEM, SYSTEM. */
int gsi_shm_create(int listen_fd, int rank, int n, const gsi_shm_peer *peers, int64_t deadline_ns, const gsi_log *log,
                   gsi_endpoint **out);

/* What every rank has of staging, and of slots for what travels with headers. */
enum { GSI_SHM_SLOT_BYTES = 16 << 10, GSI_SHM_STAGE_BYTES = 2 << 20 };

/* This rank sleeps on more than this endpoint: from now on `fd`, an eventfd of the caller's, is written to as well when
 * a peer wakes it. After gsi_shm_bell() of all ranks, and something that orders them, each calls gsi_shm_bells() once.
 * Errors: SYSTEM. */
int gsi_shm_bell(gsi_endpoint *ep, int fd);
void gsi_shm_bells(gsi_endpoint *ep);

#endif
