/* SPDX-License-Identifier: Apache-2.0 */
/* What the tiers share with the dispatcher and take from the reference. */
#ifndef GSI_REDUCE_INTERNAL_H
#define GSI_REDUCE_INTERNAL_H

#include "reduce/reduce.h"

#define GSI_ALWAYS_INLINE static inline __attribute__((always_inline))

extern const gsi_reduce_tier gsi_reduce_tier_c;
extern const gsi_reduce_tier gsi_reduce_tier_avx2;
extern const gsi_reduce_tier gsi_reduce_tier_avx512;
extern const gsi_reduce_tier gsi_reduce_tier_neon;

/* The reference on elements [first, end), in the floating-point environment that
 * the caller has set. Vector tiers finish with it what fills no vector. */
void gsi_reduce_c_range(const gsi_reduce_args *args, uint64_t first, uint64_t end);

GSI_ALWAYS_INLINE int gsi_is_half(int dtype)
{
    return dtype == GRADSYNC_F16 || dtype == GRADSYNC_BF16;
}

GSI_ALWAYS_INLINE int gsi_is_float(int dtype)
{
    return dtype <= GRADSYNC_BF16;
}

GSI_ALWAYS_INLINE unsigned gsi_elem_size(int dtype)
{
    switch (dtype) {
    case GRADSYNC_F64:
    case GRADSYNC_I64:
    case GRADSYNC_U64:
        return 8;
    case GRADSYNC_F16:
    case GRADSYNC_BF16:
        return 2;
    case GRADSYNC_I8:
    case GRADSYNC_U8:
        return 1;
    default:
        return 4;
    }
}

#endif
