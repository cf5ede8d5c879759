/* SPDX-License-Identifier: Apache-2.0 */
/* Point to point: arguments checked and made a call, which is run or posted. */
#include "engine/p2p.h"

#include <string.h>

#include "base/error.h"
#include "comm/comm.h"

enum { KEY_MAGIC = 0x67734b31 };

/* ---- Keys ---------------------------------------------------------------------- */

/* Of all that follows it: a key that was cut off or overwritten on its way is not taken for one. */
static uint32_t check_of(const gsi_p2p_key *key)
{
    const unsigned char *at = (const unsigned char *)&key->comm, *end = (const unsigned char *)(key + 1);
    uint32_t hash = 2166136261u; /* FNV-1a */

    for (; at < end; at++)
        hash = (hash ^ *at) * 16777619u;
    return hash;
}

static int check_comm(const gradsync_comm *comm)
{
    if (!comm)
        return gsi_fail(GRADSYNC_ERR_INVALID, "the communicator is NULL");
    return gsi_engine_check_process(&comm->engine);
}

int gradsync_mem_key(gradsync_comm *comm, gradsync_mem *mem, gradsync_key *key)
{
    gsi_p2p_key own;
    int rc = check_comm(comm);

    if (rc)
        return rc;
    if (!mem || !key)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is NULL", mem ? "key" : "the memory");
    if (mem->ctx != comm->ctx)
        return gsi_fail(GRADSYNC_ERR_INVALID, "the memory is of another context than the communicator");
    memset(key, 0, sizeof *key);
    rc = gsi_p2p_make_key(&comm->engine, &mem->memory, comm->timeout_ms, &own);
    if (rc)
        return rc;
    own.magic = KEY_MAGIC;
    own.check = check_of(&own);
    memcpy(key, &own, sizeof own);
    return 0;
}

/* Finds the target of a put or get: INVALID, UNSUPPORTED, or 0. */
static int take_key(const gradsync_comm *comm, const gradsync_key *key, uint64_t offset, gsi_p2p_call *call)
{
    gsi_p2p_key k;

    if (!key)
        return gsi_fail(GRADSYNC_ERR_INVALID, "key is NULL");
    memcpy(&k, key, sizeof k);
    if (k.magic != KEY_MAGIC || k.check != check_of(&k))
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "this is no key of gradsync_mem_key(), or it was damaged on its way here");
    if (k.comm != comm->engine.id)
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "the key is of another communicator; make one with gradsync_mem_key() for this one");
    if (k.rank != call->peer)
        return gsi_fail(GRADSYNC_ERR_INVALID, "the key is of memory of rank %d, not of rank %d", k.rank, call->peer);
    if (offset > k.bytes || call->bytes > k.bytes - offset)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%llu bytes at offset %llu are beyond the %llu bytes of rank %d's memory",
                        (unsigned long long)call->bytes, (unsigned long long)offset, (unsigned long long)k.bytes,
                        k.rank);
    call->self = (char *)(uintptr_t)(k.addr + offset);
    call->mem = k.mem;
    call->off = offset - k.head;
    if (call->peer == comm->engine.rank || !call->bytes)
        return 0;
    if (offset < k.head || call->off > k.share_bytes || call->bytes > k.share_bytes - call->off)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED,
                        "peers reach only whole pages of rank %d's memory: bytes %llu to %llu of it; register memory "
                        "that begins and ends on pages, or allocate it with gradsync_mem_alloc",
                        k.rank, (unsigned long long)k.head, (unsigned long long)(k.head + k.share_bytes));
    return 0;
}

/* ---- Calls --------------------------------------------------------------------- */

static int check_call(const gradsync_comm *comm, const gsi_p2p_call *call)
{
    int rc = check_comm(comm);

    if (rc)
        return rc;
    if (call->peer < 0 || call->peer >= comm->engine.n)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%d is no rank of %d", call->peer, comm->engine.n);
    if (call->slot >= GRADSYNC_SIGNAL_SLOTS)
        return gsi_fail(GRADSYNC_ERR_INVALID, "slot %d is not one of 0 to %d", (int)call->slot,
                        GRADSYNC_SIGNAL_SLOTS - 1);
    if (call->bytes > INT64_MAX || (call->bytes && (!call->buf || (uintptr_t)call->buf > UINTPTR_MAX - call->bytes)))
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s: %llu bytes at %p are no memory", gradsync_coll_name(call->kind),
                        (unsigned long long)call->bytes, call->buf);
    return 0;
}

static int run(gradsync_comm *comm, gsi_p2p_call *call)
{
    int rc = check_call(comm, call);
    if (rc)
        return rc;
    call->timeout_ms = comm->timeout_ms;
    return gsi_p2p_run(&comm->engine, call);
}

static int post(gradsync_comm *comm, gsi_p2p_call *call, gradsync_request **request)
{
    int rc = check_call(comm, call);
    if (rc)
        return rc;
    call->timeout_ms = comm->timeout_ms;
    return gsi_p2p_post(&comm->engine, call, (gsi_op **)request);
}

static int no_place(void)
{
    return gsi_fail(GRADSYNC_ERR_INVALID, "request is NULL; there is no place for it");
}

/* buf of a send or put is only read. */
static gsi_p2p_call message(int kind, int peer, const void *buf, uint64_t bytes, int tag, uint64_t *received)
{
    return (gsi_p2p_call){
        .kind = kind, .peer = peer, .buf = (void *)(uintptr_t)buf, .bytes = bytes, .tag = tag, .got = received};
}

int gradsync_send(gradsync_comm *comm, int peer, const void *buf, uint64_t bytes, int tag)
{
    gsi_p2p_call call = message(GRADSYNC_SEND, peer, buf, bytes, tag, NULL);
    return run(comm, &call);
}

int gradsync_send_post(gradsync_comm *comm, int peer, const void *buf, uint64_t bytes, int tag,
                       gradsync_request **request)
{
    gsi_p2p_call call = message(GRADSYNC_SEND, peer, buf, bytes, tag, NULL);
    if (!request)
        return no_place();
    *request = NULL;
    return post(comm, &call, request);
}

int gradsync_recv(gradsync_comm *comm, int peer, void *buf, uint64_t bytes, int tag, uint64_t *received)
{
    gsi_p2p_call call = message(GRADSYNC_RECV, peer, buf, bytes, tag, received);
    return run(comm, &call);
}

int gradsync_recv_post(gradsync_comm *comm, int peer, void *buf, uint64_t bytes, int tag, uint64_t *received,
                       gradsync_request **request)
{
    gsi_p2p_call call = message(GRADSYNC_RECV, peer, buf, bytes, tag, received);
    if (!request)
        return no_place();
    *request = NULL;
    return post(comm, &call, request);
}

static int access_memory(gradsync_comm *comm, int kind, int peer, const void *buf, const gradsync_key *key,
                         uint64_t offset, uint64_t bytes, int posted, gradsync_request **request)
{
    gsi_p2p_call call = message(kind, peer, buf, bytes, 0, NULL);

    if (posted && !request)
        return no_place();
    if (posted)
        *request = NULL;
    int rc = check_call(comm, &call);
    if (!rc)
        rc = take_key(comm, key, offset, &call);
    if (rc)
        return rc;
    return posted ? post(comm, &call, request) : run(comm, &call);
}

int gradsync_put(gradsync_comm *comm, int peer, const void *src, const gradsync_key *key, uint64_t offset,
                 uint64_t bytes)
{
    return access_memory(comm, GRADSYNC_PUT, peer, src, key, offset, bytes, 0, NULL);
}

int gradsync_put_post(gradsync_comm *comm, int peer, const void *src, const gradsync_key *key, uint64_t offset,
                      uint64_t bytes, gradsync_request **request)
{
    return access_memory(comm, GRADSYNC_PUT, peer, src, key, offset, bytes, 1, request);
}

int gradsync_get(gradsync_comm *comm, int peer, void *dst, const gradsync_key *key, uint64_t offset, uint64_t bytes)
{
    return access_memory(comm, GRADSYNC_GET, peer, dst, key, offset, bytes, 0, NULL);
}

int gradsync_get_post(gradsync_comm *comm, int peer, void *dst, const gradsync_key *key, uint64_t offset,
                      uint64_t bytes, gradsync_request **request)
{
    return access_memory(comm, GRADSYNC_GET, peer, dst, key, offset, bytes, 1, request);
}

int gradsync_signal(gradsync_comm *comm, int peer, int slot)
{
    gsi_p2p_call call = {.kind = GRADSYNC_SIGNAL, .peer = peer, .slot = (uint32_t)slot};
    return run(comm, &call);
}

int gradsync_signal_post(gradsync_comm *comm, int peer, int slot, gradsync_request **request)
{
    gsi_p2p_call call = {.kind = GRADSYNC_SIGNAL, .peer = peer, .slot = (uint32_t)slot};
    if (!request)
        return no_place();
    *request = NULL;
    return post(comm, &call, request);
}

int gradsync_wait_signal(gradsync_comm *comm, int peer, int slot, uint64_t value)
{
    gsi_p2p_call call = {.kind = GRADSYNC_WAIT_SIGNAL, .peer = peer, .slot = (uint32_t)slot, .value = value};
    return run(comm, &call);
}

int gradsync_signal_count(gradsync_comm *comm, int peer, int slot, uint64_t *value)
{
    gsi_p2p_call call = {.kind = GRADSYNC_WAIT_SIGNAL, .peer = peer, .slot = (uint32_t)slot};
    int rc = check_call(comm, &call);
    if (!rc && !value)
        rc = gsi_fail(GRADSYNC_ERR_INVALID, "value is NULL; there is no place for the count");
    return rc ? rc : gsi_p2p_signals(&comm->engine, peer, (uint32_t)slot, value);
}
