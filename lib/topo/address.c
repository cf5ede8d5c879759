/* SPDX-License-Identifier: Apache-2.0 */
#include "topo/address.h"

#include <ifaddrs.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

enum { ROUTE_GATEWAY = 2 }; /* RTF_GATEWAY: not a subnet of our own */

static const uint8_t ipv4_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static int add(gsi_addresses *list, const gsi_address *a)
{
    if ((list->n & (list->n - 1)) == 0) { /* room doubles at each power of two */
        size_t room = list->n ? (size_t)list->n * 2 : 1;
        gsi_address *p = gsi_realloc(list->items, room * sizeof *p);
        if (!p)
            return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to list the host's addresses");
        list->items = p;
    }
    list->items[list->n++] = *a;
    return 0;
}

static int count_bits(const uint8_t *mask, int bytes)
{
    int bits = 0;

    while (bits < bytes * 8 && mask[bits / 8] >> (7 - bits % 8) & 1)
        bits++;
    return bits;
}

static void set_ipv4(gsi_address *a, const void *addr, const void *mask)
{
    memcpy(a->raw, ipv4_prefix, sizeof ipv4_prefix);
    memcpy(a->raw + 12, addr, 4);
    a->prefix = (uint8_t)(96 + count_bits(mask, 4));
}

static int read_kernel(gsi_addresses *out)
{
    struct ifaddrs *all, *i;
    int rc = 0;

    if (getifaddrs(&all))
        return 0;
    for (i = all; i && !rc; i = i->ifa_next) {
        gsi_address a = {.prefix = 0};
        if (!i->ifa_addr || !i->ifa_netmask)
            continue;
        /* An alias ("eth0:1") is the same device. */
        snprintf(a.netdev, sizeof a.netdev, "%.*s", (int)strcspn(i->ifa_name, ":"), i->ifa_name);
        if (i->ifa_addr->sa_family == AF_INET) {
            const struct sockaddr_in *addr = (const void *)i->ifa_addr, *mask = (const void *)i->ifa_netmask;
            set_ipv4(&a, &addr->sin_addr, &mask->sin_addr);
        } else if (i->ifa_addr->sa_family == AF_INET6) {
            const struct sockaddr_in6 *addr = (const void *)i->ifa_addr, *mask = (const void *)i->ifa_netmask;
            memcpy(a.raw, &addr->sin6_addr, 16);
            a.prefix = (uint8_t)count_bits((const uint8_t *)&mask->sin6_addr, 16);
        } else {
            continue;
        }
        rc = add(out, &a);
    }
    freeifaddrs(all);
    return rc;
}

static FILE *open_below(const char *root, const char *file)
{
    char path[PATH_MAX];

    return snprintf(path, sizeof path, "%s%s", root, file) < (int)sizeof path ? fopen(path, "re") : NULL;
}

/* Iface Destination Gateway Flags RefCnt Use Metric Mask ...: hexadecimal, in the machine's order. */
static int read_routes(const char *root, gsi_addresses *out)
{
    FILE *f = open_below(root, "/proc/net/route");
    char line[256];
    int rc = 0;

    if (!f)
        return 0;
    while (!rc && fgets(line, sizeof line, f)) {
        gsi_address a = {.prefix = 0};
        unsigned dest, gateway, flags, mask;
        if (sscanf(line, "%15s %x %x %x %*s %*s %*s %x", a.netdev, &dest, &gateway, &flags, &mask) != 5 ||
            flags & ROUTE_GATEWAY || !mask)
            continue;
        uint32_t d = dest, m = mask;
        set_ipv4(&a, &d, &m);
        rc = add(out, &a);
    }
    fclose(f);
    return rc;
}

/* Address, index, prefix length, scope, flags, name: hexadecimal. */
static int read_inet6(const char *root, gsi_addresses *out)
{
    FILE *f = open_below(root, "/proc/net/if_inet6");
    char line[256], hex[33];
    int rc = 0;

    if (!f)
        return 0;
    while (!rc && fgets(line, sizeof line, f)) {
        gsi_address a = {.prefix = 0};
        unsigned prefix, byte = 0;
        if (sscanf(line, "%32[0-9a-fA-F] %*s %x %*s %*s %15s", hex, &prefix, a.netdev) != 3 || strlen(hex) != 32 ||
            prefix > 128)
            continue;
        for (int i = 0; i < 16; i++) {
            sscanf(hex + 2 * (size_t)i, "%2x", &byte);
            a.raw[i] = (uint8_t)byte;
        }
        a.prefix = (uint8_t)prefix;
        rc = add(out, &a);
    }
    fclose(f);
    return rc;
}

int gsi_addresses_read(const char *root, gsi_addresses *out)
{
    int rc;

    *out = (gsi_addresses){0};
    if (!root[0])
        rc = read_kernel(out);
    else if (!(rc = read_routes(root, out)))
        rc = read_inet6(root, out);
    if (rc) {
        free(out->items);
        *out = (gsi_addresses){0};
    }
    return rc;
}

int gsi_same_prefix(const uint8_t a[16], const uint8_t b[16], int bits)
{
    int bytes = bits / 8, rest = bits % 8;

    return !memcmp(a, b, (size_t)bytes) && (!rest || !((a[bytes] ^ b[bytes]) >> (8 - rest)));
}

int gsi_addresses_prefix(const gsi_addresses *list, const char *netdev, const uint8_t raw[16])
{
    int best = 0;

    for (int i = 0; i < list->n; i++) {
        const gsi_address *a = &list->items[i];
        if ((!netdev[0] || !strcmp(netdev, a->netdev)) && a->prefix > best && gsi_same_prefix(a->raw, raw, a->prefix))
            best = a->prefix;
    }
    return best;
}
