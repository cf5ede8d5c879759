/* SPDX-License-Identifier: Apache-2.0 */
#include "doctor/pcie.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "topo/sysfs.h"

#define DEVICES "/sys/bus/pci/devices"

enum {
    CONFIG_BYTES = 4096,
    CONFIG_STATUS = 0x06,
    STATUS_HAS_LIST = 0x10,
    CONFIG_LIST = 0x34,
    CAPABILITY_EXPRESS = 0x10,
    EXPRESS_CONTROL = 8, /* offset of Device Control in the capability */
    EXTENDED_START = 0x100,
    EXTENDED_ACS = 0x0d,
    ACS_CONTROL = 6,
    OLD_CODE_MTS = 5000, /* up to here 8 of 10 bits are data, beyond 128 of 130 */
    MAX_WIDTH = 64       /* sysfs says 255 for "unknown" */
};

static unsigned word16(const uint8_t *config, size_t at)
{
    return config[at] | (unsigned)config[at + 1] << 8;
}

static uint32_t word32(const uint8_t *config, size_t at)
{
    return word16(config, at) | (uint32_t)word16(config, at + 2) << 16;
}

static void parse_express(const uint8_t *config, size_t bytes, gsi_pcie *out)
{
    size_t at = config[CONFIG_LIST] & 0xfcu;

    /* A list can be a circle in a broken card: there is room for 48 capabilities. */
    for (int i = 0; i < 48 && at >= 0x40 && at + EXPRESS_CONTROL + 2 <= bytes && at < EXTENDED_START; i++) {
        if (config[at] == CAPABILITY_EXPRESS) {
            unsigned control = word16(config, at + EXPRESS_CONTROL);
            out->relaxed = control >> 4 & 1;
            out->max_payload = 128 << (control >> 5 & 7);
            out->max_read = 128 << (control >> 12 & 7);
            return;
        }
        at = config[at + 1] & 0xfcu;
    }
}

static void parse_acs(const uint8_t *config, size_t bytes, gsi_pcie *out)
{
    size_t at = EXTENDED_START;

    if (bytes < CONFIG_BYTES)
        return;
    out->acs = 0; /* without the capability nothing is redirected */
    for (int i = 0; i < 960 && at >= EXTENDED_START && at + 8 <= bytes; i++) {
        uint32_t head = word32(config, at);
        if (!head || head == UINT32_MAX)
            return;
        if ((head & 0xffff) == EXTENDED_ACS) {
            out->acs = (int32_t)word16(config, at + ACS_CONTROL);
            return;
        }
        at = head >> 20 & 0xffc;
    }
}

void gsi_pcie_parse(const uint8_t *config, size_t bytes, gsi_pcie *out)
{
    out->relaxed = out->acs = -1;
    out->max_read = out->max_payload = 0;
    if (bytes <= 64 || !(config[CONFIG_STATUS] & STATUS_HAS_LIST))
        return;
    parse_express(config, bytes, out);
    parse_acs(config, bytes, out);
}

int gsi_pcie_speed(const char *text)
{
    char *end;
    double gts = strtod(text, &end);

    return end != text && gts > 0 && gts < 1000 && strstr(end, "GT/s") ? (int)lround(gts * 1000) : 0;
}

uint32_t gsi_pcie_mbps(int speed_mts, int width)
{
    double lane = speed_mts <= OLD_CODE_MTS ? speed_mts * 0.8 : speed_mts * (128.0 / 130);

    return speed_mts > 0 && width > 0 ? (uint32_t)(lane * width) : 0;
}

static int read_speed(const char *root, const char *addr, const char *file)
{
    char text[64];

    return gsi_sys_line(root, text, sizeof text, DEVICES "/%s/%s", addr, file) ? 0 : gsi_pcie_speed(text);
}

static int read_width(const char *root, const char *addr, const char *file)
{
    long n = gsi_sys_number(root, 0, DEVICES "/%s/%s", addr, file);

    return n > 0 && n <= MAX_WIDTH ? (int)n : 0;
}

static void read_config(const char *root, const char *addr, gsi_pcie *out)
{
    uint8_t config[CONFIG_BYTES];
    char path[PATH_MAX];
    size_t n = 0;

    if (snprintf(path, sizeof path, "%s" DEVICES "/%s/config", root, addr) < (int)sizeof path) {
        FILE *f = fopen(path, "re");
        if (f) {
            n = fread(config, 1, sizeof config, f);
            fclose(f);
        }
    }
    gsi_pcie_parse(config, n, out);
}

static void read_iommu(const char *root, const char *addr, char *type, size_t room)
{
    char path[128], real[PATH_MAX];

    type[0] = 0;
    snprintf(path, sizeof path, DEVICES "/%s/iommu_group", addr);
    if (!gsi_sys_real(root, path, real, sizeof real))
        gsi_sys_line(root, type, room, "%s/type", real);
}

/* "pci0000:00/0000:00:01.0/0000:01:00.0": the part before the last one, if it is a function. */
static int parent_of(const char *path, char parent[GSI_PCI_ADDR])
{
    const char *last = strrchr(path, '/'), *start = last;

    while (start && start > path && start[-1] != '/')
        start--;
    if (!last || start == last || (size_t)(last - start) >= GSI_PCI_ADDR ||
        !gsi_sys_is_pci(start, (size_t)(last - start)))
        return -1;
    memcpy(parent, start, (size_t)(last - start));
    parent[last - start] = 0;
    return 0;
}

void gsi_pcie_read(const char *root, const char *addr, const char *path, gsi_pcie *out)
{
    char parent[GSI_PCI_ADDR];

    *out = (gsi_pcie){.relaxed = -1, .acs = -1};
    snprintf(out->addr, sizeof out->addr, "%s", addr);
    if (!addr[0])
        return;
    out->speed_mts = read_speed(root, addr, "current_link_speed");
    out->max_speed_mts = read_speed(root, addr, "max_link_speed");
    out->width = read_width(root, addr, "current_link_width");
    out->max_width = read_width(root, addr, "max_link_width");
    if (!parent_of(path, parent)) {
        out->slot_speed_mts = read_speed(root, parent, "max_link_speed");
        out->slot_width = read_width(root, parent, "max_link_width");
    }
    read_config(root, addr, out);
    read_iommu(root, addr, out->iommu, sizeof out->iommu);
}
