/* SPDX-License-Identifier: Apache-2.0 */
#include "topo/filter.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"

enum { MAX_PORT = 255 };

/* A list as a message may show it: short and printable. */
static void show(const char *list, char *text, size_t room)
{
    size_t n = 0;

    for (; list[n] && n + 4 < room; n++)
        text[n] = list[n] >= ' ' && list[n] <= '~' ? list[n] : '?';
    strcpy(text + n, list[n] ? "..." : "");
}

static int is_name(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c && strchr("._-@:", c));
}

static int wrong(const gsi_filter *f, const char *list, const char *why)
{
    char text[64];

    show(list, text, sizeof text);
    return gsi_fail(GRADSYNC_ERR_INVALID,
                    "%s is '%s': %s; write names with commas between them, such as mlx5_0,mlx5_1:1 (= in front: "
                    "exactly these names; ^ in front: all but these)",
                    f->variable, text, why);
}

/* One item, len bytes: marks, a name, and perhaps ":port". */
static const char *parse_item(const char *text, size_t len, int ports, gsi_filter_item *item)
{
    item->port = -1;
    for (; len && (*text == '^' || *text == '='); text++, len--) {
        int8_t *mark = *text == '^' ? &item->exclude : &item->exact;
        if (*mark == 2)
            return "an item has the same mark twice";
        *mark = 2; /* seen on this item; 1: inherited from the list's front */
    }
    item->exclude = item->exclude != 0;
    item->exact = item->exact != 0;
    const char *colon = ports ? memchr(text, ':', len) : NULL;
    size_t n = colon ? (size_t)(colon - text) : len;
    if (!n)
        return "an item has no name";
    if (n >= sizeof item->name)
        return "a name is too long";
    for (size_t i = 0; i < n; i++)
        if (!is_name(text[i]))
            return "a character does not belong into a device's name";
    memcpy(item->name, text, n);
    item->name[n] = 0;
    if (!colon)
        return NULL;
    int port = 0;
    for (size_t i = n + 1; i < len; i++) {
        if (text[i] < '0' || text[i] > '9' || port > MAX_PORT)
            return "a port is no number from 1 to 255";
        port = port * 10 + (text[i] - '0');
    }
    if (port < 1 || port > MAX_PORT)
        return "a port is no number from 1 to 255";
    item->port = (int16_t)port;
    return NULL;
}

int gsi_filter_parse(const char *variable, const char *list, int ports, gsi_filter *out)
{
    gsi_filter_item front = {.port = -1};
    int first = 1;

    *out = (gsi_filter){.n = 0};
    snprintf(out->variable, sizeof out->variable, "%s", variable);
    if (!list || !*list)
        return 0;
    const char *p = list;
    for (;;) {
        size_t len = strcspn(p, ",");
        const char *end = p + len;
        while (len && (*p == ' ' || *p == '\t'))
            p++, len--;
        while (len && (p[len - 1] == ' ' || p[len - 1] == '\t'))
            len--;
        /* A comma at the end, as generated lists have, is no item. */
        if (len || *end || first) {
            if (out->n == GSI_FILTER_ITEMS)
                return wrong(out, list, "it has more than 128 items");
            gsi_filter_item item = front;
            const char *why = parse_item(p, len, ports, &item);
            if (why)
                return wrong(out, list, why);
            if (first) { /* the marks of the first hold for all */
                front.exclude = item.exclude;
                front.exact = item.exact;
            }
            first = 0;
            out->items[out->n++] = item;
        }
        if (!*end)
            return 0;
        p = end + 1;
    }
}

static int matches(const gsi_filter_item *item, const char *device, int port)
{
    if (item->exact ? strcmp(item->name, device) : strncmp(item->name, device, strlen(item->name)))
        return 0;
    return item->port < 0 || port < 0 || item->port == port;
}

int gsi_filter_match(const gsi_filter *filter, const char *device, int port, const gsi_filter_item **item)
{
    const gsi_filter_item *included = NULL;
    int wants = 0;

    if (item)
        *item = NULL;
    for (int i = 0; i < filter->n; i++) {
        const gsi_filter_item *it = &filter->items[i];
        int match = matches(it, device, port);
        if (it->exclude && match) {
            if (item)
                *item = it;
            return 0;
        }
        wants += !it->exclude;
        if (!it->exclude && match && !included)
            included = it;
    }
    if (item)
        *item = included;
    return !wants || included;
}
