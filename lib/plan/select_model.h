/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the selector: what the formulas for one host (select.c) and those for several (select_wire.c) work on. */
#ifndef GSI_PLAN_SELECT_MODEL_H
#define GSI_PLAN_SELECT_MODEL_H

#include "plan/select.h"

typedef struct gsi_model {
    const gsi_costs *costs;
    gsi_plan_args args; /* as the plan would be built from */
    double n, S;
    double X, A;
    double log2n; /* rounded up */
    double exchange_us, copy_us, reduce_us, transfer_us;
    double copied; /* bytes, for the transfers */
    double moved;  /* bytes that pass between cores, where that is not twice what is copied */
} gsi_model;

/* Adds the time for that many bytes by one rank that goes through `footprint` bytes of memory in the call. */
void gsi_model_copies(gsi_model *m, double bytes, double footprint);
void gsi_model_reduces(gsi_model *m, double bytes, double footprint);

/* Predicts a plan over several hosts; n > 1, and the algorithm fits. */
void gsi_predict_wire(gsi_model *m);

#endif
