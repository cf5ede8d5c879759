/* SPDX-License-Identifier: Apache-2.0 */
/* The way out: writes and reads, chained while more follow, since a doorbell may be a system call. */
#include "transport/verbs/verbs.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

int gsi_verbs_post_receives(gsi_conn *conn, uint32_t n)
{
    struct ibv_recv_wr *bad, *last = &conn->recvs[n - 1], *next = last->next;
    int err;

    last->next = NULL;
    err = ibv_post_recv(conn->qp, conn->recvs, &bad);
    last->next = next;
    return err;
}

/* Posts the chain. What is refused is a failure of the connection: the queue pair is put into the error state, so that
 * nothing of the chain arrives after FAILED was told. */
static int flush(gsi_conn *conn)
{
    struct ibv_send_wr *bad, *last = &conn->chain[conn->chained - 1], *next = last->next;
    int err;

    last->next = NULL;
    err = ibv_post_send(conn->qp, conn->chain, &bad);
    last->next = next;
    conn->chained = conn->staged = 0;
    if (__builtin_expect(err != 0, 0)) {
        struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};

        ibv_modify_qp(conn->qp, &attr, IBV_QP_STATE);
        gsi_verbs_conn_failed(conn, 0, 0, err == ENOMEM ? "the send queue is full" : "the device refused a send");
    }
    return 0;
}

/* Checks that there is room, and gives the next work request of the chain with all filled in but the opcode. */
static struct ibv_send_wr *next_request(gsi_conn *conn, const gsi_rail_work *work)
{
    struct ibv_send_wr *wr = &conn->chain[conn->chained];
    struct ibv_sge *sge = &conn->sges[conn->chained];

    if (__builtin_expect(!conn->connected, 0)) {
        gsi_verbs_host.fail(GRADSYNC_ERR_SYSTEM, "%s: a send on a connection that is not ready", conn->rail->rail.name);
        return NULL;
    }
    if (__builtin_expect(conn->head - conn->tail >= (uint32_t)conn->rail->config.send_depth, 0)) {
        gsi_verbs_host.fail(GRADSYNC_ERR_SYSTEM, "%s: more than %d sends in flight on a connection",
                            conn->rail->rail.name, (int)conn->rail->config.send_depth);
        return NULL;
    }
    conn->ids[conn->head & conn->id_mask] = work->id;
    wr->wr_id = conn->tag | (conn->head & GSI_VERBS_NUMBER_MASK);
    wr->num_sge = work->bytes != 0;
    wr->wr.rdma.remote_addr = work->remote;
    wr->wr.rdma.rkey = (uint32_t)work->remote_key;
    sge->addr = (uintptr_t)work->local;
    sge->length = (uint32_t)work->bytes;
    conn->head++;
    conn->chained++;
    return wr;
}

int gsi_verbs_write(gsi_conn *conn, const gsi_rail_work *work)
{
    uint32_t flags = work->flags;

    if (__builtin_expect(conn->failed, 0))
        return 0;
    /* Inline data that has to wait is copied; make room for it first. */
    int copies = (flags & GSI_RAIL_INLINE) && (flags & GSI_RAIL_MORE);
    if (copies && conn->staged + work->bytes > GSI_VERBS_STAGE) {
        flush(conn);
        if (conn->failed)
            return 0;
    }
    struct ibv_send_wr *wr = next_request(conn, work);
    if (!wr)
        return GRADSYNC_ERR_SYSTEM;
    wr->opcode = IBV_WR_RDMA_WRITE;
    wr->send_flags = flags & GSI_RAIL_SIGNAL ? IBV_SEND_SIGNALED : 0;
    if (flags & GSI_RAIL_IMM) {
        wr->opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
        wr->imm_data = htonl(work->imm);
        if (flags & GSI_RAIL_SOLICIT)
            wr->send_flags |= IBV_SEND_SOLICITED;
    }
    if (flags & GSI_RAIL_INLINE) {
        wr->send_flags |= IBV_SEND_INLINE;
        if (copies && work->bytes) {
            unsigned char *copy = conn->stage + conn->staged;

            memcpy(copy, work->local, work->bytes);
            wr->sg_list->addr = (uintptr_t)copy;
            conn->staged += (uint32_t)work->bytes;
        }
    } else if (work->bytes) {
        wr->sg_list->lkey = ((const gsi_verbs_region *)work->region->handle)->lkey;
    }
    if ((flags & GSI_RAIL_MORE) && conn->chained < GSI_VERBS_CHAIN)
        return 0;
    return flush(conn);
}

int gsi_verbs_read(gsi_conn *conn, const gsi_rail_work *work)
{
    if (__builtin_expect(conn->failed, 0))
        return 0;
    struct ibv_send_wr *wr = next_request(conn, work);
    if (!wr)
        return GRADSYNC_ERR_SYSTEM;
    wr->opcode = IBV_WR_RDMA_READ;
    wr->send_flags = work->flags & GSI_RAIL_SIGNAL ? IBV_SEND_SIGNALED : 0;
    if (work->bytes)
        wr->sg_list->lkey = ((const gsi_verbs_region *)work->region->handle)->lkey;
    if ((work->flags & GSI_RAIL_MORE) && conn->chained < GSI_VERBS_CHAIN)
        return 0;
    return flush(conn);
}

void gsi_verbs_ring(gsi_conn *conn)
{
    if (conn->chained)
        flush(conn);
}
