/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes device filters and settings. Input: lines NAME=value of an environment; every value also serves as a filter.
 */
#include "base/error.h"
#include "fuzz.h"
#include "topo/settings.h"

struct environment {
    char *lines[32];
    int n;
};

static const char *lookup(void *arg, const char *name)
{
    const struct environment *e = arg;
    size_t len = strlen(name);

    for (int i = 0; i < e->n; i++)
        if (!strncmp(e->lines[i], name, len) && e->lines[i][len] == '=')
            return e->lines[i] + len + 1;
    return NULL;
}

static void check_filter(const char *list, int ports)
{
    gsi_filter f;
    const gsi_filter_item *item;
    int rc = gsi_filter_parse("X", list, ports, &f);

    must(rc == 0 || rc == GRADSYNC_ERR_INVALID);
    if (rc)
        return;
    must(f.n >= 0 && f.n <= GSI_FILTER_ITEMS);
    for (int i = 0; i < f.n; i++) {
        const gsi_filter_item *it = &f.items[i];
        must(it->name[0] && strlen(it->name) < sizeof it->name && it->port != 0 && it->port >= -1 && it->port <= 255);
        /* A device of exactly this name is decided by some item. */
        must(gsi_filter_match(&f, it->name, it->port, &item) == (item && !item->exclude));
        must(item != NULL);
    }
    gsi_filter_match(&f, "", -1, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct environment e = {.n = 0};
    char *text = malloc(size + 1), *save = NULL;
    gsi_settings s;

    memcpy(text, data, size);
    text[size] = 0;
    for (char *line = strtok_r(text, "\n", &save); line && e.n < 32; line = strtok_r(NULL, "\n", &save))
        e.lines[e.n++] = line;
    int rc = gsi_settings_read(lookup, &e, &s);
    must(rc == 0 || rc == GRADSYNC_ERR_INVALID);
    if (!rc) {
        must(s.gid_index >= -1 && s.gid_index <= 65535 && s.traffic_class >= -1 && s.traffic_class <= 255);
        must(s.service_level <= 15 && s.timeout <= 31 && s.timeout != 0 && s.retry_count <= 7);
        must(s.mtu == 0 || (s.mtu >= 256 && s.mtu <= 4096 && !(s.mtu & (s.mtu - 1))));
        must(s.qps_per_connection == -1 || (s.qps_per_connection >= 1 && s.qps_per_connection <= 128));
        must(s.pkey_index == -1 || s.pkey_value == -1);
    }
    for (int i = 0; i < e.n; i++) {
        const char *value = strchr(e.lines[i], '=');
        check_filter(value ? value + 1 : e.lines[i], i & 1);
    }
    free(text);
    return 0;
}
