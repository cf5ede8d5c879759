/* SPDX-License-Identifier: Apache-2.0 */
/* Checks: the state, the rate and the MTU of ports. */
#include <stdio.h>
#include <string.h>

#include "doctor/doctor.h"

enum { GOOD_MTU = 4096, SMALL_NETDEV_MTU = 4200 };

static int is_active(const gsi_facts *f, int i)
{
    return gsi_port_matters(f, i) && f->ports.items[i].state == GSI_PORT_ACTIVE;
}

/* A port that does not work is an error if no other does. */
static int broken(const gsi_facts *f)
{
    for (int i = 0; i < f->ports.n; i++)
        if (is_active(f, i))
            return GRADSYNC_FINDING_WARNING;
    return GRADSYNC_FINDING_ERROR;
}

void gsi_check_port_down(const gsi_facts *f, gsi_findings *list)
{
    char name[96];

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        if (!gsi_port_matters(f, i) || (p->state != GSI_PORT_DOWN && p->state != GSI_PORT_NOP))
            continue;
        int disabled = !strcmp(p->phys_state, "Disabled");
        gsi_subject_port(f, i, name, sizeof name);
        gsi_find(list, broken(f), name, "the port is %s, its physical state %s%s%s", gsi_port_state_name(p->state),
                 p->phys_state[0] ? p->phys_state : "unknown", p->netdev[0] ? ", its network device " : "", p->netdev);
        if (p->link_layer == GSI_LINK_ETHERNET)
            gsi_remedy(list,
                       disabled
                           ? "bring its network device up: ip link set %s up"
                           : "check that %s is up (ip link set up), the cable or transceiver, and the switch's port",
                       p->netdev[0] ? p->netdev : "its network device");
        else
            gsi_remedy(list, disabled
                                 ? "enable the port (ibportstate, or the driver's tool) on both ends"
                                 : "check the cable and the switch's port; Polling means that nothing answers at the "
                                   "other end");
    }
}

void gsi_check_port_init(const gsi_facts *f, gsi_findings *list)
{
    char name[96];

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        if (!gsi_port_matters(f, i) || (p->state != GSI_PORT_INIT && p->state != GSI_PORT_ARMED))
            continue;
        gsi_subject_port(f, i, name, sizeof name);
        if (p->link_layer == GSI_LINK_ETHERNET) {
            gsi_find(list, broken(f), name, "the port is %s, and stays so without its network device",
                     gsi_port_state_name(p->state));
            gsi_remedy(list, "bring %s up: ip link set up", p->netdev[0] ? p->netdev : "its network device");
            continue;
        }
        gsi_find(list, broken(f), name, "the link is up, but the port is %s: %s", gsi_port_state_name(p->state),
                 p->sm_lid ? "the subnet manager has not finished with it" : "no subnet manager has set it up");
        gsi_remedy(list, p->sm_lid ? "wait a moment; if it stays so, look at the subnet manager's log"
                                   : "start a subnet manager in the fabric (opensm on one host, or in the switch)");
    }
}

/* The fastest active port of the same board. */
static uint32_t fastest_twin(const gsi_facts *f, int i, int *twin)
{
    const gsi_port *p = &f->ports.items[i];
    uint32_t best = 0;

    for (int k = 0; k < f->ports.n; k++) {
        const gsi_port *q = &f->ports.items[k];
        if (k == i || !is_active(f, k) || !p->board[0] || strcmp(p->board, q->board) ||
            p->link_layer != q->link_layer || q->rate_mbps <= best)
            continue;
        best = q->rate_mbps;
        *twin = k;
    }
    return best;
}

void gsi_check_port_rate(const gsi_facts *f, gsi_findings *list)
{
    char name[96], other[96];

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        const gsi_port_facts *more = &f->more[i];
        int twin = -1;
        double gbps = p->rate_mbps / 1000.0;
        if (!is_active(f, i) || !p->rate_mbps)
            continue;
        gsi_subject_port(f, i, name, sizeof name);
        uint32_t other_mbps = fastest_twin(f, i, &twin);
        if (more->can_mbps > p->rate_mbps) {
            gsi_find(list, GRADSYNC_FINDING_WARNING, name, "the link runs at %.4g Gb/s, the card can do %.4g Gb/s",
                     gbps, more->can_mbps / 1000.0);
            gsi_remedy(list,
                       "check that cable, transceiver and switch port are for %.4g Gb/s, and the speed that is "
                       "configured on both ends (ethtool %s)",
                       more->can_mbps / 1000.0, p->netdev);
        } else if (other_mbps > p->rate_mbps) {
            gsi_subject_port(f, twin, other, sizeof other);
            gsi_find(list, GRADSYNC_FINDING_WARNING, name,
                     "the link runs at %.4g Gb/s, while %s, on the same kind of card, runs at %.4g Gb/s", gbps, other,
                     other_mbps / 1000.0);
            gsi_remedy(list,
                       "compare cable and switch port of the two; a bad cable makes the link fall back to a lower "
                       "speed or fewer lanes");
        } else if (p->link_layer == GSI_LINK_INFINIBAND && more->lanes == 1) {
            gsi_find(list, GRADSYNC_FINDING_WARNING, name, "the link runs on 1 lane of 4: %.4g Gb/s", gbps);
            gsi_remedy(list, "reseat or replace the cable, and look at its error counters (perfquery)");
        } else if (p->link_layer == GSI_LINK_INFINIBAND && more->lanes == 2) {
            gsi_find(list, GRADSYNC_FINDING_HINT, name, "the link runs on 2 lanes of 4: %.4g Gb/s", gbps);
            gsi_remedy(list, "right for a split cable (HDR100, NDR200); else reseat or replace the cable");
        }
    }
}

void gsi_check_port_errors(const gsi_facts *f, gsi_findings *list)
{
    char name[96], text[200];

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port_facts *more = &f->more[i];
        size_t at = 0;
        if (!gsi_port_matters(f, i) || !more->ncounters)
            continue;
        text[0] = 0;
        for (int k = 0; k < more->ncounters && at < sizeof text; k++)
            at += (size_t)snprintf(text + at, sizeof text - at, "%s%s %ld", k ? ", " : "", more->counters[k].name,
                                   more->counters[k].value);
        gsi_subject_port(f, i, name, sizeof name);
        gsi_find(list, GRADSYNC_FINDING_HINT, name, "the port has counted errors since its driver was loaded: %s",
                 text);
        gsi_remedy(list,
                   "see whether they rise while a job runs: symbol_error and link_downed mean a bad cable, "
                   "out_of_sequence and local_ack_timeout_err lost packets (RoCE: is flow control, PFC or ECN, set "
                   "up on the switches?)");
    }
}

void gsi_check_mtu_small(const gsi_facts *f, gsi_findings *list)
{
    char name[96];

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        if (!is_active(f, i) || p->link_layer != GSI_LINK_ETHERNET || !p->active_mtu || p->active_mtu >= GOOD_MTU)
            continue;
        gsi_subject_port(f, i, name, sizeof name);
        gsi_find(list, GRADSYNC_FINDING_WARNING, name,
                 "the MTU of %s is %u, so that an RDMA packet carries %u bytes instead of %d", p->netdev, p->netdev_mtu,
                 p->active_mtu, GOOD_MTU);
        gsi_remedy(list, "set %d or more on every host and switch port of the path (ip link set %s mtu 9000)",
                   SMALL_NETDEV_MTU, p->netdev);
    }
}

void gsi_check_mtu_differs(const gsi_facts *f, gsi_findings *list)
{
    char name[96], other[96];
    int largest = -1;

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        if (is_active(f, i) && p->active_mtu && (largest < 0 || p->active_mtu > f->ports.items[largest].active_mtu))
            largest = i;
    }
    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        if (!is_active(f, i) || !p->active_mtu || p->active_mtu == f->ports.items[largest].active_mtu)
            continue;
        gsi_subject_port(f, i, name, sizeof name);
        gsi_subject_port(f, largest, other, sizeof other);
        gsi_find(list, GRADSYNC_FINDING_WARNING, name,
                 "its RDMA MTU is %u (%s has %u), that of %s %u: the ports are not set up alike", p->active_mtu,
                 p->netdev, p->netdev_mtu, other, f->ports.items[largest].active_mtu);
        gsi_remedy(list, "set the same MTU on all network devices with RDMA (ip link set %s mtu %u)", p->netdev,
                   f->ports.items[largest].netdev_mtu);
    }
}

void gsi_check_firmware(const gsi_facts *f, gsi_findings *list)
{
    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        for (int k = 0; k < i; k++) {
            const gsi_port *q = &f->ports.items[k];
            if (!p->board[0] || !p->firmware[0] || !q->firmware[0] || strcmp(p->board, q->board) ||
                !strcmp(p->device, q->device))
                continue;
            if (strcmp(p->firmware, q->firmware) && (i == 0 || strcmp(p->device, f->ports.items[i - 1].device))) {
                gsi_find(list, GRADSYNC_FINDING_HINT, p->device, "its firmware is %s, that of %s, the same board, %s",
                         p->firmware, q->device, q->firmware);
                gsi_remedy(list, "bring like cards to the same firmware: mixed ones are hard to diagnose");
            }
            break;
        }
    }
}
