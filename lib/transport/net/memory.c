/* SPDX-License-Identifier: Apache-2.0 */
/* Memory: registered with every rail, told to the peers, found by address (one's own) or id (a peer's). */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "transport/net/net.h"

enum { LEAST_ROOM = 16 };

/* ---- Own -------------------------------------------------------------------------- */

int net_memory_register(net_endpoint *ep, net_memory *memory, void *base, uint64_t bytes)
{
    memory->base = base;
    memory->bytes = bytes;
    for (int r = 0; r < ep->nrails; r++) {
        gsi_rail *rail = ep->rails[r].rail;
        int rc = rail->ops->reg(rail, base, bytes, &memory->regions[r]);
        if (!rc)
            continue;
        while (r-- > 0) {
            rail = ep->rails[r].rail;
            rail->ops->dereg(rail, &memory->regions[r]);
        }
        memory->base = NULL;
        return rc;
    }
    return 0;
}

void net_memory_deregister(net_endpoint *ep, net_memory *memory)
{
    if (!memory->base)
        return;
    for (int r = 0; r < ep->nrails; r++)
        ep->rails[r].rail->ops->dereg(ep->rails[r].rail, &memory->regions[r]);
    memory->base = NULL;
}

static void release(net_endpoint *ep, net_memory *memory)
{
    net_memory_deregister(ep, memory);
    free(memory);
}

void net_memory_put(net_endpoint *ep, net_memory *memory)
{
    if (!memory->id)
        return;
    if (--memory->users == 0 && memory->gone)
        release(ep, memory);
}

/* The first memory that begins behind addr. */
static size_t position(const net_endpoint *ep, const char *addr)
{
    size_t low = 0, high = ep->nmemories;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (ep->memories[mid]->base <= addr)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static int holds(const net_memory *memory, const char *addr, uint64_t bytes)
{
    return memory->base && addr >= memory->base && bytes <= memory->bytes &&
           (uint64_t)(addr - memory->base) <= memory->bytes - bytes;
}

net_memory *net_memory_of(net_endpoint *ep, const void *addr, uint64_t bytes)
{
    if (holds(&ep->stage_memory, addr, bytes))
        return &ep->stage_memory;
    if (holds(&ep->area_memory, addr, bytes))
        return &ep->area_memory;
    size_t at = position(ep, addr);
    return at && holds(ep->memories[at - 1], addr, bytes) ? ep->memories[at - 1] : NULL;
}

static net_memory *find(const net_endpoint *ep, uint32_t id, size_t *at)
{
    for (size_t i = 0; i < ep->nmemories; i++)
        if (ep->memories[i]->id == id) {
            *at = i;
            return ep->memories[i];
        }
    return NULL;
}

static int make_room(net_endpoint *ep)
{
    if (ep->nmemories < ep->memories_room)
        return 0;
    size_t room = ep->memories_room ? 2 * ep->memories_room : LEAST_ROOM;
    net_memory **more = gsi_realloc(ep->memories, room * sizeof(net_memory *));
    if (!more)
        return -1;
    ep->memories = more;
    ep->memories_room = room;
    return 0;
}

static int add(net_endpoint *ep, const gsi_memory *mem, net_memory **out)
{
    net_memory *memory = make_room(ep) ? NULL : gsi_calloc(1, sizeof *memory);
    if (!memory)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to register memory for RDMA");
    memory->id = mem->id;
    int rc = ep->base.whole_memory ? net_memory_register(ep, memory, mem->addr, mem->bytes)
                                   : net_memory_register(ep, memory, mem->share_addr, mem->share_bytes);
    if (rc) {
        free(memory);
        return rc;
    }
    size_t at = position(ep, memory->base);
    memmove(ep->memories + at + 1, ep->memories + at, (ep->nmemories - at) * sizeof(net_memory *));
    ep->memories[at] = memory;
    ep->nmemories++;
    *out = memory;
    return 0;
}

int net_share(gsi_endpoint *base, const gsi_memory *mem)
{
    net_endpoint *ep = net_of(base);
    size_t at;
    net_memory *memory = find(ep, mem->id, &at);
    int rc = 0;

    if (memory && memory->next_peer == base->n)
        return 0;
    if (ep->nunsaid)
        net_say_unsaid(ep);
    if (!memory)
        rc = add(ep, mem, &memory);
    if (rc)
        return rc;
    net_share_note note = {.base = (uint64_t)(uintptr_t)memory->base, .bytes = memory->bytes, .id = memory->id};
    for (int r = 0; r < ep->nrails; r++)
        note.keys[r] = memory->regions[r].remote_key;
    for (; memory->next_peer < base->n; memory->next_peer++) {
        net_peer *peer = &ep->peers[memory->next_peer];
        if (peer->nconns && !peer->lost && !net_mail_send(ep, peer, 0, NET_MAIL_SHARE, &note, sizeof note))
            return GRADSYNC_IN_PROGRESS;
    }
    return 0;
}

/* Tells what could not be told before, for want of room. */
void net_say_unsaid(net_endpoint *ep)
{
    while (ep->nunsaid) {
        net_share_note note = {.id = ep->unsaid[0]};
        for (; ep->unsaid_peer[0] < ep->base.n; ep->unsaid_peer[0]++) {
            net_peer *peer = &ep->peers[ep->unsaid_peer[0]];
            if (peer->nconns && !peer->lost && !net_mail_send(ep, peer, 0, NET_MAIL_UNSHARE, &note, sizeof note))
                return;
        }
        ep->nunsaid--;
        memmove(ep->unsaid, ep->unsaid + 1, ep->nunsaid * sizeof *ep->unsaid);
        memmove(ep->unsaid_peer, ep->unsaid_peer + 1, ep->nunsaid * sizeof *ep->unsaid_peer);
    }
}

static int note_unsaid(net_endpoint *ep, uint32_t id)
{
    if (ep->nunsaid == ep->unsaid_room) {
        size_t room = ep->unsaid_room ? 2 * ep->unsaid_room : LEAST_ROOM;
        uint32_t *ids = gsi_realloc(ep->unsaid, room * sizeof *ids);
        if (ids)
            ep->unsaid = ids;
        int32_t *peers = ids ? gsi_realloc(ep->unsaid_peer, room * sizeof *peers) : NULL;
        if (!peers)
            return -1; /* the peers keep a note of keys that are no longer valid: memory, not correctness */
        ep->unsaid_peer = peers;
        ep->unsaid_room = room;
    }
    ep->unsaid[ep->nunsaid] = id;
    ep->unsaid_peer[ep->nunsaid++] = 0;
    return 0;
}

void net_unshare(gsi_endpoint *base, uint32_t id)
{
    net_endpoint *ep = net_of(base);
    size_t at;
    net_memory *memory = find(ep, id, &at);

    if (!memory)
        return;
    ep->nmemories--;
    memmove(ep->memories + at, ep->memories + at + 1, (ep->nmemories - at) * sizeof(net_memory *));
    net_poll(ep); /* what has been completed long ago may still hold it */
    if (memory->users)
        memory->gone = 1;
    else
        release(ep, memory);
    if (!note_unsaid(ep, id))
        net_say_unsaid(ep);
}

void net_free_memories(net_endpoint *ep)
{
    for (size_t i = 0; i < ep->nmemories; i++)
        release(ep, ep->memories[i]);
    free(ep->memories);
    free(ep->unsaid);
    free(ep->unsaid_peer);
    net_memory_deregister(ep, &ep->stage_memory);
    net_memory_deregister(ep, &ep->area_memory);
}

/* ---- The peers' --------------------------------------------------------------------- */

static net_remote *place_of(const net_peer *peer, uint32_t id)
{
    uint32_t mask = peer->remotes_room - 1, at = id * 0x9e3779b1u >> 7 & mask;
    while (peer->remotes[at].id && peer->remotes[at].id != id)
        at = (at + 1) & mask;
    return &peer->remotes[at];
}

const net_remote *net_remote_find(const net_peer *peer, uint32_t id)
{
    const net_remote *place = peer->remotes_room && id ? place_of(peer, id) : NULL;
    return place && place->id ? place : NULL;
}

static int grow(net_peer *peer)
{
    if (2 * (peer->nremotes + 1) <= peer->remotes_room)
        return 0;
    net_peer bigger = {.remotes_room = peer->remotes_room ? 2 * peer->remotes_room : LEAST_ROOM};
    bigger.remotes = gsi_calloc(bigger.remotes_room, sizeof *bigger.remotes);
    if (!bigger.remotes)
        return -1;
    for (uint32_t i = 0; i < peer->remotes_room; i++)
        if (peer->remotes[i].id)
            *place_of(&bigger, peer->remotes[i].id) = peer->remotes[i];
    free(peer->remotes);
    peer->remotes = bigger.remotes;
    peer->remotes_room = bigger.remotes_room;
    return 0;
}

/* Takes a place out of the table: what follows it may have been pushed on by it. */
static void forget(net_peer *peer, net_remote *place)
{
    uint32_t mask = peer->remotes_room - 1, at = (uint32_t)(place - peer->remotes);

    *place = (net_remote){0};
    peer->nremotes--;
    for (at = (at + 1) & mask; peer->remotes[at].id; at = (at + 1) & mask) {
        net_remote moved = peer->remotes[at];
        peer->remotes[at] = (net_remote){0};
        *place_of(peer, moved.id) = moved;
    }
}

int net_remote_told(net_endpoint *ep, net_peer *peer, const net_letter *mail)
{
    net_share_note note;

    if (mail->bytes != sizeof note)
        return -1;
    memcpy(&note, mail->body, sizeof note);
    if (!note.id)
        return -1;
    if (mail->kind == NET_MAIL_UNSHARE) {
        net_remote *place = peer->remotes_room ? place_of(peer, note.id) : NULL;
        if (place && place->id)
            forget(peer, place);
        return 0;
    }
    if (mail->kind != NET_MAIL_SHARE || note.base + note.bytes < note.base)
        return -1;
    if (grow(peer)) {
        net_peer_lost(ep, peer, "this rank has no memory to note the peer's memory");
        return 0;
    }
    net_remote *place = place_of(peer, note.id);
    peer->nremotes += !place->id;
    *place = (net_remote){.id = note.id, .base = note.base, .bytes = note.bytes};
    memcpy(place->keys, note.keys, sizeof place->keys);
    return 0;
}

int net_resolve(gsi_endpoint *base, int rank, uint32_t id, void **addr, uint64_t *bytes)
{
    const net_remote *remote = net_remote_find(&net_of(base)->peers[rank], id);
    *addr = NULL; /* it cannot be loaded from here */
    *bytes = remote ? remote->bytes : 0;
    return 0;
}
