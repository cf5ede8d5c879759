/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hierarchical: inside a host by loads and stores, between hosts by PUTs of the leaders
 * (see hier.h). Every rank of the smallest host can be a leader, so as many ranks of each
 * host keep the rails busy, and a byte crosses the wire as often as if there were one
 * rank a host.
 *
 * Between hosts all-reduce, reduce-scatter and all-gather are an exchange between all
 * (hier_exchange.c: two latencies, and the bytes of a ring), or an all-reduce over many
 * hosts a ring (hier_ring.c); what has a beginning and an
 * end, and what must keep the canonical order, is a chain (hier_chain.c).
 */
#include "plan/hier.h"

/* Bytes of a message for which another leader pays: a leader costs a message to each host. */
#define LEADER_BYTES (16u << 10)
/* Bytes of partial results up to which all of them go to all hosts at once: one latency instead of two. */
#define WHOLE_BYTES (16u << 10)

/* Hosts that all exchange with all; more form a ring. */
#define EXCHANGE_HOSTS 16

/* ---- Layout ------------------------------------------------------------------------ */

static int blocks(const gsi_plan_args *args)
{
    return args->coll == GRADSYNC_REDUCE_SCATTER || args->coll == GRADSYNC_ALL_GATHER;
}

/* Items of a leader that a plan should have at most. */
static uint64_t most_items(const gsi_plan_args *args)
{
    const gsi_hosts *h = args->hosts;
    uint64_t hosts = (uint64_t)h->hosts, most = (uint64_t)h->most, n = (uint64_t)args->n;
    uint64_t steps = (args->coll == GRADSYNC_ALL_REDUCE && hosts > EXCHANGE_HOSTS ? 12 : 6) * hosts + 8 * most +
                     (blocks(args) ? (args->share ? n : 2 * n * (uint64_t)h->least) : 0);

    return GSI_PLAN_STEPS / steps > 4 ? GSI_PLAN_STEPS / steps : 4;
}

static void set_route(const gsi_plan_args *args, gsi_hier *l)
{
    int hosts = args->hosts->hosts, ordered = args->flags & GRADSYNC_ORDERED;
    int root = args->coll == GRADSYNC_BROADCAST || args->coll == GRADSYNC_REDUCE ? args->hosts->of[args->root] : 0;

    l->reduces =
        args->coll == GRADSYNC_ALL_REDUCE || args->coll == GRADSYNC_REDUCE_SCATTER || args->coll == GRADSYNC_REDUCE;
    l->chain = args->coll == GRADSYNC_BROADCAST || args->coll == GRADSYNC_REDUCE ||
               (args->coll == GRADSYNC_ALL_REDUCE && ordered && args->hosts->most > 1);
    l->ring = args->coll == GRADSYNC_ALL_REDUCE && !ordered && hosts > EXCHANGE_HOSTS;
    l->wide = l->chain && ordered && l->reduces && args->acc_esize > args->esize;
    l->start = 0;
    l->origin = hosts - 1;
    l->turn = hosts - 1; /* backwards */
    l->hops = hosts - 1;
    if (args->coll == GRADSYNC_BROADCAST) {
        l->origin = root;
        l->turn = 1;
    } else if (args->coll == GRADSYNC_REDUCE && !ordered) {
        l->start = (root + 1) % hosts;
        l->origin = root;
        l->hops = 0;
    } else if (args->coll == GRADSYNC_REDUCE) {
        l->turn = (root + 1) % hosts;
        l->hops = root != l->origin;
    }
}

/* Bytes of STAGE for each element of `part`, all buffers together; sets their borders for `part`. */
static uint64_t place_buffers(const gsi_plan_args *args, gsi_hier *l, uint64_t part)
{
    const gsi_hosts *h = args->hosts;
    uint64_t n = (uint64_t)args->n, esize = args->esize, most = (uint64_t)h->most, others = (uint64_t)h->hosts - 1;
    uint64_t depth = (uint64_t)l->depth, wide = l->wide ? args->acc_esize : esize, split, in, slot, out, area;
    int scatter = args->coll == GRADSYNC_REDUCE_SCATTER, gather = args->coll == GRADSYNC_ALL_GATHER;

    /* A chain's areas are told to be free one item late. */
    l->deep = gather ? 2 * l->depth : l->depth + l->chain;
    split = !l->chain && !blocks(args) && !l->whole ? (uint64_t)h->hosts : 1;
    l->part = part;
    l->unit = part * split;
    in = args->share || most == 1 ? 0 : depth * (uint64_t)l->leaders * (scatter ? n : split) * esize;
    /* Credits for as many as there are slots may be on their way. */
    l->slots = 2 * l->depth;
    if (args->credits && l->slots > (int)args->credits / 2)
        l->slots = (int)args->credits / 2;
    slot = !l->reduces            ? 0
           : l->ring && !l->whole ? (uint64_t)l->slots * esize
           : l->chain             ? depth * wide
                                  : depth * others * (scatter ? most : 1) * esize;
    out = !l->reduces ? 0 : l->chain ? depth * wide : scatter ? depth * n * esize : l->whole ? esize : 0;
    area = (uint64_t)l->deep * (scatter ? most : gather ? n : split) * esize;
    if (scatter ? in == 0 : l->whole ? in == 0 : args->coll != GRADSYNC_REDUCE && args->share && args->reach)
        area = 0;
    l->in = 0;
    l->slot = in * part;
    l->out = l->slot + slot * part;
    l->area = l->out + out * part;
    l->end = l->area + area * part;
    return in + slot + out + area;
}

/* 0: there is too little STAGE. */
static uint64_t lay_out(const gsi_plan_args *args, uint64_t count, gsi_hier *l)
{
    const gsi_hosts *h = args->hosts;
    uint64_t esize = args->esize, hosts = (uint64_t)h->hosts, each, part = 0;
    uint64_t lead = args->chunk ? args->chunk : LEADER_BYTES, least = (uint64_t)h->least;
    uint64_t leaders = count ? count * esize / lead : least;

    set_route(args, l);
    l->leaders = leaders < 1 ? 1 : leaders < least ? (int)leaders : (int)least;
    uint64_t slice = count ? (count - 1) / (uint64_t)l->leaders + 1 : 0;
    l->whole = !l->chain && args->coll == GRADSYNC_ALL_REDUCE && count && hosts <= EXCHANGE_HOSTS &&
               gsi_mul(slice * esize, hosts - 1) <= (args->chunk ? args->chunk : WHOLE_BYTES);
    /* A message between two hosts: all of the item, the part of one host, or an item of the blocks of a host. */
    uint64_t message = blocks(args) ? slice * (uint64_t)h->most : l->chain ? slice : slice / hosts;
    uint64_t want = gsi_want(args, message * esize, 4, l->chain ? h->hosts - 1 : 0, most_items(args));
    if (blocks(args))
        want /= (uint64_t)h->most;
    l->depth = gsi_depth(args) > 2 ? gsi_depth(args) : 2;
    for (; !part && l->depth >= (l->ring ? 2 : 1); l->depth -= !part) {
        each = place_buffers(args, l, 1);
        /* In elements of `each` bytes, of which a part may want no more than the STAGE holds. */
        part = l->whole ? slice : gsi_elements(want, args->esize);
        if (each && part > args->stage_bytes / each)
            part = l->whole ? 0 : args->stage_bytes / each;
        if (part * esize >= 64 && !l->whole)
            part -= part % (64 / esize);
        if (l->whole && !part) {
            l->whole = 0; /* then in parts */
            l->depth++;
        }
    }
    if (!part)
        return 0;
    l->grain = gsi_grain(part, args->esize);
    if (l->whole)
        part = (part + l->grain - 1) / l->grain * l->grain;
    place_buffers(args, l, part);
    /* Rounding up to a grain may have been too much: without grains then. */
    if (l->end > args->stage_bytes) {
        l->grain = 1;
        place_buffers(args, l, slice);
    }
    return l->unit;
}

static uint64_t items_of(const gsi_plan_args *args, const gsi_hier *l)
{
    uint64_t grains = (args->count - 1) / l->grain + 1;
    uint64_t slice = ((grains - 1) / (uint64_t)l->leaders + 1) * l->grain;

    return (slice - 1) / l->unit + 1;
}

void gsi_hier_costs(const gsi_plan_args *args, gsi_hier_cost *out)
{
    gsi_hier l;

    *out = (gsi_hier_cost){.leaders = 1, .items = 1};
    if (!args->count || !lay_out(args, args->count, &l))
        return;
    uint64_t items = items_of(args, &l);
    *out = (gsi_hier_cost){l.leaders, items < INT32_MAX ? (int)items : INT32_MAX, l.whole, l.chain,
                           l.ring && !l.whole ? gsi_hier_width(&l) : 0};
}

uint64_t gsi_segment_hier(const gsi_plan_args *args)
{
    gsi_hier l;

    if (!lay_out(args, 0, &l))
        return 1;
    return gsi_mul(gsi_mul(l.unit, most_items(args)), (uint64_t)l.leaders);
}

const char *gsi_unfit_hier(const gsi_plan_args *args)
{
    gsi_hier l;
    int reduces =
        args->coll == GRADSYNC_ALL_REDUCE || args->coll == GRADSYNC_REDUCE_SCATTER || args->coll == GRADSYNC_REDUCE;

    if (!args->hosts || args->hosts->hosts == 1)
        return "all ranks are on one host";
    if (args->coll == GRADSYNC_BARRIER || !args->count)
        return NULL;
    if ((args->flags & GRADSYNC_ORDERED) && reduces && args->hosts->most > 1) {
        if (args->coll == GRADSYNC_REDUCE_SCATTER)
            return "a host's partial results do not keep the canonical order";
        if (!args->hosts->neighbours)
            return "the ranks of a host do not follow each other, so partial results do not keep the canonical order";
    }
    return lay_out(args, args->count, &l) ? NULL : "there is too little staging memory";
}

/* ---- Who and where ----------------------------------------------------------------- */

int gsi_hier_host(const gsi_builder *b)
{
    return b->args->hosts->of[b->rank];
}

int gsi_hier_index(const gsi_builder *b)
{
    return b->args->hosts->index[b->rank];
}

int gsi_hier_ranks(const gsi_builder *b, int h)
{
    return gsi_hosts_size(b->args->hosts, h);
}

int gsi_hier_local(const gsi_builder *b, int i)
{
    return gsi_hosts_rank(b->args->hosts, gsi_hier_host(b), i);
}

int gsi_hier_peer(const gsi_builder *b, int h)
{
    return gsi_hosts_rank(b->args->hosts, h, gsi_hier_index(b));
}

int gsi_hier_shared(const gsi_builder *b, int h)
{
    return b->args->share || gsi_hier_ranks(b, h) == 1;
}

int gsi_hier_straight(const gsi_builder *b, int h)
{
    /* A rank that gets nothing has no RECV. */
    return b->args->reach && gsi_hier_shared(b, h) && gsi_hier_gets(b->args, gsi_hier_peer(b, h));
}

int gsi_hier_gives(const gsi_plan_args *args, int r)
{
    return args->coll != GRADSYNC_BROADCAST || r == args->root;
}

int gsi_hier_gets(const gsi_plan_args *args, int r)
{
    return args->coll != GRADSYNC_REDUCE || r == args->root;
}

gsi_hier_range gsi_hier_item(const gsi_builder *b, int leader, int k, int block)
{
    const gsi_hier *l = b->shape;
    const gsi_plan_args *args = b->args;
    uint64_t off, len, at, bytes, stride = (uint64_t)block * args->stride;

    gsi_plan_slice(args->count, l->grain, l->leaders, leader, &off, &len);
    gsi_plan_slice(len, l->grain, l->items, k, &at, &bytes);
    off += at;
    return (gsi_hier_range){
        .bytes = bytes * args->esize,
        .send = (off + (args->coll == GRADSYNC_REDUCE_SCATTER ? stride : 0)) * args->esize,
        .recv = (off + (args->coll == GRADSYNC_ALL_GATHER ? stride : 0)) * args->esize,
    };
}

gsi_hier_range gsi_hier_part(const gsi_builder *b, int leader, int k, int h)
{
    const gsi_hier *l = b->shape;
    gsi_hier_range r = gsi_hier_item(b, leader, k, 0);
    uint64_t at, len;

    gsi_plan_slice(r.bytes / b->args->esize, l->grain, b->args->hosts->hosts, h, &at, &len);
    at *= b->args->esize;
    return (gsi_hier_range){len * b->args->esize, r.send + at, r.recv + at, at};
}

/* Where rank q keeps its contribution to a leader's item, when it is not loaded from SEND. */
static gsi_place contribution(const gsi_builder *b, int q, int leader, int k, int block, gsi_hier_range range)
{
    const gsi_hier *l = b->shape;
    uint64_t units = b->args->coll == GRADSYNC_REDUCE_SCATTER ? (uint64_t)b->n : 1;
    uint64_t index = ((uint64_t)(k % l->depth) * (uint64_t)l->leaders + (uint64_t)leader) * units +
                     (units > 1 ? (uint64_t)block : 0);

    return gsi_raw(GSI_STAGE, q, l->in + index * l->unit * b->args->esize + range.rel, q);
}

gsi_place gsi_hier_raw(const gsi_builder *b, int q, int k, int block, gsi_hier_range range)
{
    if (q == b->rank || b->args->share)
        return gsi_raw(GSI_SEND, q, range.send, q);
    return contribution(b, q, gsi_hier_index(b), k, block, range);
}

void gsi_hier_add_raws(gsi_builder *b, int k, int block, gsi_hier_range range)
{
    for (int i = 0; i < gsi_hier_ranks(b, gsi_hier_host(b)); i++)
        gsi_add_src(b, gsi_hier_raw(b, gsi_hier_local(b, i), k, block, range));
}

gsi_place gsi_hier_area(const gsi_builder *b, int rank, int k, int block, gsi_hier_range range, int from)
{
    const gsi_hier *l = b->shape;
    const gsi_hosts *h = b->args->hosts;
    uint64_t units = 1, index = 0;

    if (b->args->coll == GRADSYNC_REDUCE_SCATTER) {
        units = (uint64_t)h->most;
        index = (uint64_t)h->index[block];
    } else if (b->args->coll == GRADSYNC_ALL_GATHER) {
        units = (uint64_t)b->n;
        index = (uint64_t)block;
    }
    index += (uint64_t)(k % l->deep) * units;
    return gsi_raw(GSI_STAGE, rank, l->area + index * l->unit * b->args->esize + range.rel, from);
}

void gsi_hier_add_recvs(gsi_builder *b, gsi_hier_range range, int but)
{
    for (int i = 0; i < gsi_hier_ranks(b, gsi_hier_host(b)); i++) {
        int q = gsi_hier_local(b, i);
        if (q != but && gsi_hier_gets(b->args, q))
            gsi_add_dst(b, gsi_at(GSI_RECV, q, range.recv));
    }
}

void gsi_hier_hand_out(gsi_builder *b, gsi_place src, gsi_hier_range range)
{
    int mine = src.space == GSI_RECV ? b->rank : -1, wanted = 0;

    for (int i = 0; i < gsi_hier_ranks(b, gsi_hier_host(b)); i++) {
        int q = gsi_hier_local(b, i);
        wanted |= q != mine && gsi_hier_gets(b->args, q);
    }
    if (!wanted)
        return;
    gsi_add_step(b, GSI_STEP_COPY, 0, range.bytes);
    gsi_add_src(b, src);
    gsi_hier_add_recvs(b, range, mine);
}

/* ---- Inside a host ----------------------------------------------------------------- */

enum { GIVES, GETS };

/* Calls for every other local rank that gives, or gets, where memory is not shared. */
static void each_local(gsi_builder *b, int which, void (*act)(gsi_builder *b, int peer, uint64_t event), uint64_t event)
{
    int h = gsi_hier_host(b);

    for (int i = 0; i < gsi_hier_ranks(b, h) && !gsi_hier_shared(b, h); i++) {
        int q = gsi_hier_local(b, i);
        if (q != b->rank && (which == GIVES ? gsi_hier_gives(b->args, q) : gsi_hier_gets(b->args, q)))
            act(b, q, event);
    }
}

void gsi_hier_wait_in(gsi_builder *b, int k)
{
    each_local(b, GIVES, gsi_add_wait, GSI_EVENT(HIER_IN, k));
}

/* Is the buffer of item k used again? */
static int again(const gsi_builder *b, int k)
{
    const gsi_hier *l = b->shape;

    return k + l->depth < l->items;
}

void gsi_hier_taken(gsi_builder *b, int k)
{
    if (again(b, k))
        each_local(b, GIVES, gsi_add_signal, GSI_EVENT(HIER_TAKEN, k));
}

void gsi_hier_out(gsi_builder *b, int k)
{
    each_local(b, GETS, gsi_add_signal, GSI_EVENT(HIER_OUT, k));
}

void gsi_hier_wait_free(gsi_builder *b, int k)
{
    if (k >= 0)
        each_local(b, GETS, gsi_add_wait, GSI_EVENT(HIER_FREE, k));
}

/* The results of item k from the area of the leader with that index. */
static void copy_area(gsi_builder *b, int leader, int k)
{
    const gsi_plan_args *args = b->args;
    int first = 0, end = args->coll == GRADSYNC_ALL_GATHER ? b->n : 1;

    if (args->coll == GRADSYNC_REDUCE_SCATTER) {
        first = b->rank;
        end = first + 1;
    }
    for (int block = first; block < end; block++) {
        gsi_hier_range r = gsi_hier_item(b, leader, k, block);
        int from = args->coll == GRADSYNC_ALL_GATHER  ? block
                   : args->coll == GRADSYNC_BROADCAST ? args->root
                                                      : GSI_PARTIAL;
        gsi_add_copy(b, gsi_hier_area(b, gsi_hier_local(b, leader), k, block, r, from),
                     gsi_at(GSI_RECV, b->rank, r.recv), r.bytes);
    }
}

void gsi_hier_keep(gsi_builder *b, int k)
{
    if (!gsi_hier_shared(b, gsi_hier_host(b)) && gsi_hier_gets(b->args, b->rank))
        copy_area(b, gsi_hier_index(b), k);
}

/* My contribution to item k of all leaders but me. */
static void copy_in(gsi_builder *b, int k)
{
    const gsi_hier *l = b->shape;
    int scatter = b->args->coll == GRADSYNC_REDUCE_SCATTER;

    for (int i = 0; i < l->leaders; i++) {
        int leader = gsi_hier_local(b, i);
        if (leader == b->rank)
            continue;
        if (l->chain && k >= l->depth)
            gsi_add_wait(b, leader, GSI_EVENT(HIER_TAKEN, k - l->depth));
        for (int block = 0; block < (scatter ? b->n : 1); block++) {
            gsi_hier_range r = gsi_hier_item(b, i, k, block);
            gsi_add_copy(b, gsi_raw(GSI_SEND, b->rank, r.send, b->rank), contribution(b, b->rank, i, k, block, r),
                         r.bytes);
        }
        gsi_add_signal(b, leader, GSI_EVENT(HIER_IN, k));
    }
}

/* The results of item k of all leaders but me. */
static void copy_out(gsi_builder *b, int k)
{
    const gsi_hier *l = b->shape;

    for (int i = 0; i < l->leaders; i++) {
        int leader = gsi_hier_local(b, i);
        if (leader == b->rank)
            continue;
        gsi_add_wait(b, leader, GSI_EVENT(HIER_OUT, k));
        copy_area(b, i, k);
        if (l->chain && k + l->deep < l->items)
            gsi_add_signal(b, leader, GSI_EVENT(HIER_FREE, k));
    }
}

/* Not shared, in an exchange: the results of item k - depth are copied before item k is given. */
static void exchange(gsi_builder *b)
{
    const gsi_hier *l = b->shape;
    int leads = gsi_hier_index(b) < l->leaders, apart = !gsi_hier_shared(b, gsi_hier_host(b));

    for (int t = 0; t < l->items + l->depth; t++) {
        if (leads && t >= l->depth)
            gsi_hier_fetch(b, t - l->depth);
        if (apart && t >= l->depth)
            copy_out(b, t - l->depth);
        if (apart && t < l->items)
            copy_in(b, t);
        if (leads)
            gsi_hier_exchange(b, t);
    }
}

/* In a ring, not shared: the next group of items is given before the results of the last one are copied. */
static void ring(gsi_builder *b)
{
    const gsi_hier *l = b->shape;
    int leads = gsi_hier_index(b) < l->leaders, apart = !gsi_hier_shared(b, gsi_hier_host(b));
    int width = gsi_hier_width(l), groups = (l->items - 1) / width + 1;

    for (int t = 0; t <= groups; t++) {
        for (int k = t * width; k < (t + 1) * width && k < l->items && apart; k++)
            copy_in(b, k);
        for (int k = (t - 1) * width; k < t * width && k < l->items && t && apart; k++)
            copy_out(b, k);
        if (leads && t < groups)
            gsi_hier_ring(b, t);
    }
}

static void chain(gsi_builder *b)
{
    const gsi_hier *l = b->shape;
    int leads = gsi_hier_index(b) < l->leaders, apart = !gsi_hier_shared(b, gsi_hier_host(b));
    int lag = gsi_hier_lag(b, gsi_hier_host(b));

    for (int t = 0; t < l->items + lag; t++) {
        if (apart && t < l->items && gsi_hier_gives(b->args, b->rank))
            copy_in(b, t);
        if (leads)
            gsi_hier_chain(b, t);
        if (apart && t >= lag && gsi_hier_gets(b->args, b->rank))
            copy_out(b, t - lag);
    }
}

/* Is SEND or RECV the source of a PUT of mine? STAGE may be read until everyone has entered the next call. */
static int sends_user_memory(const gsi_builder *b)
{
    const gsi_hier *l = b->shape;
    int several = gsi_hier_ranks(b, gsi_hier_host(b)) > 1;

    if (b->args->coll == GRADSYNC_REDUCE_SCATTER)
        return !several;
    if (b->args->coll == GRADSYNC_REDUCE)
        return !several || gsi_hier_gets(b->args, b->rank);
    return !l->whole;
}

static void program(gsi_builder *b)
{
    const gsi_hier *l = b->shape;
    int h = gsi_hier_host(b), leads = gsi_hier_index(b) < l->leaders, apart = !gsi_hier_shared(b, h);

    if (l->chain)
        chain(b);
    else if (l->ring && !l->whole)
        ring(b);
    else
        exchange(b);
    /* Whoever shares memory returns when nobody uses it any more. */
    for (int i = 0; i < gsi_hier_ranks(b, h) && leads && !apart; i++)
        if (gsi_hier_local(b, i) != b->rank)
            gsi_add_signal(b, gsi_hier_local(b, i), GSI_EVENT(HIER_DONE, 0));
    for (int i = 0; i < l->leaders && !apart; i++)
        if (gsi_hier_local(b, i) != b->rank)
            gsi_add_wait(b, gsi_hier_local(b, i), GSI_EVENT(HIER_DONE, 0));
    if (leads && sends_user_memory(b))
        gsi_add_flush(b, GSI_ALL);
}

int gsi_build_hier(gsi_builder *b)
{
    const gsi_plan_args *args = b->args;
    gsi_plan *plan = b->plan;
    gsi_hier l = {0};

    plan->ordered = 1;
    plan->gather = 1;
    b->gathered = 1;
    /* The exchange of headers is a barrier already. */
    if (args->coll == GRADSYNC_BARRIER || !args->count)
        return 0;
    if (!lay_out(args, args->count, &l))
        return gsi_no_room(b);
    uint64_t items = items_of(args, &l);
    if (items > INT32_MAX / 4)
        return gsi_too_long(b);
    l.items = (int)items;
    if (l.ring && !l.whole)
        plan->ordered = 0;
    else if (l.reduces && args->hosts->most > 1)
        plan->ordered = l.chain && (args->flags & GRADSYNC_ORDERED);
    else if (l.reduces)
        plan->ordered = !l.chain || (args->flags & GRADSYNC_ORDERED);
    plan->loadstore = args->hosts->most > 1;
    plan->user_memory = (args->share && plan->loadstore) || args->reach;
    plan->stage_bytes = l.end;
    return gsi_run_program(b, program, &l);
}
