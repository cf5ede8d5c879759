/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the verifier: the symbolic machine on which the plans of all ranks run.
 *
 * A cell is esize bytes of some rank's memory. It holds a form (which contributions
 * were combined, and how) and the index of the element they belong to; forms are
 * hash-consed, so equal forms have equal numbers and a whole run of elements shares
 * one. An unrounded partial result (ACC) covers acc_esize / esize cells; the cells
 * after its first hold forms of their own, so reading it in the wrong width shows.
 *
 * Races are found with vector clocks. Signals connect only streams of equal index,
 * so a clock has one component per rank. A PUT is an event that others may count as
 * done only from its receiver's WAIT for the signal that follows it (its ack), and,
 * as far as its source goes, also from its sender's FLUSH.
 *
 * Files: verify.c sets up and judges the results, verify_check.c looks at each plan
 * by itself, verify_run.c is the scheduler, verify_data.c moves and combines values,
 * verify_race.c keeps the clocks.
 */
#ifndef GSI_PLAN_VERIFY_SIM_H
#define GSI_PLAN_VERIFY_SIM_H

#include "plan/verify.h"

#define GSI_NO_STEP UINT32_MAX

enum { GSI_FORM_UNDEF = 0, GSI_FORM_RAW = 1 }; /* RAW + r: the untouched contribution of rank r */

enum gsi_vform_flags {
    GSI_VFORM_FINAL = 1, /* the divisor has been applied */
    GSI_VFORM_ACC = 2,   /* unrounded, acc_esize wide */
    GSI_VFORM_TAIL = 4,  /* not the first cell of an unrounded value */
    GSI_VFORM_RAW = 8,
};

typedef struct gsi_vcell {
    uint32_t form, elem;
} gsi_vcell;

/* Who touched a cell last: events (step numbers over all ranks, from 1), 0: nobody yet. */
typedef struct gsi_vmark {
    uint32_t writer;
    uint32_t readers; /* since then: a list of gsi_vreader */
} gsi_vmark;

typedef struct gsi_vform {
    uint32_t next;          /* in its hash chain */
    uint32_t nranks, first; /* how many contributions, and the lowest rank among them */
    uint32_t flags;
} gsi_vform;

typedef struct gsi_vrank {
    uint64_t base[3], len[3]; /* cells of each space; in place two spaces share them */
    uint64_t stage_used;      /* cells of STAGE that any plan touches */
    uint32_t event;           /* number of its first step */
    int32_t running;          /* streams that are not finished */
    uint8_t entered, done;
} gsi_vrank;

enum gsi_vstate { GSI_V_READY, GSI_V_WAIT, GSI_V_CREDIT, GSI_V_FLUSH, GSI_V_DONE };

/* One stream of one rank. */
typedef struct gsi_vagent {
    uint32_t pc, end;
    uint32_t missing; /* blocked on GSI_ALL: ranks still lacking */
    uint32_t unread;  /* its PUTs whose source has not been read */
    int32_t rank, stream;
    uint8_t state;
} gsi_vagent;

/* The way from one rank to another on one stream. */
typedef struct gsi_vchan {
    uint32_t total;                  /* signals in the sender's plan */
    uint32_t sent, arrived, awaited; /* signals so far */
    uint32_t clock_head, clock_tail; /* races: the clocks that un-awaited signals carry */
    uint32_t put;                    /* index of its gsi_vput, 0: none yet */
} gsi_vchan;

/* What a channel needs once it has carried a PUT. */
typedef struct gsi_vput {
    uint64_t chan;
    uint32_t head, tail; /* queue of gsi_vitem: PUTs under way and signals behind them */
    uint32_t unread;
    uint32_t active; /* in the list of channels with something under way */
    gsi_vcell *buf;  /* the head's data between its read and its write */
    uint64_t room;
    uint32_t unflushed, unacked, last; /* races: events of its PUTs */
} gsi_vput;

typedef struct gsi_vitem {
    uint32_t next;
    uint32_t step; /* of the sender, or GSI_NO_STEP for a signal */
    uint32_t read; /* the source has been read */
} gsi_vitem;

/* A step that ran, as the race checker sees it. */
typedef struct gsi_vevent {
    uint32_t clock;      /* of its stream when it ran */
    uint32_t ack, flush; /* PUT: clock of the receiver's WAIT, of the sender's FLUSH; 0: not yet */
    uint32_t covered;    /* PUT: number of the signal that tells of it */
    uint32_t next;       /* PUT: the next one of its channel */
    int32_t rank, peer;
    uint8_t stream, put;
} gsi_vevent;

typedef struct gsi_vreader {
    uint32_t prev, event;
} gsi_vreader;

/* A growing array; item 0 is kept free, so that 0 can mean "none". */
typedef struct gsi_vpool {
    void *items;
    uint32_t used, room, free;
} gsi_vpool;

typedef struct gsi_vblock {
    struct gsi_vblock *next;
    size_t used, room;
} gsi_vblock;

typedef struct gsi_sim {
    gsi_plan *const *plans;
    const gsi_plan_args *args;
    gsi_verify_opts opts;
    char *why;
    size_t room;
    int32_t n, nstreams;
    uint32_t esize, wide; /* wide: cells of an unrounded partial result */
    uint64_t stride;      /* elements between blocks */
    int gather, ordered;  /* of the plans */
    int reduces;          /* the collective combines contributions */
    int clocks;           /* vector clocks are kept; opts.races: marks too */
    uint64_t rng;
    int policy;

    gsi_vblock *blocks; /* memory that lives as long as the simulation */
    gsi_vrank *ranks;
    gsi_vagent *agents; /* rank * nstreams + stream */
    gsi_vchan *chans;   /* (stream * n + from) * n + to */
    gsi_vcell *cells;
    gsi_vmark *marks;
    uint32_t *ready; /* agents that can run */
    uint32_t nready, unfinished;
    gsi_vpool active; /* uint32_t: indices of gsi_vput */
    gsi_vpool puts, items;

    gsi_vpool forms; /* gsi_vform */
    gsi_vpool bits;  /* uint64_t, words for each form */
    uint32_t words;
    uint32_t *form_hash, form_mask;
    uint64_t *work; /* words: the union being made */
    uint32_t full;  /* the form of a final result */

    gsi_vevent *events;
    uint32_t *vc; /* n for each agent */
    gsi_vpool readers;
    gsi_vpool clock_pool; /* uint32_t[n + 2]: next, references, clock */
} gsi_sim;

/* verify.c */

/* Writes the first defect into `why`, with its place if step is not GSI_NO_STEP (and
 * rank >= 0), and returns INVALID. */
__attribute__((format(printf, 4, 5))) int gsi_verify_defect(gsi_sim *sim, int rank, uint32_t step, const char *format,
                                                            ...);
/* Zeroed memory that lives as long as the simulation; NULL if there is none. */
void *gsi_verify_alloc(gsi_sim *sim, uint64_t n, size_t size);
/* A place in the pool, not cleared; 0 if memory ran out. */
uint32_t gsi_verify_take(gsi_vpool *pool, size_t size);
uint32_t gsi_verify_random(gsi_sim *sim);
const char *gsi_verify_space(int space);
int gsi_verify_stream(const gsi_plan *plan, uint32_t step);

static inline gsi_vchan *gsi_verify_chan(gsi_sim *sim, int stream, int from, int to)
{
    return &sim->chans[((uint64_t)stream * (uint64_t)sim->n + (uint64_t)from) * (uint64_t)sim->n + (uint64_t)to];
}

static inline uint64_t gsi_verify_cell(const gsi_sim *sim, const gsi_place *place)
{
    return sim->ranks[place->rank].base[place->space] + place->off / sim->esize;
}

/* verify_check.c: everything that can be told without running. */
int gsi_verify_check(gsi_sim *sim);

/* verify_run.c: runs all plans to their end. */
int gsi_verify_run(gsi_sim *sim);

/* verify_data.c */
int gsi_verify_forms(gsi_sim *sim);
int gsi_verify_copy(gsi_sim *sim, int rank, uint32_t step);
int gsi_verify_reduce(gsi_sim *sim, int rank, uint32_t step);
int gsi_verify_put_read(gsi_sim *sim, int rank, uint32_t step, gsi_vput *put);
int gsi_verify_put_write(gsi_sim *sim, int rank, uint32_t step, gsi_vput *put);
/* What a cell holds, in words. */
const char *gsi_verify_describe(const gsi_sim *sim, gsi_vcell cell, char *text, size_t room);

/* verify_race.c */
int gsi_verify_clocks(gsi_sim *sim);
/* The accesses of a COPY, REDUCE or PUT: all are ordered after what they conflict with. */
int gsi_verify_access(gsi_sim *sim, const gsi_vagent *agent, uint32_t step);
int gsi_verify_raise(gsi_sim *sim, const gsi_vagent *agent, int peer);
void gsi_verify_put_issued(gsi_sim *sim, const gsi_vagent *agent, uint32_t step, gsi_vchan *chan);
void gsi_verify_awaited(gsi_sim *sim, const gsi_vagent *agent, int peer, uint32_t value);
void gsi_verify_flushed(gsi_sim *sim, const gsi_vagent *agent, gsi_vput *put);
/* Nobody may still use a rank's memory when it returns; a barrier has met everyone. */
int gsi_verify_ends(gsi_sim *sim);

#endif
