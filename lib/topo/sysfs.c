/* SPDX-License-Identifier: Apache-2.0 */
#include "topo/sysfs.h"

#include <dirent.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"

enum { MAX_STACKED = 8 }; /* network devices on top of each other */

static int is_digit(char c)
{
    return c >= '0' && c <= '9';
}

int gsi_natural_compare(const char *a, const char *b)
{
    while (*a && *b) {
        if (is_digit(*a) && is_digit(*b)) {
            while (*a == '0' && is_digit(a[1]))
                a++;
            while (*b == '0' && is_digit(b[1]))
                b++;
            size_t n = strspn(a, "0123456789"), m = strspn(b, "0123456789");
            int c = n != m ? (n < m ? -1 : 1) : strncmp(a, b, n);
            if (c)
                return c;
            a += n;
            b += m;
        } else if (*a != *b) {
            break;
        } else {
            a++;
            b++;
        }
    }
    return (unsigned char)*a - (unsigned char)*b;
}

static int by_name(const void *a, const void *b)
{
    return gsi_natural_compare(*(char *const *)a, *(char *const *)b);
}

void gsi_sys_free_names(char **names, int n)
{
    for (int i = 0; i < n; i++)
        free(names[i]);
    free(names);
}

int gsi_sys_list(const char *root, const char *folder, char ***names, int *n)
{
    char path[PATH_MAX], **list = NULL;
    int count = 0, room = 0;

    *names = NULL;
    *n = 0;
    if (snprintf(path, sizeof path, "%s%s", root, folder) >= (int)sizeof path)
        return 0;
    DIR *d = opendir(path);
    if (!d)
        return 0;
    for (const struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.')
            continue;
        if (count == room) {
            int more = room ? room * 2 : 16;
            char **p = gsi_realloc(list, (size_t)more * sizeof *p);
            if (!p)
                goto fail;
            list = p;
            room = more;
        }
        if (!(list[count] = gsi_strdup(e->d_name)))
            goto fail;
        count++;
    }
    closedir(d);
    if (count)
        qsort(list, (size_t)count, sizeof *list, by_name);
    *names = list;
    *n = count;
    return 0;
fail:
    closedir(d);
    gsi_sys_free_names(list, count);
    return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to read %.200s", path);
}

__attribute__((format(printf, 4, 0))) static int read_line(const char *root, char *text, size_t room,
                                                           const char *format, va_list args)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s", root);

    text[0] = 0;
    if (n < 0 || n >= (int)sizeof path)
        return -1;
    int m = vsnprintf(path + n, sizeof path - (size_t)n, format, args);
    if (m < 0 || n + m >= (int)sizeof path)
        return -1;
    FILE *f = fopen(path, "re");
    if (!f)
        return -1;
    if (!fgets(text, (int)room, f))
        text[0] = 0;
    fclose(f);
    text[strcspn(text, "\n")] = 0;
    return text[0] ? 0 : -1;
}

int gsi_sys_line(const char *root, char *text, size_t room, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    int rc = read_line(root, text, room, format, args);
    va_end(args);
    return rc;
}

long gsi_sys_number(const char *root, long otherwise, const char *format, ...)
{
    char text[64], *end;
    va_list args;

    va_start(args, format);
    int rc = read_line(root, text, sizeof text, format, args);
    va_end(args);
    if (rc)
        return otherwise;
    long n = strtol(text, &end, text[0] == '0' && (text[1] == 'x' || text[1] == 'X') ? 16 : 10);
    return end == text ? otherwise : n;
}

int gsi_sys_real(const char *root, const char *path, char *real, size_t room)
{
    char full[PATH_MAX], found[PATH_MAX], base[PATH_MAX] = "";

    if (snprintf(full, sizeof full, "%s%s", root, path) >= (int)sizeof full || !realpath(full, found))
        return -1;
    if (root[0] && !realpath(root, base))
        return -1;
    size_t n = strcmp(base, "/") ? strlen(base) : 0;
    if (strncmp(found, base, n) || found[n] != '/' || strlen(found + n) >= room)
        return -1;
    strcpy(real, found + n);
    return 0;
}

/* "0000:81:00.0": 4 to 8 hexadecimal digits, 2, 2, and one of 0 to 7. */
int gsi_sys_is_pci(const char *name, size_t len)
{
    static const char hex[] = "0123456789abcdefABCDEF";
    size_t n = strspn(name, hex);

    return n >= 4 && n <= 8 && len == n + 8 && name[n] == ':' && strspn(name + n + 1, hex) == 2 && name[n + 3] == ':' &&
           strspn(name + n + 4, hex) == 2 && name[n + 6] == '.' && name[n + 7] >= '0' && name[n + 7] <= '7';
}

int gsi_sys_place(const char *root, const char *link, gsi_place *place)
{
    char real[PATH_MAX];
    int found_node = 0;

    *place = (gsi_place){.numa_node = -1};
    if (gsi_sys_real(root, link, real, sizeof real))
        return -1;
    /* Up from the device to the first folder that knows its node (virtioN does not), and to the card. */
    for (char *slash; (slash = strrchr(real, '/')) && slash != real && (!found_node || !place->pci[0]); *slash = 0) {
        size_t len = strlen(slash + 1);
        if (!found_node) {
            long node = gsi_sys_number(root, INT_MIN, "%s/numa_node", real);
            found_node = node != INT_MIN;
            if (node >= 0 && node < INT_MAX)
                place->numa_node = (int32_t)node;
        }
        if (!place->pci[0] && gsi_sys_is_pci(slash + 1, len))
            memcpy(place->pci, slash + 1, len + 1);
    }
    return 0;
}

int gsi_sys_netdev_place(const char *root, const char *netdev, gsi_place *place)
{
    char name[GSI_NETDEV_NAME], path[128], **names;

    *place = (gsi_place){.numa_node = -1};
    snprintf(name, sizeof name, "%s", netdev);
    for (int depth = 0; depth < MAX_STACKED; depth++) {
        int n, below = -1;
        snprintf(path, sizeof path, "/sys/class/net/%s/device", name);
        if (!gsi_sys_place(root, path, place))
            return 0;
        snprintf(path, sizeof path, "/sys/class/net/%s", name);
        int rc = gsi_sys_list(root, path, &names, &n);
        if (rc)
            return rc;
        for (int i = 0; i < n && below < 0; i++)
            if (!strncmp(names[i], "lower_", 6))
                below = i;
        if (below >= 0)
            snprintf(name, sizeof name, "%.15s", names[below] + 6);
        gsi_sys_free_names(names, n);
        if (below < 0)
            return -1;
    }
    return -1;
}
