/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reference against a model that says the same rules in another way: a format is
 * its exponent and fraction widths, a value is taken apart and put together with
 * ldexp and nearbyint in double, and f32 arithmetic is done in double (f64 in
 * quadruple precision) and rounded. Rounding twice like that gives the same as
 * rounding once, as the wider format has over twice the digits, plus two
 * (Figueroa 1995); integers are done in 128 bits.
 */
#include "checkreduce/checkreduce.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int exponent, fraction; /* bits */
} format;

static format format_of(int dtype)
{
    switch (dtype) {
    case GRADSYNC_F16:
        return (format){5, 10};
    case GRADSYNC_BF16:
        return (format){8, 7};
    default:
        return (format){8, 23};
    }
}

static double decode(format f, uint32_t bits)
{
    int bias = (1 << (f.exponent - 1)) - 1, exponent = (int)(bits >> f.fraction) & ((1 << f.exponent) - 1);
    uint32_t fraction = bits & ((1u << f.fraction) - 1);
    double sign = bits >> (f.exponent + f.fraction) ? -1 : 1;

    if (exponent == (1 << f.exponent) - 1)
        return fraction ? NAN : sign * INFINITY;
    if (exponent == 0)
        return sign * ldexp(fraction, 1 - bias - f.fraction);
    return sign * ldexp(1 + ldexp(fraction, -f.fraction), exponent - bias);
}

static uint32_t encode(format f, double value)
{
    int bias = (1 << (f.exponent - 1)) - 1, exponent;
    uint32_t infinity = ((1u << f.exponent) - 1) << f.fraction;
    uint32_t sign = signbit(value) ? 1u << (f.exponent + f.fraction) : 0;

    if (isnan(value))
        return infinity | 1u << (f.fraction - 1);
    if (isinf(value))
        return sign | infinity;
    frexp(value, &exponent); /* value = 0.1... * 2^exponent */
    if (value == 0 || exponent - 1 < 1 - bias)
        exponent = 2 - bias;
    /* In units of the last place; the implicit one, where there is one, adds 1 to the exponent field. */
    double units = nearbyint(ldexp(fabs(value), f.fraction - (exponent - 1)));
    uint64_t bits = ((uint64_t)(exponent - 1 + bias - 1) << f.fraction) + (uint64_t)units;
    return sign | (bits > infinity ? infinity : (uint32_t)bits);
}

/* ---- Conversions ---- */

/* Converts through the tier: one source, f32 on the other side. */
static void convert(const gsi_reduce_tier *tier, int dtype, uint32_t flags, const void *src, void *dst, uint64_t count)
{
    gsi_reduce_args args = {.dst = &dst, .src = &src, .count = count, .ndst = 1, .nsrc = 1};

    args.flags = flags;
    args.dtype = (uint8_t)dtype;
    args.op = GRADSYNC_SUM;
    tier->reduce(&args);
}

static int widen_all(const gsi_reduce_tier *tier, int dtype)
{
    static uint16_t in[65536];
    static uint32_t out[65536];

    for (uint32_t i = 0; i < 65536; i++)
        in[i] = (uint16_t)i;
    convert(tier, dtype, GSI_REDUCE_ACC_OUT, in, out, 65536);
    for (uint32_t i = 0; i < 65536; i++) {
        double value = decode(format_of(dtype), i);
        if (out[i] != encode(format_of(GRADSYNC_F32), value)) {
            note("%s %04x widens to %08x, which is not %a", dtype_names[dtype], i, out[i], value);
            return 0;
        }
    }
    return 1;
}

/* Every value, the middle between it and the next, and what is next to these. */
static int narrow_edges(const gsi_reduce_tier *tier, int dtype)
{
    static uint32_t in[65536];
    static uint16_t out[65536];
    const format f32 = format_of(GRADSYNC_F32), f = format_of(dtype);

    for (int edge = -2; edge <= 4; edge++) {
        for (uint32_t i = 0; i < 65536; i++) {
            double value = decode(f, i), next = decode(f, (i + 1) & 0xffff);
            if (edge > 2) /* any f32, with the magnitude of an f16 or not */
                in[i] = edge == 3 ? (uint32_t)random_bits() : (uint32_t)(random_bits() & 0x8fffffff) + 0x30000000;
            else if (isfinite(value) && isinf(next)) /* the middle would be with 2^16, or 2^128 */
                in[i] = encode(f32, value) + (1u << (22 - f.fraction)) + (uint32_t)edge;
            else
                in[i] = encode(f32, edge == -2 ? value : (value + next) / 2) + (edge == -2 ? 0 : (uint32_t)edge);
        }
        convert(tier, dtype, GSI_REDUCE_ACC_IN, in, out, 65536);
        for (uint32_t i = 0; i < 65536; i++) {
            double value = decode(f32, in[i]);
            if (out[i] != encode(f, value)) {
                note("%08x (%a) narrows to %s %04x, not %04x", in[i], value, dtype_names[dtype], out[i],
                     encode(f, value));
                return 0;
            }
        }
    }
    return 1;
}

/* The compiler's own half type, where it has one. */
#ifdef __FLT16_MANT_DIG__
static int compiler_agrees(const gsi_reduce_tier *tier)
{
    static uint32_t in[1 << 16];
    static uint16_t out[1 << 16];

    for (int round = 0; round < 16; round++) {
        for (uint32_t i = 0; i < 1 << 16; i++)
            in[i] = round < 4 ? (uint32_t)random_bits() : (uint32_t)(random_bits() & 0x8fffffff) + 0x30000000;
        convert(tier, GRADSYNC_F16, GSI_REDUCE_ACC_IN, in, out, 1 << 16);
        for (uint32_t i = 0; i < 1 << 16; i++) {
            float wide;
            _Float16 half;
            uint16_t bits;
            memcpy(&wide, &in[i], sizeof wide);
            half = (_Float16)wide;
            memcpy(&bits, &half, sizeof bits);
            if (isnan(wide) ? out[i] != 0x7e00 : out[i] != bits) {
                note("%08x narrows to %04x, the compiler says %04x", in[i], out[i], bits);
                return 0;
            }
        }
    }
    return 1;
}
#endif

void check_conversions(const options *opt)
{
    const gsi_reduce_tier *tier;

    for (int i = 0; (tier = wanted_tier(opt, i)); i++) {
        for (int dtype = GRADSYNC_F16; dtype <= GRADSYNC_BF16; dtype++) {
            check(widen_all(tier, dtype), "%s: all 65536 %s to f32", tier->name, dtype_names[dtype]);
            check(narrow_edges(tier, dtype), "%s: f32 to %s, at all edges", tier->name, dtype_names[dtype]);
        }
#ifdef __FLT16_MANT_DIG__
        check(compiler_agrees(tier), "%s: f32 to f16 as the compiler does", tier->name);
#else
        skip("this compiler has no _Float16 for this CPU");
#endif
    }
}

/* ---- Reductions ---- */

/* f32 and the half types: one element. All values that pass through here are f32. */
static double round_f32(double value)
{
    return decode(format_of(GRADSYNC_F32), encode(format_of(GRADSYNC_F32), value));
}

static double extreme(int op, double a, double b)
{
    int a_first = a < b || (a == b && signbit(a)); /* in the order of min */

    if (isnan(a) || isnan(b))
        return NAN;
    return (op == GRADSYNC_MIN) == a_first ? a : b;
}

static uint64_t bits_at(const void *array, uint64_t i, unsigned size)
{
    uint64_t bits = 0;

    memcpy(&bits, (const char *)array + i * size, size);
    return bits;
}

static uint64_t model_f32(const gsi_reduce_args *args, uint64_t i)
{
    const int in = args->flags & GSI_REDUCE_ACC_IN ? GRADSYNC_F32 : args->dtype;
    const int out = args->flags & GSI_REDUCE_ACC_OUT ? GRADSYNC_F32 : args->dtype;
    double acc = 0;

    for (uint32_t k = 0; k < args->nsrc; k++) {
        int dtype = k ? args->dtype : in;
        double value = decode(format_of(dtype), (uint32_t)bits_at(args->src[k], i, dtype_sizes[dtype]));
        if (args->scale)
            value = round_f32(value * round_f32(args->scale[k]));
        if (k == 0)
            acc = value;
        else if (args->op == GRADSYNC_SUM)
            acc = round_f32(acc + value);
        else if (args->op == GRADSYNC_PROD)
            acc = round_f32(acc * value);
        else
            acc = extreme(args->op, acc, value);
    }
    if (args->divisor > 1) {
        /* From 64 bits to 24 in one rounding: of the digits that a double lacks, it matters only that there are any. */
        uint64_t divisor = args->divisor;
        double wide = divisor >> 53 ? ldexp((double)(divisor >> 11 | ((divisor & 0x7ff) != 0)), 11) : (double)divisor;
        acc = round_f32(acc / round_f32(wide));
    }
    return encode(format_of(out), acc);
}

#if LDBL_MANT_DIG == 113
#define HAVE_QUAD 1
typedef long double quad;
#elif defined(__SIZEOF_FLOAT128__)
#define HAVE_QUAD 1
typedef __float128 quad;
#else
#define HAVE_QUAD 0
#endif

#if HAVE_QUAD
static uint64_t model_f64(const gsi_reduce_args *args, uint64_t i)
{
    double acc = 0;
    uint64_t bits;

    for (uint32_t k = 0; k < args->nsrc; k++) {
        double value;
        bits = bits_at(args->src[k], i, 8);
        memcpy(&value, &bits, 8);
        if (args->scale)
            value = (double)((quad)value * (quad)args->scale[k]);
        if (k == 0)
            acc = value;
        else if (args->op == GRADSYNC_SUM)
            acc = (double)((quad)acc + (quad)value);
        else if (args->op == GRADSYNC_PROD)
            acc = (double)((quad)acc * (quad)value);
        else
            acc = extreme(args->op, acc, value);
    }
    if (args->divisor > 1)
        acc = (double)((quad)acc / (quad)(double)(quad)args->divisor);
    memcpy(&bits, &acc, 8);
    return isnan(acc) ? UINT64_C(0x7ff8000000000000) : bits;
}
#endif

__extension__ typedef __int128 wide_int;
__extension__ typedef unsigned __int128 wide_unsigned;

static uint64_t model_int(const gsi_reduce_args *args, uint64_t i)
{
    const int dtype = args->dtype, bits = (int)dtype_sizes[dtype] * 8;
    const int is_signed = dtype == GRADSYNC_I8 || dtype == GRADSYNC_I32 || dtype == GRADSYNC_I64;
    const wide_int modulus = (wide_int)1 << bits;
    wide_int acc = 0;

    for (uint32_t k = 0; k < args->nsrc; k++) {
        wide_int value = bits_at(args->src[k], i, dtype_sizes[dtype]);
        if (is_signed && value >= modulus / 2)
            value -= modulus;
        if (k == 0)
            acc = value;
        else if (args->op == GRADSYNC_SUM)
            acc += value;
        else if (args->op == GRADSYNC_PROD)
            acc = is_signed ? acc * value
                            : (wide_int)((wide_unsigned)acc * (wide_unsigned)value % (wide_unsigned)modulus);
        else
            acc = (args->op == GRADSYNC_MIN) == (value < acc) ? value : acc;
        /* To the range of the type. */
        acc = (acc % modulus + modulus) % modulus;
        if (is_signed && acc >= modulus / 2)
            acc -= modulus;
    }
    if (args->divisor > 1)
        acc /= (wide_int)args->divisor;
    return (uint64_t)((acc % modulus + modulus) % modulus);
}

enum { MODEL_COUNT = 37 };

static int model_once(int dtype, int op)
{
    static uint64_t in[MAX_BUFS][MODEL_COUNT], out[2][MODEL_COUNT];
    const void *src[MAX_BUFS];
    void *dst[2] = {out[0], out[1]};
    double scale[MAX_BUFS];
    gsi_reduce_args args = {.dst = dst, .src = src, .count = MODEL_COUNT, .ndst = 2};
    unsigned out_size = dtype_sizes[dtype];

    args.dtype = (uint8_t)dtype;
    args.op = (uint8_t)op;
    args.nsrc = 1 + random_below(6);
    if (is_half(dtype))
        args.flags = random_below(4) * GSI_REDUCE_ACC_IN;
    if (is_half(dtype) && args.flags & GSI_REDUCE_ACC_OUT)
        out_size = 4;
    for (uint32_t k = 0; k < args.nsrc; k++) {
        src[k] = in[k];
        fill_values(in[k], k == 0 && args.flags & GSI_REDUCE_ACC_IN ? GRADSYNC_F32 : dtype, MODEL_COUNT);
        fill_values(&scale[k], GRADSYNC_F64, 1);
    }
    if (random_below(2))
        args.divisor = random_bits() >> random_below(64);
    if (is_float(dtype) && random_below(3) == 0)
        args.scale = scale;
    gsi_reduce_tier_at(0)->reduce(&args);
    for (uint64_t i = 0; i < MODEL_COUNT; i++) {
        uint64_t want;
#if HAVE_QUAD
        if (dtype == GRADSYNC_F64)
            want = model_f64(&args, i);
        else
#endif
            want = is_float(dtype) ? model_f32(&args, i) : model_int(&args, i);
        for (int d = 0; d < 2; d++)
            if (bits_at(out[d], i, out_size) != want) {
                note("%s %s: nsrc %u flags %u divisor %llu scaled %d: %llx, model %llx", dtype_names[dtype],
                     op_names[op], args.nsrc, args.flags, (unsigned long long)args.divisor, args.scale != NULL,
                     (unsigned long long)bits_at(out[d], i, out_size), (unsigned long long)want);
                return 0;
            }
    }
    return 1;
}

void check_model(const options *opt)
{
    for (int dtype = 0; dtype < GRADSYNC_DTYPE_COUNT; dtype++)
        for (int op = 0; op < 4; op++) {
            int good = 1, n = opt->quick ? 20 : 400;
            if (opt->dtype >= 0 && opt->dtype != dtype)
                continue;
            if (dtype == GRADSYNC_F64 && !HAVE_QUAD) {
                skip("no quadruple precision here");
                continue;
            }
            for (int k = 0; k < n && good; k++)
                good = model_once(dtype, op);
            check(good, "c: %s %s as the model says", dtype_names[dtype], op_names[op]);
        }
}
