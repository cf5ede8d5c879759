/* SPDX-License-Identifier: Apache-2.0 */
#include "job.h"

#include <getopt.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { USAGE_ERROR = 2, SEED = 1 };

static const char options_help[] =
    "\n"
    "  --epochs N         passes over the training images (%d)\n"
    "  --batch N          images in a batch (%d)\n"
    "  --lr X             first learning rate; it falls linearly to 0 (%g)\n"
    "  --require PERCENT  fail if the test accuracy ends below that (%g)\n"
    "  --data FILE        the images: CSV, may be gzip-compressed (data/digits.csv.gz in\n"
    "                     the folder of this program)\n"
    "  --help\n"
    "\n"
    "Exit status: 0 success, 1 failure, 2 wrong usage.\n";

static int read_number(const digits_job *j, const char *name, double min, double max, double *out)
{
    char *end;
    double value = strtod(optarg, &end);

    if (end == optarg || *end || !(value >= min && value <= max)) {
        fprintf(stderr, "%s: --%s %s: expected a number from %g to %g; see --help\n", j->name, name, optarg, min, max);
        return USAGE_ERROR;
    }
    *out = value;
    return -1;
}

static int read_options(digits_job *j, int argc, char **argv, const char *about)
{
    static const struct option known[] = {
        {"epochs", required_argument, NULL, 'e'},
        {"batch", required_argument, NULL, 'b'},
        {"lr", required_argument, NULL, 'l'},
        {"data", required_argument, NULL, 'd'},
        {"require", required_argument, NULL, 'r'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    double number = 0;

    for (int c, rc = -1; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 'e':
            rc = read_number(j, "epochs", 1, 10000, &number);
            j->epochs = (int)number;
            break;
        case 'b':
            rc = read_number(j, "batch", 1, 1024, &number);
            j->batch = (int)number;
            break;
        case 'l':
            rc = read_number(j, "lr", 0, 100, &j->rate);
            break;
        case 'r':
            rc = read_number(j, "require", 0, 100, &j->require);
            break;
        case 'd':
            j->data = optarg;
            break;
        case 'h':
            printf("usage: %s [options], under a launcher: %s", j->name, about);
            printf(options_help, j->epochs, j->batch, j->rate, j->require);
            return EXIT_SUCCESS;
        default:
            return USAGE_ERROR;
        }
        if (rc >= 0)
            return rc;
    }
    if (optind < argc) {
        fprintf(stderr, "%s: what is %s? See --help\n", j->name, argv[optind]);
        return USAGE_ERROR;
    }
    return -1;
}

/* data/digits.csv.gz in the folder of this program. */
static void default_data(char path[PATH_MAX])
{
    static const char name[] = "/data/digits.csv.gz";
    ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - sizeof(name));

    path[n > 0 ? n : 0] = '\0';
    dirname(path);
    strcat(path, name);
}

static int load_images(digits_job *j)
{
    char path[PATH_MAX], why[PATH_MAX + 160];

    default_data(path);
    if (digits_load(j->data ? j->data : path, &j->images, why, sizeof(why))) {
        fprintf(stderr, "%s: %s\n", j->name, why);
        return -1;
    }
    j->train = j->images.n * 4 / 5;
    j->test = j->images.n - j->train;
    j->steps = (j->train + (size_t)j->batch - 1) / (size_t)j->batch * (size_t)j->epochs;
    j->order = malloc(j->images.n * sizeof(*j->order));
    j->batch_order = malloc(j->train * sizeof(*j->batch_order));
    if (!j->order || !j->batch_order) {
        fprintf(stderr, "%s: no memory for the images\n", j->name);
        return -1;
    }
    digits_permutation(j->order, j->images.n, SEED);
    return 0;
}

int job_start(digits_job *j, int argc, char **argv, const char *about)
{
    int status = read_options(j, argc, argv, about);

    if (status >= 0)
        return status;
    if (load_images(j))
        return EXIT_FAILURE;
    int rc = gradsync_context_create(NULL, &j->ctx);
    if (!rc)
        rc = gradsync_comm_create_from_env(j->ctx, NULL, &j->comm);
    if (rc) {
        job_fail(j, "cannot join the other ranks", rc);
        return EXIT_FAILURE;
    }
    j->rank = gradsync_comm_rank(j->comm);
    j->nranks = gradsync_comm_size(j->comm);
    return -1;
}

void job_end(digits_job *j)
{
    gradsync_comm_destroy(j->comm);
    gradsync_context_destroy(j->ctx);
    digits_free(&j->images);
    free(j->order);
    free(j->batch_order);
}

int job_fail(const digits_job *j, const char *what, int rc)
{
    gradsync_error_info error = GRADSYNC_ERROR_INFO_INIT;

    gradsync_last_error(&error);
    fprintf(stderr, "%s: rank %d: %s: %s: %s\n", j->name, j->rank, what, gradsync_error_name(rc),
            error.code == rc ? error.message : gradsync_strerror(rc));
    return -1;
}

void job_shuffle(digits_job *j, int epoch)
{
    digits_permutation(j->batch_order, j->train, SEED * 1000003 + (uint64_t)epoch);
}

float job_rate(digits_job *j)
{
    return (float)(j->rate * (1.0 - (double)j->step++ / (double)j->steps));
}

const float *job_image(const digits_job *j, int testing, size_t index, uint8_t *label)
{
    uint32_t image = testing ? j->order[j->train + index] : j->order[j->batch_order[index]];

    *label = j->images.labels[image];
    return j->images.pixels + (size_t)image * DIGITS_PIXELS;
}

int job_report(const digits_job *j, size_t right, double seconds, const char *how)
{
    double accuracy = 100.0 * (double)right / (double)j->test;

    printf("%s: %.2f %% of %zu test images after %d epochs in %.2f s; %s\n", j->name, accuracy, j->test, j->epochs,
           seconds, how);
    if (accuracy >= j->require)
        return EXIT_SUCCESS;
    fprintf(stderr, "%s: test accuracy %.2f %% is below the required %g %%\n", j->name, accuracy, j->require);
    return EXIT_FAILURE;
}

double job_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
