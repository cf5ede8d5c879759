/* SPDX-License-Identifier: Apache-2.0 */
/* Values: which contributions a cell holds, and what COPY, REDUCE and PUT do to them. */
#include "plan/verify_sim.h"

#include "base/alloc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const gsi_vform *form_at(const gsi_sim *sim, uint32_t form)
{
    return (const gsi_vform *)sim->forms.items + form;
}

static uint64_t *bits_at(const gsi_sim *sim, uint32_t form)
{
    return (uint64_t *)sim->bits.items + (size_t)form * sim->words;
}

static uint32_t hash_set(const gsi_sim *sim, const uint64_t *set, uint32_t flags)
{
    uint64_t h = flags;

    for (uint32_t w = 0; w < sim->words; w++) {
        h = (h ^ set[w]) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return (uint32_t)(h >> 16);
}

static uint32_t new_form(gsi_sim *sim, const uint64_t *set, uint32_t flags)
{
    uint32_t id = gsi_verify_take(&sim->forms, sizeof(gsi_vform));
    uint32_t same = gsi_verify_take(&sim->bits, sim->words * sizeof(uint64_t));
    gsi_vform *form;

    if (!id || !same)
        return 0;
    form = (gsi_vform *)sim->forms.items + id;
    *form = (gsi_vform){.flags = flags, .first = UINT32_MAX};
    memcpy(bits_at(sim, id), set, sim->words * sizeof *set);
    for (uint32_t w = 0; w < sim->words; w++) {
        if (set[w] && form->first == UINT32_MAX)
            form->first = 64 * w + (uint32_t)__builtin_ctzll(set[w]);
        form->nranks += (uint32_t)__builtin_popcountll(set[w]);
    }
    return id;
}

static int grow_hash(gsi_sim *sim)
{
    uint32_t slots = sim->form_mask ? 2 * (sim->form_mask + 1) : 1024;
    uint32_t *hash = gsi_calloc(slots, sizeof *hash);

    if (!hash)
        return GRADSYNC_ERR_NOMEM;
    free(sim->form_hash);
    sim->form_hash = hash;
    sim->form_mask = slots - 1;
    for (uint32_t id = GSI_FORM_RAW + (uint32_t)sim->n; id < sim->forms.used; id++) {
        gsi_vform *form = (gsi_vform *)sim->forms.items + id;
        uint32_t at;
        if (form->flags & GSI_VFORM_TAIL)
            continue;
        at = hash_set(sim, bits_at(sim, id), form->flags) & sim->form_mask;
        form->next = hash[at];
        hash[at] = id;
    }
    return 0;
}

/* The form of a combination of `set`; 0 if memory ran out. Unrounded ones are followed by their tails. */
static uint32_t intern(gsi_sim *sim, const uint64_t *set, uint32_t flags)
{
    uint32_t hash = hash_set(sim, set, flags), id;

    for (id = sim->form_hash[hash & sim->form_mask]; id; id = form_at(sim, id)->next)
        if (form_at(sim, id)->flags == flags && !memcmp(bits_at(sim, id), set, sim->words * sizeof *set))
            return id;
    if (sim->forms.used > sim->form_mask && grow_hash(sim))
        return 0;
    id = new_form(sim, set, flags);
    if (!id)
        return 0;
    ((gsi_vform *)sim->forms.items)[id].next = sim->form_hash[hash & sim->form_mask];
    sim->form_hash[hash & sim->form_mask] = id;
    for (uint32_t i = 1; flags & GSI_VFORM_ACC && i < sim->wide; i++)
        if (!new_form(sim, set, flags | GSI_VFORM_TAIL))
            return 0;
    return id;
}

int gsi_verify_forms(gsi_sim *sim)
{
    sim->words = ((uint32_t)sim->n + 63) / 64;
    sim->work = gsi_verify_alloc(sim, sim->words, sizeof *sim->work);
    if (!sim->work || grow_hash(sim))
        return GRADSYNC_ERR_NOMEM;
    for (int r = 0; r < sim->n; r++) {
        memset(sim->work, 0, sim->words * sizeof *sim->work);
        sim->work[r / 64] = (uint64_t)1 << (r % 64);
        if (!new_form(sim, sim->work, GSI_VFORM_RAW))
            return GRADSYNC_ERR_NOMEM;
    }
    memset(sim->work, 0, sim->words * sizeof *sim->work);
    for (int r = 0; r < sim->n; r++)
        sim->work[r / 64] |= (uint64_t)1 << (r % 64);
    sim->full = intern(sim, sim->work, GSI_VFORM_FINAL);
    return sim->full ? 0 : GRADSYNC_ERR_NOMEM;
}

const char *gsi_verify_describe(const gsi_sim *sim, gsi_vcell cell, char *text, size_t room)
{
    const gsi_vform *form = form_at(sim, cell.form);
    const char *acc = form->flags & GSI_VFORM_ACC ? "unrounded " : "";

    if (cell.form == GSI_FORM_UNDEF) {
        snprintf(text, room, "undefined");
    } else if (form->flags & GSI_VFORM_RAW) {
        snprintf(text, room, "rank %u's untouched contribution to element %u", form->first, cell.elem);
    } else if (form->flags & GSI_VFORM_TAIL) {
        snprintf(text, room, "the middle of an unrounded value of element %u", cell.elem);
    } else if (form->flags & GSI_VFORM_FINAL) {
        snprintf(text, room, "the final result of element %u", cell.elem);
    } else if (form->nranks == (uint32_t)sim->n) {
        snprintf(text, room, "the complete %spartial result of element %u, not FINAL", acc, cell.elem);
    } else {
        uint32_t lacks = 0;
        while (bits_at(sim, cell.form)[lacks / 64] >> (lacks % 64) & 1)
            lacks++;
        snprintf(text, room, "an %s%s result of element %u with %u of %d contributions, without rank %u's", acc,
                 *acc ? "partial" : "incomplete", cell.elem, form->nranks, (int)sim->n, lacks);
    }
    return text;
}

/* "element 5 of RECV", "byte 40 of rank 2's STAGE". */
static const char *name_cell(const gsi_sim *sim, int rank, const gsi_place *place, uint64_t i, char *text, size_t room)
{
    uint64_t at = place->off / sim->esize + i;
    char owner[32] = "";

    if (place->rank != rank)
        snprintf(owner, sizeof owner, "rank %d's ", (int)place->rank);
    if (place->space == GSI_STAGE)
        snprintf(text, room, "byte %llu of %sSTAGE", (unsigned long long)at * sim->esize, owner);
    else
        snprintf(text, room, "element %llu of %s%s", (unsigned long long)at, owner, gsi_verify_space(place->space));
    return text;
}

/* The owner of the memory has entered the call, and has not returned from it. */
static int present(gsi_sim *sim, int rank, uint32_t step, const gsi_place *place, uint64_t bytes)
{
    const gsi_vrank *owner = &sim->ranks[place->rank];

    if (!bytes || (place->rank == rank && !owner->done))
        return 0;
    if (!owner->entered)
        return gsi_verify_defect(sim, rank, step, "uses %s of rank %d, which may not have entered the call yet",
                                 gsi_verify_space(place->space), (int)place->rank);
    if (owner->done && (place->space != GSI_STAGE || !sim->gather))
        return gsi_verify_defect(sim, rank, step, "uses %s of rank %d, which may have returned from the call",
                                 gsi_verify_space(place->space), (int)place->rank);
    return 0;
}

static int defined(gsi_sim *sim, int rank, uint32_t step, const gsi_place *place, const gsi_vcell *cells, uint64_t n)
{
    char text[80];
    uint32_t undefined = 0;

    for (uint64_t i = 0; i < n; i++)
        undefined |= cells[i].form == GSI_FORM_UNDEF;
    for (uint64_t i = 0; undefined && i < n; i++)
        if (cells[i].form == GSI_FORM_UNDEF)
            return gsi_verify_defect(sim, rank, step, "reads undefined %s",
                                     name_cell(sim, rank, place, i, text, sizeof text));
    return 0;
}

int gsi_verify_copy(gsi_sim *sim, int rank, uint32_t at)
{
    const gsi_step *step = &sim->plans[rank]->steps[at];
    const gsi_place *places = &sim->plans[rank]->places[step->place];
    const gsi_vcell *src = sim->cells + gsi_verify_cell(sim, &places[0]);
    uint64_t n = step->bytes / sim->esize;
    int rc = present(sim, rank, at, &places[0], step->bytes);

    if (!rc)
        rc = defined(sim, rank, at, &places[0], src, n);
    for (uint32_t d = 1; d <= step->ndst && !rc; d++) {
        gsi_vcell *dst = sim->cells + gsi_verify_cell(sim, &places[d]);
        rc = present(sim, rank, at, &places[d], step->bytes);
        if (!rc && dst != src && n)
            memcpy(dst, src, n * sizeof *dst);
    }
    return rc;
}

int gsi_verify_put_read(gsi_sim *sim, int rank, uint32_t at, gsi_vput *put)
{
    const gsi_step *step = &sim->plans[rank]->steps[at];
    const gsi_place *place = &sim->plans[rank]->places[step->place];
    const gsi_vcell *src = sim->cells + gsi_verify_cell(sim, place);
    uint64_t n = step->bytes / sim->esize;
    int rc = present(sim, rank, at, place, step->bytes);

    if (!rc)
        rc = defined(sim, rank, at, place, src, n);
    if (rc || !n)
        return rc;
    if (n > put->room) {
        put->buf = gsi_verify_alloc(sim, 2 * n, sizeof *put->buf);
        if (!put->buf)
            return GRADSYNC_ERR_NOMEM;
        put->room = 2 * n;
    }
    memcpy(put->buf, src, n * sizeof *src);
    return 0;
}

int gsi_verify_put_write(gsi_sim *sim, int rank, uint32_t at, gsi_vput *put)
{
    const gsi_step *step = &sim->plans[rank]->steps[at];
    const gsi_place *place = &sim->plans[rank]->places[step->place + 1];
    uint64_t n = step->bytes / sim->esize;
    int rc = present(sim, rank, at, place, step->bytes);

    if (!rc && n)
        memcpy(sim->cells + gsi_verify_cell(sim, place), put->buf, n * sizeof *put->buf);
    return rc;
}

/* One REDUCE, as it works through its elements. */
typedef struct reduction {
    int rank;
    uint32_t at;
    const gsi_step *step;
    const gsi_place *places;
} reduction;

static int bad_source(gsi_sim *sim, const reduction *r, uint32_t j, uint64_t i, const char *what)
{
    uint32_t width = j == 0 && r->step->flags & GSI_STEP_ACC_IN ? sim->wide : 1;
    char text[80], value[128];
    gsi_vcell cell = sim->cells[gsi_verify_cell(sim, &r->places[j]) + i * width];

    return gsi_verify_defect(sim, r->rank, r->at, "%s: source %u, %s, is %s", what, j,
                             name_cell(sim, r->rank, &r->places[j], i * width, text, sizeof text),
                             gsi_verify_describe(sim, cell, value, sizeof value));
}

/* Source j, whose element i holds `cell`, is what the step takes it for. */
static int check_source(gsi_sim *sim, const reduction *r, uint32_t j, uint64_t i, gsi_vcell cell)
{
    const gsi_vform *form = form_at(sim, cell.form);
    int wide = j == 0 && r->step->flags & GSI_STEP_ACC_IN && sim->wide > 1;
    int32_t from = r->places[j].from;

    if (cell.form == GSI_FORM_UNDEF)
        return bad_source(sim, r, j, i, "reads undefined memory");
    if (form->flags & GSI_VFORM_FINAL)
        return bad_source(sim, r, j, i, "reduces a final result again");
    if (form->flags & GSI_VFORM_TAIL || (!wide && form->flags & GSI_VFORM_ACC))
        return bad_source(sim, r, j, i, "reads an unrounded value without ACC_IN");
    if (wide && !(form->flags & GSI_VFORM_ACC))
        return bad_source(sim, r, j, i, "reads a rounded value with ACC_IN");
    if (form->flags & GSI_VFORM_RAW && from != (int32_t)form->first)
        return bad_source(sim, r, j, i,
                          from == GSI_PARTIAL ? "`from` says partial (its prescale would be lost)"
                                              : "`from` names the wrong rank");
    if (!(form->flags & GSI_VFORM_RAW) && from != GSI_PARTIAL)
        return bad_source(sim, r, j, i, "`from` does not say partial (its prescale would apply again)");
    if (sim->ordered && sim->wide > 1 && !(form->flags & (GSI_VFORM_RAW | GSI_VFORM_ACC)))
        return bad_source(sim, r, j, i, "rounds twice in an ordered plan");
    return 0;
}

static int add_source(gsi_sim *sim, const reduction *r, uint32_t j, uint64_t i, gsi_vcell cell, uint32_t *have)
{
    const gsi_vform *form = form_at(sim, cell.form);
    const uint64_t *set = bits_at(sim, cell.form);
    char text[80];

    for (uint32_t w = 0; w < sim->words; w++) {
        uint64_t twice = sim->work[w] & set[w];
        if (twice)
            return gsi_verify_defect(sim, r->rank, r->at, "contribution of rank %u counted twice at %s (element %u)",
                                     64 * w + (uint32_t)__builtin_ctzll(twice),
                                     name_cell(sim, r->rank, &r->places[r->step->nsrc],
                                               i * (r->step->flags & GSI_STEP_ACC_OUT ? sim->wide : 1), text,
                                               sizeof text),
                                     cell.elem);
        sim->work[w] |= set[w];
    }
    /* A left fold: a lone contribution, or ranks 0 to k-1 and then k alone. */
    if (sim->ordered && j > 0 && (form->nranks != 1 || form->first != *have || !(sim->work[0] & 1))) {
        char what[80];
        snprintf(what, sizeof what, "canonical order broken after %u contributions", *have);
        return bad_source(sim, r, j, i, what);
    }
    *have += form->nranks;
    return 0;
}

/* The form of the result of the elements that are like element i; 0: *rc says why not. */
static uint32_t combine(gsi_sim *sim, const reduction *r, uint64_t i, int *rc)
{
    const gsi_step *step = r->step;
    uint32_t elem = 0, have = 0, flags = 0, form;

    memset(sim->work, 0, sim->words * sizeof *sim->work);
    for (uint32_t j = 0; j < step->nsrc; j++) {
        uint32_t width = j == 0 && step->flags & GSI_STEP_ACC_IN ? sim->wide : 1;
        gsi_vcell cell = sim->cells[gsi_verify_cell(sim, &r->places[j]) + i * width];
        *rc = check_source(sim, r, j, i, cell);
        if (!*rc && j > 0 && cell.elem != elem)
            *rc = gsi_verify_defect(sim, r->rank, r->at, "combines element %u (source 0) with element %u (source %u)",
                                    elem, cell.elem, j);
        if (!*rc)
            *rc = add_source(sim, r, j, i, cell, &have);
        if (*rc)
            return 0;
        elem = cell.elem;
    }
    if (step->flags & GSI_STEP_FINAL && have != (uint32_t)sim->n) {
        *rc = gsi_verify_defect(sim, r->rank, r->at, "FINAL with %u of %d contributions to element %u", have,
                                (int)sim->n, elem);
        return 0;
    }
    if (step->flags & GSI_STEP_FINAL)
        flags |= GSI_VFORM_FINAL;
    if (step->flags & GSI_STEP_ACC_OUT && sim->wide > 1)
        flags |= GSI_VFORM_ACC;
    form = intern(sim, sim->work, flags);
    if (!form)
        *rc = GRADSYNC_ERR_NOMEM;
    return form;
}

/* Whole blocks of 16 cells that are alike, elements counting up: at least 1. */
static uint64_t same_blocks(const gsi_vcell *c, uint64_t n)
{
    const uint32_t form = c->form, elem = c->elem;

    for (uint64_t k = 0;; k += 16) {
        uint32_t differ = 0;
        if (n - k < 16)
            return k ? k : 1;
        for (uint32_t t = 0; t < 16; t++)
            differ |= (c[k + t].form ^ form) | (c[k + t].elem ^ (elem + (uint32_t)k + t));
        if (differ)
            return k ? k : 1;
    }
}

/* How many elements from i on have the same forms in every source, elements counting up. */
static uint64_t run_length(const gsi_sim *sim, const reduction *r, uint64_t i, uint64_t n)
{
    uint64_t run = n - i;

    for (uint32_t j = 0; j < r->step->nsrc && run > 1; j++) {
        uint32_t width = j == 0 && r->step->flags & GSI_STEP_ACC_IN ? sim->wide : 1;
        const gsi_vcell *c = sim->cells + gsi_verify_cell(sim, &r->places[j]) + i * width;
        uint64_t k = width == 1 ? same_blocks(c, run) : 1;
        while (k < run && c[k * width].form == c[0].form && c[k * width].elem == c[0].elem + k)
            k++;
        run = k;
    }
    return run;
}

/* The tails of unrounded values are in place: nothing wrote across them. */
static int check_tails(gsi_sim *sim, const reduction *r, uint64_t i, uint64_t run)
{
    const gsi_vcell *c = sim->cells + gsi_verify_cell(sim, &r->places[0]) + i * sim->wide;

    for (uint64_t k = 0; k < run; k++, c += sim->wide)
        for (uint32_t t = 1; t < sim->wide; t++)
            if (c[t].form != c[0].form + t || c[t].elem != c[0].elem)
                return bad_source(sim, r, 0, i + k, "reads an unrounded value that was partly overwritten");
    return 0;
}

static void write_run(gsi_sim *sim, const gsi_place *place, uint64_t i, uint64_t run, gsi_vcell value, uint32_t width)
{
    gsi_vcell *dst = sim->cells + gsi_verify_cell(sim, place) + i * width;

    for (uint64_t k = 0; k < run; k++, value.elem++)
        for (uint32_t t = 0; t < width; t++)
            *dst++ = (gsi_vcell){value.form + t, value.elem};
}

int gsi_verify_reduce(gsi_sim *sim, int rank, uint32_t at)
{
    const gsi_step *step = &sim->plans[rank]->steps[at];
    const reduction r = {rank, at, step, &sim->plans[rank]->places[step->place]};
    uint64_t n = step->bytes / sim->esize, run;
    uint32_t in = step->flags & GSI_STEP_ACC_IN ? sim->wide : 1;
    uint32_t out = step->flags & GSI_STEP_ACC_OUT ? sim->wide : 1;
    int rc = 0;

    for (uint32_t j = 0; j < (uint32_t)step->nsrc + step->ndst && !rc; j++)
        rc = present(sim, rank, at, &r.places[j], step->bytes);
    for (uint64_t i = 0; i < n && !rc; i += run) {
        gsi_vcell value = {0, sim->cells[gsi_verify_cell(sim, &r.places[0]) + i * in].elem};
        run = run_length(sim, &r, i, n);
        value.form = combine(sim, &r, i, &rc);
        if (!rc && in > 1)
            rc = check_tails(sim, &r, i, run);
        for (uint32_t d = 0; d < step->ndst && !rc; d++)
            write_run(sim, &r.places[step->nsrc + d], i, run, value, out);
    }
    return rc;
}
