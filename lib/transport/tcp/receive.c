/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes become frames; payload goes straight to where it belongs, but for what was read ahead with heads. */
#include "transport/tcp/state.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>

enum {
    BUDGET = 4 << 20,   /* bytes of one connection in one poll(), so that the others get their turn */
    BIG = 32 << 10,     /* payload of this size is not worth reading ahead of */
    LOOK_BIG = 4 << 10, /* so much is read ahead then */
    /* Writes of this size are acknowledged at once: much memory is held until then. Others wait for the next frame that
     * goes to the peer, or for the next poll() or idle(). */
    PROMPT_BYTES = 16 << 10,
};

/* ---- Frames ---- */

/* Ends what the acknowledgements and answers allow to end. */
static void complete(gsi_conn *c)
{
    while (c->done < c->acked) {
        const gsi_tcp_work *w = &c->works[c->done % c->depth];
        if (w->read && !w->answered)
            return;
        c->done++;
        if (w->signal)
            gsi_tcp_emit(c, GSI_RAIL_SENT, w->id, 0);
    }
}

/* The oldest read without an answer, or NULL. */
static gsi_tcp_work *oldest_read(gsi_conn *c)
{
    if (c->answered < c->done)
        c->answered = c->done;
    for (; c->answered < c->sent; c->answered++) {
        gsi_tcp_work *w = &c->works[c->answered % c->depth];
        if (w->read && !w->answered)
            return w;
    }
    return NULL;
}

/* The payload of c->frame is there. */
static void end(gsi_conn *c)
{
    const gsi_tcp_frame *f = &c->frame;

    if (f->kind == GSI_TCP_ANSWER) {
        c->works[c->answered++ % c->depth].answered = 1;
        complete(c);
        return;
    }
    c->received++;
    if (f->flags & GSI_TCP_SIGNAL) {
        c->ack_due = 1;
        c->ack_prompt |= f->bytes >= PROMPT_BYTES;
    }
    if (f->flags & GSI_TCP_IMM)
        gsi_tcp_emit(c, GSI_RAIL_ARRIVED, 0, f->imm);
}

/* Where the payload goes, or what a read asks for. NULL: none or refused. */
static char *region(gsi_conn *c, enum gsi_tcp_fault *fault)
{
    const gsi_tcp_frame *f = &c->frame;

    return f->bytes ? gsi_tcp_region_at(c->rail, f->key, f->remote, f->bytes, fault) : NULL;
}

static void begin(gsi_conn *c, const unsigned char *head)
{
    gsi_tcp_frame *f = &c->frame;
    enum gsi_tcp_fault fault = gsi_tcp_frame_parse(head, f);
    gsi_tcp_work *w;

    if (!fault && (f->ack < c->acked || f->ack > c->sent))
        fault = GSI_TCP_FAULT_ACK;
    if (fault) {
        gsi_tcp_refuse(c, fault);
        return;
    }
    if (f->ack > c->acked) {
        c->acked = f->ack;
        complete(c);
    }
    switch (f->kind) {
    case GSI_TCP_WRITE:
        c->into = region(c, &fault);
        break;
    case GSI_TCP_READ:
        c->into = region(c, &fault);
        if (!fault && c->answers >= c->peer.depth)
            fault = GSI_TCP_FAULT_READS;
        if (!fault) {
            c->received++;
            gsi_tcp_answer(c, c->into, f->bytes);
        }
        f->bytes = 0;
        break;
    case GSI_TCP_ANSWER:
        w = oldest_read(c);
        if (!w || w->bytes != f->bytes)
            fault = GSI_TCP_FAULT_ANSWER;
        else
            c->into = w->into;
        break;
    case GSI_TCP_ACK:
        if (f->bytes)
            fault = GSI_TCP_FAULT_FRAME;
        break;
    default:
        gsi_tcp_fail(c, (int32_t)f->imm, gsi_tcp_fault_text(f->imm, 1));
        return;
    }
    if (fault) {
        gsi_tcp_refuse(c, fault);
        return;
    }
    c->left = f->bytes;
    c->big = c->left >= BIG;
    if (c->left == 0 && (f->kind == GSI_TCP_WRITE || f->kind == GSI_TCP_ANSWER))
        end(c);
}

/* n bytes of payload are in place. */
static void took(gsi_conn *c, size_t n)
{
    c->into += n;
    c->left -= n;
    if (c->left == 0)
        end(c);
}

void gsi_tcp_feed(gsi_conn *c, const unsigned char *data, size_t n)
{
    while (n && c->state == GSI_TCP_OPEN) {
        size_t part;
        if (c->left) {
            part = n < c->left ? n : (size_t)c->left;
            memcpy(c->into, data, part);
            took(c, part);
        } else if (c->head_have == 0 && n >= GSI_TCP_HEAD) {
            part = GSI_TCP_HEAD;
            begin(c, data);
        } else {
            part = GSI_TCP_HEAD - c->head_have;
            if (part > n)
                part = n;
            memcpy(c->head + c->head_have, data, part);
            c->head_have += (uint32_t)part;
            if (c->head_have == GSI_TCP_HEAD) {
                c->head_have = 0;
                begin(c, c->head);
            }
        }
        data += part;
        n -= part;
    }
}

/* ---- The socket ---- */

static const char *errno_text(int err)
{
    switch (err) {
    case ECONNRESET:
    case EPIPE:
        return "the peer's process closed the connection abruptly or died";
    case ETIMEDOUT:
        return "the peer's host does not answer any more";
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENETDOWN:
        return "the peer's host cannot be reached any more";
    default:
        return "the TCP connection failed";
    }
}

static void ended(gsi_conn *c)
{
    if (c->head_have || c->left || c->done < c->posted)
        gsi_tcp_fail(c, c->send_error, "the peer closed the connection before everything was sent");
    else
        gsi_tcp_fail(c, 0, "the peer closed the connection");
}

int gsi_tcp_receive(gsi_conn *c)
{
    gsi_tcp_rail *rail = c->rail;
    size_t budget = BUDGET;
    int any = 0;

    while (c->state == GSI_TCP_OPEN) {
        size_t look = c->big ? LOOK_BIG : GSI_TCP_LOOK, want, left = (size_t)c->left;
        ssize_t n;
        if (left) {
            struct iovec to[2] = {{c->into, left}, {rail->look, look}};
            struct msghdr message = {.msg_iov = to, .msg_iovlen = 2};
            want = left + look;
            n = recvmsg(c->fd, &message, MSG_DONTWAIT);
        } else {
            want = look;
            n = recv(c->fd, rail->look, look, MSG_DONTWAIT);
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (c->send_error)
                gsi_tcp_fail(c, c->send_error, errno_text(c->send_error));
            break;
        }
        if (n < 0) {
            gsi_tcp_fail(c, errno, errno_text(errno));
        } else if (n == 0) {
            ended(c);
        } else {
            any = 1;
            if (left) {
                size_t direct = (size_t)n < left ? (size_t)n : left;
                took(c, direct);
                gsi_tcp_feed(c, rail->look, (size_t)n - direct);
            } else {
                gsi_tcp_feed(c, rail->look, (size_t)n);
            }
            budget -= (size_t)n < budget ? (size_t)n : budget;
            if (!budget || rail->sink_n == rail->sink_max)
                break;
            /* That was all there is. Where sending has failed, the end of it must be seen too. */
            if ((size_t)n < want && !c->send_error)
                break;
        }
    }
    if (c->ack_prompt || (c->ack_due && rail->armed))
        gsi_tcp_send_ack(c);
    else if (c->ack_due)
        gsi_tcp_mark_dirty(c);
    return any;
}
