/* SPDX-License-Identifier: Apache-2.0 */
/* The protocol as a state machine: what a man in the middle can do, byte by byte. */
#include "bootstrap/link.h"
#include "tap.h"

#include <sodium.h>
#include <string.h>

static gsi_keys keys, other_key, other_job;
static unsigned char nonces[8][GSI_NONCE_BYTES];

/* Bytes of one direction. */
struct wire {
    unsigned char data[8192];
    size_t n;
};

static void take_out(gsi_link *l, struct wire *w)
{
    memcpy(w->data + w->n, l->out, l->out_bytes);
    w->n += l->out_bytes;
    l->out_bytes = 0;
}

/* Feeds everything until the first event. */
static enum gsi_event feed(gsi_link *l, const struct wire *w)
{
    size_t used;

    return gsi_link_feed(l, w->data, w->n, &used);
}

struct pair {
    gsi_link client, server;
    struct wire hello, challenge, proof;
};

/* A complete handshake; its bytes are kept. */
static int shake(struct pair *p, int client_nonce, int server_nonce)
{
    memset(p, 0, sizeof *p);
    gsi_link_client(&p->client, &keys, nonces[client_nonce], 3, 8);
    gsi_link_server(&p->server, &keys, nonces[server_nonce]);
    take_out(&p->client, &p->hello);
    if (feed(&p->server, &p->hello) != GSI_LINK_HELLO)
        return 0;
    take_out(&p->server, &p->challenge);
    if (feed(&p->client, &p->challenge) != GSI_LINK_TRUST)
        return 0;
    gsi_link_prove(&p->client);
    take_out(&p->client, &p->proof);
    p->server.limits.block = p->client.limits.result = 1024;
    return feed(&p->server, &p->proof) == GSI_LINK_OPEN;
}

static void send_frame(gsi_link *from, struct wire *w, uint32_t type, uint32_t seq, const char *body)
{
    size_t n = strlen(body);

    gsi_link_seal_head(from, type, seq, n, w->data + w->n);
    w->n += GSI_HEAD_BYTES;
    if (n) {
        gsi_link_seal_body(from, body, n, w->data + w->n);
        w->n += n + GSI_AEAD_BYTES;
    }
}

/* Receives frames until the bytes end or the link does; bodies are joined in `text`. */
static enum gsi_event receive(gsi_link *to, const struct wire *w, char *text)
{
    unsigned char body[2048];
    size_t at = 0, used;
    enum gsi_event e = GSI_LINK_MORE;

    *text = 0;
    while (at < w->n) {
        e = gsi_link_feed(to, w->data + at, w->n - at, &used);
        at += used;
        if (e < 0)
            return e;
        if (e == GSI_LINK_HEAD && to->frame.length)
            gsi_link_body(to, body, NULL);
        if (e == GSI_LINK_BODY)
            strncat(text, (char *)body, to->frame.length);
    }
    return e;
}

static void test_handshake(void)
{
    struct pair p;
    struct wire up = {.n = 0}, down = {.n = 0};
    char text[4096];

    tap_ok(shake(&p, 0, 1), "a handshake");
    tap_ok(p.server.rank == 3 && p.server.nranks == 8, "the server knows the rank and the number of ranks");
    tap_ok(p.hello.n == GSI_HELLO_BYTES && p.challenge.n == GSI_CHALLENGE_BYTES && p.proof.n == GSI_PROOF_BYTES,
           "the sizes are the documented ones");
    send_frame(&p.client, &up, GSI_FRAME_BLOCK, 1, "hello ");
    send_frame(&p.client, &up, GSI_FRAME_BLOCK, 2, "");
    send_frame(&p.client, &up, GSI_FRAME_BLOCK, 3, "world");
    send_frame(&p.server, &down, GSI_FRAME_STATUS, 0, "waiting");
    tap_ok(receive(&p.server, &up, text) == GSI_LINK_BODY && !strcmp(text, "hello world"), "frames up");
    tap_ok(receive(&p.client, &down, text) == GSI_LINK_BODY && !strcmp(text, "waiting"), "frames down");
    tap_ok(!memmem(up.data, up.n, "world", 5), "in cipher");
}

/* The same byte by byte. */
static void test_slowly(void)
{
    struct pair p;
    gsi_link s;
    enum gsi_event e = GSI_LINK_MORE;
    size_t used;
    int events = 0;

    shake(&p, 0, 1);
    gsi_link_server(&s, &keys, nonces[1]);
    for (size_t i = 0; i < p.hello.n; i++) {
        e = gsi_link_feed(&s, p.hello.data + i, 1, &used);
        events += e != GSI_LINK_MORE;
    }
    int good = events == 1 && e == GSI_LINK_HELLO && !memcmp(s.out, p.challenge.data, s.out_bytes);
    s.out_bytes = 0;
    for (size_t i = 0; i < p.proof.n; i++) {
        e = gsi_link_feed(&s, p.proof.data + i, 1, &used);
        events += e != GSI_LINK_MORE;
    }
    tap_ok(good && events == 2 && e == GSI_LINK_OPEN, "the same, byte by byte");
}

static void test_strangers(void)
{
    static const char *const texts[] = {"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                                        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                                        "SSH-2.0-OpenSSH_9.2\r\n",
                                        "G",
                                        "GRADSYNX",
                                        "GRADSYNC\x01",
                                        "gradsync"};
    static const enum gsi_event events[] = {GSI_LINK_STRANGER, GSI_LINK_STRANGER, GSI_LINK_STRANGER, GSI_LINK_MORE,
                                            GSI_LINK_STRANGER, GSI_LINK_MORE,     GSI_LINK_STRANGER};
    gsi_link l;
    size_t used;
    int good = 1;

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        gsi_link_server(&l, &keys, nonces[0]);
        good &= gsi_link_feed(&l, texts[i], strlen(texts[i]), &used) == events[i] && !l.out_bytes;
    }
    tap_ok(good, "a server knows strangers by their first bytes, and does not answer them");
    good = 1;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        gsi_link_client(&l, &keys, nonces[0], 1, 2);
        good &= gsi_link_feed(&l, texts[i], strlen(texts[i]), &used) == events[i];
    }
    tap_ok(good, "so does a client");
}

/* A client with `mine` meets a server with `theirs`: what each says. */
static void meet(const gsi_keys *mine, const gsi_keys *theirs, enum gsi_event *server, enum gsi_event *client)
{
    gsi_link c, s;
    struct wire up = {.n = 0}, down = {.n = 0};

    gsi_link_client(&c, mine, nonces[0], 1, 2);
    gsi_link_server(&s, theirs, nonces[1]);
    take_out(&c, &up);
    *server = feed(&s, &up);
    take_out(&s, &down);
    *client = feed(&c, &down);
}

static void test_wrong(void)
{
    enum gsi_event s, c;
    struct pair p;
    gsi_link l;

    meet(&other_key, &keys, &s, &c);
    tap_ok(s == GSI_LINK_WRONG_KEY && c == GSI_LINK_WRONG_KEY, "another key is told as such");
    meet(&other_job, &keys, &s, &c);
    tap_ok(s == GSI_LINK_OTHER_JOB && c == GSI_LINK_OTHER_JOB, "another job is told as such");
    shake(&p, 0, 1);
    p.hello.data[8] = 2;
    gsi_link_server(&l, &keys, nonces[1]);
    s = feed(&l, &p.hello);
    struct wire w = {.n = 0};
    take_out(&l, &w);
    gsi_link_client(&l, &keys, nonces[0], 1, 2);
    tap_ok(s == GSI_LINK_VERSION && feed(&l, &w) == GSI_LINK_VERSION, "another version is told as such");
}

/* Every bit of the handshake, changed on the way. */
static void test_flips(void)
{
    struct pair p;
    gsi_link l;
    int opened = 0, trusted = 0, tried = 0;

    shake(&p, 0, 1);
    for (size_t i = 0; i < p.hello.n * 8; i++, tried++) {
        struct wire w = p.hello;
        w.data[i / 8] ^= (unsigned char)(1 << i % 8);
        gsi_link_server(&l, &keys, nonces[1]);
        opened += feed(&l, &w) >= 0;
    }
    for (size_t i = 0; i < p.challenge.n * 8; i++, tried++) {
        struct wire w = p.challenge;
        w.data[i / 8] ^= (unsigned char)(1 << i % 8);
        gsi_link_client(&l, &keys, nonces[0], 3, 8);
        trusted += feed(&l, &w) == GSI_LINK_TRUST;
    }
    for (size_t i = 0; i < p.proof.n * 8; i++, tried++) {
        struct wire w = p.proof;
        w.data[i / 8] ^= (unsigned char)(1 << i % 8);
        gsi_link_server(&l, &keys, nonces[1]);
        feed(&l, &p.hello);
        opened += feed(&l, &w) >= 0;
    }
    tap_ok(!opened && !trusted, "%d changed bits in handshakes: none is accepted", tried);
}

static void test_replays(void)
{
    struct pair p, q;
    gsi_link l;
    struct wire w;
    char text[4096];

    shake(&p, 0, 1);
    gsi_link_server(&l, &keys, nonces[2]);
    enum gsi_event hello = feed(&l, &p.hello), proof = feed(&l, &p.proof);
    tap_ok(hello == GSI_LINK_HELLO && proof == GSI_LINK_WRONG_KEY, "a recorded handshake does not open a second time");
    gsi_link_client(&l, &keys, nonces[3], 3, 8);
    tap_ok(feed(&l, &p.challenge) == GSI_LINK_WRONG_KEY, "nor does a recorded server's answer");
    gsi_link_client(&l, &keys, nonces[0], 3, 8);
    tap_ok(feed(&l, &p.hello) == GSI_LINK_STRANGER, "a client's own hello, reflected");
    gsi_link_server(&l, &keys, nonces[2]);
    tap_ok(feed(&l, &p.challenge) == GSI_LINK_STRANGER, "a server's own challenge, reflected");

    w.n = 0;
    send_frame(&p.client, &w, GSI_FRAME_BLOCK, 1, "once");
    receive(&p.server, &w, text);
    tap_ok(receive(&p.server, &w, text) == GSI_LINK_TAMPERED && !*text, "a frame sent again");
    shake(&p, 0, 1);
    w.n = 0;
    send_frame(&p.client, &w, GSI_FRAME_BLOCK, 1, "");
    receive(&p.server, &w, text);
    tap_ok(receive(&p.server, &w, text) == GSI_LINK_TAMPERED, "a frame without a body sent again");
    shake(&p, 0, 1);
    struct wire first = {.n = 0}, second = {.n = 0};
    send_frame(&p.client, &first, GSI_FRAME_BLOCK, 1, "one");
    send_frame(&p.client, &second, GSI_FRAME_BLOCK, 2, "two");
    tap_ok(receive(&p.server, &second, text) == GSI_LINK_TAMPERED && !*text, "frames in another order");
    shake(&p, 0, 1);
    w.n = 0;
    send_frame(&p.client, &w, GSI_FRAME_ERROR, 1, "0123456789abcdefgh");
    tap_ok(receive(&p.client, &w, text) == GSI_LINK_TAMPERED && !*text, "a frame sent back to its sender");
    shake(&p, 0, 1);
    shake(&q, 4, 5);
    w.n = 0;
    send_frame(&p.client, &w, GSI_FRAME_BLOCK, 1, "mine");
    tap_ok(receive(&q.server, &w, text) == GSI_LINK_TAMPERED && !*text, "a frame of another connection");
}

static void test_frames(void)
{
    struct pair p;
    struct wire w;
    char text[4096];
    int accepted = 0;

    for (size_t i = 0; i < (GSI_HEAD_BYTES + 3 + GSI_AEAD_BYTES) * 8; i++) {
        shake(&p, 0, 1);
        w.n = 0;
        send_frame(&p.client, &w, GSI_FRAME_BLOCK, 1, "abc");
        w.data[i / 8] ^= (unsigned char)(1 << i % 8);
        accepted += receive(&p.server, &w, text) != GSI_LINK_TAMPERED || *text;
    }
    tap_ok(!accepted, "every bit of a frame, changed: none is accepted");

    static const struct {
        int from_client;
        uint32_t type;
        uint64_t length;
        int good;
        const char *what;
    } table[] = {
        {1, GSI_FRAME_BLOCK, 1024, 1, "a block of the largest size"},
        {1, GSI_FRAME_BLOCK, 1025, 0, "a block that is too large"},
        {1, GSI_FRAME_BLOCK, UINT64_MAX - 15, 0, "a block whose size wraps"},
        {1, GSI_FRAME_ERROR, GSI_NOTE_MAX + 1, 0, "an error that is too long"},
        {1, GSI_FRAME_ERROR, 0, 0, "an error without a body"},
        {1, GSI_FRAME_RESULT, 8, 0, "a result from a client"},
        {1, GSI_FRAME_JOINED, 0, 0, "JOINED from a client"},
        {1, GSI_FRAME_START, 32, 0, "START from a client"},
        {1, GSI_FRAME_STATUS, 0, 0, "STATUS from a client"},
        {0, GSI_FRAME_BLOCK, 8, 0, "a block from the server"},
        {0, GSI_FRAME_JOINED, 0, 1, "JOINED from the server"},
        {0, GSI_FRAME_JOINED, 1, 0, "JOINED with a body"},
        {0, GSI_FRAME_START, 32, 1, "START with a key"},
        {0, GSI_FRAME_START, 31, 0, "START with less than a key"},
        {0, GSI_FRAME_STATUS, GSI_NOTE_MAX + 1, 0, "a status that is too long"},
        {0, GSI_FRAME_RESULT, 1024, 1, "a result of the largest size"},
        {0, GSI_FRAME_RESULT, 1025, 0, "a result that is too large"},
        {0, 0, 0, 0, "type 0"},
        {0, 7, 0, 0, "type 7"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        shake(&p, 0, 1);
        w.n = GSI_HEAD_BYTES;
        gsi_link_seal_head(table[i].from_client ? &p.client : &p.server, table[i].type, 1, table[i].length, w.data);
        enum gsi_event e = feed(table[i].from_client ? &p.server : &p.client, &w);
        tap_ok(e == (table[i].good ? GSI_LINK_HEAD : GSI_LINK_TAMPERED), "%s", table[i].what);
    }

    /* A body that nobody gave room for. */
    shake(&p, 0, 1);
    w.n = 0;
    send_frame(&p.client, &w, GSI_FRAME_BLOCK, 1, "abc");
    size_t used;
    enum gsi_event head = gsi_link_feed(&p.server, w.data, w.n, &used);
    tap_ok(head == GSI_LINK_HEAD && gsi_link_feed(&p.server, w.data + used, w.n - used, &used) == GSI_LINK_TAMPERED,
           "a body for which the owner gave no buffer is not written anywhere");
}

static void test_group(void)
{
    struct pair p;
    unsigned char group[GSI_KEY_BYTES], buffer[64];
    size_t used;

    randombytes_buf(group, sizeof group);
    for (uint32_t seq = 1; seq <= 2; seq++) {
        struct wire w = {.n = GSI_HEAD_BYTES};
        shake(&p, 0, 1);
        gsi_link_seal_head(&p.server, GSI_FRAME_RESULT, seq, 5, w.data);
        gsi_group_seal(group, 1, "gamma", 5, w.data + w.n);
        w.n += 5 + GSI_AEAD_BYTES;
        gsi_link_feed(&p.client, w.data, w.n, &used);
        gsi_link_body(&p.client, buffer, group);
        enum gsi_event e = gsi_link_feed(&p.client, w.data + used, w.n - used, &used);
        tap_ok(seq == 1 ? e == GSI_LINK_BODY && !memcmp(buffer, "gamma", 5) : e == GSI_LINK_TAMPERED,
               seq == 1 ? "a result sealed for all" : "the result of another all-gather");
    }
}

static void test_notes(void)
{
    gradsync_error_info in = GRADSYNC_ERROR_INFO_INIT, out;
    unsigned char note[GSI_NOTE_MAX];

    in.code = GRADSYNC_ERR_PEER_LOST;
    in.rank = 0;
    in.peer = 7;
    in.sys_errno = 104;
    snprintf(in.message, sizeof in.message, "rank 7 left\n");
    size_t n = gsi_note_pack(&in, note);
    tap_ok(gsi_note_parse(note, n, &out) == 0 && out.code == in.code && out.rank == 0 && out.peer == 7 &&
               out.sys_errno == 104 && !strcmp(out.message, "rank 7 left?"),
           "an error survives the way, its text made printable");
    memset(in.message, 'x', sizeof in.message);
    n = gsi_note_pack(&in, note);
    tap_ok(n <= GSI_NOTE_MAX && gsi_note_parse(note, n, &out) == 0 && strlen(out.message) == sizeof out.message - 1,
           "a message without an end is cut");
    tap_ok(gsi_note_parse(note, 15, &out) < 0, "a note that is too short");
    note[0] = 5;
    note[1] = note[2] = note[3] = 0;
    tap_ok(gsi_note_parse(note, n, &out) < 0, "a note whose code is no error");
}

int main(void)
{
    unsigned char key[GSI_KEY_BYTES] = {1}, key2[GSI_KEY_BYTES] = {2};

    if (gsi_sodium_ready())
        return 99;
    gsi_keys_derive(&keys, key, "job");
    gsi_keys_derive(&other_key, key2, "job");
    gsi_keys_derive(&other_job, key, "another job");
    randombytes_buf(nonces, sizeof nonces);
    test_handshake();
    test_slowly();
    test_strangers();
    test_wrong();
    test_flips();
    test_replays();
    test_frames();
    test_group();
    test_notes();
    return tap_done();
}
