/* SPDX-License-Identifier: Apache-2.0 */
#include "comm/offer.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "transport/tcp/interfaces.h"
#include "transport/tcp/tcp.h"
#include "transport/verbs/load.h"

enum { SEND_DEPTH = 80, RECV_DEPTH = 160 }; /* what the endpoint keeps in flight, and a little */

/* ---- RDMA ports --------------------------------------------------------------------- */

/* Errors: INVALID (a partition key that the port does not have), NOMEM. */
static int config_of_port(const gsi_port *port, const gsi_settings *s, gsi_rail_config *out)
{
    int pkey = s->pkey_index > 0 ? s->pkey_index : 0;

    if (s->pkey_value >= 0 && (pkey = gsi_port_find_pkey("", port, s->pkey_value)) < 0)
        return pkey;
    memset(out, 0, sizeof *out);
    snprintf(out->device, sizeof out->device, "%s", port->device);
    out->port = port->number;
    out->gid_index = -1;
    out->mtu = s->mtu;
    out->traffic_class = s->traffic_class > 0 ? s->traffic_class : 0;
    out->service_level = s->service_level > 0 ? s->service_level : 0;
    out->pkey_index = pkey;
    out->timeout = s->timeout > 0 ? s->timeout : 0;
    /* 7 means for ever with some drivers, and nothing is to wait for ever. */
    out->retry_count = s->retry_count >= 7 ? 6 : s->retry_count > 0 ? s->retry_count : 0;
    out->relaxed_ordering = s->relaxed_ordering;
    out->numa_node = port->place.numa_node;
    out->send_depth = SEND_DEPTH;
    out->recv_depth = RECV_DEPTH;
    return 0;
}

/* The first reason that any port has for not being used. */
static void note_no_verbs(const gsi_ports *ports, const gsi_rails *rails, gsi_offer *offer)
{
    if (!ports->n)
        snprintf(offer->no_verbs, sizeof offer->no_verbs, "this host has no RDMA device");
    else
        snprintf(offer->no_verbs, sizeof offer->no_verbs, "%.60s: %.130s", ports->items[0].device,
                 rails->verdicts[0].reason);
}

/* 1 if the port is on the list now, 0 if it cannot be, or INVALID. */
static int offer_port(const gsi_port *port, const char *reason, const gsi_log *log, gsi_offered *out)
{
    gsi_offer *offer = &out->offer;
    int at = offer->nverbs;

    if (at == GSI_NET_RAILS)
        return 0;
    if (gsi_rail_end_make(port, &out->settings, &offer->verbs[at])) {
        gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
        gradsync_last_error(&info);
        if (info.code == GRADSYNC_ERR_INVALID)
            return info.code; /* what the operator asked for cannot be had: not to be passed over */
        gsi_logf(log, GRADSYNC_LOG_WARN, "%s is not used: %s", port->device, info.message);
        snprintf(offer->no_verbs, sizeof offer->no_verbs, "%.190s", info.message);
        return 0;
    }
    config_of_port(port, &out->settings, &out->verbs[at]);
    snprintf(out->verbs_why[at], sizeof out->verbs_why[at], "%.159s", reason);
    offer->nverbs++;
    return 1;
}

/* This rank's own rails; behind them the others of the host, for peers that its own do not reach. */
static int offer_ports(const gsi_ports *ports, const gsi_rails *rails, const gsi_log *log, gsi_offered *out)
{
    int rc = 0;

    for (int i = 0; i < rails->nrails && rc >= 0; i++) {
        int p = rails->rails[i].port;
        rc = offer_port(&ports->items[p], rails->verdicts[p].reason, log, out);
    }
    out->offer.nnear = out->offer.nverbs;
    for (int p = 0; p < ports->n && rc >= 0 && out->offer.nnear; p++)
        if (rails->verdicts[p].usable && rails->verdicts[p].rail < 0)
            rc = offer_port(&ports->items[p], "for peers that the rank's own rails do not reach", log, out);
    if (!rails->nrails)
        note_no_verbs(ports, rails, &out->offer);
    return rc < 0 ? rc : 0;
}

static int offer_verbs(const gsi_place *places, int nlocal, int me, const gsi_log *log, gsi_offered *out)
{
    gsi_rail_open_fn open;
    gsi_topology topology = {0};
    gsi_ports ports = {0};
    gsi_rails rails = {0};

    if (out->settings.disabled) {
        snprintf(out->offer.no_verbs, sizeof out->offer.no_verbs,
                 "RDMA is switched off by GRADSYNC_IB_DISABLE or NCCL_IB_DISABLE");
        return 0;
    }
    int rc = gsi_ports_read("", &ports);
    if (!rc && ports.n && gsi_verbs_load(&open)) {
        gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
        gradsync_last_error(&info);
        snprintf(out->offer.no_verbs, sizeof out->offer.no_verbs, "%.190s", info.message);
        gsi_ports_free(&ports);
        return 0;
    }
    if (!rc)
        rc = gsi_topology_read("", out->settings.topo_file, &topology);
    if (!rc)
        rc = gsi_rails_select(&topology, &ports, places, nlocal, me, &out->settings, GSI_NET_RAILS, &rails);
    if (!rc)
        rc = offer_ports(&ports, &rails, log, out);
    gsi_rails_free(&rails);
    gsi_topology_free(&topology);
    gsi_ports_free(&ports);
    return rc;
}

/* ---- Network interfaces ------------------------------------------------------------------- */

/* An address as a GID holds it. 0, or -1: it is none. */
static int address_to_gid(const gsi_tcp_interface *interface, gsi_gid *gid)
{
    char text[64];

    snprintf(text, sizeof text, "%s", interface->address);
    text[strcspn(text, "%")] = 0;
    memset(gid, 0, sizeof *gid);
    gid->type = GSI_GID_ROCE_V2; /* an IP address of a subnet: they are paired by the same rules */
    snprintf(gid->netdev, sizeof gid->netdev, "%.15s", interface->name);
    if (interface->family == 4) {
        gid->raw[10] = gid->raw[11] = 0xff;
        gid->prefix = (uint8_t)(96 + interface->prefix);
        return inet_pton(AF_INET, text, gid->raw + 12) == 1 ? 0 : -1;
    }
    gid->prefix = (uint8_t)interface->prefix;
    return inet_pton(AF_INET6, text, gid->raw) == 1 ? 0 : -1;
}

static int passes(void *arg, const char *name)
{
    return gsi_filter_match(arg, name, -1, NULL);
}

static int offer_tcp(gsi_offered *out)
{
    gsi_filter *filter = &out->settings.interfaces;
    gsi_tcp_interface *list = gsi_calloc(GSI_TCP_INTERFACES, sizeof *list);

    if (!list)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the list of network interfaces");
    int n = gsi_tcp_interfaces(filter->n ? passes : NULL, filter, list);
    for (int i = 0; i < n && out->offer.ntcp < GSI_NET_RAILS; i++) {
        int at = out->offer.ntcp;
        gsi_rail_end *end = &out->offer.tcp[at];
        gsi_rail_config *config = &out->tcp[at];
        memset(end, 0, sizeof *end);
        snprintf(end->name, sizeof end->name, "%.63s", list[i].name);
        end->link_layer = GSI_LINK_ETHERNET;
        end->rate_mbps = list[i].mbps > 0 ? (uint32_t)list[i].mbps : 0;
        end->ngids = 1;
        if (address_to_gid(&list[i], &end->gids[0]))
            continue;
        memset(config, 0, sizeof *config);
        snprintf(config->device, sizeof config->device, "%s", list[i].name);
        snprintf(config->address, sizeof config->address, "%s", list[i].address);
        config->numa_node = list[i].numa_node;
        config->send_depth = SEND_DEPTH;
        config->recv_depth = RECV_DEPTH;
        snprintf(out->tcp_why[at], sizeof out->tcp_why[at], "%.60s, %d Mbit/s", list[i].address, list[i].mbps);
        out->offer.ntcp++;
    }
    free(list);
    return n < 0 ? n : 0;
}

int gsi_offer_make(int wire, const gsi_place *places, int nlocal, int me, const gsi_log *log, gsi_offered *out)
{
    memset(out, 0, sizeof *out);
    int rc = gsi_settings_read(NULL, NULL, &out->settings);
    if (!rc && wire != GSI_WIRE_TCP)
        rc = offer_verbs(places, nlocal, me, log, out);
    if (!rc && wire != GSI_WIRE_VERBS)
        rc = offer_tcp(out);
    return rc;
}

/* ---- Between two ranks -------------------------------------------------------------------- */

static int is_direct(const gsi_rail_pair *pair)
{
    return pair->match == GSI_GID_SUBNET || pair->match == GSI_GID_LINK_LOCAL;
}

/* The two ranks' own rails; if these are on different subnets, which may or may not be routed, any rails that share
 * one and are one of the two's own, or else at least share one. */
static int pair_ports(const gsi_offer *mine, const gsi_offer *theirs, gsi_rail_pair *pairs, char *why, size_t room)
{
    gsi_rail_pair wide[GSI_NET_CONNS];
    int count = gsi_rails_pair(mine->verbs, mine->nnear, theirs->verbs, theirs->nnear, GSI_NET_CONNS, pairs, why, room);
    int direct = 0, kept = 0;

    for (int k = 0; k < count; k++)
        direct += is_direct(&pairs[k]);
    if (count && direct == count)
        return count;
    if (direct) { /* the routed ones are not needed */
        for (int k = 0; k < count; k++)
            if (is_direct(&pairs[k]))
                pairs[kept++] = pairs[k];
        return kept;
    }
    int n = gsi_rails_pair(mine->verbs, mine->nverbs, theirs->verbs, theirs->nverbs, GSI_NET_CONNS, wide, why, room);
    for (int own = 1; own >= 0 && !kept; own--)
        for (int k = 0; k < n; k++)
            if (is_direct(&wide[k]) && (!own || wide[k].mine < mine->nnear || wide[k].theirs < theirs->nnear))
                pairs[kept++] = wide[k];
    return kept ? kept : count;
}

int gsi_offer_pair(int wire, const gsi_offer *mine, const gsi_offer *theirs, int qps, gsi_net_pairs *out,
                   int my_gids[GSI_NET_RAILS], char *why, size_t room)
{
    gsi_rail_pair pairs[GSI_NET_CONNS];
    int count = wire == GSI_WIRE_VERBS
                    ? pair_ports(mine, theirs, pairs, why, room)
                    : gsi_rails_pair(mine->tcp, mine->ntcp, theirs->tcp, theirs->ntcp, GSI_NET_CONNS, pairs, why, room);

    out->count = 0;
    for (int q = 0; q < (qps > 0 ? qps : 1); q++)
        for (int k = 0; k < count && out->count < GSI_NET_CONNS; k++) {
            out->mine[out->count] = (uint8_t)pairs[k].mine;
            out->theirs[out->count++] = (uint8_t)pairs[k].theirs;
            if (my_gids && my_gids[pairs[k].mine] < 0)
                my_gids[pairs[k].mine] = pairs[k].my_gid;
        }
    return out->count;
}

int gsi_offer_open(const gsi_offered *offered, int wire, uint32_t used, const int my_gids[GSI_NET_RAILS],
                   int connections, gsi_net_config *out)
{
    int verbs = wire == GSI_WIRE_VERBS, n = verbs ? offered->offer.nverbs : offered->offer.ntcp;
    gsi_rail_open_fn open = gsi_tcp_rail_open;
    int rc = verbs ? gsi_verbs_load(&open) : 0;

    out->nrails = 0;
    for (int i = 0; !rc && i < n; i++) {
        if (!(used >> i & 1))
            continue;
        gsi_rail_config config = verbs ? offered->verbs[i] : offered->tcp[i];
        const gsi_rail_end *end = verbs ? &offered->offer.verbs[i] : &offered->offer.tcp[i];
        if (verbs && end->ngids)
            config.gid_index = end->gids[my_gids[i] >= 0 ? my_gids[i] : 0].index;
        config.connections = connections;
        rc = open(&config, &out->rails[out->nrails]);
        out->reasons[out->nrails] = verbs ? offered->verbs_why[i] : offered->tcp_why[i];
        out->nrails += !rc;
    }
    while (rc && out->nrails > 0) {
        gsi_rail *rail = out->rails[--out->nrails];
        rail->ops->close(rail);
    }
    return rc;
}

int gsi_wire_usable(int wire, const gsi_log *log, char *text, size_t room)
{
    gsi_offered *offered = gsi_calloc(1, sizeof *offered);
    const gsi_place anywhere = {.numa_node = -1};
    gradsync_error_info error = GRADSYNC_ERROR_INFO_INIT;

    if (!offered || gsi_offer_make(wire, &anywhere, 1, 0, log, offered)) {
        gradsync_last_error(&error);
        snprintf(text, room, "%s", offered ? error.message : "no memory to look");
        free(offered);
        return 0;
    }
    const gsi_offer *offer = &offered->offer;
    int verbs = wire == GSI_WIRE_VERBS, n = verbs ? offer->nverbs : offer->ntcp;
    const gsi_rail_end *ends = verbs ? offer->verbs : offer->tcp;
    size_t at = 0;
    for (int i = 0; i < n && at < room; i++)
        at += (size_t)snprintf(text + at, room - at, "%s%.40s", i ? ", " : "between hosts, over ", ends[i].name);
    if (!n)
        snprintf(text, room, "%s", verbs ? offer->no_verbs : "no network interface is up and has an address");
    free(offered);
    return n > 0;
}
