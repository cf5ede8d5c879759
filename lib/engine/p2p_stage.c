/* SPDX-License-Identifier: Apache-2.0 */
/* Staging memory of this rank for messages: chunks that peers can reach, made when first needed. */
#include "base/error.h"
#include "engine/p2p.h"

/* 0 ready, GRADSYNC_IN_PROGRESS, or an error. */
static int make_stage(gsi_engine *e)
{
    gsi_p2p *p = e->p2p;

    if (p->staging == 0) {
        int rc = gsi_host_alloc((size_t)GSI_P2P_CHUNK * GSI_P2P_CHUNKS, 0, -1, &p->stage);
        if (!rc) {
            rc = gsi_register_add(e->reg, &p->stage);
            if (rc)
                gsi_host_free(&p->stage);
        }
        if (rc)
            return rc;
        p->staging = 1;
    }
    if (p->staging == 1) {
        int rc = e->ep->ops->share(e->ep, &p->stage);
        if (rc)
            return rc;
        p->staging = 2;
    }
    return 0;
}

int gsi_p2p_take_chunk(gsi_engine *e, int peer)
{
    gsi_p2p *p = e->p2p;
    int rc = p->staging == 2 ? 0 : make_stage(e);

    if (rc)
        return rc == GRADSYNC_IN_PROGRESS ? -1 : -2;
    /* Messages that wait for their receivers leave half of it to those that are being received. */
    if (!~p->chunks || (peer >= 0 && p->lent >= GSI_P2P_CHUNKS / 2))
        return -1;
    int chunk = __builtin_ctz(~p->chunks);
    p->chunks |= 1u << chunk;
    p->chunk_peer[chunk] = peer;
    p->lent += peer >= 0;
    return chunk;
}

void gsi_p2p_free_chunk(gsi_p2p *p, int chunk)
{
    p->chunks &= ~(1u << chunk);
    p->lent -= p->chunk_peer[chunk] >= 0;
}

void gsi_p2p_on_release(gsi_engine *e, int peer, const gsi_p2p_mail *mail)
{
    gsi_p2p *p = e->p2p;
    uint32_t chunk = mail->u.at.window;

    if (chunk < GSI_P2P_CHUNKS && (p->chunks & 1u << chunk) && p->chunk_peer[chunk] == peer)
        gsi_p2p_free_chunk(p, (int)chunk);
}

void gsi_p2p_free_stage(gsi_engine *e)
{
    gsi_p2p *p = e->p2p;

    if (!p->staging)
        return;
    if (e->process == gsi_process()) /* else a forked child's, which may not wait for a lock */
        gsi_register_remove(e->reg, &p->stage);
    gsi_host_free(&p->stage);
    p->staging = 0;
}
