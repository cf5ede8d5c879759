/* SPDX-License-Identifier: Apache-2.0 */
/* Which rail of one rank talks to which of another: the same answer on both sides. */
#include <string.h>

#include "base/error.h"
#include "machine.h"
#include "tap.h"

enum { MOST = 16 };

/* 0 to n - 1. */
static int draw(uint32_t *seed, int n)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (int)(*seed >> 16) % n;
}

static const char *last_message(void)
{
    static gradsync_error_info info;

    info.size = sizeof info;
    gradsync_last_error(&info);
    return info.message;
}

/* The ends of one simulated host of the lab. */
static int lab_ends(int hosts, int host, int rails, const gsi_settings *s, gsi_rail_end *out)
{
    machine m;
    gsi_ports ports;
    int n = 0;

    machine_lab(&m, hosts, host, rails, 0);
    gsi_ports_read(m.root, &ports);
    machine_remove(&m);
    for (int i = 0; i < ports.n; i++)
        if (!ports.items[i].access && !gsi_rail_end_make(&ports.items[i], s, &out[n]))
            n++;
    gsi_ports_free(&ports);
    return n;
}

static gsi_rail_end ib_end(int host, int rail, uint8_t subnet)
{
    gsi_rail_end e = {.node_guid = (uint64_t)(host * 16 + rail),
                      .lid = (uint32_t)(host * 16 + rail + 1),
                      .link_layer = GSI_LINK_INFINIBAND,
                      .port = 1,
                      .ngids = 1};

    snprintf(e.name, sizeof e.name, "mlx5_%d:1", rail);
    e.gids[0] = (gsi_gid){.raw = {0xfe, 0x80, 0, 0, 0, 0, 0, subnet, [15] = (uint8_t)(host * 16 + rail)}, .prefix = 64};
    return e;
}

/* Both sides, which have to agree. "0-0 1-1" ("*" behind a shared one), or why not. */
static const char *pairs(const gsi_rail_end *a, int na, const gsi_rail_end *b, int nb, int max, int *agreed)
{
    static char text[512];
    gsi_rail_pair p[MOST], q[MOST];
    char why[320], other[320];
    int n = gsi_rails_pair(a, na, b, nb, max, p, why, sizeof why);
    int m = gsi_rails_pair(b, nb, a, na, max, q, other, sizeof other);
    size_t at = 0;

    *agreed = n == m;
    snprintf(text, sizeof text, "%s", n ? "" : why);
    for (int i = 0; i < n; i++) {
        *agreed = *agreed && p[i].mine == q[i].theirs && p[i].theirs == q[i].mine && p[i].my_gid == q[i].their_gid &&
                  p[i].their_gid == q[i].my_gid && p[i].match == q[i].match && p[i].shared == q[i].shared &&
                  !strcmp(p[i].note, q[i].note);
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%d-%d%s", i ? " " : "", p[i].mine, p[i].theirs,
                               p[i].shared ? "*" : "");
    }
    return text;
}

static void expect(const gsi_rail_end *a, int na, const gsi_rail_end *b, int nb, int max, const char *wanted,
                   const char *what)
{
    int agreed;
    const char *got = pairs(a, na, b, nb, max, &agreed);

    tap_ok(!strcmp(got, wanted) && agreed, "%s: %s (%s wanted), both sides %s", what, got, wanted,
           agreed ? "agree" : "differ");
}

static void test_lab(void)
{
    gsi_rail_end a[MOST], b[MOST], other[MOST];
    int n = lab_ends(2, 0, 4, NULL, a), m = lab_ends(2, 1, 4, NULL, b);
    gsi_rail_pair p[MOST];
    char why[320];

    tap_ok(n == 4 && m == 4 && !strcmp(b[0].name, "rxe4:1") && b[0].ngids == 2 && b[0].active_mtu == 4096,
           "4 rails a host, as the peer is told");
    expect(a, n, b, m, MOST, "0-0 1-1 2-2 3-3", "rail by rail");
    tap_ok(gsi_rails_pair(a, n, b, m, MOST, p, why, sizeof why) == 4 && a[0].gids[p[0].my_gid].index == 1 &&
               b[0].gids[p[0].their_gid].index == 1 && p[0].match == GSI_GID_SUBNET && !p[0].note[0],
           "by the IPv4 GIDs, index 1");
    expect(a, n, b, m, 2, "0-0 1-1", "at most two");
    /* The other host's rank sits elsewhere: its rails come in another order, the subnets decide. */
    other[0] = b[1], other[1] = b[3], other[2] = b[0], other[3] = b[2];
    expect(a, n, other, m, MOST, "1-0 2-3 0-2 3-1", "another order");
    expect(a, 4, &b[2], 1, MOST, "2-0", "one rail there: only that of its subnet meets");
    expect(a, 2, &b[2], 2, MOST, "0-0 1-1", "different subnets only: by routes");
    tap_ok(gsi_rails_pair(a, 2, &b[2], 2, MOST, p, why, sizeof why) == 2 && p[0].match == GSI_GID_ROUTED &&
               strstr(p[0].note, "routes"),
           "with a warning: %s", p[0].note);
}

static void test_explicit(void)
{
    gsi_rail_end a[MOST], b[MOST];
    gsi_settings s = {.gid_index = 0};
    gsi_rail_pair p[MOST];
    char why[320];
    int n = lab_ends(2, 0, 2, &s, a), m = lab_ends(2, 1, 2, &s, b);

    tap_ok(n == 2 && m == 2 && a[0].ngids == 1 && a[0].gids[0].index == 0, "index 0 by explicit wish only");
    expect(a, n, b, m, MOST, "0-0 1-1", "link-local");
    tap_ok(gsi_rails_pair(a, n, b, m, MOST, p, why, sizeof why) == 2 && p[0].match == GSI_GID_LINK_LOCAL &&
               strstr(p[0].note, "link-local"),
           "with a warning: %s", p[0].note);
    s.gid_index = 9;
    strcpy(s.gid_index_variable, "GRADSYNC_IB_GID_INDEX");
    tap_ok(lab_ends(2, 0, 2, &s, a) == 0 && strstr(last_message(), "GRADSYNC_IB_GID_INDEX"), "%s", last_message());
}

static void test_infiniband(void)
{
    gsi_rail_end a[8], b[8];

    for (int i = 0; i < 8; i++) {
        a[i] = ib_end(0, i, 0);
        b[i] = ib_end(1, i, 0);
    }
    expect(a, 8, b, 8, MOST, "0-0 1-1 2-2 3-3 4-4 5-5 6-6 7-7", "8 and 8");
    expect(a, 4, b, 1, MOST, "0-0 1-0* 2-0* 3-0*", "4 and 1");
    expect(b, 1, a, 4, MOST, "0-0 0-1* 0-2* 0-3*", "1 and 4");
    expect(a, 4, b, 2, MOST, "0-0 1-1 2-0* 3-1*", "4 and 2");
    expect(a, 4, b, 2, 3, "0-0 1-1 2-0*", "4 and 2, at most 3");
    expect(a, 3, a, 3, MOST, "0-0 1-1 2-2", "with itself");
    b[0] = ib_end(1, 0, 7);
    expect(a, 2, b, 2, MOST, "1-1 0-1*", "one rail on another fabric");
    b[1] = ib_end(1, 1, 7);
    int agreed;
    tap_ok(strstr(pairs(a, 2, b, 2, MOST, &agreed), "no GIDs meet") && agreed, "two fabrics: %s",
           pairs(a, 2, b, 2, MOST, &agreed));
    for (int i = 0; i < 2; i++)
        b[i].ngids = 0;
    expect(a, 2, b, 2, MOST, "0-0 1-1", "without GIDs: by LIDs");
    b[0].link_layer = b[1].link_layer = GSI_LINK_ETHERNET;
    tap_ok(strstr(pairs(a, 2, b, 2, MOST, &agreed), "do not talk") != NULL, "%s", pairs(a, 2, b, 2, MOST, &agreed));
    tap_ok(strstr(pairs(a, 0, b, 2, MOST, &agreed), "this side has no usable rail") && agreed, "no rail here");
    tap_ok(strstr(pairs(a, 0, b, 0, MOST, &agreed), "neither") != NULL, "no rail at all");
    a[0].ngids = 200; /* from a hostile peer: not followed */
    pairs(a, 1, b, 1, MOST, &agreed);
    tap_ok(agreed, "a count of GIDs that cannot be is not believed");
}

static void test_end(void)
{
    gsi_port none = {.device = "mlx5_0", .number = 1, .link_layer = GSI_LINK_ETHERNET};
    gsi_gid many[20];
    gsi_rail_end e;

    tap_ok(gsi_rail_end_make(&none, NULL, &e) == GRADSYNC_ERR_UNSUPPORTED && strstr(last_message(), "there is none"),
           "%s", last_message());
    for (int i = 0; i < 20; i++) {
        many[i] = (gsi_gid){.index = (uint16_t)i,
                            .type = i % 2 ? GSI_GID_ROCE_V2 : GSI_GID_ROCE_V1,
                            .raw = {0xfe, 0x80, [15] = (uint8_t)(i + 1)}};
        if (i >= 16)
            many[i].raw[0] = 0x20;
    }
    gsi_port full = none;
    full.gids = many;
    full.ngids = 20;
    tap_ok(!gsi_rail_end_make(&full, NULL, &e) && e.ngids == GSI_END_GIDS && e.gids[0].index == 17 &&
               e.gids[1].index == 19 && e.gids[2].type == GSI_GID_ROCE_V2 && e.gids[5].type == GSI_GID_ROCE_V2,
           "of 20 GIDs the best 6 are told: routable RoCE v2 first");
}

/* Whatever two hosts have, both sides agree, no pair is impossible, and no rail idles that could talk. */
static void test_random(void)
{
    uint32_t seed = 7;
    int bad = 0, some = 0;

    for (int round = 0; round < 3000; round++) {
        gsi_rail_end e[2][5];
        int n[2];
        gsi_rail_pair p[MOST];
        char why[320];
        for (int side = 0; side < 2; side++) {
            n[side] = draw(&seed, 6);
            for (int i = 0; i < n[side]; i++) {
                gsi_rail_end *end = &e[side][i];
                if (draw(&seed, 3) == 0) {
                    *end = ib_end(side, i, (uint8_t)draw(&seed, 2));
                    continue;
                }
                *end = (gsi_rail_end){
                    .node_guid = (uint64_t)draw(&seed, 3),
                    .link_layer = GSI_LINK_ETHERNET,
                    .port = 1,
                };
                end->ngids = (uint8_t)(1 + draw(&seed, 3));
                snprintf(end->name, sizeof end->name, "roce%d:1", i);
                for (int g = 0; g < end->ngids; g++) {
                    gsi_gid *gid = &end->gids[g];
                    int v4 = draw(&seed, 2);
                    *gid = (gsi_gid){.index = (uint16_t)g, .type = draw(&seed, 4) ? GSI_GID_ROCE_V2 : GSI_GID_ROCE_V1};
                    if (v4)
                        gid->raw[10] = gid->raw[11] = 0xff, gid->raw[12] = 10, gid->raw[14] = (uint8_t)draw(&seed, 3);
                    else
                        gid->raw[0] = draw(&seed, 2) ? 0xfe : 0x20, gid->raw[1] = 0x80;
                    gid->raw[15] = (uint8_t)(side * 100 + i * 10 + g + 1);
                    gid->prefix = v4 ? (uint8_t)(96 + 16 + 8 * draw(&seed, 2)) : 64;
                }
            }
        }
        int agreed, count = gsi_rails_pair(e[0], n[0], e[1], n[1], MOST, p, why, sizeof why);
        pairs(e[0], n[0], e[1], n[1], MOST, &agreed);
        bad += !agreed || (count == 0) != (why[0] != 0);
        some += count > 0;
        for (int i = 0; i < count; i++) {
            const gsi_rail_end *x = &e[0][p[i].mine], *y = &e[1][p[i].theirs];
            bad += x->link_layer != y->link_layer || p[i].match == GSI_GID_NO_MATCH;
            bad += gsi_gid_meet(&x->gids[p[i].my_gid], &y->gids[p[i].their_gid]) != p[i].match;
            int earlier = 0;
            for (int k = 0; k < i; k++) {
                earlier |= p[k].mine == p[i].mine || p[k].theirs == p[i].theirs;
                bad += p[k].mine == p[i].mine && p[k].theirs == p[i].theirs;
            }
            bad += earlier != p[i].shared;
        }
    }
    tap_ok(!bad && some > 1000, "3,000 random pairs of hosts, %d of which can talk: %d broken rules", some, bad);
}

/* What a peer sends may be anything. A sanitizer sees what is read beyond. */
static void test_garbage(void)
{
    uint32_t seed = 11;
    int bad = 0, found = 0;

    for (int round = 0; round < 3000; round++) {
        gsi_rail_end *theirs = malloc(2 * sizeof *theirs), mine[2] = {ib_end(0, 0, 0), ib_end(0, 1, 0)};
        unsigned char *bytes = (unsigned char *)theirs;
        gsi_rail_pair p[MOST];
        char why[64];
        for (size_t i = 0; i < 2 * sizeof *theirs; i++)
            bytes[i] = (unsigned char)(draw(&seed, 255) + 1);
        for (int i = 0; i < 2; i++) {
            theirs[i].link_layer = (uint8_t)draw(&seed, 4);
            theirs[i].ngids = (uint8_t)draw(&seed, 9);
            for (int g = 0; g < GSI_END_GIDS; g++)
                theirs[i].gids[g].type = (uint8_t)draw(&seed, 5);
            if (round & 1) { /* of our kind */
                mine[i] = theirs[i];
                mine[i].gids[0].raw[15] ^= 1;
            }
        }
        int n = gsi_rails_pair(mine, 2, theirs, 2, MOST, p, why, sizeof why);
        bad += n < 0 || n > 4 || (n == 0) != (why[0] != 0);
        for (int i = 0; i < n; i++)
            bad += p[i].mine < 0 || p[i].mine > 1 || p[i].theirs < 0 || p[i].theirs > 1 ||
                   p[i].my_gid >= GSI_END_GIDS || p[i].their_gid >= GSI_END_GIDS;
        found += n;
        free(theirs);
    }
    tap_ok(!bad && found, "3,000 ends of garbage: %d pairs, %d broken promises", found, bad);
}

int main(void)
{
    test_lab();
    test_explicit();
    test_infiniband();
    test_end();
    test_random();
    test_garbage();
    return tap_done();
}
