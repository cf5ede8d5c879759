/* SPDX-License-Identifier: Apache-2.0 */
/* Messages: sends meet receives, in order per peer and tag. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "engine/p2p.h"

enum { PAY_AT = GSI_P2P_EAGER_AHEAD / 4, OWN_MEMORY = -1 };

/* ---- Memory ------------------------------------------------------------------------ */

/* Finds out whether peers can reach the op's buffer: 1 and where, 0 no, < 0: ask again. */
static int share_buffer(gsi_engine *e, gsi_p2p_op *o, uint64_t bytes, uint32_t *mem, uint64_t *off)
{
    if (!o->mem && bytes)
        o->mem = gsi_register_get(e->reg, o->call.buf, bytes);
    if (!o->mem)
        return 0;
    const char *start = e->ep->whole_memory ? o->mem->addr : o->mem->share_addr;
    uint64_t room = e->ep->whole_memory ? o->mem->bytes : o->mem->share_bytes;
    int64_t at = start ? (const char *)o->call.buf - start : -1;
    int reachable = at >= 0 && bytes <= room && (uint64_t)at <= room - bytes;
    int rc = reachable ? e->ep->ops->share(e->ep, o->mem) : GRADSYNC_ERR_UNSUPPORTED;
    if (rc == GRADSYNC_IN_PROGRESS)
        return -1;
    if (rc) {
        gsi_register_put(e->reg, o->mem);
        o->mem = NULL;
        return 0;
    }
    *mem = o->mem->id;
    *off = (uint64_t)at;
    return 1;
}

/* ---- Sending ----------------------------------------------------------------------- */

static int send_eager(gsi_engine *e, gsi_p2p_op *o)
{
    const gsi_p2p_call *c = &o->call;
    gsi_p2p_peer *peer = &e->p2p->peers[c->peer];
    gsi_p2p_mail mail;

    mail.kind = GSI_MAIL_EAGER;
    mail.tag = c->tag;
    mail.bytes = c->bytes;
    if (c->bytes)
        memcpy(mail.u.data, c->buf, c->bytes);
    peer->ahead++;
    if (gsi_p2p_send_mail(e, c->peer, &mail, (uint32_t)c->bytes) == 1)
        return 1;
    peer->ahead--;
    return 0;
}

/* 1: sent, 0: no room, -1: there is no chunk for it. */
static int send_staged(gsi_engine *e, gsi_p2p_op *o)
{
    const gsi_p2p_call *c = &o->call;
    gsi_p2p *p = e->p2p;
    gsi_p2p_mail mail = {.kind = GSI_MAIL_STAGED, .tag = c->tag, .bytes = c->bytes};

    int chunk = gsi_p2p_take_chunk(e, c->peer);
    if (chunk < 0)
        return -1;
    memcpy(gsi_p2p_chunk(p, chunk), c->buf, c->bytes);
    mail.u.at.mem = p->stage.id;
    mail.u.at.window = (uint32_t)chunk;
    int rc = gsi_p2p_send_mail(e, c->peer, &mail, GSI_P2P_PLACE);
    if (rc == 0)
        gsi_p2p_free_chunk(p, chunk);
    return rc == 1;
}

/* 1: announced, 0: not now, or an error that ends the op. */
static int announce(gsi_engine *e, gsi_p2p_op *o)
{
    const gsi_p2p_call *c = &o->call;
    gsi_p2p_mail mail = {.kind = GSI_MAIL_ANNOUNCE, .tag = c->tag, .bytes = c->bytes};

    if (!o->id) {
        int rc = gsi_p2p_give_id(e->p2p, o);
        if (rc)
            return rc;
    }
    if (c->peer != e->rank && share_buffer(e, o, c->bytes, &mail.u.at.mem, &mail.u.at.off) < 0)
        return 0;
    mail.u.at.from = o->id;
    return gsi_p2p_send_mail(e, c->peer, &mail, GSI_P2P_PLACE) == 1;
}

int gsi_p2p_issue_send(gsi_engine *e, gsi_p2p_op *o)
{
    const gsi_p2p_call *c = &o->call;
    gsi_p2p_peer *peer = &e->p2p->peers[c->peer];
    int sent = -1;

    if (c->bytes <= GSI_P2P_EAGER && peer->ahead < GSI_P2P_EAGER_AHEAD)
        sent = send_eager(e, o);
    else if (c->bytes && c->bytes <= GSI_P2P_CHUNK && c->peer != e->rank && e->p2p->loadstore)
        sent = send_staged(e, o);
    if (!sent)
        return 0;
    if (sent == 1) {
        gsi_p2p_remove(&peer->out, o);
        gsi_p2p_end(e, o, 0);
        return 1;
    }
    int rc = announce(e, o);
    if (!rc)
        return 0;
    gsi_p2p_remove(&peer->out, o);
    if (rc < 0)
        gsi_p2p_end(e, o, rc);
    else
        o->phase = GSI_P2P_BY_WINDOW;
    return 1;
}

void gsi_p2p_on_grant(gsi_engine *e, int peer, const gsi_p2p_mail *mail)
{
    gsi_p2p_op *o = gsi_p2p_find(e->p2p, mail->u.at.to, GRADSYNC_SEND, peer);

    if (!o || o->phase != GSI_P2P_BY_WINDOW || mail->u.at.at > o->call.bytes ||
        mail->bytes > o->call.bytes - mail->u.at.at)
        return;
    if (!o->windows)
        o->windows = gsi_calloc(GSI_P2P_WINDOWS, sizeof *o->windows);
    if (!o->windows) {
        gsi_p2p_break(e, gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to send a message"));
        return;
    }
    o->theirs = mail->u.at.from;
    for (int i = 0; i < GSI_P2P_WINDOWS; i++) {
        gsi_p2p_window *w = &o->windows[i];
        if (w->state != GSI_WINDOW_FREE)
            continue;
        *w = (gsi_p2p_window){.state = GSI_WINDOW_OPEN,
                              .mem = mail->u.at.mem,
                              .index = mail->u.at.window,
                              .off = mail->u.at.off,
                              .at = mail->u.at.at,
                              .bytes = mail->bytes};
        break;
    }
    gsi_p2p_work(e->p2p, o);
}

int gsi_p2p_step_send(gsi_engine *e, gsi_p2p_op *o, int *moved)
{
    int busy = 0;

    for (int i = 0; i < GSI_P2P_WINDOWS; i++) {
        gsi_p2p_window *w = &o->windows[i];
        if (w->state == GSI_WINDOW_OPEN) {
            int rc = gsi_p2p_transfer_step(e, &w->transfer, 0, o->call.peer, w->mem, w->off,
                                           (char *)o->call.buf + w->at, w->bytes, moved);
            if (rc < 0) /* it named what it does not share: the message ends here, as soon as nothing moves any more */
                o->outcome = rc;
            if (rc)
                w->state = rc < 0 ? GSI_WINDOW_FREE : GSI_WINDOW_FULL;
        }
        if (w->state == GSI_WINDOW_FULL) {
            gsi_p2p_mail mail = {.kind = GSI_MAIL_FILLED, .bytes = w->bytes};
            mail.u.at.to = o->theirs;
            mail.u.at.window = w->index;
            int rc = gsi_p2p_send_mail(e, o->call.peer, &mail, GSI_P2P_PLACE);
            if (rc < 0)
                return GSI_P2P_ENDED;
            if (rc) {
                w->state = GSI_WINDOW_FREE;
                o->copied += w->bytes;
                *moved = 1;
            }
        }
        busy |= w->state != GSI_WINDOW_FREE;
    }
    if (o->outcome && !busy) {
        gsi_p2p_end(e, o,
                    gsi_fail(GRADSYNC_ERR_INTERNAL, "rank %d asked for a message in memory that it does not share",
                             o->call.peer));
        return GSI_P2P_ENDED;
    }
    if (o->outcome || o->copied < o->call.bytes)
        return busy ? GSI_P2P_BUSY : GSI_P2P_IDLE;
    gsi_p2p_end(e, o, 0);
    return GSI_P2P_ENDED;
}

void gsi_p2p_on_done(gsi_engine *e, int peer, const gsi_p2p_mail *mail)
{
    gsi_p2p_op *o = gsi_p2p_find(e->p2p, mail->u.at.to, GRADSYNC_SEND, peer);
    int rc = mail->tag;

    if (!o || o->phase != GSI_P2P_BY_WINDOW || o->working)
        return;
    if (rc == GRADSYNC_ERR_MISMATCH)
        gsi_fail(rc, "rank %d receives at most %llu bytes with tag %d, but this rank (%d) sends %llu; make them agree",
                 peer, (unsigned long long)mail->bytes, o->call.tag, e->rank, (unsigned long long)o->call.bytes);
    else if (rc)
        rc = gsi_fail(rc < 0 && rc >= GRADSYNC_ERR_INTERNAL ? rc : GRADSYNC_ERR_INTERNAL,
                      "rank %d could not take the message of %llu bytes with tag %d: %s", peer,
                      (unsigned long long)o->call.bytes, o->call.tag, gradsync_error_name(rc));
    gsi_p2p_end(e, o, rc);
}

/* ---- Receiving ------------------------------------------------------------------------ */

static void pay_peer(gsi_engine *e, int peer)
{
    gsi_p2p_peer *p = &e->p2p->peers[peer];
    gsi_p2p_mail mail = {.kind = GSI_MAIL_CREDIT, .bytes = p->owed};
    uint32_t owed = p->owed;

    p->owed = 0;
    if (gsi_p2p_send_mail(e, peer, &mail, 0) == 1 || e->broken)
        return;
    p->owed = owed;
    e->p2p->owing = 1;
}

void gsi_p2p_pay(gsi_engine *e)
{
    e->p2p->owing = 0;
    for (int r = 0; r < e->n && !e->broken; r++)
        if (e->p2p->peers[r].owed >= PAY_AT)
            pay_peer(e, r);
}

/* Fails as the receiver of a message that is too long, or that could not be taken. */
static int fail_recv(const gsi_p2p_op *o, int rc)
{
    if (rc != GRADSYNC_ERR_MISMATCH)
        return gsi_fail(rc, "a message of %llu bytes with tag %d of rank %d could not be taken: %s",
                        (unsigned long long)o->size, o->call.tag, o->call.peer, gradsync_strerror(rc));
    return gsi_fail(rc, "rank %d sent %llu bytes with tag %d, but this rank receives at most %llu; make them agree",
                    o->call.peer, (unsigned long long)o->size, o->call.tag, (unsigned long long)o->call.bytes);
}

static void end_recv(gsi_engine *e, gsi_p2p_op *o, int rc)
{
    if (rc)
        fail_recv(o, rc);
    else if (o->call.got)
        *o->call.got = o->size;
    gsi_p2p_end(e, o, rc);
}

/* The receive o gets this message; it is in no queue. */
static void take_message(gsi_engine *e, gsi_p2p_op *o, const gsi_p2p_mail *mail)
{
    gsi_p2p_peer *peer = &e->p2p->peers[o->call.peer];
    int too_long = mail->bytes > o->call.bytes;

    o->size = mail->bytes;
    if (mail->kind == GSI_MAIL_EAGER) {
        int from = o->call.peer;
        if (o->size && !too_long)
            memcpy(o->call.buf, mail->u.data, o->size);
        end_recv(e, o, too_long ? GRADSYNC_ERR_MISMATCH : 0);
        if (++peer->owed >= PAY_AT)
            pay_peer(e, from);
        return;
    }
    int staged = mail->kind == GSI_MAIL_STAGED;
    o->theirs = mail->u.at.from;
    o->src_mem = mail->u.at.mem;
    o->src_off = staged ? (uint64_t)mail->u.at.window * GSI_P2P_CHUNK : mail->u.at.off;
    o->src_chunk = staged ? mail->u.at.window + 1 : 0;
    o->outcome = too_long ? GRADSYNC_ERR_MISMATCH : 0;
    if (too_long || !o->size)
        o->phase = GSI_P2P_ANSWER;
    else
        o->phase = staged || o->src_mem || o->call.peer == e->rank ? GSI_P2P_MOVING : GSI_P2P_BY_WINDOW;
    gsi_p2p_work(e->p2p, o);
}

void gsi_p2p_begin_recv(gsi_engine *e, gsi_p2p_op *o)
{
    gsi_p2p_peer *peer = &e->p2p->peers[o->call.peer];
    gsi_p2p_early *before = NULL, *m = peer->early;

    while (m && m->mail.tag != o->call.tag) {
        before = m;
        m = m->next;
    }
    if (!m) {
        gsi_p2p_append(&peer->recvs, o);
        return;
    }
    if (before)
        before->next = m->next;
    else
        peer->early = m->next;
    if (peer->early_tail == m)
        peer->early_tail = before;
    take_message(e, o, &m->mail);
    free(m);
}

void gsi_p2p_on_message(gsi_engine *e, int from, const gsi_p2p_mail *mail, uint32_t bytes)
{
    gsi_p2p_peer *peer = &e->p2p->peers[from];
    int eager = mail->kind == GSI_MAIL_EAGER, staged = mail->kind == GSI_MAIL_STAGED;

    if (eager ? mail->bytes != bytes - 16 : bytes != 16 + GSI_P2P_PLACE)
        return; /* not from our code */
    if (staged && (mail->bytes > GSI_P2P_CHUNK || mail->u.at.window >= GSI_P2P_CHUNKS))
        return;
    for (gsi_p2p_op *o = peer->recvs.head; o; o = o->next)
        if (o->call.tag == mail->tag) {
            gsi_p2p_remove(&peer->recvs, o);
            take_message(e, o, mail);
            return;
        }
    gsi_p2p_early *m = gsi_calloc(1, offsetof(gsi_p2p_early, mail) + bytes);
    if (!m) {
        gsi_p2p_break(
            e, gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a message of rank %d that is not received yet", from));
        return;
    }
    memcpy(&m->mail, mail, bytes);
    if (peer->early_tail)
        peer->early_tail->next = m;
    else
        peer->early = m;
    peer->early_tail = m;
}

/* A message of this rank to itself: 1 when it is copied. */
static int copy_own(gsi_engine *e, gsi_p2p_op *o, int *moved)
{
    const gsi_p2p_op *from = gsi_p2p_find(e->p2p, o->theirs, GRADSYNC_SEND, e->rank);
    uint64_t piece = o->size - o->transfer.done;

    if (!from)
        return gsi_fail(GRADSYNC_ERR_INTERNAL, "a message of this rank to itself has gone");
    if (piece > GSI_P2P_PIECE)
        piece = GSI_P2P_PIECE;
    memmove((char *)o->call.buf + o->transfer.done, (const char *)from->call.buf + o->transfer.done, piece);
    o->transfer.done += piece;
    *moved = 1;
    return o->transfer.done == o->size;
}

/* Tells the sender that the message is here, or refused. */
static int answer(gsi_engine *e, gsi_p2p_op *o, int *moved)
{
    gsi_p2p_mail mail = {.kind = GSI_MAIL_DONE, .tag = o->outcome, .bytes = o->call.bytes};

    if (o->src_chunk) {
        mail.kind = GSI_MAIL_RELEASE;
        mail.u.at.window = o->src_chunk - 1;
    }
    mail.u.at.to = o->theirs;
    int rc = gsi_p2p_send_mail(e, o->call.peer, &mail, GSI_P2P_PLACE);
    if (rc < 0)
        return GSI_P2P_ENDED;
    if (!rc)
        return GSI_P2P_BUSY;
    *moved = 1;
    end_recv(e, o, o->outcome);
    return GSI_P2P_ENDED;
}

/* The first window of a message: all of the buffer, if the sender can reach it. 0, GRADSYNC_IN_PROGRESS, NOMEM. */
static int prepare_windows(gsi_engine *e, gsi_p2p_op *o)
{
    uint32_t mem = 0;
    uint64_t off = 0;

    if (!o->id && gsi_p2p_give_id(e->p2p, o))
        return GRADSYNC_ERR_NOMEM;
    int shared = share_buffer(e, o, o->size, &mem, &off);
    if (shared < 0)
        return GRADSYNC_IN_PROGRESS;
    o->windows = gsi_calloc(GSI_P2P_WINDOWS, sizeof *o->windows);
    if (!o->windows)
        return GRADSYNC_ERR_NOMEM;
    if (shared) {
        o->windows[0] =
            (gsi_p2p_window){.state = GSI_WINDOW_OPEN, .chunk = OWN_MEMORY, .mem = mem, .off = off, .bytes = o->size};
        o->granted = o->size;
    }
    return 0;
}

/* Empties a full window, fills a free one with a chunk. < 0: there are no chunks at all. */
static int turn_window(gsi_engine *e, gsi_p2p_op *o, gsi_p2p_window *w, int *moved)
{
    gsi_p2p *p = e->p2p;

    if (w->state == GSI_WINDOW_FULL) {
        if (w->chunk != OWN_MEMORY) {
            memcpy((char *)o->call.buf + w->at, gsi_p2p_chunk(p, w->chunk), w->bytes);
            gsi_p2p_free_chunk(p, w->chunk);
        }
        o->copied += w->bytes;
        w->state = GSI_WINDOW_FREE;
        *moved = 1;
    }
    if (w->state != GSI_WINDOW_FREE || o->granted == o->size)
        return 0;
    int chunk = gsi_p2p_take_chunk(e, -1);
    if (chunk < 0)
        return chunk == -1 ? 0 : GRADSYNC_ERR_NOMEM;
    uint64_t left = o->size - o->granted;
    *w = (gsi_p2p_window){.state = GSI_WINDOW_OPEN,
                          .chunk = chunk,
                          .mem = p->stage.id,
                          .off = (uint64_t)chunk * GSI_P2P_CHUNK,
                          .at = o->granted,
                          .bytes = left < GSI_P2P_CHUNK ? left : GSI_P2P_CHUNK};
    o->granted += w->bytes;
    return 0;
}

static int grant(gsi_engine *e, gsi_p2p_op *o, int index)
{
    gsi_p2p_window *w = &o->windows[index];
    gsi_p2p_mail mail = {.kind = GSI_MAIL_GRANT, .bytes = w->bytes};

    mail.u.at.to = o->theirs;
    mail.u.at.from = o->id;
    mail.u.at.at = w->at;
    mail.u.at.off = w->off;
    mail.u.at.mem = w->mem;
    mail.u.at.window = (uint32_t)index;
    int rc = gsi_p2p_send_mail(e, o->call.peer, &mail, GSI_P2P_PLACE);
    if (rc == 1)
        w->state = GSI_WINDOW_OUT;
    return rc;
}

static int step_windows(gsi_engine *e, gsi_p2p_op *o, int *moved)
{
    int busy = 0, rc = o->windows ? 0 : prepare_windows(e, o);

    if (rc == GRADSYNC_IN_PROGRESS)
        return GSI_P2P_BUSY;
    for (int i = 0; !rc && i < GSI_P2P_WINDOWS; i++) {
        gsi_p2p_window *w = &o->windows[i];
        rc = turn_window(e, o, w, moved);
        if (!rc && w->state == GSI_WINDOW_OPEN) {
            int told = grant(e, o, i);
            if (told < 0)
                return GSI_P2P_ENDED;
            *moved |= told;
        }
        busy |= w->state == GSI_WINDOW_OPEN || (w->state == GSI_WINDOW_FREE && o->granted < o->size);
    }
    if (rc) { /* nothing is granted yet */
        o->outcome = rc;
        o->phase = GSI_P2P_ANSWER;
        return answer(e, o, moved);
    }
    if (o->copied < o->size)
        return busy ? GSI_P2P_BUSY : GSI_P2P_IDLE;
    end_recv(e, o, 0);
    return GSI_P2P_ENDED;
}

int gsi_p2p_step_recv(gsi_engine *e, gsi_p2p_op *o, int *moved)
{
    const gsi_p2p_call *c = &o->call;

    if (o->phase == GSI_P2P_BY_WINDOW)
        return step_windows(e, o, moved);
    if (o->phase == GSI_P2P_MOVING) {
        int rc = c->peer == e->rank ? copy_own(e, o, moved)
                                    : gsi_p2p_transfer_step(e, &o->transfer, 1, c->peer, o->src_mem, o->src_off, c->buf,
                                                            o->size, moved);
        if (!rc)
            return GSI_P2P_BUSY;
        o->outcome = rc < 0 ? rc : 0;
        o->phase = GSI_P2P_ANSWER;
    }
    return answer(e, o, moved);
}

void gsi_p2p_on_filled(gsi_engine *e, int peer, const gsi_p2p_mail *mail)
{
    gsi_p2p_op *o = gsi_p2p_find(e->p2p, mail->u.at.to, GRADSYNC_RECV, peer);
    uint32_t i = mail->u.at.window;

    if (!o || !o->windows || i >= GSI_P2P_WINDOWS || o->windows[i].state != GSI_WINDOW_OUT)
        return;
    o->windows[i].state = GSI_WINDOW_FULL;
    gsi_p2p_work(e->p2p, o);
}
