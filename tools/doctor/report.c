/* SPDX-License-Identifier: Apache-2.0 */
#include "report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { INDENT = 9, NARROW = 60, WIDTH = 100 };

static report_item *add(report *r, const gradsync_finding *finding)
{
    if ((r->n & (r->n - 1)) == 0) { /* room doubles at each power of two */
        report_item *more = realloc(r->items, (r->n ? (size_t)r->n * 2 : 1) * sizeof *more);
        if (!more) {
            r->failed = 1;
            return NULL;
        }
        r->items = more;
    }
    report_item *item = &r->items[r->n++];
    *item = (report_item){.f = *finding};
    return item;
}

void report_add(void *arg, const gradsync_finding *finding)
{
    report *r = arg;

    if (!r->failed)
        add(r, finding);
}

void report_add_of(report *r, const gradsync_finding *finding, const char *host)
{
    report_item *item = NULL;

    for (int i = 0; i < r->n && !item; i++) {
        const gradsync_finding *f = &r->items[i].f;
        if (r->items[i].hosts && f->severity == finding->severity && !strcmp(f->id, finding->id) &&
            !strcmp(f->subject, finding->subject) && !strcmp(f->cause, finding->cause))
            item = &r->items[i];
    }
    if (!item && (r->failed || !(item = add(r, finding))))
        return;
    size_t at = strlen(item->where), room = sizeof item->where;
    if (at + strlen(host) + 24 < room)
        snprintf(item->where + at, room - at, "%s%s", item->hosts ? ", " : "", host);
    else if (at < 3 || strcmp(item->where + at - 3, "...") != 0)
        snprintf(item->where + at, room - at, ", ...");
    item->hosts++;
}

void report_free(report *r)
{
    free(r->items);
    *r = (report){.n = 0};
}

int report_has_id(const report *r, const char *id)
{
    for (int i = 0; i < r->n; i++)
        if (!strcmp(r->items[i].f.id, id))
            return 1;
    return 0;
}

/* 1 if `list` ("a,b") names id. */
static int names(const char *list, const char *id)
{
    size_t len = strlen(id);

    for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',')
        if (strcspn(p, ",") == len && !strncmp(p, id, len))
            return 1;
    return 0;
}

void report_filter(report *r, const char *only, const char *skip)
{
    int n = 0;

    for (int i = 0; i < r->n; i++)
        if ((!only || names(only, r->items[i].f.id)) && (!skip || !names(skip, r->items[i].f.id)))
            r->items[n++] = r->items[i];
    r->n = n;
}

int report_count(const report *r, int severity)
{
    int n = 0;

    for (int i = 0; i < r->n; i++)
        n += r->items[i].f.severity == severity;
    return n;
}

int report_status(const report *r)
{
    return report_count(r, GRADSYNC_FINDING_ERROR)     ? DOCTOR_EXIT_ERRORS
           : report_count(r, GRADSYNC_FINDING_WARNING) ? DOCTOR_EXIT_WARNINGS
                                                       : DOCTOR_EXIT_WELL;
}

const char *severity_name(int severity)
{
    switch (severity) {
    case GRADSYNC_FINDING_SKIPPED:
        return "skipped";
    case GRADSYNC_FINDING_OK:
        return "ok";
    case GRADSYNC_FINDING_HINT:
        return "hint";
    case GRADSYNC_FINDING_WARNING:
        return "warning";
    case GRADSYNC_FINDING_ERROR:
        return "error";
    default:
        return "?";
    }
}

/* ---- Text ------------------------------------------------------------------------------ */

static int text_width(void)
{
    struct winsize size;

    if (isatty(STDOUT_FILENO) && !ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_col >= NARROW)
        return size.ws_col < WIDTH ? size.ws_col : WIDTH;
    return WIDTH;
}

/* Prints a paragraph behind a label, broken at blanks; the first letter is made a capital. */
static void put_paragraph(const char *label, const char *text, int width)
{
    int column = printf("%*s%s", INDENT, "", label), first = 1;
    int left = column;

    while (*text) {
        int n = (int)strcspn(text, " ");
        if (!first && column + 1 + n > width) {
            printf("\n%*s", left, "");
            column = left;
        } else if (!first) {
            putchar(' ');
            column++;
        }
        if (first && !label[0] && *text >= 'a' && *text <= 'z' && strcspn(text, "0123456789_:/") >= (size_t)n)
            printf("%c%.*s", *text - 'a' + 'A', n - 1, text + 1);
        else
            printf("%.*s", n, text);
        column += n;
        first = 0;
        text += n + (text[n] == ' ');
    }
    puts(label[0] ? "" : "."); /* a remedy may be a command: nothing is added to it */
}

static void plural(int n, const char *what)
{
    printf("%d %s%s", n, what, n == 1 ? "" : "s");
}

void report_text(const report *r, int all)
{
    /* The worst first; within one severity in the order of the checks. */
    static const int order[] = {GRADSYNC_FINDING_ERROR, GRADSYNC_FINDING_WARNING, GRADSYNC_FINDING_HINT,
                                GRADSYNC_FINDING_OK, GRADSYNC_FINDING_SKIPPED};
    int width = text_width() - 1; /* and a full stop */

    for (size_t s = 0; s < (all ? 5 : 3); s++) {
        for (int i = 0; i < r->n; i++) {
            const gradsync_finding *f = &r->items[i].f;
            if (f->severity != order[s])
                continue;
            printf("%-*s%s%s%s", INDENT, severity_name(f->severity), f->id, f->subject[0] ? "  " : "", f->subject);
            if (r->items[i].hosts)
                printf("  on %s", r->items[i].where);
            if (f->severity == GRADSYNC_FINDING_OK || (f->severity == GRADSYNC_FINDING_SKIPPED && !f->remedy[0])) {
                printf(": %s\n", f->cause);
                continue;
            }
            putchar('\n');
            put_paragraph("", f->cause, width);
            if (f->remedy[0])
                put_paragraph("-> ", f->remedy, width);
        }
    }
    printf("%s%s%s: ", r->host, r->root ? ", from " : "", r->root ? r->root : "");
    plural(report_count(r, GRADSYNC_FINDING_ERROR), "error");
    printf(", ");
    plural(report_count(r, GRADSYNC_FINDING_WARNING), "warning");
    printf(", ");
    plural(report_count(r, GRADSYNC_FINDING_HINT), "hint");
    printf("; %d well, %d not checked%s\n", report_count(r, GRADSYNC_FINDING_OK),
           report_count(r, GRADSYNC_FINDING_SKIPPED), all ? "" : " (--verbose shows them)");
}

/* ---- JSON ------------------------------------------------------------------------------- */

void json_text(const char *text)
{
    putchar('"');
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '"' || *p == '\\')
            printf("\\%c", *p);
        else if (*p < ' ' || *p > '~')
            printf("\\u%04x", *p);
        else
            putchar(*p);
    }
    putchar('"');
}

void report_json(const report *r)
{
    printf("  \"program\": \"gradsync-doctor\",\n  \"library_version\": ");
    json_text(gradsync_version());
    printf(",\n  \"host\": ");
    json_text(r->host);
    printf(",\n  \"root\": ");
    if (r->root)
        json_text(r->root);
    else
        printf("null");
    printf(",\n  \"status\": %d,\n  \"errors\": %d,\n  \"warnings\": %d,\n  \"hints\": %d,\n  \"findings\": [",
           report_status(r), report_count(r, GRADSYNC_FINDING_ERROR), report_count(r, GRADSYNC_FINDING_WARNING),
           report_count(r, GRADSYNC_FINDING_HINT));
    for (int i = 0; i < r->n; i++) {
        const gradsync_finding *f = &r->items[i].f;
        printf("%s\n    {\"id\": ", i ? "," : "");
        json_text(f->id);
        if (r->items[i].hosts) {
            printf(", \"hosts\": ");
            json_text(r->items[i].where);
        }
        printf(", \"severity\": \"%s\", \"subject\": ", severity_name(f->severity));
        json_text(f->subject);
        printf(",\n     \"cause\": ");
        json_text(f->cause);
        printf(",\n     \"remedy\": ");
        json_text(f->remedy);
        printf("}");
    }
    printf("%s]", r->n ? "\n  " : "");
}
