/* SPDX-License-Identifier: Apache-2.0 */
#include "topo/port.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "topo/address.h"
#include "topo/sysfs.h"

#define CLASS "/sys/class/infiniband"

enum {
    ROCE_HEADERS = 80, /* what RoCE v2 takes of a network device's MTU: GRH or IP, UDP, BTH, extensions, CRC */
    MAX_GIDS = 4096,   /* an index beyond is not believed */
    MAX_PORT = 255
};

/* ---- Names ------------------------------------------------------------------------- */

void gsi_port_name(const gsi_port *port, char *text, size_t room)
{
    snprintf(text, room, "%s:%d", port->device, (int)port->number);
}

const char *gsi_port_state_name(int state)
{
    static const char *const names[] = {"NOP", "DOWN", "INIT", "ARMED", "ACTIVE"};

    return state >= 0 && state <= GSI_PORT_ACTIVE ? names[state] : "?";
}

const char *gsi_gid_type_name(int type)
{
    static const char *const names[] = {"IB", "RoCE v1", "RoCE v2"};

    return type >= 0 && type <= GSI_GID_ROCE_V2 ? names[type] : "?";
}

const char *gsi_link_layer_name(int layer)
{
    return layer == GSI_LINK_INFINIBAND ? "InfiniBand" : layer == GSI_LINK_ETHERNET ? "Ethernet" : "?";
}

void gsi_gid_text(const uint8_t raw[16], char *text, size_t room)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    int v4 = !memcmp(raw, mapped, sizeof mapped);

    if (!inet_ntop(v4 ? AF_INET : AF_INET6, raw + (v4 ? 12 : 0), text, (socklen_t)room))
        snprintf(text, room, "?");
}

/* ---- GIDs ------------------------------------------------------------------------- */

/* "fe80:0000:0000:0000:5054:00ff:fe12:3456". */
static int parse_gid(const char *text, uint8_t raw[16])
{
    for (int i = 0; i < 8; i++) {
        unsigned word;
        int n = 0;
        if (sscanf(text, "%4x%n", &word, &n) != 1 || n != 4 || text[4] != (i < 7 ? ':' : 0))
            return -1;
        raw[2 * i] = (uint8_t)(word >> 8);
        raw[2 * i + 1] = (uint8_t)word;
        text += 5;
    }
    return 0;
}

/* An empty entry: all zero, or on InfiniBand a subnet prefix without an interface. */
static int is_empty(const uint8_t raw[16])
{
    static const uint8_t zero[8];

    return !memcmp(raw + 8, zero, 8);
}

static int read_gids(const char *root, gsi_port *p, const gsi_addresses *addresses)
{
    char path[160], text[64], **names;
    int n, rc;

    snprintf(path, sizeof path, CLASS "/%s/ports/%d/gids", p->device, (int)p->number);
    if ((rc = gsi_sys_list(root, path, &names, &n)))
        return rc;
    for (int i = 0; i < n && !rc; i++) {
        gsi_gid g = {.type = GSI_GID_IB};
        char *end;
        long index = strtol(names[i], &end, 10);
        if (*end || index < 0 || index >= MAX_GIDS || gsi_sys_line(root, text, sizeof text, "%s/%ld", path, index) ||
            parse_gid(text, g.raw) || is_empty(g.raw))
            continue;
        g.index = (uint16_t)index;
        if (p->link_layer == GSI_LINK_ETHERNET) {
            /* Both are EINVAL for an empty entry; a kernel without gid_attrs knows RoCE v1 only. */
            gsi_sys_line(root, text, sizeof text, CLASS "/%s/ports/%d/gid_attrs/types/%ld", p->device, (int)p->number,
                         index);
            g.type = strcmp(text, "RoCE v2") ? GSI_GID_ROCE_V1 : GSI_GID_ROCE_V2;
            gsi_sys_line(root, text, sizeof text, CLASS "/%s/ports/%d/gid_attrs/ndevs/%ld", p->device, (int)p->number,
                         index);
            snprintf(g.netdev, sizeof g.netdev, "%.15s", text);
            g.prefix = (uint8_t)gsi_addresses_prefix(addresses, g.netdev, g.raw);
        } else {
            g.prefix = 64;
        }
        if ((p->ngids & (p->ngids - 1)) == 0) { /* room doubles at each power of two */
            gsi_gid *more = gsi_realloc(p->gids, (p->ngids ? (size_t)p->ngids * 2 : 1) * sizeof *more);
            if (!more) {
                rc = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the GIDs of %s", p->device);
                break;
            }
            p->gids = more;
        }
        p->gids[p->ngids++] = g;
    }
    gsi_sys_free_names(names, n);
    return rc;
}

/* ---- One port ------------------------------------------------------------------------ */

/* The network device of a port: of its first GID, of Soft-RoCE's "parent", or of the card. */
static int find_netdev(const char *root, gsi_port *p)
{
    char path[160], text[64], **names;
    int n, rc;

    for (int i = 0; i < p->ngids && !p->netdev[0]; i++)
        memcpy(p->netdev, p->gids[i].netdev, sizeof p->netdev);
    if (!p->netdev[0] && !gsi_sys_line(root, text, sizeof text, CLASS "/%s/parent", p->device))
        snprintf(p->netdev, sizeof p->netdev, "%.15s", text);
    if (p->netdev[0])
        return 0;
    snprintf(path, sizeof path, CLASS "/%s/device/net", p->device);
    if ((rc = gsi_sys_list(root, path, &names, &n)))
        return rc;
    for (int i = 0; i < n && !p->netdev[0]; i++) {
        long number = gsi_sys_number(root, 0, "%s/%s/dev_port", path, names[i]) + 1;
        if (number == p->number || n == 1)
            snprintf(p->netdev, sizeof p->netdev, "%.15s", names[i]);
    }
    gsi_sys_free_names(names, n);
    return 0;
}

/* The MTU that RoCE gets out of a network device's: the drivers' rule. */
static uint32_t roce_mtu(uint32_t netdev_mtu)
{
    for (uint32_t mtu = 4096; mtu >= 256; mtu /= 2)
        if (mtu + ROCE_HEADERS <= netdev_mtu)
            return mtu;
    return 0;
}

/* "100 Gb/sec (4X EDR)", "2.5 Gb/sec (1X)" */
static uint32_t parse_rate(const char *text)
{
    unsigned whole = 0, tenths = 0;

    sscanf(text, "%5u.%1u", &whole, &tenths);
    return strstr(text, "Gb/s") ? whole * 1000 + tenths * 100 : 0;
}

static uint64_t parse_guid(const char *text)
{
    uint64_t guid = 0;

    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == ':')
            continue;
        if (!isxdigit(c))
            return 0;
        unsigned digit = (unsigned)(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
        guid = guid << 4 | digit;
    }
    return guid;
}

static int read_port(const char *root, const gsi_addresses *addresses, gsi_port *p)
{
    char path[160], text[128];
    int rc;

    snprintf(path, sizeof path, CLASS "/%s/ports/%d", p->device, (int)p->number);
    p->state = (int32_t)gsi_sys_number(root, GSI_PORT_NOP, "%s/state", path); /* "4: ACTIVE" */
    if (!gsi_sys_line(root, text, sizeof text, "%s/phys_state", path)) {
        const char *word = strchr(text, ':');
        word = word ? word + 1 : text;
        snprintf(p->phys_state, sizeof p->phys_state, "%.23s", word + strspn(word, " "));
    }
    /* A kernel without the file is older than RoCE. */
    if (gsi_sys_line(root, text, sizeof text, "%s/link_layer", path) || !strcmp(text, "InfiniBand"))
        p->link_layer = GSI_LINK_INFINIBAND;
    else if (!strcmp(text, "Ethernet"))
        p->link_layer = GSI_LINK_ETHERNET;
    gsi_sys_line(root, text, sizeof text, "%s/rate", path);
    p->rate_mbps = parse_rate(text);
    p->lid = (uint32_t)gsi_sys_number(root, 0, "%s/lid", path);
    p->sm_lid = (uint32_t)gsi_sys_number(root, 0, "%s/sm_lid", path);
    if ((rc = read_gids(root, p, addresses)) || (rc = find_netdev(root, p)))
        return rc;
    if (p->netdev[0])
        p->netdev_mtu = (uint32_t)gsi_sys_number(root, 0, "/sys/class/net/%s/mtu", p->netdev);
    if (p->link_layer == GSI_LINK_ETHERNET)
        p->active_mtu = roce_mtu(p->netdev_mtu);
    snprintf(path, sizeof path, CLASS "/%s/device", p->device);
    if (gsi_sys_place(root, path, &p->place) && p->netdev[0])
        rc = gsi_sys_netdev_place(root, p->netdev, &p->place);
    return rc == GRADSYNC_ERR_NOMEM ? rc : 0;
}

/* ---- All ports ------------------------------------------------------------------------ */

/* What belongs to the device: the same for all its ports. */
static int read_device(const char *root, const char *device, gsi_port *p)
{
    static const char verbs[] = "/sys/class/infiniband_verbs";
    char text[128], path[PATH_MAX], **names;
    int n, rc;

    snprintf(p->device, sizeof p->device, "%.63s", device);
    gsi_sys_line(root, p->firmware, sizeof p->firmware, CLASS "/%s/fw_ver", device);
    gsi_sys_line(root, p->board, sizeof p->board, CLASS "/%s/board_id", device);
    if (!gsi_sys_line(root, text, sizeof text, CLASS "/%s/node_guid", device))
        p->node_guid = parse_guid(text);
    p->place.numa_node = -1;
    p->access = ENOENT;
    if ((rc = gsi_sys_list(root, verbs, &names, &n)))
        return rc;
    for (int i = 0; i < n; i++)
        if (!gsi_sys_line(root, text, sizeof text, "%s/%s/ibdev", verbs, names[i]) && !strcmp(text, device)) {
            snprintf(p->uverbs, sizeof p->uverbs, "%.31s", names[i]);
            break;
        }
    gsi_sys_free_names(names, n);
    if (p->uverbs[0] && snprintf(path, sizeof path, "%s/dev/infiniband/%s", root, p->uverbs) < (int)sizeof path)
        p->access = access(path, R_OK | W_OK) ? errno : 0;
    return 0;
}

static int add_ports(const char *root, const char *device, const gsi_addresses *addresses, gsi_ports *out)
{
    char path[160], **names;
    gsi_port common = {.number = 0};
    int n, rc;

    if ((rc = read_device(root, device, &common)))
        return rc;
    snprintf(path, sizeof path, CLASS "/%.63s/ports", device);
    if ((rc = gsi_sys_list(root, path, &names, &n)))
        return rc;
    for (int i = 0; i < n && !rc; i++) {
        long number = strtol(names[i], NULL, 10);
        if (number < 1 || number > MAX_PORT)
            continue;
        gsi_port *more = gsi_realloc(out->items, ((size_t)out->n + 1) * sizeof *more);
        if (!more) {
            rc = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the ports of %.63s", device);
            break;
        }
        out->items = more;
        out->items[out->n] = common;
        out->items[out->n].number = (int32_t)number;
        rc = read_port(root, addresses, &out->items[out->n++]);
    }
    gsi_sys_free_names(names, n);
    return rc;
}

int gsi_ports_read(const char *root, gsi_ports *out)
{
    gsi_addresses addresses;
    char **names;
    int n, rc;

    *out = (gsi_ports){0};
    if ((rc = gsi_sys_list(root, CLASS, &names, &n)))
        return rc;
    rc = gsi_addresses_read(root, &addresses);
    for (int i = 0; i < n && !rc; i++)
        rc = add_ports(root, names[i], &addresses, out);
    gsi_sys_free_names(names, n);
    free(addresses.items);
    if (rc)
        gsi_ports_free(out);
    return rc;
}

void gsi_ports_free(gsi_ports *ports)
{
    for (int i = 0; i < ports->n; i++)
        free(ports->items[i].gids);
    free(ports->items);
    *ports = (gsi_ports){0};
}

int gsi_port_find_pkey(const char *root, const gsi_port *port, int key)
{
    enum { PARTITION = 0x7fff }; /* the top bit tells full from limited members */
    char path[160], have[96] = "", name[80], **names;
    int n, found = -1;
    size_t at = 0;

    snprintf(path, sizeof path, CLASS "/%s/ports/%d/pkeys", port->device, (int)port->number);
    int rc = gsi_sys_list(root, path, &names, &n);
    if (rc)
        return rc;
    for (int i = 0; i < n; i++) {
        long index = strtol(names[i], NULL, 10), value = gsi_sys_number(root, 0, "%s/%s", path, names[i]);
        if (!(value & PARTITION) || index < 0 || index > UINT16_MAX)
            continue;
        if (value == key || (found < 0 && (value & PARTITION) == (key & PARTITION)))
            found = (int)index;
        if (at < sizeof have)
            at += (size_t)snprintf(have + at, sizeof have - at, "%s0x%04lx", at ? ", " : "", (unsigned long)value);
        if (value == key)
            break;
    }
    gsi_sys_free_names(names, n);
    if (found >= 0)
        return found;
    gsi_port_name(port, name, sizeof name);
    return gsi_fail(GRADSYNC_ERR_INVALID, "%s is not in the partition 0x%04x (GRADSYNC_IB_PKEY); its table has %s",
                    name, (unsigned)key, have[0] ? have : "none");
}
