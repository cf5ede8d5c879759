/* SPDX-License-Identifier: Apache-2.0 */
/* The AVX2 tier, with F16C, which every CPU with AVX2 has. */
#include "reduce/internal.h"

#include <cpuid.h>
#include <immintrin.h>

typedef __m256i vec;
#define VEC_BYTES   32
#define VEC_PARTIAL 0

#define PS(v) _mm256_castsi256_ps(v)
#define PD(v) _mm256_castsi256_pd(v)

GSI_ALWAYS_INLINE vec from_ps(__m256 v)
{
    return _mm256_castps_si256(v);
}

GSI_ALWAYS_INLINE vec from_pd(__m256d v)
{
    return _mm256_castpd_si256(v);
}

GSI_ALWAYS_INLINE vec vec_load(const char *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

GSI_ALWAYS_INLINE void vec_store(char *p, vec v)
{
    _mm256_storeu_si256((__m256i *)(void *)p, v);
}

GSI_ALWAYS_INLINE void vec_stream(char *p, vec v)
{
    _mm256_stream_si256((__m256i *)(void *)p, v);
}

GSI_ALWAYS_INLINE void vec_fence(void)
{
    _mm_sfence();
}

/* ---- f16: in memory's order. bf16: even elements, then odd ones, which one shift
 * or one mask each turns into f32. ---- */

GSI_ALWAYS_INLINE void vec_widen(int dtype, const char *p, vec v[2])
{
    if (dtype == GRADSYNC_F16) {
        v[0] = from_ps(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p)));
        v[1] = from_ps(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 16))));
    } else {
        vec unit = vec_load(p);
        v[0] = _mm256_slli_epi32(unit, 16);
        v[1] = _mm256_and_si256(unit, _mm256_set1_epi32((int)0xffff0000));
    }
}

/* Rounds the upper half of every f32 to nearest even: half.h says why this is right. */
GSI_ALWAYS_INLINE vec round_upper(vec v)
{
    vec odd = _mm256_and_si256(_mm256_srli_epi32(v, 16), _mm256_set1_epi32(1));

    return _mm256_add_epi32(_mm256_add_epi32(v, _mm256_set1_epi32(0x7fff)), odd);
}

GSI_ALWAYS_INLINE vec vec_narrow(int dtype, const vec v[2])
{
    if (dtype == GRADSYNC_F16) {
        __m128i low = _mm256_cvtps_ph(PS(v[0]), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        __m128i high = _mm256_cvtps_ph(PS(v[1]), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    }
    return _mm256_blend_epi16(_mm256_srli_epi32(round_upper(v[0]), 16), round_upper(v[1]), 0xaa);
}

GSI_ALWAYS_INLINE void vec_order(int dtype, vec v[2])
{
    if (dtype == GRADSYNC_BF16) {
        vec even = from_ps(_mm256_shuffle_ps(PS(v[0]), PS(v[1]), 0x88));
        vec odd = from_ps(_mm256_shuffle_ps(PS(v[0]), PS(v[1]), 0xdd));
        v[0] = _mm256_permute4x64_epi64(even, 0xd8);
        v[1] = _mm256_permute4x64_epi64(odd, 0xd8);
    }
}

GSI_ALWAYS_INLINE void vec_unorder(int dtype, vec v[2])
{
    if (dtype == GRADSYNC_BF16) {
        vec low = _mm256_unpacklo_epi32(v[0], v[1]), high = _mm256_unpackhi_epi32(v[0], v[1]);
        v[0] = _mm256_permute2x128_si256(low, high, 0x20);
        v[1] = _mm256_permute2x128_si256(low, high, 0x31);
    }
}

/* ---- Arithmetic ---- */

GSI_ALWAYS_INLINE vec vec_splat(int dtype, double value)
{
    return dtype == GRADSYNC_F64 ? from_pd(_mm256_set1_pd(value)) : from_ps(_mm256_set1_ps((float)value));
}

GSI_ALWAYS_INLINE vec vec_mul(int dtype, vec a, vec b)
{
    return dtype == GRADSYNC_F64 ? from_pd(_mm256_mul_pd(PD(a), PD(b))) : from_ps(_mm256_mul_ps(PS(a), PS(b)));
}

GSI_ALWAYS_INLINE vec vec_div(int dtype, vec a, vec b)
{
    return dtype == GRADSYNC_F64 ? from_pd(_mm256_div_pd(PD(a), PD(b))) : from_ps(_mm256_div_ps(PS(a), PS(b)));
}

/* minps and maxps give their second operand if either is a NaN or both are zeros. So
 * both orders are taken: where they differ, OR keeps the NaN and the sign of -0, which
 * is right for min. For max the difference of the OR and the XOR keeps the NaN too,
 * changes no number (XOR is then 0), and makes -0 - -0 = +0 of unlike zeros. */
GSI_ALWAYS_INLINE vec op_f32(int op, __m256 a, __m256 b)
{
    __m256 x, y;

    switch (op) {
    case GRADSYNC_PROD:
        return from_ps(_mm256_mul_ps(a, b));
    case GRADSYNC_MIN:
        return from_ps(_mm256_or_ps(_mm256_min_ps(a, b), _mm256_min_ps(b, a)));
    case GRADSYNC_MAX:
        x = _mm256_max_ps(a, b);
        y = _mm256_max_ps(b, a);
        return from_ps(_mm256_sub_ps(_mm256_or_ps(x, y), _mm256_xor_ps(x, y)));
    default:
        return from_ps(_mm256_add_ps(a, b));
    }
}

GSI_ALWAYS_INLINE vec op_f64(int op, __m256d a, __m256d b)
{
    __m256d x, y;

    switch (op) {
    case GRADSYNC_PROD:
        return from_pd(_mm256_mul_pd(a, b));
    case GRADSYNC_MIN:
        return from_pd(_mm256_or_pd(_mm256_min_pd(a, b), _mm256_min_pd(b, a)));
    case GRADSYNC_MAX:
        x = _mm256_max_pd(a, b);
        y = _mm256_max_pd(b, a);
        return from_pd(_mm256_sub_pd(_mm256_or_pd(x, y), _mm256_xor_pd(x, y)));
    default:
        return from_pd(_mm256_add_pd(a, b));
    }
}

/* There is no product of bytes: that of the even ones, and of the odd ones, by 16-bit products. */
GSI_ALWAYS_INLINE vec mul_8(vec a, vec b)
{
    vec even = _mm256_and_si256(_mm256_mullo_epi16(a, b), _mm256_set1_epi16(0xff));
    vec odd = _mm256_mullo_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));

    return _mm256_or_si256(even, _mm256_slli_epi16(odd, 8));
}

/* Nor one of 64 bits: low by low, and the cross products into the upper half. */
GSI_ALWAYS_INLINE vec mul_64(vec a, vec b)
{
    vec cross = _mm256_mullo_epi32(a, _mm256_shuffle_epi32(b, 0xb1));
    vec upper = _mm256_slli_epi64(_mm256_add_epi32(cross, _mm256_srli_epi64(cross, 32)), 32);

    return _mm256_add_epi64(_mm256_mul_epu32(a, b), upper);
}

GSI_ALWAYS_INLINE vec vec_sum(int dtype, vec a, vec b)
{
    switch (gsi_elem_size(dtype)) {
    case 1:
        return _mm256_add_epi8(a, b);
    case 4:
        return _mm256_add_epi32(a, b);
    default:
        return _mm256_add_epi64(a, b);
    }
}

GSI_ALWAYS_INLINE vec vec_prod(int dtype, vec a, vec b)
{
    switch (gsi_elem_size(dtype)) {
    case 1:
        return mul_8(a, b);
    case 4:
        return _mm256_mullo_epi32(a, b);
    default:
        return mul_64(a, b);
    }
}

/* Lanes of 64 bits in which a > b. */
GSI_ALWAYS_INLINE vec greater_64(int dtype, vec a, vec b)
{
    if (dtype == GRADSYNC_U64) {
        const vec sign = _mm256_set1_epi64x(INT64_MIN);
        a = _mm256_xor_si256(a, sign);
        b = _mm256_xor_si256(b, sign);
    }
    return _mm256_cmpgt_epi64(a, b);
}

GSI_ALWAYS_INLINE vec vec_min(int dtype, vec a, vec b)
{
    switch (dtype) {
    case GRADSYNC_I8:
        return _mm256_min_epi8(a, b);
    case GRADSYNC_U8:
        return _mm256_min_epu8(a, b);
    case GRADSYNC_I32:
        return _mm256_min_epi32(a, b);
    case GRADSYNC_U32:
        return _mm256_min_epu32(a, b);
    default:
        return _mm256_blendv_epi8(a, b, greater_64(dtype, a, b));
    }
}

GSI_ALWAYS_INLINE vec vec_max(int dtype, vec a, vec b)
{
    switch (dtype) {
    case GRADSYNC_I8:
        return _mm256_max_epi8(a, b);
    case GRADSYNC_U8:
        return _mm256_max_epu8(a, b);
    case GRADSYNC_I32:
        return _mm256_max_epi32(a, b);
    case GRADSYNC_U32:
        return _mm256_max_epu32(a, b);
    default:
        return _mm256_blendv_epi8(b, a, greater_64(dtype, a, b));
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

/* All ones in the lanes in which a or b is a NaN. */
GSI_ALWAYS_INLINE vec nan_lanes(int dtype, vec a, vec b)
{
    return dtype == GRADSYNC_F64 ? from_pd(_mm256_cmp_pd(PD(a), PD(b), _CMP_UNORD_Q))
                                 : from_ps(_mm256_cmp_ps(PS(a), PS(b), _CMP_UNORD_Q));
}

/* One comparison looks at two registers; NaNs are rare, so mending them is a branch of its own. */
GSI_ALWAYS_INLINE void vec_canonical(int dtype, int units, int wide, vec v[][2])
{
    const vec nan = dtype == GRADSYNC_F64 ? _mm256_set1_epi64x(0x7ff8000000000000) : _mm256_set1_epi32(0x7fc00000);
    vec any = _mm256_setzero_si256();

    if (wide == 2) {
        for (int u = 0; u < units; u++)
            any = _mm256_or_si256(any, nan_lanes(dtype, v[u][0], v[u][1]));
    } else if (units == 1) {
        any = nan_lanes(dtype, v[0][0], v[0][0]);
    } else {
        for (int u = 0; u < units; u += 2)
            any = _mm256_or_si256(any, nan_lanes(dtype, v[u][0], v[u + 1][0]));
    }
    if (__builtin_expect(_mm256_testz_si256(any, any), 1))
        return;
    for (int u = 0; u < units; u++)
        for (int w = 0; w < wide; w++)
            v[u][w] = _mm256_blendv_epi8(v[u][w], nan, nan_lanes(dtype, v[u][w], v[u][w]));
}

#include "reduce/kernel.h"

static int supported(void)
{
    unsigned eax, ebx, ecx, edx;

    return __builtin_cpu_supports("avx2") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx & bit_F16C;
}

const gsi_reduce_tier gsi_reduce_tier_avx2 = {"avx2", supported, reduce, copy};
