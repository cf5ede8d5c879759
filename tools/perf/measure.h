/* SPDX-License-Identifier: Apache-2.0 */
/* The communicator, the buffers and the measured loops of one rank. */
#ifndef TOOLS_PERF_MEASURE_H
#define TOOLS_PERF_MEASURE_H

#include <signal.h>

#include "perf.h"

typedef struct perf_bench perf_bench;

/* Joins the job (or makes one of one rank) and learns of the other ranks; fills
 * run's rank, nranks, comm and ranks. NULL after saying why on stderr. */
perf_bench *perf_bench_open(const perf_options *options, perf_run *run);
/* Allocates the buffers. Collective, so that all end if one cannot. */
int perf_bench_buffers(perf_bench *b);
/* Leaves the job; if a call failed here, by aborting it, so that the other ranks end. */
void perf_bench_close(perf_bench *b);

/* The largest of the ranks' numbers, on every rank. Negative: it failed, said. */
int perf_bench_agree(perf_bench *b, int number);

/* The row that a size makes: whole elements, and slices for every rank. */
void perf_row_shape(const perf_options *o, int nranks, uint64_t size, perf_row *row);
/* Measures and verifies one row, both placements. Collective. *stop becomes 1 if any
 * rank's *signal_number is set by then. Returns 0 or -1 after saying why. */
int perf_bench_row(perf_bench *b, perf_row *row, const volatile sig_atomic_t *signal_number, int *stop);

#endif
