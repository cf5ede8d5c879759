/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of train_digits. */
#ifndef DIGITS_OPTIONS_H
#define DIGITS_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

#include "mlp.h"

typedef struct options {
    int ranks; /* to start here; 0: what the environment says */
    int epochs, batch;
    double rate, momentum;
    uint64_t seed;
    size_t hidden[MLP_MAX_LAYERS - 1], nhidden;
    int dtype, algo; /* enum gradsync_dtype, gradsync_algo */
    int ordered, plain, check, json, quiet;
    double require;   /* test accuracy in per cent; 0: any */
    double tolerance; /* of --compare; negative: any */
    const char *data, *save, *compare;
} options;

/* Reads the command line. Returns -1 to go on; else the exit status, after printing
 * the help, the version, or what is wrong. Strings point into argv. */
int options_parse(options *o, int argc, char **argv);

#endif
