/* SPDX-License-Identifier: Apache-2.0 */
/* What can be told of the plans without running them: shapes, bounds, flags, and
 * that the signals which are raised are the ones which are awaited. */
#include "plan/verify_sim.h"

#include <string.h>

/* Scratch for one stream or step, by rank; stamps save clearing it. */
typedef struct scratch {
    uint32_t *stamp, *head; /* the step's places in this rank's memory: a list through `next` */
    uint32_t *next;         /* by place of the step */
    uint32_t *last;         /* value of the stream's last WAIT for this rank */
    uint64_t *used;         /* cells of STAGE that are touched */
    uint32_t now;           /* the current stamp */
    uint32_t all, most;     /* of the stream's WAITs: last for GSI_ALL, highest for anyone */
    uint32_t raised;        /* SIGNALs to GSI_ALL in this stream */
} scratch;

static int check_head(gsi_sim *sim, int r)
{
    const gsi_plan *plan = sim->plans[r], *first = sim->plans[0];
    const gsi_plan_args *args = sim->args;
    uint64_t room = plan->slot ? args->slot_bytes : args->stage_bytes;
    uint64_t send = sim->ranks[args->coll == GRADSYNC_BROADCAST ? args->root : r].len[GSI_SEND] * sim->esize;
    const char *what = NULL;

    if (plan->n != sim->n || plan->rank != r)
        return gsi_verify_defect(sim, r, GSI_NO_STEP, "the plan is of rank %d of %d, not of %d of %d", (int)plan->rank,
                                 (int)plan->n, r, (int)sim->n);
    if (plan->coll != args->coll || plan->algo != args->algo)
        return gsi_verify_defect(sim, r, GSI_NO_STEP, "the plan is of collective %d, algorithm %d, not of %d, %d",
                                 plan->coll, plan->algo, (int)args->coll, (int)args->algo);
    if (plan->nstreams != first->nstreams)
        what = "nstreams";
    else if (plan->gather != first->gather)
        what = "gather";
    else if (plan->loadstore != first->loadstore)
        what = "loadstore";
    else if (plan->signal_all != first->signal_all)
        what = "signal_all";
    else if (plan->user_memory != first->user_memory)
        what = "user_memory";
    else if (plan->ordered != first->ordered)
        what = "ordered";
    else if (plan->slot != first->slot)
        what = "slot";
    else if (plan->eager != first->eager)
        what = "eager";
    else if (plan->stage_bytes != first->stage_bytes)
        what = "stage_bytes";
    if (what)
        return gsi_verify_defect(sim, r, GSI_NO_STEP, "%s differs from rank 0's plan", what);
    if ((args->flags & GRADSYNC_ORDERED) && sim->reduces && !plan->ordered)
        return gsi_verify_defect(sim, r, GSI_NO_STEP, "ordered was asked for, but the plan does not claim to be");
    if (plan->stage_bytes > room)
        return gsi_verify_defect(sim, r, GSI_NO_STEP, "stage_bytes is %llu, but there are %llu",
                                 (unsigned long long)plan->stage_bytes, (unsigned long long)room);
    if (plan->eager && (!plan->gather || !plan->slot))
        return gsi_verify_defect(sim, r, GSI_NO_STEP, "eager bytes travel with the header: it needs gather and slot");
    if (plan->eager && plan->eager != send)
        return gsi_verify_defect(sim, r, GSI_NO_STEP, "eager is %llu bytes, but SEND has %llu",
                                 (unsigned long long)plan->eager, (unsigned long long)send);
    if (plan->eager > plan->stage_bytes)
        return gsi_verify_defect(sim, r, GSI_NO_STEP, "eager is %llu bytes, more than stage_bytes",
                                 (unsigned long long)plan->eager);
    for (int s = 0; s < plan->nstreams; s++) {
        const gsi_stream *a = &plan->streams[s];
        if (a->first > plan->nsteps || a->count > plan->nsteps - a->first)
            return gsi_verify_defect(sim, r, GSI_NO_STEP, "stream %d goes beyond the %u steps", s, plan->nsteps);
        for (int t = 0; t < s; t++) {
            const gsi_stream *b = &plan->streams[t];
            if (a->count && b->count && a->first < b->first + b->count && b->first < a->first + a->count)
                return gsi_verify_defect(sim, r, GSI_NO_STEP, "streams %d and %d share steps", t, s);
        }
    }
    return 0;
}

/* Bytes of memory of the i-th place of a step. */
static uint64_t place_bytes(const gsi_sim *sim, const gsi_step *step, uint32_t i)
{
    if (step->kind == GSI_STEP_REDUCE) {
        int wide = i < step->nsrc ? i == 0 && (step->flags & GSI_STEP_ACC_IN) : step->flags & GSI_STEP_ACC_OUT;
        return wide ? step->bytes * sim->wide : step->bytes;
    }
    return step->bytes;
}

/* Elements between two blocks belong to other segments of a long message. */
static int between_blocks(const gsi_sim *sim, const gsi_place *place, uint64_t bytes)
{
    int blocks = (sim->args->coll == GRADSYNC_REDUCE_SCATTER && place->space == GSI_SEND) ||
                 (sim->args->coll == GRADSYNC_ALL_GATHER && place->space == GSI_RECV);

    if (!blocks || !bytes || sim->stride == sim->args->count)
        return 0;
    return place->off / sim->esize % sim->stride + bytes / sim->esize > sim->args->count;
}

static int check_place(gsi_sim *sim, int r, uint32_t at, uint32_t i)
{
    const gsi_plan *plan = sim->plans[r];
    const gsi_step *step = &plan->steps[at];
    const gsi_place *place = &plan->places[step->place + i];
    const char *verb = i < step->nsrc ? "reads" : "writes";
    uint64_t bytes = place_bytes(sim, step, i), room;
    const char *space;

    if (place->rank < 0 || place->rank >= sim->n || place->space > GSI_STAGE)
        return gsi_verify_defect(sim, r, at, "%s space %d of rank %d: there is none", verb, place->space,
                                 (int)place->rank);
    space = gsi_verify_space(place->space);
    if (place->off % sim->esize || bytes % sim->esize)
        return gsi_verify_defect(sim, r, at, "%s bytes [%llu, +%llu) of %s: no whole elements", verb,
                                 (unsigned long long)place->off, (unsigned long long)bytes, space);
    room = place->space == GSI_STAGE ? plan->stage_bytes : sim->ranks[place->rank].len[place->space] * sim->esize;
    if (place->off > room || bytes > room - place->off)
        return gsi_verify_defect(sim, r, at, "out of bounds: %s bytes [%llu, +%llu) of rank %d's %s, which has %llu",
                                 verb, (unsigned long long)place->off, (unsigned long long)bytes, (int)place->rank,
                                 space, (unsigned long long)room);
    if (between_blocks(sim, place, bytes))
        return gsi_verify_defect(sim, r, at, "out of bounds: %s bytes [%llu, +%llu) of %s, beyond a block", verb,
                                 (unsigned long long)place->off, (unsigned long long)bytes, space);
    if (i >= step->nsrc && place->space == GSI_SEND)
        return gsi_verify_defect(sim, r, at, "writes SEND of rank %d", (int)place->rank);
    if (place->rank == r)
        return 0;
    if (step->kind == GSI_STEP_PUT && i == 0)
        return gsi_verify_defect(sim, r, at, "PUT reads memory of rank %d: only its own can be its source",
                                 (int)place->rank);
    if (!plan->loadstore && step->kind != GSI_STEP_PUT)
        return gsi_verify_defect(sim, r, at, "%s memory of rank %d, but the plan is not marked loadstore", verb,
                                 (int)place->rank);
    if (step->kind != GSI_STEP_PUT && !gsi_hosts_same(sim->args->hosts, r, place->rank)) {
        /* What came with the header lies here already. */
        if (plan->slot && place->space == GSI_STAGE && i < step->nsrc && place->off + bytes <= plan->eager)
            return 0;
        return gsi_verify_defect(sim, r, at, "%s %s of rank %d, which is on another host", verb, space,
                                 (int)place->rank);
    }
    if (place->space == GSI_STAGE)
        return 0;
    if (step->kind != GSI_STEP_PUT && sim->args->hosts && !sim->args->share)
        return gsi_verify_defect(sim, r, at, "%s %s of rank %d, which only that rank can load and store", verb, space,
                                 (int)place->rank);
    if (!plan->user_memory)
        return gsi_verify_defect(sim, r, at, "%s %s of rank %d, but the plan is not marked user_memory", verb, space,
                                 (int)place->rank);
    if (step->kind == GSI_STEP_PUT && !sim->args->reach && bytes)
        return gsi_verify_defect(sim, r, at, "PUT to RECV of rank %d, which is out of reach", (int)place->rank);
    if (sim->args->coll == GRADSYNC_ALL_REDUCE && bytes &&
        (place->off < sim->args->head || room - place->off - bytes < sim->args->tail))
        return gsi_verify_defect(sim, r, at, "%s bytes [%llu, +%llu) of rank %d's %s: head or tail, out of its reach",
                                 verb, (unsigned long long)place->off, (unsigned long long)bytes, (int)place->rank,
                                 space);
    return 0;
}

/* A destination may be exactly a source, and overlaps nothing else of the step. */
static int check_overlap(gsi_sim *sim, int r, uint32_t at, scratch *s)
{
    const gsi_step *step = &sim->plans[r]->steps[at];
    const gsi_place *places = &sim->plans[r]->places[step->place];

    s->now++;
    for (uint32_t i = 0; i < (uint32_t)step->nsrc + step->ndst; i++) {
        uint64_t a = gsi_verify_cell(sim, &places[i]), na = place_bytes(sim, step, i) / sim->esize;
        int owner = places[i].rank;
        if (s->stamp[owner] != s->now) {
            s->stamp[owner] = s->now;
            s->head[owner] = GSI_NO_STEP;
        }
        for (uint32_t j = s->head[owner]; i >= step->nsrc && j != GSI_NO_STEP; j = s->next[j]) {
            uint64_t b = gsi_verify_cell(sim, &places[j]), nb = place_bytes(sim, step, j) / sim->esize;
            if (a >= b + nb || b >= a + na || (j < step->nsrc && a == b && na == nb))
                continue;
            return gsi_verify_defect(sim, r, at, "destination %u overlaps %s %u in rank %d's memory", i - step->nsrc,
                                     j < step->nsrc ? "source" : "destination", j < step->nsrc ? j : j - step->nsrc,
                                     owner);
        }
        s->next[i] = s->head[owner];
        s->head[owner] = i;
    }
    return 0;
}

static int check_move(gsi_sim *sim, int r, uint32_t at, scratch *s)
{
    const gsi_plan *plan = sim->plans[r];
    const gsi_step *step = &plan->steps[at];
    uint32_t n = (uint32_t)step->nsrc + step->ndst;

    if (!step->nsrc || !step->ndst || (step->kind != GSI_STEP_REDUCE && step->nsrc != 1) ||
        (step->kind == GSI_STEP_PUT && step->ndst != 1))
        return gsi_verify_defect(sim, r, at, "%u sources and %u destinations", step->nsrc, step->ndst);
    if (step->place > plan->nplaces || n > plan->nplaces - step->place)
        return gsi_verify_defect(sim, r, at, "places [%u, +%u) go beyond the %u there are", step->place, n,
                                 plan->nplaces);
    if (step->bytes > UINT64_MAX / 2 / sim->wide)
        return gsi_verify_defect(sim, r, at, "out of bounds: %llu bytes", (unsigned long long)step->bytes);
    for (uint32_t i = 0; i < n; i++) {
        const gsi_place *place = &plan->places[step->place + i];
        uint64_t end;
        int rc = check_place(sim, r, at, i);
        if (rc)
            return rc;
        end = (place->off + place_bytes(sim, step, i)) / sim->esize;
        if (place->space == GSI_STAGE && end > s->used[place->rank])
            s->used[place->rank] = end;
    }
    if (step->kind == GSI_STEP_PUT) {
        if (plan->places[step->place + 1].rank != step->peer)
            return gsi_verify_defect(sim, r, at, "PUT to rank %d writes memory of rank %d", (int)step->peer,
                                     (int)plan->places[step->place + 1].rank);
        return 0;
    }
    return check_overlap(sim, r, at, s);
}

static int check_wait(gsi_sim *sim, int r, uint32_t at, scratch *s)
{
    const gsi_step *step = &sim->plans[r]->steps[at];
    uint32_t before = step->peer == GSI_ALL ? s->most : s->last[step->peer];

    if (before < s->all)
        before = s->all;
    if (!step->value || step->value < before)
        return gsi_verify_defect(sim, r, at, "waits for signal %u after having waited for signal %u", step->value,
                                 before);
    if (step->peer == GSI_ALL)
        s->all = step->value;
    else
        s->last[step->peer] = step->value;
    if (step->value > s->most)
        s->most = step->value;
    return 0;
}

static int check_step(gsi_sim *sim, int r, int stream, uint32_t at, scratch *s)
{
    const gsi_plan *plan = sim->plans[r];
    const gsi_step *step = &plan->steps[at];
    unsigned allowed = 0;

    if (step->kind == GSI_STEP_PUT)
        allowed = GSI_STEP_NOTIFY;
    else if (step->kind == GSI_STEP_REDUCE)
        allowed = GSI_STEP_FINAL | GSI_STEP_ACC_IN | GSI_STEP_ACC_OUT;
    if (step->kind > GSI_STEP_FLUSH || (step->flags & ~allowed))
        return gsi_verify_defect(sim, r, at, "kind %u with flags %u means nothing", step->kind, step->flags);
    if ((step->flags & (GSI_STEP_ACC_IN | GSI_STEP_ACC_OUT)) && sim->wide == 1)
        return gsi_verify_defect(sim, r, at, "ACC_IN and ACC_OUT are for f16 and bf16");
    if ((step->flags & GSI_STEP_FINAL) && (step->flags & GSI_STEP_ACC_OUT))
        return gsi_verify_defect(sim, r, at, "FINAL results are rounded: ACC_OUT contradicts it");
    if (step->kind == GSI_STEP_COPY || step->kind == GSI_STEP_REDUCE)
        return check_move(sim, r, at, s);

    if (step->peer == GSI_ALL ? step->kind == GSI_STEP_PUT : step->peer < 0 || step->peer >= sim->n || step->peer == r)
        return gsi_verify_defect(sim, r, at, "rank %d cannot be the peer", (int)step->peer);
    if (step->kind == GSI_STEP_SIGNAL || (step->flags & GSI_STEP_NOTIFY)) {
        if (!plan->signal_all != (step->peer != GSI_ALL))
            return gsi_verify_defect(sim, r, at, "signals %s, but the plan is%s marked signal_all",
                                     step->peer == GSI_ALL ? "all ranks" : "one rank", plan->signal_all ? "" : " not");
        if (step->peer == GSI_ALL && sim->args->hosts && sim->args->hosts->hosts > 1)
            return gsi_verify_defect(sim, r, at, "signals all ranks, but they are on different hosts");
        if (step->peer == GSI_ALL)
            s->raised++;
        else
            gsi_verify_chan(sim, stream, r, step->peer)->total++;
    }
    if (step->kind == GSI_STEP_PUT)
        return check_move(sim, r, at, s);
    if (step->kind == GSI_STEP_WAIT)
        return check_wait(sim, r, at, s);
    return 0;
}

/* Nobody can tell when a PUT has landed that no signal follows. */
static int check_told(gsi_sim *sim, int r, int stream, scratch *s)
{
    const gsi_plan *plan = sim->plans[r];
    uint32_t first = plan->streams[stream].first;

    s->now++;
    for (uint32_t at = first + plan->streams[stream].count; at-- > first;) {
        const gsi_step *step = &plan->steps[at];
        if (step->kind == GSI_STEP_SIGNAL && step->peer == GSI_ALL)
            return 0;
        if (step->kind == GSI_STEP_SIGNAL || (step->flags & GSI_STEP_NOTIFY && step->kind == GSI_STEP_PUT))
            s->stamp[step->peer] = s->now;
        if (step->kind == GSI_STEP_PUT && s->stamp[step->peer] != s->now)
            return gsi_verify_defect(sim, r, at, "no signal to rank %d follows this PUT", (int)step->peer);
    }
    return 0;
}

static int check_stream(gsi_sim *sim, int r, int stream, scratch *s)
{
    const gsi_plan *plan = sim->plans[r];
    const gsi_stream *range = &plan->streams[stream];
    int rc = 0;

    memset(s->last, 0, (size_t)sim->n * sizeof *s->last);
    s->all = s->most = s->raised = 0;
    for (uint32_t i = 0; i < range->count && !rc; i++)
        rc = check_step(sim, r, stream, range->first + i, s);
    if (!rc)
        rc = check_told(sim, r, stream, s);
    if (rc)
        return rc;
    for (int p = 0; p < sim->n; p++) {
        uint32_t waits = p == r ? 0 : s->last[p] > s->all ? s->last[p] : s->all;
        uint32_t awaits = plan->awaits ? plan->awaits[stream * sim->n + p] : 0;
        if (p != r && s->raised)
            gsi_verify_chan(sim, stream, r, p)->total += s->raised;
        if (waits != awaits)
            return gsi_verify_defect(sim, r, GSI_NO_STEP,
                                     "stream %d waits for %u signals of rank %d, but awaits says %u", stream, waits, p,
                                     awaits);
    }
    return 0;
}

static int check_signals(gsi_sim *sim)
{
    for (int s = 0; s < sim->nstreams; s++) {
        for (int p = 0; p < sim->n; p++) {
            const gsi_vchan *row = gsi_verify_chan(sim, s, p, 0);
            for (int q = 0; q < sim->n; q++) {
                const uint32_t *awaits = sim->plans[q]->awaits;
                uint32_t want = awaits ? awaits[s * sim->n + p] : 0;
                if (row[q].total != want)
                    return gsi_verify_defect(sim, q, GSI_NO_STEP,
                                             "stream %d awaits %u signals of rank %d, which raises %u", s, want, p,
                                             row[q].total);
            }
        }
    }
    return 0;
}

int gsi_verify_check(gsi_sim *sim)
{
    size_t n = (size_t)sim->n;
    uint32_t places = 1;
    scratch s = {0};
    int rc = 0;

    for (int r = 0; r < sim->n && !rc; r++)
        rc = check_head(sim, r);
    if (rc)
        return rc;
    for (int r = 0; r < sim->n; r++)
        for (uint32_t i = 0; i < sim->plans[r]->nsteps; i++) {
            const gsi_step *step = &sim->plans[r]->steps[i];
            if ((uint32_t)step->nsrc + step->ndst > places)
                places = (uint32_t)step->nsrc + step->ndst;
        }
    s.stamp = gsi_verify_alloc(sim, n, sizeof *s.stamp);
    s.head = gsi_verify_alloc(sim, n, sizeof *s.head);
    s.last = gsi_verify_alloc(sim, n, sizeof *s.last);
    s.used = gsi_verify_alloc(sim, n, sizeof *s.used);
    s.next = gsi_verify_alloc(sim, places, sizeof *s.next);
    if (!s.stamp || !s.head || !s.last || !s.used || !s.next)
        return GRADSYNC_ERR_NOMEM;

    for (int r = 0; r < sim->n; r++)
        for (int i = 0; i < sim->plans[r]->nstreams; i++) {
            rc = check_stream(sim, r, i, &s);
            if (rc)
                return rc;
        }
    rc = check_signals(sim);
    for (int r = 0; r < sim->n; r++) {
        uint64_t eager = sim->plans[r]->eager / sim->esize;
        sim->ranks[r].stage_used = s.used[r] > eager ? s.used[r] : eager;
    }
    return rc;
}
