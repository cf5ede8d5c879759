/* SPDX-License-Identifier: Apache-2.0 */
#include "reference.h"

#include <math.h>
#include <string.h>

/* splitmix64 (Steele, Lea & Flood 2014). */
uint64_t reference_random(uint64_t seed, uint64_t i)
{
    uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int is_float(int dtype)
{
    return dtype <= GRADSYNC_BF16;
}

/* ---- f16 and bf16 by exact arithmetic in double -------------------------------- */

static double decode(uint32_t bits, int exponent_bits, int mantissa_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1;
    uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
    int exponent = (int)(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
    double sign = bits >> (mantissa_bits + exponent_bits) ? -1 : 1;

    if (exponent == (1 << exponent_bits) - 1)
        return mantissa ? NAN : sign * INFINITY;
    if (exponent == 0)
        return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * ldexp(mantissa + (1u << mantissa_bits), exponent - bias - mantissa_bits);
}

/* Rounds a float (exact as double) to the nearest, ties to even. */
static uint32_t encode(float value, int exponent_bits, int mantissa_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1, exponent;
    uint32_t sign = signbit(value) ? 1u << (exponent_bits + mantissa_bits) : 0;
    uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
    double v = fabs((double)value);

    if (isnan(value))
        return infinity | 1u << (mantissa_bits - 1);
    if (isinf(value))
        return sign | infinity;
    if (v == 0)
        return sign;
    frexp(v, &exponent);
    exponent--; /* v = 1.xxx * 2^exponent */
    if (exponent < 1 - bias)
        exponent = 1 - bias;
    double units = nearbyint(ldexp(v, mantissa_bits - exponent)); /* the unit is one ulp; ties to even */
    uint64_t bits = ((uint64_t)(exponent + bias - 1) << mantissa_bits) + (uint64_t)units;
    return sign | (bits >= infinity ? infinity : (uint32_t)bits);
}

static float load_half(const void *p, int dtype)
{
    uint16_t bits;
    memcpy(&bits, p, 2);
    return (float)(dtype == GRADSYNC_F16 ? decode(bits, 5, 10) : decode(bits, 8, 7));
}

static void store_half(void *p, int dtype, float value)
{
    uint16_t bits = (uint16_t)(dtype == GRADSYNC_F16 ? encode(value, 5, 10) : encode(value, 8, 7));
    memcpy(p, &bits, 2);
}

/* ---- Contributions -------------------------------------------------------------- */

/* The largest contribution with which partial sums are exact in any order: bf16 holds whole
 * numbers up to 2^8, f16 up to 2^11. */
static int reach_of(const reference_case *c)
{
    int exact = c->dtype == GRADSYNC_BF16 ? 1 << 8 : c->dtype == GRADSYNC_F16 ? 1 << 11 : 1 << 24, scale = 1;

    for (int r = 0; r < c->n && c->scaled; r++)
        scale = c->scale[r] > scale ? (int)c->scale[r] : scale;
    int reach = exact / (scale * c->n * (c->op == GRADSYNC_AVG ? c->n : 1));
    return reach > 15 ? 15 : reach < 1 ? 1 : reach;
}

static void make_element(const reference_case *c, int rank, uint64_t i, void *out)
{
    uint64_t bits = reference_random(c->seed ^ (uint64_t)rank << 48, i);
    size_t size = gradsync_dtype_size(c->dtype);

    if (!is_float(c->dtype) || c->data == REFERENCE_WILD) {
        /* Some special values more often than chance would have it. */
        if (is_float(c->dtype) && (bits >> 60) == 0)
            bits = (bits >> 56 & 1) ? 0 : ~(uint64_t)0 << 63 >> (64 - 8 * size);
        memcpy(out, &bits, size);
        return;
    }
    int reach = reach_of(c);
    float value = c->op == GRADSYNC_PROD ? (bits & 1 ? 1.0f : -1.0f) * (bits & 6 ? 1.0f : 2.0f)
                                         : (float)((int)(bits % (2 * (uint64_t)reach + 1)) - reach);
    if (c->op == GRADSYNC_AVG)
        value *= (float)c->n; /* so that the mean is whole */
    double wide = (double)value;
    if (c->dtype == GRADSYNC_F32)
        memcpy(out, &value, 4);
    else if (c->dtype == GRADSYNC_F64)
        memcpy(out, &wide, 8);
    else
        store_half(out, c->dtype, value);
}

void reference_fill(const reference_case *c, int rank, uint64_t first, uint64_t elements, void *buf)
{
    size_t size = gradsync_dtype_size(c->dtype);
    for (uint64_t i = 0; i < elements; i++)
        make_element(c, rank, first + i, (char *)buf + i * size);
}

uint64_t reference_send_count(const reference_case *c, int rank)
{
    if (c->coll == GRADSYNC_BARRIER || (c->coll == GRADSYNC_BROADCAST && rank != c->root))
        return 0;
    return c->coll == GRADSYNC_REDUCE_SCATTER ? c->count * (uint64_t)c->n : c->count;
}

uint64_t reference_recv_count(const reference_case *c, int rank)
{
    if (c->coll == GRADSYNC_BARRIER || (c->coll == GRADSYNC_REDUCE && rank != c->root))
        return 0;
    return c->coll == GRADSYNC_ALL_GATHER ? c->count * (uint64_t)c->n : c->count;
}

/* ---- Reductions in the canonical order ------------------------------------------- */

#define MIN_MAX(name, type)                                                                                            \
    static type name(int op, type a, type b)                                                                           \
    {                                                                                                                  \
        if (a != a || b != b)                                                                                          \
            return (type)NAN;                                                                                          \
        if (a == b)                                                                                                    \
            return (signbit(a) != 0) == (op == GRADSYNC_MIN) ? a : b;                                                  \
        return (a < b) == (op == GRADSYNC_MIN) ? a : b;                                                                \
    }
MIN_MAX(min_max_f32, float)
MIN_MAX(min_max_f64, double)
#undef MIN_MAX

static float combine_f32(int op, float a, float b)
{
    if (op == GRADSYNC_PROD)
        return a * b;
    return op == GRADSYNC_MIN || op == GRADSYNC_MAX ? min_max_f32(op, a, b) : a + b;
}

static double combine_f64(int op, double a, double b)
{
    if (op == GRADSYNC_PROD)
        return a * b;
    return op == GRADSYNC_MIN || op == GRADSYNC_MAX ? min_max_f64(op, a, b) : a + b;
}

static void expect_f32(const reference_case *c, uint64_t i, void *out)
{
    static const uint32_t nan_bits = 0x7fc00000;
    float acc = 0;

    for (int r = 0; r < c->n; r++) {
        char raw[8];
        float x;
        make_element(c, r, i, raw);
        if (c->dtype == GRADSYNC_F32)
            memcpy(&x, raw, 4);
        else
            x = load_half(raw, c->dtype);
        if (c->scaled)
            x *= (float)c->scale[r];
        acc = r ? combine_f32(c->op, acc, x) : x;
    }
    if (c->op == GRADSYNC_AVG)
        acc /= (float)c->n;
    if (c->dtype != GRADSYNC_F32)
        store_half(out, c->dtype, acc);
    else if (isnan(acc))
        memcpy(out, &nan_bits, 4);
    else
        memcpy(out, &acc, 4);
}

static void expect_f64(const reference_case *c, uint64_t i, void *out)
{
    static const uint64_t nan_bits = 0x7ff8000000000000;
    double acc = 0;

    for (int r = 0; r < c->n; r++) {
        double x;
        make_element(c, r, i, &x);
        if (c->scaled)
            x *= c->scale[r];
        acc = r ? combine_f64(c->op, acc, x) : x;
    }
    if (c->op == GRADSYNC_AVG)
        acc /= (double)c->n;
    if (isnan(acc))
        memcpy(out, &nan_bits, 8);
    else
        memcpy(out, &acc, 8);
}

/* Sign-extended (or not) to 64 bits, reduced there, cut to size: wraps as the type does. */
static void expect_integer(const reference_case *c, uint64_t i, void *out)
{
    size_t size = gradsync_dtype_size(c->dtype);
    int is_signed = c->dtype == GRADSYNC_I8 || c->dtype == GRADSYNC_I32 || c->dtype == GRADSYNC_I64;
    int shift = 64 - 8 * (int)size;
    uint64_t acc = 0;

    for (int r = 0; r < c->n; r++) {
        uint64_t x = 0;
        make_element(c, r, i, &x);
        x <<= shift;
        x = is_signed ? (uint64_t)((int64_t)x >> shift) : x >> shift;
        if (r == 0)
            acc = x;
        else if (c->op == GRADSYNC_PROD)
            acc *= x;
        else if (c->op == GRADSYNC_MIN || c->op == GRADSYNC_MAX) {
            int less = is_signed ? (int64_t)x < (int64_t)acc : x < acc;
            acc = x == acc || less == (c->op == GRADSYNC_MIN) ? x : acc;
        } else
            acc += x;
        acc <<= shift;
        acc = is_signed ? (uint64_t)((int64_t)acc >> shift) : acc >> shift;
    }
    if (c->op == GRADSYNC_AVG)
        acc = is_signed ? (uint64_t)((int64_t)acc / c->n) : acc / (uint64_t)c->n;
    memcpy(out, &acc, size);
}

uint64_t reference_check(const reference_case *c, int rank, const void *recv, uint64_t *first_wrong)
{
    size_t size = gradsync_dtype_size(c->dtype);
    uint64_t elements = reference_recv_count(c, rank), wrong = 0;

    for (uint64_t i = 0; i < elements; i++) {
        unsigned char want[8];
        if (c->coll == GRADSYNC_ALL_GATHER) {
            make_element(c, (int)(i / c->count), i % c->count, want);
        } else if (c->coll == GRADSYNC_BROADCAST) {
            make_element(c, c->root, i, want);
        } else {
            uint64_t at = c->coll == GRADSYNC_REDUCE_SCATTER ? (uint64_t)rank * c->count + i : i;
            if (c->dtype == GRADSYNC_F64)
                expect_f64(c, at, want);
            else if (is_float(c->dtype))
                expect_f32(c, at, want);
            else
                expect_integer(c, at, want);
        }
        if (memcmp(want, (const char *)recv + i * size, size) && wrong++ == 0)
            *first_wrong = i;
    }
    return wrong;
}
