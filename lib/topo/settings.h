/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operator's RDMA settings. GRADSYNC_ variables come first; NCCL_ ones, which clusters already
 * set, are honoured where ours is unset or empty. Numbers out of bounds are errors, never clamped.
 */
#ifndef GSI_TOPO_SETTINGS_H
#define GSI_TOPO_SETTINGS_H

#include "topo/filter.h"

typedef const char *(*gsi_settings_getenv)(void *arg, const char *name);

enum gsi_rails_policy {
    GSI_RAILS_AUTO, /* GPU memory: the nearest rails. Host memory: those first, then farther ones that nobody else has
                     */
    GSI_RAILS_NEAR, /* the nearest rails only */
    GSI_RAILS_ALL   /* every rank uses every usable rail, the nearest first */
};

typedef struct gsi_settings {
    gsi_filter hca;              /* GRADSYNC_HCA, NCCL_IB_HCA */
    gsi_filter interfaces;       /* GRADSYNC_IFNAME, NCCL_SOCKET_IFNAME */
    char topo_file[256];         /* GRADSYNC_TOPO_FILE, NCCL_TOPO_FILE; "": none */
    int32_t rails;               /* GRADSYNC_RAILS=auto|near|all; enum gsi_rails_policy */
    int32_t gid_index;           /* GRADSYNC_IB_GID_INDEX, NCCL_IB_GID_INDEX: 0..65535; -1 ("auto"): by subnet */
    int32_t traffic_class;       /* GRADSYNC_IB_TC, NCCL_IB_TC: 0..255; -1: unset */
    int32_t service_level;       /* GRADSYNC_IB_SL, NCCL_IB_SL: 0..15; -1: unset */
    int32_t pkey_index;          /* GRADSYNC_IB_PKEY=3, NCCL_IB_PKEY: 0..65535; -1: unset */
    int32_t pkey_value;          /* GRADSYNC_IB_PKEY=0x8001: to be looked up in the port's table; -1: unset */
    int32_t timeout;             /* GRADSYNC_IB_TIMEOUT, NCCL_IB_TIMEOUT: 1..31, 4.096 us * 2^n; -1: unset */
    int32_t retry_count;         /* GRADSYNC_IB_RETRY_CNT, NCCL_IB_RETRY_CNT: 0..7; -1: unset */
    int32_t mtu;                 /* GRADSYNC_IB_MTU: 256, 512, 1024, 2048, 4096 bytes; 0: the port's active MTU */
    int32_t qps_per_connection;  /* GRADSYNC_QPS_PER_CONNECTION, NCCL_IB_QPS_PER_CONNECTION: 1..128; -1: unset */
    int32_t relaxed_ordering;    /* GRADSYNC_IB_RELAXED_ORDERING, NCCL_IB_PCI_RELAXED_ORDERING: 0 no, 1 yes (an
                                    error if refused), 2 (default) where the device takes it */
    int32_t disabled;            /* NCCL_IB_DISABLE=1 or GRADSYNC_IB_DISABLE=1: no RDMA is wanted */
    char gid_index_variable[32]; /* which of the two it was, for messages; "": neither */
} gsi_settings;

/* lookup NULL: the process's environment. Errors: INVALID, naming the variable, its value and the bounds. */
int gsi_settings_read(gsi_settings_getenv lookup, void *arg, gsi_settings *out);

#endif
