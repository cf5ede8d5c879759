/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The TCP provider of rails (transport/net/rail.h): what a queue pair does, over one TCP connection.
 *
 * What it adds to the contract:
 *   - Data moves only inside poll(), write(), read() and ring(): there are no threads. A rank that sleeps on rail->fd
 *     is therefore woken by everything that its peers send, solicited or not, and by room for what it still has to
 *     send; poll() may then have moved data and still return 0.
 *   - SENT means that the peer's rail has the bytes in its memory: it is an acknowledgement of the peer's poll().
 *   - poll() and ready() both make progress with connecting, so a peer may be answered long before ready() is asked.
 *   - FAILED is told of connections of which ready() has said 1 before; it is ready() that tells of the others.
 *   - A peer that does not poll for long is slow, not dead. A host that does not acknowledge any more is, after
 *     some 15 seconds: by keep-alives where nothing is on its way, else by what the kernel knows of its last sign.
 *   - Payload goes from the source to the socket and from there to the target, one copy each by the kernel. The
 * kernel's own way around the first (MSG_ZEROCOPY) is not used: over loopback, where it could be tried, it copies as
 * well.
 *   - A write that the socket does not take is sent by later calls: a rank that goes away without idle() and without
 *     having waited for SENT may leave it behind.
 *   - Connections are made from the rail's own address. With several interfaces in one subnet it is the host's routing
 *     that says which of them packets leave by; rails of different subnets need nothing.
 *
 * Who may connect: each connection has secret tokens of both sides, exchanged out of band (GSI_RAIL address blobs).
 * Both sides prove that they know them before anything else is heard (see hello.h); tokens never travel over the
 * connection. What travels after that is neither encrypted nor authenticated: an attacker who can read or alter the
 * packets of the network can read or alter gradients, as with RDMA. Whatever comes, nothing is written or read
 * outside the regions whose keys the peer was given.
 */
#ifndef GSI_TCP_H
#define GSI_TCP_H

#include "transport/net/rail.h"

/* A rail of the interface config->device with the address config->address (both empty: the first usable interface;
 * an address alone is enough). Errors: INVALID (address), DEVICE (no such interface or address), NOMEM, SYSTEM. */
int gsi_tcp_rail_open(const gsi_rail_config *config, gsi_rail **out);

#endif
