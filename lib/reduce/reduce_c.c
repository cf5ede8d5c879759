/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reference: plain C that defines every bit of a reduction, and serves the
 * CPUs that have no tier of their own. Three loops, by what is computed in: f32
 * (for f32, f16, bf16), f64, and 64-bit integers (for all integers). They are
 * always inlined with dtype and op constant, which makes each a loop of its own.
 */
#include "reduce/fpenv.h"
#include "reduce/half.h"
#include "reduce/internal.h"

#include <float.h>
#include <math.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "the reference needs f32 arithmetic in f32: on 32-bit x86, build with -msse2 -mfpmath=sse"
#endif

/* ---- f32, f16, bf16 ---- */

GSI_ALWAYS_INLINE float load_f32(int dtype, const void *array, uint64_t i)
{
    const char *p = (const char *)array + i * gsi_elem_size(dtype);
    uint16_t half;
    float value;

    if (dtype == GRADSYNC_F32) {
        memcpy(&value, p, sizeof value);
        return value;
    }
    memcpy(&half, p, sizeof half);
    return dtype == GRADSYNC_F16 ? f32_from_f16(half) : f32_from_bf16(half);
}

GSI_ALWAYS_INLINE void store_f32(int dtype, void *array, uint64_t i, float value)
{
    char *p = (char *)array + i * gsi_elem_size(dtype);

    if (dtype == GRADSYNC_F32) {
        memcpy(p, &value, sizeof value);
        return;
    }
    uint16_t half = dtype == GRADSYNC_F16 ? f16_from_f32(value) : bf16_from_f32(value);
    memcpy(p, &half, sizeof half);
}

GSI_ALWAYS_INLINE float combine_f32(int op, float a, float b)
{
    switch (op) {
    case GRADSYNC_PROD:
        return a * b;
    case GRADSYNC_MIN:
        if (isnan(a) || isnan(b))
            return NAN;
        return a < b || (a == b && signbit(a)) ? a : b;
    case GRADSYNC_MAX:
        if (isnan(a) || isnan(b))
            return NAN;
        return a > b || (a == b && !signbit(a)) ? a : b;
    default:
        return a + b;
    }
}

GSI_ALWAYS_INLINE void loop_f32(const gsi_reduce_args *args, uint64_t first, uint64_t end, int dtype, int op)
{
    int in = args->flags & GSI_REDUCE_ACC_IN ? GRADSYNC_F32 : dtype;
    int out = args->flags & GSI_REDUCE_ACC_OUT ? GRADSYNC_F32 : dtype;

    for (uint64_t i = first; i < end; i++) {
        float acc = load_f32(in, args->src[0], i);
        if (args->scale)
            acc *= (float)args->scale[0];
        for (uint32_t k = 1; k < args->nsrc; k++) {
            float value = load_f32(dtype, args->src[k], i);
            if (args->scale)
                value *= (float)args->scale[k];
            acc = combine_f32(op, acc, value);
        }
        if (args->divisor > 1)
            acc /= (float)args->divisor;
        if (isnan(acc))
            acc = half_float_of(0x7fc00000);
        for (uint32_t d = 0; d < args->ndst; d++)
            store_f32(out, args->dst[d], i, acc);
    }
}

/* ---- f64 ---- */

GSI_ALWAYS_INLINE double load_f64(const void *array, uint64_t i)
{
    double value;
    memcpy(&value, (const char *)array + i * sizeof value, sizeof value);
    return value;
}

GSI_ALWAYS_INLINE double combine_f64(int op, double a, double b)
{
    switch (op) {
    case GRADSYNC_PROD:
        return a * b;
    case GRADSYNC_MIN:
        if (isnan(a) || isnan(b))
            return NAN;
        return a < b || (a == b && signbit(a)) ? a : b;
    case GRADSYNC_MAX:
        if (isnan(a) || isnan(b))
            return NAN;
        return a > b || (a == b && !signbit(a)) ? a : b;
    default:
        return a + b;
    }
}

GSI_ALWAYS_INLINE void loop_f64(const gsi_reduce_args *args, uint64_t first, uint64_t end, int op)
{
    const uint64_t nan = UINT64_C(0x7ff8000000000000);

    for (uint64_t i = first; i < end; i++) {
        double acc = load_f64(args->src[0], i);
        if (args->scale)
            acc *= args->scale[0];
        for (uint32_t k = 1; k < args->nsrc; k++) {
            double value = load_f64(args->src[k], i);
            if (args->scale)
                value *= args->scale[k];
            acc = combine_f64(op, acc, value);
        }
        if (args->divisor > 1)
            acc /= (double)args->divisor;
        if (isnan(acc))
            memcpy(&acc, &nan, sizeof acc);
        for (uint32_t d = 0; d < args->ndst; d++)
            memcpy((char *)args->dst[d] + i * sizeof acc, &acc, sizeof acc);
    }
}

/* ---- Integers: sign- or zero-extended to 64 bits, wrapped to their width at the end ---- */

GSI_ALWAYS_INLINE int is_signed(int dtype)
{
    return dtype == GRADSYNC_I8 || dtype == GRADSYNC_I32 || dtype == GRADSYNC_I64;
}

GSI_ALWAYS_INLINE uint64_t wrap_int(int dtype, uint64_t value)
{
    switch (dtype) {
    case GRADSYNC_I8:
        return (uint64_t)(int64_t)(int8_t)value;
    case GRADSYNC_U8:
        return (uint8_t)value;
    case GRADSYNC_I32:
        return (uint64_t)(int64_t)(int32_t)value;
    case GRADSYNC_U32:
        return (uint32_t)value;
    default:
        return value;
    }
}

GSI_ALWAYS_INLINE uint64_t load_int(int dtype, const void *array, uint64_t i)
{
    const char *p = (const char *)array + i * gsi_elem_size(dtype);
    uint32_t four;
    uint64_t eight;

    switch (gsi_elem_size(dtype)) {
    case 1:
        return wrap_int(dtype, *(const uint8_t *)p);
    case 4:
        memcpy(&four, p, sizeof four);
        return wrap_int(dtype, four);
    default:
        memcpy(&eight, p, sizeof eight);
        return eight;
    }
}

GSI_ALWAYS_INLINE void store_int(int dtype, void *array, uint64_t i, uint64_t value)
{
    char *p = (char *)array + i * gsi_elem_size(dtype);
    uint32_t four = (uint32_t)value;

    switch (gsi_elem_size(dtype)) {
    case 1:
        *(uint8_t *)p = (uint8_t)value;
        break;
    case 4:
        memcpy(p, &four, sizeof four);
        break;
    default:
        memcpy(p, &value, sizeof value);
    }
}

GSI_ALWAYS_INLINE uint64_t combine_int(int dtype, int op, uint64_t a, uint64_t b)
{
    switch (op) {
    case GRADSYNC_PROD:
        return a * b;
    case GRADSYNC_MIN:
        return (is_signed(dtype) ? (int64_t)a < (int64_t)b : a < b) ? a : b;
    case GRADSYNC_MAX:
        return (is_signed(dtype) ? (int64_t)a > (int64_t)b : a > b) ? a : b;
    default:
        return a + b;
    }
}

/* Towards zero. The divisor is a count, never negative, and may be too large for int64_t. */
GSI_ALWAYS_INLINE uint64_t divide_int(int dtype, uint64_t value, uint64_t divisor)
{
    if (!is_signed(dtype) || (int64_t)value >= 0)
        return value / divisor;
    return -(-value / divisor);
}

GSI_ALWAYS_INLINE void loop_int(const gsi_reduce_args *args, uint64_t first, uint64_t end, int dtype, int op)
{
    for (uint64_t i = first; i < end; i++) {
        uint64_t acc = load_int(dtype, args->src[0], i);
        for (uint32_t k = 1; k < args->nsrc; k++)
            acc = combine_int(dtype, op, acc, load_int(dtype, args->src[k], i));
        if (args->divisor > 1)
            acc = divide_int(dtype, wrap_int(dtype, acc), args->divisor);
        for (uint32_t d = 0; d < args->ndst; d++)
            store_int(dtype, args->dst[d], i, acc);
    }
}

/* ---- Dispatch ---- */

GSI_ALWAYS_INLINE void loop_any(const gsi_reduce_args *args, uint64_t first, uint64_t end, int dtype, int op)
{
    if (dtype == GRADSYNC_F64)
        loop_f64(args, first, end, op);
    else if (gsi_is_float(dtype))
        loop_f32(args, first, end, dtype, op);
    else
        loop_int(args, first, end, dtype, op);
}

GSI_ALWAYS_INLINE void by_op(const gsi_reduce_args *args, uint64_t first, uint64_t end, int dtype)
{
    switch (args->op) {
    case GRADSYNC_PROD:
        loop_any(args, first, end, dtype, GRADSYNC_PROD);
        break;
    case GRADSYNC_MIN:
        loop_any(args, first, end, dtype, GRADSYNC_MIN);
        break;
    case GRADSYNC_MAX:
        loop_any(args, first, end, dtype, GRADSYNC_MAX);
        break;
    default:
        loop_any(args, first, end, dtype, GRADSYNC_SUM);
    }
}

__attribute__((noinline)) void gsi_reduce_c_range(const gsi_reduce_args *args, uint64_t first, uint64_t end)
{
    switch (args->dtype) {
    case GRADSYNC_F32:
        by_op(args, first, end, GRADSYNC_F32);
        break;
    case GRADSYNC_F64:
        by_op(args, first, end, GRADSYNC_F64);
        break;
    case GRADSYNC_F16:
        by_op(args, first, end, GRADSYNC_F16);
        break;
    case GRADSYNC_BF16:
        by_op(args, first, end, GRADSYNC_BF16);
        break;
    case GRADSYNC_I8:
        by_op(args, first, end, GRADSYNC_I8);
        break;
    case GRADSYNC_U8:
        by_op(args, first, end, GRADSYNC_U8);
        break;
    case GRADSYNC_I32:
        by_op(args, first, end, GRADSYNC_I32);
        break;
    case GRADSYNC_U32:
        by_op(args, first, end, GRADSYNC_U32);
        break;
    case GRADSYNC_I64:
        by_op(args, first, end, GRADSYNC_I64);
        break;
    default:
        by_op(args, first, end, GRADSYNC_U64);
    }
}

static void reduce(const gsi_reduce_args *args)
{
    uint64_t env = fpenv_enter();

    gsi_reduce_c_range(args, 0, args->count);
    fpenv_leave(env);
}

static void copy(void *const *dst, uint32_t ndst, const void *src, uint64_t bytes, int nt)
{
    (void)nt;
    for (uint32_t d = 0; d < ndst; d++)
        if (dst[d] != src)
            memcpy(dst[d], src, bytes);
}

static int supported(void)
{
    return 1;
}

const gsi_reduce_tier gsi_reduce_tier_c = {"c", supported, reduce, copy};
