/* SPDX-License-Identifier: Apache-2.0 */
#include "topo/gid.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "topo/address.h"

int gsi_gid_is_ipv4(const uint8_t raw[16])
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

    return !memcmp(raw, mapped, sizeof mapped);
}

/* fe80::/10, and IPv4's 169.254/16. */
int gsi_gid_is_link_local(const uint8_t raw[16])
{
    if (gsi_gid_is_ipv4(raw))
        return raw[12] == 169 && raw[13] == 254;
    return raw[0] == 0xfe && (raw[1] & 0xc0) == 0x80;
}

static int prefix_of(const gsi_gid *g)
{
    if (g->prefix && g->prefix <= 128)
        return g->prefix;
    return gsi_gid_is_ipv4(g->raw) ? GSI_GID_IPV4_PREFIX : GSI_GID_IPV6_PREFIX;
}

int gsi_gid_meet(const gsi_gid *a, const gsi_gid *b)
{
    if (a->type != b->type)
        return GSI_GID_NO_MATCH;
    if (a->type == GSI_GID_IB)
        return memcmp(a->raw, b->raw, 8) ? GSI_GID_NO_MATCH : GSI_GID_SUBNET;
    int v4 = gsi_gid_is_ipv4(a->raw), local = gsi_gid_is_link_local(a->raw);
    if (v4 != gsi_gid_is_ipv4(b->raw) || local != gsi_gid_is_link_local(b->raw))
        return GSI_GID_NO_MATCH;
    /* Each has to see the other in its own subnet, so the longer prefix decides. */
    int p = prefix_of(a), q = prefix_of(b), same = gsi_same_prefix(a->raw, b->raw, p > q ? p : q);
    if (a->type == GSI_GID_ROCE_V1 || local) /* does not leave the segment */
        return local || same ? GSI_GID_LINK_LOCAL : GSI_GID_NO_MATCH;
    return same ? GSI_GID_SUBNET : GSI_GID_ROUTED;
}

/* RoCE v2 before v1, routable before link-local, IPv4 before IPv6. */
int gsi_gid_quality(const gsi_gid *g)
{
    if (g->type == GSI_GID_IB)
        return 16;
    return (g->type == GSI_GID_ROCE_V2 ? 8 : 0) + (gsi_gid_is_link_local(g->raw) ? 0 : 4) +
           (gsi_gid_is_ipv4(g->raw) ? 2 : 0);
}

static int has_routable(const gsi_gid *gids, int n)
{
    for (int i = 0; i < n; i++)
        if (gids[i].type == GSI_GID_ROCE_V2 && !gsi_gid_is_link_local(gids[i].raw))
            return 1;
    return 0;
}

int gsi_gids_meet(const gsi_gid *a, int na, const gsi_gid *b, int nb, int *i, int *k)
{
    int segments_known = has_routable(a, na) && has_routable(b, nb), best = 0, match = GSI_GID_NO_MATCH;

    *i = *k = -1;
    for (int x = 0; x < na; x++)
        for (int y = 0; y < nb; y++) {
            int m = gsi_gid_meet(&a[x], &b[y]);
            if (m == GSI_GID_NO_MATCH || (m == GSI_GID_LINK_LOCAL && segments_known))
                continue;
            /* Better ways to meet first; those that meet alike are of one kind, and equally good. */
            int worth = 64 * m + gsi_gid_quality(&a[x]);
            if (worth > best) {
                best = worth;
                match = m;
                *i = x;
                *k = y;
            }
        }
    return match;
}

void gsi_gid_list(const gsi_gid *gids, int n, char *text, size_t room)
{
    char addr[INET6_ADDRSTRLEN];
    size_t at = 0;

    if (!room)
        return;
    snprintf(text, room, "none");
    for (int i = 0; i < n && at < room; i++) {
        const gsi_gid *g = &gids[i];
        gsi_gid_text(g->raw, addr, sizeof addr);
        int p = g->prefix ? g->prefix - (gsi_gid_is_ipv4(g->raw) ? 96 : 0) : 0;
        int len = snprintf(text + at, room - at, "%s%d: %s", i ? ", " : "", (int)g->index, addr);
        at += len > 0 ? (size_t)len : 0;
        if (p > 0 && at < room && g->type != GSI_GID_IB)
            at += (size_t)snprintf(text + at, room - at, "/%d", p);
        if (at < room)
            /* A peer's GID may be anything: its name need not end. */
            at += (size_t)snprintf(text + at, room - at, " (%s%s%.*s)", gsi_gid_type_name(g->type),
                                   g->netdev[0] ? ", " : "", (int)sizeof g->netdev, g->netdev);
    }
}

static int find_index(const gsi_port *port, int index)
{
    for (int i = 0; i < port->ngids; i++)
        if (port->gids[i].index == index)
            return i;
    return -1;
}

static int cannot(const gsi_port *port, int code, const char *what, const gsi_gid *peers, int npeers)
{
    char have[160], wanted[120], name[80];

    gsi_port_name(port, name, sizeof name);
    gsi_gid_list(port->gids, port->ngids, have, sizeof have);
    gsi_gid_list(peers, npeers, wanted, sizeof wanted);
    return gsi_fail(code, "%s: %s. It has %s; the peer has %s", name, what, have, wanted);
}

/* The GID that would serve most peers; -1 if there is none. */
static int best_by_itself(const gsi_port *port, int only)
{
    int best = -1;

    for (int i = 0; i < port->ngids; i++)
        if ((only < 0 || i == only) &&
            (best < 0 || gsi_gid_quality(&port->gids[i]) > gsi_gid_quality(&port->gids[best])))
            best = i;
    return best;
}

static void take_note(const gsi_port *port, const gsi_gid *g, int match, char *note, size_t room)
{
    char name[80];

    gsi_port_name(port, name, sizeof name);
    if (match == GSI_GID_ROUTED)
        snprintf(note, room, "%s: no subnet is shared with the peer; GID index %d works only if the fabric routes",
                 name, (int)g->index);
    else if (g->type == GSI_GID_ROCE_V1)
        snprintf(note, room, "%s: there is only RoCE v1 (GID index %d), which does not pass routers", name,
                 (int)g->index);
    else if (g->type == GSI_GID_ROCE_V2 && gsi_gid_is_link_local(g->raw))
        snprintf(note, room, "%s: only link-local addresses meet (GID index %d); give both sides addresses of a subnet",
                 name, (int)g->index);
}

int gsi_gid_choose(const gsi_port *port, int wanted, const char *variable, const gsi_gid *peers, int npeers, int *peer,
                   char *note, size_t room)
{
    int only = -1, best, theirs = -1, match = GSI_GID_SUBNET;
    char what[200];

    if (room)
        note[0] = 0;
    if (!variable || !*variable)
        variable = "as asked for";
    if (wanted >= 0 && (only = find_index(port, wanted)) < 0) {
        snprintf(what, sizeof what, "GID index %d (%s) is empty; choose one of those there are, or leave it to auto",
                 wanted, variable);
        return cannot(port, GRADSYNC_ERR_INVALID, what, peers, npeers);
    }
    /* InfiniBand: index 0 carries the subnet's prefix; others are aliases. */
    if (only < 0 && port->link_layer == GSI_LINK_INFINIBAND)
        only = find_index(port, 0);
    if (!npeers) {
        best = best_by_itself(port, only);
    } else {
        match = gsi_gids_meet(port->gids + (only > 0 ? only : 0), only < 0 ? port->ngids : 1, peers, npeers, &best,
                              &theirs);
        best += best >= 0 && only > 0 ? only : 0;
    }
    if (peer)
        *peer = theirs;
    if (best >= 0) {
        if (room)
            take_note(port, &port->gids[best], match, note, room);
        return best;
    }
    if (wanted >= 0) {
        snprintf(what, sizeof what, "GID index %d (%s) cannot reach the peer; leave it to auto", wanted, variable);
        return cannot(port, GRADSYNC_ERR_INVALID, what, peers, npeers);
    }
    if (port->link_layer != GSI_LINK_ETHERNET)
        return cannot(port, GRADSYNC_ERR_UNSUPPORTED,
                      "a GID with the InfiniBand subnet prefix of the peer was looked for; are both on one fabric, and "
                      "does its subnet manager run?",
                      peers, npeers);
    return cannot(port, GRADSYNC_ERR_UNSUPPORTED,
                  port->ngids
                      ? "a RoCE v2 GID in a subnet of the peer was looked for; give the network devices of both "
                        "addresses of one subnet"
                      : "a RoCE v2 GID was looked for, and there is none; give its network device an address "
                        "and bring it up",
                  peers, npeers);
}
