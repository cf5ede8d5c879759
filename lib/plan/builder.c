/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/builder.h"
#include "base/alloc.h"
#include "base/error.h"

#include <stdlib.h>

/* Pieces of messages that travel by PUT, bytes. */
#define SMALLEST (8u << 10)
#define LARGEST  (256u << 10)
/* Between hosts: bytes that a message without any is worth, if the caller does not say. */
#define WIRE_MESSAGE 2048

gsi_place gsi_at(int space, int rank, uint64_t off)
{
    return gsi_raw(space, rank, off, GSI_PARTIAL);
}

gsi_place gsi_raw(int space, int rank, uint64_t off, int from)
{
    return (gsi_place){.off = off, .rank = rank, .from = from, .space = (uint8_t)space};
}

/* The array with room for one more of `size` bytes: the same one or its successor. NULL: no memory. */
static void *grow(gsi_builder *b, void *array, uint32_t used, uint32_t *room, size_t size)
{
    if (used < *room)
        return array;
    uint32_t more = *room ? *room * 2 : 64;
    void *p = more > *room ? gsi_realloc(array, more * size) : NULL;
    if (p)
        *room = more;
    else
        b->error = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a plan of more than %u steps", (unsigned)used);
    return p;
}

static gsi_step *append(gsi_builder *b, int kind, uint64_t bytes)
{
    gsi_plan *plan = b->plan;

    if (b->error || !plan)
        return NULL;
    gsi_step *steps = grow(b, plan->steps, plan->nsteps, &b->room_steps, sizeof *steps);
    if (!steps)
        return NULL;
    plan->steps = steps;
    gsi_step *step = &plan->steps[plan->nsteps++];
    *step = (gsi_step){.kind = (uint8_t)kind, .peer = GSI_ALL, .place = plan->nplaces, .bytes = bytes};
    plan->streams[b->stream].count++;
    return step;
}

static void add_place(gsi_builder *b, gsi_place place)
{
    gsi_plan *plan = b->plan;
    gsi_place *places = grow(b, plan->places, plan->nplaces, &b->room_places, sizeof *places);

    if (!places)
        return;
    plan->places = places;
    places[plan->nplaces++] = place;
}

/* In a rehearsal: an event towards the rank that asks. */
static void note(gsi_builder *b, int peer, uint64_t event)
{
    if (b->plan || peer != b->watch || b->error)
        return;
    gsi_event_number *numbers = grow(b, b->numbers, b->nnumbers, &b->room_numbers, sizeof *numbers);
    if (!numbers)
        return;
    b->numbers = numbers;
    numbers[b->nnumbers++] = (gsi_event_number){event, (uint32_t)b->stream, ++b->raised};
}

void gsi_add_stream(gsi_builder *b)
{
    b->stream++;
    b->raised = 0;
    if (b->plan) {
        b->plan->streams[b->stream].first = b->plan->nsteps;
        b->plan->nstreams = b->stream + 1;
    }
}

void gsi_add_step(gsi_builder *b, int kind, int flags, uint64_t bytes)
{
    b->skip = !bytes || !b->plan;
    gsi_step *step = b->skip ? NULL : append(b, kind, bytes);
    if (step)
        step->flags = (uint8_t)flags;
}

void gsi_add_src(gsi_builder *b, gsi_place place)
{
    if (b->skip || b->error)
        return;
    b->plan->steps[b->plan->nsteps - 1].nsrc++;
    add_place(b, place);
}

void gsi_add_dst(gsi_builder *b, gsi_place place)
{
    if (b->skip || b->error)
        return;
    place.from = GSI_PARTIAL;
    b->plan->steps[b->plan->nsteps - 1].ndst++;
    add_place(b, place);
}

void gsi_add_copy(gsi_builder *b, gsi_place src, gsi_place dst, uint64_t bytes)
{
    gsi_add_step(b, GSI_STEP_COPY, 0, bytes);
    gsi_add_src(b, src);
    gsi_add_dst(b, dst);
}

static void put(gsi_builder *b, int peer, int flags, gsi_place src, gsi_place dst, uint64_t bytes)
{
    gsi_add_step(b, GSI_STEP_PUT, flags, bytes);
    gsi_add_src(b, src);
    gsi_add_dst(b, dst);
    if (!b->skip && !b->error)
        b->plan->steps[b->plan->nsteps - 1].peer = peer;
}

void gsi_add_put(gsi_builder *b, int peer, uint64_t event, gsi_place src, gsi_place dst, uint64_t bytes)
{
    if (!bytes) {
        gsi_add_signal(b, peer, event);
        return;
    }
    note(b, peer, event);
    put(b, peer, GSI_STEP_NOTIFY, src, dst, bytes);
}

void gsi_add_quiet_put(gsi_builder *b, int peer, gsi_place src, gsi_place dst, uint64_t bytes)
{
    put(b, peer, 0, src, dst, bytes);
}

void gsi_add_signal(gsi_builder *b, int peer, uint64_t event)
{
    note(b, peer, event);
    gsi_step *step = append(b, GSI_STEP_SIGNAL, 0);
    if (step)
        step->peer = peer;
}

void gsi_add_wait(gsi_builder *b, int peer, uint64_t event)
{
    gsi_step *step = append(b, GSI_STEP_WAIT, 0);
    if (!step)
        return;
    step->peer = peer;
    gsi_awaited *waits = grow(b, b->waits, b->nwaits, &b->room_waits, sizeof *waits);
    if (!waits)
        return;
    b->waits = waits;
    waits[b->nwaits++] = (gsi_awaited){event, b->plan->nsteps - 1, (uint32_t)b->stream, peer};
}

void gsi_add_wait_number(gsi_builder *b, int peer, uint32_t number)
{
    gsi_step *step = append(b, GSI_STEP_WAIT, 0);
    if (!step)
        return;
    step->peer = peer;
    step->value = number;
}

void gsi_add_signal_all(gsi_builder *b)
{
    append(b, GSI_STEP_SIGNAL, 0);
}

void gsi_add_wait_all(gsi_builder *b, uint32_t number)
{
    gsi_add_wait_number(b, GSI_ALL, number);
}

void gsi_add_flush(gsi_builder *b, int peer)
{
    gsi_step *step = append(b, GSI_STEP_FLUSH, 0);
    if (step)
        step->peer = peer;
}

static int by_event(const void *a, const void *b)
{
    const gsi_event_number *x = a, *y = b;

    if (x->stream != y->stream)
        return x->stream < y->stream ? -1 : 1;
    return x->event < y->event ? -1 : x->event > y->event;
}

/* Gives every WAIT for `peer`, from the WAIT `from` on, the number that its event has in the peer's program. */
static void number_peer(gsi_builder *b, gsi_program *program, int peer, uint32_t from)
{
    gsi_builder other = {.args = b->args,
                         .shape = b->shape,
                         .n = b->n,
                         .gathered = b->gathered,
                         .rank = peer,
                         .watch = b->rank,
                         .numbers = b->numbers,
                         .room_numbers = b->room_numbers};

    program(&other);
    b->numbers = other.numbers; /* kept for the next peer; gsi_run_program() frees it */
    b->room_numbers = other.room_numbers;
    b->error = other.error;
    if (b->error)
        return;
    if (other.nnumbers)
        qsort(other.numbers, other.nnumbers, sizeof *other.numbers, by_event);
    for (uint32_t i = from; i < b->nwaits; i++) {
        gsi_awaited *wait = &b->waits[i];
        if (wait->peer != peer)
            continue;
        gsi_event_number key = {wait->event, wait->stream, 0};
        const gsi_event_number *found =
            other.nnumbers ? bsearch(&key, other.numbers, other.nnumbers, sizeof key, by_event) : NULL;
        if (!found) {
            b->error = gsi_fail(GRADSYNC_ERR_INTERNAL,
                                "plan: rank %d awaits event %llx of rank %d, which never raises it: "
                                "please report this with the call's arguments",
                                (int)b->rank, (unsigned long long)wait->event, peer);
            return;
        }
        b->plan->steps[wait->step].value = found->number;
        wait->peer = -1;
    }
}

int gsi_run_program(gsi_builder *b, gsi_program *program, const void *shape)
{
    b->shape = shape;
    program(b);
    /* Numbering a peer settles all WAITs for it, so each peer is rehearsed once. */
    for (uint32_t i = 0; !b->error && i < b->nwaits; i++)
        if (b->waits[i].peer >= 0)
            number_peer(b, program, b->waits[i].peer, i);
    free(b->waits);
    b->waits = NULL;
    free(b->numbers);
    b->numbers = NULL;
    return b->error;
}

int gsi_depth(const gsi_plan_args *args)
{
    /* Data of two kinds and their credits can be in flight from one rank to another. */
    uint32_t depth = args->credits ? args->credits / 4 : 4;

    return depth < 1 ? 1 : depth > 4 ? 4 : (int)depth;
}

int gsi_too_long(gsi_builder *b)
{
    b->error = gsi_fail(GRADSYNC_ERR_INVALID, "plan: %llu elements are too many pieces: build it in segments",
                        (unsigned long long)b->args->count);
    return b->error;
}

int gsi_no_room(gsi_builder *b)
{
    b->error = gsi_fail(GRADSYNC_ERR_INVALID, "plan: %llu bytes of staging memory are too few: give more",
                        (unsigned long long)b->args->stage_bytes);
    return b->error;
}

int gsi_place_of(const gsi_plan_args *args, int rank)
{
    int place = 0;

    if (!args->order && args->hosts)
        return args->hosts->first[args->hosts->of[rank]] + args->hosts->index[rank];
    if (!args->order)
        return rank;
    while (place < args->n - 1 && args->order[place] != rank)
        place++;
    return place;
}

int gsi_at_place(const gsi_plan_args *args, int place)
{
    place = place % args->n;
    if (place < 0)
        place += args->n;
    if (args->order)
        return args->order[place];
    return args->hosts ? args->hosts->order[place] : place;
}

/* The least p with p * p >= x. */
static uint64_t root_of(uint64_t x)
{
    uint64_t p = 1;

    while (p * p < x)
        p++;
    return p;
}

/*
 * Between hosts. A message costs as much as some bytes do, M. Of something of b bytes that goes over `hops`
 * wires one after the other in p pieces, hops * b / p come on top for the filling of the pipeline, and p M for the
 * messages: least where p^2 = hops b / M. In an exchange what comes on top is the reduction of a piece while the
 * wire has nothing to do, which takes an eighth of what the piece takes on the wire, or so.
 */
static uint64_t wire_want(const gsi_plan_args *args, uint64_t bytes, int hops)
{
    uint64_t message = args->message ? args->message : WIRE_MESSAGE;
    uint64_t pieces = bytes / message;

    pieces = hops ? gsi_mul(pieces, (uint64_t)hops) : pieces / 8;
    pieces = root_of(pieces < 4096 ? pieces : 4096);
    /* Whole cache lines, as slices have: rounded down it would take another piece. */
    return (bytes / pieces + 64) & ~(uint64_t)63;
}

uint64_t gsi_want(const gsi_plan_args *args, uint64_t bytes, uint64_t share, int hops, uint64_t most)
{
    uint64_t want = bytes / share, least = bytes / most + (bytes % most != 0);

    if (args->chunk)
        return args->chunk;
    if (!bytes)
        return LARGEST;
    if (args->hosts && args->hosts->hosts > 1)
        want = wire_want(args, bytes, hops);
    else
        want = want < SMALLEST ? SMALLEST : want;
    want = want > LARGEST ? LARGEST : want;
    return want > least ? want : least;
}

void gsi_settle_gather(gsi_builder *b)
{
    b->plan->gather = b->plan->user_memory || b->args->hosts;
    b->gathered = b->plan->gather;
}

uint64_t gsi_mul(uint64_t a, uint64_t b)
{
    return b && a > UINT64_MAX / b ? UINT64_MAX : a * b;
}

uint64_t gsi_elements(uint64_t bytes, uint32_t esize)
{
    return bytes > esize ? bytes / esize : 1;
}

uint64_t gsi_grain(uint64_t piece, uint32_t esize)
{
    return piece * esize >= 64 ? 64 / esize : 1;
}

uint64_t gsi_piece(uint64_t want, uint64_t stage, uint64_t slots, uint32_t esize)
{
    uint64_t fits = stage / slots / esize, piece = gsi_elements(want, esize);

    if (piece > fits)
        piece = fits;
    return piece * esize >= 64 ? piece - piece % (64 / esize) : piece;
}
