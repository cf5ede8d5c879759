/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes the rendezvous protocol. The first byte of the input says how:
 *   0  the rest goes to a server    1  the rest goes to a client
 *   2  the rest is what a man in the middle does to an honest client and server
 *   3  the rest is what a server receives from a client that holds the key but is broken
 *   4  the same the other way
 * Nonces are fixed, so that an input always does the same.
 */
#include "bootstrap/link.h"
#include "fuzz.h"

enum { LIMIT = 4096, LOG = 1 << 16 };

static gsi_keys keys;
static const unsigned char group[GSI_KEY_BYTES] = {5};

static void init(void)
{
    static const unsigned char key[GSI_KEY_BYTES] = {1, 2, 3};
    static int done;

    if (!done)
        must(gsi_sodium_ready() == 0);
    gsi_keys_derive(&keys, key, "fuzz");
    done = 1;
}

/* An end of a connection, as root.c and leaf.c drive it. */
struct end {
    gsi_link link;
    unsigned char *body;
    int over, open;
    /* Genuine bytes that the other end has made, and those that were delivered. */
    unsigned char made[LOG], got[LOG];
    size_t nmade, ngot;
    size_t delivered; /* of made: the man in the middle's place in it */
};

static void begin(struct end *e, int server)
{
    static const unsigned char nonces[2][GSI_NONCE_BYTES] = {{9}, {8}};

    if (server)
        gsi_link_server(&e->link, &keys, nonces[1]);
    else
        gsi_link_client(&e->link, &keys, nonces[0], 2, 5);
    e->link.limits = (gsi_link_limits){LIMIT, LIMIT};
}

static void make(struct end *to, const void *data, size_t n)
{
    if (to->nmade + n > LOG)
        return;
    memcpy(to->made + to->nmade, data, n);
    to->nmade += n;
}

/* Handles an event. other: where bytes to send go, or NULL. */
static void handle(struct end *e, struct end *other, enum gsi_event event)
{
    gradsync_error_info info;

    must(e->link.out_bytes <= sizeof e->link.out);
    if (event < 0) {
        e->over = 1;
    } else if (event == GSI_LINK_TRUST) {
        must(!e->link.server);
        gsi_link_prove(&e->link);
        e->open = 1;
    } else if (event == GSI_LINK_OPEN) {
        must(e->link.server);
        e->open = 1;
    } else if (event == GSI_LINK_HEAD) {
        must(e->open && e->link.frame.length <= LIMIT);
        free(e->body);
        e->body = NULL;
        if (e->link.frame.length) {
            e->body = malloc(e->link.frame.length + GSI_AEAD_BYTES);
            gsi_link_body(&e->link, e->body, e->link.frame.type == GSI_FRAME_RESULT ? group : NULL);
        }
    } else if (event == GSI_LINK_BODY) {
        must(e->body != NULL);
        if (e->link.frame.type == GSI_FRAME_ERROR && !gsi_note_parse(e->body, e->link.frame.length, &info)) {
            must(info.code < 0 && info.peer < GSI_MAX_RANKS && memchr(info.message, 0, sizeof info.message));
            unsigned char note[GSI_NOTE_MAX];
            must(gsi_note_pack(&info, note) <= sizeof note);
        }
        free(e->body);
        e->body = NULL;
    }
    if (other)
        make(other, e->link.out, e->link.out_bytes);
    e->link.out_bytes = 0;
}

/* Delivers n bytes. `honest`: nothing but the genuine bytes may ever be accepted. */
static void deliver(struct end *e, struct end *other, const unsigned char *data, size_t n, int honest)
{
    for (size_t at = 0, used; at < n && !e->over; at += used) {
        enum gsi_event event = gsi_link_feed(&e->link, data + at, n - at, &used);
        must(used <= n - at && (used > 0 || event < 0));
        if (honest && e->ngot + used <= LOG) {
            memcpy(e->got + e->ngot, data + at, used);
            e->ngot += used;
            if (event > 0)
                must(e->ngot <= e->nmade && !memcmp(e->got, e->made, e->ngot));
        }
        handle(e, other, event);
    }
}

/* ---- 0, 1: bytes from anywhere ---- */

static void raw(int server, const uint8_t *data, size_t size)
{
    static struct end e;

    memset(&e, 0, sizeof e);
    begin(&e, server);
    e.link.out_bytes = 0;
    size_t chunk = size ? data[0] + 1 : 1;
    for (size_t at = 1; at < size && !e.over; at += chunk)
        deliver(&e, NULL, data + at, size - at < chunk ? size - at : chunk, 0);
    must(!e.open || !server); /* nobody guesses a proof; the corpus has a genuine server's, for this nonce */
    free(e.body);
}

/* ---- 2: a man in the middle ---- */

static void send_frame(struct end *from, struct end *to, unsigned what, const uint8_t *body, size_t n)
{
    static const uint32_t up[] = {GSI_FRAME_BLOCK, GSI_FRAME_ERROR},
                          down[] = {GSI_FRAME_JOINED, GSI_FRAME_START, GSI_FRAME_STATUS, GSI_FRAME_RESULT,
                                    GSI_FRAME_ERROR};
    unsigned char wire[GSI_HEAD_BYTES + 300 + GSI_AEAD_BYTES], start[GSI_KEY_BYTES] = {0};
    uint32_t type = from->link.server ? down[what % 5] : up[what % 2];

    if (!from->open)
        return;
    if (type == GSI_FRAME_JOINED)
        n = 0;
    if (type == GSI_FRAME_START) {
        body = start;
        n = sizeof start;
    }
    gsi_link_seal_head(&from->link, type, what, n, wire);
    if (n && type == GSI_FRAME_RESULT)
        gsi_group_seal(group, what, body, n, wire + GSI_HEAD_BYTES);
    else if (n)
        gsi_link_seal_body(&from->link, body, n, wire + GSI_HEAD_BYTES);
    make(to, wire, GSI_HEAD_BYTES + (n ? n + GSI_AEAD_BYTES : 0));
}

static void middle(const uint8_t *data, size_t size)
{
    static struct end ends[2];

    memset(ends, 0, sizeof ends);
    begin(&ends[0], 0);
    begin(&ends[1], 1);
    handle(&ends[0], &ends[1], GSI_LINK_MORE); /* the hello */
    while (size >= 3) {
        unsigned op = data[0], a = data[1], b = data[2];
        struct end *to = &ends[op & 1], *other = &ends[!(op & 1)];
        size_t left = to->nmade - to->delivered, n = a < left ? a : left;
        unsigned char copy[256];

        data += 3;
        size -= 3;
        switch (op >> 1 & 7) {
        case 0: /* pass on up to a bytes */
        case 1:
            deliver(to, other, to->made + to->delivered, n, 1);
            to->delivered += n;
            break;
        case 2: /* all there is */
            deliver(to, other, to->made + to->delivered, left, 1);
            to->delivered += left;
            break;
        case 3: /* pass on with one bit changed */
            memcpy(copy, to->made + to->delivered, n);
            if (n)
                copy[b % n] ^= (unsigned char)(1 << (b & 7));
            deliver(to, other, copy, n, 1);
            to->delivered += n;
            break;
        case 4: /* leave out */
            to->delivered += n;
            break;
        case 5: /* again */
            to->delivered -= a < to->delivered ? a : to->delivered;
            break;
        case 6: /* bytes of one's own */
            n = a < size ? a : size;
            deliver(to, other, data, n, 1);
            data += n;
            size -= n;
            break;
        case 7: /* the other end sends a frame */
            n = a < size ? a : size;
            send_frame(other, to, b, data, n);
            data += n;
            size -= n;
            break;
        }
    }
    free(ends[0].body);
    free(ends[1].body);
}

/* ---- 3, 4: an end that holds the key and sends nonsense ---- */

static void broken(int server_receives, const uint8_t *data, size_t size)
{
    static struct end ends[2];
    struct end *to, *from;

    memset(ends, 0, sizeof ends);
    begin(&ends[0], 0);
    begin(&ends[1], 1);
    handle(&ends[0], &ends[1], GSI_LINK_MORE);
    for (int i = 0; i < 4; i++) {
        to = &ends[!(i & 1)];
        deliver(to, &ends[i & 1], to->made + to->delivered, to->nmade - to->delivered, 1);
        to->delivered = to->nmade;
    }
    must(ends[0].open && ends[1].open);
    to = &ends[server_receives];
    from = &ends[!server_receives];
    while (size >= 8 && !to->over) {
        unsigned char head[GSI_HEAD_BYTES], body[300 + GSI_AEAD_BYTES];
        uint64_t length = data[2] | (uint64_t)data[3] << 8 | (uint64_t)data[4] << 16 | (uint64_t)data[5] << 56;
        size_t n = data[7] < size - 8 ? data[7] : size - 8;

        if (data[6] & 1)
            length = n; /* as it should be */
        gsi_link_seal_head(&from->link, data[0], data[1], length, head);
        if (data[6] & 2)
            gsi_group_seal(group, data[1], data + 8, n, body);
        else
            gsi_link_seal_body(&from->link, data + 8, n, body);
        deliver(to, NULL, head, sizeof head, 0);
        if (n && !to->over && (data[6] & 4) == 0)
            deliver(to, NULL, body, n + GSI_AEAD_BYTES, 0);
        data += 8 + n;
        size -= 8 + n;
    }
    free(ends[0].body);
    free(ends[1].body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    init();
    if (size == 0)
        return 0;
    switch (data[0] % 5) {
    case 0:
    case 1:
        raw(data[0] % 5 == 0, data + 1, size - 1);
        break;
    case 2:
        middle(data + 1, size - 1);
        break;
    default:
        broken(data[0] % 5 == 3, data + 1, size - 1);
        break;
    }
    return 0;
}
