/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "../cli.h"
#include "../launch.h"
#include "perf.h"

static const char help[] =
    "Usage: gradsync-perf [options]\n"
    "Measures and verifies libgradsync's collectives; flags and table as nccl-tests'.\n"
    "Rank and size come from gradsync-run, torchrun, srun or mpirun; or --ranks N starts\n"
    "N local ranks; else there is one rank.\n"
    "\n"
    "What to run\n"
    "      --ranks N             start N local ranks, each on a CPU of its own if there are enough\n"
    "      --coll NAME           all_reduce (default), reduce_scatter, all_gather, broadcast,\n"
    "                            reduce, barrier\n"
    "  -b, --minbytes SIZE       smallest size (default 32M); K, M, G are binary\n"
    "  -e, --maxbytes SIZE       largest size (default 32M)\n"
    "  -i, --stepbytes SIZE      added from size to size (default 1M)\n"
    "  -f, --stepfactor N        multiplied from size to size, instead of -i\n"
    "  -o, --op OP               sum (default), prod, max, min, avg, mulsum, all\n"
    "  -d, --datatype TYPE       int8 uint8 int32 uint32 int64 uint64 half float (default)\n"
    "                            double bfloat16 all\n"
    "  -r, --root RANK           of broadcast and reduce (default 0)\n"
    "      --algo NAME           auto (default), oneshot, direct, staged, ring, tree, doubling,\n"
    "                            pairwise, hierarchical\n"
    "      --ordered             combine the ranks in one fixed order: always the same bits\n"
    "      --transport NAME      auto (default), shm, verbs, tcp\n"
    "      --rails NAMES         network ports to use: auto only in this version\n"
    "      --memory KIND         library: allocated by the library (default); plain: malloc'ed;\n"
    "                            remap: malloc'ed, and moved to shared pages by registering it\n"
    "  -R, --local_register 0|1  register plain memory (default 0)\n"
    "  -z, --blocking 0|1        1: blocking calls (default: the data is in host memory, so there\n"
    "                            is no stream to wait for later); 0: post, then wait\n"
    "  -m, --agg_iters N         post N operations at once, then wait for all (default 1)\n"
    "\n"
    "How to measure\n"
    "  -n, --iters N             measured iterations (default 20)\n"
    "  -w, --warmup_iters N      before them (default 1)\n"
    "  -N, --run_cycles N        run the sizes N times; 0: until interrupted (default 1)\n"
    "  -c, --check 0|1           verify every element, outside the timed loop (default 1)\n"
    "  -a, --average 0|1|2|3     the time is rank 0's, the mean (default), min or max of the ranks\n"
    "  -T, --timeout S           give up when an operation takes S seconds\n"
    "\n"
    "What to print\n"
    "  -C, --report_cputime 0|1  CPU time instead of elapsed time in the time column\n"
    "  -I, --iteration_stats 0|1 columns of per-iteration figures: min, max, p99, variation\n"
    "  -J, --json FILE           the results as JSON\n"
    "      --csv FILE            the results as CSV\n"
    "      --plot FILE.svg|.png  a picture of bandwidth and time over size\n"
    "      --quiet               no progress line (it is for terminals only)\n"
    "  -h, --help                this text\n"
    "  -V, --version             the version\n"
    "\n"
    "Exit status: 0 if all ran and all values were right; 1 if an operation, a rank or an output\n"
    "file failed; 2 for a wrong command line; 3 for wrong values; 128 + number after a signal.\n";

enum {
    OPT_RANKS = 256,
    OPT_COLL,
    OPT_ALGO,
    OPT_ORDERED,
    OPT_TRANSPORT,
    OPT_RAILS,
    OPT_MEMORY,
    OPT_CSV,
    OPT_PLOT,
    OPT_QUIET,
    OPT_STARTED
};

static const struct option longs[] = {{"ranks", required_argument, NULL, OPT_RANKS},
                                      {"coll", required_argument, NULL, OPT_COLL},
                                      {"minbytes", required_argument, NULL, 'b'},
                                      {"maxbytes", required_argument, NULL, 'e'},
                                      {"stepbytes", required_argument, NULL, 'i'},
                                      {"stepfactor", required_argument, NULL, 'f'},
                                      {"op", required_argument, NULL, 'o'},
                                      {"datatype", required_argument, NULL, 'd'},
                                      {"root", required_argument, NULL, 'r'},
                                      {"algo", required_argument, NULL, OPT_ALGO},
                                      {"ordered", no_argument, NULL, OPT_ORDERED},
                                      {"transport", required_argument, NULL, OPT_TRANSPORT},
                                      {"rails", required_argument, NULL, OPT_RAILS},
                                      {"memory", required_argument, NULL, OPT_MEMORY},
                                      {"local_register", required_argument, NULL, 'R'},
                                      {"blocking", required_argument, NULL, 'z'},
                                      {"agg_iters", required_argument, NULL, 'm'},
                                      {"iters", required_argument, NULL, 'n'},
                                      {"warmup_iters", required_argument, NULL, 'w'},
                                      {"run_cycles", required_argument, NULL, 'N'},
                                      {"check", required_argument, NULL, 'c'},
                                      {"average", required_argument, NULL, 'a'},
                                      {"timeout", required_argument, NULL, 'T'},
                                      {"report_cputime", required_argument, NULL, 'C'},
                                      {"iteration_stats", required_argument, NULL, 'I'},
                                      {"json", required_argument, NULL, 'J'},
                                      {"csv", required_argument, NULL, OPT_CSV},
                                      {"plot", required_argument, NULL, OPT_PLOT},
                                      {"quiet", no_argument, NULL, OPT_QUIET},
                                      {&PERF_STARTED_OPTION[2], no_argument, NULL, OPT_STARTED},
                                      {"help", no_argument, NULL, 'h'},
                                      {"version", no_argument, NULL, 'V'},
                                      {NULL, 0, NULL, 0}};

static const struct {
    const char *name;
    int dtype;
} dtype_names[] = {{"int8", GRADSYNC_I8},      {"uint8", GRADSYNC_U8},  {"int32", GRADSYNC_I32},
                   {"uint32", GRADSYNC_U32},   {"int64", GRADSYNC_I64}, {"uint64", GRADSYNC_U64},
                   {"half", GRADSYNC_F16},     {"float", GRADSYNC_F32}, {"double", GRADSYNC_F64},
                   {"bfloat16", GRADSYNC_BF16}};

static const struct {
    const char *name;
    int op;
} op_names[] = {{"sum", GRADSYNC_SUM}, {"prod", GRADSYNC_PROD}, {"max", GRADSYNC_MAX},
                {"min", GRADSYNC_MIN}, {"avg", GRADSYNC_AVG},   {"mulsum", GRADSYNC_PREMUL_SUM}};

const char *perf_dtype_name(int dtype)
{
    for (int i = 0; i < GRADSYNC_DTYPE_COUNT; i++) {
        if (dtype_names[i].dtype == dtype)
            return dtype_names[i].name;
    }
    return "?";
}

const char *perf_op_name(int op)
{
    for (int i = 0; i < GRADSYNC_OP_COUNT; i++) {
        if (op_names[i].op == op)
            return op_names[i].name;
    }
    return "none";
}

const char *perf_memory_name(enum perf_memory memory)
{
    static const char *const names[] = {"library", "plain", "remap"};

    return names[memory];
}

int perf_coll_reduces(int coll)
{
    return coll == GRADSYNC_ALL_REDUCE || coll == GRADSYNC_REDUCE_SCATTER || coll == GRADSYNC_REDUCE;
}

int perf_coll_has_root(int coll)
{
    return coll == GRADSYNC_BROADCAST || coll == GRADSYNC_REDUCE;
}

static int wrong(const char *option, const char *value, const char *expected)
{
    cli_usage_error(PERF_NAME, "%s '%s' is wrong: give %s", option, value, expected);
    return -1;
}

static int take_number(const char *option, const char *value, long long lo, long long hi, long long *out)
{
    char expected[80];

    if (cli_int(value, lo, hi, out) == 0)
        return 0;
    snprintf(expected, sizeof expected, "a whole number from %lld to %lld", lo, hi);
    return wrong(option, value, expected);
}

static int take_flag(const char *option, const char *value, int hi, int *out)
{
    long long number;

    if (take_number(option, value, 0, hi, &number) != 0)
        return -1;
    *out = (int)number;
    return 0;
}

static int take_dtype(perf_options *o, const char *value)
{
    o->ndtypes = 0;
    for (int i = 0; i < GRADSYNC_DTYPE_COUNT; i++) {
        if (strcmp(value, "all") == 0 || strcmp(value, dtype_names[i].name) == 0 ||
            strcmp(value, gradsync_dtype_name(dtype_names[i].dtype)) == 0)
            o->dtypes[o->ndtypes++] = dtype_names[i].dtype;
    }
    if (o->ndtypes > 0)
        return 0;
    if (strcmp(value, "f8e4m3") == 0 || strcmp(value, "f8e5m2") == 0) {
        cli_usage_error(PERF_NAME,
                        "-d %s: UNSUPPORTED: this version of libgradsync has no 8-bit floating types; use half or "
                        "bfloat16",
                        value);
        return -1;
    }
    return wrong("-d", value, "int8, uint8, int32, uint32, int64, uint64, half, float, double, bfloat16 or all");
}

static int take_op(perf_options *o, const char *value)
{
    o->nops = 0;
    for (int i = 0; i < GRADSYNC_OP_COUNT; i++) {
        if (strcmp(value, "all") == 0 || strcmp(value, op_names[i].name) == 0 ||
            strcmp(value, gradsync_op_name(op_names[i].op)) == 0)
            o->ops[o->nops++] = op_names[i].op;
    }
    return o->nops > 0 ? 0 : wrong("-o", value, "sum, prod, max, min, avg, mulsum or all");
}

/* "all_reduce", and "allreduce" or "all-reduce" as others write it. */
static int same_name(const char *a, const char *b)
{
    for (;; a++, b++) {
        while (*a == '_' || *a == '-')
            a++;
        while (*b == '_' || *b == '-')
            b++;
        if (*a != *b)
            return 0;
        if (!*a)
            return 1;
    }
}

static int take_coll(perf_options *o, const char *value)
{
    for (o->coll = 0; o->coll < GRADSYNC_COLL_COUNT; o->coll++) {
        if (same_name(value, gradsync_coll_name(o->coll)))
            return 0;
    }
    if (same_name(value, "alltoall")) {
        cli_usage_error(PERF_NAME, "--coll %s: UNSUPPORTED: this version of libgradsync has no all-to-all", value);
        return -1;
    }
    return wrong("--coll", value, "all_reduce, reduce_scatter, all_gather, broadcast, reduce or barrier");
}

static int take_algo(perf_options *o, const char *value)
{
    for (o->algo = 0; o->algo < GRADSYNC_ALGO_COUNT; o->algo++) {
        if (strcmp(value, gradsync_algo_name(o->algo)) == 0)
            return 0;
    }
    return wrong("--algo", value, "auto, oneshot, direct, staged, ring, tree, doubling, pairwise or hierarchical");
}

static int take_transport(perf_options *o, const char *value)
{
    if (strcmp(value, "auto") != 0 && strcmp(value, "shm") != 0 && strcmp(value, "verbs") != 0 &&
        strcmp(value, "tcp") != 0)
        return wrong("--transport", value, "auto, shm, verbs or tcp");
    o->transport = value;
    return 0;
}

static int take_rails(const char *value)
{
    if (strcmp(value, "auto") == 0)
        return 0;
    cli_usage_error(PERF_NAME,
                    "--rails %s: UNSUPPORTED: this version of libgradsync uses no network rails; leave it out, or "
                    "give auto",
                    value);
    return -1;
}

static int take_memory(perf_options *o, const char *value)
{
    for (int m = PERF_MEMORY_LIBRARY; m <= PERF_MEMORY_REMAP; m++) {
        if (strcmp(value, perf_memory_name((enum perf_memory)m)) == 0) {
            o->memory = (enum perf_memory)m;
            return 0;
        }
    }
    return wrong("--memory", value, "library, plain or remap");
}

static int take_plot(perf_options *o, const char *value)
{
    size_t n = strlen(value);

    if (n < 5 || (strcmp(value + n - 4, ".svg") != 0 && strcmp(value + n - 4, ".png") != 0))
        return wrong("--plot", value, "a file name that ends with .svg or .png");
    o->plot = value;
    return 0;
}

static int take_size(const char *option, const char *value, uint64_t *out)
{
    return cli_bytes(value, out) == 0 ? 0 : wrong(option, value, "bytes, as in 512, 64K, 32M or 1G");
}

static int take_option(perf_options *o, int option, const char *value)
{
    enum { MOST = 1000000000 };
    long long number = 0;
    int rc;

    switch (option) {
    case 'b':
        return take_size("-b", value, &o->min_bytes);
    case 'e':
        return take_size("-e", value, &o->max_bytes);
    case 'i':
        return take_size("-i", value, &o->step_bytes);
    case 'f':
        rc = take_number("-f", value, 1, MOST, &number);
        o->step_factor = (uint64_t)number;
        return rc;
    case 'n':
        return take_number("-n", value, 1, MOST, &o->iters);
    case 'w':
        return take_number("-w", value, 0, MOST, &o->warmup);
    case 'm':
        return take_number("-m", value, 1, 4096, &o->agg);
    case 'N':
        return take_number("-N", value, 0, MOST, &o->cycles);
    case 'c':
        return take_flag("-c", value, 1, &o->check);
    case 'T':
        return cli_double(value, 1e-3, 1e9, &o->timeout_s) == 0 ? 0 : wrong("-T", value, "seconds, over 0");
    case 'o':
        return take_op(o, value);
    case 'd':
        return take_dtype(o, value);
    case 'r':
        rc = take_number("-r", value, 0, MOST, &number);
        o->root = (int)number;
        return rc;
    case 'z':
        return take_flag("-z", value, 1, &o->blocking);
    case 'R':
        return take_flag("-R", value, 1, &o->register_memory);
    case 'a':
        return take_flag("-a", value, 3, &o->average);
    case 'C':
        return take_flag("-C", value, 1, &o->cpu_time);
    case 'I':
        return take_flag("-I", value, 1, &o->per_iteration);
    case 'J':
        o->json = value;
        return *value ? 0 : wrong("--json", value, "a file name");
    case OPT_CSV:
        o->csv = value;
        return *value ? 0 : wrong("--csv", value, "a file name");
    case OPT_PLOT:
        return take_plot(o, value);
    case OPT_RANKS:
        rc = take_number("--ranks", value, 1, LAUNCH_MAX_RANKS, &number);
        o->ranks = (int)number;
        return rc;
    case OPT_COLL:
        return take_coll(o, value);
    case OPT_ALGO:
        return take_algo(o, value);
    case OPT_TRANSPORT:
        return take_transport(o, value);
    case OPT_RAILS:
        return take_rails(value);
    case OPT_MEMORY:
        return take_memory(o, value);
    case OPT_ORDERED:
        o->ordered = 1;
        return 0;
    case OPT_STARTED:
        o->started = 1;
        return 0;
    default:
        o->quiet = 1;
        return 0;
    }
}

/* What can only be judged once all options are known. */
static int check_options(perf_options *o, int min_set, int max_set)
{
    if (!min_set && o->max_bytes < o->min_bytes)
        o->min_bytes = o->max_bytes;
    if (!max_set && o->max_bytes < o->min_bytes)
        o->max_bytes = o->min_bytes;
    if (o->max_bytes < o->min_bytes) {
        cli_usage_error(PERF_NAME, "the smallest size (-b) is larger than the largest (-e)");
        return -1;
    }
    if (o->step_factor <= 1 && o->step_bytes == 0 && o->min_bytes != o->max_bytes) {
        cli_usage_error(PERF_NAME, "-i 0 never gets from -b to -e: give a step, or a factor with -f");
        return -1;
    }
    if (o->max_bytes > UINT64_MAX / 16 / (uint64_t)o->agg) {
        cli_usage_error(PERF_NAME, "-e times -m is more memory than there is");
        return -1;
    }
    if (!perf_coll_reduces(o->coll)) {
        o->nops = 1;
        o->ops[0] = -1;
    }
    if (o->coll == GRADSYNC_BARRIER) {
        o->ndtypes = 1;
        o->min_bytes = o->max_bytes = 0;
    }
    if (o->nops == 1 && o->ops[0] == GRADSYNC_PREMUL_SUM && o->ndtypes == 1 && o->dtypes[0] >= GRADSYNC_I8) {
        cli_usage_error(PERF_NAME, "-o mulsum -d %s: UNSUPPORTED: factors go with floating types only",
                        perf_dtype_name(o->dtypes[0]));
        return -1;
    }
    if (o->ranks > 0 && perf_coll_has_root(o->coll) && o->root >= o->ranks) {
        cli_usage_error(PERF_NAME, "-r %d is no rank: they are 0 to %d", o->root, o->ranks - 1);
        return -1;
    }
    return 0;
}

int perf_parse(perf_options *o, int argc, char **argv)
{
    int option, min_set = 0, max_set = 0;

    *o = (perf_options){
        .min_bytes = 32 << 20,
        .max_bytes = 32 << 20,
        .step_bytes = 1 << 20,
        .iters = 20,
        .warmup = 1,
        .agg = 1,
        .cycles = 1,
        .check = 1,
        .dtypes = {GRADSYNC_F32},
        .ndtypes = 1,
        .ops = {GRADSYNC_SUM},
        .nops = 1,
        .blocking = 1,
        .average = 1,
        .coll = GRADSYNC_ALL_REDUCE,
        .algo = GRADSYNC_ALGO_AUTO,
        .memory = PERF_MEMORY_LIBRARY,
    };
    opterr = 0;
    while ((option = getopt_long(argc, argv, ":b:e:i:f:n:w:m:N:c:T:o:d:r:z:R:a:C:I:J:hV", longs, NULL)) != -1) {
        if (option == 'h') {
            fputs(help, stdout);
            return cli_close_stdout(PERF_NAME) ? PERF_EXIT_FAILED : PERF_EXIT_OK;
        }
        if (option == 'V') {
            cli_print_version(PERF_NAME);
            return cli_close_stdout(PERF_NAME) ? PERF_EXIT_FAILED : PERF_EXIT_OK;
        }
        if (option == '?' || option == ':') {
            cli_option_error(PERF_NAME, option, argv, longs);
            return PERF_EXIT_USAGE;
        }
        min_set |= option == 'b';
        max_set |= option == 'e';
        if (take_option(o, option, optarg) != 0)
            return PERF_EXIT_USAGE;
    }
    if (optind < argc) {
        cli_usage_error(PERF_NAME, "unexpected argument '%s'", argv[optind]);
        return PERF_EXIT_USAGE;
    }
    return check_options(o, min_set, max_set) == 0 ? -1 : PERF_EXIT_USAGE;
}
