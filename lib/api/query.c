/* SPDX-License-Identifier: Apache-2.0 */
/* Queries: what was done, what would be done, and with what. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/check.h"
#include "comm/comm.h"
#include "comm/wires.h"
#include "reduce/reduce.h"
#include "topo/system.h"
#include "transport/net/create.h"
#include "transport/span/span.h"

static int null_comm(void)
{
    return gsi_fail(GRADSYNC_ERR_INVALID, "the communicator is NULL");
}

static int rails_of(const gradsync_comm *comm)
{
    gsi_endpoint *net = gsi_span_net(comm->engine.ep);
    return strcmp(net->ops->name, "net") ? 0 : gsi_net_rails(net);
}

int gradsync_request_report(const gradsync_request *request, gradsync_report *out)
{
    const gsi_op *op = (const gsi_op *)request;
    gradsync_report report;

    if (!op)
        return gsi_fail(GRADSYNC_ERR_INVALID, "the request is NULL");
    if (!atomic_load_explicit(&op->done, memory_order_acquire))
        return gsi_fail(GRADSYNC_ERR_INVALID, "the request is not finished; wait for it first");
    gsi_engine_report(op->engine, op, &report);
    return gsi_give_info(out, &report, sizeof report, "gradsync_report");
}

int gradsync_comm_report(gradsync_comm *comm, gradsync_report *out)
{
    gradsync_report report;

    if (!comm)
        return null_comm();
    if (gsi_engine_check_process(&comm->engine))
        return GRADSYNC_ERR_INVALID;
    pthread_mutex_lock(&comm->engine.lock);
    int have = comm->engine.have_last;
    if (have)
        gsi_engine_report(&comm->engine, &comm->engine.last, &report);
    pthread_mutex_unlock(&comm->engine.lock);
    return have ? gsi_give_info(out, &report, sizeof report, "gradsync_report")
                : gsi_fail(GRADSYNC_ERR_INVALID, "no collective has finished in this communicator yet");
}

int gradsync_comm_explain(gradsync_comm *comm, int coll, uint64_t bytes, int dtype, int op, uint32_t flags,
                          int mem_kind, char *text, size_t room)
{
    if (!comm)
        return null_comm();
    size_t esize = gradsync_dtype_size(dtype), at = 0;
    if (!text || !room || coll < 0 || coll >= GRADSYNC_COLL_COUNT || !esize || op < 0 || op >= GRADSYNC_OP_COUNT ||
        mem_kind < 0 || mem_kind > GRADSYNC_MEM_REMAPPED)
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "explain: coll %d, dtype %d, op %d or mem_kind %d does not exist, or there "
                        "is no room for the text",
                        coll, dtype, op, mem_kind);
    const gsi_costs *c = &comm->engine.costs;
    gsi_call call = {.coll = (uint8_t)coll,
                     .dtype = (uint8_t)dtype,
                     .op = (uint8_t)op,
                     .flags = flags,
                     .esize = (uint32_t)esize,
                     .count = bytes / esize};
    gsi_choice choice;
    gsi_engine_choose(&comm->engine, &call, mem_kind != GRADSYNC_MEM_PLAIN, 0, 0, 0, 0, &choice);
    text[0] = 0;
    for (int i = 0; i <= GRADSYNC_ALGO_COUNT && at < room; i++) {
        const gsi_candidate *k = &choice.candidates[i % GRADSYNC_ALGO_COUNT];
        int n;
        if (i == 0)
            n = snprintf(text, room, "%s of %llu bytes over %d ranks: %s\n", gradsync_coll_name(coll),
                         (unsigned long long)bytes, comm->engine.n, choice.reason);
        else if (i == GRADSYNC_ALGO_COUNT)
            n = snprintf(text + at, room - at,
                         "measured: signal %.2f us; copy %.1f, reduce %.1f GB/s in cache; %.1f, %.1f beyond %.0f KiB; "
                         "transfer %.1f; %.1f ranks a core\n",
                         c->signal_us, c->copy_GBps, c->reduce_GBps, c->mem_copy_GBps, c->mem_reduce_GBps,
                         c->cache_bytes / 1024, c->transfer_GBps, c->ranks_per_core);
        else if (k->eligible)
            n = snprintf(text + at, room - at, "  %-12s %10.2f us  %s%s\n", gradsync_algo_name(i), k->predicted_us,
                         k->reason, i == choice.algo ? "  <- chosen" : "");
        else
            n = snprintf(text + at, room - at, "  %-12s          -     %s\n", gradsync_algo_name(i), k->reason);
        at += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

int gradsync_comm_query(const gradsync_comm *comm, gradsync_comm_info *out)
{
    if (!comm)
        return null_comm();
    gsi_endpoint *ep = comm->engine.ep;
    gradsync_comm_info info = {.rank = ep->rank,
                               .nranks = ep->n,
                               .local_rank = ep->local_rank,
                               .local_ranks = ep->local_ranks,
                               .memory_bytes = ep->ops->memory_bytes(ep) + sizeof *comm,
                               .create_ms = comm->create_ms,
                               .nrails = rails_of(comm)};
    snprintf(info.transport, sizeof info.transport, "%s", comm->transport);
    return gsi_give_info(out, &info, sizeof info, "gradsync_comm_info");
}

int gradsync_comm_peer(gradsync_comm *comm, int rank, gradsync_peer_info *out)
{
    gradsync_peer_info info = {0};

    if (!comm)
        return null_comm();
    if (rank < 0 || rank >= comm->engine.n)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%d is no rank of %d", rank, comm->engine.n);
    if (gsi_engine_check_process(&comm->engine))
        return GRADSYNC_ERR_INVALID;
    pthread_mutex_lock(&comm->engine.lock);
    comm->engine.ep->ops->peer_info(comm->engine.ep, rank, &info);
    pthread_mutex_unlock(&comm->engine.lock);
    return gsi_give_info(out, &info, sizeof info, "gradsync_peer_info");
}

int gradsync_comm_rail(gradsync_comm *comm, int index, gradsync_rail_info *out)
{
    gradsync_rail_info info = {0};

    if (!comm)
        return null_comm();
    if (gsi_engine_check_process(&comm->engine))
        return GRADSYNC_ERR_INVALID;
    int rails = rails_of(comm);
    if (!rails)
        return gsi_fail(GRADSYNC_ERR_INVALID, "there is no rail %d: %s needs none", index, comm->transport);
    if (index < 0 || index >= rails)
        return gsi_fail(GRADSYNC_ERR_INVALID, "there is no rail %d of %d", index, rails);
    pthread_mutex_lock(&comm->engine.lock);
    gsi_net_rail(gsi_span_net(comm->engine.ep), index, &info);
    pthread_mutex_unlock(&comm->engine.lock);
    return gsi_give_info(out, &info, sizeof info, "gradsync_rail_info");
}

int gradsync_comm_counters(gradsync_comm *comm, gradsync_counters *out)
{
    if (!comm)
        return null_comm();
    if (gsi_engine_check_process(&comm->engine))
        return GRADSYNC_ERR_INVALID;
    pthread_mutex_lock(&comm->engine.lock);
    gradsync_counters counters = comm->engine.counters;
    comm->engine.ep->ops->counters(comm->engine.ep, &counters);
    pthread_mutex_unlock(&comm->engine.lock);
    return gsi_give_info(out, &counters, sizeof counters, "gradsync_counters");
}

int gradsync_context_query(gradsync_context *ctx, gradsync_system_info *out)
{
    gradsync_system_info info = {.page_bytes = (uint64_t)sysconf(_SC_PAGESIZE)};
    gsi_system system;
    cpu_set_t cpus;

    if (!ctx)
        return gsi_fail(GRADSYNC_ERR_INVALID, "the context is NULL");
    gsi_system_read("", &system);
    info.cpus = sched_getaffinity(0, sizeof cpus, &cpus) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&cpus);
    info.numa_nodes = system.numa_nodes;
    info.rdma_devices = system.rdma_devices;
    info.huge_page_bytes = gsi_host_huge_pages(info.huge_pages, sizeof info.huge_pages);
    snprintf(info.cpu_tier, sizeof info.cpu_tier, "%s", gsi_reduce_tier_best()->name);
    snprintf(info.cpu_model, sizeof info.cpu_model, "%s", system.cpu_model);
    return gsi_give_info(out, &info, sizeof info, "gradsync_system_info");
}

int gradsync_context_transport(gradsync_context *ctx, int index, gradsync_transport_info *out)
{
    gradsync_transport_info info = {0};

    if (!ctx)
        return gsi_fail(GRADSYNC_ERR_INVALID, "the context is NULL");
    switch (index) {
    case 0:
        info.usable = 1;
        snprintf(info.name, sizeof info.name, "shm");
        snprintf(info.reason, sizeof info.reason, "memfd, for ranks of one host");
        break;
    case 1:
        snprintf(info.name, sizeof info.name, "verbs");
        info.usable = gsi_wire_usable(GSI_WIRE_VERBS, &ctx->log, info.reason, sizeof info.reason);
        break;
    case 2:
        snprintf(info.name, sizeof info.name, "tcp");
        info.usable = gsi_wire_usable(GSI_WIRE_TCP, &ctx->log, info.reason, sizeof info.reason);
        break;
    default:
        return gsi_fail(GRADSYNC_ERR_INVALID, "there is no transport %d", index);
    }
    return gsi_give_info(out, &info, sizeof info, "gradsync_transport_info");
}
