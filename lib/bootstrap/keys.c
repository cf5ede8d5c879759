/* SPDX-License-Identifier: Apache-2.0 */
#include "bootstrap/keys.h"
#include "base/error.h"

#include <pthread.h>
#include <sodium.h>
#include <string.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int started;

static void start(void)
{
    started = sodium_init() >= 0;
}

int gsi_sodium_ready(void)
{
    pthread_once(&once, start);
    if (!started)
        return gsi_fail(GRADSYNC_ERR_SYSTEM, "the system's random number source cannot be opened; check that "
                                             "getrandom() or /dev/urandom works here");
    return 0;
}

void gsi_keys_derive(gsi_keys *keys, const unsigned char key[GSI_KEY_BYTES], const char *id)
{
    static const char job_label[] = "gradsync 1 job key", tag_label[] = "gradsync 1 job tag";
    unsigned char job[crypto_kdf_KEYBYTES];
    crypto_generichash_state state;

    /* The id goes into every key, so ranks of different jobs cannot meet by accident. */
    crypto_generichash_init(&state, key, GSI_KEY_BYTES, sizeof job);
    crypto_generichash_update(&state, (const unsigned char *)job_label, sizeof job_label);
    crypto_generichash_update(&state, (const unsigned char *)id, strlen(id));
    crypto_generichash_final(&state, job, sizeof job);
    crypto_kdf_derive_from_key(keys->auth, sizeof keys->auth, 1, "gradsync", job);
    crypto_kdf_derive_from_key(keys->session, sizeof keys->session, 2, "gradsync", job);
    sodium_memzero(job, sizeof job);

    unsigned char hash[crypto_generichash_BYTES];
    crypto_generichash_init(&state, NULL, 0, sizeof hash);
    crypto_generichash_update(&state, (const unsigned char *)tag_label, sizeof tag_label);
    crypto_generichash_update(&state, (const unsigned char *)id, strlen(id));
    crypto_generichash_final(&state, hash, sizeof hash);
    memcpy(keys->tag, hash, sizeof keys->tag);
    sodium_memzero(&state, sizeof state);
}

void gsi_keys_wipe(gsi_keys *keys)
{
    sodium_memzero(keys, sizeof *keys);
}

void gsi_text_hash(char out[GSI_TEXT_HASH], const char *a, const char *b, const char *c)
{
    unsigned char hash[(GSI_TEXT_HASH - 1) / 2];
    crypto_generichash_state state;

    crypto_generichash_init(&state, NULL, 0, sizeof hash);
    crypto_generichash_update(&state, (const unsigned char *)a, strlen(a));
    crypto_generichash_update(&state, (const unsigned char *)b, strlen(b));
    crypto_generichash_update(&state, (const unsigned char *)c, strlen(c));
    crypto_generichash_final(&state, hash, sizeof hash);
    sodium_bin2hex(out, GSI_TEXT_HASH, hash, sizeof hash);
}

void gsi_text_key(unsigned char key[GSI_KEY_BYTES], const void *text, size_t n)
{
    static const char label[] = "gradsync 1 text key";

    crypto_generichash(key, GSI_KEY_BYTES, text, n, (const unsigned char *)label, sizeof label - 1);
}
