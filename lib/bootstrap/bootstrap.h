/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The built-in rendezvous: finds rank, size and address in a launcher's
 * environment, connects the ranks over TCP, and serves as the out-of-band
 * all-gather of communicator creation. Only holders of the job's key get in.
 * The protocol is in docs/bootstrap.md.
 */
#ifndef GSI_BOOTSTRAP_H
#define GSI_BOOTSTRAP_H

#include "base/log.h"

enum {
    GSI_MAX_RANKS = 65536,
    GSI_JOB_PORTS = 16, /* at most so many ports are tried */
    GSI_KEY_BYTES = 32,
    GSI_GATHER_MAX = 64 << 20, /* bytes of one all-gather's result */
};

typedef struct gsi_job {
    int rank, nranks;
    int local_rank, local_ranks; /* -1 if unknown; local_ranks == nranks: all are on one machine */
    char launcher[16];           /* "gradsync", "torchrun", "slurm", "openmpi", "pmi" */
    char addr[256];              /* where rank 0 listens: a name or address; "" if nranks is 1 */
    int port;                    /* the first that rank 0 tries */
    int ports;                   /* how many it tries, from 1 to GSI_JOB_PORTS (0 counts as 1) */
    char id[64];                 /* tells jobs of one key apart; "" if the launcher gives nothing */
    char ifname[128];            /* interfaces that rank 0 may listen on, as NCCL_SOCKET_IFNAME spells them; "": any */
} gsi_job;

/* Looks a variable up; NULL if unset. getenv() behind a seam, for tests and fuzzing. */
typedef const char *(*gsi_getenv_fn)(void *arg, const char *name);

/* Fills *job from the environment. Pure apart from lookup(), except that the job
 * id under MPICH is read from the process tree. Errors: INVALID (nothing found, or
 * a variable is garbage: the message names it and the remedy). */
int gsi_job_from_env(gsi_getenv_fn lookup, void *arg, gsi_job *job);

/* Derives the job's 32-byte key: `text` (config), else GRADSYNC_KEY, else the file
 * GRADSYNC_KEY_FILE, else the per-user default file on this machine (made 0600 if
 * absent; only if `one_machine`). Errors: AUTH, INVALID, SYSTEM, with the remedy. */
int gsi_job_key(const char *text, gsi_getenv_fn lookup, void *arg, int one_machine, unsigned char key[GSI_KEY_BYTES]);

typedef struct gsi_bootstrap gsi_bootstrap;

/* Connects the job's ranks; rank 0 listens. Collective: returns 0 only when every
 * rank is in. Everything is done within timeout_ms (a name server may hold it up
 * longer; addresses do not need one), and so is each later all-gather. The log
 * must outlive the result. Errors: INVALID (rank claimed twice), MISMATCH (nranks
 * differ), TIMEOUT (names the missing ranks), AUTH, PEER_LOST, SYSTEM, NOMEM. */
int gsi_bootstrap_create(const gsi_job *job, const unsigned char key[GSI_KEY_BYTES], int64_t timeout_ms,
                         const gsi_log *log, gsi_bootstrap **out);
/* A gradsync_allgather_fn; arg is the gsi_bootstrap. By one thread at a time; send
 * may lie inside recv. Returns 0 or a negative error, after which every later call
 * fails in the same way. Errors: INVALID (too large; changes nothing), MISMATCH
 * (sizes differ), TIMEOUT, PEER_LOST, AUTH (tampering), SYSTEM, NOMEM. */
int gsi_bootstrap_allgather(void *arg, const void *send, void *recv, size_t bytes);
/* Local, waits for nobody. NULL is allowed. */
void gsi_bootstrap_destroy(gsi_bootstrap *b);

#endif
