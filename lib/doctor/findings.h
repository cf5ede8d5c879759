/* SPDX-License-Identifier: Apache-2.0 */
/* The list that checks add their findings to. */
#ifndef GSI_DOCTOR_FINDINGS_H
#define GSI_DOCTOR_FINDINGS_H

#include <gradsync/gradsync.h>

typedef struct gsi_findings {
    gradsync_finding *items;
    int n;
    int failed;     /* 1: memory ran out, and something is missing */
    const char *id; /* of the check that runs */
} gsi_findings;

/* Adds a finding of the running check; its cause is one sentence without a full stop. The remedy comes next. */
__attribute__((format(printf, 4, 5))) void gsi_find(gsi_findings *list, int severity, const char *subject,
                                                    const char *cause, ...);
/* The remedy of the last finding: one sentence without a full stop. */
__attribute__((format(printf, 2, 3))) void gsi_remedy(gsi_findings *list, const char *remedy, ...);

#endif
