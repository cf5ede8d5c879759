/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A provider of rails inside one process and one thread, for tests of the endpoint between hosts. What happens, and in
 * which order, follows from a seed: connections overtake each other, completions come late, poll() looks away, and a
 * connection fails at the n-th thing that would have happened, with some of its work done and some not.
 *
 * It holds the endpoint to the contract of rail.h: memory that is not registered, more in flight than was agreed,
 * immediates without credits are violations, which are counted and told.
 */
#ifndef TESTS_FAKE_RAIL_H
#define TESTS_FAKE_RAIL_H

#include "transport/net/rail.h"

typedef struct fake_fabric fake_fabric;

enum { FAKE_SEND_DEPTH = 80, FAKE_RECV_DEPTH = 160 };

fake_fabric *fake_new(uint64_t seed);
/* After all rails are closed. */
void fake_free(fake_fabric *f);

/* A rail of rank `owner`. max_bytes of one write; 0: any. */
gsi_rail *fake_rail(fake_fabric *f, int owner, double gbps, uint32_t max_inline, uint64_t max_bytes);

/* In percent: polls that see nothing, steps that leave a completion for later. 0, 0: all is told at once. */
void fake_lazy(fake_fabric *f, int polls, int completions);
/* What the other ranks do while a rank has been stopped between looking at two rails; it happens now and then if it is
 * lazy. */
void fake_others(fake_fabric *f, void (*fn)(void *arg, int rank), void *arg);
/* The connection on which the event'th thing is about to happen fails instead; 0: none. With `last`, also if it is the
 * last one alive between two ranks. May be called again for another one. */
void fake_fail_at(fake_fabric *f, uint64_t event, int last);
/* Every connection between two ranks fails. */
void fake_cut(fake_fabric *f, int a, int b);
/* write() and read() of one connection that is alive give an error from now on; what has arrived is still told. 0:
 * there is no connection that can be spared. */
int fake_refuse_one(fake_fabric *f);
/* What is on its way stays there. */
void fake_hold(fake_fabric *f, int on);

/* Immediates that a rank gets on any of its connections to `from` without anybody having written them: a hostile
 * peer's. 0, or -1: there is no such connection alive. */
int fake_forge(fake_fabric *f, int owner, int from, uint32_t imm);

uint64_t fake_random(fake_fabric *f);
uint64_t fake_events(const fake_fabric *f);     /* that have happened */
uint64_t fake_failures(const fake_fabric *f);   /* connections that failed */
uint64_t fake_denied(const fake_fabric *f);     /* writes to memory that the peer had let go of */
uint64_t fake_violations(const fake_fabric *f); /* of the contract, by the endpoint */
/* The most immediates and works that were on their way on one connection. */
uint64_t fake_most_imm(const fake_fabric *f);
uint64_t fake_most_work(const fake_fabric *f);
/* Bytes that went out by the rails of a rank, by the order in which they were made. */
uint64_t fake_bytes(const fake_fabric *f, int owner, int index);

#endif
