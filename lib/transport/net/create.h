/* SPDX-License-Identifier: Apache-2.0 */
/* Making an endpoint between hosts: open the rails, exchange what each rank needs to reach each other, connect. */
#ifndef GSI_NET_CREATE_H
#define GSI_NET_CREATE_H

#include "transport/net/rail.h"
#include "transport/transport.h"

enum {
    GSI_NET_RAILS = 8, /* of one rank */
    GSI_NET_CONNS = 8, /* between two ranks */
    GSI_NET_FDS = 2 * GSI_NET_RAILS + 1,
};

/* What all ranks are told of one rank before they connect. */
typedef struct gsi_net_card {
    uint64_t area, stage; /* addresses */
    uint64_t area_keys[GSI_NET_RAILS], stage_keys[GSI_NET_RAILS];
    int32_t nrails, status;
} gsi_net_card;

/* One rank's connection addresses, by peer: of the connection k to each. */
typedef struct gsi_net_row {
    gsi_rail_address conns[GSI_NET_CONNS];
} gsi_net_row;

/* Which rails two ranks use with each other: connection k is on my rail mine[k] and the peer's rail theirs[k]. The two
 * ranks' pairs mirror each other. */
typedef struct gsi_net_pairs {
    int32_t count; /* 0: no connections to that rank (itself, or one that is reached otherwise) */
    uint8_t mine[GSI_NET_CONNS], theirs[GSI_NET_CONNS];
} gsi_net_pairs;

typedef struct gsi_net_peer {
    int64_t pid;
    char host[64];
} gsi_net_peer;

typedef struct gsi_net_config {
    int rank, n;
    gsi_rail *rails[GSI_NET_RAILS];     /* open; the endpoint owns them from here on */
    const char *reasons[GSI_NET_RAILS]; /* why each is used */
    int nrails;
    const gsi_net_pairs *pairs; /* n */
    const gsi_net_peer *peers;  /* n */
    /* What every rank has of these, alike: some may be on hosts where shared memory sets it. 0: as much as is good
     * between hosts. */
    uint64_t stage_bytes, slot_bytes;
    void *stage;         /* memory of stage_bytes that peers put to; NULL: the endpoint's own */
    const int32_t *host; /* n, copied: the host of each rank; NULL: each is on one of its own */
    int local_rank, local_ranks;
    const gsi_log *log;
} gsi_net_config;

/* The three steps; after an error the endpoint is to be freed by its destroy operation. */
/* 1: memory and connections; fills this rank's card and row (rows: n, by peer). Errors: NOMEM, DEVICE, SYSTEM. */
int gsi_net_prepare(const gsi_net_config *config, gsi_net_card *card, gsi_net_row *row, gsi_endpoint **out);
/* 2: connects. cards: of all ranks; theirs[r]: what rank r's row says of this rank. */
int gsi_net_join(gsi_endpoint *ep, const gsi_net_card *cards, const gsi_net_row *theirs);
/* 3: waits until every connection has proved itself in both directions. A connection that does not is left out, as
 * long as another one to that peer does. Errors: TIMEOUT, DEVICE. */
int gsi_net_prove(gsi_endpoint *ep, int64_t deadline_ns);

/* The descriptors to sleep on, for who sleeps for more than this endpoint: GSI_NET_FDS at most; how many. */
struct pollfd;
int gsi_net_fds(gsi_endpoint *ep, struct pollfd *fds);

/* For queries. */
int gsi_net_rails(gsi_endpoint *ep);
void gsi_net_rail(gsi_endpoint *ep, int index, gradsync_rail_info *out);

#endif
