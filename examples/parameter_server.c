/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A parameter server over one-sided operations. Rank 0 keeps the weights of a small
 * perceptron in memory that the others reach by its key. In every step each worker
 * gets the weights, puts the gradient of its share of the batch into its own place in
 * the server's memory, and signals; the server waits for all signals, adds up, updates
 * the weights, and signals back. Nobody receives anything: data moves by put and get.
 *
 *   gradsync-run -n 4 parameter_server
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "digits/job.h"
#include "digits/mlp.h"

enum { SERVER = 0, WEIGHTS_READY = 0, GRADIENT_READY = 1, HIDDEN = 64 };

static const char about[] = "gradsync-run -n 4 parameter_server\n"
                            "\n"
                            "Trains a perceptron on handwritten digits: rank 0 keeps the weights, the other ranks\n"
                            "get them, and put their gradients.\n";

/* The server's memory: the weights, then a gradient of each worker. */
typedef struct party {
    digits_job job;
    mlp model;
    gradsync_mem *mem; /* the server's */
    gradsync_key key;  /* of it, on every rank */
    uint8_t *labels;
} party;

static size_t bytes_of_model(const party *p)
{
    return p->model.nparams * sizeof(float);
}

static int prepare(party *p)
{
    static const size_t sizes[] = {DIGITS_PIXELS, HIDDEN, DIGITS_CLASSES};
    digits_job *j = &p->job;
    int rc = 0;

    p->labels = malloc((size_t)j->batch);
    if (!p->labels || mlp_create(&p->model, sizes, 2, (size_t)j->batch)) {
        fprintf(stderr, "%s: no memory for the model\n", j->name);
        return -1;
    }
    if (j->rank == SERVER) {
        mlp_init_weights(&p->model, 1);
        rc = gradsync_mem_alloc(j->ctx, bytes_of_model(p) * (size_t)j->nranks, NULL, &p->mem);
        if (!rc)
            rc = gradsync_mem_key(j->comm, p->mem, &p->key);
        if (!rc)
            memcpy(gradsync_mem_addr(p->mem), p->model.weights, bytes_of_model(p));
    }
    /* The key is plain data. */
    if (!rc)
        rc = gradsync_broadcast(j->comm, &p->key, &p->key, sizeof(p->key), GRADSYNC_U8, SERVER, NULL);
    return rc ? job_fail(j, "cannot share the server's memory", rc) : 0;
}

/* Waits for the gradients of all workers, steps along their mean, and tells the workers. */
static int serve_step(party *p, uint64_t step, size_t images)
{
    digits_job *j = &p->job;
    float *weights = gradsync_mem_addr(p->mem), *sum = weights + p->model.nparams;
    float rate = job_rate(j);
    int rc = 0;

    for (int r = 1; !rc && r < j->nranks; r++) {
        const float *gradient = weights + (size_t)r * p->model.nparams;

        rc = gradsync_wait_signal(j->comm, r, GRADIENT_READY, step);
        for (size_t i = 0; r > 1 && i < p->model.nparams; i++)
            sum[i] += gradient[i];
    }
    for (size_t l = 0; l < p->model.nlayers; l++) {
        const mlp_layer *layer = &p->model.layer[l];

        for (size_t i = layer->first; i < layer->first + layer->count; i++)
            sum[i] /= (float)images;
        mlp_update(&p->model, l, sum + layer->first, rate, (float)j->momentum);
    }
    memcpy(weights, p->model.weights, bytes_of_model(p));
    for (int r = 1; !rc && r < j->nranks; r++)
        rc = gradsync_signal(j->comm, r, WEIGHTS_READY);
    return rc ? job_fail(j, "serving", rc) : 0;
}

/* Gets the weights, and puts the gradient of this worker's share of the batch. */
static int work_step(party *p, uint64_t step, size_t first, size_t images)
{
    digits_job *j = &p->job;
    mlp *m = &p->model;
    size_t workers = (size_t)j->nranks - 1, self = (size_t)j->rank - 1;
    size_t begin = images * self / workers, end = images * (self + 1) / workers, right = 0;
    double loss = 0;
    float *gradient = m->velocity; /* a worker has no other use for it */

    /* The weights after the last step; those of the first are there from the start. */
    int rc = gradsync_wait_signal(j->comm, SERVER, WEIGHTS_READY, step - 1);
    if (!rc)
        rc = gradsync_get(j->comm, SERVER, m->weights, &p->key, 0, bytes_of_model(p));
    if (rc)
        return job_fail(j, "getting the weights", rc);
    for (size_t r = 0; r < end - begin; r++)
        memcpy(m->active[0] + r * DIGITS_PIXELS, job_image(j, 0, first + begin + r, &p->labels[r]),
               DIGITS_PIXELS * sizeof(float));
    mlp_forward(m, end - begin);
    mlp_loss(m, p->labels, end - begin, &loss, &right);
    for (size_t l = m->nlayers; l-- > 0;) {
        mlp_gradient(m, l, end - begin, gradient + m->layer[l].first);
        if (l > 0)
            mlp_backward(m, l, end - begin);
    }
    rc = gradsync_put(j->comm, SERVER, gradient, &p->key, bytes_of_model(p) * (size_t)j->rank, bytes_of_model(p));
    if (!rc)
        rc = gradsync_signal(j->comm, SERVER, GRADIENT_READY); /* seen when the gradient is there */
    return rc ? job_fail(j, "putting the gradient", rc) : 0;
}

static size_t test_model(party *p)
{
    size_t right = 0, batch = (size_t)p->job.batch;
    double loss = 0;

    for (size_t i = 0; i < p->job.test; i += batch) {
        size_t rows = p->job.test - i < batch ? p->job.test - i : batch;

        for (size_t r = 0; r < rows; r++)
            memcpy(p->model.active[0] + r * DIGITS_PIXELS, job_image(&p->job, 1, i + r, &p->labels[r]),
                   DIGITS_PIXELS * sizeof(float));
        mlp_forward(&p->model, rows);
        mlp_loss(&p->model, p->labels, rows, &loss, &right);
    }
    return right;
}

static int train(party *p)
{
    digits_job *j = &p->job;
    size_t batch = (size_t)j->batch;
    uint64_t step = 0;
    double start = job_seconds();

    for (int epoch = 1; epoch <= j->epochs; epoch++) {
        job_shuffle(j, epoch);
        for (size_t first = 0; first < j->train; first += batch) {
            size_t images = j->train - first < batch ? j->train - first : batch;

            step++;
            if (j->rank == SERVER ? serve_step(p, step, images) : work_step(p, step, first, images))
                return EXIT_FAILURE;
        }
    }
    /* The server's memory may go only when the last get is done. */
    int rc = gradsync_barrier(j->comm, NULL);
    if (rc) {
        job_fail(j, "the last barrier", rc);
        return EXIT_FAILURE;
    }
    if (j->rank != SERVER)
        return EXIT_SUCCESS;
    char how[64];
    snprintf(how, sizeof(how), "%d workers put and got %zu weights", j->nranks - 1, p->model.nparams);
    return job_report(j, test_model(p), job_seconds() - start, how);
}

int main(int argc, char **argv)
{
    party p = {
        .job = {.name = "parameter_server", .epochs = 20, .batch = 64, .rate = 0.1, .momentum = 0.9, .require = 90}};
    int status = job_start(&p.job, argc, argv, about);

    if (status < 0 && p.job.nranks < 2) {
        fprintf(stderr, "%s: needs a server and a worker: gradsync-run -n 2 or more\n", p.job.name);
        status = EXIT_FAILURE;
    }
    if (status < 0)
        status = prepare(&p) ? EXIT_FAILURE : train(&p);
    gradsync_mem_free(p.mem);
    mlp_destroy(&p.model);
    free(p.labels);
    job_end(&p.job);
    return status;
}
