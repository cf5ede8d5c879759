/* SPDX-License-Identifier: Apache-2.0 */
/* Making an endpoint: links, then the control segment, which rank 0 makes and hands over. */
#include "transport/shm/endpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/process.h"

void shm_free(shm_endpoint *ep)
{
    shm_free_memory(ep);
    for (int r = 0; ep->peers && r < ep->base.n; r++) {
        if (ep->peers[r].link.fd >= 0)
            close(ep->peers[r].link.fd);
        if (ep->peers[r].link.pidfd >= 0)
            close(ep->peers[r].link.pidfd);
        if (ep->peers[r].bell >= 0)
            close(ep->peers[r].bell);
    }
    if (ep->map)
        munmap(ep->map, ep->layout.total);
    free(ep->watch);
    free(ep->peers);
    free(ep);
}

/* Hands the segment to a peer; the kernel may be short of something for a moment. */
static int hand_over(const shm_peer *peer, const shm_message *message, int fd, int64_t deadline_ns)
{
    for (;;) {
        int rc = shm_link_send(&peer->link, message, fd);
        if (rc != GRADSYNC_IN_PROGRESS)
            return rc;
        if (gsi_now_ns() > deadline_ns)
            return gsi_fail(GRADSYNC_ERR_TIMEOUT,
                            "pid %lld took no shared memory in time; raise the limit of open files "
                            "(ulimit -n) if it is low",
                            (long long)peer->pid);
        poll(NULL, 0, 1);
    }
}

/* Rank 0 makes the segment and hands it to the others. */
static int make_segment(shm_endpoint *ep, int64_t deadline_ns, int *out)
{
    int fd = gsi_host_memfd("gradsync-comm", ep->layout.total), rc = 0;
    if (fd < 0)
        return gsi_fail_errno(
            errno, "cannot make %llu bytes of shared memory (limits: ulimit -n for descriptors, -f for files)",
            (unsigned long long)ep->layout.total);
    shm_message message = {SHM_MSG_SEGMENT, 1, ep->layout.total, 0};
    for (int r = 1; !rc && r < ep->base.n; r++)
        rc = hand_over(&ep->peers[r], &message, fd, deadline_ns);
    if (rc)
        close(fd);
    else
        *out = fd;
    return rc;
}

static int receive_segment(shm_endpoint *ep, int64_t deadline_ns, int *out)
{
    const shm_peer *root = &ep->peers[0];
    for (;;) {
        shm_message message;
        int err = shm_link_receive(&root->link, &message, out);
        if (!err && message.kind == SHM_MSG_SEGMENT && message.bytes == ep->layout.total && *out >= 0 &&
            lseek(*out, 0, SEEK_END) == (off_t)ep->layout.total && (fcntl(*out, F_GET_SEALS) & F_SEAL_SHRINK))
            return 0;
        if (!err && *out >= 0)
            close(*out);
        if (!err || err == EPROTO)
            return gsi_fail(GRADSYNC_ERR_MISMATCH,
                            "rank 0 runs another build of libgradsync; use the same one on every rank");
        if (err == EPIPE)
            return gsi_fail(GRADSYNC_ERR_PEER_LOST, "rank 0 (pid %lld) ended while the communicator was made",
                            (long long)root->pid);
        if (err != EAGAIN)
            return gsi_fail_errno(err, "cannot take the shared memory from rank 0; if the limit of open files is too "
                                       "low, raise it (ulimit -n)");
        int64_t left = deadline_ns - gsi_now_ns();
        if (left <= 0)
            return gsi_fail(GRADSYNC_ERR_TIMEOUT, "rank 0 (pid %lld) did not hand over the shared memory in time",
                            (long long)root->pid);
        struct pollfd p = {root->link.fd, POLLIN, 0};
        poll(&p, 1, left > 1000000000 ? 1000 : (int)(left / 1000000) + 1);
    }
}

/* Waits until every rank has mapped the segment, so that flags are never stored into the void. */
static int wait_ready(shm_endpoint *ep, int64_t deadline_ns)
{
    int r = 0, lost;
    char text[160];

    atomic_store(&ep->controls[ep->base.rank].state, SHM_READY);
    shm_wake_sleepers(ep, -1);
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
    ep->mail_masks = (shm_mail_mask *)(ep->map + ep->layout.mail_masks);
    ep->mailboxes = (shm_mailbox *)(ep->map + ep->layout.mailboxes);
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
        rc = rank == 0 ? make_segment(ep, deadline_ns, &fd) : receive_segment(ep, deadline_ns, &fd);
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
    ep->process = gsi_process();
    ep->bell = -1;
    shm_layout_of(n, &ep->layout);
    ep->peers = gsi_calloc((size_t)n, sizeof *ep->peers);
    ep->watch = gsi_calloc((size_t)n, sizeof *ep->watch);
    if (!ep->peers || !ep->watch)
        rc = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for %d ranks", n);
    for (int r = 0; ep->peers && r < n; r++) {
        ep->peers[r].link = (shm_link){-1, -1};
        ep->peers[r].bell = -1;
        ep->peers[r].pid = peers[r].address.pid;
        ep->peers[r].same_process = peers[r].address.process == peers[rank].address.process;
        memcpy(ep->peers[r].host, peers[r].host, sizeof ep->peers[r].host);
        ep->peers[r].host[sizeof ep->peers[r].host - 1] = 0;
    }
    if (!rc)
        rc = connect_endpoint(ep, listen_fd, peers, deadline_ns);
    close(listen_fd);
    if (rc) {
        shm_free(ep);
        return rc;
    }
    *out = &ep->base;
    return 0;
}
