/* SPDX-License-Identifier: Apache-2.0 */
/* What the tiers share with the dispatcher and take from the reference. */
#ifndef GSI_REDUCE_INTERNAL_H
#define GSI_REDUCE_INTERNAL_H

#include "reduce/reduce.h"

#define GSI_ALWAYS_INLINE static inline __attribute__((always_inline))

/* Under a sanitizer the reference is the default: it is instrumented, so that what a
 * caller gets wrong about its buffers, or about who may touch them now, is seen. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GSI_REDUCE_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define GSI_REDUCE_SANITIZED 1
#endif
#endif
#ifndef GSI_REDUCE_SANITIZED
#define GSI_REDUCE_SANITIZED 0
#endif

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
    static const unsigned char sizes[GRADSYNC_DTYPE_COUNT] = {4, 8, 2, 2, 1, 1, 4, 4, 8, 8};

    return sizes[dtype];
}

#endif
