/* SPDX-License-Identifier: Apache-2.0 */
/* Every rank but 0: one connection, one thing in flight. */
#include "bootstrap/rendezvous.h"
#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <poll.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct gsi_leaf {
    gsi_bootstrap *b;
    gsi_conn conn;
    unsigned char group[GSI_KEY_BYTES]; /* seals the results */
    /* What is waited for: a frame's type, and for a RESULT its size. */
    uint32_t want;
    uint64_t result_bytes;
    unsigned char *body; /* of the frame that is arriving */
    unsigned char *out;  /* to send, owned; NULL: nothing */
    size_t out_at, out_bytes;
    char waiting[GSI_NOTE_MAX + 1]; /* the ranks that rank 0 waits for, as it last told us; "" */
};

/* Tells rank 0 why this rank gives up, so that it can tell the others. Whether it
 * gets through does not matter: rank 0 sees the connection close as well. */
static void complain(gsi_leaf *f)
{
    unsigned char note[GSI_NOTE_MAX], wire[GSI_HEAD_BYTES + GSI_NOTE_MAX + GSI_AEAD_BYTES];

    if (f->conn.fd < 0 || f->out)
        return; /* a sealed frame is not sent yet: nothing can go before it, or after it without waiting */
    size_t n = gsi_note_pack(&f->b->failure, note);
    gsi_link_seal_head(&f->conn.link, GSI_FRAME_ERROR, f->b->seq, n, wire);
    gsi_link_seal_body(&f->conn.link, note, n, wire + GSI_HEAD_BYTES);
    ssize_t sent = send(f->conn.fd, wire, GSI_HEAD_BYTES + n + GSI_AEAD_BYTES, MSG_NOSIGNAL);
    (void)sent;
}

static void hang_up(gsi_leaf *f)
{
    if (f->conn.fd >= 0)
        close(f->conn.fd);
    f->conn.fd = -1;
    free(f->body);
    free(f->out);
    f->body = f->out = NULL;
}

/* The failure is ours, and recorded: the others should hear of it. */
static int give_up(gsi_leaf *f, int code)
{
    complain(f);
    hang_up(f);
    return code;
}

static int lost(gsi_leaf *f, int err)
{
    char text[64];

    hang_up(f);
    if (!err || err == ECONNRESET || err == EPIPE)
        return gsi_bootstrap_fail(f->b, GRADSYNC_ERR_PEER_LOST, 0,
                                  "rank 0 closed its connection to rank %d: it ended or failed; see its own output",
                                  f->b->job.rank);
    return gsi_bootstrap_fail(f->b, GRADSYNC_ERR_PEER_LOST, 0,
                              "the connection from rank %d to rank 0 broke (%s); check the network between them",
                              f->b->job.rank, gsi_net_error(err, text));
}

enum { GO_ON = 1, DONE = 0 };

/* A header: is it what we wait for, and where does its body go? */
static int on_head(gsi_leaf *f)
{
    const gsi_frame *h = &f->conn.link.frame;
    gsi_bootstrap *b = f->b;

    if (h->type == GSI_FRAME_RESULT &&
        (f->want != GSI_FRAME_RESULT || h->seq != b->seq || h->length != f->result_bytes))
        return give_up(f, gsi_bootstrap_fail(b, GRADSYNC_ERR_MISMATCH, 0,
                                             "rank 0 finished all-gather %u with %llu bytes, rank %d waits for "
                                             "all-gather %u with %llu; every rank has to make the same calls",
                                             h->seq, (unsigned long long)h->length, b->job.rank, b->seq,
                                             (unsigned long long)f->result_bytes));
    if (h->type == GSI_FRAME_JOINED || (h->type == GSI_FRAME_START && f->want != GSI_FRAME_START))
        return give_up(f, gsi_bootstrap_fail(b, GRADSYNC_ERR_INTERNAL, 0, "rank 0 sent frame %u out of turn", h->type));
    if (!h->length)
        return h->type == f->want ? DONE : GO_ON;
    f->body = gsi_calloc(1, h->length + GSI_AEAD_BYTES);
    if (!f->body)
        return give_up(f, gsi_bootstrap_fail(b, GRADSYNC_ERR_NOMEM, -1, "no memory for %llu bytes from rank 0",
                                             (unsigned long long)h->length));
    gsi_link_body(&f->conn.link, f->body, h->type == GSI_FRAME_RESULT ? f->group : NULL);
    return GO_ON;
}

static int on_body(gsi_leaf *f, void *recv)
{
    const gsi_frame *h = &f->conn.link.frame;
    gradsync_error_info info;
    int result = h->type == f->want ? DONE : GO_ON;

    switch (h->type) {
    case GSI_FRAME_START:
        memcpy(f->group, f->body, sizeof f->group);
        sodium_memzero(f->body, h->length);
        break;
    case GSI_FRAME_RESULT:
        memcpy(recv, f->body, h->length);
        break;
    case GSI_FRAME_STATUS:
        for (size_t i = 0; i < h->length; i++)
            f->waiting[i] = (char)(f->body[i] >= ' ' && f->body[i] <= '~' ? f->body[i] : '?');
        f->waiting[h->length] = 0;
        break;
    default: /* ERROR */
        if (gsi_note_parse(f->body, h->length, &info) < 0)
            gsi_error_fill(&info, GRADSYNC_ERR_INTERNAL, "rank 0 sent an error that cannot be read");
        hang_up(f);
        return gsi_bootstrap_fail_info(f->b, &info);
    }
    free(f->body);
    f->body = NULL;
    return result;
}

static int on_readable(gsi_leaf *f, void *recv_buffer)
{
    unsigned char data[16384];

    for (;;) {
        ssize_t n = recv(f->conn.fd, data, sizeof data, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return GO_ON;
        if (n <= 0)
            return lost(f, n < 0 ? errno : 0);
        int done = GO_ON;
        for (size_t at = 0, used; at < (size_t)n; at += used) {
            enum gsi_event event = gsi_link_feed(&f->conn.link, data + at, (size_t)n - at, &used);
            int r = GO_ON;
            if (event < 0)
                return give_up(f, gsi_bootstrap_fail(f->b, GRADSYNC_ERR_AUTH, 0,
                                                     "bytes from rank 0 fail authentication: they were changed on the "
                                                     "way; check what is between rank %d and rank 0",
                                                     f->b->job.rank));
            if (event == GSI_LINK_HEAD)
                r = on_head(f);
            else if (event == GSI_LINK_BODY)
                r = on_body(f, recv_buffer);
            if (r < 0)
                return r;
            if (r == DONE)
                done = DONE; /* what came behind it in the same bytes (an error) is still taken */
            if (done == DONE)
                f->want = 0;
        }
        if (done == DONE)
            return DONE;
    }
}

static int push(gsi_leaf *f)
{
    while (f->out) {
        ssize_t n = send(f->conn.fd, f->out + f->out_at, f->out_bytes - f->out_at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            /* Rank 0 may have told us why before it closed: that is read first. */
            return errno == EAGAIN || errno == EPIPE || errno == ECONNRESET ? 0 : lost(f, errno);
        f->out_at += (size_t)n;
        if (f->out_at == f->out_bytes) {
            free(f->out);
            f->out = NULL;
        }
    }
    return 0;
}

static int timed_out(gsi_leaf *f)
{
    gsi_bootstrap *b = f->b;
    const char *what = f->want == GSI_FRAME_START ? "join" : "all-gather";

    if (f->waiting[0])
        return gsi_bootstrap_fail(b, GRADSYNC_ERR_TIMEOUT, atoi(f->waiting), /* the first of them */
                                  "rank %d waited %lld ms in the %s for ranks %s, says rank 0; see why they are late",
                                  b->job.rank, (long long)b->timeout_ms, what, f->waiting);
    return gsi_bootstrap_fail(b, GRADSYNC_ERR_TIMEOUT, 0,
                              "rank %d waited %lld ms in the %s for rank 0, which says nothing; see why it is late",
                              b->job.rank, (long long)b->timeout_ms, what);
}

/* Sends what there is and receives until the wanted frame has come. */
static int exchange(gsi_leaf *f, void *recv_buffer, int64_t deadline)
{
    int r = GO_ON;

    f->waiting[0] = 0;
    while (r == GO_ON) {
        if ((r = push(f)))
            return r;
        struct pollfd p = {f->conn.fd, (short)(f->out ? POLLIN | POLLOUT : POLLIN), 0};
        if (gsi_now_ns() >= deadline)
            return give_up(f, timed_out(f));
        r = poll(&p, 1, gsi_poll_ms(deadline, 60000));
        if (r < 0 && errno != EINTR) {
            gradsync_error_info info;
            gsi_error_fill(&info, GRADSYNC_ERR_SYSTEM, "cannot wait for rank 0: poll failed");
            info.sys_errno = errno;
            return give_up(f, gsi_bootstrap_fail_info(f->b, &info));
        }
        r = r > 0 && (p.revents & ~POLLOUT) ? on_readable(f, recv_buffer) : GO_ON;
    }
    return r;
}

int gsi_leaf_create(gsi_bootstrap *b, int64_t deadline)
{
    gsi_leaf *f = gsi_calloc(1, sizeof *f);

    if (!f)
        return gsi_bootstrap_fail(b, GRADSYNC_ERR_NOMEM, -1, "no memory for the rendezvous");
    b->leaf = f;
    f->b = b;
    f->conn.fd = -1;
    int r = gsi_join(b, b->job.rank, 0, deadline, &f->conn);
    if (r)
        return r;
    f->conn.link.limits.result = GSI_GATHER_MAX;
    f->want = GSI_FRAME_START;
    return exchange(f, NULL, deadline);
}

int gsi_leaf_allgather(gsi_leaf *f, const void *send_buffer, void *recv_buffer, size_t bytes, int64_t deadline)
{
    size_t n = GSI_HEAD_BYTES + (bytes ? bytes + GSI_AEAD_BYTES : 0);

    f->out = gsi_calloc(1, n);
    if (!f->out)
        return give_up(f, gsi_bootstrap_fail(f->b, GRADSYNC_ERR_NOMEM, -1, "no memory to send %zu bytes", bytes));
    gsi_link_seal_head(&f->conn.link, GSI_FRAME_BLOCK, f->b->seq, bytes, f->out);
    if (bytes)
        gsi_link_seal_body(&f->conn.link, send_buffer, bytes, f->out + GSI_HEAD_BYTES);
    f->out_at = 0;
    f->out_bytes = n;
    f->want = GSI_FRAME_RESULT;
    f->result_bytes = (uint64_t)bytes * (uint64_t)f->b->job.nranks;
    return exchange(f, recv_buffer, deadline);
}

void gsi_leaf_destroy(gsi_leaf *f)
{
    if (!f)
        return;
    hang_up(f);
    gsi_link_wipe(&f->conn.link);
    sodium_memzero(f->group, sizeof f->group);
    free(f);
}
