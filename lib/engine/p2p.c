/* SPDX-License-Identifier: Apache-2.0 */
/* Point to point: calls, queues, rounds of progress, failures. */
#include "engine/p2p.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

enum { MOST_MAIL = 256 }; /* in one round: a peer that never stops does not keep this rank from its own work */

/* ---- Lists ---------------------------------------------------------------------- */

void gsi_p2p_append(gsi_p2p_queue *queue, gsi_p2p_op *o)
{
    o->next = NULL;
    if (queue->tail)
        queue->tail->next = o;
    else
        queue->head = o;
    queue->tail = o;
}

void gsi_p2p_remove(gsi_p2p_queue *queue, gsi_p2p_op *o)
{
    gsi_p2p_op *before = NULL, *at = queue->head;
    while (at && at != o) {
        before = at;
        at = at->next;
    }
    if (!at)
        return;
    if (before)
        before->next = o->next;
    else
        queue->head = o->next;
    if (queue->tail == o)
        queue->tail = before;
}

static gsi_p2p_op *take_first(gsi_p2p_queue *queue)
{
    gsi_p2p_op *o = queue->head;
    if (o && !(queue->head = o->next))
        queue->tail = NULL;
    return o;
}

void gsi_p2p_work(gsi_p2p *p, gsi_p2p_op *o)
{
    if (o->working)
        return;
    o->working = 1;
    gsi_p2p_append(&p->work, o);
}

int gsi_p2p_give_id(gsi_p2p *p, gsi_p2p_op *o)
{
    uint32_t at = p->lowest;
    while (at < p->room && p->table[at])
        at++;
    if (at == p->room) {
        uint32_t room = p->room ? 2 * p->room : 16;
        gsi_p2p_op **bigger = gsi_realloc(p->table, room * sizeof *bigger);
        if (!bigger)
            return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to note a message");
        memset(bigger + p->room, 0, (room - p->room) * sizeof *bigger);
        p->table = bigger;
        p->room = room;
    }
    p->table[at] = o;
    p->lowest = at + 1;
    o->id = (uint64_t)++p->generation << 32 | (at + 1);
    return 0;
}

gsi_p2p_op *gsi_p2p_find(const gsi_p2p *p, uint64_t id, int kind, int peer)
{
    uint32_t at = (uint32_t)id - 1;
    gsi_p2p_op *o = at < p->room ? p->table[at] : NULL;
    return o && o->id == id && o->call.kind == kind && o->call.peer == peer ? o : NULL;
}

/* ---- The end of an op ------------------------------------------------------------- */

static void end_as(gsi_engine *e, gsi_p2p_op *o, int result)
{
    gsi_p2p *p = e->p2p;

    if (o->before)
        o->before->behind = o->behind;
    else
        p->all = o->behind;
    if (o->behind)
        o->behind->before = o->before;
    if (o->id) {
        uint32_t at = (uint32_t)o->id - 1;
        p->table[at] = NULL;
        p->lowest = at < p->lowest ? at : p->lowest;
    }
    for (int i = 0; o->windows && i < GSI_P2P_WINDOWS; i++)
        if (o->call.kind == GRADSYNC_RECV && o->windows[i].chunk >= 0 && o->windows[i].state != GSI_WINDOW_FREE)
            gsi_p2p_free_chunk(p, o->windows[i].chunk);
    free(o->windows);
    if (o->mem)
        gsi_register_put(e->reg, o->mem);
    o->op.result = result;
    o->op.state = GSI_OP_DONE;
    o->op.measured_us = gsi_ticks_us(gsi_ticks() - o->op.start_ticks);
    if (o->op.posted)
        gsi_engine_tell(e, &o->op);
}

void gsi_p2p_end(gsi_engine *e, gsi_p2p_op *o, int rc)
{
    if (rc < 0) {
        *o->op.error = (gradsync_error_info)GRADSYNC_ERROR_INFO_INIT;
        gradsync_last_error(o->op.error);
        o->op.error->rank = e->rank;
        o->op.error->peer = o->call.peer;
    }
    end_as(e, o, rc);
}

void gsi_p2p_fail_all(gsi_engine *e)
{
    gsi_p2p *p = e->p2p;

    if (!p)
        return;
    pthread_mutex_lock(&e->queue_lock);
    gsi_p2p_op *posted = p->posted.head;
    p->posted = (gsi_p2p_queue){0};
    atomic_store(&p->has_posted, 0);
    pthread_mutex_unlock(&e->queue_lock);
    for (gsi_p2p_op *next; posted; posted = next) { /* they are among all now, as those that had begun */
        next = posted->next;
        posted->before = NULL;
        posted->behind = p->all;
        if (p->all)
            p->all->before = posted;
        p->all = posted;
    }
    for (int r = 0; r < e->n; r++)
        p->peers[r].out = p->peers[r].recvs = p->peers[r].waits = (gsi_p2p_queue){0};
    p->work = (gsi_p2p_queue){0};
    p->blocked = 0;
    while (p->all) {
        *p->all->op.error = e->failure;
        end_as(e, p->all, e->failure.code);
    }
}

void gsi_p2p_break(gsi_engine *e, int rc)
{
    gsi_failure failure = {rc, e->rank, e->rank, ""};
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

    gradsync_last_error(&info);
    snprintf(failure.text, sizeof failure.text, "rank %d failed: %.180s", e->rank, info.message);
    gsi_engine_publish(e, &failure);
    gsi_engine_break(e, &failure, 0, -1);
}

/* ---- Making and ending ---------------------------------------------------------------- */

/* lock is held. */
static int make(gsi_engine *e)
{
    if (e->p2p)
        return 0;
    gsi_p2p *p = gsi_calloc(1, sizeof *p);
    if (p)
        p->peers = gsi_calloc((size_t)e->n, sizeof *p->peers);
    if (!p || !p->peers) {
        free(p);
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for messages between %d ranks", e->n);
    }
    p->loadstore = e->ep->loadstore;
    atomic_store(&e->p2p, p);
    return 0;
}

static int make_ready(gsi_engine *e)
{
    if (e->p2p)
        return 0;
    if (!e->ep->ops->mail)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED, "%s has no point-to-point operations", e->ep->ops->name);
    pthread_mutex_lock(&e->lock);
    int rc = make(e);
    pthread_mutex_unlock(&e->lock);
    return rc;
}

void gsi_p2p_free(gsi_engine *e)
{
    gsi_p2p *p = e->p2p;

    if (!p)
        return;
    gsi_p2p_free_stage(e);
    for (int r = 0; r < e->n; r++) {
        for (gsi_p2p_early *m = p->peers[r].early, *next; m; m = next) {
            next = m->next;
            free(m);
        }
        free(p->peers[r].signals);
    }
    free(p->peers);
    free(p->table);
    free(p);
    e->p2p = NULL;
}

/* ---- Calls ------------------------------------------------------------------------------ */

static void begin(gsi_engine *e, gsi_p2p_op *o)
{
    gsi_p2p *p = e->p2p;
    gsi_p2p_peer *peer = &p->peers[o->call.peer];

    o->behind = p->all;
    o->before = NULL;
    if (p->all)
        p->all->before = o;
    p->all = o;
    switch (o->call.kind) {
    case GRADSYNC_RECV:
        gsi_p2p_begin_recv(e, o);
        break;
    case GRADSYNC_WAIT_SIGNAL:
        gsi_p2p_wait_signal(e, o);
        break;
    default:
        if (!peer->out.head)
            p->blocked++;
        gsi_p2p_append(&peer->out, o);
    }
}

/* Begins what other threads have posted since. */
static int begin_posted(gsi_engine *e)
{
    gsi_p2p *p = e->p2p;

    if (!atomic_load_explicit(&p->has_posted, memory_order_acquire))
        return 0;
    pthread_mutex_lock(&e->queue_lock);
    gsi_p2p_queue posted = p->posted;
    p->posted = (gsi_p2p_queue){0};
    atomic_store(&p->has_posted, 0);
    pthread_mutex_unlock(&e->queue_lock);
    for (gsi_p2p_op *o; (o = take_first(&posted));)
        begin(e, o);
    return 1;
}

static int issue(gsi_engine *e, gsi_p2p_op *o)
{
    switch (o->call.kind) {
    case GRADSYNC_SEND:
        return gsi_p2p_issue_send(e, o);
    case GRADSYNC_SIGNAL:
        return gsi_p2p_issue_signal(e, o);
    default:
        return gsi_p2p_issue_access(e, o);
    }
}

/* Sets what goes out to a peer under way, as far as there is room. */
static int run_out(gsi_engine *e, int peer)
{
    gsi_p2p *p = e->p2p;
    gsi_p2p_queue *out = &p->peers[peer].out;
    int moved = 0;

    /* issue() takes the op out of the queue, and may end it. */
    while (out->head && issue(e, out->head))
        moved = 1;
    if (moved && !out->head && !e->broken)
        p->blocked--;
    return moved;
}

static void begin_call(gsi_engine *e, gsi_op *op)
{
    gsi_p2p_op *o = gsi_p2p_op_of(op);

    begin_posted(e);
    begin(e, o);
    if (o->op.state != GSI_OP_DONE && e->p2p->peers[o->call.peer].out.head)
        run_out(e, o->call.peer);
}

static void post_call(gsi_engine *e, gsi_op *op)
{
    gsi_p2p *p = e->p2p;

    pthread_mutex_lock(&e->queue_lock);
    gsi_p2p_append(&p->posted, gsi_p2p_op_of(op));
    atomic_store(&p->has_posted, 1); /* seq_cst: before who sleeps is looked at, see gsi_engine_post */
    pthread_mutex_unlock(&e->queue_lock);
}

static void prepare(gsi_engine *e, const gsi_p2p_call *call, gsi_p2p_op *o, gradsync_error_info *error)
{
    o->call = *call;
    o->op.call.coll = (uint8_t)call->kind;
    o->op.call.timeout_ms = call->timeout_ms;
    o->op.engine = e;
    o->op.error = error;
    o->op.bytes = call->bytes;
    o->op.fd = -1;
    o->op.state = GSI_OP_QUEUED;
    o->op.start_ticks = gsi_ticks();
}

int gsi_p2p_run(gsi_engine *e, const gsi_p2p_call *call)
{
    gradsync_error_info error;
    gsi_p2p_op o = {0};
    int rc = make_ready(e);

    if (rc)
        return rc;
    prepare(e, call, &o, &error);
    return gsi_engine_run_op(e, &o.op, begin_call);
}

int gsi_p2p_post(gsi_engine *e, const gsi_p2p_call *call, gsi_op **out)
{
    int rc = make_ready(e);
    if (rc)
        return rc;
    gsi_p2p_op *o = gsi_calloc(1, sizeof *o + sizeof(gradsync_error_info));
    if (!o)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a request");
    prepare(e, call, o, (gradsync_error_info *)(o + 1));
    return gsi_engine_post_op(e, &o->op, post_call, out);
}

/* ---- Mail --------------------------------------------------------------------------------- */

static void handle(gsi_engine *e, int peer, const gsi_p2p_mail *mail, uint32_t bytes)
{
    gsi_p2p_peer *from = &e->p2p->peers[peer];

    if (bytes < 16)
        return; /* not from our code, as all that is told apart below */
    switch (mail->kind) {
    case GSI_MAIL_EAGER:
    case GSI_MAIL_STAGED:
    case GSI_MAIL_ANNOUNCE:
        gsi_p2p_on_message(e, peer, mail, bytes);
        break;
    case GSI_MAIL_GRANT:
        gsi_p2p_on_grant(e, peer, mail);
        break;
    case GSI_MAIL_FILLED:
        gsi_p2p_on_filled(e, peer, mail);
        break;
    case GSI_MAIL_DONE:
        gsi_p2p_on_done(e, peer, mail);
        break;
    case GSI_MAIL_RELEASE:
        gsi_p2p_on_release(e, peer, mail);
        break;
    case GSI_MAIL_CREDIT:
        from->ahead -= mail->bytes < from->ahead ? (uint32_t)mail->bytes : from->ahead;
        break;
    case GSI_MAIL_SIGNAL:
        gsi_p2p_on_signal(e, peer, mail);
        break;
    }
}

int gsi_p2p_send_mail(gsi_engine *e, int peer, const gsi_p2p_mail *mail, uint32_t bytes)
{
    if (peer == e->rank) {
        handle(e, peer, mail, 16 + bytes);
        return 1;
    }
    int rc = e->ep->ops->mail(e->ep, peer, mail, 16 + bytes);
    if (rc < 0)
        gsi_p2p_break(e, rc);
    return rc;
}

static int read_mail(gsi_engine *e)
{
    gsi_p2p_mail mail;
    uint32_t bytes;
    int peer, count = 0;

    while (count < MOST_MAIL && !e->broken && e->ep->ops->mail_next(e->ep, &peer, &mail, &bytes)) {
        count++;
        if (!e->p2p && make(e)) {
            gsi_p2p_break(e, GRADSYNC_ERR_NOMEM);
            break;
        }
        memset((char *)&mail + bytes, 0, sizeof mail - bytes);
        handle(e, peer, &mail, bytes);
    }
    return count > 0;
}

/* ---- Progress --------------------------------------------------------------------------------- */

static int work(gsi_engine *e)
{
    gsi_p2p *p = e->p2p;
    gsi_p2p_queue todo = p->work;
    int moved = 0;

    p->work = (gsi_p2p_queue){0};
    while (todo.head && !e->broken) {
        gsi_p2p_op *o = take_first(&todo);
        int rc;
        o->working = 0;
        if (o->call.kind == GRADSYNC_RECV)
            rc = gsi_p2p_step_recv(e, o, &moved);
        else if (o->call.kind == GRADSYNC_SEND)
            rc = gsi_p2p_step_send(e, o, &moved);
        else
            rc = gsi_p2p_step_access(e, o, &moved);
        if (rc == GSI_P2P_BUSY && !e->broken)
            gsi_p2p_work(p, o);
    }
    return moved;
}

int gsi_p2p_progress(gsi_engine *e)
{
    int moved = 0;

    if (e->ep->ops->mail_next)
        moved = read_mail(e);
    gsi_p2p *p = e->p2p;
    if (!p || e->broken)
        return moved;
    moved |= begin_posted(e);
    for (int r = 0; p->blocked && r < e->n && !e->broken; r++)
        if (p->peers[r].out.head)
            moved |= run_out(e, r);
    if (p->owing && !e->broken)
        gsi_p2p_pay(e);
    if (p->work.head && !e->broken)
        moved |= work(e);
    return moved;
}

/* ---- Trouble ----------------------------------------------------------------------------------- */

/* An op that waits for a peer that is lost; NULL. */
static gsi_p2p_op *find_lost(gsi_engine *e, gradsync_peer_info *info)
{
    for (gsi_p2p_op *o = e->p2p->all; o; o = o->behind) {
        if (o->call.peer == e->rank)
            continue;
        *info = (gradsync_peer_info){0};
        e->ep->ops->peer_info(e->ep, o->call.peer, info);
        if (!info->alive)
            return o;
    }
    return NULL;
}

static void describe(const gsi_p2p_op *o, char *text, size_t room)
{
    const gsi_p2p_call *c = &o->call;
    const char *name = gradsync_coll_name(c->kind);

    if (c->kind == GRADSYNC_SEND || c->kind == GRADSYNC_RECV)
        snprintf(text, room, "%s (%llu bytes, tag %d)", name, (unsigned long long)c->bytes, c->tag);
    else if (c->kind == GRADSYNC_SIGNAL || c->kind == GRADSYNC_WAIT_SIGNAL)
        snprintf(text, room, "%s (slot %u)", name, c->slot);
    else
        snprintf(text, room, "%s (%llu bytes)", name, (unsigned long long)c->bytes);
}

static void lose(gsi_engine *e, const gsi_p2p_op *o, const gradsync_peer_info *info)
{
    gsi_failure failure = {GRADSYNC_ERR_PEER_LOST, e->rank, o->call.peer, ""};
    char what[80];

    describe(o, what, sizeof what);
    snprintf(failure.text, sizeof failure.text,
             "rank %d (pid %lld) died or left the communicator, with rank %d in %s; go on with a new communicator of "
             "the other ranks",
             o->call.peer, (long long)info->pid, e->rank, what);
    gsi_engine_publish(e, &failure);
    gsi_engine_break(e, &failure, 0, -1);
}

static void time_out(gsi_engine *e, const gsi_p2p_op *o)
{
    gsi_failure failure = {GRADSYNC_ERR_TIMEOUT, e->rank, o->call.peer, ""};
    char what[80];

    describe(o, what, sizeof what);
    snprintf(failure.text, sizeof failure.text,
             "rank %d waited %.1f s for rank %d in %s; does rank %d make the call that belongs to it? (timeout_ms, "
             "GRADSYNC_TIMEOUT)",
             e->rank, (double)o->call.timeout_ms / 1000, o->call.peer, what, o->call.peer);
    gsi_engine_publish(e, &failure);
    gsi_engine_break(e, &failure, 0, -1);
}

int gsi_p2p_look_for_trouble(gsi_engine *e)
{
    gsi_p2p *p = e->p2p;
    gradsync_peer_info info;
    char text[256];
    int peer;

    if (!p || !p->all)
        return 0;
    e->ep->ops->check(e->ep, 0, &peer, text, sizeof text);
    if (find_lost(e, &info)) {
        /* What the lost rank had still done counts: it may have been enough. */
        if (gsi_engine_progress(e))
            return 1;
        const gsi_p2p_op *o = find_lost(e, &info);
        if (o) {
            lose(e, o, &info);
            return 1;
        }
    }
    for (const gsi_p2p_op *o = p->all; o; o = o->behind)
        if (gsi_op_is_late(&o->op)) {
            time_out(e, o);
            return 1;
        }
    return 0;
}
