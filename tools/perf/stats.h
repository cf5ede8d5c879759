/* SPDX-License-Identifier: Apache-2.0 */
/* Figures of a row of samples. */
#ifndef TOOLS_PERF_STATS_H
#define TOOLS_PERF_STATS_H

#include <stddef.h>

#include "perf.h"

/* Sorts samples, and fills result's min_us .. stdev_us with them times `scale`.
 * A percentile is the smallest sample that so many percent do not exceed. n > 0. */
void perf_stats(double *samples, size_t n, double scale, perf_result *result);

#endif
