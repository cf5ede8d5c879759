/* SPDX-License-Identifier: Apache-2.0 */
/* What the shared-memory transport is made of: the table of peers' memory, the layout of the control
 * segment, and the links, with strangers among those who knock. */
#include "ranks.h"
#include "tap.h"
#include "unit.h"

#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "transport/shm/link.h"
#include "transport/shm/mail.h"
#include "transport/shm/peermem.h"
#include "transport/shm/segment.h"

/* ---- The table of mappings against a list ------------------------------------------- */

enum { IDS = 400 };

static void test_mappings(void)
{
    shm_mappings table = {0};
    char there[IDS + 1] = {0};
    uint64_t seed = 20261120;
    int bad = 0, count = 0;

    tap_ok(!shm_mappings_find(&table, 1), "an empty table has nothing");
    shm_mappings_remove(&table, 1);
    for (int i = 0; i < 200000 && !bad; i++) {
        uint64_t r = unit_random(&seed);
        /* Ids far apart and close together, in a table that is by turns filled and emptied. */
        uint32_t k = 1 + (uint32_t)(r >> 8) % IDS, id = k % 2 ? k : k << 20 | k;
        int fills = i / 5000 % 2, adds = (int)(r % 8) < (fills ? 6 : 2);
        shm_mapping *entry = shm_mappings_find(&table, id);
        bad |= (entry != NULL) != there[k] || (entry && (entry->id != id || entry->bytes != k));
        if (adds && !entry) {
            entry = shm_mappings_add(&table, id);
            entry->bytes = k;
            there[k] = 1;
            count++;
        } else if (!adds) {
            shm_mappings_remove(&table, id);
            count -= there[k];
            there[k] = 0;
        }
        bad |= table.count != (size_t)count || (table.room & (table.room - 1)) || table.room < table.count;
    }
    tap_ok(!bad, "200000 additions, removals and look-ups agree with a list");
    for (uint32_t k = 1; k <= IDS; k++)
        shm_mappings_remove(&table, k % 2 ? k : k << 20 | k);
    int left = 0;
    for (size_t i = 0; i < table.room; i++)
        left += table.table[i].id != 0;
    tap_ok(!left && !table.count, "nothing is left when all are removed");
    free(table.table);
}

/* ---- The layout ----------------------------------------------------------------------- */

static void test_layout(void)
{
    int bad = 0;
    for (int n = 1; n <= SHM_MAX_RANKS; n++) {
        shm_layout l;
        uint64_t ranks = (uint64_t)n;
        shm_layout_of(n, &l);
        uint64_t starts[] = {0,       l.controls, l.doorbells,  l.entries,   l.pairs,
                             l.slots, l.stages,   l.mail_masks, l.mailboxes, l.total};
        uint64_t sizes[] = {sizeof(shm_head),
                            ranks * sizeof(shm_control),
                            ranks * sizeof(shm_doorbell),
                            SHM_LANES * ranks * sizeof(shm_entry),
                            (uint64_t)SHM_LANES * GSI_MAX_STREAMS * ranks * ranks * sizeof(shm_pair),
                            SHM_LANES * ranks * SHM_SLOT_BYTES,
                            ranks * SHM_STAGE_BYTES,
                            ranks * sizeof(shm_mail_mask),
                            ranks * ranks * sizeof(shm_mailbox)};
        for (int i = 0; i < 9; i++)
            bad += starts[i] % 4096 != 0 || starts[i] + sizes[i] > starts[i + 1];
    }
    tap_ok(!bad, "the parts of a segment of 1 to %d ranks lie in pages of their own", SHM_MAX_RANKS);
    tap_ok(offsetof(shm_entry, header) + sizeof(gsi_header) <= 64, "a flag and its header share a cache line");
}

/* ---- Links ------------------------------------------------------------------------------ */

enum { N = 4 };

typedef struct party {
    int rank, listen_fd, rc, bad_token;
    gsi_shm_address addresses[N];
    shm_link links[N];
    pthread_t thread;
} party;

static void *make_links(void *arg)
{
    party *p = arg;
    if (p->bad_token)
        p->addresses[p->bad_token].token[3] ^= 1;
    int64_t deadline = gsi_deadline_ns(gsi_now_ns(), 60000);
    p->rc = shm_links_make(p->listen_fd, p->rank, N, p->addresses, deadline, p->links);
    close(p->listen_fd);
    return NULL;
}

static int open_parties(party *parties)
{
    int bad = 0;
    memset(parties, 0, N * sizeof *parties);
    for (int r = 0; r < N; r++) {
        parties[r].rank = r;
        bad += shm_listen(&parties[r].listen_fd, &parties[0].addresses[r]) != 0;
    }
    for (int r = 1; r < N; r++)
        memcpy(parties[r].addresses, parties[0].addresses, sizeof parties[0].addresses);
    return bad;
}

static void run_parties(party *parties)
{
    for (int r = 0; r < N; r++)
        pthread_create(&parties[r].thread, NULL, make_links, &parties[r]);
    for (int r = 0; r < N; r++)
        pthread_join(parties[r].thread, NULL);
}

/* Every pair sends a message both ways, with the sender's rank in it, and a descriptor. */
static int talk(party *parties)
{
    int bad = 0;
    for (int a = 0; a < N; a++)
        for (int b = 0; b < N; b++) {
            shm_message out = {SHM_MSG_MEM, (uint32_t)a + 1, 7, 9}, in;
            int fd = memfd_create("unit", MFD_CLOEXEC), got = -1, got2;
            if (a != b) {
                bad += shm_link_send(&parties[a].links[b], &out, fd) != 0;
                bad += shm_link_receive(&parties[b].links[a], &in, &got) != 0;
                bad += memcmp(&in, &out, sizeof in) != 0 || got < 0 || parties[a].links[b].pidfd < 0;
                bad += shm_link_receive(&parties[b].links[a], &in, &got2) != EAGAIN;
                close(got);
            }
            close(fd);
        }
    return bad;
}

static void test_links(void)
{
    party parties[N];
    int before = unit_count_fds();

    tap_ok(!open_parties(parties), "%d ranks listen", N);
    run_parties(parties);
    tap_ok(!parties[0].rc && !parties[1].rc && !parties[2].rc && !parties[3].rc, "they link up");
    tap_ok(!talk(parties), "messages and descriptors arrive, both ways between each two");
    shm_message message;
    int fd;
    shm_links_close(parties[0].links, N);
    tap_ok(shm_link_receive(&parties[1].links[0], &message, &fd) == EPIPE, "an end of a link is told from silence");
    for (int r = 1; r < N; r++)
        shm_links_close(parties[r].links, N);
    tap_ok(unit_count_fds() == before, "no descriptor is left");
}

/* ---- Strangers --------------------------------------------------------------------------- */

typedef struct hello {
    uint32_t magic;
    int32_t rank;
    unsigned char token[SHM_TOKEN_BYTES];
} hello;

static int knock(const gsi_shm_address *address)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int at = 1 + snprintf(un.sun_path + 1, sizeof un.sun_path - 1, "gradsync-");
    for (int i = 0; i < SHM_TOKEN_BYTES; i++)
        at += snprintf(un.sun_path + at, sizeof un.sun_path - (size_t)at, "%02x", address->name[i]);
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connect(sock, (struct sockaddr *)&un, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)at))) {
        close(sock);
        return -1;
    }
    return sock;
}

static void send_fds(int sock, const void *bytes, size_t len, int count)
{
    int fds[2] = {0, 1};
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof fds)];
    } control;
    struct iovec iov = {(void *)(uintptr_t)bytes, len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room};
    memset(&control, 0, sizeof control);
    msg.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
    memcpy(CMSG_DATA(c), fds, (size_t)count * sizeof(int));
    sendmsg(sock, &msg, MSG_NOSIGNAL);
}

/* All sorts of strangers are there before the ranks begin: 3 of each, more than a fixed queue would hold. */
static void test_strangers(void)
{
    enum { SORTS = 9, EACH = 3 };
    party parties[N];
    int socks[SORTS * EACH], before = unit_count_fds(), reached = 1;

    open_parties(parties);
    for (int i = 0; i < SORTS * EACH; i++) {
        const gsi_shm_address *to = &parties[0].addresses[2];
        hello h = {0x67734c4b, 0, {0}};
        char flood[512] = "GET / HTTP/1.1\r\n";
        memcpy(h.token, to->token, sizeof h.token);
        int s = socks[i] = knock(to);
        reached &= s >= 0;
        switch (i % SORTS) {
        case 0: /* says nothing */
            break;
        case 1:
            send_fds(s, flood, sizeof flood, 1);
            break;
        case 2: /* one bit of the token is wrong */
            h.token[15] ^= 0x80;
            send_fds(s, &h, sizeof h, 1);
            break;
        case 3: /* the right token, but the rank itself, one that connects the other way round, or none */
            h.rank = 2;
            send_fds(s, &h, sizeof h, 1);
            break;
        case 4:
            h.rank = 3;
            send_fds(s, &h, sizeof h, 1);
            break;
        case 5:
            h.rank = i < SORTS ? -1 : INT32_MIN;
            send_fds(s, &h, sizeof h, 1);
            break;
        case 6: /* a byte short */
            send_fds(s, &h, sizeof h - 1, 1);
            break;
        case 7: /* two descriptors */
            send_fds(s, &h, sizeof h, 2);
            break;
        default: /* gone again */
            close(s);
            socks[i] = -1;
        }
    }
    run_parties(parties);
    tap_ok(reached && !parties[0].rc && !parties[1].rc && !parties[2].rc && !parties[3].rc,
           "%d strangers at the door do not disturb", SORTS * EACH);
    tap_ok(!talk(parties), "the links are with the peers");
    for (int i = 0; i < SORTS * EACH; i++)
        if (socks[i] >= 0)
            close(socks[i]);
    for (int r = 0; r < N; r++)
        shm_links_close(parties[r].links, N);
    tap_ok(unit_count_fds() == before, "strangers leave no descriptor behind");
}

/* Rank 0 does not know rank 2's token: nobody waits for the deadline to learn of it. */
static void test_wrong_token(void)
{
    party parties[N];
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    int before = unit_count_fds();

    open_parties(parties);
    parties[0].bad_token = 2;
    run_parties(parties);
    tap_ok(parties[0].rc == GRADSYNC_ERR_PEER_LOST, "a rank with a wrong token is turned away (%d)", parties[0].rc);
    tap_ok(parties[2].rc == GRADSYNC_ERR_UNSUPPORTED || parties[2].rc == GRADSYNC_ERR_PEER_LOST,
           "the other one is not left waiting (%d)", parties[2].rc);
    /* In this thread, with nobody there: the message names the rank and what to do. */
    shm_link links[2];
    gsi_shm_address two[2];
    int listen_fd, other_fd;
    shm_listen(&listen_fd, &two[0]);
    shm_listen(&other_fd, &two[1]);
    close(other_fd);
    int rc = shm_links_make(listen_fd, 0, 2, two, gsi_deadline_ns(gsi_now_ns(), 10000), links);
    gradsync_last_error(&info);
    tap_ok(rc == GRADSYNC_ERR_UNSUPPORTED && strstr(info.message, "rank 1") && strstr(info.message, "namespace"),
           "a peer that is not there is named: %s", info.message);
    shm_listen(&other_fd, &two[1]);
    rc = shm_links_make(listen_fd, 0, 2, two, gsi_deadline_ns(gsi_now_ns(), 50), links);
    gradsync_last_error(&info);
    tap_ok(rc == GRADSYNC_ERR_TIMEOUT && strstr(info.message, "rank 1"), "a silent peer is named: %s", info.message);
    close(listen_fd);
    close(other_fd);
    for (int r = 0; r < N; r++)
        if (!parties[r].rc)
            shm_links_close(parties[r].links, N);
    tap_ok(unit_count_fds() == before, "no descriptor is left of what failed");
}

/* ---- Many ranks --------------------------------------------------------------------------- */

static int join(ranks_world *world, int rank, void *arg)
{
    gradsync_context *ctx;
    gradsync_comm *comm = ranks_comm(world, rank, NULL, &ctx);
    (void)arg;
    if (!comm)
        return 1;
    ranks_end(ctx, comm);
    return 0;
}

int main(void)
{
    test_mappings();
    test_layout();
    test_links();
    test_strangers();
    test_wrong_token();
    tap_ok(!ranks_run_threads(24, join, NULL), "24 threads that come at once link up");
    tap_ok(!ranks_run_processes(24, join, NULL), "24 processes that come at once link up");
    return tap_done();
}
