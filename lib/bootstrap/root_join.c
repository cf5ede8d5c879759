/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How rank 0 lets the others in. Whoever connects is a guest, with little room and
 * little time, until it has proved the key; there are never many guests, so
 * strangers can neither use up file descriptors nor keep a rank out.
 */
#include "bootstrap/root.h"
#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <poll.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    GUESTS = 256,      /* beyond the ranks that are missing */
    GUEST_MS = 5000,   /* from the connection to the proof */
    REFUSED_MS = 1000, /* for a refused one to read its error */
    ACCEPTS = 64,      /* in one go */
    WARNINGS = 5,      /* about strangers, in WARN_EVERY_MS */
    WARN_EVERY_MS = 10000,
    SPARE_FDS = 32,  /* of the process, beside one a rank */
    PROBE_MS = 1000, /* to find out whether a taken port is another rank 0's */
    RETRY_MS = 200,  /* while all ports are taken */
    BUSY_MS = 30000, /* no longer: another server will not go away */
    LATE_MS = 2000,  /* after a failure: for ranks that are still starting */
    STATUS_MS = 1000,
};

/* ---- Guests ---- */

void gsi_root_unlink_guest(gsi_root *r, gsi_peer *p)
{
    *(p->older ? &p->older->newer : &r->oldest) = p->newer;
    *(p->newer ? &p->newer->older : &r->newest) = p->older;
    p->older = p->newer = NULL;
    r->nguests--;
}

static void link_guest(gsi_root *r, gsi_peer *p, int ms)
{
    p->until = gsi_now_ns() + (int64_t)ms * 1000000;
    p->older = r->newest;
    p->newer = NULL;
    *(r->newest ? &r->newest->newer : &r->oldest) = p;
    r->newest = p;
    r->nguests++;
}

static void warn(gsi_root *r, const gsi_peer *p, const char *what)
{
    int64_t now = gsi_now_ns();

    if (now - r->warned_at > (int64_t)WARN_EVERY_MS * 1000000) {
        if (r->swallowed)
            gsi_logf(&r->b->log, GRADSYNC_LOG_WARN, "the rendezvous dropped %u more connections of strangers",
                     r->swallowed);
        r->warned_at = now;
        r->warned = r->swallowed = 0;
    }
    if (r->warned++ < WARNINGS)
        gsi_logf(&r->b->log, GRADSYNC_LOG_WARN,
                 "the rendezvous dropped a connection from %s: %s; the job is not affected", p->name, what);
    else
        r->swallowed++;
}

/* A guest gives way: one that shows no sign of being a rank if there is one, the oldest first. */
static int evict(gsi_root *r)
{
    gsi_peer *p = r->oldest;

    while (p && p->state == GSI_PEER_HELLO)
        p = p->newer;
    if (!p)
        p = r->oldest;
    if (!p)
        return 0;
    warn(r, p, "too many connections that do not prove the job's key");
    gsi_root_drop(r, p);
    return 1;
}

int64_t gsi_root_expire(gsi_root *r, int64_t now)
{
    /* Oldest first is not soonest first: a refused one's time is shorter. One pass is enough,
     * there are few. */
    int64_t next = INT64_MAX;

    for (gsi_peer *p = r->oldest, *newer; p; p = newer) {
        newer = p->newer;
        if (p->until > now) {
            next = p->until < next ? p->until : next;
            continue;
        }
        if (p->state != GSI_PEER_REFUSED)
            warn(r, p, "it did not prove the job's key in time");
        gsi_root_drop(r, p);
    }
    return next;
}

static void welcome(gsi_root *r, int fd, const gsi_addr *from)
{
    unsigned char nonce[GSI_NONCE_BYTES];
    gsi_peer *p = gsi_calloc(1, sizeof *p);

    if (!p) {
        close(fd);
        return; /* it will come again */
    }
    p->fd = fd;
    p->rank = -1;
    p->tail = &p->head;
    p->interest = EPOLLIN;
    gsi_net_text(from, p->name);
    randombytes_buf(nonce, sizeof nonce);
    gsi_link_server(&p->link, &r->b->keys, nonce);
    if (r->nguests >= GUESTS + r->missing)
        evict(r);
    link_guest(r, p, GUEST_MS);
    if (gsi_root_watch(r, fd, p))
        gsi_root_drop(r, p);
}

void gsi_root_on_listener(gsi_root *r, int listener)
{
    gsi_addr from;

    for (int i = 0; i < ACCEPTS; i++) {
        int fd = gsi_net_accept(listener, &from);
        if (fd >= 0) {
            welcome(r, fd, &from);
            continue;
        }
        switch (-fd) {
        case EAGAIN:
            return;
        case EMFILE:
        case ENFILE:
            if (!evict(r)) {
                gradsync_error_info info;
                gsi_error_fill(&info, GRADSYNC_ERR_SYSTEM,
                               "rank 0 has no file descriptor left for another rank of %d; raise the limit with "
                               "ulimit -n %d before the job starts",
                               r->b->job.nranks, 2 * (r->b->job.nranks + 1024));
                info.sys_errno = -fd;
                gsi_root_fail_info(r, &info);
                return;
            }
            break;
        default: /* that connection is over already, or the network is short of memory for now */
            break;
        }
    }
}

/* ---- Admission ---- */

/* An error for one that has proved the key; the job goes on. */
static int refuse(gsi_root *r, gsi_peer *p, const gradsync_error_info *info)
{
    unsigned char note[GSI_NOTE_MAX];
    size_t n = gsi_note_pack(info, note);

    p->state = GSI_PEER_REFUSED;
    p->until = gsi_now_ns() + (int64_t)REFUSED_MS * 1000000;
    if (gsi_root_queue(r, p, GSI_FRAME_ERROR, note, n) || gsi_root_push(r, p) < 0)
        gsi_root_drop(r, p);
    return -1;
}

static int admit(gsi_root *r, gsi_peer *p)
{
    gsi_bootstrap *b = r->b;
    int nranks = b->job.nranks;
    uint32_t rank = p->link.rank, their = p->link.nranks;
    gradsync_error_info info;

    if (rank == 0 || (their == (uint32_t)nranks && rank < their && r->ranks[rank])) {
        gsi_error_fill(&info, GRADSYNC_ERR_INVALID,
                       "rank %u is taken twice: by the process at %s, and first by %s; give every process its own rank",
                       rank, p->name, rank ? r->ranks[rank]->name : "the one that listens as rank 0");
        info.peer = (int32_t)rank;
        gsi_logf(&b->log, GRADSYNC_LOG_WARN, "%s; the second was refused", info.message);
        return refuse(r, p, &info);
    }
    if ((b->failure.code || their != (uint32_t)nranks) && rank < (uint32_t)nranks)
        gsi_root_here(r, (int)rank); /* it will know of the failure: see gsi_root_farewell() */
    if (b->failure.code)
        return refuse(r, p, &b->failure);
    if (their != (uint32_t)nranks || rank >= their) {
        gsi_error_fill(&info, GRADSYNC_ERR_MISMATCH,
                       "rank %u (%s) was started as one of %u ranks, rank 0 as one of %d; start all with the same "
                       "number",
                       rank, p->name, their, nranks);
        info.peer = rank < GSI_MAX_RANKS ? (int32_t)rank : -1;
        refuse(r, p, &info);
        gsi_root_fail_info(r, &info);
        return -1;
    }
    gsi_root_unlink_guest(r, p);
    p->state = GSI_PEER_RANK;
    p->rank = (int)rank;
    p->link.limits.block = (uint64_t)(GSI_GATHER_MAX / nranks);
    r->ranks[rank] = p;
    r->open++;
    gsi_root_here(r, p->rank);
    if (gsi_root_queue(r, p, GSI_FRAME_JOINED, NULL, 0))
        return gsi_root_fail_info(r, &b->failure);
    gsi_root_push(r, p); /* if the connection is over, reading tells */
    return 0;
}

int gsi_root_on_guest(gsi_root *r, gsi_peer *p, enum gsi_event event)
{
    if (event == GSI_LINK_MORE)
        return 0;
    if (event == GSI_LINK_OPEN)
        return admit(r, p);
    if (event == GSI_LINK_HELLO) {
        p->state = GSI_PEER_HELLO;
    } else if (event == GSI_LINK_OTHER_JOB) {
        gsi_logf(&r->b->log, GRADSYNC_LOG_INFO, "the rendezvous turned away %s, which looks for another job", p->name);
    } else if (event == GSI_LINK_WRONG_KEY) {
        r->bad_keys++;
        warn(r, p, "it does not have the job's key");
    } else {
        warn(r, p,
             event == GSI_LINK_VERSION ? "it speaks another version of our protocol"
                                       : "it does not speak our protocol");
    }
    if (event < 0) {
        p->state = GSI_PEER_REFUSED;
        p->until = gsi_now_ns() + (int64_t)REFUSED_MS * 1000000;
    }
    size_t n = p->link.out_bytes;
    p->link.out_bytes = 0;
    if ((event < 0 && !n) || gsi_root_queue_raw(r, p, p->link.out, n) || gsi_root_push(r, p) < 0) {
        gsi_root_drop(r, p);
        return -1;
    }
    return event < 0 ? -1 : 0;
}

/* ---- Listening ---- */

static void stop_listening(gsi_root *r)
{
    for (int i = 0; i < r->nlisteners; i++)
        close(r->listeners[i]);
    r->nlisteners = 0;
}

/* Listens on one port of every address. 0, or an errno and nothing is open. */
static int listen_on(gsi_root *r, const gsi_addrs *addrs, int port)
{
    int err = EADDRNOTAVAIL;

    for (int i = 0; i < addrs->n; i++) {
        int e = gsi_net_listen(&addrs->list[i], port, &r->listeners[r->nlisteners]);
        if (e == EADDRNOTAVAIL || e == EAFNOSUPPORT)
            continue; /* "localhost" where there is no IPv6 */
        err = e;
        if (e) {
            stop_listening(r);
            return e;
        }
        r->nlisteners++;
    }
    return r->nlisteners ? 0 : err;
}

/* A port that is taken may be taken by this job's rank 0: then two processes have
 * rank 0, and it tells us so. */
static int probe(gsi_root *r, int port, int64_t deadline)
{
    gsi_bootstrap *b = r->b;
    gsi_job job = b->job;
    gsi_conn conn;
    int64_t until = gsi_now_ns() + (int64_t)PROBE_MS * 1000000;

    b->job.port = port;
    b->job.ports = 1;
    int e = gsi_join(b, 0, 1, until < deadline ? until : deadline, &conn);
    b->job = job;
    if (e == GRADSYNC_ERR_INVALID)
        return e;
    if (!e) { /* no rank 0 does this */
        close(conn.fd);
        gsi_link_wipe(&conn.link);
    }
    b->failure = (gradsync_error_info)GRADSYNC_ERROR_INFO_INIT;
    return 0;
}

static int start_listening(gsi_root *r, int64_t deadline)
{
    gsi_bootstrap *b = r->b;
    const gsi_job *job = &b->job;
    gsi_addrs addrs;
    char place[sizeof job->addr + 24];
    int64_t until = gsi_now_ns() + (int64_t)BUSY_MS * 1000000;
    int e = gsi_net_listen_plan(job, &b->log, &addrs);

    if (e)
        return e;
    if (until > deadline)
        until = deadline;
    gsi_place_text(place, sizeof place, job);
    for (int round = 0;; round++) {
        for (int i = 0; i < job->ports; i++) {
            e = listen_on(r, &addrs, job->port + i);
            if (!e) {
                for (int k = 0; k < r->nlisteners && !e; k++)
                    e = gsi_root_watch(r, r->listeners[k], &r->listeners[k]);
                if (e)
                    return gsi_fail_errno(e, "rank 0 cannot watch its listening socket");
                gsi_logf(&b->log, GRADSYNC_LOG_DEBUG, "rank 0 listens on port %d for %d ranks", job->port + i,
                         job->nranks - 1);
                return 0;
            }
            if (e == EADDRINUSE && round == 0 && probe(r, job->port + i, deadline))
                return b->failure.code;
        }
        if (e != EADDRINUSE || gsi_now_ns() >= until)
            return gsi_fail_errno(e,
                                  "rank 0 cannot listen at %s; choose a free port (GRADSYNC_ROOT, MASTER_PORT) of "
                                  "this host",
                                  place);
        if (round == 0)
            gsi_logf(&b->log, GRADSYNC_LOG_WARN, "rank 0 waits for a free port at %s: in use by another process",
                     place);
        poll(NULL, 0, gsi_poll_ms(until, RETRY_MS));
    }
}

/* One file descriptor a rank: better to say so now than when the 1000th comes. */
static int check_limit(int nranks)
{
    struct rlimit limit;
    int want = nranks + SPARE_FDS;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= (rlim_t)want)
        return 0;
    return gsi_fail_errno(EMFILE,
                          "rank 0 needs about %d file descriptors for %d ranks, and the limit is %llu; raise it with "
                          "ulimit -n %d before the job starts",
                          want, nranks, (unsigned long long)limit.rlim_cur, 2 * (nranks + 1024));
}

static int prepare(gsi_root *r, int64_t deadline)
{
    int nranks = r->b->job.nranks, e = check_limit(nranks);

    if (e)
        return e;
    r->ranks = gsi_calloc((size_t)nranks, sizeof *r->ranks);
    r->there = gsi_calloc((size_t)nranks, 1);
    if (!r->ranks || !r->there)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the rendezvous of %d ranks", nranks);
    r->there[0] = 1;
    r->missing = nranks - 1;
    randombytes_buf(r->group, sizeof r->group);
    r->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (r->epoll < 0)
        return gsi_fail_errno(errno, "rank 0 cannot make an epoll descriptor");
    return start_listening(r, deadline);
}

static void time_out(gsi_root *r)
{
    gsi_bootstrap *b = r->b;
    char list[160], keys[96] = "";
    int first = 0;

    while (r->there[first])
        first++;
    gsi_rank_list(list, sizeof list, r->there, b->job.nranks);
    if (r->bad_keys)
        snprintf(keys, sizeof keys, " (%u connections did not have the job's key: set the same on every rank)",
                 r->bad_keys);
    gsi_root_fail(r, GRADSYNC_ERR_TIMEOUT, first,
                  "ranks %s did not join within %lld ms%s; see whether they run and can reach this host", list,
                  (long long)b->timeout_ms, keys);
}

int gsi_root_create(gsi_bootstrap *b, int64_t deadline)
{
    gsi_root *r = gsi_calloc(1, sizeof *r);
    int64_t now = gsi_now_ns(), give_up = gsi_root_give_up(now, deadline), late;

    if (!r)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the rendezvous");
    b->root = r;
    r->b = b;
    r->epoll = -1;
    int e = prepare(r, deadline);
    if (e)
        return e;
    r->status_every =
        (deadline - now) / 4 < (int64_t)STATUS_MS * 1000000 ? (deadline - now) / 4 : (int64_t)STATUS_MS * 1000000;
    r->next_status = now + r->status_every;
    r->warned_at = now;
    while (r->missing && !b->failure.code) {
        if (gsi_now_ns() >= give_up) {
            time_out(r);
            break;
        }
        gsi_root_step(r, give_up);
        gsi_root_status(r);
    }
    if (!b->failure.code) {
        /* Nobody may come in any more, and the next rendezvous may use the port, before any rank goes on. */
        stop_listening(r);
        while (r->oldest)
            gsi_root_drop(r, r->oldest);
        for (int i = 1; i < b->job.nranks && !b->failure.code; i++)
            if (!gsi_root_queue(r, r->ranks[i], GSI_FRAME_START, r->group, sizeof r->group))
                gsi_root_push(r, r->ranks[i]);
    }
    r->next_status = INT64_MAX;
    while (r->unsent && !b->failure.code) {
        if (gsi_now_ns() >= deadline)
            gsi_root_fail(r, GRADSYNC_ERR_TIMEOUT, -1, "not all ranks took the word to start within %lld ms",
                          (long long)b->timeout_ms);
        else
            gsi_root_step(r, deadline);
    }
    if (r->swallowed)
        gsi_logf(&b->log, GRADSYNC_LOG_WARN, "the rendezvous dropped %u more connections of strangers", r->swallowed);
    if (!b->failure.code)
        return 0;
    late = gsi_now_ns() + (int64_t)LATE_MS * 1000000;
    gsi_root_farewell(r, late < deadline ? late : deadline);
    return gsi_fail_info(&b->failure);
}
