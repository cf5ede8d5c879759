/* SPDX-License-Identifier: Apache-2.0 */
/* What a collective did, and what one would do, in words. */
#include "engine/engine.h"

#include <stdio.h>

#include "base/cpu.h"

/* The reason is made when it is asked for: the choice is a pure function of what the op carries. */
static void explain_choice(const gsi_engine *e, const gsi_op *op, char *text, size_t room)
{
    gsi_choice choice;
    int plain = op->algo == GRADSYNC_ALGO_ONESHOT || op->algo == GRADSYNC_ALGO_STAGED;

    if (!e->ep) {
        snprintf(text, room, "%s: its communicator has been destroyed, and the reason with it",
                 gradsync_algo_name(op->algo));
        return;
    }
    if (op->call.algo || e->default_algo) {
        snprintf(text, room, "%s: asked for by the %s", gradsync_algo_name(op->algo),
                 op->call.algo ? "call" : "communicator");
        return;
    }
    gsi_engine_choose(e, &op->call, !plain, 0, 0, 0, 0, &choice);
    if (choice.algo == op->algo)
        snprintf(text, room, "%s", choice.reason);
    else
        snprintf(text, room, "%s: %.1f us predicted; the payload travels with the header", gradsync_algo_name(op->algo),
                 op->predicted_us);
}

void gsi_engine_report(const gsi_engine *e, const gsi_op *op, gradsync_report *out)
{
    *out = (gradsync_report){
        .coll = op->call.coll,
        .algo = op->algo,
        .result = op->result,
        .seq = op->number,
        .bytes = op->bytes,
        .predicted_us = op->predicted_us,
        .measured_us = op->measured_us,
        .wait_us = op->measured_us - gsi_ticks_us(op->work_ticks),
    };
    if (op->result)
        snprintf(out->reason, sizeof out->reason, "failed: %s", gradsync_strerror(op->result));
    else if (op->call.coll >= GRADSYNC_COLL_COUNT)
        out->reason[0] = 0; /* there is nothing to choose between */
    else
        explain_choice(e, op, out->reason, sizeof out->reason);
}
