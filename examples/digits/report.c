/* SPDX-License-Identifier: Apache-2.0 */
#include "report.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static double percent(double part, double whole)
{
    return whole > 0 ? 100.0 * part / whole : 0.0;
}

static double rate(const epoch_stats *e)
{
    return e->train_s > 0 ? (double)e->images / e->train_s : 0.0;
}

static gradsync_comm_info info_of(gradsync_comm *comm)
{
    gradsync_comm_info info = {.size = sizeof(info), .nranks = gradsync_comm_size(comm)};

    gradsync_comm_query(comm, &info);
    return info;
}

static long pid_of(gradsync_comm *comm, int rank)
{
    gradsync_peer_info peer = {.size = sizeof(peer)};

    return gradsync_comm_peer(comm, rank, &peer) == GRADSYNC_OK ? (long)peer.pid : -1;
}

static void start_json(const options *o, const mlp *m, size_t train, size_t test, gradsync_comm *comm)
{
    gradsync_comm_info info = info_of(comm);

    printf("{\"event\": \"start\", \"version\": \"%s\", \"ranks\": %d, \"transport\": \"%s\", \"pids\": [",
           gradsync_version(), info.nranks, info.transport);
    for (int r = 0; r < info.nranks; r++)
        printf("%s%ld", r ? ", " : "", pid_of(comm, r));
    printf("], \"batch\": %d, \"epochs\": %d, \"seed\": %" PRIu64 ", \"dtype\": \"%s\", \"memory\": \"%s\", ", o->batch,
           o->epochs, o->seed, gradsync_dtype_name(o->dtype), o->plain ? "plain" : "library");
    printf("\"algo\": \"%s\", \"ordered\": %s, \"parameters\": %zu, \"buckets\": [", gradsync_algo_name(o->algo),
           o->ordered ? "true" : "false", m->nparams);
    for (size_t l = 0; l < m->nlayers; l++)
        printf("%s%zu", l ? ", " : "", m->layer[l].count);
    printf("], \"train_images\": %zu, \"test_images\": %zu}\n", train, test);
}

void report_start(const options *o, const mlp *m, size_t train, size_t test, gradsync_comm *comm)
{
    enum { SOME = 8 };
    gradsync_comm_info info;

    if (o->quiet)
        return;
    if (o->json) {
        start_json(o, m, train, test, comm);
        return;
    }
    info = info_of(comm);
    printf("%zu training and %zu test images; perceptron %zu", train, test, m->layer[0].in);
    for (size_t l = 0; l < m->nlayers; l++)
        printf("-%zu", m->layer[l].out);
    printf(", %zu parameters in %zu buckets\n", m->nparams, m->nlayers);
    printf("%d rank%s, transport %s, batch %d, %s gradients in %s memory, algorithm %s%s; pid%s", info.nranks,
           info.nranks == 1 ? "" : "s", info.transport, o->batch, gradsync_dtype_name(o->dtype),
           o->plain ? "plain" : "library", gradsync_algo_name(o->algo), o->ordered ? ", ordered" : "",
           info.nranks == 1 ? "" : "s");
    for (int r = 0; r < info.nranks && r < SOME; r++)
        printf(" %ld", pid_of(comm, r));
    printf("%s\n", info.nranks > SOME ? " ..." : "");
    printf("epoch    loss   train    test    images/s   sync: exposed  collectives\n");
}

void report_epoch(const options *o, int epoch, const epoch_stats *e)
{
    if (o->quiet)
        return;
    if (o->json)
        printf("{\"event\": \"epoch\", \"epoch\": %d, \"loss\": %.9g, \"train_accuracy\": %.4f, "
               "\"test_accuracy\": %.4f, \"images_per_s\": %.1f, \"sync_exposed_percent\": %.2f, "
               "\"sync_collectives_percent\": %.2f}\n",
               epoch, e->loss, e->train_accuracy, e->test_accuracy, rate(e), percent(e->exposed_s, e->train_s),
               percent(e->collective_s, e->train_s));
    else
        printf("%5d  %.4f  %5.1f %%  %5.1f %%  %10.0f  %12.1f %%  %9.1f %%\n", epoch, e->loss, e->train_accuracy,
               e->test_accuracy, rate(e), percent(e->exposed_s, e->train_s), percent(e->collective_s, e->train_s));
}

void report_summary(const options *o, const epoch_stats *all, gradsync_comm *comm, const char *algo, uint64_t hash,
                    const weight_distance *distance)
{
    gradsync_comm_info info = info_of(comm);

    if (o->json) {
        printf("{\"event\": \"summary\", \"ranks\": %d, \"transport\": \"%s\", \"last_algo\": \"%s\", "
               "\"loss\": %.9g, \"train_accuracy\": %.4f, \"test_accuracy\": %.4f, \"train_s\": %.4f, "
               "\"images_per_s\": %.1f, \"sync_exposed_percent\": %.2f, \"sync_collectives_percent\": %.2f, "
               "\"weights_hash\": \"%016" PRIx64 "\", \"same_weights_checked\": %s",
               info.nranks, info.transport, algo, all->loss, all->train_accuracy, all->test_accuracy, all->train_s,
               rate(all), percent(all->exposed_s, all->train_s), percent(all->collective_s, all->train_s), hash,
               o->check ? "true" : "false");
        if (distance)
            printf(", \"compared\": {\"max_abs\": %.6g, \"relative\": %.6g}", distance->max_abs, distance->relative);
        printf("}\n");
        return;
    }
    if (o->check && info.nranks > 1)
        printf("the weights of all %d ranks are the same, bit by bit\n", info.nranks);
    if (distance)
        printf("weights against %s: largest difference %.3g, relative %.3g\n", o->compare, distance->max_abs,
               distance->relative);
    printf("test accuracy %.2f %% after %d epoch%s in %.2f s: %.0f images/s on %d rank%s over %s, "
           "%.1f %% of the time waiting for gradients; weights %016" PRIx64 "\n",
           all->test_accuracy, o->epochs, o->epochs == 1 ? "" : "s", all->train_s, rate(all), info.nranks,
           info.nranks == 1 ? "" : "s", info.transport, percent(all->exposed_s, all->train_s), hash);
}
