/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Data-parallel training over libgradsync. Every rank has the whole model and its
 * share of each batch; the gradients are summed over the ranks layer by layer,
 * while the backward pass is still at work on the layers below. What a trainer
 * does with the library stands in digits/sync.c and in train_step() here.
 *
 * The global batch is the same for any number of ranks, and every rank applies
 * the same mean gradient to the same weights: N ranks end where one rank ends, but
 * for rounding.
 */
#include <gradsync/gradsync.h>

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "digits/data.h"
#include "digits/local.h"
#include "digits/mlp.h"
#include "digits/options.h"
#include "digits/report.h"
#include "digits/sync.h"

/* What all ranks of this process tree begin with. */
typedef struct job {
    options o;
    digits data;
} job;

/* Everything that one rank has. */
typedef struct trainer {
    const options *o;
    const digits *data;
    gradsync_context *ctx;
    gradsync_comm *comm;
    int rank, nranks;
    size_t train, test; /* images; the test images come last in `order` */
    uint32_t *order;    /* the split of the data */
    uint32_t *epoch_order;
    uint8_t *labels; /* of the rows in model.active[0] */
    mlp model;
    grad_sync sync;
    size_t step, steps;
} trainer;

static int complain(const trainer *t, const char *what, int rc)
{
    gradsync_error_info error = GRADSYNC_ERROR_INFO_INIT;

    gradsync_last_error(&error);
    fprintf(stderr, "train_digits: rank %d: %s: %s: %s\n", t->rank, what, gradsync_error_name(rc),
            error.code == rc ? error.message : gradsync_strerror(rc));
    return -1;
}

static void log_line(void *arg, int level, const char *message)
{
    const trainer *t = arg;

    (void)level;
    fprintf(stderr, "train_digits: rank %d: %s\n", t->rank, message);
}

/* Where rank r of n has its share of `rows`: contiguous, and equal up to one. */
static size_t share_begin(size_t rows, int r, int n)
{
    return rows * (size_t)r / (size_t)n;
}

/* ---- The communicator --------------------------------------------------------- */

static int launched(void)
{
    static const char *const variables[] = {"GRADSYNC_SIZE", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS",
                                            "PMI_SIZE"};

    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++)
        if (getenv(variables[i]))
            return 1;
    return 0;
}

static int connect_ranks(trainer *t, local_rank *local)
{
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    int rc;

    if (!getenv("GRADSYNC_LOG")) { /* with it the library prints by itself */
        config.log = log_line;
        config.log_arg = t;
    }
    rc = gradsync_context_create(&config, &t->ctx);
    if (rc != GRADSYNC_OK)
        return complain(t, "cannot start libgradsync", rc);
    if (local->nranks > 1)
        rc = gradsync_comm_create(t->ctx, local->rank, local->nranks, local_allgather, local, NULL, &t->comm);
    else if (t->o->ranks == 0 && launched())
        rc = gradsync_comm_create_from_env(t->ctx, NULL, &t->comm);
    else
        rc = gradsync_comm_create(t->ctx, 0, 1, NULL, NULL, NULL, &t->comm);
    if (rc != GRADSYNC_OK)
        return complain(t, "cannot connect the ranks", rc);
    t->rank = gradsync_comm_rank(t->comm);
    t->nranks = gradsync_comm_size(t->comm);
    return 0;
}

/* ---- The model ------------------------------------------------------------ */

static int prepare(trainer *t)
{
    const options *o = t->o;
    size_t sizes[MLP_MAX_LAYERS + 1] = {DIGITS_PIXELS};
    size_t batch = (size_t)o->batch, rows = batch / (size_t)t->nranks + 1;
    int rc;

    t->train = t->data->n * 4 / 5;
    t->test = t->data->n - t->train;
    t->steps = (t->train + batch - 1) / batch * (size_t)o->epochs;
    t->order = malloc(t->data->n * sizeof(*t->order));
    t->epoch_order = malloc(t->train * sizeof(*t->epoch_order));
    t->labels = malloc(rows);
    for (size_t l = 0; l < o->nhidden; l++)
        sizes[l + 1] = o->hidden[l];
    sizes[o->nhidden + 1] = DIGITS_CLASSES;
    if (!t->order || !t->epoch_order || !t->labels || mlp_create(&t->model, sizes, o->nhidden + 1, rows)) {
        fprintf(stderr, "train_digits: rank %d: no memory for the model\n", t->rank);
        return -1;
    }
    digits_permutation(t->order, t->data->n, o->seed);

    /* One rank chooses the weights: all start from the same bits, on any mix of hosts. */
    if (t->rank == 0)
        mlp_init_weights(&t->model, o->seed);
    rc = gradsync_broadcast(t->comm, t->model.weights, t->model.weights, t->model.nparams, GRADSYNC_F32, 0, NULL);
    if (rc != GRADSYNC_OK)
        return complain(t, "cannot broadcast the weights", rc);
    rc = sync_create(&t->sync, t->ctx, t->comm, &t->model, o);
    return rc == GRADSYNC_OK ? 0 : complain(t, "cannot allocate the gradients", rc);
}

/* Copies images into the model's input rows. */
static void load_row(trainer *t, size_t row, uint32_t image)
{
    memcpy(t->model.active[0] + row * DIGITS_PIXELS, t->data->pixels + (size_t)image * DIGITS_PIXELS,
           DIGITS_PIXELS * sizeof(float));
    t->labels[row] = t->data->labels[image];
}

/* ---- Training -------------------------------------------------------------------- */

/* One step on the `batch` images from `first` on in this epoch's order. */
static int train_step(trainer *t, size_t first, size_t batch, double *loss, size_t *right)
{
    mlp *m = &t->model;
    size_t begin = share_begin(batch, t->rank, t->nranks), end = share_begin(batch, t->rank + 1, t->nranks);
    size_t rows = end - begin;
    /* Falls linearly to 0: only arithmetic that rounds in the same way on every host. */
    float rate = (float)(t->o->rate * (1.0 - (double)t->step++ / (double)t->steps));

    for (size_t r = 0; r < rows; r++)
        load_row(t, r, t->order[t->epoch_order[first + begin + r]]);
    mlp_forward(m, rows);
    mlp_loss(m, t->labels, rows, loss, right);
    for (size_t l = m->nlayers; l-- > 0;) {
        int rc;

        mlp_gradient(m, l, rows, t->sync.bucket[l].grad);
        rc = sync_post(&t->sync, l, 1.0 / (double)batch); /* under way while the layers below are worked on */
        if (rc != GRADSYNC_OK)
            return complain(t, "all-reduce of gradients", rc);
        if (l > 0)
            mlp_backward(m, l, rows);
    }
    for (size_t l = m->nlayers; l-- > 0;) {
        int rc = sync_wait(&t->sync, l);

        if (rc != GRADSYNC_OK)
            return complain(t, "all-reduce of gradients", rc);
        mlp_update(m, l, t->sync.bucket[l].grad, rate, (float)t->o->momentum);
    }
    return 0;
}

/* Right answers in this rank's share of the test images. */
static size_t test_share(trainer *t)
{
    size_t end = share_begin(t->test, t->rank + 1, t->nranks), right = 0;
    double loss = 0;

    for (size_t i = share_begin(t->test, t->rank, t->nranks); i < end;) {
        size_t rows = end - i < t->model.max_rows ? end - i : t->model.max_rows;

        for (size_t r = 0; r < rows; r++)
            load_row(t, r, t->order[t->train + i + r]);
        mlp_forward(&t->model, rows);
        mlp_loss(&t->model, t->labels, rows, &loss, &right);
        i += rows;
    }
    return right;
}

static int train_epoch(trainer *t, int epoch, epoch_stats *e)
{
    enum { LOSS, RIGHT, TEST_RIGHT, TRAIN_S, EXPOSED_S, COLLECTIVE_S, NSUMS };
    double sums[NSUMS] = {0}, begin = sync_now();
    size_t right = 0, batch = (size_t)t->o->batch;
    int rc;

    t->sync.exposed_s = t->sync.collective_s = 0;
    digits_permutation(t->epoch_order, t->train, t->o->seed * 1000003 + (uint64_t)epoch);
    for (size_t first = 0; first < t->train; first += batch) {
        size_t rows = t->train - first < batch ? t->train - first : batch;

        if (train_step(t, first, rows, &sums[LOSS], &right))
            return -1;
    }
    sums[TRAIN_S] = sync_now() - begin;
    sums[RIGHT] = (double)right;
    sums[TEST_RIGHT] = (double)test_share(t);
    sums[EXPOSED_S] = t->sync.exposed_s;
    sums[COLLECTIVE_S] = t->sync.collective_s;
    rc = gradsync_all_reduce(t->comm, sums, sums, NSUMS, GRADSYNC_F64, GRADSYNC_SUM, NULL);
    if (rc != GRADSYNC_OK)
        return complain(t, "all-reduce of statistics", rc);
    *e = (epoch_stats){
        .loss = sums[LOSS] / (double)t->train,
        .train_accuracy = 100.0 * sums[RIGHT] / (double)t->train,
        .test_accuracy = 100.0 * sums[TEST_RIGHT] / (double)t->test,
        .train_s = sums[TRAIN_S] / t->nranks,
        .exposed_s = sums[EXPOSED_S] / t->nranks,
        .collective_s = sums[COLLECTIVE_S] / t->nranks,
        .images = t->train,
    };
    if (isfinite(e->loss))
        return 0;
    if (t->rank == 0)
        fprintf(stderr, "train_digits: the loss is no finite number any more: try a smaller --lr\n");
    return -1;
}

/* ---- The end ----------------------------------------------------------------------- */

/* FNV-1a over the weights' bytes. */
static uint64_t weights_hash(const mlp *m)
{
    const unsigned char *p = (const unsigned char *)m->weights;
    uint64_t hash = 0xcbf29ce484222325u;

    for (size_t i = 0; i < m->nparams * sizeof(float); i++)
        hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}

static int check_weights(trainer *t, uint64_t hash)
{
    uint64_t *all = malloc((size_t)t->nranks * sizeof(*all));
    int rc = GRADSYNC_ERR_NOMEM, differs = 0;

    if (all)
        rc = gradsync_all_gather(t->comm, &hash, all, 1, GRADSYNC_U64, NULL);
    for (int r = 0; rc == GRADSYNC_OK && r < t->nranks; r++)
        if (all[r] != all[0]) {
            differs = 1;
            if (t->rank == 0)
                fprintf(stderr, "train_digits: rank %d ends with other weights than rank 0\n", r);
        }
    free(all);
    if (rc != GRADSYNC_OK)
        return complain(t, "all-gather of the weights' hash", rc);
    return differs ? -1 : 0;
}

static int save_weights(const trainer *t)
{
    size_t n = t->model.nparams;
    FILE *out = fopen(t->o->save, "wb");
    int failed = !out || fwrite(t->model.weights, sizeof(float), n, out) != n;

    if (out && fclose(out))
        failed = 1;
    if (failed)
        fprintf(stderr, "train_digits: cannot write %s: %s\n", t->o->save, strerror(errno));
    return failed ? -1 : 0;
}

static int compare_weights(const trainer *t, weight_distance *d)
{
    size_t n = t->model.nparams, got = 0;
    float *other = malloc((n + 1) * sizeof(float));
    FILE *in = other ? fopen(t->o->compare, "rb") : NULL;
    double difference = 0, length = 0;

    *d = (weight_distance){0};
    if (!in) {
        fprintf(stderr, "train_digits: cannot read %s: %s\n", t->o->compare, strerror(errno));
        free(other);
        return -1;
    }
    got = fread(other, sizeof(float), n + 1, in);
    fclose(in);
    for (size_t i = 0; i < n && got == n; i++) {
        double delta = (double)t->model.weights[i] - (double)other[i];

        d->max_abs = fabs(delta) > d->max_abs ? fabs(delta) : d->max_abs;
        difference += delta * delta;
        length += (double)other[i] * (double)other[i];
    }
    free(other);
    if (got != n) {
        fprintf(stderr, "train_digits: %s has not the %zu weights of this model\n", t->o->compare, n);
        return -1;
    }
    d->relative = length > 0 ? sqrt(difference / length) : 0.0;
    return 0;
}

static int finish(trainer *t, const epoch_stats *all)
{
    uint64_t hash = weights_hash(&t->model);
    weight_distance distance = {0};

    if (t->o->check && check_weights(t, hash))
        return -1;
    if (t->rank != 0)
        return 0;
    if (t->o->save && save_weights(t))
        return -1;
    if (t->o->compare && compare_weights(t, &distance))
        return -1;
    report_summary(t->o, all, t->comm, gradsync_algo_name(t->sync.last_algo), hash, t->o->compare ? &distance : NULL);
    if (t->o->tolerance >= 0 && distance.max_abs > t->o->tolerance) {
        fprintf(stderr, "train_digits: a weight differs by %g from that in %s: more than %g\n", distance.max_abs,
                t->o->compare, t->o->tolerance);
        return -1;
    }
    if (all->test_accuracy < t->o->require) {
        fprintf(stderr, "train_digits: test accuracy %.2f %% is below the required %g %%\n", all->test_accuracy,
                t->o->require);
        return -1;
    }
    return 0;
}

static int train(trainer *t)
{
    epoch_stats all = {0}, e = {0};

    if (t->rank == 0)
        report_start(t->o, &t->model, t->train, t->test, t->comm);
    for (int epoch = 1; epoch <= t->o->epochs; epoch++) {
        if (train_epoch(t, epoch, &e))
            return -1;
        if (t->rank == 0)
            report_epoch(t->o, epoch, &e);
        all.train_s += e.train_s;
        all.exposed_s += e.exposed_s;
        all.collective_s += e.collective_s;
        all.images += e.images;
    }
    all.loss = e.loss;
    all.train_accuracy = e.train_accuracy;
    all.test_accuracy = e.test_accuracy;
    return finish(t, &all);
}

static int run_rank(void *arg, local_rank *local)
{
    const job *j = arg;
    trainer t = {.o = &j->o, .data = &j->data, .rank = local->rank};
    int ok = connect_ranks(&t, local) == 0;

    local_done(local);
    ok = ok && prepare(&t) == 0 && train(&t) == 0;
    sync_abandon(&t.sync);
    gradsync_comm_destroy(t.comm);
    sync_destroy(&t.sync);
    gradsync_context_destroy(t.ctx);
    mlp_destroy(&t.model);
    free(t.order);
    free(t.epoch_order);
    free(t.labels);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
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

static int run(job *j)
{
    local_rank alone = {.rank = 0, .nranks = 1, .fd = -1};

    if (j->o.ranks > 1)
        return local_run("train_digits", j->o.ranks, run_rank, j);
    return run_rank(j, &alone);
}

int main(int argc, char **argv)
{
    char path[PATH_MAX], why[PATH_MAX + 160];
    job j;
    int status = options_parse(&j.o, argc, argv);

    if (status >= 0)
        return status;
    setvbuf(stdout, NULL, _IOLBF, 0);
    default_data(path);
    if (digits_load(j.o.data ? j.o.data : path, &j.data, why, sizeof(why))) {
        fprintf(stderr, "train_digits: %s\n", why);
        return EXIT_FAILURE;
    }
    status = run(&j);
    digits_free(&j.data);
    return status;
}
