/* SPDX-License-Identifier: Apache-2.0 */
#include "comm/context.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/process.h"
#include "comm/comm.h"
#include "reduce/reduce.h"

enum { DEFAULT_TIMEOUT_MS = 300000 };

static int timeout_from_env(int64_t *ms)
{
    const char *text = getenv("GRADSYNC_TIMEOUT");
    char *end;
    if (!text || !*text)
        return 0;
    double seconds = strtod(text, &end);
    if (*end || !(seconds > 0) || seconds > 1e9)
        return gsi_fail(GRADSYNC_ERR_INVALID, "GRADSYNC_TIMEOUT=%.40s is no number of seconds above 0", text);
    *ms = (int64_t)(seconds * 1000) > 0 ? (int64_t)(seconds * 1000) : 1;
    return 0;
}

static int check_transport(const char *name)
{
    if (!strcmp(name, "auto") || !strcmp(name, "shm") || !strcmp(name, "verbs") || !strcmp(name, "tcp"))
        return 0;
    return gsi_fail(GRADSYNC_ERR_UNSUPPORTED, "there is no transport \"%.40s\"; use auto, shm, verbs or tcp", name);
}

/* All tiers give the same bits, so another one than was asked for is no error; but it is told. */
static void check_tier(const gsi_log *log)
{
    const char *wanted = getenv("GRADSYNC_CPU_TIER"), *used = gsi_reduce_tier_best()->name;
    if (wanted && *wanted && strcmp(wanted, used))
        gsi_logf(log, GRADSYNC_LOG_WARN,
                 "GRADSYNC_CPU_TIER=%.20s is not to be had on this CPU or in this build; using %s", wanted, used);
}

int gsi_context_create(const gradsync_config *config, gradsync_context **out)
{
    const char *transport = config->transport ? config->transport : getenv("GRADSYNC_TRANSPORT");
    int64_t timeout_ms = DEFAULT_TIMEOUT_MS;
    int rc = config->timeout_ms > 0 ? 0 : timeout_from_env(&timeout_ms);

    if (!transport || !*transport)
        transport = "auto";
    if (!rc)
        rc = check_transport(transport);
    if (rc)
        return rc;
    gradsync_context *ctx = gsi_calloc(1, sizeof *ctx);
    if (!ctx)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a context");
    gsi_ticks_start();
    gsi_process_start();
    ctx->process = gsi_process();
    gsi_log_init(&ctx->log, config);
    check_tier(&ctx->log);
    ctx->timeout_ms = config->timeout_ms > 0 ? config->timeout_ms : timeout_ms;
    ctx->progress = config->progress;
    ctx->strict = config->strict;
    ctx->transport = gsi_strdup(transport);
    ctx->key = config->key ? gsi_strdup(config->key) : NULL;
    rc = !ctx->transport || (config->key && !ctx->key) ? gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a context")
                                                       : gsi_register_init(&ctx->reg);
    if (!rc && pthread_mutex_init(&ctx->lock, NULL)) {
        gsi_register_free(&ctx->reg);
        rc = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a lock");
    }
    if (rc) {
        free(ctx->transport);
        free(ctx->key);
        free(ctx);
        return rc;
    }
    *out = ctx;
    return 0;
}

static int is_own(const gradsync_context *ctx)
{
    return ctx->process == gsi_process();
}

int gsi_context_destroy(gradsync_context *ctx)
{
    if (is_own(ctx))
        pthread_mutex_lock(&ctx->lock);
    int comms = 0, mems = ctx->nmems;
    for (const gradsync_comm *c = ctx->comms; c; c = c->next)
        comms++;
    if (is_own(ctx))
        pthread_mutex_unlock(&ctx->lock);
    if (comms || mems)
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "the context still has %d communicators and %d pieces of memory; end those first", comms, mems);
    gsi_register_free(&ctx->reg);
    pthread_mutex_destroy(&ctx->lock);
    free(ctx->transport);
    if (ctx->key)
        explicit_bzero(ctx->key, strlen(ctx->key));
    free(ctx->key);
    free(ctx);
    return 0;
}

int gsi_context_add_memory(gradsync_context *ctx, const gsi_memory *memory, gradsync_mem **out)
{
    gradsync_mem *mem = gsi_calloc(1, sizeof *mem);
    if (!mem)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to note a registration");
    mem->memory = *memory;
    mem->ctx = ctx;
    int rc = gsi_register_add(&ctx->reg, &mem->memory);
    if (rc) {
        free(mem);
        return rc;
    }
    pthread_mutex_lock(&ctx->lock);
    ctx->nmems++;
    pthread_mutex_unlock(&ctx->lock);
    *out = mem;
    return 0;
}

int gsi_context_remove_memory(gradsync_mem *mem)
{
    gradsync_context *ctx = mem->ctx;
    if (!is_own(ctx)) { /* the peers talk to the parent, which still has it */
        ctx->nmems--;
        return 0;
    }
    int rc = gsi_register_remove(&ctx->reg, &mem->memory);
    if (rc)
        return rc;
    pthread_mutex_lock(&ctx->lock);
    ctx->nmems--;
    for (gradsync_comm *c = ctx->comms; c; c = c->next) {
        pthread_mutex_lock(&c->engine.lock);
        c->engine.ep->ops->unshare(c->engine.ep, mem->memory.id);
        pthread_mutex_unlock(&c->engine.lock);
    }
    pthread_mutex_unlock(&ctx->lock);
    return 0;
}
