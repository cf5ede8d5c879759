/* SPDX-License-Identifier: Apache-2.0 */
/* The collectives: arguments checked and made a call, which is run or posted. */
#include "api/check.h"
#include "comm/comm.h"

/* What a collective reads and writes, in blocks of count elements. */
typedef struct shape {
    uint64_t send_blocks, recv_blocks; /* 0: not used on this rank */
    int64_t in_place;                  /* recv == send + in_place blocks is in place */
} shape;

static shape shape_of(const gradsync_comm *comm, const gsi_call *call)
{
    uint64_t n = (uint64_t)comm->engine.n;
    int is_root = call->root == comm->engine.rank;

    switch (call->coll) {
    case GRADSYNC_REDUCE_SCATTER:
        return (shape){n, 1, comm->engine.rank};
    case GRADSYNC_ALL_GATHER:
        return (shape){1, n, -(int64_t)comm->engine.rank};
    case GRADSYNC_BROADCAST:
        return (shape){is_root, 1, 0};
    case GRADSYNC_REDUCE:
        return (shape){1, is_root, 0};
    default:
        return (shape){1, 1, 0};
    }
}

static int check_buffers(const gradsync_comm *comm, const gsi_call *call)
{
    shape s = shape_of(comm, call);
    uint64_t most = s.send_blocks > s.recv_blocks ? s.send_blocks : s.recv_blocks;

    if (call->count > (uint64_t)INT64_MAX / call->esize / (most ? most : 1))
        return gsi_fail(GRADSYNC_ERR_INVALID, "%llu elements of %s are more than memory can hold",
                        (unsigned long long)call->count, gradsync_dtype_name(call->dtype));
    if (!call->count)
        return 0;
    if ((s.send_blocks && !call->send) || (s.recv_blocks && !call->recv))
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s: %s is NULL", gradsync_coll_name(call->coll),
                        s.send_blocks && !call->send ? "send" : "recv");
    if (!s.send_blocks || !s.recv_blocks)
        return 0;
    uint64_t block = call->count * call->esize;
    uintptr_t send = (uintptr_t)call->send, recv = (uintptr_t)call->recv;
    if (recv == send + (uintptr_t)(s.in_place * (int64_t)block))
        return 0;
    if (send < recv + s.recv_blocks * block && recv < send + s.send_blocks * block)
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "%s: send and recv overlap, but not as a call in place does (see its manual)",
                        gradsync_coll_name(call->coll));
    return 0;
}

static int check_values(const gradsync_comm *comm, const gsi_call *call)
{
    int reduces =
        call->coll == GRADSYNC_ALL_REDUCE || call->coll == GRADSYNC_REDUCE_SCATTER || call->coll == GRADSYNC_REDUCE;
    int rooted = call->coll == GRADSYNC_BROADCAST || call->coll == GRADSYNC_REDUCE;
    int scaled = call->op == GRADSYNC_PREMUL_SUM || (call->flags & GRADSYNC_PRESCALE);

    if (!call->esize)
        return gsi_fail(GRADSYNC_ERR_INVALID, "dtype %d does not exist", call->dtype);
    if (reduces && call->op >= GRADSYNC_OP_COUNT)
        return gsi_fail(GRADSYNC_ERR_INVALID, "op %d does not exist", call->op);
    if (rooted && (call->root < 0 || call->root >= comm->engine.n))
        return gsi_fail(GRADSYNC_ERR_INVALID, "root %d is no rank of %d", call->root, comm->engine.n);
    if (scaled && (!reduces || call->dtype > GRADSYNC_BF16))
        return gsi_fail(GRADSYNC_ERR_INVALID, "a prescale needs a reduction of a floating type, not %s of %s",
                        gradsync_coll_name(call->coll), gradsync_dtype_name(call->dtype));
    if ((call->flags & GRADSYNC_PRESCALE) && call->op != GRADSYNC_SUM && call->op != GRADSYNC_AVG &&
        call->op != GRADSYNC_PREMUL_SUM)
        return gsi_fail(GRADSYNC_ERR_INVALID, "a prescale goes with sum and avg, not with %s",
                        gradsync_op_name(call->op));
    return 0;
}

static int take_opts(const gradsync_comm *comm, const gradsync_coll_opts *opts, gsi_call *call)
{
    call->timeout_ms = comm->timeout_ms;
    if (!opts)
        return call->op == GRADSYNC_PREMUL_SUM
                   ? gsi_fail(GRADSYNC_ERR_INVALID, "premul_sum needs opts.prescale, this rank's factor")
                   : 0;
    gradsync_coll_opts own = GRADSYNC_COLL_OPTS_INIT;
    int rc = gsi_take_config(&own, opts, sizeof own, "gradsync_coll_opts");
    if (rc)
        return rc;
    if (own.flags & ~(uint32_t)(GRADSYNC_ORDERED | GRADSYNC_PRESCALE) || own.timeout_ms < 0 || own.algo < 0 ||
        own.algo >= GRADSYNC_ALGO_COUNT)
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "gradsync_coll_opts: flags 0x%x, timeout_ms %lld or algo %d is out of range", own.flags,
                        (long long)own.timeout_ms, own.algo);
    if (own.stream)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED, "this build has no GPU support; opts.stream must be NULL");
    call->flags = own.flags;
    call->prescale = own.prescale;
    call->algo = (uint8_t)own.algo;
    if (own.timeout_ms)
        call->timeout_ms = own.timeout_ms;
    return 0;
}

/* Runs the call, or posts it if there is a place for the request. */
static int begin(gradsync_comm *comm, gsi_call *call, int dtype, int op, const gradsync_coll_opts *opts, int post,
                 gradsync_request **request)
{
    if (post && !request)
        return gsi_fail(GRADSYNC_ERR_INVALID, "request is NULL; there is no place for it");
    if (post)
        *request = NULL;
    if (!comm)
        return gsi_fail(GRADSYNC_ERR_INVALID, "the communicator is NULL");
    if (gsi_engine_check_process(&comm->engine))
        return GRADSYNC_ERR_INVALID;
    if (dtype < 0 || dtype >= GRADSYNC_DTYPE_COUNT || op < 0 || op >= GRADSYNC_OP_COUNT)
        return gsi_fail(GRADSYNC_ERR_INVALID, "dtype %d or op %d does not exist", dtype, op);
    call->dtype = (uint8_t)dtype;
    call->op = (uint8_t)op;
    call->esize = (uint32_t)gradsync_dtype_size(dtype);
    int rc = take_opts(comm, opts, call);
    if (!rc)
        rc = check_values(comm, call);
    if (!rc)
        rc = check_buffers(comm, call);
    if (rc)
        return rc;
    return post ? gsi_engine_post(&comm->engine, call, (gsi_op **)request) : gsi_engine_run(&comm->engine, call);
}

int gradsync_all_reduce(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype, int op,
                        const gradsync_coll_opts *opts)
{
    gsi_call call = {.coll = GRADSYNC_ALL_REDUCE, .send = send, .recv = recv, .count = count};
    return begin(comm, &call, dtype, op, opts, 0, NULL);
}

int gradsync_all_reduce_post(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype, int op,
                             const gradsync_coll_opts *opts, gradsync_request **request)
{
    gsi_call call = {.coll = GRADSYNC_ALL_REDUCE, .send = send, .recv = recv, .count = count};
    return begin(comm, &call, dtype, op, opts, 1, request);
}

int gradsync_reduce_scatter(gradsync_comm *comm, const void *send, void *recv, uint64_t recvcount, int dtype, int op,
                            const gradsync_coll_opts *opts)
{
    gsi_call call = {.coll = GRADSYNC_REDUCE_SCATTER, .send = send, .recv = recv, .count = recvcount};
    return begin(comm, &call, dtype, op, opts, 0, NULL);
}

int gradsync_reduce_scatter_post(gradsync_comm *comm, const void *send, void *recv, uint64_t recvcount, int dtype,
                                 int op, const gradsync_coll_opts *opts, gradsync_request **request)
{
    gsi_call call = {.coll = GRADSYNC_REDUCE_SCATTER, .send = send, .recv = recv, .count = recvcount};
    return begin(comm, &call, dtype, op, opts, 1, request);
}

int gradsync_all_gather(gradsync_comm *comm, const void *send, void *recv, uint64_t sendcount, int dtype,
                        const gradsync_coll_opts *opts)
{
    gsi_call call = {.coll = GRADSYNC_ALL_GATHER, .send = send, .recv = recv, .count = sendcount};
    return begin(comm, &call, dtype, GRADSYNC_SUM, opts, 0, NULL);
}

int gradsync_all_gather_post(gradsync_comm *comm, const void *send, void *recv, uint64_t sendcount, int dtype,
                             const gradsync_coll_opts *opts, gradsync_request **request)
{
    gsi_call call = {.coll = GRADSYNC_ALL_GATHER, .send = send, .recv = recv, .count = sendcount};
    return begin(comm, &call, dtype, GRADSYNC_SUM, opts, 1, request);
}

int gradsync_broadcast(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype, int root,
                       const gradsync_coll_opts *opts)
{
    gsi_call call = {.coll = GRADSYNC_BROADCAST, .send = send, .recv = recv, .count = count, .root = root};
    return begin(comm, &call, dtype, GRADSYNC_SUM, opts, 0, NULL);
}

int gradsync_broadcast_post(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype, int root,
                            const gradsync_coll_opts *opts, gradsync_request **request)
{
    gsi_call call = {.coll = GRADSYNC_BROADCAST, .send = send, .recv = recv, .count = count, .root = root};
    return begin(comm, &call, dtype, GRADSYNC_SUM, opts, 1, request);
}

int gradsync_reduce(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype, int op, int root,
                    const gradsync_coll_opts *opts)
{
    gsi_call call = {.coll = GRADSYNC_REDUCE, .send = send, .recv = recv, .count = count, .root = root};
    return begin(comm, &call, dtype, op, opts, 0, NULL);
}

int gradsync_reduce_post(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype, int op, int root,
                         const gradsync_coll_opts *opts, gradsync_request **request)
{
    gsi_call call = {.coll = GRADSYNC_REDUCE, .send = send, .recv = recv, .count = count, .root = root};
    return begin(comm, &call, dtype, op, opts, 1, request);
}

int gradsync_barrier(gradsync_comm *comm, const gradsync_coll_opts *opts)
{
    gsi_call call = {.coll = GRADSYNC_BARRIER};
    return begin(comm, &call, GRADSYNC_U8, GRADSYNC_SUM, opts, 0, NULL);
}

int gradsync_barrier_post(gradsync_comm *comm, const gradsync_coll_opts *opts, gradsync_request **request)
{
    gsi_call call = {.coll = GRADSYNC_BARRIER};
    return begin(comm, &call, GRADSYNC_U8, GRADSYNC_SUM, opts, 1, request);
}
