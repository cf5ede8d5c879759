/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Predicted times over several hosts, of the kind of select.c. Hosts have m ranks each, or
 * up to m; H hosts.
 *
 *   W     wire_us: a message without bytes, from host to host
 *   M     a message's price: of the rank that sends it (message_us), and of its host's wire (message_bytes)
 *   t(b)  b bytes on a host's wire, all that its ranks send: at wire_GBps for each rank that sends, and host_GBps in
 * all
 *
 * A plan takes its latencies one after the other, and then the longer of what its wire and
 * what its cores have to do; what the cores do in the first or last of p pieces nobody
 * hides. The headers go from every rank to every rank on other hosts. tests/plan/test_wire.c
 * holds all of this against a model that runs the plans.
 */
#include "plan/builder.h"
#include "plan/select_model.h"

typedef struct wire {
    double H, m, remote;    /* remote: ranks on other hosts, of one rank */
    double latencies;       /* one after the other */
    double local;           /* signals or short copies inside a host, one after the other */
    double bytes, messages; /* that a host sends */
    double senders;         /* ranks of a host that send at once */
    double sent;            /* messages of one rank */
    double pieces;          /* in which cores and wire take turns */
    double stages;          /* hosts that work on a piece one after the other */
} wire;

static double piece_count(const gsi_model *m, double bytes, int hops)
{
    double want = (double)gsi_want(&m->args, bytes > 1 ? (uint64_t)bytes : 1, 4, hops, UINT32_MAX);

    return bytes > want ? bytes / want : 1;
}

static double least(double a, double b)
{
    return a < b ? a : b;
}

static double most_of(double a, double b)
{
    return a > b ? a : b;
}

/* Everyone's payload to everyone with the header: all is over when the headers are there. */
static void oneshot(gsi_model *m, wire *w)
{
    double S = m->S, n = m->n, own = m->args.coll == GRADSYNC_REDUCE_SCATTER ? n * S : S;

    w->bytes = own * w->remote * w->m;
    if (m->args.coll == GRADSYNC_BROADCAST)
        w->bytes = S * w->remote;
    gsi_model_copies(m, own, (n + 1) * own);
    if (m->args.coll == GRADSYNC_ALL_REDUCE || m->args.coll == GRADSYNC_REDUCE ||
        m->args.coll == GRADSYNC_REDUCE_SCATTER)
        gsi_model_reduces(m, n * S, (n + 1) * own);
    else
        gsi_model_copies(m, m->args.coll == GRADSYNC_ALL_GATHER ? n * S : S, (n + 1) * own);
}

/* One rank of a host sends to one of the next. A slice goes round through all ranks, but over few wires. The
 * ranks between copy all of it for their neighbours. */
static void ring(gsi_model *m, wire *w)
{
    double S = m->S, n = m->n, through = m->args.reach ? 0 : 1, near = 1 - w->H / n, copied = near > 0;
    int ordered = m->args.flags & GRADSYNC_ORDERED, coll = m->args.coll, reduction = coll != GRADSYNC_BROADCAST;
    int chain = coll == GRADSYNC_BROADCAST || coll == GRADSYNC_REDUCE || (ordered && coll != GRADSYNC_ALL_GATHER);
    double wide = ordered ? (double)m->args.acc_esize / m->args.esize : 1, hops = n - 1;

    w->senders = 1;
    if (chain) {
        double all = coll == GRADSYNC_REDUCE_SCATTER ? n * S : S;
        /* Of a reduce-scatter's results half come over a wire. */
        double back = !ordered || coll == GRADSYNC_REDUCE || !reduction ? 0 : coll == GRADSYNC_ALL_REDUCE ? 1 : 0.5;
        w->pieces = piece_count(m, S, m->args.n - 1);
        hops *= back > 0 ? 2 : 1;
        w->stages = w->H;
        /* Each hop takes the time of a piece, beside what all the pieces take. */
        w->bytes = all * ((reduction ? wide : 1) + back) * (1 + (n - 2) / w->pieces / 2);
        if (reduction)
            gsi_model_reduces(m, 2 * all, 2 * all);
        gsi_model_copies(m, (copied * (1 + back) + through * back + !reduction) * all, 2 * all);
        w->sent = (w->pieces * (1 + back) + hops) * (coll == GRADSYNC_REDUCE_SCATTER ? n : 1);
        w->latencies = hops * w->H / n + 1;
    } else {
        double slice = coll == GRADSYNC_ALL_REDUCE ? S / n : S, part = (n - 1) * slice;
        int rounds = coll == GRADSYNC_ALL_REDUCE ? 2 : 1;
        w->pieces = piece_count(m, slice, 0);
        hops *= rounds;
        w->bytes = rounds * part;
        if (coll != GRADSYNC_ALL_GATHER)
            gsi_model_reduces(m, 2 * part, rounds * part);
        else
            gsi_model_copies(m, S, n * S);
        gsi_model_copies(m, copied * rounds * part + through * (coll == GRADSYNC_REDUCE_SCATTER ? 0 : part), 2 * part);
        w->sent = hops * w->pieces;
        /* And the word that the caller's memory has been read. */
        w->latencies = hops * w->H / n + 1;
        /* Another piece is on the wire while one is on its way. */
        if (w->pieces > 1)
            w->latencies = least(w->latencies, 2 + w->latencies / w->pieces);
    }
    w->local = hops * near;
    w->messages = w->sent;
}

/* Ranks by number, so with several of them a host's wire carries more than one edge of each tree; how many was
 * counted on the model. */
static void tree(gsi_model *m, wire *w)
{
    double S = m->S, both = m->args.coll == GRADSYNC_ALL_REDUCE ? 2 : 1, height = m->log2n;
    double edges = w->m > 1 ? 2 : m->n > 2 ? 1.3 : 1;

    if (both > 1 && w->H > 2)
        edges *= 1.6;
    w->pieces = piece_count(m, S / 2, m->args.n > 2 ? (int)height : 1);
    w->latencies = both * height + 1;
    w->stages = height;
    w->bytes = S * edges * (1 + height / w->pieces / 4);
    w->senders = w->m;
    w->messages = 3 * w->pieces * w->m + height;
    w->sent = 3 * w->pieces;
    if (m->args.coll != GRADSYNC_BROADCAST)
        gsi_model_reduces(m, 1.5 * S, 2 * S);
    gsi_model_copies(m, ((m->args.reach ? 0 : 1) + (w->m > 1 ? both : 0)) * S, 2 * S);
    if (m->args.coll == GRADSYNC_BROADCAST)
        gsi_model_copies(m, S, 2 * S); /* the root's own result */
}

static void doubling(gsi_model *m, wire *w)
{
    double S = m->S, n = m->n, far = 0, rounds = m->log2n;
    uint32_t power = (uint32_t)m->args.n;
    int gathers = m->args.coll == GRADSYNC_ALL_GATHER || (m->args.flags & GRADSYNC_ORDERED);

    for (int h = 1; h < m->args.hosts->hosts; h *= 2)
        far++;
    w->senders = w->m;
    if (gathers) {
        far = rounds;
        w->bytes = (n - 1) * S * w->m;
        gsi_model_copies(m, m->args.reach && m->args.coll == GRADSYNC_ALL_GATHER ? S : n * S, 2 * n * S);
        if (m->args.coll == GRADSYNC_ALL_REDUCE)
            gsi_model_reduces(m, n * S, 2 * n * S);
    } else {
        if (power & (power - 1)) {
            rounds++;
            far++;
        }
        w->bytes = far * S * w->m;
        gsi_model_copies(m, (rounds - far) * S, (2 * rounds + 2) * S);
        gsi_model_reduces(m, 2 * rounds * S, (2 * rounds + 2) * S);
    }
    w->latencies = far;
    w->local = rounds - far;
    w->messages = far * w->m;
    w->sent = far;
}

/* Every slice straight to its owner and back. */
static void pairwise(gsi_model *m, wire *w)
{
    double S = m->S, n = m->n, through = m->args.reach ? 0 : 1, slice = S / n, rounds = 2, near = w->m - 1;

    switch (m->args.coll) {
    case GRADSYNC_REDUCE_SCATTER:
    case GRADSYNC_ALL_GATHER:
        slice = S;
        rounds = 1;
        break;
    case GRADSYNC_BROADCAST:
        slice = S / (n - 1);
        break;
    default:
        break;
    }
    w->pieces = piece_count(m, slice, 0);
    w->latencies = rounds + 1; /* and the word that the caller's memory has been read */
    w->bytes = rounds * w->remote * slice * w->m;
    w->senders = w->m;
    if (m->args.coll == GRADSYNC_BROADCAST) {
        /* What the root sends and what the others pass on hardly overlap. */
        w->bytes = (w->m + (n > 2)) * w->remote * slice;
        gsi_model_copies(m, S, 2 * S); /* the root's own result */
    }
    if (m->args.coll == GRADSYNC_REDUCE)
        w->bytes = (w->m + 1) * w->remote * slice;
    w->sent = rounds * w->remote * w->pieces;
    w->messages = w->sent * w->m;
    gsi_model_copies(m, rounds * near * slice, 2 * n * slice);
    if (m->args.coll == GRADSYNC_ALL_GATHER) {
        gsi_model_copies(m, (1 + through * (n - 1)) * slice, 2 * n * slice);
        w->pieces = w->pieces > 8 ? w->pieces : 8; /* it copies while the wire is busy */
    }
    if (m->args.coll != GRADSYNC_REDUCE_SCATTER && m->args.coll != GRADSYNC_ALL_GATHER)
        gsi_model_copies(m, through * (n - 1) * slice, 2 * n * slice);
    if (m->args.coll != GRADSYNC_ALL_GATHER && m->args.coll != GRADSYNC_BROADCAST)
        gsi_model_reduces(m, n * slice, 2 * n * slice);
}

/* Each of L leaders of a host reduces its slice from all of its host's memory, and writes results to all of it. */
static void hier(gsi_model *m, wire *w)
{
    gsi_hier_cost cost;
    double S = m->S, H = w->H, k = w->m, L, slice;
    double wide = m->args.flags & GRADSYNC_ORDERED ? (double)m->args.acc_esize / m->args.esize : 1;

    gsi_hier_costs(&m->args, &cost);
    if (k == 1 && !cost.whole && !cost.chain && !cost.ring) {
        pairwise(m, w); /* is what it comes to */
        w->local = 1;
        return;
    }
    L = cost.leaders;
    slice = S / L;
    w->senders = L;
    w->pieces = cost.items;
    w->local = 2;
    if (cost.whole) {
        w->latencies = 1;
        w->bytes = (H - 1) * S;
        w->sent = H - 1;
        w->pieces = 1;
        gsi_model_reduces(m, ((k > 1 ? k : 0) + H) * slice, 2 * k * slice);
        gsi_model_copies(m, k * slice, 2 * k * slice);
    } else if (cost.chain) {
        int back = m->args.coll == GRADSYNC_ALL_REDUCE;
        double hops = (H - 1) * (back ? 2 : 1), carried = m->args.coll == GRADSYNC_BROADCAST ? 1 : wide;
        w->latencies = hops;
        w->stages = H - 1;
        w->bytes = S * (H > 2 ? carried + back : carried > 1 || !back ? carried : 1) * (1 + (hops - 1) / cost.items);
        w->sent = cost.items * (H > 2 && back ? 2 : 1);
        if (m->args.coll != GRADSYNC_BROADCAST)
            gsi_model_reduces(m, (k + 1) * slice, 2 * k * slice);
        gsi_model_copies(m, (m->args.coll == GRADSYNC_REDUCE ? 0 : k) * slice, 2 * k * slice);
    } else {
        double blocks = m->args.coll == GRADSYNC_ALL_REDUCE ? 1 : m->n, own = blocks / H;
        int rounds = m->args.coll == GRADSYNC_ALL_REDUCE ? 2 : 1;
        w->latencies = rounds;
        w->sent = rounds * (H - 1) * cost.items;
        if (cost.ring) {
            /* Every round of every group waits for its message, but for what the others of the group take. */
            double message = slice / cost.items / H / (m->costs->wire_GBps * 1e3), wait = m->costs->wire_us;
            int groups = (cost.items - 1) / cost.ring + 1;
            double idle = wait > (cost.ring - 1) * message ? 1 - (cost.ring - 1) * message / wait : 0;
            w->latencies = 2 + 2 * (H - 1) * idle * groups;
        }
        if (m->args.coll == GRADSYNC_ALL_REDUCE)
            w->bytes = 2 * (H - 1) / H * S;
        else
            w->bytes = (m->args.coll == GRADSYNC_REDUCE_SCATTER ? m->n - k : k * (H - 1)) * S;
        if (m->args.coll != GRADSYNC_ALL_GATHER)
            gsi_model_reduces(m, ((k > 1 ? k * (blocks - own) : 0) + (k + H - 1) * own) * slice,
                              2 * k * slice * blocks);
        if (m->args.coll == GRADSYNC_ALL_REDUCE)
            gsi_model_copies(m, (k - (m->args.reach ? 1 : 0)) * (blocks - own) * slice, 2 * k * slice);
        if (m->args.coll == GRADSYNC_ALL_GATHER)
            gsi_model_copies(m, ((k - (m->args.reach ? 1 : 0)) * (blocks - own) + k * own) * slice,
                             2 * k * blocks * slice);
    }
    if (m->args.coll == GRADSYNC_ALL_GATHER)
        w->sent *= k;
    w->messages = w->sent * L + (cost.chain ? w->latencies - 1 : 0);
    /* The caller's memory is free when the wire has told that it has read it. */
    if (!cost.whole && (m->args.coll != GRADSYNC_REDUCE_SCATTER || k == 1))
        w->latencies++;
    /* Not shared: everyone copies in what the leaders reduce, and out what they made of it. */
    if (!m->args.share && k > 1)
        gsi_model_copies(m, 2 * S * (m->args.coll == GRADSYNC_ALL_REDUCE ? 1 : k), 4 * S);
}

void gsi_predict_wire(gsi_model *m)
{
    const gsi_costs *c = m->costs;
    const gsi_hosts *hosts = m->args.hosts;
    wire w = {.H = hosts->hosts, .m = hosts->most, .senders = hosts->most, .pieces = 1, .stages = 1};
    int nothing = m->args.coll == GRADSYNC_BARRIER || m->S == 0;

    w.remote = m->n - hosts->least;
    /* The headers, which are a barrier already. */
    double price = c->message_bytes;
    if (!nothing)
        switch (m->args.algo) {
        case GRADSYNC_ALGO_ONESHOT:
            oneshot(m, &w);
            break;
        case GRADSYNC_ALGO_RING:
            ring(m, &w);
            break;
        case GRADSYNC_ALGO_TREE:
            tree(m, &w);
            break;
        case GRADSYNC_ALGO_DOUBLING:
            doubling(m, &w);
            break;
        case GRADSYNC_ALGO_PAIRWISE:
            pairwise(m, &w);
            break;
        default:
            hier(m, &w);
        }
    double each = c->wire_GBps * 1e3, host = c->host_GBps > 0 ? c->host_GBps * 1e3 : each;
    double all = least(each * w.m, host), rate = least(each * w.senders, host);
    /* A message keeps a core busy, and the wire; whichever takes longer counts. */
    double wired = w.bytes / rate + most_of(w.messages * price / rate, w.sent * c->message_us);
    double headers = most_of(w.remote * w.m * price / all, w.remote * c->message_us);
    double cores = m->copy_us + m->reduce_us, hidden = cores * (w.pieces - 1) / w.pieces;
    /* Cores and wire work at the same time: the shorter of the two is hidden, but for one piece of the cores' work. */
    double seen = cores - least(hidden, wired) + (w.stages - 1) * cores / w.pieces;

    if (cores > 0) {
        m->copy_us *= seen / cores;
        m->reduce_us *= seen / cores;
    }
    m->exchange_us = c->wire_us + headers + w.latencies * (c->wire_us + c->message_us) + w.local * m->A +
                     c->step_us * (w.sent + w.latencies);
    m->transfer_us = wired;
}
