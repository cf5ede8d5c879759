/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The all-gather at rank 0: every rank's block comes in, the result goes out to all.
 * It is sealed once, with a key that all ranks got when they joined, so that a
 * thousand ranks do not cost a thousand encryptions of it.
 */
#include "bootstrap/root.h"
#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

enum { FAREWELL_NS = 500000000 };

/* The result's header, sealed for this peer, and the body that is the same for all. */
static int queue_result(gsi_root *r, gsi_peer *p, uint64_t plain)
{
    struct gsi_segment *s = gsi_root_segment(r, GSI_HEAD_BYTES), *shared = NULL;

    if (s && plain && !(shared = gsi_root_segment(r, 0))) {
        free(s);
        s = NULL;
    }
    if (!s)
        return GRADSYNC_ERR_NOMEM;
    gsi_link_seal_head(&p->link, GSI_FRAME_RESULT, r->b->seq, plain, s->own);
    gsi_root_append(r, p, s, s->own, GSI_HEAD_BYTES);
    if (shared)
        gsi_root_append(r, p, shared, r->result, plain + GSI_AEAD_BYTES);
    return 0;
}

/* Takes the blocks that came before the call. */
static void take_early(gsi_root *r)
{
    for (int i = 1; i < r->b->job.nranks && !r->b->failure.code; i++) {
        gsi_peer *p = r->ranks[i];
        if (!p || p->state == GSI_PEER_GONE) {
            gsi_root_fail(r, GRADSYNC_ERR_PEER_LOST, i,
                          "rank %d left before all-gather %u: it ended, or it makes fewer calls than rank 0", i,
                          r->b->seq);
        } else if (p->block_seq == r->b->seq) {
            if (p->block_bytes != r->bytes) {
                gsi_root_fail(r, GRADSYNC_ERR_MISMATCH, i,
                              "rank %d gave %llu bytes to all-gather %u, rank 0 gave %llu; every rank has to give the "
                              "same",
                              i, (unsigned long long)p->block_bytes, r->b->seq, (unsigned long long)r->bytes);
                return;
            }
            if (r->bytes)
                memcpy(r->recv + r->bytes * (uint64_t)i, p->body, r->bytes);
            free(p->body);
            p->body = NULL;
            gsi_root_here(r, i);
        }
    }
}

static void send_results(gsi_root *r)
{
    gsi_bootstrap *b = r->b;
    uint64_t plain = r->bytes * (uint64_t)b->job.nranks;

    free(r->result); /* nobody uses the last one's any more: the last call ended with nothing unsent */
    r->result = NULL;
    if (plain) {
        r->result = gsi_calloc(1, plain + GSI_AEAD_BYTES);
        if (!r->result) {
            gsi_root_fail(r, GRADSYNC_ERR_NOMEM, -1, "rank 0 has no memory for a result of %llu bytes",
                          (unsigned long long)plain);
            return;
        }
        gsi_group_seal(r->group, b->seq, r->recv, plain, r->result);
    }
    for (int i = 1; i < b->job.nranks && !b->failure.code; i++) {
        gsi_peer *p = r->ranks[i];
        if (p && p->state == GSI_PEER_RANK && !queue_result(r, p, plain) && gsi_root_push(r, p) < 0)
            gsi_root_on_peer(r, p, EPOLLIN); /* finds out what is wrong */
    }
}

int gsi_root_allgather(gsi_root *r, const void *send_buffer, void *recv_buffer, size_t bytes, int64_t deadline)
{
    gsi_bootstrap *b = r->b;
    char list[200];
    int64_t now = gsi_now_ns(), give_up = gsi_root_give_up(now, deadline);

    if (bytes)
        memmove(recv_buffer, send_buffer, bytes);
    r->running = 1;
    r->recv = recv_buffer;
    r->bytes = bytes;
    memset(r->there, 0, (size_t)b->job.nranks);
    r->there[0] = 1;
    r->missing = b->job.nranks - 1;
    r->next_status = now + r->status_every;
    take_early(r);
    while (r->missing && !b->failure.code) {
        if (gsi_now_ns() >= give_up) {
            gsi_rank_list(list, sizeof list, r->there, b->job.nranks);
            int first = 0;
            while (r->there[first])
                first++;
            gsi_root_fail(r, GRADSYNC_ERR_TIMEOUT, first,
                          "all-gather %u of the rendezvous waited %lld ms for ranks %s; see why they are late", b->seq,
                          (long long)b->timeout_ms, list);
            break;
        }
        gsi_root_step(r, give_up);
        gsi_root_status(r);
    }
    r->next_status = INT64_MAX;
    if (!b->failure.code)
        send_results(r);
    while (r->unsent && !b->failure.code) {
        if (gsi_now_ns() >= deadline) {
            for (int i = 1; i < b->job.nranks; i++)
                r->there[i] = !r->ranks[i] || !r->ranks[i]->head;
            gsi_rank_list(list, sizeof list, r->there, b->job.nranks);
            gsi_root_fail(r, GRADSYNC_ERR_TIMEOUT, -1,
                          "ranks %s did not take the result of all-gather %u within %lld ms; see why they are stuck",
                          list, b->seq, (long long)b->timeout_ms);
            break;
        }
        gsi_root_step(r, deadline);
    }
    if (b->failure.code)
        gsi_root_farewell(r, deadline < gsi_now_ns() + FAREWELL_NS ? deadline : gsi_now_ns() + FAREWELL_NS);
    r->running = 0;
    return b->failure.code ? gsi_fail_info(&b->failure) : 0;
}
