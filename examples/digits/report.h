/* SPDX-License-Identifier: Apache-2.0 */
/* What train_digits prints: text for people, or one JSON object a line. */
#ifndef DIGITS_REPORT_H
#define DIGITS_REPORT_H

#include <gradsync/gradsync.h>

#include "mlp.h"
#include "options.h"

/* Sums over one epoch, or over all of them; means over ranks where ranks differ. */
typedef struct epoch_stats {
    double loss;           /* mean over the training images */
    double train_accuracy; /* per cent, while training */
    double test_accuracy;  /* per cent, at the end of the epoch */
    double train_s;        /* wall time of training, without the test */
    double exposed_s;      /* of that, in posting and waiting for gradients */
    double collective_s;   /* the collectives' own times added up; they overlap the maths and each other */
    size_t images;
} epoch_stats;

typedef struct weight_distance {
    double max_abs;  /* the largest difference of one weight */
    double relative; /* length of the difference by length of the weights */
} weight_distance;

void report_start(const options *o, const mlp *m, size_t train, size_t test, gradsync_comm *comm);
void report_epoch(const options *o, int epoch, const epoch_stats *e);
/* distance: NULL without --compare. algo: what the gradients' last all-reduce ran. */
void report_summary(const options *o, const epoch_stats *all, gradsync_comm *comm, const char *algo, uint64_t hash,
                    const weight_distance *distance);

#endif
