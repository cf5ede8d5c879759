/* SPDX-License-Identifier: Apache-2.0 */
/* One collective: what was asked for, and how far it has come on this rank. */
#ifndef GSI_ENGINE_OP_H
#define GSI_ENGINE_OP_H

#include <stdatomic.h>

#include "base/cpu.h"
#include "plan/plan.h"
#include "transport/transport.h"

/* What the caller asked for, checked by api/. */
typedef struct gsi_call {
    const void *send;
    void *recv;
    uint64_t count; /* as the collective's own argument */
    double prescale;
    int64_t timeout_ms; /* > 0 */
    uint32_t flags;     /* enum gradsync_coll_flags */
    uint32_t esize;
    int32_t root;
    uint8_t coll, dtype, op, algo;
    uint8_t tag; /* what the library itself calls (split, calibration) is told apart in fingerprints */
} gsi_call;

enum gsi_op_state {
    GSI_OP_QUEUED,  /* waits for its lane */
    GSI_OP_ENTERED, /* header published, waits for the others' */
    GSI_OP_STAGE,   /* waits for the staging memory */
    GSI_OP_RUNNING,
    GSI_OP_MEETING, /* between two plans of a long message: waits until all are done with the first */
    GSI_OP_DONE,
};

struct gsi_plan_entry;
struct gsi_engine;

/* A blocking call keeps its op on the stack; a posted one is the gradsync_request. */
typedef struct gsi_op {
    gsi_call call;
    uint64_t seq;    /* its place among all collectives of the communicator, from 1 */
    uint64_t number; /* the same, as users count: the library's own have none, 0 */
    uint64_t bytes;  /* count * esize */
    uint64_t start_ticks, work_ticks;
    struct gsi_op *next;                /* in the queue */
    const struct gsi_plan_entry *entry; /* the plan that runs */
    gsi_memory *send_mem, *recv_mem;    /* held while in flight; NULL: plain */
    uint64_t segment;                   /* elements already done by earlier plans */
    int32_t state;                      /* enum gsi_op_state; under the engine's lock */
    int32_t entered_next;               /* see gsi_endpoint_ops.entered */
    int32_t attached;                   /* the payload went with the header */
    int32_t result;
    int32_t algo;
    double predicted_us, measured_us;
    /* Of posted ops: */
    struct gsi_engine *engine;
    _Atomic uint32_t done;        /* a futex: 1 when result and error are there */
    int32_t posted, detached, fd; /* under the queue's lock */
    gradsync_error_info *error;   /* filled if result < 0; of posted ops right behind the op */
} gsi_op;

/* Whether the op's deadline has passed. Told from ticks, since reading the clock costs as much as a small collective.
 */
static inline int gsi_op_is_late(const gsi_op *op)
{
    return gsi_ticks_us(gsi_ticks() - op->start_ticks) >= (double)op->call.timeout_ms * 1000;
}

#endif
