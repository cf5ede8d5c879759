/* SPDX-License-Identifier: Apache-2.0 */
/* Work on connections: queued, cut into pieces, posted, completed, and posted again when a connection dies. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "transport/net/net.h"

enum {
    EVENTS = 16,
    QUIET = 15,               /* so many works in a row ask for no SENT */
    SMALL_BYTES = 32 << 10,   /* not worth being split over rails */
    PIECE_BYTES = 512 << 10,  /* the longest piece where there are several connections */
    LONE_BYTES = 1 << 20,     /* and where there is one */
    SAMPLE_BYTES = 64 << 10,  /* a rate is measured over at least so many */
    WINDOW_BYTES = 512 << 10, /* in flight on a connection whose rate is not known */
};
/* What is in flight on a connection is what it can do in this time: more would only wait in the port's queue, where
 * acknowledgements of the other direction wait behind it, and could not go by another rail any more. */
static const double window_ns = 4e6;
static const uint64_t least_window = 256 << 10, most_window = 8 << 20;

/* ---- Queues ----------------------------------------------------------------------- */

net_work *net_work_new(net_endpoint *ep)
{
    net_work *work = ep->free_work;
    if (work)
        ep->free_work = work->next;
    else
        work = gsi_calloc(1, sizeof *work);
    if (work) {
        memset(work, 0, sizeof *work);
        work->bounce = -1;
    }
    return work;
}

void net_work_free(net_endpoint *ep, net_work *work)
{
    if (work->bounce >= 0)
        ep->free_bounces[ep->nfree_bounces++] = work->bounce;
    if (work->memory)
        net_memory_put(ep, work->memory);
    work->next = ep->free_work;
    ep->free_work = work;
}

static void append(net_queue *queue, net_work *work)
{
    work->next = NULL;
    if (queue->tail)
        queue->tail->next = work;
    else
        queue->head = work;
    queue->tail = work;
}

static net_work *take(net_queue *queue)
{
    net_work *work = queue->head;
    queue->head = work->next;
    if (!queue->head)
        queue->tail = NULL;
    return work;
}

/* `front` goes before what is queued. */
static void prepend(net_queue *queue, net_queue *front)
{
    if (!front->head)
        return;
    front->tail->next = queue->head;
    if (!queue->head)
        queue->tail = front->tail;
    queue->head = front->head;
    *front = (net_queue){0};
}

void net_queue_urgent(net_endpoint *ep, net_peer *peer, net_work *work)
{
    append(&peer->urgent, work);
    net_pump(ep, peer);
}

void net_queue_bulk(net_endpoint *ep, net_peer *peer, net_work *work)
{
    append(&peer->bulk, work);
    net_pump(ep, peer);
}

static void tell(net_endpoint *ep, net_peer *peer, uint32_t imm, int ask)
{
    net_work *work = net_work_new(ep);
    if (!work) {
        net_peer_lost(ep, peer, "no memory for a message to it");
        return;
    }
    work->imm = imm;
    work->has_imm = 1;
    work->ask = ask != 0;
    net_queue_urgent(ep, peer, work);
}

void net_tell(net_endpoint *ep, net_peer *peer, uint32_t imm)
{
    tell(ep, peer, imm, 0);
}

void net_tell_last(net_endpoint *ep, net_peer *peer, uint32_t imm)
{
    tell(ep, peer, imm, 1);
}

/* ---- Flows -------------------------------------------------------------------------- */

/* A number is through. */
static void note_sent(net_flow *flow, uint32_t number)
{
    uint32_t ahead = number - flow->base - 1;

    if (ahead >= NET_WINDOW)
        return;
    flow->seen |= (uint64_t)1 << ahead;
    for (; flow->seen & 1; flow->seen >>= 1)
        flow->base++;
}

static net_flow *flow_of(net_peer *peer, const net_work *work)
{
    return &peer->tx[work->seq % NET_LANES][work->stream];
}

/* ---- Posting -------------------------------------------------------------------------- */

static double rate_of(const net_endpoint *ep, const net_conn *conn)
{
    if (conn->rate > 0)
        return conn->rate;
    double gbps = ep->rails[conn->rail].rail->gbps;
    return gbps > 0 ? gbps / 8 : 1;
}

static uint64_t window_of(const net_conn *conn)
{
    double bytes = conn->rate > 0 ? conn->rate * window_ns : WINDOW_BYTES;
    return bytes < (double)least_window ? least_window : bytes > (double)most_window ? most_window : (uint64_t)bytes;
}

static int has_credit(const net_peer *peer, const net_conn *conn, uint64_t spare)
{
    uint64_t taken =
        atomic_load_explicit(&peer->in->credits[conn - peer->conns], memory_order_acquire); /* written by the peer */
    return conn->sent_imm - taken < NET_RECV_DEPTH - spare;
}

/* Where a work goes: address and key for the peer's side of the connection. 0, or -1: the peer has let go of it. */
static int aim(const net_peer *peer, const net_conn *conn, const net_work *work, gsi_rail_work *out)
{
    const net_remote *remote;

    switch (work->space) {
    case NET_TO_AREA:
        out->remote = peer->area + work->off;
        out->remote_key = peer->area_keys[conn->peer_rail];
        return 0;
    case NET_TO_STAGE:
        out->remote = peer->stage + work->off;
        out->remote_key = peer->stage_keys[conn->peer_rail];
        return 0;
    default:
        remote = net_remote_find(peer, work->mem);
        if (!remote)
            return -1;
        out->remote = remote->base + work->off;
        out->remote_key = remote->keys[conn->peer_rail];
        return 0;
    }
}

static void post(net_endpoint *ep, net_peer *peer, net_conn *conn, net_work *work)
{
    gsi_rail *rail = ep->rails[conn->rail].rail;
    gsi_rail_work w = {.local = work->local, .bytes = work->bytes, .id = (uint64_t)(uintptr_t)work, .imm = work->imm};

    if (aim(peer, conn, work, &w)) {
        if (work->ticket)
            net_ticket_done(work->ticket, GRADSYNC_ERR_INVALID);
        else
            net_peer_lost(ep, peer, "it let go of memory that is still being written to");
        net_work_free(ep, work);
        return;
    }
    if (work->has_imm) {
        w.flags = GSI_RAIL_IMM | GSI_RAIL_SOLICIT;
        work->ordinal = (uint32_t)++conn->sent_imm;
    }
    if (!work->read && work->bytes && work->bytes <= rail->max_inline)
        w.flags |= GSI_RAIL_INLINE;
    else if (work->bytes)
        w.region = work->bounce >= 0 ? &ep->area_memory.regions[conn->rail] : &work->memory->regions[conn->rail];
    /* What has a source to be freed asks; so does everything where pieces go over several connections, since the
     * windows of their flows wait for them. */
    work->signalled =
        work->ask || work->ticket || (work->data && (work->bytes || peer->nconns > 1)) || conn->quiet >= QUIET;
    if (work->signalled)
        w.flags |= GSI_RAIL_SIGNAL;
    conn->quiet = work->signalled ? 0 : conn->quiet + 1;
    conn->in_flight++;
    /* Only what asks: small messages that do not are told of with some later one, perhaps much later, and must neither
     * keep the window full until then nor make the rate look low. */
    if (work->signalled && work->bytes) {
        if (!conn->in_flight_bytes)
            conn->busy_ns = gsi_now_ns(), conn->sampled = 0;
        conn->in_flight_bytes += work->bytes;
    }
    append(&conn->posted, work);
    const gsi_rail_ops *ops = rail->ops;
    if (work->read ? ops->read(conn->conn, &w) : ops->write(conn->conn, &w))
        net_conn_failed(ep, peer, conn, "it takes no more work");
}

/* The connection that what is not data goes by: the first that is alive, so that it stays in order. */
static net_conn *home_of(net_peer *peer)
{
    for (int c = 0; c < peer->nconns; c++)
        if (peer->conns[c].state == NET_CONN_UP)
            return &peer->conns[c];
    return NULL;
}

/* What is queued must not overtake what was in flight on a connection that died. */
static int is_held(const net_peer *peer)
{
    for (int k = 0; k < peer->nconns; k++)
        if (peer->conns[k].state == NET_CONN_DEAD && peer->conns[k].posted.head)
            return 1;
    return 0;
}

static void pump_urgent(net_endpoint *ep, net_peer *peer)
{
    net_conn *conn;

    if (is_held(peer))
        return;

    while (peer->urgent.head && (conn = home_of(peer))) {
        if (conn->in_flight >= NET_SEND_DEPTH || (peer->urgent.head->has_imm && !has_credit(peer, conn, 0)))
            return;
        post(ep, peer, conn, take(&peer->urgent));
    }
}

/* How much of a put one connection should take next. */
static uint64_t piece_bytes(const net_peer *peer, const gsi_rail *rail, uint64_t left, double share)
{
    uint64_t most = peer->nconns == 1 ? LONE_BYTES : PIECE_BYTES, bytes = left;

    if (peer->nconns > 1 && left > SMALL_BYTES) {
        bytes = (uint64_t)((double)left * share);
        bytes = (bytes + 4095) & ~(uint64_t)4095;
        if (bytes < SMALL_BYTES)
            bytes = SMALL_BYTES;
    }
    if (bytes > most)
        bytes = most;
    if (rail->max_bytes && bytes > rail->max_bytes)
        bytes = rail->max_bytes;
    /* A last bit is not worth a piece of its own. */
    uint64_t rest = left - (bytes < left ? bytes : left);
    int whole = rest < SMALL_BYTES / 4 && left <= 2 * most && (!rail->max_bytes || left <= rail->max_bytes);
    return whole ? left : bytes;
}

/* The connection that would have the next piece at the peer first; NULL if that one has no room now. */
static net_conn *choose(net_endpoint *ep, net_peer *peer, const net_work *work, uint64_t *bytes)
{
    net_conn *best = NULL;
    double best_ns = 0, sum = 0;

    for (int c = 0; c < peer->nconns; c++)
        if (peer->conns[c].state == NET_CONN_UP)
            sum += rate_of(ep, &peer->conns[c]);
    for (int c = 0; c < peer->nconns; c++) {
        net_conn *conn = &peer->conns[c];
        if (conn->state != NET_CONN_UP)
            continue;
        double rate = rate_of(ep, conn);
        uint64_t piece =
            work->numbered ? work->bytes : piece_bytes(peer, ep->rails[conn->rail].rail, work->bytes, rate / sum);
        double ns = (double)(conn->in_flight_bytes + piece) / rate;
        if (!best || ns < best_ns) {
            best = conn;
            best_ns = ns;
            *bytes = piece;
        }
    }
    if (!best || best->in_flight >= NET_SEND_DEPTH - NET_SEND_SPARE ||
        (best->in_flight_bytes && best->in_flight_bytes + *bytes > window_of(best)) ||
        (work->has_imm && !has_credit(peer, best, NET_RECV_SPARE)))
        return NULL;
    return best;
}

/* Copies what the rails do not know to memory that they do. 0 if there is no room now. */
static int bounce(net_endpoint *ep, net_work *work)
{
    if (!ep->nfree_bounces)
        return 0;
    work->bounce = (int16_t)ep->free_bounces[--ep->nfree_bounces];
    char *room = ep->bounces + (uint64_t)work->bounce * NET_BOUNCE_BYTES;
    if (work->read)
        work->user = work->local;
    else
        memcpy(room, work->local, work->bytes);
    work->local = room;
    return 1;
}

/* Cuts the first `bytes` off a work: the piece is new, the rest keeps its place. NULL: no memory now. */
static net_work *cut(net_endpoint *ep, net_peer *peer, net_work *work, uint64_t bytes)
{
    net_work *piece = net_work_new(ep);
    if (!piece)
        return NULL;
    *piece = *work;
    piece->bytes = bytes;
    piece->signals = 0;
    if (piece->memory)
        piece->memory->users++;
    if (piece->ticket)
        piece->ticket->pieces++;
    if (piece->data)
        flow_of(peer, piece)->open++;
    work->local += bytes;
    work->off += bytes;
    work->bytes -= bytes;
    return piece;
}

/* Posts the next piece of the queue: 1, or 0 if it has to wait. */
static int pump_piece(net_endpoint *ep, net_peer *peer)
{
    net_work *work = peer->bulk.head, *piece = work;
    net_flow *flow = work->data ? flow_of(peer, work) : NULL;
    uint64_t bytes = work->bytes;

    if (flow && !work->numbered && flow->next - flow->base >= NET_WINDOW)
        return 0;
    net_conn *conn = choose(ep, peer, work, &bytes);
    if (!conn)
        return 0;
    int foreign = work->bytes && !work->memory && work->bounce < 0 &&
                  (work->read || work->bytes > ep->rails[conn->rail].rail->max_inline);
    if (foreign && bytes > NET_BOUNCE_BYTES)
        bytes = NET_BOUNCE_BYTES;
    if (foreign && !ep->nfree_bounces)
        return 0;
    if (bytes < work->bytes)
        piece = cut(ep, peer, work, bytes);
    else
        take(&peer->bulk);
    if (!piece)
        return 0;
    if (foreign && !bounce(ep, piece))
        return 0;
    if (flow && !piece->numbered) {
        piece->number = ++flow->next;
        piece->numbered = 1;
        piece->imm = net_imm_data(piece->seq, piece->stream, piece->number, piece->signals);
    }
    post(ep, peer, conn, piece);
    return 1;
}

void net_pump(net_endpoint *ep, net_peer *peer)
{
    if (peer->urgent.head)
        pump_urgent(ep, peer);
    while (peer->bulk.head && pump_piece(ep, peer))
        ;
}

int net_tell_on(net_endpoint *ep, net_peer *peer, net_conn *conn, uint32_t imm)
{
    net_work *work = net_work_new(ep);
    if (!work)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a message to rank %d", peer->rank);
    work->imm = imm;
    work->has_imm = work->ask = work->direct = 1;
    post(ep, peer, conn, work);
    return 0;
}

/* ---- Completion ------------------------------------------------------------------------- */

static void sample_rate(net_conn *conn, uint64_t bytes)
{
    int64_t now = gsi_now_ns();

    conn->sampled += bytes;
    if (conn->sampled < SAMPLE_BYTES || now <= conn->busy_ns)
        return;
    double rate = (double)conn->sampled / (double)(now - conn->busy_ns);
    conn->rate = conn->rate > 0 ? 0.75 * conn->rate + 0.25 * rate : rate;
    conn->busy_ns = now;
    conn->sampled = 0;
}

/* The peer has it. conn: by which it went; NULL: by one that is dead. */
static void complete(net_endpoint *ep, net_peer *peer, net_conn *conn, net_work *work)
{
    if (conn) {
        conn->in_flight--;
        if (work->signalled)
            conn->in_flight_bytes -= work->bytes;
        conn->bytes += work->bytes;
        ep->rails[conn->rail].bytes += work->bytes;
        conn->reached = 1;
        if (work->bytes && work->signalled)
            sample_rate(conn, work->bytes);
    }
    if (work->data) {
        net_flow *flow = flow_of(peer, work);
        if (flow->seq == work->seq) {
            note_sent(flow, work->number);
            flow->open -= work->bytes != 0;
        }
    }
    if (work->probe)
        peer->probing = 0;
    if (work->user)
        memcpy(work->user, work->local, work->bytes);
    if (work->ticket)
        net_ticket_done(work->ticket, 0);
    net_work_free(ep, work);
}

/* This work and all before it are complete. */
static void sent(net_endpoint *ep, net_peer *peer, net_conn *conn, uint64_t id)
{
    net_work *work;

    do {
        if (!conn->posted.head)
            return;
        work = take(&conn->posted);
        int last = (uint64_t)(uintptr_t)work == id;
        complete(ep, peer, conn, work);
        if (last)
            break;
    } while (1);
}

/* ---- Dying -------------------------------------------------------------------------------- */

void net_peer_lost(net_endpoint *ep, net_peer *peer, const char *why)
{
    if (peer->lost)
        return;
    peer->lost = 1;
    ep->moved = 1;
    snprintf(peer->why, sizeof peer->why, "%.159s", why);
}

/* What was in flight waits until the peer has said what of it is there. */
void net_conn_failed(net_endpoint *ep, net_peer *peer, net_conn *conn, const char *why)
{
    if (conn->state == NET_CONN_DEAD)
        return;
    int proven = conn->state == NET_CONN_UP;
    conn->state = NET_CONN_DEAD;
    conn->in_flight = conn->quiet = 0;
    conn->in_flight_bytes = 0;
    conn->closing = 1;
    ep->closing++;
    ep->moved = 1;
    while (!proven && conn->posted.head) /* nothing but the proof */
        net_work_free(ep, take(&conn->posted));
    if (!proven)
        return;
    const char *rail = ep->rails[conn->rail].rail->name;
    if (!home_of(peer)) {
        char text[200];
        snprintf(text, sizeof text, "its last connection, on %.40s, failed: %.80s", rail, why);
        net_peer_lost(ep, peer, text);
        return;
    }
    if (peer->left)
        return;
    gsi_logf(ep->base.log, GRADSYNC_LOG_WARN,
             "the connection to rank %d on rail %s failed (%s); its work goes on by "
             "the other rails",
             peer->rank, rail, why);
}

void net_conn_gone(net_endpoint *ep, net_peer *peer, net_conn *conn, uint32_t consumed)
{
    net_queue urgent = {0}, bulk = {0};

    conn->heard_lost = 1;
    net_conn_failed(ep, peer, conn, "the peer has closed it");
    if (conn->settled)
        return;
    conn->settled = 1;
    while (conn->posted.head) {
        net_work *work = take(&conn->posted);
        if (work->has_imm && (uint16_t)(consumed - work->ordinal) < 0x8000)
            complete(ep, peer, NULL, work);
        else if (work->direct && home_of(peer))
            post(ep, peer, home_of(peer), work); /* the peer holds its queue until it has this */
        else
            append(work->data || work->ticket ? &bulk : &urgent, work);
    }
    prepend(&peer->urgent, &urgent);
    prepend(&peer->bulk, &bulk);
    net_pump(ep, peer);
}

/* Closes what was dead before the rails were last polled, so that all that came by it has been taken. */
static void close_dead(net_endpoint *ep)
{
    for (int r = 0; r < ep->base.n; r++) {
        net_peer *peer = &ep->peers[r];
        for (int k = 0; k < peer->nconns; k++) {
            net_conn *conn = &peer->conns[k];
            net_conn *home = home_of(peer);
            if (!conn->closing || (!peer->lost && !home))
                continue;
            if (!peer->lost && !conn->failed && !conn->heard_lost) {
                if (!conn->told_lost && !net_tell_on(ep, peer, home, net_imm_conn(NET_LOST, k, 0)))
                    conn->told_lost = 1;
                continue;
            }
            if (++conn->closing < 4) /* two looks at all rails after the one that told */
                continue;
            conn->closing = 0;
            ep->closing--;
            ep->rails[conn->rail].rail->ops->disconnect(conn->conn);
            conn->conn = NULL;
            if (!peer->lost && net_tell_on(ep, peer, home, net_imm_conn(NET_GONE, k, conn->consumed)))
                net_peer_lost(ep, peer, "no memory for a message to it");
        }
    }
}

static void rail_down(net_endpoint *ep, int index, const char *why)
{
    net_rail *rail = &ep->rails[index];

    if (rail->down)
        return;
    rail->down = 1;
    gsi_logf(ep->base.log, GRADSYNC_LOG_WARN, "rail %s is down (%s)", rail->rail->name, why ? why : "port error");
}

/* ---- Polling ------------------------------------------------------------------------------ */

static void handle(net_endpoint *ep, int rail, const gsi_rail_event *event)
{
    if (event->kind == GSI_RAIL_DOWN) {
        rail_down(ep, rail, event->why);
        return;
    }
    if (event->kind == GSI_RAIL_UP) {
        ep->rails[rail].down = 0;
        return;
    }
    uint32_t rank = event->conn / GSI_NET_CONNS;
    if (rank >= (uint32_t)ep->base.n)
        return;
    net_peer *peer = &ep->peers[rank];
    net_conn *conn = &peer->conns[event->conn % GSI_NET_CONNS];
    /* What has come by a connection that this side has given up counts: the peer may know that it has. */
    if (conn->state == NET_CONN_DEAD && event->kind == GSI_RAIL_FAILED)
        conn->failed = 1;
    if (conn->state == NET_CONN_NONE || (conn->state == NET_CONN_DEAD && event->kind != GSI_RAIL_ARRIVED))
        return;
    if (event->kind == GSI_RAIL_SENT) {
        sent(ep, peer, conn, event->id);
    } else if (event->kind == GSI_RAIL_ARRIVED) {
        net_arrived(ep, peer, conn, event->imm);
    } else {
        conn->failed = 1;
        net_conn_failed(ep, peer, conn, event->why ? event->why : "unknown");
        return;
    }
    if (peer->urgent.head || peer->bulk.head)
        net_pump(ep, peer);
}

int net_poll(net_endpoint *ep)
{
    gsi_rail_event events[EVENTS];
    int any = 0;

    for (int r = 0; r < ep->nrails; r++) {
        gsi_rail *rail = ep->rails[r].rail;
        int n;
        do {
            n = rail->ops->poll(rail, events, EVENTS);
            for (int i = 0; i < n; i++)
                handle(ep, r, &events[i]);
            any |= n > 0;
        } while (n == EVENTS);
    }
    if (ep->closing)
        close_dead(ep);
    ep->moved |= any;
    return any;
}

void net_idle(net_endpoint *ep)
{
    for (int r = 0; r < ep->nrails; r++)
        if (ep->rails[r].rail->ops->idle)
            ep->rails[r].rail->ops->idle(ep->rails[r].rail);
}
