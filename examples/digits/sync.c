/* SPDX-License-Identifier: Apache-2.0 */
#include "sync.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ALIGN = 64 }; /* bytes: buckets share no cache line */

double sync_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static size_t padded(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* To the nearest bf16, ties to even. */
static void to_bf16(uint16_t *restrict out, const float *restrict in, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;

        memcpy(&bits, &in[i], sizeof(bits));
        if ((bits & 0x7fffffffu) > 0x7f800000u)
            out[i] = 0x7fc0; /* NaN */
        else
            out[i] = (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
}

static void from_bf16(float *restrict out, const uint16_t *restrict in, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)in[i] << 16;

        memcpy(&out[i], &bits, sizeof(bits));
    }
}

int sync_create(grad_sync *s, gradsync_context *ctx, gradsync_comm *comm, const mlp *m, const options *o)
{
    size_t wire_bytes = 0, grad_bytes = 0, esize = gradsync_dtype_size(o->dtype);
    char *wire, *grad;
    int rc = GRADSYNC_OK;

    *s = (grad_sync){.comm = comm, .dtype = o->dtype, .nbuckets = m->nlayers, .opts = GRADSYNC_COLL_OPTS_INIT};
    s->opts.algo = o->algo;
    s->opts.flags = o->ordered ? GRADSYNC_ORDERED : 0;
    for (size_t l = 0; l < m->nlayers; l++) {
        wire_bytes += padded(m->layer[l].count * esize);
        grad_bytes += padded(m->layer[l].count * sizeof(float));
    }

    if (o->plain) {
        wire = s->plain = aligned_alloc(ALIGN, wire_bytes);
    } else {
        rc = gradsync_mem_alloc(ctx, wire_bytes, NULL, &s->mem);
        wire = rc == GRADSYNC_OK ? gradsync_mem_addr(s->mem) : NULL;
    }
    if (o->dtype != GRADSYNC_F32)
        s->grads = aligned_alloc(ALIGN, grad_bytes);
    grad = s->grads;
    if (!wire || (o->dtype != GRADSYNC_F32 && !grad)) {
        sync_destroy(s);
        return rc != GRADSYNC_OK ? rc : GRADSYNC_ERR_NOMEM;
    }

    for (size_t l = 0; l < m->nlayers; l++) {
        sync_bucket *b = &s->bucket[l];

        *b = (sync_bucket){.count = m->layer[l].count, .wire = wire, .grad = grad ? (void *)grad : (void *)wire};
        wire += padded(b->count * esize);
        if (grad)
            grad += padded(b->count * sizeof(float));
    }
    return GRADSYNC_OK;
}

void sync_abandon(grad_sync *s)
{
    for (size_t l = 0; l < s->nbuckets; l++) {
        gradsync_request_free(s->bucket[l].request);
        s->bucket[l].request = NULL;
    }
}

void sync_destroy(grad_sync *s)
{
    gradsync_mem_free(s->mem);
    free(s->plain);
    free(s->grads);
    *s = (grad_sync){0};
}

int sync_post(grad_sync *s, size_t l, double scale)
{
    sync_bucket *b = &s->bucket[l];
    double begin = sync_now();
    int rc;

    if (s->dtype == GRADSYNC_BF16)
        to_bf16(b->wire, b->grad, b->count);
    s->opts.prescale = scale;
    rc = gradsync_all_reduce_post(s->comm, b->wire, b->wire, b->count, s->dtype, GRADSYNC_PREMUL_SUM, &s->opts,
                                  &b->request);
    s->exposed_s += sync_now() - begin;
    return rc;
}

int sync_wait(grad_sync *s, size_t l)
{
    sync_bucket *b = &s->bucket[l];
    gradsync_report report = {.size = sizeof(report)};
    double begin = sync_now();
    int rc = gradsync_wait(b->request);

    if (gradsync_request_report(b->request, &report) == GRADSYNC_OK) {
        s->collective_s += report.measured_us * 1e-6;
        s->last_algo = report.algo;
    }
    gradsync_request_free(b->request);
    b->request = NULL;
    if (rc == GRADSYNC_OK && s->dtype == GRADSYNC_BF16)
        from_bf16(b->grad, b->wire, b->count);
    s->exposed_s += sync_now() - begin;
    return rc;
}
