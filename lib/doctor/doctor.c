/* SPDX-License-Identifier: Apache-2.0 */
#include "doctor/doctor.h"

#include <stdio.h>
#include <string.h>

static const gsi_check checks[] = {
    {"settings", gsi_check_settings, 0, "the GRADSYNC_ and NCCL_ variables for RDMA are well formed"},
    {"tcp-fallback", gsi_check_fallback, 0, "there is a port that ranks on other hosts can be reached by"},
    {"rdma-driver", gsi_check_driver, 0, "no network card with RDMA lacks its driver"},
    {"rdma-module", gsi_check_module, 0, "libgradsync-verbs.so and the libraries that it needs can be loaded"},
    {"device-access", gsi_check_devices, GSI_NEEDS_RDMA, "this user may open every RDMA device"},
    {"rdma-cm", gsi_check_rdma_cm, GSI_NEEDS_RDMA, "this user may open /dev/infiniband/rdma_cm"},
    {"port-down", gsi_check_port_down, GSI_NEEDS_RDMA, "no port is down"},
    {"port-init", gsi_check_port_init, GSI_NEEDS_RDMA, "no port is still initialising"},
    {"port-rate", gsi_check_port_rate, GSI_NEEDS_RDMA, "no link is known to run below its card's rate"},
    {"port-errors", gsi_check_port_errors, GSI_NEEDS_RDMA, "no port has counted errors"},
    {"mtu-small", gsi_check_mtu_small, GSI_NEEDS_ROCE, "RDMA packets carry 4096 bytes"},
    {"mtu-differs", gsi_check_mtu_differs, GSI_NEEDS_ROCE, "the ports have the same MTU"},
    {"gid-missing", gsi_check_gid_missing, GSI_NEEDS_ROCE, "every RoCE port has a RoCE v2 GID with a routable address"},
    {"gid-index", gsi_check_gid_index, GSI_NEEDS_ROCE, "no GID index is forced that does not fit"},
    {"gid-subnet", gsi_check_gid_subnet, GSI_NEEDS_ROCE | GSI_NEEDS_PEER, "the peer is in the subnet of a port"},
    {"arp-flux", gsi_check_arp_flux, GSI_NEEDS_ROCE, "no two RoCE ports answer for each other in one subnet"},
    {"firmware", gsi_check_firmware, GSI_NEEDS_RDMA, "like cards have the same firmware"},
    {"pcie-link", gsi_check_pcie_link, GSI_NEEDS_RDMA, "no card's PCIe link is known to run below what it can"},
    {"pcie-narrow", gsi_check_pcie_narrow, GSI_NEEDS_RDMA, "no PCIe link is known to carry less than its card's ports"},
    {"pcie-relaxed", gsi_check_relaxed, GSI_NEEDS_RDMA, "no fast card is known to have relaxed ordering off"},
    {"pcie-read", gsi_check_read_request, GSI_NEEDS_RDMA, "no fast card is known to read in small requests"},
    {"iommu", gsi_check_iommu, GSI_NEEDS_RDMA, "no IOMMU translates what RDMA cards access"},
    {"acs", gsi_check_acs, GSI_NEEDS_RDMA | GSI_NEEDS_GPU, "ACS leaves traffic between network cards and GPUs alone"},
    {"peer-memory", gsi_check_peer_memory, GSI_NEEDS_RDMA | GSI_NEEDS_GPU, "RDMA can reach GPU memory"},
    {"numa-unknown", gsi_check_numa_unknown, GSI_NEEDS_RDMA | GSI_NEEDS_NODES, "every port's NUMA node is known"},
    {"memlock", gsi_check_memlock, GSI_NEEDS_RDMA, "memory can be locked without limit"},
    {"open-files", gsi_check_files, 0, "there is room for enough open files"},
    {"shm-size", gsi_check_shm, 0, "/dev/shm is there and has room"},
    {"huge-pages", gsi_check_huge_pages, 0, "shared memory can have huge pages"},
    {"cpu-governor", gsi_check_governor, 0, "the CPU's frequency is not known to be held back"},
    {"numa-balancing", gsi_check_numa_balancing, GSI_NEEDS_NODES, "automatic NUMA balancing is off"},
};

const gsi_check *gsi_checks(int *n)
{
    *n = (int)(sizeof checks / sizeof *checks);
    return checks;
}

void gsi_subject_port(const gsi_facts *f, int port, char *text, size_t room)
{
    gsi_port_name(&f->ports.items[port], text, room);
}

/* Why a check has nothing to look at; NULL: it has. */
static const char *lacks(const gsi_facts *f, unsigned needs)
{
    int ports = 0, roce = 0;

    for (int i = 0; i < f->ports.n; i++) {
        ports += gsi_port_matters(f, i);
        roce += gsi_port_matters(f, i) && f->ports.items[i].link_layer == GSI_LINK_ETHERNET;
    }
    if (needs & GSI_NEEDS_RDMA && !ports)
        return "nothing to check: there is no RDMA port";
    if (needs & GSI_NEEDS_ROCE && !roce)
        return "nothing to check: there is no RoCE port";
    if (needs & GSI_NEEDS_PEER && !f->npeers)
        return "nothing to check: no peer's address was given";
    if (needs & GSI_NEEDS_GPU && !f->ngpus)
        return "nothing to check: there is no GPU";
    if (needs & GSI_NEEDS_NODES && f->topology.nnodes < 2)
        return "nothing to check: there is one NUMA node";
    return NULL;
}

static void run_one(const gsi_check *check, const gsi_facts *facts, gsi_findings *list)
{
    const char *why = lacks(facts, check->needs);
    int n = list->n;

    list->id = check->id;
    if (why) {
        gsi_find(list, GRADSYNC_FINDING_SKIPPED, "", "%s", why);
        return;
    }
    check->run(facts, list);
    if (list->n == n)
        gsi_find(list, GRADSYNC_FINDING_OK, "", "%s", check->well);
}

void gsi_doctor_run(const gsi_check *only, const gsi_facts *facts, gsi_findings *list)
{
    int n;
    const gsi_check *all = gsi_checks(&n);

    for (int i = 0; i < n; i++)
        if (!only || only == &all[i])
            run_one(&all[i], facts, list);
}
