/* SPDX-License-Identifier: Apache-2.0 */
/* Results worked out by hand, for every tier; and which tier is chosen. */
#include "checkreduce/checkreduce.h"
#include "reduce/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SUM = GRADSYNC_SUM, PROD = GRADSYNC_PROD, MIN = GRADSYNC_MIN, MAX = GRADSYNC_MAX };
enum { F32 = GRADSYNC_F32, F64 = GRADSYNC_F64, F16 = GRADSYNC_F16, BF16 = GRADSYNC_BF16 };
enum { I8 = GRADSYNC_I8, U8 = GRADSYNC_U8, I32 = GRADSYNC_I32, U32 = GRADSYNC_U32 };
enum { I64 = GRADSYNC_I64, U64 = GRADSYNC_U64 };

/* All values as bits. nsrc: how many of src there are. */
static const struct {
    const char *what;
    int dtype, op, nsrc;
    uint64_t src[3], divisor, want;
    const double *scale;
} cases[] = {
    {"1 + 2 = 3", F32, SUM, 2, {0x3f800000, 0x40000000}, 0, 0x40400000, NULL},
    {"2^24 + 1, a tie, goes to even: 2^24", F32, SUM, 2, {0x4b800000, 0x3f800000}, 0, 0x4b800000, NULL},
    {"(2^24 + 1) + 1 from the left: 2^24", F32, SUM, 3, {0x4b800000, 0x3f800000, 0x3f800000}, 0, 0x4b800000, NULL},
    {"(1 + 1) + 2^24: 2^24 + 2", F32, SUM, 3, {0x3f800000, 0x3f800000, 0x4b800000}, 0, 0x4b800001, NULL},
    {"the least denormal, twice", F32, SUM, 2, {1, 1}, 0, 2, NULL},
    {"the least normal less the least denormal", F32, SUM, 2, {0x00800000, 0x80000001}, 0, 0x007fffff, NULL},
    {"-0 + -0 = -0", F32, SUM, 2, {0x80000000, 0x80000000}, 0, 0x80000000, NULL},
    {"-0 + 0 = 0", F32, SUM, 2, {0x80000000, 0}, 0, 0, NULL},
    {"inf - inf is the canonical NaN", F32, SUM, 2, {0x7f800000, 0xff800000}, 0, 0x7fc00000, NULL},
    {"a negative NaN with a payload, too", F32, SUM, 2, {0xffc12345, 0x3f800000}, 0, 0x7fc00000, NULL},
    {"a signalling NaN, alone", F32, SUM, 1, {0x7f800001}, 0, 0x7fc00000, NULL},
    {"max + max = inf", F32, SUM, 2, {0x7f7fffff, 0x7f7fffff}, 0, 0x7f800000, NULL},
    {"min(-0, 0) = -0", F32, MIN, 2, {0x80000000, 0}, 0, 0x80000000, NULL},
    {"min(0, -0) = -0", F32, MIN, 2, {0, 0x80000000}, 0, 0x80000000, NULL},
    {"max(-0, 0) = 0", F32, MAX, 2, {0x80000000, 0}, 0, 0, NULL},
    {"max(0, -0) = 0", F32, MAX, 2, {0, 0x80000000}, 0, 0, NULL},
    {"max(-0, -0) = -0", F32, MAX, 2, {0x80000000, 0x80000000}, 0, 0x80000000, NULL},
    {"max(1, NaN)", F32, MAX, 2, {0x3f800000, 0xffffffff}, 0, 0x7fc00000, NULL},
    {"max(NaN, 1, 2)", F32, MAX, 3, {0x7f900000, 0x3f800000, 0x40000000}, 0, 0x7fc00000, NULL},
    {"min(1, NaN, -inf)", F32, MIN, 3, {0x3f800000, 0x7fc00000, 0xff800000}, 0, 0x7fc00000, NULL},
    {"min of denormals", F32, MIN, 2, {2, 1}, 0, 1, NULL},
    {"1 / 3", F32, SUM, 1, {0x3f800000}, 3, 0x3eaaaaab, NULL},
    {"3 denormals / 2, a tie: 2", F32, SUM, 1, {3}, 2, 2, NULL},
    {"5 denormals / 2, a tie: 2", F32, SUM, 1, {5}, 2, 2, NULL},
    {"1 * 0.5 + 1 * 0.25", F32, SUM, 2, {0x3f800000, 0x3f800000}, 0, 0x3f400000, (const double[]){0.5, 0.25}},
    {"not fused: (1 + 2^-12)^2 - (1 + 2^-11) = 0",
     F32,
     SUM,
     2,
     {0xbf801000, 0x3f800800},
     0,
     0,
     (const double[]){1, 1 + 0x1p-12}},
    {"f64: 1 + 2^-53, a tie: 1", F64, SUM, 2, {0x3ff0000000000000, 0x3ca0000000000000}, 0, 0x3ff0000000000000, NULL},
    {"f64: NaN", F64, PROD, 2, {0xfff0000000000001, 0}, 0, 0x7ff8000000000000, NULL},
    {"f64: max(-0, 0)", F64, MAX, 2, {0x8000000000000000, 0}, 0, 0, NULL},
    {"f64: 10 / 4", F64, SUM, 1, {0x4024000000000000}, 4, 0x4004000000000000, NULL},
    {"f16: 1 + 2 = 3", F16, SUM, 2, {0x3c00, 0x4000}, 0, 0x4200, NULL},
    {"f16: 65504 + 16, a tie: inf", F16, SUM, 2, {0x7bff, 0x4c00}, 0, 0x7c00, NULL},
    {"f16: 65504 + 15.99 = 65504", F16, SUM, 2, {0x7bff, 0x4bff}, 0, 0x7bff, NULL},
    {"f16: 65504 + 65504 - 65504 in f32", F16, SUM, 3, {0x7bff, 0x7bff, 0xfbff}, 0, 0x7bff, NULL},
    {"f16: 2048 + 1 + 1, rounded once: 2050", F16, SUM, 3, {0x6800, 0x3c00, 0x3c00}, 0, 0x6801, NULL},
    {"f16: the least denormal / 2, a tie: 0", F16, SUM, 1, {1}, 2, 0, NULL},
    {"f16: 3 denormals / 2, a tie: 2", F16, SUM, 1, {3}, 2, 2, NULL},
    {"f16: denormals add up to a normal", F16, SUM, 2, {0x03ff, 0x0001}, 0, 0x0400, NULL},
    {"f16: a negative signalling NaN", F16, SUM, 1, {0xfc01}, 0, 0x7e00, NULL},
    {"f16: 2^-14 * -2^-14 = -0", F16, PROD, 2, {0x0400, 0x8400}, 0, 0x8000, NULL},
    {"bf16: 1 + 2 = 3", BF16, SUM, 2, {0x3f80, 0x4000}, 0, 0x4040, NULL},
    {"bf16: 256 + 1, a tie: 256", BF16, SUM, 2, {0x4380, 0x3f80}, 0, 0x4380, NULL},
    {"bf16: 256 + 1 + 1, rounded once: 258", BF16, SUM, 3, {0x4380, 0x3f80, 0x3f80}, 0, 0x4381, NULL},
    {"bf16: max + 2^119, a tie: inf", BF16, SUM, 2, {0x7f7f, 0x7b00}, 0, 0x7f80, NULL},
    {"bf16: the least denormal, twice", BF16, SUM, 2, {1, 1}, 0, 2, NULL},
    {"bf16: a NaN of the lowest payload bit", BF16, SUM, 1, {0x7f81}, 0, 0x7fc0, NULL},
    {"bf16: max(-0, 0)", BF16, MAX, 2, {0x8000, 0}, 0, 0, NULL},
    {"i8: 127 + 1 wraps", I8, SUM, 2, {0x7f, 1}, 0, 0x80, NULL},
    {"i8: -7 / 2 = -3", I8, SUM, 1, {0xf9}, 2, 0xfd, NULL},
    {"i8: the sum wraps before it is divided", I8, SUM, 2, {100, 100}, 2, 0xe4, NULL},
    {"i8: -128 / 200 = 0", I8, SUM, 1, {0x80}, 200, 0, NULL},
    {"i8: -128 * -1 wraps", I8, PROD, 2, {0x80, 0xff}, 0, 0x80, NULL},
    {"i8: min(-1, 1)", I8, MIN, 2, {0xff, 1}, 0, 0xff, NULL},
    {"u8: min(255, 1)", U8, MIN, 2, {0xff, 1}, 0, 1, NULL},
    {"u8: 200 + 100 wraps", U8, SUM, 2, {200, 100}, 0, 44, NULL},
    {"u8: 16 * 16 wraps", U8, PROD, 2, {16, 16}, 0, 0, NULL},
    {"i32: max(-1, 1)", I32, MAX, 2, {0xffffffff, 1}, 0, 1, NULL},
    {"u32: max(2^32 - 1, 1)", U32, MAX, 2, {0xffffffff, 1}, 0, 0xffffffff, NULL},
    {"i32: -7 / 3 = -2", I32, SUM, 2, {0xfffffffa, 0xffffffff}, 3, 0xfffffffe, NULL},
    {"u32: (2^32 - 1) / 2", U32, SUM, 1, {0xffffffff}, 2, 0x7fffffff, NULL},
    {"i64: least / 2^63 = -1", I64, SUM, 1, {0x8000000000000000}, 0x8000000000000000, 0xffffffffffffffff, NULL},
    {"i64: least / (2^63 + 1) = 0", I64, SUM, 1, {0x8000000000000000}, 0x8000000000000001, 0, NULL},
    {"i64: min(-1, 1)", I64, MIN, 2, {0xffffffffffffffff, 1}, 0, 0xffffffffffffffff, NULL},
    {"u64: min(2^64 - 1, 1)", U64, MIN, 2, {0xffffffffffffffff, 1}, 0, 1, NULL},
    {"u64: (2^32 + 1)^2 wraps", U64, PROD, 2, {0x100000001, 0x100000001}, 0, 0x200000001, NULL},
};

/* Enough elements for whole vectors, single ones and a tail. */
enum { COUNT = 331 };

static int run_case(const gsi_reduce_tier *tier, int i)
{
    static uint64_t src[3][COUNT], dst[COUNT];
    const unsigned size = dtype_sizes[cases[i].dtype];
    void *out = dst;
    const void *in[3] = {src[0], src[1], src[2]};
    gsi_reduce_args args = {
        .dst = &out,
        .src = in,
        .scale = cases[i].scale,
        .count = COUNT,
        .divisor = cases[i].divisor,
        .ndst = 1,
        .nsrc = (uint32_t)cases[i].nsrc,
        .dtype = (uint8_t)cases[i].dtype,
        .op = (uint8_t)cases[i].op,
    };

    for (int k = 0; k < cases[i].nsrc; k++)
        for (int e = 0; e < COUNT; e++)
            memcpy((char *)src[k] + e * size, &cases[i].src[k], size); /* little endian, as all our CPUs are */
    memset(dst, 0x5a, sizeof dst);
    tier->reduce(&args);
    for (int e = 0; e < COUNT; e++)
        if (memcmp((char *)dst + e * size, &cases[i].want, size)) {
            uint64_t got = 0;
            memcpy(&got, (char *)dst + e * size, size);
            note("%s: %s: element %d is %llx, not %llx", tier->name, cases[i].what, e, (unsigned long long)got,
                 (unsigned long long)cases[i].want);
            return 0;
        }
    return 1;
}

void check_expected(const options *opt)
{
    const gsi_reduce_tier *tier;

    for (int t = 0; (tier = wanted_tier(opt, t)); t++) {
        int good = 1;
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
            good &= run_case(tier, (int)i);
        check(good, "%s: %d results worked out by hand", tier->name, (int)(sizeof cases / sizeof *cases));
    }
}

/* In a process of its own, as a process chooses once. variable: "" if it is not set. */
static int chosen_is(const char *variable, const char *want)
{
    int status = 0;
    pid_t child;

    fflush(stdout);
    child = fork();
    if (child == 0) {
        if (*variable)
            setenv("GRADSYNC_CPU_TIER", variable, 1);
        else
            unsetenv("GRADSYNC_CPU_TIER");
        _exit(strcmp(gsi_reduce_tier_best()->name, want) || gsi_reduce_tier_best() != gsi_reduce_tier_best());
    }
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void check_choice(void)
{
    const gsi_reduce_tier *tier, *best = gsi_reduce_tier_at(0);

    check(!strcmp(gsi_reduce_tier_at(0)->name, "c"), "the reference comes first");
    for (int i = 0; (tier = gsi_reduce_tier_at(i)); i++)
        if (tier->supported()) {
            if (!GSI_REDUCE_SANITIZED)
                best = tier;
            check(chosen_is(tier->name, tier->name), "GRADSYNC_CPU_TIER=%s is heeded", tier->name);
        }
    check(chosen_is("", best->name), "the tier of choice is %s", best->name);
    check(chosen_is("nonesuch", best->name), "an unknown name gives the tier of choice");
}
