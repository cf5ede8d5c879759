/* SPDX-License-Identifier: Apache-2.0 */
#include "topo/settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

struct source {
    gsi_settings_getenv lookup;
    void *arg;
};

static const char *from_process(void *arg, const char *name)
{
    (void)arg;
    return getenv(name);
}

/* An empty variable counts as unset. *name becomes the one of the two that is set. */
static const char *find(const struct source *s, const char *ours, const char *theirs, const char **name)
{
    const char *names[] = {ours, theirs};

    for (int i = 0; i < 2; i++) {
        const char *value = names[i] ? s->lookup(s->arg, names[i]) : NULL;
        if (value && *value) {
            *name = names[i];
            return value;
        }
    }
    *name = ours;
    return NULL;
}

static void show(const char *value, char text[40])
{
    size_t n = 0;

    for (; value[n] && n < 32; n++)
        text[n] = value[n] >= ' ' && value[n] <= '~' ? value[n] : '?';
    strcpy(text + n, value[n] ? "..." : "");
}

/* Decimal digits, nothing else; -1 if it is not that, or above 999,999. */
static long digits(const char *text)
{
    long n = 0;

    for (size_t i = 0; text[i]; i++) {
        if (text[i] < '0' || text[i] > '9' || i == 6)
            return -1;
        n = n * 10 + (text[i] - '0');
    }
    return *text ? n : -1;
}

/* A number from low to high; *out stays as it is where neither is set. NCCL_ variables may say -1 for "unset". */
static int number(const struct source *s, const char *ours, const char *theirs, int low, int high, int32_t *out)
{
    const char *name, *value = find(s, ours, theirs, &name);
    char shown[40];

    if (!value || (name == theirs && !strcmp(value, "-1")))
        return 0;
    long n = digits(value);
    if (n < low || n > high) {
        show(value, shown);
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is '%s'; set it to a number from %d to %d, or unset it", name, shown,
                        low, high);
    }
    *out = (int32_t)n;
    return 0;
}

static int read_filters(const struct source *s, gsi_settings *out)
{
    const char *name, *value = find(s, "GRADSYNC_HCA", "NCCL_IB_HCA", &name);
    int rc = gsi_filter_parse(name, value, 1, &out->hca);

    if (rc)
        return rc;
    value = find(s, "GRADSYNC_IFNAME", "NCCL_SOCKET_IFNAME", &name);
    return gsi_filter_parse(name, value, 0, &out->interfaces);
}

static int read_topo_file(const struct source *s, gsi_settings *out)
{
    const char *name, *value = find(s, "GRADSYNC_TOPO_FILE", "NCCL_TOPO_FILE", &name);

    if (value && strlen(value) >= sizeof out->topo_file)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is longer than %zu bytes; give a shorter path", name,
                        sizeof out->topo_file - 1);
    snprintf(out->topo_file, sizeof out->topo_file, "%s", value ? value : "");
    return 0;
}

static int read_rails(const struct source *s, gsi_settings *out)
{
    static const char *const names[] = {"auto", "near", "all"};
    const char *name, *value = find(s, "GRADSYNC_RAILS", NULL, &name);
    char shown[40];

    for (int i = 0; value && i < 3; i++)
        if (!strcmp(value, names[i])) {
            out->rails = i;
            return 0;
        }
    if (!value)
        return 0;
    show(value, shown);
    return gsi_fail(GRADSYNC_ERR_INVALID, "GRADSYNC_RAILS is '%s'; set it to auto, near or all", shown);
}

/* GRADSYNC_IB_PKEY: 0x8001 is a key, 3 an index; NCCL_IB_PKEY is always an index. */
static int read_pkey(const struct source *s, gsi_settings *out)
{
    const char *name, *value = find(s, "GRADSYNC_IB_PKEY", "NCCL_IB_PKEY", &name);
    char shown[40];

    if (!value || strncmp(value, "0x", 2) || !strcmp(name, "NCCL_IB_PKEY"))
        return number(s, "GRADSYNC_IB_PKEY", "NCCL_IB_PKEY", 0, 65535, &out->pkey_index);
    size_t len = strspn(value + 2, "0123456789abcdefABCDEF");
    long key = len && len <= 4 && !value[2 + len] ? strtol(value + 2, NULL, 16) : 0;
    if (!(key & 0x7fff)) { /* the top bit only says full or limited member */
        show(value, shown);
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "GRADSYNC_IB_PKEY is '%s'; set it to a key such as 0x8001, or to an index of the port's table",
                        shown);
    }
    out->pkey_value = (int32_t)key;
    return 0;
}

static int read_gid_index(const struct source *s, gsi_settings *out)
{
    const char *name, *value = find(s, "GRADSYNC_IB_GID_INDEX", "NCCL_IB_GID_INDEX", &name);

    if (!value || !strcmp(value, "auto") || !strcmp(value, "-1"))
        return 0;
    snprintf(out->gid_index_variable, sizeof out->gid_index_variable, "%s", name);
    return number(s, "GRADSYNC_IB_GID_INDEX", "NCCL_IB_GID_INDEX", 0, 65535, &out->gid_index);
}

static int read_mtu(const struct source *s, gsi_settings *out)
{
    const char *name, *value = find(s, "GRADSYNC_IB_MTU", NULL, &name);
    char shown[40];

    if (!value)
        return 0;
    long mtu = digits(value);
    if (mtu < 256 || mtu > 4096 || mtu & (mtu - 1)) {
        show(value, shown);
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "GRADSYNC_IB_MTU is '%s'; set it to 256, 512, 1024, 2048 or 4096 (bytes of an RDMA packet, "
                        "not of an Ethernet frame)",
                        shown);
    }
    out->mtu = (int32_t)mtu;
    return 0;
}

int gsi_settings_read(gsi_settings_getenv lookup, void *arg, gsi_settings *out)
{
    struct source s = {lookup ? lookup : from_process, arg};
    int rc;

    *out = (gsi_settings){.gid_index = -1,
                          .traffic_class = -1,
                          .service_level = -1,
                          .pkey_index = -1,
                          .pkey_value = -1,
                          .timeout = -1,
                          .retry_count = -1,
                          .qps_per_connection = -1,
                          .relaxed_ordering = 2};
    if ((rc = read_filters(&s, out)) || (rc = read_topo_file(&s, out)) || (rc = read_rails(&s, out)) ||
        (rc = read_gid_index(&s, out)) || (rc = read_pkey(&s, out)) || (rc = read_mtu(&s, out)) ||
        (rc = number(&s, "GRADSYNC_IB_TC", "NCCL_IB_TC", 0, 255, &out->traffic_class)) ||
        (rc = number(&s, "GRADSYNC_IB_SL", "NCCL_IB_SL", 0, 15, &out->service_level)) ||
        (rc = number(&s, "GRADSYNC_IB_TIMEOUT", "NCCL_IB_TIMEOUT", 1, 31, &out->timeout)) ||
        (rc = number(&s, "GRADSYNC_IB_RETRY_CNT", "NCCL_IB_RETRY_CNT", 0, 7, &out->retry_count)) ||
        (rc = number(&s, "GRADSYNC_QPS_PER_CONNECTION", "NCCL_IB_QPS_PER_CONNECTION", 1, 128,
                     &out->qps_per_connection)) ||
        (rc = number(&s, "GRADSYNC_IB_RELAXED_ORDERING", "NCCL_IB_PCI_RELAXED_ORDERING", 0, 2,
                     &out->relaxed_ordering)) ||
        (rc = number(&s, "GRADSYNC_IB_DISABLE", "NCCL_IB_DISABLE", 0, 1, &out->disabled)))
        return rc;
    return 0;
}
