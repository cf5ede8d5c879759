/* SPDX-License-Identifier: Apache-2.0 */
/* The way in: completions and the device's events, as rail.h tells them. */
#include "transport/verbs/verbs.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Reading the async events is a system call: a spinning caller makes it only so often. */
enum { POLLS_PER_LOOK = 256 };

void gsi_verbs_conn_failed(gsi_conn *conn, uint64_t id, int32_t status, const char *why)
{
    if (conn->failed)
        return;
    conn->failed = 1;
    conn->chained = conn->staged = 0;
    conn->failed_id = id;
    conn->status = status;
    conn->why = why;
    conn->next_failure = conn->rail->failures;
    conn->rail->failures = conn;
}

/* FAILED of connections whose cause nothing more is to be learnt of. */
static int tell_failures(gsi_verbs_rail *rail, gsi_rail_event *events, int max)
{
    int n = 0;

    while (n < max && rail->failures) {
        gsi_conn *conn = rail->failures;

        rail->failures = conn->next_failure;
        conn->told = 1;
        events[n++] = (gsi_rail_event){.id = conn->failed_id,
                                       .kind = GSI_RAIL_FAILED,
                                       .conn = conn->number,
                                       .status = conn->status,
                                       .why = conn->why};
    }
    return n;
}

/* An error completion. The one that is not a flush is the cause, wherever it stands among the flushed ones. */
static void failed_completion(gsi_conn *conn, const struct ibv_wc *wc)
{
    uint64_t id = wc->wr_id & GSI_VERBS_RECV ? 0 : conn->ids[wc->wr_id & conn->id_mask];

    if (!conn->failed) {
        gsi_verbs_conn_failed(conn, id, (int32_t)wc->status, ibv_wc_status_str(wc->status));
    } else if (conn->status == IBV_WC_WR_FLUSH_ERR && wc->status != IBV_WC_WR_FLUSH_ERR) {
        conn->failed_id = id;
        conn->status = (int32_t)wc->status;
        conn->why = ibv_wc_status_str(wc->status);
    }
}

/* One completion; 1 if it is an event. */
static int take(gsi_verbs_rail *rail, const struct ibv_wc *wc, gsi_rail_event *event)
{
    gsi_conn *conn = rail->conns[(wc->wr_id >> 24) & 0xffff];

    if (!conn || conn->tag != (wc->wr_id & GSI_VERBS_TAG_MASK) || conn->told)
        return 0;
    if (__builtin_expect(wc->status != IBV_WC_SUCCESS, 0)) {
        failed_completion(conn, wc);
        return 0;
    }
    event->conn = conn->number;
    event->status = 0;
    event->why = NULL;
    if (!(wc->wr_id & GSI_VERBS_RECV)) {
        /* All before it are complete too. */
        conn->tail += (((uint32_t)wc->wr_id - conn->tail) & GSI_VERBS_NUMBER_MASK) + 1;
        event->kind = GSI_RAIL_SENT;
        event->id = conn->ids[wc->wr_id & conn->id_mask];
        event->imm = 0;
        return 1;
    }
    /* The peer may have recv_depth immediates under way, and GSI_VERBS_RECV_BATCH more receives than that were posted.
     */
    if (++conn->used == GSI_VERBS_RECV_BATCH) {
        conn->used = 0;
        if (!conn->failed && gsi_verbs_post_receives(conn, GSI_VERBS_RECV_BATCH))
            gsi_verbs_conn_failed(conn, 0, 0, "the device refused a receive");
    }
    if (wc->opcode != IBV_WC_RECV_RDMA_WITH_IMM) {
        gsi_verbs_conn_failed(conn, 0, 0, "the peer sent what is no gradsync message");
        return 0;
    }
    event->kind = GSI_RAIL_ARRIVED;
    event->id = 0;
    event->imm = ntohl(wc->imm_data);
    return 1;
}

static int port_event(gsi_verbs_rail *rail, int up, const char *why, gsi_rail_event *event)
{
    if (rail->up == up)
        return 0;
    rail->up = up;
    *event = (gsi_rail_event){.kind = up ? GSI_RAIL_UP : GSI_RAIL_DOWN, .why = why};
    return 1;
}

/* One asynchronous event of the device; 1 if it is one for the endpoint. */
static int async_event(gsi_verbs_rail *rail, const struct ibv_async_event *async, gsi_rail_event *event)
{
    switch (async->event_type) {
    case IBV_EVENT_PORT_ERR:
        return async->element.port_num == rail->config.port && port_event(rail, 0, "the port went down", event);
    case IBV_EVENT_PORT_ACTIVE:
        return async->element.port_num == rail->config.port && port_event(rail, 1, NULL, event);
    case IBV_EVENT_DEVICE_FATAL:
        return port_event(rail, 0, "the device had a fatal error", event);
    case IBV_EVENT_CQ_ERR:
        return port_event(rail, 0, "the completion queue had an error", event);
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_PATH_MIG_ERR:
        gsi_verbs_conn_failed(async->element.qp->qp_context, 0, 0, ibv_event_type_str(async->event_type));
        return 0;
    default: /* LID, P_Key, GID and subnet manager changes show in the connections, if they matter */
        return 0;
    }
}

static int look(gsi_verbs_rail *rail, gsi_rail_event *events, int max)
{
    struct ibv_async_event async;
    int n = 0;

    while (n < max && !ibv_get_async_event(rail->context, &async)) {
        n += async_event(rail, &async, &events[n]);
        ibv_ack_async_event(&async);
    }
    if (rail->cm)
        gsi_verbs_cm_events(rail);
    /* A full array means there may be more. */
    rail->look = n == max;
    return n;
}

static int take_stash(gsi_verbs_rail *rail, gsi_rail_event *events, int max)
{
    int n = 0;

    while (n < max && rail->stash_at < rail->stashed)
        events[n++] = rail->stash[rail->stash_at++];
    if (rail->stash_at == rail->stashed)
        rail->stash_at = rail->stashed = 0;
    return n;
}

int gsi_verbs_poll(gsi_rail *base, gsi_rail_event *events, int max)
{
    gsi_verbs_rail *rail = (gsi_verbs_rail *)base;
    struct ibv_wc wc[GSI_VERBS_WC_BATCH];
    int n = 0, got, want;

    if (__builtin_expect(rail->stashed != 0, 0))
        n = take_stash(rail, events, max);
    if (__builtin_expect(rail->look || ++rail->polls % POLLS_PER_LOOK == 0, 0))
        n += look(rail, events + n, max - n);
    while (n < max) {
        want = max - n < GSI_VERBS_WC_BATCH ? max - n : GSI_VERBS_WC_BATCH;
        got = ibv_poll_cq(rail->cq, want, wc);
        for (int i = 0; i < got; i++)
            n += take(rail, &wc[i], &events[n]);
        if (got < want) {
            if (__builtin_expect(got < 0, 0) && n < max)
                n += port_event(rail, 0, "the completion queue cannot be polled", &events[n]);
            if (__builtin_expect(rail->failures != NULL, 0))
                n += tell_failures(rail, events + n, max - n);
            break;
        }
    }
    return n;
}

void gsi_verbs_drain(gsi_verbs_rail *rail)
{
    struct ibv_wc wc[GSI_VERBS_WC_BATCH];
    int got;

    do {
        if (rail->stash_room - rail->stashed < GSI_VERBS_WC_BATCH) {
            uint32_t room = rail->stash_room ? 2 * rail->stash_room : 2 * GSI_VERBS_WC_BATCH;
            gsi_rail_event *more = realloc(rail->stash, room * sizeof *more);

            if (!more)
                return; /* the rest is found by poll() */
            rail->stash = more;
            rail->stash_room = room;
        }
        got = ibv_poll_cq(rail->cq, GSI_VERBS_WC_BATCH, wc);
        for (int i = 0; i < got; i++)
            rail->stashed += (uint32_t)take(rail, &wc[i], &rail->stash[rail->stashed]);
    } while (got == GSI_VERBS_WC_BATCH);
}

/* Armed for every completion, not for solicited ones only: who sleeps waits for his own sends and for failures as well,
 * and devices differ in whether those count as solicited. */
int gsi_verbs_arm(gsi_rail *base)
{
    gsi_verbs_rail *rail = (gsi_verbs_rail *)base;
    int err;

    rail->look = 1;
    if (rail->armed)
        return 0;
    err = ibv_req_notify_cq(rail->cq, 0);
    if (err) {
        errno = err;
        return gsi_verbs_host.fail(GRADSYNC_ERR_SYSTEM, "%s cannot tell of completions: %m", base->name);
    }
    rail->armed = 1;
    return 0;
}

/* A queue writes one event for each time it was armed, so one is all that there can be. */
void gsi_verbs_disarm(gsi_rail *base)
{
    gsi_verbs_rail *rail = (gsi_verbs_rail *)base;
    struct ibv_cq *cq;
    void *context;

    rail->look = 1;
    if (!rail->armed || ibv_get_cq_event(rail->channel, &cq, &context))
        return;
    rail->armed = 0;
    /* Acknowledging takes a lock: many at once. */
    if (++rail->unacked == 1024) {
        ibv_ack_cq_events(cq, rail->unacked);
        rail->unacked = 0;
    }
}
