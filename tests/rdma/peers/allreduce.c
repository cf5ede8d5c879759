/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In-place all-reduce of f32 sums by MPI, for tests/rdma/bench to compare with:
 *
 *   mpirun ... allreduce BYTES:ITERATIONS...
 *
 * For each: one checked operation, a few to warm up, then ITERATIONS back to back between barriers,
 * as gradsync-perf does. Rank 0 prints "bytes microseconds cpu wrong": the time of an operation on
 * the slowest rank, CPU seconds of a rank per 10^9 bytes (mean of the ranks), wrong elements.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double seconds(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static long check(float *data, int count, int rank, int ranks)
{
    long bad = 0;

    for (int i = 0; i < count; i++)
        data[i] = (float)(rank + i % 7);
    MPI_Allreduce(MPI_IN_PLACE, data, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    for (int i = 0; i < count; i++)
        bad += data[i] != (float)(ranks * (ranks - 1) / 2 + ranks * (i % 7));
    memset(data, 0, (size_t)count * sizeof *data); /* zeros stay zeros: no overflow, no denormals */
    return bad;
}

static void measure(float *data, long bytes, int iterations, int rank, int ranks)
{
    int count = (int)(bytes / (long)sizeof *data), warm = iterations / 5 + 2;
    long bad = check(data, count, rank, ranks), all_bad = 0;
    double mine[2], slowest, cpu;

    for (int i = 0; i < warm; i++)
        MPI_Allreduce(MPI_IN_PLACE, data, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Barrier(MPI_COMM_WORLD);
    double begin = seconds(CLOCK_MONOTONIC), cpu_begin = seconds(CLOCK_PROCESS_CPUTIME_ID);
    for (int i = 0; i < iterations; i++)
        MPI_Allreduce(MPI_IN_PLACE, data, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    mine[0] = (seconds(CLOCK_MONOTONIC) - begin) / iterations;
    mine[1] = (seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu_begin) / iterations;
    MPI_Reduce(&mine[0], &slowest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    MPI_Reduce(&mine[1], &cpu, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
    MPI_Reduce(&bad, &all_bad, 1, MPI_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0) {
        printf("%ld %.2f %.4f %ld\n", bytes, slowest * 1e6, cpu / ranks / (double)bytes * 1e9, all_bad);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    int rank, ranks;
    long most = 0;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    for (int i = 1; i < argc; i++) {
        long bytes = 0;
        int iterations = 0;
        if (sscanf(argv[i], "%ld:%d", &bytes, &iterations) != 2 || bytes < 4 || bytes > 1L << 32 || iterations < 1) {
            fprintf(stderr, "allreduce: '%s' is not BYTES:ITERATIONS\n", argv[i]);
            MPI_Abort(MPI_COMM_WORLD, 2);
        }
        most = bytes > most ? bytes : most;
    }
    float *data = aligned_alloc(4096, ((size_t)most + 4095) & ~(size_t)4095);
    if (!data)
        MPI_Abort(MPI_COMM_WORLD, 1);
    for (int i = 1; i < argc; i++) {
        long bytes = 0;
        int iterations = 0;
        sscanf(argv[i], "%ld:%d", &bytes, &iterations);
        measure(data, bytes, iterations, rank, ranks);
    }
    free(data);
    MPI_Finalize();
    return 0;
}
