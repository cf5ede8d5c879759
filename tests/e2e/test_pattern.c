/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gradsync-perf's test data holds what it claims: reduced in random orders and
 * groupings, no step ever rounds, so there is one right result; it is the expected
 * one; and a single flipped bit, a shift or an old result does not pass for it.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <gradsync/gradsync.h>

#include "perf/pattern.h"
#include "tap.h"

enum { COUNT = 61, MOST_RANKS = 1000 };

static uint64_t seed = 88172645463325252u;

static uint64_t next(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* Significant bits, and the exponents of the least and the largest power of two. */
static const struct {
    int dtype, digits, low, high;
} kinds[] = {{GRADSYNC_F32, 24, -126, 127},
             {GRADSYNC_F64, 53, -1022, 1023},
             {GRADSYNC_F16, 11, -14, 15},
             {GRADSYNC_BF16, 8, -126, 127}};

static int digits, low, high; /* of the type under test */

/* 1 if x is a normal value (or 0) of the type, exactly. */
static int holds(double x)
{
    int exponent;
    double fraction = ldexp(frexp(x, &exponent), digits);

    return x == 0 || (fraction == floor(fraction) && exponent - 1 >= low && exponent - 1 <= high);
}

/* From bits and to bits, by the definition of the formats. */
static double decode(int dtype, const void *at)
{
    uint64_t bits = 0;
    int width = dtype == GRADSYNC_F64 ? 64 : dtype == GRADSYNC_F32 ? 32 : 16;

    memcpy(&bits, at, (size_t)width / 8); /* little endian, as every host of this library */
    int stored = digits - 1;
    uint64_t fraction = bits & (((uint64_t)1 << stored) - 1);
    int exponent = (int)((bits & (((uint64_t)1 << (width - 1)) - 1)) >> stored);
    double sign = bits >> (width - 1) ? -1 : 1;

    if (exponent == 0)
        return sign * ldexp((double)fraction, low - stored);
    return sign * ldexp((double)(fraction | (uint64_t)1 << stored), exponent - high - stored);
}

static void encode(int dtype, double x, void *at)
{
    int width = dtype == GRADSYNC_F64 ? 64 : dtype == GRADSYNC_F32 ? 32 : 16;
    int stored = digits - 1, exponent;
    uint64_t bits = 0;

    if (x != 0) {
        double fraction = frexp(fabs(x), &exponent);
        bits = (uint64_t)ldexp(fraction, digits) & (((uint64_t)1 << stored) - 1);
        bits |= (uint64_t)(exponent - 1 + high) << stored;
        bits |= (uint64_t)(x < 0) << (width - 1);
    }
    memcpy(at, &bits, (size_t)width / 8);
}

static double combine(int op, double a, double b)
{
    switch (op) {
    case GRADSYNC_PROD:
        return a * b;
    case GRADSYNC_MIN:
        return a < b ? a : b;
    case GRADSYNC_MAX:
        return a > b ? a : b;
    default:
        return a + b;
    }
}

/* Reduces n values by merging random pairs; *rounded counts steps that do not fit the type. */
static double reduce(int op, double *x, int n, int *rounded)
{
    while (n > 1) {
        int a = (int)(next() % (uint64_t)n), b = (int)(next() % (uint64_t)(n - 1));

        b += b >= a;
        x[a] = combine(op, x[a], x[b]);
        *rounded += !holds(x[a]);
        x[b] = x[--n];
    }
    return x[0];
}

static unsigned char data[MOST_RANKS][COUNT * 8], result[COUNT * 8];

static void test_float(int kind, int op, int nranks)
{
    pattern p = {.dtype = kinds[kind].dtype, .op = op, .nranks = nranks, .seed = next()};
    size_t size = gradsync_dtype_size(p.dtype);
    static double x[MOST_RANKS];
    int rounded = 0, alike = 0;

    digits = kinds[kind].digits;
    low = kinds[kind].low;
    high = kinds[kind].high;
    for (int r = 0; r < nranks; r++)
        pattern_fill(&p, r, 5, data[r], COUNT);
    for (int i = 0; i < COUNT; i++) {
        for (int r = 0; r < nranks; r++) {
            x[r] = decode(p.dtype, data[r] + (size_t)i * size);
            if (op == GRADSYNC_PREMUL_SUM)
                x[r] *= pattern_prescale(r);
            rounded += !holds(x[r]);
        }
        double y = reduce(op, x, nranks, &rounded);
        if (op == GRADSYNC_AVG)
            y /= nranks;
        rounded += !holds(y);
        encode(p.dtype, y, result + (size_t)i * size);
        alike += memcmp(result + (size_t)i * size, result, size) == 0;
    }
    tap_ok(rounded == 0 && pattern_count_wrong(&p, 5, result, COUNT) == 0, "%s %s over %d ranks is exact",
           gradsync_dtype_name(p.dtype), gradsync_op_name(op), nranks);
    if (alike == COUNT)
        tap_ok(0, "%s %s over %d ranks: all results are the same", gradsync_dtype_name(p.dtype), gradsync_op_name(op),
               nranks);
}

static uint64_t get(int dtype, const void *at)
{
    switch (dtype) {
    case GRADSYNC_I8:
        return (uint64_t) * (const int8_t *)at;
    case GRADSYNC_U8:
        return *(const uint8_t *)at;
    case GRADSYNC_I32: {
        int32_t v;
        memcpy(&v, at, 4);
        return (uint64_t)v;
    }
    case GRADSYNC_U32: {
        uint32_t v;
        memcpy(&v, at, 4);
        return v;
    }
    default: {
        uint64_t v;
        memcpy(&v, at, 8);
        return v;
    }
    }
}

/* Integers, reduced with the width of the type. */
static void test_integer(int dtype, int op, int nranks)
{
    pattern p = {.dtype = dtype, .op = op, .nranks = nranks, .seed = next()};
    size_t size = gradsync_dtype_size(dtype);
    int is_signed = dtype == GRADSYNC_I8 || dtype == GRADSYNC_I32 || dtype == GRADSYNC_I64;

    for (int r = 0; r < nranks; r++)
        pattern_fill(&p, r, 0, data[r], COUNT);
    for (int i = 0; i < COUNT; i++) {
        uint64_t y = get(dtype, data[nranks - 1] + (size_t)i * size);

        for (int r = nranks - 2; r >= 0; r--) {
            uint64_t v = get(dtype, data[r] + (size_t)i * size);
            int smaller = is_signed ? (int64_t)v < (int64_t)y : v < y;

            y = op == GRADSYNC_PROD  ? y * v
                : op == GRADSYNC_MIN ? (smaller ? v : y)
                : op == GRADSYNC_MAX ? (smaller ? y : v)
                                     : y + v;
            memcpy(result + (size_t)i * size, &y, size);
            y = get(dtype, result + (size_t)i * size);
        }
        if (op == GRADSYNC_AVG)
            y = is_signed ? (uint64_t)((int64_t)y / nranks) : y / (uint64_t)nranks;
        memcpy(result + (size_t)i * size, &y, size);
    }
    tap_ok(pattern_count_wrong(&p, 0, result, COUNT) == 0, "%s %s over %d ranks", gradsync_dtype_name(dtype),
           gradsync_op_name(op), nranks);
}

static void test_detection(void)
{
    enum { MANY = PATTERN_PERIOD + 1000 };
    pattern p = {.dtype = GRADSYNC_F32, .op = GRADSYNC_SUM, .nranks = 1, .seed = 1};
    float *x = malloc(MANY * sizeof *x);

    if (!x)
        abort();
    /* One rank's sum is its own contribution. */
    pattern_fill(&p, 0, 0, x, MANY);
    tap_ok(pattern_count_wrong(&p, 0, x, MANY) == 0, "a right result is right, over the period's end too");
    tap_ok(pattern_count_changed(&p, 0, 0, x, MANY) == 0, "and unchanged");
    for (int bit = 0; bit < 32; bit += 31) {
        uint32_t bits;
        memcpy(&bits, x + PATTERN_PERIOD + 3, 4);
        bits ^= (uint32_t)1 << bit;
        memcpy(x + PATTERN_PERIOD + 3, &bits, 4);
        tap_ok(pattern_count_wrong(&p, 0, x, MANY) == 1, "a flipped bit %d is one wrong element", bit);
        bits ^= (uint32_t)1 << bit;
        memcpy(x + PATTERN_PERIOD + 3, &bits, 4);
    }
    tap_ok(pattern_count_wrong(&p, 1, x, MANY) > MANY / 2, "data shifted by an element is wrong");
    tap_ok(pattern_count_wrong(&p, 1024, x, MANY) > MANY / 2, "data shifted by a chunk is wrong");
    p.seed = 2;
    tap_ok(pattern_count_wrong(&p, 0, x, MANY) > MANY / 2, "an older result is wrong");
    p.op = -1;
    pattern_fill(&p, 3, 0, x, MANY);
    tap_ok(pattern_count_changed(&p, 3, 0, x, MANY) == 0 && pattern_count_changed(&p, 2, 0, x, MANY) > MANY / 2,
           "one rank's data is not another's");
    free(x);
}

int main(void)
{
    static const int ranks[] = {1, 2, 3, 7, 8, 64, 300, MOST_RANKS};

    for (size_t n = 0; n < sizeof ranks / sizeof ranks[0]; n++) {
        for (int op = 0; op < GRADSYNC_OP_COUNT; op++) {
            for (int k = 0; k < 4; k++)
                test_float(k, op, ranks[n]);
            for (int t = GRADSYNC_I8; t < GRADSYNC_DTYPE_COUNT && op != GRADSYNC_PREMUL_SUM; t++)
                test_integer(t, op, ranks[n]);
        }
    }
    test_detection();
    return tap_done();
}
