/* SPDX-License-Identifier: Apache-2.0 */
/* The NEON tier: plain ARMv8.0, no optional extension. Arm has no non-temporal store
 * worth the name, so streaming is storing. FMIN and FMAX give a NaN if either is one
 * and order -0 before +0, just as we want. */
#include "reduce/internal.h"

#include <arm_neon.h>

typedef uint32x4_t vec;
#define VEC_BYTES   16
#define VEC_PARTIAL 0

#define PS(v)  vreinterpretq_f32_u32(v)
#define PD(v)  vreinterpretq_f64_u32(v)
#define S8(v)  vreinterpretq_s8_u32(v)
#define U8(v)  vreinterpretq_u8_u32(v)
#define S32(v) vreinterpretq_s32_u32(v)
#define S64(v) vreinterpretq_s64_u32(v)
#define U64(v) vreinterpretq_u64_u32(v)

GSI_ALWAYS_INLINE vec from_ps(float32x4_t v)
{
    return vreinterpretq_u32_f32(v);
}

GSI_ALWAYS_INLINE vec from_pd(float64x2_t v)
{
    return vreinterpretq_u32_f64(v);
}

GSI_ALWAYS_INLINE vec from_u64(uint64x2_t v)
{
    return vreinterpretq_u32_u64(v);
}

GSI_ALWAYS_INLINE vec vec_load(const char *p)
{
    return vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)p));
}

GSI_ALWAYS_INLINE void vec_store(char *p, vec v)
{
    vst1q_u8((uint8_t *)p, U8(v));
}

GSI_ALWAYS_INLINE void vec_stream(char *p, vec v)
{
    vec_store(p, v);
}

GSI_ALWAYS_INLINE void vec_fence(void)
{
}

/* ---- f16: in memory's order. bf16: even elements, then odd ones, which one shift
 * or one mask each turns into f32. ---- */

GSI_ALWAYS_INLINE void vec_widen(int dtype, const char *p, vec v[2])
{
    vec unit = vec_load(p);

    if (dtype == GRADSYNC_F16) {
        float16x8_t half = vreinterpretq_f16_u32(unit);
        v[0] = from_ps(vcvt_f32_f16(vget_low_f16(half)));
        v[1] = from_ps(vcvt_high_f32_f16(half));
    } else {
        v[0] = vshlq_n_u32(unit, 16);
        v[1] = vandq_u32(unit, vdupq_n_u32(0xffff0000));
    }
}

/* Rounds the upper half of every f32 to nearest even: half.h says why this is right. */
GSI_ALWAYS_INLINE vec round_upper(vec v)
{
    vec odd = vandq_u32(vshrq_n_u32(v, 16), vdupq_n_u32(1));

    return vaddq_u32(vaddq_u32(v, vdupq_n_u32(0x7fff)), odd);
}

GSI_ALWAYS_INLINE vec vec_narrow(int dtype, const vec v[2])
{
    if (dtype == GRADSYNC_F16)
        return vreinterpretq_u32_f16(vcvt_high_f16_f32(vcvt_f16_f32(PS(v[0])), PS(v[1])));
    return vsriq_n_u32(round_upper(v[1]), round_upper(v[0]), 16);
}

GSI_ALWAYS_INLINE void vec_order(int dtype, vec v[2])
{
    if (dtype == GRADSYNC_BF16) {
        vec low = v[0];
        v[0] = vuzp1q_u32(low, v[1]);
        v[1] = vuzp2q_u32(low, v[1]);
    }
}

GSI_ALWAYS_INLINE void vec_unorder(int dtype, vec v[2])
{
    if (dtype == GRADSYNC_BF16) {
        vec even = v[0];
        v[0] = vzip1q_u32(even, v[1]);
        v[1] = vzip2q_u32(even, v[1]);
    }
}

/* ---- Arithmetic ---- */

GSI_ALWAYS_INLINE vec vec_splat(int dtype, double value)
{
    return dtype == GRADSYNC_F64 ? from_pd(vdupq_n_f64(value)) : from_ps(vdupq_n_f32((float)value));
}

GSI_ALWAYS_INLINE vec vec_mul(int dtype, vec a, vec b)
{
    return dtype == GRADSYNC_F64 ? from_pd(vmulq_f64(PD(a), PD(b))) : from_ps(vmulq_f32(PS(a), PS(b)));
}

GSI_ALWAYS_INLINE vec vec_div(int dtype, vec a, vec b)
{
    return dtype == GRADSYNC_F64 ? from_pd(vdivq_f64(PD(a), PD(b))) : from_ps(vdivq_f32(PS(a), PS(b)));
}

GSI_ALWAYS_INLINE vec op_f32(int op, float32x4_t a, float32x4_t b)
{
    switch (op) {
    case GRADSYNC_PROD:
        return from_ps(vmulq_f32(a, b));
    case GRADSYNC_MIN:
        return from_ps(vminq_f32(a, b));
    case GRADSYNC_MAX:
        return from_ps(vmaxq_f32(a, b));
    default:
        return from_ps(vaddq_f32(a, b));
    }
}

GSI_ALWAYS_INLINE vec op_f64(int op, float64x2_t a, float64x2_t b)
{
    switch (op) {
    case GRADSYNC_PROD:
        return from_pd(vmulq_f64(a, b));
    case GRADSYNC_MIN:
        return from_pd(vminq_f64(a, b));
    case GRADSYNC_MAX:
        return from_pd(vmaxq_f64(a, b));
    default:
        return from_pd(vaddq_f64(a, b));
    }
}

/* There is no product of 64 bits: low by low, and the cross products into the upper half. */
GSI_ALWAYS_INLINE vec mul_64(vec a, vec b)
{
    uint64x2_t low = vmull_u32(vmovn_u64(U64(a)), vmovn_u64(U64(b)));
    uint64x2_t cross = vpaddlq_u32(vmulq_u32(a, vrev64q_u32(b)));

    return from_u64(vaddq_u64(low, vshlq_n_u64(cross, 32)));
}

GSI_ALWAYS_INLINE vec vec_sum(int dtype, vec a, vec b)
{
    switch (gsi_elem_size(dtype)) {
    case 1:
        return vreinterpretq_u32_u8(vaddq_u8(U8(a), U8(b)));
    case 4:
        return vaddq_u32(a, b);
    default:
        return from_u64(vaddq_u64(U64(a), U64(b)));
    }
}

GSI_ALWAYS_INLINE vec vec_prod(int dtype, vec a, vec b)
{
    switch (gsi_elem_size(dtype)) {
    case 1:
        return vreinterpretq_u32_u8(vmulq_u8(U8(a), U8(b)));
    case 4:
        return vmulq_u32(a, b);
    default:
        return mul_64(a, b);
    }
}

GSI_ALWAYS_INLINE vec vec_min(int dtype, vec a, vec b)
{
    switch (dtype) {
    case GRADSYNC_I8:
        return vreinterpretq_u32_s8(vminq_s8(S8(a), S8(b)));
    case GRADSYNC_U8:
        return vreinterpretq_u32_u8(vminq_u8(U8(a), U8(b)));
    case GRADSYNC_I32:
        return vreinterpretq_u32_s32(vminq_s32(S32(a), S32(b)));
    case GRADSYNC_U32:
        return vminq_u32(a, b);
    case GRADSYNC_I64:
        return from_u64(vbslq_u64(vcgtq_s64(S64(a), S64(b)), U64(b), U64(a)));
    default:
        return from_u64(vbslq_u64(vcgtq_u64(U64(a), U64(b)), U64(b), U64(a)));
    }
}

GSI_ALWAYS_INLINE vec vec_max(int dtype, vec a, vec b)
{
    switch (dtype) {
    case GRADSYNC_I8:
        return vreinterpretq_u32_s8(vmaxq_s8(S8(a), S8(b)));
    case GRADSYNC_U8:
        return vreinterpretq_u32_u8(vmaxq_u8(U8(a), U8(b)));
    case GRADSYNC_I32:
        return vreinterpretq_u32_s32(vmaxq_s32(S32(a), S32(b)));
    case GRADSYNC_U32:
        return vmaxq_u32(a, b);
    case GRADSYNC_I64:
        return from_u64(vbslq_u64(vcgtq_s64(S64(a), S64(b)), U64(a), U64(b)));
    default:
        return from_u64(vbslq_u64(vcgtq_u64(U64(a), U64(b)), U64(a), U64(b)));
    }
}

GSI_ALWAYS_INLINE vec vec_op(int dtype, int op, vec a, vec b)
{
    if (dtype == GRADSYNC_F32)
        return op_f32(op, PS(a), PS(b));
    if (dtype == GRADSYNC_F64)
        return op_f64(op, PD(a), PD(b));
    switch (op) {
    case GRADSYNC_PROD:
        return vec_prod(dtype, a, b);
    case GRADSYNC_MIN:
        return vec_min(dtype, a, b);
    case GRADSYNC_MAX:
        return vec_max(dtype, a, b);
    default:
        return vec_sum(dtype, a, b);
    }
}

GSI_ALWAYS_INLINE vec canonical(int dtype, vec v)
{
    if (dtype == GRADSYNC_F64)
        return from_u64(vbslq_u64(vceqq_f64(PD(v), PD(v)), U64(v), vdupq_n_u64(0x7ff8000000000000)));
    return vbslq_u32(vceqq_f32(PS(v), PS(v)), v, vdupq_n_u32(0x7fc00000));
}

GSI_ALWAYS_INLINE void vec_canonical(int dtype, int units, int wide, vec v[][2])
{
    for (int u = 0; u < units; u++)
        for (int w = 0; w < wide; w++)
            v[u][w] = canonical(dtype, v[u][w]);
}

#include "reduce/kernel.h"

static int supported(void)
{
    return 1;
}

const gsi_reduce_tier gsi_reduce_tier_neon = {"neon", supported, reduce, copy};
