/* SPDX-License-Identifier: Apache-2.0 */
/* The seam's operations over rails: headers and signals by numbered immediates, puts by RDMA writes. */
#include "transport/net/net.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/process.h"

enum { ALL_STREAM = GSI_MAX_STREAMS - 1 }; /* signals to all use the last stream, which no plan with them has */

/* ---- Entering --------------------------------------------------------------------- */

static void net_enter(gsi_endpoint *base, uint64_t seq, const gsi_header *header, const void *payload, uint64_t bytes)
{
    net_endpoint *ep = net_of(base);
    unsigned char *cell = ep->out->cells[seq % NET_LANES];
    uint64_t all = sizeof *header;
    gsi_header own = *header;

    if (bytes && bytes <= GSI_INLINE_BYTES)
        memcpy(own.u.inl, payload, bytes);
    memcpy(cell, &own, sizeof own);
    if (bytes > GSI_INLINE_BYTES) {
        memcpy(cell + NET_CELL_HEADER, payload, bytes);
        all = NET_CELL_HEADER + bytes;
    }
    ep->entered = seq;
    ep->told_done = ep->finished;
    for (int i = 1; i < base->n; i++) { /* each begins with its neighbour, so that no rank is everybody's first */
        net_peer *peer = &ep->peers[(base->rank + i) % base->n];
        if (!peer->nconns)
            continue;
        net_work *work = net_work_new(ep);
        if (!work) {
            net_peer_lost(ep, peer, "no memory for a message to it");
            continue;
        }
        work->local = (char *)cell;
        work->memory = &ep->area_memory;
        work->bytes = all;
        work->space = NET_TO_AREA;
        work->off = peer->inbox + offsetof(net_inbox, cells) + (seq % NET_LANES) * NET_CELL_BYTES;
        work->imm = net_imm(NET_HEADER, (uint32_t)seq & 0xffffff);
        work->has_imm = 1;
        net_queue_urgent(ep, peer, work);
    }
}

static int net_entered(gsi_endpoint *base, uint64_t seq, int *next)
{
    net_endpoint *ep = net_of(base);
    for (int r = *next; r < base->n; r++)
        if (ep->peers[r].nconns && ep->peers[r].entered[seq % NET_LANES] != seq) {
            *next = r;
            return 0;
        }
    *next = base->n;
    return 1;
}

static unsigned char *cell_of(net_endpoint *ep, uint64_t seq, int rank)
{
    return rank == ep->base.rank ? ep->out->cells[seq % NET_LANES] : ep->inboxes[rank].cells[seq % NET_LANES];
}

static const gsi_header *net_header(gsi_endpoint *base, uint64_t seq, int rank)
{
    return (const gsi_header *)cell_of(net_of(base), seq, rank);
}

static const void *net_slot(gsi_endpoint *base, uint64_t seq, int rank, uint64_t bytes)
{
    unsigned char *cell = cell_of(net_of(base), seq, rank);
    return bytes > GSI_INLINE_BYTES ? cell + NET_CELL_HEADER : ((gsi_header *)cell)->u.inl;
}

/* ---- Signals and puts ---------------------------------------------------------------- */

static net_flow *flow_to(net_peer *peer, uint64_t seq, int stream)
{
    net_flow *flow = &peer->tx[seq % NET_LANES][stream];
    if (flow->seq != seq)
        *flow = (net_flow){.seq = seq};
    return flow;
}

static net_work *data_work(net_endpoint *ep, net_peer *peer, uint64_t seq, int stream, int signals)
{
    net_work *work = net_work_new(ep);
    if (!work)
        return NULL;
    flow_to(peer, seq, stream);
    work->data = work->has_imm = 1;
    work->seq = seq;
    work->stream = (int8_t)stream;
    work->signals = signals != 0;
    return work;
}

static void net_signal(gsi_endpoint *base, uint64_t seq, int stream, int rank)
{
    net_endpoint *ep = net_of(base);
    net_peer *peer = &ep->peers[rank];
    net_work *work = data_work(ep, peer, seq, stream, 1);

    if (work)
        net_queue_bulk(ep, peer, work);
    else
        net_peer_lost(ep, peer, "no memory for a signal to it");
}

static void net_signal_all(gsi_endpoint *base, uint64_t seq)
{
    for (int r = 0; r < base->n; r++)
        if (net_of(base)->peers[r].nconns)
            net_signal(base, seq, ALL_STREAM, r);
}

static uint32_t net_signals(gsi_endpoint *base, uint64_t seq, int stream, int rank, int all)
{
    const net_rx *rx = &net_of(base)->peers[rank].rx[seq % NET_LANES][all ? ALL_STREAM : stream];
    return rx->seq == seq ? rx->signals : 0;
}

static int net_put(gsi_endpoint *base, uint64_t seq, int stream, int rank, const gsi_target *dst, const void *src,
                   uint64_t bytes, int notify)
{
    net_endpoint *ep = net_of(base);
    net_peer *peer = &ep->peers[rank];
    uint64_t room = base->stage_bytes;

    if (dst->space != GSI_STAGE) {
        const net_remote *remote = net_remote_find(peer, dst->mem);
        room = remote ? remote->bytes : 0;
    }
    if (dst->off > room || bytes > room - dst->off)
        return gsi_fail(GRADSYNC_ERR_INTERNAL, "a put of %llu bytes at %llu is beyond the memory of rank %d",
                        (unsigned long long)bytes, (unsigned long long)dst->off, rank);
    if (!bytes && !notify)
        return 0;
    net_work *work = data_work(ep, peer, seq, stream, notify);
    if (!work)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a put");
    if (bytes) {
        work->local = (char *)(uintptr_t)src;
        work->bytes = bytes;
        work->memory = net_memory_of(ep, src, bytes);
        work->space = dst->space == GSI_STAGE ? NET_TO_STAGE : NET_TO_MEMORY;
        work->mem = dst->mem;
        work->off = dst->off;
        if (work->memory)
            work->memory->users++;
        flow_to(peer, seq, stream)->open++;
    }
    net_queue_bulk(ep, peer, work);
    return 0;
}

static int net_flushed(gsi_endpoint *base, uint64_t seq, int stream, int rank)
{
    net_endpoint *ep = net_of(base);
    for (int r = rank < 0 ? 0 : rank; r < (rank < 0 ? base->n : rank + 1); r++) {
        const net_flow *flow = &ep->peers[r].tx[seq % NET_LANES][stream];
        if (flow->seq == seq && flow->open)
            return 0;
    }
    return 1;
}

/* ---- Being done ------------------------------------------------------------------------ */

static void net_finish(gsi_endpoint *base, uint64_t seq)
{
    net_endpoint *ep = net_of(base);

    ep->finished = seq;
    net_idle(ep);
    /* The next header says it. It has to be said apart where that is on its way already, or where nobody can enter
     * the next collective without it. */
    if (ep->entered <= seq && ep->entered + 1 <= ep->told_done + NET_LANES)
        return;
    net_tell_done(ep);
}

void net_tell_done(net_endpoint *ep)
{
    if (ep->told_done >= ep->finished)
        return;
    ep->told_done = ep->finished;
    for (int r = 0; r < ep->base.n; r++)
        if (ep->peers[r].nconns && !ep->peers[r].lost)
            net_tell(ep, &ep->peers[r], net_imm(NET_DONE, (uint32_t)ep->finished & 0xffffff));
}

static uint64_t net_done(gsi_endpoint *base)
{
    net_endpoint *ep = net_of(base);
    uint64_t least = ep->finished;
    for (int r = 0; r < base->n; r++)
        if (ep->peers[r].nconns && ep->peers[r].done < least)
            least = ep->peers[r].done;
    return least;
}

static void net_announce(gsi_endpoint *base)
{
    (void)base; /* every message wakes who sleeps */
}

static void *net_stage(gsi_endpoint *base, int rank)
{
    return rank == base->rank ? net_of(base)->stage : NULL;
}

/* ---- Progress and sleeping --------------------------------------------------------------- */

static void tell_failure(net_endpoint *ep)
{
    int untold = 0;

    if (atomic_load(&ep->failure_state) != NET_FAILURE_SET ||
        !atomic_compare_exchange_strong(&ep->failure_told, &untold, 1))
        return;
    ep->out->failure = ep->failure;
    for (int r = 0; r < ep->base.n; r++) {
        net_peer *peer = &ep->peers[r];
        net_work *work = peer->nconns && !peer->lost ? net_work_new(ep) : NULL;
        if (!work)
            continue;
        work->local = (char *)&ep->out->failure;
        work->memory = &ep->area_memory;
        work->bytes = sizeof ep->out->failure;
        work->space = NET_TO_AREA;
        work->off = peer->inbox + offsetof(net_inbox, failure);
        work->imm = net_imm(NET_CONTROL, NET_FAIL);
        work->has_imm = work->ask = 1;
        net_queue_urgent(ep, peer, work);
    }
}

static int net_progress(gsi_endpoint *base)
{
    net_endpoint *ep = net_of(base);

    tell_failure(ep);
    net_poll(ep);
    if (ep->nunsaid)
        net_say_unsaid(ep);
    for (int r = 0; r < base->n; r++) /* what waited for a bounce buffer that another peer's put has freed */
        if (ep->peers[r].bulk.head)
            net_pump(ep, &ep->peers[r]);
    int moved = ep->moved;
    ep->moved = 0;
    return moved;
}

static uint32_t net_sleep_begin(gsi_endpoint *base)
{
    net_endpoint *ep = net_of(base);

    ep->sleepers++;
    ep->sleeps++;
    for (int r = 0; r < ep->nrails; r++)
        ep->rails[r].rail->ops->arm(ep->rails[r].rail);
    return 0;
}

/* Also for who sleeps for this endpoint and something else. */
int gsi_net_fds(gsi_endpoint *base, struct pollfd *fds)
{
    net_endpoint *ep = net_of(base);
    int n = 0;

    fds[n++] = (struct pollfd){ep->wake_fd, POLLIN, 0};
    for (int r = 0; r < ep->nrails; r++) {
        fds[n++] = (struct pollfd){ep->rails[r].rail->fd, POLLIN, 0};
        if (ep->rails[r].rail->async_fd >= 0)
            fds[n++] = (struct pollfd){ep->rails[r].rail->async_fd, POLLIN, 0};
    }
    return n;
}

static void net_sleep(gsi_endpoint *base, uint32_t ticket, int64_t timeout_ns)
{
    struct pollfd fds[GSI_NET_FDS];
    struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};

    (void)ticket;
    ppoll(fds, (nfds_t)gsi_net_fds(base, fds), timeout_ns < 0 ? NULL : &t, NULL);
}

static void net_wake(gsi_endpoint *base)
{
    net_endpoint *ep = net_of(base);
    uint64_t one = 1;
    atomic_fetch_add_explicit(&ep->wakes, 1, memory_order_relaxed);
    if (write(ep->wake_fd, &one, sizeof one) < 0)
        return; /* full: then it is readable, which is all that is wanted */
}

static void net_sleep_end(gsi_endpoint *base)
{
    net_endpoint *ep = net_of(base);
    uint64_t rings;

    for (int r = 0; r < ep->nrails; r++)
        ep->rails[r].rail->ops->disarm(ep->rails[r].rail);
    if (--ep->sleepers)
        net_wake(base); /* what this thread has taken from the descriptors the others have not seen */
    else if (read(ep->wake_fd, &rings, sizeof rings) < 0 && errno != EAGAIN)
        gsi_logf(base->log, GRADSYNC_LOG_ERROR, "cannot read an eventfd: errno %d", errno);
}

/* ---- Failures ---------------------------------------------------------------------------- */

/* A peer that says nothing is asked: a write of no bytes, which its NIC answers, or nobody does. */
static void probe(net_endpoint *ep, net_peer *peer)
{
    net_work *work = net_work_new(ep);
    if (!work)
        return;
    work->probe = work->ask = 1;
    peer->probing = 1;
    net_queue_urgent(ep, peer, work);
}

static int net_check(gsi_endpoint *base, uint64_t seq, int *culprit, char *text, size_t room)
{
    net_endpoint *ep = net_of(base);

    for (int r = 0; r < base->n; r++) {
        net_peer *peer = &ep->peers[r];
        if (!peer->nconns || peer->done >= seq || seq == 0)
            continue;
        if (peer->lost || peer->left) {
            *culprit = r;
            if (peer->left) /* and its connections fail then */
                snprintf(text, room, "rank %d (on %.63s) left the communicator", r, peer->host);
            else
                snprintf(text, room, "rank %d (on %.63s) is lost: %.100s", r, peer->host, peer->why);
            return GRADSYNC_ERR_PEER_LOST;
        }
        if (!peer->heard && !peer->probing)
            probe(ep, peer);
        peer->heard = 0;
    }
    return 0;
}

static void net_fail(gsi_endpoint *base, const gsi_failure *failure)
{
    net_endpoint *ep = net_of(base);
    int none = NET_FAILURE_NONE;

    if (atomic_compare_exchange_strong(&ep->failure_state, &none, NET_FAILURE_CLAIMED)) {
        ep->failure = *failure;
        atomic_store(&ep->failure_state, NET_FAILURE_SET);
    }
    net_wake(base); /* who drives next tells the peers */
}

static int net_failure(gsi_endpoint *base, gsi_failure *out)
{
    net_endpoint *ep = net_of(base);
    if (atomic_load_explicit(&ep->failure_state, memory_order_acquire) != NET_FAILURE_SET)
        return 0;
    *out = ep->failure;
    return 1;
}

/* ---- Queries ------------------------------------------------------------------------------ */

static void net_peer_info(gsi_endpoint *base, int rank, gradsync_peer_info *out)
{
    net_endpoint *ep = net_of(base);
    const net_peer *peer = &ep->peers[rank];

    out->rank = rank;
    out->pid = peer->pid;
    out->same_host = rank == base->rank;
    out->alive = !peer->lost && !peer->left;
    snprintf(out->host, sizeof out->host, "%s", peer->host);
    snprintf(out->transport, sizeof out->transport, "%s",
             rank == base->rank || !ep->nrails ? "self" : ep->rails[0].rail->ops->name);
}

static uint64_t net_memory_bytes(gsi_endpoint *base)
{
    net_endpoint *ep = net_of(base);
    return ep->map_bytes + sizeof *ep + (uint64_t)base->n * sizeof *ep->peers;
}

static void net_counters(gsi_endpoint *base, gradsync_counters *out)
{
    net_endpoint *ep = net_of(base);
    out->sleeps += ep->sleeps;
    out->wakes += atomic_load_explicit(&ep->wakes, memory_order_relaxed);
}

int gsi_net_rails(gsi_endpoint *base)
{
    return net_of(base)->nrails;
}

void gsi_net_rail(gsi_endpoint *base, int index, gradsync_rail_info *out)
{
    net_endpoint *ep = net_of(base);
    const net_rail *rail = &ep->rails[index];
    uint64_t all = 0;
    int alive = 0;

    for (int r = 0; r < ep->nrails; r++)
        all += ep->rails[r].bytes;
    for (int r = 0; r < base->n; r++)
        for (int c = 0; c < ep->peers[r].nconns; c++)
            alive |= ep->peers[r].conns[c].rail == index && ep->peers[r].conns[c].state == NET_CONN_UP;
    out->index = index;
    out->numa_node = rail->rail->numa_node;
    out->state = alive && !rail->down;
    out->bytes = rail->bytes;
    out->share = all ? (double)rail->bytes / (double)all : 1.0 / ep->nrails;
    snprintf(out->device, sizeof out->device, "%.63s", rail->rail->name);
    snprintf(out->reason, sizeof out->reason, "%s", rail->reason);
}

static void net_destroy(gsi_endpoint *base)
{
    net_free(net_of(base));
}

const gsi_endpoint_ops net_ops = {
    .name = "net",
    .progress = net_progress,
    .enter = net_enter,
    .entered = net_entered,
    .header = net_header,
    .slot = net_slot,
    .signal_all = net_signal_all,
    .signal = net_signal,
    .signals = net_signals,
    .put = net_put,
    .flushed = net_flushed,
    .announce = net_announce,
    .finish = net_finish,
    .done = net_done,
    .stage = net_stage,
    .share = net_share,
    .unshare = net_unshare,
    .resolve = net_resolve,
    .mail = net_mail,
    .mail_next = net_mail_next,
    .rput = net_rput,
    .rget = net_rget,
    .rdone = net_rdone,
    .sleep_begin = net_sleep_begin,
    .sleep = net_sleep,
    .sleep_end = net_sleep_end,
    .wake = net_wake,
    .check = net_check,
    .fail = net_fail,
    .failure = net_failure,
    .peer_info = net_peer_info,
    .memory_bytes = net_memory_bytes,
    .counters = net_counters,
    .destroy = net_destroy,
};
