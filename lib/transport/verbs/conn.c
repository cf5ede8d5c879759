/* SPDX-License-Identifier: Apache-2.0 */
/* A connection: one RC queue pair, from INIT over RTR to RTS, and its end. */
#include "transport/verbs/verbs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* Credits see to it that a receive is always there; were it not, this gives up after some 30 ms, not never. */
enum { RNR_TIMER = 18 /* 4 ms */, RNR_RETRIES = 6, HOP_LIMIT = 64 };

struct ibv_qp *gsi_verbs_qp(gsi_verbs_rail *rail, uint32_t max_inline, void *context)
{
    struct ibv_qp_init_attr attr = {
        .qp_context = context,
        .send_cq = rail->cq,
        .recv_cq = rail->cq,
        .cap = {.max_send_wr = (uint32_t)rail->config.send_depth,
                .max_recv_wr = (uint32_t)rail->max_recv,
                .max_send_sge = 1,
                .max_recv_sge = 1,
                .max_inline_data = max_inline},
        .qp_type = IBV_QPT_RC,
    };

    return ibv_create_qp(rail->pd, &attr);
}

static int to_init(gsi_conn *conn)
{
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT,
        .pkey_index = (uint16_t)conn->rail->config.pkey_index,
        .port_num = (uint8_t)conn->rail->config.port,
        .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
    };

    return ibv_modify_qp(conn->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

static void fixed_requests(gsi_conn *conn)
{
    for (int i = 0; i < GSI_VERBS_RECV_BATCH; i++)
        conn->recvs[i] = (struct ibv_recv_wr){.wr_id = conn->tag | GSI_VERBS_RECV,
                                              .next = i + 1 < GSI_VERBS_RECV_BATCH ? &conn->recvs[i + 1] : NULL};
    for (int i = 0; i < GSI_VERBS_CHAIN; i++) {
        conn->chain[i].sg_list = &conn->sges[i];
        conn->chain[i].next = i + 1 < GSI_VERBS_CHAIN ? &conn->chain[i + 1] : NULL;
    }
}

uint8_t gsi_verbs_reads(int device)
{
    return (uint8_t)(device < 0 ? 0 : device > GSI_VERBS_MAX_READS ? GSI_VERBS_MAX_READS : device);
}

static int own_address(gsi_conn *conn, gsi_rail_address *out)
{
    const gsi_verbs_rail *rail = conn->rail;
    gsi_verbs_address mine = {
        .qpn = conn->qp->qp_num,
        .psn = conn->psn,
        .max_bytes = (uint32_t)rail->rail.max_bytes,
        .lid = rail->port.lid,
        .ethernet = (uint8_t)rail->ethernet,
        .global = rail->config.gid_index >= 0,
        .mtu = (uint8_t)rail->mtu,
        .reads_in = gsi_verbs_reads(rail->device.max_qp_rd_atom),
        .reads_out = gsi_verbs_reads(rail->device.max_qp_init_rd_atom),
    };
    int rc = rail->cm ? gsi_verbs_cm_begin(conn, &mine) : 0;

    if (rc)
        return rc;
    memcpy(mine.gid, rail->gid.raw, sizeof mine.gid);
    gsi_verbs_pack(&mine, out);
    return 0;
}

int gsi_verbs_conn(gsi_rail *base, uint32_t number, gsi_conn **out, gsi_rail_address *mine)
{
    gsi_verbs_rail *rail = (gsi_verbs_rail *)base;
    gsi_verbs_policy policy;
    uint32_t ids = 1;
    int rc = 0, index = 0;

    while (index < rail->config.connections && rail->conns[index])
        index++;
    if (index == rail->config.connections)
        return gsi_verbs_host.fail(GRADSYNC_ERR_INTERNAL, "all %d connections of %s are in use", index, base->name);
    gsi_verbs_prefer(rail->config.numa_node, &policy);
    gsi_conn *conn = calloc(1, sizeof *conn);
    while (ids < (uint32_t)rail->config.send_depth)
        ids *= 2;
    if (!conn || !(conn->ids = calloc(ids, sizeof *conn->ids))) {
        rc = gsi_verbs_host.fail(GRADSYNC_ERR_NOMEM, "no memory for a connection of %s", base->name);
        goto fail;
    }
    conn->rail = rail;
    conn->id_mask = ids - 1;
    conn->index = (uint32_t)index;
    conn->number = number;
    conn->tag = (((uint64_t)rail->generations[index] << 40) | ((uint64_t)index << 24)) & GSI_VERBS_TAG_MASK;
    if (getrandom(&conn->psn, sizeof conn->psn, 0) != (ssize_t)sizeof conn->psn)
        conn->psn = (uint32_t)((uintptr_t)conn >> 6);
    conn->psn &= 0xffffff;
    fixed_requests(conn);
    conn->qp = gsi_verbs_qp(rail, base->max_inline, conn);
    if (!conn->qp) {
        rc = gsi_verbs_host.fail(errno == ENOMEM ? GRADSYNC_ERR_NOMEM : GRADSYNC_ERR_SYSTEM, "%s: no queue pair: %m",
                                 base->name);
        goto fail;
    }
    int err = to_init(conn);
    for (int left = rail->max_recv; !err && left > 0; left -= GSI_VERBS_RECV_BATCH)
        err = gsi_verbs_post_receives(conn, left < GSI_VERBS_RECV_BATCH ? (uint32_t)left : GSI_VERBS_RECV_BATCH);
    if (err) {
        errno = err;
        rc = gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE, "%s: a queue pair with P_Key index %d is refused: %m", base->name,
                                 (int)rail->config.pkey_index);
        goto fail;
    }
    rc = own_address(conn, mine);
    if (rc)
        goto fail;
    gsi_verbs_restore(&policy);
    rail->conns[index] = conn;
    *out = conn;
    return 0;

fail:
    gsi_verbs_restore(&policy);
    if (conn) {
        gsi_verbs_cm_end(conn);
        if (conn->qp)
            ibv_destroy_qp(conn->qp);
        free(conn->ids);
        free(conn);
    }
    return rc;
}

void gsi_verbs_rtr_attr(const gsi_conn *conn, const gsi_verbs_address *peer, struct ibv_qp_attr *attr)
{
    const gsi_verbs_rail *rail = conn->rail;
    uint8_t mine_in = gsi_verbs_reads(rail->device.max_qp_rd_atom);

    attr->path_mtu = peer->mtu < (uint8_t)rail->mtu ? (enum ibv_mtu)peer->mtu : rail->mtu;
    attr->max_dest_rd_atomic = mine_in < peer->reads_out ? mine_in : peer->reads_out;
    attr->min_rnr_timer = RNR_TIMER;
}

void gsi_verbs_rts_attr(const gsi_conn *conn, const gsi_verbs_address *peer, struct ibv_qp_attr *attr)
{
    const gsi_verbs_rail *rail = conn->rail;
    uint8_t mine_out = gsi_verbs_reads(rail->device.max_qp_init_rd_atom);

    attr->timeout = (uint8_t)rail->config.timeout;
    attr->retry_cnt = (uint8_t)rail->config.retry_count;
    attr->rnr_retry = RNR_RETRIES;
    attr->max_rd_atomic = mine_out < peer->reads_in ? mine_out : peer->reads_in;
}

/* May block while the kernel looks up the peer's hardware address. */
static int to_rtr(gsi_conn *conn, const gsi_verbs_address *peer)
{
    const gsi_verbs_rail *rail = conn->rail;
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTR,
        .dest_qp_num = peer->qpn,
        .rq_psn = peer->psn,
        .ah_attr = {.dlid = peer->lid,
                    .sl = (uint8_t)rail->config.service_level,
                    .port_num = (uint8_t)rail->config.port,
                    .is_global = peer->global && rail->config.gid_index >= 0},
    };

    gsi_verbs_rtr_attr(conn, peer, &attr);
    if (attr.ah_attr.is_global) {
        memcpy(attr.ah_attr.grh.dgid.raw, peer->gid, sizeof peer->gid);
        attr.ah_attr.grh.sgid_index = (uint8_t)rail->config.gid_index;
        attr.ah_attr.grh.hop_limit = HOP_LIMIT;
        attr.ah_attr.grh.traffic_class = (uint8_t)rail->config.traffic_class;
    }
    return ibv_modify_qp(conn->qp, &attr,
                         IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                             IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
}

static int to_rts(gsi_conn *conn, const gsi_verbs_address *peer)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTS, .sq_psn = conn->psn};

    gsi_verbs_rts_attr(conn, peer, &attr);
    return ibv_modify_qp(conn->qp, &attr,
                         IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                             IBV_QP_MAX_QP_RD_ATOMIC);
}

int gsi_verbs_connect(gsi_conn *conn, const gsi_rail_address *blob)
{
    const gsi_verbs_rail *rail = conn->rail;
    gsi_verbs_address peer;
    const char *wrong = gsi_verbs_unpack(blob, &peer);

    if (wrong)
        return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE, "%s: the peer's address cannot be used: %s", rail->rail.name,
                                   wrong);
    if (peer.ethernet != rail->ethernet)
        return gsi_verbs_host.fail(
            GRADSYNC_ERR_DEVICE,
            "%s is %s, but the peer's rail is %s: these do not reach each other; choose rails of one kind",
            rail->rail.name, rail->ethernet ? "RoCE" : "InfiniBand", peer.ethernet ? "RoCE" : "InfiniBand");
    if (!rail->ethernet && !(peer.global && rail->config.gid_index >= 0) && (peer.lid == 0 || rail->port.lid == 0))
        return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE,
                                   "%s: one side has no LID, the other no GID: give both a GID index", rail->rail.name);
    if (peer.max_bytes < rail->rail.max_bytes)
        return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE,
                                   "%s: the peer's device takes messages of %u bytes, less than ours", rail->rail.name,
                                   (unsigned)peer.max_bytes);
    if (rail->cm)
        return gsi_verbs_cm_connect(conn, &peer);
    if (peer.cm_port)
        return gsi_verbs_host.fail(
            GRADSYNC_ERR_INVALID,
            "the peer of %s connects by rdma_cm, but this rank does not: set GRADSYNC_CONNECT alike for "
            "all ranks",
            rail->rail.name);
    int err = to_rtr(conn, &peer);
    if (!err)
        err = to_rts(conn, &peer);
    if (err) {
        errno = err;
        return gsi_verbs_host.fail(
            err == ENOMEM ? GRADSYNC_ERR_NOMEM : GRADSYNC_ERR_DEVICE,
            "%s cannot reach the peer's rail: %m; check the link and, for RoCE, that both GIDs are of "
            "one network",
            rail->rail.name);
    }
    conn->connected = 1;
    return 0;
}

int gsi_verbs_ready(gsi_conn *conn)
{
    return conn->cm ? gsi_verbs_cm_ready(conn) : conn->connected;
}

static void forget_failure(gsi_conn *conn)
{
    gsi_conn **at = &conn->rail->failures;

    while (*at && *at != conn)
        at = &(*at)->next_failure;
    if (*at)
        *at = conn->next_failure;
}

/* The queue pair goes first, so that nothing more of it is added to the queue; what is there is told from a later
 * connection's by the generation, and taken away at once, so that the queue's room is whole for that one. */
void gsi_verbs_disconnect(gsi_conn *conn)
{
    gsi_verbs_rail *rail = conn->rail;
    uint32_t kept = 0;

    if (gsi_verbs_is_child(rail))
        return;
    gsi_verbs_cm_end(conn);
    ibv_destroy_qp(conn->qp);
    forget_failure(conn);
    rail->conns[conn->index] = NULL;
    rail->generations[conn->index]++;
    for (uint32_t i = rail->stash_at; i < rail->stashed; i++)
        if (rail->stash[i].conn != conn->number)
            rail->stash[kept++] = rail->stash[i];
    rail->stash_at = 0;
    rail->stashed = kept;
    free(conn->ids);
    free(conn);
    gsi_verbs_drain(rail);
}
