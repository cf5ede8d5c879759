/* SPDX-License-Identifier: Apache-2.0 */
/* What is read out of PCI configuration space, ethtool's link modes and addresses of peers: pure. */
#include <string.h>

#include "base/error.h"
#include "doctor/facts.h"
#include "tap.h"

enum { CONFIG = 4096 };

static void put16(uint8_t *config, size_t at, unsigned value)
{
    config[at] = (uint8_t)value;
    config[at + 1] = (uint8_t)(value >> 8);
}

/* A function with a power capability at 0x40, PCI Express at 0x60, and ACS behind AER. */
static void make_config(uint8_t *config, unsigned control, unsigned acs)
{
    memset(config, 0, CONFIG);
    put16(config, 0x06, 0x10);
    config[0x34] = 0x40;
    put16(config, 0x40, 0x6001);
    put16(config, 0x60, 0x0010);
    put16(config, 0x68, control);
    put16(config, 0x100, 0x0001);
    put16(config, 0x102, 0x1481); /* version 1, next 0x148 */
    put16(config, 0x148, 0x000d);
    put16(config, 0x14a, 0x0001);
    put16(config, 0x14e, acs);
}

static void test_config(void)
{
    static uint8_t config[CONFIG];
    gsi_pcie c;

    make_config(config, 0x5937, 0x1d);
    gsi_pcie_parse(config, sizeof config, &c);
    tap_ok(c.relaxed == 1 && c.max_read == 4096 && c.max_payload == 256, "Device Control: %d, %d, %d", c.relaxed,
           c.max_read, c.max_payload);
    tap_ok(c.acs == 0x1d && c.acs & GSI_ACS_DETOUR, "ACS: %#x", (unsigned)c.acs);
    make_config(config, 0x2027, 0x01);
    gsi_pcie_parse(config, sizeof config, &c);
    tap_ok(c.relaxed == 0 && c.max_read == 512 && c.max_payload == 256, "relaxed ordering off, small reads");
    tap_ok(c.acs == 1 && !(c.acs & GSI_ACS_DETOUR), "source validation alone is no detour");
    gsi_pcie_parse(config, 64, &c);
    tap_ok(c.relaxed == -1 && c.acs == -1 && c.max_read == 0, "64 bytes, as every user may read, tell nothing");
    gsi_pcie_parse(config, 256, &c);
    tap_ok(c.relaxed == 0 && c.acs == -1, "256 bytes do not reach to ACS");
    put16(config, 0x14e, 0);
    put16(config, 0x148, 0x0003);
    gsi_pcie_parse(config, sizeof config, &c);
    tap_ok(c.acs == 0, "no ACS capability: nothing is redirected");
}

/* Broken cards, and what is not there. */
static void test_broken_config(void)
{
    static uint8_t config[CONFIG];
    gsi_pcie c;
    unsigned state = 1;

    make_config(config, 0x5937, 0x1d);
    put16(config, 0x40, 0x4001); /* a circle */
    put16(config, 0x102, 0x1001);
    gsi_pcie_parse(config, sizeof config, &c);
    tap_ok(c.relaxed == -1 && c.acs == 0, "lists that are circles end");
    memset(config, 0xff, sizeof config); /* a card that fell off the bus */
    gsi_pcie_parse(config, sizeof config, &c);
    tap_ok(c.relaxed == -1 && c.acs == 0, "all ones: %d %d", c.relaxed, c.acs);
    int inside = 1;
    for (int round = 0; round < 2000; round++) {
        for (size_t i = 0; i < sizeof config; i++) {
            state = state * 1103515245u + 12345u;
            config[i] = (uint8_t)(state >> 16);
        }
        config[6] |= 0x10;
        gsi_pcie_parse(config, state % (sizeof config + 1), &c);
        inside &= c.relaxed >= -1 && c.relaxed <= 1 && c.max_read <= 16384 && c.acs >= -1 && c.acs <= 0xffff;
    }
    tap_ok(inside, "2000 random ones stay within bounds");
}

static void test_links(void)
{
    tap_ok(gsi_pcie_speed("8.0 GT/s PCIe") == 8000 && gsi_pcie_speed("2.5 GT/s") == 2500 &&
               gsi_pcie_speed("32 GT/s") == 32000,
           "speeds of old and new kernels");
    tap_ok(!gsi_pcie_speed("Unknown") && !gsi_pcie_speed("") && !gsi_pcie_speed("-8 GT/s") && !gsi_pcie_speed("8"),
           "no speeds");
    tap_ok(gsi_pcie_mbps(2500, 1) == 2000 && gsi_pcie_mbps(8000, 16) == 126030 && gsi_pcie_mbps(16000, 16) == 252061,
           "what links carry: %u %u %u", gsi_pcie_mbps(2500, 1), gsi_pcie_mbps(8000, 16), gsi_pcie_mbps(16000, 16));
    tap_ok(!gsi_pcie_mbps(0, 16) && !gsi_pcie_mbps(8000, 0), "unknown links");
}

static void test_modes(void)
{
    uint32_t none[4] = {0}, cx6[4] = {0}, old[1] = {1u << 5 | 1u << 12};

    cx6[36 / 32] |= 1u << 36 % 32;
    cx6[62 / 32] |= 1u << 62 % 32;
    cx6[50 / 32] |= 1u << 50 % 32; /* FEC is no speed */
    tap_ok(gsi_link_modes_mbps(none, 4) == 0 && gsi_link_modes_mbps(cx6, 4) == 200000 &&
               gsi_link_modes_mbps(cx6, 1) == 0 && gsi_link_modes_mbps(old, 1) == 10000,
           "the fastest of the modes");
    cx6[3] = 1u << (98 - 96);
    tap_ok(gsi_link_modes_mbps(cx6, 4) == 800000 && gsi_link_modes_mbps(cx6, 3) == 200000, "800 Gb/s");
    tap_ok(gsi_netdev_can_mbps("lo") == 0 && gsi_netdev_can_mbps("no-such-device") == 0, "lo has no modes");
}

static void test_peers(void)
{
    static const char *const wrong[] = {"10.0.1",      "host-b",     "10.0.1.2/33", "10.0.1.2/",   "10.0.1.2/0",
                                        "fd00::2/129", "10.0.1.2,x", "10.0.1.2/ 8", "fe80::1%eth0"};
    gsi_peer peers[GSI_PEERS];
    int n;

    tap_ok(!gsi_peers_parse("10.0.1.2,fd00::2/48,10.1.0.0/16", peers, &n) && n == 3, "three peers");
    tap_ok(peers[0].raw[12] == 10 && peers[0].raw[10] == 0xff && !peers[0].prefix, "IPv4 as in a GID");
    tap_ok(peers[1].raw[0] == 0xfd && peers[1].prefix == 48 && peers[2].prefix == 96 + 16, "prefixes");
    tap_ok(!strcmp(peers[2].text, "10.1.0.0/16"), "their text: %s", peers[2].text);
    tap_ok(!gsi_peers_parse(NULL, peers, &n) && n == 0 && !gsi_peers_parse("", peers, &n) && n == 0, "none");
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        tap_ok(gsi_peers_parse(wrong[i], peers, &n) == GRADSYNC_ERR_INVALID, "'%s' is refused", wrong[i]);
    tap_ok(gsi_peers_parse("1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,"
                           "1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1",
                           peers, &n) == GRADSYNC_ERR_INVALID,
           "17 are too many");
}

int main(void)
{
    test_config();
    test_broken_config();
    test_links();
    test_modes();
    test_peers();
    return tap_done();
}
