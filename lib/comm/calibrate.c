/* SPDX-License-Identifier: Apache-2.0 */
/* Measures what the selector works with: a signal, copying and reducing, with all ranks at it at once.
 * The slowest rank's figures count for all, so that all choose alike. Ranks of a process that has
 * measured the same kind of communicator before use what they know. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cpu.h"
#include "base/error.h"
#include "comm/comm.h"
#include "reduce/reduce.h"

enum {
    BATCHES = 8,
    SIGNALS = 4,
    TRANSFERS = 4,
    TRANSFER_BYTES = 8 << 10,
    CACHED_BYTES = 64 << 10,
    MEMORY_BYTES = 2 << 20,
    REMEMBERED = 16,
    FIGURES = 12,
    WIRE_POSTS = 4,        /* collectives in flight at once: as many as there are lanes */
    WIRE_LEAST = 32 << 10, /* bytes that a rank sends, at first */
    WIRE_MOST = 2 << 20,
    WIRE_ROUNDS = 3,
    WIRE_SURE_US = 1500, /* a measurement that took so long is good enough */
};

/* What is measured, as times: the greatest is the slowest rank's. */
typedef struct figures {
    double signal_us, step_us, put_us, copy_ns_per_byte, reduce_ns_per_byte, mem_copy_ns_per_byte,
        mem_reduce_ns_per_byte, transfer_ns_per_byte, ranks_per_core, wire_us, message_us, wire_ns_per_byte;
} figures;
_Static_assert(sizeof(figures) == FIGURES * sizeof(double), "figures are agreed on as an array of doubles");

static struct {
    int n, hosts;
    char transport[16];
    figures f;
} remembered[REMEMBERED];
static int remembered_count;
static pthread_mutex_t remembered_lock = PTHREAD_MUTEX_INITIALIZER;

static int hosts_of(const gradsync_comm *comm)
{
    return comm->engine.hosts ? comm->engine.hosts->hosts : 1;
}

static int is_of(int i, const gradsync_comm *comm)
{
    return remembered[i].n == comm->engine.n && remembered[i].hosts == hosts_of(comm) &&
           !strcmp(remembered[i].transport, comm->transport);
}

static int recall(const gradsync_comm *comm, figures *f)
{
    int found = 0;
    pthread_mutex_lock(&remembered_lock);
    for (int i = 0; i < remembered_count && !found; i++)
        if (is_of(i, comm))
            *f = remembered[i].f, found = 1;
    pthread_mutex_unlock(&remembered_lock);
    return found;
}

static void remember(const gradsync_comm *comm, const figures *f)
{
    pthread_mutex_lock(&remembered_lock);
    int at = 0;
    while (at < remembered_count && !is_of(at, comm))
        at++;
    if (at < REMEMBERED) {
        remembered[at].n = comm->engine.n;
        remembered[at].hosts = hosts_of(comm);
        memcpy(remembered[at].transport, comm->transport, sizeof remembered[at].transport);
        remembered[at].f = *f;
        remembered_count = at == remembered_count ? at + 1 : remembered_count;
    }
    pthread_mutex_unlock(&remembered_lock);
}

static int run(gradsync_comm *comm, int coll, double *values, uint64_t count)
{
    gsi_call call = {.send = values,
                     .recv = values,
                     .count = count,
                     .esize = sizeof *values,
                     .coll = (uint8_t)coll,
                     .dtype = GRADSYNC_F64,
                     .op = GRADSYNC_MAX,
                     .algo = GRADSYNC_ALGO_ONESHOT,
                     .timeout_ms = comm->timeout_ms,
                     .tag = GSI_TAG_CALIBRATE};
    if (coll == GRADSYNC_BARRIER)
        call =
            (gsi_call){.coll = GRADSYNC_BARRIER, .esize = 1, .timeout_ms = comm->timeout_ms, .tag = GSI_TAG_CALIBRATE};
    return gsi_engine_run(&comm->engine, &call);
}

/* The least of a few batches: what else the machine does only adds to it. */
static int measure_signal(gradsync_comm *comm, figures *f)
{
    double least = 1e9;
    int rc = run(comm, GRADSYNC_BARRIER, NULL, 0);

    for (int b = 0; !rc && b < BATCHES; b++) {
        uint64_t start = gsi_ticks();
        for (int i = 0; !rc && i < SIGNALS; i++)
            rc = run(comm, GRADSYNC_BARRIER, NULL, 0);
        double us = gsi_ticks_us(gsi_ticks() - start) / SIGNALS;
        least = us < least ? us : least;
    }
    f->signal_us = f->put_us = least; /* in shared memory a put is told by a flag just as well */
    return rc;
}

/* Every rank writes a piece of its staging, then reads its neighbour's. No collective uses it meanwhile. */
static int measure_transfer(gradsync_comm *comm, figures *f)
{
    gsi_endpoint *ep = comm->engine.ep;
    char *own = ep->ops->stage(ep, ep->rank), *next = ep->ops->stage(ep, (ep->rank + 1) % ep->n);
    char *room = gsi_calloc_aligned(TRANSFER_BYTES);
    void *to[1] = {room};
    double least = 1e9;
    int rc = 0;

    for (int i = 0; i < TRANSFERS && !rc; i++) {
        memset(own, i, TRANSFER_BYTES);
        rc = run(comm, GRADSYNC_BARRIER, NULL, 0);
        uint64_t start = gsi_ticks();
        if (room)
            gsi_copy(to, 1, next, TRANSFER_BYTES, 0);
        double ns = gsi_ticks_us(gsi_ticks() - start) * 1000 / TRANSFER_BYTES;
        least = ns < least ? ns : least;
        if (!rc)
            rc = run(comm, GRADSYNC_BARRIER, NULL, 0);
    }
    f->transfer_ns_per_byte = room ? least : 0;
    free(room);
    return rc;
}

/* Several barriers in flight, so that their messages queue up: what each costs beyond the first. */
static int measure_messages(gradsync_comm *comm, figures *f)
{
    gsi_call call = {.coll = GRADSYNC_BARRIER, .esize = 1, .timeout_ms = comm->timeout_ms, .tag = GSI_TAG_CALIBRATE};
    gsi_op *ops[WIRE_POSTS];
    double least = 1e9;
    int rc = 0, progress = comm->engine.progress;

    comm->engine.progress = GRADSYNC_PROGRESS_MANUAL; /* no thread is needed for this */
    for (int b = 0; !rc && b < BATCHES; b++) {
        int posted = 0;
        uint64_t start = gsi_ticks();
        while (!rc && posted < WIRE_POSTS) {
            rc = gsi_engine_post(&comm->engine, &call, &ops[posted]);
            posted += !rc;
        }
        for (int i = 0; i < posted; i++) {
            int ended = gsi_engine_wait(ops[i]);
            rc = rc ? rc : ended;
            gsi_engine_release(ops[i]);
        }
        double us = gsi_ticks_us(gsi_ticks() - start);
        least = us < least ? us : least;
    }
    comm->engine.progress = progress;
    double each = (least - f->wire_us) / ((WIRE_POSTS - 1) * (comm->engine.n > 1 ? comm->engine.n - 1 : 1));
    f->message_us = each > f->wire_us / 20 ? each : f->wire_us / 20;
    return rc;
}

/* All ranks send the same amount to others, more and more of it, until it takes long enough to be sure of. */
static int measure_rate(gradsync_comm *comm, figures *f)
{
    int n = comm->engine.n, rc = 0;
    uint64_t most = WIRE_MOST / (uint64_t)n, bytes = WIRE_LEAST / (uint64_t)n;
    char *room = gsi_calloc_aligned(((uint64_t)n + 1) * most);
    double us = 0;

    for (bytes = bytes / 64 * 64 + 64; !rc && bytes <= most; bytes *= 2) {
        gsi_call call = {.send = room ? room + (uint64_t)n * most : NULL,
                         .recv = room,
                         .count = bytes,
                         .esize = 1,
                         .coll = GRADSYNC_ALL_GATHER,
                         .dtype = GRADSYNC_U8,
                         .algo = GRADSYNC_ALGO_RING,
                         .timeout_ms = comm->timeout_ms,
                         .tag = GSI_TAG_CALIBRATE};
        if (!room) /* the others' figures count; but they wait for this rank's part */
            return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to measure the rails with");
        us = 1e12;
        for (int i = 0; !rc && i < WIRE_ROUNDS; i++) { /* what else the machine does only adds to it */
            rc = run(comm, GRADSYNC_BARRIER, NULL, 0);
            uint64_t start = gsi_ticks();
            if (!rc)
                rc = gsi_engine_run(&comm->engine, &call);
            double took = gsi_ticks_us(gsi_ticks() - start);
            us = took < us ? took : us;
        }
        double sent = (double)bytes * (n - 1), latency = f->wire_us * (n - 1);
        f->wire_ns_per_byte = (us > 2 * latency ? us - latency : us / 2) * 1000 / sent;
        if (!rc)
            rc = run(comm, GRADSYNC_ALL_REDUCE, &us, 1); /* all go on, or none */
        if (us > WIRE_SURE_US)
            break;
    }
    free(room);
    return rc;
}

static int measure_wire(gradsync_comm *comm, figures *f)
{
    f->wire_us = f->signal_us; /* a barrier is one message to everyone */
    int rc = measure_messages(comm, f);
    return rc ? rc : measure_rate(comm, f);
}

/* ns per byte of one copy (src NULL: of a two-source sum, per byte of source). */
static double time_pass(char *dst, char *src, char *other, uint64_t bytes)
{
    double least = 1e9;
    void *to[1] = {dst};
    const void *from[2] = {src, other};

    for (int i = 0; i < 2; i++) {
        uint64_t start = gsi_ticks();
        if (other) {
            gsi_reduce_args args = {.dst = to,
                                    .src = from,
                                    .count = bytes / 4,
                                    .ndst = 1,
                                    .nsrc = 2,
                                    .dtype = GRADSYNC_F32,
                                    .op = GRADSYNC_SUM};
            gsi_reduce(&args);
        } else {
            gsi_copy(to, 1, src, bytes, 0);
        }
        double ns = gsi_ticks_us(gsi_ticks() - start) * 1000 / (double)(other ? 2 * bytes : bytes);
        least = ns < least ? ns : least;
    }
    return least;
}

/* The memory beyond the caches is measured on what every rank can spare for a moment. */
static int measure_memory(gradsync_comm *comm, figures *f)
{
    char *room = gsi_calloc_aligned(2 * MEMORY_BYTES);
    int rc = run(comm, GRADSYNC_BARRIER, NULL, 0); /* all at once, as in a collective */

    if (!room) {
        if (!rc) /* guesses: the others' figures are likely greater */
            f->copy_ns_per_byte = f->reduce_ns_per_byte = f->mem_copy_ns_per_byte = f->mem_reduce_ns_per_byte = 0.02;
        return rc;
    }
    f->copy_ns_per_byte = time_pass(room, room + CACHED_BYTES, NULL, CACHED_BYTES);
    f->reduce_ns_per_byte = time_pass(room, room, room + CACHED_BYTES, CACHED_BYTES);
    f->mem_copy_ns_per_byte = time_pass(room, room + MEMORY_BYTES, NULL, MEMORY_BYTES);
    f->mem_reduce_ns_per_byte = time_pass(room, room, room + MEMORY_BYTES, MEMORY_BYTES);
    free(room);
    return rc;
}

static double positive(double v, double otherwise)
{
    return v > 1e-6 ? v : otherwise;
}

static void to_costs(const figures *f, int wire, gsi_costs *c)
{
    long cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
    *c = (gsi_costs){
        .signal_us = positive(f->signal_us, 0.1),
        .step_us = f->step_us,
        .put_us = f->put_us,
        .copy_GBps = 1 / positive(f->copy_ns_per_byte, 0.02),
        .reduce_GBps = 1 / positive(f->reduce_ns_per_byte, 0.02),
        .mem_copy_GBps = 1 / positive(f->mem_copy_ns_per_byte, 0.1),
        .mem_reduce_GBps = 1 / positive(f->mem_reduce_ns_per_byte, 0.05),
        .transfer_GBps = f->transfer_ns_per_byte > 0 ? 1 / f->transfer_ns_per_byte : 0,
        .cache_bytes = cache > 0 ? (double)cache : 1 << 20,
        .ranks_per_core = f->ranks_per_core,
    };
    if (!wire)
        return;
    c->wire_us = positive(f->wire_us, 5);
    c->message_us = positive(f->message_us, 1);
    c->wire_GBps = 1 / positive(f->wire_ns_per_byte, 1);
    c->message_bytes = c->message_us * 1000 * c->wire_GBps;
}

int gsi_comm_calibrate(gradsync_comm *comm)
{
    gsi_engine *e = &comm->engine;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int local = e->ep->local_ranks;
    /* Enough to run the measurements themselves with. */
    figures f = {1, 0.05, 0.5, 0.05, 0.05, 0.1, 0.05, 0, 1, 5, 1, 1};
    gsi_costs costs;

    to_costs(&f, e->hosts != NULL, &costs);
    gsi_engine_set_costs(e, &costs);
    double news = recall(comm, &f) ? 0 : 1; /* 1 if anyone has to measure: then all do */
    int rc = run(comm, GRADSYNC_ALL_REDUCE, &news, 1);
    if (!rc && news > 0) {
        f.ranks_per_core = cpus > 0 && local > cpus ? (double)local / (double)cpus : 1;
        rc = measure_signal(comm, &f);
        if (!rc && e->ep->loadstore)
            rc = measure_transfer(comm, &f);
        if (!rc && e->hosts)
            rc = measure_wire(comm, &f);
        if (!rc)
            rc = measure_memory(comm, &f);
    }
    if (!rc)
        rc = run(comm, GRADSYNC_ALL_REDUCE, (double *)&f, FIGURES);
    if (rc)
        return rc;
    remember(comm, &f);
    to_costs(&f, e->hosts != NULL, &costs);
    gsi_engine_set_costs(e, &costs);
    /* The calibration's own collectives are not the user's. */
    memset(&e->counters, 0, sizeof e->counters);
    e->have_last = 0;
    return 0;
}
