/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verbs provider of rail.h: what its files share. It is a module of its own
 * (libgradsync-verbs.so), linked with libibverbs, librdmacm and libnuma, and uses nothing of
 * the core but gsi_rail_host. load.c belongs to the core; everything else here to the module.
 *
 * A rail has one device context, protection domain, completion channel and completion queue; a
 * connection is one RC queue pair. ibv_fork_init() is not called, since it changes how the whole
 * process forks; kernels from 5.12 on copy pinned pages for a forked child without it. In a forked
 * child close(), disconnect() and dereg() do nothing: the device's objects are shared with the
 * parent, and what memory they leave behind there goes with the child.
 */
#ifndef GSI_VERBS_H
#define GSI_VERBS_H

#include "transport/net/rail.h"

#include <gradsync/gradsync.h>
#include <infiniband/verbs.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    GSI_VERBS_CHAIN = 32,      /* work requests that are posted together, at most */
    GSI_VERBS_STAGE = 4096,    /* bytes of inline data that wait in a chain */
    GSI_VERBS_RECV_BATCH = 16, /* receives posted together; so many more than recv_depth are there */
    GSI_VERBS_WC_BATCH = 32,   /* completions taken from the queue at once */
    GSI_VERBS_MAX_CONNS = 65535,
    GSI_VERBS_MAX_DEPTH = 1 << 20,
    GSI_VERBS_MAX_READS = 16, /* RDMA reads in flight on a connection: what common hardware has */
};

/* wr_id: bit 63 receive, 40-62 generation, 24-39 index of the connection, 0-23 number of the send. A completion of a
 * connection that is gone has a generation that no longer matches. */
#define GSI_VERBS_RECV        (UINT64_C(1) << 63)
#define GSI_VERBS_TAG_MASK    (((UINT64_C(1) << 39) - 1) << 24)
#define GSI_VERBS_NUMBER_MASK ((UINT32_C(1) << 24) - 1)

/* What one side of a connection tells the other (address.c has the wire format). */
typedef struct gsi_verbs_address {
    uint32_t qpn, psn; /* 24 bits */
    uint32_t max_bytes;
    uint16_t lid;
    uint8_t ethernet;  /* RoCE; else InfiniBand */
    uint8_t global;    /* the GID is set */
    uint8_t mtu;       /* enum ibv_mtu */
    uint8_t reads_in;  /* RDMA reads this side answers at once */
    uint8_t reads_out; /* ... and asks for */
    uint8_t gid[16];
    uint16_t cm_port; /* where this side listens for rdma_cm; 0: it does not */
    uint64_t token;   /* of this connection, for rdma_cm */
} gsi_verbs_address;

typedef struct gsi_verbs_region {
    struct ibv_mr *mr;
    uint32_t lkey;
    struct gsi_verbs_region *prev, *next; /* of the rail's list */
} gsi_verbs_region;

typedef struct gsi_verbs_cm_rail gsi_verbs_cm_rail;
typedef struct gsi_verbs_cm_conn gsi_verbs_cm_conn;

typedef struct gsi_verbs_rail {
    gsi_rail rail; /* what the endpoint sees; first, so that a gsi_rail * is one of these */
    gsi_rail_config config;
    pid_t owner; /* the process that opened it: a forked child shares the device's objects and must not destroy them */
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_device_attr device;
    struct ibv_port_attr port;
    union ibv_gid gid;
    enum ibv_mtu mtu;
    int ethernet;
    int max_recv; /* receives of a queue pair */

    struct gsi_conn **conns; /* by index; NULL: free */
    uint32_t *generations;   /* of each index, counted up when its connection goes */
    gsi_verbs_region *regions;
    gsi_verbs_cm_rail *cm; /* NULL: connections need no manager */

    uint32_t polls;     /* so that poll() looks at the async events now and then */
    int look;           /* ... or at its next call */
    int up;             /* the port, as its events told */
    int armed;          /* the completion queue will write to the channel, or has */
    unsigned unacked;   /* events of the channel; the queue cannot go before they are acknowledged */
    gsi_conn *failures; /* FAILED is to be told when the queue is empty, unless a better cause comes */

    gsi_rail_event *stash; /* events taken while a connection was ended; poll() gives them first */
    uint32_t stashed, stash_at, stash_room;
} gsi_verbs_rail;

struct gsi_conn {
    gsi_verbs_rail *rail;
    struct ibv_qp *qp;
    uint64_t tag; /* generation and index, in their places in wr_id */
    uint32_t index;
    uint32_t number; /* the endpoint's */
    uint32_t psn;
    gsi_verbs_cm_conn *cm;
    int connected;
    int failed; /* nothing is posted any more */
    int told;   /* the endpoint has its FAILED */

    uint32_t head, tail; /* sends ever posted, and of these known to be complete */
    uint32_t id_mask;
    uint64_t *ids; /* of the sends in flight, by number & id_mask */

    uint32_t chained, staged; /* requests, and bytes of inline data, that wait for ring() */
    uint32_t used;            /* receives used up and not yet posted again: below GSI_VERBS_RECV_BATCH between polls */

    gsi_conn *next_failure;
    uint64_t failed_id;
    int32_t status;
    const char *why;

    struct ibv_send_wr chain[GSI_VERBS_CHAIN]; /* each leads to the next, but while posted */
    struct ibv_sge sges[GSI_VERBS_CHAIN];
    struct ibv_recv_wr recvs[GSI_VERBS_RECV_BATCH]; /* the same for all of the connection: no memory */
    unsigned char stage[GSI_VERBS_STAGE];
};

/* The host's services; set once, before the first rail. */
extern gsi_rail_host gsi_verbs_host;

/* open.c */
int gsi_verbs_is_child(const gsi_verbs_rail *rail);
int gsi_verbs_open(const gsi_rail_config *config, gsi_rail **out);

/* device.c. Opens and checks device, port and GID; on failure, what was opened stays in the rail for close. */
int gsi_verbs_device_open(gsi_verbs_rail *rail);
/* Nominal rate of one direction, Gbit/s. */
double gsi_verbs_gbps(int width, int speed);
/* enum ibv_mtu of so many bytes; 0 if there is none. */
int gsi_verbs_mtu(int bytes);

/* address.c. Pure. unpack: NULL, or what is wrong with the blob. */
void gsi_verbs_pack(const gsi_verbs_address *address, gsi_rail_address *out);
const char *gsi_verbs_unpack(const gsi_rail_address *blob, gsi_verbs_address *out);

/* region.c */
int gsi_verbs_reg(gsi_rail *rail, void *base, uint64_t bytes, gsi_region *out);
void gsi_verbs_dereg(gsi_rail *rail, gsi_region *region);

/* conn.c */
int gsi_verbs_conn(gsi_rail *rail, uint32_t number, gsi_conn **out, gsi_rail_address *mine);
int gsi_verbs_connect(gsi_conn *conn, const gsi_rail_address *peer);
int gsi_verbs_ready(gsi_conn *conn);
void gsi_verbs_disconnect(gsi_conn *conn);
/* A queue pair with the rail's depths. NULL: errno says why. */
struct ibv_qp *gsi_verbs_qp(gsi_verbs_rail *rail, uint32_t max_inline, void *context);

/* RDMA reads at once, of what a device tells. */
uint8_t gsi_verbs_reads(int device);
/* What RTR and RTS need beyond the path: MTU and PSNs, reads; timeouts. */
void gsi_verbs_rtr_attr(const gsi_conn *conn, const gsi_verbs_address *peer, struct ibv_qp_attr *attr);
void gsi_verbs_rts_attr(const gsi_conn *conn, const gsi_verbs_address *peer, struct ibv_qp_attr *attr);

/* cm.c. Used where rail->cm is set. */
int gsi_verbs_cm_open(gsi_verbs_rail *rail);
void gsi_verbs_cm_close(gsi_verbs_rail *rail);
/* Fills its part of the address. */
int gsi_verbs_cm_begin(gsi_conn *conn, gsi_verbs_address *mine);
int gsi_verbs_cm_connect(gsi_conn *conn, const gsi_verbs_address *peer);
int gsi_verbs_cm_ready(gsi_conn *conn);
void gsi_verbs_cm_end(gsi_conn *conn);
/* Takes what the manager has to say. */
void gsi_verbs_cm_events(gsi_verbs_rail *rail);

/* post.c */
int gsi_verbs_write(gsi_conn *conn, const gsi_rail_work *work);
int gsi_verbs_read(gsi_conn *conn, const gsi_rail_work *work);
void gsi_verbs_ring(gsi_conn *conn);
/* Posts n receives, at most GSI_VERBS_RECV_BATCH; 0 or an errno. */
int gsi_verbs_post_receives(gsi_conn *conn, uint32_t n);

/* poll.c */
int gsi_verbs_poll(gsi_rail *rail, gsi_rail_event *events, int max);
int gsi_verbs_arm(gsi_rail *rail);
void gsi_verbs_disarm(gsi_rail *rail);
/* The connection is dead: FAILED will be told by a poll(), once. why: static text. */
void gsi_verbs_conn_failed(gsi_conn *conn, uint64_t id, int32_t status, const char *why);
/* Empties the completion queue into the stash, but for what is of no connection any more. */
void gsi_verbs_drain(gsi_verbs_rail *rail);

/* numa.c. What the calling thread allocates comes from the node, until restored. */
typedef struct gsi_verbs_policy {
    int set;
    int mode;
    unsigned long mask[16];
} gsi_verbs_policy;
void gsi_verbs_prefer(int node, gsi_verbs_policy *saved);
void gsi_verbs_restore(const gsi_verbs_policy *saved);

#endif
