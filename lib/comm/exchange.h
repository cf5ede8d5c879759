/* SPDX-License-Identifier: Apache-2.0 */
/* What the ranks tell each other out of band while a communicator is made. */
#ifndef GSI_COMM_EXCHANGE_H
#define GSI_COMM_EXCHANGE_H

#include "topo/port.h"
#include "transport/shm/shm.h"

/* Round 1: who and where each rank is. */
typedef struct gsi_address {
    uint32_t magic, abi; /* abi: of everything that ranks share in memory or on the wire */
    int32_t rank, n;
    int32_t algo;       /* the communicator's fixed algorithm: must agree */
    int32_t strict;     /* this rank wants no fallback: then nobody takes one */
    int32_t status;     /* 0, or the error that keeps this rank from joining */
    int32_t wire;       /* the network transport asked for, if any: must agree */
    int32_t local_only; /* shared memory and nothing else is asked for */
    gsi_place place;    /* where its memory is likely to be */
    char host_id[160];  /* equal for ranks that share memory */
    gsi_shm_peer shm;
    char error[200];
} gsi_address;

/* The last round: how making the transport went. */
typedef struct gsi_outcome {
    int32_t status;
    char error[200];
} gsi_outcome;

enum { GSI_ADDRESS_MAGIC = 0x67734144, GSI_ABI = 2 };

/* Fills what tells hosts apart. */
void gsi_host_identity(char *id, size_t room, char *name, size_t name_room);

/* An exchange through the callback; errors of the callback become ours. */
int gsi_exchange(gradsync_allgather_fn allgather, void *arg, const void *send, void *recv, size_t bytes);
/* Are the ranks of one mind? 0, MISMATCH, or the error of the rank that could not join. */
int gsi_addresses_check(const gsi_address *addresses, int rank, int n);
/* 0, or the first failed rank's error; the own failure, if there is one, stays the last error. */
int gsi_outcomes_check(const gsi_outcome *outcomes, int rank, int n);

#endif
