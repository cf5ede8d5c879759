/* SPDX-License-Identifier: Apache-2.0 */
/* Plans written by hand, step by step, for the tests of the verifier. */
#ifndef BYHAND_H
#define BYHAND_H

#include "plan/verify.h"

enum { MAX_RANKS = 4, MAX_STEPS = 48, MAX_PLACES = 160, SEEDS = 24 };

/* The plans of all ranks of one collective, in static memory. */
typedef struct world {
    gsi_plan_args args;
    gsi_plan plan[MAX_RANKS];
    gsi_step steps[MAX_RANKS][MAX_STEPS];
    gsi_place places[MAX_RANKS][MAX_PLACES];
    uint32_t awaits[MAX_RANKS][GSI_MAX_STREAMS * MAX_RANKS];
} world;

extern world w; /* the one under test */
#define STEP(r, i)     (&w.steps[r][i])
#define PLACE(r, i, k) (&w.places[r][w.steps[r][i].place + (k)])

/* Some schedule shows the defect without looking for races, and every schedule shows it with. */
enum { STATIC = 1, ALWAYS = 2, SOMETIMES = 4, RACES = 8, IN_PLACE = 16 };

gsi_place at(int rank, int space, uint64_t element, int from);
void start(int coll, int n, uint64_t count);
gsi_step *add(int r, int kind, int flags, int peer, uint32_t value, uint64_t elements);
void source(int r, gsi_place place);
void target(int r, gsi_place place);
void copy(int r, uint64_t elements, gsi_place src, gsi_place dst);
void put(int r, int peer, int notify, uint64_t elements, gsi_place src, gsi_place dst);
void notify(int r, int peer);
void await(int r, int peer, uint32_t value);
void flags(int gather, int loadstore, int signal_all, int user_memory, int ordered);
void streams_of(int r, uint32_t first);
int verify(int alias, int races, uint64_t seed);
void accepted(const char *name);
void rejected(const char *name, const char *text, int how);
/* Every line of TAP comes from byhand.c, which counts them. */
void held(int ok, const char *name);
int done(void);
void direct(void);
void ring(void);
void slots(void);
void chain(void);
void eager(void);
void scatter(void);
void two_streams(void);
void barrier(void);
void burst(void);
void alone(void);

#endif
