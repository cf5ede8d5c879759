/* SPDX-License-Identifier: Apache-2.0 */
#include "reference.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_NODES = 6144,
    WORDS = MAX_NODES / 64,
    MAX_EDGES = 65536,
    MAX_CELLS = 4096,
    MAX_BUFFERS = 65536,
    MAX_RANKS = 12
};

/* A step is three nodes: itself, and the read and the write of a PUT. */
enum { ISSUE = 0, READ = 1, WRITE = 2 };
enum { UNDEF, RAW, PARTIAL, FINAL, ACC };

typedef struct value {
    uint32_t set, elem;
    uint8_t kind, part;
} value;

typedef struct touch {
    int node, write, next;
} touch;

static gsi_plan *const *plans;
static const gsi_plan_args *args;
static int n, alias, nnodes, nedges, ncredits, ntouches, ncells;
static const char *reason;
static int first[MAX_RANKS], enter[MAX_RANKS], leave[MAX_RANKS];
static struct {
    int from, to;
} edges[MAX_EDGES];
static int indegree[MAX_NODES], order[MAX_NODES], heads[MAX_NODES], links[MAX_EDGES];
static uint64_t before[MAX_NODES][WORDS];
static int base[MAX_RANKS][3], length[MAX_RANKS][3];
static value cells[MAX_CELLS], buffers[MAX_BUFFERS];
static int buffer_of[MAX_NODES], nbuffer;
static int touched[MAX_CELLS];
static touch *touches;
static int room_touches;

static int wrong(const char *text)
{
    reason = text;
    return 0;
}

static int node(int r, uint32_t step, int part)
{
    return first[r] + 3 * (int)step + part;
}

static void edge(int from, int to)
{
    if (nedges < MAX_EDGES) {
        edges[nedges].from = from;
        edges[nedges].to = to;
    }
    nedges++;
}

static uint32_t wide(void)
{
    return args->coll == GRADSYNC_ALL_REDUCE || args->coll == GRADSYNC_REDUCE_SCATTER || args->coll == GRADSYNC_REDUCE
               ? args->acc_esize / args->esize
               : 1;
}

static int cell_of(const gsi_place *p)
{
    return base[p->rank][p->space] + (int)(p->off / args->esize);
}

static int is_move(const gsi_step *s)
{
    return s->kind == GSI_STEP_COPY || s->kind == GSI_STEP_REDUCE || s->kind == GSI_STEP_PUT;
}

static uint64_t width(const gsi_step *s, int i)
{
    if (s->kind != GSI_STEP_REDUCE)
        return 1;
    if (i < s->nsrc)
        return i == 0 && s->flags & GSI_STEP_ACC_IN ? wide() : 1;
    return s->flags & GSI_STEP_ACC_OUT ? wide() : 1;
}

static int signals(const gsi_step *s, int me, int peer)
{
    if (s->kind == GSI_STEP_PUT)
        return s->flags & GSI_STEP_NOTIFY && s->peer == peer;
    return s->kind == GSI_STEP_SIGNAL && (s->peer == peer || (s->peer == GSI_ALL && me != peer));
}

static int awaits(const gsi_step *s, int me, int peer)
{
    return s->kind == GSI_STEP_WAIT && (s->peer == peer || (s->peer == GSI_ALL && me != peer));
}

/* ---- Shapes ------------------------------------------------------------------ */

static void lay_out(void)
{
    int count = (int)args->count, at = 0, span = count ? (n - 1) * (int)args->stride + count : 0;

    for (int r = 0; r < n; r++) {
        int c = args->coll, root = r == args->root, *len = length[r];
        int same = alias == GSI_VERIFY_IN_PLACE || (alias == GSI_VERIFY_MIXED && r % 2 == 0);
        if ((c == GRADSYNC_BROADCAST || c == GRADSYNC_REDUCE) && !root)
            same = 0;
        len[GSI_SEND] = c == GRADSYNC_REDUCE_SCATTER ? span : c == GRADSYNC_BROADCAST && !root ? 0 : count;
        len[GSI_RECV] = c == GRADSYNC_ALL_GATHER ? span : c == GRADSYNC_REDUCE && !root ? 0 : count;
        if (c == GRADSYNC_BARRIER)
            len[GSI_SEND] = len[GSI_RECV] = 0;
        len[GSI_STAGE] = (int)(plans[r]->stage_bytes / args->esize);
        base[r][GSI_SEND] = base[r][GSI_RECV] = at;
        if (same && c == GRADSYNC_REDUCE_SCATTER)
            base[r][GSI_RECV] += r * (int)args->stride;
        if (same && c == GRADSYNC_ALL_GATHER)
            base[r][GSI_SEND] += r * (int)args->stride;
        if (!same)
            base[r][GSI_RECV] += len[GSI_SEND];
        at += same ? (len[0] > len[1] ? len[0] : len[1]) : len[0] + len[1];
        base[r][GSI_STAGE] = at;
        at += len[GSI_STAGE];
    }
    ncells = at;
}

static int place_fits(int r, const gsi_step *s, const gsi_place *p, int i)
{
    const gsi_plan *plan = plans[r];
    uint64_t cells_of = s->bytes / args->esize * width(s, i), at = p->off / args->esize;
    int user = p->space != GSI_STAGE, away = p->rank != r;

    if (p->rank < 0 || p->rank >= n || p->space > GSI_STAGE)
        return wrong("no such memory");
    if (p->off % args->esize || s->bytes % args->esize)
        return wrong("split element");
    if (at > (uint64_t)length[p->rank][p->space] || cells_of > (uint64_t)length[p->rank][p->space] - at)
        return wrong("bounds");
    if (args->stride != args->count && cells_of && at % args->stride + cells_of > args->count &&
        ((args->coll == GRADSYNC_REDUCE_SCATTER && p->space == GSI_SEND) ||
         (args->coll == GRADSYNC_ALL_GATHER && p->space == GSI_RECV)))
        return wrong("between blocks");
    if (i >= s->nsrc && p->space == GSI_SEND)
        return wrong("writes SEND");
    if (away && (s->kind == GSI_STEP_PUT ? i == 0 : !plan->loadstore))
        return wrong("not loadstore");
    if (away && args->hosts && s->kind != GSI_STEP_PUT) {
        int near = args->hosts->of[r] == args->hosts->of[p->rank];
        if (!near && !(plan->slot && !user && i < s->nsrc && p->off + s->bytes <= plan->eager))
            return wrong("another host");
        if (near && user && !args->share)
            return wrong("not shared");
    }
    if (away && user && !plan->user_memory)
        return wrong("not user_memory");
    if (away && user && s->kind == GSI_STEP_PUT && !args->reach && cells_of)
        return wrong("out of reach");
    if (away && user && args->coll == GRADSYNC_ALL_REDUCE && cells_of &&
        (p->off < args->head || (args->count - at - cells_of) * args->esize < args->tail))
        return wrong("head or tail");
    return 1;
}

static int step_fits(int r, const gsi_step *s)
{
    const gsi_plan *plan = plans[r];
    int allowed = s->kind == GSI_STEP_PUT      ? GSI_STEP_NOTIFY
                  : s->kind == GSI_STEP_REDUCE ? GSI_STEP_FINAL | GSI_STEP_ACC_IN | GSI_STEP_ACC_OUT
                                               : 0;

    if (s->kind > GSI_STEP_FLUSH || s->flags & ~allowed)
        return wrong("kind or flags");
    if (s->kind == GSI_STEP_REDUCE && wide() == 1 && s->flags & (GSI_STEP_ACC_IN | GSI_STEP_ACC_OUT))
        return wrong("unrounded, but of full width");
    if (s->flags & GSI_STEP_FINAL && s->flags & GSI_STEP_ACC_OUT)
        return wrong("final but unrounded");
    if (s->kind >= GSI_STEP_PUT && (s->peer < GSI_ALL || s->peer >= n || s->peer == r))
        return wrong("peer");
    if (s->kind == GSI_STEP_PUT && s->peer == GSI_ALL)
        return wrong("peer");
    if ((s->kind == GSI_STEP_SIGNAL || (s->kind == GSI_STEP_PUT && s->flags & GSI_STEP_NOTIFY)) &&
        (s->peer == GSI_ALL) != (plan->signal_all != 0))
        return wrong("signal_all");
    if (!is_move(s))
        return 1;
    if (!s->nsrc || !s->ndst || (s->kind != GSI_STEP_REDUCE && s->nsrc > 1) || (s->kind == GSI_STEP_PUT && s->ndst > 1))
        return wrong("sources and destinations");
    if ((uint64_t)s->place + s->nsrc + s->ndst > plan->nplaces || s->bytes > 1 << 20)
        return wrong("places");
    for (int i = 0; i < s->nsrc + s->ndst; i++)
        if (!place_fits(r, s, &plan->places[s->place + (uint32_t)i], i))
            return 0;
    if (s->kind == GSI_STEP_PUT)
        return plan->places[s->place + 1].rank == s->peer ? 1 : wrong("PUT elsewhere");
    for (int i = s->nsrc; i < s->nsrc + s->ndst; i++)
        for (int k = 0; k < i; k++) {
            const gsi_place *p = &plan->places[s->place];
            int a = cell_of(&p[i]), na = (int)(s->bytes / args->esize * width(s, i));
            int b = cell_of(&p[k]), nb = (int)(s->bytes / args->esize * width(s, k));
            if (a < b + nb && b < a + na && !(k < s->nsrc && a == b && na == nb))
                return wrong("overlap");
        }
    return 1;
}

/* Waits go up, every signal is awaited, and every PUT is told of. */
static int signals_fit(int stream, int p, int q)
{
    const gsi_stream *from = &plans[p]->streams[stream], *to = &plans[q]->streams[stream];
    uint32_t raised = 0, awaited = 0;
    int untold = 0;

    for (uint32_t i = 0; i < from->count; i++) {
        const gsi_step *s = &plans[p]->steps[from->first + i];
        if (s->kind == GSI_STEP_PUT && s->peer == q)
            untold = 1;
        if (signals(s, p, q)) {
            raised++;
            untold = 0;
        }
    }
    for (uint32_t i = 0; i < to->count; i++) {
        const gsi_step *s = &plans[q]->steps[to->first + i];
        if (!awaits(s, q, p))
            continue;
        if (s->value < awaited || !s->value)
            return wrong("waits go back");
        awaited = s->value;
    }
    if (untold)
        return wrong("untold PUT");
    return raised == awaited && plans[q]->awaits[stream * n + p] == awaited ? 1 : wrong("signals do not match");
}

/* ---- What happens before what --------------------------------------------------- */

static void add_wait(int q, uint32_t at, int stream, int p)
{
    uint32_t seen = 0, last = plans[q]->steps[at].value;
    const gsi_stream *range = &plans[p]->streams[stream];

    for (uint32_t i = range->first; i < range->first + range->count && seen < last; i++) {
        const gsi_step *s = &plans[p]->steps[i];
        if (s->kind == GSI_STEP_PUT && s->peer == q)
            edge(node(p, i, WRITE), node(q, at, ISSUE));
        if (signals(s, p, q) && ++seen == last)
            edge(node(p, i, ISSUE), node(q, at, ISSUE));
    }
}

static void add_stream(int r, int stream)
{
    const gsi_stream *range = &plans[r]->streams[stream];
    int last = enter[r];

    for (uint32_t i = range->first; i < range->first + range->count; i++) {
        const gsi_step *s = &plans[r]->steps[i];
        edge(last, node(r, i, ISSUE));
        last = node(r, i, ISSUE);
        if (s->kind == GSI_STEP_PUT) {
            edge(last, node(r, i, READ));
            edge(node(r, i, READ), node(r, i, WRITE));
        }
        for (uint32_t k = range->first; k < i && s->kind == GSI_STEP_FLUSH; k++) {
            const gsi_step *put = &plans[r]->steps[k];
            if (put->kind == GSI_STEP_PUT && (s->peer == GSI_ALL || s->peer == put->peer))
                edge(node(r, k, READ), last);
        }
        for (int p = 0; p < n; p++)
            if (p != r && awaits(s, r, p))
                add_wait(r, i, stream, p);
        if (i == range->first && plans[r]->gather)
            for (int p = 0; p < n; p++)
                edge(enter[p], last);
    }
    edge(last, leave[r]);
}

/* The k-th signal needs the (k - credits)-th to be awaited. */
static int add_credits(int stream, int p, int q)
{
    const gsi_stream *from = &plans[p]->streams[stream], *to = &plans[q]->streams[stream];
    uint32_t sent = 0;

    for (uint32_t i = from->first; i < from->first + from->count; i++) {
        uint32_t k;
        if (!signals(&plans[p]->steps[i], p, q) || ++sent <= args->credits)
            continue;
        for (k = to->first; k < to->first + to->count; k++)
            if (awaits(&plans[q]->steps[k], q, p) && plans[q]->steps[k].value >= sent - args->credits)
                break;
        if (k == to->first + to->count)
            return wrong("signal without credit");
        edge(node(q, k, ISSUE), node(p, i, ISSUE));
    }
    return 1;
}

/* Fills `order` from the first `count` edges; 0 if they go round in a circle. */
static int sort_nodes(int count)
{
    int done = 0, ready = 0;

    memset(indegree, 0, sizeof indegree);
    for (int i = 0; i < nnodes; i++)
        heads[i] = -1;
    for (int i = 0; i < count; i++) {
        indegree[edges[i].to]++;
        links[i] = heads[edges[i].from];
        heads[edges[i].from] = i;
    }
    for (int i = 0; i < nnodes; i++)
        if (!indegree[i])
            order[ready++] = i;
    while (done < ready) {
        for (int e = heads[order[done++]]; e >= 0; e = links[e])
            if (--indegree[edges[e].to] == 0)
                order[ready++] = edges[e].to;
    }
    return done == nnodes;
}

static void close_order(void)
{
    for (int i = 0; i < nnodes; i++)
        memset(before[order[i]], 0, sizeof before[0]);
    for (int i = 0; i < nnodes; i++)
        for (int e = heads[order[i]]; e >= 0; e = links[e]) {
            int from = edges[e].from, to = edges[e].to;
            for (int w = 0; w <= nnodes / 64; w++)
                before[to][w] |= before[from][w];
            before[to][from / 64] |= (uint64_t)1 << (from % 64);
        }
}

static int comes_before(int a, int b)
{
    return a == b || (before[b][a / 64] >> (a % 64) & 1);
}

/* ---- Who touches what ------------------------------------------------------------ */

static void add_touch(int cell, int at, int write)
{
    if (ntouches == room_touches) {
        room_touches = room_touches ? 2 * room_touches : 4096;
        touches = realloc(touches, (size_t)room_touches * sizeof *touches);
        if (!touches)
            abort();
    }
    touches[ntouches] = (touch){at, write, touched[cell]};
    touched[cell] = ntouches++;
}

static void add_touches(int r, uint32_t at)
{
    const gsi_step *s = &plans[r]->steps[at];
    const gsi_place *p = &plans[r]->places[s->place];

    for (int i = 0; i < s->nsrc + s->ndst; i++) {
        int write = i >= s->nsrc, part = s->kind != GSI_STEP_PUT ? ISSUE : write ? WRITE : READ;
        if (write && s->kind == GSI_STEP_COPY && cell_of(&p[i]) == cell_of(&p[0]))
            continue;
        for (uint64_t e = 0; e < s->bytes / args->esize * width(s, i); e++)
            add_touch(cell_of(&p[i]) + (int)e, node(r, at, part), write);
    }
}

static int no_races(void)
{
    for (int c = 0; c < ncells; c++)
        for (int a = touched[c]; a >= 0; a = touches[a].next)
            for (int b = touches[a].next; b >= 0; b = touches[b].next)
                if ((touches[a].write || touches[b].write) && !comes_before(touches[a].node, touches[b].node) &&
                    !comes_before(touches[b].node, touches[a].node))
                    return wrong("race");
    return 1;
}

/* Owners use their memory before they enter and after they leave. */
static int owners_alone(void)
{
    for (int r = 0; r < n; r++)
        for (int space = 0; space < 3; space++)
            for (int c = base[r][space]; c < base[r][space] + length[r][space]; c++)
                for (int a = touched[c]; a >= 0; a = touches[a].next) {
                    if (!comes_before(enter[r], touches[a].node))
                        return wrong("before entry");
                    if ((space != GSI_STAGE || !plans[0]->gather) && !comes_before(touches[a].node, leave[r]))
                        return wrong("after return");
                }
    return 1;
}

/* ---- Values --------------------------------------------------------------------- */

static int in_order(const value *v, uint32_t set, int j)
{
    int k = __builtin_popcount(set);

    if (j == 0)
        return 1;
    return set == (1u << k) - 1 && v->set == 1u << k;
}

static int run_reduce(const gsi_step *s, const gsi_place *p)
{
    for (uint64_t e = 0; e < s->bytes / args->esize; e++) {
        value out = {0};
        for (int j = 0; j < s->nsrc; j++) {
            const value *v = &cells[cell_of(&p[j]) + (int)(e * width(s, j))];
            int acc = wide() > 1 && width(s, j) > 1;
            if (v->kind == UNDEF || v->kind == FINAL || v->part || (v->kind == ACC) != acc)
                return wrong("source");
            for (uint32_t t = 1; t < width(s, j) && acc; t++)
                if (v[t].kind != ACC || v[t].part != t || v[t].set != v->set || v[t].elem != v->elem)
                    return wrong("torn source");
            if (v->kind == RAW ? p[j].from < 0 || p[j].from >= n || v->set != 1u << p[j].from
                               : p[j].from != GSI_PARTIAL)
                return wrong("from");
            if (out.set & v->set)
                return wrong("twice");
            if (j && out.elem != v->elem)
                return wrong("elements mixed");
            if (plans[0]->ordered && (!in_order(v, out.set, j) || (wide() > 1 && v->kind == PARTIAL)))
                return wrong("order");
            out.set |= v->set;
            out.elem = v->elem;
        }
        out.kind = s->flags & GSI_STEP_FINAL ? FINAL : s->flags & GSI_STEP_ACC_OUT && wide() > 1 ? ACC : PARTIAL;
        if (out.kind == FINAL && out.set != (1u << n) - 1)
            return wrong("final too early");
        for (int d = s->nsrc; d < s->nsrc + s->ndst; d++)
            for (uint32_t t = 0; t < width(s, d); t++) {
                out.part = (uint8_t)t;
                cells[cell_of(&p[d]) + (int)(e * width(s, d) + t)] = out;
            }
    }
    return 1;
}

static int run_node(int r, uint32_t at, int part)
{
    const gsi_step *s = &plans[r]->steps[at];
    const gsi_place *p = &plans[r]->places[s->place];
    int count = (int)(s->bytes / args->esize);

    if (s->kind == GSI_STEP_REDUCE && part == ISSUE)
        return run_reduce(s, p);
    if ((s->kind == GSI_STEP_COPY && part == ISSUE) || (s->kind == GSI_STEP_PUT && part == READ)) {
        for (int e = 0; e < count; e++)
            if (cells[cell_of(p) + e].kind == UNDEF)
                return wrong("undefined");
    }
    for (int d = 1; s->kind == GSI_STEP_COPY && part == ISSUE && d <= s->ndst; d++)
        memmove(&cells[cell_of(&p[d])], &cells[cell_of(p)], (size_t)count * sizeof *cells);
    if (s->kind == GSI_STEP_PUT && part == READ) {
        buffer_of[node(r, at, WRITE)] = nbuffer;
        memcpy(&buffers[nbuffer], &cells[cell_of(p)], (size_t)count * sizeof *cells);
        nbuffer += count;
    }
    if (s->kind == GSI_STEP_PUT && part == WRITE)
        memcpy(&cells[cell_of(&p[1])], &buffers[buffer_of[node(r, at, WRITE)]], (size_t)count * sizeof *cells);
    return 1;
}

static void fill(void)
{
    memset(cells, 0, sizeof cells);
    for (int r = 0; r < n; r++)
        for (int e = 0; e < length[r][GSI_SEND]; e++) {
            value v = {1u << r, (uint32_t)e, RAW, 0};
            if (args->coll == GRADSYNC_REDUCE_SCATTER && (uint64_t)e % args->stride >= args->count)
                continue;
            cells[base[r][GSI_SEND] + e] = v;
            if ((uint64_t)e < plans[r]->eager / args->esize)
                cells[base[r][GSI_STAGE] + e] = v;
        }
}

static int results_right(void)
{
    for (int r = 0; r < n; r++)
        for (int e = 0; e < length[r][GSI_RECV]; e++) {
            value v = cells[base[r][GSI_RECV] + e];
            value want = {(1u << n) - 1, (uint32_t)e, FINAL, 0};
            if (args->coll == GRADSYNC_REDUCE_SCATTER)
                want.elem += (uint32_t)r * (uint32_t)args->stride;
            if (args->coll == GRADSYNC_BROADCAST)
                want = (value){1u << args->root, (uint32_t)e, RAW, 0};
            if (args->coll == GRADSYNC_ALL_GATHER) {
                uint32_t at = (uint32_t)e % (uint32_t)args->stride;
                if (at >= args->count)
                    continue;
                want = (value){1u << ((uint32_t)e / (uint32_t)args->stride), at, RAW, 0};
            }
            if (v.set != want.set || v.elem != want.elem || v.kind != want.kind || v.part)
                return wrong("result");
        }
    return 1;
}

/* ---- All of it ------------------------------------------------------------------ */

static int every_rank_met(void)
{
    for (int r = 0; r < n && args->coll == GRADSYNC_BARRIER; r++)
        for (int p = 0; p < n; p++)
            if (!comes_before(enter[p], leave[r]) && !plans[r]->gather)
                return wrong("barrier");
    return 1;
}

static int shapes_fit(void)
{
    for (int r = 0; r < n; r++)
        for (int s = 0; s < plans[r]->nstreams; s++)
            for (uint32_t i = 0; i < plans[r]->streams[s].count; i++) {
                const gsi_step *step = &plans[r]->steps[plans[r]->streams[s].first + i];
                if (!step_fits(r, step))
                    return 0;
                nbuffer += step->kind == GSI_STEP_PUT ? (int)(step->bytes / args->esize) : 0;
            }
    for (int s = 0; s < plans[0]->nstreams; s++)
        for (int p = 0; p < n; p++)
            for (int q = 0; q < n; q++)
                if (p != q && !signals_fit(s, p, q))
                    return 0;
    return 1;
}

int reference_verify(gsi_plan *const *of, const gsi_plan_args *with, int how, const char **why)
{
    int steps = 0, ok = 1;

    plans = of;
    args = with;
    n = with->n;
    alias = how;
    reason = "";
    nedges = ntouches = nbuffer = 0;
    *why = "too large";
    if (n > MAX_RANKS)
        return -1;
    for (int r = 0; r < n; r++) {
        first[r] = steps;
        steps += 3 * (int)of[r]->nsteps;
    }
    nnodes = steps + 2 * n;
    lay_out();
    if (nnodes > MAX_NODES || ncells > MAX_CELLS)
        return -1;
    for (int r = 0; r < n; r++) {
        enter[r] = steps + r;
        leave[r] = steps + n + r;
    }
    for (int c = 0; c < ncells; c++)
        touched[c] = -1;
    ok = shapes_fit();
    if (ok) {
        for (int r = 0; r < n; r++)
            for (int s = 0; s < of[r]->nstreams; s++)
                add_stream(r, s);
        ncredits = nedges;
        for (int s = 0; s < of[0]->nstreams && args->credits; s++)
            for (int p = 0; p < n; p++)
                for (int q = 0; q < n && ok; q++)
                    if (p != q)
                        ok = add_credits(s, p, q);
        if (nedges > MAX_EDGES || nbuffer > MAX_BUFFERS)
            return -1;
        nbuffer = 0;
    }
    if (ok && (!sort_nodes(nedges) || !sort_nodes(ncredits)))
        ok = wrong("deadlock");
    if (ok) {
        close_order();
        for (int r = 0; r < n; r++)
            for (int s = 0; s < of[r]->nstreams; s++)
                for (uint32_t i = of[r]->streams[s].first, k = 0; k < of[r]->streams[s].count; k++)
                    if (is_move(&of[r]->steps[i + k]))
                        add_touches(r, i + k);
        ok = no_races() && owners_alone() && every_rank_met();
    }
    if (ok) {
        fill();
        for (int i = 0; i < nnodes && ok; i++) {
            int r = n - 1, at = order[i];
            while (r > 0 && at < first[r])
                r--;
            if (at < steps)
                ok = run_node(r, (uint32_t)(at - first[r]) / 3, (at - first[r]) % 3);
        }
        ok = ok && results_right();
    }
    *why = reason;
    return ok;
}
