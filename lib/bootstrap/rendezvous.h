/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the rendezvous share: rank 0 is the root, the others are leaves. */
#ifndef GSI_RENDEZVOUS_H
#define GSI_RENDEZVOUS_H

#include "bootstrap/link.h"
#include "bootstrap/net.h"

typedef struct gsi_root gsi_root;
typedef struct gsi_leaf gsi_leaf;

struct gsi_bootstrap {
    gsi_job job;
    gsi_keys keys;
    gsi_log log;
    int64_t timeout_ms;
    uint32_t seq;                /* of the last all-gather begun */
    gradsync_error_info failure; /* code 0: none yet; else every later call returns it */
    gsi_root *root;              /* on rank 0 */
    gsi_leaf *leaf;              /* on the others */
};

/* Records the bootstrap's failure, unless there is one, and makes it the thread's
 * last error. peer: the rank that is the cause, or -1. Returns the code. */
__attribute__((format(printf, 4, 5))) int gsi_bootstrap_fail(gsi_bootstrap *b, int code, int peer, const char *format,
                                                             ...);
/* The same with what gsi_fail() or gsi_note_parse() has left. */
int gsi_bootstrap_fail_info(gsi_bootstrap *b, const gradsync_error_info *info);

/* "3, 7-9 of 16": the ranks i with !there[i], shortened with "..." to fit. */
void gsi_rank_list(char *out, size_t room, const unsigned char *there, int nranks);
/* "10.1.1.7:29501" or "10.1.1.7:29501-29516". */
void gsi_place_text(char *out, size_t room, const gsi_job *job);
/* Milliseconds until `deadline` for poll(): rounded up, at least 0, at most `most`. */
int gsi_poll_ms(int64_t deadline, int most);

/* Rank 0. Deadlines are absolute, see base/clock.h. */
int gsi_root_create(gsi_bootstrap *b, int64_t deadline);
int gsi_root_allgather(gsi_root *r, const void *send, void *recv, size_t bytes, int64_t deadline);
void gsi_root_destroy(gsi_root *r);

/* The others. */
int gsi_leaf_create(gsi_bootstrap *b, int64_t deadline);
int gsi_leaf_allgather(gsi_leaf *f, const void *send, void *recv, size_t bytes, int64_t deadline);
void gsi_leaf_destroy(gsi_leaf *f);

/* A connection to rank 0, which has let us in. */
typedef struct gsi_conn {
    int fd;
    gsi_link link;
} gsi_conn;

/* Finds rank 0 among the ports of b->job and joins as `rank`. *out is filled on
 * success only; the link may go on being fed. once: look round only once. Errors:
 * TIMEOUT, AUTH, MISMATCH, what rank 0 answered, NOMEM. */
int gsi_join(gsi_bootstrap *b, int rank, int once, int64_t deadline, gsi_conn *out);

#endif
