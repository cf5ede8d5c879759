/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/tcp/hello.h"

#include <endian.h>
#include <sodium.h>
#include <string.h>

/* The version is in here: sides that differ in it do not know each other's blobs and hellos. */
static const unsigned char magic[8] = {'g', 's', 'i', ' ', 't', 'c', 'p', 1};

enum { BLOB_USED = 8 + 2 + 2 + 16 + GSI_TCP_TOKEN + 8 + 4, HELLO_SIGNED = GSI_TCP_HELLO - GSI_TCP_MAC };

_Static_assert((int)BLOB_USED <= (int)GSI_RAIL_ADDRESS_BYTES, "the card fits into the blob");
_Static_assert(sizeof magic + 8 + GSI_TCP_NONCE == (int)HELLO_SIGNED, "a hello is a magic, a number and a nonce");

void gsi_tcp_card_pack(const gsi_tcp_card *card, gsi_rail_address *out)
{
    unsigned char *at = out->blob;
    uint16_t family = htobe16(card->family), port = htobe16(card->port);
    uint64_t number = htobe64(card->number);
    uint32_t depth = htobe32(card->depth);

    memset(out, 0, sizeof *out);
    memcpy(at, magic, 8);
    memcpy(at + 8, &family, 2);
    memcpy(at + 10, card->address, 16);
    memcpy(at + 26, &port, 2);
    memcpy(at + 28, card->token, GSI_TCP_TOKEN);
    memcpy(at + 44, &number, 8);
    memcpy(at + 52, &depth, 4);
}

int gsi_tcp_card_parse(const gsi_rail_address *blob, gsi_tcp_card *out)
{
    const unsigned char *at = blob->blob;
    uint16_t family, port;
    uint64_t number;
    uint32_t depth;

    memcpy(&family, at + 8, 2);
    memcpy(&port, at + 26, 2);
    memcpy(&number, at + 44, 8);
    memcpy(&depth, at + 52, 4);
    *out = (gsi_tcp_card){be16toh(family), be16toh(port), .number = be64toh(number), .depth = be32toh(depth)};
    memcpy(out->address, at + 10, 16);
    memcpy(out->token, at + 28, GSI_TCP_TOKEN);
    if (memcmp(at, magic, sizeof magic) || (out->family != 4 && out->family != 6) || out->port == 0)
        return -1;
    return 0;
}

int gsi_tcp_card_compare(const gsi_tcp_card *a, const gsi_tcp_card *b)
{
    gsi_rail_address one, two;

    /* Packed, they begin with family, address, port and token. */
    gsi_tcp_card_pack(a, &one);
    gsi_tcp_card_pack(b, &two);
    return memcmp(one.blob, two.blob, sizeof one.blob);
}

/* out = hash of the label and the parts, keyed. */
static void mac(unsigned char out[32], const unsigned char *key, size_t key_bytes, const char *label, const void *a,
                size_t a_bytes, const void *b, size_t b_bytes)
{
    crypto_generichash_state state;

    crypto_generichash_init(&state, key, key_bytes, 32);
    crypto_generichash_update(&state, (const unsigned char *)label, strlen(label) + 1);
    crypto_generichash_update(&state, a, a_bytes);
    crypto_generichash_update(&state, b, b_bytes);
    crypto_generichash_final(&state, out, 32);
    sodium_memzero(&state, sizeof state);
}

void gsi_tcp_hello_key(const gsi_tcp_card *acceptor, unsigned char key[32])
{
    mac(key, acceptor->token, GSI_TCP_TOKEN, "gradsync tcp hello key", "", 0, "", 0);
}

void gsi_tcp_secret_make(gsi_tcp_secret *s, const gsi_tcp_card *connector, const gsi_tcp_card *acceptor)
{
    unsigned char both[2 * GSI_TCP_TOKEN];
    gsi_rail_address cards[2];

    memset(s, 0, sizeof *s);
    gsi_tcp_hello_key(acceptor, s->hello);
    memcpy(both, connector->token, GSI_TCP_TOKEN);
    memcpy(both + GSI_TCP_TOKEN, acceptor->token, GSI_TCP_TOKEN);
    gsi_tcp_card_pack(connector, &cards[0]);
    gsi_tcp_card_pack(acceptor, &cards[1]);
    mac(s->proof, both, sizeof both, "gradsync tcp proof key", &cards[0], sizeof cards[0], &cards[1], sizeof cards[1]);
    sodium_memzero(both, sizeof both);
    sodium_memzero(cards, sizeof cards);
}

void gsi_tcp_secret_wipe(gsi_tcp_secret *s)
{
    sodium_memzero(s, sizeof *s);
}

void gsi_tcp_hello_make(gsi_tcp_secret *s, uint64_t number, unsigned char out[GSI_TCP_HELLO])
{
    randombytes_buf(s->nonce[0], GSI_TCP_NONCE);
    number = htobe64(number);
    memcpy(out, magic, sizeof magic);
    memcpy(out + 8, &number, 8);
    memcpy(out + 16, s->nonce[0], GSI_TCP_NONCE);
    mac(out + HELLO_SIGNED, s->hello, sizeof s->hello, "hello", out, HELLO_SIGNED, "", 0);
}

int gsi_tcp_hello_parse(const unsigned char in[GSI_TCP_HELLO], uint64_t *number)
{
    memcpy(number, in + 8, 8);
    *number = be64toh(*number);
    return memcmp(in, magic, sizeof magic) ? -1 : 0;
}

int gsi_tcp_hello_check(const unsigned char in[GSI_TCP_HELLO], const unsigned char key[32])
{
    unsigned char want[GSI_TCP_MAC];

    mac(want, key, 32, "hello", in, HELLO_SIGNED, "", 0);
    return !sodium_memcmp(want, in + HELLO_SIGNED, sizeof want);
}

static void nonces_mac(const gsi_tcp_secret *s, const char *label, unsigned char out[GSI_TCP_MAC])
{
    mac(out, s->proof, sizeof s->proof, label, s->nonce[0], GSI_TCP_NONCE, s->nonce[1], GSI_TCP_NONCE);
}

void gsi_tcp_challenge_make(gsi_tcp_secret *s, const unsigned char hello[GSI_TCP_HELLO],
                            unsigned char out[GSI_TCP_CHALLENGE])
{
    memcpy(s->nonce[0], hello + 16, GSI_TCP_NONCE);
    randombytes_buf(s->nonce[1], GSI_TCP_NONCE);
    memcpy(out, s->nonce[1], GSI_TCP_NONCE);
    nonces_mac(s, "challenge", out + GSI_TCP_NONCE);
}

int gsi_tcp_challenge_check(gsi_tcp_secret *s, const unsigned char in[GSI_TCP_CHALLENGE])
{
    unsigned char want[GSI_TCP_MAC];

    memcpy(s->nonce[1], in, GSI_TCP_NONCE);
    nonces_mac(s, "challenge", want);
    return !sodium_memcmp(want, in + GSI_TCP_NONCE, sizeof want);
}

void gsi_tcp_proof_make(const gsi_tcp_secret *s, unsigned char out[GSI_TCP_PROOF])
{
    nonces_mac(s, "proof", out);
}

int gsi_tcp_proof_check(const gsi_tcp_secret *s, const unsigned char in[GSI_TCP_PROOF])
{
    unsigned char want[GSI_TCP_MAC];

    nonces_mac(s, "proof", want);
    return !sodium_memcmp(want, in, sizeof want);
}
