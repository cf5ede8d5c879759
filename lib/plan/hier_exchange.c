/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hierarchical plans whose hosts all exchange with each other: every host reduces a part
 * of each item (for reduce-scatter: the blocks of its ranks), which it gets from the
 * others as partial results, and gives the results back. A small all-reduce sends all
 * partial results to all hosts instead, who all reduce the same.
 *
 * Turn t: the results of item t - depth are fetched, item t is sent, item
 * t - depth / 2 is reduced. No credits: what a host sends in item t tells that it is done with what it
 * got in item t - depth; and so it is inside a host.
 */
#include "plan/hier.h"

static int hosts_of(const gsi_builder *b)
{
    return b->args->hosts->hosts;
}

/* The i-th other host: everyone starts with another one. */
static int other(const gsi_builder *b, int i)
{
    return (gsi_hier_host(b) + i) % hosts_of(b);
}

/* Where the partial result of host g lies at host h's leader; in reduce-scatter the one for the s-th of its ranks. */
static gsi_place slot(const gsi_builder *b, int h, int g, int k, uint64_t s, uint64_t bytes)
{
    const gsi_hier *l = b->shape;
    uint64_t most = b->args->coll == GRADSYNC_REDUCE_SCATTER ? (uint64_t)b->args->hosts->most : 1;
    uint64_t index = (uint64_t)(k % l->depth) * (uint64_t)(hosts_of(b) - 1) + (uint64_t)(g < h ? g : g - 1);
    int from = gsi_hier_ranks(b, g) == 1 ? gsi_hosts_rank(b->args->hosts, g, 0) : GSI_PARTIAL;

    return gsi_raw(GSI_STAGE, gsi_hier_peer(b, h), l->slot + index * most * l->part * b->args->esize + s * bytes, from);
}

/* My partial results for host h of reduce-scatter, or for all in a small all-reduce. */
static gsi_place out(const gsi_builder *b, int h, int k, uint64_t s, uint64_t bytes)
{
    const gsi_hier *l = b->shape;
    uint64_t index = l->whole ? 0 : (uint64_t)(k % l->depth) * (uint64_t)b->n + (uint64_t)b->args->hosts->first[h];

    return gsi_at(GSI_STAGE, b->rank, l->out + index * l->part * b->args->esize + s * bytes);
}

static int alone(const gsi_builder *b)
{
    return gsi_hier_ranks(b, gsi_hier_host(b)) == 1;
}

/* ---- all-reduce --------------------------------------------------------------------- */

static void send_part(gsi_builder *b, int h, int k)
{
    gsi_hier_range r = gsi_hier_part(b, gsi_hier_index(b), k, h);
    gsi_place src = gsi_raw(GSI_SEND, b->rank, r.send, b->rank);

    if (!alone(b)) {
        /* The result will come to the same place. */
        src = gsi_at(GSI_RECV, b->rank, r.recv);
        gsi_add_step(b, GSI_STEP_REDUCE, 0, r.bytes);
        gsi_hier_add_raws(b, k, 0, r);
        gsi_add_dst(b, src);
    }
    gsi_add_put(b, gsi_hier_peer(b, h), GSI_EVENT(HIER_DATA, k), src, slot(b, h, gsi_hier_host(b), k, 0, 0), r.bytes);
}

static void wait_others(gsi_builder *b, int event, int k)
{
    for (int i = 1; i < hosts_of(b); i++)
        gsi_add_wait(b, gsi_hier_peer(b, other(b, i)), GSI_EVENT(event, k));
}

static void reduce_part(gsi_builder *b, int k)
{
    int h = gsi_hier_host(b), shared = gsi_hier_shared(b, h);
    gsi_hier_range r = gsi_hier_part(b, gsi_hier_index(b), k, h);
    gsi_place result = shared ? gsi_at(GSI_RECV, b->rank, r.recv) : gsi_hier_area(b, b->rank, k, 0, r, GSI_PARTIAL);

    wait_others(b, HIER_DATA, k);
    gsi_add_step(b, GSI_STEP_REDUCE, GSI_STEP_FINAL, r.bytes);
    for (int g = 0; g < hosts_of(b); g++) {
        if (g == h)
            gsi_hier_add_raws(b, k, 0, r);
        else
            gsi_add_src(b, slot(b, h, g, k, 0, 0));
    }
    if (shared)
        gsi_hier_add_recvs(b, r, -1);
    else
        gsi_add_dst(b, result);
    for (int i = 1; i < hosts_of(b); i++) {
        int j = other(b, i), peer = gsi_hier_peer(b, j);
        gsi_add_put(b, peer, GSI_EVENT(HIER_RESULT, k), result,
                    gsi_hier_straight(b, j) ? gsi_at(GSI_RECV, peer, r.recv)
                                            : gsi_hier_area(b, peer, k, 0, r, GSI_PARTIAL),
                    r.bytes);
    }
}

void gsi_hier_deliver(gsi_builder *b, int k)
{
    int h = gsi_hier_host(b), x = gsi_hier_index(b);

    gsi_hier_out(b, k);
    if (!gsi_hier_shared(b, h)) {
        gsi_hier_keep(b, k);
        return;
    }
    /* Mine is there; what is before it and what is behind it are one piece each. */
    gsi_hier_range item = gsi_hier_item(b, x, k, 0), mine = gsi_hier_part(b, x, k, h), r[2] = {item, item};
    r[0].bytes = mine.rel;
    r[1].rel = mine.rel + mine.bytes;
    r[1].bytes -= r[1].rel;
    r[1].recv += r[1].rel;
    for (int i = 0; i < 2; i++)
        gsi_hier_hand_out(b,
                          gsi_hier_straight(b, h) ? gsi_at(GSI_RECV, b->rank, r[i].recv)
                                                  : gsi_hier_area(b, b->rank, k, 0, r[i], GSI_PARTIAL),
                          r[i]);
}

/* The results of the other hosts, on to the local ranks. */
static void spread_parts(gsi_builder *b, int k)
{
    wait_others(b, HIER_RESULT, k);
    gsi_hier_deliver(b, k);
}

/* All of the only item at once. Everyone reduces the same partial results in the same order: the same bits. */
static void exchange_whole(gsi_builder *b)
{
    int h = gsi_hier_host(b);
    gsi_hier_range r = gsi_hier_item(b, gsi_hier_index(b), 0, 0);
    gsi_place mine = out(b, h, 0, 0, 0);

    gsi_hier_wait_in(b, 0);
    if (alone(b)) {
        /* RECV may be SEND, which a PUT of it could still read when the result is there. */
        mine.from = b->rank;
        gsi_add_copy(b, gsi_raw(GSI_SEND, b->rank, r.send, b->rank), mine, r.bytes);
    } else {
        gsi_add_step(b, GSI_STEP_REDUCE, 0, r.bytes);
        gsi_hier_add_raws(b, 0, 0, r);
        gsi_add_dst(b, mine);
    }
    for (int i = 1; i < hosts_of(b); i++)
        gsi_add_put(b, gsi_hier_peer(b, other(b, i)), GSI_EVENT(HIER_DATA, 0), mine, slot(b, other(b, i), h, 0, 0, 0),
                    r.bytes);
    wait_others(b, HIER_DATA, 0);
    gsi_add_step(b, GSI_STEP_REDUCE, GSI_STEP_FINAL, r.bytes);
    for (int g = 0; g < hosts_of(b); g++)
        gsi_add_src(b, g == h ? mine : slot(b, h, g, 0, 0, 0));
    if (gsi_hier_shared(b, h))
        gsi_hier_add_recvs(b, r, -1);
    else
        gsi_add_dst(b, gsi_hier_area(b, b->rank, 0, 0, r, GSI_PARTIAL));
    gsi_hier_out(b, 0);
    gsi_hier_keep(b, 0);
}

static void all_reduce(gsi_builder *b, int t)
{
    const gsi_hier *l = b->shape;
    int reduced = t - l->depth / 2;

    if (t < l->items) {
        gsi_hier_wait_in(b, t);
        for (int i = 1; i < hosts_of(b); i++)
            send_part(b, other(b, i), t);
    }
    if (reduced >= 0 && reduced < l->items)
        reduce_part(b, reduced);
}

/* ---- reduce-scatter ------------------------------------------------------------------- */

/* Partial results for all ranks of host h, one behind the other. */
static void send_blocks(gsi_builder *b, int h, int k)
{
    int me = gsi_hier_host(b), ranks = gsi_hier_ranks(b, h), peer = gsi_hier_peer(b, h);
    uint64_t bytes = 0;

    for (int s = 0; s < ranks; s++) {
        int block = gsi_hosts_rank(b->args->hosts, h, s);
        gsi_hier_range r = gsi_hier_item(b, gsi_hier_index(b), k, block);
        bytes = r.bytes;
        if (!alone(b)) {
            gsi_add_step(b, GSI_STEP_REDUCE, 0, bytes);
            gsi_hier_add_raws(b, k, block, r);
            gsi_add_dst(b, out(b, h, k, (uint64_t)s, bytes));
            continue;
        }
        gsi_place src = gsi_raw(GSI_SEND, b->rank, r.send, b->rank), dst = slot(b, h, me, k, (uint64_t)s, bytes);
        if (s < ranks - 1)
            gsi_add_quiet_put(b, peer, src, dst, bytes);
        else
            gsi_add_put(b, peer, GSI_EVENT(HIER_DATA, k), src, dst, bytes);
    }
    if (!alone(b))
        gsi_add_put(b, peer, GSI_EVENT(HIER_DATA, k), out(b, h, k, 0, bytes), slot(b, h, me, k, 0, bytes),
                    bytes * (uint64_t)ranks);
}

static void reduce_blocks(gsi_builder *b, int k)
{
    const gsi_hier *l = b->shape;
    int h = gsi_hier_host(b);

    wait_others(b, HIER_DATA, k);
    for (int s = 0; s < gsi_hier_ranks(b, h); s++) {
        int block = gsi_hier_local(b, s);
        gsi_hier_range r = gsi_hier_item(b, gsi_hier_index(b), k, block);
        gsi_add_step(b, GSI_STEP_REDUCE, GSI_STEP_FINAL, r.bytes);
        for (int g = 0; g < hosts_of(b); g++) {
            if (g == h)
                gsi_hier_add_raws(b, k, block, r);
            else
                gsi_add_src(b, slot(b, h, g, k, (uint64_t)s, r.bytes));
        }
        gsi_add_dst(b, gsi_hier_shared(b, h) ? gsi_at(GSI_RECV, block, r.recv)
                                             : gsi_hier_area(b, b->rank, k, block, r, GSI_PARTIAL));
    }
    for (int i = 1; i < hosts_of(b) && k + l->depth < l->items; i++)
        gsi_add_signal(b, gsi_hier_peer(b, other(b, i)), GSI_EVENT(HIER_CREDIT, k));
    gsi_hier_out(b, k);
    gsi_hier_keep(b, k);
}

static void reduce_scatter(gsi_builder *b, int t)
{
    const gsi_hier *l = b->shape;
    int reduced = t - l->depth / 2;

    if (t < l->items) {
        if (t >= l->depth)
            wait_others(b, HIER_CREDIT, t - l->depth);
        gsi_hier_wait_in(b, t);
        for (int i = 1; i < hosts_of(b); i++)
            send_blocks(b, other(b, i), t);
    }
    if (reduced >= 0 && reduced < l->items)
        reduce_blocks(b, reduced);
}

/* ---- all-gather ----------------------------------------------------------------------- */

static void give_blocks(gsi_builder *b, int k)
{
    int h = gsi_hier_host(b), ranks = gsi_hier_ranks(b, h), shared = gsi_hier_shared(b, h);

    gsi_hier_wait_in(b, k);
    for (int s = 0; s < ranks; s++) {
        int q = gsi_hier_local(b, s);
        gsi_hier_range r = gsi_hier_item(b, gsi_hier_index(b), k, q);
        gsi_place src = gsi_raw(GSI_RECV, b->rank, r.recv, q);
        if (!shared)
            src = gsi_hier_area(b, b->rank, k, q, r, q);
        if (alone(b)) {
            src = gsi_raw(GSI_SEND, q, r.send, q);
        } else {
            gsi_add_step(b, GSI_STEP_COPY, 0, r.bytes);
            gsi_add_src(b, gsi_hier_raw(b, q, k, q, r));
            if (shared)
                gsi_hier_add_recvs(b, r, -1);
            else
                gsi_add_dst(b, src);
        }
        for (int i = 1; i < hosts_of(b); i++) {
            int j = other(b, i), peer = gsi_hier_peer(b, j);
            gsi_place dst =
                gsi_hier_straight(b, j) ? gsi_at(GSI_RECV, peer, r.recv) : gsi_hier_area(b, peer, k, q, r, q);
            if (s < ranks - 1)
                gsi_add_quiet_put(b, peer, src, dst, r.bytes);
            else
                gsi_add_put(b, peer, GSI_EVENT(HIER_DATA, k), src, dst, r.bytes);
        }
        if (alone(b))
            gsi_add_copy(b, src, gsi_at(GSI_RECV, b->rank, r.recv), r.bytes);
    }
}

static void spread_blocks(gsi_builder *b, int k)
{
    int h = gsi_hier_host(b);

    wait_others(b, HIER_DATA, k);
    gsi_hier_out(b, k);
    gsi_hier_keep(b, k);
    for (int q = 0; q < b->n && gsi_hier_shared(b, h); q++) {
        gsi_hier_range r = gsi_hier_item(b, gsi_hier_index(b), k, q);
        if (b->args->hosts->of[q] != h)
            gsi_hier_hand_out(b,
                              gsi_hier_straight(b, h) ? gsi_raw(GSI_RECV, b->rank, r.recv, q)
                                                      : gsi_hier_area(b, b->rank, k, q, r, q),
                              r);
    }
}

void gsi_hier_fetch(gsi_builder *b, int k)
{
    const gsi_hier *l = b->shape;

    if (b->args->coll == GRADSYNC_ALL_GATHER)
        spread_blocks(b, k);
    else if (b->args->coll == GRADSYNC_ALL_REDUCE && !l->whole)
        spread_parts(b, k);
}

void gsi_hier_exchange(gsi_builder *b, int t)
{
    const gsi_hier *l = b->shape;

    if (b->args->coll == GRADSYNC_REDUCE_SCATTER)
        reduce_scatter(b, t);
    else if (b->args->coll == GRADSYNC_ALL_REDUCE && !l->whole)
        all_reduce(b, t);
    else if (t < l->items && l->whole)
        exchange_whole(b);
    else if (t < l->items)
        give_blocks(b, t);
}
