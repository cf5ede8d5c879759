/* SPDX-License-Identifier: Apache-2.0 */
/* How collectives end: well, mismatched, late, or with a lost rank. */
#include "engine/p2p.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/error.h"

/* ---- Mismatch --------------------------------------------------------------- */

/* coll 4 | dtype 4 | op 4 | algo 4 | flags 8 | tag 8 | root 32: nothing is hashed, so that a mismatch can be told. */
uint64_t gsi_engine_fingerprint(const gsi_call *call)
{
    return (uint64_t)call->coll | (uint64_t)call->dtype << 4 | (uint64_t)call->op << 8 | (uint64_t)call->algo << 12 |
           (uint64_t)(call->flags & 0xff) << 16 | (uint64_t)call->tag << 24 | (uint64_t)(uint32_t)call->root << 32;
}

static void describe(const gsi_header *h, char *text, size_t room)
{
    uint64_t f = h->fingerprint;
    int coll = f & 15, algo = f >> 12 & 15, flags = f >> 16 & 255, tag = f >> 24 & 255;
    int at = snprintf(text, room, "%s%s(", tag ? "the library's " : "", gradsync_coll_name(coll));
    int reduces = coll == GRADSYNC_ALL_REDUCE || coll == GRADSYNC_REDUCE_SCATTER || coll == GRADSYNC_REDUCE;
    int rooted = coll == GRADSYNC_BROADCAST || coll == GRADSYNC_REDUCE;

    if (coll != GRADSYNC_BARRIER)
        at += snprintf(text + at, room - (size_t)at, "%s, %llu elements", gradsync_dtype_name(f >> 4 & 15),
                       (unsigned long long)h->count);
    if (reduces)
        at += snprintf(text + at, room - (size_t)at, ", %s", gradsync_op_name(f >> 8 & 15));
    if (rooted)
        at += snprintf(text + at, room - (size_t)at, ", root %d", (int)(uint32_t)(f >> 32));
    if (algo)
        at += snprintf(text + at, room - (size_t)at, ", algo %s", gradsync_algo_name(algo));
    snprintf(text + at, room - (size_t)at, "%s%s)", flags & GRADSYNC_ORDERED ? ", ordered" : "",
             flags & GRADSYNC_PRESCALE ? ", prescaled" : "");
}

static int agree(const gsi_header *a, const gsi_header *b)
{
    return a->fingerprint == b->fingerprint && a->count == b->count;
}

/* The rank to name: the first that differs from most; of two, the other one. */
static int find_odd_one(const gsi_engine *e, uint64_t seq, int *one_of_most)
{
    int best = 0, most = 0;
    for (int r = 0; r < e->n; r++) {
        int votes = 0;
        for (int q = 0; q < e->n; q++)
            votes += agree(e->ep->ops->header(e->ep, seq, r), e->ep->ops->header(e->ep, seq, q));
        if (votes > best)
            best = votes, most = r;
    }
    if (e->n == 2)
        most = e->rank;
    for (int r = 0; r < e->n; r++)
        if (!agree(e->ep->ops->header(e->ep, seq, r), e->ep->ops->header(e->ep, seq, most))) {
            *one_of_most = most;
            return r;
        }
    return -1;
}

int gsi_engine_compare(gsi_engine *e, gsi_op *op)
{
    const gsi_header *own = e->ep->ops->header(e->ep, op->seq, e->rank);
    int same = 1, most = 0;
    char odd_call[120], most_call[120];

    for (int r = 0; r < e->n; r++)
        same &= agree(own, e->ep->ops->header(e->ep, op->seq, r));
    if (same)
        return 0;
    int odd = find_odd_one(e, op->seq, &most);
    describe(e->ep->ops->header(e->ep, op->seq, odd), odd_call, sizeof odd_call);
    describe(e->ep->ops->header(e->ep, op->seq, most), most_call, sizeof most_call);
    gsi_error_fill(op->error, GRADSYNC_ERR_MISMATCH,
                   "ranks disagree in collective %llu: rank %d called %s, rank %d called %s; make every rank call the "
                   "same collectives in the same order",
                   (unsigned long long)op->number, odd, odd_call, most, most_call);
    op->error->rank = e->rank;
    op->error->peer = odd;
    op->error->seq = op->number;
    return GRADSYNC_ERR_MISMATCH;
}

/* ---- The end of an op ---------------------------------------------------------- */

/* Publishes a failure and gives back the one that counts: the first. A rank that is just writing one down is given a
 * moment; one that was stopped or died over it is not waited for. */
void gsi_engine_publish(gsi_engine *e, gsi_failure *failure)
{
    e->ep->ops->fail(e->ep, failure);
    if (e->ep->ops->progress)
        e->ep->ops->progress(e->ep); /* between hosts a message has to carry it */
    for (int i = 0; i < 100 && !e->ep->ops->failure(e->ep, failure); i++)
        sched_yield();
}

/* Field by field: an op is long, and most of it is of no interest here. */
static void note_end(gsi_engine *e, const gsi_op *op)
{
    e->last.call = op->call;
    e->last.number = op->number;
    e->last.bytes = op->bytes;
    e->last.algo = op->algo;
    e->last.result = op->result;
    e->last.predicted_us = op->predicted_us;
    e->last.measured_us = op->measured_us;
    e->last.work_ticks = op->work_ticks;
    e->have_last = 1;
    if (op->result) {
        e->counters.failures++;
        return;
    }
    e->counters.operations++;
    e->counters.bytes += op->bytes;
    e->counters.by_algo[op->algo]++;
    double wait_us = op->measured_us - gsi_ticks_us(op->work_ticks);
    e->counters.wait_ns += wait_us > 0 ? (uint64_t)(wait_us * 1000) : 0; /* the length of a tick is a measured one */
}

/* Tells whoever waits for a posted op; it may be freed by another thread right after. */
void gsi_engine_tell(gsi_engine *e, gsi_op *op)
{
    pthread_mutex_lock(&e->queue_lock);
    int detached = op->detached, fd = op->fd;
    if (fd >= 0) {
        uint64_t one = 1;
        if (write(fd, &one, sizeof one) < 0) {
            /* An eventfd takes it unless its counter is full, and then it is readable already. */
        }
    }
    atomic_store_explicit(&op->done, 1, memory_order_release);
    pthread_mutex_unlock(&e->queue_lock);
    atomic_fetch_sub(&e->outstanding, 1);
    if (detached) {
        if (fd >= 0)
            close(fd);
        free(op);
        atomic_fetch_sub(&e->holders, 1); /* never the last: the engine is at work */
    }
}

/* Lets go of everything an op holds. */
static void release(gsi_engine *e, gsi_op *op)
{
    if (op->entry)
        gsi_engine_plan_done(op->entry);
    if (op->send_mem)
        gsi_register_put(e->reg, op->send_mem);
    if (op->recv_mem)
        gsi_register_put(e->reg, op->recv_mem);
    op->entry = NULL;
    op->send_mem = op->recv_mem = NULL;
}

static void end(gsi_engine *e, gsi_op *op, int result)
{
    op->result = result;
    op->state = GSI_OP_DONE;
    op->measured_us = gsi_ticks_us(gsi_ticks() - op->start_ticks);
    release(e, op);
    note_end(e, op);
    if (op->posted)
        gsi_engine_tell(e, op);
}

void gsi_engine_finish(gsi_engine *e, gsi_op *op, int result)
{
    uint32_t lanes = e->ep->lanes;
    uint64_t before = e->done;

    if (result && result != GRADSYNC_ERR_MISMATCH && result != GRADSYNC_ERR_UNSUPPORTED) {
        /* This rank alone cannot go on (memory ran out, say): the others must not wait for it. */
        gsi_failure failure = {result, e->rank, e->rank, ""};
        gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
        gradsync_last_error(&info);
        snprintf(failure.text, sizeof failure.text, "rank %d failed: %.180s", e->rank, info.message);
        gsi_engine_publish(e, &failure);
        gsi_engine_break(e, &failure, op->number, -1);
        return;
    }
    if (result == GRADSYNC_ERR_UNSUPPORTED) {
        *op->error = (gradsync_error_info)GRADSYNC_ERROR_INFO_INIT;
        gradsync_last_error(op->error);
        op->error->seq = op->number;
        op->error->rank = e->rank;
    }
    gsi_lane *lane = &e->lanes[op->seq % lanes];
    lane->op = NULL;
    lane->finished = op->seq;
    while (e->done < e->newest && e->lanes[(e->done + 1) % lanes].finished == e->done + 1)
        e->done++;
    if (e->done != before)
        e->ep->ops->finish(e->ep, e->done);
    end(e, op, result);
}

/* Ops that were queued before the communicator broke, or in that moment. */
void gsi_engine_fail_queued(gsi_engine *e)
{
    for (;;) {
        pthread_mutex_lock(&e->queue_lock);
        gsi_op *op = e->head;
        if (op)
            e->head = op->next;
        if (!e->head)
            e->tail = NULL;
        pthread_mutex_unlock(&e->queue_lock);
        if (!op)
            break;
        atomic_fetch_sub_explicit(&e->queued, 1, memory_order_relaxed);
        *op->error = e->failure;
        op->error->seq = op->number;
        end(e, op, e->failure.code);
    }
    gsi_p2p_fail_all(e);
}

void gsi_engine_break(gsi_engine *e, const gsi_failure *failure, uint64_t seq, int step)
{
    if (e->broken)
        return;
    gsi_error_fill(&e->failure, failure->code, "%s", failure->text);
    e->failure.rank = e->rank;
    e->failure.peer = failure->peer;
    e->failure.seq = seq;
    e->failure.step = step;
    atomic_store(&e->broken, 1);
    for (uint32_t i = 0; i < e->ep->lanes; i++) {
        gsi_op *op = e->lanes[i].op;
        if (!op)
            continue;
        e->lanes[i].op = NULL;
        *op->error = e->failure;
        op->error->seq = op->number;
        end(e, op, failure->code);
    }
    gsi_engine_fail_queued(e);
    e->ep->ops->wake(e->ep);
}

/* ---- Trouble ------------------------------------------------------------------- */

/* The op whose deadline has passed, in flight or queued; NULL. */
static gsi_op *find_late(gsi_engine *e)
{
    for (uint64_t seq = e->done + 1; seq <= e->newest; seq++) {
        gsi_op *op = e->lanes[seq % e->ep->lanes].op;
        if (op && gsi_op_is_late(op))
            return op;
    }
    gsi_op *late = NULL;
    pthread_mutex_lock(&e->queue_lock);
    for (gsi_op *op = e->head; op && !late; op = op->next)
        if (gsi_op_is_late(op))
            late = op;
    pthread_mutex_unlock(&e->queue_lock);
    return late;
}

static void time_out(gsi_engine *e, const gsi_op *op)
{
    gsi_failure failure = {GRADSYNC_ERR_TIMEOUT, e->rank, -1, ""};
    int step = -1, peer = -1;
    uint64_t number = op->number;
    const gsi_op *stuck = op;

    /* A queued op is late because an older one is. */
    if (e->done < e->newest && e->lanes[(e->done + 1) % e->ep->lanes].op)
        stuck = e->lanes[(e->done + 1) % e->ep->lanes].op;
    if (e->lanes[stuck->seq % e->ep->lanes].op == stuck) {
        peer = gsi_engine_waits_for(e, &e->lanes[stuck->seq % e->ep->lanes], &step);
        number = stuck->number;
    }
    failure.peer = peer;
    if (peer >= 0)
        snprintf(failure.text, sizeof failure.text,
                 "rank %d waited %.1f s for rank %d, which %s %s, collective %llu; is it stopped, in other code, or "
                 "slow? (timeout_ms, GRADSYNC_TIMEOUT)",
                 e->rank, (double)op->call.timeout_ms / 1000, peer, step < 0 ? "has not called" : "is stuck in",
                 gradsync_coll_name(stuck->call.coll), (unsigned long long)number);
    else
        snprintf(failure.text, sizeof failure.text,
                 "rank %d waited %.1f s in vain for the other ranks to finish earlier collectives than %llu", e->rank,
                 (double)op->call.timeout_ms / 1000, (unsigned long long)number);
    gsi_engine_publish(e, &failure);
    gsi_engine_break(e, &failure, number, step);
}

void gsi_engine_look_for_trouble(gsi_engine *e)
{
    gsi_failure failure = {0};
    int peer = -1;

    if (e->broken || gsi_p2p_look_for_trouble(e) || (e->done == e->newest && !atomic_load(&e->queued)))
        return;
    if (e->ep->ops->check(e->ep, e->done + 1, &peer, failure.text, sizeof failure.text)) {
        /* What the lost rank had still done counts: it may have been enough. */
        if (gsi_engine_progress(e))
            return;
        size_t at = strlen(failure.text);
        snprintf(failure.text + at, sizeof failure.text - at, "; go on with a new communicator of the other ranks");
        failure.code = GRADSYNC_ERR_PEER_LOST;
        failure.by = e->rank;
        failure.peer = peer;
        gsi_engine_publish(e, &failure);
        const gsi_op *oldest = e->lanes[(e->done + 1) % e->ep->lanes].op;
        gsi_engine_break(e, &failure, oldest ? oldest->number : 0, -1);
        return;
    }
    gsi_op *late = find_late(e);
    if (late)
        time_out(e, late);
}
