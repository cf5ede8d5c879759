/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All that the checks look at, read once from the machine (or from a copy of its /sys, /proc and /dev),
 * so that every check is a function of these facts and nothing else.
 */
#ifndef GSI_DOCTOR_FACTS_H
#define GSI_DOCTOR_FACTS_H

#include "doctor/pcie.h"
#include "topo/address.h"
#include "topo/rails.h"

enum { GSI_PEERS = 16, GSI_MOST_COUNTERS = 8 };

/* What is known of a port beyond lib/topo: the same order as gsi_facts.ports. */
typedef struct gsi_port_facts {
    int32_t lanes;     /* "4X": 4; 0: unknown */
    uint32_t can_mbps; /* the fastest mode of its network device; 0: unknown */
    int32_t excluded;  /* 1: a filter keeps it from being used; nothing of it matters then */
    int32_t foreign;   /* 1: it has no device node here while others have one: another container's */
    int32_t spare;     /* 1: it works, but is too slow beside the others to be used: for management, say */
    int32_t flux;      /* 1: its network device answers ARP for the addresses of others */
    gsi_pcie pcie;
    struct {
        const char *name; /* static: "symbol_error" */
        long value;
    } counters[GSI_MOST_COUNTERS]; /* errors since the driver was loaded: only those above 0 */
    int ncounters;
} gsi_port_facts;

/* Memory of GPUs, as checks about them see it. */
typedef struct gsi_gpu_facts {
    uint16_t vendor;
    gsi_pcie pcie;
} gsi_gpu_facts;

/* An address that the ports should reach: "10.0.1.2", "10.0.1.0/24", "fd00::2". */
typedef struct gsi_peer {
    char text[64];
    uint8_t raw[16]; /* as a GID */
    uint8_t prefix;  /* bits of raw; 0: not given */
} gsi_peer;

typedef struct gsi_facts {
    int real; /* 1: this machine, not a copy of its files */

    gsi_settings settings;
    char settings_error[448]; /* "": they are well formed */
    gsi_topology topology;
    gsi_ports ports;
    gsi_port_facts *more; /* ports.n of them */
    gsi_addresses addresses;
    gsi_rails rails; /* the verdict on each port, as a rank in host memory gets it */
    gsi_peer peers[GSI_PEERS];
    int npeers;

    gsi_gpu_facts *gpus; /* ngpus of them */
    int ngpus;
    gsi_pcie *bridges; /* those between network cards with RDMA and GPUs near them */
    int nbridges;

    int infiniband_folder; /* errno of reading /dev/infiniband; 0: it is there */
    int rdma_cm;           /* errno of opening /dev/infiniband/rdma_cm; 0: it can be */
    int verbs;             /* 1: the RDMA module can be loaded; 0: not; -1: unknown */
    char verbs_error[448]; /* why not */
    char container[24];    /* "docker", "podman", "kubernetes", "lxc"; "": none seen */
    int peermem;           /* 1: a module lets RDMA reach NVIDIA memory */
    char cardless[8][64];  /* network cards that should have RDMA but have none: "0000:03:00.0 (mlx5_core)" */
    int ncardless;

    int kernel[2];                     /* version: 6, 1; 0, 0: unknown */
    int64_t memlock, files;            /* soft limits; -1: unlimited; -2: unknown */
    int ipc_lock;                      /* 1: CAP_IPC_LOCK; -1: unknown */
    int64_t shm_bytes, shm_free;       /* /dev/shm; -1: not there; -2: unknown */
    int64_t memory_bytes;              /* of the machine; 0: unknown */
    char thp_shmem[24], governor[24];  /* "advise", "performance"; "": unknown */
    long huge_pages, numa_balancing;   /* reserved and free; 0, 1, 2; -1: unknown */
    int iommu_off, iommu_pt, iommu_on; /* the kernel's command line says so */
} gsi_facts;

/* Reads the facts under root ("": this machine). peer: addresses, separated by commas; NULL: none. lookup: the
 * environment (NULL: the process's). verbs_error: NULL: not known, which is looked for in root's library folders;
 * "": the RDMA module can be loaded; else why not. Errors: INVALID (peer), NOMEM; *out is then empty.
 * Free with gsi_facts_free(). */
int gsi_facts_read(const char *root, const char *peer, gsi_settings_getenv lookup, void *arg, const char *verbs_error,
                   gsi_facts *out);
void gsi_facts_free(gsi_facts *f);

/* The parts of it, each in a file of its own. */
int gsi_facts_read_ports(const char *root, gsi_facts *f);
int gsi_facts_read_pci(const char *root, gsi_facts *f);
void gsi_facts_read_host(const char *root, gsi_facts *f);
/* Mbit/s of the fastest mode that a network device of this machine knows, whatever it runs at; 0: unknown. */
uint32_t gsi_netdev_can_mbps(const char *netdev);
/* The same of a bit mask of ethtool's link modes, in words of 32 bits. Pure. */
uint32_t gsi_link_modes_mbps(const uint32_t *modes, int words);
/* 1 if a port matters: no filter excludes it, it is no other container's, and not too slow to be used. */
int gsi_port_matters(const gsi_facts *f, int port);
/* Parses the addresses of peers. Errors: INVALID. */
int gsi_peers_parse(const char *text, gsi_peer *peers, int *n);

#endif
