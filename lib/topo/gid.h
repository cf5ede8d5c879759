/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which of a port's GIDs to use, and which subnets meet. Pure.
 *
 * RoCE: an explicit index, else a RoCE v2 GID whose subnet the peer shares, IPv4 before IPv6 before
 * link-local, RoCE v1 last of all. InfiniBand: index 0, which carries the subnet's prefix.
 * There is no silent index 0: if nothing fits, the error says what was looked for and what there is.
 */
#ifndef GSI_TOPO_GID_H
#define GSI_TOPO_GID_H

#include "topo/port.h"

/* Prefix lengths where none is known: /24 and /64. */
enum { GSI_GID_IPV4_PREFIX = 96 + 24, GSI_GID_IPV6_PREFIX = 64 };

enum gsi_gid_match {
    GSI_GID_NO_MATCH,   /* they cannot talk */
    GSI_GID_ROUTED,     /* RoCE v2, different subnets: only if the fabric routes */
    GSI_GID_LINK_LOCAL, /* fe80::, or RoCE v1: one Ethernet segment is assumed */
    GSI_GID_SUBNET      /* the same subnet, or the same InfiniBand subnet prefix */
};

/* How two GIDs meet. Symmetric. */
int gsi_gid_meet(const gsi_gid *a, const gsi_gid *b);
/* The best of all pairs of two ports' GIDs, as a kind of match; *i and *k become their positions (-1: none).
 * Link-local ones count only where a side has no routable address: ports of different subnets hang on different
 * segments. Of equal pairs the first by i, then by k. */
int gsi_gids_meet(const gsi_gid *a, int na, const gsi_gid *b, int nb, int *i, int *k);
/* How good a GID is by itself: more is better. */
int gsi_gid_quality(const gsi_gid *g);
int gsi_gid_is_ipv4(const uint8_t raw[16]); /* ::ffff:a.b.c.d */
int gsi_gid_is_link_local(const uint8_t raw[16]);

/* The GID of `port` (a position in port->gids) for talking to a peer with these GIDs. wanted: an explicit index,
 * -1: automatic. npeers 0: the peer is not known yet; the most routable one is taken.
 * variable: what set `wanted`, for messages; NULL. *peer (may be NULL): the position of the peer's GID, -1 if none.
 * note ("" if all is well): a warning, such as a GID that only a routed fabric can serve.
 * Errors: UNSUPPORTED (nothing fits), INVALID (the explicit index is empty or cannot meet the peer). */
int gsi_gid_choose(const gsi_port *port, int wanted, const char *variable, const gsi_gid *peers, int npeers, int *peer,
                   char *note, size_t room);
/* "0: fe80::1 (RoCE v2), 1: 10.77.0.1/24 (RoCE v2, eth0)": what there is, for messages. */
void gsi_gid_list(const gsi_gid *gids, int n, char *text, size_t room);

#endif
