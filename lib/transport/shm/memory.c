/* SPDX-License-Identifier: Apache-2.0 */
/* Users' memory: handed to the peers as memfds over the links, mapped and let go of. */
#include "transport/shm/endpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"

enum { MOST_MESSAGES = 4096 }; /* of a peer at a time: nobody can keep this rank busy */

/* Tells all peers from *next on; 0 when all have been told. */
static int tell_peers(shm_endpoint *ep, const shm_message *message, int fd, uint32_t *next)
{
    for (; *next < (uint32_t)ep->base.n; ++*next) {
        if ((int)*next == ep->base.rank)
            continue;
        int rc = shm_link_send(&ep->peers[*next].link, message, fd);
        if (rc == GRADSYNC_IN_PROGRESS)
            return rc;
        /* A lost peer is found and named by check(). */
    }
    shm_control *own = &ep->controls[ep->base.rank];
    atomic_fetch_add_explicit(&own->mem_epoch, 1, memory_order_release);
    return 0;
}

/* Tells what could not be told earlier, because a peer's socket was full. */
static int tell_unsent(shm_endpoint *ep)
{
    while (ep->nunsent) {
        shm_message message = {.kind = SHM_MSG_FREE, .id = ep->unsent[0]};
        if (tell_peers(ep, &message, -1, &ep->unsent_peer[0]))
            return GRADSYNC_IN_PROGRESS;
        ep->nunsent--;
        memmove(ep->unsent, ep->unsent + 1, ep->nunsent * sizeof *ep->unsent);
        memmove(ep->unsent_peer, ep->unsent_peer + 1, ep->nunsent * sizeof *ep->unsent_peer);
    }
    return 0;
}

int shm_share(gsi_endpoint *base, const gsi_memory *mem)
{
    shm_endpoint *ep = shm_of(base);
    shm_mapping *known = shm_mappings_find(&ep->shared, mem->id);

    if (known && known->next_peer == (uint32_t)base->n)
        return 0;
    if (mem->fd < 0)
        return GRADSYNC_ERR_UNSUPPORTED; /* no failure: it counts as plain memory */
    shm_drain_all(ep);                   /* as the peers do: two that only send would fill each other's sockets */
    if (ep->nunsent && tell_unsent(ep))
        return GRADSYNC_IN_PROGRESS;
    if (!known)
        known = shm_mappings_add(&ep->shared, mem->id);
    if (!known)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to share memory with peers");
    shm_message message = {SHM_MSG_MEM, mem->id, mem->share_bytes, mem->file_off};
    return tell_peers(ep, &message, mem->fd, &known->next_peer);
}

void shm_unshare(gsi_endpoint *base, uint32_t id)
{
    shm_endpoint *ep = shm_of(base);

    shm_drain_all(ep); /* who frees is likely to have peers that free */
    if (!shm_mappings_find(&ep->shared, id))
        return;
    shm_mappings_remove(&ep->shared, id);
    if (ep->nunsent == ep->unsent_room) {
        size_t room = ep->unsent_room ? 2 * ep->unsent_room : 16;
        uint32_t *a = gsi_realloc(ep->unsent, room * sizeof *a);
        if (a)
            ep->unsent = a;
        uint32_t *b = a ? gsi_realloc(ep->unsent_peer, room * sizeof *b) : NULL;
        if (!b)
            return; /* the peers keep the mapping until the communicator ends: memory, not correctness */
        ep->unsent_peer = b;
        ep->unsent_room = room;
    }
    ep->unsent[ep->nunsent] = id;
    ep->unsent_peer[ep->nunsent++] = 0;
    tell_unsent(ep);
}

/* Maps what a peer handed over. Its length is checked against the file's own: a short file would be a
 * SIGBUS later. 0, or errno; EBADMSG: this is no memory to map. */
static int map_memory(shm_mapping *entry, const shm_message *message, int fd)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    int seals = fcntl(fd, F_GET_SEALS);
    off_t size = lseek(fd, 0, SEEK_END);

    if (seals < 0 || !(seals & F_SEAL_SHRINK) || !message->bytes || size < 0 || message->file_off > (uint64_t)size ||
        message->bytes > (uint64_t)size - message->file_off || message->file_off % page || message->bytes % page)
        return EBADMSG;
    entry->base = gsi_host_map(fd, message->file_off, message->bytes);
    entry->bytes = entry->base ? message->bytes : 0;
    return entry->base ? 0 : errno;
}

/* Notes what a peer offers; what failed is told when a collective needs it. */
static void note_memory(shm_peer *peer, const shm_message *message, int fd, int err)
{
    if (!message->id || shm_mappings_find(&peer->mappings, message->id))
        return; /* not from our code; the first offer holds */
    shm_mapping *entry = shm_mappings_add(&peer->mappings, message->id);
    if (!entry)
        peer->forgot = 1;
    else
        entry->error = err ? err : fd < 0 ? EBADMSG : map_memory(entry, message, fd);
}

/* The peer lets go of memory. It has finished with all collectives that used it, but what it says is not to be
 * trusted while this rank has not. */
static void bury(shm_endpoint *ep, shm_peer *peer, uint32_t id)
{
    shm_mapping *entry = shm_mappings_find(&peer->mappings, id);
    if (!entry)
        return;
    if (ep->ngraves == ep->graves_room && ep->entered != ep->finished) {
        size_t room = ep->graves_room ? 2 * ep->graves_room : 8;
        shm_grave *more = gsi_realloc(ep->graves, room * sizeof *more);
        if (more)
            ep->graves = more, ep->graves_room = room;
    }
    if (!entry->base)
        ;
    else if (ep->entered != ep->finished && ep->ngraves < ep->graves_room)
        ep->graves[ep->ngraves++] = (shm_grave){entry->base, entry->bytes, ep->entered};
    else
        munmap(entry->base, entry->bytes);
    shm_mappings_remove(&peer->mappings, id);
}

/* Reads the messages of a peer that are there. The epoch is what the peer had announced before. That a peer is
 * gone is no matter here: it may well have left after its last collective; check() finds who was still needed. */
static void drain(shm_endpoint *ep, shm_peer *peer, uint32_t epoch)
{
    for (int i = 0; i < MOST_MESSAGES; i++) {
        shm_message message;
        int fd, err = shm_link_receive(&peer->link, &message, &fd);
        if ((!err || err == EMFILE) && message.kind == SHM_MSG_MEM) {
            note_memory(peer, &message, fd, err);
        } else if (!err && message.kind == SHM_MSG_FREE) {
            bury(ep, peer, message.id);
        } else if (!err && message.kind == SHM_MSG_BELL && peer->bell < 0 && fd >= 0) {
            peer->bell = fd;
            fd = -1;
        } else if (err && err != EMFILE && err != EPROTO) {
            peer->mem_epoch = epoch;
            break;
        }
        if (fd >= 0)
            close(fd);
    }
}

void shm_drain_all(shm_endpoint *ep)
{
    for (int r = 0; r < ep->base.n; r++) {
        uint32_t epoch = atomic_load_explicit(&ep->controls[r].mem_epoch, memory_order_acquire);
        if (r == ep->base.rank || epoch == ep->peers[r].mem_epoch)
            continue;
        drain(ep, &ep->peers[r], epoch);
        shm_wake_sleepers(ep, r); /* it may wait for room */
    }
}

int gsi_shm_bell(gsi_endpoint *base, int fd)
{
    shm_endpoint *ep = shm_of(base);
    const shm_message message = {.kind = SHM_MSG_BELL};
    uint32_t next = 0;

    ep->bell = fd;
    if (tell_peers(ep, &message, fd, &next)) /* the links are new: there is room */
        return gsi_fail(GRADSYNC_ERR_SYSTEM, "cannot hand an eventfd to the other ranks of this host");
    return 0;
}

void gsi_shm_bells(gsi_endpoint *base)
{
    shm_drain_all(shm_of(base));
}

int shm_resolve(gsi_endpoint *base, int rank, uint32_t id, void **addr, uint64_t *bytes)
{
    shm_endpoint *ep = shm_of(base);
    shm_peer *peer = &ep->peers[rank];
    uint32_t epoch = atomic_load_explicit(&ep->controls[rank].mem_epoch, memory_order_acquire);

    if (epoch != peer->mem_epoch)
        drain(ep, peer, epoch);
    const shm_mapping *entry = shm_mappings_find(&peer->mappings, id);
    *addr = entry ? entry->base : NULL;
    *bytes = entry ? entry->bytes : 0;
    if ((entry && !entry->error) || (!entry && !peer->forgot))
        return 0;
    if (!entry)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to note the memory of rank %d", gsi_rank_called(base, rank));
    if (entry->error == EBADMSG)
        return gsi_fail(GRADSYNC_ERR_INTERNAL, "rank %d (pid %lld) offered memory that cannot be mapped safely",
                        gsi_rank_called(base, rank), (long long)peer->pid);
    if (entry->error == EMFILE)
        return gsi_fail_errno(EMFILE,
                              "no file descriptor for the memory of rank %d; raise the limit of open files "
                              "(ulimit -n)",
                              gsi_rank_called(base, rank));
    return gsi_fail(GRADSYNC_ERR_NOMEM,
                    "cannot map the memory of rank %d: %s; raise vm.max_map_count or the address-space limit",
                    gsi_rank_called(base, rank), strerror(entry->error));
}

void shm_clear_graves(shm_endpoint *ep)
{
    size_t kept = 0;
    for (size_t i = 0; i < ep->ngraves; i++)
        if (ep->graves[i].until <= ep->finished)
            munmap(ep->graves[i].base, ep->graves[i].bytes);
        else
            ep->graves[kept++] = ep->graves[i];
    ep->ngraves = kept;
}

void shm_free_memory(shm_endpoint *ep)
{
    for (int r = 0; ep->peers && r < ep->base.n; r++) {
        shm_mappings *m = &ep->peers[r].mappings;
        for (size_t i = 0; i < m->room; i++)
            if (m->table[i].id && m->table[i].base)
                munmap(m->table[i].base, m->table[i].bytes);
        free(m->table);
    }
    for (size_t i = 0; i < ep->ngraves; i++)
        munmap(ep->graves[i].base, ep->graves[i].bytes);
    free(ep->graves);
    free(ep->shared.table);
    free(ep->unsent);
    free(ep->unsent_peer);
}
