/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Topology files: NCCL's XML (system, cpu, pci, gpu, nic) and hwloc's (lstopo --of xml), told apart by their
 * first element. What is not needed is passed over. A file is input from outside: its size, depth and numbers
 * are bounded, and one that declares entities is refused, so that it can neither grow nor read other files.
 */
#include <expat.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "topo/topology_build.h"

enum { MAX_DEPTH = 64, MAX_WORDS = 2048, MAX_MATRIX = 64, MAX_TEXT = 65536 };
enum dialect { UNDECIDED, NCCL, HWLOC };
enum reading { NOTHING, INDEXES, VALUES };

/* What the element at some depth hands down to those inside it. */
struct level {
    int numa_node;   /* -1: unknown */
    int package;     /* hwloc; -1 */
    int device;      /* NCCL: index of the device that this pci element made; -1 */
    size_t path_len; /* of `path` so far */
};

struct reader {
    XML_Parser parser;
    gsi_topology *t;
    enum dialect dialect;
    int depth;
    struct level levels[MAX_DEPTH];
    char path[GSI_PCI_PATH];
    int rc;
    /* hwloc's matrix of distances, by the numbers of the nodes */
    enum reading reading;
    int in_distances, nindexes, nvalues, digits;
    long number;
    int indexes[MAX_MATRIX];
    long values[MAX_MATRIX * MAX_MATRIX];
    size_t text_bytes;
};

static const char *attribute(const char **attributes, const char *name)
{
    for (; attributes[0]; attributes += 2)
        if (!strcmp(attributes[0], name))
            return attributes[1];
    return NULL;
}

/* What expat calls must not recurse or return errors: stop it, with the reason kept. */
__attribute__((format(printf, 2, 3))) static void stop(struct reader *r, const char *format, ...)
{
    char text[256];
    va_list args;

    if (r->rc)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    r->rc = gsi_fail(GRADSYNC_ERR_INVALID, "line %lu of the topology: %s",
                     (unsigned long)XML_GetCurrentLineNumber(r->parser), text);
    XML_StopParser(r->parser, XML_FALSE);
}

static void take(struct reader *r, int rc)
{
    if (!rc || r->rc)
        return;
    r->rc = rc;
    XML_StopParser(r->parser, XML_FALSE);
}

/* A decimal number of 0 to `high`, else -1. */
static int small_number(const char *text, int high)
{
    char *end;

    if (!text || text[0] < '0' || text[0] > '9')
        return -1;
    long n = strtol(text, &end, 10);
    return *end || n > high ? -1 : (int)n;
}

/* Adds a part to the path of the elements that are open. A path without room is forgotten: 0. */
static int push_path(struct reader *r, struct level *level, const char *part)
{
    size_t len = strlen(part), at = level->path_len;

    if (at + len + 2 > sizeof r->path)
        return 0;
    if (at)
        r->path[at++] = '/';
    memcpy(r->path + at, part, len + 1);
    level->path_len = at + len;
    return 1;
}

/* ---- NCCL ------------------------------------------------------------------------- */

static void nccl_cpu(struct reader *r, const char **attributes, struct level *level)
{
    char part[24];
    int id = small_number(attribute(attributes, "numaid"), GSI_TOPO_NODES * 64);

    level->numa_node = id;
    if (id < 0)
        return;
    /* The file does not tell the host bridges of a CPU apart. */
    snprintf(part, sizeof part, "node%d", id);
    push_path(r, level, part);
    take(r, gsi_topology_add_node(r->t, id, -1));
}

static uint32_t hex_attribute(const char **attributes, const char *name)
{
    const char *text = attribute(attributes, name);

    return text ? (uint32_t)strtoul(text, NULL, 16) : 0;
}

static void nccl_pci(struct reader *r, const char **attributes, struct level *level)
{
    gsi_pci_device d = {.numa_node = level->numa_node};
    const char *busid = attribute(attributes, "busid");

    if (!busid || strlen(busid) > 24 || gsi_pci_normalize(busid, d.addr)) {
        stop(r, "the busid of a pci element is %.32s; write it as 0000:81:00.0", busid ? busid : "missing");
        return;
    }
    d.class_code = hex_attribute(attributes, "class");
    d.vendor = (uint16_t)hex_attribute(attributes, "vendor");
    d.device = (uint16_t)hex_attribute(attributes, "device");
    if (push_path(r, level, d.addr))
        memcpy(d.path, r->path, level->path_len + 1);
    if (d.class_code >> 16 == 0x06)
        return;
    level->device = r->t->ndevices;
    take(r, gsi_topology_add_device(r->t, &d));
}

/* A gpu or nic inside tells what a pci element without a class is. */
static void nccl_child(struct reader *r, const struct level *level, uint32_t class_code)
{
    if (level->device >= 0 && !r->t->devices[level->device].class_code)
        r->t->devices[level->device].class_code = class_code;
}

static void nccl_element(struct reader *r, const char *name, const char **attributes, struct level *level)
{
    if (!strcmp(name, "cpu"))
        nccl_cpu(r, attributes, level);
    else if (!strcmp(name, "pci"))
        nccl_pci(r, attributes, level);
    else if (!strcmp(name, "gpu"))
        nccl_child(r, level, 0x030200);
    else if (!strcmp(name, "nic"))
        nccl_child(r, level, 0x020000);
}

/* ---- hwloc ------------------------------------------------------------------------- */

/* The one node of a set as hwloc writes it ("0x00000002", words of 32 bits, the highest first, empty ones 0);
 * -1 if there are several or none, -2 if it is no set. */
static int only_node(const char *set)
{
    int words = 1, found = -1;

    if (!strncmp(set, "0xf...f", 7))
        return -1;
    for (const char *p = set; *p; p++)
        words += *p == ',';
    if (words > MAX_WORDS)
        return -2;
    for (const char *p = set; words-- > 0; p++) {
        char *end;
        unsigned long bits = strtoul(p, &end, 16);
        if (bits > UINT32_MAX || (*end && *end != ','))
            return -2;
        for (int i = 0; i < 32; i++)
            if (bits >> i & 1) {
                if (found >= 0)
                    return -1;
                found = words * 32 + i;
            }
        p = end;
        if (!*p)
            break;
    }
    return found;
}

static void hwloc_bridge(struct reader *r, const char **attributes, struct level *level)
{
    const char *busid = attribute(attributes, "pci_busid"), *range = attribute(attributes, "bridge_pci");
    char part[GSI_PCI_ADDR + 4], addr[GSI_PCI_ADDR];
    unsigned domain, bus;

    if (busid && strlen(busid) <= 24 && !gsi_pci_normalize(busid, addr))
        push_path(r, level, addr);
    else if (range && sscanf(range, "%8x:[%2x-", &domain, &bus) == 2) { /* a host bridge: its buses */
        snprintf(part, sizeof part, "pci%04x:%02x", domain, bus);
        push_path(r, level, part);
    }
}

static void hwloc_device(struct reader *r, const char **attributes, struct level *level)
{
    gsi_pci_device d = {.numa_node = level->numa_node};
    const char *busid = attribute(attributes, "pci_busid"), *type = attribute(attributes, "pci_type");
    unsigned class_code = 0, vendor = 0, device = 0;

    if (!busid || strlen(busid) > 24 || gsi_pci_normalize(busid, d.addr)) {
        stop(r, "the pci_busid of a PCIDev is %.32s; export the file anew with lstopo --of xml",
             busid ? busid : "missing");
        return;
    }
    if (type)
        sscanf(type, "%4x [%4x:%4x]", &class_code, &vendor, &device); /* "0302 [10de:1094] [00de:0088] a1 00" */
    d.class_code = class_code << 8;
    d.vendor = (uint16_t)vendor;
    d.device = (uint16_t)device;
    if (push_path(r, level, d.addr))
        memcpy(d.path, r->path, level->path_len + 1);
    take(r, gsi_topology_add_device(r->t, &d));
}

static void hwloc_object(struct reader *r, const char **attributes, struct level *level)
{
    const char *type = attribute(attributes, "type"), *set = attribute(attributes, "nodeset");

    if (!type)
        return;
    if (set) {
        level->numa_node = only_node(set);
        if (level->numa_node == -2) {
            stop(r, "the nodeset %.40s is no list of hexadecimal words", set);
            return;
        }
    }
    if (!strcmp(type, "Package") || !strcmp(type, "Socket"))
        level->package = small_number(attribute(attributes, "os_index"), INT_MAX);
    else if (!strcmp(type, "NUMANode")) {
        int id = small_number(attribute(attributes, "os_index"), GSI_TOPO_NODES * 64);
        if (id < 0) {
            stop(r, "a NUMANode has no os_index");
            return;
        }
        level->numa_node = id;
        take(r, gsi_topology_add_node(r->t, id, level->package));
    } else if (!strcmp(type, "Bridge"))
        hwloc_bridge(r, attributes, level);
    else if (!strcmp(type, "PCIDev"))
        hwloc_device(r, attributes, level);
}

static void hwloc_element(struct reader *r, const char *name, const char **attributes, struct level *level)
{
    if (!strcmp(name, "object"))
        hwloc_object(r, attributes, level);
    else if (!strcmp(name, "distances2")) {
        const char *type = attribute(attributes, "type"), *what = attribute(attributes, "name"),
                   *indexing = attribute(attributes, "indexing");
        int count = small_number(attribute(attributes, "nbobjs"), MAX_MATRIX);
        r->in_distances = count > 0 && type && !strcmp(type, "NUMANode") && what && !strcmp(what, "NUMALatency") &&
                          indexing && !strcmp(indexing, "os");
        r->nindexes = r->nvalues = 0;
    } else if (r->in_distances && (!strcmp(name, "indexes") || !strcmp(name, "u64values"))) {
        r->reading = name[0] == 'i' ? INDEXES : VALUES;
        r->digits = 0;
    }
}

static void end_number(struct reader *r)
{
    if (!r->digits)
        return;
    if (r->reading == INDEXES && r->nindexes < MAX_MATRIX)
        r->indexes[r->nindexes++] = (int)r->number;
    else if (r->reading == VALUES && r->nvalues < MAX_MATRIX * MAX_MATRIX)
        r->values[r->nvalues++] = r->number;
    r->digits = 0;
}

static void XMLCALL on_text(void *arg, const char *text, int len)
{
    struct reader *r = arg;

    if (r->rc || r->reading == NOTHING)
        return;
    r->text_bytes += (size_t)len;
    if (r->text_bytes > MAX_TEXT) {
        stop(r, "a matrix of distances is too long");
        return;
    }
    for (int i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9') {
            end_number(r);
            continue;
        }
        if (!r->digits)
            r->number = 0;
        if (++r->digits <= 9)
            r->number = r->number * 10 + (text[i] - '0');
    }
}

/* ---- Both ------------------------------------------------------------------------- */

static void XMLCALL on_start(void *arg, const char *name, const char **attributes)
{
    struct reader *r = arg;

    if (r->rc)
        return;
    if (r->depth + 1 >= MAX_DEPTH) {
        stop(r, "elements are nested more than %d deep", MAX_DEPTH);
        return;
    }
    if (!r->depth) {
        r->dialect = !strcmp(name, "system") ? NCCL : !strcmp(name, "topology") ? HWLOC : UNDECIDED;
        r->levels[0] = (struct level){-1, -1, -1, 0};
        if (r->dialect == UNDECIDED)
            stop(r,
                 "it begins with <%.40s>; give a file of NCCL's format (<system>) or of lstopo --of xml (<topology>)",
                 name);
    }
    struct level *level = &r->levels[r->depth + 1];
    *level = r->levels[r->depth];
    r->depth++;
    if (r->dialect == NCCL)
        nccl_element(r, name, attributes, level);
    else if (r->dialect == HWLOC)
        hwloc_element(r, name, attributes, level);
}

static void XMLCALL on_end(void *arg, const char *name)
{
    struct reader *r = arg;

    (void)name;
    if (r->rc)
        return;
    end_number(r);
    r->reading = NOTHING;
    r->depth--;
}

static void XMLCALL on_doctype(void *arg, const char *name, const char *sysid, const char *pubid, int internal)
{
    (void)name;
    (void)sysid; /* hwloc names a DTD; it is not read */
    (void)pubid;
    if (internal)
        stop(arg, "it declares entities or attributes of its own; remove the part in brackets of <!DOCTYPE>");
}

static void use_distances(const struct reader *r)
{
    gsi_topology *t = r->t;

    if (!r->nindexes || r->nvalues != r->nindexes * r->nindexes)
        return;
    for (int i = 0; i < r->nvalues; i++) {
        int a = gsi_topology_node_at(t, r->indexes[i / r->nindexes]);
        int b = gsi_topology_node_at(t, r->indexes[i % r->nindexes]);
        if (a >= 0 && b >= 0 && r->values[i] > 0)
            t->numa_distance[a * t->nnodes + b] = (int)r->values[i];
    }
}

/* Expat's memory comes from malloc itself: it is not counted by gsi_alloc_fail_at(). */
int gsi_topology_read_xml(const char *text, size_t bytes, gsi_topology *t)
{
    if (bytes > GSI_TOPO_FILE_BYTES)
        return gsi_fail(GRADSYNC_ERR_INVALID, "a topology of more than %d MiB is not read", GSI_TOPO_FILE_BYTES >> 20);
    struct reader *r = calloc(1, sizeof *r);
    XML_Parser parser = r ? XML_ParserCreate(NULL) : NULL;
    if (!parser) {
        free(r);
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to read a topology");
    }
    r->parser = parser;
    r->t = t;
    XML_SetUserData(parser, r);
    XML_SetElementHandler(parser, on_start, on_end);
    XML_SetCharacterDataHandler(parser, on_text);
    XML_SetStartDoctypeDeclHandler(parser, on_doctype);
    XML_SetParamEntityParsing(parser, XML_PARAM_ENTITY_PARSING_NEVER);
    int rc = 0;
    if (XML_Parse(parser, text, (int)bytes, 1) != XML_STATUS_OK) {
        if (r->rc)
            rc = r->rc;
        else if (XML_GetErrorCode(parser) == XML_ERROR_NO_MEMORY)
            rc = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to read a topology");
        else
            rc = gsi_fail(GRADSYNC_ERR_INVALID, "line %lu of the topology is no XML (%s); export or download it again",
                          (unsigned long)XML_GetCurrentLineNumber(parser), XML_ErrorString(XML_GetErrorCode(parser)));
    }
    if (!rc)
        rc = gsi_topology_finish(t);
    if (!rc)
        use_distances(r);
    XML_ParserFree(parser);
    free(r);
    return rc;
}
