/* SPDX-License-Identifier: Apache-2.0 */
#include "doctor/findings.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

void gsi_find(gsi_findings *list, int severity, const char *subject, const char *cause, ...)
{
    va_list args;

    if (list->failed)
        return;
    if ((list->n & (list->n - 1)) == 0) { /* room doubles at each power of two */
        gradsync_finding *more = gsi_realloc(list->items, (list->n ? (size_t)list->n * 2 : 1) * sizeof *more);
        if (!more) {
            list->failed = 1;
            return;
        }
        list->items = more;
    }
    gradsync_finding *f = &list->items[list->n++];
    memset(f, 0, sizeof *f); /* callers may compare or store it whole */
    f->size = (uint32_t)sizeof *f;
    f->severity = severity;
    snprintf(f->id, sizeof f->id, "%s", list->id);
    snprintf(f->subject, sizeof f->subject, "%s", subject);
    va_start(args, cause);
    vsnprintf(f->cause, sizeof f->cause, cause, args);
    va_end(args);
}

void gsi_remedy(gsi_findings *list, const char *remedy, ...)
{
    va_list args;

    if (list->failed || !list->n)
        return;
    gradsync_finding *f = &list->items[list->n - 1];
    va_start(args, remedy);
    vsnprintf(f->remedy, sizeof f->remedy, remedy, args);
    va_end(args);
}
