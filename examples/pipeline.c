/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pipeline parallelism by messages: four ranks, each with one layer of a perceptron.
 * A batch goes through in micro-batches, so that all stages work at the same time:
 * activations are sent up the pipeline, and the loss's derivatives by them down again.
 * What a stage computes for one micro-batch overlaps the messages of the others, since
 * sends are posted.
 *
 *   gradsync-run -n 4 pipeline
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "digits/job.h"
#include "digits/mlp.h"

enum { STAGES = 4, MICRO_BATCHES = 4, TEST_TAG = MICRO_BATCHES };

static const char about[] = "gradsync-run -n 4 pipeline\n"
                            "\n"
                            "Trains a perceptron of four layers on handwritten digits: each of four ranks has one\n"
                            "layer, and micro-batches go up and down between them.\n";

typedef struct stage {
    digits_job job;
    mlp model; /* small: every rank has room for all of it, and uses the layer of its own number */
    size_t layer;
    float *gradient;
    uint8_t *labels; /* of the rows of a batch, on the last stage */
    gradsync_request *sends[2 * MICRO_BATCHES];
    size_t nsends;
} stage;

static int is_first(const stage *s)
{
    return s->layer == 0;
}

static int is_last(const stage *s)
{
    return s->layer == STAGES - 1;
}

static int prepare(stage *s)
{
    static const size_t sizes[STAGES + 1] = {DIGITS_PIXELS, 96, 64, 48, DIGITS_CLASSES};
    size_t rows = (size_t)s->job.batch;

    s->layer = (size_t)s->job.rank;
    s->labels = malloc(rows);
    if (!s->labels || mlp_create(&s->model, sizes, STAGES, rows)) {
        fprintf(stderr, "%s: no memory for the model\n", s->job.name);
        return -1;
    }
    s->gradient = malloc(s->model.layer[s->layer].count * sizeof(float));
    if (!s->gradient) {
        fprintf(stderr, "%s: no memory for the gradient\n", s->job.name);
        return -1;
    }
    mlp_init_weights(&s->model, 1);
    /* What is sent down is the derivative by a stage's input; the slope of the rectifier there is the lower
     * stage's, which has it, so here it counts as 1. */
    for (size_t i = 0; !is_first(s) && i < rows * sizes[s->layer]; i++)
        s->model.slope[s->layer - 1][i] = 1;
    return 0;
}

/* The model with the rows from `row` on as its first. */
static mlp from_row(const mlp *m, size_t row)
{
    mlp view = *m;

    for (size_t l = 0; l < m->nlayers; l++) {
        view.active[l] += row * m->layer[l].in;
        view.slope[l] += row * m->layer[l].out;
        view.delta[l] += row * m->layer[l].out;
    }
    view.active[m->nlayers] += row * m->layer[m->nlayers - 1].out;
    return view;
}

static int post(stage *s, int to, const float *from, size_t count, int tag)
{
    int rc = gradsync_send_post(s->job.comm, to, from, count * sizeof(float), tag, &s->sends[s->nsends]);

    if (rc)
        return job_fail(&s->job, "sending", rc);
    s->nsends++;
    return 0;
}

static int receive(stage *s, int from, float *into, size_t count, int tag)
{
    int rc = gradsync_recv(s->job.comm, from, into, count * sizeof(float), tag, NULL);
    return rc ? job_fail(&s->job, "receiving", rc) : 0;
}

/* Up: micro-batch `tag`, `rows` rows from `row` of the batch, whose images start at `image`. */
static int go_up(stage *s, int testing, size_t image, size_t row, size_t rows, int tag)
{
    mlp view = from_row(&s->model, row);
    const mlp_layer *layer = &view.layer[s->layer];
    uint8_t label;

    for (size_t r = 0; r < rows; r++) {
        const float *pixels = job_image(&s->job, testing, image + r, &label);

        s->labels[row + r] = label;
        if (is_first(s))
            memcpy(view.active[0] + r * DIGITS_PIXELS, pixels, DIGITS_PIXELS * sizeof(float));
    }
    if (!is_first(s) && receive(s, s->job.rank - 1, view.active[s->layer], rows * layer->in, tag))
        return -1;
    mlp_forward_layer(&view, s->layer, rows);
    return is_last(s) ? 0 : post(s, s->job.rank + 1, view.active[s->layer + 1], rows * layer->out, tag);
}

/* Down again. */
static int go_down(stage *s, size_t row, size_t rows, int tag)
{
    mlp view = from_row(&s->model, row);
    const mlp_layer *layer = &view.layer[s->layer];
    float *delta = view.delta[s->layer];
    size_t right = 0;
    double loss = 0;

    if (is_last(s)) {
        mlp_loss(&view, s->labels + row, rows, &loss, &right);
    } else {
        if (receive(s, s->job.rank + 1, delta, rows * layer->out, tag))
            return -1;
        for (size_t i = 0; i < rows * layer->out; i++)
            delta[i] *= view.slope[s->layer][i];
    }
    if (is_first(s))
        return 0;
    mlp_backward(&view, s->layer, rows);
    return post(s, s->job.rank - 1, view.delta[s->layer - 1], rows * layer->in, tag);
}

static int wait_for_sends(stage *s)
{
    int rc = gradsync_wait_all(s->sends, s->nsends);

    for (size_t i = 0; i < s->nsends; i++)
        gradsync_request_free(s->sends[i]);
    s->nsends = 0;
    return rc ? job_fail(&s->job, "sending", rc) : 0;
}

/* All micro-batches up, then all down; then the layer's own step with the whole batch. */
static int train_step(stage *s, size_t image, size_t images)
{
    float rate = job_rate(&s->job);
    size_t count = s->model.layer[s->layer].count;

    for (size_t k = 0; k < MICRO_BATCHES; k++) {
        size_t row = images * k / MICRO_BATCHES, end = images * (k + 1) / MICRO_BATCHES;

        if (go_up(s, 0, image + row, row, end - row, (int)k))
            return -1;
    }
    for (size_t k = 0; k < MICRO_BATCHES; k++) {
        size_t row = images * k / MICRO_BATCHES, end = images * (k + 1) / MICRO_BATCHES;

        if (go_down(s, row, end - row, (int)k))
            return -1;
    }
    mlp_gradient(&s->model, s->layer, images, s->gradient);
    for (size_t i = 0; i < count; i++)
        s->gradient[i] /= (float)images;
    /* The next batch goes into the buffers of this one's sends. */
    if (wait_for_sends(s))
        return -1;
    mlp_update(&s->model, s->layer, s->gradient, rate, (float)s->job.momentum);
    return 0;
}

static int test_model(stage *s, size_t *right)
{
    size_t batch = (size_t)s->job.batch;
    double loss = 0;

    for (size_t i = 0; i < s->job.test; i += batch) {
        size_t rows = s->job.test - i < batch ? s->job.test - i : batch;

        if (go_up(s, 1, i, 0, rows, TEST_TAG) || wait_for_sends(s))
            return -1;
        if (is_last(s))
            mlp_loss(&s->model, s->labels, rows, &loss, right);
    }
    return 0;
}

static int train(stage *s)
{
    digits_job *j = &s->job;
    size_t batch = (size_t)j->batch, right = 0;
    double start = job_seconds();

    for (int epoch = 1; epoch <= j->epochs; epoch++) {
        job_shuffle(j, epoch);
        for (size_t image = 0; image < j->train; image += batch)
            if (train_step(s, image, j->train - image < batch ? j->train - image : batch))
                return EXIT_FAILURE;
    }
    double seconds = job_seconds() - start;
    if (test_model(s, &right))
        return EXIT_FAILURE;
    if (!is_last(s))
        return EXIT_SUCCESS;
    return job_report(j, right, seconds, "4 stages, each with 1 layer and 4 micro-batches");
}

int main(int argc, char **argv)
{
    stage s = {.job = {.name = "pipeline", .epochs = 20, .batch = 64, .rate = 0.05, .momentum = 0.9, .require = 90}};
    int status = job_start(&s.job, argc, argv, about);

    if (status < 0 && s.job.nranks != STAGES) {
        fprintf(stderr, "%s: has %d stages, so it needs as many ranks: gradsync-run -n %d\n", s.job.name, STAGES,
                STAGES);
        status = EXIT_FAILURE;
    }
    if (status < 0)
        status = prepare(&s) ? EXIT_FAILURE : train(&s);
    /* After an error sends may be in progress: the communicator ends before their buffers do. */
    gradsync_comm_destroy(s.job.comm);
    s.job.comm = NULL;
    for (size_t i = 0; i < s.nsends; i++)
        gradsync_request_free(s.sends[i]);
    mlp_destroy(&s.model);
    free(s.gradient);
    free(s.labels);
    job_end(&s.job);
    return status;
}
