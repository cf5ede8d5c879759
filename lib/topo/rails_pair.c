/* SPDX-License-Identifier: Apache-2.0 */
/* Which rail of one rank talks to which of another. */
#include "topo/rails.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"

/* ---- Ends ------------------------------------------------------------------------- */

int gsi_rail_end_make(const gsi_port *port, const gsi_settings *settings, gsi_rail_end *out)
{
    unsigned char taken[4096] = {0};
    char note[160];

    memset(out, 0, sizeof *out); /* it is exchanged: no stray bytes */
    gsi_port_name(port, out->name, sizeof out->name);
    out->node_guid = port->node_guid;
    out->rate_mbps = port->rate_mbps;
    out->lid = port->lid;
    out->link_layer = (uint8_t)port->link_layer;
    out->port = (uint8_t)port->number;
    out->active_mtu = port->active_mtu;
    if (settings && settings->gid_index >= 0) {
        int at = gsi_gid_choose(port, (int)settings->gid_index, settings->gid_index_variable, NULL, 0, NULL, note,
                                sizeof note);
        if (at < 0)
            return at;
        out->gids[out->ngids++] = port->gids[at];
        return 0;
    }
    for (; out->ngids < GSI_END_GIDS; out->ngids++) {
        int best = -1;
        for (int i = 0; i < port->ngids && i < (int)sizeof taken; i++)
            if (!taken[i] && (best < 0 || gsi_gid_quality(&port->gids[i]) > gsi_gid_quality(&port->gids[best])))
                best = i;
        if (best < 0)
            break;
        taken[best] = 1;
        out->gids[out->ngids] = port->gids[best];
    }
    if (port->link_layer == GSI_LINK_ETHERNET && !out->ngids) {
        int at = gsi_gid_choose(port, -1, NULL, NULL, 0, NULL, note, sizeof note); /* says what is missing */
        return at < 0 ? at : GRADSYNC_ERR_UNSUPPORTED;
    }
    return 0;
}

/* ---- Pairs ------------------------------------------------------------------------- */

/* A peer's end may be anything: its name need not end, nor its count of GIDs be possible. */
static const char *name_of(const gsi_rail_end *end, char name[sizeof end->name + 1])
{
    snprintf(name, sizeof end->name + 1, "%.*s", (int)sizeof end->name, end->name);
    return name;
}

static int count_of(const gsi_rail_end *end)
{
    return end->ngids <= GSI_END_GIDS ? end->ngids : 0;
}

/* How two ends meet; the positions of their GIDs. Called with the canonical first list's end as `a`. */
static int meet(const gsi_rail_end *a, const gsi_rail_end *b, int *gid_a, int *gid_b)
{
    int na = count_of(a), nb = count_of(b);

    *gid_a = *gid_b = -1;
    if (a->link_layer != b->link_layer || a->link_layer == GSI_LINK_UNKNOWN)
        return GSI_GID_NO_MATCH;
    int match = gsi_gids_meet(a->gids, na, b->gids, nb, gid_a, gid_b);
    /* InfiniBand of one subnet does with LIDs where a side tells no GID. */
    if (match == GSI_GID_NO_MATCH && a->link_layer == GSI_LINK_INFINIBAND && a->lid && b->lid && (!na || !nb))
        match = GSI_GID_SUBNET;
    return match;
}

/* What orders two lists, so that both sides begin with the same one. */
static int compare_lists(const gsi_rail_end *a, int na, const gsi_rail_end *b, int nb)
{
    if (na != nb)
        return na < nb ? -1 : 1;
    for (int i = 0; i < na; i++) {
        if (a[i].node_guid != b[i].node_guid)
            return a[i].node_guid < b[i].node_guid ? -1 : 1;
        if (a[i].port != b[i].port)
            return a[i].port < b[i].port ? -1 : 1;
        if (a[i].lid != b[i].lid)
            return a[i].lid < b[i].lid ? -1 : 1;
        int c = memcmp(a[i].gids[0].raw, b[i].gids[0].raw, sizeof a[i].gids[0].raw);
        if (!c)
            c = strncmp(a[i].name, b[i].name, sizeof a[i].name);
        if (c)
            return c;
    }
    return 0;
}

struct pairing {
    const gsi_rail_end *a, *b; /* the canonical order */
    int na, nb, swapped, max, n, floor;
    gsi_rail_pair *out;
};

static int used_a(const struct pairing *p, int i)
{
    int n = 0;

    for (int k = 0; k < p->n; k++)
        n += (p->swapped ? p->out[k].theirs : p->out[k].mine) == i;
    return n;
}

static int used_b(const struct pairing *p, int j)
{
    int n = 0;

    for (int k = 0; k < p->n; k++)
        n += (p->swapped ? p->out[k].mine : p->out[k].theirs) == j;
    return n;
}

static void add(struct pairing *p, int i, int j, int shared)
{
    int gid_a, gid_b, match = meet(&p->a[i], &p->b[j], &gid_a, &gid_b);
    gsi_rail_pair *pair = &p->out[p->n++];

    *pair = (gsi_rail_pair){.mine = p->swapped ? j : i,
                            .theirs = p->swapped ? i : j,
                            .my_gid = p->swapped ? gid_b : gid_a,
                            .their_gid = p->swapped ? gid_a : gid_b,
                            .match = match,
                            .shared = shared};
    if (match == GSI_GID_ROUTED)
        snprintf(pair->note, sizeof pair->note, "the rails share no subnet: this works only if the fabric routes");
    else if (match == GSI_GID_LINK_LOCAL && p->a[i].gids[gid_a].type == GSI_GID_ROCE_V1)
        snprintf(pair->note, sizeof pair->note, "RoCE v1, which does not pass routers: there is no common RoCE v2 GID");
    else if (match == GSI_GID_LINK_LOCAL)
        snprintf(pair->note, sizeof pair->note,
                 "only link-local addresses meet; give both network devices addresses of one subnet");
}

static int can(const struct pairing *p, int i, int j)
{
    int x, y;

    return meet(&p->a[i], &p->b[j], &x, &y) >= p->floor;
}

/* Each rail once, those with the closest places in the lists first. */
static void pair_once(struct pairing *p)
{
    int longest = p->na > p->nb ? p->na : p->nb;

    for (int apart = 0; apart < longest; apart++)
        for (int i = 0; i < p->na; i++)
            for (int side = -1; side <= 1; side += 2) {
                int j = i + side * apart;
                if (p->n >= p->max)
                    return;
                if (j < 0 || j >= p->nb || (!apart && side > 0) || used_a(p, i) || used_b(p, j) || !can(p, i, j))
                    continue;
                add(p, i, j, 0);
            }
}

/* Rails that are left over join the least used one that they can talk to. */
static void pair_rest(struct pairing *p)
{
    for (int i = 0; i < p->na && p->n < p->max; i++) {
        int best = -1;
        for (int j = 0; !used_a(p, i) && j < p->nb; j++)
            if (can(p, i, j) && (best < 0 || used_b(p, j) < used_b(p, best)))
                best = j;
        if (best >= 0)
            add(p, i, best, 1);
    }
    for (int j = 0; j < p->nb && p->n < p->max; j++) {
        int best = -1;
        for (int i = 0; !used_b(p, j) && i < p->na; i++)
            if (can(p, i, j) && (best < 0 || used_a(p, i) < used_a(p, best)))
                best = i;
        if (best >= 0)
            add(p, best, j, 1);
    }
}

static void explain_none(const gsi_rail_end *mine, int nmine, const gsi_rail_end *theirs, int ntheirs, char *why,
                         size_t room)
{
    char here[160], there[160], name[sizeof mine->name + 1], other[sizeof mine->name + 1];

    if (!nmine || !ntheirs) {
        snprintf(why, room, "%s has no usable rail",
                 !nmine && !ntheirs ? "neither side"
                 : !nmine           ? "this side"
                                    : "the peer");
        return;
    }
    if (mine[0].link_layer != theirs[0].link_layer) {
        snprintf(why, room, "%s here is %s and %s there is %s: these do not talk to each other",
                 name_of(&mine[0], name), gsi_link_layer_name(mine[0].link_layer), name_of(&theirs[0], other),
                 gsi_link_layer_name(theirs[0].link_layer));
        return;
    }
    gsi_gid_list(mine[0].gids, count_of(&mine[0]), here, sizeof here);
    gsi_gid_list(theirs[0].gids, count_of(&theirs[0]), there, sizeof there);
    snprintf(why, room, "no GIDs meet: %s here has %s; %s there has %s; give both addresses of one subnet",
             name_of(&mine[0], name), here, name_of(&theirs[0], other), there);
}

int gsi_rails_pair(const gsi_rail_end *mine, int nmine, const gsi_rail_end *theirs, int ntheirs, int max,
                   gsi_rail_pair *out, char *why, size_t room)
{
    int swapped = compare_lists(mine, nmine, theirs, ntheirs) > 0, best = GSI_GID_NO_MATCH, x, y;
    struct pairing p = {.a = swapped ? theirs : mine,
                        .b = swapped ? mine : theirs,
                        .na = swapped ? ntheirs : nmine,
                        .nb = swapped ? nmine : ntheirs,
                        .swapped = swapped,
                        .max = max,
                        .out = out};

    if (room)
        why[0] = 0;
    for (int i = 0; i < p.na; i++)
        for (int j = 0; j < p.nb; j++) {
            int match = meet(&p.a[i], &p.b[j], &x, &y);
            best = match > best ? match : best;
        }
    if (best == GSI_GID_NO_MATCH) {
        if (room)
            explain_none(mine, nmine, theirs, ntheirs, why, room);
        return 0;
    }
    /* Routes are the last resort of all rails together: beside rails with a subnet they would cross the fabric. */
    p.floor = best == GSI_GID_ROUTED ? GSI_GID_ROUTED : GSI_GID_LINK_LOCAL;
    pair_once(&p);
    pair_rest(&p);
    return p.n;
}
