/* SPDX-License-Identifier: Apache-2.0 */
/* Small messages in order, and one-sided access by ticket: what point-to-point operations are made of. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "transport/net/net.h"

enum { TELL_EVERY = NET_MAIL_SLOTS / 4 };

/* ---- Mail ------------------------------------------------------------------------- */

int net_mail_send(net_endpoint *ep, net_peer *peer, int ring, int kind, const void *body, uint32_t bytes)
{
    uint64_t read = atomic_load_explicit(&peer->in->mail_read[ring], memory_order_acquire);
    uint64_t number = peer->mail_sent[ring] + 1, slot = number % NET_MAIL_SLOTS;

    if (number - read > NET_MAIL_SLOTS)
        return 0;
    net_work *work = net_work_new(ep);
    if (!work)
        return 0;
    net_letter *mail = &peer->out->mail[ring][slot];
    mail->number = (uint32_t)number;
    mail->bytes = (uint16_t)bytes;
    mail->kind = (uint16_t)kind;
    memcpy(mail->body, body, bytes);
    peer->mail_sent[ring] = number;
    work->local = (char *)mail;
    work->memory = &ep->area_memory;
    work->bytes = offsetof(net_letter, body) + bytes;
    work->space = NET_TO_AREA;
    work->off = peer->inbox + offsetof(net_inbox, mail) + ((uint64_t)ring * NET_MAIL_SLOTS + slot) * sizeof(net_letter);
    work->imm = net_imm(NET_MAIL, (uint32_t)ring << 16 | (uint32_t)(number & 0xffff));
    work->has_imm = 1;
    net_queue_urgent(ep, peer, work);
    return 1;
}

const net_letter *net_mail_first(net_endpoint *ep, net_peer *peer, int ring)
{
    (void)ep;
    if (peer->mail_taken[ring] == peer->mail_got[ring])
        return NULL;
    return &peer->in->mail[ring][(peer->mail_taken[ring] + 1) % NET_MAIL_SLOTS];
}

void net_mail_taken(net_endpoint *ep, net_peer *peer, int ring)
{
    if (++peer->mail_taken[ring] % TELL_EVERY)
        return;
    net_work *work = net_work_new(ep);
    if (!work)
        return; /* with a later one */
    peer->out->mail_read[ring] = peer->mail_taken[ring];
    work->local = (char *)&peer->out->mail_read[ring];
    work->memory = &ep->area_memory;
    work->bytes = sizeof peer->out->mail_read[ring];
    work->space = NET_TO_AREA;
    work->off = peer->inbox + offsetof(net_inbox, mail_read) + (uint64_t)ring * sizeof peer->in->mail_read[0];
    work->imm = net_imm(NET_CONTROL, NET_ROOM);
    work->has_imm = 1;
    net_queue_urgent(ep, peer, work);
}

int net_mail(gsi_endpoint *base, int rank, const void *msg, uint32_t bytes)
{
    net_endpoint *ep = net_of(base);
    net_peer *peer = &ep->peers[rank];

    if (bytes > sizeof peer->out->mail[0][0].body)
        return gsi_fail(GRADSYNC_ERR_INTERNAL, "a mail of %u bytes is too long", bytes);
    return peer->lost ? 0 : net_mail_send(ep, peer, 1, NET_MAIL_USER, msg, bytes);
}

int net_mail_next(gsi_endpoint *base, int *rank, void *msg, uint32_t *bytes)
{
    net_endpoint *ep = net_of(base);

    for (int i = 0; i < base->n; i++) {
        int r = (ep->mail_at + i) % base->n;
        net_peer *peer = &ep->peers[r];
        const net_letter *mail = peer->nconns ? net_mail_first(ep, peer, 1) : NULL;
        if (!mail)
            continue;
        uint32_t got = *(volatile const uint16_t *)&mail->bytes; /* read once: the peer can write there */
        if (got > GSI_MAIL_BYTES)
            got = GSI_MAIL_BYTES;
        memcpy(msg, mail->body, got);
        *bytes = got;
        *rank = r;
        ep->mail_at = r; /* the next of the same peer first: they come in bunches */
        net_mail_taken(ep, peer, 1);
        return 1;
    }
    return 0;
}

/* ---- One-sided access -------------------------------------------------------------- */

void net_ticket_done(net_ticket *ticket, int status)
{
    ticket->pieces--;
    if (status && !ticket->status)
        ticket->status = status;
}

static int start_access(gsi_endpoint *base, int rank, uint32_t mem, uint64_t off, char *local, uint64_t bytes, int read,
                        uint64_t *number)
{
    net_endpoint *ep = net_of(base);
    net_peer *peer = &ep->peers[rank];
    const net_remote *remote = net_remote_find(peer, mem);

    if (!remote || off > remote->bytes || bytes > remote->bytes - off)
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        remote ? "%llu bytes at %llu lie beyond the memory that rank %d shared"
                               : "%llu bytes at %llu: rank %d does not share this memory (any more)",
                        (unsigned long long)bytes, (unsigned long long)off, rank);
    net_ticket *ticket = ep->free_tickets;
    if (ticket)
        ep->free_tickets = ticket->next;
    else
        ticket = gsi_calloc(1, sizeof *ticket);
    net_work *work = ticket ? net_work_new(ep) : NULL;
    if (!work) {
        free(ticket);
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a put or get");
    }
    *ticket = (net_ticket){.number = ++ep->last_ticket, .next = ep->tickets};
    ep->tickets = ticket;
    *number = ticket->number;
    if (!bytes) {
        net_work_free(ep, work);
        return 0;
    }
    ticket->pieces = 1;
    work->ticket = ticket;
    work->local = local;
    work->bytes = bytes;
    work->space = NET_TO_MEMORY;
    work->mem = mem;
    work->off = off;
    work->read = (uint8_t)read;
    work->memory = net_memory_of(ep, local, bytes);
    if (work->memory)
        work->memory->users++;
    net_queue_bulk(ep, peer, work);
    return 0;
}

int net_rput(gsi_endpoint *base, int peer, uint32_t mem, uint64_t off, const void *src, uint64_t bytes,
             uint64_t *ticket)
{
    return start_access(base, peer, mem, off, (char *)(uintptr_t)src, bytes, 0, ticket);
}

int net_rget(gsi_endpoint *base, int peer, uint32_t mem, uint64_t off, void *dst, uint64_t bytes, uint64_t *ticket)
{
    return start_access(base, peer, mem, off, dst, bytes, 1, ticket);
}

int net_rdone(gsi_endpoint *base, uint64_t number)
{
    net_endpoint *ep = net_of(base);

    for (net_ticket **at = &ep->tickets; *at; at = &(*at)->next) {
        net_ticket *ticket = *at;
        if (ticket->number != number)
            continue;
        if (ticket->pieces)
            return 0;
        int status = ticket->status;
        *at = ticket->next;
        ticket->next = ep->free_tickets;
        ep->free_tickets = ticket;
        return status ? gsi_fail(status, "the peer let go of the memory of a put or get in flight") : 1;
    }
    return gsi_fail(GRADSYNC_ERR_INTERNAL, "there is no put or get %llu", (unsigned long long)number);
}
