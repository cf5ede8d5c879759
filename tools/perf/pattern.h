/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Test data whose result is known exactly: for every element type, operation and
 * number of ranks, contributions for which each order and grouping of the ranks,
 * and rounding of partial results to the element type, gives the same bits. The
 * expectation is computed here, from whole numbers, without the library.
 *
 * Values depend on the element's index modulo a prime period, so that data in a
 * wrong place shows, and on a seed, so that an old result does not pass for a new.
 */
#ifndef TOOLS_PERF_PATTERN_H
#define TOOLS_PERF_PATTERN_H

#include <stdint.h>

enum { PATTERN_PERIOD = 65521 };

typedef struct pattern {
    int dtype;
    int op; /* -1: arbitrary bits, for collectives that only move data */
    int nranks;
    int steady; /* 1: prod of +-1 only, so that repeating it in place stays at 1 */
    uint64_t seed;
} pattern;

/* The factor of a rank for GRADSYNC_PREMUL_SUM. */
double pattern_prescale(int rank);
/* Writes rank's contributions of elements first .. first + count - 1. */
void pattern_fill(const pattern *p, int rank, uint64_t first, void *out, uint64_t count);
/* How many elements of data differ from rank's contributions. */
uint64_t pattern_count_changed(const pattern *p, int rank, uint64_t first, const void *data, uint64_t count);
/* How many elements of data differ from the reduction over all ranks. */
uint64_t pattern_count_wrong(const pattern *p, uint64_t first, const void *data, uint64_t count);

#endif
