/* SPDX-License-Identifier: Apache-2.0 */
/* GPUs, the bridges between them and the network cards, and cards whose RDMA driver is missing. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "doctor/facts.h"
#include "topo/sysfs.h"

enum { CLASS_NETWORK = 0x02, CLASS_INFINIBAND = 0x0207, VENDOR_MELLANOX = 0x15b3 };

static int no_memory(void)
{
    return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the machine's PCI devices");
}

static int read_gpus(const char *root, gsi_facts *f)
{
    int n = 0;

    for (int i = 0; i < f->topology.ndevices; i++)
        n += gsi_pci_is_gpu(&f->topology.devices[i]);
    f->gpus = gsi_calloc(n ? (size_t)n : 1, sizeof *f->gpus);
    if (!f->gpus)
        return no_memory();
    for (int i = 0; i < f->topology.ndevices; i++) {
        const gsi_pci_device *d = &f->topology.devices[i];
        if (!gsi_pci_is_gpu(d))
            continue;
        gsi_gpu_facts *g = &f->gpus[f->ngpus++];
        g->vendor = d->vendor;
        gsi_pcie_read(root, d->addr, d->path, &g->pcie);
    }
    return 0;
}

static int add_bridge(const char *root, gsi_facts *f, const char *addr, const char *path)
{
    for (int i = 0; i < f->nbridges; i++)
        if (!strcmp(f->bridges[i].addr, addr))
            return 0;
    if ((f->nbridges & (f->nbridges - 1)) == 0) { /* room doubles at each power of two */
        gsi_pcie *more = gsi_realloc(f->bridges, (f->nbridges ? (size_t)f->nbridges * 2 : 1) * sizeof *more);
        if (!more)
            return no_memory();
        f->bridges = more;
    }
    gsi_pcie_read(root, addr, path, &f->bridges[f->nbridges++]);
    return 0;
}

/* The bridges of `path` behind its first `skip` bytes, the device itself left out. */
static int add_bridges(const char *root, gsi_facts *f, const char *path, size_t skip)
{
    char part[GSI_PCI_PATH], addr[GSI_PCI_ADDR];

    for (const char *p = path + skip, *slash; (slash = strchr(p, '/')); p = slash + 1) {
        size_t n = (size_t)(slash - p);
        if (!gsi_sys_is_pci(p, n) || n >= sizeof addr)
            continue;
        snprintf(addr, sizeof addr, "%.*s", (int)n, p);
        snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
        int rc = add_bridge(root, f, addr, part);
        if (rc)
            return rc;
    }
    return 0;
}

/* How much of the two paths, in whole parts, is the same. */
static size_t common(const char *a, const char *b)
{
    size_t same = 0;

    for (size_t i = 0; a[i] && a[i] == b[i]; i++)
        if (a[i] == '/')
            same = i + 1;
    return same;
}

/* Traffic between a network card and a GPU goes through the ports below the switch, or root complex, that they share.
 */
static int read_bridges(const char *root, gsi_facts *f)
{
    for (int i = 0; i < f->ports.n; i++) {
        const gsi_place *nic = &f->ports.items[i].place;
        const gsi_pci_device *card = nic->pci[0] ? gsi_topology_device(&f->topology, nic->pci) : NULL;
        for (int g = 0; card && g < f->ngpus; g++) {
            const gsi_pci_device *gpu = gsi_topology_device(&f->topology, f->gpus[g].pcie.addr);
            gsi_place place = {.numa_node = gpu ? gpu->numa_node : -1};
            snprintf(place.pci, sizeof place.pci, "%s", f->gpus[g].pcie.addr);
            if (!gpu || gsi_topology_distance(&f->topology, nic, &place).kind > GSI_DISTANCE_SWITCH)
                continue;
            size_t same = common(card->path, gpu->path);
            int rc = add_bridges(root, f, card->path, same);
            if (!rc)
                rc = add_bridges(root, f, gpu->path, same);
            if (rc)
                return rc;
        }
    }
    return 0;
}

static int has_port(const gsi_facts *f, const char *addr)
{
    for (int i = 0; i < f->ports.n; i++)
        if (!strcmp(f->ports.items[i].place.pci, addr))
            return 1;
    return 0;
}

/* Cards that are made for RDMA: InfiniBand by class, or by a vendor whose network cards all have it. */
static void read_cardless(const char *root, gsi_facts *f)
{
    for (int i = 0; i < f->topology.ndevices; i++) {
        const gsi_pci_device *d = &f->topology.devices[i];
        char path[128], real[PATH_MAX];
        const char *driver = "no driver";
        if ((d->class_code >> 8 != CLASS_INFINIBAND &&
             !(d->class_code >> 16 == CLASS_NETWORK && d->vendor == VENDOR_MELLANOX)) ||
            has_port(f, d->addr) || f->ncardless == (int)(sizeof f->cardless / sizeof *f->cardless))
            continue;
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/driver", d->addr);
        if (!gsi_sys_real(root, path, real, sizeof real))
            driver = strrchr(real, '/') + 1;
        /* A card that a virtual machine was given is not ours. */
        if (!strncmp(driver, "vfio", 4))
            continue;
        snprintf(f->cardless[f->ncardless++], sizeof f->cardless[0], "%s (%.24s)", d->addr, driver);
    }
}

int gsi_facts_read_pci(const char *root, gsi_facts *f)
{
    int rc = read_gpus(root, f);

    if (!rc)
        rc = read_bridges(root, f);
    read_cardless(root, f);
    return rc;
}
