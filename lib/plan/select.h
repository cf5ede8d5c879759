/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The selector: which algorithm has the lowest predicted time. Pure: it works from
 * costs that were measured when the communicator was made (comm/calibrate), which
 * are equal on all ranks, so that all ranks choose the same.
 */
#ifndef GSI_PLAN_SELECT_H
#define GSI_PLAN_SELECT_H

#include "plan/plan.h"

/* Measured costs of a communicator, agreed between its ranks (the slowest counts). */
typedef struct gsi_costs {
    double signal_us;     /* a signal from one rank to all others, until the last has seen it */
    double step_us;       /* bookkeeping of a step */
    double put_us;        /* posting one PUT or small copy to a peer, and its notification's latency */
    double copy_GBps;     /* one rank copying cached memory, bytes copied per ns, all ranks at it */
    double reduce_GBps;   /* one rank reducing from cached memory, source bytes per ns, all ranks at it */
    double mem_copy_GBps; /* the same from memory beyond the caches */
    double mem_reduce_GBps;
    double transfer_GBps;  /* one rank taking what another has just written in its cache, all ranks at it; 0: free */
    double cache_bytes;    /* where "beyond the caches" begins, for one rank's share */
    double ranks_per_core; /* >= 1: ranks that share a core take turns */
    /* Between hosts; all 0: there are none. */
    double wire_us;    /* a message without bytes, from posting it until the receiver has seen its notification */
    double wire_GBps;  /* one rank sending over all of its rails while it receives as much, bytes per ns */
    double host_GBps;  /* all ranks of a host sending at once; 0: they share the same rails, so the same */
    double message_us; /* of a rank's core, for posting a message and for taking one in */
    double
        message_bytes; /* bytes that would take the wire as long as a message without any: see gsi_plan_args.message */
} gsi_costs;

typedef struct gsi_select_args {
    int32_t coll, n;
    uint64_t bytes; /* of the message: count times element size */
    uint32_t esize;
    uint32_t flags;      /* enum gradsync_coll_flags */
    int32_t shareable;   /* 1: all ranks' buffers can be reached by all (but for head and tail) */
    uint64_t head, tail; /* see gsi_plan_args */
    int32_t fixed;       /* enum gradsync_algo asked for; AUTO: free choice */
    uint64_t slot_bytes, stage_bytes;
    int32_t loadstore; /* 1: the transport can load and store peers' memory */
    /* Over several hosts `shareable` says that PUTs of all ranks reach all buffers. */
    const gsi_hosts *hosts; /* which ranks share a host; NULL: all of them */
    int32_t share;          /* see gsi_plan_args */
    int32_t unsent;         /* 1: not every rank's contribution came with its header: no oneshot */
    uint32_t credits;       /* see gsi_plan_args */
} gsi_select_args;

typedef struct gsi_candidate {
    int32_t algo;
    int32_t eligible;
    double predicted_us; /* of eligible ones */
    char reason[120];    /* why not eligible; or what the prediction is made of */
} gsi_candidate;

typedef struct gsi_choice {
    int32_t algo; /* the chosen one; 0: none can serve (see the reasons) */
    double predicted_us;
    char reason[256];                              /* a sentence */
    gsi_candidate candidates[GRADSYNC_ALGO_COUNT]; /* by enum gradsync_algo; [0] unused */
} gsi_choice;

/* Chooses. `brief`: fill algo and predicted_us only (no texts). */
void gsi_select(const gsi_costs *costs, const gsi_select_args *args, int brief, gsi_choice *out);

#endif
