/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers on the wire are little-endian. docs/bootstrap.md has the layouts. */
#include "bootstrap/link.h"

#include <sodium.h>
#include <string.h>

enum { VERSION = 1 };
enum { KIND_HELLO = 1, KIND_CHALLENGE = 2, KIND_REFUSE = 3, KIND_PROOF = 4 };
enum { PREFIX_BYTES = 12, REFUSE_BYTES = 16, MAC_BYTES = 32 };

static const unsigned char magic[8] = {'G', 'R', 'A', 'D', 'S', 'Y', 'N', 'C'};

enum state {
    WAIT_HELLO,      /* server */
    WAIT_PROOF,      /* server */
    WAIT_CHALLENGE,  /* client: prefix of the answer */
    WAIT_CHALLENGE2, /* client: the rest of a challenge */
    WAIT_REFUSE2,    /* client: the rest of a refusal */
    WAIT_OWNER,      /* client: gsi_link_prove() is due */
    WAIT_HEAD,
    WAIT_BUFFER, /* gsi_link_body() is due */
    WAIT_BODY,
    DEAD,
};

static void put32(unsigned char *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(v >> (8 * i));
}

static uint32_t get32(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put64(unsigned char *p, uint64_t v)
{
    put32(p, (uint32_t)v);
    put32(p + 4, (uint32_t)(v >> 32));
}

static uint64_t get64(const unsigned char *p)
{
    return (uint64_t)get32(p + 4) << 32 | get32(p);
}

static void put_prefix(unsigned char *p, unsigned kind)
{
    memcpy(p, magic, sizeof magic);
    p[8] = VERSION & 0xff;
    p[9] = VERSION >> 8;
    p[10] = (unsigned char)kind;
    p[11] = 0;
}

/* out = BLAKE2b of a label (each use has its own) and n bytes, keyed. */
static void keyed(unsigned char out[MAC_BYTES], const unsigned char key[GSI_KEY_BYTES], const char label[16],
                  const unsigned char *data, size_t n)
{
    crypto_generichash_state state;

    crypto_generichash_init(&state, key, GSI_KEY_BYTES, MAC_BYTES);
    crypto_generichash_update(&state, (const unsigned char *)label, 16);
    crypto_generichash_update(&state, data, n);
    crypto_generichash_final(&state, out, MAC_BYTES);
    sodium_memzero(&state, sizeof state);
}

static int proves(const unsigned char mac[MAC_BYTES], const gsi_link *l, const char label[16], size_t n)
{
    unsigned char expected[MAC_BYTES];

    keyed(expected, l->keys->auth, label, l->script, n);
    return sodium_memcmp(mac, expected, MAC_BYTES) == 0;
}

static const char hello_label[16] = "gradsync1 hello", server_label[16] = "gradsync1 serve",
                  client_label[16] = "gradsync1 join", up_label[16] = "gradsync1 up", down_label[16] = "gradsync1 down";

static void expect(gsi_link *l, enum state state, size_t need)
{
    l->state = state;
    l->have = 0;
    l->need = need;
}

static enum gsi_event dead(gsi_link *l, enum gsi_event why)
{
    l->state = DEAD;
    return why;
}

/* Both nonces are in the transcript, so the session keys are fresh if either side is honest. */
static void make_session(gsi_link *l)
{
    unsigned char *up = l->server ? l->rx_key : l->tx_key, *down = l->server ? l->tx_key : l->rx_key;

    keyed(up, l->keys->session, up_label, l->script, sizeof l->script);
    keyed(down, l->keys->session, down_label, l->script, sizeof l->script);
}

void gsi_link_server(gsi_link *l, const gsi_keys *keys, const unsigned char nonce[GSI_NONCE_BYTES])
{
    memset(l, 0, sizeof *l);
    l->server = 1;
    l->keys = keys;
    memcpy(l->nonce, nonce, GSI_NONCE_BYTES);
    expect(l, WAIT_HELLO, GSI_HELLO_BYTES);
}

void gsi_link_client(gsi_link *l, const gsi_keys *keys, const unsigned char nonce[GSI_NONCE_BYTES], uint32_t rank,
                     uint32_t nranks)
{
    unsigned char *p = l->script;

    memset(l, 0, sizeof *l);
    l->keys = keys;
    l->rank = rank;
    l->nranks = nranks;
    put_prefix(p, KIND_HELLO);
    put32(p + 12, rank);
    put32(p + 16, nranks);
    memcpy(p + 20, keys->tag, GSI_TAG_BYTES);
    memcpy(p + 28, nonce, GSI_NONCE_BYTES);
    keyed(p + 60, keys->auth, hello_label, p, 60);
    memcpy(l->out, p, GSI_HELLO_BYTES);
    l->out_bytes = GSI_HELLO_BYTES;
    expect(l, WAIT_CHALLENGE, PREFIX_BYTES);
}

void gsi_link_wipe(gsi_link *l)
{
    sodium_memzero(l, sizeof *l);
    l->state = DEAD;
}

/* ---- Handshake ---- */

static enum gsi_event refuse(gsi_link *l, enum gsi_refusal reason, enum gsi_event why)
{
    put_prefix(l->out, KIND_REFUSE);
    put32(l->out + PREFIX_BYTES, reason);
    l->out_bytes = REFUSE_BYTES;
    return dead(l, why);
}

static enum gsi_event take_hello(gsi_link *l)
{
    unsigned char *challenge = l->script + GSI_HELLO_BYTES;

    memcpy(l->script, l->in, GSI_HELLO_BYTES);
    if (memcmp(l->in + 20, l->keys->tag, GSI_TAG_BYTES) != 0)
        return refuse(l, GSI_REFUSE_JOB, GSI_LINK_OTHER_JOB);
    /* Not fresh, so no proof of the client; but without it strangers get no
     * value computed from the key, and cannot tell jobs of one tag apart. */
    if (!proves(l->in + 60, l, hello_label, 60))
        return refuse(l, GSI_REFUSE_KEY, GSI_LINK_WRONG_KEY);
    l->rank = get32(l->in + 12);
    l->nranks = get32(l->in + 16);
    put_prefix(challenge, KIND_CHALLENGE);
    memcpy(challenge + 12, l->nonce, GSI_NONCE_BYTES);
    keyed(challenge + 44, l->keys->auth, server_label, l->script, GSI_HELLO_BYTES + 44);
    memcpy(l->out, challenge, GSI_CHALLENGE_BYTES);
    l->out_bytes = GSI_CHALLENGE_BYTES;
    expect(l, WAIT_PROOF, GSI_PROOF_BYTES);
    return GSI_LINK_HELLO;
}

static enum gsi_event take_proof(gsi_link *l)
{
    if (!proves(l->in + 12, l, client_label, sizeof l->script))
        return dead(l, GSI_LINK_WRONG_KEY);
    make_session(l);
    expect(l, WAIT_HEAD, GSI_HEAD_BYTES);
    return GSI_LINK_OPEN;
}

static enum gsi_event take_answer(gsi_link *l)
{
    memcpy(l->script + GSI_HELLO_BYTES, l->in, PREFIX_BYTES);
    if (l->in[10] == KIND_CHALLENGE)
        expect(l, WAIT_CHALLENGE2, GSI_CHALLENGE_BYTES - PREFIX_BYTES);
    else
        expect(l, WAIT_REFUSE2, REFUSE_BYTES - PREFIX_BYTES);
    return GSI_LINK_MORE;
}

static enum gsi_event take_challenge(gsi_link *l)
{
    unsigned char *challenge = l->script + GSI_HELLO_BYTES;

    memcpy(challenge + PREFIX_BYTES, l->in, GSI_CHALLENGE_BYTES - PREFIX_BYTES);
    if (!proves(challenge + 44, l, server_label, GSI_HELLO_BYTES + 44))
        return dead(l, GSI_LINK_WRONG_KEY);
    expect(l, WAIT_OWNER, 0);
    return GSI_LINK_TRUST;
}

static enum gsi_event take_refusal(gsi_link *l)
{
    switch (get32(l->in)) {
    case GSI_REFUSE_VERSION:
        return dead(l, GSI_LINK_VERSION);
    case GSI_REFUSE_JOB:
        return dead(l, GSI_LINK_OTHER_JOB);
    case GSI_REFUSE_KEY:
        return dead(l, GSI_LINK_WRONG_KEY);
    default:
        return dead(l, GSI_LINK_STRANGER);
    }
}

void gsi_link_prove(gsi_link *l)
{
    put_prefix(l->out, KIND_PROOF);
    keyed(l->out + 12, l->keys->auth, client_label, l->script, sizeof l->script);
    l->out_bytes = GSI_PROOF_BYTES;
    make_session(l);
    expect(l, WAIT_HEAD, GSI_HEAD_BYTES);
}

/* ---- Frames ---- */

enum piece { PIECE_HEAD = 0, PIECE_BODY = 1, PIECE_GROUP = 2 };

static void make_nonce(unsigned char nonce[crypto_aead_xchacha20poly1305_ietf_NPUBBYTES], uint64_t count,
                       enum piece piece)
{
    memset(nonce, 0, crypto_aead_xchacha20poly1305_ietf_NPUBBYTES);
    put64(nonce, count);
    nonce[8] = (unsigned char)piece;
}

static void seal(const unsigned char key[GSI_KEY_BYTES], uint64_t count, enum piece piece, const void *plain,
                 uint64_t n, unsigned char *out)
{
    unsigned char nonce[crypto_aead_xchacha20poly1305_ietf_NPUBBYTES];

    make_nonce(nonce, count, piece);
    crypto_aead_xchacha20poly1305_ietf_encrypt(out, NULL, plain, n, NULL, 0, NULL, nonce, key);
}

/* In place. */
static int unseal(const unsigned char key[GSI_KEY_BYTES], uint64_t count, enum piece piece, unsigned char *data,
                  uint64_t n)
{
    unsigned char nonce[crypto_aead_xchacha20poly1305_ietf_NPUBBYTES];

    make_nonce(nonce, count, piece);
    return crypto_aead_xchacha20poly1305_ietf_decrypt(data, NULL, NULL, data, n + GSI_AEAD_BYTES, NULL, 0, nonce,
                                                      key) == 0;
}

/* Checked although the header is authentic: a rank with a bug must not make another allocate. */
static int allowed(const gsi_link *l, const gsi_frame *f)
{
    switch (f->type) {
    case GSI_FRAME_JOINED:
        return !l->server && f->length == 0;
    case GSI_FRAME_START:
        return !l->server && f->length == GSI_KEY_BYTES;
    case GSI_FRAME_STATUS:
        return !l->server && f->length <= GSI_NOTE_MAX;
    case GSI_FRAME_BLOCK:
        return l->server && f->length <= l->limits.block;
    case GSI_FRAME_RESULT:
        return !l->server && f->length <= l->limits.result;
    case GSI_FRAME_ERROR:
        return f->length > 0 && f->length <= GSI_NOTE_MAX;
    default:
        return 0;
    }
}

static enum gsi_event take_head(gsi_link *l)
{
    if (!unseal(l->rx_key, l->rx_count++, PIECE_HEAD, l->in, GSI_HEAD_PLAIN))
        return dead(l, GSI_LINK_TAMPERED);
    l->frame = (gsi_frame){get32(l->in), get32(l->in + 4), get64(l->in + 8)};
    if (get64(l->in + 16) || !allowed(l, &l->frame))
        return dead(l, GSI_LINK_TAMPERED);
    if (l->frame.length)
        expect(l, WAIT_BUFFER, 0);
    else
        expect(l, WAIT_HEAD, GSI_HEAD_BYTES);
    return GSI_LINK_HEAD;
}

void gsi_link_body(gsi_link *l, void *buffer, const unsigned char *group)
{
    if (l->state != WAIT_BUFFER)
        return;
    l->body = buffer;
    l->body_have = 0;
    l->group = group;
    l->state = WAIT_BODY;
}

static enum gsi_event take_body(gsi_link *l)
{
    int good;

    if (l->group)
        good = unseal(l->group, l->frame.seq, PIECE_GROUP, l->body, l->frame.length);
    else
        good = unseal(l->rx_key, l->rx_count++, PIECE_BODY, l->body, l->frame.length);
    l->body = NULL;
    if (!good)
        return dead(l, GSI_LINK_TAMPERED);
    expect(l, WAIT_HEAD, GSI_HEAD_BYTES);
    return GSI_LINK_BODY;
}

void gsi_link_seal_head(gsi_link *l, uint32_t type, uint32_t seq, uint64_t length, unsigned char out[GSI_HEAD_BYTES])
{
    unsigned char plain[GSI_HEAD_PLAIN] = {0};

    put32(plain, type);
    put32(plain + 4, seq);
    put64(plain + 8, length);
    seal(l->tx_key, l->tx_count++, PIECE_HEAD, plain, sizeof plain, out);
}

void gsi_link_seal_body(gsi_link *l, const void *plain, uint64_t length, unsigned char *out)
{
    seal(l->tx_key, l->tx_count++, PIECE_BODY, plain, length, out);
}

void gsi_group_seal(const unsigned char group[GSI_KEY_BYTES], uint32_t seq, const void *plain, uint64_t length,
                    unsigned char *out)
{
    seal(group, seq, PIECE_GROUP, plain, length, out);
}

/* ---- Bytes in ---- */

static int is_due(int state, unsigned kind, unsigned zero)
{
    if (zero)
        return 0;
    if (state == WAIT_CHALLENGE)
        return kind == KIND_CHALLENGE || kind == KIND_REFUSE;
    return kind == (state == WAIT_HELLO ? KIND_HELLO : KIND_PROOF);
}

/* A prefix is checked byte by byte as it arrives: an HTTP request or a TLS hello is
 * recognised at once instead of being waited for. */
static enum gsi_event check_prefix(gsi_link *l)
{
    size_t n = l->have < sizeof magic ? l->have : sizeof magic;

    if (memcmp(l->in, magic, n) != 0)
        return dead(l, GSI_LINK_STRANGER);
    if (l->have >= 10 && (l->in[8] | l->in[9] << 8) != VERSION) {
        if (l->state == WAIT_HELLO)
            return refuse(l, GSI_REFUSE_VERSION, GSI_LINK_VERSION);
        return dead(l, GSI_LINK_VERSION);
    }
    if (l->have >= PREFIX_BYTES && !is_due(l->state, l->in[10], l->in[11]))
        return dead(l, GSI_LINK_STRANGER);
    return GSI_LINK_MORE;
}

static enum gsi_event complete(gsi_link *l)
{
    switch ((enum state)l->state) {
    case WAIT_HELLO:
        return take_hello(l);
    case WAIT_PROOF:
        return take_proof(l);
    case WAIT_CHALLENGE:
        return take_answer(l);
    case WAIT_CHALLENGE2:
        return take_challenge(l);
    case WAIT_REFUSE2:
        return take_refusal(l);
    case WAIT_HEAD:
        return take_head(l);
    default:
        return dead(l, GSI_LINK_TAMPERED);
    }
}

enum gsi_event gsi_link_feed(gsi_link *l, const void *data, size_t n, size_t *used)
{
    const unsigned char *p = data;

    *used = 0;
    while (*used < n) {
        size_t left = n - *used, take;
        enum gsi_event event = GSI_LINK_MORE;

        if (l->state == WAIT_OWNER || l->state == WAIT_BUFFER || l->state == DEAD)
            return dead(l, l->server || l->state == WAIT_BUFFER ? GSI_LINK_TAMPERED : GSI_LINK_STRANGER);
        if (l->state == WAIT_BODY) {
            uint64_t want = l->frame.length + GSI_AEAD_BYTES - l->body_have;
            take = want < left ? (size_t)want : left;
            memcpy(l->body + l->body_have, p + *used, take);
            l->body_have += take;
            *used += take;
            if (take == want)
                event = take_body(l);
        } else {
            take = l->need - l->have < left ? l->need - l->have : left;
            memcpy(l->in + l->have, p + *used, take);
            l->have += take;
            *used += take;
            if (l->state == WAIT_HELLO || l->state == WAIT_PROOF || l->state == WAIT_CHALLENGE)
                event = check_prefix(l);
            if (event == GSI_LINK_MORE && l->have == l->need)
                event = complete(l);
        }
        if (event != GSI_LINK_MORE)
            return event;
    }
    return GSI_LINK_MORE;
}

/* ---- Notes ---- */

enum { NOTE_HEAD = 16 };

size_t gsi_note_pack(const gradsync_error_info *info, unsigned char out[GSI_NOTE_MAX])
{
    size_t n = strnlen(info->message, sizeof info->message - 1);

    if (n > GSI_NOTE_MAX - NOTE_HEAD)
        n = GSI_NOTE_MAX - NOTE_HEAD;
    put32(out, (uint32_t)info->code);
    put32(out + 4, (uint32_t)info->rank);
    put32(out + 8, (uint32_t)info->peer);
    put32(out + 12, (uint32_t)info->sys_errno);
    memcpy(out + NOTE_HEAD, info->message, n);
    return NOTE_HEAD + n;
}

int gsi_note_parse(const unsigned char *data, size_t n, gradsync_error_info *info)
{
    *info = (gradsync_error_info)GRADSYNC_ERROR_INFO_INIT;
    if (n < NOTE_HEAD || n > GSI_NOTE_MAX)
        return -1;
    info->code = (int32_t)get32(data);
    info->rank = (int32_t)get32(data + 4);
    info->peer = (int32_t)get32(data + 8);
    info->sys_errno = (int32_t)get32(data + 12);
    if (info->code > GRADSYNC_ERR_INVALID || info->code < GRADSYNC_ERR_INTERNAL)
        return -1;
    if (info->rank < -1 || info->rank >= GSI_MAX_RANKS || info->peer < -1 || info->peer >= GSI_MAX_RANKS)
        return -1;
    n -= NOTE_HEAD;
    if (n >= sizeof info->message)
        n = sizeof info->message - 1;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = data[NOTE_HEAD + i];
        info->message[i] = (char)(c >= ' ' && c <= '~' ? c : '?');
    }
    return 0;
}
