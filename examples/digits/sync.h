/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gradients between the ranks: one bucket a layer, each all-reduced in the
 * background from the moment its layer's gradient is ready.
 */
#ifndef DIGITS_SYNC_H
#define DIGITS_SYNC_H

#include <gradsync/gradsync.h>

#include "mlp.h"
#include "options.h"

typedef struct sync_bucket {
    size_t count;              /* elements */
    float *grad;               /* the layer's gradient in f32 */
    void *wire;                /* what is all-reduced: grad itself, or its copy in bf16 */
    gradsync_request *request; /* between sync_post() and sync_wait() */
} sync_bucket;

typedef struct grad_sync {
    gradsync_comm *comm;
    gradsync_coll_opts opts;
    int dtype;
    size_t nbuckets;
    sync_bucket bucket[MLP_MAX_LAYERS];
    gradsync_mem *mem; /* NULL with plain memory */
    void *plain, *grads;
    double exposed_s;    /* this rank spent in sync_post() and sync_wait() */
    double collective_s; /* from each post to its end, added up */
    int last_algo;       /* enum gradsync_algo that the last of them ran */
} grad_sync;

/* Makes the buckets of the model's layers, in library memory or plain. Returns 0
 * or an enum gradsync_error. The caller ends *s with sync_abandon(), then the
 * communicator, which until then may still write to the buckets, then sync_destroy(). */
int sync_create(grad_sync *s, gradsync_context *ctx, gradsync_comm *comm, const mlp *m, const options *o);
void sync_abandon(grad_sync *s); /* the requests that an error left behind */
void sync_destroy(grad_sync *s);

/* Bucket l's grad is this rank's sum over its images: posts the all-reduce of
 * `scale` times that. With scale = 1 / images of all ranks the result is the mean
 * gradient of the whole batch, whatever the shares. */
int sync_post(grad_sync *s, size_t l, double scale);
/* Waits for bucket l; its grad is then the result, on every rank the same. */
int sync_wait(grad_sync *s, size_t l);

/* Seconds of a clock that never goes back. */
double sync_now(void);

#endif
