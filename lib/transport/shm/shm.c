/* SPDX-License-Identifier: Apache-2.0 */
/* The endpoint: flags, payloads and staging in the control segment; users' memory by memfds. */
#include "transport/shm/shm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/futex.h"
#include "transport/shm/peermem.h"
#include "transport/shm/segment.h"

typedef struct shm_peer {
    char *slot, *stage;    /* in the segment; slot of lane 0 */
    shm_mappings mappings; /* of its memory */
    uint32_t mem_epoch;    /* its messages that were read */
    shm_link link;
    int same_process, lost;
    int64_t pid;
    char host[64];
} shm_peer;

typedef struct shm_endpoint {
    gsi_endpoint base;
    char *map;
    shm_layout layout;
    shm_head *head;
    shm_control *controls;
    shm_doorbell *doorbells;
    shm_entry *entries; /* [lane][rank] */
    shm_pair *pairs;    /* [lane][stream][receiver][sender] */
    char *slots;        /* [lane][rank] */
    shm_peer *peers;
    struct pollfd *watch; /* n entries for check() */
    shm_mappings shared;  /* own memory that the peers have been told of */
    uint32_t *unsent;     /* ids whose end some peers have not been told yet, and how far that got */
    uint32_t *unsent_peer;
    size_t nunsent, unsent_room;
    int sleepers; /* threads of this rank between sleep_begin and sleep_end; under the engine's lock */
    uint64_t sleeps;
    _Atomic uint64_t wakes;
} shm_endpoint;

static shm_endpoint *shm_of(gsi_endpoint *ep)
{
    return (shm_endpoint *)ep;
}

static uint32_t lane_of(uint64_t seq)
{
    return (uint32_t)(seq % SHM_LANES);
}

static shm_entry *entry_of(shm_endpoint *ep, uint64_t seq, int rank)
{
    return &ep->entries[lane_of(seq) * (uint32_t)ep->base.n + (uint32_t)rank];
}

static char *slot_of(shm_endpoint *ep, uint64_t seq, int rank)
{
    return ep->peers[rank].slot + (uint64_t)lane_of(seq) * (uint64_t)ep->base.n * SHM_SLOT_BYTES;
}

/* ---- Waking and sleeping ---------------------------------------------------- */

static void ring(shm_endpoint *ep, int rank)
{
    atomic_fetch_add(&ep->doorbells[rank].rings, 1);
    gsi_futex_wake_all(&ep->doorbells[rank].rings);
    atomic_fetch_add_explicit(&ep->wakes, 1, memory_order_relaxed);
}

/* After a flag was stored (seq_cst): wakes the ranks of mask word w that sleep or are about to. The
 * load is ordered behind the store; its partner is the fence in sleep_begin, so either the sleeper
 * sees the flag or this sees the sleeper. */
static void wake_sleepers(shm_endpoint *ep, int only)
{
    int words = (ep->base.n + 63) / 64;
    for (int w = only < 0 ? 0 : only / 64; w < words; w++) {
        uint64_t mask = atomic_load(&ep->head->sleepers[w]);
        if (only >= 0)
            mask &= (uint64_t)1 << (only % 64);
        while (mask) {
            int rank = w * 64 + __builtin_ctzll(mask);
            mask &= mask - 1;
            if (rank != ep->base.rank && rank < ep->base.n)
                ring(ep, rank);
        }
        if (only >= 0)
            break;
    }
}

static uint32_t shm_sleep_begin(gsi_endpoint *base)
{
    shm_endpoint *ep = shm_of(base);
    int me = base->rank;

    if (ep->sleepers++ == 0)
        atomic_fetch_or(&ep->head->sleepers[me / 64], (uint64_t)1 << (me % 64));
    ep->sleeps++;
    uint32_t ticket = atomic_load(&ep->doorbells[me].rings);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with the seq_cst flag stores before wake_sleepers */
    return ticket;
}

static void shm_sleep(gsi_endpoint *base, uint32_t ticket, int64_t timeout_ns)
{
    gsi_futex_wait(&shm_of(base)->doorbells[base->rank].rings, ticket, timeout_ns);
}

static void shm_sleep_end(gsi_endpoint *base)
{
    shm_endpoint *ep = shm_of(base);
    if (--ep->sleepers == 0)
        atomic_fetch_and(&ep->head->sleepers[base->rank / 64], ~((uint64_t)1 << (base->rank % 64)));
}

static void shm_wake(gsi_endpoint *base)
{
    ring(shm_of(base), base->rank);
}

/* ---- Entering, signals, puts ------------------------------------------------- */

static void shm_enter(gsi_endpoint *base, uint64_t seq, const gsi_header *header, const void *payload, uint64_t bytes)
{
    shm_endpoint *ep = shm_of(base);
    shm_entry *entry = entry_of(ep, seq, base->rank);

    entry->header = *header;
    if (bytes > GSI_INLINE_BYTES)
        memcpy(slot_of(ep, seq, base->rank), payload, bytes);
    else if (bytes)
        memcpy(entry->header.u.inl, payload, bytes);
    atomic_store(&entry->flag, seq << 32); /* publishes; pairs with the acquire in flag_at_least */
    wake_sleepers(ep, -1);
}

/* seq is compared modulo 2^32, as the flag holds its low half. */
static int flag_at_least(const _Atomic uint64_t *flag, uint64_t seq, uint32_t *signals)
{
    uint64_t value = atomic_load_explicit(flag, memory_order_acquire);
    int32_t ahead = (int32_t)((uint32_t)(value >> 32) - (uint32_t)seq);
    *signals = ahead == 0 ? (uint32_t)value : ahead > 0 ? UINT32_MAX : 0;
    return ahead >= 0;
}

static int shm_entered(gsi_endpoint *base, uint64_t seq, int *next)
{
    shm_endpoint *ep = shm_of(base);
    const shm_entry *lane = entry_of(ep, seq, 0);
    uint32_t signals;

    for (int n = base->n, r = *next; r < n; r++)
        if (r != base->rank && !flag_at_least(&lane[r].flag, seq, &signals)) {
            *next = r;
            return 0;
        }
    *next = base->n;
    return 1;
}

static const gsi_header *shm_header(gsi_endpoint *base, uint64_t seq, int rank)
{
    return &entry_of(shm_of(base), seq, rank)->header;
}

static const void *shm_slot(gsi_endpoint *base, uint64_t seq, int rank, uint64_t bytes)
{
    shm_endpoint *ep = shm_of(base);
    if (bytes > GSI_INLINE_BYTES)
        return slot_of(ep, seq, rank);
    return entry_of(ep, seq, rank)->header.u.inl;
}

static void shm_signal_all(gsi_endpoint *base, uint64_t seq)
{
    shm_endpoint *ep = shm_of(base);
    shm_entry *entry = entry_of(ep, seq, base->rank);
    uint64_t now = atomic_load_explicit(&entry->flag, memory_order_relaxed); /* own word */
    atomic_store(&entry->flag, now + 1);
    wake_sleepers(ep, -1);
}

static shm_pair *pair_of(shm_endpoint *ep, uint64_t seq, int stream, int from, int to)
{
    uint64_t n = (uint64_t)ep->base.n;
    return &ep->pairs[((lane_of(seq) * (uint64_t)GSI_MAX_STREAMS + (uint64_t)stream) * n + (uint64_t)to) * n +
                      (uint64_t)from];
}

static void shm_signal(gsi_endpoint *base, uint64_t seq, int stream, int peer)
{
    shm_endpoint *ep = shm_of(base);
    shm_pair *pair = pair_of(ep, seq, stream, base->rank, peer);
    uint64_t now = atomic_load_explicit(&pair->flag, memory_order_relaxed); /* own word */
    if ((uint32_t)(now >> 32) != (uint32_t)seq)
        now = seq << 32;
    atomic_store(&pair->flag, now + 1);
    wake_sleepers(ep, peer);
}

static uint32_t shm_signals(gsi_endpoint *base, uint64_t seq, int stream, int peer, int all)
{
    shm_endpoint *ep = shm_of(base);
    uint32_t signals;
    flag_at_least(all ? &entry_of(ep, seq, peer)->flag : &pair_of(ep, seq, stream, peer, base->rank)->flag, seq,
                  &signals);
    return signals;
}

static int shm_flushed(gsi_endpoint *base, uint64_t seq, int stream, int peer)
{
    (void)base, (void)seq, (void)stream, (void)peer;
    return 1; /* a put has copied its source when it returns */
}

static void shm_finish(gsi_endpoint *base, uint64_t seq)
{
    /* A peer that waits for this to use a lane again looks at it from time to time, so nobody is woken, but
     * by a store that it can see at once: pairs with the acquire in shm_done. */
    shm_endpoint *ep = shm_of(base);
    atomic_store(&ep->controls[base->rank].done, seq);
    wake_sleepers(ep, -1);
}

static uint64_t shm_done(gsi_endpoint *base)
{
    shm_endpoint *ep = shm_of(base);
    uint64_t least = UINT64_MAX;
    for (int r = 0; r < base->n; r++) {
        uint64_t done = atomic_load_explicit(&ep->controls[r].done, memory_order_acquire);
        least = done < least ? done : least;
    }
    return least;
}

/* ---- Memory ----------------------------------------------------------------- */

static void *shm_stage(gsi_endpoint *base, int rank)
{
    return shm_of(base)->peers[rank].stage;
}

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

static int shm_share(gsi_endpoint *base, const gsi_memory *mem)
{
    shm_endpoint *ep = shm_of(base);
    shm_mapping *known = shm_mappings_find(&ep->shared, mem->id);

    if (known && known->next_peer == (uint32_t)base->n)
        return 0;
    if (ep->nunsent && tell_unsent(ep))
        return GRADSYNC_IN_PROGRESS;
    if (!known)
        known = shm_mappings_add(&ep->shared, mem->id);
    if (!known)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to share memory with peers");
    shm_message message = {SHM_MSG_MEM, mem->id, mem->share_bytes, mem->file_off};
    return tell_peers(ep, &message, mem->fd, &known->next_peer);
}

static void shm_unshare(gsi_endpoint *base, uint32_t id)
{
    shm_endpoint *ep = shm_of(base);

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

/* Maps what a peer handed over. Its length is checked against the file's own: a short file would
 * be a SIGBUS later. */
static int map_memory(shm_peer *peer, const shm_message *message, int fd)
{
    int seals = fd < 0 ? 0 : fcntl(fd, F_GET_SEALS);
    off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);

    if (seals < 0 || !(seals & F_SEAL_SHRINK) || !message->id || !message->bytes || size < 0 ||
        message->file_off > (uint64_t)size || message->bytes > (uint64_t)size - message->file_off ||
        shm_mappings_find(&peer->mappings, message->id))
        return gsi_fail(GRADSYNC_ERR_INTERNAL, "pid %lld offered memory that cannot be mapped safely",
                        (long long)peer->pid);
    shm_mapping *entry = shm_mappings_add(&peer->mappings, message->id);
    if (!entry)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to note a peer's memory");
    entry->base = gsi_host_map(fd, message->file_off, message->bytes);
    entry->bytes = message->bytes;
    if (entry->base)
        return 0;
    shm_mappings_remove(&peer->mappings, message->id);
    return gsi_fail(GRADSYNC_ERR_NOMEM,
                    "cannot map %llu bytes of a peer's memory: %s; raise vm.max_map_count or "
                    "the address-space limit",
                    (unsigned long long)message->bytes, strerror(errno));
}

/* Reads all messages of a peer that are there. */
static int drain(shm_peer *peer)
{
    uint32_t count = 0;
    for (;;) {
        shm_message message;
        int fd, rc = shm_link_receive(&peer->link, &message, &fd);
        if (rc == GRADSYNC_IN_PROGRESS)
            break;
        if (rc)
            return rc;
        count++;
        if (message.kind == SHM_MSG_MEM) {
            rc = map_memory(peer, &message, fd);
        } else if (message.kind == SHM_MSG_FREE) {
            shm_mapping *entry = shm_mappings_find(&peer->mappings, message.id);
            if (entry) {
                munmap(entry->base, entry->bytes);
                shm_mappings_remove(&peer->mappings, message.id);
            }
        }
        if (fd >= 0)
            close(fd);
        if (rc)
            return rc;
    }
    peer->mem_epoch += count;
    return 0;
}

static int shm_resolve(gsi_endpoint *base, int rank, uint32_t id, void **addr, uint64_t *bytes)
{
    shm_endpoint *ep = shm_of(base);
    shm_peer *peer = &ep->peers[rank];

    if (atomic_load_explicit(&ep->controls[rank].mem_epoch, memory_order_acquire) != peer->mem_epoch) {
        int rc = drain(peer);
        if (rc)
            return rc;
    }
    shm_mapping *entry = shm_mappings_find(&peer->mappings, id);
    *addr = entry ? entry->base : NULL;
    *bytes = entry ? entry->bytes : 0;
    return 0;
}

static int shm_put(gsi_endpoint *base, uint64_t seq, int stream, int peer, const gsi_target *dst, const void *src,
                   uint64_t bytes, int notify)
{
    shm_endpoint *ep = shm_of(base);
    void *to = ep->peers[peer].stage;
    uint64_t room = SHM_STAGE_BYTES;

    if (dst->space != GSI_STAGE) {
        int rc = shm_resolve(base, peer, dst->mem, &to, &room);
        if (rc)
            return rc;
    }
    if (!to || dst->off > room || bytes > room - dst->off)
        return gsi_fail(GRADSYNC_ERR_INTERNAL, "a put of %llu bytes at %llu is beyond the memory of rank %d",
                        (unsigned long long)bytes, (unsigned long long)dst->off, peer);
    memcpy((char *)to + dst->off, src, bytes);
    if (notify)
        shm_signal(base, seq, stream, peer);
    return 0;
}

/* ---- Failures --------------------------------------------------------------- */

static int shm_check(gsi_endpoint *base, uint64_t seq, int *peer, char *text, size_t room)
{
    shm_endpoint *ep = shm_of(base);

    for (int r = 0; r < base->n; r++) {
        shm_peer *p = &ep->peers[r];
        int watched = r != base->rank && !p->same_process;
        ep->watch[r] = (struct pollfd){watched ? (p->link.pidfd >= 0 ? p->link.pidfd : p->link.fd) : -1, 0, 0};
        if (watched)
            ep->watch[r].events = p->link.pidfd >= 0 ? POLLIN : POLLRDHUP;
    }
    poll(ep->watch, (nfds_t)base->n, 0);
    for (int r = 0; r < base->n; r++) {
        /* First what it did, then whether it finished: it may have finished and then left. */
        int gone = ep->watch[r].revents != 0;
        int left = atomic_load_explicit(&ep->controls[r].state, memory_order_acquire) == SHM_LEFT;
        if (r == base->rank || (!gone && !left))
            continue;
        ep->peers[r].lost = 1;
        if (atomic_load_explicit(&ep->controls[r].done, memory_order_acquire) >= seq)
            continue;
        *peer = r;
        snprintf(text, room, left ? "rank %d (pid %lld) left the communicator" : "rank %d (pid %lld) died", r,
                 (long long)ep->peers[r].pid);
        return GRADSYNC_ERR_PEER_LOST;
    }
    return 0;
}

static void shm_fail(gsi_endpoint *base, const gsi_failure *failure)
{
    shm_endpoint *ep = shm_of(base);
    uint32_t none = SHM_FAILURE_NONE;

    if (atomic_compare_exchange_strong(&ep->head->failure_state, &none, SHM_FAILURE_CLAIMED)) {
        ep->head->failure = *failure;
        atomic_store(&ep->head->failure_state, SHM_FAILURE_SET);
    }
    wake_sleepers(ep, -1);
    shm_wake(base);
}

static int shm_failure(gsi_endpoint *base, gsi_failure *out)
{
    shm_endpoint *ep = shm_of(base);
    if (atomic_load_explicit(&ep->head->failure_state, memory_order_acquire) != SHM_FAILURE_SET)
        return 0;
    *out = ep->head->failure;
    out->text[sizeof out->text - 1] = 0;
    return 1;
}

/* ---- Queries and the end ------------------------------------------------------- */

static void shm_peer_info(gsi_endpoint *base, int rank, gradsync_peer_info *out)
{
    shm_endpoint *ep = shm_of(base);
    out->rank = rank;
    out->pid = ep->peers[rank].pid;
    out->same_host = 1;
    out->alive = !ep->peers[rank].lost;
    snprintf(out->host, sizeof out->host, "%s", ep->peers[rank].host);
    snprintf(out->transport, sizeof out->transport, "%s", rank == base->rank ? "self" : "shm");
}

/* The segment's pages that this rank touches first, plus what it allocates. */
static uint64_t shm_memory_bytes(gsi_endpoint *base)
{
    uint64_t n = (uint64_t)base->n;
    return SHM_STAGE_BYTES + SHM_LANES * SHM_SLOT_BYTES + SHM_LANES * GSI_MAX_STREAMS * n * sizeof(shm_pair) +
           SHM_LANES * sizeof(shm_entry) + n * (sizeof(shm_peer) + sizeof(struct pollfd)) + sizeof(shm_endpoint);
}

static void shm_counters(gsi_endpoint *base, gradsync_counters *out)
{
    shm_endpoint *ep = shm_of(base);
    out->sleeps = ep->sleeps;
    out->wakes = atomic_load_explicit(&ep->wakes, memory_order_relaxed);
}

static void free_endpoint(shm_endpoint *ep)
{
    for (int r = 0; ep->peers && r < ep->base.n; r++) {
        shm_mappings *m = &ep->peers[r].mappings;
        for (size_t i = 0; i < m->room; i++)
            if (m->table[i].id)
                munmap(m->table[i].base, m->table[i].bytes);
        free(m->table);
        if (ep->peers[r].link.fd >= 0)
            close(ep->peers[r].link.fd);
        if (ep->peers[r].link.pidfd >= 0)
            close(ep->peers[r].link.pidfd);
    }
    if (ep->map)
        munmap(ep->map, ep->layout.total);
    free(ep->shared.table);
    free(ep->unsent);
    free(ep->unsent_peer);
    free(ep->watch);
    free(ep->peers);
    free(ep);
}

static void shm_destroy(gsi_endpoint *base)
{
    shm_endpoint *ep = shm_of(base);
    atomic_store(&ep->controls[base->rank].state, SHM_LEFT);
    wake_sleepers(ep, -1);
    free_endpoint(ep);
}

static const gsi_endpoint_ops shm_ops = {
    .name = "shm",
    .enter = shm_enter,
    .entered = shm_entered,
    .header = shm_header,
    .slot = shm_slot,
    .signal_all = shm_signal_all,
    .signal = shm_signal,
    .signals = shm_signals,
    .put = shm_put,
    .flushed = shm_flushed,
    .finish = shm_finish,
    .done = shm_done,
    .stage = shm_stage,
    .share = shm_share,
    .unshare = shm_unshare,
    .resolve = shm_resolve,
    .sleep_begin = shm_sleep_begin,
    .sleep = shm_sleep,
    .sleep_end = shm_sleep_end,
    .wake = shm_wake,
    .check = shm_check,
    .fail = shm_fail,
    .failure = shm_failure,
    .peer_info = shm_peer_info,
    .memory_bytes = shm_memory_bytes,
    .counters = shm_counters,
    .destroy = shm_destroy,
};

/* ---- Making it ---------------------------------------------------------------- */

/* Rank 0 makes the segment and hands it to the others. */
static int make_segment(shm_endpoint *ep, int *out)
{
    int fd = memfd_create("gradsync-comm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return gsi_fail_errno(errno, "cannot make shared memory (memfd)");
    shm_message message = {SHM_MSG_SEGMENT, 1, ep->layout.total, 0};
    int rc = 0;
    if (ftruncate(fd, (off_t)ep->layout.total) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        rc = gsi_fail_errno(errno, "cannot make %llu bytes of shared memory", (unsigned long long)ep->layout.total);
    for (int r = 1; !rc && r < ep->base.n; r++)
        rc = shm_link_send(&ep->peers[r].link, &message, fd);
    if (rc)
        close(fd);
    else
        *out = fd;
    return rc;
}

static int receive_segment(shm_endpoint *ep, int64_t deadline_ns, int *out)
{
    for (;;) {
        shm_message message;
        int rc = shm_link_receive(&ep->peers[0].link, &message, out);
        if (!rc && message.kind == SHM_MSG_SEGMENT && message.bytes == ep->layout.total && *out >= 0 &&
            lseek(*out, 0, SEEK_END) == (off_t)ep->layout.total && (fcntl(*out, F_GET_SEALS) & F_SEAL_SHRINK))
            return 0;
        if (!rc && *out >= 0)
            close(*out);
        if (!rc)
            return gsi_fail(GRADSYNC_ERR_MISMATCH,
                            "rank 0 runs another build of libgradsync; use the same one on every rank");
        if (rc != GRADSYNC_IN_PROGRESS)
            return rc == GRADSYNC_ERR_PEER_LOST
                       ? gsi_fail(rc, "rank 0 (pid %lld) ended while the communicator was made",
                                  (long long)ep->peers[0].pid)
                       : rc;
        int64_t left = deadline_ns - gsi_now_ns();
        if (left <= 0)
            return gsi_fail(GRADSYNC_ERR_TIMEOUT, "rank 0 (pid %lld) did not hand over the shared memory in time",
                            (long long)ep->peers[0].pid);
        struct pollfd p = {ep->peers[0].link.fd, POLLIN, 0};
        poll(&p, 1, left > 1000000000 ? 1000 : (int)(left / 1000000) + 1);
    }
}

/* Waits until every rank has mapped the segment, so that flags are never stored into the void. */
static int wait_ready(shm_endpoint *ep, int64_t deadline_ns)
{
    int r = 0, lost;
    char text[160];

    atomic_store(&ep->controls[ep->base.rank].state, SHM_READY);
    wake_sleepers(ep, -1);
    for (;;) {
        uint32_t ticket = shm_sleep_begin(&ep->base);
        while (r < ep->base.n && atomic_load(&ep->controls[r].state) != SHM_ABSENT)
            r++;
        if (r < ep->base.n)
            shm_sleep(&ep->base, ticket, 50000000);
        shm_sleep_end(&ep->base);
        if (r == ep->base.n)
            return 0;
        if (shm_check(&ep->base, 1, &lost, text, sizeof text))
            return gsi_fail(GRADSYNC_ERR_PEER_LOST, "%s while the communicator was made", text);
        struct pollfd link = {ep->peers[r].link.fd, POLLRDHUP, 0};
        if (poll(&link, 1, 0) > 0 && atomic_load(&ep->controls[r].state) == SHM_ABSENT)
            return gsi_fail(GRADSYNC_ERR_PEER_LOST, "rank %d (pid %lld) could not map the shared memory", r,
                            (long long)ep->peers[r].pid);
        if (gsi_now_ns() > deadline_ns)
            return gsi_fail(GRADSYNC_ERR_TIMEOUT, "rank %d (pid %lld) did not map the shared memory in time", r,
                            (long long)ep->peers[r].pid);
    }
}

static int map_segment(shm_endpoint *ep, int fd)
{
    void *map = mmap(NULL, ep->layout.total, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "cannot map %llu bytes of shared memory: %s",
                        (unsigned long long)ep->layout.total, strerror(errno));
    ep->map = map;
    ep->head = map;
    ep->controls = (shm_control *)(ep->map + ep->layout.controls);
    ep->doorbells = (shm_doorbell *)(ep->map + ep->layout.doorbells);
    ep->entries = (shm_entry *)(ep->map + ep->layout.entries);
    ep->pairs = (shm_pair *)(ep->map + ep->layout.pairs);
    ep->slots = ep->map + ep->layout.slots;
    for (int r = 0; r < ep->base.n; r++) {
        ep->peers[r].slot = ep->slots + (uint64_t)r * SHM_SLOT_BYTES;
        ep->peers[r].stage = ep->map + ep->layout.stages + (uint64_t)r * SHM_STAGE_BYTES;
    }
    return 0;
}

static int connect_endpoint(shm_endpoint *ep, int listen_fd, const gsi_shm_peer *peers, int64_t deadline_ns)
{
    int n = ep->base.n, rank = ep->base.rank, fd = -1;
    gsi_shm_address *addresses = gsi_calloc((size_t)n, sizeof *addresses);
    shm_link *links = gsi_calloc((size_t)n, sizeof *links);
    int rc = addresses && links ? 0 : gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for %d ranks", n);

    for (int r = 0; !rc && r < n; r++)
        addresses[r] = peers[r].address;
    if (!rc)
        rc = shm_links_make(listen_fd, rank, n, addresses, deadline_ns, links);
    for (int r = 0; !rc && r < n; r++)
        ep->peers[r].link = links[r];
    free(addresses);
    free(links);
    if (!rc)
        rc = rank == 0 ? make_segment(ep, &fd) : receive_segment(ep, deadline_ns, &fd);
    if (rc)
        return rc;
    rc = map_segment(ep, fd);
    close(fd);
    return rc ? rc : wait_ready(ep, deadline_ns);
}

int gsi_shm_create(int listen_fd, int rank, int n, const gsi_shm_peer *peers, int64_t deadline_ns, const gsi_log *log,
                   gsi_endpoint **out)
{
    int rc = 0;
    shm_endpoint *ep = n <= SHM_MAX_RANKS ? gsi_calloc(1, sizeof *ep) : NULL;

    if (n > SHM_MAX_RANKS)
        rc = gsi_fail(GRADSYNC_ERR_UNSUPPORTED, "%d ranks on one host are more than the %d that can share memory", n,
                      SHM_MAX_RANKS);
    else if (!ep)
        rc = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for %d ranks", n);
    if (rc) {
        close(listen_fd);
        return rc;
    }
    ep->base = (gsi_endpoint){.ops = &shm_ops,
                              .rank = rank,
                              .n = n,
                              .lanes = SHM_LANES,
                              .slot_bytes = SHM_SLOT_BYTES,
                              .stage_bytes = SHM_STAGE_BYTES,
                              .loadstore = 1,
                              .local_rank = rank,
                              .local_ranks = n,
                              .log = log};
    shm_layout_of(n, &ep->layout);
    ep->peers = gsi_calloc((size_t)n, sizeof *ep->peers);
    ep->watch = gsi_calloc((size_t)n, sizeof *ep->watch);
    if (!ep->peers || !ep->watch)
        rc = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for %d ranks", n);
    for (int r = 0; ep->peers && r < n; r++) {
        ep->peers[r].link = (shm_link){-1, -1};
        ep->peers[r].pid = peers[r].address.pid;
        ep->peers[r].same_process = peers[r].address.process == peers[rank].address.process;
        memcpy(ep->peers[r].host, peers[r].host, sizeof ep->peers[r].host);
        ep->peers[r].host[sizeof ep->peers[r].host - 1] = 0;
    }
    if (!rc)
        rc = connect_endpoint(ep, listen_fd, peers, deadline_ns);
    close(listen_fd);
    if (rc) {
        free_endpoint(ep);
        return rc;
    }
    *out = &ep->base;
    return 0;
}
