/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One end of one connection of the rendezvous as a pure state machine: received
 * bytes go in, events and bytes to send come out. It owns no socket, clock or
 * buffer beyond its own few hundred bytes, so it can be fuzzed as it is.
 *
 *   client                              server
 *   HELLO rank nranks nonce proof  ->
 *                                  <-   CHALLENGE nonce proof   (or REFUSE reason)
 *   PROOF                          ->
 *   frames, encrypted              <->  frames, encrypted
 *
 * The client proves knowledge of the key over both nonces only on the one connection
 * that it has chosen, so a server never sees two proven ones of the same process.
 */
#ifndef GSI_LINK_H
#define GSI_LINK_H

#include "bootstrap/keys.h"

enum {
    GSI_NONCE_BYTES = 32,
    GSI_AEAD_BYTES = 16, /* what encryption adds */
    GSI_HELLO_BYTES = 92,
    GSI_CHALLENGE_BYTES = 76,
    GSI_PROOF_BYTES = 44,
    GSI_HEAD_PLAIN = 24,
    GSI_HEAD_BYTES = GSI_HEAD_PLAIN + GSI_AEAD_BYTES, /* a frame's header as sent */
    GSI_NOTE_MAX = 512,                               /* plain bytes of a STATUS or ERROR body */
};

enum gsi_frame_type {
    GSI_FRAME_JOINED = 1, /* server: you are in, wait for the others */
    GSI_FRAME_START = 2,  /* server: all are in; body: the group key, with which results are sealed */
    GSI_FRAME_STATUS = 3, /* server: still waiting; body: for which ranks, as text */
    GSI_FRAME_BLOCK = 4,  /* client: its block of all-gather seq */
    GSI_FRAME_RESULT = 5, /* server: all blocks of all-gather seq; body sealed with the group key */
    GSI_FRAME_ERROR = 6,  /* both: the job failed; body: gsi_note */
};

typedef struct gsi_frame {
    uint32_t type;   /* enum gsi_frame_type */
    uint32_t seq;    /* all-gather number from 1; 0 where there is none */
    uint64_t length; /* plain bytes of the body; 0: no body follows */
} gsi_frame;

/* Why a server turns a client away before any proof. Sent in clear: a hint, not a fact. */
enum gsi_refusal { GSI_REFUSE_VERSION = 1, GSI_REFUSE_JOB = 2, GSI_REFUSE_KEY = 3 };

enum gsi_event {
    GSI_LINK_MORE = 0,  /* all bytes consumed, nothing to report */
    GSI_LINK_HELLO = 1, /* server: a plausible hello (replayable, so no proof yet) came; out holds the challenge */
    GSI_LINK_TRUST = 2, /* client: the server has proved the key; gsi_link_prove() goes on */
    GSI_LINK_OPEN = 3,  /* server: the client has proved the key; rank and nranks are true */
    GSI_LINK_HEAD = 4,  /* a frame's header is in `frame`; give gsi_link_body() if it has a length */
    GSI_LINK_BODY = 5,  /* the frame's body is complete and decrypted in the buffer */
    /* The end of this link; nothing may be fed any more: */
    GSI_LINK_STRANGER = -1, /* does not speak our protocol */
    GSI_LINK_VERSION = -2,  /* speaks another version of it */
    GSI_LINK_OTHER_JOB = -3,
    GSI_LINK_WRONG_KEY = -4,
    GSI_LINK_TAMPERED =
        -5, /* after the proofs: bytes were changed, replayed, reordered or do not follow the protocol */
};

/* Largest body that this side accepts, by what it may receive now; checked before
 * the owner is asked for memory. */
typedef struct gsi_link_limits {
    uint64_t block, result;
} gsi_link_limits;

typedef struct gsi_link {
    int server, state;
    const gsi_keys *keys;  /* borrowed */
    uint32_t rank, nranks; /* the client's claims */
    gsi_link_limits limits;
    gsi_frame frame;

    unsigned char out[GSI_HELLO_BYTES]; /* handshake bytes to send; the owner takes them and sets out_bytes to 0 */
    size_t out_bytes;

    unsigned char script[GSI_HELLO_BYTES + GSI_CHALLENGE_BYTES]; /* transcript: hello, then challenge */
    unsigned char nonce[GSI_NONCE_BYTES];
    unsigned char in[GSI_HELLO_BYTES];
    size_t have, need;

    unsigned char *body; /* borrowed from the owner while a body arrives */
    uint64_t body_have;
    const unsigned char *group; /* NULL: the body is sealed with the session's key */
    unsigned char tx_key[GSI_KEY_BYTES], rx_key[GSI_KEY_BYTES];
    uint64_t tx_count, rx_count; /* nonces: one a sealed piece */
} gsi_link;

/* `nonce` has to be fresh random bytes. keys stay the caller's and must outlive the link. */
void gsi_link_server(gsi_link *l, const gsi_keys *keys, const unsigned char nonce[GSI_NONCE_BYTES]);
/* Leaves the hello in out. */
void gsi_link_client(gsi_link *l, const gsi_keys *keys, const unsigned char nonce[GSI_NONCE_BYTES], uint32_t rank,
                     uint32_t nranks);
/* Forgets the keys. */
void gsi_link_wipe(gsi_link *l);

/* Takes up to n received bytes, *used of them, and stops at the first event. */
enum gsi_event gsi_link_feed(gsi_link *l, const void *data, size_t n, size_t *used);
/* Client, after GSI_LINK_TRUST: leaves the proof in out; frames may be sealed from now on. */
void gsi_link_prove(gsi_link *l);
/* After GSI_LINK_HEAD: where the body goes, frame.length + GSI_AEAD_BYTES bytes, the
 * owner's, until GSI_LINK_BODY. group: the group key for a RESULT, else NULL. */
void gsi_link_body(gsi_link *l, void *buffer, const unsigned char *group);

/* Seals a frame for sending: a header, and for length > 0 the body after it (length +
 * GSI_AEAD_BYTES bytes at `out`). Frames have to be sent in the order of sealing. */
void gsi_link_seal_head(gsi_link *l, uint32_t type, uint32_t seq, uint64_t length, unsigned char out[GSI_HEAD_BYTES]);
void gsi_link_seal_body(gsi_link *l, const void *plain, uint64_t length, unsigned char *out);
/* Seals a result once for all clients. (group, seq) must never be used twice. */
void gsi_group_seal(const unsigned char group[GSI_KEY_BYTES], uint32_t seq, const void *plain, uint64_t length,
                    unsigned char *out);

/* The body of an ERROR frame: an error with the rank that caused it. */
size_t gsi_note_pack(const gradsync_error_info *info, unsigned char out[GSI_NOTE_MAX]);
/* 0, or -1 if the bytes are no such body. The text is made printable. */
int gsi_note_parse(const unsigned char *data, size_t n, gradsync_error_info *info);

#endif
