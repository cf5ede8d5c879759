/* SPDX-License-Identifier: Apache-2.0 */
/* Starts ranks as processes of this machine, and exchanges data between them while
 * a communicator is made: what a launcher does, in its smallest form. */
#ifndef DIGITS_LOCAL_H
#define DIGITS_LOCAL_H

#include <stddef.h>

typedef struct local_rank {
    int rank, nranks;
    int fd; /* to the parent, which relays the exchange; -1: there is none */
} local_rank;

/* Forks nranks processes that each end with the status of body(arg, self), waits
 * for them all, and returns the exit status for the whole: 0 if all were 0. Says
 * on stderr, behind `name`, which rank a signal killed. Call it before any thread starts. */
int local_run(const char *name, int nranks, int (*body)(void *arg, local_rank *self), void *arg);

/* A gradsync_allgather_fn; arg is the local_rank. Fails if another rank has died. */
int local_allgather(void *arg, const void *send, void *recv, size_t bytes);
/* This rank's communicator is made: the exchange is over. */
void local_done(local_rank *self);

#endif
