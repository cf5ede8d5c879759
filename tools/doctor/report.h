/* SPDX-License-Identifier: Apache-2.0 */
/* The findings of a machine, and how gradsync-doctor tells them: as text, as JSON, as an exit status. */
#ifndef TOOLS_DOCTOR_REPORT_H
#define TOOLS_DOCTOR_REPORT_H

#include <gradsync/gradsync.h>

enum {
    DOCTOR_EXIT_WELL = 0,
    DOCTOR_EXIT_WARNINGS = 1,
    DOCTOR_EXIT_ERRORS = 2,
    DOCTOR_EXIT_FAILED = 3 /* it could not look, or was called wrongly */
};

/* A finding, and where: "" for this machine, "host1, host2" if several found the same. */
typedef struct report_item {
    gradsync_finding f;
    char where[160];
    int hosts; /* how many */
} report_item;

typedef struct report {
    char host[72];    /* whose findings these are */
    const char *root; /* NULL: this machine */
    report_item *items;
    int n;
    int failed; /* 1: memory ran out */
} report;

/* A gradsync_finding_fn with a report as its argument. */
void report_add(void *arg, const gradsync_finding *finding);
/* The same of a named host; what several hosts find alike becomes one item. */
void report_add_of(report *r, const gradsync_finding *finding, const char *host);
void report_free(report *r);
/* "port-down": 1 if any finding has this id. */
int report_has_id(const report *r, const char *id);
/* Drops the findings whose id is not in `only` (NULL: all are) or is in `skip` (NULL: none is): comma-separated. */
void report_filter(report *r, const char *only, const char *skip);
/* How many findings are of a severity. */
int report_count(const report *r, int severity);
/* DOCTOR_EXIT_WELL, _WARNINGS or _ERRORS. */
int report_status(const report *r);
/* all: those too that are OK or skipped. */
void report_text(const report *r, int all);

/* "error". Static storage. */
const char *severity_name(int severity);
/* Prints text as a JSON string, with its quotes. What is no printable ASCII becomes an escape, so that any bytes
 * make valid JSON. */
void json_text(const char *text);
/* The members of a report, without the braces around them. */
void report_json(const report *r);

#endif
