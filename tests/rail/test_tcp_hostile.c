/* SPDX-License-Identifier: Apache-2.0 */
/* Peers that lie, strangers at the port, and what set-up says when it cannot work. */
#include "test_tcp.h"
#include "base/alloc.h"
#include "base/clock.h"
#include "transport/tcp/interfaces.h"

#include <arpa/inet.h>
#include <gradsync/gradsync.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MEMORY = 64 << 10, GUARD = 4096, PATIENCE_MS = 20000 };

/* A rail with one connection to a peer that is made of plain sockets here. */
struct victim {
    gsi_rail *rail;
    gsi_conn *conn;
    gsi_region region;
    unsigned char memory[GUARD + MEMORY + GUARD]; /* the region is in the middle */
    gsi_tcp_card mine, theirs;                    /* mine: the liar's */
    int listener, fd;                             /* the liar's */
    gsi_tcp_secret secret;
};

static const gradsync_error_info *last_error(void)
{
    static gradsync_error_info info;

    info = (gradsync_error_info)GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    return &info;
}

static gsi_rail *open_rail(const char *address)
{
    gsi_rail_config config = {.connections = 4, .send_depth = 8, .recv_depth = 8};
    gsi_rail *rail = NULL;

    return tcp_open_at((void *)(uintptr_t)address, 0, &config, &rail) < 0 ? NULL : rail;
}

static int dial(const gsi_tcp_card *to)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(to->port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    memcpy(&at.sin_addr, to->address, 4);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (connect(fd, (struct sockaddr *)&at, sizeof at) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Reads n bytes while the rail makes progress: what came before the end. */
static size_t hear(struct victim *v, int fd, void *into, size_t n)
{
    int64_t end = gsi_deadline_ns(gsi_now_ns(), PATIENCE_MS);
    size_t have = 0;

    while (have < n && gsi_now_ns() < end) {
        ssize_t r = recv(fd, (char *)into + have, n - have, MSG_DONTWAIT);
        if (r == 0)
            break;
        have += r > 0 ? (size_t)r : 0;
        v->rail->ops->ready(v->conn);
    }
    return have;
}

static void begin(struct victim *v, int liar_dials)
{
    gsi_rail_address blob;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;

    memset(v, 0, sizeof *v);
    memset(v->memory, 0x77, sizeof v->memory);
    v->fd = -1;
    v->rail = open_rail("127.0.0.1");
    if (!v->rail || v->rail->ops->reg(v->rail, v->memory + GUARD, MEMORY, &v->region) < 0 ||
        v->rail->ops->conn(v->rail, 3, &v->conn, &blob) < 0 || gsi_tcp_card_parse(&blob, &v->theirs)) {
        test_ok(0, "a rail: %s", last_error()->message);
        exit(test_done());
    }
    v->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(v->listener, (struct sockaddr *)&at, sizeof at) || listen(v->listener, 8) ||
        getsockname(v->listener, (struct sockaddr *)&at, &length))
        exit(EXIT_FAILURE);
    v->mine = (gsi_tcp_card){4, ntohs(at.sin_port), {127, 0, 0, 1}, .number = 99, .depth = 4};
    randombytes_buf(v->mine.token, sizeof v->mine.token);
    /* The smaller card dials. */
    if (liar_dials)
        memset(v->mine.address, 0, 4);
}

static int join(struct victim *v)
{
    gsi_rail_address blob;

    gsi_tcp_card_pack(&v->mine, &blob);
    return v->rail->ops->connect(v->conn, &blob);
}

/* As the connector, honest but for a bit of its proof. 1: the connection is open. */
static int prove_but(struct victim *v, int bit)
{
    unsigned char hello[GSI_TCP_HELLO], challenge[GSI_TCP_CHALLENGE], proof[GSI_TCP_PROOF];
    int64_t end = gsi_deadline_ns(gsi_now_ns(), PATIENCE_MS);
    int ready = 0;

    gsi_tcp_secret_make(&v->secret, &v->mine, &v->theirs);
    gsi_tcp_hello_make(&v->secret, v->theirs.number, hello);
    v->fd = dial(&v->theirs);
    if (v->fd < 0 || send(v->fd, hello, sizeof hello, MSG_NOSIGNAL) != sizeof hello ||
        hear(v, v->fd, challenge, sizeof challenge) != sizeof challenge ||
        !gsi_tcp_challenge_check(&v->secret, challenge))
        return 0;
    gsi_tcp_proof_make(&v->secret, proof);
    if (bit >= 0)
        proof[bit / 8] ^= (unsigned char)(1 << bit % 8);
    if (send(v->fd, proof, sizeof proof, MSG_NOSIGNAL) != sizeof proof)
        return 0;
    if (bit >= 0) /* it hangs up on us */
        return hear(v, v->fd, proof, 1) == 0 ? v->rail->ops->ready(v->conn) : 1;
    while (ready == 0 && gsi_now_ns() < end)
        ready = v->rail->ops->ready(v->conn);
    return ready == 1;
}

static int prove(struct victim *v)
{
    return prove_but(v, -1);
}

static void finish(struct victim *v)
{
    v->rail->ops->close(v->rail);
    close(v->listener);
    if (v->fd >= 0)
        close(v->fd);
}

/* ---- Frames ---------------------------------------------------------------------- */

static void say(struct victim *v, const gsi_tcp_frame *frame, size_t payload)
{
    static unsigned char bytes[GSI_TCP_HEAD + MEMORY];

    gsi_tcp_frame_pack(frame, bytes);
    test_fill(bytes + GSI_TCP_HEAD, payload, 1);
    (void)!send(v->fd, bytes, GSI_TCP_HEAD + payload, MSG_NOSIGNAL);
}

/* Polls until the connection fails; arrivals before that are counted. */
static const gsi_rail_event *failure(struct victim *v, int *arrived)
{
    static gsi_rail_event e;
    int64_t end = gsi_deadline_ns(gsi_now_ns(), PATIENCE_MS);

    *arrived = 0;
    while (gsi_now_ns() < end)
        if (v->rail->ops->poll(v->rail, &e, 1) == 1) {
            if (e.kind == GSI_RAIL_FAILED)
                return &e;
            *arrived += e.kind == GSI_RAIL_ARRIVED;
        }
    return NULL;
}

static int guards_hold(const struct victim *v)
{
    for (size_t i = 0; i < GUARD; i++)
        if (v->memory[i] != 0x77 || v->memory[GUARD + MEMORY + i] != 0x77)
            return 0;
    return 1;
}

static int silent(struct victim *v)
{
    gsi_rail_event e;

    for (int i = 0; i < 200; i++)
        if (v->rail->ops->poll(v->rail, &e, 1))
            return 0;
    return 1;
}

static const char *const lies[] = {
    "kind 0",
    "an unknown kind",
    "unknown flags",
    "another magic",
    "zeroes",
    "a write with a wrong key",
    "a write with a key of generation 0",
    "a write with an index beyond the table",
    "a write that starts before the region",
    "a write that ends behind the region",
    "a write of all addresses",
    "a write that wraps around",
    "a read with a wrong key",
    "a read behind the region",
    "a read that wraps around",
    "more reads than announced",
    "an acknowledgement of what was never sent",
    "an acknowledgement that is taken back",
    "an answer to no read",
    "an answer of another size",
    "an answer to a write",
    "an acknowledgement with bytes",
    "a head that is cut off",
    "a payload that is cut off",
    "its own error, of an unknown kind",
    "nothing more: it leaves",
};

static void lie(struct victim *v, int which)
{
    uint64_t base = (uint64_t)(uintptr_t)v->region.base;
    gsi_tcp_frame w = {.kind = GSI_TCP_WRITE, .remote = base, .key = v->region.remote_key, .bytes = 100};
    gsi_tcp_frame r = {.kind = GSI_TCP_READ, .remote = base, .key = v->region.remote_key, .bytes = 100};
    gsi_rail_work work = {v->region.base, &v->region, 64, 0, 0, 11, 0, GSI_RAIL_SIGNAL};
    unsigned char bytes[4096] = {0};

    switch (which) {
    case 0:
        w.kind = 0;
        say(v, &w, 100);
        break;
    case 1:
        w.kind = 77;
        say(v, &w, 100);
        break;
    case 2:
        w.flags = 0x80;
        say(v, &w, 100);
        break;
    case 3:
        gsi_tcp_frame_pack(&w, bytes);
        bytes[2] ^= 1;
        (void)!send(v->fd, bytes, 200, MSG_NOSIGNAL);
        break;
    case 4:
        (void)!send(v->fd, bytes, sizeof bytes, MSG_NOSIGNAL);
        break;
    case 5:
        w.key ^= (uint64_t)0x10101 << 32;
        say(v, &w, 100);
        break;
    case 6:
        w.key = (uint32_t)w.key;
        say(v, &w, 100);
        break;
    case 7:
        w.key |= 0x7fffffff;
        say(v, &w, 100);
        break;
    case 8:
        w.remote--;
        say(v, &w, 100);
        break;
    case 9:
        w.remote += MEMORY - 99;
        say(v, &w, 100);
        break;
    case 10:
        w.bytes = ~(uint64_t)0;
        say(v, &w, 5000);
        break;
    case 11:
        w.remote = ~(uint64_t)0 - 50;
        say(v, &w, 100);
        break;
    case 12:
        r.key++;
        say(v, &r, 0);
        break;
    case 13:
        r.remote += MEMORY;
        say(v, &r, 0);
        break;
    case 14:
        r.remote += 100;
        r.bytes = ~(uint64_t)0 - 20;
        say(v, &r, 0);
        break;
    case 15: /* it does not take the answers */
        r.bytes = MEMORY;
        for (int i = 0; i < 4000; i++)
            say(v, &r, 0);
        break;
    case 16:
        w.ack = 1;
        say(v, &w, 100);
        break;
    case 17:
        v->rail->ops->write(v->conn, &work);
        w.ack = 1;
        say(v, &w, 100);
        w.ack = 0;
        say(v, &w, 100);
        break;
    case 18:
        w.kind = GSI_TCP_ANSWER;
        say(v, &w, 100);
        break;
    case 19:
        v->rail->ops->read(v->conn, &work);
        w.kind = GSI_TCP_ANSWER;
        w.ack = 1;
        w.bytes = 65;
        say(v, &w, 65);
        break;
    case 20:
        v->rail->ops->write(v->conn, &work);
        w.kind = GSI_TCP_ANSWER;
        w.bytes = 64;
        say(v, &w, 64);
        break;
    case 21:
        w.kind = GSI_TCP_ACK;
        say(v, &w, 100);
        break;
    case 22:
        gsi_tcp_frame_pack(&w, bytes);
        (void)!send(v->fd, bytes, GSI_TCP_HEAD - 1, MSG_NOSIGNAL);
        shutdown(v->fd, SHUT_WR);
        break;
    case 23:
        say(v, &w, 99);
        shutdown(v->fd, SHUT_WR);
        break;
    case 24:
        say(v, &(gsi_tcp_frame){.kind = GSI_TCP_ERROR, .imm = 0xffffffff}, 0);
        break;
    default:
        shutdown(v->fd, SHUT_WR);
        break;
    }
}

static void test_frames(void)
{
    static struct victim v;
    int n = (int)(sizeof lies / sizeof *lies), arrived;

    for (int i = 0; i < n; i++) {
        begin(&v, 1);
        int good = join(&v) == 0 && prove(&v);
        /* First something honest: it must not be lost. */
        say(&v, &(gsi_tcp_frame){.kind = GSI_TCP_WRITE, .flags = GSI_TCP_IMM}, 0);
        lie(&v, i);
        const gsi_rail_event *e = failure(&v, &arrived);
        good &= e && e->conn == 3 && e->why && arrived == 1 && guards_hold(&v);
        test_ok(good && silent(&v), "%s: FAILED, '%s'", lies[i], e ? e->why : "never told");
        finish(&v);
    }
    begin(&v, 1);
    int good = join(&v) == 0 && prove(&v);
    for (int i = 0; i < 3; i++)
        say(&v,
            &(gsi_tcp_frame){.kind = GSI_TCP_WRITE,
                             .flags = GSI_TCP_IMM,
                             .remote = (uint64_t)(uintptr_t)v.region.base,
                             .key = v.region.remote_key,
                             .bytes = 500},
            500);
    shutdown(v.fd, SHUT_WR);
    const gsi_rail_event *e = failure(&v, &arrived);
    test_ok(good && e && arrived == 3 && !strcmp(e->why, "the peer closed the connection"),
            "what a peer sent before it left arrives first: '%s'", e ? e->why : "");
    finish(&v);
}

/* Frames that begin right, with a bit changed here and there, cut anywhere. */
static void test_random_frames(void)
{
    static struct victim v;
    static unsigned char bytes[8192];
    int good = 1, early = 0, arrived;

    for (int round = 0; round < 150 && good; round++) {
        int was = early;
        size_t n = 0;
        gsi_rail_event e;
        begin(&v, 1);
        good &= join(&v) == 0 && prove(&v);
        while (n < 4096) {
            gsi_tcp_frame f = {.kind = test_below(12) ? GSI_TCP_WRITE : 1 + test_below(5),
                               .flags = test_below(8),
                               .imm = test_random(),
                               .remote = (uint64_t)(uintptr_t)v.region.base + test_below(MEMORY - 1000),
                               .key = v.region.remote_key,
                               .bytes = test_below(3) ? 0 : test_below(1500)};
            gsi_tcp_frame_pack(&f, bytes + n);
            n += GSI_TCP_HEAD + (f.kind == GSI_TCP_WRITE ? f.bytes : 0);
        }
        for (uint32_t k = test_below(4); k > 0; k--)
            bytes[test_below((uint32_t)n)] ^= (unsigned char)(1u << test_below(8));
        for (size_t at = 0; at < n;) {
            size_t part = 1 + test_below(700);
            if (part > n - at)
                part = n - at;
            if (send(v.fd, bytes + at, part, MSG_NOSIGNAL) < 0)
                break;
            at += part;
            for (int k = 0; k < 3; k++)
                if (v.rail->ops->poll(v.rail, &e, 1) && e.kind == GSI_RAIL_FAILED)
                    early++;
        }
        shutdown(v.fd, SHUT_WR);
        good &= (was == early ? failure(&v, &arrived) != NULL : silent(&v));
        good &= guards_hold(&v) && early <= was + 1;
        finish(&v);
    }
    test_ok(good, "150 streams of damaged frames: FAILED once, and nothing outside of the region is touched (%d early)",
            early);
}

/* ---- Strangers ----------------------------------------------------------------------- */

static void crowd(const gsi_tcp_card *to, const unsigned char *genuine, int *fds, int n)
{
    unsigned char junk[300];

    for (int i = 0; i < n; i++) {
        fds[i] = dial(to);
        if (fds[i] < 0)
            continue;
        randombytes_buf(junk, sizeof junk);
        if (i % 4 == 1)
            (void)!send(fds[i], junk, 1 + test_below(sizeof junk), MSG_NOSIGNAL);
        if (i % 4 == 2) { /* a hello with a bit changed */
            memcpy(junk, genuine, GSI_TCP_HELLO);
            junk[test_below(GSI_TCP_HELLO)] ^= 4;
            (void)!send(fds[i], junk, GSI_TCP_HELLO, MSG_NOSIGNAL);
        }
        if (i % 4 == 3) /* the beginning of a genuine one */
            (void)!send(fds[i], genuine, 1 + test_below(GSI_TCP_HELLO - 1), MSG_NOSIGNAL);
    }
}

static void test_strangers(void)
{
    enum { CROWD = 200 };
    static struct victim v;
    static int fds[2 * CROWD];
    unsigned char hello[GSI_TCP_HELLO];
    gsi_rail_event e;
    int most = 0, replayed[20], live = 0;

    begin(&v, 1);
    const gsi_tcp_rail *rail = (const gsi_tcp_rail *)v.rail;
    gsi_tcp_secret_make(&v.secret, &v.mine, &v.theirs);
    gsi_tcp_hello_make(&v.secret, v.theirs.number, hello);
    crowd(&v.theirs, hello, fds, CROWD);
    for (int i = 0; i < 50; i++) {
        int n = 0;
        v.rail->ops->ready(v.conn);
        for (const gsi_tcp_guest *g = rail->guests; g; g = g->next)
            n += g->fd >= 0;
        most = n > most ? n : most;
    }
    /* A genuine hello, before connect() and again and again: an eavesdropper could do that. */
    for (int i = 0; i < 20; i++) {
        replayed[i] = dial(&v.theirs);
        (void)!send(replayed[i], hello, sizeof hello, MSG_NOSIGNAL);
        v.rail->ops->ready(v.conn);
    }
    for (const gsi_tcp_guest *g = rail->guests; g; g = g->next)
        live += g->conn && g->fd >= 0;
    test_ok(most > 0 && most <= 64 && live <= 4, "of %d strangers at most %d are heard at once, and %d repeated hellos",
            CROWD, most, live);
    int good = join(&v) == 0;
    for (int bit = 0; bit < 256 && good; bit += 51) {
        good = prove_but(&v, bit) == 0;
        close(v.fd);
    }
    test_ok(good, "a proof with a bit changed is none");
    crowd(&v.theirs, hello, fds + CROWD, CROWD);
    good &= prove(&v);
    test_ok(good, "a peer gets in, in between");
    say(&v, &(gsi_tcp_frame){.kind = GSI_TCP_WRITE, .flags = GSI_TCP_IMM, .imm = 8}, 0);
    int64_t end = gsi_deadline_ns(gsi_now_ns(), PATIENCE_MS);
    while ((good = v.rail->ops->poll(v.rail, &e, 1)) == 0 && gsi_now_ns() < end)
        ;
    test_ok(good == 1 && e.kind == GSI_RAIL_ARRIVED && e.imm == 8 && !rail->guests,
            "then the strangers are sent away and data flows");
    for (int i = 0; i < 2 * CROWD; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    for (int i = 0; i < 20; i++)
        if (replayed[i] >= 0)
            close(replayed[i]);
    while (v.rail->ops->poll(v.rail, &e, 1))
        ;
    struct pollfd p = {v.rail->fd, POLLIN, 0};
    int fd = dial(&v.theirs);
    v.rail->ops->arm(v.rail);
    good = v.rail->ops->poll(v.rail, &e, 1) == 0 && poll(&p, 1, 0) == 0;
    v.rail->ops->disarm(v.rail);
    test_ok(good && silent(&v), "when all peers are there, a stranger does not wake the rail");
    if (fd >= 0)
        close(fd);
    finish(&v);
}

/* ---- The other way round: what is dialled is not the peer ------------------------------- */

static int wait_ready(struct victim *v)
{
    int64_t end = gsi_deadline_ns(gsi_now_ns(), PATIENCE_MS);
    int r = 0;

    while (r == 0 && gsi_now_ns() < end)
        r = v->rail->ops->ready(v->conn);
    return r;
}

static void test_dialling(void)
{
    static struct victim v;
    unsigned char hello[GSI_TCP_HELLO], challenge[GSI_TCP_CHALLENGE], proof[GSI_TCP_PROOF];
    gsi_tcp_secret secret;
    uint64_t number;

    for (int honest = 0; honest < 2; honest++) {
        do { /* until the victim's card is the smaller one */
            if (v.rail)
                finish(&v);
            begin(&v, 0);
        } while (gsi_tcp_card_compare(&v.theirs, &v.mine) > 0);
        int good = join(&v) == 0;
        v.fd = accept(v.listener, NULL, NULL);
        good &= hear(&v, v.fd, hello, sizeof hello) == sizeof hello && gsi_tcp_hello_parse(hello, &number) == 0 &&
                number == 99;
        gsi_tcp_secret_make(&secret, &v.theirs, &v.mine);
        good &= gsi_tcp_hello_check(hello, secret.hello);
        gsi_tcp_challenge_make(&secret, hello, challenge);
        challenge[sizeof challenge - 1] ^= (unsigned char)!honest;
        good &= send(v.fd, challenge, sizeof challenge, MSG_NOSIGNAL) == sizeof challenge;
        int r = wait_ready(&v);
        if (honest)
            test_ok(good && r == 1 && hear(&v, v.fd, proof, sizeof proof) == sizeof proof &&
                        gsi_tcp_proof_check(&secret, proof),
                    "the rail that dials is proven to, and proves itself");
        else
            test_ok(good && r == GRADSYNC_ERR_AUTH, "an impostor at the peer's address: %s", last_error()->message);
        finish(&v);
        v.rail = NULL;
    }
    do {
        if (v.rail)
            finish(&v);
        begin(&v, 0);
    } while (gsi_tcp_card_compare(&v.theirs, &v.mine) > 0);
    close(v.listener);
    v.listener = -1;
    int r = join(&v) < 0 ? 0 : wait_ready(&v);
    test_ok(r == GRADSYNC_ERR_PEER_LOST, "a peer that has ended: %s", last_error()->message);
    finish(&v);
    v.rail = NULL;
    /* The first attempts are cut off, as by a peer with too many strangers. */
    do {
        if (v.rail)
            finish(&v);
        begin(&v, 0);
    } while (gsi_tcp_card_compare(&v.theirs, &v.mine) > 0);
    int good = join(&v) == 0;
    for (int i = 0; i < 3; i++) {
        struct pollfd p = {v.listener, POLLIN, 0};
        while (poll(&p, 1, 1) == 0)
            good &= v.rail->ops->ready(v.conn) == 0;
        v.fd = accept(v.listener, NULL, NULL);
        if (i < 2) {
            close(v.fd);
            continue;
        }
        good &= hear(&v, v.fd, hello, sizeof hello) == sizeof hello;
        gsi_tcp_secret_make(&secret, &v.theirs, &v.mine);
        gsi_tcp_challenge_make(&secret, hello, challenge);
        good &= send(v.fd, challenge, sizeof challenge, MSG_NOSIGNAL) == sizeof challenge && wait_ready(&v) == 1;
    }
    test_ok(good, "an attempt that is cut off is repeated");
    finish(&v);
}

/* ---- Opening ---------------------------------------------------------------------------- */

static void test_open_errors(void)
{
    static const struct {
        const char *device, *address;
        int code;
    } cases[] = {{"", "localhost", GRADSYNC_ERR_INVALID},
                 {"", "300.1.2.3", GRADSYNC_ERR_INVALID},
                 {"", "192.0.2.77", GRADSYNC_ERR_DEVICE},
                 {"no-such-if", "", GRADSYNC_ERR_DEVICE}};
    static struct victim v;
    gsi_rail *rail;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gsi_rail_config config = {0};
        snprintf(config.device, sizeof config.device, "%s", cases[i].device);
        snprintf(config.address, sizeof config.address, "%s", cases[i].address);
        int r = gsi_tcp_rail_open(&config, &rail);
        test_ok(r == cases[i].code, "'%s' '%s': %s", cases[i].device, cases[i].address, last_error()->message);
    }
    gsi_rail_config by_name = {.device = "lo"};
    int r = gsi_tcp_rail_open(&by_name, &rail);
    test_ok(r == 0 && !strcmp(rail->name, "lo"), "an interface by name");
    if (r == 0)
        rail->ops->close(rail);

    begin(&v, 1);
    gsi_rail_address blob = {{0}};
    int good = v.rail->ops->connect(v.conn, &blob) == GRADSYNC_ERR_UNSUPPORTED;
    v.mine.family = 6;
    good &= join(&v) == GRADSYNC_ERR_UNSUPPORTED;
    v.mine.family = 4;
    v.mine.depth = 0xffffffff;
    good &= join(&v) == GRADSYNC_ERR_UNSUPPORTED;
    gsi_tcp_card_pack(&v.theirs, &blob);
    good &= v.rail->ops->connect(v.conn, &blob) < 0;
    v.mine.depth = 4;
    test_ok(good && join(&v) == 0 && prove(&v), "blobs that cannot be are refused, and nothing has changed by it");
    finish(&v);
}

static void test_out_of_memory(void)
{
    int good = 1, steps = 0;

    for (long n = 1; good && !steps; n++) {
        gsi_rail_config config = {.address = "127.0.0.1"};
        gsi_rail *rail = NULL;
        gsi_conn *conns[2];
        gsi_rail_address blobs[2];
        gsi_region region;
        static char memory[64];
        gsi_alloc_fail_at(n);
        int r = gsi_tcp_rail_open(&config, &rail);
        if (r == 0)
            r = rail->ops->reg(rail, memory, sizeof memory, &region);
        for (int i = 0; i < 2 && r == 0; i++)
            r = rail->ops->conn(rail, (uint32_t)i, &conns[i], &blobs[i]);
        for (int i = 0; i < 2 && r == 0; i++)
            r = rail->ops->connect(conns[i], &blobs[!i]);
        gsi_alloc_fail_at(0);
        if (r == 0)
            steps = (int)n;
        else
            good &= r == GRADSYNC_ERR_NOMEM;
        if (rail)
            rail->ops->close(rail);
    }
    test_ok(good && steps > 4, "each of %d allocations may fail", steps - 1);
}

static int named_eth(void *arg, const char *name)
{
    (void)arg;
    return !strncmp(name, "eth", 3) || !strcmp(name, "lo");
}

static void test_interfaces(void)
{
    static const gsi_tcp_interface all[] = {
        {.name = "lo", .loopback = 1},    {.name = "docker0", .bridge = 1}, {.name = "eth0", .mbps = 10000},
        {.name = "eth1", .mbps = 100000}, {.name = "eth2", .mbps = 10000},  {.name = "ib0"},
    };
    gsi_tcp_interface list[GSI_TCP_INTERFACES];
    int n;

    memcpy(list, all, sizeof all);
    n = gsi_tcp_interfaces_choose(list, 6, NULL, NULL);
    test_ok(n == 4 && !strcmp(list[0].name, "eth1") && !strcmp(list[1].name, "eth0") && !strcmp(list[2].name, "eth2") &&
                !strcmp(list[3].name, "ib0"),
            "interfaces: no loopback, no bridges, the fastest first");
    memcpy(list, all, sizeof all);
    n = gsi_tcp_interfaces_choose(list, 2, NULL, NULL);
    test_ok(n == 2, "interfaces: these too if there is nothing else");
    memcpy(list, all, sizeof all);
    n = gsi_tcp_interfaces_choose(list, 6, named_eth, NULL);
    test_ok(n == 4 && !strcmp(list[3].name, "lo"), "interfaces: as the operator says");
    n = gsi_tcp_interface_find("lo", list);
    test_ok(n == 1 && list[0].loopback && list[0].family == 4 && !strcmp(list[0].address, "127.0.0.1") &&
                list[0].prefix == 8,
            "interfaces: lo is 127.0.0.1/8");
    n = gsi_tcp_interfaces(NULL, NULL, list);
    test_ok(n > 0 && list[0].address[0], "interfaces: this host has %d", n);
}

void test_hostile(void)
{
    test_interfaces();
    test_open_errors();
    test_out_of_memory();
    test_dialling();
    test_strangers();
    test_frames();
    test_random_frames();
}
