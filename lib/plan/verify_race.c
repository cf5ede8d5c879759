/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Races: every two accesses to a cell of which one writes must be ordered by
 * signals, whatever the schedule. Kept per cell: the last writer and the readers
 * since, without those that a later one is ordered after anyway.
 *
 * A PUT is judged when it is issued: in any schedule that keeps the signals' order
 * this is one of the moments at which it may run.
 */
#include "plan/verify_sim.h"

#include <stdio.h>
#include <string.h>

static uint32_t *clock_of(const gsi_sim *sim, int rank, int stream)
{
    return sim->vc + ((uint64_t)rank * (uint64_t)sim->nstreams + (uint64_t)stream) * (uint64_t)sim->n;
}

static uint32_t *node_at(const gsi_sim *sim, uint32_t node)
{
    return (uint32_t *)sim->clock_pool.items + (uint64_t)node * ((uint32_t)sim->n + 2);
}

int gsi_verify_clocks(gsi_sim *sim)
{
    uint64_t n = (uint64_t)sim->n, agents = n * (uint64_t)sim->nstreams, events = 1;

    for (int r = 0; r < sim->n; r++) {
        sim->ranks[r].event = (uint32_t)events;
        events += sim->plans[r]->nsteps;
    }
    sim->events = gsi_verify_alloc(sim, events, sizeof *sim->events);
    sim->vc = gsi_verify_alloc(sim, agents * n, sizeof *sim->vc);
    if (!sim->events || !sim->vc || events > UINT32_MAX)
        return GRADSYNC_ERR_NOMEM;
    for (int r = 0; r < sim->n; r++)
        for (int s = 0; s < sim->nstreams; s++)
            clock_of(sim, r, s)[r] = 1;
    return 0;
}

/* The event is certain to be over for whoever has this clock on this stream. */
static int known(const gsi_vevent *e, const uint32_t *clock, int stream, int write)
{
    if (e->stream != stream)
        return 0;
    if (!e->put)
        return clock[e->rank] >= e->clock;
    if (e->ack && clock[e->peer] >= e->ack)
        return 1;
    return !write && e->flush && clock[e->rank] >= e->flush;
}

typedef struct access {
    const gsi_vagent *agent;
    const uint32_t *clock;
    uint32_t step, event;
    const gsi_place *place;
    int write;
} access;

static int race(gsi_sim *sim, const access *a, uint64_t cell, uint32_t event, int wrote)
{
    const gsi_vevent *e = &sim->events[event];
    uint64_t at = cell - sim->ranks[a->place->rank].base[a->place->space];
    int stage = a->place->space == GSI_STAGE;

    return gsi_verify_defect(
        sim, a->agent->rank, a->step,
        "race: %s %s %llu of rank %d's %s, unordered with rank %d, stream %d, step %u, which %s it",
        a->write ? "writes" : "reads", stage ? "byte" : "element", (unsigned long long)(stage ? at * sim->esize : at),
        (int)a->place->rank, gsi_verify_space(a->place->space), (int)e->rank, e->stream,
        (unsigned)(event - sim->ranks[e->rank].event), wrote ? "writes" : "reads");
}

/* The list of readers with this one added; 0 if memory ran out. */
static uint32_t add_reader(gsi_sim *sim, const access *a, uint32_t list)
{
    uint32_t kept = 0, dropped = 0, id;
    gsi_vreader *pool = sim->readers.items;

    for (uint32_t i = list; i; i = pool[i].prev) {
        if (known(&sim->events[pool[i].event], a->clock, a->agent->stream, 0))
            dropped++;
        else
            kept++;
    }
    if (dropped && kept) {
        uint32_t rest = 0;
        for (uint32_t i = list; i; i = pool[i].prev) {
            if (known(&sim->events[pool[i].event], a->clock, a->agent->stream, 0))
                continue;
            id = gsi_verify_take(&sim->readers, sizeof(gsi_vreader));
            if (!id)
                return 0;
            pool = sim->readers.items;
            pool[id] = (gsi_vreader){rest, pool[i].event};
            rest = id;
        }
        list = rest;
    } else if (dropped) {
        list = 0;
    }
    id = gsi_verify_take(&sim->readers, sizeof(gsi_vreader));
    if (id)
        ((gsi_vreader *)sim->readers.items)[id] = (gsi_vreader){list, a->event};
    return id;
}

static int check_mark(gsi_sim *sim, const access *a, uint64_t cell)
{
    gsi_vmark mark = sim->marks[cell];

    if (mark.writer && !known(&sim->events[mark.writer], a->clock, a->agent->stream, 1))
        return race(sim, a, cell, mark.writer, 1);
    for (uint32_t i = mark.readers; a->write && i;) {
        gsi_vreader reader = ((gsi_vreader *)sim->readers.items)[i];
        if (!known(&sim->events[reader.event], a->clock, a->agent->stream, 0))
            return race(sim, a, cell, reader.event, 0);
        i = reader.prev;
    }
    return 0;
}

/* How many cells from here on have been touched alike. */
static uint64_t same_marks(const gsi_vmark *mark, uint64_t n)
{
    const gsi_vmark first = *mark;
    uint64_t k = 0;

    for (uint32_t differ = 0; n - k >= 16; k += 16) {
        for (uint32_t t = 0; t < 16; t++)
            differ |= (mark[k + t].writer ^ first.writer) | (mark[k + t].readers ^ first.readers);
        if (differ)
            break;
    }
    while (k < n && mark[k].writer == first.writer && mark[k].readers == first.readers)
        k++;
    return k;
}

static int touch(gsi_sim *sim, const access *a, uint64_t n)
{
    uint64_t cell = gsi_verify_cell(sim, a->place);

    if (n && a->place->rank != a->agent->rank && !sim->gather && !a->clock[a->place->rank])
        return gsi_verify_defect(sim, a->agent->rank, a->step,
                                 "race: uses %s of rank %d without a signal that it has entered the call",
                                 gsi_verify_space(a->place->space), (int)a->place->rank);
    for (uint64_t i = 0, run; i < n; i += run) {
        gsi_vmark *mark = &sim->marks[cell + i], after = {a->event, 0};
        int rc = check_mark(sim, a, cell + i);
        if (rc)
            return rc;
        if (!a->write) {
            after = (gsi_vmark){mark->writer, add_reader(sim, a, mark->readers)};
            if (!after.readers)
                return GRADSYNC_ERR_NOMEM;
        }
        run = same_marks(mark, n - i);
        for (uint64_t k = 0; k < run; k++)
            mark[k] = after;
    }
    return 0;
}

int gsi_verify_access(gsi_sim *sim, const gsi_vagent *agent, uint32_t at)
{
    const gsi_step *step = &sim->plans[agent->rank]->steps[at];
    const uint32_t *clock;
    access a;
    int rc = 0;

    if (!sim->opts.races)
        return 0;
    clock = clock_of(sim, agent->rank, agent->stream);
    a = (access){.agent = agent, .clock = clock, .step = at, .event = sim->ranks[agent->rank].event + at};
    sim->events[a.event] = (gsi_vevent){
        .clock = clock[agent->rank],
        .rank = agent->rank,
        .peer = step->peer,
        .stream = (uint8_t)agent->stream,
        .put = step->kind == GSI_STEP_PUT,
    };
    for (uint32_t i = 0; i < (uint32_t)step->nsrc + step->ndst && !rc; i++) {
        uint64_t n = step->bytes / sim->esize;
        a.write = i >= step->nsrc;
        a.place = &sim->plans[agent->rank]->places[step->place + i];
        if (step->kind == GSI_STEP_REDUCE &&
            (a.write ? step->flags & GSI_STEP_ACC_OUT : i == 0 && step->flags & GSI_STEP_ACC_IN))
            n *= sim->wide;
        /* In place, a COPY onto itself is none: the engine leaves it out. */
        if (step->kind != GSI_STEP_COPY || !a.write ||
            gsi_verify_cell(sim, a.place) != gsi_verify_cell(sim, a.place - i))
            rc = touch(sim, &a, n);
    }
    return rc;
}

int gsi_verify_raise(gsi_sim *sim, const gsi_vagent *agent, int peer)
{
    uint32_t n = (uint32_t)sim->n;
    uint32_t *clock = clock_of(sim, agent->rank, agent->stream), *data;
    uint32_t node;

    if (peer == GSI_ALL && sim->n == 1)
        return 0;
    node = gsi_verify_take(&sim->clock_pool, (n + 2) * sizeof *clock);
    if (!node)
        return GRADSYNC_ERR_NOMEM;
    data = node_at(sim, node);
    data[0] = 0;
    data[1] = peer == GSI_ALL ? n - 1 : 1;
    memcpy(data + 2, clock, n * sizeof *clock);
    for (int q = peer == GSI_ALL ? 0 : peer; q < (peer == GSI_ALL ? sim->n : peer + 1); q++) {
        gsi_vchan *chan = gsi_verify_chan(sim, agent->stream, agent->rank, q);
        if (q == agent->rank)
            continue;
        if (chan->clock_head)
            node_at(sim, chan->clock_tail)[0] = node;
        else
            chan->clock_head = node;
        chan->clock_tail = node;
    }
    clock[agent->rank]++;
    return 0;
}

void gsi_verify_put_issued(gsi_sim *sim, const gsi_vagent *agent, uint32_t step, gsi_vchan *chan)
{
    gsi_vput *put = (gsi_vput *)sim->puts.items + chan->put;
    uint32_t event = sim->ranks[agent->rank].event + step;

    sim->events[event].covered = chan->sent + 1;
    if (put->last)
        sim->events[put->last].next = event;
    put->last = event;
    if (!put->unflushed)
        put->unflushed = event;
    if (!put->unacked)
        put->unacked = event;
}

void gsi_verify_awaited(gsi_sim *sim, const gsi_vagent *agent, int peer, uint32_t value)
{
    gsi_vchan *chan = gsi_verify_chan(sim, agent->stream, peer, agent->rank);
    uint32_t *clock = clock_of(sim, agent->rank, agent->stream);

    for (uint32_t k = chan->awaited + 1; k <= value; k++) {
        uint32_t node = chan->clock_head;
        uint32_t *data = node_at(sim, node);
        chan->clock_head = data[0];
        for (int r = 0; k == value && r < sim->n; r++)
            if (data[2 + r] > clock[r])
                clock[r] = data[2 + r];
        if (--data[1] == 0) {
            data[0] = sim->clock_pool.free;
            sim->clock_pool.free = node;
        }
    }
    if (chan->put && sim->opts.races) {
        gsi_vput *put = (gsi_vput *)sim->puts.items + chan->put;
        while (put->unacked && sim->events[put->unacked].covered <= value) {
            sim->events[put->unacked].ack = clock[agent->rank];
            put->unacked = sim->events[put->unacked].next;
        }
    }
}

void gsi_verify_flushed(gsi_sim *sim, const gsi_vagent *agent, gsi_vput *put)
{
    uint32_t now = clock_of(sim, agent->rank, agent->stream)[agent->rank];

    for (; put->unflushed; put->unflushed = sim->events[put->unflushed].next)
        sim->events[put->unflushed].flush = now;
}

static int still_used(gsi_sim *sim, int rank, int space, uint64_t i, uint32_t event, int write)
{
    const gsi_vevent *e = &sim->events[event];

    if (known(e, clock_of(sim, rank, e->stream), e->stream, write))
        return 0;
    return gsi_verify_defect(sim, rank, GSI_NO_STEP,
                             "race: returns while rank %d, stream %d, step %u may still %s %s %llu of its %s",
                             (int)e->rank, e->stream, (unsigned)(event - sim->ranks[e->rank].event),
                             write ? "write" : "read", space == GSI_STAGE ? "byte" : "element",
                             (unsigned long long)(space == GSI_STAGE ? i * sim->esize : i), gsi_verify_space(space));
}

static int check_leaving(gsi_sim *sim, int r, int space, uint64_t cells)
{
    const gsi_vmark *marks = sim->marks + sim->ranks[r].base[space];
    int rc = 0;

    for (uint64_t i = 0; i < cells && !rc; i++) {
        if (i && marks[i].writer == marks[i - 1].writer && marks[i].readers == marks[i - 1].readers)
            continue;
        if (marks[i].writer)
            rc = still_used(sim, r, space, i, marks[i].writer, 1);
        for (uint32_t k = marks[i].readers; k && !rc;) {
            gsi_vreader reader = ((gsi_vreader *)sim->readers.items)[k];
            rc = still_used(sim, r, space, i, reader.event, 0);
            k = reader.prev;
        }
    }
    return rc;
}

static int has_met(const gsi_sim *sim, int rank, int other)
{
    for (int s = 0; s < sim->nstreams; s++)
        if (clock_of(sim, rank, s)[other])
            return 1;
    return rank == other;
}

int gsi_verify_ends(gsi_sim *sim)
{
    int rc = 0;

    for (int r = 0; r < sim->n && sim->opts.races && !rc; r++)
        for (int space = 0; space < 3 && !rc; space++) {
            const gsi_vrank *rank = &sim->ranks[r];
            /* After a gathering plan STAGE is used again only when everyone has entered the next call. */
            if (space != GSI_STAGE || !sim->gather)
                rc = check_leaving(sim, r, space, space == GSI_STAGE ? rank->stage_used : rank->len[space]);
        }
    if (rc || sim->gather || sim->args->coll != GRADSYNC_BARRIER)
        return rc;
    for (int r = 0; r < sim->n; r++)
        for (int q = 0; q < sim->n; q++)
            if (!has_met(sim, r, q))
                return gsi_verify_defect(sim, r, GSI_NO_STEP, "leaves the barrier without having met rank %d", q);
    return 0;
}
