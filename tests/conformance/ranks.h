/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks for tests: n threads or n forked processes that run the same function, with an
 * all-gather of their own as out-of-band exchange. */
#ifndef TESTS_RANKS_H
#define TESTS_RANKS_H

#include <gradsync/gradsync.h>

typedef struct ranks_world ranks_world;

/* What one rank does; its result is 0 for success. */
typedef int (*ranks_fn)(ranks_world *world, int rank, void *arg);

/* Runs fn as n threads or n processes; returns how many ranks failed. In processes, `arg`
 * is the parent's as it was; a killed rank counts as failed.
 *
 * The variable TEST_HOSTS puts processes on hosts that they believe to be different ones: "3,1"
 * puts three ranks on the first, one on the second, and so on again; "%2" deals them out to two
 * hosts in turn. Threads have one environment, and so one host. */
int ranks_run_threads(int n, ranks_fn fn, void *arg);
int ranks_run_processes(int n, ranks_fn fn, void *arg);

/* Runs fn as the one rank that this process is by its environment (gradsync-run's variables);
 * the others are processes of their own, perhaps on other hosts, which ranks_comm() finds by
 * gradsync_comm_create_from_env(). There is no ranks_barrier() then. 0, or 1 if this rank
 * failed; -1 if the environment names no rank. */
int ranks_run_environment(ranks_fn fn, void *arg);

/* The out-of-band exchange: a gradsync_allgather_fn for arg = ranks_exchange_of(). */
void *ranks_exchange_of(ranks_world *world, int rank);
int ranks_allgather(void *arg, const void *send, void *recv, size_t bytes);
int ranks_count(const ranks_world *world);
/* Waits for all ranks, outside of the library. */
void ranks_barrier(ranks_world *world, int rank);
/* The pid of a rank's process (of the test itself for threads). */
int ranks_pid(const ranks_world *world, int rank);
/* A context and communicator in one go; prints the error. NULL on failure. */
gradsync_comm *ranks_comm(ranks_world *world, int rank, const gradsync_config *config, gradsync_context **ctx);
/* Ends both. */
void ranks_end(gradsync_context *ctx, gradsync_comm *comm);
/* Prints the last error as a TAP comment. */
void ranks_complain(int rank, const char *what, int rc);

#endif
