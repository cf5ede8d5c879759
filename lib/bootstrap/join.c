/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a rank finds rank 0. There may be several addresses and ports, of which some
 * belong to others or answer to nobody, so connections are started one after the
 * other, each a little later than the one before or as soon as that one has failed
 * (as RFC 8305 does for addresses). The first that proves the key is joined.
 */
#include "bootstrap/rendezvous.h"
#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <poll.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    TRIES = GSI_JOB_PORTS * GSI_ADDRS_MAX,
    STAGGER_MS = 250,
    ANSWER_MS = 5000,          /* a listener that says nothing for so long is not rank 0 */
    ADMIT_MS = 10000,          /* from our proof to rank 0's word */
    PATIENCE_MS = 5000,        /* with a listener that refuses us */
    PATIENCE_RANGE_MS = 30000, /* the same where another job's rank 0 may sit on a neighbouring port */
    BACKOFF_MS = 10,           /* after the first round, doubling */
    BACKOFF_MAX_MS = 500,      /* also says how late a rank may notice rank 0 */
};

/* What became of a try, in the order in which they deserve to be reported. */
enum verdict { NOTHING, UNREACHED, SILENT, NOT_OURS, OTHER_JOB, OTHER_VERSION, OTHER_KEY };

struct
try {
    int fd; /* -1: over, or not begun */
    int connected;
    int64_t until; /* ns: when we give it up */
    gsi_link link;
    size_t sent; /* of link.out */
    char name[GSI_ADDR_TEXT];
};

struct join {
    gsi_bootstrap *b;
    int rank;
    int64_t deadline;
    gsi_addrs addrs;
    struct try tries[TRIES];
    int ntries, next; /* of this round: all, and those begun */
    int chosen;       /* the one to which we have proved ourselves, or -1 */
    /* The worst of this round, and of the one before it. */
    struct outcome {
        enum verdict verdict;
        char why[160];
    } now, last;
    int64_t refused_since; /* ns: listeners have refused us since then, in every round; 0: they do not */
    unsigned char body[GSI_NOTE_MAX + GSI_AEAD_BYTES];
};

__attribute__((format(printf, 3, 4))) static void note(struct join *j, enum verdict verdict, const char *format, ...)
{
    va_list args;

    if (verdict < j->now.verdict)
        return;
    j->now.verdict = verdict;
    va_start(args, format);
    vsnprintf(j->now.why, sizeof j->now.why, format, args);
    va_end(args);
}

static void end_try(struct join *j, struct try *t)
{
    if (t->fd < 0)
        return;
    close(t->fd);
    t->fd = -1;
    gsi_link_wipe(&t->link);
    if (j->chosen == (int)(t - j->tries))
        j->chosen = -1;
}

static void begin_try(struct join *j, int64_t now)
{
    int i = j->next++, port = j->b->job.port + i / j->addrs.n;
    const gsi_addr *a = &j->addrs.list[i % j->addrs.n];
    struct try *t = &j->tries[i];
    unsigned char nonce[GSI_NONCE_BYTES];
    char text[64];
    gsi_addr named = *a;

    if (a->any.sa_family == AF_INET6)
        named.v6.sin6_port = htons((uint16_t)port);
    else
        named.v4.sin_port = htons((uint16_t)port);
    gsi_net_text(&named, t->name);
    t->fd = gsi_net_connect(a, port);
    if (t->fd < 0) {
        note(j, UNREACHED, "%s: %s", t->name, gsi_net_error(-t->fd, text));
        t->fd = -1;
        return;
    }
    t->connected = 0;
    t->sent = 0;
    t->until = now + (int64_t)ANSWER_MS * 1000000;
    randombytes_buf(nonce, sizeof nonce);
    gsi_link_client(&t->link, &j->b->keys, nonce, (uint32_t)j->rank, (uint32_t)j->b->job.nranks);
}

/* Sends what the handshake has to send. Less than 100 bytes: they fit or it has failed. */
static int push(struct try *t)
{
    while (t->link.out_bytes) {
        ssize_t n = send(t->fd, t->link.out + t->sent, t->link.out_bytes - t->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? 0 : -1;
        t->sent += (size_t)n;
        if (t->sent == t->link.out_bytes)
            t->link.out_bytes = t->sent = 0;
    }
    return 0;
}

/* This one is rank 0: the others are not needed, and get no proof. */
static void choose(struct join *j, struct try *t)
{
    j->chosen = (int)(t - j->tries);
    for (int i = 0; i < j->next; i++)
        if (i != j->chosen)
            end_try(j, &j->tries[i]);
    gsi_link_prove(&t->link);
    t->until = gsi_now_ns() + (int64_t)ADMIT_MS * 1000000;
}

enum { GO_ON = 1, LET_IN = 2 };

/* A frame before we are in: JOINED, or an error, which is then the result. */
static int on_frame(struct join *j, struct try *t, enum gsi_event event)
{
    gradsync_error_info info;
    const gsi_frame *f = &t->link.frame;

    if (event == GSI_LINK_HEAD && f->type == GSI_FRAME_JOINED)
        return LET_IN;
    if (f->type != GSI_FRAME_ERROR)
        return gsi_bootstrap_fail(j->b, GRADSYNC_ERR_INTERNAL, 0, "rank 0 sent frame %u before it let this rank in",
                                  f->type);
    if (event == GSI_LINK_HEAD) {
        gsi_link_body(&t->link, j->body, NULL);
        return GO_ON;
    }
    if (gsi_note_parse(j->body, f->length, &info) < 0)
        return gsi_bootstrap_fail(j->b, GRADSYNC_ERR_INTERNAL, 0, "rank 0 sent an error that cannot be read");
    return gsi_bootstrap_fail_info(j->b, &info);
}

/* GO_ON (t may have ended), LET_IN, or an error that ends everything. */
static int on_event(struct join *j, struct try *t, enum gsi_event event)
{
    switch (event) {
    case GSI_LINK_MORE:
        return GO_ON;
    case GSI_LINK_TRUST:
        choose(j, t);
        return GO_ON;
    case GSI_LINK_HEAD:
    case GSI_LINK_BODY:
        return on_frame(j, t, event);
    case GSI_LINK_WRONG_KEY:
        note(j, OTHER_KEY, "%s", t->name);
        break;
    case GSI_LINK_VERSION:
        note(j, OTHER_VERSION, "%s", t->name);
        break;
    case GSI_LINK_OTHER_JOB:
        note(j, OTHER_JOB, "%s belongs to another job", t->name);
        break;
    case GSI_LINK_TAMPERED:
        note(j, NOT_OURS, "%s sent bytes that fail authentication", t->name);
        break;
    default:
        note(j, NOT_OURS, "%s does not speak our protocol", t->name);
        break;
    }
    end_try(j, t);
    return GO_ON;
}

static int on_readable(struct join *j, struct try *t)
{
    unsigned char data[1024];
    char text[64];

    for (;;) {
        /* Once we are in, the bytes behind JOINED belong to the caller's feeding: take one frame at a time. */
        size_t want = j->chosen < 0 ? GSI_CHALLENGE_BYTES : t->link.need - t->link.have;
        if (t->link.body)
            want = t->link.frame.length + GSI_AEAD_BYTES - t->link.body_have;
        ssize_t n = recv(t->fd, data, want < sizeof data ? want : sizeof data, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return GO_ON;
        if (n <= 0) {
            if (t->connected)
                note(j, NOT_OURS, "%s closed the connection", t->name);
            else
                note(j, UNREACHED, "%s: %s", t->name, gsi_net_error(n < 0 ? errno : ECONNRESET, text));
            end_try(j, t);
            return GO_ON;
        }
        for (size_t at = 0, used; at < (size_t)n && t->fd >= 0; at += used) {
            int r = on_event(j, t, gsi_link_feed(&t->link, data + at, (size_t)n - at, &used));
            if (r != GO_ON)
                return r;
        }
        if (t->fd >= 0 && push(t) < 0) {
            note(j, NOT_OURS, "%s closed the connection", t->name);
            end_try(j, t);
        }
        if (t->fd < 0)
            return GO_ON;
    }
}

static int on_ready(struct join *j, struct try *t, int events)
{
    int err = 0;
    char text[64];
    socklen_t len = sizeof err;

    if (!t->connected) {
        getsockopt(t->fd, SOL_SOCKET, SO_ERROR, &err, &len);
        if (err) {
            note(j, UNREACHED, "%s: %s", t->name, gsi_net_error(err, text));
            end_try(j, t);
            return GO_ON;
        }
        if (events & POLLOUT)
            t->connected = 1;
    }
    if (push(t) < 0) {
        note(j, UNREACHED, "%s closed the connection", t->name);
        end_try(j, t);
        return GO_ON;
    }
    return events & (POLLIN | POLLHUP | POLLERR) ? on_readable(j, t) : GO_ON;
}

/* One pass over all places. GO_ON: nobody let us in. */
static int one_round(struct join *j)
{
    struct pollfd fds[TRIES];
    int owner[TRIES], result = GO_ON;
    int64_t start_next = 0;

    j->next = 0;
    j->chosen = -1;
    while (result == GO_ON) {
        int64_t now = gsi_now_ns(), wake = j->deadline;
        int n = 0;
        if (now >= j->deadline)
            break;
        for (int i = 0; i < j->next; i++) {
            struct try *t = &j->tries[i];
            if (t->fd >= 0 && now >= t->until) {
                note(j, t->connected ? SILENT : UNREACHED, "%s does not answer", t->name);
                end_try(j, t);
            }
            if (t->fd < 0)
                continue;
            wake = t->until < wake ? t->until : wake;
            owner[n] = i;
            fds[n++] = (struct pollfd){t->fd, (short)(POLLIN | (t->connected && !t->link.out_bytes ? 0 : POLLOUT)), 0};
        }
        if (j->chosen < 0 && j->next < j->ntries && (n == 0 || now >= start_next)) {
            begin_try(j, now);
            start_next = now + (int64_t)STAGGER_MS * 1000000;
            continue;
        }
        if (n == 0)
            break; /* all have failed */
        if (j->chosen < 0 && j->next < j->ntries && start_next < wake)
            wake = start_next;
        if (poll(fds, (nfds_t)n, gsi_poll_ms(wake, 60000)) < 0 && errno != EINTR)
            return gsi_fail_errno(errno, "cannot wait for rank 0");
        for (int i = 0; i < n && result == GO_ON; i++)
            if (fds[i].revents && j->tries[owner[i]].fd >= 0) {
                result = on_ready(j, &j->tries[owner[i]], fds[i].revents);
                if (j->tries[owner[i]].fd < 0)
                    start_next = 0; /* it has failed: no reason to wait with the next */
            }
    }
    return result;
}

/* The result if nobody has let us in for as long as we may wait. */
static int give_up(struct join *j)
{
    char place[sizeof j->b->job.addr + 24];
    const struct outcome *o = &j->last;
    int me = j->rank;

    gsi_place_text(place, sizeof place, &j->b->job);
    if (o->verdict == OTHER_KEY)
        return gsi_bootstrap_fail(j->b, GRADSYNC_ERR_AUTH, 0,
                                  "rank %d and the listener at %s do not have the same key; set the same GRADSYNC_KEY "
                                  "(or GRADSYNC_KEY_FILE) on every rank",
                                  me, o->why);
    if (o->verdict == OTHER_VERSION)
        return gsi_bootstrap_fail(j->b, GRADSYNC_ERR_MISMATCH, 0,
                                  "rank %d and the listener at %s speak different versions of the rendezvous protocol; "
                                  "use one version of libgradsync on every rank",
                                  me, o->why);
    return gsi_bootstrap_fail(j->b, GRADSYNC_ERR_TIMEOUT, 0,
                              "rank %d did not reach rank 0 at %s in time (%s); check that rank 0 runs with the same "
                              "address, that no firewall is between, and that no other process took rank %d",
                              me, place, o->why[0] ? o->why : "no answer", me);
}

int gsi_join(gsi_bootstrap *b, int rank, int once, int64_t deadline, gsi_conn *out)
{
    int literal = gsi_net_is_literal(b->job.addr), backoff = BACKOFF_MS, result = GO_ON;
    int64_t patience = (int64_t)(b->job.ports > 1 ? PATIENCE_RANGE_MS : PATIENCE_MS) * 1000000;
    struct join *j = gsi_calloc(1, sizeof *j);

    if (!j)
        return gsi_bootstrap_fail(b, GRADSYNC_ERR_NOMEM, -1, "no memory to join rank 0");
    j->b = b;
    j->rank = rank;
    j->deadline = deadline;
    for (int i = 0; i < TRIES; i++)
        j->tries[i].fd = -1;
    do {
        /* A name may become known, or change, while the job starts. */
        if (!literal || !j->addrs.n) {
            const char *why = gsi_net_resolve(b->job.addr, &j->addrs);
            if (why)
                note(j, UNREACHED, "%.80s cannot be resolved: %s", b->job.addr, why);
        }
        j->ntries = j->addrs.n * b->job.ports;
        if (j->ntries)
            result = one_round(j);
        if (result != GO_ON)
            break;
        for (int i = 0; i < j->next; i++)
            end_try(j, &j->tries[i]);
        int64_t now = gsi_now_ns();
        /* The round that the deadline cuts short has not seen everything. */
        if (now < deadline || j->now.verdict > j->last.verdict)
            j->last = j->now;
        j->now = (struct outcome){NOTHING, ""};
        if (j->last.verdict < OTHER_VERSION)
            j->refused_since = 0;
        else if (!j->refused_since)
            j->refused_since = now;
        if (once || now >= deadline || (j->refused_since && now - j->refused_since >= patience))
            break;
        /* Not in step with a thousand other ranks. */
        int ms = backoff / 2 + (int)randombytes_uniform((uint32_t)backoff);
        poll(NULL, 0, gsi_poll_ms(deadline, ms));
        backoff = backoff * 2 < BACKOFF_MAX_MS ? backoff * 2 : BACKOFF_MAX_MS;
    } while (1);
    if (result == GO_ON)
        result = give_up(j);
    if (result == LET_IN) {
        struct try *t = &j->tries[j->chosen];
        *out = (gsi_conn){t->fd, t->link};
        t->fd = -1;
        gsi_link_wipe(&t->link);
        result = 0;
    }
    for (int i = 0; i < TRIES; i++)
        end_try(j, &j->tries[i]);
    free(j);
    return result;
}
