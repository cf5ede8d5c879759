/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hierarchical plans along a chain of hosts, item after item: contributions are gathered
 * from host `start` on, each host adding all of its own in one pass; the results go on
 * from host `origin`. In the canonical order the chain begins with host 0 and carries
 * f32 partial results for f16 and bf16.
 *
 *   broadcast        results from the root's host on
 *   reduce           contributions round to the root's host; ordered: to the last host,
 *                    whose results then go to the root's
 *   ordered all-reduce  contributions to the last host, results back the same way, which
 *                    is the other direction of the wires
 *
 * A PUT's source and destination are free again when the receiver says so: CREDIT for
 * contributions, LANDED for results, where either of them lies in STAGE.
 */
#include "plan/hier.h"

static int hosts_of(const gsi_builder *b)
{
    return b->args->hosts->hosts;
}

/* Places along the contributions and along the results; -1: the results do not come here. */
static int gather_place(const gsi_builder *b, int h)
{
    const gsi_hier *l = b->shape;

    return (h - l->start + hosts_of(b)) % hosts_of(b);
}

static int spread_host(const gsi_builder *b, int w)
{
    const gsi_hier *l = b->shape;

    return (int)((l->origin + (int64_t)w * l->turn) % hosts_of(b));
}

static int spread_place(const gsi_builder *b, int h)
{
    const gsi_hier *l = b->shape;

    for (int w = 0; w <= l->hops; w++)
        if (spread_host(b, w) == h)
            return w;
    return -1;
}

int gsi_hier_lag(const gsi_builder *b, int h)
{
    const gsi_hier *l = b->shape;

    /* A result is here so many hops after this host's contribution left. Every hop holds `depth` items
     * each way: at a depth of 1 the last one could not leave. */
    int w = spread_place(b, h), lag = 0;
    if (l->reduces && w > 0)
        lag = hosts_of(b) - 1 - gather_place(b, h) + w - (l->depth == 1);
    return lag < l->items ? lag : l->items;
}

/* Buffer k at that leader: of contributions that arrive, or that leave. */
static gsi_place buffer(const gsi_builder *b, int rank, uint64_t base, int k, int from)
{
    const gsi_hier *l = b->shape;
    uint64_t width = l->wide ? b->args->acc_esize : b->args->esize;

    return gsi_raw(GSI_STAGE, rank, base + (uint64_t)(k % l->depth) * l->unit * width, from);
}

/* What leaves the host at place v is one untouched contribution. */
static int is_raw(const gsi_builder *b, int v)
{
    const gsi_hier *l = b->shape;

    return v == 0 && gsi_hier_ranks(b, l->start) == 1;
}

/* From w to w + 1 something lies in STAGE, at either end: leaders that get results pass them on from RECV. */
static int told_landed(const gsi_builder *b, int w)
{
    return !gsi_hier_straight(b, spread_host(b, w + 1)) || !gsi_hier_gets(b->args, gsi_hier_peer(b, spread_host(b, w)));
}

/* May the area of item k, which I write or wrote, be used again? */
static void wait_area(gsi_builder *b, int w, int k)
{
    const gsi_hier *l = b->shape;

    if (k < 0)
        return;
    gsi_hier_wait_free(b, k);
    if (w >= 0 && w < l->hops && told_landed(b, w))
        gsi_add_wait(b, gsi_hier_peer(b, spread_host(b, w + 1)), GSI_EVENT(HIER_LANDED, k));
}

/* The result of item k is here, at the end of the contributions' chain or at the root of a broadcast: where
 * the step under way is to write it. */
static void add_results(gsi_builder *b, int k, gsi_hier_range r)
{
    int h = gsi_hier_host(b), here = 0;

    for (int i = 0; i < gsi_hier_ranks(b, h); i++)
        here |= gsi_hier_gets(b->args, gsi_hier_local(b, i));
    if (here && gsi_hier_shared(b, h)) {
        gsi_hier_add_recvs(b, r, -1);
        return;
    }
    gsi_add_dst(b, gsi_hier_area(b, b->rank, k, 0, r, GSI_PARTIAL));
    if (gsi_hier_gets(b->args, b->rank))
        gsi_add_dst(b, gsi_at(GSI_RECV, b->rank, r.recv));
}

static void gather_item(gsi_builder *b, int k)
{
    const gsi_hier *l = b->shape;
    int h = gsi_hier_host(b), v = gather_place(b, h), last = v == hosts_of(b) - 1;
    int prev = v ? gsi_hier_peer(b, (h + hosts_of(b) - 1) % hosts_of(b)) : -1;
    int next = last ? -1 : gsi_hier_peer(b, (h + 1) % hosts_of(b));
    gsi_hier_range r = gsi_hier_item(b, gsi_hier_index(b), k, 0);
    gsi_place src = gsi_raw(GSI_SEND, b->rank, r.send, b->rank);

    gsi_hier_wait_in(b, k);
    if (v)
        gsi_add_wait(b, prev, GSI_EVENT(HIER_DATA, k));
    if (!last && k >= l->depth)
        gsi_add_wait(b, next, GSI_EVENT(HIER_CREDIT, k - l->depth));
    if (last)
        wait_area(b, spread_place(b, h), k - l->deep);
    if (!is_raw(b, v)) {
        int acc_in = v && l->wide && !is_raw(b, v - 1);
        gsi_add_step(b, GSI_STEP_REDUCE,
                     (last      ? GSI_STEP_FINAL
                      : l->wide ? GSI_STEP_ACC_OUT
                                : 0) |
                         (acc_in ? GSI_STEP_ACC_IN : 0),
                     r.bytes);
        if (v)
            gsi_add_src(b, buffer(b, b->rank, l->slot, k,
                                  is_raw(b, v - 1) ? gsi_hosts_rank(b->args->hosts, l->start, 0) : GSI_PARTIAL));
        gsi_hier_add_raws(b, k, 0, r);
        if (last) {
            add_results(b, k, r);
        } else {
            src = buffer(b, b->rank, l->out, k, GSI_PARTIAL);
            gsi_add_dst(b, src);
        }
    }
    gsi_hier_taken(b, k);
    if (v && k + l->depth < l->items)
        gsi_add_signal(b, prev, GSI_EVENT(HIER_CREDIT, k));
    if (!last)
        gsi_add_put(b, next, GSI_EVENT(HIER_DATA, k), src, buffer(b, next, l->slot, k, GSI_PARTIAL),
                    l->wide && !is_raw(b, v) ? r.bytes / b->args->esize * b->args->acc_esize : r.bytes);
}

static void pass_on(gsi_builder *b, int w, int k, gsi_place src, gsi_hier_range r)
{
    const gsi_hier *l = b->shape;

    if (w >= l->hops)
        return;
    int next = spread_host(b, w + 1), peer = gsi_hier_peer(b, next);
    if (told_landed(b, w) && k >= l->deep)
        gsi_add_wait(b, peer, GSI_EVENT(HIER_LANDED, k - l->deep));
    gsi_add_put(b, peer, GSI_EVENT(HIER_RESULT, k), src,
                gsi_hier_straight(b, next) ? gsi_at(GSI_RECV, peer, r.recv)
                                           : gsi_hier_area(b, peer, k, 0, r, GSI_PARTIAL),
                r.bytes);
}

/* Item k begins here: the last contribution has been added, or this is the root's host. */
static void begin_item(gsi_builder *b, int k)
{
    const gsi_hier *l = b->shape;
    int root = b->args->root;
    gsi_hier_range r = gsi_hier_item(b, gsi_hier_index(b), k, 0);
    gsi_place src = gsi_hier_area(b, b->rank, k, 0, r, GSI_PARTIAL);

    if (gsi_hier_gets(b->args, b->rank))
        src = gsi_at(GSI_RECV, b->rank, r.recv);
    if (!l->reduces) {
        gsi_place raw = gsi_hier_raw(b, root, k, 0, r);
        src.from = root;
        gsi_hier_wait_in(b, k);
        wait_area(b, 0, k - l->deep);
        if (b->rank == root)
            pass_on(b, 0, k, raw, r); /* first, since it takes longest */
        gsi_add_step(b, GSI_STEP_COPY, 0, r.bytes);
        gsi_add_src(b, raw);
        add_results(b, k, r);
        gsi_hier_taken(b, k);
    }
    gsi_hier_out(b, k);
    if (l->reduces || b->rank != root)
        pass_on(b, 0, k, src, r);
}

/* Tells where the result of item k came from that it need not be there any more, nor its landing area here. */
static void release(gsi_builder *b, int w, int k)
{
    const gsi_hier *l = b->shape;

    if (k < 0 || k + l->deep >= l->items || !told_landed(b, w - 1))
        return;
    gsi_hier_wait_free(b, k);
    gsi_add_signal(b, gsi_hier_peer(b, spread_host(b, w - 1)), GSI_EVENT(HIER_LANDED, k));
}

/* Item k arrives at place w > 0. */
static void spread_item(gsi_builder *b, int w, int k)
{
    int h = gsi_hier_host(b), from = b->args->coll == GRADSYNC_BROADCAST ? b->args->root : GSI_PARTIAL;
    gsi_hier_range r = gsi_hier_item(b, gsi_hier_index(b), k, 0);
    gsi_place kept = gsi_raw(GSI_RECV, b->rank, r.recv, from), result = kept;

    /* The local ranks have had a turn's time for the results of the item before. */
    release(b, w, k - 1);
    gsi_add_wait(b, gsi_hier_peer(b, spread_host(b, w - 1)), GSI_EVENT(HIER_RESULT, k));
    if (!gsi_hier_straight(b, h)) {
        result = gsi_hier_area(b, b->rank, k, 0, r, from);
        gsi_hier_out(b, k);
        gsi_hier_keep(b, k);
    }
    if (gsi_hier_straight(b, h))
        pass_on(b, w, k, kept, r);
    if (gsi_hier_shared(b, h))
        gsi_hier_hand_out(b, result, r);
    if (!gsi_hier_straight(b, h))
        pass_on(b, w, k, kept, r);
}

void gsi_hier_chain(gsi_builder *b, int t)
{
    const gsi_hier *l = b->shape;
    int h = gsi_hier_host(b), w = spread_place(b, h), k = t - gsi_hier_lag(b, h);

    if (l->reduces && t < l->items)
        gather_item(b, t);
    if (k < 0 || k >= l->items)
        return;
    if (w == 0)
        begin_item(b, k);
    else if (w > 0)
        spread_item(b, w, k);
}
