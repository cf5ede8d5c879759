/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checkreduce: tests and benches the reduction kernels, after the manner of dav1d's
 * checkasm: the C reference against an independent model, then every tier against
 * the reference, bit for bit, on random shapes, values and flags.
 */
#include "checkreduce/checkreduce.h"
#include "tap.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const char *const dtype_names[GRADSYNC_DTYPE_COUNT] = {"f32", "f64", "f16", "bf16", "i8",
                                                       "u8",  "i32", "u32", "i64",  "u64"};
const unsigned dtype_sizes[GRADSYNC_DTYPE_COUNT] = {4, 8, 2, 2, 1, 1, 4, 4, 8, 8};
const char *const op_names[4] = {"sum", "prod", "min", "max"};

uint64_t random_state;

uint64_t random_bits(void)
{
    uint64_t z = random_state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

uint32_t random_below(uint32_t limit)
{
    return (uint32_t)((random_bits() >> 32) * limit >> 32);
}

int is_float(int dtype)
{
    return dtype <= GRADSYNC_BF16;
}

int is_half(int dtype)
{
    return dtype == GRADSYNC_F16 || dtype == GRADSYNC_BF16;
}

const gsi_reduce_tier *wanted_tier(const options *opt, int index)
{
    const gsi_reduce_tier *tier;

    for (int i = 0; (tier = gsi_reduce_tier_at(i)); i++)
        if (tier->supported() && (!opt->tier || !strcmp(opt->tier, tier->name)) && index-- == 0)
            return tier;
    return NULL;
}

int check(int ok, const char *format, ...)
{
    char line[256];
    va_list args;

    va_start(args, format);
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized) */
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    return tap_ok(ok, "%s", line);
}

void note(const char *format, ...)
{
    char line[512];
    va_list args;

    va_start(args, format);
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized) */
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    tap_note("%s", line);
}

void skip(const char *why)
{
    tap_skip(1, why);
}

static int usage(int status)
{
    fprintf(status ? stderr : stdout,
            "usage: checkreduce [--seed N] [--rounds N] [--quick] [--long] [filters]\n"
            "       checkreduce --bench [--nt] [filters]\n"
            "  --seed N     seed of the random tests (default: from the clock; printed)\n"
            "  --rounds N   times that every shape is tried (default 2)\n"
            "  --quick      few sizes, one round: for emulators\n"
            "  --long       every f32 value to f16 and bf16 as well (a minute or so)\n"
            "  --bench      GB/s (read and written) of every tier, interleaved, medians\n"
            "  --nt         bench with non-temporal stores\n"
            "filters: --dtype f32|f64|f16|bf16|i8|u8|i32|u32|i64|u64  --op sum|prod|min|max\n"
            "  --tier NAME  --nsrc N  --ndst N  --bytes N[K|M|G]  (bytes of a buffer; bench only)\n");
    return status;
}

static int find(const char *name, const char *const *names, int count)
{
    for (int i = 0; i < count; i++)
        if (!strcmp(name, names[i]))
            return i;
    fprintf(stderr, "checkreduce: unknown name: %s\n", name);
    exit(usage(2));
}

static uint64_t number(const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 0);
    const char *units = "KMG", *unit = *end ? strchr(units, *end) : NULL;

    if (end == text || (*end && (!unit || end[1]))) {
        fprintf(stderr, "checkreduce: not a number: %s\n", text);
        exit(usage(2));
    }
    return unit ? value << 10 * (unit - units + 1) : value;
}

int main(int argc, char **argv)
{
    enum { SEED = 1, ROUNDS, QUICK, LONG, BENCH, NT, DTYPE, OP, TIER, NSRC, NDST, BYTES, HELP };
    static const struct option names[] = {
        {"seed", required_argument, NULL, SEED},   {"rounds", required_argument, NULL, ROUNDS},
        {"quick", no_argument, NULL, QUICK},       {"long", no_argument, NULL, LONG},
        {"bench", no_argument, NULL, BENCH},       {"nt", no_argument, NULL, NT},
        {"dtype", required_argument, NULL, DTYPE}, {"op", required_argument, NULL, OP},
        {"tier", required_argument, NULL, TIER},   {"nsrc", required_argument, NULL, NSRC},
        {"ndst", required_argument, NULL, NDST},   {"bytes", required_argument, NULL, BYTES},
        {"help", no_argument, NULL, HELP},         {NULL, 0, NULL, 0},
    };
    options opt = {.rounds = 2, .dtype = -1, .op = -1};
    int c, want_bench = 0, want_long = 0;

    opt.seed = ((uint64_t)time(NULL) << 20 ^ (uint64_t)getpid()) & 0xffffffff;
    while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (c) {
        case SEED:
            opt.seed = number(optarg);
            break;
        case ROUNDS:
            opt.rounds = (int)number(optarg);
            break;
        case QUICK:
            opt.quick = 1;
            opt.rounds = 1;
            break;
        case LONG:
            want_long = 1;
            break;
        case BENCH:
            want_bench = 1;
            break;
        case NT:
            opt.flags = GSI_REDUCE_NT;
            break;
        case DTYPE:
            opt.dtype = find(optarg, dtype_names, GRADSYNC_DTYPE_COUNT);
            break;
        case OP:
            opt.op = find(optarg, op_names, 4);
            break;
        case TIER:
            opt.tier = optarg;
            break;
        case NSRC:
            opt.nsrc = (uint32_t)number(optarg);
            break;
        case NDST:
            opt.ndst = (uint32_t)number(optarg);
            break;
        case BYTES:
            opt.bytes = number(optarg);
            break;
        default:
            return usage(c == HELP ? 0 : 2);
        }
    }
    if (optind < argc || !wanted_tier(&opt, 0) || opt.nsrc > MAX_BUFS || opt.ndst > MAX_BUFS)
        return usage(2);
    random_state = opt.seed;
    if (want_bench) {
        bench(&opt);
        return 0;
    }
    check_choice(); /* first: a process chooses once */
    note("seed %llu", (unsigned long long)opt.seed);
    check_expected(&opt);
    check_conversions(&opt);
    check_model(&opt);
    compare_tiers(&opt);
    compare_copies(&opt);
    if (want_long)
        compare_all_f32(&opt);
    return tap_done();
}
