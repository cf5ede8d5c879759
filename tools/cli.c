/* SPDX-License-Identifier: Apache-2.0 */
#include "cli.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <gradsync/gradsync.h>

#define STRINGIFY(x)          #x
#define VERSION_TEXT(a, b, c) STRINGIFY(a) "." STRINGIFY(b) "." STRINGIFY(c)

int cli_int(const char *text, long long lo, long long hi, long long *out)
{
    char *end;

    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || end == text || *end || value < lo || value > hi)
        return -1;
    *out = value;
    return 0;
}

int cli_double(const char *text, double lo, double hi, double *out)
{
    char *end;

    errno = 0;
    double value = strtod(text, &end);
    if (errno || end == text || *end || !isfinite(value) || value < lo || value > hi)
        return -1;
    *out = value;
    return 0;
}

int cli_bytes(const char *text, uint64_t *out)
{
    static const char units[] = "BKMGT";
    char *end;

    errno = 0;
    double value = strtod(text, &end);
    if (errno || end == text || !isfinite(value) || value < 0 || strchr(text, 'x') || strchr(text, 'X'))
        return -1;
    if (*end) {
        const char *unit = strchr(units, *end >= 'a' ? *end - 'a' + 'A' : *end);
        if (!unit)
            return -1;
        value = ldexp(value, 10 * (int)(unit - units));
        end++;
        if (unit != units && end[0] == 'i')
            end++;
        if (unit != units && (end[0] == 'B' || end[0] == 'b'))
            end++;
        if (*end)
            return -1;
    }
    if (value > 9e18 || value != floor(value))
        return -1;
    *out = (uint64_t)value;
    return 0;
}

/* One write keeps the line whole when several ranks write to one stderr. */
static void put(const char *program, const char *format, va_list args, const char *tail)
{
    char text[2048];
    size_t room = sizeof text - 160;
    int at = snprintf(text, 128, "%s: ", program);
    /* The analyser loses va_start() where it inlines a variadic function. */
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized) */
    int n = vsnprintf(text + at, room, format, args);

    at += n < 0 ? 0 : n < (int)room ? n : (int)room - 1;
    at += snprintf(text + at, sizeof text - (size_t)at, "%s\n", tail);
    if (write(STDERR_FILENO, text, (size_t)at) < 0)
        return; /* nowhere left to say it */
}

void cli_error(const char *program, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    put(program, format, args, "");
    va_end(args);
}

void cli_usage_error(const char *program, const char *format, ...)
{
    va_list args;
    char tail[128];

    snprintf(tail, sizeof tail, "\nTry '%s --help'.", program);
    va_start(args, format);
    put(program, format, args, tail);
    va_end(args);
}

void cli_option_error(const char *program, int result, char *const *argv, const struct option *longs)
{
    /* For a long option getopt_long() has stepped past it, and optopt is 0 or its value. */
    const char *word = argv[optind - 1];

    if (result == ':') {
        if (strncmp(word, "--", 2) == 0)
            cli_usage_error(program, "option '%s' needs a value", word);
        else
            cli_usage_error(program, "option '-%c' needs a value", optopt);
        return;
    }
    if (strncmp(word, "--", 2) != 0 || word[2] == '\0') {
        cli_usage_error(program, "unknown option '-%c'", optopt);
        return;
    }
    size_t n = strcspn(word, "=");
    int similar = 0, exact = 0;
    for (const struct option *o = longs; o->name; o++) {
        if (strncmp(o->name, word + 2, n - 2) != 0)
            continue;
        similar++;
        exact |= strlen(o->name) == n - 2;
    }
    if (word[n] == '=' && (exact || similar == 1)) {
        cli_usage_error(program, "option '%.*s' takes no value", (int)n, word);
        return;
    }
    cli_usage_error(program, "%s option '%.*s'", similar ? "ambiguous" : "unknown", (int)n, word);
}

void cli_print_version(const char *program)
{
    printf("%s %s (libgradsync %s)\n", program,
           VERSION_TEXT(GRADSYNC_VERSION_MAJOR, GRADSYNC_VERSION_MINOR, GRADSYNC_VERSION_PATCH), gradsync_version());
}

void cli_print_header(const char *program)
{
    printf("# ");
    cli_print_version(program);
}

int cli_close_stdout(const char *program)
{
    int failed = ferror(stdout);

    errno = 0;
    if (fflush(stdout) != 0)
        failed = 1;
    if (failed)
        cli_error(program, "cannot write standard output%s%s", errno ? ": " : "", errno ? strerror(errno) : "");
    return failed ? -1 : 0;
}
