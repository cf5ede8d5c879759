/* SPDX-License-Identifier: Apache-2.0 */
/* Contexts and memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/check.h"
#include "base/process.h"
#include "comm/context.h"

int gradsync_context_create(const gradsync_config *config, gradsync_context **out)
{
    gradsync_config own = GRADSYNC_CONFIG_INIT;

    if (!out)
        return gsi_fail(GRADSYNC_ERR_INVALID, "out is NULL; there is no place for the context");
    *out = NULL;
    int rc = gsi_take_config(&own, config, sizeof own, "gradsync_config");
    if (rc)
        return rc;
    if (own.log_level < 0 || own.log_level > GRADSYNC_LOG_DEBUG || own.progress < 0 ||
        own.progress > GRADSYNC_PROGRESS_MANUAL || own.timeout_ms < 0)
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "gradsync_config: log_level %d, progress %d or timeout_ms %lld is out of "
                        "range",
                        own.log_level, own.progress, (long long)own.timeout_ms);
    return gsi_context_create(&own, out);
}

int gradsync_context_destroy(gradsync_context *ctx)
{
    return ctx ? gsi_context_destroy(ctx) : 0;
}

static int check_memory(gradsync_context *ctx, size_t bytes, const gradsync_mem_config *config,
                        gradsync_mem_config *own, gradsync_mem **out)
{
    if (!ctx || !out)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is NULL", ctx ? "out" : "the context");
    *out = NULL;
    if (!bytes)
        return gsi_fail(GRADSYNC_ERR_INVALID, "0 bytes of memory cannot be allocated or registered");
    int rc = gsi_take_config(own, config, sizeof *own, "gradsync_mem_config");
    if (rc)
        return rc;
    if (own->flags & ~(uint32_t)(GRADSYNC_MEM_REMAP | GRADSYNC_MEM_NO_HUGE) || own->numa_node < 0)
        return gsi_fail(GRADSYNC_ERR_INVALID, "gradsync_mem_config: flags 0x%x or numa_node %d is out of range",
                        own->flags, own->numa_node);
    return 0;
}

int gradsync_mem_alloc(gradsync_context *ctx, size_t bytes, const gradsync_mem_config *config, gradsync_mem **out)
{
    gradsync_mem_config own = GRADSYNC_MEM_CONFIG_INIT;
    gsi_memory memory;
    int rc = check_memory(ctx, bytes, config, &own, out);

    if (!rc)
        rc = gsi_host_alloc(bytes, !(own.flags & GRADSYNC_MEM_NO_HUGE), own.numa_node - 1, &memory);
    if (rc)
        return rc;
    rc = gsi_context_add_memory(ctx, &memory, out);
    if (rc)
        gsi_host_free(&memory);
    return rc;
}

int gradsync_mem_register(gradsync_context *ctx, void *addr, size_t bytes, const gradsync_mem_config *config,
                          gradsync_mem **out)
{
    gradsync_mem_config own = GRADSYNC_MEM_CONFIG_INIT;
    gsi_memory memory = {.kind = GRADSYNC_MEM_PLAIN, .addr = addr, .bytes = bytes, .fd = -1};
    int rc = check_memory(ctx, bytes, config, &own, out);

    if (rc)
        return rc;
    if (!addr || (uintptr_t)addr > UINTPTR_MAX - bytes)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%zu bytes at %p are no memory", bytes, addr);
    if (!(own.flags & GRADSYNC_MEM_REMAP)) {
        snprintf(memory.reason, sizeof memory.reason,
                 "private to this process: peers reach it through staging; GRADSYNC_MEM_REMAP or gradsync_mem_alloc "
                 "make it direct");
        return gsi_context_add_memory(ctx, &memory, out);
    }
    /* Noted before it is moved, so that an overlap is refused with nothing done. */
    memory.changing = 1;
    rc = gsi_context_add_memory(ctx, &memory, out);
    if (rc)
        return rc;
    rc = gsi_host_remap(addr, bytes, &memory);
    if (rc) {
        gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
        gradsync_last_error(&info);
        gsi_context_remove_memory(*out);
        free(*out);
        *out = NULL;
        return gsi_fail_info(&info);
    }
    gsi_register_end_change(&ctx->reg, &(*out)->memory, &memory);
    return 0;
}

int gradsync_mem_deregister(gradsync_mem *mem)
{
    if (!mem || mem->memory.kind == GRADSYNC_MEM_LIBRARY)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s",
                        mem ? "memory from gradsync_mem_alloc ends with gradsync_mem_free" : "the memory is NULL");
    /* The pages first: if that fails the memory stays registered, though collectives take it for plain memory. */
    int own = mem->ctx->process == gsi_process(); /* else a forked child's, which may not wait for a lock */
    int rc = own ? gsi_register_begin_change(&mem->ctx->reg, &mem->memory) : 0;
    if (!rc && mem->memory.kind == GRADSYNC_MEM_REMAPPED)
        rc = gsi_host_unmap(&mem->memory);
    if (!rc)
        rc = gsi_context_remove_memory(mem);
    if (!rc)
        free(mem);
    return rc;
}

int gradsync_mem_free(gradsync_mem *mem)
{
    if (!mem)
        return 0;
    if (mem->memory.kind != GRADSYNC_MEM_LIBRARY)
        return gsi_fail(GRADSYNC_ERR_INVALID, "registered memory ends with gradsync_mem_deregister");
    int rc = gsi_context_remove_memory(mem);
    if (rc)
        return rc;
    gsi_host_free(&mem->memory);
    free(mem);
    return 0;
}

void *gradsync_mem_addr(const gradsync_mem *mem)
{
    return mem ? mem->memory.addr : NULL;
}

int gradsync_mem_query(const gradsync_mem *mem, gradsync_mem_info *out)
{
    if (!mem)
        return gsi_fail(GRADSYNC_ERR_INVALID, "the memory is NULL");
    const gsi_memory *m = &mem->memory;
    gradsync_mem_info info = {.kind = m->kind,
                              .addr = m->addr,
                              .bytes = m->bytes,
                              .page_bytes = m->page_bytes,
                              .numa_node = gsi_host_node_of(m->addr),
                              .shareable = m->fd >= 0};
    snprintf(info.reason, sizeof info.reason, "%s", m->reason);
    return gsi_give_info(out, &info, sizeof info, "gradsync_mem_info");
}
