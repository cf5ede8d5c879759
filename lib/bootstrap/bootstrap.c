/* SPDX-License-Identifier: Apache-2.0 */
#include "bootstrap/rendezvous.h"
#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"

#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int gsi_bootstrap_fail_info(gsi_bootstrap *b, const gradsync_error_info *info)
{
    if (!b->failure.code) {
        b->failure = *info;
        b->failure.rank = b->job.rank;
    }
    return gsi_fail_info(&b->failure);
}

int gsi_bootstrap_fail(gsi_bootstrap *b, int code, int peer, const char *format, ...)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    va_list args;

    info.code = code;
    info.peer = peer;
    va_start(args, format);
    vsnprintf(info.message, sizeof info.message, format, args);
    va_end(args);
    return gsi_bootstrap_fail_info(b, &info);
}

void gsi_rank_list(char *out, size_t room, const unsigned char *there, int nranks)
{
    char tail[24], part[32];
    size_t at = 0;
    int tail_n = snprintf(tail, sizeof tail, " of %d", nranks);

    out[0] = 0;
    for (int i = 0; i < nranks; i++) {
        int first = i;
        if (there[i])
            continue;
        while (i + 1 < nranks && !there[i + 1])
            i++;
        int n = first == i ? snprintf(part, sizeof part, "%s%d", at ? ", " : "", first)
                           : snprintf(part, sizeof part, "%s%d-%d", at ? ", " : "", first, i);
        if (at + (size_t)(n + tail_n) + sizeof ", ..." >= room) {
            at += (size_t)snprintf(out + at, room - at, ", ...");
            break;
        }
        memcpy(out + at, part, (size_t)n + 1);
        at += (size_t)n;
    }
    snprintf(out + at, room - at, "%s", tail);
}

void gsi_place_text(char *out, size_t room, const gsi_job *job)
{
    int v6 = strchr(job->addr, ':') != NULL;
    int n = snprintf(out, room, "%s%s%s:%d", v6 ? "[" : "", job->addr, v6 ? "]" : "", job->port);

    if (job->ports > 1 && n > 0 && (size_t)n < room)
        snprintf(out + n, room - (size_t)n, "-%d", job->port + job->ports - 1);
}

int gsi_poll_ms(int64_t deadline, int most)
{
    int64_t left = deadline - gsi_now_ns();

    if (left <= 0)
        return 0;
    return left > (int64_t)most * 1000000 ? most : (int)((left + 999999) / 1000000);
}

static int check(const gsi_job *job)
{
    if (job->nranks < 1 || job->nranks > GSI_MAX_RANKS || job->rank < 0 || job->rank >= job->nranks)
        return gsi_fail(GRADSYNC_ERR_INVALID, "rank %d of %d ranks is not possible; ranks count from 0, at most %d",
                        job->rank, job->nranks, GSI_MAX_RANKS);
    if (job->nranks > 1 && (!job->addr[0] || job->port < 1 || job->ports < 0 || job->ports > GSI_JOB_PORTS ||
                            job->port + (job->ports ? job->ports : 1) - 1 > 65535))
        return gsi_fail(GRADSYNC_ERR_INVALID, "'%s' port %d is no place to meet; set GRADSYNC_ROOT=host:port",
                        job->addr, job->port);
    return 0;
}

int gsi_bootstrap_create(const gsi_job *job, const unsigned char key[GSI_KEY_BYTES], int64_t timeout_ms,
                         const gsi_log *log, gsi_bootstrap **out)
{
    int64_t deadline = gsi_deadline_ns(gsi_now_ns(), timeout_ms);
    int r = check(job);

    if (!r)
        r = gsi_sodium_ready();
    if (r)
        return r;
    gsi_bootstrap *b = gsi_calloc(1, sizeof *b);
    if (!b)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the rendezvous of %d ranks", job->nranks);
    b->job = *job;
    b->job.ports = job->ports ? job->ports : 1;
    b->timeout_ms = timeout_ms;
    if (log)
        b->log = *log;
    gsi_keys_derive(&b->keys, key, job->id);
    if (job->nranks > 1)
        r = job->rank == 0 ? gsi_root_create(b, deadline) : gsi_leaf_create(b, deadline);
    if (r) {
        gsi_bootstrap_destroy(b);
        return r;
    }
    *out = b;
    return 0;
}

int gsi_bootstrap_allgather(void *arg, const void *send, void *recv, size_t bytes)
{
    gsi_bootstrap *b = arg;
    size_t nranks = (size_t)b->job.nranks;

    if (b->failure.code)
        return gsi_fail_info(&b->failure);
    if (bytes > GSI_GATHER_MAX / nranks)
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "an all-gather of %zu bytes from each of %zu ranks exceeds the rendezvous' limit of %d MiB",
                        bytes, nranks, GSI_GATHER_MAX >> 20);
    if (nranks == 1) {
        if (bytes)
            memmove(recv, send, bytes);
        return 0;
    }
    int64_t deadline = gsi_deadline_ns(gsi_now_ns(), b->timeout_ms);
    b->seq++;
    return b->root ? gsi_root_allgather(b->root, send, recv, bytes, deadline)
                   : gsi_leaf_allgather(b->leaf, send, recv, bytes, deadline);
}

void gsi_bootstrap_destroy(gsi_bootstrap *b)
{
    if (!b)
        return;
    gsi_root_destroy(b->root);
    gsi_leaf_destroy(b->leaf);
    gsi_keys_wipe(&b->keys);
    free(b);
}
