/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gradsync.h - keep gradients in step between the ranks of a training job.
 *
 * The whole public API, top to bottom: values, errors, context, memory,
 * communicator, collectives, point to point, requests, queries. Concepts are in gradsync(7),
 * gradsync_memory(7) and gradsync_errors(7); every function has a man page.
 *
 * Conventions, true for every function unless its comment says otherwise:
 *   - An int result is 0 (GRADSYNC_OK) or a negative enum gradsync_error.
 *   - After a negative result gradsync_last_error() of the same thread tells
 *     rank, peer, step and one sentence with the remedy.
 *   - An error changes nothing, except PEER_LOST, TIMEOUT and DEVICE, which
 *     break the communicator: it then fails fast until it is destroyed.
 *   - Every function may be called from any thread. Collectives of one
 *     communicator match across ranks in the order in which they are called,
 *     so the caller orders them; different communicators are independent.
 *   - Nothing waits for ever: see gradsync_config.timeout_ms.
 *   - A forked child can only destroy or free what its parent made, which its
 *     parent and the other ranks do not notice; all else is INVALID there.
 *   - Sizes called "count" are elements, "bytes" are bytes, times say their unit.
 *   - A config struct starts with its own size; zero or NULL in a field means
 *     its default. Initialise it with its _INIT macro or its init function.
 */
#ifndef GRADSYNC_GRADSYNC_H
#define GRADSYNC_GRADSYNC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) || defined(__clang__)
#define GRADSYNC_API __attribute__((visibility("default")))
#else
#define GRADSYNC_API
#endif

#define GRADSYNC_VERSION_MAJOR 0
#define GRADSYNC_VERSION_MINOR 1
#define GRADSYNC_VERSION_PATCH 0

/* ---- Values ---------------------------------------------------------------- */

/* Element types. The numbers are part of the ABI. */
enum gradsync_dtype {
    GRADSYNC_F32 = 0,
    GRADSYNC_F64 = 1,
    GRADSYNC_F16 = 2,  /* IEEE 754 binary16; accumulated in f32 */
    GRADSYNC_BF16 = 3, /* bfloat16; accumulated in f32 */
    GRADSYNC_I8 = 4,
    GRADSYNC_U8 = 5,
    GRADSYNC_I32 = 6,
    GRADSYNC_U32 = 7,
    GRADSYNC_I64 = 8,
    GRADSYNC_U64 = 9,
};
#define GRADSYNC_DTYPE_COUNT 10

/* Reductions. Integers wrap around; avg of integers is the wrapped sum divided
 * by the number of ranks, truncated towards zero. A NaN in any contribution
 * gives the canonical quiet NaN (min and max included); min takes -0 before +0. */
enum gradsync_op {
    GRADSYNC_SUM = 0,
    GRADSYNC_PROD = 1,
    GRADSYNC_MIN = 2,
    GRADSYNC_MAX = 3,
    GRADSYNC_AVG = 4,
    GRADSYNC_PREMUL_SUM = 5, /* each rank's contribution times its own opts.prescale; floating types only */
};
#define GRADSYNC_OP_COUNT 6

/* Collectives, as reports and fingerprints name them. */
enum gradsync_coll {
    GRADSYNC_ALL_REDUCE = 0,
    GRADSYNC_REDUCE_SCATTER = 1,
    GRADSYNC_ALL_GATHER = 2,
    GRADSYNC_BROADCAST = 3,
    GRADSYNC_REDUCE = 4,
    GRADSYNC_BARRIER = 5,
};
#define GRADSYNC_COLL_COUNT 6

/* Operations between two ranks, as reports name them beside the collectives. */
enum gradsync_p2p {
    GRADSYNC_PUT = 16,
    GRADSYNC_GET = 17,
    GRADSYNC_SEND = 18,
    GRADSYNC_RECV = 19,
    GRADSYNC_SIGNAL = 20,
    GRADSYNC_WAIT_SIGNAL = 21,
};

/* Algorithms. AUTO picks the one with the lowest predicted time. */
enum gradsync_algo {
    GRADSYNC_ALGO_AUTO = 0,
    GRADSYNC_ALGO_ONESHOT = 1,  /* everyone publishes, everyone reduces; small messages in shared memory */
    GRADSYNC_ALGO_DIRECT = 2,   /* one pass over the ranks' own memory; needs shareable memory on every rank */
    GRADSYNC_ALGO_STAGED = 3,   /* the same through cache-sized staging; any memory */
    GRADSYNC_ALGO_RING = 4,     /* ring reduce-scatter + ring all-gather (Patarasuk & Yuan 2009) */
    GRADSYNC_ALGO_TREE = 5,     /* double binary tree (Sanders, Speck & Traeff 2009) */
    GRADSYNC_ALGO_DOUBLING = 6, /* recursive doubling (Thakur, Rabenseifner & Gropp 2005) */
    GRADSYNC_ALGO_PAIRWISE = 7, /* every slice straight to its owner, and straight back */
    GRADSYNC_ALGO_HIER = 8,     /* inside each host in shared memory, between hosts by several ranks of each */
};
#define GRADSYNC_ALGO_COUNT 9

/* The version of the library that is running, "0.1.0". Static storage. */
GRADSYNC_API const char *gradsync_version(void);
/* The same as a number: major * 1000000 + minor * 1000 + patch. */
GRADSYNC_API uint32_t gradsync_version_number(void);
/* Bytes of one element; 0 for a value that is no gradsync_dtype. */
GRADSYNC_API size_t gradsync_dtype_size(int dtype);
/* Names for logs and tables: "f32", "sum", "all_reduce" (or "send"), "ring". Static storage; "?" if unknown. */
GRADSYNC_API const char *gradsync_dtype_name(int dtype);
GRADSYNC_API const char *gradsync_op_name(int op);
GRADSYNC_API const char *gradsync_coll_name(int coll);
GRADSYNC_API const char *gradsync_algo_name(int algo);

/* ---- Errors ----------------------------------------------------------------- */

/* Results. The numbers are pinned: they never change meaning. */
enum gradsync_error {
    GRADSYNC_OK = 0,
    GRADSYNC_IN_PROGRESS = 1,      /* gradsync_test() only: not finished, not an error */
    GRADSYNC_ERR_INVALID = -1,     /* an argument is wrong; nothing was done */
    GRADSYNC_ERR_NOMEM = -2,       /* memory, or room to map it, ran out */
    GRADSYNC_ERR_UNSUPPORTED = -3, /* valid, but not with this memory, transport or build */
    GRADSYNC_ERR_TIMEOUT = -4,     /* the deadline passed; detail names the rank waited for */
    GRADSYNC_ERR_PEER_LOST = -5,   /* a rank died, left or aborted; detail names it */
    GRADSYNC_ERR_MISMATCH = -6,    /* ranks called different things, or a message is too long; detail names both */
    GRADSYNC_ERR_AUTH = -7,        /* a peer could not prove the job's key */
    GRADSYNC_ERR_SYSTEM = -8,      /* an operating-system call failed; detail has errno */
    GRADSYNC_ERR_DEVICE = -9,      /* a NIC or GPU failed */
    GRADSYNC_ERR_BROKEN = -10,     /* this communicator failed earlier; destroy it */
    GRADSYNC_ERR_INTERNAL = -11,   /* a bug in libgradsync; please report it with the message */
};

/* One failure in full. Fields that do not apply are -1 (ranks, rail, step) or 0. */
typedef struct gradsync_error_info {
    uint32_t size;     /* set by the caller: sizeof(gradsync_error_info) */
    int32_t code;      /* enum gradsync_error */
    int32_t rank;      /* the rank that reports */
    int32_t peer;      /* the rank that is the cause: lost, late, or of another opinion */
    int32_t rail;      /* the rail, where one was involved */
    int32_t step;      /* the step of the plan, where one was running */
    int32_t sys_errno; /* errno, where a system call failed */
    int32_t wc_status; /* verbs work-completion status, where one failed */
    uint64_t seq;      /* the collective's number in its communicator, from 1 */
    char message[448]; /* one sentence: what happened and what to do; NUL-terminated */
} gradsync_error_info;
#define GRADSYNC_ERROR_INFO_INIT                                                                                       \
    {                                                                                                                  \
        (uint32_t)sizeof(gradsync_error_info), 0, -1, -1, -1, -1, 0, 0, 0,                                             \
        {                                                                                                              \
            0                                                                                                          \
        }                                                                                                              \
    }

/* The name of an error code: "PEER_LOST". Static storage; "?" if unknown. */
GRADSYNC_API const char *gradsync_error_name(int error);
/* The meaning of an error code in a few words. Static storage. */
GRADSYNC_API const char *gradsync_strerror(int error);
/* Copies the calling thread's last failure into *out (at most out->size bytes).
 * Returns its code; GRADSYNC_OK, with an empty message, if nothing failed yet.
 * Successful calls do not clear it. */
GRADSYNC_API int gradsync_last_error(gradsync_error_info *out);

/* ---- Context ---------------------------------------------------------------- */

typedef struct gradsync_context gradsync_context; /* settings, memory, devices; one a process is usual */
typedef struct gradsync_comm gradsync_comm;       /* one rank's handle of a group of ranks */
typedef struct gradsync_mem gradsync_mem;         /* memory that the library made or knows */
typedef struct gradsync_request gradsync_request; /* a posted collective or point-to-point operation */

enum gradsync_log_level {
    GRADSYNC_LOG_NONE = 0,
    GRADSYNC_LOG_ERROR = 1,
    GRADSYNC_LOG_WARN = 2, /* every fallback, once, with its reason and remedy */
    GRADSYNC_LOG_INFO = 3,
    GRADSYNC_LOG_DEBUG = 4,
};

/* Receives log lines (no newline at the end), on whichever thread logs, which may
 * be in the middle of a collective: it should be quick, and may not call back into
 * the library. */
typedef void (*gradsync_log_fn)(void *arg, int level, const char *message);

/* Who drives posted collectives on while the caller computes. */
enum gradsync_progress {
    GRADSYNC_PROGRESS_AUTO = 0,   /* a thread, started with the first posted request */
    GRADSYNC_PROGRESS_THREAD = 1, /* the same */
    GRADSYNC_PROGRESS_MANUAL = 2, /* nobody: only test, wait and blocking calls make progress */
};

typedef struct gradsync_config {
    uint32_t size;       /* sizeof(gradsync_config) */
    int32_t log_level;   /* enum gradsync_log_level: the highest that is delivered; default WARN */
    gradsync_log_fn log; /* NULL: nothing is printed, unless the environment's GRADSYNC_LOG asks (to stderr) */
    void *log_arg;
    int64_t timeout_ms;    /* default deadline of every wait; default 300000, or GRADSYNC_TIMEOUT (seconds) */
    int32_t progress;      /* enum gradsync_progress */
    int32_t strict;        /* 1: a fallback (staging, TCP, far NIC) is an error, not a warning */
    const char *transport; /* "auto" (default), "shm", "verbs", "tcp"; NULL: GRADSYNC_TRANSPORT */
    const char *key; /* the job's key; NULL: GRADSYNC_KEY, GRADSYNC_KEY_FILE, else a per-user default on one machine */
} gradsync_config;
#define GRADSYNC_CONFIG_INIT                                                                                           \
    {                                                                                                                  \
        (uint32_t)sizeof(gradsync_config), 0, NULL, NULL, 0, 0, 0, NULL, NULL                                          \
    }
GRADSYNC_API void gradsync_config_init(gradsync_config *config);

/* Makes a context. config may be NULL; strings are copied. The caller owns the
 * result and ends it with gradsync_context_destroy().
 * Errors: INVALID, NOMEM, SYSTEM. */
GRADSYNC_API int gradsync_context_create(const gradsync_config *config, gradsync_context **out);
/* Ends a context. Its communicators and memory must be gone: else INVALID, and
 * nothing happens. NULL is allowed. */
GRADSYNC_API int gradsync_context_destroy(gradsync_context *ctx);

/* ---- Memory ----------------------------------------------------------------- */

enum gradsync_mem_flags {
    GRADSYNC_MEM_REMAP = 1,   /* register: move whole private anonymous pages onto a memfd in place, so that local
                                 peers can reach them; addresses and contents stay, see gradsync_memory(7) */
    GRADSYNC_MEM_NO_HUGE = 2, /* alloc: no huge pages */
};
enum gradsync_mem_kind {
    GRADSYNC_MEM_PLAIN = 0,   /* the user's, unknown to the library or known but not shareable */
    GRADSYNC_MEM_LIBRARY = 1, /* allocated here; local peers read and write it directly */
    GRADSYNC_MEM_REMAPPED = 2 /* the user's, moved onto a memfd; as LIBRARY, but for a partial page at each end */
};

typedef struct gradsync_mem_config {
    uint32_t size;     /* sizeof(gradsync_mem_config) */
    uint32_t flags;    /* enum gradsync_mem_flags */
    int32_t numa_node; /* 0: no preference; N+1: memory of NUMA node N is preferred */
    int32_t reserved;
} gradsync_mem_config;
#define GRADSYNC_MEM_CONFIG_INIT                                                                                       \
    {                                                                                                                  \
        (uint32_t)sizeof(gradsync_mem_config), 0, 0, 0                                                                 \
    }
GRADSYNC_API void gradsync_mem_config_init(gradsync_mem_config *config);

typedef struct gradsync_mem_info {
    uint32_t size; /* set by the caller */
    int32_t kind;  /* enum gradsync_mem_kind */
    void *addr;
    uint64_t bytes;
    uint64_t page_bytes; /* the page size in use: huge pages show here */
    int32_t numa_node;   /* node of the first page, -1 if unknown */
    int32_t shareable;   /* 1: local peers can reach all whole pages of it */
    char reason[160];    /* why not shareable or no huge pages, with the remedy; "" if all is well */
} gradsync_mem_info;

/* Allocates zeroed memory that local peers can reach directly (a memfd), page
 * aligned, on huge pages where they help. bytes > 0. Free with gradsync_mem_free().
 * Errors: INVALID, NOMEM, SYSTEM. */
GRADSYNC_API int gradsync_mem_alloc(gradsync_context *ctx, size_t bytes, const gradsync_mem_config *config,
                                    gradsync_mem **out);
/* Makes memory that the user owns known to the library. With GRADSYNC_MEM_REMAP
 * its whole private anonymous pages are moved onto a memfd: no other thread may
 * write to them during this call. The memory must stay valid until deregistered.
 * Errors: INVALID (NULL, wraps, or overlaps a registered range), NOMEM, SYSTEM,
 * UNSUPPORTED (REMAP was asked for and the pages are not private anonymous). */
GRADSYNC_API int gradsync_mem_register(gradsync_context *ctx, void *addr, size_t bytes,
                                       const gradsync_mem_config *config, gradsync_mem **out);
/* Forgets registered memory; remapped pages become private again, contents kept.
 * No collective may be using it. Errors: INVALID (from gradsync_mem_alloc, or in use), SYSTEM (no room to make
 * the pages private: they keep their contents and stay registered, as plain memory; try again). */
GRADSYNC_API int gradsync_mem_deregister(gradsync_mem *mem);
/* Frees allocated memory. No collective may be using it. NULL is allowed.
 * Errors: INVALID (from gradsync_mem_register, or in use). */
GRADSYNC_API int gradsync_mem_free(gradsync_mem *mem);
/* The start of the memory. NULL for NULL. */
GRADSYNC_API void *gradsync_mem_addr(const gradsync_mem *mem);
/* Fills *out (at most out->size bytes). Errors: INVALID. */
GRADSYNC_API int gradsync_mem_query(const gradsync_mem *mem, gradsync_mem_info *out);

/* ---- Communicator ----------------------------------------------------------- */

/* The out-of-band exchange: every rank gives `bytes` bytes, and recv (nranks *
 * bytes, by rank) ends with all of them. Called a few times while a communicator
 * is made, by every rank in the same order, and never afterwards. Returns 0 or
 * any other value for failure. MPI_Allgather, a torch store or PMIx can serve. */
typedef int (*gradsync_allgather_fn)(void *arg, const void *send, void *recv, size_t bytes);

typedef struct gradsync_comm_config {
    uint32_t size;      /* sizeof(gradsync_comm_config) */
    uint32_t flags;     /* none yet: 0 */
    int64_t timeout_ms; /* default deadline of this communicator's waits; 0: the context's */
    int32_t algo;       /* enum gradsync_algo for every collective; AUTO: GRADSYNC_ALGO, else by prediction */
    int32_t reserved;
} gradsync_comm_config;
#define GRADSYNC_COMM_CONFIG_INIT                                                                                      \
    {                                                                                                                  \
        (uint32_t)sizeof(gradsync_comm_config), 0, 0, 0, 0                                                             \
    }
GRADSYNC_API void gradsync_comm_config_init(gradsync_comm_config *config);

/* Makes this rank's handle of a communicator of nranks ranks; collective over
 * them. 0 <= rank < nranks. allgather may be NULL if nranks is 1. The caller owns
 * the result. Ranks may be processes or threads; each thread rank makes its own.
 * Errors: INVALID, NOMEM, SYSTEM, TIMEOUT, PEER_LOST, UNSUPPORTED (no transport
 * reaches a peer: the message says which and why). */
GRADSYNC_API int gradsync_comm_create(gradsync_context *ctx, int rank, int nranks, gradsync_allgather_fn allgather,
                                      void *arg, const gradsync_comm_config *config, gradsync_comm **out);
/* The same from the environment of gradsync-run, torchrun, Slurm, Open MPI (PMIx)
 * or MPICH (PMI): rank, size and the rendezvous address; peers prove the job's
 * key to each other. Errors: as above, and AUTH. gradsync(7) lists the variables. */
GRADSYNC_API int gradsync_comm_create_from_env(gradsync_context *ctx, const gradsync_comm_config *config,
                                               gradsync_comm **out);
/* Splits a communicator: ranks of equal color form one, ordered by key, then by
 * rank. color < 0: none for this rank, *out becomes NULL. Collective over comm.
 * Errors: as gradsync_comm_create(), MISMATCH. */
GRADSYNC_API int gradsync_comm_split(gradsync_comm *comm, int color, int key, const gradsync_comm_config *config,
                                     gradsync_comm **out);
/* Makes every waiting and later call on this communicator, on every rank, fail
 * with PEER_LOST naming this rank and `reason` (may be NULL). Returns at once;
 * may be called while other threads wait in it. Errors: INVALID. */
GRADSYNC_API int gradsync_comm_abort(gradsync_comm *comm, const char *reason);
/* Ends a communicator; local, never waits for other ranks. Requests still in
 * progress end with BROKEN first, and can be asked and freed afterwards; no other call may be running. Peers that still
 * wait for this rank get PEER_LOST. NULL is allowed. Errors: none. */
GRADSYNC_API int gradsync_comm_destroy(gradsync_comm *comm);
/* This rank, and the number of ranks; -1 for NULL. */
GRADSYNC_API int gradsync_comm_rank(const gradsync_comm *comm);
GRADSYNC_API int gradsync_comm_size(const gradsync_comm *comm);

/* ---- Collectives ------------------------------------------------------------ */

enum gradsync_coll_flags {
    GRADSYNC_ORDERED = 1,  /* the same bits for every algorithm, chunking and placement: per element the contributions
                              combine in rank order, in f32 for f16 and bf16, rounded once */
    GRADSYNC_PRESCALE = 2, /* sum and avg: multiply this rank's contribution by opts.prescale first; floating types */
};

typedef struct gradsync_coll_opts {
    uint32_t size;      /* sizeof(gradsync_coll_opts) */
    uint32_t flags;     /* enum gradsync_coll_flags; must agree between ranks */
    int64_t timeout_ms; /* deadline of this call; 0: the communicator's */
    double prescale;    /* with PREMUL_SUM or GRADSYNC_PRESCALE; may differ between ranks */
    int32_t algo;       /* enum gradsync_algo; must agree between ranks; UNSUPPORTED if it cannot serve this call */
    int32_t reserved;
    void *stream; /* NULL: host memory */
} gradsync_coll_opts;
#define GRADSYNC_COLL_OPTS_INIT                                                                                        \
    {                                                                                                                  \
        (uint32_t)sizeof(gradsync_coll_opts), 0, 0, 0.0, 0, 0, NULL                                                    \
    }
GRADSYNC_API void gradsync_coll_opts_init(gradsync_coll_opts *opts);

/*
 * Blocking collectives. send and recv are host memory of any kind and alignment,
 * owned by the caller; opts may be NULL. send is not written, unless the call is
 * in place. Buffers that overlap in any other way than "in place" below are INVALID.
 * count may be 0 (the call still synchronises) and need not divide by the ranks.
 * On return the result is complete on this rank and send may be reused.
 * Errors: INVALID, UNSUPPORTED, NOMEM, MISMATCH, TIMEOUT, PEER_LOST, BROKEN.
 */

/* recv[i] = op over all ranks of send[i], i < count, on every rank. In place: recv == send. */
GRADSYNC_API int gradsync_all_reduce(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype,
                                     int op, const gradsync_coll_opts *opts);
/* send has nranks * recvcount elements; rank r gets elements [r * recvcount, (r + 1) * recvcount) of the
 * reduction. In place: recv == send + rank * recvcount; the rest of send is then undefined. */
GRADSYNC_API int gradsync_reduce_scatter(gradsync_comm *comm, const void *send, void *recv, uint64_t recvcount,
                                         int dtype, int op, const gradsync_coll_opts *opts);
/* recv has nranks * sendcount elements: rank r's send at r * sendcount. In place: send == recv + rank * sendcount. */
GRADSYNC_API int gradsync_all_gather(gradsync_comm *comm, const void *send, void *recv, uint64_t sendcount, int dtype,
                                     const gradsync_coll_opts *opts);
/* recv of every rank = send of root. send is used on root only, and may equal recv there. */
GRADSYNC_API int gradsync_broadcast(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype,
                                    int root, const gradsync_coll_opts *opts);
/* recv of root = op over all ranks of send. recv is used on root only, where recv == send is in place. */
GRADSYNC_API int gradsync_reduce(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype, int op,
                                 int root, const gradsync_coll_opts *opts);
/* Returns on each rank only after every rank has called it. */
GRADSYNC_API int gradsync_barrier(gradsync_comm *comm, const gradsync_coll_opts *opts);

/*
 * The same, posted: they return at once with *request, and the collective goes on
 * (see gradsync_config.progress). Several may be outstanding and complete in any
 * order. The buffers belong to the library until the request is done. The caller
 * ends every request with gradsync_request_free(). Errors: INVALID, UNSUPPORTED,
 * NOMEM, BROKEN at the post; the rest by test and wait.
 */
GRADSYNC_API int gradsync_all_reduce_post(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype,
                                          int op, const gradsync_coll_opts *opts, gradsync_request **request);
GRADSYNC_API int gradsync_reduce_scatter_post(gradsync_comm *comm, const void *send, void *recv, uint64_t recvcount,
                                              int dtype, int op, const gradsync_coll_opts *opts,
                                              gradsync_request **request);
GRADSYNC_API int gradsync_all_gather_post(gradsync_comm *comm, const void *send, void *recv, uint64_t sendcount,
                                          int dtype, const gradsync_coll_opts *opts, gradsync_request **request);
GRADSYNC_API int gradsync_broadcast_post(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype,
                                         int root, const gradsync_coll_opts *opts, gradsync_request **request);
GRADSYNC_API int gradsync_reduce_post(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype,
                                      int op, int root, const gradsync_coll_opts *opts, gradsync_request **request);
GRADSYNC_API int gradsync_barrier_post(gradsync_comm *comm, const gradsync_coll_opts *opts, gradsync_request **request);

/* ---- Point to point ---------------------------------------------------------- */

/*
 * Between this rank and one peer, beside the collectives of the same communicator, which neither wait for these
 * nor are waited for. A rank may be its own peer. Deadlines are the communicator's; PEER_LOST and TIMEOUT break it
 * as they do in a collective. Buffers may be memory of any kind, also where a length of 0 makes them NULL. The
 * posted variants return at once with *request, as posted collectives do, and own the buffers until it is done.
 * What one rank does towards one peer goes out in the order of the calls, posted or not.
 */

/*
 * Messages. A send meets the receive of the same tag by the named peer, in the order of the calls for each peer and
 * tag; any number may wait. A short message is on its way, and buf free, when send returns; a long one when it is
 * received: so two ranks that both send before they receive should post one of the two. Errors: INVALID, NOMEM,
 * MISMATCH (the message is longer than the receiver's room: nothing is written, the message is gone, and the
 * communicator goes on; a short message's sender does not learn of it), TIMEOUT, PEER_LOST, BROKEN.
 */
GRADSYNC_API int gradsync_send(gradsync_comm *comm, int peer, const void *buf, uint64_t bytes, int tag);
/* bytes: the room in buf. *received, if not NULL, becomes the length of the message. */
GRADSYNC_API int gradsync_recv(gradsync_comm *comm, int peer, void *buf, uint64_t bytes, int tag, uint64_t *received);
GRADSYNC_API int gradsync_send_post(gradsync_comm *comm, int peer, const void *buf, uint64_t bytes, int tag,
                                    gradsync_request **request);
/* *received belongs to the library until the request is done. */
GRADSYNC_API int gradsync_recv_post(gradsync_comm *comm, int peer, void *buf, uint64_t bytes, int tag,
                                    uint64_t *received, gradsync_request **request);

/* A peer's leave to put and get: copy it to other ranks by any means, such as gradsync_all_gather(). Opaque; good
 * for one communicator, and until the memory is freed or deregistered. */
typedef struct gradsync_key {
    uint64_t opaque[8];
} gradsync_key;

/* Makes the memory known to all peers, and its key. The owner may use the memory as ever.
 * Errors: INVALID, NOMEM, UNSUPPORTED (peers cannot reach memory of this kind: see gradsync_mem_query()), TIMEOUT,
 * BROKEN. */
GRADSYNC_API int gradsync_mem_key(gradsync_comm *comm, gradsync_mem *mem, gradsync_key *key);

/* Copies bytes from src into peer's memory, `offset` bytes behind its start; when it returns, or the request is done,
 * they are there. The peer takes no part and is not told: see gradsync_signal(). Two ranks that touch the same bytes
 * at the same time must order that themselves.
 * Errors: INVALID (nothing is written: the key is of another rank or communicator, the range leaves the memory, or
 * the peer has freed it), UNSUPPORTED (the range is in a partial page at an end of REMAPPED memory, which peers cannot
 * reach), NOMEM, TIMEOUT, PEER_LOST, BROKEN. */
GRADSYNC_API int gradsync_put(gradsync_comm *comm, int peer, const void *src, const gradsync_key *key, uint64_t offset,
                              uint64_t bytes);
/* The reverse: copies from peer's memory into dst. */
GRADSYNC_API int gradsync_get(gradsync_comm *comm, int peer, void *dst, const gradsync_key *key, uint64_t offset,
                              uint64_t bytes);
GRADSYNC_API int gradsync_put_post(gradsync_comm *comm, int peer, const void *src, const gradsync_key *key,
                                   uint64_t offset, uint64_t bytes, gradsync_request **request);
GRADSYNC_API int gradsync_get_post(gradsync_comm *comm, int peer, void *dst, const gradsync_key *key, uint64_t offset,
                                   uint64_t bytes, gradsync_request **request);

/* Signals are counted, per pair of ranks and slot, from 0 at the communicator's start. */
#define GRADSYNC_SIGNAL_SLOTS 64
/* Raises by one peer's count of this rank's signals in `slot`. The peer sees it only after all that this rank has put
 * there before, posted or not. Errors: INVALID, TIMEOUT, PEER_LOST, BROKEN. */
GRADSYNC_API int gradsync_signal(gradsync_comm *comm, int peer, int slot);
/* The same, posted: to signal after posted puts without waiting for them. */
GRADSYNC_API int gradsync_signal_post(gradsync_comm *comm, int peer, int slot, gradsync_request **request);
/* Waits until `peer` has signalled this rank in `slot` at least `value` times in all. Errors: as gradsync_signal(). */
GRADSYNC_API int gradsync_wait_signal(gradsync_comm *comm, int peer, int slot, uint64_t value);
/* How many times so far; makes some progress and never waits. Errors: INVALID, BROKEN. */
GRADSYNC_API int gradsync_signal_count(gradsync_comm *comm, int peer, int slot, uint64_t *value);

/* ---- Requests --------------------------------------------------------------- */

/* GRADSYNC_IN_PROGRESS (1), 0 when done, or the collective's error; makes some
 * progress and never blocks. May be called again after the end, with the same answer. */
GRADSYNC_API int gradsync_test(gradsync_request *request);
/* Waits until the request is done (at most until the collective's own deadline);
 * returns its result. Several threads may wait for one request. */
GRADSYNC_API int gradsync_wait(gradsync_request *request);
/* Waits for all of n requests; returns the first error among them in order, or 0. */
GRADSYNC_API int gradsync_wait_all(gradsync_request **requests, size_t n);
/* A file descriptor that becomes readable when the request is done, for poll(2).
 * Needs a progress thread. Owned by the request: do not read or close it.
 * Errors: SYSTEM; UNSUPPORTED with GRADSYNC_PROGRESS_MANUAL. */
GRADSYNC_API int gradsync_request_fd(gradsync_request *request);
/* Frees a request; one in progress goes on and frees itself at its end. NULL is allowed. */
GRADSYNC_API int gradsync_request_free(gradsync_request *request);

/* ---- Queries ---------------------------------------------------------------- */

/* What a finished collective did. */
typedef struct gradsync_report {
    uint32_t size;       /* set by the caller */
    int32_t coll;        /* enum gradsync_coll or gradsync_p2p */
    int32_t algo;        /* enum gradsync_algo that ran; AUTO for point to point, which has none */
    int32_t result;      /* 0 or its error */
    uint64_t seq;        /* its number in the communicator, from 1; 0 for point to point */
    uint64_t bytes;      /* of the message: count times element size */
    double predicted_us; /* the selector's prediction */
    double measured_us;  /* from the post, or the call, to the end */
    double wait_us;      /* of that, not spent moving or reducing data on this rank */
    char reason[256];    /* why this algorithm, in a sentence */
} gradsync_report;

/* The report of a finished request. Errors: INVALID (not finished). */
GRADSYNC_API int gradsync_request_report(const gradsync_request *request, gradsync_report *out);
/* The report of the communicator's last finished collective. Errors: INVALID (none yet). */
GRADSYNC_API int gradsync_comm_report(gradsync_comm *comm, gradsync_report *out);

/* What a collective would do, without doing it: the chosen algorithm, each rejected
 * one with its predicted time or the reason it cannot serve, and what the
 * prediction was made from, as text lines. mem_kind: enum gradsync_mem_kind of all
 * buffers. Writes at most `room` bytes with the NUL. Local. Errors: INVALID. */
GRADSYNC_API int gradsync_comm_explain(gradsync_comm *comm, int coll, uint64_t bytes, int dtype, int op, uint32_t flags,
                                       int mem_kind, char *text, size_t room);

typedef struct gradsync_comm_info {
    uint32_t size; /* set by the caller */
    int32_t rank, nranks;
    int32_t local_rank, local_ranks; /* among the ranks that share memory with this one */
    int32_t nrails;                  /* network rails in use; 0: none are needed */
    uint64_t memory_bytes;           /* memory this communicator takes in this rank: mapped, at most */
    double create_ms;                /* how long it took to make */
    char transport[16];              /* "shm", "self", ... */
} gradsync_comm_info;
GRADSYNC_API int gradsync_comm_query(const gradsync_comm *comm, gradsync_comm_info *out);

typedef struct gradsync_peer_info {
    uint32_t size; /* set by the caller */
    int32_t rank;
    int64_t pid;
    int32_t same_host; /* 1: shares memory with this rank */
    int32_t alive;     /* 0: known to be lost */
    char host[64];
    char transport[16]; /* how this rank reaches it */
} gradsync_peer_info;
GRADSYNC_API int gradsync_comm_peer(gradsync_comm *comm, int rank, gradsync_peer_info *out);

typedef struct gradsync_rail_info {
    uint32_t size;     /* set by the caller */
    int32_t index;     /* 0 .. nrails-1 */
    int32_t numa_node; /* -1 if unknown */
    int32_t state;     /* 1 in use, 0 down */
    uint64_t bytes;    /* sent over it */
    double share;      /* of the striping, 0..1 */
    char device[64];   /* "mlx5_0:1" */
    char reason[160];  /* why it is used */
} gradsync_rail_info;
/* Errors: INVALID (no such rail). */
GRADSYNC_API int gradsync_comm_rail(gradsync_comm *comm, int index, gradsync_rail_info *out);

typedef struct gradsync_counters {
    uint32_t size; /* set by the caller */
    uint32_t reserved;
    uint64_t operations;                   /* finished well */
    uint64_t failures;                     /* finished with an error */
    uint64_t bytes;                        /* of messages, finished well */
    uint64_t sleeps;                       /* waits that went to sleep */
    uint64_t wakes;                        /* wake-ups sent to peers */
    uint64_t wait_ns;                      /* time not spent moving or reducing data */
    uint64_t by_algo[GRADSYNC_ALGO_COUNT]; /* operations by algorithm */
} gradsync_counters;
GRADSYNC_API int gradsync_comm_counters(gradsync_comm *comm, gradsync_counters *out);

typedef struct gradsync_system_info {
    uint32_t size; /* set by the caller */
    int32_t cpus;  /* usable by this process */
    int32_t numa_nodes;
    int32_t rdma_devices; /* found, usable or not */
    uint64_t page_bytes;
    uint64_t huge_page_bytes; /* 0: none */
    char cpu_tier[16];        /* of the reduction kernels: "c", "avx2", "avx512", "neon" */
    char cpu_model[96];
    char huge_pages[160]; /* what gradsync_mem_alloc() will get, and why not better */
} gradsync_system_info;
GRADSYNC_API int gradsync_context_query(gradsync_context *ctx, gradsync_system_info *out);

typedef struct gradsync_transport_info {
    uint32_t size; /* set by the caller */
    int32_t usable;
    char name[16];
    char reason[240]; /* what it will use, or why it cannot be used and the remedy */
} gradsync_transport_info;
/* The index-th transport that this library knows. Errors: INVALID (past the last). */
GRADSYNC_API int gradsync_context_transport(gradsync_context *ctx, int index, gradsync_transport_info *out);

/* ---- The machine ------------------------------------------------------------- */

/* From near to far. */
enum gradsync_distance {
    GRADSYNC_DISTANCE_SAME = 0,   /* the device itself */
    GRADSYNC_DISTANCE_SWITCH = 1, /* the same PCI switch (or card) */
    GRADSYNC_DISTANCE_ROOT = 2,   /* the same root complex */
    GRADSYNC_DISTANCE_NODE = 3,   /* the same NUMA node */
    GRADSYNC_DISTANCE_SOCKET = 4, /* another NUMA node of the same socket */
    GRADSYNC_DISTANCE_FAR = 5,    /* another socket */
    GRADSYNC_DISTANCE_UNKNOWN = 6,
};
#define GRADSYNC_DISTANCE_COUNT 7

/* "same PCI switch"; "?" if unknown. Static storage. */
GRADSYNC_API const char *gradsync_distance_name(int distance);

/* What a machine is, as its kernel and the operator's topology file tell it: NUMA nodes, GPUs, RDMA ports. A
 * snapshot: it does not change, and needs no context. */
typedef struct gradsync_machine gradsync_machine;

/* Where memory or a device is. */
typedef struct gradsync_place {
    int32_t numa_node; /* -1: unknown */
    char pci[20];      /* of a GPU: "0000:81:00.0"; "": host memory */
} gradsync_place;

typedef struct gradsync_machine_info {
    uint32_t size; /* set by the caller */
    int32_t numa_nodes, ports, gpus;
    char topology_file[256]; /* GRADSYNC_TOPO_FILE or NCCL_TOPO_FILE, as read; "": none */
} gradsync_machine_info;

typedef struct gradsync_port_info {
    uint32_t size;      /* set by the caller */
    int32_t number;     /* of the port in its device, from 1 */
    int32_t state;      /* as InfiniBand counts: 1 down, 2 initialising, 3 armed, 4 active; 0 unknown */
    int32_t numa_node;  /* -1: unknown */
    int32_t ngids;      /* GIDs that are not empty: see gradsync_machine_gid() */
    int32_t access;     /* 0: this process may open the device; else the errno that stands against it */
    uint32_t rate_mbps; /* 0: unknown */
    uint32_t mtu;       /* of RDMA packets, bytes, where it follows from the network device's; else 0 */
    uint32_t netdev_mtu;
    uint32_t lid, sm_lid; /* InfiniBand: this port's and the subnet manager's */
    uint32_t reserved;
    uint64_t node_guid;  /* 0: unknown */
    char device[64];     /* "mlx5_0" */
    char state_name[16]; /* "ACTIVE" */
    char phys_state[24]; /* "LinkUp" */
    char link_layer[16]; /* "InfiniBand", "Ethernet" */
    char netdev[16];     /* its network device; "": none known */
    char uverbs[32];     /* in /dev/infiniband */
    char firmware[32];
    char board[32];
    char pci[20];       /* "0000:81:00.0"; Soft-RoCE: of the card below it; "": unknown */
    char pci_path[256]; /* from the host bridge: "pci0000:80/0000:80:01.0/0000:81:00.0" */
} gradsync_port_info;

typedef struct gradsync_gid_info {
    uint32_t size;  /* set by the caller */
    int32_t index;  /* in the port's table */
    int32_t prefix; /* bits of the subnet's prefix; 0: unknown */
    int32_t reserved;
    char gid[48];    /* as an IPv6 address, or as the IPv4 address that it holds */
    char type[16];   /* "IB", "RoCE v1", "RoCE v2" */
    char netdev[16]; /* "": none */
} gradsync_gid_info;

typedef struct gradsync_gpu_info {
    uint32_t size; /* set by the caller */
    int32_t numa_node;
    uint32_t pci_class, vendor, device; /* 0x030200, 0x10de, ... */
    char pci[20];
    char pci_path[256];
} gradsync_gpu_info;

/* Whether, and why, a rank uses a port. */
typedef struct gradsync_rail_choice {
    uint32_t size;    /* set by the caller, in each */
    int32_t rail;     /* its place among the rank's rails, from 0; -1: not used */
    int32_t usable;   /* 0: no rank could use it */
    int32_t distance; /* enum gradsync_distance, from the rank's memory */
    int32_t ranks;    /* local ranks that use it */
    char reason[240]; /* why it is used, or why not and the remedy */
} gradsync_rail_choice;

/* Reads the machine whose /sys, /proc and /dev are below root (NULL: this one). The caller frees the result.
 * Errors: INVALID (a GRADSYNC_ or NCCL_ variable, or the topology file, is wrong), NOMEM, SYSTEM (that file). */
GRADSYNC_API int gradsync_machine_read(const char *root, gradsync_machine **out);
/* NULL is allowed. */
GRADSYNC_API int gradsync_machine_free(gradsync_machine *machine);
GRADSYNC_API int gradsync_machine_query(const gradsync_machine *machine, gradsync_machine_info *out);
/* The index-th NUMA node's id (>= 0), in ascending order. Errors: INVALID (past the last). */
GRADSYNC_API int gradsync_machine_node(const gradsync_machine *machine, int index);
/* The index-th RDMA port, active or not, in the order of their names. Errors: INVALID (past the last). */
GRADSYNC_API int gradsync_machine_port(const gradsync_machine *machine, int index, gradsync_port_info *out);
/* The index-th GID of a port that is not empty. Errors: INVALID (past the last). */
GRADSYNC_API int gradsync_machine_gid(const gradsync_machine *machine, int port, int index, gradsync_gid_info *out);
/* The index-th GPU, in the order of PCI addresses. Errors: INVALID (past the last). */
GRADSYNC_API int gradsync_machine_gpu(const gradsync_machine *machine, int index, gradsync_gpu_info *out);
/* How far two places are from each other: enum gradsync_distance. Errors: INVALID. */
GRADSYNC_API int gradsync_machine_distance(const gradsync_machine *machine, const gradsync_place *a,
                                           const gradsync_place *b);
/* Which ports the `rank`-th of nranks local ranks uses, whose memory is at places[0 .. nranks-1], and why not the
 * others: fills choices[0 .. ports-1]. Returns the number of rails. Errors: INVALID, NOMEM. */
GRADSYNC_API int gradsync_machine_rails(const gradsync_machine *machine, const gradsync_place *places, int nranks,
                                        int rank, gradsync_rail_choice *choices);

/* ---- Diagnosis --------------------------------------------------------------- */

enum gradsync_severity {
    GRADSYNC_FINDING_SKIPPED = -1, /* could not be checked, or there is nothing to check: the cause says why */
    GRADSYNC_FINDING_OK = 0,
    GRADSYNC_FINDING_HINT = 1,    /* may cost speed, or is worth knowing */
    GRADSYNC_FINDING_WARNING = 2, /* costs speed, or works in part only */
    GRADSYNC_FINDING_ERROR = 3,   /* RDMA does not work so */
};

typedef struct gradsync_finding {
    uint32_t size;    /* set by the library */
    int32_t severity; /* enum gradsync_severity */
    char id[32];      /* of the check, for scripts: "port-down"; gradsync-doctor(1) lists them */
    char subject[96]; /* what it is about: "mlx5_0:1"; "": the machine */
    char cause[352];  /* what was found, one sentence */
    char remedy[352]; /* what to do about it, one sentence; "" if there is nothing to do */
} gradsync_finding;

/* Receives one finding; it is valid during the call. */
typedef void (*gradsync_finding_fn)(void *arg, const gradsync_finding *finding);

/* Looks for what keeps RDMA from working, or from its full speed, on this machine, and calls fn for each finding, in
 * a fixed order; every check gives at least one. root: a folder with a copy of another machine's /sys, /proc and /dev,
 * or NULL for this one. peer: addresses that the ports should reach ("10.0.1.2", "10.0.1.0/24,fd00::2"), or NULL.
 * Reads only; needs no context. Errors: INVALID (peer, fn), NOMEM. */
GRADSYNC_API int gradsync_diagnose(const char *root, const char *peer, gradsync_finding_fn fn, void *arg);

#ifdef __cplusplus
}
#endif
#endif
