/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets of the rendezvous: all non-blocking and close-on-exec. */
#ifndef GSI_NET_H
#define GSI_NET_H

#include "bootstrap/bootstrap.h"

#include <netinet/in.h>
#include <sys/socket.h>

enum { GSI_ADDRS_MAX = 8, GSI_ADDR_TEXT = 64 };

typedef struct gsi_addr {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_storage space;
    };
    socklen_t len;
} gsi_addr;

typedef struct gsi_addrs {
    gsi_addr list[GSI_ADDRS_MAX];
    int n;
} gsi_addrs;

/* The addresses of a name; NULL or why there are none (static text). Asks a name
 * server, which may take its own time, unless host is an address. */
const char *gsi_net_resolve(const char *host, gsi_addrs *out);
/* 1 if host is written as an address, not as a name. */
int gsi_net_is_literal(const char *host);
int gsi_net_is_loopback(const gsi_addr *a);
/* "10.0.0.1:29501" */
const char *gsi_net_text(const gsi_addr *a, char out[GSI_ADDR_TEXT]);

/* What an errno means; in the buffer or static. */
const char *gsi_net_error(int err, char buffer[64]);

/* The addresses that rank 0 should listen on: those of job->addr where they are
 * clearly right, those of job->ifname, else all. Errors: INVALID. */
int gsi_net_listen_plan(const gsi_job *job, const gsi_log *log, gsi_addrs *out);
/* A listening socket. 0 or an errno. */
int gsi_net_listen(const gsi_addr *a, int port, int *fd);
/* A connection that is being made, or -errno. */
int gsi_net_connect(const gsi_addr *a, int port);
/* Accepts one connection; *from is who it is. The fd or -errno. */
int gsi_net_accept(int listener, gsi_addr *from);

#endif
