/* SPDX-License-Identifier: Apache-2.0 */
/* Speed of every tier: batches of all tiers and of memcpy in turn, medians over the rounds. */
#include "checkreduce/checkreduce.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { ROUNDS = 11 };

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* What is measured: a tier's reduce, or memcpy where tier is NULL. Seconds for each of n calls. */
static double batch(const gsi_reduce_tier *tier, const gsi_reduce_args *args, uint64_t bytes, long n)
{
    double start = now();

    for (long i = 0; i < n; i++) {
        if (tier)
            tier->reduce(args);
        else
            memcpy(args->dst[0], args->src[args->nsrc - 1], bytes);
        __asm__ volatile("" : : : "memory");
    }
    return (now() - start) / (double)n;
}

/* Calls that take about 2 ms, at least one. */
static long calls_for(const gsi_reduce_tier *tier, const gsi_reduce_args *args, uint64_t bytes)
{
    batch(tier, args, bytes, 1); /* warms up */
    for (long n = 1;; n *= 4) {
        double took = batch(tier, args, bytes, n) * (double)n;
        if (took > 0.0005)
            return (long)((double)n * 0.002 / took) + 1;
    }
}

static void bench_shape(const options *opt, int dtype, int op, uint32_t nsrc, uint32_t ndst, uint64_t bytes,
                        char *memory)
{
    const gsi_reduce_tier *tiers[MAX_TIERS + 1] = {NULL};
    double times[MAX_TIERS + 1][ROUNDS], median[MAX_TIERS + 1];
    const uint64_t stride = (bytes + 4095) & ~UINT64_C(4095);
    long calls[MAX_TIERS + 1];
    const void *src[MAX_BUFS];
    void *dst[MAX_BUFS];
    gsi_reduce_args args = {.dst = dst, .src = src, .ndst = ndst, .nsrc = nsrc, .flags = opt->flags};
    int n = 1; /* tiers[0] is memcpy */

    args.count = bytes / dtype_sizes[dtype];
    args.dtype = (uint8_t)dtype;
    args.op = (uint8_t)op;
    for (uint32_t k = 0; k < nsrc; k++)
        src[k] = memory + k * stride;
    for (uint32_t d = 0; d < ndst; d++)
        dst[d] = memory + (ndst == nsrc ? d : nsrc + d) * stride;
    memset(memory, 0, (nsrc + ndst) * stride); /* sums of zeros stay zeros, and are as fast as others */
    for (int i = 0; n <= MAX_TIERS && (tiers[n] = wanted_tier(opt, i)); i++)
        n++;
    for (int i = 0; i < n; i++)
        calls[i] = calls_for(tiers[i], &args, bytes);
    for (int r = 0; r < ROUNDS; r++)
        for (int i = 0; i < n; i++)
            times[i][r] = batch(tiers[i], &args, bytes, calls[i]);
    for (int i = 0; i < n; i++) {
        qsort(times[i], ROUNDS, sizeof(double), by_value);
        median[i] = times[i][ROUNDS / 2];
    }
    const double copied = 2e-9 * (double)bytes / median[0];
    printf("%-4s %-4s %3u -> %-2u %10llu  memcpy %6.1f", dtype_names[dtype], op_names[op], nsrc, ndst,
           (unsigned long long)bytes, copied);
    for (int i = 1; i < n; i++) {
        double rate = 1e-9 * (double)bytes * (nsrc + ndst) / median[i];
        printf("  %s %6.1f (%5.2fx memcpy, %6.2fx %s, %.4g us)", tiers[i]->name, rate, rate / copied,
               median[1] / median[i], tiers[1]->name, median[i] * 1e6);
    }
    printf("\n");
    fflush(stdout);
}

void bench(const options *opt)
{
    static const int default_dtypes[] = {GRADSYNC_F32, GRADSYNC_F16, GRADSYNC_BF16};
    static const uint64_t default_bytes[] = {4096, 256 << 10, 64 << 20};
    static const uint32_t default_nsrc[] = {2, 4, 8};
    const size_t most = ((size_t)(opt->bytes ? opt->bytes : 64 << 20) + 4096) * 2 * MAX_BUFS;
    char *memory = mmap(NULL, most, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED) {
        perror("checkreduce: mmap");
        exit(2);
    }
    madvise(memory, most, MADV_HUGEPAGE);
    printf("# GB/s read and written; %s stores; ndst = nsrc is in place\n",
           opt->flags & GSI_REDUCE_NT ? "non-temporal" : "plain");
    for (int t = 0; t < (opt->dtype >= 0 ? 1 : 3); t++)
        for (int b = 0; b < (opt->bytes ? 1 : 3); b++)
            for (int s = 0; s < (opt->nsrc ? 1 : 3); s++)
                for (int all = 0; all < (opt->ndst ? 1 : 2); all++) {
                    uint32_t nsrc = opt->nsrc ? opt->nsrc : default_nsrc[s];
                    bench_shape(opt, opt->dtype >= 0 ? opt->dtype : default_dtypes[t],
                                opt->op >= 0 ? opt->op : GRADSYNC_SUM, nsrc,
                                opt->ndst ? opt->ndst
                                : all     ? nsrc
                                          : 1,
                                opt->bytes ? opt->bytes : default_bytes[b], memory);
                }
    munmap(memory, most);
}
