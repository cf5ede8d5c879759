/* SPDX-License-Identifier: Apache-2.0 */
/* A context: settings, the register of memory, and the communicators made in it. */
#ifndef GSI_COMM_CONTEXT_H
#define GSI_COMM_CONTEXT_H

#include "device/device.h"

struct gradsync_context {
    gsi_log log;
    uint32_t
        process; /* gsi_process() of who made it: in a forked child locks may be held by threads that are not there */
    int64_t timeout_ms;
    int progress, strict;
    char *transport; /* "auto" or "shm" */
    char *key;       /* NULL: from the environment */
    gsi_register reg;
    pthread_mutex_t lock; /* of the lists below; before any engine's lock */
    struct gradsync_comm *comms;
    int nmems;
};

struct gradsync_mem {
    gsi_memory memory;
    struct gradsync_context *ctx;
};

int gsi_context_create(const gradsync_config *config, gradsync_context **out);
int gsi_context_destroy(gradsync_context *ctx);
/* Takes note of memory that has been made; *out owns it. */
int gsi_context_add_memory(gradsync_context *ctx, const gsi_memory *memory, gradsync_mem **out);
/* Takes it off the register and tells the peers of every communicator; the memory itself stays. */
int gsi_context_remove_memory(gradsync_mem *mem);

#endif
