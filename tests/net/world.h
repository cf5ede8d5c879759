/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Endpoints of all ranks in one process and one thread, over the fake provider, and traffic that goes through the
 * seam's operations as the engine uses them: headers, puts, signals, several collectives in flight, memory shared and
 * let go of in between. Every byte is checked, and everything follows from a seed.
 */
#ifndef TESTS_NET_WORLD_H
#define TESTS_NET_WORLD_H

#include "fake_rail.h"
#include "transport/transport.h"

enum { WORLD_RANKS = 4 };

typedef struct world_options {
    uint64_t seed;
    int n, rails; /* 1 to 8 rails a rank, and as many connections between two */
    int crossed;  /* connections are on other rails at the peer */
    int lazy;     /* percent, see fake_lazy() */
    int collectives;
    int plain;          /* sources that the rails do not know: bounced */
    int fresh;          /* each collective has memory of its own, shared for it and let go of afterwards */
    uint64_t longest;   /* bytes of a put */
    uint64_t max_bytes; /* of one write; 0: any */
    uint32_t max_inline;
    double gbps[8];      /* of the rails; 0: unknown */
    uint64_t fail_at;    /* the first connection fails at this event of the traffic; 0: none */
    uint64_t fail_every; /* and others so many events later */
    int fail_last;       /* also the last one between two ranks */
    int refuse;          /* connections that take no more work, in between */
} world_options;

enum world_end { WORLD_GOOD, WORLD_WRONG, WORLD_STUCK, WORLD_LOST };

typedef struct world_result {
    int end;
    int teller, culprit; /* LOST: who was told, and of whom */
    char text[300];
    int warnings; /* of the endpoints, to the log */
    uint64_t events, failures, violations, denied, most_imm, most_work;
    uint64_t bytes[8]; /* of rank 0's rails */
} world_result;

typedef struct world {
    world_options o;
    fake_fabric *fabric;
    gsi_endpoint *eps[WORLD_RANKS];
    gsi_log log;
    int warnings;
    char warning[300]; /* the first */
} world;

/* Makes and connects; 0, or -1 and why. */
int world_make(world *w, const world_options *o, char *why, size_t room);
void world_end(world *w);
uint64_t world_mix(uint64_t a, uint64_t b);
/* Collectives, from making to ending. */
void world_run(const world_options *o, world_result *out);

#endif
