/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections by librdmacm (GRADSYNC_CONNECT=cm), for networks where paths must be asked for: the address, the route
 * and what the path needs come from the connection manager, and a peer that ends is told of at once.
 *
 * Every rail listens at its own IP address. Of the two sides of a connection the lower (GID, port, token) connects, the
 * other accepts; the private data of the request carries both sides' tokens, so that it finds its connection. Queue
 * pairs are ours, of the rail's own device context: the manager moves none of them, it only says with what attributes.
 *
 * Everything is driven from one event channel that does not block, by ready() and, later, poll().
 */
#include "transport/verbs/verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <rdma/rdma_cma.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <unistd.h>

enum { RESOLVE_MS = 4000, BACKLOG = 1024 };

struct gsi_verbs_cm_rail {
    struct rdma_event_channel *channel;
    struct rdma_cm_id *listener;
    uint16_t port; /* that it listens on */
    int epoll;     /* readable if the device or the manager has an event: the rail's async_fd */
};

struct gsi_verbs_cm_conn {
    struct rdma_cm_id *id; /* NULL: none yet, or it failed */
    gsi_verbs_address peer;
    uint64_t token;      /* this side's, random */
    uint64_t from_token; /* the peer's, in a request that came before connect() was called */
    int active;          /* this side connects */
    int has_peer;        /* connect() was called */
    int failed;          /* error says why */
    char error[160];
};

/* In network order, as it comes: tokens are compared as bytes. */
typedef struct request {
    unsigned char magic[4];
    unsigned char from[8], to[8];
} request;

static const unsigned char magic[4] = {'G', 'S', 'C', 1};

/* ---- the rail ---- */

/* The IP address that a GID is, with this port (host order). 0, or -1: it is none that can be connected to. */
static int ip_address(const uint8_t gid[16], uint16_t port, struct sockaddr_storage *out)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

    memset(out, 0, sizeof *out);
    if (!memcmp(gid, mapped, sizeof mapped)) {
        struct sockaddr_in *in = (struct sockaddr_in *)out;

        in->sin_family = AF_INET;
        in->sin_port = htons(port);
        memcpy(&in->sin_addr, gid + 12, 4);
        return 0;
    }
    if (gid[0] == 0xfe && (gid[1] & 0xc0) == 0x80)
        return -1; /* link-local: it means nothing without an interface */
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)out;

    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(port);
    memcpy(&in6->sin6_addr, gid, 16);
    return 0;
}

static int refused(const gsi_verbs_rail *rail, const char *what)
{
    return gsi_verbs_host.fail(errno == ENOMEM ? GRADSYNC_ERR_NOMEM : GRADSYNC_ERR_SYSTEM,
                               "%s: connections by rdma_cm cannot be had, %s: %m; unset GRADSYNC_CONNECT to do without",
                               rail->rail.name, what);
}

static int watch(int epoll, int fd)
{
    struct epoll_event event = {.events = EPOLLIN};

    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

int gsi_verbs_cm_open(gsi_verbs_rail *rail)
{
    struct sockaddr_storage here;
    gsi_verbs_cm_rail *cm = calloc(1, sizeof *cm);

    if (!cm)
        return gsi_verbs_host.fail(GRADSYNC_ERR_NOMEM, "no memory for connections by rdma_cm");
    rail->cm = cm;
    cm->epoll = -1;
    if (!rail->ethernet || ip_address(rail->gid.raw, 0, &here))
        return gsi_verbs_host.fail(
            GRADSYNC_ERR_UNSUPPORTED,
            "%s: connections by rdma_cm need a RoCE GID that is an IP address: choose another GID "
            "index, or unset GRADSYNC_CONNECT",
            rail->rail.name);
    cm->channel = rdma_create_event_channel();
    if (!cm->channel)
        return refused(rail,
                       "there is no event channel (is the module rdma_ucm loaded, and /dev/infiniband/rdma_cm there?)");
    int flags = fcntl(cm->channel->fd, F_GETFL);
    if (flags < 0 || fcntl(cm->channel->fd, F_SETFL, flags | O_NONBLOCK))
        return refused(rail, "its events would block");
    cm->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (cm->epoll < 0 || watch(cm->epoll, cm->channel->fd) || watch(cm->epoll, rail->context->async_fd))
        return refused(rail, "its events cannot be waited for");
    if (rdma_create_id(cm->channel, &cm->listener, NULL, RDMA_PS_TCP) ||
        rdma_bind_addr(cm->listener, (struct sockaddr *)&here) || rdma_listen(cm->listener, BACKLOG))
        return refused(rail, "it does not listen at the address of the rail's GID");
    cm->port = ntohs(rdma_get_src_port(cm->listener));
    rail->rail.async_fd = cm->epoll;
    return 0;
}

void gsi_verbs_cm_close(gsi_verbs_rail *rail)
{
    gsi_verbs_cm_rail *cm = rail->cm;

    if (!cm)
        return;
    if (cm->listener)
        rdma_destroy_id(cm->listener);
    if (cm->channel)
        rdma_destroy_event_channel(cm->channel);
    if (cm->epoll >= 0)
        close(cm->epoll);
    free(cm);
    rail->cm = NULL;
}

/* ---- the connection ---- */

int gsi_verbs_cm_begin(gsi_conn *conn, gsi_verbs_address *mine)
{
    gsi_verbs_cm_conn *cm = calloc(1, sizeof *cm);

    if (!cm)
        return gsi_verbs_host.fail(GRADSYNC_ERR_NOMEM, "no memory for a connection of %s", conn->rail->rail.name);
    conn->cm = cm;
    if (getrandom(&cm->token, sizeof cm->token, 0) != (ssize_t)sizeof cm->token)
        return gsi_verbs_host.fail(GRADSYNC_ERR_SYSTEM, "no random numbers for a connection: %m");
    mine->cm_port = conn->rail->cm->port;
    mine->token = cm->token;
    return 0;
}

void gsi_verbs_cm_end(gsi_conn *conn)
{
    gsi_verbs_cm_conn *cm = conn->cm;

    if (!cm)
        return;
    if (cm->id) {
        if (conn->connected)
            rdma_disconnect(cm->id); /* the peer is told; nobody waits for its answer */
        rdma_destroy_id(cm->id);
    }
    free(cm);
    conn->cm = NULL;
}

/* Before it is ready the error waits for ready(), afterwards it is a FAILED. */
static void failed(gsi_conn *conn, const char *what, int err)
{
    gsi_verbs_cm_conn *cm = conn->cm;
    char text[64] = "";

    if (conn->connected) {
        gsi_verbs_conn_failed(conn, 0, 0, what);
        return;
    }
    if (cm->failed)
        return;
    cm->failed = 1;
    if (err)
        snprintf(text, sizeof text, " (%s)", strerrordesc_np(err) ? strerrordesc_np(err) : "unknown error");
    snprintf(cm->error, sizeof cm->error, "%s%s", what, text);
}

/* The same, and the peer need not wait for its time-out. */
static void refuse(gsi_conn *conn, const char *what, int err)
{
    rdma_reject(conn->cm->id, NULL, 0);
    failed(conn, what, err);
}

/* An event's status is a negative errno, or for REJECTED the manager's own reason. */
static int status_errno(int status)
{
    return status < 0 ? -status : 0;
}

/* INIT to RTR to RTS with what the manager says of the path, and what was asked for of this rail. */
static int move_queue_pair(gsi_conn *conn)
{
    const gsi_verbs_rail *rail = conn->rail;
    const gsi_verbs_address *peer = &conn->cm->peer;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTR};
    int mask, err;

    if (rdma_init_qp_attr(conn->cm->id, &attr, &mask))
        return errno;
    enum ibv_mtu path = attr.path_mtu;
    gsi_verbs_rtr_attr(conn, peer, &attr);
    attr.path_mtu = path < attr.path_mtu ? path : attr.path_mtu;
    if (attr.ah_attr.is_global)
        attr.ah_attr.grh.traffic_class = (uint8_t)rail->config.traffic_class;
    if ((err = ibv_modify_qp(conn->qp, &attr, mask)))
        return err;
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS};
    if (rdma_init_qp_attr(conn->cm->id, &attr, &mask))
        return errno;
    gsi_verbs_rts_attr(conn, peer, &attr);
    return ibv_modify_qp(conn->qp, &attr,
                         mask | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC);
}

static struct rdma_conn_param conn_param(const gsi_conn *conn)
{
    return (struct rdma_conn_param){.responder_resources = gsi_verbs_reads(conn->rail->device.max_qp_rd_atom),
                                    .initiator_depth = gsi_verbs_reads(conn->rail->device.max_qp_init_rd_atom),
                                    .retry_count = (uint8_t)conn->rail->config.retry_count,
                                    .rnr_retry_count = 7,
                                    .qp_num = conn->qp->qp_num};
}

static int starts(const gsi_conn *conn, const gsi_verbs_address *peer)
{
    const gsi_verbs_rail *rail = conn->rail;
    int order = memcmp(rail->gid.raw, peer->gid, sizeof peer->gid);

    if (order)
        return order < 0;
    if (rail->cm->port != peer->cm_port)
        return rail->cm->port < peer->cm_port;
    return conn->cm->token < peer->token;
}

static int start(gsi_conn *conn)
{
    const gsi_verbs_rail *rail = conn->rail;
    struct sockaddr_storage here, there;
    uint8_t tos = (uint8_t)rail->config.traffic_class;

    if (ip_address(rail->gid.raw, 0, &here) || ip_address(conn->cm->peer.gid, conn->cm->peer.cm_port, &there))
        return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE, "%s: the peer's GID is no IP address", rail->rail.name);
    if (rdma_create_id(rail->cm->channel, &conn->cm->id, conn, RDMA_PS_TCP))
        return refused(rail, "no identifier");
    if (tos)
        rdma_set_option(conn->cm->id, RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, &tos, sizeof tos);
    /* Bound to this rail's address: another rail of this host may be nearer by the routes. */
    if (rdma_resolve_addr(conn->cm->id, (struct sockaddr *)&here, (struct sockaddr *)&there, RESOLVE_MS))
        return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE, "%s: the peer's address cannot be looked up: %m",
                                   rail->rail.name);
    return 0;
}

/* The request is there, and so is what was told out of band. */
static void accept_peer(gsi_conn *conn)
{
    struct rdma_conn_param param = conn_param(conn);
    int err = move_queue_pair(conn);

    if (!err && rdma_accept(conn->cm->id, &param))
        err = errno;
    if (err)
        refuse(conn, "the peer's request for a connection cannot be accepted", err);
}

int gsi_verbs_cm_connect(gsi_conn *conn, const gsi_verbs_address *peer)
{
    gsi_verbs_cm_conn *cm = conn->cm;

    if (!peer->cm_port)
        return gsi_verbs_host.fail(
            GRADSYNC_ERR_INVALID,
            "%s connects by rdma_cm, but the peer does not: set GRADSYNC_CONNECT alike for all ranks",
            conn->rail->rail.name);
    cm->peer = *peer;
    cm->has_peer = 1;
    cm->active = starts(conn, peer);
    if (cm->active)
        return start(conn);
    if (cm->id && cm->from_token != peer->token)
        refuse(conn, "a stranger asked for this connection", 0);
    else if (cm->id)
        accept_peer(conn);
    return 0;
}

/* ---- events ---- */

static gsi_conn *find_token(const gsi_verbs_rail *rail, const unsigned char token[8])
{
    for (int i = 0; i < rail->config.connections; i++)
        if (rail->conns[i] && rail->conns[i]->cm && !memcmp(&rail->conns[i]->cm->token, token, 8))
            return rail->conns[i];
    return NULL;
}

static void connect_request(gsi_verbs_rail *rail, struct rdma_cm_id *id, const request *asked)
{
    gsi_conn *conn = memcmp(asked->magic, magic, sizeof magic) ? NULL : find_token(rail, asked->to);
    gsi_verbs_cm_conn *cm = conn ? conn->cm : NULL;

    if (!cm || cm->id || (cm->has_peer && (cm->active || memcmp(&cm->peer.token, asked->from, 8)))) {
        rdma_reject(id, NULL, 0);
        rdma_destroy_id(id);
        return;
    }
    cm->id = id;
    id->context = conn;
    memcpy(&cm->from_token, asked->from, 8);
    if (cm->has_peer)
        accept_peer(conn);
}

static void address_resolved(gsi_conn *conn)
{
    const gsi_verbs_rail *rail = conn->rail;
    struct rdma_cm_id *id = conn->cm->id;

    if (!id->verbs || strcmp(ibv_get_device_name(id->verbs->device), rail->config.device) ||
        id->port_num != rail->config.port)
        failed(conn, "the route to the peer leaves by another device", 0);
    else if (rdma_resolve_route(id, RESOLVE_MS))
        failed(conn, "no route to the peer", errno);
}

static void route_resolved(gsi_conn *conn)
{
    struct rdma_conn_param param = conn_param(conn);
    request ask;

    memcpy(ask.magic, magic, sizeof magic);
    memcpy(ask.from, &conn->cm->token, 8);
    memcpy(ask.to, &conn->cm->peer.token, 8);
    param.private_data = &ask;
    param.private_data_len = sizeof ask;
    if (rdma_connect(conn->cm->id, &param))
        failed(conn, "the peer cannot be asked for a connection", errno);
}

static void connect_response(gsi_conn *conn)
{
    int err = move_queue_pair(conn);

    if (!err && rdma_establish(conn->cm->id))
        err = errno;
    if (err)
        refuse(conn, "the connection that the peer has accepted cannot be used", err);
    else
        conn->connected = 1;
}

static void handle(gsi_verbs_rail *rail, struct rdma_cm_id *id, enum rdma_cm_event_type type, int status,
                   const request *asked)
{
    gsi_conn *conn = id->context;

    if (type == RDMA_CM_EVENT_CONNECT_REQUEST) {
        connect_request(rail, id, asked);
        return;
    }
    if (!conn) /* the listener's: its device goes, which the device's own events tell */
        return;
    switch (type) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
        address_resolved(conn);
        break;
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
        route_resolved(conn);
        break;
    case RDMA_CM_EVENT_CONNECT_RESPONSE:
        connect_response(conn);
        break;
    case RDMA_CM_EVENT_ESTABLISHED:
        conn->connected = 1;
        break;
    case RDMA_CM_EVENT_ADDR_ERROR:
        failed(conn, "the peer's address cannot be found from this rail", status_errno(status));
        break;
    case RDMA_CM_EVENT_ROUTE_ERROR:
        failed(conn, "no route to the peer", status_errno(status));
        break;
    case RDMA_CM_EVENT_UNREACHABLE:
        failed(conn, "the peer does not answer", status_errno(status));
        break;
    case RDMA_CM_EVENT_REJECTED:
        failed(conn, "the peer rejects the connection", 0);
        break;
    case RDMA_CM_EVENT_CONNECT_ERROR:
        failed(conn, "connecting failed", status_errno(status));
        break;
    case RDMA_CM_EVENT_DISCONNECTED:
        failed(conn, "the peer has disconnected", 0);
        break;
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
        failed(conn, "the device is being removed", 0);
        break;
    default: /* ADDR_CHANGE, TIMEWAIT_EXIT: nothing follows from them */
        break;
    }
}

/* An event is acknowledged before it is handled, since its identifier may go. */
void gsi_verbs_cm_events(gsi_verbs_rail *rail)
{
    struct rdma_cm_event *event;

    while (!rdma_get_cm_event(rail->cm->channel, &event)) {
        struct rdma_cm_id *id = event->id;
        enum rdma_cm_event_type type = event->event;
        int status = event->status;
        request asked = {{0}, {0}, {0}};

        /* Private data comes padded to the length that the message has. */
        if (type == RDMA_CM_EVENT_CONNECT_REQUEST && event->param.conn.private_data_len >= sizeof asked)
            memcpy(&asked, event->param.conn.private_data, sizeof asked);
        rdma_ack_cm_event(event);
        handle(rail, id, type, status, &asked);
    }
}

int gsi_verbs_cm_ready(gsi_conn *conn)
{
    if (!conn->connected && !conn->cm->failed)
        gsi_verbs_cm_events(conn->rail);
    if (conn->cm->failed)
        return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE, "%s: %s; check that both rails' addresses are of one network",
                                   conn->rail->rail.name, conn->cm->error);
    return conn->connected;
}
