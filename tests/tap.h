/* SPDX-License-Identifier: Apache-2.0 */
/* The Test Anything Protocol, as much of it as our tests need. */
#ifndef TESTS_TAP_H
#define TESTS_TAP_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static int tap_count, tap_failed;

/* One test: prints its line, returns cond. */
__attribute__((format(printf, 2, 3), unused)) static int tap_ok(int cond, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    printf("%s %d - ", cond ? "ok" : "not ok", ++tap_count);
    vprintf(format, args);
    printf("\n");
    fflush(stdout);
    va_end(args);
    if (!cond)
        tap_failed++;
    return cond;
}

__attribute__((format(printf, 1, 2), unused)) static void tap_note(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    printf("# ");
    vprintf(format, args);
    printf("\n");
    fflush(stdout);
    va_end(args);
}

/* n tests that cannot run here, and why. */
__attribute__((unused)) static void tap_skip(int n, const char *why)
{
    while (n-- > 0)
        printf("ok %d - # SKIP %s\n", ++tap_count, why);
    fflush(stdout);
}

/* Ends the program's tests: return tap_done(); from main. */
__attribute__((unused)) static int tap_done(void)
{
    printf("1..%d\n", tap_count);
    fflush(stdout);
    return tap_failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
