/* SPDX-License-Identifier: Apache-2.0 */
/* The device, its port and GID: found by name, checked, and every way in which they are missing told with its remedy.
 */
#include "transport/verbs/verbs.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Of one lane, Gbit/s, by the codes of ibv_port_attr; lanes likewise. */
double gsi_verbs_gbps(int width, int speed)
{
    static const struct {
        int code;
        double value;
    } speeds[] = {{1, 2.5}, {2, 5}, {4, 10}, {8, 10}, {16, 14}, {32, 25}, {64, 50}, {128, 100}},
      widths[] = {{1, 1}, {2, 4}, {4, 8}, {8, 12}, {16, 2}};
    double lane = 0, lanes = 0;

    for (size_t i = 0; i < sizeof speeds / sizeof speeds[0]; i++)
        if (speeds[i].code == speed)
            lane = speeds[i].value;
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++)
        if (widths[i].code == width)
            lanes = widths[i].value;
    return lane * lanes;
}

int gsi_verbs_mtu(int bytes)
{
    for (int mtu = IBV_MTU_256; mtu <= IBV_MTU_4096; mtu++)
        if (bytes == 128 << mtu)
            return mtu;
    return 0;
}

/* The names of a device list, for an error text. */
static void list_names(struct ibv_device **list, char *out, size_t room)
{
    size_t at = 0;

    out[0] = 0;
    for (int i = 0; list[i] && at < room; i++)
        at += (size_t)snprintf(out + at, room - at, "%s%s", i ? ", " : "", ibv_get_device_name(list[i]));
}

static int no_device(struct ibv_device **list, const char *name)
{
    char path[128], names[256];

    snprintf(path, sizeof path, "/sys/class/infiniband/%.63s", name);
    if (access(path, F_OK) == 0)
        return gsi_verbs_host.fail(
            GRADSYNC_ERR_DEVICE,
            "the kernel has the RDMA device %s, but this process does not: its node in /dev/infiniband "
            "or its driver library is missing; load ib_uverbs, install the ibverbs providers, and give "
            "a container --device=/dev/infiniband",
            name);
    list_names(list, names, sizeof names);
    return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE, "there is no RDMA device %s; %s%s", name,
                               names[0] ? "there are: " : "there is none at all: load the card's driver", names);
}

/* libibverbs looks for the node elsewhere if it may not open it, so its errno is that of the second failure. */
static int cannot_open(const struct ibv_device *device, const char *name)
{
    char path[128];
    int err = errno;

    snprintf(path, sizeof path, "/dev/infiniband/%.63s", device->dev_name);
    if (access(path, R_OK | W_OK) && errno != ENOENT)
        return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE,
                                   "no access to %s of %s: give the user read and write access to it, and a container "
                                   "--device=/dev/infiniband",
                                   path, name);
    errno = err;
    return gsi_verbs_host.fail(err == ENOMEM ? GRADSYNC_ERR_NOMEM : GRADSYNC_ERR_SYSTEM,
                               "the RDMA device %s cannot be opened: %m", name);
}

static int open_device(gsi_verbs_rail *rail)
{
    const char *name = rail->config.device;
    struct ibv_device **list = ibv_get_device_list(NULL), *found = NULL, *none[1] = {NULL};
    int rc = 0;

    if (!list) {
        if (errno == ENOSYS || errno == ENOENT)
            return no_device(none, name);
        return gsi_verbs_host.fail(GRADSYNC_ERR_SYSTEM, "the RDMA devices cannot be listed: %m");
    }
    for (int i = 0; list[i]; i++)
        if (!strcmp(ibv_get_device_name(list[i]), name))
            found = list[i];
    if (!found)
        rc = no_device(list, name);
    else if (found->transport_type != IBV_TRANSPORT_IB) /* iWARP has no immediates, and addresses of its own */
        rc = gsi_verbs_host.fail(
            GRADSYNC_ERR_UNSUPPORTED,
            "%s is neither InfiniBand nor RoCE: leave it out, or use TCP over its network interface", name);
    else if (!(rail->context = ibv_open_device(found)))
        rc = cannot_open(found, name);
    ibv_free_device_list(list);
    return rc;
}

static const char *state_hint(enum ibv_port_state state, int ethernet)
{
    switch (state) {
    case IBV_PORT_DOWN:
        return ethernet ? "check the cable, and that its network interface is up" : "check the cable and the switch";
    case IBV_PORT_INIT:
        return "it waits for a subnet manager: start opensm, or the switch's";
    case IBV_PORT_ARMED:
        return "the subnet manager has not activated it yet: try again in a moment";
    case IBV_PORT_ACTIVE_DEFER:
        return "it lost its link a moment ago: try again";
    default:
        return "check the driver's messages";
    }
}

static int check_port(gsi_verbs_rail *rail)
{
    const gsi_rail_config *config = &rail->config;
    int rc;

    if (config->port < 1 || config->port > rail->device.phys_port_cnt)
        return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE, "%s has no port %d: its ports are 1 to %d", config->device,
                                   (int)config->port, rail->device.phys_port_cnt);
    rc = ibv_query_port(rail->context, (uint8_t)config->port, &rail->port);
    if (rc) {
        errno = rc;
        return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE, "%s cannot be queried: %m", rail->rail.name);
    }
    rail->ethernet = rail->port.link_layer == IBV_LINK_LAYER_ETHERNET;
    if (rail->port.state != IBV_PORT_ACTIVE)
        return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE, "%s is %s, not active: %s", rail->rail.name,
                                   ibv_port_state_str(rail->port.state), state_hint(rail->port.state, rail->ethernet));
    return 0;
}

static int check_gid(gsi_verbs_rail *rail)
{
    static const union ibv_gid zero;
    int index = rail->config.gid_index;

    if (index < 0) {
        if (rail->ethernet)
            return gsi_verbs_host.fail(
                GRADSYNC_ERR_DEVICE,
                "%s is RoCE, which needs a GID, and none was found: give its network interface an "
                "address, or name a GID index",
                rail->rail.name);
        if (rail->port.lid == 0)
            return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE, "%s has no LID: start a subnet manager", rail->rail.name);
        return 0;
    }
    if (index >= rail->port.gid_tbl_len ||
        ibv_query_gid(rail->context, (uint8_t)rail->config.port, index, &rail->gid) ||
        !memcmp(&rail->gid, &zero, sizeof zero))
        return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE,
                                   "%s has no GID with the index %d; its table has %d places, see "
                                   "/sys/class/infiniband/%s/ports/%d/gids",
                                   rail->rail.name, index, rail->port.gid_tbl_len, rail->config.device,
                                   (int)rail->config.port);
    return 0;
}

static int check_mtu(gsi_verbs_rail *rail)
{
    int bytes = rail->config.mtu, mtu = gsi_verbs_mtu(bytes);

    rail->mtu = rail->port.active_mtu;
    if (!bytes)
        return 0;
    if (!mtu)
        return gsi_verbs_host.fail(GRADSYNC_ERR_INVALID, "an RDMA MTU is 256, 512, 1024, 2048 or 4096 bytes, not %d",
                                   bytes);
    if (mtu > (int)rail->port.active_mtu)
        return gsi_verbs_host.fail(
            GRADSYNC_ERR_DEVICE,
            "the MTU of %s is %d, less than the %d asked for: raise that of its network interface and "
            "switch, or ask for less",
            rail->rail.name, 128 << rail->port.active_mtu, bytes);
    rail->mtu = (enum ibv_mtu)mtu;
    return 0;
}

int gsi_verbs_device_open(gsi_verbs_rail *rail)
{
    int rc = open_device(rail);

    if (rc)
        return rc;
    rc = ibv_query_device(rail->context, &rail->device);
    if (rc) {
        errno = rc;
        return gsi_verbs_host.fail(GRADSYNC_ERR_DEVICE, "%s cannot be queried: %m", rail->config.device);
    }
    if ((rc = check_port(rail)) || (rc = check_gid(rail)) || (rc = check_mtu(rail)))
        return rc;
    rail->rail.gbps = gsi_verbs_gbps(rail->port.active_width, rail->port.active_speed);
    /* No more than any device takes, so that both sides of a connection have the same limit, whatever their cards. */
    rail->rail.max_bytes = rail->port.max_msg_sz < (8U << 20) ? rail->port.max_msg_sz : 8U << 20;
    return 0;
}
