/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks run their streams in turns of one core each; a host's wire takes one message at a
 * time, each way; a signal or PUT arrives after its latency. Steps are run in the order
 * of the times at which they can start, so a wait knows when its signal comes, or that
 * it has not been sent.
 */
#include "timing.h"

#include <stdlib.h>

typedef struct agent {
    double time;
    uint32_t at, end;
} agent;

static gsi_plan *const *plans;
static const gsi_plan_args *args;
static const timing *model;
static agent *agents;           /* n * GSI_MAX_STREAMS */
static double *core, *out, *in; /* when a rank's core, a host's wire is free */
static double *arrival, *acked; /* of signals: [stream][from][to][number]; of the last PUT: [stream][from][to] */
static uint32_t *sent, most;
static double *host_bytes, *host_messages;

static int host_of(int rank)
{
    return args->hosts ? args->hosts->of[rank] : rank;
}

static size_t way(int stream, int from, int to)
{
    return ((size_t)stream * (size_t)args->n + (size_t)from) * (size_t)args->n + (size_t)to;
}

static double later(double a, double b)
{
    return a > b ? a : b;
}

/* A message that is ready at `time`: when it is there. */
static double send(int from, int to, double time, double bytes)
{
    int a = host_of(from), b = host_of(to);
    double takes = model->message + bytes / model->wire;

    if (a == b)
        return time + model->signal;
    double start = later(time, out[a]);
    out[a] = start + takes;
    host_bytes[a] += bytes;
    host_messages[a]++;
    in[b] = later(start + model->latency, in[b]) + takes;
    return in[b];
}

static void raise(int stream, int from, int to, double time)
{
    size_t w = way(stream, from, to);

    if (sent[w] < most)
        arrival[w * most + sent[w]] = time;
    sent[w]++;
}

/* When the next step can start; -1: it waits for what has not been sent yet. */
static double starts(int rank, int stream)
{
    const agent *a = &agents[rank * GSI_MAX_STREAMS + stream];
    const gsi_step *step = &plans[rank]->steps[a->at];
    double time = a->time;

    for (int p = 0; p < args->n && (step->kind == GSI_STEP_WAIT || step->kind == GSI_STEP_FLUSH); p++) {
        if (p == rank || (step->peer != p && step->peer != GSI_ALL))
            continue;
        if (step->kind == GSI_STEP_FLUSH) {
            time = later(time, acked[way(stream, rank, p)]);
            continue;
        }
        size_t w = way(stream, p, rank);
        if (sent[w] < step->value)
            return -1;
        time = later(time, arrival[w * most + step->value - 1]);
    }
    return time;
}

static void run(int rank, int stream, double time)
{
    agent *a = &agents[rank * GSI_MAX_STREAMS + stream];
    const gsi_step *step = &plans[rank]->steps[a->at++];
    double bytes = (double)step->bytes;

    time = later(time, core[rank]) + model->step;
    if (step->kind == GSI_STEP_COPY)
        time += bytes * step->ndst / model->copy;
    if (step->kind == GSI_STEP_REDUCE)
        time += bytes * step->nsrc / model->reduce;
    if (step->kind == GSI_STEP_PUT && host_of(step->peer) == host_of(rank))
        time += bytes / model->copy;
    if (step->kind == GSI_STEP_PUT) {
        double there = send(rank, step->peer, time, bytes);
        if (step->flags & GSI_STEP_NOTIFY)
            raise(stream, rank, step->peer, there);
        acked[way(stream, rank, step->peer)] = there + (host_of(step->peer) == host_of(rank) ? 0 : model->latency);
    }
    for (int p = 0; p < args->n && step->kind == GSI_STEP_SIGNAL; p++)
        if (p != rank && (step->peer == p || step->peer == GSI_ALL))
            raise(stream, rank, p, send(rank, p, time, 0));
    if (step->kind != GSI_STEP_WAIT && step->kind != GSI_STEP_FLUSH)
        core[rank] = time;
    a->time = time;
}

/* Everyone's header to everyone, with what a small message brings along: when each rank has all of them. */
static void exchange_headers(void)
{
    int n = args->n;

    for (int i = 1; i < n; i++)
        for (int r = 0; r < n; r++) {
            int gives = args->coll != GRADSYNC_BROADCAST || r == args->root;
            double bytes = gives ? (double)plans[r]->eager : 0;
            double there = send(r, (r + i) % n, bytes / model->copy, bytes);
            agent *a = &agents[(r + i) % n * GSI_MAX_STREAMS];
            a->time = later(a->time, there);
        }
    for (int r = 0; r < n; r++)
        for (int s = 0; s < plans[r]->nstreams; s++)
            agents[r * GSI_MAX_STREAMS + s] = (agent){agents[r * GSI_MAX_STREAMS].time, plans[r]->streams[s].first,
                                                      plans[r]->streams[s].first + plans[r]->streams[s].count};
}

static void *cleared(size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size);

    if (!p)
        abort();
    return p;
}

double timing_of(gsi_plan *const *of, const gsi_plan_args *with, const timing *how, double *bytes, double *messages)
{
    size_t n = (size_t)with->n, ways = n * n * GSI_MAX_STREAMS;
    double last = 0;

    plans = of;
    args = with;
    model = how;
    most = 1;
    for (size_t r = 0; r < n; r++)
        for (size_t i = 0; i < (size_t)of[r]->nstreams * n; i++)
            most = of[r]->awaits && of[r]->awaits[i] > most ? of[r]->awaits[i] : most;
    agents = cleared(n * GSI_MAX_STREAMS, sizeof *agents);
    core = cleared(n * 5, sizeof *core);
    out = core + n;
    in = out + n;
    host_bytes = in + n;
    host_messages = host_bytes + n;
    sent = cleared(ways, sizeof *sent);
    arrival = cleared(ways * most, sizeof *arrival);
    acked = cleared(ways, sizeof *acked);
    exchange_headers();
    for (;;) {
        int rank = -1, stream = 0;
        double first = 0;
        for (int r = 0; r < with->n; r++)
            for (int s = 0; s < of[r]->nstreams; s++) {
                const agent *a = &agents[r * GSI_MAX_STREAMS + s];
                double time = a->at < a->end ? starts(r, s) : -1;
                if (time >= 0 && (rank < 0 || later(time, core[r]) < first)) {
                    first = later(time, core[r]);
                    rank = r;
                    stream = s;
                }
            }
        if (rank < 0)
            break;
        run(rank, stream, starts(rank, stream));
    }
    *bytes = *messages = 0;
    for (size_t r = 0; r < n; r++) {
        for (int s = 0; s < of[r]->nstreams; s++)
            if (agents[r * GSI_MAX_STREAMS + (size_t)s].at < agents[r * GSI_MAX_STREAMS + (size_t)s].end)
                abort(); /* a deadlock */
        for (int s = 0; s < of[r]->nstreams; s++)
            last = later(last, agents[r * GSI_MAX_STREAMS + (size_t)s].time);
        *bytes = later(*bytes, host_bytes[r]);
        *messages = later(*messages, host_messages[r]);
    }
    free(agents);
    free(core);
    free(sent);
    free(arrival);
    free(acked);
    return last;
}
