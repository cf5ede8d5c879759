/* SPDX-License-Identifier: Apache-2.0 */
/* Checks: what lies between the network cards, the memory and the GPUs. */
#include <stdio.h>
#include <string.h>

#include "doctor/doctor.h"

enum {
    FAST_MBPS = 90000, /* from 100 Gb/s on PCI settings are felt */
    GOOD_READ = 1024,
    VENDOR_NVIDIA = 0x10de,
    DMABUF_MAJOR = 5,
    DMABUF_MINOR = 12
};

/* 1 for the first port of its card that nobody excludes. */
static int is_first(const gsi_facts *f, int i)
{
    const char *pci = f->ports.items[i].place.pci;

    if (!pci[0] || !gsi_port_matters(f, i))
        return 0;
    for (int k = 0; k < i; k++)
        if (gsi_port_matters(f, k) && !strcmp(f->ports.items[k].place.pci, pci))
            return 0;
    return 1;
}

/* Mbit/s of all active ports of the card; *fastest that of the best one. */
static uint32_t card_mbps(const gsi_facts *f, int i, uint32_t *fastest)
{
    uint32_t sum = 0;

    *fastest = 0;
    for (int k = 0; k < f->ports.n; k++) {
        const gsi_port *p = &f->ports.items[k];
        if (!gsi_port_matters(f, k) || p->state != GSI_PORT_ACTIVE || strcmp(p->place.pci, f->ports.items[i].place.pci))
            continue;
        sum += p->rate_mbps;
        *fastest = p->rate_mbps > *fastest ? p->rate_mbps : *fastest;
    }
    return sum;
}

static void subject_card(const gsi_facts *f, int i, char *text, size_t room)
{
    snprintf(text, room, "%s (%s)", f->ports.items[i].device, f->ports.items[i].place.pci);
}

void gsi_check_pcie_link(const gsi_facts *f, gsi_findings *list)
{
    char name[96];

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_pcie *c = &f->more[i].pcie;
        if (!is_first(f, i) || !c->speed_mts || !c->width)
            continue;
        int slow = c->max_speed_mts > c->speed_mts, narrow = c->max_width > c->width;
        if (!slow && !narrow)
            continue;
        /* The slot may be the one that cannot do more. */
        int slot = (!slow || (c->slot_speed_mts && c->slot_speed_mts <= c->speed_mts)) &&
                   (!narrow || (c->slot_width && c->slot_width <= c->width));
        subject_card(f, i, name, sizeof name);
        gsi_find(list, slot ? GRADSYNC_FINDING_HINT : GRADSYNC_FINDING_WARNING, name,
                 "its PCIe link runs at %.3g GT/s x%d (%.4g Gb/s), the card can do %.3g GT/s x%d%s",
                 c->speed_mts / 1000.0, c->width, gsi_pcie_mbps(c->speed_mts, c->width) / 1000.0,
                 c->max_speed_mts / 1000.0, c->max_width, slot ? "; the slot cannot do more" : "");
        gsi_remedy(list, slot ? "nothing, unless another slot is faster; see pcie-narrow for whether it matters"
                              : "reseat the card or its riser, and check the slot's speed and lanes in the BIOS");
    }
    /* GPUs slow their link down while idle: only lost lanes count. */
    for (int i = 0; f->ports.n && i < f->ngpus; i++) {
        const gsi_pcie *c = &f->gpus[i].pcie;
        if (!c->width || c->max_width <= c->width || (c->slot_width && c->slot_width <= c->width))
            continue;
        snprintf(name, sizeof name, "GPU %s", c->addr);
        gsi_find(list, GRADSYNC_FINDING_WARNING, name, "its PCIe link has %d lanes, the card can do %d", c->width,
                 c->max_width);
        gsi_remedy(list, "reseat the card or its riser, and check the slot's lanes in the BIOS");
    }
}

void gsi_check_pcie_narrow(const gsi_facts *f, gsi_findings *list)
{
    char name[96];

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_pcie *c = &f->more[i].pcie;
        uint32_t link = gsi_pcie_mbps(c->speed_mts, c->width), fastest;
        if (!is_first(f, i) || !link)
            continue;
        uint32_t sum = card_mbps(f, i, &fastest);
        if (link >= sum)
            continue;
        subject_card(f, i, name, sizeof name);
        gsi_find(list, link < fastest ? GRADSYNC_FINDING_WARNING : GRADSYNC_FINDING_HINT, name,
                 "its PCIe link (%.3g GT/s x%d) carries %.4g Gb/s, less than the %.4g Gb/s of its port%s",
                 c->speed_mts / 1000.0, c->width, link / 1000.0, sum / 1000.0, link < fastest ? "" : "s together");
        gsi_remedy(list, "move the card to a slot with more lanes or a newer generation, or count on the lower rate");
    }
}

void gsi_check_relaxed(const gsi_facts *f, gsi_findings *list)
{
    char name[96];
    int unknown = 0, cards = 0;

    for (int i = 0; i < f->ports.n; i++) {
        uint32_t fastest;
        if (!is_first(f, i) || card_mbps(f, i, &fastest) < FAST_MBPS)
            continue;
        cards++;
        unknown += f->more[i].pcie.relaxed < 0;
        if (f->more[i].pcie.relaxed)
            continue;
        subject_card(f, i, name, sizeof name);
        gsi_find(list, GRADSYNC_FINDING_HINT, name,
                 "PCIe relaxed ordering is off, which can halve the rate of writes to "
                 "memory and GPUs on servers with several dies or sockets");
        gsi_remedy(list, "allow it in the BIOS, or set bit 4 of Device Control (setpci -s %s CAP_EXP+8.w=10:10)",
                   f->more[i].pcie.addr);
    }
    if (unknown) {
        gsi_find(list, GRADSYNC_FINDING_SKIPPED, "", "the PCI configuration of %d of %d fast cards could not be read",
                 unknown, cards);
        gsi_remedy(list, "run as root");
    }
}

void gsi_check_read_request(const gsi_facts *f, gsi_findings *list)
{
    char name[96];

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_pcie *c = &f->more[i].pcie;
        uint32_t fastest;
        if (!is_first(f, i) || !c->max_read || c->max_read >= GOOD_READ || card_mbps(f, i, &fastest) < FAST_MBPS)
            continue;
        subject_card(f, i, name, sizeof name);
        gsi_find(list, GRADSYNC_FINDING_HINT, name,
                 "the card reads memory in PCIe requests of at most %d bytes, which may not fill its link",
                 c->max_read);
        gsi_remedy(list, "set 4096 in the BIOS or with setpci -s %s CAP_EXP+8.w=5000:7000", c->addr);
    }
}

void gsi_check_iommu(const gsi_facts *f, gsi_findings *list)
{
    char name[96];
    int told = 0;

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_pcie *c = &f->more[i].pcie;
        if (!is_first(f, i) || strncmp(c->iommu, "DMA", 3))
            continue;
        subject_card(f, i, name, sizeof name);
        gsi_find(list, f->ngpus ? GRADSYNC_FINDING_WARNING : GRADSYNC_FINDING_HINT, name,
                 "the IOMMU translates every access of the card (its group's type is %s)%s", c->iommu,
                 f->ngpus ? ", and sends its traffic with GPUs through the processor" : "");
        gsi_remedy(list, "boot with iommu=pt, or with the IOMMU off if no virtual machine needs it");
        told = 1;
    }
    if (!told && f->iommu_on && !f->iommu_pt && !f->iommu_off) {
        int known = 0;
        for (int i = 0; i < f->ports.n; i++)
            known += f->more[i].pcie.iommu[0] != 0;
        if (known)
            return;
        gsi_find(list, GRADSYNC_FINDING_HINT, "", "the kernel was booted with the IOMMU on, but not with iommu=pt");
        gsi_remedy(list, "add iommu=pt to the kernel's command line");
    }
}

void gsi_check_acs(const gsi_facts *f, gsi_findings *list)
{
    char names[160] = "";
    size_t at = 0;
    int n = 0, unknown = 0;

    for (int i = 0; i < f->nbridges; i++) {
        const gsi_pcie *b = &f->bridges[i];
        unknown += b->acs < 0;
        if (b->acs < 0 || !(b->acs & GSI_ACS_DETOUR))
            continue;
        if (n < 6)
            at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", n ? ", " : "", b->addr);
        n++;
    }
    if (n) {
        gsi_find(list, GRADSYNC_FINDING_WARNING, names[0] ? names : "PCI bridges",
                 "ACS sends traffic between a network card and a GPU near it up to the processor and back on %d PCI "
                 "bridge%s",
                 n, n > 1 ? "s" : "");
        gsi_remedy(list,
                   "turn ACS off in the BIOS, or on each bridge (setpci -s ADDRESS ECAP_ACS+6.w=0), unless virtual "
                   "machines share these devices");
    } else if (unknown) {
        gsi_find(list, GRADSYNC_FINDING_SKIPPED, "",
                 "the PCI configuration of %d bridges between network cards and GPUs could not be read", unknown);
        gsi_remedy(list, "run as root");
    }
}

void gsi_check_peer_memory(const gsi_facts *f, gsi_findings *list)
{
    int nvidia = 0;
    int dmabuf = f->kernel[0] > DMABUF_MAJOR || (f->kernel[0] == DMABUF_MAJOR && f->kernel[1] >= DMABUF_MINOR);

    for (int i = 0; i < f->ngpus; i++)
        nvidia += f->gpus[i].vendor == VENDOR_NVIDIA;
    if (nvidia && f->peermem)
        return;
    if (!dmabuf && f->kernel[0]) {
        gsi_find(list, GRADSYNC_FINDING_WARNING, "",
                 "RDMA cannot reach GPU memory: %skernel %d.%d is too old for dma-buf (5.12)",
                 nvidia ? "the module nvidia_peermem is not loaded, and " : "", f->kernel[0], f->kernel[1]);
        gsi_remedy(list, nvidia ? "modprobe nvidia_peermem; without it data goes through host memory"
                                : "use a newer kernel; until then data goes through host memory");
    } else if (nvidia) {
        gsi_find(
            list, GRADSYNC_FINDING_HINT, "",
            "the module nvidia_peermem is not loaded: GPU memory is reached by dma-buf, which needs the open kernel "
            "modules of the driver (515 or newer)");
        gsi_remedy(list, "with the closed modules: modprobe nvidia_peermem");
    }
}

void gsi_check_numa_unknown(const gsi_facts *f, gsi_findings *list)
{
    char name[96];

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_place *place = &f->ports.items[i].place;
        if (!gsi_port_matters(f, i) || place->numa_node >= 0)
            continue;
        gsi_subject_port(f, i, name, sizeof name);
        gsi_find(list, GRADSYNC_FINDING_HINT, name,
                 "the machine has %d NUMA nodes, but says of the card%s%s not at which it is", f->topology.nnodes,
                 place->pci[0] ? " " : "", place->pci);
        gsi_remedy(list,
                   "in a cloud's virtual machine, give its topology file in GRADSYNC_TOPO_FILE; else update the BIOS");
    }
}
