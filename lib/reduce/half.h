/* SPDX-License-Identifier: Apache-2.0 */
/* f16 and bf16 from and to f32, with integers only: exact, rounded to nearest
 * even, denormals kept, whatever the floating-point environment is. */
#ifndef GSI_REDUCE_HALF_H
#define GSI_REDUCE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t half_bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float half_float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float f32_from_bf16(uint16_t h)
{
    return half_float_of((uint32_t)h << 16);
}

/* Adding half of the last kept place, less one if that place is even, carries
 * into the exponent where it must: the largest values round to infinity. */
static inline uint16_t bf16_from_f32(float f)
{
    uint32_t u = half_bits_of(f);

    if ((u & 0x7fffffff) > 0x7f800000)
        return 0x7fc0;
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static inline float f32_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff;

    if (exponent == 31) /* infinity and NaN */
        return half_float_of(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) { /* zero and denormals, which f32 holds as normal numbers */
        if (fraction == 0)
            return half_float_of(sign);
        unsigned shift = (unsigned)__builtin_clz(fraction) - 21; /* brings the leading 1 to bit 10 */
        return half_float_of(sign | (113 - shift) << 23 | (fraction << shift & 0x3ff) << 13);
    }
    return half_float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

static inline uint16_t f16_from_f32(float f)
{
    uint32_t u = half_bits_of(f), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;

    if (magnitude > 0x7f800000)
        return 0x7e00;
    if (magnitude >= 0x47800000) /* 65536 and more: infinity */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude >= 0x38800000) { /* 2^-14, the least normal f16, and more; the carry may reach infinity */
        magnitude -= 112u << 23;
        return (uint16_t)(sign | (magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13);
    }
    if (magnitude <= 0x33000000) /* 2^-25 and less: half of the least denormal is a tie, to even */
        return (uint16_t)sign;
    uint32_t fraction = (magnitude & 0x7fffff) | 0x800000, shift = 126 - (magnitude >> 23); /* 14 .. 24 */
    uint32_t kept = fraction >> shift, lost = fraction & ((1u << shift) - 1), tie = 1u << (shift - 1);
    return (uint16_t)(sign | (kept + (lost > tie || (lost == tie && (kept & 1)))));
}

#endif
