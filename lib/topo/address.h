/* SPDX-License-Identifier: Apache-2.0 */
/* The addresses of network devices with the lengths of their subnets' prefixes, which GID tables do not hold. */
#ifndef GSI_TOPO_ADDRESS_H
#define GSI_TOPO_ADDRESS_H

#include "topo/port.h"

typedef struct gsi_address {
    uint8_t raw[16]; /* as a GID: IPv4 as ::ffff:a.b.c.d. Of a file's route: the subnet */
    uint8_t prefix;  /* bits of raw */
    char netdev[GSI_NETDEV_NAME];
} gsi_address;

typedef struct gsi_addresses {
    gsi_address *items;
    int n;
} gsi_addresses;

/* From the kernel where root is "", else from root's /proc/net/route and /proc/net/if_inet6.
 * What cannot be read is left out. Errors: NOMEM. Free items with free(). */
int gsi_addresses_read(const char *root, gsi_addresses *out);
/* The prefix length of an address of netdev ("": of any): that of its longest subnet; 0 if there is none. */
int gsi_addresses_prefix(const gsi_addresses *list, const char *netdev, const uint8_t raw[16]);
/* 1 if the first `bits` bits are the same. */
int gsi_same_prefix(const uint8_t a[16], const uint8_t b[16], int bits);

#endif
