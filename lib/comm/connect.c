/* SPDX-License-Identifier: Apache-2.0 */
#include "comm/connect.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "comm/exchange.h"
#include "comm/offer.h"
#include "transport/shm/shm.h"
#include "transport/span/span.h"

/* Round 3: a card, and the connections to each rank. */
typedef struct plug {
    gsi_net_card card;
    char error[200];
    gsi_net_row rows[]; /* by peer */
} plug;

/* What is known and made while connecting. */
typedef struct joining {
    const gsi_connect_args *a;
    int forced; /* enum gsi_wire that the caller asks for; NONE: the best there is */
    int wire;   /* that is used; NONE: all ranks share memory */
    int far;    /* all rounds are made */
    int rows;   /* of a plug */
    int strict;
    int hosts, local, nlocal;
    gsi_address *addresses; /* n */
    int32_t *host;          /* n: of each rank, from 0 */
    gsi_offered *offered;
    gsi_offer *offers;    /* n */
    gsi_net_pairs *pairs; /* n */
    uint32_t *used;       /* n: a bit for each rail of a rank's offer that it uses with anybody */
    int listen_fd;
    gsi_endpoint *shm, *net;
    char no_verbs[400];
} joining;

static const char *last_message(gradsync_error_info *info)
{
    *info = (gradsync_error_info)GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(info);
    return info->message;
}

static size_t plug_bytes(int rows)
{
    return sizeof(plug) + (size_t)rows * sizeof(gsi_net_row);
}

size_t gsi_connect_round_bytes(int round, int rows)
{
    switch (round) {
    case 0:
        return sizeof(gsi_address);
    case 1:
        return rows ? sizeof(gsi_offer) : sizeof(gsi_outcome);
    case 2:
        return plug_bytes(rows);
    default:
        return sizeof(gsi_outcome);
    }
}

static int exchange(const joining *j, const void *own, void *all, size_t bytes)
{
    return gsi_exchange(j->a->allgather, j->a->arg, own, all, bytes);
}

/* ---- Round 1: who and where ------------------------------------------------------------- */

static int node_of_thread(void)
{
    unsigned cpu = 0, node = 0;
    return syscall(SYS_getcpu, &cpu, &node, NULL) ? -1 : (int)node;
}

static int exchange_addresses(joining *j, int status, const gsi_shm_address *shm, int *exchanged)
{
    const gsi_connect_args *a = j->a;
    gradsync_error_info info;
    gsi_address own;

    memset(&own, 0, sizeof own);
    own.magic = GSI_ADDRESS_MAGIC;
    own.abi = GSI_ABI;
    own.rank = a->rank;
    own.n = a->n;
    own.algo = a->algo;
    own.strict = a->ctx->strict;
    own.status = status;
    own.wire = j->forced;
    own.local_only = !strcmp(a->ctx->transport, "shm");
    own.place.numa_node = node_of_thread();
    own.shm.address = *shm;
    gsi_host_identity(own.host_id, sizeof own.host_id, own.shm.host, sizeof own.shm.host);
    if (status)
        snprintf(own.error, sizeof own.error, "%.199s", last_message(&info));
    int rc = exchange(j, &own, j->addresses, sizeof own);
    *exchanged = !rc;
    return rc ? rc : gsi_addresses_check(j->addresses, a->rank, a->n);
}

/* Numbers the hosts in order of their first ranks; finds this rank's place on its own. */
static void find_hosts(joining *j)
{
    const gsi_address *all = j->addresses;
    int rank = j->a->rank;

    for (int r = 0; r < j->a->n; r++) {
        int first = 0;
        while (strncmp(all[first].host_id, all[r].host_id, sizeof all[r].host_id))
            first++;
        j->host[r] = first == r ? j->hosts++ : j->host[first];
        j->strict |= all[r].strict != 0; /* all must act alike */
    }
    for (int r = 0; r < j->a->n; r++)
        if (j->host[r] == j->host[rank]) {
            j->local += r < rank;
            j->nlocal++;
        }
    j->far = j->a->rows || j->hosts > 1 || (j->forced != GSI_WIRE_NONE && j->a->n > 1);
}

/* ---- Round 2: rails ------------------------------------------------------------------------ */

static int make_offer(joining *j)
{
    gsi_place *places = gsi_calloc((size_t)j->nlocal, sizeof *places);
    int at = 0;

    if (!places)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to choose rails");
    for (int r = 0; r < j->a->n; r++)
        if (j->host[r] == j->host[j->a->rank])
            places[at++] = j->addresses[r].place;
    int rc = gsi_offer_make(j->forced, places, j->nlocal, j->local, &j->a->ctx->log, j->offered);
    free(places);
    return rc;
}

static int is_remote(const joining *j, int a, int b)
{
    return a != b && (j->hosts == 1 || j->host[a] != j->host[b]);
}

static uint32_t bits_of(const uint8_t *rails, int count)
{
    uint32_t bits = 0;
    for (int k = 0; k < count; k++)
        bits |= 1u << rails[k];
    return bits;
}

/* Can all ranks that need it talk over this wire? And over which of their rails? Every rank comes to the same. */
static int wire_works(joining *j, int wire, char *why, size_t room)
{
    gsi_net_pairs pairs;
    char reason[200];
    int n = j->a->n;

    memset(j->used, 0, (size_t)n * sizeof *j->used);
    for (int a = 0; a < n; a++)
        for (int b = a + 1; b < n; b++) {
            if (!is_remote(j, a, b))
                continue;
            if (gsi_offer_pair(wire, &j->offers[a], &j->offers[b], 1, &pairs, NULL, reason, sizeof reason)) {
                j->used[a] |= bits_of(pairs.mine, pairs.count);
                j->used[b] |= bits_of(pairs.theirs, pairs.count);
                continue;
            }
            const gsi_offer *lacks = !j->offers[a].nverbs ? &j->offers[a] : &j->offers[b];
            int who = lacks == &j->offers[a] ? a : b;
            if (wire == GSI_WIRE_VERBS && !lacks->nverbs)
                snprintf(why, room, "rank %d on %.63s: %.199s", who, j->addresses[who].shm.host, lacks->no_verbs);
            else
                snprintf(why, room, "ranks %d (%.63s) and %d (%.63s): %.190s", a, j->addresses[a].shm.host, b,
                         j->addresses[b].shm.host, reason);
            return 0;
        }
    return 1;
}

/* RDMA if it reaches everybody, else TCP, which is never taken in silence. */
static int choose_wire(joining *j)
{
    char why[400];
    const gsi_log *log = &j->a->ctx->log;

    if (j->hosts == 1 && j->forced == GSI_WIRE_NONE)
        return 0;
    if (j->forced != GSI_WIRE_TCP) {
        if (wire_works(j, GSI_WIRE_VERBS, j->no_verbs, sizeof j->no_verbs)) {
            j->wire = GSI_WIRE_VERBS;
            return 0;
        }
        if (j->forced == GSI_WIRE_VERBS)
            return gsi_fail(GRADSYNC_ERR_UNSUPPORTED,
                            "no RDMA between all ranks: %.300s (transport verbs was asked for; "
                            "gradsync-doctor looks for the cause)",
                            j->no_verbs);
        if (j->strict)
            return gsi_fail(GRADSYNC_ERR_UNSUPPORTED,
                            "no RDMA between all ranks, and a strict context takes no TCP instead: %.300s",
                            j->no_verbs);
    }
    if (!wire_works(j, GSI_WIRE_TCP, why, sizeof why))
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED,
                        "no network interfaces that can reach each other: %.300s (choose them by "
                        "GRADSYNC_IFNAME)",
                        why);
    j->wire = GSI_WIRE_TCP;
    if (j->forced == GSI_WIRE_NONE)
        gsi_logf(
            log, GRADSYNC_LOG_WARN,
            "ranks on other hosts are reached by TCP, at a fraction of RDMA's speed: %s (gradsync-doctor looks for "
            "the cause; transport \"tcp\" accepts it)",
            j->no_verbs);
    return 0;
}

static int exchange_offers(joining *j, int rc)
{
    gradsync_error_info info;

    if (!rc)
        rc = make_offer(j);

    j->offered->offer.status = rc;
    if (rc)
        snprintf(j->offered->offer.error, sizeof j->offered->offer.error, "%.199s", last_message(&info));
    int exchanged = exchange(j, &j->offered->offer, j->offers, sizeof *j->offers);
    if (rc || exchanged)
        return rc ? gsi_fail_info(&info) : exchanged;
    for (int r = 0; r < j->a->n; r++)
        if (j->offers[r].status)
            return gsi_fail(j->offers[r].status, "rank %d cannot join: %.200s", r, j->offers[r].error);
    return choose_wire(j);
}

/* ---- Shared memory inside the host ------------------------------------------------------------ */

static int make_shm(joining *j)
{
    gsi_shm_peer *peers = gsi_calloc((size_t)j->nlocal, sizeof *peers);
    int at = 0;

    if (!peers)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for %d ranks", j->nlocal);
    for (int r = 0; r < j->a->n; r++)
        if (j->host[r] == j->host[j->a->rank])
            peers[at++] = j->addresses[r].shm;
    int rc = gsi_shm_create(j->listen_fd, j->local, j->nlocal, peers, j->a->deadline_ns, &j->a->ctx->log, &j->shm);
    j->listen_fd = -1;
    free(peers);
    return rc;
}

/* ---- Round 3: connections ------------------------------------------------------------------------ */

/* The place of a rail of the offer among those that are opened. */
static uint8_t place_of(uint32_t used, int rail)
{
    return (uint8_t)__builtin_popcount(used & ((1u << rail) - 1));
}

/* Which rails are used with whom; returns the most connections that any rail has. */
static int pair_up(joining *j, int my_gids[GSI_NET_RAILS])
{
    int rank = j->a->rank, most = 0, used[GSI_NET_RAILS] = {0};
    char why[200];

    for (int i = 0; i < GSI_NET_RAILS; i++)
        my_gids[i] = -1;
    for (int r = 0; r < j->a->n; r++) {
        if (!is_remote(j, rank, r))
            continue;
        gsi_offer_pair(j->wire, &j->offers[rank], &j->offers[r], j->offered->settings.qps_per_connection, &j->pairs[r],
                       my_gids, why, sizeof why);
        for (int k = 0; k < j->pairs[r].count; k++) {
            uint8_t *mine = &j->pairs[r].mine[k], *theirs = &j->pairs[r].theirs[k];
            *mine = place_of(j->used[rank], *mine);
            *theirs = place_of(j->used[r], *theirs);
            if (++used[*mine] > most)
                most = used[*mine];
        }
    }
    return most;
}

static int prepare_net(joining *j, plug *own)
{
    int n = j->a->n, my_gids[GSI_NET_RAILS];
    gsi_net_peer *peers = gsi_calloc((size_t)n, sizeof *peers);
    gsi_net_config config = {.rank = j->a->rank,
                             .n = n,
                             .pairs = j->pairs,
                             .peers = peers,
                             /* Also where this rank is alone on its host: all ranks must make the same plans. */
                             .host = j->hosts > 1 ? j->host : NULL,
                             .local_rank = j->local,
                             .local_ranks = j->nlocal,
                             .log = &j->a->ctx->log};

    if (!peers)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for %d ranks", n);
    for (int r = 0; r < n; r++) {
        peers[r].pid = j->addresses[r].shm.address.pid;
        memcpy(peers[r].host, j->addresses[r].shm.host, sizeof peers[r].host);
    }
    if (j->shm)
        config.stage = j->shm->ops->stage(j->shm, j->shm->rank);
    if (j->hosts > 1 && n > j->hosts) { /* some ranks share memory: then all have as much as these */
        config.stage_bytes = GSI_SHM_STAGE_BYTES;
        config.slot_bytes = GSI_SHM_SLOT_BYTES;
    }
    int most = pair_up(j, my_gids);
    int rc = gsi_offer_open(j->offered, j->wire, j->used[j->a->rank], my_gids, most, &config);
    if (!rc)
        rc = gsi_net_prepare(&config, &own->card, own->rows, &j->net);
    free(peers);
    return rc;
}

/* What all ranks say of this one. */
static int connect_net(joining *j, const char *plugs)
{
    int n = j->a->n, rc = 0;
    gsi_net_card *cards = gsi_calloc((size_t)n, sizeof *cards);
    gsi_net_row *rows = gsi_calloc((size_t)n, sizeof *rows);

    if (!cards || !rows)
        rc = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the connections to %d ranks", n);
    for (int r = 0; !rc && r < n; r++) {
        const plug *p = (const plug *)(plugs + (size_t)r * plug_bytes(j->rows));
        cards[r] = p->card;
        rows[r] = p->rows[j->a->rank];
    }
    if (!rc)
        rc = gsi_net_join(j->net, cards, rows);
    if (!rc)
        rc = gsi_net_prove(j->net, j->a->deadline_ns);
    free(cards);
    free(rows);
    return rc;
}

static int exchange_plugs(joining *j, int rc)
{
    size_t bytes = plug_bytes(j->rows);
    plug *own = gsi_calloc(1, bytes);
    char *all = gsi_calloc((size_t)j->a->n, bytes);
    gradsync_error_info info;

    if (!own || !all) {
        free(own);
        free(all);
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the connections to %d ranks", j->a->n);
    }
    if (!rc && j->wire != GSI_WIRE_NONE)
        rc = prepare_net(j, own);
    own->card.status = rc;
    if (rc)
        snprintf(own->error, sizeof own->error, "%.199s", last_message(&info));
    int exchanged = exchange(j, own, all, bytes);
    if (rc)
        gsi_fail_info(&info);
    else
        rc = exchanged;
    for (int r = 0; !rc && r < j->a->n; r++) {
        const plug *p = (const plug *)(all + (size_t)r * bytes);
        if (p->card.status)
            rc = gsi_fail(p->card.status, "rank %d cannot join: %.200s", r, p->error);
    }
    if (!rc && j->wire != GSI_WIRE_NONE)
        rc = connect_net(j, all);
    free(own);
    free(all);
    return rc;
}

/* ---- Last round: outcomes ------------------------------------------------------------------------- */

/* Either all have made it or none has. */
static int exchange_outcomes(joining *j, int rc)
{
    if (j->listen_fd >= 0) /* nobody is to wait for this rank to answer there */
        close(j->listen_fd);
    j->listen_fd = -1;

    gradsync_error_info info;
    gsi_outcome own = {rc, ""}, *all = gsi_calloc((size_t)j->a->n, sizeof *all);

    last_message(&info);
    if (!all)
        return rc ? rc : gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for %d ranks", j->a->n);
    if (rc)
        snprintf(own.error, sizeof own.error, "%.199s", info.message);
    int exchanged = exchange(j, &own, all, sizeof own);
    if (rc)
        gsi_fail_info(&info);
    else
        rc = exchanged ? exchanged : gsi_outcomes_check(all, j->a->rank, j->a->n);
    free(all);
    return rc;
}

/* ---- All together ----------------------------------------------------------------------------------- */

static int wire_of_name(const char *name)
{
    return !strcmp(name, "verbs") ? GSI_WIRE_VERBS : !strcmp(name, "tcp") ? GSI_WIRE_TCP : GSI_WIRE_NONE;
}

static void name_transport(const joining *j, gsi_connected *out)
{
    static const char *const wires[] = {"", "verbs", "tcp"};

    int shared = j->wire == GSI_WIRE_NONE || (j->hosts > 1 && j->nlocal > 1);

    snprintf(out->transport, sizeof out->transport, "%s%s%s", shared ? "shm" : "", shared && j->wire ? "+" : "",
             wires[j->wire]);
    if (j->a->n == 1)
        snprintf(out->transport, sizeof out->transport, "self");
}

/* Everything behind the exchange of addresses; the rounds go on whatever happens. */
static int make_endpoints(joining *j, int rc)
{
    j->far = j->a->rows > 0;
    if (!rc)
        find_hosts(j);
    j->rows = j->a->rows ? j->a->rows : j->a->n;
    if (j->far)
        rc = exchange_offers(j, rc);
    if (!rc && (j->wire == GSI_WIRE_NONE || (j->hosts > 1 && j->nlocal > 1)))
        rc = make_shm(j);
    if (j->far)
        rc = exchange_plugs(j, rc);
    if (!rc && j->shm && j->net) {
        gsi_endpoint *span = NULL;
        rc = gsi_span_create(j->shm, j->net, j->host, &span);
        j->shm = j->net = NULL;
        if (!rc)
            j->net = span;
    }
    return rc;
}

int gsi_connect(const gsi_connect_args *a, gsi_connected *out)
{
    size_t n = (size_t)a->n;
    joining j = {.a = a, .forced = wire_of_name(a->ctx->transport), .listen_fd = -1};
    gsi_shm_address shm = {0};
    int rc = a->status, exchanged = 0;

    memset(out, 0, sizeof *out);
    if (!rc)
        rc = shm_listen(&j.listen_fd, &shm);
    j.addresses = gsi_calloc(n, sizeof *j.addresses);
    j.host = gsi_calloc(n, sizeof *j.host);
    j.offered = gsi_calloc(1, sizeof *j.offered);
    j.offers = gsi_calloc(n, sizeof *j.offers);
    j.pairs = gsi_calloc(n, sizeof *j.pairs);
    j.used = gsi_calloc(n, sizeof *j.used);
    if (!j.addresses || !j.host || !j.offered || !j.offers || !j.pairs || !j.used)
        rc = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for %d ranks", a->n);
    else
        rc = exchange_addresses(&j, rc, &shm, &exchanged);
    if (!rc)
        memcpy(&out->id, j.addresses[0].shm.address.name, sizeof out->id); /* random, and different every time */
    if (exchanged) {
        rc = make_endpoints(&j, rc);
        rc = exchange_outcomes(&j, rc);
    }
    out->ep = j.net ? j.net : j.shm;
    if (rc && j.net)
        j.net->ops->destroy(j.net);
    if (rc && j.shm)
        j.shm->ops->destroy(j.shm);
    if (rc)
        out->ep = NULL;
    else
        gsi_span_start(out->ep);
    if (!rc)
        name_transport(&j, out);
    out->strict = j.strict;
    out->far = j.far;
    if (j.listen_fd >= 0)
        close(j.listen_fd);
    free(j.addresses);
    free(j.host);
    free(j.offered);
    free(j.offers);
    free(j.pairs);
    free(j.used);
    return rc;
}
