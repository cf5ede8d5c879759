/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of devices as operators write them: GRADSYNC_HCA, NCCL_IB_HCA, NCCL_SOCKET_IFNAME.
 *
 *   mlx5_0,mlx5_1:1    devices whose names begin so; with a port, that port of them only
 *   =mlx5_1            exactly this name: not mlx5_10
 *   ^mlx5_bond,mlx5_9  in front of the list: all but these
 *   mlx5,^mlx5_bond    further on: all mlx5 but this one
 *
 * A "=" in front of the list, too, holds for all of it ("^=a,b": all but exactly a and b). Pure.
 */
#ifndef GSI_TOPO_FILTER_H
#define GSI_TOPO_FILTER_H

#include "topo/port.h"

enum { GSI_FILTER_ITEMS = 128 };

typedef struct gsi_filter_item {
    char name[GSI_RDMA_NAME];
    int16_t port; /* -1: any */
    int8_t exact, exclude;
} gsi_filter_item;

typedef struct gsi_filter {
    char variable[32]; /* where it came from, for messages: "GRADSYNC_HCA" */
    gsi_filter_item items[GSI_FILTER_ITEMS];
    int n; /* 0: everything passes */
} gsi_filter;

/* Parses `list` (NULL or "": everything passes). ports: 1 if ":port" may follow a name, 0 for network
 * interfaces, where a colon belongs to the name. variable: the list's name in messages.
 * Errors: INVALID, with a sentence that says what is wrong and how to write it. */
int gsi_filter_parse(const char *variable, const char *list, int ports, gsi_filter *out);
/* 1 if the device passes; port -1 for what has none. *item (may be NULL) becomes the item that decided
 * (included or excluded it), or NULL if none did. */
int gsi_filter_match(const gsi_filter *filter, const char *device, int port, const gsi_filter_item **item);

#endif
