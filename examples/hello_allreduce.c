/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The smallest whole program: every rank gives its number plus one, every rank
 * gets the sum. Alone, or under a launcher:  gradsync-run -n 4 -- ./hello_allreduce
 */
#include <gradsync/gradsync.h>
#include <stdio.h>
#include <stdlib.h>

static void must(int rc, const char *what)
{
    gradsync_error_info error = GRADSYNC_ERROR_INFO_INIT;

    if (rc == GRADSYNC_OK)
        return;
    gradsync_last_error(&error);
    fprintf(stderr, "hello_allreduce: %s: %s: %s\n", what, gradsync_error_name(rc), error.message);
    exit(EXIT_FAILURE);
}

int main(void)
{
    enum { COUNT = 1000 };
    static const char *const launchers[] = {"GRADSYNC_SIZE", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS",
                                            "PMI_SIZE"};
    gradsync_context *ctx;
    gradsync_comm *comm;
    gradsync_mem *mem;
    int launched = 0;

    for (size_t i = 0; i < sizeof(launchers) / sizeof(launchers[0]); i++)
        launched |= getenv(launchers[i]) != NULL;

    must(gradsync_context_create(NULL, &ctx), "context");
    if (launched)
        must(gradsync_comm_create_from_env(ctx, NULL, &comm), "communicator");
    else
        must(gradsync_comm_create(ctx, 0, 1, NULL, NULL, NULL, &comm), "communicator");

    /* Memory from the library is reduced in place with no copy on the way. */
    must(gradsync_mem_alloc(ctx, COUNT * sizeof(float), NULL, &mem), "memory");
    float *gradient = gradsync_mem_addr(mem);
    for (int i = 0; i < COUNT; i++)
        gradient[i] = (float)(gradsync_comm_rank(comm) + 1);
    must(gradsync_all_reduce(comm, gradient, gradient, COUNT, GRADSYNC_F32, GRADSYNC_SUM, NULL), "all-reduce");
    printf("rank %d of %d: sum %g\n", gradsync_comm_rank(comm), gradsync_comm_size(comm), (double)gradient[COUNT - 1]);

    gradsync_mem_free(mem);
    gradsync_comm_destroy(comm);
    gradsync_context_destroy(ctx);
    return EXIT_SUCCESS;
}
