/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The built-in rendezvous: finds rank, size and address in a launcher's
 * environment, connects the ranks over TCP, and serves as the out-of-band
 * all-gather of communicator creation. Only holders of the job's key get in.
 */
#ifndef GSI_BOOTSTRAP_H
#define GSI_BOOTSTRAP_H

#include "base/log.h"

typedef struct gsi_job {
    int rank, nranks;
    int local_rank, local_ranks; /* -1 if the launcher does not tell */
    char launcher[16];           /* "gradsync", "torchrun", "slurm", "openmpi", "pmi" */
    char addr[256];              /* where rank 0 listens: a name or address */
    int port;
    char id[64]; /* tells jobs of one key apart; "" if the launcher gives nothing */
} gsi_job;

/* Looks a variable up; NULL if unset. getenv() behind a seam, for tests and fuzzing. */
typedef const char *(*gsi_getenv_fn)(void *arg, const char *name);

/* Fills *job from the environment. Pure apart from lookup(). Errors: INVALID
 * (nothing found, or a variable is garbage: the message names it and the remedy). */
int gsi_job_from_env(gsi_getenv_fn lookup, void *arg, gsi_job *job);

enum { GSI_KEY_BYTES = 32 };
/* Derives the job's 32-byte key: `text` (config), else GRADSYNC_KEY, else the file
 * GRADSYNC_KEY_FILE, else the per-user default file on this machine (made 0600 if
 * absent; only if `one_machine`). Errors: AUTH, INVALID, SYSTEM, with the remedy. */
int gsi_job_key(const char *text, gsi_getenv_fn lookup, void *arg, int one_machine, unsigned char key[GSI_KEY_BYTES]);

typedef struct gsi_bootstrap gsi_bootstrap;

/* Connects the job's ranks; rank 0 listens. Collective. Everything is done within
 * timeout_ms. Errors: TIMEOUT (names missing ranks), AUTH, PEER_LOST, SYSTEM, NOMEM. */
int gsi_bootstrap_create(const gsi_job *job, const unsigned char key[GSI_KEY_BYTES], int64_t timeout_ms,
                         const gsi_log *log, gsi_bootstrap **out);
/* A gradsync_allgather_fn; arg is the gsi_bootstrap. Returns a negative error. */
int gsi_bootstrap_allgather(void *arg, const void *send, void *recv, size_t bytes);
void gsi_bootstrap_destroy(gsi_bootstrap *b);

#endif
