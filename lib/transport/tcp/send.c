/* SPDX-License-Identifier: Apache-2.0 */
/* Works become frames, frames leave in one system call, straight from the memory that they are about. */
#include "transport/tcp/state.h"
#include "base/error.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>

enum { IOVECS = 64, CHAIN = IOVECS / 2 };

static unsigned char *slot(gsi_conn *c, uint32_t index)
{
    return c->slots + (size_t)index * GSI_TCP_SLOT;
}

/* There is always room: works, answers and acknowledgements are bounded by what `out` was made for. */
static gsi_tcp_out *push(gsi_conn *c, const gsi_tcp_frame *frame)
{
    uint32_t index = c->out_head + c->out_count;

    if (index >= c->out_room)
        index -= c->out_room;
    c->out_count++;
    gsi_tcp_frame_pack(frame, slot(c, index));
    c->out[index] = (gsi_tcp_out){0};
    return &c->out[index];
}

/* ---- Sending ---- */

struct vectors {
    struct iovec list[IOVECS];
    int n;
    size_t bytes;
};

static void add(struct vectors *v, const void *from, uint64_t bytes)
{
    v->list[v->n++] = (struct iovec){(void *)from, bytes};
    v->bytes += bytes;
}

static void collect(gsi_conn *c, struct vectors *v)
{
    uint64_t skip = c->out_at;

    for (uint32_t i = 0, at = c->out_head; i < c->out_count && v->n + 2 <= IOVECS; i++) {
        const gsi_tcp_out *o = &c->out[at];
        unsigned char *head = slot(c, at);
        uint64_t first = GSI_TCP_HEAD + (o->copied ? o->bytes : 0);

        if (skip == 0)
            gsi_tcp_frame_ack(head, c->received);
        if (skip < first) {
            add(v, head + skip, first - skip);
            skip = 0;
        } else {
            skip -= first;
        }
        if (!o->copied && o->bytes > skip)
            add(v, o->from + skip, o->bytes - skip);
        skip = 0;
        at = at + 1 == c->out_room ? 0 : at + 1;
    }
}

/* n more bytes have gone. */
static void gone(gsi_conn *c, uint64_t n)
{
    c->out_at += n;
    while (c->out_count) {
        const gsi_tcp_out *o = &c->out[c->out_head];
        if (c->out_at < GSI_TCP_HEAD + o->bytes)
            return;
        c->out_at -= GSI_TCP_HEAD + o->bytes;
        c->sent += o->work;
        c->answers -= o->answer;
        c->out_head = c->out_head + 1 == c->out_room ? 0 : c->out_head + 1;
        c->out_count--;
    }
    c->out_head = 0; /* empty: begin where the slots are in the cache */
}

/* The socket is full. Trying again at every poll() would send it piecemeal: epoll tells when there is real room. */
static void block(gsi_conn *c)
{
    if (!c->blocked) {
        c->blocked = 1;
        c->rail->blocked++;
        gsi_tcp_watch(c->rail, c->fd, EPOLLIN | EPOLLOUT, &c->source, 1);
    }
}

void gsi_tcp_unblock(gsi_conn *c)
{
    if (c->blocked) {
        c->blocked = 0;
        c->rail->blocked--;
        if (c->state == GSI_TCP_OPEN)
            gsi_tcp_watch(c->rail, c->fd, EPOLLIN, &c->source, 1);
    }
}

void gsi_tcp_flush(gsi_conn *c)
{
    while (c->out_count && !c->send_error) {
        struct vectors v = {.n = 0};
        collect(c, &v);
        struct msghdr message = {.msg_iov = v.list, .msg_iovlen = (size_t)v.n};
        ssize_t n = sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0) {
            gone(c, (uint64_t)n);
            if ((size_t)n == v.bytes)
                continue;
            block(c);
            return;
        }
        if (errno == EINTR)
            continue;
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS || errno == ENOMEM) {
            block(c);
            return;
        }
        /* What the peer sent before it went is still to be read: poll() does, and then tells. */
        c->send_error = errno;
        gsi_tcp_mark_dirty(c);
    }
    gsi_tcp_unblock(c);
}

void gsi_tcp_send_ack(gsi_conn *c)
{
    if (!c->ack_due || c->state != GSI_TCP_OPEN)
        return;
    /* A frame that has not begun carries it. */
    if (c->out_count == 0 || (c->out_count == 1 && c->out_at > 0))
        push(c, &(gsi_tcp_frame){.kind = GSI_TCP_ACK});
    c->ack_due = c->ack_prompt = 0;
    if (!c->blocked)
        gsi_tcp_flush(c);
}

void gsi_tcp_answer(gsi_conn *c, const char *from, uint64_t bytes)
{
    gsi_tcp_out *o = push(c, &(gsi_tcp_frame){.kind = GSI_TCP_ANSWER, .bytes = bytes});

    o->from = from;
    o->bytes = bytes;
    o->answer = 1;
    c->answers++;
    gsi_tcp_mark_dirty(c);
}

/* ---- Posting ---- */

/* 1: it can be posted; 0: the connection is dead and it is dropped. */
static int may_post(const gsi_conn *c, const gsi_rail_work *work)
{
    if (c->state == GSI_TCP_DEAD)
        return 0;
    if (c->state != GSI_TCP_OPEN)
        return gsi_fail(GRADSYNC_ERR_INTERNAL, "a write on a TCP connection that is not ready; please report this");
    if (c->posted - c->done >= c->depth)
        return gsi_fail(GRADSYNC_ERR_INTERNAL, "more than %u writes in flight on a TCP connection; please report this",
                        c->depth);
    if (work->bytes > c->rail->base.max_bytes || (work->flags & GSI_RAIL_INLINE && work->bytes > GSI_TCP_INLINE))
        return gsi_fail(GRADSYNC_ERR_INTERNAL,
                        "a write of %llu bytes is too long for a TCP connection; please report this",
                        (unsigned long long)work->bytes);
    return 1;
}

static gsi_tcp_out *post(gsi_conn *c, const gsi_rail_work *work, gsi_tcp_frame *frame)
{
    int read = frame->kind == GSI_TCP_READ;

    c->works[c->posted++ % c->depth] = (gsi_tcp_work){
        .id = work->id,
        .bytes = work->bytes,
        .into = read ? work->local : NULL,
        .signal = (work->flags & GSI_RAIL_SIGNAL) != 0,
        .read = (uint8_t)read,
    };
    frame->remote = work->remote;
    frame->key = work->remote_key;
    frame->bytes = work->bytes;
    if (work->flags & GSI_RAIL_SIGNAL)
        frame->flags |= GSI_TCP_SIGNAL;
    gsi_tcp_out *o = push(c, frame);
    o->work = 1;
    return o;
}

/* A socket that was full a moment ago is left to poll(). */
static void posted(gsi_conn *c, uint32_t flags)
{
    if (!c->blocked && (!(flags & GSI_RAIL_MORE) || c->out_count >= CHAIN))
        gsi_tcp_flush(c);
}

int gsi_tcp_write(gsi_conn *c, const gsi_rail_work *work)
{
    gsi_tcp_frame frame = {.kind = GSI_TCP_WRITE};
    int r = may_post(c, work);

    if (r <= 0)
        return r;
    if (work->flags & GSI_RAIL_IMM) {
        frame.flags = GSI_TCP_IMM;
        frame.imm = work->imm;
    }
    gsi_tcp_out *o = post(c, work, &frame);
    o->bytes = work->bytes;
    o->from = work->local;
    if (work->flags & GSI_RAIL_INLINE && work->bytes) {
        o->copied = 1;
        memcpy(slot(c, (uint32_t)(o - c->out)) + GSI_TCP_HEAD, work->local, work->bytes);
    }
    posted(c, work->flags);
    return 0;
}

int gsi_tcp_read(gsi_conn *c, const gsi_rail_work *work)
{
    gsi_tcp_frame frame = {.kind = GSI_TCP_READ};
    int r = may_post(c, work);

    if (r <= 0)
        return r;
    post(c, work, &frame);
    posted(c, work->flags);
    return 0;
}

void gsi_tcp_ring(gsi_conn *c)
{
    if (c->state == GSI_TCP_OPEN && !c->blocked)
        gsi_tcp_flush(c);
}
