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
    int stream;          /* try non-temporal stores */
    int acc_in, acc_out; /* f16, bf16: src[0], the outputs are f32 */
    const double *scale; /* or NULL */
    enum { KEEP, MULTIPLY, DIVIDE } finish;
    double factor; /* of finish */
} job;

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

/* Reduces `units` units from element i on. fixed: nsrc and ndst are constants, unroll
 * over them. extras: heed acc_in, acc_out, scale and finish. */
GSI_ALWAYS_INLINE void step(const job *j, uint64_t i, int dtype, int op, int units, unsigned part, int fixed,
                            int extras)
{
    const int wide = width(dtype), type = computed(dtype);
    const uint64_t at = i * gsi_elem_size(dtype);
    vec acc[UNITS][2], value[2], factor = vec_splat(type, j->factor);

    if (extras && j->acc_in) {
        for (int u = 0; u < units; u++)
            load_unit_f32(dtype, (const char *)j->src[0] + 2 * at + u * 2 * VEC_BYTES, part, acc[u]);
    } else {
        UNROLL for (int u = 0; u < units; u++)
            load_unit(dtype, (const char *)j->src[0] + at + u * VEC_BYTES, part, acc[u]);
    }
    if (extras && j->scale) {
        factor = vec_splat(type, j->scale[0]);
        UNROLL for (int u = 0; u < units; u++) for (int w = 0; w < wide; w++) acc[u][w] =
            vec_mul(type, acc[u][w], factor);
    }
    if (fixed) {
        UNROLL for (unsigned k = 1; k < j->nsrc; k++)
        {
            const char *p = (const char *)j->src[k] + at;
            UNROLL for (int u = 0; u < units; u++)
            {
                load_unit(dtype, p + u * VEC_BYTES, part, value);
                for (int w = 0; w < wide; w++)
                    acc[u][w] = vec_op(type, op, acc[u][w], value[w]);
            }
        }
    } else {
        for (unsigned k = 1; k < j->nsrc; k++) {
            const char *p = (const char *)j->src[k] + at;
            if (extras && j->scale)
                factor = vec_splat(type, j->scale[k]);
            UNROLL for (int u = 0; u < units; u++)
            {
                load_unit(dtype, p + u * VEC_BYTES, part, value);
                for (int w = 0; w < wide; w++) {
                    if (extras && j->scale)
                        value[w] = vec_mul(type, value[w], factor);
                    acc[u][w] = vec_op(type, op, acc[u][w], value[w]);
                }
            }
        }
    }
    if (extras && j->finish != KEEP) {
        factor = vec_splat(type, j->factor);
        UNROLL for (int u = 0; u < units; u++) for (int w = 0; w < wide; w++) acc[u][w] =
            j->finish == DIVIDE ? vec_div(type, acc[u][w], factor) : vec_mul(type, acc[u][w], factor);
    }
    if (gsi_is_float(type))
        vec_canonical(type, units, wide, acc);

    if (extras && j->acc_out) {
        for (int u = 0; u < units; u++)
            vec_unorder(dtype, acc[u]);
        for (unsigned d = 0; d < j->ndst; d++) {
            char *p = (char *)j->dst[d] + 2 * at;
            int stream = j->stream && (uintptr_t)p % VEC_BYTES == 0;
            for (int u = 0; u < units; u++, p += 2 * VEC_BYTES) {
                store_some(p, acc[u][0], part * 2, stream);
                if (!second_empty(part))
                    store_some(p + VEC_BYTES, acc[u][1], part ? part * 2 - VEC_BYTES : 0, stream);
            }
        }
        return;
    }
    if (wide == 2) {
        UNROLL for (int u = 0; u < units; u++) acc[u][0] = vec_narrow(dtype, acc[u]);
    }
    if (fixed) {
        UNROLL for (unsigned d = 0; d < j->ndst; d++)
        {
            UNROLL for (int u = 0; u < units; u++)
                store_some((char *)j->dst[d] + at + u * VEC_BYTES, acc[u][0], part, 0);
        }
        return;
    }
    for (unsigned d = 0; d < j->ndst; d++) {
        char *p = (char *)j->dst[d] + at;
        if (j->stream && (uintptr_t)p % VEC_BYTES == 0) {
            UNROLL for (int u = 0; u < units; u++) store_some(p + u * VEC_BYTES, acc[u][0], part, 1);
        } else {
            UNROLL for (int u = 0; u < units; u++) store_some(p + u * VEC_BYTES, acc[u][0], part, 0);
        }
    }
}

#if VEC_PARTIAL
/* The last elements, at least one and at most a unit. */
GSI_ALWAYS_INLINE void last_step(const job *j, uint64_t i, uint64_t elems, int dtype, int op, int extras)
{
    unsigned part = (unsigned)elems * gsi_elem_size(dtype);

    if (part == 0 || part > VEC_BYTES)
        __builtin_unreachable();
    step(j, i, dtype, op, 1, part, 0, extras);
}
#endif

/* ---- Loops ---- */

/* Any number of sources and outputs; elements [i, end). */
GSI_ALWAYS_INLINE void loop_any(const gsi_reduce_args *args, uint64_t i, uint64_t end, int dtype, int op, int extras)
{
    const unsigned elems = VEC_BYTES / gsi_elem_size(dtype);
    const int half = gsi_is_half(dtype);
    job j = {.src = args->src, .dst = args->dst, .nsrc = args->nsrc, .ndst = args->ndst};

    j.stream = (args->flags & GSI_REDUCE_NT) != 0;
    if (extras) {
        j.acc_in = half && args->flags & GSI_REDUCE_ACC_IN;
        j.acc_out = half && args->flags & GSI_REDUCE_ACC_OUT;
        j.scale = args->scale;
        if (args->divisor > 1) {
            /* Dividing by a power of two is multiplying by its inverse, bit for bit. */
            double divisor = computed(dtype) == GRADSYNC_F64 ? (double)args->divisor : (double)(float)args->divisor;
            int exact = !(args->divisor & (args->divisor - 1));
            j.finish = exact ? MULTIPLY : DIVIDE;
            j.factor = exact ? 1 / divisor : divisor;
        }
    }
    for (; end - i >= UNITS * elems; i += UNITS * elems)
        step(&j, i, dtype, op, UNITS, 0, 0, extras);
    for (; end - i >= elems; i += elems)
        step(&j, i, dtype, op, 1, 0, 0, extras);
    if (i == end)
        return;
#if VEC_PARTIAL
    last_step(&j, i, end - i, dtype, op, extras);
#else
    gsi_reduce_c_range(args, i, end);
#endif
}

/* nsrc and ndst constant, all pointers in registers, whole steps only. Returns where it stopped. */
GSI_ALWAYS_INLINE uint64_t loop_fixed(const gsi_reduce_args *args, int dtype, int op, unsigned nsrc, unsigned ndst)
{
    const uint64_t elems = UNITS * VEC_BYTES / gsi_elem_size(dtype), end = args->count;
    const void *src[MAX_FIXED];
    void *dst[MAX_FIXED];
    job j = {.src = src, .dst = dst, .nsrc = nsrc, .ndst = ndst};
    uint64_t i = 0;

    UNROLL for (unsigned k = 0; k < nsrc; k++) src[k] = args->src[k];
    UNROLL for (unsigned d = 0; d < ndst; d++) dst[d] = args->dst[d];
    for (; end - i >= elems; i += elems)
        step(&j, i, dtype, op, UNITS, 0, 1, 0);
    return i;
}

/* The shapes of collectives inside one host: to one output, to one's own buffer and
 * a peer's or a slot, and from all to all. Returns how many elements it has done. */
GSI_ALWAYS_INLINE uint64_t sum_shapes(const gsi_reduce_args *args, int dtype)
{
    if (args->nsrc > MAX_FIXED || args->ndst > MAX_FIXED)
        return 0;
    switch (args->nsrc * 16 + args->ndst) {
#define SHAPE(nsrc, ndst)                                                                                              \
    case nsrc * 16 + ndst:                                                                                             \
        return loop_fixed(args, dtype, GRADSYNC_SUM, nsrc, ndst);
        SHAPE(2, 1)
        SHAPE(2, 2)
        SHAPE(3, 1)
        SHAPE(3, 2)
        SHAPE(3, 3)
        SHAPE(4, 1)
        SHAPE(4, 2)
        SHAPE(4, 4)
        SHAPE(8, 1)
        SHAPE(8, 2)
        SHAPE(8, 8)
#undef SHAPE
    default:
        return 0;
    }
}

#if VEC_PARTIAL
static void reduce_any(const gsi_reduce_args *args);

/* At most a unit, and nothing extra: a message of a few bytes is all overhead, so this
 * calls nothing and keeps next to nothing on the stack. */
GSI_ALWAYS_INLINE void small(const gsi_reduce_args *args, int dtype, int op)
{
    const job j = {.src = args->src, .dst = args->dst, .nsrc = args->nsrc, .ndst = args->ndst};

    if (gsi_is_float(dtype) && !fpenv_is_default())
        reduce_any(args);
    else if (args->count)
        last_step(&j, 0, args->count, dtype, op, 0);
}
#endif

/* ---- Tables ---- */

typedef void loop_fn(const gsi_reduce_args *args, uint64_t first, uint64_t end);
typedef uint64_t shapes_fn(const gsi_reduce_args *args);
#if VEC_PARTIAL
typedef void small_fn(const gsi_reduce_args *args);
#endif

#define LOOP(dtype, op)                                                                                                \
    static void loop_##dtype##_##op(const gsi_reduce_args *args, uint64_t first, uint64_t end)                         \
    {                                                                                                                  \
        loop_any(args, first, end, GRADSYNC_##dtype, GRADSYNC_##op, 0);                                                \
    }
#define SMALL(dtype, op)                                                                                               \
    static void small_##dtype##_##op(const gsi_reduce_args *args)                                                      \
    {                                                                                                                  \
        small(args, GRADSYNC_##dtype, GRADSYNC_##op);                                                                  \
    }
#define LOOP_EXTRAS(dtype, op)                                                                                         \
    static void extras_##dtype##_##op(const gsi_reduce_args *args, uint64_t first, uint64_t end)                       \
    {                                                                                                                  \
        loop_any(args, first, end, GRADSYNC_##dtype, GRADSYNC_##op, 1);                                                \
    }
#define SHAPES(dtype)                                                                                                  \
    static uint64_t shapes_##dtype(const gsi_reduce_args *args)                                                        \
    {                                                                                                                  \
        return sum_shapes(args, GRADSYNC_##dtype);                                                                     \
    }
/* clang-format off */
#define ALL_OPS(make, dtype) make(dtype, SUM) make(dtype, PROD) make(dtype, MIN) make(dtype, MAX)
#define ALL_FLOATS(make) ALL_OPS(make, F32) ALL_OPS(make, F64) ALL_OPS(make, F16) ALL_OPS(make, BF16)
#define ALL(make) ALL_FLOATS(make) ALL_OPS(make, I8) ALL_OPS(make, I32) ALL_OPS(make, I64) \
    make(U8, MIN) make(U8, MAX) make(U32, MIN) make(U32, MAX) make(U64, MIN) make(U64, MAX)

ALL(LOOP)
ALL_FLOATS(LOOP_EXTRAS)
SHAPES(F32) SHAPES(F64) SHAPES(F16) SHAPES(BF16)
#if VEC_PARTIAL
ALL(SMALL)
#endif

/* Sums and products that wrap do not know about signs. */
#define ROW(how, same, dtype) \
    [GRADSYNC_##dtype] = {how##_##same##_SUM, how##_##same##_PROD, how##_##dtype##_MIN, how##_##dtype##_MAX}
#define ROWS_FLOAT(how) ROW(how, F32, F32), ROW(how, F64, F64), ROW(how, F16, F16), ROW(how, BF16, BF16)
#define ROWS(how) ROWS_FLOAT(how), ROW(how, I8, I8), ROW(how, I8, U8), ROW(how, I32, I32), ROW(how, I32, U32), \
    ROW(how, I64, I64), ROW(how, I64, U64)

static loop_fn *const loops[GRADSYNC_DTYPE_COUNT][4] = {ROWS(loop)};
#if VEC_PARTIAL
static small_fn *const smalls[GRADSYNC_DTYPE_COUNT][4] = {ROWS(small)};
#endif
static loop_fn *const loops_extras[GRADSYNC_BF16 + 1][4] = {ROWS_FLOAT(extras)};
/* clang-format on */
static shapes_fn *const shapes[GRADSYNC_BF16 + 1] = {
    [GRADSYNC_F32] = shapes_F32,
    [GRADSYNC_F64] = shapes_F64,
    [GRADSYNC_F16] = shapes_F16,
    [GRADSYNC_BF16] = shapes_BF16,
};

/* ---- The tier's functions ---- */

/* Elements before the first output is aligned; 0 if that never happens. */
static uint64_t misaligned_head(const gsi_reduce_args *args)
{
    int f32 = gsi_is_half(args->dtype) && args->flags & GSI_REDUCE_ACC_OUT;
    unsigned size = f32 ? 4 : gsi_elem_size(args->dtype);
    uint64_t gap = -(uintptr_t)args->dst[0] % VEC_BYTES;

    return gap % size ? 0 : gap / size;
}

static void run(loop_fn *loop, const gsi_reduce_args *args, uint64_t first)
{
    if (args->flags & GSI_REDUCE_NT) {
        uint64_t head = misaligned_head(args);
        if (head < args->count) {
            loop(args, 0, head);
            first = head;
        }
        loop(args, first, args->count);
        vec_fence();
    } else if (first < args->count) {
        loop(args, first, args->count);
    }
}

static __attribute__((noinline)) void reduce_any(const gsi_reduce_args *args)
{
    if (!gsi_is_float(args->dtype)) {
        if (args->divisor > 1)
            gsi_reduce_c_range(args, 0, args->count);
        else
            run(loops[args->dtype][args->op], args, 0);
        return;
    }
    uint64_t env = fpenv_enter();
    if (args->scale || args->divisor > 1 || args->flags & (GSI_REDUCE_ACC_IN | GSI_REDUCE_ACC_OUT)) {
        run(loops_extras[args->dtype][args->op], args, 0);
    } else {
        uint64_t done = 0;
        if (args->op == GRADSYNC_SUM && !(args->flags & GSI_REDUCE_NT) &&
            args->count >= UNITS * VEC_BYTES / gsi_elem_size(args->dtype))
            done = shapes[args->dtype](args);
        run(loops[args->dtype][args->op], args, done);
    }
    fpenv_leave(env);
}

static void reduce(const gsi_reduce_args *args)
{
    const unsigned elems = VEC_BYTES / gsi_elem_size(args->dtype);

#if VEC_PARTIAL
    if (args->count <= elems && !args->flags && !args->scale && args->divisor <= 1) {
        smalls[args->dtype][args->op](args);
        return;
    }
#else
    if (args->count < elems && (!gsi_is_float(args->dtype) || fpenv_is_default())) {
        gsi_reduce_c_range(args, 0, args->count);
        return;
    }
#endif
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
    run(loops[args.dtype][args.op], &args, 0);
}

#endif
