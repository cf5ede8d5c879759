/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scheduler: streams and PUTs under way take turns in an order that the seed
 * decides. Signals that no PUT holds up arrive at once; whether a receiver notices
 * them early or late is its turn's matter.
 */
#include "plan/verify_sim.h"

/* How the seed deals out turns. */
enum { POLICY_MIXED, POLICY_EAGER_PUTS, POLICY_LATE_PUTS, POLICY_UNFAIR };

static gsi_vput *put_at(const gsi_sim *sim, uint32_t put)
{
    return (gsi_vput *)sim->puts.items + put;
}

static gsi_vitem *item_at(const gsi_sim *sim, uint32_t item)
{
    return (gsi_vitem *)sim->items.items + item;
}

static gsi_vagent *agent_at(gsi_sim *sim, int rank, int stream)
{
    return &sim->agents[(uint64_t)rank * (uint64_t)sim->nstreams + (uint64_t)stream];
}

static const gsi_step *step_of(const gsi_sim *sim, const gsi_vagent *agent)
{
    return &sim->plans[agent->rank]->steps[agent->pc];
}

static void wake(gsi_sim *sim, gsi_vagent *agent)
{
    agent->state = GSI_V_READY;
    sim->ready[sim->nready++] = (uint32_t)(agent - sim->agents);
}

static void arrive(gsi_sim *sim, int stream, int from, int to)
{
    gsi_vchan *chan = gsi_verify_chan(sim, stream, from, to);
    gsi_vagent *agent = agent_at(sim, to, stream);

    chan->arrived++;
    if (agent->state == GSI_V_WAIT) {
        const gsi_step *step = step_of(sim, agent);
        if (chan->arrived == step->value && (step->peer == from || step->peer == GSI_ALL) && --agent->missing == 0)
            wake(sim, agent);
    }
}

/* Queues a PUT, or a signal behind one. */
static int enqueue(gsi_sim *sim, gsi_vchan *chan, uint32_t step)
{
    uint32_t id = gsi_verify_take(&sim->items, sizeof(gsi_vitem));
    gsi_vput *put;

    if (!id)
        return GRADSYNC_ERR_NOMEM;
    *item_at(sim, id) = (gsi_vitem){0, step, 0};
    if (!chan->put) {
        chan->put = gsi_verify_take(&sim->puts, sizeof(gsi_vput));
        if (!chan->put)
            return GRADSYNC_ERR_NOMEM;
        *put_at(sim, chan->put) = (gsi_vput){.chan = (uint64_t)(chan - sim->chans)};
    }
    put = put_at(sim, chan->put);
    if (put->head) {
        item_at(sim, put->tail)->next = id;
    } else {
        uint32_t place = gsi_verify_take(&sim->active, sizeof(uint32_t));
        if (!place)
            return GRADSYNC_ERR_NOMEM;
        ((uint32_t *)sim->active.items)[place] = chan->put;
        put->head = id;
    }
    put->tail = id;
    return 0;
}

static int send_signal(gsi_sim *sim, const gsi_vagent *agent, int peer)
{
    gsi_vchan *chan = gsi_verify_chan(sim, agent->stream, agent->rank, peer);

    chan->sent++;
    if (chan->put && put_at(sim, chan->put)->head)
        return enqueue(sim, chan, GSI_NO_STEP);
    arrive(sim, agent->stream, agent->rank, peer);
    return 0;
}

static int has_credit(const gsi_sim *sim, const gsi_vchan *chan)
{
    return !sim->args->credits || chan->sent - chan->awaited < sim->args->credits;
}

/* Blocks the agent if it lacks a peer's credit. */
static int lacks_credit(gsi_sim *sim, gsi_vagent *agent, int peer)
{
    uint32_t missing = 0;

    for (int q = peer == GSI_ALL ? 0 : peer; q < (peer == GSI_ALL ? sim->n : peer + 1); q++)
        if (q != agent->rank && !has_credit(sim, gsi_verify_chan(sim, agent->stream, agent->rank, q)))
            missing++;
    agent->missing = missing;
    if (missing)
        agent->state = GSI_V_CREDIT;
    return missing != 0;
}

static int run_signal(gsi_sim *sim, gsi_vagent *agent, const gsi_step *step)
{
    int rc = sim->clocks ? gsi_verify_raise(sim, agent, step->peer) : 0;

    for (int q = step->peer == GSI_ALL ? 0 : step->peer; q < (step->peer == GSI_ALL ? sim->n : step->peer + 1); q++)
        if (q != agent->rank && !rc)
            rc = send_signal(sim, agent, q);
    return rc;
}

static int run_put(gsi_sim *sim, gsi_vagent *agent, const gsi_step *step)
{
    gsi_vchan *chan = gsi_verify_chan(sim, agent->stream, agent->rank, step->peer);
    int rc = enqueue(sim, chan, agent->pc);

    if (!rc)
        rc = gsi_verify_access(sim, agent, agent->pc);
    if (rc)
        return rc;
    put_at(sim, chan->put)->unread++;
    agent->unread++;
    if (sim->opts.races)
        gsi_verify_put_issued(sim, agent, agent->pc, chan);
    if (step->flags & GSI_STEP_NOTIFY) {
        rc = sim->clocks ? gsi_verify_raise(sim, agent, step->peer) : 0;
        chan->sent++;
    }
    return rc;
}

static void take_signals(gsi_sim *sim, const gsi_vagent *agent, int peer, uint32_t value)
{
    gsi_vchan *chan = gsi_verify_chan(sim, agent->stream, peer, agent->rank);
    gsi_vagent *sender = agent_at(sim, peer, agent->stream);
    int starved = !has_credit(sim, chan);

    if (value <= chan->awaited)
        return;
    if (sim->clocks)
        gsi_verify_awaited(sim, agent, peer, value);
    chan->awaited = value;
    if (sender->state == GSI_V_CREDIT && starved && has_credit(sim, chan)) {
        int wants = step_of(sim, sender)->peer;
        if ((wants == agent->rank || wants == GSI_ALL) && --sender->missing == 0)
            wake(sim, sender);
    }
}

/* Passes the WAIT, or blocks the agent. */
static int run_wait(gsi_sim *sim, gsi_vagent *agent, const gsi_step *step)
{
    int from = step->peer == GSI_ALL ? 0 : step->peer, to = step->peer == GSI_ALL ? sim->n : step->peer + 1;
    uint32_t missing = 0;

    for (int p = from; p < to; p++)
        if (p != agent->rank && gsi_verify_chan(sim, agent->stream, p, agent->rank)->arrived < step->value)
            missing++;
    agent->missing = missing;
    if (missing) {
        agent->state = GSI_V_WAIT;
        return 0;
    }
    for (int p = from; p < to; p++)
        if (p != agent->rank)
            take_signals(sim, agent, p, step->value);
    return 1;
}

static int run_flush(gsi_sim *sim, gsi_vagent *agent, const gsi_step *step)
{
    int from = step->peer == GSI_ALL ? 0 : step->peer, to = step->peer == GSI_ALL ? sim->n : step->peer + 1;
    uint32_t unread = agent->unread;

    if (step->peer != GSI_ALL) {
        uint32_t put = gsi_verify_chan(sim, agent->stream, agent->rank, step->peer)->put;
        unread = put ? put_at(sim, put)->unread : 0;
    }
    if (unread) {
        agent->state = GSI_V_FLUSH;
        return 0;
    }
    for (int q = from; q < to && sim->opts.races; q++) {
        uint32_t put = gsi_verify_chan(sim, agent->stream, agent->rank, q)->put;
        if (put)
            gsi_verify_flushed(sim, agent, put_at(sim, put));
    }
    return 1;
}

/* One step. *passed: it is done, not blocked. */
static int run_step(gsi_sim *sim, gsi_vagent *agent, int *passed)
{
    const gsi_step *step = step_of(sim, agent);
    int rc;

    *passed = 1;
    switch (step->kind) {
    case GSI_STEP_COPY:
        rc = gsi_verify_access(sim, agent, agent->pc);
        return rc ? rc : gsi_verify_copy(sim, agent->rank, agent->pc);
    case GSI_STEP_REDUCE:
        rc = gsi_verify_access(sim, agent, agent->pc);
        return rc ? rc : gsi_verify_reduce(sim, agent->rank, agent->pc);
    case GSI_STEP_PUT:
        *passed = !(step->flags & GSI_STEP_NOTIFY) || !lacks_credit(sim, agent, step->peer);
        return *passed ? run_put(sim, agent, step) : 0;
    case GSI_STEP_SIGNAL:
        *passed = !lacks_credit(sim, agent, step->peer);
        return *passed ? run_signal(sim, agent, step) : 0;
    case GSI_STEP_WAIT:
        *passed = run_wait(sim, agent, step);
        return 0;
    default:
        *passed = run_flush(sim, agent, step);
        return 0;
    }
}

/* Lets the agent at this place of the ready list run for up to `turns` steps. */
static int run_agent(gsi_sim *sim, uint32_t place, uint32_t turns)
{
    gsi_vagent *agent = &sim->agents[sim->ready[place]];
    gsi_vrank *rank = &sim->ranks[agent->rank];
    int passed = 1, rc = 0;

    rank->entered = 1;
    while (!rc && passed && turns-- > 0 && agent->pc < agent->end) {
        rc = run_step(sim, agent, &passed);
        agent->pc += (uint32_t)passed;
    }
    if (agent->pc == agent->end) {
        agent->state = GSI_V_DONE;
        sim->unfinished--;
        if (--rank->running == 0)
            rank->done = 1;
    }
    if (agent->state != GSI_V_READY)
        sim->ready[place] = sim->ready[--sim->nready];
    return rc;
}

static void source_read(gsi_sim *sim, gsi_vput *put, gsi_vagent *sender, int to)
{
    put->unread--;
    sender->unread--;
    if (sender->state == GSI_V_FLUSH) {
        int peer = step_of(sim, sender)->peer;
        if (peer == GSI_ALL ? !sender->unread : peer == to && !put->unread)
            wake(sim, sender);
    }
}

/* Moves the first PUT of this place of the active list on: reads it, or writes it and lets the signals behind pass. */
static int run_put_on(gsi_sim *sim, uint32_t place)
{
    uint32_t *active = sim->active.items;
    gsi_vput *put = put_at(sim, active[place]);
    uint64_t n = (uint64_t)sim->n;
    int to = (int)(put->chan % n), from = (int)(put->chan / n % n), stream = (int)(put->chan / n / n);
    gsi_vitem *item = item_at(sim, put->head);
    int rc = 0;

    if (!item->read) {
        rc = gsi_verify_put_read(sim, from, item->step, put);
        item->read = 1;
        if (!rc)
            source_read(sim, put, agent_at(sim, from, stream), to);
        if (rc || gsi_verify_random(sim) % 2)
            return rc;
    }
    rc = gsi_verify_put_write(sim, from, item->step, put);
    if (rc)
        return rc;
    if (sim->plans[from]->steps[item->step].flags & GSI_STEP_NOTIFY)
        arrive(sim, stream, from, to);
    do {
        uint32_t id = put->head;
        if (item->step == GSI_NO_STEP)
            arrive(sim, stream, from, to);
        put->head = item->next;
        item->next = sim->items.free;
        sim->items.free = id;
        item = item_at(sim, put->head);
    } while (put->head && item->step == GSI_NO_STEP);
    if (!put->head)
        active[place] = active[--sim->active.used];
    return 0;
}

static int deadlock(gsi_sim *sim)
{
    for (uint64_t i = 0; i < (uint64_t)sim->n * (uint64_t)sim->nstreams; i++) {
        gsi_vagent *agent = &sim->agents[i];
        const gsi_step *step;
        gsi_vchan *chan;
        int peer;
        if (agent->state == GSI_V_DONE)
            continue;
        step = step_of(sim, agent);
        for (peer = step->peer; peer == GSI_ALL;) {
            for (int p = 0; p < sim->n; p++) {
                gsi_vchan *in = gsi_verify_chan(sim, agent->stream, p, agent->rank);
                gsi_vchan *out = gsi_verify_chan(sim, agent->stream, agent->rank, p);
                if (p != agent->rank &&
                    (agent->state == GSI_V_CREDIT ? !has_credit(sim, out) : in->arrived < step->value))
                    peer = p;
            }
        }
        if (agent->state == GSI_V_CREDIT) {
            chan = gsi_verify_chan(sim, agent->stream, agent->rank, peer);
            return gsi_verify_defect(sim, agent->rank, agent->pc,
                                     "deadlock (%u streams stuck): no credit for rank %d, which has awaited %u of %u "
                                     "signals and may lack %u",
                                     sim->unfinished, peer, chan->awaited, chan->sent, sim->args->credits);
        }
        chan = gsi_verify_chan(sim, agent->stream, peer, agent->rank);
        return gsi_verify_defect(sim, agent->rank, agent->pc,
                                 "deadlock (%u streams stuck): waits for signal %u of rank %d, which has raised %u",
                                 sim->unfinished, step->value, peer, chan->arrived);
    }
    return 0;
}

/* An agent of the ready list. Unfair: ranks have a fixed order of preference, mostly kept. */
static uint32_t pick_agent(gsi_sim *sim)
{
    uint32_t best = gsi_verify_random(sim) % sim->nready;

    for (int i = 0; i < 2 && sim->policy == POLICY_UNFAIR; i++) {
        uint32_t other = gsi_verify_random(sim) % sim->nready;
        uint32_t a = (uint32_t)sim->agents[sim->ready[best]].rank, b = (uint32_t)sim->agents[sim->ready[other]].rank;
        uint32_t key = (uint32_t)sim->opts.seed * 2654435761u;
        if (((b ^ key) * 2246822519u) > ((a ^ key) * 2246822519u))
            best = other;
    }
    return best;
}

int gsi_verify_run(gsi_sim *sim)
{
    int rc = 0;

    for (int r = 0; r < sim->n; r++) {
        const gsi_plan *plan = sim->plans[r];
        gsi_vrank *rank = &sim->ranks[r];
        rank->entered = (uint8_t)(sim->gather || !sim->nstreams);
        rank->running = sim->nstreams;
        rank->done = !sim->nstreams;
        for (int s = 0; s < sim->nstreams; s++) {
            gsi_vagent *agent = agent_at(sim, r, s);
            *agent = (gsi_vagent){.pc = plan->streams[s].first, .rank = r, .stream = s};
            agent->end = agent->pc + plan->streams[s].count;
            sim->unfinished++;
            wake(sim, agent);
        }
    }
    while (!rc) {
        uint32_t active = sim->active.used ? sim->active.used - 1 : 0;
        uint32_t turns = UINT32_MAX; /* until it blocks */
        int put = active > 0;
        if (!active && !sim->nready)
            break;
        if (sim->policy == POLICY_MIXED)
            turns = 1 + gsi_verify_random(sim) % 4;
        if (sim->policy == POLICY_UNFAIR)
            turns = 1;
        if (put && sim->nready && sim->policy != POLICY_EAGER_PUTS)
            put = sim->policy != POLICY_LATE_PUTS && gsi_verify_random(sim) % (active + sim->nready) < active;
        rc = put ? run_put_on(sim, 1 + gsi_verify_random(sim) % active) : run_agent(sim, pick_agent(sim), turns);
    }
    return !rc && sim->unfinished ? deadlock(sim) : rc;
}
