/* SPDX-License-Identifier: Apache-2.0 */
/* Two processes, each with a rail of the verbs provider and one connection to the other; a socket between them for
 * what is out of band. */
#ifndef TESTS_VERBS_PAIR_H
#define TESTS_VERBS_PAIR_H

#include "transport/net/rail.h"

#include <stdint.h>

enum { PAIR_BYTES = 20 << 20, PAIR_DEPTH = 64, PAIR_EVENTS = 1 << 12 };

typedef struct pair {
    int role; /* 0 leads, 1 follows */
    int sock;
    gsi_rail_open_fn open;
    gsi_rail_config config;
    gsi_rail *rail;
    gsi_conn *conn;
    unsigned char *mem; /* PAIR_BYTES */
    gsi_region region;
    uint64_t peer_mem, peer_key;

    gsi_rail_event events[PAIR_EVENTS]; /* a ring of what was polled and not yet looked for */
    unsigned first, last;
} pair;

/* By the command line; returns 0, or tells what is wrong on standard error. Forks unless --listen or --connect. */
int pair_options(pair *p, int argc, char **argv, const char **bench, const char **down, const char **up);
/* 0 or a negative error. */
int pair_open(pair *p);
void pair_close(pair *p);
/* Makes the connection anew (number: 7), and waits until both sides have it. */
int pair_connect(pair *p);
/* Both sides meet here; 1 if both said ok. */
int pair_meet(pair *p, int ok);
void pair_swap(pair *p, const void *mine, void *theirs, unsigned bytes);

/* Waits (spinning) for the next event of the kind, up to 20 s; others are kept. 0 if none came. */
int pair_event(pair *p, uint32_t kind, gsi_rail_event *event);
/* Takes the next event of the kind from those polled already; polls once if there is none. */
int pair_try_event(pair *p, uint32_t kind, gsi_rail_event *event);
void pair_forget_events(pair *p);

/* work with offsets into both sides' memory; waits for SENT when it has SIGNAL and wait is set. */
int pair_write(pair *p, uint64_t from, uint64_t to, uint64_t bytes, uint32_t flags, uint32_t imm, uint64_t id);
int pair_read(pair *p, uint64_t into, uint64_t from, uint64_t bytes, uint32_t flags, uint64_t id);

double pair_seconds(void);
/* The byte that belongs at this place of a pattern. */
unsigned char pair_byte(uint64_t seed, uint64_t i);
void pair_fill(unsigned char *p, uint64_t seed, uint64_t bytes);
int pair_check(const unsigned char *p, uint64_t seed, uint64_t bytes);

/* bench.c */
/* what: "lat", "bw" or "all". */
int pair_bench(pair *p, const char *what);

#endif
