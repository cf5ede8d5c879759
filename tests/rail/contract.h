/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What transport/net/rail.h promises, as tests that any provider passes. A provider's test program makes a factory
 * of its rails and calls contract_run(); everything is bit-checked, and printed as TAP.
 *
 * GRADSYNC_TEST_SEED repeats a run, GRADSYNC_TEST_ROUNDS makes it longer.
 */
#ifndef TESTS_RAIL_CONTRACT_H
#define TESTS_RAIL_CONTRACT_H

#include "transport/net/rail.h"

#include <stddef.h>

typedef struct contract_factory {
    const char *name;
    /* Opens a rail for side 0 or 1 (they may be the same port). The config says connections and depths; the factory
     * adds device and address. */
    int (*open)(void *arg, int side, gsi_rail_config *config, gsi_rail **out);
    void *arg;
    /* May be NULL: makes a connection that is ready difficult: small buffers, whatever the provider has. */
    void (*hamper)(gsi_conn *conn, uint32_t seed);
    int connections; /* how many between the two rails the largest test makes; 0: 64 */
    int one_process; /* 1: no second process can be had (fork) */
    int no_loss;     /* 1: connections that fail spoil the rail or take too long: leave those tests out */
} contract_factory;

void contract_run(const contract_factory *factory);

/* ---- For tests of one provider -------------------------------------------------- */

enum { PAIR_MEMORY = 4 << 20, PAIR_LOG = 8192, PAIR_DEPTH = 128 };

/* One side: a rail, memory that is registered, and the events that came. */
typedef struct contract_side {
    gsi_rail *rail;
    unsigned char *memory;
    gsi_region region;
    int nconns;
    gsi_conn *conns[64];
    gsi_rail_event log[PAIR_LOG];
    int nlog, seen;
    int max; /* events that one poll() may give; 0: as many as it likes */
} contract_side;

typedef struct contract_pair {
    contract_side side[2];
    const contract_factory *factory;
} contract_pair;

/* Two rails in this process, n connections between them, all ready. 0, or -1 after a failed test line. */
int pair_open(contract_pair *pair, const contract_factory *factory, int n);
/* Another connection, in place of number i. */
int pair_connect(contract_pair *pair, int i);
void pair_close(contract_pair *pair);
/* Polls both sides once. */
void pair_poll(contract_pair *pair);
/* Polls until side s has an event that was not taken yet, and takes it. NULL after 20 seconds. */
const gsi_rail_event *pair_next(contract_pair *pair, int s);
/* Polls for a while: 1 if no event comes. */
int pair_quiet(contract_pair *pair);

/* tests/tap.h for programs of several files. */
__attribute__((format(printf, 2, 3))) int test_ok(int cond, const char *format, ...);
__attribute__((format(printf, 1, 2))) void test_note(const char *format, ...);
void test_skip(int n, const char *why);
int test_done(void);

void test_seed(uint32_t seed);
uint32_t test_random(void);
/* 0 to n - 1 */
uint32_t test_below(uint32_t n);
void test_fill(unsigned char *at, size_t n, uint32_t seed);
/* 1 if n bytes are what test_fill() makes. */
int test_same(const unsigned char *at, size_t n, uint32_t seed);

#endif
