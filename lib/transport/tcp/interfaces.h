/* SPDX-License-Identifier: Apache-2.0 */
/* The network interfaces that TCP rails can use. */
#ifndef GSI_TCP_INTERFACES_H
#define GSI_TCP_INTERFACES_H

#include <stdint.h>

enum { GSI_TCP_INTERFACES = 64 };

typedef struct gsi_tcp_interface {
    char name[64];     /* "eth0" */
    char address[64];  /* numeric; IPv4 where there is one, else IPv6 ("fe80::1%eth0" if there is no better) */
    int32_t family;    /* 4 or 6 */
    int32_t prefix;    /* bits of the address that are the network's */
    int32_t mbps;      /* rate; 0: unknown */
    int32_t numa_node; /* -1: unknown */
    int32_t loopback;
    int32_t bridge; /* of containers or virtual machines on this host */
} gsi_tcp_interface;

/* 1: the operator wants this interface. */
typedef int (*gsi_tcp_wanted)(void *arg, const char *name);

/* Fills the list with interfaces that are up and have an address, and returns how many. `wanted` is the operator's
 * choice (GRADSYNC_IFNAME); NULL: all but loopback and this host's own bridges, and these too if there is
 * nothing else. Ordered by rate, fastest first, then as the kernel lists them. Errors: SYSTEM. */
int gsi_tcp_interfaces(gsi_tcp_wanted wanted, void *arg, gsi_tcp_interface list[GSI_TCP_INTERFACES]);
/* The interface of this name, whatever it is: 1 if it is up and has an address. */
int gsi_tcp_interface_find(const char *name, gsi_tcp_interface *out);

/* The choice alone: keeps the ones to use of n, in the order above. Pure. Returns how many. */
int gsi_tcp_interfaces_choose(gsi_tcp_interface *list, int n, gsi_tcp_wanted wanted, void *arg);

#endif
