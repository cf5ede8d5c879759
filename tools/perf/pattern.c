/* SPDX-License-Identifier: Apache-2.0 */
#include "pattern.h"

#include <string.h>

#include <gradsync/gradsync.h>

/* splitmix64's finaliser: every bit of the input moves every bit of the output. */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t draw(const pattern *p, int rank, uint64_t index)
{
    return mix(mix(p->seed ^ (uint64_t)rank << 40) ^ index);
}

/* What a rank gives of an integer type; odd factors, for even ones soon make 0. */
static uint64_t integer_contribution(const pattern *p, int rank, uint64_t index)
{
    if (p->op != GRADSYNC_PROD)
        return draw(p, rank, index);
    return p->steady ? 1 : draw(p, rank, index) | 1;
}

static int floating(int dtype)
{
    return dtype <= GRADSYNC_BF16;
}

/* Up to here, every whole number is a value of the type. */
static int64_t exact_limit(int dtype)
{
    switch (dtype) {
    case GRADSYNC_F64:
        return (int64_t)1 << 53;
    case GRADSYNC_F32:
        return 1 << 24;
    case GRADSYNC_F16:
        return 1 << 11;
    default:
        return 1 << 8;
    }
}

/* A whole number in [-most, most]. */
static int64_t within(uint64_t bits, int64_t most)
{
    return (int64_t)(bits % (uint64_t)(2 * most + 1)) - most;
}

double pattern_prescale(int rank)
{
    static const double factors[] = {0.5, 1, 2};

    return factors[rank % 3];
}

/* A rank's contribution of a floating type: number / 2^shift, in a common scale. */
typedef struct value {
    int64_t number;
    int shift;
} value;

/*
 * Sums: with contributions of at most limit / nranks, all partial sums are exact.
 * With more ranks than that, only every stride-th rank gives other than 0 (which
 * ones depends on the element).
 * Averages: an offset common to all ranks, and pairs of ranks that cancel; so the
 * sum divides by the ranks.
 * Products: at most 7 ranks give a power of two other than +-1.
 */
static value contribution(const pattern *p, int rank, uint64_t index)
{
    uint64_t bits = draw(p, rank, index), common = draw(p, -1, index) >> 8;
    int64_t limit = exact_limit(p->dtype);
    int n = p->nranks;

    switch (p->op) {
    case GRADSYNC_MIN:
    case GRADSYNC_MAX:
        return (value){within(bits, limit), 0};
    case GRADSYNC_PROD: {
        int sign = bits & 1 ? -1 : 1;
        int place = (int)(((uint64_t)rank + common) % (uint64_t)n);

        if (p->steady || place >= 7)
            return (value){sign, 0};
        return (value){bits & 2 ? 2 * sign : sign, bits & 4 ? 1 : 0};
    }
    case GRADSYNC_AVG: {
        int64_t most = limit / 2 / n;

        if (most == 0) { /* too many ranks: one of them gives the whole sum, if the type has it */
            int64_t odd = n;

            while (odd % 2 == 0)
                odd /= 2;
            int giver = (int)(common % (uint64_t)n) == rank && odd <= limit;
            return (value){giver ? within(common >> 20, 1) * n : 0, 0};
        }
        int64_t offset = within(common, most);
        if (rank == n - 1 && n % 2 == 1)
            return (value){offset, 0};
        /* A partial sum in any order holds at most half of the pairs on one side. */
        int64_t half = within(draw(p, rank / 2 + (1 << 20), index), most);
        return (value){offset + (rank % 2 ? -half : half), 0};
    }
    default: {
        /* With its factor (1/2, 1 or 2) a rank's part is number / 2, number or 2 * number. */
        int spread = p->op == GRADSYNC_PREMUL_SUM ? 4 : 1;
        int64_t most = limit / spread / n;
        uint64_t stride = most > 0 ? 1 : (uint64_t)((n * spread + limit - 1) / limit);

        if (stride > 1 && ((uint64_t)rank + common) % stride != 0)
            return (value){0, 0};
        return (value){within(bits, most > 0 ? most : 1) * (spread == 4 ? 2 : 1), 0};
    }
    }
}

/* number / 2^shift, which the caller knows to be a value of the type. */
static double real(value v)
{
    return (double)v.number / (double)(1 << v.shift);
}

/* Bits of a binary16 or bfloat16 for a number that it holds exactly. */
static uint16_t small_float(double x, int dtype)
{
    float f = (float)x;
    uint32_t bits;

    memcpy(&bits, &f, sizeof bits);
    if (dtype == GRADSYNC_BF16)
        return (uint16_t)(bits >> 16);
    if ((bits & 0x7fffffff) == 0)
        return (uint16_t)(bits >> 16);
    int exponent = (int)((bits >> 23) & 0xff) - 127 + 15; /* normal numbers only: 1 .. 30 */
    return (uint16_t)((bits >> 16 & 0x8000) | (uint32_t)exponent << 10 | (bits >> 13 & 0x3ff));
}

static void store_float(int dtype, double x, void *out)
{
    float f = (float)x;
    uint16_t small;

    switch (dtype) {
    case GRADSYNC_F64:
        memcpy(out, &x, 8);
        return;
    case GRADSYNC_F32:
        memcpy(out, &f, 4);
        return;
    default:
        small = small_float(x, dtype);
        memcpy(out, &small, 2);
    }
}

static void store_bits(int dtype, uint64_t x, void *out)
{
    uint8_t b = (uint8_t)x;
    uint16_t h = (uint16_t)x;
    uint32_t w = (uint32_t)x;

    switch (gradsync_dtype_size(dtype)) {
    case 1:
        memcpy(out, &b, 1);
        return;
    case 2:
        memcpy(out, &h, 2);
        return;
    case 4:
        memcpy(out, &w, 4);
        return;
    default:
        memcpy(out, &x, 8);
    }
}

/* The type's value of the low bits of x, sign-extended for signed types. */
static uint64_t as_integer(int dtype, uint64_t x)
{
    switch (dtype) {
    case GRADSYNC_I8:
        return (uint64_t)(int64_t)(int8_t)(uint8_t)x;
    case GRADSYNC_U8:
        return (uint8_t)x;
    case GRADSYNC_I32:
        return (uint64_t)(int64_t)(int32_t)(uint32_t)x;
    case GRADSYNC_U32:
        return (uint32_t)x;
    default:
        return x;
    }
}

static int is_signed(int dtype)
{
    return dtype == GRADSYNC_I8 || dtype == GRADSYNC_I32 || dtype == GRADSYNC_I64;
}

static int less(int dtype, uint64_t a, uint64_t b)
{
    return is_signed(dtype) ? (int64_t)a < (int64_t)b : a < b;
}

static void integer_result(const pattern *p, uint64_t index, void *out)
{
    uint64_t acc = as_integer(p->dtype, integer_contribution(p, 0, index));

    for (int r = 1; r < p->nranks; r++) {
        uint64_t x = as_integer(p->dtype, integer_contribution(p, r, index));

        if (p->op == GRADSYNC_PROD)
            acc *= x;
        else if (p->op == GRADSYNC_MIN || p->op == GRADSYNC_MAX)
            acc = less(p->dtype, x, acc) == (p->op == GRADSYNC_MIN) ? x : acc;
        else
            acc += x;
    }
    acc = as_integer(p->dtype, acc);
    if (p->op == GRADSYNC_AVG) {
        /* -2^63 / -1 cannot happen: the divisor is positive. */
        acc = is_signed(p->dtype) ? (uint64_t)((int64_t)acc / p->nranks) : acc / (uint64_t)p->nranks;
    }
    store_bits(p->dtype, acc, out);
}

static void float_result(const pattern *p, uint64_t index, void *out)
{
    value v = contribution(p, 0, index);
    int64_t acc = v.number;
    int shift = v.shift;

    if (p->op == GRADSYNC_PREMUL_SUM)
        acc = (int64_t)((double)v.number * pattern_prescale(0));
    for (int r = 1; r < p->nranks; r++) {
        v = contribution(p, r, index);
        switch (p->op) {
        case GRADSYNC_PROD:
            acc *= v.number;
            shift += v.shift;
            break;
        case GRADSYNC_MIN:
            acc = v.number < acc ? v.number : acc;
            break;
        case GRADSYNC_MAX:
            acc = v.number > acc ? v.number : acc;
            break;
        case GRADSYNC_PREMUL_SUM:
            acc += (int64_t)((double)v.number * pattern_prescale(r));
            break;
        default:
            acc += v.number;
        }
    }
    if (p->op == GRADSYNC_AVG)
        acc /= p->nranks;
    store_float(p->dtype, real((value){acc, shift}), out);
}

static void store_contribution(const pattern *p, int rank, uint64_t index, void *out)
{
    if (p->op < 0 || !floating(p->dtype)) {
        store_bits(p->dtype, integer_contribution(p, rank, index), out);
    } else {
        store_float(p->dtype, real(contribution(p, rank, index)), out);
    }
}

/* ---- Whole buffers ------------------------------------------------------------ */

/* One period of values, or as much of one as is needed; one thread uses it. */
static uint64_t table[PATTERN_PERIOD];

/* Makes the table from element `first` on (at index 0), for rank, or -1: the result. */
static void make_table(const pattern *p, int rank, uint64_t first, uint64_t count)
{
    size_t size = gradsync_dtype_size(p->dtype);
    uint64_t n = count < PATTERN_PERIOD ? count : PATTERN_PERIOD;
    unsigned char *at = (unsigned char *)table;

    for (uint64_t i = 0; i < n; i++, at += size) {
        uint64_t index = (first + i) % PATTERN_PERIOD;

        if (rank >= 0)
            store_contribution(p, rank, index, at);
        else if (floating(p->dtype))
            float_result(p, index, at);
        else
            integer_result(p, index, at);
    }
}

void pattern_fill(const pattern *p, int rank, uint64_t first, void *out, uint64_t count)
{
    size_t size = gradsync_dtype_size(p->dtype);
    unsigned char *at = out;

    make_table(p, rank, first, count);
    while (count > 0) {
        uint64_t n = count < PATTERN_PERIOD ? count : PATTERN_PERIOD;

        memcpy(at, table, n * size);
        at += n * size;
        count -= n;
    }
}

static uint64_t count_different(const unsigned char *at, uint64_t count, size_t size)
{
    uint64_t wrong = 0;

    while (count > 0) {
        uint64_t n = count < PATTERN_PERIOD ? count : PATTERN_PERIOD;
        const unsigned char *want = (const unsigned char *)table;

        if (memcmp(at, want, n * size) != 0) {
            for (uint64_t i = 0; i < n; i++)
                wrong += memcmp(at + i * size, want + i * size, size) != 0;
        }
        at += n * size;
        count -= n;
    }
    return wrong;
}

uint64_t pattern_count_changed(const pattern *p, int rank, uint64_t first, const void *data, uint64_t count)
{
    make_table(p, rank, first, count);
    return count_different(data, count, gradsync_dtype_size(p->dtype));
}

uint64_t pattern_count_wrong(const pattern *p, uint64_t first, const void *data, uint64_t count)
{
    make_table(p, -1, first, count);
    return count_different(data, count, gradsync_dtype_size(p->dtype));
}
