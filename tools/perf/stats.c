/* SPDX-License-Identifier: Apache-2.0 */
#include "stats.h"

#include <math.h>
#include <stdlib.h>

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double percentile(const double *sorted, size_t n, unsigned percent)
{
    size_t at = (n * percent + 99) / 100;

    return sorted[at > 0 ? at - 1 : 0];
}

void perf_stats(double *samples, size_t n, double scale, perf_result *result)
{
    double sum = 0, squares = 0;

    qsort(samples, n, sizeof *samples, compare);
    for (size_t i = 0; i < n; i++)
        sum += samples[i];
    double mean = sum / (double)n;
    for (size_t i = 0; i < n; i++)
        squares += (samples[i] - mean) * (samples[i] - mean);
    result->min_us = samples[0] * scale;
    result->max_us = samples[n - 1] * scale;
    result->p50_us = percentile(samples, n, 50) * scale;
    result->p95_us = percentile(samples, n, 95) * scale;
    result->p99_us = percentile(samples, n, 99) * scale;
    result->mean_us = mean * scale;
    result->stdev_us = sqrt(squares / (double)n) * scale;
}
