/* SPDX-License-Identifier: Apache-2.0 */
/* The TCP provider: the contract over IPv4, IPv6 and small socket buffers, and everything that is its own. */
#include "test_tcp.h"

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
    contract_run(&v4);
    if (has_ipv6())
        contract_run(&v6);
    else
        test_skip(1, "this host has no IPv6");
    contract_run(&small);
    return test_done();
}
