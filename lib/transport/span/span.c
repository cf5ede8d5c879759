/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/span/span.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "transport/net/create.h"
#include "transport/shm/shm.h"

typedef struct span {
    gsi_endpoint base;
    gsi_endpoint *local, *net;
    int32_t *local_of;  /* n: the rank in the local endpoint; -1: on another host */
    int32_t *global_of; /* of the local ranks */
    int bell;           /* an eventfd: local peers ring it */
    int sleepers;
    int mail_turn;
} span;

static span *span_of(gsi_endpoint *ep)
{
    return (span *)ep;
}

/* The endpoint that reaches a rank, and what it calls it there. */
static gsi_endpoint *via(span *s, int rank, int *called)
{
    int local = s->local_of[rank];
    *called = local >= 0 ? local : rank;
    return local >= 0 ? s->local : s->net;
}

/* ---- Entering, signals, puts -------------------------------------------------------- */

static int span_progress(gsi_endpoint *base)
{
    return span_of(base)->net->ops->progress(span_of(base)->net);
}

static void span_enter(gsi_endpoint *base, uint64_t seq, const gsi_header *header, const void *payload, uint64_t bytes)
{
    span *s = span_of(base);
    s->net->ops->enter(s->net, seq, header, payload, bytes); /* the longer way first */
    s->local->ops->enter(s->local, seq, header, payload, bytes);
}

static int span_entered(gsi_endpoint *base, uint64_t seq, int *next)
{
    span *s = span_of(base);
    int at = 0;

    if (!s->local->ops->entered(s->local, seq, &at)) {
        *next = s->global_of[at];
        return 0;
    }
    at = 0;
    if (!s->net->ops->entered(s->net, seq, &at)) {
        *next = at;
        return 0;
    }
    *next = base->n;
    return 1;
}

static const gsi_header *span_header(gsi_endpoint *base, uint64_t seq, int rank)
{
    int called;
    gsi_endpoint *ep = via(span_of(base), rank, &called);
    return ep->ops->header(ep, seq, called);
}

static const void *span_slot(gsi_endpoint *base, uint64_t seq, int rank, uint64_t bytes)
{
    int called;
    gsi_endpoint *ep = via(span_of(base), rank, &called);
    return ep->ops->slot(ep, seq, called, bytes);
}

static void span_signal_all(gsi_endpoint *base, uint64_t seq)
{
    span *s = span_of(base);
    s->net->ops->signal_all(s->net, seq);
    s->local->ops->signal_all(s->local, seq);
}

static void span_signal(gsi_endpoint *base, uint64_t seq, int stream, int peer)
{
    int called;
    gsi_endpoint *ep = via(span_of(base), peer, &called);
    ep->ops->signal(ep, seq, stream, called);
}

static uint32_t span_signals(gsi_endpoint *base, uint64_t seq, int stream, int peer, int all)
{
    int called;
    gsi_endpoint *ep = via(span_of(base), peer, &called);
    return ep->ops->signals(ep, seq, stream, called, all);
}

static int span_put(gsi_endpoint *base, uint64_t seq, int stream, int peer, const gsi_target *dst, const void *src,
                    uint64_t bytes, int notify)
{
    int called;
    gsi_endpoint *ep = via(span_of(base), peer, &called);
    return ep->ops->put(ep, seq, stream, called, dst, src, bytes, notify);
}

static int span_flushed(gsi_endpoint *base, uint64_t seq, int stream, int peer)
{
    /* Local puts are done when they return. */
    gsi_endpoint *net = span_of(base)->net;
    return net->ops->flushed(net, seq, stream, peer);
}

static void span_announce(gsi_endpoint *base)
{
    span *s = span_of(base);
    s->local->ops->announce(s->local);
    s->net->ops->announce(s->net);
}

static void span_finish(gsi_endpoint *base, uint64_t seq)
{
    span *s = span_of(base);
    s->local->ops->finish(s->local, seq);
    s->net->ops->finish(s->net, seq);
}

static uint64_t span_done(gsi_endpoint *base)
{
    span *s = span_of(base);
    uint64_t local = s->local->ops->done(s->local), net = s->net->ops->done(s->net);
    return local < net ? local : net;
}

/* ---- Memory ------------------------------------------------------------------------------ */

static void *span_stage(gsi_endpoint *base, int rank)
{
    span *s = span_of(base);
    return s->local_of[rank] >= 0 ? s->local->ops->stage(s->local, s->local_of[rank]) : NULL;
}

/* Both, or it counts as plain memory. */
static int span_share(gsi_endpoint *base, const gsi_memory *mem)
{
    span *s = span_of(base);
    int rc = s->local->ops->share(s->local, mem);
    return rc ? rc : s->net->ops->share(s->net, mem);
}

static void span_unshare(gsi_endpoint *base, uint32_t id)
{
    span *s = span_of(base);
    s->local->ops->unshare(s->local, id);
    s->net->ops->unshare(s->net, id);
}

static int span_resolve(gsi_endpoint *base, int peer, uint32_t id, void **addr, uint64_t *bytes)
{
    int called;
    gsi_endpoint *ep = via(span_of(base), peer, &called);
    return ep->ops->resolve(ep, called, id, addr, bytes);
}

/* ---- Point to point -------------------------------------------------------------------------- */

static int span_mail(gsi_endpoint *base, int peer, const void *msg, uint32_t bytes)
{
    int called;
    gsi_endpoint *ep = via(span_of(base), peer, &called);
    return ep->ops->mail(ep, called, msg, bytes);
}

static int span_mail_next(gsi_endpoint *base, int *peer, void *msg, uint32_t *bytes)
{
    span *s = span_of(base);

    for (int i = 0; i < 2; i++) {
        int local = (s->mail_turn + i) % 2;
        gsi_endpoint *ep = local ? s->local : s->net;
        if (!ep->ops->mail_next(ep, peer, msg, bytes))
            continue;
        if (local)
            *peer = s->global_of[*peer];
        s->mail_turn = !local;
        return 1;
    }
    return 0;
}

/* A ticket's lowest bit says whose it is. */
static int span_rput(gsi_endpoint *base, int peer, uint32_t mem, uint64_t off, const void *src, uint64_t bytes,
                     uint64_t *ticket)
{
    int called;
    gsi_endpoint *ep = via(span_of(base), peer, &called);
    int rc = ep->ops->rput(ep, called, mem, off, src, bytes, ticket);
    *ticket = *ticket << 1 | (ep == span_of(base)->local);
    return rc;
}

static int span_rget(gsi_endpoint *base, int peer, uint32_t mem, uint64_t off, void *dst, uint64_t bytes,
                     uint64_t *ticket)
{
    int called;
    gsi_endpoint *ep = via(span_of(base), peer, &called);
    int rc = ep->ops->rget(ep, called, mem, off, dst, bytes, ticket);
    *ticket = *ticket << 1 | (ep == span_of(base)->local);
    return rc;
}

static int span_rdone(gsi_endpoint *base, uint64_t ticket)
{
    gsi_endpoint *ep = ticket & 1 ? span_of(base)->local : span_of(base)->net;
    return ep->ops->rdone(ep, ticket >> 1);
}

/* ---- Sleeping: on the rails' descriptors and the bell ------------------------------------------- */

static uint32_t span_sleep_begin(gsi_endpoint *base)
{
    span *s = span_of(base);
    s->sleepers++;
    s->net->ops->sleep_begin(s->net);
    return s->local->ops->sleep_begin(s->local);
}

static void span_sleep(gsi_endpoint *base, uint32_t ticket, int64_t timeout_ns)
{
    span *s = span_of(base);
    struct pollfd fds[GSI_NET_FDS + 1];
    struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};

    (void)ticket; /* the bell stays rung until the last sleeper has seen it */
    int n = gsi_net_fds(s->net, fds);
    fds[n++] = (struct pollfd){s->bell, POLLIN, 0};
    ppoll(fds, (nfds_t)n, timeout_ns < 0 ? NULL : &t, NULL);
}

static void span_sleep_end(gsi_endpoint *base)
{
    span *s = span_of(base);
    uint64_t rings;

    s->local->ops->sleep_end(s->local);
    s->net->ops->sleep_end(s->net);
    if (--s->sleepers == 0 && read(s->bell, &rings, sizeof rings) < 0 && errno != EAGAIN)
        gsi_logf(base->log, GRADSYNC_LOG_ERROR, "cannot read an eventfd: errno %d", errno);
}

static void span_wake(gsi_endpoint *base)
{
    gsi_endpoint *net = span_of(base)->net;
    net->ops->wake(net);
}

/* ---- Failures ---------------------------------------------------------------------------------------- */

static int span_check(gsi_endpoint *base, uint64_t seq, int *peer, char *text, size_t room)
{
    span *s = span_of(base);
    int rc = s->local->ops->check(s->local, seq, peer, text, room);

    if (rc) {
        *peer = s->global_of[*peer];
        return rc;
    }
    return s->net->ops->check(s->net, seq, peer, text, room);
}

static void span_fail(gsi_endpoint *base, const gsi_failure *failure)
{
    span *s = span_of(base);
    s->local->ops->fail(s->local, failure);
    s->net->ops->fail(s->net, failure);
}

static int span_failure(gsi_endpoint *base, gsi_failure *out)
{
    span *s = span_of(base);
    return s->local->ops->failure(s->local, out) || s->net->ops->failure(s->net, out);
}

/* ---- Queries, making, ending ------------------------------------------------------------------------- */

static void span_peer_info(gsi_endpoint *base, int rank, gradsync_peer_info *out)
{
    int called;
    gsi_endpoint *ep = via(span_of(base), rank, &called);
    ep->ops->peer_info(ep, called, out);
    out->rank = rank;
}

static uint64_t span_memory_bytes(gsi_endpoint *base)
{
    span *s = span_of(base);
    return sizeof *s + s->local->ops->memory_bytes(s->local) + s->net->ops->memory_bytes(s->net);
}

static void span_counters(gsi_endpoint *base, gradsync_counters *out)
{
    span *s = span_of(base);
    s->local->ops->counters(s->local, out);
    s->net->ops->counters(s->net, out);
}

static void span_destroy(gsi_endpoint *base)
{
    span *s = span_of(base);
    /* The rails read and write the local stage: they go first. */
    s->net->ops->destroy(s->net);
    s->local->ops->destroy(s->local);
    if (s->bell >= 0)
        close(s->bell);
    free(s->local_of);
    free(s->global_of);
    free((void *)(uintptr_t)base->host);
    free(s);
}

static const gsi_endpoint_ops span_ops = {
    .name = "span",
    .progress = span_progress,
    .enter = span_enter,
    .entered = span_entered,
    .header = span_header,
    .slot = span_slot,
    .signal_all = span_signal_all,
    .signal = span_signal,
    .signals = span_signals,
    .put = span_put,
    .flushed = span_flushed,
    .finish = span_finish,
    .done = span_done,
    .announce = span_announce,
    .stage = span_stage,
    .share = span_share,
    .unshare = span_unshare,
    .resolve = span_resolve,
    .mail = span_mail,
    .mail_next = span_mail_next,
    .rput = span_rput,
    .rget = span_rget,
    .rdone = span_rdone,
    .sleep_begin = span_sleep_begin,
    .sleep = span_sleep,
    .sleep_end = span_sleep_end,
    .wake = span_wake,
    .check = span_check,
    .fail = span_fail,
    .failure = span_failure,
    .peer_info = span_peer_info,
    .memory_bytes = span_memory_bytes,
    .counters = span_counters,
    .destroy = span_destroy,
};

int gsi_span_create(gsi_endpoint *local, gsi_endpoint *net, const int32_t *host, gsi_endpoint **out)
{
    size_t n = (size_t)net->n;
    span *s = gsi_calloc(1, sizeof *s);
    int32_t *hosts = gsi_calloc(n, sizeof *hosts), *local_of = gsi_calloc(n, sizeof *local_of);
    int32_t *global_of = gsi_calloc((size_t)local->n, sizeof *global_of);

    if (!s || !hosts || !local_of || !global_of) {
        free(s);
        free(hosts);
        free(local_of);
        free(global_of);
        net->ops->destroy(net);
        local->ops->destroy(local);
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for %d ranks", net->n);
    }
    for (int r = 0, next = 0; r < net->n; r++) {
        hosts[r] = host[r];
        local_of[r] = host[r] == host[net->rank] ? next : -1;
        if (local_of[r] >= 0)
            global_of[next++] = r;
    }
    *s = (span){.base = *net, .local = local, .net = net, .local_of = local_of, .global_of = global_of, .bell = -1};
    s->base.ops = &span_ops;
    s->base.host = hosts;
    s->base.local_rank = local->rank;
    s->base.local_ranks = local->n;
    s->base.slot_bytes = local->slot_bytes < net->slot_bytes ? local->slot_bytes : net->slot_bytes;
    s->base.stage_bytes = local->stage_bytes < net->stage_bytes ? local->stage_bytes : net->stage_bytes;
    local->called = global_of;
    local->called_of = net->n;
    s->bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int rc = s->bell < 0 ? gsi_fail(GRADSYNC_ERR_SYSTEM,
                                    "no file descriptor to sleep on; raise the limit of open files (ulimit -n)")
                         : gsi_shm_bell(local, s->bell);
    if (rc)
        span_destroy(&s->base);
    else
        *out = &s->base;
    return rc;
}

void gsi_span_start(gsi_endpoint *ep)
{
    if (ep->ops == &span_ops)
        gsi_shm_bells(span_of(ep)->local);
}

gsi_endpoint *gsi_span_net(gsi_endpoint *ep)
{
    return ep->ops == &span_ops ? span_of(ep)->net : ep;
}
