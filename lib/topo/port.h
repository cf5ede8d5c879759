/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RDMA ports as sysfs shows them. No verbs library is needed, so that the core can tell what
 * there is where none is installed; what only verbs knows (limits, the MTU of InfiniBand) is not here.
 */
#ifndef GSI_TOPO_PORT_H
#define GSI_TOPO_PORT_H

#include <stddef.h>
#include <stdint.h>

enum { GSI_PCI_ADDR = 20, GSI_RDMA_NAME = 64, GSI_NETDEV_NAME = 16 };

/* The numbers are those of InfiniBand, of sysfs and of ibv_port_state. */
enum gsi_port_state { GSI_PORT_NOP, GSI_PORT_DOWN, GSI_PORT_INIT, GSI_PORT_ARMED, GSI_PORT_ACTIVE };
enum gsi_link_layer { GSI_LINK_UNKNOWN, GSI_LINK_INFINIBAND, GSI_LINK_ETHERNET };
enum gsi_gid_type { GSI_GID_IB, GSI_GID_ROCE_V1, GSI_GID_ROCE_V2 };

/* Where memory or a device is, as far as known. Plain data: local ranks exchange it. */
typedef struct gsi_place {
    int32_t numa_node;      /* -1: unknown */
    char pci[GSI_PCI_ADDR]; /* "0000:81:00.0"; "": no PCI device (host memory) or unknown */
} gsi_place;

typedef struct gsi_gid {
    uint8_t raw[16]; /* network order */
    uint16_t index;  /* in the port's table: what verbs wants */
    uint8_t type;    /* enum gsi_gid_type */
    uint8_t prefix;  /* length of the subnet's prefix in bits of raw (IPv4: 96 + n); 0: unknown */
    char netdev[GSI_NETDEV_NAME];
} gsi_gid;

typedef struct gsi_port {
    char device[GSI_RDMA_NAME]; /* "mlx5_0" */
    char uverbs[32];            /* "uverbs0"; "": the kernel gives none */
    int32_t access;             /* of /dev/infiniband/<uverbs>: 0 or errno (ENOENT, EACCES) */
    int32_t number;             /* from 1 */
    int32_t state;              /* enum gsi_port_state */
    char phys_state[24];        /* "LinkUp", "Polling", "Disabled"; "": unknown */
    int32_t link_layer;         /* enum gsi_link_layer */
    uint32_t rate_mbps;         /* 400000 for NDR; 0: unknown */
    uint32_t lid, sm_lid;
    uint32_t netdev_mtu; /* of the network device; 0: unknown */
    uint32_t active_mtu; /* of RDMA, in bytes, where it follows from netdev_mtu (RoCE); else 0 */
    uint64_t node_guid;  /* 0: unknown */
    char firmware[32], board[32];
    char netdev[GSI_NETDEV_NAME]; /* the first; "" */
    gsi_place place;              /* of the card; for Soft-RoCE of the card below its network device */
    gsi_gid *gids;                /* ngids of them, by index; empty entries left out; owned by the list */
    int32_t ngids;
} gsi_port;

/* All ports of a host, inactive ones too, sorted by device ("mlx5_2" before "mlx5_10") and number. */
typedef struct gsi_ports {
    gsi_port *items;
    int n;
} gsi_ports;

/* Reads the ports under root ("": the real machine). No device is no error: n is 0.
 * Errors: NOMEM, and then *out is empty. Free with gsi_ports_free(). */
int gsi_ports_read(const char *root, gsi_ports *out);
void gsi_ports_free(gsi_ports *ports);

/* The index of a partition key in the port's table: exactly this key, else the other membership of the same
 * partition. Errors: INVALID (not there: the message says which are). */
int gsi_port_find_pkey(const char *root, const gsi_port *port, int key);

/* "mlx5_0:1" */
void gsi_port_name(const gsi_port *port, char *text, size_t room);
/* "ACTIVE", "RoCE v2", "InfiniBand"; "?" if unknown. Static storage. */
const char *gsi_port_state_name(int state);
const char *gsi_gid_type_name(int type);
const char *gsi_link_layer_name(int layer);
/* The text of a GID: "10.77.0.1" if it holds an IPv4 address, else as IPv6. room: 46 at least. */
void gsi_gid_text(const uint8_t raw[16], char *text, size_t room);
/* Orders names as people do: digits by their value. As strcmp(). */
int gsi_natural_compare(const char *a, const char *b);

#endif
