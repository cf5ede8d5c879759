/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hierarchical all-reduce over many hosts: the leaders of the same number form a ring
 * (see ring.c), each in its host's name. Contributions of the whole host are added as a
 * part comes by, in one pass over its memory. To and fro with every other host, as in
 * hier_exchange.c, would take fewer latencies, but each rank would need a connection to
 * every host, and slots for all of them.
 *
 * Turn t: a group of `depth` / 2 items goes through all its rounds, piece after piece, so
 * that one is on the wire while another is reduced; meanwhile the other ranks of the host
 * copy in the next group. The slots are told to be free (CREDIT) as on the flat ring.
 */
#include "plan/hier.h"

static int hosts_of(const gsi_builder *b)
{
    return b->args->hosts->hosts;
}

static int wrap(const gsi_builder *b, int h)
{
    return ((h % hosts_of(b)) + hosts_of(b)) % hosts_of(b);
}

/* Which use of the slots item k in round `round` is. */
static int use_of(const gsi_builder *b, int k, int round)
{
    const gsi_hier *l = b->shape;
    int width = gsi_hier_width(l);

    return (k / width * (hosts_of(b) - 1) + round) * width + k % width;
}

static int uses_of(const gsi_builder *b)
{
    const gsi_hier *l = b->shape;
    int width = gsi_hier_width(l), groups = (l->items - 1) / width + 1;

    return groups * (hosts_of(b) - 1) * width;
}

static gsi_place slot(const gsi_builder *b, int rank, int use, int from)
{
    const gsi_hier *l = b->shape;

    return gsi_raw(GSI_STAGE, rank, l->slot + (uint64_t)(use % l->slots) * l->part * b->args->esize, from);
}

/* Where a host's part of the result lies at its leader: its own, or one that arrived. */
static gsi_place result(const gsi_builder *b, int k, gsi_hier_range r, int own)
{
    int h = gsi_hier_host(b);

    if (own ? gsi_hier_shared(b, h) : gsi_hier_straight(b, h))
        return gsi_at(GSI_RECV, b->rank, r.recv);
    return gsi_hier_area(b, b->rank, k, 0, r, GSI_PARTIAL);
}

static void send(gsi_builder *b, int k, int round)
{
    const gsi_hier *l = b->shape;
    int h = gsi_hier_host(b), next = wrap(b, h + 1), peer = gsi_hier_peer(b, next), last = hosts_of(b) - 1;
    gsi_hier_range r = gsi_hier_part(b, gsi_hier_index(b), k, wrap(b, h - 1 - round));
    gsi_place src = gsi_at(GSI_RECV, b->rank, r.recv), dst;

    if (round == 0 && gsi_hier_ranks(b, h) == 1) {
        src = gsi_raw(GSI_SEND, b->rank, r.send, b->rank);
    } else if (round == 0) {
        gsi_add_step(b, GSI_STEP_REDUCE, 0, r.bytes);
        gsi_hier_add_raws(b, k, 0, r);
        gsi_add_dst(b, src);
    } else if (round >= last) {
        src = result(b, k, r, round == last);
    }
    if (round < last) {
        int use = use_of(b, k, round);
        dst = slot(b, peer, use, GSI_PARTIAL);
        if (use >= l->slots)
            gsi_add_wait(b, peer, GSI_EVENT(HIER_CREDIT, use - l->slots));
    } else if (gsi_hier_straight(b, next)) {
        dst = gsi_at(GSI_RECV, peer, r.recv);
    } else {
        dst = gsi_hier_area(b, peer, k, 0, r, GSI_PARTIAL);
    }
    gsi_add_put(b, peer, GSI_EVENT(HIER_DATA, (uint64_t)round << 32 | (uint64_t)k), src, dst, r.bytes);
}

static void receive(gsi_builder *b, int k, int round)
{
    const gsi_hier *l = b->shape;
    int h = gsi_hier_host(b), prev = wrap(b, h - 1), peer = gsi_hier_peer(b, prev), last = hosts_of(b) - 1;
    gsi_hier_range r = gsi_hier_part(b, gsi_hier_index(b), k, wrap(b, h - 2 - round));
    int use = use_of(b, k, round), from = GSI_PARTIAL;

    gsi_add_wait(b, peer, GSI_EVENT(HIER_DATA, (uint64_t)round << 32 | (uint64_t)k));
    if (round >= last)
        return;
    if (round == 0 && gsi_hier_ranks(b, prev) == 1)
        from = peer;
    gsi_add_step(b, GSI_STEP_REDUCE, round == last - 1 ? GSI_STEP_FINAL : 0, r.bytes);
    gsi_add_src(b, slot(b, b->rank, use, from));
    gsi_hier_add_raws(b, k, 0, r);
    if (round < last - 1)
        gsi_add_dst(b, gsi_at(GSI_RECV, b->rank, r.recv));
    else if (gsi_hier_shared(b, h))
        gsi_hier_add_recvs(b, r, -1);
    else
        gsi_add_dst(b, result(b, k, r, 1));
    if (use + l->slots < uses_of(b))
        gsi_add_signal(b, peer, GSI_EVENT(HIER_CREDIT, use));
}

void gsi_hier_ring(gsi_builder *b, int t)
{
    const gsi_hier *l = b->shape;
    int width = gsi_hier_width(l), first = t * width, rounds = 2 * (hosts_of(b) - 1);
    int lag = width - 1, total = rounds * width;

    for (int k = first; k < first + width && k < l->items; k++)
        gsi_hier_wait_in(b, k);
    for (int i = 0; i < total + lag; i++) {
        int back = i - lag;
        if (i < total && first + i % width < l->items)
            send(b, first + i % width, i / width);
        if (back >= 0 && first + back % width < l->items)
            receive(b, first + back % width, back / width);
    }
    for (int k = first; k < first + width && k < l->items; k++)
        gsi_hier_deliver(b, k);
}
