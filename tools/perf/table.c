/* SPDX-License-Identifier: Apache-2.0 */
#include "table.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../cli.h"

/* A number in at most `width` characters, with as many decimals as fit (2, or up to
 * 4 for times under 10: shared memory takes fractions of a microsecond). */
static const char *fit(char text[32], double value, int width, int decimals)
{
    for (; decimals >= 0; decimals--) {
        if (snprintf(text, 32, "%.*f", decimals, value) <= width)
            return text;
    }
    snprintf(text, 32, "%.0e", value);
    return text;
}

static int time_decimals(double us)
{
    return us < 1 ? 4 : us < 10 ? 3 : 2;
}

static void head_options(const perf_run *run)
{
    const perf_options *o = run->options;
    int factor = o->step_factor > 1;

    printf("# Collective test starting: %s\n", gradsync_coll_name(o->coll));
    printf("# nRanks %d minBytes %llu maxBytes %llu step: %llu(%s) warmup iters: %lld iters: %lld agg iters: %lld "
           "validation: %d\n",
           run->nranks, (unsigned long long)o->min_bytes, (unsigned long long)o->max_bytes,
           (unsigned long long)(factor ? o->step_factor : o->step_bytes), factor ? "factor" : "bytes", o->warmup,
           o->iters, o->agg, o->check);
    printf("# Memory: %s%s, algorithm: %s%s, calls: %s\n", perf_memory_name(o->memory),
           o->memory == PERF_MEMORY_PLAIN && o->register_memory ? ", registered" : "", gradsync_algo_name(o->algo),
           o->ordered ? ", ordered" : "",
           o->agg > 1    ? "posted in groups"
           : o->blocking ? "blocking"
                         : "posted, then waited for");
}

static void head_columns(const perf_run *run)
{
    static const char *const names[] = {"i_min", "i_max", "i_p99", "i_cv%"};
    static const char *const units[] = {"(us)", "(us)", "(us)", "(%)"};
    const perf_options *o = run->options;
    int more = o->per_iteration;

    printf("#\n");
    if (more)
        printf("# %10s  %12s  %8s  %6s  %6s              out-of-place (+ per-iteration)                          "
               "      in-place (+ per-iteration)\n",
               "", "", "", "", "");
    else
        printf("# %10s  %12s  %8s  %6s  %6s           out-of-place                       in-place          \n", "", "",
               "", "", "");
    printf("# %10s  %12s  %8s  %6s  %6s", "size", "count", "type", "redop", "root");
    for (int place = 0; place < PERF_PLACES; place++) {
        printf("  %7s  %6s  %6s  %6s", o->cpu_time ? "cputime" : "time", "algbw", "busbw", "#wrong");
        for (int i = 0; more && i < 4; i++)
            printf("  %7s", names[i]);
    }
    printf("  %7s  %8s\n", "p99", "CPU-s/GB");
    printf("# %10s  %12s  %8s  %6s  %6s", "(B)", "(elements)", "", "", "");
    for (int place = 0; place < PERF_PLACES; place++) {
        printf("  %7s  %6s  %6s  %6s", "(us)", "(GB/s)", "(GB/s)", "");
        for (int i = 0; more && i < 4; i++)
            printf("  %7s", units[i]);
    }
    printf("  %7s  %8s\n", "(us)", "");
}

void perf_table_head(const perf_run *run)
{
    cli_print_header(PERF_NAME);
    head_options(run);
    printf("#\n# Using devices\n");
    for (int r = 0; r < run->nranks; r++) {
        const perf_rank *k = &run->ranks[r];

        printf("#  Rank %2d Group %2d Pid %6lld on %10s device %2d [%s] %s, transport %s\n", r, 0,
               (long long)k->peer.pid, k->peer.host, 0, k->cpu_tier, k->cpu_model,
               r == run->rank ? run->comm.transport : k->peer.transport);
    }
    printf("# Transport: %s, rails: %d%s\n", run->comm.transport, run->comm.nrails,
           run->comm.nrails == 0 ? " (none needed)" : "");
    for (int i = 0; i < run->comm.nrails; i++) {
        const gradsync_rail_info *k = &run->rails[i];

        printf("#  Rail %2d %s NUMA node %d share %.2f: %s\n", i, k->device, k->numa_node, k->share, k->reason);
    }
    head_columns(run);
    fflush(stdout);
}

static void put_place(const perf_options *o, const perf_result *p)
{
    char a[32], b[32], c[32], wrong[32];

    if (p->wrong < 0)
        snprintf(wrong, sizeof wrong, "N/A");
    else
        snprintf(wrong, sizeof wrong, "%g", p->wrong);
    printf("  %7s  %6s  %6s  %6s", fit(a, p->time_us, 7, time_decimals(p->time_us)), fit(b, p->algbw, 6, 2),
           fit(c, p->busbw, 6, 2), wrong);
    if (!o->per_iteration)
        return;
    printf("  %7s", fit(a, p->min_us, 7, time_decimals(p->min_us)));
    printf("  %7s", fit(a, p->max_us, 7, time_decimals(p->max_us)));
    printf("  %7s", fit(a, p->p99_us, 7, time_decimals(p->p99_us)));
    printf("  %7s", fit(a, p->mean_us > 0 ? p->stdev_us / p->mean_us * 100 : 0, 7, 2));
}

void perf_table_row(const perf_run *run, const perf_row *row)
{
    const perf_result *last = &row->place[PERF_IN_PLACE];
    char root[16], p99[32];

    snprintf(root, sizeof root, "%d", row->root);
    printf("%12lld  %12lld  %8s  %6s  %6s", (long long)row->bytes, (long long)row->count, perf_dtype_name(row->dtype),
           row->op < 0 ? "none" : perf_op_name(row->op), root);
    for (int place = 0; place < PERF_PLACES; place++)
        put_place(run->options, &row->place[place]);
    printf("  %7s  %8.4g\n", fit(p99, last->p99_us, 7, time_decimals(last->p99_us)), last->cpu_s_per_gb);
    fflush(stdout);
}

void perf_table_note(const char *text)
{
    printf("# %s\n", text);
    fflush(stdout);
}

void perf_table_foot(const perf_run *run)
{
    double bad = run->wrong + run->guards;

    if (run->options->check)
        printf("# %-20s : %.0f %s\n", "Out of bounds values", bad, bad > 0 ? "FAILED" : "OK");
    else
        printf("# %-20s : not checked (-c 0)\n", "Out of bounds values");
    if (run->guards > 0)
        printf("# %-20s : %.0f bytes around the buffers were overwritten\n", "Guard bytes", run->guards);
    printf("# %-20s : %g\n", "Avg bus bandwidth", run->nbusbw ? run->sum_busbw / (double)run->nbusbw : 0);
    printf("#\n# Collective test concluded: %s%s\n", gradsync_coll_name(run->options->coll),
           run->stopped ? " (stopped by a signal)" : "");
    fflush(stdout);
}

/* ---- Progress -------------------------------------------------------------------- */

static int shown;

static double now_s(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void perf_progress(const perf_options *o, uint64_t done, uint64_t rows, const char *now)
{
    static double start, last;
    static int terminal = -1;
    double t = now_s();

    if (terminal < 0) {
        terminal = !o->quiet && isatty(STDERR_FILENO);
        start = last = t;
    }
    /* Nothing for a short run. */
    if (!terminal || t - start < 1.0 || t - last < 0.2)
        return;
    last = t;
    if (rows > 0 && done > 0)
        fprintf(stderr, "\r\033[K%s: %llu of %llu rows in %.0f s, now %s", PERF_NAME, (unsigned long long)done,
                (unsigned long long)rows, t - start, now);
    else
        fprintf(stderr, "\r\033[K%s: %llu rows in %.0f s, now %s", PERF_NAME, (unsigned long long)done, t - start, now);
    fflush(stderr);
    shown = 1;
}

void perf_progress_clear(void)
{
    if (shown)
        fputs("\r\033[K", stderr);
    shown = 0;
}
