/* SPDX-License-Identifier: Apache-2.0 */
/* A rail from its opening to its end: everything but the device itself that all connections share. */
#include "transport/verbs/verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int gsi_verbs_is_child(const gsi_verbs_rail *rail)
{
    return getpid() != rail->owner;
}

static void rail_close(gsi_rail *base)
{
    gsi_verbs_rail *rail = (gsi_verbs_rail *)base;

    if (gsi_verbs_is_child(rail))
        return;
    for (int i = 0; rail->conns && i < rail->config.connections; i++)
        if (rail->conns[i])
            gsi_verbs_disconnect(rail->conns[i]);
    gsi_verbs_cm_close(rail);
    while (rail->regions)
        gsi_verbs_dereg(base, &(gsi_region){.handle = rail->regions});
    if (rail->cq) {
        gsi_verbs_disarm(base);
        ibv_ack_cq_events(rail->cq, rail->unacked);
        ibv_destroy_cq(rail->cq);
    }
    if (rail->channel)
        ibv_destroy_comp_channel(rail->channel);
    if (rail->pd)
        ibv_dealloc_pd(rail->pd);
    if (rail->context)
        ibv_close_device(rail->context);
    free(rail->stash);
    free(rail->conns);
    free(rail->generations);
    free(rail);
}

static const gsi_rail_ops ops = {
    .name = "verbs",
    .close = rail_close,
    .reg = gsi_verbs_reg,
    .dereg = gsi_verbs_dereg,
    .conn = gsi_verbs_conn,
    .connect = gsi_verbs_connect,
    .ready = gsi_verbs_ready,
    .disconnect = gsi_verbs_disconnect,
    .write = gsi_verbs_write,
    .read = gsi_verbs_read,
    .ring = gsi_verbs_ring,
    .poll = gsi_verbs_poll,
    .arm = gsi_verbs_arm,
    .disarm = gsi_verbs_disarm,
};

static int nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags < 0 ? -1 : fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

static int refused(const gsi_verbs_rail *rail, const char *what)
{
    return gsi_verbs_host.fail(
        errno == ENOMEM ? GRADSYNC_ERR_NOMEM : GRADSYNC_ERR_SYSTEM, "%s: no %s: %m%s", rail->rail.name, what,
        errno == ENOMEM ? "; queues are locked memory too: raise the limit (ulimit -l unlimited)" : "");
}

static int check_config(gsi_rail_config *config)
{
    config->device[sizeof config->device - 1] = 0;
    config->timeout = config->timeout ? config->timeout : 17;
    config->retry_count = config->retry_count ? config->retry_count : 6;
    if (config->connections < 1 || config->connections > GSI_VERBS_MAX_CONNS || config->send_depth < 1 ||
        config->send_depth > GSI_VERBS_MAX_DEPTH || config->recv_depth < 1 || config->recv_depth > GSI_VERBS_MAX_DEPTH)
        return gsi_verbs_host.fail(
            GRADSYNC_ERR_INVALID,
            "a rail of %d connections with %d sends and %d receives is out of range: 1 to %d, %d, %d",
            (int)config->connections, (int)config->send_depth, (int)config->recv_depth, GSI_VERBS_MAX_CONNS,
            GSI_VERBS_MAX_DEPTH, GSI_VERBS_MAX_DEPTH);
    if (config->timeout < 1 || config->timeout > 31 || config->retry_count < 1 || config->retry_count > 7)
        return gsi_verbs_host.fail(GRADSYNC_ERR_INVALID,
                                   "the timeout of an RDMA connection is 1 to 31, its retries 1 to 7; not %d and %d",
                                   (int)config->timeout, (int)config->retry_count);
    if (config->traffic_class < 0 || config->traffic_class > 255 || config->service_level < 0 ||
        config->service_level > 15 || config->pkey_index < 0 || config->pkey_index > 65535 || config->gid_index > 255)
        return gsi_verbs_host.fail(
            GRADSYNC_ERR_INVALID,
            "traffic class %d, service level %d, P_Key index %d or GID index %d is out of range: 0 to 255, "
            "15, 65535, 255 (verbs address no more GIDs than that)",
            (int)config->traffic_class, (int)config->service_level, (int)config->pkey_index, (int)config->gid_index);
    return 0;
}

/* The queue's room is for every completion that all connections can have at once: it never overflows. */
static int make_queues(gsi_verbs_rail *rail)
{
    const gsi_rail_config *config = &rail->config;
    long long entries = (long long)config->connections * (config->send_depth + rail->max_recv);

    if (config->send_depth > rail->device.max_qp_wr || rail->max_recv > rail->device.max_qp_wr)
        return gsi_verbs_host.fail(
            GRADSYNC_ERR_UNSUPPORTED, "%s has queues of at most %d entries: use less depth than %d and %d",
            rail->rail.name, rail->device.max_qp_wr, (int)config->send_depth, (int)config->recv_depth);
    if (entries > rail->device.max_cqe)
        return gsi_verbs_host.fail(
            GRADSYNC_ERR_UNSUPPORTED,
            "%d connections of depths %d and %d need a completion queue of %lld entries, %s has at most "
            "%d: use fewer or smaller ones",
            (int)config->connections, (int)config->send_depth, (int)config->recv_depth, entries, rail->rail.name,
            rail->device.max_cqe);
    rail->pd = ibv_alloc_pd(rail->context);
    if (!rail->pd)
        return refused(rail, "protection domain");
    rail->channel = ibv_create_comp_channel(rail->context);
    if (!rail->channel)
        return refused(rail, "completion channel");
    if (nonblocking(rail->channel->fd) || nonblocking(rail->context->async_fd))
        return refused(rail, "non-blocking events");
    rail->cq = ibv_create_cq(rail->context, (int)entries, NULL, rail->channel, 0);
    if (!rail->cq)
        return refused(rail, "completion queue");
    rail->rail.fd = rail->channel->fd;
    rail->rail.async_fd = rail->context->async_fd;
    return 0;
}

/* Devices do not tell how much inline data they take; one queue pair made in vain does. */
static int find_inline(gsi_verbs_rail *rail)
{
    for (uint32_t bytes = 512;; bytes = bytes > 32 ? bytes / 2 : 0) {
        struct ibv_qp *qp = gsi_verbs_qp(rail, bytes, NULL);

        if (qp) {
            rail->rail.max_inline = bytes;
            ibv_destroy_qp(qp);
            return 0;
        }
        if (!bytes)
            return refused(rail, "queue pair");
    }
}

/* 1: connections are made by rdma_cm; 0: by the addresses exchanged, which is all that is needed inside one network. */
static int wants_manager(void)
{
    const char *how = getenv("GRADSYNC_CONNECT");

    if (!how || !how[0] || !strcmp(how, "exchange"))
        return 0;
    if (!strcmp(how, "cm"))
        return 1;
    return gsi_verbs_host.fail(GRADSYNC_ERR_INVALID, "GRADSYNC_CONNECT is \"%.40s\": use exchange or cm", how);
}

int gsi_verbs_open(const gsi_rail_config *config, gsi_rail **out)
{
    int by_manager = wants_manager();
    if (by_manager < 0)
        return by_manager;
    gsi_verbs_rail *rail = calloc(1, sizeof *rail);
    gsi_verbs_policy policy;
    int rc;

    if (!rail)
        return gsi_verbs_host.fail(GRADSYNC_ERR_NOMEM, "no memory for a rail");
    rail->config = *config;
    if ((rc = check_config(&rail->config))) {
        free(rail);
        return rc;
    }
    rail->rail.ops = &ops;
    rail->rail.numa_node = config->numa_node;
    rail->max_recv = config->recv_depth + GSI_VERBS_RECV_BATCH;
    rail->up = 1;
    rail->owner = getpid();
    snprintf(rail->rail.name, sizeof rail->rail.name, "%s:%d", rail->config.device, (int)config->port);

    gsi_verbs_prefer(config->numa_node, &policy);
    rc = gsi_verbs_device_open(rail);
    if (!rc) {
        rail->conns = calloc((size_t)config->connections, sizeof(gsi_conn *));
        rail->generations = calloc((size_t)config->connections, sizeof *rail->generations);
        if (!rail->conns || !rail->generations)
            rc = gsi_verbs_host.fail(GRADSYNC_ERR_NOMEM, "no memory for the connections of %s", rail->rail.name);
    }
    if (!rc)
        rc = make_queues(rail);
    if (!rc)
        rc = find_inline(rail);
    if (!rc && by_manager)
        rc = gsi_verbs_cm_open(rail);
    gsi_verbs_restore(&policy);
    if (rc) {
        rail_close(&rail->rail);
        return rc;
    }
    *out = &rail->rail;
    return 0;
}
