/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the two sides of a connection find and prove each other. Pure, but for random numbers.
 *
 * Each side's blob has its address, a number that names the connection there, and a secret token. The side whose
 * blob is smaller connects, the other accepts:
 *
 *   connector                                   acceptor
 *   HELLO number nonce mac(acceptor's token) ->              who cannot make the mac is dropped at once
 *                                            <- CHALLENGE nonce mac(both tokens, both nonces)
 *   PROOF mac(both tokens, both nonces)      ->
 *   frames                                   <-> frames
 */
#ifndef GSI_TCP_HELLO_H
#define GSI_TCP_HELLO_H

#include "transport/net/rail.h"

#include <stddef.h>

enum {
    GSI_TCP_TOKEN = 16,
    GSI_TCP_NONCE = 32,
    GSI_TCP_MAC = 32,
    GSI_TCP_HELLO = 80,
    GSI_TCP_CHALLENGE = GSI_TCP_NONCE + GSI_TCP_MAC,
    GSI_TCP_PROOF = GSI_TCP_MAC,
};

typedef struct gsi_tcp_card {
    uint16_t family, port;     /* 4 or 6; host order */
    unsigned char address[16]; /* network order; 4 bytes of it for IPv4 */
    unsigned char token[GSI_TCP_TOKEN];
    uint64_t number; /* names the connection at its side */
    uint32_t depth;  /* reads that it will have in flight at most */
} gsi_tcp_card;

void gsi_tcp_card_pack(const gsi_tcp_card *card, gsi_rail_address *out);
/* 0, or -1: not made by this version of the provider. */
int gsi_tcp_card_parse(const gsi_rail_address *blob, gsi_tcp_card *out);
/* < 0: a connects to b; > 0: b connects to a; 0: they are the same side. */
int gsi_tcp_card_compare(const gsi_tcp_card *a, const gsi_tcp_card *b);

/* What one side keeps until the proofs are done. */
typedef struct gsi_tcp_secret {
    unsigned char hello[32];               /* key of the hello's mac */
    unsigned char proof[32];               /* key of the others */
    unsigned char nonce[2][GSI_TCP_NONCE]; /* the connector's, the acceptor's */
} gsi_tcp_secret;

/* The key of hellos to the side with this card. */
void gsi_tcp_hello_key(const gsi_tcp_card *acceptor, unsigned char key[32]);
/* Both keys. Nonces are zero. */
void gsi_tcp_secret_make(gsi_tcp_secret *s, const gsi_tcp_card *connector, const gsi_tcp_card *acceptor);
void gsi_tcp_secret_wipe(gsi_tcp_secret *s);

/* Connector: makes a nonce and a hello to `number`. */
void gsi_tcp_hello_make(gsi_tcp_secret *s, uint64_t number, unsigned char out[GSI_TCP_HELLO]);
/* Acceptor: 0 and whom it is for, or -1: not a hello. */
int gsi_tcp_hello_parse(const unsigned char in[GSI_TCP_HELLO], uint64_t *number);
/* Acceptor: 1 if it was made by someone who knows the token behind `key`. */
int gsi_tcp_hello_check(const unsigned char in[GSI_TCP_HELLO], const unsigned char key[32]);
/* Acceptor: takes the hello's nonce, makes one and the challenge. */
void gsi_tcp_challenge_make(gsi_tcp_secret *s, const unsigned char hello[GSI_TCP_HELLO],
                            unsigned char out[GSI_TCP_CHALLENGE]);
/* Connector: 1 if the acceptor is who it should be; takes its nonce. */
int gsi_tcp_challenge_check(gsi_tcp_secret *s, const unsigned char in[GSI_TCP_CHALLENGE]);
void gsi_tcp_proof_make(const gsi_tcp_secret *s, unsigned char out[GSI_TCP_PROOF]);
/* Acceptor: 1 if the connector is who it should be. */
int gsi_tcp_proof_check(const gsi_tcp_secret *s, const unsigned char in[GSI_TCP_PROOF]);

#endif
