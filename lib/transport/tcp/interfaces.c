/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/tcp/interfaces.h"
#include "base/error.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A number that sysfs has of an interface; `unknown` where it has none. */
static int32_t sysfs_number(const char *name, const char *file, int32_t unknown)
{
    char path[160], line[32], *end;
    long value = -1;

    snprintf(path, sizeof path, "/sys/class/net/%s/%s", name, file);
    FILE *f = fopen(path, "re");
    if (!f)
        return unknown;
    if (fgets(line, sizeof line, f)) {
        value = strtol(line, &end, 10);
        if (end == line)
            value = -1;
    }
    fclose(f);
    return value < 0 || value > INT32_MAX ? unknown : (int32_t)value;
}

static int32_t bits(const unsigned char *mask, int bytes)
{
    int32_t n = 0;

    for (int i = 0; i < bytes; i++)
        n += __builtin_popcount(mask[i]);
    return n;
}

/* How much an address is to be preferred; 0: not at all. */
static int worth(const struct ifaddrs *i)
{
    if (i->ifa_addr->sa_family == AF_INET)
        return 4;
    const struct in6_addr *a = &((const struct sockaddr_in6 *)(const void *)i->ifa_addr)->sin6_addr;
    if (IN6_IS_ADDR_LINKLOCAL(a))
        return 1;
    return (a->s6_addr[0] & 0xfe) == 0xfc ? 2 : 3; /* a unique local one (fc00::/7), or a global one */
}

static void take_address(gsi_tcp_interface *out, const struct ifaddrs *i)
{
    const struct sockaddr_in *v4 = (const void *)i->ifa_addr, *mask4 = (const void *)i->ifa_netmask;
    const struct sockaddr_in6 *v6 = (const void *)i->ifa_addr, *mask6 = (const void *)i->ifa_netmask;
    char text[INET6_ADDRSTRLEN] = "";

    if (i->ifa_addr->sa_family == AF_INET) {
        out->family = 4;
        inet_ntop(AF_INET, &v4->sin_addr, out->address, sizeof out->address);
        out->prefix = mask4 ? bits((const unsigned char *)&mask4->sin_addr, 4) : 32;
        return;
    }
    out->family = 6;
    inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
    if (IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr))
        snprintf(out->address, sizeof out->address, "%s%%%s", text, i->ifa_name);
    else
        snprintf(out->address, sizeof out->address, "%s", text);
    out->prefix = mask6 ? bits((const unsigned char *)&mask6->sin6_addr, 16) : 128;
}

static int is_bridge(const char *name)
{
    static const char *const prefixes[] = {"docker",  "br-",  "veth",  "virbr", "cni",
                                           "flannel", "cali", "lxcbr", "podman"};

    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (!strncmp(name, prefixes[i], strlen(prefixes[i])))
            return 1;
    return 0;
}

/* All interfaces that are up and have an address, or the one of `only`. */
static int list_all(gsi_tcp_interface list[GSI_TCP_INTERFACES], const char *only)
{
    int best[GSI_TCP_INTERFACES] = {0}, n = 0;
    struct ifaddrs *all;

    if (getifaddrs(&all) < 0)
        return gsi_fail_errno(errno, "the network interfaces of this host cannot be listed");
    for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
        const unsigned up = IFF_UP | IFF_RUNNING;
        int at = 0;
        if (!i->ifa_addr || (i->ifa_addr->sa_family != AF_INET && i->ifa_addr->sa_family != AF_INET6) ||
            (i->ifa_flags & up) != up || (only && strcmp(i->ifa_name, only)))
            continue;
        while (at < n && strcmp(list[at].name, i->ifa_name))
            at++;
        if (at == GSI_TCP_INTERFACES)
            continue;
        gsi_tcp_interface *it = &list[at];
        if (at == n) {
            memset(it, 0, sizeof *it);
            snprintf(it->name, sizeof it->name, "%s", i->ifa_name);
            it->mbps = sysfs_number(it->name, "speed", 0);
            it->numa_node = sysfs_number(it->name, "device/numa_node", -1);
            it->loopback = (i->ifa_flags & IFF_LOOPBACK) != 0;
            it->bridge = is_bridge(it->name);
            n++;
        }
        if (worth(i) > best[at]) {
            best[at] = worth(i);
            take_address(it, i);
        }
    }
    freeifaddrs(all);
    return n;
}

/* Fastest first; the order of equals is kept. */
static void sort(gsi_tcp_interface *list, int n)
{
    for (int i = 1; i < n; i++) {
        gsi_tcp_interface it = list[i];
        int at = i;
        for (; at > 0 && list[at - 1].mbps < it.mbps; at--)
            list[at] = list[at - 1];
        list[at] = it;
    }
}

int gsi_tcp_interfaces_choose(gsi_tcp_interface *list, int n, gsi_tcp_wanted wanted, void *arg)
{
    int kept = 0, hidden = 0;

    if (!wanted) {
        for (int i = 0; i < n; i++)
            hidden += list[i].loopback || list[i].bridge;
        if (hidden == n)
            hidden = 0; /* nothing else is there */
    }
    for (int i = 0; i < n; i++)
        if (wanted ? wanted(arg, list[i].name) : !hidden || !(list[i].loopback || list[i].bridge))
            list[kept++] = list[i];
    sort(list, kept);
    return kept;
}

int gsi_tcp_interfaces(gsi_tcp_wanted wanted, void *arg, gsi_tcp_interface list[GSI_TCP_INTERFACES])
{
    int n = list_all(list, NULL);

    return n < 0 ? n : gsi_tcp_interfaces_choose(list, n, wanted, arg);
}

int gsi_tcp_interface_find(const char *name, gsi_tcp_interface *out)
{
    gsi_tcp_interface list[GSI_TCP_INTERFACES];

    if (list_all(list, name) <= 0)
        return 0;
    *out = list[0];
    return 1;
}
