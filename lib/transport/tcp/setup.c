/* SPDX-License-Identifier: Apache-2.0 */
/* From blobs to open connections: one side dials, the other has guests; see hello.h. */
#include "transport/tcp/state.h"
#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    BACKLOG = 1024,
    GUESTS = 64,      /* strangers at most: who comes then drives the oldest away */
    GUESTS_OF = 4,    /* of one connection, with a genuine hello */
    GUEST_MS = 10000, /* a stranger has to say hello within this time */
    ATTEMPT_MS = 50,  /* between attempts to connect */
    DIAL_MS = 30000,  /* all attempts together, while nobody answers */
    REFUSALS = 10,    /* attempts that are refused before that is believed */
};

static void set_options(int fd)
{
    static const int yes = 1, idle = 5, every = 3, times = 4;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof every);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof times);
}

static const char *text_of(const gsi_tcp_card *card, char out[80])
{
    char host[INET6_ADDRSTRLEN] = "?";

    inet_ntop(card->family == 4 ? AF_INET : AF_INET6, card->address, host, sizeof host);
    snprintf(out, 80, card->family == 4 ? "%s:%u" : "[%s]:%u", host, (unsigned)card->port);
    return out;
}

static void close_socket(gsi_conn *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->greeting_have = 0;
}

/* Set-up has failed; ready() will say so. */
__attribute__((format(printf, 3, 4))) static void give_up(gsi_conn *c, int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(c->text, sizeof c->text, format, args);
    va_end(args);
    c->error = code;
    close_socket(c);
    gsi_tcp_set_state(c, GSI_TCP_DEAD);
}

/* ---- The listener ---- */

int gsi_tcp_listen(gsi_tcp_rail *rail)
{
    static const int yes = 1;
    gsi_tcp_addr to = rail->address;
    char host[INET6_ADDRSTRLEN] = "?";

    if (to.any.sa_family == AF_INET)
        inet_ntop(AF_INET, &to.v4.sin_addr, host, sizeof host);
    else
        inet_ntop(AF_INET6, &to.v6.sin6_addr, host, sizeof host);
    rail->listener = socket(to.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (rail->listener < 0)
        return gsi_fail_errno(errno, "no socket for TCP rail %s", rail->base.name);
    if (to.any.sa_family == AF_INET6)
        setsockopt(rail->listener, IPPROTO_IPV6, IPV6_V6ONLY, &yes, sizeof yes);
    if (bind(rail->listener, &to.any, to.len) < 0)
        return gsi_fail(GRADSYNC_ERR_DEVICE, "the address %s of TCP rail %s cannot be used: %s; is the interface up?",
                        host, rail->base.name, strerror(errno));
    if (listen(rail->listener, BACKLOG) < 0 ||
        getsockname(rail->listener, &rail->address.any, &(socklen_t){sizeof rail->address.v6}) < 0)
        return gsi_fail_errno(errno, "listening on %s for TCP rail %s failed", host, rail->base.name);
    return 0;
}

/* Listens only while somebody is expected: strangers do not wake a job that runs. */
static void watch_listener(gsi_tcp_rail *rail)
{
    int wanted = rail->awaiting > 0;

    if (wanted == rail->listening)
        return;
    if (wanted) {
        rail->listening = !gsi_tcp_watch(rail, rail->listener, EPOLLIN, &rail->listener_source, 0);
    } else {
        epoll_ctl(rail->base.fd, EPOLL_CTL_DEL, rail->listener, NULL);
        rail->listening = 0;
        gsi_tcp_drop_guests(rail, NULL);
    }
}

/* ---- Open ---- */

static void opened(gsi_conn *c, int fd, int watched)
{
    gsi_tcp_rail *rail = c->rail;

    c->fd = fd;
    gsi_tcp_secret_wipe(&c->secret);
    int err = gsi_tcp_watch(rail, fd, EPOLLIN, &c->source, watched);
    if (err) {
        give_up(c, GRADSYNC_ERR_SYSTEM, "a connection cannot be watched: %s; raise fs.epoll.max_user_watches",
                strerror(err));
        return;
    }
    gsi_tcp_set_state(c, GSI_TCP_OPEN);
    for (int i = 0; i < GSI_TCP_HOT; i++)
        if (!rail->hot[i]) {
            rail->hot[i] = c;
            break;
        }
}

/* ---- Guests ---- */

/* It is freed by gsi_tcp_setup_tidy(), since an event of it may already have been taken. */
static void drop(gsi_tcp_rail *rail, gsi_tcp_guest *g)
{
    if (g->fd < 0)
        return;
    close(g->fd);
    g->fd = -1;
    if (!g->conn)
        rail->nguests--;
    gsi_tcp_secret_wipe(&g->secret);
}

void gsi_tcp_drop_guests(gsi_tcp_rail *rail, const gsi_conn *conn)
{
    for (gsi_tcp_guest *g = rail->guests; g; g = g->next)
        if (!conn || g->conn == conn)
            drop(rail, g);
}

static void free_guests(gsi_tcp_rail *rail)
{
    gsi_tcp_guest **at = &rail->guests, *g;

    while ((g = *at)) {
        if (g->fd < 0) {
            *at = g->next;
            free(g);
        } else {
            at = &g->next;
        }
    }
}

static void challenge(gsi_tcp_rail *rail, gsi_tcp_guest *g)
{
    unsigned char out[GSI_TCP_CHALLENGE];

    g->secret = g->conn->secret;
    gsi_tcp_challenge_make(&g->secret, g->in, out);
    g->challenged = 1;
    g->have = 0;
    if (send(g->fd, out, sizeof out, MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof out)
        drop(rail, g);
}

static void heard_hello(gsi_tcp_rail *rail, gsi_tcp_guest *g)
{
    gsi_tcp_guest *oldest = NULL;
    uint64_t number;
    gsi_conn *c = rail->conns;
    int n = 0;

    if (gsi_tcp_hello_parse(g->in, &number) == 0)
        while (c && (c->mine.number != number || (c->state != GSI_TCP_NEW && c->state != GSI_TCP_ACCEPTING)))
            c = c->next;
    else
        c = NULL;
    if (!c || !gsi_tcp_hello_check(g->in, c->hello_key)) {
        drop(rail, g);
        return;
    }
    /* The list has the newest first. */
    for (gsi_tcp_guest *other = rail->guests; other; other = other->next)
        if (other->fd >= 0 && other->conn == c) {
            oldest = other;
            n++;
        }
    if (n >= GUESTS_OF)
        drop(rail, oldest);
    g->conn = c;
    rail->nguests--;
    if (c->state == GSI_TCP_ACCEPTING)
        challenge(rail, g);
}

static void heard_proof(gsi_tcp_rail *rail, gsi_tcp_guest *g)
{
    gsi_conn *c = g->conn;

    if (!gsi_tcp_proof_check(&g->secret, g->in)) {
        drop(rail, g);
        return;
    }
    int fd = g->fd;
    g->fd = -1; /* it is the connection's now */
    gsi_tcp_secret_wipe(&g->secret);
    gsi_tcp_drop_guests(rail, c);
    opened(c, fd, 1);
    watch_listener(rail);
}

static void guest_event(gsi_tcp_rail *rail, gsi_tcp_guest *g)
{
    uint32_t need = g->challenged ? GSI_TCP_PROOF : GSI_TCP_HELLO;
    unsigned char more;

    if (g->fd < 0)
        return;
    if (g->conn && !g->challenged) { /* it has nothing to say until it is challenged */
        ssize_t n = recv(g->fd, &more, 1, MSG_DONTWAIT);
        if (n >= 0 || (errno != EAGAIN && errno != EINTR))
            drop(rail, g);
        return;
    }
    ssize_t n = recv(g->fd, g->in + g->have, need - g->have, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        drop(rail, g);
        return;
    }
    g->have += (uint32_t)n;
    if (g->have < need)
        return;
    if (g->challenged)
        heard_proof(rail, g);
    else
        heard_hello(rail, g);
}

static void new_guest(gsi_tcp_rail *rail, int fd)
{
    gsi_tcp_guest *g = gsi_calloc(1, sizeof *g), *oldest = NULL;

    set_options(fd);
    if (!g || gsi_tcp_watch(rail, fd, EPOLLIN, &g->source, 0)) {
        close(fd);
        free(g);
        return;
    }
    *g = (gsi_tcp_guest){GSI_TCP_GUEST, fd, rail->guests, .since_ns = gsi_now_ns()};
    rail->guests = g;
    if (++rail->nguests > GUESTS) {
        for (gsi_tcp_guest *other = g->next; other; other = other->next)
            if (other->fd >= 0 && !other->conn)
                oldest = other;
        if (oldest)
            drop(rail, oldest);
    }
    guest_event(rail, g);
}

static void accept_guests(gsi_tcp_rail *rail)
{
    for (int i = 0; i < GUESTS && rail->listening; i++) {
        int fd = accept4(rail->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            new_guest(rail, fd);
        } else if (errno == EMFILE || errno == ENFILE) {
            int err = errno;
            for (gsi_conn *c = rail->conns; c; c = c->next)
                if (c->state == GSI_TCP_ACCEPTING)
                    give_up(c, GRADSYNC_ERR_SYSTEM,
                            "no file descriptor for a peer's connection: %s; raise the limit "
                            "(ulimit -n)",
                            strerror(err));
            watch_listener(rail);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return;
        }
    }
}

/* ---- Dialling ---- */

/* This attempt came to nothing. */
static void again(gsi_conn *c, int err)
{
    char to[80];

    close_socket(c);
    c->attempts++;
    int64_t now = gsi_now_ns();
    if (now >= gsi_deadline_ns(c->begun_ns, DIAL_MS) || (err == ECONNREFUSED && c->attempts >= REFUSALS)) {
        give_up(c, GRADSYNC_ERR_PEER_LOST,
                "the peer at %s (TCP rail %s) cannot be reached: %s; is a firewall between "
                "the hosts, or has the peer ended?",
                text_of(&c->peer, to), c->rail->base.name, strerror(err));
        return;
    }
    c->next_try_ns = gsi_deadline_ns(now, ATTEMPT_MS);
    gsi_tcp_set_state(c, GSI_TCP_PAUSING);
}

static void greet(gsi_conn *c)
{
    unsigned char hello[GSI_TCP_HELLO];
    int err = 0;
    socklen_t length = sizeof err;

    if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &length) < 0)
        err = errno;
    if (!err) {
        gsi_tcp_hello_make(&c->secret, c->peer.number, hello);
        if (send(c->fd, hello, sizeof hello, MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof hello)
            err = ECONNRESET;
    }
    if (!err)
        err = gsi_tcp_watch(c->rail, c->fd, EPOLLIN, &c->source, 1);
    if (err)
        again(c, err);
    else
        gsi_tcp_set_state(c, GSI_TCP_GREETING);
}

static void dial(gsi_conn *c)
{
    static const int yes = 1;
    const gsi_tcp_addr *mine = &c->rail->address;
    gsi_tcp_addr from = *mine, to = *mine; /* the scope of a link-local address is our own */
    char text[80];

    if (mine->any.sa_family == AF_INET) {
        from.v4.sin_port = 0;
        to.v4.sin_port = htons(c->peer.port);
        memcpy(&to.v4.sin_addr, c->peer.address, 4);
    } else {
        from.v6.sin6_port = 0;
        to.v6.sin6_port = htons(c->peer.port);
        memcpy(&to.v6.sin6_addr, c->peer.address, 16);
    }
    c->fd = socket(to.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0) {
        give_up(c, GRADSYNC_ERR_SYSTEM, "no socket to connect to %s: %s; raise the limit (ulimit -n)",
                text_of(&c->peer, text), strerror(errno));
        return;
    }
    set_options(c->fd);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    gsi_tcp_set_state(c, GSI_TCP_DIALING);
    if (bind(c->fd, &from.any, from.len) < 0 ||
        (connect(c->fd, &to.any, to.len) < 0 && errno != EINPROGRESS && errno != EINTR)) {
        again(c, errno);
        return;
    }
    int err = gsi_tcp_watch(c->rail, c->fd, EPOLLOUT, &c->source, 0);
    if (err)
        again(c, err);
}

static void challenged(gsi_conn *c)
{
    unsigned char proof[GSI_TCP_PROOF];
    char to[80];
    ssize_t n = recv(c->fd, c->greeting + c->greeting_have, sizeof c->greeting - c->greeting_have, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        again(c, n < 0 ? errno : ECONNRESET);
        return;
    }
    c->greeting_have += (uint32_t)n;
    if (c->greeting_have < sizeof c->greeting)
        return;
    if (!gsi_tcp_challenge_check(&c->secret, c->greeting)) {
        give_up(c, GRADSYNC_ERR_AUTH,
                "what answers at %s (TCP rail %s) is not the peer: it does not know the "
                "connection's token; is that address used twice in the network?",
                text_of(&c->peer, to), c->rail->base.name);
        return;
    }
    gsi_tcp_proof_make(&c->secret, proof);
    if (send(c->fd, proof, sizeof proof, MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof proof)
        again(c, ECONNRESET);
    else
        opened(c, c->fd, 1);
}

/* ---- Progress ---- */

void gsi_tcp_setup_event(gsi_tcp_rail *rail, gsi_tcp_source *source, uint32_t events)
{
    gsi_conn *c = (gsi_conn *)source;

    (void)events;
    if (*source == GSI_TCP_LISTENER)
        accept_guests(rail);
    else if (*source == GSI_TCP_GUEST)
        guest_event(rail, (gsi_tcp_guest *)source);
    else if (c->state == GSI_TCP_DIALING)
        greet(c);
    else if (c->state == GSI_TCP_GREETING)
        challenged(c);
}

void gsi_tcp_setup_tidy(gsi_tcp_rail *rail)
{
    int64_t now = gsi_now_ns();

    for (gsi_tcp_guest *g = rail->guests; g; g = g->next)
        if (!g->conn && now >= gsi_deadline_ns(g->since_ns, GUEST_MS))
            drop(rail, g);
    free_guests(rail);
    for (gsi_conn *c = rail->conns; c && rail->dialing; c = c->next) {
        if (c->state == GSI_TCP_PAUSING && now >= c->next_try_ns)
            dial(c);
        else if (c->state == GSI_TCP_DIALING && now >= gsi_deadline_ns(c->begun_ns, DIAL_MS))
            again(c, ETIMEDOUT);
    }
}

/* ---- The calls ---- */

static void free_conn(gsi_conn *c)
{
    sodium_memzero(&c->mine, sizeof c->mine);
    sodium_memzero(&c->peer, sizeof c->peer);
    gsi_tcp_secret_wipe(&c->secret);
    free(c->works);
    free(c->out);
    free(c->slots);
    free(c);
}

int gsi_tcp_conn(gsi_rail *base, uint32_t number, gsi_conn **out, gsi_rail_address *mine)
{
    gsi_tcp_rail *rail = (gsi_tcp_rail *)base;
    gsi_conn *c = gsi_calloc(1, sizeof *c);

    if (c)
        c->works = gsi_calloc(rail->send_depth, sizeof *c->works);
    if (!c || !c->works) {
        free(c);
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a connection of TCP rail %s", rail->base.name);
    }
    c->source = GSI_TCP_CONN;
    c->rail = rail;
    c->number = number;
    c->fd = -1;
    c->depth = rail->send_depth;
    c->mine.depth = c->depth;
    randombytes_buf(&c->mine.number, sizeof c->mine.number);
    randombytes_buf(c->mine.token, sizeof c->mine.token);
    if (rail->address.any.sa_family == AF_INET) {
        c->mine.family = 4;
        c->mine.port = ntohs(rail->address.v4.sin_port);
        memcpy(c->mine.address, &rail->address.v4.sin_addr, 4);
    } else {
        c->mine.family = 6;
        c->mine.port = ntohs(rail->address.v6.sin6_port);
        memcpy(c->mine.address, &rail->address.v6.sin6_addr, 16);
    }
    gsi_tcp_hello_key(&c->mine, c->hello_key);
    gsi_tcp_card_pack(&c->mine, mine);
    c->next = rail->conns;
    rail->conns = c;
    rail->awaiting++; /* its state is NEW */
    watch_listener(rail);
    *out = c;
    return 0;
}

int gsi_tcp_connect(gsi_conn *c, const gsi_rail_address *peer)
{
    gsi_tcp_rail *rail = c->rail;

    if (c->state != GSI_TCP_NEW)
        return gsi_fail(GRADSYNC_ERR_INTERNAL, "a TCP connection is connected twice; please report this");
    if (gsi_tcp_card_parse(peer, &c->peer) || c->peer.depth == 0 || c->peer.depth > GSI_TCP_MAX_DEPTH)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED,
                        "a peer of TCP rail %s describes its side of a connection in an "
                        "unknown way; use the same version of the library on all hosts",
                        rail->base.name);
    if (c->peer.family != c->mine.family)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED,
                        "TCP rail %s has an IPv%d address, its peer an IPv%d one; choose "
                        "interfaces with addresses of the same kind",
                        rail->base.name, c->mine.family, c->peer.family);
    int role = gsi_tcp_card_compare(&c->mine, &c->peer);
    if (role == 0)
        return gsi_fail(GRADSYNC_ERR_INTERNAL, "a TCP connection is connected to itself; please report this");
    /* Works and answers in flight, an acknowledgement, and one place to spare. */
    c->out_room = c->depth + c->peer.depth + 2;
    c->out = gsi_calloc(c->out_room, sizeof *c->out);
    c->slots = gsi_calloc(c->out_room, GSI_TCP_SLOT);
    if (!c->out || !c->slots)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a connection of TCP rail %s", rail->base.name);
    c->begun_ns = gsi_now_ns();
    if (role < 0) {
        gsi_tcp_drop_guests(rail, c);
        gsi_tcp_secret_make(&c->secret, &c->mine, &c->peer);
        dial(c);
    } else {
        gsi_tcp_secret_make(&c->secret, &c->peer, &c->mine);
        gsi_tcp_set_state(c, GSI_TCP_ACCEPTING);
        for (gsi_tcp_guest *g = rail->guests; g; g = g->next)
            if (g->fd >= 0 && g->conn == c)
                challenge(rail, g);
    }
    watch_listener(rail);
    return 0;
}

int gsi_tcp_ready(gsi_conn *c)
{
    if (c->state != GSI_TCP_OPEN && c->state != GSI_TCP_DEAD)
        gsi_tcp_setup_round(c->rail);
    if (c->state == GSI_TCP_OPEN) {
        c->told_ready = 1;
        return 1;
    }
    if (c->state != GSI_TCP_DEAD)
        return 0;
    if (c->why)
        return gsi_fail(c->error, "a connection of TCP rail %s was lost: %s", c->rail->base.name, c->why);
    return gsi_fail(c->error, "%s", c->text);
}

void gsi_tcp_disconnect(gsi_conn *c)
{
    gsi_tcp_rail *rail = c->rail;
    gsi_conn **at = &rail->conns, **dirty = &rail->dirty;

    if (c->state == GSI_TCP_OPEN) {
        c->ack_due |= c->received > 0;
        gsi_tcp_send_ack(c);
        gsi_tcp_flush(c);
    }
    gsi_tcp_drop_guests(rail, c);
    free_guests(rail);
    gsi_tcp_set_state(c, GSI_TCP_DEAD);
    gsi_tcp_unblock(c);
    close_socket(c);
    rail->failures -= c->failure_due;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    while (*dirty && *dirty != c)
        dirty = &(*dirty)->next_dirty;
    if (*dirty)
        *dirty = c->next_dirty;
    for (int i = 0; i < GSI_TCP_HOT; i++)
        if (rail->hot[i] == c)
            rail->hot[i] = NULL;
    for (uint32_t i = rail->kept_at; i < rail->kept_end; i++)
        if (rail->kept[i].conn == c->number)
            rail->kept[i].kind = 0;
    watch_listener(rail);
    free_conn(c);
}

int gsi_tcp_test_socket(const gsi_conn *c)
{
    return c->fd;
}
