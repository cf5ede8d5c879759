/* SPDX-License-Identifier: Apache-2.0 */
#include "bootstrap/root.h"
#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { EVENTS = 256 };

static int64_t sooner(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

int64_t gsi_root_give_up(int64_t now, int64_t deadline)
{
    return deadline - sooner((deadline - now) / 8, 1000000000);
}

int gsi_root_watch(gsi_root *r, int fd, void *owner)
{
    struct epoll_event e = {EPOLLIN, {owner}};

    return epoll_ctl(r->epoll, EPOLL_CTL_ADD, fd, &e) < 0 ? errno : 0;
}

static void set_interest(gsi_root *r, gsi_peer *p)
{
    uint32_t want = p->head ? EPOLLIN | EPOLLOUT : EPOLLIN;
    struct epoll_event e = {want, {p}};

    if (want != p->interest && epoll_ctl(r->epoll, EPOLL_CTL_MOD, p->fd, &e) == 0)
        p->interest = want;
}

/* ---- Sending ---- */

void gsi_root_append(gsi_root *r, gsi_peer *p, struct gsi_segment *s, const unsigned char *data, size_t n)
{
    s->data = data;
    s->n = n;
    if (!p->head)
        r->unsent++;
    *p->tail = s;
    p->tail = &s->next;
}

static void pop(gsi_root *r, gsi_peer *p)
{
    struct gsi_segment *s = p->head;

    p->head = s->next;
    p->head_at = 0;
    if (!p->head) {
        p->tail = &p->head;
        r->unsent--;
    }
    free(s);
}

struct gsi_segment *gsi_root_segment(gsi_root *r, size_t own)
{
    struct gsi_segment *s = gsi_calloc(1, sizeof *s + own);

    if (!s)
        gsi_bootstrap_fail(r->b, GRADSYNC_ERR_NOMEM, -1, "no memory to send to the ranks");
    return s;
}

int gsi_root_queue_raw(gsi_root *r, gsi_peer *p, const void *data, size_t n)
{
    struct gsi_segment *s = gsi_root_segment(r, n);

    if (!s)
        return GRADSYNC_ERR_NOMEM;
    memcpy(s->own, data, n);
    gsi_root_append(r, p, s, s->own, n);
    return 0;
}

int gsi_root_queue(gsi_root *r, gsi_peer *p, uint32_t type, const void *body, size_t n)
{
    size_t wire = GSI_HEAD_BYTES + (n ? n + GSI_AEAD_BYTES : 0);
    struct gsi_segment *s = gsi_root_segment(r, wire);

    if (!s)
        return GRADSYNC_ERR_NOMEM;
    gsi_link_seal_head(&p->link, type, r->b->seq, n, s->own);
    if (n)
        gsi_link_seal_body(&p->link, body, n, s->own + GSI_HEAD_BYTES);
    gsi_root_append(r, p, s, s->own, wire);
    return 0;
}

int gsi_root_push(gsi_root *r, gsi_peer *p)
{
    while (p->head) {
        ssize_t n = send(p->fd, p->head->data + p->head_at, p->head->n - p->head_at,
                         MSG_NOSIGNAL | (p->head->next ? MSG_MORE : 0));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN)
            return -1;
        if (n < 0)
            break;
        p->head_at += (size_t)n;
        if (p->head_at == p->head->n)
            pop(r, p);
    }
    set_interest(r, p);
    /* One that has been told its error gets an end, and is read until its own: closing with
     * unread bytes would reset the connection, and the error with it. */
    if (!p->head && (p->state == GSI_PEER_REFUSED || (r->closing && p->state == GSI_PEER_RANK)))
        shutdown(p->fd, SHUT_WR);
    return 0;
}

void gsi_root_drop(gsi_root *r, gsi_peer *p)
{
    if (p->rank >= 0)
        r->ranks[p->rank] = NULL;
    else
        gsi_root_unlink_guest(r, p);
    if (p->rank >= 0 && p->fd >= 0)
        r->open--;
    while (p->head)
        pop(r, p);
    if (p->fd >= 0)
        close(p->fd); /* which also ends the watching */
    gsi_link_wipe(&p->link);
    free(p->body);
    free(p);
}

/* ---- Failure ---- */

int gsi_root_fail_info(gsi_root *r, const gradsync_error_info *info)
{
    gsi_bootstrap *b = r->b;
    unsigned char note[GSI_NOTE_MAX];

    if (b->failure.code)
        return gsi_fail_info(&b->failure);
    gsi_bootstrap_fail_info(b, info);
    size_t n = gsi_note_pack(&b->failure, note);
    for (int i = 1; i < b->job.nranks; i++) {
        gsi_peer *p = r->ranks[i];
        if (p && p->state == GSI_PEER_RANK && !gsi_root_queue(r, p, GSI_FRAME_ERROR, note, n))
            gsi_root_push(r, p); /* if it is over, it does not matter any more */
    }
    return gsi_fail_info(&b->failure);
}

int gsi_root_fail(gsi_root *r, int code, int peer, const char *format, ...)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    va_list args;

    info.code = code;
    info.peer = peer;
    va_start(args, format);
    vsnprintf(info.message, sizeof info.message, format, args);
    va_end(args);
    return gsi_root_fail_info(r, &info);
}

static void lose(gsi_root *r, gsi_peer *p, int err)
{
    char text[64];
    int rank = p->rank;

    /* Everything that was due has gone out: an end here is none of a collective's business,
     * unless another one is called. */
    if (!r->b->failure.code && r->missing == 0 && !p->head) {
        p->state = GSI_PEER_GONE;
        close(p->fd);
        p->fd = -1;
        r->open--;
        return;
    }
    gsi_root_fail(r, GRADSYNC_ERR_PEER_LOST, rank,
                  "rank %d (%s) closed its connection to rank 0%s%s: it ended or failed; see its own output", rank,
                  p->name, err ? ": " : "", err ? gsi_net_error(err, text) : "");
    gsi_root_drop(r, p);
}

/* ---- Receiving ---- */

static int on_head(gsi_root *r, gsi_peer *p)
{
    const gsi_frame *f = &p->link.frame;
    gsi_bootstrap *b = r->b;

    if (f->type == GSI_FRAME_BLOCK) {
        /* A rank is at most one call ahead: it needs our result for more. */
        uint32_t due = r->running && !r->there[p->rank] ? b->seq : b->seq + 1;
        if (f->seq != due || p->block_seq == due || (!r->running && r->missing))
            return gsi_root_fail(r, GRADSYNC_ERR_MISMATCH, p->rank,
                                 "rank %d sent its part of all-gather %u when %u was due; every rank has to make the "
                                 "same calls",
                                 p->rank, f->seq, due);
        if (due == b->seq && f->length != r->bytes)
            return gsi_root_fail(r, GRADSYNC_ERR_MISMATCH, p->rank,
                                 "rank %d gave %llu bytes to all-gather %u, rank 0 gave %llu; every rank has to give "
                                 "the same",
                                 p->rank, (unsigned long long)f->length, f->seq, (unsigned long long)r->bytes);
    }
    if (!f->length)
        return 0;
    free(p->body); /* an early block, and now an error: it will not be used */
    p->body = gsi_calloc(1, f->length + GSI_AEAD_BYTES);
    if (!p->body)
        return gsi_root_fail(r, GRADSYNC_ERR_NOMEM, -1, "rank 0 has no memory for %llu bytes from rank %d",
                             (unsigned long long)f->length, p->rank);
    gsi_link_body(&p->link, p->body, NULL);
    return 0;
}

void gsi_root_here(gsi_root *r, int rank)
{
    if (!r->there[rank]) {
        r->there[rank] = 1;
        r->missing--;
    }
}

static int on_block(gsi_root *r, gsi_peer *p)
{
    const gsi_frame *f = &p->link.frame;

    p->block_seq = f->seq;
    if (!r->running || f->seq != r->b->seq) {
        p->block_bytes = f->length;
        return 0; /* kept in body */
    }
    if (f->length)
        memcpy(r->recv + r->bytes * (uint64_t)p->rank, p->body, f->length);
    free(p->body);
    p->body = NULL;
    gsi_root_here(r, p->rank);
    return 0;
}

/* A rank has failed and says why: so does the job. */
static int on_error(gsi_root *r, gsi_peer *p)
{
    gradsync_error_info info;

    if (gsi_note_parse(p->body, p->link.frame.length, &info) < 0)
        gsi_error_fill(&info, GRADSYNC_ERR_INTERNAL, "rank %d sent an error that cannot be read", p->rank);
    if (info.peer < 0)
        info.peer = p->rank;
    p->state = GSI_PEER_GONE; /* it knows */
    return gsi_root_fail_info(r, &info);
}

/* 0, or nonzero if p does not exist any more or the job has failed. */
static int on_event(gsi_root *r, gsi_peer *p, enum gsi_event event)
{
    if (p->rank < 0)
        return gsi_root_on_guest(r, p, event);
    if (event < 0)
        return gsi_root_fail(r, GRADSYNC_ERR_AUTH, p->rank,
                             "bytes from rank %d (%s) fail authentication: they were changed on the way, or that rank "
                             "has a bug; check what is between it and rank 0",
                             p->rank, p->name);
    if (event == GSI_LINK_HEAD) {
        int e = on_head(r, p);
        return e || p->link.frame.length ? e : on_block(r, p);
    }
    if (event == GSI_LINK_BODY)
        return p->link.frame.type == GSI_FRAME_BLOCK ? on_block(r, p) : on_error(r, p);
    return 0;
}

static void on_readable(gsi_root *r, gsi_peer *p)
{
    unsigned char data[16384];

    /* A few rounds only, so that nobody is served at the cost of the others. */
    for (int i = 0; i < 16; i++) {
        ssize_t n = recv(p->fd, data, sizeof data, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (p->state == GSI_PEER_REFUSED && n > 0)
            continue; /* only its end is of interest */
        if (n <= 0 && p->rank < 0) {
            gsi_root_drop(r, p);
            return;
        }
        if (n <= 0) {
            lose(r, p, n < 0 ? errno : 0);
            return;
        }
        for (size_t at = 0, used; at < (size_t)n; at += used) {
            if (on_event(r, p, gsi_link_feed(&p->link, data + at, (size_t)n - at, &used)))
                return;
            if (p->state == GSI_PEER_REFUSED)
                break;
        }
    }
}

void gsi_root_on_peer(gsi_root *r, gsi_peer *p, uint32_t events)
{
    if (p->fd < 0)
        return;
    if ((events & EPOLLOUT) && gsi_root_push(r, p) < 0) {
        /* An error from it may still be readable; its end certainly is. */
        events |= EPOLLIN;
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        on_readable(r, p);
}

static const int *listener_of(const gsi_root *r, const void *owner)
{
    for (int i = 0; i < r->nlisteners; i++)
        if (owner == &r->listeners[i])
            return &r->listeners[i];
    return NULL;
}

void gsi_root_step(gsi_root *r, int64_t until)
{
    struct epoll_event events[EVENTS];
    int64_t now = gsi_now_ns(), wake = gsi_root_expire(r, now);

    if (wake > until)
        wake = until;
    if (wake > r->next_status)
        wake = r->next_status;
    int n = epoll_wait(r->epoll, events, EVENTS, gsi_poll_ms(wake, 60000));
    if (n < 0 && errno != EINTR) {
        gsi_root_fail(r, GRADSYNC_ERR_SYSTEM, -1, "rank 0 cannot wait for the ranks: epoll_wait failed");
        return;
    }
    for (int i = 0; i < n; i++)
        if (!listener_of(r, events[i].data.ptr))
            gsi_root_on_peer(r, events[i].data.ptr, events[i].events);
    /* Listeners last: a guest that they evict may have an event in this batch. */
    for (int i = 0; i < n; i++)
        if (listener_of(r, events[i].data.ptr))
            gsi_root_on_listener(r, *listener_of(r, events[i].data.ptr));
}

void gsi_root_farewell(gsi_root *r, int64_t until)
{
    r->next_status = INT64_MAX;
    r->closing = 1;
    for (int i = 1; i < r->b->job.nranks; i++)
        if (r->ranks[i] && r->ranks[i]->fd >= 0)
            gsi_root_push(r, r->ranks[i]);
    /* Ranks that are still to join are told as well. */
    while ((r->open || r->nguests || (r->nlisteners && r->missing)) && gsi_now_ns() < until)
        gsi_root_step(r, until);
}

void gsi_root_status(gsi_root *r)
{
    char text[GSI_NOTE_MAX];
    int64_t now = gsi_now_ns();

    if (now < r->next_status)
        return;
    r->next_status = now + r->status_every;
    gsi_rank_list(text, 200, r->there, r->b->job.nranks);
    for (int i = 1; i < r->b->job.nranks; i++) {
        gsi_peer *p = r->ranks[i];
        /* Only those that wait, and read; a queue must not grow for the others. */
        if (p && p->state == GSI_PEER_RANK && r->there[i] && !p->head &&
            !gsi_root_queue(r, p, GSI_FRAME_STATUS, text, strlen(text)))
            gsi_root_push(r, p);
    }
}

void gsi_root_destroy(gsi_root *r)
{
    if (!r)
        return;
    for (gsi_peer *p = r->oldest, *newer; p; p = newer) {
        newer = p->newer;
        gsi_root_drop(r, p);
    }
    for (int i = 1; r->ranks && i < r->b->job.nranks; i++)
        if (r->ranks[i])
            gsi_root_drop(r, r->ranks[i]);
    for (int i = 0; i < r->nlisteners; i++)
        close(r->listeners[i]);
    if (r->epoll >= 0)
        close(r->epoll);
    free(r->ranks);
    free(r->there);
    free(r->result);
    sodium_memzero(r->group, sizeof r->group);
    free(r);
}
