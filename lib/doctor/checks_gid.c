/* SPDX-License-Identifier: Apache-2.0 */
/* Checks: the addresses of RoCE ports. */
#include <stdio.h>
#include <string.h>

#include "doctor/doctor.h"
#include "topo/gid.h"

static int is_roce(const gsi_facts *f, int i)
{
    const gsi_port *p = &f->ports.items[i];

    return gsi_port_matters(f, i) && p->link_layer == GSI_LINK_ETHERNET && p->state == GSI_PORT_ACTIVE;
}

static int is_routable(const gsi_gid *g)
{
    return g->type == GSI_GID_ROCE_V2 && !gsi_gid_is_link_local(g->raw);
}

void gsi_check_gid_missing(const gsi_facts *f, gsi_findings *list)
{
    char name[96], all[200];

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        int v2 = 0, routable = 0;
        if (!is_roce(f, i))
            continue;
        const char *netdev = p->netdev[0] ? p->netdev : "its network device";
        for (int k = 0; k < p->ngids; k++) {
            v2 += p->gids[k].type == GSI_GID_ROCE_V2;
            routable += is_routable(&p->gids[k]);
        }
        gsi_subject_port(f, i, name, sizeof name);
        gsi_gid_list(p->gids, p->ngids, all, sizeof all);
        if (!p->ngids) {
            gsi_find(list, GRADSYNC_FINDING_ERROR, name, "the port has no GID: %s has no address", netdev);
            gsi_remedy(list, "give %s an address (ip addr add ... dev %s) and bring it up", netdev, netdev);
        } else if (!v2) {
            gsi_find(list, GRADSYNC_FINDING_WARNING, name, "the port has no RoCE v2 GID, only: %s", all);
            gsi_remedy(list,
                       "switch the port to RoCE v2 (driver or firmware option; NVIDIA: cma_roce_mode), since RoCE v1 "
                       "does not leave its Ethernet segment");
        } else if (!routable) {
            gsi_find(list, GRADSYNC_FINDING_WARNING, name,
                     "the port has only link-local RoCE v2 GIDs, good for one Ethernet segment: %s", all);
            gsi_remedy(list, "give %s an IPv4 or IPv6 address of the rail's subnet", netdev);
        }
    }
}

void gsi_check_gid_index(const gsi_facts *f, gsi_findings *list)
{
    int wanted = f->settings.gid_index;
    const char *variable = f->settings.gid_index_variable;
    char name[96], all[200], text[64];

    for (int i = 0; wanted >= 0 && i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        const gsi_gid *g = NULL;
        int routable = 0;
        if (!is_roce(f, i))
            continue;
        for (int k = 0; k < p->ngids; k++) {
            g = p->gids[k].index == wanted ? &p->gids[k] : g;
            routable += is_routable(&p->gids[k]);
        }
        gsi_subject_port(f, i, name, sizeof name);
        gsi_gid_list(p->gids, p->ngids, all, sizeof all);
        if (!g) {
            gsi_find(list, GRADSYNC_FINDING_ERROR, name, "%s is %d, which is empty on this port; there is: %s",
                     variable, wanted, p->ngids ? all : "nothing");
            gsi_remedy(list, "unset %s: the GID is then found by the peer's subnet", variable);
            continue;
        }
        gsi_gid_text(g->raw, text, sizeof text);
        if (!is_routable(g) && routable) {
            gsi_find(list, GRADSYNC_FINDING_WARNING, name,
                     "%s is %d, which is %s (%s), while there is a better one: %s", variable, wanted, text,
                     gsi_gid_type_name(g->type), all);
            gsi_remedy(list, "unset %s: the GID is then found by the peer's subnet", variable);
        }
    }
}

/* 1 if the port has a GID (that the settings allow) in the peer's subnet. */
static int reaches(const gsi_facts *f, int i, const gsi_peer *peer)
{
    const gsi_port *p = &f->ports.items[i];

    for (int k = 0; k < p->ngids; k++) {
        const gsi_gid *g = &p->gids[k];
        if (g->type != GSI_GID_ROCE_V2 || (f->settings.gid_index >= 0 && g->index != f->settings.gid_index) ||
            gsi_gid_is_ipv4(g->raw) != gsi_gid_is_ipv4(peer->raw))
            continue;
        int bits = g->prefix                 ? g->prefix
                   : peer->prefix            ? peer->prefix
                   : gsi_gid_is_ipv4(g->raw) ? GSI_GID_IPV4_PREFIX
                                             : GSI_GID_IPV6_PREFIX;
        /* A whole subnet was asked for: the wider of the two decides. */
        if (peer->prefix && peer->prefix < bits)
            bits = peer->prefix;
        if (gsi_same_prefix(g->raw, peer->raw, bits))
            return 1;
    }
    return 0;
}

/* The network device without RDMA in whose subnet the peer is; NULL. */
static const char *other_device(const gsi_facts *f, const gsi_peer *peer)
{
    for (int k = 0; k < f->addresses.n; k++) {
        const gsi_address *a = &f->addresses.items[k];
        int rdma = 0;
        for (int i = 0; i < f->ports.n; i++)
            rdma |= !strcmp(f->ports.items[i].netdev, a->netdev);
        if (!rdma && a->prefix > (gsi_gid_is_ipv4(a->raw) ? 96 : 0) && gsi_same_prefix(a->raw, peer->raw, a->prefix))
            return a->netdev;
    }
    return NULL;
}

/* "mlx5_0:1 has 10.77.0.1/24": the routable GIDs of all ports. */
static int list_gids(const gsi_facts *f, char *text, size_t room)
{
    char name[96], address[64];
    size_t at = 0;
    int n = 0;

    text[0] = 0;
    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        for (int k = 0; is_roce(f, i) && k < p->ngids && at < room; k++) {
            const gsi_gid *g = &p->gids[k];
            if (!is_routable(g))
                continue;
            gsi_subject_port(f, i, name, sizeof name);
            gsi_gid_text(g->raw, address, sizeof address);
            at += (size_t)snprintf(text + at, room - at, "%s%s has %s", n ? ", " : "", name, address);
            if (g->prefix && at < room)
                at += (size_t)snprintf(text + at, room - at, "/%d", g->prefix - (gsi_gid_is_ipv4(g->raw) ? 96 : 0));
            n++;
        }
    }
    return n;
}

void gsi_check_gid_subnet(const gsi_facts *f, gsi_findings *list)
{
    char all[160], names[120], name[96];

    for (int k = 0; k < f->npeers; k++) {
        const gsi_peer *peer = &f->peers[k];
        size_t at = 0;
        int n = 0;
        names[0] = 0;
        for (int i = 0; i < f->ports.n; i++) {
            if (!is_roce(f, i) || !reaches(f, i, peer))
                continue;
            gsi_subject_port(f, i, name, sizeof name);
            if (at < sizeof names)
                at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", n ? ", " : "", name);
            n++;
        }
        if (n) {
            gsi_find(list, GRADSYNC_FINDING_OK, peer->text, "in one subnet with %s", names);
            continue;
        }
        const char *netdev = other_device(f, peer);
        int routable = list_gids(f, all, sizeof all);
        int forced = f->settings.gid_index >= 0;
        if (netdev) {
            gsi_find(list, GRADSYNC_FINDING_ERROR, peer->text,
                     "it is in the subnet of %s, which has no RDMA; no RoCE GID%s is in that subnet%s%s", netdev,
                     forced ? " of the index that is set" : "", routable ? ": " : "", all);
            gsi_remedy(list, "give the peer's RDMA address instead, or put both hosts' RDMA network devices into one "
                             "subnet per rail");
        } else if (routable) {
            gsi_find(list, GRADSYNC_FINDING_WARNING, peer->text,
                     "no RoCE v2 GID%s is in its subnet, so that packets have to be routed: %s",
                     forced ? " of the index that is set" : "", all);
            gsi_remedy(list,
                       forced ? "unset %s, or set it to the GID of that subnet"
                              : "give the rail's network device an address of that subnet, unless the fabric "
                                "routes between the two%s",
                       forced ? f->settings.gid_index_variable : "");
        } else {
            gsi_find(list, GRADSYNC_FINDING_ERROR, peer->text, "no port has a RoCE v2 GID that could reach it");
            gsi_remedy(list, "give a network device with RDMA an address of that subnet");
        }
    }
}

void gsi_check_arp_flux(const gsi_facts *f, gsi_findings *list)
{
    char name[96], other[96];

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        int found = -1;
        for (int k = 0; k < i && found < 0; k++) {
            const gsi_port *q = &f->ports.items[k];
            if (!is_roce(f, i) || !is_roce(f, k) || !strcmp(p->netdev, q->netdev))
                continue;
            for (int a = 0; a < p->ngids * q->ngids && found < 0; a++) {
                const gsi_gid *g = &p->gids[a / q->ngids], *h = &q->gids[a % q->ngids];
                if (gsi_gid_is_ipv4(g->raw) && gsi_gid_is_ipv4(h->raw) && g->prefix > 96 && g->prefix == h->prefix &&
                    gsi_same_prefix(g->raw, h->raw, g->prefix) && f->more[i].flux && f->more[k].flux)
                    found = k;
            }
        }
        if (found < 0)
            continue;
        gsi_subject_port(f, i, name, sizeof name);
        gsi_subject_port(f, found, other, sizeof other);
        gsi_find(
            list, GRADSYNC_FINDING_WARNING, name,
            "%s and %s (%s) are in one subnet, and each answers ARP for the other: all traffic may end on one port",
            p->netdev, f->ports.items[found].netdev, other);
        gsi_remedy(list,
                   "give each rail a subnet of its own, or set net.ipv4.conf.all.arp_ignore=1 and arp_announce=2, "
                   "with a routing rule for each source address");
    }
}
