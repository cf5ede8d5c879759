/* SPDX-License-Identifier: Apache-2.0 */
/* How long plans take on a modelled machine: what the builders' choices and the selector's formulas are held against.
 */
#ifndef TESTS_PLAN_TIMING_H
#define TESTS_PLAN_TIMING_H

#include "plan/plan.h"

/* Times in us, rates in bytes per us. */
typedef struct timing {
    double latency;      /* from host to host, of a message without bytes */
    double wire;         /* rate of a host's wire, each way */
    double message;      /* the wire's time for a message, besides its bytes */
    double signal;       /* from rank to rank in a host */
    double copy, reduce; /* a rank's rates: bytes copied, source bytes reduced */
    double step;         /* a rank's time for any step */
} timing;

/* Until the last rank has finished, with the headers; and bytes and messages that the busiest host sent. */
double timing_of(gsi_plan *const *plans, const gsi_plan_args *args, const timing *with, double *bytes,
                 double *messages);

#endif
