/* SPDX-License-Identifier: Apache-2.0 */
/* The key schedule of the rendezvous, and the library that computes it. Pure. */
#ifndef GSI_KEYS_H
#define GSI_KEYS_H

#include "bootstrap/bootstrap.h"

#include <stddef.h>
#include <stdint.h>

enum { GSI_TAG_BYTES = 8, GSI_TEXT_HASH = 33 };

/* What one job's ranks share; made from the key and the job's id. */
typedef struct gsi_keys {
    unsigned char auth[GSI_KEY_BYTES];    /* of the handshake's proofs */
    unsigned char session[GSI_KEY_BYTES]; /* each connection's keys come from it and from both nonces */
    unsigned char tag[GSI_TAG_BYTES];     /* of the id, in clear: tells "another job" from "another key" */
} gsi_keys;

/* Starts libsodium, once for all threads. Errors: SYSTEM. Everything below, and
 * the handshake, needs it first. */
int gsi_sodium_ready(void);

void gsi_keys_derive(gsi_keys *keys, const unsigned char key[GSI_KEY_BYTES], const char *id);
void gsi_keys_wipe(gsi_keys *keys);

/* 32 hexadecimal digits of the hash of a, b and c together, and a NUL. */
void gsi_text_hash(char out[GSI_TEXT_HASH], const char *a, const char *b, const char *c);
/* The 32-byte key that a text of n bytes stands for. */
void gsi_text_key(unsigned char key[GSI_KEY_BYTES], const void *text, size_t n);

#endif
