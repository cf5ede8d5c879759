/* SPDX-License-Identifier: Apache-2.0 */
/* Memory to send from and receive into, with guard bytes around the data. */
#ifndef TOOLS_PERF_BUFFERS_H
#define TOOLS_PERF_BUFFERS_H

#include <stddef.h>

#include "perf.h"

enum { PERF_GUARD = 4096 };

/* Room for `regions` pieces of data of at most `most` bytes, guards between them. */
typedef struct perf_area {
    unsigned char *base;
    size_t bytes, pitch;
    int regions;
    gradsync_mem *mem; /* NULL: the library does not know of it */
    int allocated;     /* by the library */
} perf_area;

/* Returns 0, or a negative gradsync_error. */
int perf_area_make(perf_area *a, gradsync_context *ctx, const perf_options *o, size_t most, int regions);
void perf_area_free(perf_area *a);
/* The data of region g. */
void *perf_area_at(const perf_area *a, int g);
/* Fills what is around `used` bytes of each region. */
void perf_area_guard(perf_area *a, size_t used);
/* How many of those bytes have changed. */
size_t perf_area_damage(const perf_area *a, size_t used);

#endif
