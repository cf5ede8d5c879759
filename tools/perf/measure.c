/* SPDX-License-Identifier: Apache-2.0 */
#include "measure.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../cli.h"
#include "buffers.h"
#include "pattern.h"
#include "stats.h"

struct perf_bench {
    const perf_options *o;
    gradsync_context *ctx;
    gradsync_comm *comm;
    int rank, nranks;
    int local_rank, local_ranks; /* on this host */
    perf_area send, recv;
    gradsync_request **requests; /* of one group of -m */
    double *samples;             /* seconds of each iteration, on this rank */
    double *slots;               /* SLOTS numbers of each rank, gathered */
    uint64_t seed;
    char why[256]; /* of the first failure, to tell the other ranks */
};

/* What ranks tell each other about a placement. */
enum { SLOT_WALL, SLOT_CPU, SLOT_WRONG, SLOT_GUARDS, SLOT_STOP, SLOTS };

/* Up to this size iterations are timed one by one in a loop of their own: reading
 * the clock would be a part of the time of the main loop. */
enum { SEPARATE_SAMPLES = 256 << 10 };

/* One operation of a row: everything but where its region begins. */
typedef struct op {
    const perf_row *row;
    int in_place;
    size_t send_bytes, recv_bytes; /* of a region; in place, both are in recv */
    size_t slice;                  /* bytes of one rank's part, where there are parts */
    gradsync_coll_opts opts;
} op;

static double now_s(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Says what the library says about a failed call; returns -1. */
__attribute__((format(printf, 3, 4))) static int failed(perf_bench *b, int code, const char *format, ...)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    char what[128];
    va_list args;

    va_start(args, format);
    /* The analyser loses va_start() where it inlines a variadic function. */
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized) */
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    if (gradsync_last_error(&info) != code)
        snprintf(info.message, sizeof info.message, "%s", gradsync_strerror(code));
    if (!b->why[0])
        snprintf(b->why, sizeof b->why, "%s failed: %.100s", what, info.message);
    if (b->nranks > 1)
        cli_error(PERF_NAME, "rank %d: %s failed: %s: %s", b->rank, what, gradsync_error_name(code), info.message);
    else
        cli_error(PERF_NAME, "%s failed: %s: %s", what, gradsync_error_name(code), info.message);
    return -1;
}

/* Says that memory of our own has run out. */
static void lacking(perf_bench *b, const char *what)
{
    snprintf(b->why, sizeof b->why, "no memory for %s", what);
    cli_error(PERF_NAME, "%s", b->why);
}

/* ---- The job -------------------------------------------------------------------- */

/* The rank that a launcher has given this process, or -1. Which variables count is the
 * library's to say; these tell only whether to ask it. */
static int launched_rank(void)
{
    static const char *const names[][2] = {
        {"GRADSYNC_RANK", NULL}, {"RANK", "WORLD_SIZE"}, {"OMPI_COMM_WORLD_RANK", NULL},
        {"PMIX_RANK", NULL},     {"PMI_RANK", NULL},     {"SLURM_PROCID", NULL}};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *value = getenv(names[i][0]);
        if (value && *value && (!names[i][1] || getenv(names[i][1])))
            return atoi(value);
    }
    return -1;
}

/* Warnings are usually the same on all ranks: rank 0's are shown, and all errors; and
 * whatever GRADSYNC_LOG asks for. */
static void show_log(void *arg, int level, const char *message)
{
    static const char *const names[] = {"", "error", "warning", "info", "debug"};
    int rank = *(const int *)arg;
    const char *name = level > 0 && level < 5 ? names[level] : "";

    if (level <= GRADSYNC_LOG_ERROR || getenv("GRADSYNC_LOG"))
        cli_error(PERF_NAME, "rank %d: %s: %s", rank < 0 ? 0 : rank, name, message);
    else if (rank <= 0)
        cli_error(PERF_NAME, "%s: %s", name, message);
}

/* Gathers what ranks say of their CPUs; peers' names and pids the library knows. */
static int meet(perf_bench *b, perf_run *run)
{
    struct cpu {
        char model[96], tier[16];
    } mine = {{0}, {0}}, *all = calloc((size_t)b->nranks, sizeof *all);
    gradsync_system_info system = {.size = sizeof system};
    int rc = 0;

    run->ranks = calloc((size_t)b->nranks, sizeof *run->ranks);
    if (!all || !run->ranks) {
        lacking(b, "the list of ranks");
        goto fail;
    }
    rc = gradsync_context_query(b->ctx, &system);
    if (rc == 0) {
        memcpy(mine.model, system.cpu_model, sizeof mine.model);
        memcpy(mine.tier, system.cpu_tier, sizeof mine.tier);
        rc = gradsync_all_gather(b->comm, &mine, all, sizeof mine, GRADSYNC_U8, NULL);
    }
    run->comm.size = sizeof run->comm;
    if (rc == 0)
        rc = gradsync_comm_query(b->comm, &run->comm);
    for (int r = 0; r < b->nranks && rc == 0; r++) {
        run->ranks[r].peer.size = sizeof run->ranks[r].peer;
        rc = gradsync_comm_peer(b->comm, r, &run->ranks[r].peer);
        memcpy(run->ranks[r].cpu_model, all[r].model, sizeof mine.model);
        memcpy(run->ranks[r].cpu_tier, all[r].tier, sizeof mine.tier);
    }
    if (rc == 0 && run->comm.nrails > 0) {
        run->rails = calloc((size_t)run->comm.nrails, sizeof *run->rails);
        if (!run->rails) {
            lacking(b, "the list of rails");
            goto fail;
        }
    }
    for (int i = 0; i < run->comm.nrails && rc == 0; i++) {
        run->rails[i].size = sizeof run->rails[i];
        rc = gradsync_comm_rail(b->comm, i, &run->rails[i]);
    }
    if (rc != 0) {
        failed(b, rc, "learning of the other ranks");
        goto fail;
    }
    free(all);
    return 0;

fail:
    free(all);
    return -1;
}

perf_bench *perf_bench_open(const perf_options *o, perf_run *run)
{
    static int log_rank;
    perf_bench *b = calloc(1, sizeof *b);
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    int rc;

    if (!b) {
        cli_error(PERF_NAME, "no memory");
        return NULL;
    }
    b->o = o;
    log_rank = b->rank = launched_rank();
    b->nranks = b->rank < 0 ? 1 : 2; /* for messages, until it is known */
    config.log = show_log;
    config.log_arg = &log_rank;
    config.timeout_ms = (int64_t)ceil(o->timeout_s * 1000);
    config.transport = o->transport;
    rc = gradsync_context_create(&config, &b->ctx);
    if (rc != 0) {
        failed(b, rc, "starting libgradsync");
        goto fail;
    }
    if (b->rank < 0)
        rc = gradsync_comm_create(b->ctx, 0, 1, NULL, NULL, NULL, &b->comm);
    else
        rc = gradsync_comm_create_from_env(b->ctx, NULL, &b->comm);
    if (rc != 0) {
        failed(b, rc, "joining the job");
        goto fail;
    }
    log_rank = run->rank = b->rank = gradsync_comm_rank(b->comm);
    run->nranks = b->nranks = gradsync_comm_size(b->comm);
    if (perf_coll_has_root(o->coll) && o->root >= b->nranks) {
        if (b->rank == 0)
            cli_usage_error(PERF_NAME, "-r %d is no rank: they are 0 to %d", o->root, b->nranks - 1);
        goto fail;
    }
    if (meet(b, run) != 0)
        goto fail;
    b->local_rank = run->comm.local_rank;
    b->local_ranks = run->comm.local_ranks;
    b->slots = calloc((size_t)b->nranks * SLOTS, sizeof *b->slots);
    b->samples = calloc((size_t)o->iters, sizeof *b->samples);
    b->requests = calloc((size_t)o->agg, sizeof(gradsync_request *));
    if (!b->slots || !b->samples || !b->requests) {
        lacking(b, "the samples (-n)");
        goto fail;
    }
    return b;

fail:
    perf_bench_close(b);
    return NULL;
}

void perf_bench_close(perf_bench *b)
{
    if (!b)
        return;
    /* What the ranks agreed on they all know; of a failed call only this one does. */
    if (b->why[0] && b->comm)
        gradsync_comm_abort(b->comm, b->why);
    perf_area_free(&b->send);
    perf_area_free(&b->recv);
    gradsync_comm_destroy(b->comm);
    gradsync_context_destroy(b->ctx);
    free(b->slots);
    free(b->samples);
    free(b->requests);
    free(b);
}

int perf_bench_agree(perf_bench *b, int number)
{
    int32_t all = number;
    int rc = gradsync_all_reduce(b->comm, &all, &all, 1, GRADSYNC_I32, GRADSYNC_MAX, NULL);

    return rc == 0 ? all : failed(b, rc, "agreeing to start");
}

/* ---- Shapes --------------------------------------------------------------------- */

static int has_slices(int coll)
{
    return coll == GRADSYNC_REDUCE_SCATTER || coll == GRADSYNC_ALL_GATHER;
}

void perf_row_shape(const perf_options *o, int nranks, uint64_t size, perf_row *row)
{
    uint64_t parts = has_slices(o->coll) ? (uint64_t)nranks : 1;

    row->count = size / (gradsync_dtype_size(row->dtype) * parts);
    row->bytes = row->count * gradsync_dtype_size(row->dtype) * parts;
    row->root = perf_coll_has_root(o->coll) ? o->root : -1;
}

/* Bytes that processes of this host can still get; -1 if the kernel does not tell. */
static double available_bytes(void)
{
    FILE *in = fopen("/proc/meminfo", "re");
    char line[160];
    double kb = -1;

    while (in && kb < 0 && fgets(line, sizeof line, in))
        sscanf(line, "MemAvailable: %lf", &kb);
    if (in)
        fclose(in);
    return kb < 0 ? -1 : kb * 1024;
}

/* Running out of memory later would get some process killed, maybe not even this one. */
static int check_memory(const perf_bench *b)
{
    double have = available_bytes();
    double need = 2.0 * (double)b->o->max_bytes * (double)b->o->agg * b->local_ranks;

    if (have < 0 || need <= have)
        return 0;
    if (b->local_rank == 0)
        cli_error(PERF_NAME, "the buffers of %d ranks take %.1f GiB, and this host has %.1f GiB: give a smaller -e",
                  b->local_ranks, need / 0x1p30, have / 0x1p30);
    return -1;
}

int perf_bench_buffers(perf_bench *b)
{
    int regions = (int)b->o->agg;
    size_t most = (size_t)b->o->max_bytes;

    if (perf_bench_agree(b, check_memory(b) != 0) != 0)
        return -1;
    int rc = perf_area_make(&b->send, b->ctx, b->o, most, regions);
    if (rc == 0)
        rc = perf_area_make(&b->recv, b->ctx, b->o, most, regions);
    if (rc != 0)
        failed(b, rc, "getting %zu bytes of %s memory, twice", most * (size_t)regions, perf_memory_name(b->o->memory));
    return perf_bench_agree(b, rc != 0) == 0 ? 0 : -1;
}

static op make_op(const perf_bench *b, const perf_row *row, int place)
{
    int coll = b->o->coll;
    op x = {.row = row, .in_place = place == PERF_IN_PLACE, .opts = GRADSYNC_COLL_OPTS_INIT};

    x.slice = (size_t)(row->count * gradsync_dtype_size(row->dtype));
    x.send_bytes = coll == GRADSYNC_ALL_GATHER ? x.slice : (size_t)row->bytes;
    x.recv_bytes = coll == GRADSYNC_REDUCE_SCATTER ? x.slice : (size_t)row->bytes;
    if (x.in_place)
        x.send_bytes = x.recv_bytes = (size_t)row->bytes;
    x.opts.algo = b->o->algo;
    x.opts.flags = b->o->ordered ? GRADSYNC_ORDERED : 0;
    if (row->op == GRADSYNC_PREMUL_SUM)
        x.opts.prescale = pattern_prescale(b->rank);
    return x;
}

static void *send_of(const perf_bench *b, const op *x, int g)
{
    if (!x->in_place)
        return perf_area_at(&b->send, g);
    unsigned char *at = perf_area_at(&b->recv, g);
    return b->o->coll == GRADSYNC_ALL_GATHER ? at + (size_t)b->rank * x->slice : at;
}

static void *recv_of(const perf_bench *b, const op *x, int g)
{
    unsigned char *at = perf_area_at(&b->recv, g);

    return x->in_place && b->o->coll == GRADSYNC_REDUCE_SCATTER ? at + (size_t)b->rank * x->slice : at;
}

/* ---- Operations ----------------------------------------------------------------- */

static int call(const perf_bench *b, const op *x, void *send, void *recv)
{
    const perf_row *r = x->row;

    switch (b->o->coll) {
    case GRADSYNC_ALL_REDUCE:
        return gradsync_all_reduce(b->comm, send, recv, r->count, r->dtype, r->op, &x->opts);
    case GRADSYNC_REDUCE_SCATTER:
        return gradsync_reduce_scatter(b->comm, send, recv, r->count, r->dtype, r->op, &x->opts);
    case GRADSYNC_ALL_GATHER:
        return gradsync_all_gather(b->comm, send, recv, r->count, r->dtype, &x->opts);
    case GRADSYNC_BROADCAST:
        return gradsync_broadcast(b->comm, send, recv, r->count, r->dtype, r->root, &x->opts);
    case GRADSYNC_REDUCE:
        return gradsync_reduce(b->comm, send, recv, r->count, r->dtype, r->op, r->root, &x->opts);
    default:
        return gradsync_barrier(b->comm, &x->opts);
    }
}

static int post(const perf_bench *b, const op *x, void *send, void *recv, gradsync_request **out)
{
    const perf_row *r = x->row;

    switch (b->o->coll) {
    case GRADSYNC_ALL_REDUCE:
        return gradsync_all_reduce_post(b->comm, send, recv, r->count, r->dtype, r->op, &x->opts, out);
    case GRADSYNC_REDUCE_SCATTER:
        return gradsync_reduce_scatter_post(b->comm, send, recv, r->count, r->dtype, r->op, &x->opts, out);
    case GRADSYNC_ALL_GATHER:
        return gradsync_all_gather_post(b->comm, send, recv, r->count, r->dtype, &x->opts, out);
    case GRADSYNC_BROADCAST:
        return gradsync_broadcast_post(b->comm, send, recv, r->count, r->dtype, r->root, &x->opts, out);
    case GRADSYNC_REDUCE:
        return gradsync_reduce_post(b->comm, send, recv, r->count, r->dtype, r->op, r->root, &x->opts, out);
    default:
        return gradsync_barrier_post(b->comm, &x->opts, out);
    }
}

/* One iteration: one operation, or a group of -m of them. */
static int iterate(perf_bench *b, const op *x)
{
    int n = 0, rc = 0;

    if (b->o->blocking && b->o->agg == 1)
        return call(b, x, send_of(b, x, 0), recv_of(b, x, 0));
    while (n < b->o->agg && rc == 0) {
        rc = post(b, x, send_of(b, x, n), recv_of(b, x, n), &b->requests[n]);
        n += rc == 0;
    }
    int waited = gradsync_wait_all(b->requests, (size_t)n);
    for (int i = 0; i < n; i++)
        gradsync_request_free(b->requests[i]);
    return rc != 0 ? rc : waited;
}

/* Iterations after a barrier. samples: NULL, or takes the seconds of each. */
static int loop(perf_bench *b, const op *x, double *samples, double *wall, double *cpu)
{
    long long iters = b->o->iters;
    int rc = gradsync_barrier(b->comm, NULL);

    double cpu_start = now_s(CLOCK_PROCESS_CPUTIME_ID);
    double start = now_s(CLOCK_MONOTONIC), last = start;
    if (!samples) {
        for (long long i = 0; i < iters && rc == 0; i++)
            rc = iterate(b, x);
    }
    for (long long i = 0; samples && i < iters && rc == 0; i++) {
        rc = iterate(b, x);
        double now = now_s(CLOCK_MONOTONIC);
        samples[i] = now - last;
        last = now;
    }
    *wall = now_s(CLOCK_MONOTONIC) - start;
    *cpu = now_s(CLOCK_PROCESS_CPUTIME_ID) - cpu_start;
    return rc;
}

/* ---- Data ----------------------------------------------------------------------- */

static pattern make_pattern(perf_bench *b, const perf_row *row, int steady)
{
    return (pattern){.dtype = row->dtype, .op = row->op, .nranks = b->nranks, .steady = steady, .seed = b->seed++};
}

/* Regions of one group have different elements. */
static uint64_t region_first(int g)
{
    return (uint64_t)g * 7919;
}

/* This rank's contribution into every region; 0x5a wherever only results go. */
static void fill(perf_bench *b, const op *x, const pattern *p)
{
    uint64_t elements = has_slices(b->o->coll) && b->o->coll != GRADSYNC_ALL_GATHER
                            ? x->row->count * (uint64_t)b->nranks
                            : x->row->count;

    for (int g = 0; g < b->o->agg; g++) {
        memset(perf_area_at(&b->recv, g), 0x5a, x->recv_bytes);
        pattern_fill(p, b->rank, region_first(g), send_of(b, x, g), elements);
    }
}

/* Elements that are not as they were filled in with 0x5a. */
static uint64_t count_touched(const unsigned char *data, uint64_t count, size_t size)
{
    uint64_t n = 0;

    for (uint64_t i = 0; i < count; i++) {
        for (size_t k = 0; k < size; k++) {
            if (data[i * size + k] != 0x5a) {
                n++;
                break;
            }
        }
    }
    return n;
}

/* Wrong elements of one region's result, and those of the input that changed. */
static uint64_t count_wrong(const perf_bench *b, const op *x, const pattern *p, int g)
{
    const perf_row *row = x->row;
    const unsigned char *send = send_of(b, x, g), *recv = recv_of(b, x, g);
    uint64_t count = row->count, first = region_first(g), wrong = 0, sent = count;
    size_t size = gradsync_dtype_size(row->dtype);
    int reads_send = 1, result_here = 1;

    switch (b->o->coll) {
    case GRADSYNC_ALL_REDUCE:
        wrong = pattern_count_wrong(p, first, recv, count);
        break;
    case GRADSYNC_REDUCE_SCATTER:
        wrong = pattern_count_wrong(p, first + (uint64_t)b->rank * count, recv, count);
        sent = count * (uint64_t)b->nranks;
        break;
    case GRADSYNC_ALL_GATHER:
        for (int r = 0; r < b->nranks; r++)
            wrong += pattern_count_changed(p, r, first, recv + (size_t)r * x->slice, count);
        break;
    case GRADSYNC_BROADCAST:
        wrong = pattern_count_changed(p, row->root, first, recv, count);
        break;
    case GRADSYNC_REDUCE:
        result_here = b->rank == row->root;
        if (result_here)
            wrong = pattern_count_wrong(p, first, recv, count);
        else if (!x->in_place)
            wrong = count_touched(recv, count, size);
        break;
    default:
        reads_send = 0;
    }
    if (reads_send && (!x->in_place || !result_here))
        wrong += pattern_count_changed(p, b->rank, first, send, sent);
    return wrong;
}

static int verify(perf_bench *b, const op *x, double *wrong)
{
    pattern p = make_pattern(b, x->row, 0);

    fill(b, x, &p);
    int rc = iterate(b, x);
    *wrong = 0;
    for (int g = 0; g < b->o->agg && rc == 0; g++)
        *wrong += (double)count_wrong(b, x, &p, g);
    return rc;
}

/* ---- Results -------------------------------------------------------------------- */

static double bus_factor(int coll, int n)
{
    switch (coll) {
    case GRADSYNC_ALL_REDUCE:
        return 2.0 * (n - 1) / n;
    case GRADSYNC_ALL_GATHER:
    case GRADSYNC_REDUCE_SCATTER:
        return (double)(n - 1) / n;
    case GRADSYNC_BARRIER:
        return 0;
    default:
        return 1;
    }
}

/* As -a asks: 0 rank 0, 1 mean, 2 min, 3 max. */
static double combine(const perf_bench *b, int slot)
{
    double sum = 0, lo = INFINITY, hi = 0;

    for (int r = 0; r < b->nranks; r++) {
        double v = b->slots[r * SLOTS + slot];

        sum += v;
        lo = v < lo ? v : lo;
        hi = v > hi ? v : hi;
    }
    double all[] = {b->slots[slot], sum / b->nranks, lo, hi};
    return all[b->o->average];
}

static double total(const perf_bench *b, int slot)
{
    double sum = 0;

    for (int r = 0; r < b->nranks; r++)
        sum += b->slots[r * SLOTS + slot];
    return sum;
}

/* Tells all ranks each rank's numbers: every rank adds zeros but in its own place. */
static int exchange(perf_bench *b, const double mine[SLOTS])
{
    size_t n = (size_t)b->nranks * SLOTS;

    memset(b->slots, 0, n * sizeof *b->slots);
    memcpy(b->slots + b->rank * SLOTS, mine, SLOTS * sizeof *mine);
    return gradsync_all_reduce(b->comm, b->slots, b->slots, n, GRADSYNC_F64, GRADSYNC_SUM, NULL);
}

static int summarise(perf_bench *b, const op *x, perf_result *result)
{
    double per_op = 1e6 / ((double)b->o->iters * (double)b->o->agg);
    double bytes = (double)x->row->bytes;

    result->wall_us = combine(b, SLOT_WALL) * per_op;
    result->cpu_us = total(b, SLOT_CPU) / b->nranks * per_op;
    result->time_us = b->o->cpu_time ? combine(b, SLOT_CPU) * per_op : result->wall_us;
    result->algbw = result->wall_us > 0 ? bytes / result->wall_us / 1e3 : 0;
    result->busbw = result->algbw * bus_factor(b->o->coll, b->nranks);
    result->cpu_s_per_gb = bytes > 0 ? result->cpu_us * 1e3 / bytes : 0;
    result->wrong = b->o->check ? total(b, SLOT_WRONG) : -1;
    result->guards = total(b, SLOT_GUARDS);
    result->rank_us = calloc((size_t)b->nranks, sizeof *result->rank_us);
    if (!result->rank_us) {
        lacking(b, "the results");
        return -1;
    }
    for (int r = 0; r < b->nranks; r++)
        result->rank_us[r] = b->slots[r * SLOTS + SLOT_WALL] * per_op;
    perf_stats(b->samples, (size_t)b->o->iters, 1e6 / (double)b->o->agg, result);
    return 0;
}

static int measure(perf_bench *b, perf_row *row, int place, const volatile sig_atomic_t *signal_number, int *stop)
{
    op x = make_op(b, row, place);
    pattern p = make_pattern(b, row, 1);
    gradsync_report report = {.size = sizeof report};
    double mine[SLOTS] = {0};
    int own_loop = row->bytes <= SEPARATE_SAMPLES, rc = 0;
    const char *what = "warming up";
    double ignored;

    perf_area_guard(&b->send, x.send_bytes);
    perf_area_guard(&b->recv, x.recv_bytes);
    fill(b, &x, &p);
    for (long long i = 0; i < b->o->warmup && rc == 0; i++)
        rc = iterate(b, &x);
    if (rc == 0) {
        what = "measuring";
        rc = loop(b, &x, own_loop ? NULL : b->samples, &mine[SLOT_WALL], &mine[SLOT_CPU]);
    }
    if (rc == 0) {
        row->algo = gradsync_comm_report(b->comm, &report) == 0 ? report.algo : -1;
        if (own_loop)
            rc = loop(b, &x, b->samples, &ignored, &ignored);
    }
    if (rc == 0 && b->o->check) {
        what = "verifying";
        rc = verify(b, &x, &mine[SLOT_WRONG]);
    }
    if (rc == 0) {
        what = "gathering the results of";
        if (b->o->check)
            mine[SLOT_GUARDS] =
                (double)(perf_area_damage(&b->send, x.send_bytes) + perf_area_damage(&b->recv, x.recv_bytes));
        mine[SLOT_STOP] = *signal_number != 0;
        rc = exchange(b, mine);
    }
    /* An iteration takes as long as its slowest rank. */
    if (rc == 0)
        rc = gradsync_all_reduce(b->comm, b->samples, b->samples, (uint64_t)b->o->iters, GRADSYNC_F64, GRADSYNC_MAX,
                                 NULL);
    if (rc != 0)
        return failed(b, rc, "%s %s of %llu bytes", what, gradsync_coll_name(b->o->coll),
                      (unsigned long long)row->bytes);
    *stop |= total(b, SLOT_STOP) > 0;
    return summarise(b, &x, &row->place[place]);
}

int perf_bench_row(perf_bench *b, perf_row *row, const volatile sig_atomic_t *signal_number, int *stop)
{
    for (int place = 0; place < PERF_PLACES; place++) {
        if (measure(b, row, place, signal_number, stop) != 0)
            return -1;
    }
    return 0;
}
