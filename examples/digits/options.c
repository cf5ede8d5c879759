/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <gradsync/gradsync.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { USAGE_ERROR = 2 };

static const char help[] = "usage: train_digits [options]\n"
                           "\n"
                           "Trains a multi-layer perceptron on 1,797 handwritten digits, data-parallel: each\n"
                           "rank takes its share of every batch, and gradients are all-reduced by libgradsync\n"
                           "while the backward pass still runs. Rank and number of ranks come from --ranks or\n"
                           "from the launcher (gradsync-run, torchrun, srun, mpirun); else it runs alone.\n"
                           "\n"
                           "  --ranks N           start N ranks as processes of this machine\n"
                           "  --epochs N          passes over the training images (20)\n"
                           "  --batch N           images in a batch of all ranks together (64)\n"
                           "  --lr X              first learning rate; it falls linearly to 0 (0.1)\n"
                           "  --momentum X        momentum (0.9)\n"
                           "  --hidden N,N,...    sizes of the hidden layers (256,128)\n"
                           "  --seed N            of the split, the weights and the order of images (1)\n"
                           "  --ordered           the same bits for every algorithm and on every run\n"
                           "  --dtype f32|bf16    type of the gradients on their way between ranks (f32)\n"
                           "  --algo NAME         auto, oneshot, direct, staged, ring, tree, doubling, pairwise\n"
                           "  --memory library|plain   where the gradients are: gradsync_mem_alloc() or malloc()\n"
                           "  --data FILE         the images: CSV, may be gzip-compressed (data/digits.csv.gz\n"
                           "                      in the folder of this program)\n"
                           "  --save FILE         write the final weights there: raw f32, layer by layer\n"
                           "  --compare FILE      tell how far the final weights are from those of an earlier --save\n"
                           "  --tolerance X       with --compare: fail if a weight differs by more than X\n"
                           "  --check             fail unless all ranks end with the same weights, bit by bit\n"
                           "  --require PERCENT   fail if the test accuracy ends below that\n"
                           "  --json              one JSON object a line: start, each epoch, summary\n"
                           "  --quiet             the summary only\n"
                           "  --help, --version\n"
                           "\n"
                           "Printed for each epoch: the mean loss, the accuracies, training images a second, and\n"
                           "as shares of the training time: what was spent in posting and waiting for gradients\n"
                           "(exposed), and the collectives' own times added up, which overlap the maths and each\n"
                           "other and so may exceed 100 %.\n"
                           "\n"
                           "Exit status: 0 success, 1 failure, 2 wrong usage.\n";

static int wrong(const char *what, const char *value, const char *expected)
{
    fprintf(stderr, "train_digits: --%s %s: expected %s; see --help\n", what, value, expected);
    return USAGE_ERROR;
}

static int read_int(const char *name, const char *text, int min, int max, int *out)
{
    char expected[64], *end;
    long value;

    errno = 0;
    value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < min || value > max) {
        snprintf(expected, sizeof(expected), "a number from %d to %d", min, max);
        return wrong(name, text, expected);
    }
    *out = (int)value;
    return -1;
}

static int read_real(const char *name, const char *text, double min, double max, double *out)
{
    char expected[64], *end;
    double value = strtod(text, &end);

    if (end == text || *end || !(value >= min && value <= max)) {
        snprintf(expected, sizeof(expected), "a number from %g to %g", min, max);
        return wrong(name, text, expected);
    }
    *out = value;
    return -1;
}

static int read_seed(const char *text, uint64_t *out)
{
    char *end;

    errno = 0;
    *out = strtoull(text, &end, 10);
    if (errno || end == text || *end || strchr(text, '-'))
        return wrong("seed", text, "a whole number");
    return -1;
}

static int read_hidden(const char *text, options *o)
{
    const char *p = text;

    o->nhidden = 0;
    for (;;) {
        char *end;
        long value = strtol(p, &end, 10);

        if (end == p || value < 1 || value > 65536 || o->nhidden == MLP_MAX_LAYERS - 1)
            break;
        o->hidden[o->nhidden++] = (size_t)value;
        if (*end == '\0')
            return -1;
        if (*end != ',')
            break;
        p = end + 1;
    }
    return wrong("hidden", text, "1 to 7 sizes of 1 to 65536, with commas between");
}

static int read_algo(const char *text, int *out)
{
    for (int a = 0; a < GRADSYNC_ALGO_COUNT; a++)
        if (strcmp(text, gradsync_algo_name(a)) == 0) {
            *out = a;
            return -1;
        }
    return wrong("algo", text, "an algorithm's name");
}

/* One of two words: *out becomes 0 for the first, 1 for the second. */
static int read_choice(const char *name, const char *text, const char *first, const char *second, int *out)
{
    char expected[64];

    *out = strcmp(text, second) == 0;
    if (*out || strcmp(text, first) == 0)
        return -1;
    snprintf(expected, sizeof(expected), "%s or %s", first, second);
    return wrong(name, text, expected);
}

enum {
    OPT_RANKS = 1000,
    OPT_EPOCHS,
    OPT_BATCH,
    OPT_LR,
    OPT_MOMENTUM,
    OPT_HIDDEN,
    OPT_SEED,
    OPT_DTYPE,
    OPT_ALGO,
    OPT_MEMORY,
    OPT_DATA,
    OPT_SAVE,
    OPT_COMPARE,
    OPT_REQUIRE,
    OPT_TOLERANCE,
    OPT_HELP,
    OPT_VERSION,
};

static int apply(options *o, int opt, const char *value)
{
    int rc = -1, bf16;

    switch (opt) {
    case 0: /* a flag that getopt_long() has set */
        return -1;
    case OPT_RANKS:
        return read_int("ranks", value, 1, 1024, &o->ranks);
    case OPT_EPOCHS:
        return read_int("epochs", value, 1, 1000000, &o->epochs);
    case OPT_BATCH:
        return read_int("batch", value, 1, 65536, &o->batch);
    case OPT_LR:
        return read_real("lr", value, 0, 100, &o->rate);
    case OPT_MOMENTUM:
        return read_real("momentum", value, 0, 1, &o->momentum);
    case OPT_HIDDEN:
        return read_hidden(value, o);
    case OPT_SEED:
        return read_seed(value, &o->seed);
    case OPT_DTYPE:
        rc = read_choice("dtype", value, "f32", "bf16", &bf16);
        o->dtype = bf16 ? GRADSYNC_BF16 : GRADSYNC_F32;
        return rc;
    case OPT_ALGO:
        return read_algo(value, &o->algo);
    case OPT_MEMORY:
        return read_choice("memory", value, "library", "plain", &o->plain);
    case OPT_DATA:
        o->data = value;
        return -1;
    case OPT_SAVE:
        o->save = value;
        return -1;
    case OPT_COMPARE:
        o->compare = value;
        return -1;
    case OPT_REQUIRE:
        return read_real("require", value, 0, 100, &o->require);
    case OPT_TOLERANCE:
        return read_real("tolerance", value, 0, 1e30, &o->tolerance);
    case OPT_HELP:
        fputs(help, stdout);
        return EXIT_SUCCESS;
    case OPT_VERSION:
        printf("train_digits, libgradsync %s\n", gradsync_version());
        return EXIT_SUCCESS;
    default:
        fputs("see train_digits --help\n", stderr); /* getopt_long() has said what is wrong */
        return USAGE_ERROR;
    }
}

int options_parse(options *o, int argc, char **argv)
{
    const struct option known[] = {
        {"ranks", required_argument, NULL, OPT_RANKS},
        {"epochs", required_argument, NULL, OPT_EPOCHS},
        {"batch", required_argument, NULL, OPT_BATCH},
        {"lr", required_argument, NULL, OPT_LR},
        {"momentum", required_argument, NULL, OPT_MOMENTUM},
        {"hidden", required_argument, NULL, OPT_HIDDEN},
        {"seed", required_argument, NULL, OPT_SEED},
        {"dtype", required_argument, NULL, OPT_DTYPE},
        {"algo", required_argument, NULL, OPT_ALGO},
        {"memory", required_argument, NULL, OPT_MEMORY},
        {"data", required_argument, NULL, OPT_DATA},
        {"save", required_argument, NULL, OPT_SAVE},
        {"compare", required_argument, NULL, OPT_COMPARE},
        {"require", required_argument, NULL, OPT_REQUIRE},
        {"tolerance", required_argument, NULL, OPT_TOLERANCE},
        {"ordered", no_argument, &o->ordered, 1},
        {"check", no_argument, &o->check, 1},
        {"json", no_argument, &o->json, 1},
        {"quiet", no_argument, &o->quiet, 1},
        {"help", no_argument, NULL, OPT_HELP},
        {"version", no_argument, NULL, OPT_VERSION},
        {0},
    };
    int opt, rc;

    *o = (options){
        .epochs = 20,
        .batch = 64,
        .rate = 0.1,
        .momentum = 0.9,
        .seed = 1,
        .hidden = {256, 128},
        .nhidden = 2,
        .dtype = GRADSYNC_F32,
        .tolerance = -1,
    };
    while ((opt = getopt_long(argc, argv, "", known, NULL)) != -1) {
        rc = apply(o, opt, optarg);
        if (rc >= 0)
            return rc;
    }
    if (o->tolerance >= 0 && !o->compare) {
        fputs("train_digits: --tolerance needs --compare; see --help\n", stderr);
        return USAGE_ERROR;
    }
    if (optind < argc) {
        fprintf(stderr, "train_digits: unexpected argument '%s'; see --help\n", argv[optind]);
        return USAGE_ERROR;
    }
    return -1;
}
