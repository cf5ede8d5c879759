/* SPDX-License-Identifier: Apache-2.0 */
/* What is wrong with a machine for RDMA between ranks, with cause and remedy: behind gradsync_diagnose(). */
#ifndef GSI_DOCTOR_DOCTOR_H
#define GSI_DOCTOR_DOCTOR_H

#include "doctor/facts.h"
#include "doctor/findings.h"

/* A check is a function of the facts. It adds findings; none at all: it found nothing wrong. */
typedef void (*gsi_check_fn)(const gsi_facts *facts, gsi_findings *list);

/* What a check has to have to say anything. */
enum gsi_check_needs {
    GSI_NEEDS_RDMA = 1,   /* a port that no filter excludes */
    GSI_NEEDS_ROCE = 2,   /* the same, on Ethernet */
    GSI_NEEDS_GPU = 4,    /* a GPU, and a port */
    GSI_NEEDS_PEER = 8,   /* the address of a peer */
    GSI_NEEDS_NODES = 16, /* more than one NUMA node */
};

typedef struct gsi_check {
    const char *id; /* stable: scripts know it */
    gsi_check_fn run;
    unsigned needs;   /* enum gsi_check_needs */
    const char *well; /* what is true if it finds nothing */
} gsi_check;

/* All checks, in the order of the report; *n of them. Static storage. */
const gsi_check *gsi_checks(int *n);
/* Runs one check, or all (NULL): each adds at least one finding, OK or SKIPPED if nothing else. */
void gsi_doctor_run(const gsi_check *only, const gsi_facts *facts, gsi_findings *list);

/* "mlx5_0:1", or " and 3 more" behind several: for subjects. */
void gsi_subject_port(const gsi_facts *f, int port, char *text, size_t room);

/* The checks. checks_access.c */
void gsi_check_settings(const gsi_facts *f, gsi_findings *list);
void gsi_check_fallback(const gsi_facts *f, gsi_findings *list);
void gsi_check_driver(const gsi_facts *f, gsi_findings *list);
void gsi_check_devices(const gsi_facts *f, gsi_findings *list);
void gsi_check_rdma_cm(const gsi_facts *f, gsi_findings *list);
void gsi_check_module(const gsi_facts *f, gsi_findings *list);
/* checks_port.c */
void gsi_check_port_down(const gsi_facts *f, gsi_findings *list);
void gsi_check_port_init(const gsi_facts *f, gsi_findings *list);
void gsi_check_port_rate(const gsi_facts *f, gsi_findings *list);
void gsi_check_port_errors(const gsi_facts *f, gsi_findings *list);
void gsi_check_mtu_small(const gsi_facts *f, gsi_findings *list);
void gsi_check_mtu_differs(const gsi_facts *f, gsi_findings *list);
void gsi_check_firmware(const gsi_facts *f, gsi_findings *list);
/* checks_gid.c */
void gsi_check_gid_missing(const gsi_facts *f, gsi_findings *list);
void gsi_check_gid_index(const gsi_facts *f, gsi_findings *list);
void gsi_check_gid_subnet(const gsi_facts *f, gsi_findings *list);
void gsi_check_arp_flux(const gsi_facts *f, gsi_findings *list);
/* checks_pci.c */
void gsi_check_pcie_link(const gsi_facts *f, gsi_findings *list);
void gsi_check_pcie_narrow(const gsi_facts *f, gsi_findings *list);
void gsi_check_relaxed(const gsi_facts *f, gsi_findings *list);
void gsi_check_read_request(const gsi_facts *f, gsi_findings *list);
void gsi_check_iommu(const gsi_facts *f, gsi_findings *list);
void gsi_check_acs(const gsi_facts *f, gsi_findings *list);
void gsi_check_peer_memory(const gsi_facts *f, gsi_findings *list);
void gsi_check_numa_unknown(const gsi_facts *f, gsi_findings *list);
/* checks_host.c */
void gsi_check_memlock(const gsi_facts *f, gsi_findings *list);
void gsi_check_files(const gsi_facts *f, gsi_findings *list);
void gsi_check_shm(const gsi_facts *f, gsi_findings *list);
void gsi_check_huge_pages(const gsi_facts *f, gsi_findings *list);
void gsi_check_governor(const gsi_facts *f, gsi_findings *list);
void gsi_check_numa_balancing(const gsi_facts *f, gsi_findings *list);

#endif
