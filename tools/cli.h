/* SPDX-License-Identifier: Apache-2.0 */
/* What the command-line programs share: numbers, sizes, usage errors, help. */
#ifndef TOOLS_CLI_H
#define TOOLS_CLI_H

#include <getopt.h>
#include <stdint.h>

/* "12" with lo <= value <= hi. Returns 0, or -1 and leaves *out alone. */
int cli_int(const char *text, long long lo, long long hi, long long *out);
/* A finite decimal number, lo <= value <= hi. */
int cli_double(const char *text, double lo, double hi, double *out);
/* Bytes: "64", "4K", "1.5M", "2G" (binary; b, k, m, g, t and an "iB" or "B" behind them too). */
int cli_bytes(const char *text, uint64_t *out);

/* Prints "PROGRAM: sentence" and the hint to ask for help, to stderr, in one write. */
__attribute__((format(printf, 2, 3))) void cli_usage_error(const char *program, const char *format, ...);
/* The usage error behind getopt_long()'s '?' and ':' (call with opterr = 0 and a
 * leading ':' in the short options). Must follow the call directly. */
void cli_option_error(const char *program, int result, char *const *argv, const struct option *longs);
/* Prints "PROGRAM: sentence" to stderr, in one write. */
__attribute__((format(printf, 2, 3))) void cli_error(const char *program, const char *format, ...);

/* Prints --version: the program's own and the running library's, which may differ. */
void cli_print_version(const char *program);
/* The same as the head of a table: a comment line. */
void cli_print_header(const char *program);
/* Flushes stdout; a result other than 0 means that output was lost (said on stderr). */
int cli_close_stdout(const char *program);

#endif
