/* SPDX-License-Identifier: Apache-2.0 */
/* The AVX-512 tier: F, BW, DQ and VL, which every CPU since Skylake-SP and Zen 4 has. */
#include "reduce/internal.h"

#include <immintrin.h>

typedef __m512i vec;
#define VEC_BYTES   64
#define VEC_PARTIAL 1

#define PS(v) _mm512_castsi512_ps(v)
#define PD(v) _mm512_castsi512_pd(v)

GSI_ALWAYS_INLINE vec from_ps(__m512 v)
{
    return _mm512_castps_si512(v);
}

GSI_ALWAYS_INLINE vec from_pd(__m512d v)
{
    return _mm512_castpd_si512(v);
}

GSI_ALWAYS_INLINE vec vec_load(const char *p)
{
    return _mm512_loadu_si512(p);
}

GSI_ALWAYS_INLINE void vec_store(char *p, vec v)
{
    _mm512_storeu_si512(p, v);
}

GSI_ALWAYS_INLINE void vec_stream(char *p, vec v)
{
    _mm512_stream_si512((vec *)(void *)p, v);
}

GSI_ALWAYS_INLINE void vec_fence(void)
{
    _mm_sfence();
}

GSI_ALWAYS_INLINE __mmask64 first_bytes(unsigned bytes)
{
    return bytes < 64 ? (UINT64_C(1) << bytes) - 1 : ~UINT64_C(0);
}

GSI_ALWAYS_INLINE vec vec_load_part(const char *p, unsigned bytes)
{
    return _mm512_maskz_loadu_epi8(first_bytes(bytes), p);
}

GSI_ALWAYS_INLINE void vec_store_part(char *p, vec v, unsigned bytes)
{
    _mm512_mask_storeu_epi8(p, first_bytes(bytes), v);
}

/* ---- f16: in memory's order. bf16: even elements, then odd ones, which one shift
 * or one mask each turns into f32. ---- */

GSI_ALWAYS_INLINE void vec_expand(int dtype, vec unit, vec v[2])
{
    if (dtype == GRADSYNC_F16) {
        v[0] = from_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(unit)));
        v[1] = from_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(unit, 1)));
    } else {
        v[0] = _mm512_slli_epi32(unit, 16);
        v[1] = _mm512_and_si512(unit, _mm512_set1_epi32((int)0xffff0000));
    }
}

GSI_ALWAYS_INLINE void vec_widen(int dtype, const char *p, vec v[2])
{
    if (dtype == GRADSYNC_F16) {
        v[0] = from_ps(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p)));
        v[1] = from_ps(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p + 32))));
    } else {
        vec_expand(dtype, vec_load(p), v);
    }
}

/* Rounds the upper half of every f32 to nearest even: half.h says why this is right. */
GSI_ALWAYS_INLINE vec round_upper(vec v)
{
    __mmask16 odd = _mm512_test_epi32_mask(v, _mm512_set1_epi32(0x10000));
    vec r = _mm512_add_epi32(v, _mm512_set1_epi32(0x7fff));

    return _mm512_mask_add_epi32(r, odd, r, _mm512_set1_epi32(1));
}

GSI_ALWAYS_INLINE vec vec_narrow(int dtype, const vec v[2])
{
    if (dtype == GRADSYNC_F16) {
        __m256i low = _mm512_cvtps_ph(PS(v[0]), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        __m256i high = _mm512_cvtps_ph(PS(v[1]), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(round_upper(v[0]), 16), round_upper(v[1]));
}

GSI_ALWAYS_INLINE void vec_order(int dtype, vec v[2])
{
    if (dtype == GRADSYNC_BF16) {
        const vec even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const vec odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        vec low = v[0];
        v[0] = _mm512_permutex2var_epi32(low, even, v[1]);
        v[1] = _mm512_permutex2var_epi32(low, odd, v[1]);
    }
}

GSI_ALWAYS_INLINE void vec_unorder(int dtype, vec v[2])
{
    if (dtype == GRADSYNC_BF16) {
        const vec low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const vec high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        vec even = v[0];
        v[0] = _mm512_permutex2var_epi32(even, low, v[1]);
        v[1] = _mm512_permutex2var_epi32(even, high, v[1]);
    }
}

/* ---- Arithmetic ---- */

GSI_ALWAYS_INLINE vec vec_splat(int dtype, double value)
{
    return dtype == GRADSYNC_F64 ? from_pd(_mm512_set1_pd(value)) : from_ps(_mm512_set1_ps((float)value));
}

GSI_ALWAYS_INLINE vec vec_mul(int dtype, vec a, vec b)
{
    return dtype == GRADSYNC_F64 ? from_pd(_mm512_mul_pd(PD(a), PD(b))) : from_ps(_mm512_mul_ps(PS(a), PS(b)));
}

GSI_ALWAYS_INLINE vec vec_div(int dtype, vec a, vec b)
{
    return dtype == GRADSYNC_F64 ? from_pd(_mm512_div_pd(PD(a), PD(b))) : from_ps(_mm512_div_ps(PS(a), PS(b)));
}

/* vrange orders -0 before +0 as we do, but prefers a number to a NaN. */
GSI_ALWAYS_INLINE vec op_f32(int op, __m512 a, __m512 b)
{
    const __m512 nan = PS(_mm512_set1_epi32(0x7fc00000));

    switch (op) {
    case GRADSYNC_PROD:
        return from_ps(_mm512_mul_ps(a, b));
    case GRADSYNC_MIN:
        return from_ps(_mm512_mask_mov_ps(_mm512_range_ps(a, b, 4), _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q), nan));
    case GRADSYNC_MAX:
        return from_ps(_mm512_mask_mov_ps(_mm512_range_ps(a, b, 5), _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q), nan));
    default:
        return from_ps(_mm512_add_ps(a, b));
    }
}

GSI_ALWAYS_INLINE vec op_f64(int op, __m512d a, __m512d b)
{
    const __m512d nan = PD(_mm512_set1_epi64(0x7ff8000000000000));

    switch (op) {
    case GRADSYNC_PROD:
        return from_pd(_mm512_mul_pd(a, b));
    case GRADSYNC_MIN:
        return from_pd(_mm512_mask_mov_pd(_mm512_range_pd(a, b, 4), _mm512_cmp_pd_mask(a, b, _CMP_UNORD_Q), nan));
    case GRADSYNC_MAX:
        return from_pd(_mm512_mask_mov_pd(_mm512_range_pd(a, b, 5), _mm512_cmp_pd_mask(a, b, _CMP_UNORD_Q), nan));
    default:
        return from_pd(_mm512_add_pd(a, b));
    }
}

/* There is no product of bytes: that of the even ones, and of the odd ones, by 16-bit products. */
GSI_ALWAYS_INLINE vec mul_8(vec a, vec b)
{
    vec even = _mm512_mullo_epi16(a, b);
    vec odd = _mm512_mullo_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));

    return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, even, _mm512_slli_epi16(odd, 8));
}

GSI_ALWAYS_INLINE vec vec_sum(int dtype, vec a, vec b)
{
    switch (gsi_elem_size(dtype)) {
    case 1:
        return _mm512_add_epi8(a, b);
    case 4:
        return _mm512_add_epi32(a, b);
    default:
        return _mm512_add_epi64(a, b);
    }
}

GSI_ALWAYS_INLINE vec vec_prod(int dtype, vec a, vec b)
{
    switch (gsi_elem_size(dtype)) {
    case 1:
        return mul_8(a, b);
    case 4:
        return _mm512_mullo_epi32(a, b);
    default:
        return _mm512_mullo_epi64(a, b);
    }
}

GSI_ALWAYS_INLINE vec vec_min(int dtype, vec a, vec b)
{
    switch (dtype) {
    case GRADSYNC_I8:
        return _mm512_min_epi8(a, b);
    case GRADSYNC_U8:
        return _mm512_min_epu8(a, b);
    case GRADSYNC_I32:
        return _mm512_min_epi32(a, b);
    case GRADSYNC_U32:
        return _mm512_min_epu32(a, b);
    case GRADSYNC_I64:
        return _mm512_min_epi64(a, b);
    default:
        return _mm512_min_epu64(a, b);
    }
}

GSI_ALWAYS_INLINE vec vec_max(int dtype, vec a, vec b)
{
    switch (dtype) {
    case GRADSYNC_I8:
        return _mm512_max_epi8(a, b);
    case GRADSYNC_U8:
        return _mm512_max_epu8(a, b);
    case GRADSYNC_I32:
        return _mm512_max_epi32(a, b);
    case GRADSYNC_U32:
        return _mm512_max_epu32(a, b);
    case GRADSYNC_I64:
        return _mm512_max_epi64(a, b);
    default:
        return _mm512_max_epu64(a, b);
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

/* Lanes in which a or b is a NaN. */
GSI_ALWAYS_INLINE unsigned nan_lanes(int dtype, vec a, vec b)
{
    return dtype == GRADSYNC_F64 ? _mm512_cmp_pd_mask(PD(a), PD(b), _CMP_UNORD_Q)
                                 : _mm512_cmp_ps_mask(PS(a), PS(b), _CMP_UNORD_Q);
}

/* One comparison looks at two registers; NaNs are rare, so mending them is a branch of its own. */
GSI_ALWAYS_INLINE void vec_canonical(int dtype, int units, int wide, vec v[][2])
{
    unsigned any = 0;

    if (wide == 2) {
        for (int u = 0; u < units; u++)
            any |= nan_lanes(dtype, v[u][0], v[u][1]);
    } else if (units == 1) {
        any = nan_lanes(dtype, v[0][0], v[0][0]);
    } else {
        for (int u = 0; u < units; u += 2)
            any |= nan_lanes(dtype, v[u][0], v[u + 1][0]);
    }
    if (__builtin_expect(!any, 1))
        return;
    for (int u = 0; u < units; u++)
        for (int w = 0; w < wide; w++) {
            unsigned lanes = nan_lanes(dtype, v[u][w], v[u][w]);
            v[u][w] = dtype == GRADSYNC_F64 ? _mm512_mask_set1_epi64(v[u][w], (__mmask8)lanes, 0x7ff8000000000000)
                                            : _mm512_mask_set1_epi32(v[u][w], (__mmask16)lanes, 0x7fc00000);
        }
}

#include "reduce/kernel.h"

static int supported(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

const gsi_reduce_tier gsi_reduce_tier_avx512 = {"avx512", supported, reduce, copy};
