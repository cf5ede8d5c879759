/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A rail: one port that this rank uses to reach other hosts, and the connections made on it.
 * What a rail can do is what an RC queue pair can: write to a peer's registered memory, with an
 * immediate that the peer is told when the data is there; read from it; and complete in order.
 *
 * Providers: verbs (module libgradsync-verbs.so, opened at run time) and tcp (lib/transport/tcp).
 * lib/transport/net makes an endpoint of several rails: everything above one connection (headers,
 * signals, striping, credits, resending) is its affair, and no provider's.
 *
 * All calls on one rail are made under the lock of the one endpoint that owns it, but for open(), which nobody
 * else can see yet. Only open(), connect() and reg() may block, and they are not on the path of data.
 */
#ifndef GSI_RAIL_H
#define GSI_RAIL_H

#include <stdint.h>

enum { GSI_RAIL_ADDRESS_BYTES = 96, GSI_RAIL_ABI = 1 };

typedef struct gsi_rail gsi_rail;
typedef struct gsi_conn gsi_conn;

/* How to open a rail. Zero means the provider's default, except where said. */
typedef struct gsi_rail_config {
    char device[64];       /* "mlx5_0"; tcp: the interface, "eth0" */
    int32_t port;          /* from 1 */
    int32_t gid_index;     /* of the local GID; -1: none is needed (InfiniBand inside one subnet) */
    int32_t mtu;           /* bytes; 0: the port's active MTU */
    int32_t traffic_class; /* of the GRH */
    int32_t service_level;
    int32_t pkey_index;
    int32_t timeout;     /* 4.096 us * 2^timeout; 0: 17 */
    int32_t retry_count; /* 1 to 6: 7 means for ever with some drivers; 0: 6 */
    int32_t relaxed_ordering;
    int32_t numa_node;   /* where queues should lie; -1: anywhere */
    int32_t connections; /* at most this many will be made */
    int32_t send_depth;  /* writes and reads in flight on one connection, at most */
    int32_t recv_depth;  /* immediates on their way to this side of one connection, at most */
    char address[64];    /* tcp: the address to listen on and to connect from, numeric */
} gsi_rail_config;

/* Memory that this rail can read from and that peers can write to. The provider fills it. */
typedef struct gsi_region {
    void *handle;
    void *base;
    uint64_t bytes;
    uint64_t remote_key; /* what peers name in their writes */
} gsi_region;

/* What one side of a connection tells the other, out of band. The provider's format. */
typedef struct gsi_rail_address {
    unsigned char blob[GSI_RAIL_ADDRESS_BYTES];
} gsi_rail_address;

enum gsi_rail_flags {
    GSI_RAIL_IMM = 1,      /* the peer gets GSI_RAIL_ARRIVED with imm when the data is there */
    GSI_RAIL_SIGNAL = 2,   /* a GSI_RAIL_SENT with id is wanted */
    GSI_RAIL_INLINE = 4,   /* the source is copied before write() returns; at most rail->max_inline bytes, any memory */
    GSI_RAIL_MORE = 8,     /* another write on this connection follows at once: may wait for it (a chain); the caller
                              ends every chain by a write without this flag, or by ring() */
    GSI_RAIL_SOLICIT = 16, /* wakes a peer that sleeps (see arm): without it the peer need not be woken */
};

/* A write or a read. src/dst must lie in `region` unless INLINE; 0 bytes are allowed (region NULL). */
typedef struct gsi_rail_work {
    void *local;
    const gsi_region *region;
    uint64_t bytes;
    uint64_t remote; /* address at the peer */
    uint64_t remote_key;
    uint64_t id; /* the caller's */
    uint32_t imm;
    uint32_t flags;
} gsi_rail_work;

enum gsi_rail_event_kind {
    GSI_RAIL_SENT = 1,    /* this write or read, and all before it on the connection, are complete: the peer has it */
    GSI_RAIL_ARRIVED = 2, /* an immediate: everything the peer wrote before it on this connection is visible */
    GSI_RAIL_FAILED = 3,  /* the connection is dead: what had not been SENT may have arrived or not. Told once, the last
                              event of the connection. */
    GSI_RAIL_DOWN = 4,    /* the port went down (all connections are likely to fail); conn is not set */
    GSI_RAIL_UP = 5,      /* the port is back */
};

typedef struct gsi_rail_event {
    uint64_t id; /* SENT, FAILED: of the work (FAILED: 0 if unknown) */
    uint32_t kind;
    uint32_t conn; /* the number that conn() was given */
    uint32_t imm;
    int32_t status;  /* FAILED: the provider's own status, e.g. of the work completion */
    const char *why; /* FAILED, DOWN: a static text */
} gsi_rail_event;

typedef struct gsi_rail_ops {
    const char *name; /* "verbs", "tcp" */

    /* Frees the rail with all its connections and regions. Never waits for a peer. */
    void (*close)(gsi_rail *rail);

    /* Memory to be read from and written to by the peers of this rail. Errors: NOMEM (the text says the limit and the
     * remedy), UNSUPPORTED, SYSTEM. dereg: nothing may be in flight on it. */
    int (*reg)(gsi_rail *rail, void *base, uint64_t bytes, gsi_region *out);
    void (*dereg)(gsi_rail *rail, gsi_region *region);

    /* A connection to one peer, called `number` in events; *mine goes to the peer out of band. Then connect() with
     * what came from the peer, and ready() until it is 1 (0: not yet; negative: failed). Both sides call these in any
     * order; nobody may wait inside for a peer's call (deadlock), but connect() may block on the address resolution. */
    int (*conn)(gsi_rail *rail, uint32_t number, gsi_conn **out, gsi_rail_address *mine);
    int (*connect)(gsi_conn *conn, const gsi_rail_address *peer);
    int (*ready)(gsi_conn *conn);
    /* Ends and frees a connection; no event of it comes afterwards. */
    void (*disconnect)(gsi_conn *conn);

    /* Posts; 0 or a negative error (SYSTEM, DEVICE). The caller keeps at most send_depth of them in flight, as SENT
     * tells (so some need SIGNAL), and has credits for immediates. A write to a dead connection is dropped silently:
     * the FAILED event is there or will come. */
    int (*write)(gsi_conn *conn, const gsi_rail_work *work);
    int (*read)(gsi_conn *conn, const gsi_rail_work *work);
    void (*ring)(gsi_conn *conn);

    /* Takes up to max events; 0: nothing new. The receive that an immediate used up is posted again before poll()
     * returns it. Cheap when there is nothing. */
    int (*poll)(gsi_rail *rail, gsi_rail_event *events, int max);

    /* Nobody may poll for a while (the rank goes back to its own work): sends what peers may be waiting for, such as
     * acknowledgements that were put off. Never blocks. NULL: the device does that by itself. */
    void (*idle)(gsi_rail *rail);

    /* Sleeping: after arm(), rail->fd becomes readable by the next event (arrivals: if solicited). Poll once more
     * after arm(). disarm() takes what the fd has to say. */
    int (*arm)(gsi_rail *rail);
    void (*disarm)(gsi_rail *rail);
} gsi_rail_ops;

struct gsi_rail {
    const gsi_rail_ops *ops;
    char name[80];       /* "mlx5_0:1" */
    int fd;              /* to poll(2) for; see arm() */
    int async_fd;        /* readable when DOWN or UP is to be polled; -1: none */
    uint32_t max_inline; /* bytes */
    double gbps;         /* nominal rate of one direction, Gbit/s; 0: unknown */
    uint64_t max_bytes;  /* of one write or read */
    int32_t numa_node;   /* -1: unknown */
};

/* What a provider's module needs of the library, since it does not link it. */
typedef struct gsi_rail_host {
    uint32_t abi; /* GSI_RAIL_ABI */
    /* Records the calling thread's last error, and returns code. */
    int (*fail)(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
} gsi_rail_host;

/* Opens a rail. Errors: DEVICE (port down, no such device), NOMEM, SYSTEM, UNSUPPORTED; the text says the remedy. */
typedef int (*gsi_rail_open_fn)(const gsi_rail_config *config, gsi_rail **out);

/* The one symbol of libgradsync-verbs.so: NULL if the host's abi is not this module's. */
gsi_rail_open_fn gsi_verbs_module(const gsi_rail_host *host);
typedef gsi_rail_open_fn (*gsi_rail_module_fn)(const gsi_rail_host *host);
#define GSI_VERBS_MODULE "libgradsync-verbs.so.0"
#define GSI_VERBS_SYMBOL "gsi_verbs_module"

#endif
