/* SPDX-License-Identifier: Apache-2.0 */
#include "topo/topology.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "topo/sysfs.h"
#include "topo/topology_build.h"

enum { CLASS_BRIDGE = 0x06, LOCAL_DISTANCE = 10, OTHER_DISTANCE = 20 };

/* ---- Building ------------------------------------------------------------------------ */

static int no_memory(void)
{
    return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the machine's topology");
}

/* Makes room for one more: capacity doubles at each power of two. */
static int grow(void **items, int n, size_t size)
{
    if (n & (n - 1))
        return 0;
    void *more = gsi_realloc(*items, (n ? (size_t)n * 2 : 1) * size);
    if (!more)
        return no_memory();
    *items = more;
    return 0;
}

int gsi_topology_add_device(gsi_topology *t, const gsi_pci_device *d)
{
    void *items = t->devices;

    if (t->ndevices >= GSI_TOPO_DEVICES)
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "the topology has more than %d PCI devices; leave out those that are "
                        "neither GPU nor network card",
                        GSI_TOPO_DEVICES);
    if (grow(&items, t->ndevices, sizeof *d))
        return GRADSYNC_ERR_NOMEM;
    t->devices = items;
    t->devices[t->ndevices++] = *d;
    return 0;
}

int gsi_topology_add_node(gsi_topology *t, int id, int package)
{
    void *items = t->nodes;

    if (t->nnodes >= GSI_TOPO_NODES)
        return gsi_fail(GRADSYNC_ERR_INVALID, "the topology has more than %d NUMA nodes", GSI_TOPO_NODES);
    if (grow(&items, t->nnodes, sizeof *t->nodes))
        return GRADSYNC_ERR_NOMEM;
    t->nodes = items;
    t->nodes[t->nnodes++] = (gsi_numa_node){id, package};
    return 0;
}

/* Of two entries with one address the GPU or network card comes first: hwloc's own test data has such. */
static int compare_devices(const void *a, const void *b)
{
    const gsi_pci_device *d = a, *e = b;
    int c = strcmp(d->addr, e->addr);

    if (c)
        return c;
    int network_d = d->class_code >> 16 == 0x02, network_e = e->class_code >> 16 == 0x02;
    return (gsi_pci_is_gpu(e) | network_e) - (gsi_pci_is_gpu(d) | network_d);
}

static int compare_nodes(const void *a, const void *b)
{
    const gsi_numa_node *m = a, *n = b;

    return m->id != n->id ? (m->id < n->id ? -1 : 1) : (n->package > m->package) - (n->package < m->package);
}

int gsi_topology_finish(gsi_topology *t)
{
    int n = 0;

    if (!t->nnodes && gsi_topology_add_node(t, 0, -1))
        return GRADSYNC_ERR_NOMEM;
    if (t->ndevices)
        qsort(t->devices, (size_t)t->ndevices, sizeof *t->devices, compare_devices);
    for (int i = 0; i < t->ndevices; i++)
        if (!n || strcmp(t->devices[n - 1].addr, t->devices[i].addr))
            t->devices[n++] = t->devices[i];
    t->ndevices = n;
    qsort(t->nodes, (size_t)t->nnodes, sizeof *t->nodes, compare_nodes);
    n = 0;
    for (int i = 0; i < t->nnodes; i++)
        if (!n || t->nodes[n - 1].id != t->nodes[i].id)
            t->nodes[n++] = t->nodes[i];
    t->nnodes = n;
    free(t->numa_distance);
    t->numa_distance = gsi_calloc((size_t)n * (size_t)n, sizeof *t->numa_distance);
    if (!t->numa_distance)
        return no_memory();
    for (int i = 0; i < n * n; i++)
        t->numa_distance[i] = i / n == i % n ? LOCAL_DISTANCE : OTHER_DISTANCE;
    return 0;
}

int gsi_topology_node_at(const gsi_topology *t, int id)
{
    for (int i = 0; i < t->nnodes; i++)
        if (t->nodes[i].id == id)
            return i;
    return -1;
}

int gsi_topology_merge(gsi_topology *t, const gsi_topology *file)
{
    int n = t->ndevices, nodes = t->nnodes, rc = 0;

    for (int i = 0; i < file->ndevices && !rc; i++) {
        const gsi_pci_device *from = &file->devices[i];
        gsi_pci_device *known = NULL;
        for (int k = 0; k < n && !known; k++)
            if (!strcmp(t->devices[k].addr, from->addr))
                known = &t->devices[k];
        if (!known) {
            rc = gsi_topology_add_device(t, from);
            continue;
        }
        memcpy(known->path, from->path, sizeof known->path);
        known->numa_node = from->numa_node >= 0 ? from->numa_node : known->numa_node;
        /* A file may leave out what the card is; the kernel knows it. */
        known->class_code = known->class_code ? known->class_code : from->class_code;
    }
    int replace = nodes < 2 && file->nnodes > nodes;
    for (int i = 0; replace && i < file->nnodes && !rc; i++)
        rc = gsi_topology_add_node(t, file->nodes[i].id, file->nodes[i].package);
    if (rc)
        return rc;
    int *kept = t->numa_distance;
    t->numa_distance = NULL;
    rc = gsi_topology_finish(t);
    if (!rc) {
        const gsi_topology *measured = replace ? file : NULL;
        for (int i = 0; i < t->nnodes * t->nnodes; i++)
            if (!replace)
                t->numa_distance[i] = kept[i];
            else {
                int a = gsi_topology_node_at(measured, t->nodes[i / t->nnodes].id);
                int b = gsi_topology_node_at(measured, t->nodes[i % t->nnodes].id);
                if (a >= 0 && b >= 0)
                    t->numa_distance[i] = measured->numa_distance[a * measured->nnodes + b];
            }
    }
    free(kept);
    return rc;
}

/* ---- sysfs ------------------------------------------------------------------------- */

static int read_nodes(const char *root, gsi_topology *t)
{
    static const char folder[] = "/sys/devices/system/node";
    char **names;
    int n, rc;

    if ((rc = gsi_sys_list(root, folder, &names, &n)))
        return rc;
    for (int i = 0; i < n && !rc; i++) {
        char *end;
        if (strncmp(names[i], "node", 4) || !isdigit((unsigned char)names[i][4]))
            continue;
        long id = strtol(names[i] + 4, &end, 10);
        if (*end || id > INT_MAX)
            continue;
        /* The first of the node's CPUs tells its socket; a node of memory alone has none. */
        long cpu = gsi_sys_number(root, -1, "%s/node%ld/cpulist", folder, id), package = -1;
        if (cpu >= 0)
            package = gsi_sys_number(root, -1, "/sys/devices/system/cpu/cpu%ld/topology/physical_package_id", cpu);
        rc = gsi_topology_add_node(t, (int)id, package >= 0 && package < INT_MAX ? (int)package : -1);
    }
    gsi_sys_free_names(names, n);
    return rc;
}

/* "10 21": one column for each node that is online, in the order of their numbers. */
static void read_numa_distances(const char *root, gsi_topology *t)
{
    char line[8192];

    for (int i = 0; i < t->nnodes; i++) {
        const char *p = line;
        char *end;
        if (gsi_sys_line(root, line, sizeof line, "/sys/devices/system/node/node%d/distance", t->nodes[i].id))
            continue;
        for (int k = 0; k < t->nnodes; k++, p = end) {
            long d = strtol(p, &end, 10);
            if (end == p || d <= 0 || d > INT_MAX)
                break;
            t->numa_distance[i * t->nnodes + k] = (int)d;
        }
    }
}

/* "/sys/devices/platform/x/pci0000:80/0000:80:01.0/0000:81:00.0" from its first host bridge on. */
static void copy_path(const char *real, char path[GSI_PCI_PATH])
{
    const char *p = real;

    path[0] = 0;
    while (p && (strncmp(p, "/pci", 4) || !isxdigit((unsigned char)p[4])))
        p = strchr(p + 1, '/');
    if (p && strlen(p + 1) < GSI_PCI_PATH)
        strcpy(path, p + 1);
}

static int read_devices(const char *root, gsi_topology *t)
{
    static const char folder[] = "/sys/bus/pci/devices";
    char path[128], real[PATH_MAX], **names;
    int n, rc;

    if ((rc = gsi_sys_list(root, folder, &names, &n)))
        return rc;
    for (int i = 0; i < n && !rc; i++) {
        gsi_pci_device d = {.numa_node = -1};
        if (strlen(names[i]) > 64 || gsi_pci_normalize(names[i], d.addr))
            continue;
        d.class_code = (uint32_t)gsi_sys_number(root, 0, "%s/%s/class", folder, names[i]);
        if (d.class_code >> 16 == CLASS_BRIDGE)
            continue;
        d.vendor = (uint16_t)gsi_sys_number(root, 0, "%s/%s/vendor", folder, names[i]);
        d.device = (uint16_t)gsi_sys_number(root, 0, "%s/%s/device", folder, names[i]);
        long node = gsi_sys_number(root, -1, "%s/%s/numa_node", folder, names[i]);
        d.numa_node = node >= 0 && node < INT_MAX ? (int32_t)node : -1;
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (!gsi_sys_real(root, path, real, sizeof real))
            copy_path(real, d.path);
        rc = gsi_topology_add_device(t, &d);
    }
    gsi_sys_free_names(names, n);
    return rc;
}

/* ---- Files ------------------------------------------------------------------------- */

static int read_file(const char *file, gsi_topology *t)
{
    FILE *f = fopen(file, "re");
    char *text = NULL;
    size_t n = 0, room = 0;
    int rc = 0;

    if (!f)
        return gsi_fail_errno(
            errno, "cannot open the topology file %.200s; correct GRADSYNC_TOPO_FILE (or NCCL_TOPO_FILE)", file);
    for (;;) {
        if (n == room) {
            room = room ? room * 2 : 16384;
            char *more = room <= GSI_TOPO_FILE_BYTES ? gsi_realloc(text, room) : NULL;
            if (!more) {
                rc = room <= GSI_TOPO_FILE_BYTES
                         ? no_memory()
                         : gsi_fail(GRADSYNC_ERR_INVALID, "the topology file %.200s is larger than %d MiB", file,
                                    GSI_TOPO_FILE_BYTES >> 20);
                break;
            }
            text = more;
        }
        size_t got = fread(text + n, 1, room - n, f);
        n += got;
        if (!got)
            break;
    }
    if (!rc && ferror(f))
        rc = gsi_fail_errno(errno, "cannot read the topology file %.200s", file);
    fclose(f);
    if (!rc) {
        rc = gsi_topology_read_xml(text, n, t);
        if (rc == GRADSYNC_ERR_INVALID) {
            gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
            gradsync_last_error(&info);
            rc = gsi_fail(rc, "%.120s: %s", file, info.message);
        }
    }
    free(text);
    return rc;
}

/* ---- All of it ----------------------------------------------------------------------- */

int gsi_topology_read(const char *root, const char *file, gsi_topology *out)
{
    int rc;

    *out = (gsi_topology){.nnodes = 0};
    if ((rc = read_nodes(root, out)) || (rc = read_devices(root, out)) || (rc = gsi_topology_finish(out)))
        goto done;
    read_numa_distances(root, out);
    if (file && file[0]) {
        gsi_topology told = {.nnodes = 0};
        rc = read_file(file, &told);
        if (!rc)
            rc = gsi_topology_merge(out, &told);
        gsi_topology_free(&told);
        snprintf(out->file, sizeof out->file, "%s", file);
    }
done:
    if (rc)
        gsi_topology_free(out);
    return rc;
}

int gsi_topology_parse(const char *text, size_t bytes, gsi_topology *out)
{
    *out = (gsi_topology){.nnodes = 0};
    int rc = gsi_topology_read_xml(text, bytes, out);
    if (rc)
        gsi_topology_free(out);
    return rc;
}

void gsi_topology_free(gsi_topology *t)
{
    free(t->nodes);
    free(t->numa_distance);
    free(t->devices);
    *t = (gsi_topology){.nnodes = 0};
}
