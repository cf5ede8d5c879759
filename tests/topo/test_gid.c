/* SPDX-License-Identifier: Apache-2.0 */
/* Which GID: never silently index 0. */
#include <arpa/inet.h>
#include <string.h>

#include "base/error.h"
#include "tap.h"
#include "topo/gid.h"

/* "10.0.0.1/24" or "fd00::1/64": an address with its prefix. */
static gsi_gid gid(int index, int type, const char *address)
{
    gsi_gid g = {.index = (uint16_t)index, .type = (uint8_t)type};
    char text[64];

    snprintf(text, sizeof text, "%s", address);
    char *slash = strchr(text, '/');
    if (slash)
        *slash = 0;
    int v4 = strchr(text, '.') != NULL, bits = slash ? atoi(slash + 1) : 0;
    if (v4)
        g.raw[10] = g.raw[11] = 0xff;
    if (inet_pton(v4 ? AF_INET : AF_INET6, text, g.raw + (v4 ? 12 : 0)) != 1)
        exit(99);
    g.prefix = (uint8_t)(bits ? bits + (v4 ? 96 : 0) : 0);
    return g;
}

#define V2(i, a) gid(i, GSI_GID_ROCE_V2, a)
#define V1(i, a) gid(i, GSI_GID_ROCE_V1, a)
#define IB(i, a) gid(i, GSI_GID_IB, a)

static const char *last_message(void)
{
    static gradsync_error_info info;

    info.size = sizeof info;
    gradsync_last_error(&info);
    return info.message;
}

static void test_meet(void)
{
    static const struct {
        const char *a, *b;
        int type_a, type_b, match;
    } cases[] = {
        {"10.0.0.1/24", "10.0.0.2/24", 2, 2, GSI_GID_SUBNET},
        {"10.0.0.1/24", "10.0.1.2/24", 2, 2, GSI_GID_ROUTED},
        {"10.0.0.1/16", "10.0.1.2/24", 2, 2, GSI_GID_ROUTED}, /* only one sees the other in its subnet */
        {"10.0.0.1", "10.0.0.2", 2, 2, GSI_GID_SUBNET},       /* prefixes unknown: /24 */
        {"10.0.0.1/31", "10.0.0.2/31", 2, 2, GSI_GID_ROUTED},
        {"10.0.0.0/31", "10.0.0.1/31", 2, 2, GSI_GID_SUBNET},
        {"fd00::1/64", "fd00::2/64", 2, 2, GSI_GID_SUBNET},
        {"fd00:0:0:1::1/64", "fd00:0:0:2::1/64", 2, 2, GSI_GID_ROUTED},
        {"fe80::1/64", "fe80::2/64", 2, 2, GSI_GID_LINK_LOCAL},
        {"169.254.3.1/16", "169.254.4.1/16", 2, 2, GSI_GID_LINK_LOCAL},
        {"10.0.0.1/24", "fd00::2/64", 2, 2, GSI_GID_NO_MATCH},
        {"fe80::1/64", "fd00::2/64", 2, 2, GSI_GID_NO_MATCH},
        {"10.0.0.1/24", "10.0.0.2/24", 2, 1, GSI_GID_NO_MATCH},
        {"10.0.0.1/24", "10.0.0.2/24", 1, 1, GSI_GID_LINK_LOCAL},
        {"10.0.0.1/24", "10.0.1.2/24", 1, 1, GSI_GID_NO_MATCH},
        {"fe80::1", "fe80::2", 0, 0, GSI_GID_SUBNET},
        {"fe80::1", "fec0:0:0:7::2", 0, 0, GSI_GID_NO_MATCH},
        {"fe80::1", "fe80::2", 0, 2, GSI_GID_NO_MATCH},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gsi_gid a = gid(0, cases[i].type_a, cases[i].a), b = gid(0, cases[i].type_b, cases[i].b);
        tap_ok(gsi_gid_meet(&a, &b) == cases[i].match && gsi_gid_meet(&b, &a) == cases[i].match, "%s (%s), %s (%s): %d",
               cases[i].a, gsi_gid_type_name(cases[i].type_a), cases[i].b, gsi_gid_type_name(cases[i].type_b),
               cases[i].match);
    }
}

/* The position that is chosen, or the error. */
static int choose(int layer, gsi_gid *gids, int n, int wanted, const gsi_gid *peers, int npeers, char note[160])
{
    gsi_port p = {.device = "mlx5_0", .number = 1, .link_layer = layer, .gids = gids, .ngids = n};

    return gsi_gid_choose(&p, wanted, "GRADSYNC_IB_GID_INDEX", peers, npeers, NULL, note, 160);
}

static void test_choose(void)
{
    /* As Mellanox cards have it: v1 and v2 of each address. */
    gsi_gid card[] = {V1(0, "fe80::1/64"), V2(1, "fe80::1/64"), V1(2, "10.77.0.1/24"),  V2(3, "10.77.0.1/24"),
                      V1(4, "fd00::1/64"), V2(5, "fd00::1/64"), V2(9, "192.168.7.1/24")};
    gsi_gid four[] = {V2(1, "fe80::2/64"), V2(3, "10.77.0.2/24")}, six[] = {V2(1, "fe80::2/64"), V2(3, "fd00::2/64")};
    gsi_gid other[] = {V2(3, "192.168.7.9/24")}, routed[] = {V2(3, "10.99.0.1/24")}, local[] = {V2(0, "fe80::9/64")};
    gsi_gid old[] = {V1(0, "10.77.0.7/24")}, strange[] = {IB(0, "fe80::9")};
    char note[160];
    int n = sizeof card / sizeof card[0];

    tap_ok(choose(GSI_LINK_ETHERNET, card, n, -1, four, 2, note) == 3 && !note[0],
           "IPv4 of the peer's subnet: index 3");
    tap_ok(choose(GSI_LINK_ETHERNET, card, n, -1, six, 2, note) == 5 && !note[0], "IPv6 of the peer's subnet: index 5");
    tap_ok(choose(GSI_LINK_ETHERNET, card, n, -1, other, 1, note) == 6 && !note[0], "the second subnet: index 9");
    tap_ok(choose(GSI_LINK_ETHERNET, card, n, -1, NULL, 0, note) == 3 && !note[0], "no peer yet: the first IPv4");
    tap_ok(choose(GSI_LINK_ETHERNET, card, n, -1, routed, 1, note) == 3 && strstr(note, "routes"), "%s", note);
    tap_ok(choose(GSI_LINK_ETHERNET, card, n, -1, local, 1, note) == 1 && strstr(note, "link-local"), "%s", note);
    tap_ok(choose(GSI_LINK_ETHERNET, card, n, -1, old, 1, note) == 2 && strstr(note, "RoCE v1"), "%s", note);
    tap_ok(choose(GSI_LINK_ETHERNET, card, n, -1, strange, 1, note) == GRADSYNC_ERR_UNSUPPORTED &&
               strstr(last_message(), "was looked for") && strstr(last_message(), "10.77.0.1/24"),
           "%s", last_message());
    tap_ok(choose(GSI_LINK_ETHERNET, card, n, 5, six, 2, note) == 5, "an explicit index is taken");
    tap_ok(choose(GSI_LINK_ETHERNET, card, n, 0, NULL, 0, note) == 0 && strstr(note, "RoCE v1"),
           "even 0, with a warning: %s", note);
    tap_ok(choose(GSI_LINK_ETHERNET, card, n, 5, four, 2, note) == GRADSYNC_ERR_INVALID &&
               strstr(last_message(), "cannot reach") && strstr(last_message(), "GRADSYNC_IB_GID_INDEX"),
           "%s", last_message());
    tap_ok(choose(GSI_LINK_ETHERNET, card, n, 7, four, 2, note) == GRADSYNC_ERR_INVALID &&
               strstr(last_message(), "is empty"),
           "%s", last_message());
    tap_ok(choose(GSI_LINK_ETHERNET, NULL, 0, -1, four, 2, note) == GRADSYNC_ERR_UNSUPPORTED &&
               strstr(last_message(), "there is none"),
           "%s", last_message());
    gsi_gid only_v1[] = {V1(0, "10.77.0.1/24")};
    tap_ok(choose(GSI_LINK_ETHERNET, only_v1, 1, -1, four, 2, note) == GRADSYNC_ERR_UNSUPPORTED,
           "a v1-only card and a v2-only peer do not meet");
}

static void test_segments(void)
{
    /* Rails 0 and 1 hang on different segments: their link-local GIDs look alike but do not meet. */
    gsi_gid a[] = {V2(0, "fe80::1"), V2(1, "10.77.0.1/24")}, b[] = {V2(0, "fe80::2"), V2(1, "10.77.1.2/24")};
    int i, k;

    tap_ok(gsi_gids_meet(a, 2, b, 2, &i, &k) == GSI_GID_ROUTED && i == 1 && k == 1,
           "link-local addresses of different subnets are not believed");
    tap_ok(gsi_gids_meet(a, 2, b, 1, &i, &k) == GSI_GID_LINK_LOCAL && i == 0 && k == 0,
           "they are, where a side has nothing else");
    tap_ok(gsi_gids_meet(a, 0, b, 2, &i, &k) == GSI_GID_NO_MATCH && i == -1 && k == -1, "nothing meets nothing");
}

static void test_infiniband(void)
{
    gsi_gid ib[] = {IB(0, "fe80::1"), IB(1, "fec0::1")}, same[] = {IB(0, "fe80::2")}, apart[] = {IB(0, "fe81::2")};
    char note[160];

    tap_ok(choose(GSI_LINK_INFINIBAND, ib, 2, -1, same, 1, note) == 0 && !note[0], "InfiniBand: index 0");
    tap_ok(choose(GSI_LINK_INFINIBAND, ib, 2, -1, NULL, 0, note) == 0, "without a peer, too");
    tap_ok(choose(GSI_LINK_INFINIBAND, ib, 2, -1, apart, 1, note) == GRADSYNC_ERR_UNSUPPORTED &&
               strstr(last_message(), "subnet"),
           "another fabric: %s", last_message());
}

static void test_text(void)
{
    gsi_gid g[] = {V2(0, "fe80::1"), V2(1, "10.77.0.1/24")};
    char text[160], small[12];

    strcpy(g[1].netdev, "eth0");
    gsi_gid_list(g, 2, text, sizeof text);
    tap_ok(!strcmp(text, "0: fe80::1 (RoCE v2), 1: 10.77.0.1/24 (RoCE v2, eth0)"), "%s", text);
    gsi_gid_list(g, 0, text, sizeof text);
    tap_ok(!strcmp(text, "none"), "an empty list");
    gsi_gid_list(g, 2, small, sizeof small);
    tap_ok(strlen(small) < sizeof small, "little room: %s", small);
}

int main(void)
{
    test_meet();
    test_choose();
    test_segments();
    test_infiniband();
    test_text();
    return tap_done();
}
