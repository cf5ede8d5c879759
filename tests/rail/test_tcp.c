/* SPDX-License-Identifier: Apache-2.0 */
/* The TCP provider: the contract over IPv4, IPv6 and small socket buffers, and everything that is its own. */
#include "test_tcp.h"
#include "base/clock.h"

#include <linux/filter.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int tcp_open_at(void *arg, int side, gsi_rail_config *config, gsi_rail **out)
{
    (void)side;
    snprintf(config->address, sizeof config->address, "%s", (const char *)arg);
    return gsi_tcp_rail_open(config, out);
}

/* Partial writes, and so partial reads, everywhere. (Small receive buffers only make the kernel wait.) */
static void small_buffers(gsi_conn *conn, uint32_t seed)
{
    int bytes = 16384 + (int)(seed % 16384), fd = gsi_tcp_test_socket(conn);

    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
}

/* From now on this side's host might as well have no power: nothing that comes is seen, nothing is acknowledged. */
static int go_silent(gsi_conn *conn)
{
    struct sock_filter none = BPF_STMT(BPF_RET | BPF_K, 0);
    struct sock_fprog program = {1, &none};

    return setsockopt(gsi_tcp_test_socket(conn), SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
}

/* Sleeps on side 0 until it has an event. */
static const gsi_rail_event *sleep_on(contract_pair *pair, int64_t ms)
{
    static gsi_rail_event e;
    gsi_rail *rail = pair->side[0].rail;
    int64_t end = gsi_deadline_ns(gsi_now_ns(), ms);
    int n = 0;

    while (n == 0 && gsi_now_ns() < end) {
        struct pollfd p = {rail->fd, POLLIN, 0};
        rail->ops->arm(rail);
        n = rail->ops->poll(rail, &e, 1);
        if (n == 0)
            poll(&p, 1, ms < 1000 ? (int)ms : 30000); /* what is to be told must wake by itself */
        rail->ops->disarm(rail);
        if (n == 0)
            n = rail->ops->poll(rail, &e, 1);
    }
    return n ? &e : NULL;
}

static void test_silence(const contract_factory *factory)
{
    static const int one = 1;
    static contract_pair pair;
    const gsi_rail_event *e;

    if (pair_open(&pair, factory, 3) < 0)
        return;
    contract_side *mine = &pair.side[0];
    gsi_rail_work w = {mine->memory,
                       &mine->region,
                       PAIR_MEMORY / 2,
                       (uint64_t)(uintptr_t)pair.side[1].memory,
                       pair.side[1].region.remote_key,
                       6,
                       0,
                       GSI_RAIL_SIGNAL};
    ((gsi_tcp_rail *)mine->rail)->silent_ms = 300;

    /* It does not poll, so its window closes; but its kernel answers. Longer than the silence that is suffered. */
    for (int i = 0; i < 8; i++)
        mine->rail->ops->write(mine->conns[0], &w);
    test_ok(!sleep_on(&pair, 900) && !sleep_on(&pair, 900), "a peer that does not poll is not taken for dead");
    int sent = 0;
    while (sent < 8 && (e = pair_next(&pair, 0)) && e->kind == GSI_RAIL_SENT)
        sent++;
    test_ok(sent == 8, "it has everything when it polls again");

    w.bytes = 100;
    test_ok(go_silent(pair.side[1].conns[1]) == 0, "a host loses its power while something is sent to it");
    mine->rail->ops->write(mine->conns[1], &w);
    e = sleep_on(&pair, 30000);
    test_ok(e && e->kind == GSI_RAIL_FAILED && e->conn == 1 && e->id == 6, "FAILED wakes who sleeps: %s",
            e && e->why ? e->why : "never told");

    int fd = gsi_tcp_test_socket(mine->conns[2]);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &one, sizeof one);
    test_ok(go_silent(pair.side[1].conns[2]) == 0, "a host loses its power while nothing is on its way");
    e = sleep_on(&pair, 30000);
    test_ok(e && e->kind == GSI_RAIL_FAILED && e->conn == 2, "FAILED wakes who sleeps: %s",
            e && e->why ? e->why : "never told");
    pair_close(&pair);
}

static int has_ipv6(void)
{
    struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), r;

    if (fd < 0)
        return 0;
    r = bind(fd, (struct sockaddr *)&to, sizeof to);
    close(fd);
    return r == 0;
}

int main(int argc, char **argv)
{
    contract_factory v4 = {.name = "tcp over IPv4", .open = tcp_open_at, .arg = (void *)"127.0.0.1"};
    contract_factory v6 = {.name = "tcp over IPv6", .open = tcp_open_at, .arg = (void *)"::1"};
    contract_factory small = {.name = "tcp with small buffers", .open = tcp_open_at, .arg = (void *)"127.0.0.1"};

    if (argc > 1 && !strcmp(argv[1], "--bench"))
        return tcp_bench(argc > 2 ? argv[2] : "127.0.0.1");
    small.hamper = small_buffers;
    test_hostile();
    test_silence(&v4);
    contract_run(&v4);
    if (has_ipv6())
        contract_run(&v6);
    else
        test_skip(1, "this host has no IPv6");
    contract_run(&small);
    return test_done();
}
