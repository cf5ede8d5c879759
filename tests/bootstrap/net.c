/* SPDX-License-Identifier: Apache-2.0 */
/* Where rank 0 listens: no wider than it must. */
#include "bootstrap/net.h"
#include "tap.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static gsi_addrs plan;

static int plan_for(const char *addr, const char *ifname, int all_local)
{
    gsi_job job = {.nranks = 4, .local_rank = 0, .local_ranks = all_local ? 4 : 2};

    snprintf(job.addr, sizeof job.addr, "%s", addr);
    snprintf(job.ifname, sizeof job.ifname, "%s", ifname);
    memset(&plan, 0, sizeof plan);
    return gsi_net_listen_plan(&job, NULL, &plan);
}

static int has(const char *text)
{
    char shown[GSI_ADDR_TEXT];

    for (int i = 0; i < plan.n; i++)
        if (!strcmp(gsi_net_text(&plan.list[i], shown), text))
            return 1;
    return 0;
}

static int loopbacks(void)
{
    int n = 0;

    for (int i = 0; i < plan.n; i++)
        n += gsi_net_is_loopback(&plan.list[i]);
    return n;
}

static void test_plans(void)
{
    tap_ok(!plan_for("127.0.0.1", "", 1) && plan.n == 1 && has("127.0.0.1:0"), "a loopback address: that, only");
    tap_ok(!plan_for("127.0.0.1", "eth0", 1) && plan.n == 1 && has("127.0.0.1:0"), "whatever the interfaces");
    tap_ok(!plan_for("localhost", "", 0) && plan.n >= 1 && loopbacks() == plan.n, "localhost: loopback only");
    tap_ok(!plan_for("192.0.2.1", "", 0) && plan.n == 1 && (has("[::]:0") || has("0.0.0.0:0")),
           "an address that is not ours: everywhere");
    tap_ok(!plan_for("no-such-host.invalid", "=lo", 0) && has("127.0.0.1:0") && loopbacks() == plan.n,
           "an interface by its exact name");
    tap_ok(!plan_for("192.0.2.1", "none,l", 0) && has("127.0.0.1:0"), "a list of prefixes");
    tap_ok(plan_for("192.0.2.1", "=l", 0) == GRADSYNC_ERR_INVALID, "an exact name is no prefix");
    tap_ok(plan_for("192.0.2.1", "^=lo", 0) ? plan.n == 0 : !loopbacks(), "all but one");
    tap_ok(plan_for("192.0.2.1", "", 0) == 0 && plan_for("192.0.2.1", ",", 0) == GRADSYNC_ERR_INVALID,
           "an empty list has no interface in it");
}

static void test_texts(void)
{
    gsi_addrs a;
    char shown[GSI_ADDR_TEXT];

    tap_ok(gsi_net_is_literal("10.0.0.1") && gsi_net_is_literal("2001:db8::1") && !gsi_net_is_literal("localhost"),
           "addresses and names");
    tap_ok(!gsi_net_resolve("2001:db8::1", &a) && a.n == 1 &&
               !strcmp(gsi_net_text(&a.list[0], shown), "[2001:db8::1]:0"),
           "an IPv6 address as text");
    tap_ok(!gsi_net_resolve("::ffff:10.1.2.3", &a) && a.n == 1 &&
               !strcmp(gsi_net_text(&a.list[0], shown), "10.1.2.3:0"),
           "an IPv4 address that came over an IPv6 socket");
    tap_ok(gsi_net_resolve("300.1.2.3.invalid", &a) != NULL && a.n == 0, "a name without an address says why");
}

/* Sockets must not be inherited by what the host process starts, nor block it. */
static void test_flags(void)
{
    gsi_addrs a;
    gsi_addr from;
    int listener = -1, port = 0;

    gsi_net_resolve("127.0.0.1", &a);
    for (port = 12000; port < 13000 && gsi_net_listen(&a.list[0], port, &listener); port++)
        ;
    int again = -1, taken = gsi_net_listen(&a.list[0], port, &again);
    int out = gsi_net_connect(&a.list[0], port), in;
    do
        in = gsi_net_accept(listener, &from);
    while (in == -EAGAIN);
    int fds[] = {listener, out, in}, good = 1;
    for (int i = 0; i < 3; i++)
        good &= fds[i] >= 0 && (fcntl(fds[i], F_GETFD) & FD_CLOEXEC) && (fcntl(fds[i], F_GETFL) & O_NONBLOCK);
    tap_ok(good, "all sockets are close-on-exec and non-blocking");
    tap_ok(taken == EADDRINUSE, "a port is not taken twice");
    for (int i = 0; i < 3; i++)
        close(fds[i]);
}

int main(void)
{
    test_plans();
    test_texts();
    test_flags();
    return tap_done();
}
