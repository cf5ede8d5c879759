/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reduction loop, written once for all vector tiers. A tier's .c file defines
 * the vector operations below for its instructions and then includes this file,
 * which gives it reduce() and copy(). dtype and op are always constants here, so
 * each use inlines to a loop of its own with nothing left to decide.
 *
 * A unit is one register of elements as they lie in memory. A unit of f16 or bf16
 * widens to two registers of f32, in whatever order of elements suits the tier.
 *
 *   vec                               one register of VEC_BYTES bytes
 *   vec_load, vec_store, vec_stream   stream: non-temporal, to an aligned address
 *   vec_widen(dtype, p, v)            f16, bf16: a unit at p to two registers of f32
 *   vec_narrow(dtype, v)              and back, rounded to nearest even; v holds no NaN but the canonical one
 *   vec_order(dtype, v), vec_unorder  from two registers of f32 in memory's order to the tier's, and back
 *   vec_op(dtype, op, a, b)           dtype is what is computed in, never a half type; NaN: any NaN
 *   vec_mul, vec_div                  floats
 *   vec_splat(dtype, value)           a double, cast to the type
 *   vec_canonical(dtype, units, wide, v)  makes every NaN in units * wide registers the canonical one
 *   vec_fence()                       orders streamed stores before all later stores
 *   VEC_PARTIAL                       1: there are vec_load_part(p, bytes), vec_store_part(p, v, bytes) and
 *                                     vec_expand(dtype, unit, v); bytes may be anything from 0
 *                                     0: the reference does what fills no unit
 */
#ifndef GSI_REDUCE_KERNEL_H
#define GSI_REDUCE_KERNEL_H

#include "reduce/fpenv.h"
#include "reduce/internal.h"

#include <string.h>

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

#define UNITS     4 /* in flight for every source */
#define MAX_FIXED 8 /* most sources of a loop unrolled over them */

/* A reduction under way. The loops copy what they need of the arguments into it,
 * so that stores to the outputs cannot force it to be read again. */
typedef struct {
    const void *const *src;
    void *const *dst;
    unsigned nsrc, ndst;
    int stream; /* try non-temporal stores */
    /* Extras: what only sums have. */
    int acc_in, acc_out; /* f16, bf16: src[0], the outputs are f32 */
    const double *scale; /* or NULL */
    enum { KEEP, MULTIPLY, DIVIDE } finish;
    double factor; /* of finish */
} job;

/* How a step is compiled: all constants. */
typedef struct {
    int dtype, op;
    int units;                /* done at once */
    int fixed_src, fixed_dst; /* nsrc, ndst are constants: unroll over them; fixed_dst never streams */
    int extras;               /* heed the job's extras */
} how;

/* What elements of dtype are computed in. */
GSI_ALWAYS_INLINE int computed(int dtype)
{
    return gsi_is_half(dtype) ? GRADSYNC_F32 : dtype;
}

/* Registers that a unit of dtype widens to. */
GSI_ALWAYS_INLINE int width(int dtype)
{
    return gsi_is_half(dtype) ? 2 : 1;
}

GSI_ALWAYS_INLINE vec load_some(const char *p, unsigned part)
{
#if VEC_PARTIAL
    if (part)
        return vec_load_part(p, part < VEC_BYTES ? part : VEC_BYTES);
#endif
    (void)part;
    return vec_load(p);
}

GSI_ALWAYS_INLINE void store_some(char *p, vec v, unsigned part, int stream)
{
#if VEC_PARTIAL
    if (part) {
        vec_store_part(p, v, part < VEC_BYTES ? part : VEC_BYTES);
        return;
    }
#endif
    (void)part;
    if (stream)
        vec_stream(p, v);
    else
        vec_store(p, v);
}

/* Reads one unit; part: its bytes if it is not whole, else 0. */
GSI_ALWAYS_INLINE void load_unit(int dtype, const char *p, unsigned part, vec v[2])
{
    if (!gsi_is_half(dtype)) {
        v[0] = load_some(p, part);
        return;
    }
#if VEC_PARTIAL
    if (part) {
        vec_expand(dtype, vec_load_part(p, part), v);
        return;
    }
#endif
    vec_widen(dtype, p, v);
}

/* The second of two registers of f32 that belong to a unit of part bytes, 0: whole. */
GSI_ALWAYS_INLINE int second_empty(unsigned part)
{
    return part && part * 2 <= VEC_BYTES;
}

GSI_ALWAYS_INLINE void load_unit_f32(int dtype, const char *p, unsigned part, vec v[2])
{
    v[0] = load_some(p, part * 2);
    v[1] = second_empty(part) ? v[0] : load_some(p + VEC_BYTES, part ? part * 2 - VEC_BYTES : 0);
    vec_order(dtype, v);
}

GSI_ALWAYS_INLINE void multiply(const how h, vec acc[UNITS][2], double factor)
{
    const vec splat = vec_splat(computed(h.dtype), factor);

    UNROLL for (int u = 0; u < h.units; u++) for (int w = 0; w < width(h.dtype); w++) acc[u][w] =
        vec_mul(computed(h.dtype), acc[u][w], splat);
}

/* Loads from the first source, `at` bytes into it (twice as many if it is f32 for a half type). */
GSI_ALWAYS_INLINE void first_source(const how h, const job *j, uint64_t at, unsigned part, vec acc[UNITS][2])
{
    const char *p = j->src[0];

    if (h.extras && j->acc_in) {
        for (int u = 0; u < h.units; u++)
            load_unit_f32(h.dtype, p + 2 * at + u * 2 * VEC_BYTES, part, acc[u]);
    } else {
        UNROLL for (int u = 0; u < h.units; u++) load_unit(h.dtype, p + at + u * VEC_BYTES, part, acc[u]);
    }
    if (h.extras && j->scale)
        multiply(h, acc, j->scale[0]);
}

GSI_ALWAYS_INLINE void next_source(const how h, const job *j, unsigned k, uint64_t at, unsigned part, vec acc[UNITS][2])
{
    const int type = computed(h.dtype);
    const char *p = (const char *)j->src[k] + at;
    vec value[2];

    UNROLL for (int u = 0; u < h.units; u++)
    {
        load_unit(h.dtype, p + u * VEC_BYTES, part, value);
        for (int w = 0; w < width(h.dtype); w++) {
            if (h.extras && j->scale)
                value[w] = vec_mul(type, value[w], vec_splat(type, j->scale[k]));
            acc[u][w] = vec_op(type, h.op, acc[u][w], value[w]);
        }
    }
}

GSI_ALWAYS_INLINE void finish(const how h, const job *j, vec acc[UNITS][2])
{
    const int type = computed(h.dtype);

    if (h.extras && j->finish == MULTIPLY)
        multiply(h, acc, j->factor);
    if (h.extras && j->finish == DIVIDE)
        for (int u = 0; u < h.units; u++)
            for (int w = 0; w < width(h.dtype); w++)
                acc[u][w] = vec_div(type, acc[u][w], vec_splat(type, j->factor));
    if (gsi_is_float(type))
        vec_canonical(type, h.units, width(h.dtype), acc);
}

GSI_ALWAYS_INLINE void store_units(const how h, const job *j, uint64_t at, unsigned part, vec acc[UNITS][2])
{
    if (gsi_is_half(h.dtype)) {
        UNROLL for (int u = 0; u < h.units; u++) acc[u][0] = vec_narrow(h.dtype, acc[u]);
    }
    if (h.fixed_dst) {
        UNROLL for (unsigned d = 0; d < j->ndst; d++)
        {
            UNROLL for (int u = 0; u < h.units; u++) vec_store((char *)j->dst[d] + at + u * VEC_BYTES, acc[u][0]);
        }
        return;
    }
    for (unsigned d = 0; d < j->ndst; d++) {
        char *p = (char *)j->dst[d] + at;
        if (j->stream && (uintptr_t)p % VEC_BYTES == 0) {
            UNROLL for (int u = 0; u < h.units; u++) store_some(p + u * VEC_BYTES, acc[u][0], part, 1);
        } else {
            UNROLL for (int u = 0; u < h.units; u++) store_some(p + u * VEC_BYTES, acc[u][0], part, 0);
        }
    }
}

GSI_ALWAYS_INLINE void store_f32(const how h, const job *j, uint64_t at, unsigned part, vec acc[UNITS][2])
{
    for (int u = 0; u < h.units; u++)
        vec_unorder(h.dtype, acc[u]);
    for (unsigned d = 0; d < j->ndst; d++) {
        char *p = (char *)j->dst[d] + at;
        int stream = j->stream && (uintptr_t)p % VEC_BYTES == 0;
        for (int u = 0; u < h.units; u++, p += 2 * VEC_BYTES) {
            store_some(p, acc[u][0], part * 2, stream);
            if (!second_empty(part))
                store_some(p + VEC_BYTES, acc[u][1], part ? part * 2 - VEC_BYTES : 0, stream);
        }
    }
}

/* Reduces h.units units from element i on; part: the bytes of the only one if it is not whole, else 0. */
GSI_ALWAYS_INLINE void step(const how h, const job *j, uint64_t i, unsigned part)
{
    const uint64_t at = i * gsi_elem_size(h.dtype);
    vec acc[UNITS][2];

    first_source(h, j, at, part, acc);
    if (h.fixed_src) {
        UNROLL for (unsigned k = 1; k < j->nsrc; k++) next_source(h, j, k, at, part, acc);
    } else {
        for (unsigned k = 1; k < j->nsrc; k++)
            next_source(h, j, k, at, part, acc);
    }
    finish(h, j, acc);
    if (h.extras && j->acc_out)
        store_f32(h, j, 2 * at, part, acc);
    else
        store_units(h, j, at, part, acc);
}

/* ---- Loops ---- */

/* Elements [i, end) one unit at a time. */
GSI_ALWAYS_INLINE void unit_steps(const gsi_reduce_args *args, const job *j, uint64_t i, uint64_t end, int dtype,
                                  int op, int extras)
{
    const uint64_t elems = VEC_BYTES / gsi_elem_size(dtype);
    const how one = {dtype, op, 1, 0, 0, extras};

#if VEC_PARTIAL
    (void)args;
    for (; i < end; i += elems) {
        unsigned part = (unsigned)(end - i < elems ? end - i : elems) * gsi_elem_size(dtype);
        if (part == 0 || part > VEC_BYTES) /* tells the compiler that no step is whole: one kind will do */
            __builtin_unreachable();
        step(one, j, i, part);
    }
#else
    for (; end - i >= elems; i += elems)
        step(one, j, i, 0);
    if (i < end)
        gsi_reduce_c_range(args, i, end);
#endif
}

/* Short messages, and what the other loops leave: less than UNITS units. Such a
 * message is all overhead, so this calls nothing and needs next to no stack. */
GSI_ALWAYS_INLINE void loop_short(const gsi_reduce_args *args, uint64_t i, uint64_t end, int dtype, int op)
{
    const job j = {.src = args->src, .dst = args->dst, .nsrc = args->nsrc, .ndst = args->ndst};

    unit_steps(args, &j, i, end, dtype, op, 0);
}

/* Any number of sources. Returns where it stopped. */
GSI_ALWAYS_INLINE uint64_t loop_any(const gsi_reduce_args *args, uint64_t i, int dtype, int op)
{
    const uint64_t elems = UNITS * VEC_BYTES / gsi_elem_size(dtype), end = args->count;
    const how many = {dtype, op, UNITS, 0, 0, 0};
    job j = {.src = args->src, .dst = args->dst, .nsrc = args->nsrc, .ndst = args->ndst};

    j.stream = (args->flags & GSI_REDUCE_NT) != 0;
    for (; end - i >= elems; i += elems)
        step(many, &j, i, 0);
    return i;
}

/* nsrc constant, and ndst if it is not 0; the pointers in registers. Returns where it stopped. */
GSI_ALWAYS_INLINE uint64_t sum_fixed(const gsi_reduce_args *args, uint64_t i, int dtype, unsigned nsrc, unsigned ndst)
{
    const uint64_t elems = UNITS * VEC_BYTES / gsi_elem_size(dtype), end = args->count;
    const how many = {dtype, GRADSYNC_SUM, UNITS, 1, ndst != 0, 0};
    const void *src[MAX_FIXED];
    void *dst[MAX_FIXED];
    job j = {.src = src, .dst = args->dst, .nsrc = nsrc, .ndst = args->ndst};

    UNROLL for (unsigned k = 0; k < nsrc; k++) src[k] = args->src[k];
    if (ndst) {
        UNROLL for (unsigned d = 0; d < ndst; d++) dst[d] = args->dst[d];
        j.dst = dst;
        j.ndst = ndst;
    }
    j.stream = !ndst && args->flags & GSI_REDUCE_NT;
    for (; end - i >= elems; i += elems)
        step(many, &j, i, 0);
    return i;
}

/* Sums, by the numbers of sources that rings and hosts have. With two, the loop over
 * the outputs would be felt as well. */
GSI_ALWAYS_INLINE uint64_t loop_sum(const gsi_reduce_args *args, uint64_t i, int dtype)
{
    switch (args->nsrc) {
    case 2:
        if (args->ndst == 1 && !(args->flags & GSI_REDUCE_NT))
            return sum_fixed(args, i, dtype, 2, 1);
        if (args->ndst == 2 && !(args->flags & GSI_REDUCE_NT))
            return sum_fixed(args, i, dtype, 2, 2);
        return sum_fixed(args, i, dtype, 2, 0);
    case 3:
        return sum_fixed(args, i, dtype, 3, 0);
    case 4:
        return sum_fixed(args, i, dtype, 4, 0);
    case 8:
        return sum_fixed(args, i, dtype, 8, 0);
    default:
        return loop_any(args, i, dtype, GRADSYNC_SUM);
    }
}

/* Sums with extras, elements [i, end). */
GSI_ALWAYS_INLINE void loop_extras(const gsi_reduce_args *args, uint64_t i, uint64_t end, int dtype)
{
    const uint64_t elems = UNITS * VEC_BYTES / gsi_elem_size(dtype);
    const how many = {dtype, GRADSYNC_SUM, UNITS, 0, 0, 1};
    job j = {.src = args->src, .dst = args->dst, .nsrc = args->nsrc, .ndst = args->ndst, .scale = args->scale};

    j.stream = (args->flags & GSI_REDUCE_NT) != 0;
    j.acc_in = gsi_is_half(dtype) && args->flags & GSI_REDUCE_ACC_IN;
    j.acc_out = gsi_is_half(dtype) && args->flags & GSI_REDUCE_ACC_OUT;
    if (args->divisor > 1) {
        /* Dividing by a power of two is multiplying by its inverse, bit for bit. */
        double divisor = computed(dtype) == GRADSYNC_F64 ? (double)args->divisor : (double)(float)args->divisor;
        int exact = !(args->divisor & (args->divisor - 1));
        j.finish = exact ? MULTIPLY : DIVIDE;
        j.factor = exact ? 1 / divisor : divisor;
    }
    for (; end - i >= elems; i += elems)
        step(many, &j, i, 0);
    unit_steps(args, &j, i, end, dtype, GRADSYNC_SUM, 1);
}

/* ---- Tables ---- */

/* Whole steps from element i on; returns where it stopped. */
typedef uint64_t whole_fn(const gsi_reduce_args *args, uint64_t i);
/* Elements [i, end). */
typedef void range_fn(const gsi_reduce_args *args, uint64_t i, uint64_t end);

#define WHOLE(dtype, op)                                                                                               \
    static uint64_t whole_##dtype##_##op(const gsi_reduce_args *args, uint64_t i)                                      \
    {                                                                                                                  \
        return loop_any(args, i, GRADSYNC_##dtype, GRADSYNC_##op);                                                     \
    }
#define WHOLE_SUM(dtype)                                                                                               \
    static uint64_t whole_##dtype##_SUM(const gsi_reduce_args *args, uint64_t i)                                       \
    {                                                                                                                  \
        return loop_sum(args, i, GRADSYNC_##dtype);                                                                    \
    }
#define SHORT(dtype, op)                                                                                               \
    static void short_##dtype##_##op(const gsi_reduce_args *args, uint64_t i, uint64_t end)                            \
    {                                                                                                                  \
        loop_short(args, i, end, GRADSYNC_##dtype, GRADSYNC_##op);                                                     \
    }
#define EXTRAS(dtype)                                                                                                  \
    static void extras_##dtype(const gsi_reduce_args *args, uint64_t i, uint64_t end)                                  \
    {                                                                                                                  \
        loop_extras(args, i, end, GRADSYNC_##dtype);                                                                   \
    }
/* clang-format off */
#define BUT_SUM(make, dtype) make(dtype, PROD) make(dtype, MIN) make(dtype, MAX)
#define EVERY(make, dtype) make(dtype, SUM) BUT_SUM(make, dtype)
#define UNSIGNED(make) make(U8, MIN) make(U8, MAX) make(U32, MIN) make(U32, MAX) make(U64, MIN) make(U64, MAX)

EVERY(SHORT, F32) EVERY(SHORT, F64) EVERY(SHORT, F16) EVERY(SHORT, BF16)
EVERY(SHORT, I8) EVERY(SHORT, I32) EVERY(SHORT, I64) UNSIGNED(SHORT)
WHOLE_SUM(F32) WHOLE_SUM(F16) WHOLE_SUM(BF16) WHOLE(F64, SUM)
BUT_SUM(WHOLE, F32) BUT_SUM(WHOLE, F16) BUT_SUM(WHOLE, BF16) BUT_SUM(WHOLE, F64)
EVERY(WHOLE, I8) EVERY(WHOLE, I32) EVERY(WHOLE, I64) UNSIGNED(WHOLE)
EXTRAS(F32) EXTRAS(F64) EXTRAS(F16) EXTRAS(BF16)

/* Sums and products that wrap do not know about signs. */
#define ROW(what, same, dtype) \
    [GRADSYNC_##dtype] = {what##_##same##_SUM, what##_##same##_PROD, what##_##dtype##_MIN, what##_##dtype##_MAX}
#define ROWS(what) \
    ROW(what, F32, F32), ROW(what, F64, F64), ROW(what, F16, F16), ROW(what, BF16, BF16), \
    ROW(what, I8, I8), ROW(what, I8, U8), ROW(what, I32, I32), ROW(what, I32, U32), ROW(what, I64, I64), \
    ROW(what, I64, U64)

static whole_fn *const wholes[GRADSYNC_DTYPE_COUNT][4] = {ROWS(whole)};
static range_fn *const shorts[GRADSYNC_DTYPE_COUNT][4] = {ROWS(short)};
/* clang-format on */
static range_fn *const extras[GRADSYNC_BF16 + 1] = {
    [GRADSYNC_F32] = extras_F32,
    [GRADSYNC_F64] = extras_F64,
    [GRADSYNC_F16] = extras_F16,
    [GRADSYNC_BF16] = extras_BF16,
};

/* ---- The tier's functions ---- */

/* Elements before the first output is aligned; 0 if that never happens. */
static uint64_t misaligned_head(const gsi_reduce_args *args)
{
    int f32 = gsi_is_half(args->dtype) && args->flags & GSI_REDUCE_ACC_OUT;
    unsigned size = f32 ? 4 : gsi_elem_size(args->dtype);
    uint64_t gap = -(uintptr_t)args->dst[0] % VEC_BYTES;

    if (!(args->flags & GSI_REDUCE_NT) || gap % size)
        return 0;
    return gap / size < args->count ? gap / size : args->count;
}

static void run(const gsi_reduce_args *args)
{
    const uint64_t head = misaligned_head(args);
    const int dtype = args->dtype, op = args->op;

    if (head)
        shorts[dtype][op](args, 0, head);
    shorts[dtype][op](args, wholes[dtype][op](args, head), args->count);
}

static void run_extras(const gsi_reduce_args *args)
{
    const uint64_t head = misaligned_head(args);

    if (args->op != GRADSYNC_SUM || !gsi_is_float(args->dtype)) {
        gsi_reduce_c_range(args, 0, args->count); /* nobody scales or divides other things in earnest */
        return;
    }
    if (head)
        extras[args->dtype](args, 0, head);
    extras[args->dtype](args, head, args->count);
}

static int is_plain(const gsi_reduce_args *args)
{
    return args->divisor <= 1 && !args->scale && !(args->flags & (GSI_REDUCE_ACC_IN | GSI_REDUCE_ACC_OUT));
}

static __attribute__((noinline)) void reduce_any(const gsi_reduce_args *args)
{
    uint64_t env = fpenv_enter();

    if (is_plain(args))
        run(args);
    else
        run_extras(args);
    if (args->flags & GSI_REDUCE_NT)
        vec_fence();
    fpenv_leave(env);
}

static void reduce(const gsi_reduce_args *args)
{
    const int dtype = args->dtype;

    if (args->count < UNITS * VEC_BYTES / gsi_elem_size(dtype) && is_plain(args) &&
        (!gsi_is_float(dtype) || fpenv_is_default()))
        shorts[dtype][args->op](args, 0, args->count);
    else
        reduce_any(args);
}

/* One source, many outputs: a reduction of bytes from one source. */
static void copy(void *const *dst, uint32_t ndst, const void *src, uint64_t bytes, int nt)
{
    gsi_reduce_args args = {.dst = dst, .src = &src, .count = bytes, .ndst = ndst, .nsrc = 1};

    if (!nt && ndst == 1) {
        if (dst[0] != src)
            memcpy(dst[0], src, bytes);
        return;
    }
    args.dtype = GRADSYNC_U8;
    args.op = GRADSYNC_SUM;
    args.flags = nt ? GSI_REDUCE_NT : 0;
    reduce(&args);
}

#endif
