/* SPDX-License-Identifier: Apache-2.0 */
/* What sysfs, and the kernel's ethtool interface, know of a port beyond lib/topo. */
#include <errno.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "doctor/facts.h"
#include "topo/sysfs.h"

enum { MODE_WORDS = 127 }; /* the kernel's own limit: an int8_t counts them */

/* The bits of ethtool's link modes, from..to, and their speed: part of the kernel's ABI. */
static const struct {
    uint8_t from, to;
    uint32_t mbps;
} modes[] = {{0, 1, 10},       {2, 3, 100},      {4, 5, 1000},     {12, 12, 10000}, {15, 15, 2500},  {17, 17, 1000},
             {18, 20, 10000},  {21, 22, 20000},  {23, 26, 40000},  {27, 30, 56000}, {31, 33, 25000}, {34, 35, 50000},
             {36, 39, 100000}, {40, 40, 50000},  {41, 41, 1000},   {42, 46, 10000}, {47, 47, 2500},  {48, 48, 5000},
             {52, 56, 50000},  {57, 61, 100000}, {62, 66, 200000}, {67, 67, 100},   {68, 68, 1000},  {69, 73, 400000},
             {75, 79, 100000}, {80, 84, 200000}, {85, 89, 400000}, {90, 91, 100},   {92, 92, 10},    {93, 98, 800000}};

uint32_t gsi_link_modes_mbps(const uint32_t *words, int n)
{
    uint32_t best = 0;

    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        for (int bit = modes[i].from; bit <= modes[i].to; bit++)
            if (bit / 32 < n && words[bit / 32] >> bit % 32 & 1 && modes[i].mbps > best)
                best = modes[i].mbps;
    return best;
}

uint32_t gsi_netdev_can_mbps(const char *netdev)
{
    /* The struct, and behind it three masks of words: supported, advertised, the partner's. */
    enum { HEAD_WORDS = sizeof(struct ethtool_link_settings) / sizeof(uint32_t) };
    uint32_t buffer[HEAD_WORDS + 3 * MODE_WORDS] = {0};
    struct ethtool_link_settings *head = (struct ethtool_link_settings *)buffer;
    struct ifreq ifr = {.ifr_data = (char *)buffer};
    uint32_t mbps = 0;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return 0;
    snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "%.15s", netdev);
    /* The first call tells how many words the kernel has, as a negative number. */
    head->cmd = ETHTOOL_GLINKSETTINGS;
    if (!ioctl(fd, SIOCETHTOOL, &ifr) && head->link_mode_masks_nwords < 0) {
        head->cmd = ETHTOOL_GLINKSETTINGS;
        head->link_mode_masks_nwords = (int8_t)-head->link_mode_masks_nwords;
        if (!ioctl(fd, SIOCETHTOOL, &ifr) && head->link_mode_masks_nwords > 0)
            mbps = gsi_link_modes_mbps(buffer + HEAD_WORDS, head->link_mode_masks_nwords);
    }
    close(fd);
    return mbps;
}

/* "200 Gb/sec (4X HDR)": 4. */
static int parse_lanes(const char *rate)
{
    const char *open = strchr(rate, '(');
    char *end;
    long n = open ? strtol(open + 1, &end, 10) : 0;

    return n > 0 && n <= 16 && *end == 'X' ? (int)n : 0;
}

static void read_counters(const char *root, const gsi_port *p, gsi_port_facts *more)
{
    static const char *const names[] = {"counters/symbol_error",
                                        "counters/link_downed",
                                        "counters/link_error_recovery",
                                        "counters/port_rcv_errors",
                                        "hw_counters/local_ack_timeout_err",
                                        "hw_counters/out_of_sequence",
                                        "hw_counters/packet_seq_err",
                                        "hw_counters/rnr_nak_retry_err"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        long value =
            gsi_sys_number(root, 0, "/sys/class/infiniband/%s/ports/%d/%s", p->device, (int)p->number, names[i]);
        if (value <= 0)
            continue;
        more->counters[more->ncounters].name = strchr(names[i], '/') + 1;
        more->counters[more->ncounters++].value = value;
    }
}

/* arp_ignore of the device or of all, whichever is more. */
static int answers_for_others(const char *root, const char *netdev)
{
    long all = gsi_sys_number(root, -1, "/proc/sys/net/ipv4/conf/all/arp_ignore");
    long own = gsi_sys_number(root, -1, "/proc/sys/net/ipv4/conf/%s/arp_ignore", netdev);

    return (all >= 0 || own >= 0) && all <= 0 && own <= 0;
}

int gsi_port_matters(const gsi_facts *f, int port)
{
    return !f->more[port].excluded && !f->more[port].foreign && !f->more[port].spare;
}

/* Refused by the selection of rails though nothing else is against it: its rate is. */
static int is_spare(const gsi_facts *f, int i)
{
    const gsi_port *p = &f->ports.items[i];
    int gid = f->settings.gid_index < 0;

    for (int k = 0; k < p->ngids; k++)
        gid |= p->gids[k].index == f->settings.gid_index;
    return i < f->rails.nports && !f->rails.verdicts[i].usable && p->state == GSI_PORT_ACTIVE && p->uverbs[0] &&
           !p->access && p->link_layer != GSI_LINK_UNKNOWN && gid && (p->ngids || p->lid) && !f->more[i].excluded;
}

int gsi_facts_read_ports(const char *root, gsi_facts *f)
{
    char text[96];
    int have = 0;

    for (int i = 0; i < f->ports.n; i++)
        have += f->ports.items[i].access != ENOENT;
    f->more = gsi_calloc(f->ports.n ? (size_t)f->ports.n : 1, sizeof *f->more);
    if (!f->more)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the facts of %d ports", f->ports.n);
    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        gsi_port_facts *more = &f->more[i];
        const gsi_pci_device *card = p->place.pci[0] ? gsi_topology_device(&f->topology, p->place.pci) : NULL;
        more->excluded = !gsi_filter_match(&f->settings.hca, p->device, (int)p->number, NULL);
        more->spare = is_spare(f, i);
        more->foreign = have && p->uverbs[0] && p->access == ENOENT;
        gsi_sys_line(root, text, sizeof text, "/sys/class/infiniband/%s/ports/%d/rate", p->device, (int)p->number);
        more->lanes = parse_lanes(text);
        if (f->real && p->netdev[0])
            more->can_mbps = gsi_netdev_can_mbps(p->netdev);
        more->flux = p->netdev[0] && answers_for_others(root, p->netdev);
        read_counters(root, p, more);
        gsi_pcie_read(root, p->place.pci, card ? card->path : "", &more->pcie);
    }
    return 0;
}
