/* SPDX-License-Identifier: Apache-2.0 */
/* Small messages between two ranks, and access to each other's memory apart from collectives. */
#include "transport/shm/mail.h"

#include <string.h>

#include "base/error.h"
#include "transport/shm/endpoint.h"

static shm_mailbox *box_of(shm_endpoint *ep, int from, int to)
{
    return &ep->mailboxes[(uint64_t)to * (uint64_t)ep->base.n + (uint64_t)from];
}

int shm_mail_send(gsi_endpoint *base, int peer, const void *msg, uint32_t bytes)
{
    shm_endpoint *ep = shm_of(base);
    shm_mail_state *state = &ep->peers[peer].mail;
    shm_mailbox *box = box_of(ep, base->rank, peer);

    if (!bytes || bytes > GSI_MAIL_BYTES)
        return gsi_fail(GRADSYNC_ERR_INTERNAL, "a message of %u bytes is no mail", bytes);
    if (state->sent - state->taken_there >= SHM_MAIL_PLACES) {
        /* The place is free: pairs with the release in take(). Not more than was sent, whatever it says. */
        uint64_t taken = atomic_load_explicit(&box->taken, memory_order_acquire);
        if (taken - state->taken_there <= state->sent - state->taken_there)
            state->taken_there = taken;
        if (state->sent - state->taken_there >= SHM_MAIL_PLACES)
            return 0;
    }
    shm_mail *place = &box->places[state->sent++ % SHM_MAIL_PLACES];
    memcpy(place->data, msg, bytes);
    place->bytes = bytes;
    /* seq_cst, as the mask is: the receiver, who clears the mask and then looks here, pairs with it (next_sender). */
    atomic_store(&place->number, state->sent);
    _Atomic uint64_t *mask = &ep->mail_masks[peer].from[base->rank / 64];
    uint64_t bit = (uint64_t)1 << (base->rank % 64);
    if (!(atomic_load(mask) & bit))
        atomic_fetch_or(mask, bit);
    shm_wake_sleepers(ep, peer);
    return 1;
}

/* Takes the next message of a rank, if there is one. */
static int take(shm_endpoint *ep, int from, void *msg, uint32_t *bytes)
{
    shm_mail_state *state = &ep->peers[from].mail;
    shm_mailbox *box = box_of(ep, from, ep->base.rank);
    shm_mail *place = &box->places[state->taken % SHM_MAIL_PLACES];

    if (atomic_load(&place->number) != state->taken + 1) /* pairs with the store in shm_mail_send */
        return 0;
    uint32_t length = place->bytes;
    *bytes = length > GSI_MAIL_BYTES ? GSI_MAIL_BYTES : length; /* anyone can write there */
    memcpy(msg, place->data, *bytes);
    if (++state->taken % (SHM_MAIL_PLACES / 2)) {
        atomic_store_explicit(&box->taken, state->taken, memory_order_release); /* pairs with shm_mail_send */
        return 1;
    }
    /* Half of it is free again: who found no room may be asleep. seq_cst, before the mask of sleepers is looked at. */
    atomic_store(&box->taken, state->taken);
    shm_wake_sleepers(ep, from);
    return 1;
}

int shm_mail_next(gsi_endpoint *base, int *peer, void *msg, uint32_t *bytes)
{
    shm_endpoint *ep = shm_of(base);
    int words = (base->n + 63) / 64;

    for (int w = 0; w < words; w++) {
        _Atomic uint64_t *mask = &ep->mail_masks[base->rank].from[w];
        if (atomic_load_explicit(mask, memory_order_relaxed))
            ep->mail_from[w] |= atomic_exchange(mask, 0); /* then the rings: pairs with shm_mail_send */
        while (ep->mail_from[w]) {
            int from = w * 64 + __builtin_ctzll(ep->mail_from[w]);
            if (from < base->n && take(ep, from, msg, bytes)) {
                *peer = from;
                return 1;
            }
            ep->mail_from[w] &= ep->mail_from[w] - 1;
        }
    }
    return 0;
}

/* Where [off, off + bytes) of a peer's memory lies in this process; NULL and an error if it does not. */
static int reach(gsi_endpoint *base, int peer, uint32_t mem, uint64_t off, uint64_t bytes, char **out)
{
    void *start;
    uint64_t room;
    int rc = shm_resolve(base, peer, mem, &start, &room);

    if (rc)
        return rc;
    if (!start)
        return gsi_fail(
            GRADSYNC_ERR_INVALID,
            "rank %d has freed the memory that this key is of, or never shared it here; exchange keys again",
            gsi_rank_called(base, peer));
    if (off > room || bytes > room - off)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%llu bytes at %llu are beyond the %llu that rank %d shared",
                        (unsigned long long)bytes, (unsigned long long)off, (unsigned long long)room,
                        gsi_rank_called(base, peer));
    *out = (char *)start + off;
    return 0;
}

int shm_rput(gsi_endpoint *base, int peer, uint32_t mem, uint64_t off, const void *src, uint64_t bytes,
             uint64_t *ticket)
{
    char *to = NULL;
    int rc = reach(base, peer, mem, off, bytes, &to);

    *ticket = 0;
    if (!rc)
        memmove(to, src, bytes); /* the two may be the same memory, mapped twice */
    return rc;
}

int shm_rget(gsi_endpoint *base, int peer, uint32_t mem, uint64_t off, void *dst, uint64_t bytes, uint64_t *ticket)
{
    char *from = NULL;
    int rc = reach(base, peer, mem, off, bytes, &from);

    *ticket = 0;
    if (!rc)
        memmove(dst, from, bytes);
    return rc;
}

int shm_rdone(gsi_endpoint *base, uint64_t ticket)
{
    (void)base, (void)ticket;
    return 1; /* a put or get has copied everything when it returns */
}
