/* SPDX-License-Identifier: Apache-2.0 */
/* Allocation that tests can make fail (gsi_alloc_fail_at). Everything
 * allocated here is freed with free(). */
#ifndef GSI_BASE_ALLOC_H
#define GSI_BASE_ALLOC_H

#include <stddef.h>

/* Zeroed memory; NULL on failure. */
void *gsi_calloc(size_t n, size_t size);
void *gsi_realloc(void *p, size_t size);
char *gsi_strdup(const char *s);
/* Zeroed, aligned to 64 bytes. */
void *gsi_calloc_aligned(size_t size);
/* Tests: the n-th allocation from now on fails (1: the next one); 0: none does. */
void gsi_alloc_fail_at(long n);
/* Tests: allocations since the last gsi_alloc_fail_at(). */
long gsi_alloc_count(void);

#endif
