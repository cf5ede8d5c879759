/* SPDX-License-Identifier: Apache-2.0 */
/* The rails that a rank offers for talking to other hosts: RDMA ports and network interfaces, chosen by where its
 * memory is. */
#ifndef GSI_COMM_OFFER_H
#define GSI_COMM_OFFER_H

#include "comm/wires.h"
#include "topo/rails.h"
#include "transport/net/create.h"

/* What all ranks are told. */
typedef struct gsi_offer {
    int32_t status; /* 0, or the error that keeps this rank from joining */
    int32_t nverbs, ntcp;
    int32_t nnear; /* of the verbs rails, the first so many are this rank's own; the others are for peers whose own
                      rails are on other subnets */
    gsi_rail_end verbs[GSI_NET_RAILS], tcp[GSI_NET_RAILS];
    char no_verbs[200]; /* why there is no RDMA, if there is none */
    char error[200];
} gsi_offer;

/* How this rank opens them. */
typedef struct gsi_offered {
    gsi_offer offer;
    gsi_settings settings;
    gsi_rail_config verbs[GSI_NET_RAILS], tcp[GSI_NET_RAILS];
    char verbs_why[GSI_NET_RAILS][160], tcp_why[GSI_NET_RAILS][160];
} gsi_offered;

/* places: where the memory of each of the nlocal ranks of this host is; me: which of them this rank is. wire: NONE:
 * whatever there is; else only that. Errors: INVALID (settings), NOMEM; no rail at all is no error: `no_verbs`. */
int gsi_offer_make(int wire, const gsi_place *places, int nlocal, int me, const gsi_log *log, gsi_offered *out);
/* The rails of two ranks that talk to each other over `wire`; 0: none, and why. At most GSI_NET_CONNS.
 * Symmetric; mine[k] and theirs[k] index the offers' lists. */
int gsi_offer_pair(int wire, const gsi_offer *mine, const gsi_offer *theirs, int qps, gsi_net_pairs *out,
                   int my_gids[GSI_NET_RAILS], char *why, size_t room);
/* Opens those rails of `wire` whose bits are set in `used`, in order. my_gids: the position of the GID to use on each;
 * -1: the first. On error none is open. */
int gsi_offer_open(const gsi_offered *offered, int wire, uint32_t used, const int my_gids[GSI_NET_RAILS],
                   int connections, gsi_net_config *out);

#endif
