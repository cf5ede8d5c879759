/* SPDX-License-Identifier: Apache-2.0 */
#include "topo/system.h"

#include <ctype.h>
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

/* Entries of a folder whose name is prefix and digits (prefix NULL: any but dot files). */
static int count_entries(const char *root, const char *folder, const char *prefix)
{
    char path[PATH_MAX];
    int count = 0;

    snprintf(path, sizeof path, "%s%s", root, folder);
    DIR *d = opendir(path);
    if (!d)
        return 0;
    for (const struct dirent *entry; (entry = readdir(d));) {
        size_t len = prefix ? strlen(prefix) : 0;
        if (entry->d_name[0] == '.')
            continue;
        count += !prefix || (!strncmp(entry->d_name, prefix, len) && isdigit((unsigned char)entry->d_name[len]));
    }
    closedir(d);
    return count;
}

static void read_cpu_model(const char *root, char *model, size_t room)
{
    char path[PATH_MAX], line[256];

    snprintf(model, room, "unknown");
    snprintf(path, sizeof path, "%s/proc/cpuinfo", root);
    FILE *f = fopen(path, "re");
    if (!f)
        return;
    while (fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (!colon || (strncmp(line, "model name", 10) && strncmp(line, "CPU implementer", 15)))
            continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(model, room, "%s%s", line[0] == 'C' ? "Arm implementer" : "", colon + 1 + (line[0] != 'C'));
        break;
    }
    fclose(f);
}

void gsi_system_read(const char *root, gsi_system *out)
{
    out->numa_nodes = count_entries(root, "/sys/devices/system/node", "node");
    if (!out->numa_nodes)
        out->numa_nodes = 1;
    out->rdma_devices = count_entries(root, "/sys/class/infiniband", NULL);
    read_cpu_model(root, out->cpu_model, sizeof out->cpu_model);
}
