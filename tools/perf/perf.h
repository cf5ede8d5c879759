/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of gradsync-perf share. See gradsync-perf(1). */
#ifndef TOOLS_PERF_H
#define TOOLS_PERF_H

#include <stdint.h>

#include <gradsync/gradsync.h>

#define PERF_NAME "gradsync-perf"
/* How --ranks starts its ranks: with this in front of the other arguments. */
#define PERF_STARTED_OPTION "--started-by-ranks"

enum {
    PERF_EXIT_OK = 0,
    PERF_EXIT_FAILED = 1, /* an operation, a rank or an output file failed */
    PERF_EXIT_USAGE = 2,
    PERF_EXIT_WRONG = 3, /* everything ran, and there were wrong values */
};

enum perf_memory { PERF_MEMORY_LIBRARY, PERF_MEMORY_PLAIN, PERF_MEMORY_REMAP };

typedef struct perf_options {
    uint64_t min_bytes, max_bytes, step_bytes;
    uint64_t step_factor; /* 0 or 1: step_bytes counts */
    long long iters, warmup, agg, cycles;
    int check;
    double timeout_s; /* 0: the library's default */
    int dtypes[GRADSYNC_DTYPE_COUNT], ndtypes;
    int ops[GRADSYNC_OP_COUNT], nops;
    int root;
    int blocking;
    int register_memory;
    int average; /* as -a: 0 rank 0, 1 mean, 2 min, 3 max */
    int cpu_time;
    int per_iteration;
    int ranks;   /* 0: from the environment */
    int started; /* 1: as one of --ranks */
    int coll;
    int algo;
    int ordered;
    const char *transport;
    enum perf_memory memory;
    const char *json, *csv, *plot; /* NULL: none */
    int quiet;
} perf_options;

/* Reads the command line. Returns -1 to go on, or an exit status (help, version,
 * or a usage error, which it has said). */
int perf_parse(perf_options *o, int argc, char **argv);

/* Names as nccl-tests writes them: "float", "mulsum". */
const char *perf_dtype_name(int dtype);
const char *perf_op_name(int op);
const char *perf_memory_name(enum perf_memory memory);
int perf_coll_reduces(int coll);
int perf_coll_has_root(int coll);

enum { PERF_OUT_OF_PLACE, PERF_IN_PLACE, PERF_PLACES };

/* One placement of one row, combined over the ranks. Times in microseconds. */
typedef struct perf_result {
    double time_us;        /* what the table shows: per operation, as -a and -C ask */
    double wall_us;        /* per operation, as -a asks */
    double cpu_us;         /* CPU time per operation, mean over the ranks */
    double algbw, busbw;   /* 1e9 bytes a second, from wall_us */
    double cpu_s_per_gb;   /* CPU seconds of a rank per 1e9 bytes of message */
    double min_us, max_us; /* over iterations; of each the slowest rank */
    double p50_us, p95_us, p99_us, mean_us, stdev_us;
    double wrong;    /* elements, over all ranks; -1: not checked */
    double guards;   /* damaged bytes around the buffers, over all ranks */
    double *rank_us; /* wall time per operation of each rank; owned */
} perf_result;

typedef struct perf_row {
    uint64_t bytes, count;
    int dtype, op, root; /* op, root: -1 if there is none */
    int algo;            /* that ran, in place; -1 unknown */
    long long cycle;
    perf_result place[PERF_PLACES];
} perf_row;

/* One rank, as all of them tell it. */
typedef struct perf_rank {
    gradsync_peer_info peer;
    char cpu_model[96], cpu_tier[16];
} perf_rank;

/* Everything that the output needs to know about a run. */
typedef struct perf_run {
    const perf_options *options;
    int rank, nranks;
    gradsync_comm_info comm;
    perf_rank *ranks;          /* owned */
    gradsync_rail_info *rails; /* comm.nrails of them; owned */
    perf_row *rows;            /* owned; on rank 0 only */
    uint64_t nrows, room;
    double wrong, guards; /* so far */
    double sum_busbw;     /* over rows and placements */
    uint64_t nbusbw;
    int stopped;      /* by a signal */
    char started[32]; /* UTC, ISO 8601 */
} perf_run;

#endif
