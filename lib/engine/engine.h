/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine: runs the collectives of one communicator on this rank. It starts what
 * is queued as lanes come free, steps every plan in flight as far as it can go, and
 * waits: spinning briefly, then yielding, then asleep.
 *
 * Locks: queue_lock guards the queue and requests' ends, and is held for moments.
 * lock is held by whoever drives the engine on; a caller that only posts never
 * needs it. Order: lock, then queue_lock.
 */
#ifndef GSI_ENGINE_H
#define GSI_ENGINE_H

#include <pthread.h>

#include "base/process.h"
#include "engine/op.h"
#include "plan/select.h"

enum { GSI_MAX_LANES = 8, GSI_PLAN_CACHE = 128 };

typedef struct gsi_plan_key {
    uint64_t count, stride, head, tail;
    int32_t root;
    uint32_t flags;
    uint32_t esize;
    uint8_t coll, algo, shareable, attached;
    uint8_t fixed, half, pad[6]; /* half: partial results are wider than the dtype */
} gsi_plan_key;

/* A cached plan and why it was chosen. */
typedef struct gsi_plan_entry {
    gsi_plan_key key;
    gsi_plan *plan;   /* NULL: an empty place */
    uint64_t segment; /* elements that one run of it covers */
    double predicted_us;
    int users; /* lanes that run it */
} gsi_plan_entry;

typedef struct gsi_stream_state {
    uint32_t pc;     /* steps done */
    uint64_t moved;  /* bytes of the current step that are done: long steps go in pieces */
    int32_t waiting; /* WAIT for all: the peer to look at next */
} gsi_stream_state;

/* The collective in flight in one lane. */
typedef struct gsi_lane {
    gsi_op *op;
    uint64_t finished; /* the last seq that finished here */
    void **base;       /* [space * n + rank]: where the spaces lie; NULL: out of reach */
    uint32_t *mem;     /* [(SEND or RECV) * n + rank]: memory ids, for puts */
    uint64_t *mem_off; /* and the offsets in it */
    double *scale;     /* by rank */
    const void **src;  /* scratch for a step's operands */
    void **dst;
    double *src_scale;
    uint32_t *awaited;  /* [stream * n + rank]: signals that earlier plans of this op awaited */
    uint64_t seg_bytes; /* of user memory done by earlier plans */
    int scaled;         /* any scale is not 1 */
    gsi_stream_state streams[GSI_MAX_STREAMS];
} gsi_lane;

/* Where small messages end: see gsi_engine_limits(). */
typedef struct gsi_eager_limits {
    uint64_t always;  /* up to here the payload always travels with the header */
    uint64_t private; /* up to here it does if the memory is out of the peers' reach */
} gsi_eager_limits;

typedef struct gsi_engine {
    pthread_mutex_t lock, queue_lock;
    gsi_endpoint *ep;
    gsi_register *reg;
    const gsi_log *log;
    int rank, n;
    gsi_hosts *hosts; /* which ranks can load and store each other's memory; NULL: all */
    uint32_t process; /* gsi_process() of who made it */
    int default_algo;
    uint64_t spin_ticks, yield_ticks; /* of a wait, before it yields, and before it sleeps */
    int strict, told_of_staging;
    uint64_t nt_bytes; /* a step that goes through more, and writes what it has not read, writes past the caches */

    gsi_op *head, *tail;            /* queued, in order of seq */
    uint64_t last_seq, last_number; /* given out */
    _Atomic uint32_t queued;

    gsi_lane lanes[GSI_MAX_LANES];
    uint64_t newest;      /* the last seq that was started; in flight are those of (done, newest] */
    uint64_t done;        /* all up to this one are finished here */
    uint64_t peers_done;  /* all up to this one are known to be finished on every rank */
    uint64_t stage_user;  /* the last seq that used the staging memory */
    uint64_t left_gather; /* the last seq that is past the exchange of headers */

    uint64_t id;                 /* of the communicator: the same on all of its ranks, and random */
    struct gsi_p2p *_Atomic p2p; /* puts, sends and so on; NULL: none so far. Set with lock held */

    gsi_costs costs;
    gsi_eager_limits eager[GRADSYNC_COLL_COUNT];
    gsi_plan_entry plans[GSI_PLAN_CACHE];

    _Atomic int broken;   /* 1: `failure` is there for good */
    _Atomic int has_news; /* 1: `news` waits to be logged, which is done when no lock is held */
    char news[320];
    gradsync_error_info failure;

    int progress; /* enum gradsync_progress */
    _Atomic int thread_started;
    _Atomic int posted; /* 1 once anything was posted: set with lock held */
    pthread_t thread;
    _Atomic uint32_t work;      /* a futex: rung when the thread should look again */
    _Atomic int parked, asleep; /* the thread waits for work; threads that are in, or on the way to, a sleep */
    _Atomic int stop, drivers, outstanding; /* outstanding: posted and not done */

    gradsync_counters counters;
    gsi_op last; /* the last collective that ended, for its report: pointers in it are void */
    int have_last;
    int64_t tested_ns;   /* when gsi_engine_test() last looked for trouble */
    uint32_t vain_tests; /* and how often in a row nothing had moved */

    /* Requests outlive the communicator, and ask the engine for their reports: the communicator and each of them
     * hold it. */
    _Atomic uint32_t holders;
    void (*gone)(struct gsi_engine *e); /* the last one let go: frees what the engine is a part of */
} gsi_engine;

/* Takes the endpoint over. Errors: NOMEM. */
int gsi_engine_init(gsi_engine *e, gsi_endpoint *ep, gsi_register *reg, const gsi_log *log);
/* Ends everything in flight with BROKEN, joins the thread, destroys the endpoint, and lets go of the engine: calls
 * gone() now, or when the last request is freed. In a forked child it only frees. */
void gsi_engine_free(gsi_engine *e);
/* In a forked child nothing of the engine can be used: INVALID. Else 0. */
int gsi_engine_fail_forked(void);
static inline int gsi_engine_check_process(const gsi_engine *e)
{
    return e->process == gsi_process() ? 0 : gsi_engine_fail_forked();
}

/* Runs a collective to its end. */
int gsi_engine_run(gsi_engine *e, const gsi_call *call);
/* Queues a collective; *out is the request. Errors: NOMEM, BROKEN, SYSTEM (thread). */
int gsi_engine_post(gsi_engine *e, const gsi_call *call, gsi_op **out);
int gsi_engine_test(gsi_op *op);
int gsi_engine_wait(gsi_op *op);
int gsi_engine_fd(gsi_op *op);
void gsi_engine_release(gsi_op *op);
/* Fails every rank of the communicator: any thread. */
void gsi_engine_abort(gsi_engine *e, const char *reason);

/* What these two do for collectives, for any op. begin(), with lock held, sets it under way; enqueue(), without, notes
 * it for whoever drives; a posted op is freed if it cannot be posted. */
int gsi_engine_run_op(gsi_engine *e, gsi_op *op, void (*begin)(gsi_engine *e, gsi_op *op));
int gsi_engine_post_op(gsi_engine *e, gsi_op *op, void (*enqueue)(gsi_engine *e, gsi_op *op), gsi_op **out);
/* BROKEN, with what broke it. */
int gsi_engine_fail_broken(const gsi_engine *e);

/* What would be chosen; for the caller's explanation too. */
void gsi_engine_choose(const gsi_engine *e, const gsi_call *call, int shareable, int unsent, uint64_t head,
                       uint64_t tail, int brief, gsi_choice *out);
/* Sets the costs (equal on all ranks) and with them where small messages end. */
void gsi_engine_set_costs(gsi_engine *e, const gsi_costs *costs);
/* The report of an op that is done. */
void gsi_engine_report(const gsi_engine *e, const gsi_op *op, gradsync_report *out);

/* ---- Between the engine's files ------------------------------------------------ */

/* plans.c: the plan for a key, from the cache or built; users + 1. */
int gsi_engine_plan(gsi_engine *e, const gsi_op *op, int shareable, int attached, uint64_t head, uint64_t tail,
                    const gsi_plan_entry **out);
void gsi_engine_plan_done(const gsi_plan_entry *entry);
void gsi_engine_free_plans(gsi_engine *e);

/* run.c: steps a lane's plan: 1 finished, 0 blocked, or a negative error. *moved is set when anything was done. */
int gsi_engine_run_plan(gsi_engine *e, gsi_lane *lane, int *moved);
void gsi_engine_start_plan(gsi_engine *e, gsi_lane *lane);
/* The rank that a blocked lane waits for, and at which step; -1 if none. */
int gsi_engine_waits_for(const gsi_engine *e, const gsi_lane *lane, int *step);

/* progress.c: starts and steps what it can; 1 if anything moved. lock is held. */
int gsi_engine_progress(gsi_engine *e);
/* Enters a collective whose turn it is: 1, or 0 if its lane or its memory is not ready. lock is held. */
int gsi_engine_start(gsi_engine *e, gsi_op *op);

/* fail.c */
/* Everything in flight and queued ends with the failure; the communicator is broken. lock is held. */
void gsi_engine_break(gsi_engine *e, const gsi_failure *failure, uint64_t seq, int step);
void gsi_engine_fail_queued(gsi_engine *e);
/* Publishes a failure and gives back the one that counts: the first. */
void gsi_engine_publish(gsi_engine *e, gsi_failure *failure);
/* Tells whoever waits for a posted op; it may be freed by another thread right after. lock is held. */
void gsi_engine_tell(gsi_engine *e, gsi_op *op);
/* An op ends. lock is held. */
void gsi_engine_finish(gsi_engine *e, gsi_op *op, int result);
/* Compares the headers: 0, or MISMATCH with op->error filled. */
int gsi_engine_compare(gsi_engine *e, gsi_op *op);
uint64_t gsi_engine_fingerprint(const gsi_call *call);
/* After a while without progress: has a rank failed, has the deadline passed? lock is held. */
void gsi_engine_look_for_trouble(gsi_engine *e);

/* wait.c */
typedef struct gsi_backoff {
    uint64_t since;     /* ticks of the first fruitless look; 0: none yet */
    int64_t checked_ns; /* when trouble was last looked for */
} gsi_backoff;
/* Nothing moved: pauses, yields or sleeps. lock is held, and is let go of meanwhile. */
void gsi_engine_back_off(gsi_engine *e, gsi_backoff *b);

#endif
