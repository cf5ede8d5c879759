/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which ports a rank uses (its rails), and which rail of one rank talks to which of another. Pure.
 *
 * Each rank of a host computes the rails of all local ranks from the same inputs and takes its own, so
 * that nothing needs to be agreed on. The rules, in order:
 *   1. Usable is a port that is active, whose device this process may open, that the filter lets pass, and
 *      that is not slower than a quarter of the fastest (unless the filter names it).
 *   2. A rank's candidates are its nearest ports. Ranks are dealt to their candidates so that equal ports
 *      carry equal loads; ranks with fewer candidates first.
 *   3. More equally near ports than ranks: every rank gets as many of its own, what is left over is shared.
 *      Fewer: ranks share ports.
 *   4. Ports that nobody has: host memory uses them too (policy AUTO), the nearest first.
 */
#ifndef GSI_TOPO_RAILS_H
#define GSI_TOPO_RAILS_H

#include "topo/gid.h"
#include "topo/settings.h"
#include "topo/topology.h"

typedef struct gsi_rail_use {
    int port; /* index into the ports given */
    gsi_distance distance;
    int ranks; /* local ranks that use it, this one among them */
    int turn;  /* rails of this rank on the same card, at ports before this one */
} gsi_rail_use;

/* Why a port is used or not. */
typedef struct gsi_rail_verdict {
    int rail;              /* its place in the order of rails; -1: not used */
    int usable;            /* 0: no rank could use it */
    int ranks;             /* local ranks that use it */
    gsi_distance distance; /* from this rank's memory */
    char reason[240];      /* one sentence, with the remedy if there is one */
} gsi_rail_verdict;

typedef struct gsi_rails {
    gsi_rail_use *rails; /* nrails, the best first */
    int nrails;
    gsi_rail_verdict *verdicts; /* one per port */
    int nports;
} gsi_rails;

/* The rails of local rank `me` of `nlocal` ranks whose memory is at places[]. settings: filter, policy and an
 * explicit GID index; NULL: defaults. max: at most as many rails; 0: no limit. No usable port is no error:
 * nrails is 0 and the verdicts say why. Errors: INVALID (me), NOMEM. Free with gsi_rails_free(). */
int gsi_rails_select(const gsi_topology *t, const gsi_ports *ports, const gsi_place *places, int nlocal, int me,
                     const gsi_settings *settings, int max, gsi_rails *out);
void gsi_rails_free(gsi_rails *rails);

/* ---- Between two ranks --------------------------------------------------------- */

enum { GSI_END_GIDS = 6 };

/* What a peer has to know of a rail to talk to it: plain data of fixed size, to be exchanged. */
typedef struct gsi_rail_end {
    char name[GSI_RDMA_NAME + 8]; /* "mlx5_0:1" */
    uint64_t node_guid;
    uint32_t rate_mbps, lid;
    uint8_t link_layer; /* enum gsi_link_layer */
    uint8_t port;       /* number of the port, from 1 */
    uint8_t ngids, reserved;
    uint32_t active_mtu; /* bytes; 0: unknown: the transport fills it in */
    gsi_gid gids[GSI_END_GIDS];
} gsi_rail_end;

typedef struct gsi_rail_pair {
    int mine, theirs;      /* positions in the two lists */
    int my_gid, their_gid; /* positions in the ends' gids; -1: InfiniBand without a GID (LID only) */
    int match;             /* enum gsi_gid_match */
    int shared;            /* 1: one of the two rails is in an earlier pair already */
    char note[120];        /* a warning ("" if all is well): a routed path, RoCE v1 */
} gsi_rail_pair;

/* Describes a port to peers: its GIDs in order of preference, or only the one with the explicit index of
 * `settings` (may be NULL). Errors: UNSUPPORTED, INVALID: no GID fits; the message says what there is. */
int gsi_rail_end_make(const gsi_port *port, const gsi_settings *settings, gsi_rail_end *out);

/* Pairs of rails that can talk: the same link layer, the same subnet (if there is none at all: RoCE v2 by routes).
 * Both sides compute the same pairs (mirrored), in the same order; k-th with k-th where possible; each rail
 * once, then what is left over with the least used rail of the other side (shared). Writes at most max pairs.
 * Returns their number; 0: `why` says what kept them apart. */
int gsi_rails_pair(const gsi_rail_end *mine, int nmine, const gsi_rail_end *theirs, int ntheirs, int max,
                   gsi_rail_pair *out, char *why, size_t room);

#endif
