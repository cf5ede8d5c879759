/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starts local ranks of one program, watches over them, and passes signals and
 * output on: what gradsync-run is, and what gradsync-perf --ranks needs.
 * One thread, driven by poll(2); nothing wakes it up while nothing happens.
 */
#ifndef TOOLS_LAUNCH_H
#define TOOLS_LAUNCH_H

enum launch_output {
    LAUNCH_OUTPUT_RAW,     /* ranks write to the launcher's own stdout and stderr */
    LAUNCH_OUTPUT_PREFIX,  /* whole lines, each behind "[rank] " */
    LAUNCH_OUTPUT_SEPARATE /* output_dir/rank.R.out and .err */
};

enum {
    LAUNCH_MAX_RANKS = 4096,
    /* Exit statuses of the launcher's own, as those of timeout(1) and env(1). */
    LAUNCH_EXIT_TIMEOUT = 124,
    LAUNCH_EXIT_FAILED = 125,
    LAUNCH_EXIT_NOT_EXECUTABLE = 126,
    LAUNCH_EXIT_NOT_FOUND = 127,
};

typedef struct launch_config {
    const char *name;  /* in front of the launcher's own messages on stderr */
    const char *path;  /* the file to execute; NULL: argv[0], found by PATH */
    char *const *argv; /* of every rank; NULL past the last */
    int ranks;         /* 1 .. LAUNCH_MAX_RANKS */
    int stdin_rank;    /* the rank that gets the launcher's stdin; -1: none */
    int bind_core;     /* 1: rank r runs on the r-th usable CPU only */
    int keep_going;    /* 1: a failure leaves the other ranks alone */
    double grace_s;    /* how long the other ranks may go on after the first failure */
    double timeout_s;  /* of the whole job; 0: none */
    enum launch_output output;
    const char *output_dir; /* with LAUNCH_OUTPUT_SEPARATE; made if missing */
} launch_config;

/* Runs the ranks to their end. Returns the exit status to leave with: 0, the first
 * failure's (128 + signal), or one of the launcher's own above. Call once a process,
 * with one thread: it takes over SIGCHLD, SIGPIPE and the forwarded signals. */
int launch(const launch_config *config);

#endif
