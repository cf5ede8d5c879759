/* SPDX-License-Identifier: Apache-2.0 */
/* Making an endpoint between hosts, proving its connections, and ending it. */
#include "transport/net/create.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/process.h"
#include "transport/net/net.h"

/* How long a connection may stay behind when another one to the same peer has proved itself, and how long what is in
 * flight at the end may take. */
static const int64_t patience_ns = 3000000000, linger_ns = 1000000000;

/* ---- Memory ------------------------------------------------------------------------ */

static uint64_t round_up(uint64_t bytes)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

/* One mapping: inboxes, what is sent from, bounce buffers, and the stage where nobody gave one. */
static int make_area(net_endpoint *ep, void *stage)
{
    uint64_t n = (uint64_t)ep->base.n, inboxes = round_up(n * sizeof(net_inbox)), out = round_up(sizeof(net_outbox)),
             mail = round_up(n * sizeof(net_outmail)), bounces = (uint64_t)NET_BOUNCES * NET_BOUNCE_BYTES,
             own = inboxes + out + mail + bounces;

    ep->map_bytes = own + (stage ? 0 : ep->base.stage_bytes);
    ep->map = mmap(NULL, ep->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ep->map == MAP_FAILED) {
        ep->map = NULL;
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the buffers of %d ranks on other hosts", ep->base.n);
    }
    /* A hint: with rails on several nodes that of the first, which carries the small messages. */
    gsi_host_prefer_node(ep->map, ep->map_bytes, ep->rails[0].rail->numa_node);
    ep->inboxes = (net_inbox *)ep->map;
    ep->out = (net_outbox *)(ep->map + inboxes);
    ep->outmail = (net_outmail *)(ep->map + inboxes + out);
    ep->bounces = ep->map + inboxes + out + mail;
    ep->stage = stage ? stage : ep->map + own;
    for (int i = 0; i < NET_BOUNCES; i++)
        ep->free_bounces[i] = i;
    ep->nfree_bounces = NET_BOUNCES;
    int rc = net_memory_register(ep, &ep->area_memory, ep->map, own);
    return rc ? rc : net_memory_register(ep, &ep->stage_memory, ep->stage, ep->base.stage_bytes);
}

static void fill_card(const net_endpoint *ep, gsi_net_card *card)
{
    memset(card, 0, sizeof *card);
    card->area = (uint64_t)(uintptr_t)ep->area_memory.base;
    card->stage = (uint64_t)(uintptr_t)ep->stage_memory.base;
    card->nrails = ep->nrails;
    for (int r = 0; r < ep->nrails; r++) {
        card->area_keys[r] = ep->area_memory.regions[r].remote_key;
        card->stage_keys[r] = ep->stage_memory.regions[r].remote_key;
    }
}

/* ---- Connections ---------------------------------------------------------------------- */

static int make_connections(net_endpoint *ep, const gsi_net_config *config, gsi_net_row *row)
{
    for (int r = 0; r < ep->base.n; r++) {
        const gsi_net_pairs *pairs = &config->pairs[r];
        net_peer *peer = &ep->peers[r];
        for (int k = 0; k < pairs->count && k < GSI_NET_CONNS; k++) {
            net_conn *conn = &peer->conns[k];
            if (pairs->mine[k] >= ep->nrails)
                return gsi_fail(GRADSYNC_ERR_INTERNAL, "a connection to rank %d names rail %d of %d", r, pairs->mine[k],
                                ep->nrails);
            gsi_rail *rail = ep->rails[pairs->mine[k]].rail;
            conn->rail = pairs->mine[k];
            conn->peer_rail = pairs->theirs[k];
            int rc = rail->ops->conn(rail, (uint32_t)(r * GSI_NET_CONNS + k), &conn->conn, &row[r].conns[k]);
            if (rc)
                return rc;
            conn->state = NET_CONN_NEW;
            peer->nconns = k + 1;
        }
    }
    return 0;
}

int gsi_net_prepare(const gsi_net_config *config, gsi_net_card *card, gsi_net_row *row, gsi_endpoint **out)
{
    int rc = 0, n = config->n;
    uint64_t slots = config->slot_bytes;
    net_endpoint *ep = gsi_calloc(1, sizeof *ep);

    *out = NULL;
    if (!ep) {
        for (int r = 0; r < config->nrails; r++)
            config->rails[r]->ops->close(config->rails[r]);
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for %d ranks", n);
    }
    ep->base = (gsi_endpoint){.ops = &net_ops,
                              .rank = config->rank,
                              .n = n,
                              .lanes = NET_LANES,
                              .slot_bytes = slots && slots < NET_SLOT_BYTES ? slots : NET_SLOT_BYTES,
                              .stage_bytes = config->stage_bytes ? config->stage_bytes : NET_STAGE_BYTES,
                              .whole_memory = !config->stage,
                              .local_rank = config->local_rank,
                              .local_ranks = config->local_ranks,
                              .log = config->log};
    ep->process = gsi_process();
    ep->nrails = config->nrails;
    for (int r = 0; r < ep->nrails; r++) {
        ep->rails[r].rail = config->rails[r];
        snprintf(ep->rails[r].reason, sizeof ep->rails[r].reason, "%s", config->reasons[r] ? config->reasons[r] : "");
    }
    *out = &ep->base; /* from here on destroy() frees it */
    ep->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    ep->peers = gsi_calloc((size_t)n, sizeof *ep->peers);
    if (ep->wake_fd < 0)
        return gsi_fail(GRADSYNC_ERR_SYSTEM,
                        "no file descriptor to sleep on; raise the limit of open files (ulimit -n)");
    int32_t *host = config->host ? gsi_calloc((size_t)n, sizeof *host) : NULL;
    if (host)
        memcpy(host, config->host, (size_t)n * sizeof *host);
    ep->base.host = host;
    if (!ep->peers || (config->host && !host))
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for %d ranks", n);
    rc = make_area(ep, config->stage);
    if (rc)
        return rc;
    for (int r = 0; r < n; r++) {
        net_peer *peer = &ep->peers[r];
        peer->rank = r;
        peer->in = &ep->inboxes[r];
        peer->out = &ep->outmail[r];
        peer->pid = config->peers[r].pid;
        memcpy(peer->host, config->peers[r].host, sizeof peer->host);
        peer->host[sizeof peer->host - 1] = 0;
    }
    fill_card(ep, card);
    return make_connections(ep, config, row);
}

int gsi_net_join(gsi_endpoint *base, const gsi_net_card *cards, const gsi_net_row *theirs)
{
    net_endpoint *ep = net_of(base);

    for (int r = 0; r < base->n; r++) {
        net_peer *peer = &ep->peers[r];
        peer->area = cards[r].area;
        peer->stage = cards[r].stage;
        peer->nrails = cards[r].nrails;
        peer->inbox = (uint64_t)base->rank * sizeof(net_inbox);
        memcpy(peer->area_keys, cards[r].area_keys, sizeof peer->area_keys);
        memcpy(peer->stage_keys, cards[r].stage_keys, sizeof peer->stage_keys);
        for (int k = 0; k < peer->nconns; k++) {
            net_conn *conn = &peer->conns[k];
            gsi_rail *rail = ep->rails[conn->rail].rail;
            int rc = rail->ops->connect(conn->conn, &theirs[r].conns[k]);
            if (!rc)
                continue;
            if (rc == GRADSYNC_ERR_NOMEM || peer->nconns == 1)
                return rc;
            gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
            gradsync_last_error(&info);
            net_conn_failed(ep, peer, conn, info.message);
            gsi_logf(base->log, GRADSYNC_LOG_WARN, "rail %s does not reach rank %d (%s); it is left out", rail->name, r,
                     info.message);
        }
    }
    return 0;
}

/* 1 if the connection works in both directions. */
static int prove(net_endpoint *ep, net_peer *peer, net_conn *conn)
{
    if (conn->state == NET_CONN_NEW) {
        int ready = ep->rails[conn->rail].rail->ops->ready(conn->conn);
        if (ready == 0)
            return 0;
        gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
        if (ready < 0) {
            gradsync_last_error(&info);
            snprintf(peer->why, sizeof peer->why, "%.150s", info.message);
            net_conn_failed(ep, peer, conn, info.message);
            return 0;
        }
        conn->state = NET_CONN_UP;
        if (net_tell_on(ep, peer, conn, net_imm(NET_CONTROL, NET_HELLO)))
            return 0;
    }
    return conn->state == NET_CONN_UP && conn->heard && conn->reached;
}

static int count_proven(const net_peer *peer, int *waiting)
{
    int proven = 0;
    for (int k = 0; k < peer->nconns; k++) {
        const net_conn *conn = &peer->conns[k];
        int good = conn->state == NET_CONN_UP && conn->heard && conn->reached;
        proven += good;
        *waiting += !good && conn->state != NET_CONN_DEAD;
    }
    return proven;
}

static void leave_out(net_endpoint *ep, net_peer *peer)
{
    for (int k = 0; k < peer->nconns; k++) {
        net_conn *conn = &peer->conns[k];
        if (conn->state == NET_CONN_DEAD || (conn->state == NET_CONN_UP && conn->heard && conn->reached))
            continue;
        gsi_logf(ep->base.log, GRADSYNC_LOG_WARN,
                 "rail %s does not reach rank %d in both directions; it is left out: look for a cable, a switch or "
                 "routes that drop its packets",
                 ep->rails[conn->rail].rail->name, peer->rank);
        net_conn_failed(ep, peer, conn, "it has not proved itself");
    }
}

/* 1 done, 0 not yet, or an error. */
static int prove_peer(net_endpoint *ep, net_peer *peer, int patient)
{
    int waiting = 0;

    for (int k = 0; k < peer->nconns; k++)
        prove(ep, peer, &peer->conns[k]);
    int proven = count_proven(peer, &waiting);
    if (!proven && !waiting)
        return gsi_fail(GRADSYNC_ERR_DEVICE, "no rail reaches rank %d on %.63s: %s", peer->rank, peer->host,
                        peer->why[0] ? peer->why : "every connection failed; gradsync-doctor looks for the cause");
    if (proven && waiting && !patient)
        leave_out(ep, peer);
    return proven && (!waiting || !patient);
}

int gsi_net_prove(gsi_endpoint *base, int64_t deadline_ns)
{
    net_endpoint *ep = net_of(base);
    int64_t since = gsi_now_ns();

    for (;;) {
        int all = 1, last = -1;
        int64_t now = gsi_now_ns();
        net_poll(ep);
        for (int r = 0; r < base->n; r++) {
            int rc = ep->peers[r].nconns ? prove_peer(ep, &ep->peers[r], now - since < patience_ns) : 1;
            if (rc < 0)
                return rc;
            if (!rc)
                all = 0, last = r;
        }
        if (all)
            break;
        if (now > deadline_ns)
            return gsi_fail(GRADSYNC_ERR_TIMEOUT,
                            "rank %d on %.63s could not be reached on any rail in time; gradsync-doctor looks for the "
                            "cause (link down, wrong GID or subnet, firewall)",
                            last, ep->peers[last].host);
        struct pollfd fds[GSI_NET_FDS];
        net_sleep_briefly(ep, fds);
    }
    net_idle(ep); /* a peer may still wait for an acknowledgement */
    ep->moved = 0;
    return 0;
}

/* ---- The end ------------------------------------------------------------------------------ */

static int busy(const net_endpoint *ep)
{
    for (int r = 0; r < ep->base.n; r++) {
        const net_peer *peer = &ep->peers[r];
        if (peer->left || peer->lost)
            continue;
        for (int k = 0; k < peer->nconns; k++)
            if (peer->conns[k].closing || peer->conns[k].posted.head)
                return 1;
        if (peer->nconns && (peer->urgent.head || peer->bulk.head))
            return 1;
    }
    return 0;
}

/* Tells the peers, and lets what is in flight arrive: a peer may need it to finish. Who has left needs nothing. */
static void say_goodbye(net_endpoint *ep)
{
    int64_t until = gsi_now_ns() + linger_ns;
    struct pollfd fds[GSI_NET_FDS];

    net_poll(ep);
    net_tell_done(ep); /* or who still waits for somebody else would take this rank for missing */
    for (int r = 0; r < ep->base.n; r++) {
        net_peer *peer = &ep->peers[r];
        for (int k = 0; k < peer->nconns && !peer->left && !peer->lost; k++)
            if (peer->conns[k].state == NET_CONN_UP) {
                net_tell_last(ep, peer, net_imm(NET_CONTROL, NET_BYE));
                break;
            }
    }
    while (busy(ep) && gsi_now_ns() < until) {
        net_sleep_briefly(ep, fds);
        net_poll(ep);
    }
}

void net_sleep_briefly(net_endpoint *ep, struct pollfd *fds)
{
    struct timespec brief = {0, 1000000};

    for (int r = 0; r < ep->nrails; r++)
        ep->rails[r].rail->ops->arm(ep->rails[r].rail);
    if (!net_poll(ep))
        ppoll(fds, (nfds_t)gsi_net_fds(&ep->base, fds), &brief, NULL);
    for (int r = 0; r < ep->nrails; r++)
        ep->rails[r].rail->ops->disarm(ep->rails[r].rail);
}

static void free_queue(net_queue *queue)
{
    while (queue->head) {
        net_work *work = queue->head;
        queue->head = work->next;
        free(work);
    }
}

void net_free(net_endpoint *ep)
{
    int own = ep->process == gsi_process(); /* a forked child must not speak for its parent */

    if (own && ep->peers && ep->map)
        say_goodbye(ep);
    for (int r = 0; ep->peers && r < ep->base.n; r++) {
        net_peer *peer = &ep->peers[r];
        for (int k = 0; k < peer->nconns; k++) {
            if (own && peer->conns[k].conn)
                ep->rails[peer->conns[k].rail].rail->ops->disconnect(peer->conns[k].conn);
            free_queue(&peer->conns[k].posted);
        }
        free_queue(&peer->urgent);
        free_queue(&peer->bulk);
        free(peer->remotes);
    }
    if (own)
        net_free_memories(ep);
    for (int r = 0; own && r < ep->nrails; r++)
        ep->rails[r].rail->ops->close(ep->rails[r].rail);
    while (ep->tickets) {
        net_ticket *next = ep->tickets->next;
        free(ep->tickets);
        ep->tickets = next;
    }
    while (ep->free_tickets) {
        net_ticket *next = ep->free_tickets->next;
        free(ep->free_tickets);
        ep->free_tickets = next;
    }
    net_queue rest = {ep->free_work, NULL};
    free_queue(&rest);
    if (ep->wake_fd >= 0)
        close(ep->wake_fd);
    if (ep->map && own)
        munmap(ep->map, ep->map_bytes);
    free((void *)(uintptr_t)ep->base.host);
    free(ep->peers);
    free(ep);
}
