/* SPDX-License-Identifier: Apache-2.0 */
/* gradsync-run: starts the local ranks of a job. See gradsync-run(1). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "launch.h"

static const char name[] = "gradsync-run";

static const char help[] =
    "Usage: gradsync-run -n N [options] [--] PROGRAM [ARGUMENT...]\n"
    "Starts N local ranks of PROGRAM, passes their output and signals on, reports the\n"
    "first failure and exits with its status.\n"
    "\n"
    "  -n, --ranks N         how many ranks to start (1 to 4096)\n"
    "      --output MODE     prefix: whole lines, each behind its rank, \"[3] \" (default if N > 1)\n"
    "                        raw: the ranks write to stdout and stderr themselves (default if N = 1)\n"
    "                        separate: DIR/rank.3.out and DIR/rank.3.err\n"
    "      --output-dir DIR  for --output separate, which it implies (default gradsync-output)\n"
    "      --stdin WHO       the rank that gets standard input, or none (default 0)\n"
    "      --bind WHAT       none, or core: rank R on the R-th usable CPU only (default none)\n"
    "      --grace S         after the first failure, the others have S seconds to end by\n"
    "                        themselves; then SIGTERM, 5 s later SIGKILL (default 10)\n"
    "      --keep-going      leave the other ranks alone when one fails\n"
    "      --timeout S       end the job after S seconds, with status 124\n"
    "  -h, --help            this text\n"
    "  -V, --version         the version\n"
    "\n"
    "Each rank finds GRADSYNC_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE, _ROOT, _JOB and _KEY in its\n"
    "environment, and for other software RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,\n"
    "MASTER_ADDR and MASTER_PORT.\n"
    "\n"
    "Exit status: 0 if every rank ended with 0, else that of the rank that failed first (128 +\n"
    "the signal's number if one killed it); 124 after --timeout, 125 if gradsync-run itself\n"
    "failed or was called wrongly, 126 if PROGRAM cannot be executed, 127 if it is not found.\n";

enum { OPT_OUTPUT = 256, OPT_OUTPUT_DIR, OPT_STDIN, OPT_BIND, OPT_GRACE, OPT_KEEP_GOING, OPT_TIMEOUT };

static const struct option longs[] = {{"ranks", required_argument, NULL, 'n'},
                                      {"output", required_argument, NULL, OPT_OUTPUT},
                                      {"output-dir", required_argument, NULL, OPT_OUTPUT_DIR},
                                      {"stdin", required_argument, NULL, OPT_STDIN},
                                      {"bind", required_argument, NULL, OPT_BIND},
                                      {"grace", required_argument, NULL, OPT_GRACE},
                                      {"keep-going", no_argument, NULL, OPT_KEEP_GOING},
                                      {"timeout", required_argument, NULL, OPT_TIMEOUT},
                                      {"help", no_argument, NULL, 'h'},
                                      {"version", no_argument, NULL, 'V'},
                                      {NULL, 0, NULL, 0}};

static int wrong(const char *option, const char *value, const char *expected)
{
    cli_usage_error(name, "%s '%s' is wrong: give %s", option, value, expected);
    return -1;
}

/* One option. Returns 0, or -1 after saying what is wrong with its value. */
static int take_option(int option, const char *value, launch_config *c, int *output_set)
{
    long long number;

    switch (option) {
    case 'n':
        if (cli_int(value, 1, LAUNCH_MAX_RANKS, &number) != 0)
            return wrong("-n", value, "a number of ranks from 1 to 4096");
        c->ranks = (int)number;
        return 0;
    case OPT_OUTPUT:
        *output_set = 1;
        if (strcmp(value, "prefix") == 0)
            c->output = LAUNCH_OUTPUT_PREFIX;
        else if (strcmp(value, "raw") == 0)
            c->output = LAUNCH_OUTPUT_RAW;
        else if (strcmp(value, "separate") == 0)
            c->output = LAUNCH_OUTPUT_SEPARATE;
        else
            return wrong("--output", value, "prefix, raw or separate");
        return 0;
    case OPT_OUTPUT_DIR:
        if (!*value)
            return wrong("--output-dir", value, "a directory");
        c->output_dir = value;
        return 0;
    case OPT_STDIN:
        if (strcmp(value, "none") == 0)
            number = -1;
        else if (cli_int(value, 0, LAUNCH_MAX_RANKS - 1, &number) != 0)
            return wrong("--stdin", value, "a rank, or none");
        c->stdin_rank = (int)number;
        return 0;
    case OPT_BIND:
        if (strcmp(value, "core") != 0 && strcmp(value, "none") != 0)
            return wrong("--bind", value, "core or none");
        c->bind_core = value[0] == 'c';
        return 0;
    case OPT_GRACE:
        return cli_double(value, 0, 1e9, &c->grace_s) == 0 ? 0 : wrong("--grace", value, "seconds, 0 or more");
    case OPT_TIMEOUT:
        return cli_double(value, 1e-3, 1e9, &c->timeout_s) == 0 ? 0 : wrong("--timeout", value, "seconds, over 0");
    default:
        c->keep_going = 1;
        return 0;
    }
}

int main(int argc, char **argv)
{
    launch_config c = {.name = name, .grace_s = 10};
    int output_set = 0, option;

    opterr = 0;
    /* '+': what follows the program's name is the program's. */
    while ((option = getopt_long(argc, argv, "+:n:hV", longs, NULL)) != -1) {
        if (option == 'h') {
            fputs(help, stdout);
            return cli_close_stdout(name) ? LAUNCH_EXIT_FAILED : 0;
        }
        if (option == 'V') {
            cli_print_version(name);
            return cli_close_stdout(name) ? LAUNCH_EXIT_FAILED : 0;
        }
        if (option == '?' || option == ':') {
            cli_option_error(name, option, argv, longs);
            return LAUNCH_EXIT_FAILED;
        }
        if (take_option(option, optarg, &c, &output_set) != 0)
            return LAUNCH_EXIT_FAILED;
    }
    if (c.ranks == 0) {
        cli_usage_error(name, "how many ranks? give -n N");
        return LAUNCH_EXIT_FAILED;
    }
    if (optind == argc) {
        cli_usage_error(name, "which program? give its name after the options");
        return LAUNCH_EXIT_FAILED;
    }
    if (c.stdin_rank >= c.ranks) {
        cli_usage_error(name, "--stdin %d is no rank: they are 0 to %d", c.stdin_rank, c.ranks - 1);
        return LAUNCH_EXIT_FAILED;
    }
    if (c.output_dir && output_set && c.output != LAUNCH_OUTPUT_SEPARATE) {
        cli_usage_error(name, "--output-dir goes with --output separate only");
        return LAUNCH_EXIT_FAILED;
    }
    if (c.output_dir)
        c.output = LAUNCH_OUTPUT_SEPARATE;
    else if (!output_set)
        c.output = c.ranks > 1 ? LAUNCH_OUTPUT_PREFIX : LAUNCH_OUTPUT_RAW;
    if (!c.output_dir)
        c.output_dir = "gradsync-output";
    c.argv = argv + optind;
    return launch(&c);
}
