/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Predicted times. All formulas are of the alpha-beta-gamma kind (Hockney 1994; for
 * collectives Thakur, Rabenseifner & Gropp 2005; Chan et al. 2007): so many rounds of a
 * latency alpha, so many bytes moved (beta), so many bytes reduced (gamma). Here
 *
 *   S  bytes of the message (a block of it for reduce-scatter and all-gather)
 *   X  signal_us: one exchange of signals, or of headers, between all ranks
 *   A  one PUT until its receiver goes on: put_us and its steps, times ranks_per_core
 *   transfer(b)  us to take b bytes from another core's cache; see transfers()
 *   copy(b), reduce(b)  us to copy b bytes, to reduce b source bytes; at the rate of
 *      the caches or of memory, by how much memory one rank goes through
 *
 * Over several hosts: select_wire.c. The times are what the slowest rank needs. Each function names its source.
 */
#include "plan/select.h"
#include "plan/builder.h"
#include "plan/select_model.h"

#include <stdarg.h>
#include <stdio.h>

typedef gsi_model model;

/* The share of `footprint` bytes that stays in the caches. */
static double cached(double footprint, double cache)
{
    double beyond = cache > 0 ? (footprint - cache) / cache : 0;
    return beyond < 0 ? 1 : beyond > 1 ? 0 : 1 - beyond;
}

/* ns per byte: `near` within the caches, `far` from twice their size on, between them in proportion. */
static double rate(double near, double far, double footprint, double cache)
{
    double in = cached(footprint, cache);
    return in / near + (1 - in) / far;
}

void gsi_model_copies(model *m, double bytes, double footprint)
{
    m->copied += bytes;
    m->copy_us += bytes * rate(m->costs->copy_GBps, m->costs->mem_copy_GBps, footprint, m->costs->cache_bytes) / 1e3;
}

void gsi_model_reduces(model *m, double bytes, double footprint)
{
    m->reduce_us +=
        bytes * rate(m->costs->reduce_GBps, m->costs->mem_reduce_GBps, footprint, m->costs->cache_bytes) / 1e3;
}

static void steps(model *m, double count)
{
    m->exchange_us += count * m->costs->step_us * m->costs->ranks_per_core;
}

/* X, publish S, everyone reads all: X + copy(S) + reduce(nS), as `oneshot` in the measured limits. */
static void oneshot(model *m)
{
    double n = m->n, S = m->S, all = (n + 1) * S;

    m->exchange_us = m->X;
    switch (m->args.coll) {
    case GRADSYNC_ALL_REDUCE:
    case GRADSYNC_REDUCE:
        gsi_model_copies(m, S, all);
        gsi_model_reduces(m, n * S, all);
        break;
    case GRADSYNC_REDUCE_SCATTER:
        gsi_model_copies(m, n * S, 2 * n * S);
        gsi_model_reduces(m, n * S, 2 * n * S);
        break;
    case GRADSYNC_ALL_GATHER:
        gsi_model_copies(m, S + n * S, 2 * n * S);
        break;
    case GRADSYNC_BROADCAST:
        gsi_model_copies(m, 2 * S, 2 * S);
        break;
    default:
        break;
    }
    steps(m, 1);
}

/* One pass (the limit of shared memory): a rank reads S/n of n contributions and writes it to
 * n results: 2X + reduce(S) + copy((n-1)/n S). The ends that peers do not reach: as oneshot. */
static void direct(model *m)
{
    double n = m->n, S = m->S, ends = (double)(m->args.head + m->args.tail);

    m->exchange_us = 2 * m->X;
    switch (m->args.coll) {
    case GRADSYNC_ALL_REDUCE:
        gsi_model_reduces(m, S, 2 * S);
        gsi_model_copies(m, (n - 1) / n * S + ends, 2 * S);
        gsi_model_reduces(m, n * ends, 2 * S);
        break;
    case GRADSYNC_REDUCE:
        gsi_model_reduces(m, S, S);
        break;
    case GRADSYNC_REDUCE_SCATTER:
        gsi_model_reduces(m, n * S, n * S);
        break;
    case GRADSYNC_ALL_GATHER:
        gsi_model_copies(m, n * S, 2 * n * S);
        break;
    case GRADSYNC_BROADCAST:
        gsi_model_copies(m, S, 2 * S);
        break;
    default:
        m->exchange_us = m->X;
    }
    steps(m, m->args.coll == GRADSYNC_BARRIER ? 1 : 3);
}

/* Copy in (n-1)/n S, reduce S from staging that is in the caches, fetch (n-1)/n S; two exchanges a block, or one
 * of which half is hidden behind the work of another block: as `staged` in the measured limits. */
static void staged(model *m)
{
    double n = m->n, S = m->S, part = (n - 1) / n * S;
    double block = (double)gsi_staged_block(&m->args) * m->args.esize;
    double blocks = block < S ? S / block : 1, staging = block < S ? block : S;

    m->exchange_us = 2 * m->X + (blocks - 1) * m->X / 2;
    switch (m->args.coll) {
    case GRADSYNC_ALL_REDUCE:
        m->exchange_us = (1 + 2 * blocks) * m->X;
        /* the reduction's second destination is written only: half a copy */
        gsi_model_copies(m, 2 * part + S / n / 2, 2 * S);
        gsi_model_reduces(m, S, 2 * staging);
        m->moved = 3 * part + S / n;
        break;
    case GRADSYNC_REDUCE:
        m->exchange_us = (1 + 2 * blocks) * m->X;
        gsi_model_copies(m, 2 * part, 2 * S);
        gsi_model_reduces(m, S, 2 * staging);
        m->moved = 3 * part;
        break;
    case GRADSYNC_REDUCE_SCATTER:
        gsi_model_copies(m, (n - 1) * S, n * S);
        gsi_model_reduces(m, n * S, 2 * n * staging);
        break;
    case GRADSYNC_ALL_GATHER:
        gsi_model_copies(m, n * S, 2 * n * S);
        m->moved = n * S;
        break;
    case GRADSYNC_BROADCAST:
        /* the root copies in while the others fetch the block before */
        gsi_model_copies(m, S + staging, 2 * S);
        m->moved = S;
        break;
    default:
        m->exchange_us = m->X;
        steps(m, 1);
        return;
    }
    steps(m, blocks * (n + 4));
}

/* Rings, Patarasuk & Yuan 2009: 2(n-1) rounds of S/n. ORDERED and the rooted ones are chains, pipelined
 * in pieces: n (all the way round: 2n) rounds of one piece, then S at the rate of the link. */
static void ring(model *m)
{
    double n = m->n, S = m->S, part = (n - 1) / n * S, through = m->args.reach ? 0 : 1;
    int ordered = m->args.flags & GRADSYNC_ORDERED;
    double wide = ordered ? 1 + (double)m->args.acc_esize / m->args.esize : 2;
    double pieces = 16, hops = n - 1;

    switch (m->args.coll) {
    case GRADSYNC_ALL_REDUCE:
        if (ordered) {
            hops = 2 * n;
            gsi_model_copies(m, (wide + through) * S * (1 + hops / pieces / 2), 2 * S);
            gsi_model_reduces(m, 2 * S * (1 + hops / pieces / 2), 2 * S);
        } else {
            hops = 2 * (n - 1);
            gsi_model_copies(m, (2 + through) * part, 2 * S);
            gsi_model_reduces(m, 2 * part, 2 * S);
        }
        break;
    case GRADSYNC_REDUCE_SCATTER:
        gsi_model_copies(m, (ordered ? wide * n : n - 1) * S, n * S);
        gsi_model_reduces(m, 2 * (n - 1) * S, n * S);
        hops = ordered ? 2 * n : n - 1;
        break;
    case GRADSYNC_ALL_GATHER:
        gsi_model_copies(m, (1 + through) * (n - 1) * S + S, 2 * n * S);
        break;
    case GRADSYNC_BROADCAST:
        gsi_model_copies(m, (1 + through) * S * (1 + n / pieces), 2 * S);
        hops = n - 1;
        break;
    case GRADSYNC_REDUCE:
        gsi_model_copies(m, (ordered ? wide : 1) * S * (1 + n / pieces), 2 * S);
        gsi_model_reduces(m, 2 * S * (1 + n / pieces), 2 * S);
        hops = ordered ? 2 * n : n - 1;
        break;
    default:
        hops = m->log2n;
    }
    m->exchange_us = hops * m->A;
}

/* Double binary trees, Sanders, Speck & Traeff 2009: each rank is inner in one tree and a leaf in the
 * other, so it sends 2S, and a piece takes 2 log2 n rounds up and down. */
static void tree(model *m)
{
    double n = m->n, S = m->S, through = m->args.reach ? 0 : 1, both = n > 2 ? 1.5 : 1;
    double height = m->log2n, pieces = 16, fill = 1 + height / pieces;

    switch (m->args.coll) {
    case GRADSYNC_ALL_REDUCE:
        m->exchange_us = 2 * height * m->A;
        gsi_model_copies(m, (2 + through) * S * fill, 2 * S);
        gsi_model_reduces(m, both * S * fill, 2 * S);
        break;
    case GRADSYNC_REDUCE:
        m->exchange_us = height * m->A;
        gsi_model_copies(m, S * fill, 2 * S);
        gsi_model_reduces(m, both * S * fill, 2 * S);
        break;
    case GRADSYNC_BROADCAST:
        m->exchange_us = height * m->A;
        gsi_model_copies(m, (1 + through) * S * fill, 2 * S);
        break;
    default:
        m->exchange_us = 2 * height * m->A;
    }
    m->exchange_us += m->A; /* the receivers' leave to begin; two streams take turns on one core */
}

/* Recursive doubling, Thakur, Rabenseifner & Gropp 2005: log2 n rounds of S, two more if n is no power of
 * two. All-gather and ORDERED, Bruck et al. 1997: log2 n rounds that move (n-1) S in all. */
static void doubling(model *m)
{
    double n = m->n, S = m->S, rounds = m->log2n;
    uint32_t power = (uint32_t)m->args.n;

    switch (m->args.coll) {
    case GRADSYNC_ALL_REDUCE:
        if (m->args.flags & GRADSYNC_ORDERED) {
            gsi_model_copies(m, n * S, 2 * n * S);
            gsi_model_reduces(m, n * S, 2 * n * S);
            break;
        }
        if (power & (power - 1))
            rounds += 1; /* log2n is rounded up already */
        gsi_model_copies(m, rounds * S, (2 * rounds + 2) * S);
        gsi_model_reduces(m, 2 * rounds * S, (2 * rounds + 2) * S);
        break;
    case GRADSYNC_ALL_GATHER:
        gsi_model_copies(m, (m->args.reach ? n : 2 * n) * S, 2 * n * S);
        break;
    default:
        break;
    }
    m->exchange_us = (rounds + 1) * m->A; /* and the receivers' leave to begin */
}

/* Every slice straight to its owner and back: 2(n-1) messages of S/n, as the linear algorithms of Chan et
 * al. 2007, but one reduction of n sources. */
static void pairwise(model *m)
{
    double n = m->n, S = m->S, part = (n - 1) / n * S, through = m->args.reach ? 0 : 1;

    switch (m->args.coll) {
    case GRADSYNC_ALL_REDUCE:
        m->exchange_us = 2 * (n - 1) * m->A;
        gsi_model_copies(m, (2 + through) * part, 2 * S);
        gsi_model_reduces(m, S, 2 * S);
        break;
    case GRADSYNC_REDUCE:
        m->exchange_us = n * m->A;
        gsi_model_copies(m, 2 * part + through * part, 2 * S);
        gsi_model_reduces(m, S, 2 * S);
        break;
    case GRADSYNC_REDUCE_SCATTER:
        m->exchange_us = (n - 1) * m->A;
        gsi_model_copies(m, (n - 1) * S, n * S);
        gsi_model_reduces(m, n * S, n * S);
        break;
    case GRADSYNC_ALL_GATHER:
        m->exchange_us = (n - 1) * m->A;
        gsi_model_copies(m, (1 + through) * (n - 1) * S + S, 2 * n * S);
        break;
    case GRADSYNC_BROADCAST:
        m->exchange_us = (2 * n - 2) * m->A;
        gsi_model_copies(m, (2 + through) * S, 2 * S);
        break;
    default:
        m->exchange_us = (n - 1) * m->A;
    }
    m->exchange_us += m->A;
}

typedef void predictor(model *m);

static predictor *const predictors[GRADSYNC_ALGO_COUNT] = {
    [GRADSYNC_ALGO_ONESHOT] = oneshot,   [GRADSYNC_ALGO_DIRECT] = direct, [GRADSYNC_ALGO_STAGED] = staged,
    [GRADSYNC_ALGO_RING] = ring,         [GRADSYNC_ALGO_TREE] = tree,     [GRADSYNC_ALGO_DOUBLING] = doubling,
    [GRADSYNC_ALGO_PAIRWISE] = pairwise,
};

/* One rank alone: a pass over its memory, by whatever name. */
static void local(model *m)
{
    if (m->args.coll == GRADSYNC_ALL_GATHER || m->args.coll == GRADSYNC_BROADCAST)
        gsi_model_copies(m, m->S, 2 * m->S);
    else
        gsi_model_reduces(m, m->S, 2 * m->S);
    steps(m, 1);
}

/* In shared memory every byte passes from one core's cache to another's: what is copied for others is written
 * where they last read, and read where it was last written. Oneshot: everyone reads n contributions; direct:
 * everyone reads and writes the others' share of a slice. And whatever the algorithm, headers are exchanged. */
static void transfers(model *m, int loadstore)
{
    double bytes = m->moved > 0 ? m->moved : 2 * m->copied, cache = m->costs->cache_bytes;
    int blocks = m->args.coll == GRADSYNC_REDUCE_SCATTER || m->args.coll == GRADSYNC_ALL_GATHER;
    /* What the caches hold of both buffers, the same for every algorithm; the rest comes from memory. */
    double footprint = 2 * m->S * (blocks ? m->n : 1), held = footprint > cache ? cache / footprint : 1;

    if (!loadstore || m->args.n == 1)
        return;
    if (m->args.algo > GRADSYNC_ALGO_STAGED)
        m->exchange_us += m->X;
    if (m->args.algo == GRADSYNC_ALGO_ONESHOT)
        bytes = m->n * (m->args.coll == GRADSYNC_REDUCE_SCATTER ? m->n : 1) * m->S;
    if (m->costs->transfer_GBps > 0)
        m->transfer_us = bytes * held / m->costs->transfer_GBps / 1e3;
}

static const char *why_not(const gsi_select_args *args, const gsi_plan_args *plan)
{
    int algo = plan->algo;

    if (args->fixed != GRADSYNC_ALGO_AUTO && args->fixed != algo)
        return "another algorithm is asked for";
    if (args->n > 1 && (algo == GRADSYNC_ALGO_DIRECT || algo == GRADSYNC_ALGO_STAGED) && !args->loadstore)
        return "this transport cannot load and store the memory of peers";
    if (args->n > 1 && algo == GRADSYNC_ALGO_DIRECT && !args->shareable && args->coll != GRADSYNC_BARRIER)
        return "not every rank's memory can be reached by its peers: allocate it with gradsync_mem_alloc() "
               "or register it with REMAP";
    if (args->n > 1 && algo == GRADSYNC_ALGO_ONESHOT && args->unsent && args->coll != GRADSYNC_BARRIER)
        return "not every rank's contribution came with its header";
    return gsi_unfit(plan);
}

/* One rank, one host, or several. */
static void predict(model *m, const gsi_select_args *args)
{
    if (args->n > 1 && args->hosts && args->hosts->hosts > 1 && m->costs->wire_GBps > 0) {
        gsi_predict_wire(m);
        return;
    }
    (args->n > 1 && predictors[m->args.algo] ? predictors[m->args.algo] : local)(m);
    transfers(m, args->loadstore);
}

__attribute__((format(printf, 3, 4))) static void say(char *text, size_t room, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(text, room, format, args);
    va_end(args);
}

/* The sentence about the choice: chosen, and what was next best. */
static void explain(const gsi_select_args *args, gsi_choice *out)
{
    const gsi_candidate *best = &out->candidates[out->algo], *next = NULL;
    const char *name = gradsync_algo_name(out->algo);

    if (!out->algo) {
        int asked = args->fixed > GRADSYNC_ALGO_AUTO && args->fixed < GRADSYNC_ALGO_COUNT ? args->fixed : 0;
        say(out->reason, sizeof out->reason, "%s cannot serve this: %s",
            asked ? gradsync_algo_name(asked) : "any algorithm",
            asked ? out->candidates[asked].reason : "see the candidates");
        return;
    }
    for (int a = 1; a < GRADSYNC_ALGO_COUNT; a++) {
        const gsi_candidate *c = &out->candidates[a];
        if (c->eligible && c != best && (!next || c->predicted_us < next->predicted_us))
            next = c;
    }
    if (args->fixed != GRADSYNC_ALGO_AUTO)
        say(out->reason, sizeof out->reason, "%s: asked for, %.3g us predicted", name, best->predicted_us);
    else if (next)
        say(out->reason, sizeof out->reason, "%s: %.3g us predicted, next best %s %.3g us", name, best->predicted_us,
            gradsync_algo_name(next->algo), next->predicted_us);
    else
        say(out->reason, sizeof out->reason, "%s: %.3g us predicted, nothing else can serve", name, best->predicted_us);
}

void gsi_select(const gsi_costs *costs, const gsi_select_args *args, int brief, gsi_choice *out)
{
    uint64_t count = args->esize ? args->bytes / args->esize : 0;
    uint32_t esize = args->esize ? args->esize : 1;
    model common = {
        .costs = costs,
        .args = {.coll = args->coll,
                 .n = args->n,
                 .esize = esize,
                 /* elements of two bytes are f16 or bf16, whose partial results are f32 */
                 .acc_esize = esize == 2 ? 4 : esize,
                 .count = count,
                 .stride = count,
                 .stage_bytes = args->stage_bytes,
                 .slot_bytes = args->slot_bytes,
                 .head = args->head,
                 .tail = args->tail,
                 .flags = args->flags,
                 .credits = args->credits,
                 .message = (uint64_t)costs->message_bytes,
                 .hosts = args->hosts,
                 .share = args->share != 0,
                 .reach = args->shareable && !args->head && !args->tail},
        .n = args->n,
        .S = args->coll == GRADSYNC_BARRIER ? 0 : (double)args->bytes,
        .X = costs->signal_us,
        .A = (costs->put_us + 3 * costs->step_us) * costs->ranks_per_core,
    };
    int log2n = 0;

    while (((uint64_t)1 << log2n) < (uint64_t)args->n)
        log2n++;
    common.log2n = log2n;
    out->algo = 0;
    out->predicted_us = 0;
    for (int a = 1; a < GRADSYNC_ALGO_COUNT; a++) {
        gsi_candidate *c = &out->candidates[a];
        model m = common;
        m.args.algo = a;
        const char *why = why_not(args, &m.args);
        c->algo = a;
        c->eligible = !why;
        c->predicted_us = 0;
        if (!why) {
            predict(&m, args);
            c->predicted_us = m.exchange_us + m.copy_us + m.reduce_us + m.transfer_us;
            /* Strictly less: of equals the first in the order of enum gradsync_algo. */
            if (!out->algo || c->predicted_us < out->predicted_us) {
                out->algo = a;
                out->predicted_us = c->predicted_us;
            }
        }
        if (brief)
            continue;
        if (why)
            say(c->reason, sizeof c->reason, "%s", why);
        else
            say(c->reason, sizeof c->reason, "exchanges %.3g us, copies %.3g us, reductions %.3g us, transfers %.3g us",
                m.exchange_us, m.copy_us, m.reduce_us, m.transfer_us);
    }
    if (!brief) {
        out->candidates[0] = (gsi_candidate){0};
        explain(args, out);
    }
}
