/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Links: one Unix socket between each two ranks of a host, over which memory (memfds)
 * and liveness (pidfds) are handed over. A link is made only with the secret token that
 * the ranks exchanged out of band, by a process of the same user.
 */
#ifndef GSI_SHM_LINK_H
#define GSI_SHM_LINK_H

#include "transport/transport.h"

enum { SHM_TOKEN_BYTES = 16 };

/* What a rank tells the others out of band. */
typedef struct gsi_shm_address {
    unsigned char name[SHM_TOKEN_BYTES];  /* of its socket in the abstract namespace, in binary */
    unsigned char token[SHM_TOKEN_BYTES]; /* who knows it may connect */
    int64_t pid;
    uint64_t process; /* a nonce of the process: ranks of one process share it */
} gsi_shm_address;

typedef struct shm_link {
    int fd;    /* the socket; -1: none (this rank itself) */
    int pidfd; /* readable when the peer's process has ended; -1: unknown, the socket tells */
} shm_link;

enum shm_message_kind { SHM_MSG_SEGMENT = 1, SHM_MSG_MEM = 2, SHM_MSG_FREE = 3, SHM_MSG_BELL = 4 };

typedef struct shm_message {
    uint32_t kind, id;
    uint64_t bytes, file_off;
} shm_message;

/* Opens the socket that peers connect to and fills *address. Errors: SYSTEM. */
int shm_listen(int *fd, gsi_shm_address *address);
/* Makes the links to all n peers; links[rank] stays empty. Errors: SYSTEM, TIMEOUT, PEER_LOST, UNSUPPORTED
 * (a peer's socket is not reachable: another network namespace), each naming the peer. */
int shm_links_make(int listen_fd, int rank, int n, const gsi_shm_address *addresses, int64_t deadline_ns,
                   shm_link *links);
void shm_links_close(shm_link *links, int n);

/* Sends a message, with fd if >= 0. 0, GRADSYNC_IN_PROGRESS (the socket is full, or the kernel short of memory),
 * PEER_LOST, SYSTEM. */
int shm_link_send(const shm_link *link, const shm_message *message, int fd);
/* Receives one; *fd is -1 or the receiver's to close. 0, or errno: EAGAIN (nothing there), EPIPE (the peer is
 * gone), EMFILE (a message whose fd found no room), EPROTO (no message of ours). */
int shm_link_receive(const shm_link *link, shm_message *message, int *fd);

#endif
