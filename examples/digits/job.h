/* SPDX-License-Identifier: Apache-2.0 */
/* What the short examples share: the command line, the digits, the communicator. */
#ifndef DIGITS_JOB_H
#define DIGITS_JOB_H

#include <gradsync/gradsync.h>

#include "data.h"

typedef struct digits_job {
    const char *name; /* of the program */
    int epochs, batch;
    double rate, momentum;
    double require; /* test accuracy in per cent */
    const char *data;
    digits images;
    uint32_t *order;    /* of the images: the first `train` are for training, the rest for the test */
    size_t train, test; /* how many */
    size_t step, steps; /* of training, for the rate */
    uint32_t *batch_order;
    gradsync_context *ctx;
    gradsync_comm *comm;
    int rank, nranks;
} digits_job;

/* Reads the command line over the defaults in *j (--epochs, --batch, --lr, --require, --data, --help), loads the
 * images, joins the ranks that the environment tells of. Returns -1 to go on; else the exit status, with
 * everything said. `about` opens the help. In either case job_end() ends it. */
int job_start(digits_job *j, int argc, char **argv, const char *about);
void job_end(digits_job *j);
/* Tells what failed; gives back -1. */
int job_fail(const digits_job *j, const char *what, int rc);
/* The order of training images in an epoch, the same on every rank. */
void job_shuffle(digits_job *j, int epoch);
/* The learning rate of the next step: falls linearly to 0. */
float job_rate(digits_job *j);
/* The image at `index` of the training order, or of the test: its pixels and its label. */
const float *job_image(const digits_job *j, int testing, size_t index, uint8_t *label);
/* Prints the result on the rank that knows it. The exit status. */
int job_report(const digits_job *j, size_t right, double seconds, const char *how);
double job_seconds(void);

#endif
