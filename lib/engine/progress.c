/* SPDX-License-Identifier: Apache-2.0 */
/* Starting and stepping collectives: queued -> entered -> (stage) -> running -> done. */
#include "engine/p2p.h"

#include <stdio.h>

#include "base/cpu.h"
#include "base/error.h"

enum { WORTH_TELLING = 1 << 20 };

static gsi_lane *lane_of(gsi_engine *e, uint64_t seq)
{
    return &e->lanes[seq % e->ep->lanes];
}

/* ---- Entering --------------------------------------------------------------- */

static uint64_t contribution_bytes(const gsi_op *op, int n)
{
    return op->call.coll == GRADSYNC_REDUCE_SCATTER ? op->bytes * (uint64_t)n : op->bytes;
}

static uint64_t result_bytes(const gsi_op *op, int n)
{
    return op->call.coll == GRADSYNC_ALL_GATHER ? op->bytes * (uint64_t)n : op->bytes;
}

static int uses_send(const gsi_engine *e, const gsi_call *call)
{
    return call->coll != GRADSYNC_BROADCAST || call->root == e->rank;
}

static int uses_recv(const gsi_engine *e, const gsi_call *call)
{
    return call->coll != GRADSYNC_REDUCE || call->root == e->rank;
}

/* The part of a memory that peers can reach: where other hosts reach it, all of it. */
static void reach_of(const gsi_engine *e, const gsi_memory *mem, const char **addr, uint64_t *bytes)
{
    *addr = e->ep->whole_memory ? mem->addr : mem->share_addr;
    *bytes = e->ep->whole_memory ? mem->bytes : mem->share_bytes;
}

/* Finds the buffers in the register and hands them to the peers. 0, or IN_PROGRESS. Memory that
 * cannot be handed over counts as plain. */
static int share_memory(gsi_engine *e, gsi_op *op)
{
    const gsi_call *call = &op->call;
    gsi_memory **held[] = {&op->send_mem, &op->recv_mem};
    const void *addr[] = {call->send, call->recv};
    uint64_t bytes[] = {contribution_bytes(op, e->n), result_bytes(op, e->n)};
    int used[] = {uses_send(e, call), uses_recv(e, call)};

    for (int i = 0; i < 2; i++) {
        if (used[i] && !*held[i])
            *held[i] = gsi_register_get(e->reg, addr[i], bytes[i]);
        if (!*held[i] || (i == 1 && *held[1] == *held[0])) /* often both lie in the same memory */
            continue;
        int rc = e->ep->ops->share(e->ep, *held[i]);
        if (rc == GRADSYNC_IN_PROGRESS)
            return rc;
        if (rc < 0) {
            gsi_register_put(e->reg, *held[i]);
            *held[i] = NULL;
        }
    }
    return 0;
}

/* Notes what of a buffer lies beside the pages that peers can reach. 1, or 0 if it is too much to say. */
static int note_fringes(gsi_header *header, int64_t off, uint64_t bytes, uint64_t room)
{
    uint64_t head = off < 0 ? (uint64_t)-off : 0;
    uint64_t end = (uint64_t)((int64_t)bytes + off), tail = (int64_t)end > (int64_t)room ? end - room : 0;

    if (head > UINT16_MAX || tail > UINT16_MAX)
        return 0;
    header->head = head > header->head ? (uint16_t)head : header->head;
    header->tail = tail > header->tail ? (uint16_t)tail : header->tail;
    return 1;
}

/* Shareable: every buffer that this rank uses lies in memory that peers can reach, but for its fringes. */
static int describe_memory(gsi_engine *e, gsi_op *op, gsi_header *header)
{
    const gsi_call *call = &op->call;
    int good = 1;
    const char *addr;
    uint64_t bytes;

    if (op->send_mem) {
        reach_of(e, op->send_mem, &addr, &bytes);
        header->u.mem.send = op->send_mem->id;
        header->u.mem.send_off = (const char *)call->send - addr;
        good &= note_fringes(header, header->u.mem.send_off, contribution_bytes(op, e->n), bytes);
    }
    if (op->recv_mem) {
        reach_of(e, op->recv_mem, &addr, &bytes);
        header->u.mem.recv = op->recv_mem->id;
        header->u.mem.recv_off = (const char *)call->recv - addr;
        good &= note_fringes(header, header->u.mem.recv_off, result_bytes(op, e->n), bytes);
    }
    return good && (op->send_mem || !uses_send(e, call)) && (op->recv_mem || !uses_recv(e, call));
}

int gsi_engine_start(gsi_engine *e, gsi_op *op)
{
    const gsi_call *call = &op->call;
    const gsi_eager_limits *limits = &e->eager[call->coll];
    gsi_lane *lane = lane_of(e, op->seq);
    uint64_t payload = contribution_bytes(op, e->n);
    int algo = call->algo ? call->algo : e->default_algo;
    gsi_header header = {
        .fingerprint = gsi_engine_fingerprint(call), .count = call->count, .done = (uint32_t)e->done, .scale = 1};

    if (lane->op)
        return 0;
    if (op->seq > e->peers_done + e->ep->lanes) {
        e->peers_done = e->ep->ops->done(e->ep);
        if (op->seq > e->peers_done + e->ep->lanes)
            return 0;
    }
    /* Shared memory is looked for only where it could make a difference. */
    op->attached = algo ? algo == GRADSYNC_ALGO_ONESHOT && payload <= e->ep->slot_bytes : payload <= limits->always;
    if (!op->attached && call->count) {
        if (share_memory(e, op))
            return 0;
        int shareable = describe_memory(e, op, &header);
        header.kind = shareable ? GSI_HEADER_SHAREABLE : 0;
        op->attached = !algo && !shareable && payload <= limits->private;
    }
    if (op->attached)
        header.kind |= GSI_HEADER_PAYLOAD;
    if (call->op == GRADSYNC_PREMUL_SUM || (call->flags & GRADSYNC_PRESCALE))
        header.scale = call->prescale;
    if (!op->attached || !uses_send(e, call))
        payload = 0;
    lane->op = op;
    e->newest = op->seq;
    op->state = GSI_OP_ENTERED;
    op->entered_next = 0;
    e->ep->ops->enter(e->ep, op->seq, &header, call->send, payload);
    return 1;
}

/* ---- After the exchange of headers ------------------------------------------- */

/* Bytes at the ends of the ranks' buffers that the plan leaves alone. */
typedef struct fringes {
    uint64_t head, tail;
} fringes;

/* Where one buffer of a rank lies; id 0: it has none. A rank that needs nothing more of this one may have
 * finished and freed it already: then it stays out of reach, and no plan that is chosen will miss it. */
static int resolve(gsi_engine *e, gsi_lane *lane, fringes f, int space, int rank, uint32_t id, int64_t off,
                   uint64_t bytes)
{
    void *base = NULL;
    uint64_t room = 0;
    int at = space * e->n + rank;

    lane->mem[at] = id;
    lane->mem_off[at] = (uint64_t)off;
    if (rank == e->rank)
        return 0;
    int rc = id ? e->ep->ops->resolve(e->ep, rank, id, &base, &room) : 0;
    lane->base[at] = NULL;
    if (rc || !base)
        return rc;
    int64_t end = (int64_t)(room + f.tail);
    if (off < -(int64_t)f.head || off > end || bytes > (uint64_t)(end - off))
        return gsi_fail(GRADSYNC_ERR_INTERNAL, "rank %d names memory beyond what it shared", rank);
    lane->base[at] = (char *)base + off;
    return 0;
}

/* In place: RECV is SEND. */
static void same_place(gsi_lane *lane, int n, int rank)
{
    int send = GSI_SEND * n + rank, recv = GSI_RECV * n + rank;
    lane->base[recv] = lane->base[send];
    lane->mem[recv] = lane->mem[send];
    lane->mem_off[recv] = lane->mem_off[send];
}

/* Where all ranks' SEND and RECV lie; all are shareable. A header is copied before it is checked, and held
 * against the fringes that the plan is made for: it lies in memory that its writer can change at any time. */
static int bind_user_memory(gsi_engine *e, gsi_lane *lane, fringes f)
{
    gsi_op *op = lane->op;
    uint64_t send_bytes = contribution_bytes(op, e->n), recv_bytes = result_bytes(op, e->n);
    int rc = 0;

    for (int r = 0; !rc && r < e->n; r++) {
        const gsi_header h = *e->ep->ops->header(e->ep, op->seq, r);
        rc = resolve(e, lane, f, GSI_SEND, r, h.u.mem.send, h.u.mem.send_off, send_bytes);
        if (!rc && h.u.mem.recv == h.u.mem.send && h.u.mem.recv_off == h.u.mem.send_off &&
            op->call.coll == GRADSYNC_ALL_REDUCE)
            same_place(lane, e->n, r);
        else if (!rc)
            rc = resolve(e, lane, f, GSI_RECV, r, h.u.mem.recv, h.u.mem.recv_off, recv_bytes);
    }
    return rc;
}

static void bind_own_memory(gsi_engine *e, gsi_lane *lane)
{
    const gsi_call *call = &lane->op->call;
    lane->base[GSI_SEND * e->n + e->rank] = (char *)(uintptr_t)call->send;
    lane->base[GSI_RECV * e->n + e->rank] = call->recv;
}

static void bind_stage(gsi_engine *e, gsi_lane *lane)
{
    const gsi_op *op = lane->op;
    const gsi_plan *plan = op->entry->plan;
    void **stage = lane->base + GSI_STAGE * e->n;

    for (int r = 0; r < e->n; r++)
        stage[r] = plan->slot ? (void *)(uintptr_t)e->ep->ops->slot(e->ep, op->seq, r, plan->eager)
                              : e->ep->ops->stage(e->ep, r);
    /* What this rank sent with its header it need not read back from a line that is on its way to the others. */
    if (plan->slot && uses_send(e, &op->call))
        stage[e->rank] = (void *)(uintptr_t)op->call.send;
}

static void begin_plan(gsi_engine *e, gsi_lane *lane)
{
    bind_stage(e, lane);
    gsi_engine_start_plan(e, lane);
    lane->op->algo = lane->op->entry->plan->algo;
}

/* Long messages of memory that peers cannot reach take several times as long: that is said once, or refused. */
static int staging_is_used(gsi_engine *e, const gsi_op *op)
{
    static const char remedy[] = "allocate it with gradsync_mem_alloc or register it with GRADSYNC_MEM_REMAP";
    int culprit = 0;

    while (culprit < e->n - 1 && (e->ep->ops->header(e->ep, op->seq, culprit)->kind & GSI_HEADER_SHAREABLE))
        culprit++;
    if (e->strict)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED,
                        "%s of %llu bytes would go through staging, which a strict context forbids: peers cannot reach "
                        "(all of) the memory of rank %d; %s",
                        gradsync_coll_name(op->call.coll), (unsigned long long)op->bytes, culprit, remedy);
    if (!e->told_of_staging) {
        snprintf(e->news, sizeof e->news,
                 "%s of %llu bytes goes through staging, at a fraction of the speed: peers cannot reach (all of) the "
                 "memory of rank %d; %s (said once)",
                 gradsync_coll_name(op->call.coll), (unsigned long long)op->bytes, culprit, remedy);
        atomic_store(&e->has_news, 1);
    }
    e->told_of_staging = 1;
    return 0;
}

/* All headers are there: compares them, chooses the plan. 0, or the error that ends the op. */
static int after_headers(gsi_engine *e, gsi_lane *lane)
{
    gsi_op *op = lane->op;
    int shareable = op->call.count > 0, attached = 1, scaled = 0;
    uint64_t head = 0, tail = 0, done = e->done, esize = op->call.esize;

    e->left_gather = op->seq;
    int rc = gsi_engine_compare(e, op);
    if (rc)
        return rc;
    for (int r = 0; r < e->n; r++) {
        const gsi_header *h = e->ep->ops->header(e->ep, op->seq, r);
        shareable &= (h->kind & GSI_HEADER_SHAREABLE) != 0;
        attached &= (h->kind & GSI_HEADER_PAYLOAD) != 0;
        head = h->head > head ? h->head : head;
        tail = h->tail > tail ? h->tail : tail;
        uint64_t its_done = op->seq - (uint32_t)((uint32_t)op->seq - h->done);
        done = its_done < done ? its_done : done;
        lane->scale[r] = h->scale;
        scaled |= h->scale != 1;
    }
    lane->scaled = scaled;
    if (done > e->peers_done)
        e->peers_done = done;
    bind_own_memory(e, lane);
    head = (head + esize - 1) / esize * esize;
    tail = (tail + esize - 1) / esize * esize;
    /* Only the all-reduce has a plan for memory whose ends are out of reach. */
    if ((head || tail) && (op->call.coll != GRADSYNC_ALL_REDUCE || head + tail >= op->bytes))
        shareable = 0;
    if (!shareable)
        head = tail = 0;
    if (shareable)
        rc = bind_user_memory(e, lane, (fringes){head, tail});
    else if (!attached && e->n > 1 && op->bytes >= WORTH_TELLING)
        rc = staging_is_used(e, op);
    if (rc)
        return rc;
    if (op->entry && (shareable || !attached)) { /* it was looked up before the headers were there */
        gsi_engine_plan_done(op->entry);
        op->entry = NULL;
    }
    rc = op->entry ? 0 : gsi_engine_plan(e, op, shareable, attached, head, tail, &op->entry);
    if (rc)
        return rc;
    op->predicted_us = op->entry->predicted_us;
    lane->seg_bytes = 0;
    const gsi_plan *plan = op->entry->plan;
    /* Of all streams: a later plan of a long message may have more than this one. */
    for (int i = 0; op->call.count > op->entry->segment && i < GSI_MAX_STREAMS * e->n; i++)
        lane->awaited[i] = 0;
    for (int i = 0; i < plan->nstreams * e->n; i++)
        lane->awaited[i] = 0;
    op->state = plan->stage_bytes && !plan->slot ? GSI_OP_STAGE : GSI_OP_RUNNING;
    if (op->state == GSI_OP_RUNNING)
        begin_plan(e, lane);
    return 0;
}

/* ---- Running ------------------------------------------------------------------ */

/* The plan of a segment has ended here; others may still read what it left in STAGE, so all meet before the
 * next one. */
static void call_meeting(gsi_engine *e, gsi_lane *lane)
{
    gsi_op *op = lane->op;
    const gsi_plan *plan = op->entry->plan;

    for (int i = 0; i < plan->nstreams * e->n; i++)
        lane->awaited[i] += plan->awaits[i];
    for (int p = 0; p < e->n; p++) {
        if (p == e->rank)
            continue;
        lane->awaited[p]++;
        if (!plan->signal_all)
            e->ep->ops->signal(e->ep, op->seq, 0, p);
    }
    if (plan->signal_all)
        e->ep->ops->signal_all(e->ep, op->seq);
    op->entered_next = 0;
    op->state = GSI_OP_MEETING;
}

static int all_met(gsi_engine *e, gsi_lane *lane)
{
    gsi_op *op = lane->op;
    int all = op->entry->plan->signal_all;

    for (; op->entered_next < e->n; op->entered_next++) {
        int p = op->entered_next;
        if (p != e->rank && e->ep->ops->signals(e->ep, op->seq, 0, p, all) < lane->awaited[p])
            return 0;
    }
    return 1;
}

/* The plan for the next segment of a long message. */
static int next_segment(gsi_engine *e, gsi_lane *lane)
{
    gsi_op *op = lane->op;
    const gsi_plan_entry *entry = op->entry;

    op->segment += entry->segment;
    lane->seg_bytes += entry->segment * op->call.esize;
    if (op->call.count - op->segment < entry->segment) {
        /* Let go of first: the cache has room for one plan of each lane. */
        const gsi_plan_key key = entry->key;
        gsi_engine_plan_done(entry);
        op->entry = NULL;
        int rc = gsi_engine_plan(e, op, key.shareable, key.attached, key.head, key.tail, &op->entry);
        if (rc)
            return rc;
    }
    op->state = GSI_OP_RUNNING;
    begin_plan(e, lane);
    return 0;
}

/* The staging memory goes to one collective at a time, in the order of seq on every rank: out of order, two
 * ranks could each hold it for another one. 1 if op has it now. */
static int take_stage(gsi_engine *e, gsi_op *op)
{
    for (uint64_t seq = e->done + 1; seq < op->seq; seq++) {
        const gsi_op *earlier = lane_of(e, seq)->op;
        if (earlier && earlier->seq == seq && earlier->state == GSI_OP_STAGE)
            return 0;
    }
    if (e->peers_done < e->stage_user)
        e->peers_done = e->ep->ops->done(e->ep);
    if (e->peers_done < e->stage_user)
        return 0;
    e->stage_user = op->seq;
    return 1;
}

/* 1 if the lane's op moved. */
static int step(gsi_engine *e, gsi_lane *lane)
{
    gsi_op *op = lane->op;
    int moved = 0, rc = 0;

    if (op->state == GSI_OP_ENTERED) {
        /* In order, so that all ranks hand out the staging memory in the same order. */
        if (e->left_gather + 1 != op->seq || !e->ep->ops->entered(e->ep, op->seq, &op->entered_next))
            return 0;
        moved = 1;
        rc = after_headers(e, lane);
        if (rc) {
            gsi_engine_finish(e, op, rc);
            return 1;
        }
    }
    if (op->state == GSI_OP_STAGE) {
        if (!take_stage(e, op))
            return moved;
        op->state = GSI_OP_RUNNING;
        begin_plan(e, lane);
    }
    if (op->state == GSI_OP_MEETING) {
        if (!all_met(e, lane))
            return moved;
        moved = 1;
        rc = next_segment(e, lane);
    }
    if (!rc)
        rc = gsi_engine_run_plan(e, lane, &moved);
    if (rc == 1 && op->call.count - op->segment > op->entry->segment) {
        call_meeting(e, lane);
        return 1;
    }
    if (rc)
        gsi_engine_finish(e, op, rc < 0 ? rc : 0);
    return moved || rc;
}

int gsi_engine_progress(gsi_engine *e)
{
    gsi_failure failure;
    int moved = e->ep->ops->progress ? e->ep->ops->progress(e->ep) : 0;

    if (e->broken) {
        gsi_engine_fail_queued(e);
        return 0;
    }
    if (e->ep->ops->failure(e->ep, &failure)) {
        gsi_engine_break(e, &failure, 0, -1);
        return 1;
    }
    while (atomic_load_explicit(&e->queued, memory_order_acquire)) {
        pthread_mutex_lock(&e->queue_lock);
        gsi_op *op = e->head;
        pthread_mutex_unlock(&e->queue_lock);
        if (!op || !gsi_engine_start(e, op))
            break;
        pthread_mutex_lock(&e->queue_lock);
        e->head = op->next;
        if (!e->head)
            e->tail = NULL;
        pthread_mutex_unlock(&e->queue_lock);
        atomic_fetch_sub_explicit(&e->queued, 1, memory_order_relaxed);
        moved = 1;
    }
    for (uint64_t seq = e->done + 1; seq <= e->newest && !e->broken; seq++) {
        gsi_lane *lane = lane_of(e, seq);
        if (lane->op && lane->op->seq == seq)
            moved |= step(e, lane);
    }
    if (!e->broken)
        moved |= gsi_p2p_progress(e);
    e->ep->ops->announce(e->ep);
    return moved;
}
