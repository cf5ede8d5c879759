/* SPDX-License-Identifier: Apache-2.0 */
/* Making an engine, and running collectives through it from the caller's threads. */
#include "engine/p2p.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/futex.h"

/* ---- Making and ending ------------------------------------------------------- */

static int init_lane(gsi_lane *lane, int n)
{
    size_t ranks = (size_t)n;
    lane->base = gsi_calloc(3 * ranks, sizeof *lane->base);
    lane->mem = gsi_calloc(2 * ranks, sizeof *lane->mem);
    lane->mem_off = gsi_calloc(2 * ranks, sizeof *lane->mem_off);
    lane->scale = gsi_calloc(ranks, sizeof *lane->scale);
    /* A step has at most two operands of each rank: a source and what lies in its stage. */
    lane->src = gsi_calloc(2 * ranks + 2, sizeof *lane->src);
    lane->dst = gsi_calloc(2 * ranks + 2, sizeof *lane->dst);
    lane->src_scale = gsi_calloc(2 * ranks + 2, sizeof *lane->src_scale);
    lane->awaited = gsi_calloc(GSI_MAX_STREAMS * ranks, sizeof *lane->awaited);
    return lane->base && lane->mem && lane->mem_off && lane->scale && lane->src && lane->dst && lane->src_scale &&
                   lane->awaited
               ? 0
               : -1;
}

static void free_lane(gsi_lane *lane)
{
    free(lane->base);
    free(lane->mem);
    free(lane->mem_off);
    free(lane->scale);
    free(lane->src);
    free(lane->dst);
    free(lane->src_scale);
    free(lane->awaited);
}

static double us_from_env(const char *name, double otherwise)
{
    const char *text = getenv(name);
    char *end;

    if (!text || !*text)
        return otherwise;
    double us = strtod(text, &end);
    return us >= 0 && us <= 1e9 && !*end ? us : otherwise;
}

/* With a core for every rank the answer comes while one spins; with fewer, the rank that would give it may be
 * waiting for this core, so it is yielded at once. */
static void set_patience(gsi_engine *e)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    double ticks_per_us = 1 / gsi_ticks_us(1);
    int crowded = e->ep->local_ranks > cpus;

    e->spin_ticks = (uint64_t)(us_from_env("GRADSYNC_SPIN_US", crowded ? 0 : 20) * ticks_per_us);
    e->yield_ticks = (uint64_t)(us_from_env("GRADSYNC_YIELD_US", crowded ? 200 : 60) * ticks_per_us);
}

/* The second-level cache, or what GRADSYNC_NT_BYTES says. */
static uint64_t nt_bytes(void)
{
    const char *text = getenv("GRADSYNC_NT_BYTES");
    long cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
    char *end;

    if (text && *text) {
        uint64_t bytes = strtoull(text, &end, 10);
        if (!*end)
            return bytes;
    }
    return cache > 0 ? (uint64_t)cache : UINT64_MAX;
}

/* Where nothing is said of hosts, every rank is on one of its own. */
static int make_hosts(gsi_engine *e)
{
    int32_t *apart = gsi_calloc((size_t)e->n, sizeof *apart);

    for (int r = 0; apart && r < e->n; r++)
        apart[r] = r;
    int rc = apart ? gsi_hosts_make(e->ep->host ? e->ep->host : apart, e->n, &e->hosts)
                   : gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for an engine of %d ranks", e->n);
    free(apart);
    return rc;
}

int gsi_engine_init(gsi_engine *e, gsi_endpoint *ep, gsi_register *reg, const gsi_log *log)
{
    int failed = pthread_mutex_init(&e->lock, NULL) || pthread_mutex_init(&e->queue_lock, NULL);

    gsi_ticks_start();
    e->ep = ep;
    e->reg = reg;
    e->log = log;
    e->rank = ep->rank;
    e->n = ep->n;
    e->process = gsi_process();
    e->holders = 1;
    set_patience(e);
    e->nt_bytes = nt_bytes();
    for (uint32_t i = 0; i < ep->lanes; i++)
        failed |= init_lane(&e->lanes[i], e->n);
    if (failed)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for an engine of %d ranks", e->n);
    return ep->loadstore ? 0 : make_hosts(e);
}

static void let_go(gsi_engine *e)
{
    if (atomic_fetch_sub(&e->holders, 1) != 1)
        return;
    pthread_mutex_destroy(&e->lock);
    pthread_mutex_destroy(&e->queue_lock);
    e->gone(e);
}

int gsi_engine_fail_forked(void)
{
    return gsi_fail(GRADSYNC_ERR_INVALID,
                    "this is a forked child, and the communicator is its parent's; make a context "
                    "and a communicator of its own here");
}

static void end_all(gsi_engine *e)
{
    pthread_mutex_lock(&e->lock);
    gsi_failure ended = {GRADSYNC_ERR_BROKEN, e->rank, e->rank, "the communicator was destroyed"};
    gsi_engine_break(e, &ended, 0, -1);
    gsi_engine_fail_queued(e); /* what came after an earlier failure */
    pthread_mutex_unlock(&e->lock);
    if (e->thread_started) {
        atomic_store(&e->stop, 1);
        atomic_fetch_add(&e->work, 1);
        gsi_futex_wake_all(&e->work);
        e->ep->ops->wake(e->ep);
        pthread_join(e->thread, NULL);
    }
}

void gsi_engine_free(gsi_engine *e)
{
    /* In a forked child the locks may be held by threads that it has not. */
    if (e->process == gsi_process())
        end_all(e);
    gsi_engine_free_plans(e);
    for (uint32_t i = 0; i < GSI_MAX_LANES; i++)
        free_lane(&e->lanes[i]);
    free(e->hosts);
    e->hosts = NULL;
    e->ep->ops->destroy(e->ep);
    gsi_p2p_free(e); /* its staging memory is known to the endpoint until then */
    e->ep = NULL;
    let_go(e);
}

/* ---- Running ------------------------------------------------------------------- */

int gsi_engine_fail_broken(const gsi_engine *e)
{
    gradsync_error_info info = e->failure;
    info.code = GRADSYNC_ERR_BROKEN;
    snprintf(info.message, sizeof info.message, "this communicator failed earlier (%s: %.330s); destroy it",
             gradsync_error_name(e->failure.code), e->failure.message);
    return gsi_fail_info(&info);
}

static void prepare(gsi_engine *e, const gsi_call *call, gsi_op *op, gradsync_error_info *error)
{
    op->call = *call;
    op->engine = e;
    op->error = error;
    op->bytes = call->count * call->esize;
    op->fd = -1;
    op->state = GSI_OP_QUEUED;
    op->start_ticks = gsi_ticks();
}

/* Users count their own collectives, from 1. */
static void number(gsi_engine *e, gsi_op *op)
{
    op->seq = ++e->last_seq;
    op->number = op->call.tag ? 0 : ++e->last_number;
}

static void append(gsi_engine *e, gsi_op *op)
{
    if (e->tail)
        e->tail->next = op;
    else
        e->head = op;
    e->tail = op;
    atomic_fetch_add(&e->queued, 1); /* seq_cst: before who sleeps is looked at, see gsi_engine_post */
}

static void enqueue(gsi_engine *e, gsi_op *op)
{
    pthread_mutex_lock(&e->queue_lock);
    number(e, op);
    append(e, op);
    pthread_mutex_unlock(&e->queue_lock);
}

/* A blocking collective with nothing before it enters at once; lock is held, so nothing can overtake it. */
static void enter_or_enqueue(gsi_engine *e, gsi_op *op)
{
    if (!e->posted && !e->head) { /* nobody but holders of lock has used the queue so far */
        number(e, op);
        if (gsi_engine_start(e, op))
            return;
        append(e, op);
        return;
    }
    pthread_mutex_lock(&e->queue_lock);
    int first = !e->head;
    number(e, op);
    if (!first)
        append(e, op);
    pthread_mutex_unlock(&e->queue_lock);
    if (!first || gsi_engine_start(e, op))
        return;
    pthread_mutex_lock(&e->queue_lock); /* before what has been posted since */
    op->next = e->head;
    e->head = op;
    if (!e->tail)
        e->tail = op;
    atomic_fetch_add(&e->queued, 1); /* before who sleeps is looked at: see gsi_engine_post */
    pthread_mutex_unlock(&e->queue_lock);
}

/* The system call is only for a thread that is, or is about to be, asleep. */
static void ring_thread(gsi_engine *e)
{
    atomic_fetch_add(&e->work, 1);
    if (atomic_load(&e->parked))
        gsi_futex_wake_all(&e->work);
}

/* While callers drive the engine themselves, the thread keeps out of the way. */
static void start_driving(gsi_engine *e)
{
    atomic_fetch_add(&e->drivers, 1);
}

static void stop_driving(gsi_engine *e)
{
    if (atomic_fetch_sub(&e->drivers, 1) == 1 && atomic_load(&e->outstanding))
        ring_thread(e);
}

/* The first moments of a small collective, without all that a round of progress looks at. */
static void look_closely(gsi_engine *e, gsi_op *op)
{
    if (!e->spin_ticks || op->state != GSI_OP_ENTERED)
        return;
    /* Most likely everyone sends the payload along: the plan for that is looked up while the headers travel. */
    if (op->attached && gsi_engine_plan(e, op, 0, 1, 0, 0, &op->entry))
        op->entry = NULL;
    for (int i = 0; i < 32 && !e->ep->ops->entered(e->ep, op->seq, &op->entered_next); i++) {
        if (i == 0)
            e->ep->ops->announce(e->ep);
        gsi_pause();
    }
}

static void log_news(gsi_engine *e)
{
    char news[sizeof e->news];

    pthread_mutex_lock(&e->lock);
    int mine = atomic_exchange(&e->has_news, 0);
    memcpy(news, e->news, sizeof news);
    pthread_mutex_unlock(&e->lock);
    if (mine)
        gsi_logf(e->log, GRADSYNC_LOG_WARN, "%s", news);
}

/* Logs what there is to log; lock is not held. */
static void tell_news(gsi_engine *e)
{
    if (atomic_load_explicit(&e->has_news, memory_order_relaxed))
        log_news(e);
}

/* Drives until *op is done; lock is held. */
static void drive(gsi_engine *e, gsi_op *op)
{
    gsi_backoff backoff = {0};

    look_closely(e, op);
    while (op->state != GSI_OP_DONE) {
        if (gsi_engine_progress(e))
            backoff.since = 0;
        else if (op->state != GSI_OP_DONE)
            gsi_engine_back_off(e, &backoff);
    }
}

int gsi_engine_run_op(gsi_engine *e, gsi_op *op, void (*begin)(gsi_engine *e, gsi_op *op))
{
    pthread_mutex_lock(&e->lock);
    if (e->broken) {
        pthread_mutex_unlock(&e->lock);
        return gsi_engine_fail_broken(e);
    }
    int threaded = atomic_load_explicit(&e->thread_started, memory_order_relaxed);
    if (threaded)
        start_driving(e);
    begin(e, op);
    drive(e, op);
    pthread_mutex_unlock(&e->lock);
    if (threaded)
        stop_driving(e);
    tell_news(e);
    return op->result ? gsi_fail_info(op->error) : 0;
}

int gsi_engine_run(gsi_engine *e, const gsi_call *call)
{
    gradsync_error_info error;
    gsi_op op = {0};

    prepare(e, call, &op, &error);
    return gsi_engine_run_op(e, &op, enter_or_enqueue);
}

/* ---- Posting ------------------------------------------------------------------- */

static void *progress_thread(void *arg)
{
    gsi_engine *e = arg;
    gsi_backoff backoff = {0};

    while (!atomic_load(&e->stop)) {
        uint32_t work = atomic_load(&e->work);
        if (!atomic_load(&e->outstanding) || atomic_load(&e->drivers)) {
            atomic_store(&e->parked, 1); /* before the futex looks at work: pairs with ring_thread */
            gsi_futex_wait(&e->work, work, -1);
            atomic_store(&e->parked, 0);
            continue;
        }
        pthread_mutex_lock(&e->lock);
        if (gsi_engine_progress(e))
            backoff.since = 0;
        else if (!atomic_load(&e->stop))
            gsi_engine_back_off(e, &backoff);
        pthread_mutex_unlock(&e->lock);
        tell_news(e);
    }
    return NULL;
}

/* The thread takes no signals: they are the host's. lock is held. */
static int start_thread(gsi_engine *e)
{
    sigset_t all, before;

    if (e->thread_started || e->progress == GRADSYNC_PROGRESS_MANUAL)
        return 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = pthread_create(&e->thread, NULL, progress_thread, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (err)
        return gsi_fail_errno(err, "cannot start the progress thread; set progress to MANUAL to go without");
    e->thread_started = 1;
    return 0;
}

int gsi_engine_post_op(gsi_engine *e, gsi_op *op, void (*enqueue_op)(gsi_engine *e, gsi_op *op), gsi_op **out)
{
    /* A collective of one rank has nobody to wait for; a message has to, even from the rank itself. */
    int alone = e->n == 1 && op->call.coll < GRADSYNC_COLL_COUNT;
    if (!e->posted || (!alone && !e->thread_started)) {
        pthread_mutex_lock(&e->lock);
        int rc = alone ? 0 : start_thread(e);
        e->posted = !rc; /* with lock held: from now on the queue has users without it */
        pthread_mutex_unlock(&e->lock);
        if (rc) {
            free(op);
            return rc;
        }
    }
    op->posted = 1;
    if (e->broken) {
        free(op);
        return gsi_engine_fail_broken(e);
    }
    atomic_fetch_add(&e->holders, 1);
    atomic_fetch_add(&e->outstanding, 1);
    enqueue_op(e, op);
    *out = op;
    if (alone) {
        /* A hand-over to the thread would take longer than the work. */
        pthread_mutex_lock(&e->lock);
        drive(e, op);
        pthread_mutex_unlock(&e->lock);
        return 0;
    }
    /* Whoever drives the engine goes on with it; no work is done here, so that the caller can compute. */
    ring_thread(e);
    if (atomic_load(&e->asleep))
        e->ep->ops->wake(e->ep);
    return 0;
}

int gsi_engine_post(gsi_engine *e, const gsi_call *call, gsi_op **out)
{
    gsi_op *op = gsi_calloc(1, sizeof *op + sizeof(gradsync_error_info));

    if (!op)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a request");
    prepare(e, call, op, (gradsync_error_info *)(op + 1));
    return gsi_engine_post_op(e, op, enqueue, out);
}

static int result_of(const gsi_op *op)
{
    return op->result ? gsi_fail_info(op->error) : 0;
}

enum { VAIN_TESTS = 30 };

int gsi_engine_test(gsi_op *op)
{
    gsi_engine *e = op->engine;
    int patient = 1;

    if (atomic_load_explicit(&op->done, memory_order_acquire))
        return result_of(op);
    if (!pthread_mutex_trylock(&e->lock)) {
        e->vain_tests = gsi_engine_progress(e) ? 0 : e->vain_tests + 1;
        patient = e->vain_tests > VAIN_TESTS;
        if (!e->thread_started) {
            /* Nobody else would notice a lost peer or a deadline. */
            int64_t now = gsi_now_ns();
            if (gsi_op_is_late(op) || now - e->tested_ns > 100000000) {
                e->tested_ns = now;
                gsi_engine_look_for_trouble(e);
            }
        }
        pthread_mutex_unlock(&e->lock);
    }
    tell_news(e);
    int done = atomic_load_explicit(&op->done, memory_order_acquire) != 0;
    if (!done) {
        /* The end is told under this lock, first by the descriptor: who saw that readable finds it done. */
        pthread_mutex_lock(&e->queue_lock);
        done = atomic_load_explicit(&op->done, memory_order_acquire) != 0;
        pthread_mutex_unlock(&e->queue_lock);
        /* Who does nothing but test may be in the way of those that it waits for. */
        if (!done && patient)
            sched_yield();
    }
    return done ? result_of(op) : GRADSYNC_IN_PROGRESS;
}

int gsi_engine_wait(gsi_op *op)
{
    gsi_engine *e = op->engine;
    gsi_backoff backoff = {0};

    if (atomic_load_explicit(&op->done, memory_order_acquire))
        return result_of(op);
    start_driving(e);
    while (!atomic_load_explicit(&op->done, memory_order_acquire)) {
        pthread_mutex_lock(&e->lock);
        if (gsi_engine_progress(e))
            backoff.since = 0;
        else if (!atomic_load_explicit(&op->done, memory_order_acquire) && !e->broken)
            gsi_engine_back_off(e, &backoff);
        pthread_mutex_unlock(&e->lock);
    }
    stop_driving(e);
    tell_news(e);
    return result_of(op);
}

int gsi_engine_fd(gsi_op *op)
{
    gsi_engine *e = op->engine;

    if (e->progress == GRADSYNC_PROGRESS_MANUAL)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED, "a request's file descriptor needs a progress thread, but the "
                                                  "context was made with GRADSYNC_PROGRESS_MANUAL");
    pthread_mutex_lock(&e->queue_lock);
    int err = 0;
    if (op->fd < 0) {
        op->fd = eventfd(atomic_load(&op->done) ? 1 : 0, EFD_CLOEXEC | EFD_NONBLOCK);
        err = op->fd < 0 ? errno : 0;
    }
    int fd = op->fd;
    pthread_mutex_unlock(&e->queue_lock);
    return err ? gsi_fail_errno(err, "cannot make a file descriptor for a request") : fd;
}

/* Once it is done, nobody else looks at an op. */
static void free_done(gsi_op *op)
{
    gsi_engine *e = op->engine;
    if (op->fd >= 0)
        close(op->fd);
    free(op);
    let_go(e);
}

void gsi_engine_release(gsi_op *op)
{
    gsi_engine *e = op->engine;

    /* In a forked child nobody else is there. */
    if (atomic_load_explicit(&op->done, memory_order_acquire) || e->process != gsi_process()) {
        free_done(op);
        return;
    }
    pthread_mutex_lock(&e->queue_lock);
    int done = atomic_load(&op->done) != 0;
    op->detached = 1;
    pthread_mutex_unlock(&e->queue_lock);
    if (done)
        free_done(op);
}

void gsi_engine_abort(gsi_engine *e, const char *reason)
{
    gsi_failure failure = {GRADSYNC_ERR_PEER_LOST, e->rank, e->rank, ""};
    snprintf(failure.text, sizeof failure.text, "rank %d aborted%s%.160s", e->rank, reason && *reason ? ": " : "",
             reason ? reason : "");
    e->ep->ops->fail(e->ep, &failure);
    if (!e->ep->ops->progress)
        return;
    pthread_mutex_lock(&e->lock); /* between hosts a message has to carry it, and maybe nobody else drives */
    e->ep->ops->progress(e->ep);
    pthread_mutex_unlock(&e->lock);
}
