/* SPDX-License-Identifier: Apache-2.0 */
/* One-sided: puts, gets, signals, and the keys that they need. */
#include <sched.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "engine/p2p.h"

enum { FAMILIAR_US = 1000000 };

/* ---- Transfers --------------------------------------------------------------------- */

/* Notes what is done; 1 if anything was. */
static int reap(gsi_engine *e, gsi_p2p_transfer *t)
{
    int moved = 0;

    while (t->count) {
        int rc = e->ep->ops->rdone(e->ep, t->tickets[t->first]);
        if (!rc)
            break;
        if (rc < 0 && !t->failed)
            t->failed = rc;
        t->done += t->bytes[t->first];
        t->first = (t->first + 1) % GSI_P2P_TICKETS;
        t->count--;
        moved = 1;
    }
    return moved;
}

int gsi_p2p_transfer_step(gsi_engine *e, gsi_p2p_transfer *t, int get, int peer, uint32_t mem, uint64_t off, void *buf,
                          uint64_t bytes, int *moved)
{
    const gsi_endpoint_ops *ops = e->ep->ops;
    uint32_t most = e->p2p->loadstore ? 1 : GSI_P2P_TICKETS;

    *moved |= reap(e, t);
    while (!t->failed && t->issued < bytes && t->count < most) {
        uint64_t piece = bytes - t->issued;
        uint32_t at = (t->first + t->count) % GSI_P2P_TICKETS;
        if (piece > GSI_P2P_PIECE)
            piece = GSI_P2P_PIECE;
        char *here = (char *)buf + t->issued;
        int rc = get ? ops->rget(e->ep, peer, mem, off + t->issued, here, piece, &t->tickets[at])
                     : ops->rput(e->ep, peer, mem, off + t->issued, here, piece, &t->tickets[at]);
        if (rc == GRADSYNC_IN_PROGRESS)
            break;
        if (rc < 0) {
            t->failed = rc;
            break;
        }
        t->bytes[at] = piece;
        t->issued += piece;
        t->count++;
        *moved = 1;
    }
    *moved |= reap(e, t);
    if (t->failed)
        return t->count ? 0 : t->failed;
    return t->done == bytes;
}

/* ---- Puts and gets -------------------------------------------------------------------- */

static int copy_own(gsi_p2p_op *o, int *moved)
{
    const gsi_p2p_call *c = &o->call;
    gsi_p2p_transfer *t = &o->transfer;
    uint64_t piece = c->bytes - t->done;

    if (piece > GSI_P2P_PIECE && c->self + piece > (char *)c->buf && (char *)c->buf + piece > c->self)
        ; /* they overlap: at one go */
    else if (piece > GSI_P2P_PIECE)
        piece = GSI_P2P_PIECE;
    char *own = c->self + t->done, *buf = (char *)c->buf + t->done;
    if (piece)
        memmove(c->kind == GRADSYNC_GET ? buf : own, c->kind == GRADSYNC_GET ? own : buf, piece);
    t->done += piece;
    *moved = 1;
    return t->done == c->bytes;
}

/* Where memory is told of by messages, a key that came by another way may have been faster: for a moment, memory
 * that is not known is waited for. */
static int may_be_early(const gsi_engine *e, gsi_p2p_op *o, int rc)
{
    if (rc != GRADSYNC_ERR_INVALID || e->p2p->loadstore || o->transfer.issued ||
        gsi_ticks_us(gsi_ticks() - o->op.start_ticks) >= FAMILIAR_US)
        return 0;
    o->transfer.failed = 0;
    return 1;
}

int gsi_p2p_step_access(gsi_engine *e, gsi_p2p_op *o, int *moved)
{
    const gsi_p2p_call *c = &o->call;
    int rc;

    if (c->peer == e->rank)
        rc = copy_own(o, moved);
    else
        rc = gsi_p2p_transfer_step(e, &o->transfer, c->kind == GRADSYNC_GET, c->peer, c->mem, c->off, c->buf, c->bytes,
                                   moved);
    if (!rc || may_be_early(e, o, rc))
        return GSI_P2P_BUSY;
    if (c->kind == GRADSYNC_PUT)
        e->p2p->peers[c->peer].puts--;
    gsi_p2p_end(e, o, rc < 0 ? rc : 0);
    return GSI_P2P_ENDED;
}

int gsi_p2p_issue_access(gsi_engine *e, gsi_p2p_op *o)
{
    gsi_p2p *p = e->p2p;
    const gsi_p2p_call *c = &o->call;
    int moved = 0;

    gsi_p2p_remove(&p->peers[c->peer].out, o);
    if (c->peer == e->rank && c->bytes) {
        o->mem = gsi_register_get(e->reg, c->self, c->bytes);
        if (!o->mem || o->mem->id != c->mem) {
            gsi_p2p_end(
                e, o, gsi_fail(GRADSYNC_ERR_INVALID, "the memory that this key is of has been freed; make a new key"));
            return 1;
        }
    }
    if (c->kind == GRADSYNC_PUT)
        p->peers[c->peer].puts++;
    o->phase = GSI_P2P_MOVING;
    if (gsi_p2p_step_access(e, o, &moved) == GSI_P2P_BUSY)
        gsi_p2p_work(p, o);
    return 1;
}

/* ---- Signals ------------------------------------------------------------------------------ */

/* A signal follows the puts: it goes when they are done. */
int gsi_p2p_issue_signal(gsi_engine *e, gsi_p2p_op *o)
{
    gsi_p2p_peer *peer = &e->p2p->peers[o->call.peer];
    gsi_p2p_mail mail = {.kind = GSI_MAIL_SIGNAL, .tag = (int32_t)o->call.slot};

    if (peer->puts || gsi_p2p_send_mail(e, o->call.peer, &mail, 0) != 1)
        return 0;
    gsi_p2p_remove(&peer->out, o);
    gsi_p2p_end(e, o, 0);
    return 1;
}

/* The counts of a peer's signals; NULL without memory for them. */
static uint64_t *counts_of(gsi_p2p_peer *peer)
{
    if (!peer->signals)
        peer->signals = gsi_calloc(GSI_SIGNAL_SLOTS, sizeof *peer->signals);
    return peer->signals;
}

void gsi_p2p_wait_signal(gsi_engine *e, gsi_p2p_op *o)
{
    gsi_p2p_peer *peer = &e->p2p->peers[o->call.peer];

    if (!o->call.value || (peer->signals && peer->signals[o->call.slot] >= o->call.value))
        gsi_p2p_end(e, o, 0);
    else
        gsi_p2p_append(&peer->waits, o);
}

void gsi_p2p_on_signal(gsi_engine *e, int from, const gsi_p2p_mail *mail)
{
    gsi_p2p_peer *peer = &e->p2p->peers[from];
    uint32_t slot = (uint32_t)mail->tag;

    if (slot >= GSI_SIGNAL_SLOTS)
        return;
    if (!counts_of(peer)) {
        gsi_p2p_break(e, gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to count the signals of rank %d", from));
        return;
    }
    uint64_t count = ++peer->signals[slot];
    for (gsi_p2p_op *o = peer->waits.head, *next; o; o = next) {
        next = o->next;
        if (o->call.slot != slot || o->call.value > count)
            continue;
        gsi_p2p_remove(&peer->waits, o);
        gsi_p2p_end(e, o, 0);
    }
}

int gsi_p2p_signals(gsi_engine *e, int peer, uint32_t slot, uint64_t *out)
{
    pthread_mutex_lock(&e->lock);
    int moved = !e->broken && gsi_engine_progress(e);
    int rc = e->broken ? gsi_engine_fail_broken(e) : 0;
    const gsi_p2p *p = e->p2p;
    *out = p && p->peers[peer].signals ? p->peers[peer].signals[slot] : 0;
    pthread_mutex_unlock(&e->lock);
    if (!moved)
        sched_yield(); /* who does nothing but ask may be in the way of those that it waits for */
    return rc;
}

/* ---- Keys ------------------------------------------------------------------------------------ */

int gsi_p2p_make_key(gsi_engine *e, const gsi_memory *mem, int64_t timeout_ms, gsi_p2p_key *out)
{
    int64_t deadline = gsi_deadline_ns(gsi_now_ns(), timeout_ms);
    gsi_backoff backoff = {0};
    int rc = 0;

    if (!e->ep->ops->rput)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED, "%s has no one-sided operations", e->ep->ops->name);
    if (!e->ep->whole_memory && mem->fd < 0)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED,
                        "peers cannot reach this memory (%s); allocate it with gradsync_mem_alloc or register it with "
                        "GRADSYNC_MEM_REMAP",
                        mem->reason);
    pthread_mutex_lock(&e->lock);
    while (!e->broken && (rc = e->ep->ops->share(e->ep, mem)) == GRADSYNC_IN_PROGRESS) {
        if (gsi_now_ns() > deadline) {
            rc = gsi_fail(GRADSYNC_ERR_TIMEOUT, "the peers took no note of the memory in time; do they make progress?");
            gsi_p2p_break(e, rc);
            pthread_mutex_unlock(&e->lock);
            return rc;
        }
        if (gsi_engine_progress(e))
            backoff.since = 0;
        else if (!e->broken)
            gsi_engine_back_off(e, &backoff);
    }
    if (e->broken)
        rc = gsi_engine_fail_broken(e);
    pthread_mutex_unlock(&e->lock);
    if (rc)
        return rc;
    *out = (gsi_p2p_key){.comm = e->id,
                         .addr = (uintptr_t)mem->addr,
                         .bytes = mem->bytes,
                         .share_bytes = e->ep->whole_memory ? mem->bytes : mem->share_bytes,
                         .head = e->ep->whole_memory ? 0 : (uint64_t)(mem->share_addr - mem->addr),
                         .rank = e->rank,
                         .mem = mem->id};
    return 0;
}
