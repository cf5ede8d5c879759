/* SPDX-License-Identifier: Apache-2.0 */
/* gradsync-perf: measures and verifies collectives. See gradsync-perf(1). */
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../cli.h"
#include "../launch.h"
#include "measure.h"
#include "perf.h"
#include "report.h"
#include "table.h"

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    interrupted = number;
}

/* The first SIGINT or SIGTERM ends the run after the row that is being measured,
 * the second one at once. */
static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART | (int)SA_RESETHAND};

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* As mpirun does: with a CPU for every rank each has its own, or the scheduler may let two share one for a while. */
static int has_cpu_each(int ranks)
{
    cpu_set_t cpus;
    return sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) >= ranks;
}

/* Starts this program again, options->ranks times, with the environment of gradsync-run. */
static int start_ranks(const perf_options *o, int argc, char **argv)
{
    static char self[PATH_MAX];
    launch_config c = {.name = PERF_NAME,
                       .ranks = o->ranks,
                       .output = LAUNCH_OUTPUT_RAW,
                       .stdin_rank = -1,
                       .grace_s = 10,
                       .bind_core = has_cpu_each(o->ranks)};
    perf_files files;

    /* Rank 0 will open them; what is wrong with them is known sooner here. */
    if (perf_files_open(&files, o) != 0)
        return PERF_EXIT_FAILED;
    perf_files_drop(&files);
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0 || access(self, X_OK) != 0)
        strcpy(self, "/proc/self/exe");
    char **args = calloc((size_t)argc + 2, sizeof *args);
    if (!args) {
        cli_error(PERF_NAME, "no memory");
        return PERF_EXIT_FAILED;
    }
    args[0] = argv[0];
    args[1] = (char *)(uintptr_t)PERF_STARTED_OPTION;
    memcpy(args + 2, argv + 1, (size_t)(argc - 1) * sizeof *args);
    c.path = self;
    c.argv = args;
    int status = launch(&c);
    free(args);
    return status;
}

static int keep_row(perf_run *run, const perf_row *row)
{
    if (run->nrows == run->room) {
        uint64_t room = run->room ? run->room * 2 : 64;
        perf_row *rows = realloc(run->rows, room * sizeof *rows);

        if (!rows) {
            cli_error(PERF_NAME, "no memory for %llu rows of results", (unsigned long long)room);
            return -1;
        }
        run->rows = rows;
        run->room = room;
    }
    run->rows[run->nrows++] = *row;
    return 0;
}

static void count_row(perf_run *run, const perf_row *row)
{
    for (int place = 0; place < PERF_PLACES; place++) {
        if (row->place[place].wrong > 0)
            run->wrong += row->place[place].wrong;
        run->guards += row->place[place].guards;
        run->sum_busbw += row->place[place].busbw;
        run->nbusbw++;
    }
}

static uint64_t next_size(const perf_options *o, uint64_t size)
{
    if (o->step_factor > 1)
        return size == 0 ? 1 : size > UINT64_MAX / o->step_factor ? UINT64_MAX : size * o->step_factor;
    return size > UINT64_MAX - o->step_bytes ? UINT64_MAX : size + o->step_bytes;
}

static uint64_t count_sizes(const perf_options *o)
{
    uint64_t n = 0;

    for (uint64_t size = o->min_bytes; size <= o->max_bytes; size = next_size(o, size)) {
        n++;
        if (size == o->max_bytes)
            break;
    }
    return n;
}

/* All sizes of one type and operation. Returns 0, or -1 after saying why. */
static int run_sizes(perf_bench *b, perf_run *run, int dtype, int op, long long cycle, uint64_t *done, uint64_t rows)
{
    const perf_options *o = run->options;
    uint64_t last = UINT64_MAX;

    for (uint64_t size = o->min_bytes; size <= o->max_bytes; size = next_size(o, size)) {
        perf_row row = {.dtype = dtype, .op = op, .cycle = cycle, .algo = -1};
        char now[64];
        int stop = 0;

        perf_row_shape(o, run->nranks, size, &row);
        (*done)++;
        /* Slices that do not fill whole elements make several sizes one. */
        if (row.bytes != last) {
            last = row.bytes;
            if (run->rank == 0) {
                snprintf(now, sizeof now, "%llu B %s", (unsigned long long)row.bytes, perf_dtype_name(dtype));
                perf_progress(o, *done - 1, rows, now);
            }
            if (perf_bench_row(b, &row, &interrupted, &stop) != 0)
                return -1;
            count_row(run, &row);
            if (run->rank == 0) {
                perf_progress_clear();
                perf_table_row(run, &row);
            }
            if (run->rank != 0 || !(o->json || o->csv || o->plot)) {
                for (int place = 0; place < PERF_PLACES; place++)
                    free(row.place[place].rank_us);
            } else if (keep_row(run, &row) != 0) {
                return -1;
            }
        }
        if (stop) {
            run->stopped = 1;
            return 0;
        }
        if (size == o->max_bytes)
            break;
    }
    return 0;
}

static int run_all(perf_bench *b, perf_run *run)
{
    const perf_options *o = run->options;
    uint64_t done = 0, rows = count_sizes(o) * (uint64_t)(o->ndtypes * o->nops) * (uint64_t)o->cycles;

    for (long long cycle = 0; (o->cycles == 0 || cycle < o->cycles) && !run->stopped; cycle++) {
        for (int d = 0; d < o->ndtypes && !run->stopped; d++) {
            for (int i = 0; i < o->nops && !run->stopped; i++) {
                if (o->ops[i] == GRADSYNC_PREMUL_SUM && o->dtypes[d] >= GRADSYNC_I8) {
                    if (run->rank == 0 && cycle == 0 && o->ndtypes == 1)
                        perf_table_note("mulsum is left out: it goes with floating types only");
                    done += count_sizes(o);
                    continue;
                }
                if (run_sizes(b, run, o->dtypes[d], o->ops[i], cycle, &done, rows) != 0)
                    return -1;
            }
        }
    }
    return 0;
}

static void free_run(perf_run *run)
{
    for (uint64_t i = 0; i < run->nrows; i++) {
        for (int place = 0; place < PERF_PLACES; place++)
            free(run->rows[i].place[place].rank_us);
    }
    free(run->rows);
    free(run->ranks);
    free(run->rails);
}

/* One rank, from joining the job to the exit status. */
static int run_rank(const perf_options *o)
{
    perf_run run = {.options = o};
    perf_files files;
    time_t now = time(NULL);
    struct tm utc;

    gmtime_r(&now, &utc);
    strftime(run.started, sizeof run.started, "%Y-%m-%dT%H:%M:%SZ", &utc);
    perf_bench *b = perf_bench_open(o, &run);
    if (!b) {
        free_run(&run);
        return PERF_EXIT_FAILED;
    }
    int opened = run.rank != 0 || perf_files_open(&files, o) == 0;
    int ok = perf_bench_agree(b, !opened) == 0 && perf_bench_buffers(b) == 0;
    catch_signals();
    if (ok && run.rank == 0)
        perf_table_head(&run);
    ok = ok && run_all(b, &run) == 0;
    if (run.rank == 0)
        perf_progress_clear();
    perf_bench_close(b);
    if (ok && run.rank == 0) {
        perf_table_foot(&run);
        ok = perf_files_write(&files, &run) == 0;
    } else if (run.rank == 0 && opened) {
        perf_files_drop(&files);
    }
    if (cli_close_stdout(PERF_NAME) != 0)
        ok = 0;
    int status = !ok                                            ? PERF_EXIT_FAILED
                 : run.rank == 0 && run.wrong + run.guards > 0  ? PERF_EXIT_WRONG
                 : run.stopped && interrupted && o->cycles != 0 ? 128 + interrupted
                                                                : PERF_EXIT_OK;
    free_run(&run);
    return status;
}

int main(int argc, char **argv)
{
    perf_options options;
    int status = perf_parse(&options, argc, argv);

    if (status >= 0)
        return status;
    return options.ranks > 0 && !options.started ? start_ranks(&options, argc, argv) : run_rank(&options);
}
