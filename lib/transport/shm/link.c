/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/shm/link.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"

enum { HELLO_MAGIC = 0x67734c4b, SPARE_STRANGERS = 16, RETRY_MS = 5 };

typedef struct hello {
    uint32_t magic;
    int32_t rank;                         /* of the sender */
    unsigned char token[SHM_TOKEN_BYTES]; /* of the receiver */
} hello;

/* pid << 32 | a random number: the same for all threads of a process, another one in a forked child. */
static uint64_t process_nonce(void)
{
    static _Atomic uint64_t nonce;
    uint64_t seen = atomic_load(&nonce), pid = (uint32_t)getpid();
    uint32_t number = 0;

    if (seen >> 32 == pid)
        return seen;
    if (getrandom(&number, sizeof number, 0) != sizeof number)
        number = (uint32_t)gsi_now_ns();
    uint64_t mine = pid << 32 | number;
    /* Of threads that come here at once one wins, and all return its number. */
    return atomic_compare_exchange_strong(&nonce, &seen, mine) ? mine : seen;
}

static socklen_t socket_name(const gsi_shm_address *address, struct sockaddr_un *un)
{
    int at = 1; /* sun_path[0] == 0: the abstract namespace, which leaves nothing behind */
    *un = (struct sockaddr_un){.sun_family = AF_UNIX};
    at += snprintf(un->sun_path + 1, sizeof un->sun_path - 1, "gradsync-");
    for (int i = 0; i < SHM_TOKEN_BYTES; i++)
        at += snprintf(un->sun_path + at, sizeof un->sun_path - (size_t)at, "%02x", address->name[i]);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)at);
}

int shm_listen(int *fd, gsi_shm_address *address)
{
    struct sockaddr_un un;

    memset(address, 0, sizeof *address);
    if (getrandom(address->name, sizeof address->name, 0) != sizeof address->name ||
        getrandom(address->token, sizeof address->token, 0) != sizeof address->token)
        return gsi_fail_errno(errno, "no random numbers for a socket's name");
    address->pid = getpid();
    address->process = process_nonce();
    *fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*fd < 0)
        return gsi_fail_errno(errno, "cannot make a local socket");
    socklen_t len = socket_name(address, &un);
    if (bind(*fd, (struct sockaddr *)&un, len) || listen(*fd, SOMAXCONN)) {
        int err = errno;
        close(*fd);
        return gsi_fail_errno(err, "cannot listen on a local socket");
    }
    return 0;
}

/* Sends bytes with up to one fd; returns 0 or errno. */
static int send_with_fd(int sock, const void *bytes, size_t len, int fd)
{
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {(void *)(uintptr_t)bytes, len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        msg.msg_control = control.room;
        msg.msg_controllen = sizeof control.room;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    for (;;) {
        ssize_t sent = sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0)
            return (size_t)sent == len ? 0 : EPROTO;
        if (errno != EINTR)
            return errno;
    }
}

/* Receives exactly len bytes and at most one fd; returns 0 or errno (EPIPE: the peer is gone; EMFILE: the
 * bytes are there, but the fd found no room in this process). */
static int receive_with_fd(int sock, void *bytes, size_t len, int *fd)
{
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {bytes, len};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    ssize_t got;
    int resets = 0;

    *fd = -1;
    /* A reset tells, once, that the peer left without reading all; what it had sent is still there. */
    do
        got = recvmsg(sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (got < 0 && (errno == EINTR || (errno == ECONNRESET && !resets++)));
    if (got < 0)
        return errno == ECONNRESET ? EPIPE : errno;
    int more = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        /* Alignment leaves room for two: a sender of more than one is not ours, and its fds must not stay. */
        for (size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len; at += sizeof(int)) {
            int one;
            memcpy(&one, (char *)c + at, sizeof one);
            if (*fd < 0)
                *fd = one;
            else
                close(one), more = 1;
        }
    }
    if ((size_t)got == len && !(msg.msg_flags & MSG_TRUNC) && !more) {
        if (!(msg.msg_flags & MSG_CTRUNC))
            return 0;
        if (*fd < 0)
            return EMFILE;
    }
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return got == 0 ? EPIPE : EPROTO;
}

static int same_user(int sock)
{
    struct ucred peer;
    socklen_t len = sizeof peer;
    return !getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &len) && (peer.uid == geteuid() || peer.uid == 0);
}

/* Tokens are compared in constant time: a neighbour must not learn one byte by byte. */
static int same_token(const unsigned char *a, const unsigned char *b)
{
    unsigned diff = 0;
    for (int i = 0; i < SHM_TOKEN_BYTES; i++)
        diff |= (unsigned)(a[i] ^ b[i]);
    return !diff;
}

typedef struct maker {
    int listen_fd, rank, n, own_pidfd;
    const gsi_shm_address *addresses;
    shm_link *links;
    char *greeted;  /* by rank: 1 when its hello has come */
    int *strangers; /* accepted, not yet heard; a ring, the oldest is dropped */
    int nstrangers; /* room: for all peers at once and some more */
    int oldest;
    int64_t probed_ns;
} maker;

static int no_descriptors(int err, int peer)
{
    return gsi_fail_errno(err, "no file descriptor for the link to rank %d; raise the limit of open files (ulimit -n)",
                          peer);
}

static int greet(const maker *m, int sock, int peer)
{
    hello h = {HELLO_MAGIC, m->rank, {0}};
    memcpy(h.token, m->addresses[peer].token, sizeof h.token);
    return send_with_fd(sock, &h, sizeof h, m->own_pidfd);
}

static int unreachable(const maker *m, int peer)
{
    return gsi_fail(
        GRADSYNC_ERR_UNSUPPORTED,
        "rank %d (pid %lld) is on this host, but its socket is not to be found: it has given up or ended, or "
        "is in another network namespace (give containers of one host one, or set GRADSYNC_HOST_ID apart)",
        peer, (long long)m->addresses[peer].pid);
}

/* Connects to a peer of a higher rank and greets it. 0 (done or to be tried again), or an error. */
static int connect_to(maker *m, int peer)
{
    struct sockaddr_un un;
    socklen_t len = socket_name(&m->addresses[peer], &un);
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (sock < 0)
        return no_descriptors(errno, peer);
    int err = connect(sock, (struct sockaddr *)&un, len) ? errno : 0;
    if (!err)
        err = greet(m, sock, peer);
    if (!err) {
        m->links[peer].fd = sock;
        return 0;
    }
    close(sock);
    if (err == EAGAIN || err == EINTR || err == ETOOMANYREFS)
        return 0; /* its queue is full: again in a moment */
    return err == ECONNREFUSED ? unreachable(m, peer) : gsi_fail_errno(err, "cannot connect to rank %d", peer);
}

/* A peer of a lower rank connects by itself, unless it has failed: then its socket is gone, which only a
 * connection can tell. The peer takes this one for a stranger that left. */
static int probe(const maker *m, int peer)
{
    struct sockaddr_un un;
    socklen_t len = socket_name(&m->addresses[peer], &un);
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (sock < 0)
        return no_descriptors(errno, peer);
    int refused = connect(sock, (struct sockaddr *)&un, len) && errno == ECONNREFUSED;
    close(sock);
    return refused ? unreachable(m, peer) : 0;
}

/* Reads a stranger's hello: a peer of a lower rank becomes a link and is greeted back; anyone else is dropped.
 * 0, or an error if it was a peer, but there is no room for its link. */
static int hear_stranger(maker *m, int *stranger)
{
    hello h;
    int fd, sock = *stranger, err = receive_with_fd(sock, &h, sizeof h, &fd);

    if (err == EAGAIN)
        return 0;
    *stranger = -1;
    int known = (!err || err == EMFILE) && h.magic == HELLO_MAGIC && h.rank >= 0 && h.rank < m->rank &&
                m->links[h.rank].fd < 0 && same_token(h.token, m->addresses[m->rank].token);
    if (known && !err)
        err = greet(m, sock, h.rank);
    if (known && !err) {
        m->links[h.rank] = (shm_link){sock, fd};
        m->greeted[h.rank] = 1;
        return 0;
    }
    if (fd >= 0)
        close(fd);
    close(sock);
    return known && err == EMFILE ? no_descriptors(err, h.rank) : 0;
}

static int accept_all(maker *m)
{
    for (;;) {
        int sock = accept4(m->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (sock < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        if (sock < 0)
            return errno == EMFILE || errno == ENFILE
                       ? gsi_fail_errno(errno,
                                        "no file descriptor for a peer; raise the limit of open files (ulimit -n)")
                       : 0;
        if (!same_user(sock)) {
            close(sock);
            continue;
        }
        if (m->strangers[m->oldest] >= 0)
            close(m->strangers[m->oldest]);
        m->strangers[m->oldest] = sock;
        m->oldest = (m->oldest + 1) % m->nstrangers;
    }
}

/* Reads the answer of a peer that this rank connected to. */
static int hear_peer(maker *m, int peer)
{
    hello h;
    int fd, err = receive_with_fd(m->links[peer].fd, &h, sizeof h, &fd);

    if (err == EAGAIN)
        return 0;
    if (err == EMFILE)
        return no_descriptors(err, peer);
    if (!err && h.magic == HELLO_MAGIC && h.rank == peer && same_token(h.token, m->addresses[m->rank].token)) {
        m->links[peer].pidfd = fd;
        m->greeted[peer] = 1;
        return 0;
    }
    if (fd >= 0)
        close(fd);
    return gsi_fail(GRADSYNC_ERR_PEER_LOST, "rank %d closed its link while the communicator was made", peer);
}

/* The more ranks, the fewer of them look whether others have given up. */
static int probe_ms(const maker *m)
{
    return 100 + 4 * m->n;
}

static int make_round(maker *m, int *missing)
{
    int64_t now = gsi_now_ns();
    int probes = now - m->probed_ns > probe_ms(m) * 1000000ll;

    if (probes)
        m->probed_ns = now;
    for (int peer = 0; peer < m->n; peer++) {
        if (peer == m->rank || m->greeted[peer])
            continue;
        int rc = 0;
        if (peer > m->rank)
            rc = m->links[peer].fd < 0 ? connect_to(m, peer) : hear_peer(m, peer);
        else if (probes)
            rc = probe(m, peer);
        if (rc)
            return rc;
    }
    int rc = accept_all(m);
    for (int i = 0; !rc && i < m->nstrangers; i++)
        if (m->strangers[i] >= 0)
            rc = hear_stranger(m, &m->strangers[i]);
    *missing = -1; /* this rank itself is never greeted */
    for (int peer = 0; peer < m->n; peer++)
        *missing += !m->greeted[peer];
    return rc;
}

/* Sleeps until a socket has news; a peer whose queue was full is tried again after RETRY_MS. */
static void wait_round(const maker *m, struct pollfd *fds)
{
    nfds_t count = 0;
    int timeout = probe_ms(m);

    fds[count++] = (struct pollfd){m->listen_fd, POLLIN, 0};
    for (int i = 0; i < m->nstrangers; i++)
        if (m->strangers[i] >= 0)
            fds[count++] = (struct pollfd){m->strangers[i], POLLIN, 0};
    for (int peer = m->rank + 1; peer < m->n; peer++) {
        if (m->greeted[peer])
            continue;
        if (m->links[peer].fd < 0)
            timeout = RETRY_MS;
        else
            fds[count++] = (struct pollfd){m->links[peer].fd, POLLIN, 0};
    }
    poll(fds, count, timeout);
}

int shm_links_make(int listen_fd, int rank, int n, const gsi_shm_address *addresses, int64_t deadline_ns,
                   shm_link *links)
{
    maker m = {.listen_fd = listen_fd,
               .rank = rank,
               .n = n,
               .addresses = addresses,
               .links = links,
               .nstrangers = n + SPARE_STRANGERS,
               .probed_ns = gsi_now_ns()};
    int missing = n - 1, rc = 0;

    for (int i = 0; i < n; i++)
        links[i] = (shm_link){-1, -1};
    m.greeted = gsi_calloc((size_t)n, 1);
    m.strangers = gsi_calloc((size_t)m.nstrangers, sizeof *m.strangers);
    struct pollfd *fds = gsi_calloc((size_t)n + (size_t)m.nstrangers + 1, sizeof *fds);
    for (int i = 0; m.strangers && i < m.nstrangers; i++)
        m.strangers[i] = -1;
    if (!m.greeted || !m.strangers || !fds)
        rc = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the links of %d ranks", n);
    /* Kernels before 5.3 have no pidfds: then the end of the socket tells of the end of a peer. */
    m.own_pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    while (!rc && missing) {
        rc = make_round(&m, &missing);
        if (rc || !missing)
            break;
        if (gsi_now_ns() > deadline_ns) {
            int late = 0;
            while (late == rank || m.greeted[late])
                late++;
            rc = gsi_fail(GRADSYNC_ERR_TIMEOUT,
                          "rank %d (pid %lld) did not link up in time, with %d more missing; is it alive?", late,
                          (long long)addresses[late].pid, missing - 1);
            break;
        }
        wait_round(&m, fds);
    }
    for (int i = 0; m.strangers && i < m.nstrangers; i++)
        if (m.strangers[i] >= 0)
            close(m.strangers[i]);
    if (m.own_pidfd >= 0)
        close(m.own_pidfd);
    free(m.greeted);
    free(m.strangers);
    free(fds);
    if (rc)
        shm_links_close(links, n);
    return rc;
}

void shm_links_close(shm_link *links, int n)
{
    for (int i = 0; i < n; i++) {
        if (links[i].fd >= 0)
            close(links[i].fd);
        if (links[i].pidfd >= 0)
            close(links[i].pidfd);
        links[i] = (shm_link){-1, -1};
    }
}

int shm_link_send(const shm_link *link, const shm_message *message, int fd)
{
    int err = send_with_fd(link->fd, message, sizeof *message, fd);
    if (err == EAGAIN || err == ETOOMANYREFS || err == ENOBUFS || err == ENOMEM)
        return GRADSYNC_IN_PROGRESS;
    if (err == EPIPE || err == ECONNRESET)
        return gsi_fail(GRADSYNC_ERR_PEER_LOST, "a peer closed its link");
    return err ? gsi_fail_errno(err, "cannot hand memory to a peer") : 0;
}

int shm_link_receive(const shm_link *link, shm_message *message, int *fd)
{
    return receive_with_fd(link->fd, message, sizeof *message, fd);
}
