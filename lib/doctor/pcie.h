/* SPDX-License-Identifier: Apache-2.0 */
/* The link and the settings of PCI functions, which decide how fast a card can be. */
#ifndef GSI_DOCTOR_PCIE_H
#define GSI_DOCTOR_PCIE_H

#include "topo/port.h"

/* Bits of the Access Control Services that send traffic between two cards up to the processor. */
enum {
    GSI_ACS_REQUEST_REDIRECT = 4,
    GSI_ACS_COMPLETION_REDIRECT = 8,
    GSI_ACS_UPSTREAM_FORWARDING = 16,
    GSI_ACS_DETOUR = GSI_ACS_REQUEST_REDIRECT | GSI_ACS_COMPLETION_REDIRECT | GSI_ACS_UPSTREAM_FORWARDING
};

typedef struct gsi_pcie {
    char addr[GSI_PCI_ADDR];            /* "": none */
    int32_t speed_mts, max_speed_mts;   /* MT/s of a lane, 8000 for "8.0 GT/s"; 0: unknown */
    int32_t width, max_width;           /* lanes; 0: unknown */
    int32_t slot_speed_mts, slot_width; /* the most that the port above it can; 0: unknown */
    int32_t relaxed;                    /* Enable Relaxed Ordering: 0 or 1; -1: unknown */
    int32_t max_read, max_payload;      /* bytes of a request; 0: unknown */
    int32_t acs;                        /* control bits; -1: unknown */
    char iommu[16];                     /* type of its IOMMU group: "DMA", "identity"; "": in none, or unknown */
} gsi_pcie;

/* Reads a function under root; what cannot be read stays unknown. path: its path, for the port above it; or "". */
void gsi_pcie_read(const char *root, const char *addr, const char *path, gsi_pcie *out);
/* What a configuration space of `bytes` bytes says: relaxed, max_read, max_payload, acs. Without the right to read
 * more than its first 64 bytes nothing is learnt. Pure. */
void gsi_pcie_parse(const uint8_t *config, size_t bytes, gsi_pcie *out);
/* 8000 from "8.0 GT/s PCIe"; 0 if it says nothing. Pure. */
int gsi_pcie_speed(const char *text);
/* Mbit/s that a link carries, without its line code; 0: unknown. Pure. */
uint32_t gsi_pcie_mbps(int speed_mts, int width);

#endif
