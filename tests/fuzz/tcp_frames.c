/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes what a TCP connection makes of the bytes of its peer. The input is a list of steps, a byte each, with
 * their arguments behind them:
 *   0 n bytes...        the peer sends n bytes
 *   1 11 bytes          the peer sends a head: kind, flags, acknowledgement, key, offset, length
 *   2 n, 3 n            this side writes, or reads, n bytes (flags: n's high bits)
 *   4                   what this side has to say goes to the peer, who checks that it is frames
 *   5                   the region is taken away and registered again
 */
#include "transport/tcp/state.h"
#include "fuzz.h"

#include <sys/socket.h>
#include <unistd.h>

enum { GUARD = 512, BYTES = 4096, DEPTH = 4, PEER_DEPTH = 3, ROOM = DEPTH + PEER_DEPTH + 2, KEPT = 1 << 14 };

static unsigned char memory[GUARD + BYTES + GUARD];
static gsi_tcp_rail rail;
static gsi_conn conn;
static int signals, told, peer;
static gsi_tcp_frame out; /* the peer's view of what we send */
static uint64_t out_left;
static unsigned char out_head[GSI_TCP_HEAD];
static size_t out_have;

static void start(void)
{
    static gsi_rail_event kept[KEPT];
    static gsi_tcp_work works[DEPTH];
    static gsi_tcp_out frames[ROOM];
    static unsigned char slots[ROOM * GSI_TCP_SLOT];
    static gsi_tcp_region regions[2];
    int fds[2];

    memset(memory, 0x77, sizeof memory);
    memset(&rail, 0, sizeof rail);
    memset(&conn, 0, sizeof conn);
    memset(works, 0, sizeof works);
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
    peer = fds[1];
    rail.base.fd = rail.timer = rail.listener = -1;
    rail.base.max_bytes = 1 << 30;
    rail.kept = kept;
    rail.kept_room = KEPT;
    regions[0] = (gsi_tcp_region){(char *)memory, GUARD, 7}; /* not the peer's affair */
    regions[1] = (gsi_tcp_region){(char *)memory + GUARD, BYTES, 9};
    rail.regions = regions;
    rail.nregions = 2;
    rail.conns = &conn;
    rail.open = 1;
    conn.source = GSI_TCP_CONN;
    conn.rail = &rail;
    conn.fd = fds[0];
    conn.state = GSI_TCP_OPEN;
    conn.told_ready = 1;
    conn.depth = DEPTH;
    conn.peer.depth = PEER_DEPTH;
    conn.works = works;
    conn.out = frames;
    conn.out_room = ROOM;
    conn.slots = slots;
    signals = told = 0;
    out_left = out_have = 0;
}

static void check(void)
{
    for (size_t i = 0; i < GUARD; i++)
        must(memory[i] == 0x77 && memory[GUARD + BYTES + i] == 0x77);
    must(conn.done <= conn.acked && conn.acked <= conn.sent && conn.sent <= conn.posted);
    must(conn.posted - conn.done <= DEPTH && conn.out_count <= ROOM && conn.answers <= PEER_DEPTH);
    must(rail.kept_end < rail.kept_room);
    for (uint32_t i = 0; i < rail.kept_end; i++) {
        must(rail.kept[i].kind == GSI_RAIL_SENT || rail.kept[i].kind == GSI_RAIL_ARRIVED);
        told += rail.kept[i].kind == GSI_RAIL_SENT;
    }
    rail.kept_end = 0;
    must(told <= signals);
    must(conn.state == GSI_TCP_OPEN ? !rail.failures : rail.failures == 1 && conn.why && conn.failure_due);
    if (conn.state == GSI_TCP_OPEN && conn.left)
        must(conn.into >= (char *)memory + GUARD &&
             conn.left <= (uint64_t)((char *)memory + GUARD + BYTES - conn.into));
}

static void post(int read, unsigned n)
{
    gsi_region region = {&rail, memory + GUARD, BYTES, (uint64_t)9 << 32 | 1};
    gsi_rail_work w = {memory + GUARD + n, &region, n & 31, 4096, 77, n, n, (n >> 5) & 7};

    if (conn.posted - conn.done == DEPTH)
        return;
    if (conn.state == GSI_TCP_OPEN)
        signals += (w.flags & GSI_RAIL_SIGNAL) != 0;
    must((read ? gsi_tcp_read(&conn, &w) : gsi_tcp_write(&conn, &w)) == 0);
}

/* The peer takes what there is: frames with nothing between. */
static void drain(void)
{
    unsigned char bytes[4096];
    ssize_t n;

    if (conn.state == GSI_TCP_OPEN) {
        gsi_tcp_send_ack(&conn);
        gsi_tcp_flush(&conn);
    }
    while ((n = recv(peer, bytes, sizeof bytes, MSG_DONTWAIT)) > 0)
        for (size_t at = 0; at < (size_t)n;) {
            size_t left = (size_t)n - at;
            if (out_left) {
                size_t part = left < out_left ? left : (size_t)out_left;
                out_left -= part;
                at += part;
                continue;
            }
            out_head[out_have++] = bytes[at++];
            if (out_have == GSI_TCP_HEAD) {
                out_have = 0;
                must(gsi_tcp_frame_parse(out_head, &out) == 0);
                must(out.ack <= conn.received);
                out_left = out.kind == GSI_TCP_WRITE || out.kind == GSI_TCP_ANSWER ? out.bytes : 0;
                must(out_left <= BYTES);
            }
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    start();
    while (size) {
        unsigned op = *data++ % 6;
        unsigned char head[GSI_TCP_HEAD];
        size_t n;

        size--;
        switch (op) {
        case 0:
            n = size ? data[0] : 0;
            data += size > 0;
            size -= size > 0;
            n = n < size ? n : size;
            gsi_tcp_feed(&conn, data, n);
            data += n;
            size -= n;
            break;
        case 1:
            if (size < 11)
                break;
            gsi_tcp_frame_pack(
                &(gsi_tcp_frame){
                    .kind = data[0] & 7,
                    .flags = data[1],
                    .imm = data[2],
                    .ack = conn.acked + (uint64_t)(int64_t)(int8_t)data[3],
                    .key = ((uint64_t)data[4] << 32) | data[5],
                    .remote =
                        (uint64_t)(uintptr_t)memory + GUARD + (uint64_t)(int64_t)(int16_t)(data[6] | data[7] << 8),
                    .bytes = data[8] | (uint64_t)data[9] << 8 | (uint64_t)data[10] << 56,
                },
                head);
            gsi_tcp_feed(&conn, head, sizeof head);
            data += 11;
            size -= 11;
            break;
        case 2:
        case 3:
            n = size ? data[0] : 0;
            data += size > 0;
            size -= size > 0;
            post(op == 3, (unsigned)n);
            break;
        case 4:
            drain();
            break;
        default: {
            gsi_region region = {&rail, memory + GUARD, BYTES, (uint64_t)9 << 32 | 1};
            gsi_tcp_dereg(&rail.base, &region);
            rail.regions[1] = (gsi_tcp_region){(char *)memory + GUARD, BYTES, 9};
            break;
        }
        }
        check();
    }
    drain();
    check();
    if (conn.fd >= 0)
        close(conn.fd);
    close(peer);
    return 0;
}
