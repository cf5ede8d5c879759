/* SPDX-License-Identifier: Apache-2.0 */
/* The PCI tree, NUMA nodes and distances: from sysfs, and from topology files, hostile ones too. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "machine.h"
#include "tap.h"

static const char *data;

static gsi_place device(const char *addr)
{
    gsi_place p = {.numa_node = -1};

    snprintf(p.pci, sizeof p.pci, "%s", addr);
    return p;
}

static gsi_place node(int id)
{
    return (gsi_place){.numa_node = id};
}

static void check(const gsi_topology *t, gsi_place a, gsi_place b, int kind)
{
    gsi_distance there = gsi_topology_distance(t, &a, &b), back = gsi_topology_distance(t, &b, &a);
    char from[32], to[32];

    snprintf(from, sizeof from, "%s%.0d", a.pci[0] ? a.pci : "node ", a.pci[0] ? 0 : a.numa_node);
    snprintf(to, sizeof to, "%s%.0d", b.pci[0] ? b.pci : "node ", b.pci[0] ? 0 : b.numa_node);
    tap_ok(there.kind == kind && !gsi_distance_compare(there, back), "%s to %s: %s (%s wanted)", from, to,
           gsi_distance_name(there.kind), gsi_distance_name(kind));
}

static void test_dgx(void)
{
    machine m;
    gsi_topology t;
    char gpu[8][GSI_PCI_ADDR];
    int gpus = 0;

    machine_dgx(&m, gpu);
    tap_ok(!gsi_topology_read(m.root, NULL, &t) && t.nnodes == 2 && t.ndevices == 18, "a DGX: %d nodes, %d devices",
           t.nnodes, t.ndevices);
    for (int i = 0; i < t.ndevices; i++)
        gpus += gsi_pci_is_gpu(&t.devices[i]);
    tap_ok(gpus == 8, "8 GPUs: the console's chip is none");
    check(&t, device(gpu[0]), device(gpu[0]), GSI_DISTANCE_SAME);
    check(&t, device(gpu[0]), device("0000:0b:00.0"), GSI_DISTANCE_SWITCH);
    check(&t, device(gpu[0]), device("0000:0c:00.0"), GSI_DISTANCE_SWITCH);
    check(&t, device(gpu[0]), device("0000:30:00.0"), GSI_DISTANCE_ROOT);
    check(&t, device(gpu[0]), device("0000:4b:00.0"), GSI_DISTANCE_NODE);
    check(&t, device(gpu[0]), device("0000:8b:00.0"), GSI_DISTANCE_FAR);
    check(&t, device("0B:00.0"), node(0), GSI_DISTANCE_NODE);
    check(&t, device("0000:0b:00.0"), node(1), GSI_DISTANCE_FAR);
    check(&t, device("0000:ff:00.0"), node(1), GSI_DISTANCE_UNKNOWN);
    check(&t, node(-1), node(1), GSI_DISTANCE_UNKNOWN);
    check(&t, node(1), node(7), GSI_DISTANCE_FAR);
    gsi_place a = device(gpu[0]), b = device("0000:0b:00.0"), far = node(1);
    tap_ok(gsi_topology_distance(&t, &a, &b).detail == 4, "4 bridges' worth of steps inside the switch: %d",
           gsi_topology_distance(&t, &a, &b).detail);
    tap_ok(gsi_topology_distance(&t, &a, &far).detail == 32, "the firmware's distance orders what is far");
    tap_ok(gsi_topology_device(&t, "0000:0B:00.0") && !gsi_topology_device(&t, "x") &&
               !gsi_topology_device(&t, "0000:0b:00.0 ") && !gsi_topology_device(&t, ""),
           "devices are found by address only");
    gsi_topology_free(&t);
    machine_remove(&m);
}

static void test_workstation(void)
{
    machine m;
    gsi_topology t;
    char gpu[2][GSI_PCI_ADDR];

    machine_workstation(&m, gpu);
    tap_ok(!gsi_topology_read(m.root, "", &t) && t.nnodes == 1, "one node");
    const gsi_pci_device *inside = gsi_topology_device(&t, "00:02.0"), *card = gsi_topology_device(&t, gpu[1]);
    tap_ok(inside && !gsi_pci_is_gpu(inside) && card && gsi_pci_is_gpu(card), "graphics inside the CPU are no GPU");
    check(&t, device(gpu[0]), device("0000:03:00.0"), GSI_DISTANCE_ROOT);
    check(&t, node(-1), device("0000:03:00.0"), GSI_DISTANCE_NODE);
    check(&t, node(0), device("0000:03:00.0"), GSI_DISTANCE_NODE);
    gsi_topology_free(&t);
    machine_remove(&m);
}

static void test_real_copy(void)
{
    machine m;
    gsi_topology t;
    char file[512];

    machine_new(&m);
    snprintf(file, sizeof file, "%s/intel-2groups.sysfs", data);
    machine_unpack(&m, file);
    tap_ok(!gsi_topology_read(m.root, NULL, &t) && t.nnodes == 4, "a real machine: %d nodes, %d devices", t.nnodes,
           t.ndevices);
    check(&t, device("0000:43:00.0"), node(2), GSI_DISTANCE_NODE);
    check(&t, device("0000:43:00.0"), node(0), GSI_DISTANCE_FAR);
    check(&t, device("0000:02:00.0"), device("0000:02:00.1"), GSI_DISTANCE_SWITCH);
    check(&t, device("0000:02:00.0"), device("0000:03:00.0"), GSI_DISTANCE_ROOT);
    check(&t, device("0000:02:00.0"), device("0000:43:00.0"), GSI_DISTANCE_UNKNOWN);
    gsi_topology_free(&t);
    machine_remove(&m);
}

/* Sub-NUMA clusters: two nodes of one socket. And a firmware table that is not symmetric. */
static void test_nodes(void)
{
    machine m;
    gsi_topology t;

    machine_new(&m);
    machine_node(&m, 0, 0, 0, "10 12 32");
    machine_node(&m, 1, 0, 8, "11 10 31");
    machine_node(&m, 3, 1, 16, "30 30 10");
    tap_ok(!gsi_topology_read(m.root, NULL, &t) && t.nnodes == 3 && t.nodes[2].id == 3, "nodes 0, 1, 3");
    check(&t, node(0), node(1), GSI_DISTANCE_SOCKET);
    check(&t, node(0), node(3), GSI_DISTANCE_FAR);
    gsi_place a = node(0), b = node(1), c = node(3);
    tap_ok(gsi_topology_distance(&t, &a, &b).detail == 12 && gsi_topology_distance(&t, &c, &b).detail == 31,
           "of two numbers the larger one");
    gsi_topology_free(&t);
    machine_remove(&m);
    machine_new(&m);
    tap_ok(!gsi_topology_read(m.root, NULL, &t) && t.nnodes == 1 && t.ndevices == 0, "an empty /sys is one node");
    gsi_topology_free(&t);
    machine_remove(&m);
}

static void read_data(const char *name, const char *root, gsi_topology *t)
{
    char file[512];

    snprintf(file, sizeof file, "%s/%s", data, name);
    tap_ok(!gsi_topology_read(root, file, t), "%s is read", name);
}

static void test_nccl_files(const char *empty)
{
    gsi_topology t;

    read_data("azure-nd-a100-v4.xml", empty, &t);
    tap_ok(t.nnodes == 4 && t.ndevices == 16, "Azure ND A100 v4: %d nodes, %d devices", t.nnodes, t.ndevices);
    check(&t, device("0003:00:00.0"), device("0103:00:00.0"), GSI_DISTANCE_SWITCH);
    check(&t, device("0003:00:00.0"), device("0104:00:00.0"), GSI_DISTANCE_SWITCH);
    check(&t, device("0003:00:00.0"), device("0101:00:00.0"), GSI_DISTANCE_FAR);
    check(&t, device("000d:00:00.0"), node(2), GSI_DISTANCE_NODE);
    gsi_topology_free(&t);
    read_data("aws-p4d-24xlarge.xml", empty, &t);
    tap_ok(t.nnodes == 2 && t.ndevices == 12, "AWS p4d: %d nodes, %d devices", t.nnodes, t.ndevices);
    check(&t, device("0000:10:1c.0"), device("0000:10:1b.0"), GSI_DISTANCE_SWITCH);
    check(&t, device("0000:10:1c.0"), device("0000:20:1b.0"), GSI_DISTANCE_NODE);
    check(&t, device("0000:10:1c.0"), device("0000:a0:1b.0"), GSI_DISTANCE_FAR);
    gsi_topology_free(&t);
}

static void test_hwloc_file(const char *empty)
{
    gsi_topology t;

    read_data("hwloc-2sockets.xml", empty, &t);
    const gsi_pci_device *nic = gsi_topology_device(&t, "04:00.0");
    tap_ok(t.nnodes == 2 && t.ndevices == 9, "hwloc's file: %d nodes, %d devices", t.nnodes, t.ndevices);
    tap_ok(nic && nic->vendor == 0x15b3 && nic->class_code == 0x020700 && nic->numa_node == 1,
           "of two entries with one address the network card is taken");
    tap_ok(nic && !strcmp(nic->path, "pci0000:80/0000:80:03.0/0000:04:00.0"), "its path is %s", nic ? nic->path : "");
    check(&t, device("84:00.0"), device("04:00.0"), GSI_DISTANCE_SWITCH);
    check(&t, device("83:00.0"), device("04:00.0"), GSI_DISTANCE_ROOT);
    check(&t, device("03:00.0"), device("04:00.0"), GSI_DISTANCE_FAR);
    check(&t, node(1), device("04:00.0"), GSI_DISTANCE_NODE);
    gsi_place a = node(0), b = node(1);
    tap_ok(gsi_topology_distance(&t, &a, &b).detail == 20 && t.nodes[1].package == 1,
           "NUMA distances and sockets are in it");
    gsi_topology_free(&t);
}

/* A cloud machine: the kernel shows cards without bridges, the file has the switches. */
static void test_merge(void)
{
    machine m;
    gsi_topology t;

    machine_new(&m);
    for (int n = 0; n < 4; n++) {
        char text[32];
        snprintf(text, sizeof text, "%s", n == 0 ? "10 12 32 32" : n == 1 ? "12 10 32 32" : "32 32 10 12");
        machine_node(&m, n, n / 2, n * 24, text);
    }
    machine_pci(&m, "pci0003:00/0003:00:00.0", "0x030200", "0x10de", -1);
    machine_pci(&m, "pci0103:00/0103:00:00.0", "0x020700", "0x15b3", -1);
    machine_pci(&m, "pci0500:00/0500:00:00.0", "0x010802", "0x1414", 1);
    read_data("azure-nd-a100-v4.xml", m.root, &t);
    tap_ok(t.ndevices == 17 && t.nnodes == 4 && strstr(t.file, "azure"), "17 devices, one of them the kernel's alone");
    check(&t, device("0003:00:00.0"), device("0103:00:00.0"), GSI_DISTANCE_SWITCH);
    check(&t, device("0003:00:00.0"), device("0101:00:00.0"), GSI_DISTANCE_SOCKET);
    check(&t, device("0500:00:00.0"), device("0101:00:00.0"), GSI_DISTANCE_NODE);
    gsi_place a = node(0), b = node(1);
    tap_ok(gsi_topology_distance(&t, &a, &b).detail == 12, "the kernel's distances stay");
    gsi_topology_free(&t);
    machine_remove(&m);
}

/* ---- Hostile files ------------------------------------------------------------------------ */

static const char *last_message(void)
{
    static gradsync_error_info info;

    info.size = sizeof info;
    gradsync_last_error(&info);
    return info.message;
}

static void refused(const char *what, const char *text, size_t bytes, const char *says)
{
    gsi_topology t;
    int rc = gsi_topology_parse(text, bytes, &t);

    tap_ok(rc == GRADSYNC_ERR_INVALID && strstr(last_message(), says) && !t.devices && !t.nodes, "refused: %s (%s)",
           what, rc ? last_message() : "no error");
    gsi_topology_free(&t);
}

static void test_hostile(void)
{
    static const char laughs[] =
        "<?xml version=\"1.0\"?><!DOCTYPE system [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;\">]>"
        "<system><cpu numaid=\"&b;\"/></system>";
    static const char external[] = "<!DOCTYPE system [<!ENTITY a SYSTEM \"file:///etc/passwd\">]><system>&a;</system>";
    static const char bad_address[] =
        "<system><cpu numaid=\"0\"><pci busid=\"zz:00.0\" class=\"0x030200\"/></cpu></system>";
    static const char no_address[] = "<topology><object type=\"PCIDev\"/></topology>";
    static const char bad_set[] = "<topology><object type=\"Machine\" nodeset=\"0x1,zz\"/></topology>";
    static const char cut[] = "<system><cpu numaid=\"0\"><pci busid=\"0000:01:00.0\"";
    static const char html[] = "<html><body>404</body></html>";
    size_t many = 20000, at = 0, room = 64 + many * 96;
    char *text = malloc(room);

    refused("entities that grow", laughs, sizeof laughs - 1, "declares entities");
    refused("an entity that reads a file", external, sizeof external - 1, "declares entities");
    refused("an address of garbage", bad_address, sizeof bad_address - 1, "0000:81:00.0");
    refused("no address", no_address, sizeof no_address - 1, "missing");
    refused("a set of garbage", bad_set, sizeof bad_set - 1, "nodeset");
    refused("a file that is cut off", cut, sizeof cut - 1, "no XML");
    refused("an error page", html, sizeof html - 1, "begins with <html>");
    refused("nothing", "", 0, "no XML");
    refused("binary", "\x89PNG\r\n", 6, "no XML");
    for (size_t i = 0; i < 200; i++)
        at += (size_t)snprintf(text + at, room - at, "%s", i ? "<pci busid=\"0000:01:00.0\">" : "<system>");
    refused("elements nested without end", text, at, "nested");
    at = (size_t)snprintf(text, room, "<system><cpu numaid=\"0\">");
    for (size_t i = 0; i < many; i++)
        at += (size_t)snprintf(text + at, room - at, "<pci busid=\"%04zx:01:00.0\" class=\"0x020000\"/>", i);
    refused("20,000 devices", text, at, "more than");
    at = (size_t)snprintf(text, room, "<system>");
    for (size_t i = 0; i < 2000; i++)
        at += (size_t)snprintf(text + at, room - at, "<cpu numaid=\"%zu\"/>", i);
    refused("2,000 nodes", text, at, "more than");
    free(text);
    size_t huge = (16u << 20) + 1;
    text = calloc(1, huge);
    refused("17 MiB", text, huge, "MiB");
    free(text);

    gsi_topology t;
    tap_ok(gsi_topology_read("", "/nowhere/topology.xml", &t) == GRADSYNC_ERR_SYSTEM &&
               strstr(last_message(), "GRADSYNC_TOPO_FILE") && !t.nodes,
           "a file that is not there: %s", last_message());
    static const char deep[] =
        "<system><cpu numaid=\"-1\"><pci busid=\"00000000:81:00.0\"><nic><net name=\"mlx5_0\"/></nic>"
        "</pci></cpu></system>";
    tap_ok(!gsi_topology_parse(deep, sizeof deep - 1, &t) && t.ndevices == 1 && t.devices[0].numa_node == -1 &&
               !strcmp(t.devices[0].addr, "0000:81:00.0") && t.devices[0].class_code == 0x020000,
           "what NCCL itself writes: an unknown node, eight digits of domain, a nic without a class");
    gsi_topology_free(&t);
}

static void test_memory(void)
{
    machine m;
    gsi_topology t;
    char file[512];
    int bad = 0;

    machine_new(&m);
    machine_node(&m, 0, 0, 0, "10");
    machine_pci(&m, "pci0003:00/0003:00:00.0", "0x030200", "0x10de", -1);
    snprintf(file, sizeof file, "%s/azure-nd-a100-v4.xml", data);
    gsi_alloc_fail_at(LONG_MAX); /* counts */
    gsi_topology_read(m.root, file, &t);
    long allocations = gsi_alloc_count();
    gsi_topology_free(&t);
    for (long i = 1; i <= allocations; i++) {
        gsi_alloc_fail_at(i);
        int rc = gsi_topology_read(m.root, file, &t);
        bad += rc != GRADSYNC_ERR_NOMEM || t.nodes || t.devices || t.numa_distance;
        gsi_topology_free(&t);
    }
    gsi_alloc_fail_at(0);
    tap_ok(allocations > 10 && !bad, "each of %ld allocations may fail: NOMEM and nothing left", allocations);
    machine_remove(&m);
}

int main(int argc, char **argv)
{
    machine empty;
    gsi_topology t;

    data = argc > 1 ? argv[1] : "data";
    test_dgx();
    test_workstation();
    test_real_copy();
    test_nodes();
    machine_new(&empty);
    test_nccl_files(empty.root);
    test_hwloc_file(empty.root);
    machine_remove(&empty);
    test_merge();
    test_hostile();
    test_memory();
    tap_ok(!gsi_topology_read("", NULL, &t) && t.nnodes >= 1, "this machine: %d nodes, %d PCI devices", t.nnodes,
           t.ndevices);
    gsi_topology_free(&t);
    return tap_done();
}
