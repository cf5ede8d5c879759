/* SPDX-License-Identifier: Apache-2.0 */
/* The endpoint: flags, payloads and staging in the control segment; users' memory by memfds. */
#include "transport/shm/endpoint.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/futex.h"
#include "base/process.h"

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

/* Stores before it are seen before loads after it are done. */
static void full_fence(void)
{
#if defined(__SANITIZE_THREAD__)
    static _Atomic int word; /* gcc's thread sanitizer knows no fences; a locked instruction is one as well */
    atomic_fetch_add(&word, 1);
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

static void ring(shm_endpoint *ep, int rank)
{
    atomic_fetch_add(&ep->doorbells[rank].rings, 1);
    gsi_futex_wake_all(&ep->doorbells[rank].rings);
    int bell = rank == ep->base.rank ? ep->bell : ep->peers[rank].bell;
    uint64_t one = 1;
    if (bell >= 0 && write(bell, &one, sizeof one) < 0) {
        /* Its counter is full, so it is readable, which is all that is wanted. */
    }
    atomic_fetch_add_explicit(&ep->wakes, 1, memory_order_relaxed);
}

/* After a flag was stored (seq_cst, or with a fence behind it): wakes the ranks that sleep or are about to. The
 * load is ordered behind the store; its partner is the fence in sleep_begin, so either the sleeper sees the flag
 * or this sees the sleeper. */
void shm_wake_sleepers(shm_endpoint *ep, int only)
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

uint32_t shm_sleep_begin(gsi_endpoint *base)
{
    shm_endpoint *ep = shm_of(base);
    int me = base->rank;

    shm_drain_all(ep);
    if (ep->sleepers++ == 0)
        atomic_fetch_or(&ep->head->sleepers[me / 64], (uint64_t)1 << (me % 64));
    ep->sleeps++;
    uint32_t ticket = atomic_load(&ep->doorbells[me].rings);
    full_fence(); /* the mask before the flags: pairs with those before shm_wake_sleepers */
    return ticket;
}

void shm_sleep(gsi_endpoint *base, uint32_t ticket, int64_t timeout_ns)
{
    gsi_futex_wait(&shm_of(base)->doorbells[base->rank].rings, ticket, timeout_ns);
}

void shm_sleep_end(gsi_endpoint *base)
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

    /* The payload first: were the header stored before it, peers that look for the flag would take its line away
     * again while the payload's is still on the way here, and the flag would have to wait for it a second time. */
    if (bytes > SHM_NEIGHBOUR_BYTES)
        memcpy(slot_of(ep, seq, base->rank), payload, bytes);
    else if (bytes > GSI_INLINE_BYTES)
        memcpy(entry->payload, payload, bytes);
    entry->header = *header;
    if (bytes && bytes <= GSI_INLINE_BYTES)
        memcpy(entry->header.u.inl, payload, bytes);
    ep->entered = seq;
    atomic_store_explicit(&entry->flag, seq << 32, memory_order_release); /* pairs with the acquire in flag_is */
    ep->unannounced = 1;
}

/* 1 if the flag's writer has entered seq. The flag is never ahead, since nobody uses the lane again before all
 * have finished seq; and it may be behind by any number (a pair that was idle for long), so it is not ordered. */
static int flag_is(const _Atomic uint64_t *flag, uint64_t seq, uint32_t *signals)
{
    uint64_t value = atomic_load_explicit(flag, memory_order_acquire);
    int is = (uint32_t)(value >> 32) == (uint32_t)seq;
    *signals = is ? (uint32_t)value : 0;
    return is;
}

static int shm_entered(gsi_endpoint *base, uint64_t seq, int *next)
{
    shm_endpoint *ep = shm_of(base);
    const shm_entry *lane = entry_of(ep, seq, 0);
    uint32_t signals;

    for (int n = base->n, r = *next; r < n; r++)
        if (r != base->rank && !flag_is(&lane[r].flag, seq, &signals)) {
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
    if (bytes > SHM_NEIGHBOUR_BYTES)
        return slot_of(ep, seq, rank);
    if (bytes > GSI_INLINE_BYTES)
        return entry_of(ep, seq, rank)->payload;
    return entry_of(ep, seq, rank)->header.u.inl;
}

static void shm_signal_all(gsi_endpoint *base, uint64_t seq)
{
    shm_endpoint *ep = shm_of(base);
    shm_entry *entry = entry_of(ep, seq, base->rank);
    uint64_t now = atomic_load_explicit(&entry->flag, memory_order_relaxed); /* own word */
    atomic_store_explicit(&entry->flag, now + 1, memory_order_release);
    ep->unannounced = 1;
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
    shm_wake_sleepers(ep, peer);
}

static uint32_t shm_signals(gsi_endpoint *base, uint64_t seq, int stream, int peer, int all)
{
    shm_endpoint *ep = shm_of(base);
    uint32_t signals;
    flag_is(all ? &entry_of(ep, seq, peer)->flag : &pair_of(ep, seq, stream, peer, base->rank)->flag, seq, &signals);
    return signals;
}

static void shm_announce(gsi_endpoint *base)
{
    shm_endpoint *ep = shm_of(base);
    if (!ep->unannounced)
        return;
    ep->unannounced = 0;
    full_fence(); /* the flags before the mask: pairs with the one in shm_sleep_begin */
    shm_wake_sleepers(ep, -1);
}

static int shm_flushed(gsi_endpoint *base, uint64_t seq, int stream, int peer)
{
    (void)base, (void)seq, (void)stream, (void)peer;
    return 1; /* a put has copied its source when it returns */
}

static void shm_finish(gsi_endpoint *base, uint64_t seq)
{
    /* Peers may wait for it to use a lane again: pairs with the acquire in shm_done. */
    shm_endpoint *ep = shm_of(base);
    atomic_store_explicit(&ep->controls[base->rank].done, seq, memory_order_release);
    ep->unannounced = 1;
    ep->finished = seq;
    if (ep->ngraves)
        shm_clear_graves(ep);
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

static void *shm_stage(gsi_endpoint *base, int rank)
{
    return shm_of(base)->peers[rank].stage;
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
                        (unsigned long long)bytes, (unsigned long long)dst->off, gsi_rank_called(base, peer));
    memcpy((char *)to + dst->off, src, bytes);
    if (notify)
        shm_signal(base, seq, stream, peer);
    return 0;
}

/* ---- Failures --------------------------------------------------------------- */

int shm_check(gsi_endpoint *base, uint64_t seq, int *peer, char *text, size_t room)
{
    shm_endpoint *ep = shm_of(base);

    shm_drain_all(ep);
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
        snprintf(text, room, left ? "rank %d (pid %lld) left the communicator" : "rank %d (pid %lld) died",
                 gsi_rank_called(base, r), (long long)ep->peers[r].pid);
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
    shm_wake_sleepers(ep, -1);
    shm_wake(base);
}

static int shm_failure(gsi_endpoint *base, gsi_failure *out)
{
    shm_endpoint *ep = shm_of(base);
    if (atomic_load_explicit(&ep->head->failure_state, memory_order_acquire) != SHM_FAILURE_SET)
        return 0;
    *out = ep->head->failure;
    out->text[sizeof out->text - 1] = 0;
    /* Anyone can write there: an error is an error of ours, and names a rank or nobody. */
    if (out->code >= 0 || out->code < GRADSYNC_ERR_INTERNAL)
        out->code = GRADSYNC_ERR_INTERNAL;
    if (out->peer < 0 || out->peer >= (base->called ? base->called_of : base->n))
        out->peer = -1;
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

static void shm_destroy(gsi_endpoint *base)
{
    shm_endpoint *ep = shm_of(base);
    if (ep->process == gsi_process()) {
        atomic_store(&ep->controls[base->rank].state, SHM_LEFT);
        shm_wake_sleepers(ep, -1);
    }
    shm_free(ep);
}

const gsi_endpoint_ops shm_ops = {
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
    .announce = shm_announce,
    .finish = shm_finish,
    .done = shm_done,
    .stage = shm_stage,
    .share = shm_share,
    .unshare = shm_unshare,
    .resolve = shm_resolve,
    .mail = shm_mail_send,
    .mail_next = shm_mail_next,
    .rput = shm_rput,
    .rget = shm_rget,
    .rdone = shm_rdone,
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
