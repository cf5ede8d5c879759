/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reduction kernels: k inputs, one result, written to one or many outputs, in one
 * pass. A C reference defines every bit; the ISA tiers give the same bits.
 *
 *   acc    = src[0][i] * scale[0]              (in f32 for f16 and bf16)
 *   acc    = acc OP src[k][i] * scale[k]       for k = 1 .. nsrc-1, in this order
 *   result = acc / divisor                     (if divisor > 1; integers truncate)
 *   dst[d][i] = result                         for every d, rounded once (nearest even)
 *
 * No fused multiply-add. Integers wrap. Floats: a NaN result is the canonical
 * quiet NaN of the type (0x7fc00000, 0x7ff8..., 0x7e00, 0x7fc0); min and max
 * propagate NaN and order -0 before +0; denormals are kept whatever the host
 * process has set in MXCSR or FPCR, and its setting is left as it was.
 */
#ifndef GSI_REDUCE_H
#define GSI_REDUCE_H

#include <gradsync/gradsync.h>

enum gsi_reduce_flags {
    GSI_REDUCE_NT = 1,      /* write with non-temporal stores (a hint); fenced before returning. It pays where
                               outputs are no inputs and all of it exceeds the L2 cache; in place it costs */
    GSI_REDUCE_ACC_IN = 2,  /* f16, bf16: src[0] holds f32 partial results */
    GSI_REDUCE_ACC_OUT = 4, /* f16, bf16: the outputs get f32 partial results, unrounded */
};

typedef struct gsi_reduce_args {
    void *const *dst;       /* ndst outputs of count elements, any alignment; an output may be exactly one of */
    const void *const *src; /* the nsrc inputs (in place; elements of the same size), and not overlap otherwise */
    const double *scale;    /* nsrc factors (cast to the type computed in); NULL: none. Floats only */
    uint64_t count;         /* elements; may be 0 */
    uint64_t divisor;       /* 0 or 1: none */
    uint32_t ndst, nsrc;    /* >= 1 each */
    uint32_t flags;
    uint8_t dtype; /* enum gradsync_dtype */
    uint8_t op;    /* GRADSYNC_SUM, PROD, MIN or MAX; AVG and PREMUL_SUM are SUM with divisor, scale */
} gsi_reduce_args;

/* Reduces with the best tier of this CPU. Thread safe. Never fails: the arguments
 * are the caller's to check. */
void gsi_reduce(const gsi_reduce_args *args);
/* Copies bytes from src to every dst, bits unchanged; nt: non-temporal stores. */
void gsi_copy(void *const *dst, uint32_t ndst, const void *src, uint64_t bytes, int nt);

typedef struct gsi_reduce_tier {
    const char *name;       /* "c", "avx2", "avx512", "neon" */
    int (*supported)(void); /* on this CPU */
    void (*reduce)(const gsi_reduce_args *args);
    void (*copy)(void *const *dst, uint32_t ndst, const void *src, uint64_t bytes, int nt);
} gsi_reduce_tier;

/* The tiers of this build, the reference first, NULL past the last. */
const gsi_reduce_tier *gsi_reduce_tier_at(int index);
/* The tier that gsi_reduce() uses: what the environment's GRADSYNC_CPU_TIER names (read
 * once), if this build and CPU have it; else the best supported one, and in a build
 * with a sanitizer the reference, which is instrumented. Thread safe. */
const gsi_reduce_tier *gsi_reduce_tier_best(void);

#endif
