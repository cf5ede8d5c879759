/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verifier: runs the plans of all ranks symbolically and proves that every
 * element of every rank's result holds every rank's contribution exactly once (in
 * the canonical order for `ordered` plans), that nothing else in RECV is written,
 * that no two steps race on memory (vector clocks, Lamport 1978, Fidge 1988), that
 * every signal is awaited, and that the plans cannot deadlock with their credits.
 */
#ifndef GSI_PLAN_VERIFY_H
#define GSI_PLAN_VERIFY_H

#include "plan/plan.h"

enum gsi_verify_alias {
    GSI_VERIFY_OUT_OF_PLACE,
    GSI_VERIFY_IN_PLACE,
    GSI_VERIFY_MIXED, /* even ranks in place, odd ranks not */
};

typedef struct gsi_verify_opts {
    int alias;     /* enum gsi_verify_alias */
    uint64_t seed; /* of the schedule in which ranks and streams take turns */
    int races;     /* 1: check for races too (memory n times larger) */
} gsi_verify_opts;

/* Verifies the n plans (index = rank) built from `args`. 0, or INVALID with the
 * first defect in `why`: rank, stream, step, element. Errors: NOMEM. */
int gsi_plan_verify(gsi_plan *const *plans, const gsi_plan_args *args, const gsi_verify_opts *opts, char *why,
                    size_t room);

#endif
