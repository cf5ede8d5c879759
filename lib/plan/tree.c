/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Double binary tree (Sanders, Speck & Traeff 2009): two binary trees over the ranks,
 * so that a rank that is inner in one is a leaf in the other, each for half of the
 * message, as two streams. Both halves of every link's bandwidth work: up (reduce) and
 * down (broadcast). Pipelined in pieces.
 *
 * The trees are in-order numbered: nodes 1 .. m, the level of a node is the number of
 * its trailing zero bits, so odd nodes are the leaves. The second tree numbers the ranks
 * the other way round (m even: leaves become inner nodes) or one further (m odd). For
 * broadcast and reduce the root stands above both trees, which are over the others.
 */
#include "plan/builder.h"

enum { ENTER, UP, UP_CREDIT, DOWN, DOWN_CREDIT }; /* events */

#define STEPS 28 /* of one piece in each of the two streams, at most */

typedef struct tree {
    uint64_t piece, grain; /* elements */
    int depth;
    int up, down; /* which ways the message goes */
    int pieces[2];
} tree;

/* A rank's place in the tree of one stream. */
typedef struct node {
    int parent; /* rank; -1: this is the root */
    int children[2], nchildren;
    int level; /* hops to the root */
} node;

static int rooted(const gsi_plan_args *args)
{
    return args->coll == GRADSYNC_BROADCAST || args->coll == GRADSYNC_REDUCE;
}

/* Of the in-order tree of nodes 1 .. m; 0: none. */
static int parent_of(int at, int m)
{
    int bit = at & -at, up = (at & ~bit) | bit << 1;

    return up <= m ? up : at & ~bit;
}

static int right_child(int at, int m)
{
    for (int bit = (at & -at) >> 1; bit; bit >>= 1)
        if (at + bit <= m)
            return at + bit;
    return 0;
}

static int left_child(int at)
{
    return (at & -at) > 1 ? at - ((at & -at) >> 1) : 0;
}

/* From a rank to its node in the tree of `stream`, and back. */
static int node_of(const gsi_builder *b, int stream, int rank)
{
    int m = rooted(b->args) ? b->n - 1 : b->n;
    int at = rooted(b->args) ? (rank - b->args->root + b->n) % b->n : rank + 1;

    if (!stream)
        return at;
    return m % 2 == 0 ? m + 1 - at : at % m + 1;
}

static int rank_of(const gsi_builder *b, int stream, int at)
{
    int m = rooted(b->args) ? b->n - 1 : b->n;

    if (stream)
        at = m % 2 == 0 ? m + 1 - at : (at + m - 2) % m + 1;
    return rooted(b->args) ? (at + b->args->root) % b->n : at - 1;
}

static void place(const gsi_builder *b, int stream, int rank, node *out)
{
    int m = rooted(b->args) ? b->n - 1 : b->n, top = 1;

    *out = (node){.parent = -1};
    while (top * 2 <= m)
        top *= 2;
    if (rooted(b->args) && rank == b->args->root) {
        out->children[out->nchildren++] = rank_of(b, stream, top);
        return;
    }
    int at = node_of(b, stream, rank), left = left_child(at), right = right_child(at, m);
    if (left)
        out->children[out->nchildren++] = rank_of(b, stream, left);
    if (right)
        out->children[out->nchildren++] = rank_of(b, stream, right);
    if (at != top)
        out->parent = rank_of(b, stream, parent_of(at, m));
    else if (rooted(b->args))
        out->parent = b->args->root;
    for (; at != top; at = parent_of(at, m))
        out->level++;
    out->level += rooted(b->args);
}

/* STAGE of one stream: 2 x depth buffers for what comes up, depth for what goes up, depth for
 * what comes down. */
static int buffers_of(const gsi_plan_args *args, int depth)
{
    int up = args->coll != GRADSYNC_BROADCAST, down = args->coll != GRADSYNC_REDUCE;

    return depth * ((up ? 3 : 0) + (down && !args->reach ? 1 : 0));
}

static uint64_t lay_out(const gsi_plan_args *args, uint64_t count, tree *t)
{
    int hops = 0;

    while ((2 << hops) <= args->n)
        hops++;
    uint64_t want = gsi_want(args, (count - count / 2) * args->esize, 16, hops, GSI_PLAN_STEPS / STEPS);

    t->up = args->coll != GRADSYNC_BROADCAST;
    t->down = args->coll != GRADSYNC_REDUCE;
    t->depth = gsi_depth(args);
    t->piece = buffers_of(args, 1) ? 0 : gsi_elements(want, args->esize);
    for (; !t->piece && t->depth >= 1; t->depth -= !t->piece)
        t->piece = gsi_piece(want, args->stage_bytes / 2, (uint64_t)buffers_of(args, t->depth), args->esize);
    t->grain = gsi_grain(t->piece, args->esize);
    return t->piece;
}

uint64_t gsi_segment_tree(const gsi_plan_args *args)
{
    tree t;

    return lay_out(args, 0, &t) ? gsi_mul(2 * t.piece, GSI_PLAN_STEPS / STEPS) : 1;
}

const char *gsi_unfit_tree(const gsi_plan_args *args)
{
    tree t;

    if (args->coll == GRADSYNC_REDUCE_SCATTER || args->coll == GRADSYNC_ALL_GATHER)
        return "a tree has no use where every rank gives or gets something else";
    if ((args->flags & GRADSYNC_ORDERED) && args->n > 2 &&
        (args->coll == GRADSYNC_ALL_REDUCE || args->coll == GRADSYNC_REDUCE))
        return "a tree does not keep the canonical order";
    if (args->coll == GRADSYNC_BARRIER || !args->count)
        return NULL;
    return lay_out(args, args->count, &t) ? NULL : "there is too little staging memory";
}

static gsi_place buffer(const gsi_builder *b, int rank, int first, int k, int from)
{
    const tree *t = b->shape;
    int base = b->stream * buffers_of(b->args, t->depth);

    return gsi_raw(GSI_STAGE, rank, (uint64_t)(base + first * t->depth + k % t->depth) * t->piece * b->args->esize,
                   from);
}

/* Which buffers: what child c sends up lies in buffer c, what goes up in 2, what comes down after those. */
static int down_buffer(const gsi_builder *b)
{
    const tree *t = b->shape;

    return t->up ? 3 : 0;
}

/* The stream's half of the message; the first stream has the larger one. */
static void share(const gsi_plan_args *args, const tree *t, int stream, uint64_t *off, uint64_t *len)
{
    gsi_plan_slice(args->coll == GRADSYNC_BARRIER ? 0 : args->count, t->grain, 2, 1 - stream, off, len);
}

static uint64_t find(const gsi_builder *b, int k, uint64_t *at)
{
    const tree *t = b->shape;
    uint64_t from, len, off, bytes;

    share(b->args, t, b->stream, &from, &len);
    gsi_plan_slice(len, t->grain, t->pieces[b->stream], k, &off, &bytes);
    *at = (from + off) * b->args->esize;
    return bytes * b->args->esize;
}

/* Which child of its parent I am. */
static int child_index(const gsi_builder *b, int parent)
{
    node up;

    place(b, b->stream, parent, &up);
    return up.children[0] != b->rank;
}

static void go_up(gsi_builder *b, const node *me, int index, int k)
{
    const tree *t = b->shape;
    int pieces = t->pieces[b->stream];
    uint64_t at, bytes = find(b, k, &at);
    gsi_place mine = gsi_raw(GSI_SEND, b->rank, at, b->rank);

    for (int c = 0; c < me->nchildren; c++)
        gsi_add_wait(b, me->children[c], GSI_EVENT(UP, k));
    if (me->parent >= 0 && k >= t->depth)
        gsi_add_wait(b, me->parent, GSI_EVENT(UP_CREDIT, k - t->depth));
    if (me->nchildren) {
        gsi_place out = me->parent < 0 ? gsi_at(GSI_RECV, b->rank, at) : buffer(b, b->rank, 2, k, GSI_PARTIAL);
        int mine_added = 0;
        gsi_add_step(b, GSI_STEP_REDUCE, me->parent < 0 ? GSI_STEP_FINAL : 0, bytes);
        for (int c = 0; c < me->nchildren; c++) {
            node child;
            place(b, b->stream, me->children[c], &child);
            /* By rank: for two ranks this is the canonical order. */
            if (!mine_added && me->children[c] > b->rank) {
                gsi_add_src(b, mine);
                mine_added = 1;
            }
            gsi_add_src(b, buffer(b, b->rank, c, k, child.nchildren ? GSI_PARTIAL : me->children[c]));
        }
        if (!mine_added)
            gsi_add_src(b, mine);
        gsi_add_dst(b, out);
        mine = out;
    }
    for (int c = 0; c < me->nchildren && k + t->depth < pieces; c++)
        gsi_add_signal(b, me->children[c], GSI_EVENT(UP_CREDIT, k));
    if (me->parent >= 0)
        gsi_add_put(b, me->parent, GSI_EVENT(UP, k), mine, buffer(b, me->parent, index, k, GSI_PARTIAL), bytes);
}

static void go_down(gsi_builder *b, const node *me, int k)
{
    const tree *t = b->shape;
    int pieces = t->pieces[b->stream], reach = (int)b->args->reach;
    uint64_t at, bytes = find(b, k, &at);
    gsi_place result = gsi_at(GSI_RECV, b->rank, at), src = result;

    if (me->parent < 0 && !t->up)
        src = gsi_raw(GSI_SEND, b->rank, at, b->rank);
    if (me->parent >= 0) {
        gsi_add_wait(b, me->parent, GSI_EVENT(DOWN, k));
        if (!reach) {
            gsi_add_copy(b, buffer(b, b->rank, down_buffer(b), k, GSI_PARTIAL), result, bytes);
            if (k + t->depth < pieces)
                gsi_add_signal(b, me->parent, GSI_EVENT(DOWN_CREDIT, k));
        }
    }
    for (int c = 0; c < me->nchildren; c++) {
        int child = me->children[c];
        if (!reach && k >= t->depth)
            gsi_add_wait(b, child, GSI_EVENT(DOWN_CREDIT, k - t->depth));
        gsi_add_put(b, child, GSI_EVENT(DOWN, k), src,
                    reach ? gsi_at(GSI_RECV, child, at) : buffer(b, child, down_buffer(b), k, GSI_PARTIAL), bytes);
    }
    if (me->parent < 0 && !t->up)
        gsi_add_copy(b, src, result, bytes);
}

static void half(gsi_builder *b)
{
    const tree *t = b->shape;
    int pieces = t->pieces[b->stream];
    node me;

    place(b, b->stream, b->rank, &me);
    int index = me.parent >= 0 && t->up ? child_index(b, me.parent) : 0;
    if (!b->gathered) {
        /* To those who will write to my STAGE; then theirs. */
        for (int c = 0; c < me.nchildren && t->up; c++)
            gsi_add_signal(b, me.children[c], GSI_EVENT(ENTER, 0));
        if (me.parent >= 0 && t->down)
            gsi_add_signal(b, me.parent, GSI_EVENT(ENTER, 0));
        for (int c = 0; c < me.nchildren && t->down; c++)
            gsi_add_wait(b, me.children[c], GSI_EVENT(ENTER, 0));
        if (me.parent >= 0 && t->up)
            gsi_add_wait(b, me.parent, GSI_EVENT(ENTER, 0));
    }
    /* A result is back 2 x level hops after its contribution left: go on with those meanwhile. */
    int lag = t->up && t->down ? 2 * me.level : 0;
    if (lag > pieces)
        lag = pieces;
    for (int k = 0; k < pieces + lag; k++) {
        if (t->up && k < pieces)
            go_up(b, &me, index, k);
        if (t->down && k >= lag)
            go_down(b, &me, k - lag);
    }
    gsi_add_flush(b, GSI_ALL);
}

static void program(gsi_builder *b)
{
    const tree *t = b->shape;

    half(b);
    if (t->pieces[1]) {
        gsi_add_stream(b);
        half(b);
    }
}

int gsi_build_tree(gsi_builder *b)
{
    const gsi_plan_args *args = b->args;
    gsi_plan *plan = b->plan;
    tree t = {0};

    if (args->coll == GRADSYNC_BARRIER || !args->count) {
        /* Up and down without bytes. */
        t = (tree){.piece = 1, .grain = 1, .depth = 1, .up = 1, .down = 1, .pieces = {1, 0}};
        plan->ordered = 1;
        gsi_settle_gather(b);
        if (b->gathered)
            return b->error; /* the exchange of headers is a barrier already */
        b->gathered = 1;
        return gsi_run_program(b, program, &t);
    }
    if (!lay_out(args, args->count, &t))
        return gsi_no_room(b);
    for (int s = 0; s < 2; s++) {
        uint64_t off, len;
        share(args, &t, s, &off, &len);
        uint64_t pieces = len ? (len - 1) / t.piece + 1 : 0;
        if (pieces > INT32_MAX / 4)
            return gsi_too_long(b);
        t.pieces[s] = (int)pieces;
    }
    plan->ordered = args->coll == GRADSYNC_BROADCAST || args->n == 2;
    plan->user_memory = t.down && args->reach;
    gsi_settle_gather(b);
    plan->stage_bytes = 2 * (uint64_t)buffers_of(args, t.depth) * t.piece * args->esize;
    return gsi_run_program(b, program, &t);
}
