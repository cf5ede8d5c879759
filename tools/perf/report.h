/* SPDX-License-Identifier: Apache-2.0 */
/* The files that a run writes: JSON, CSV, a plot. */
#ifndef TOOLS_PERF_REPORT_H
#define TOOLS_PERF_REPORT_H

#include <stddef.h>

#include "perf.h"

typedef struct perf_file {
    const char *path; /* NULL: not wanted */
    int fd;
    int created; /* by us: removed again if nothing comes of the run */
} perf_file;

typedef struct perf_files {
    perf_file json, csv, plot;
} perf_files;

/* Opens what the options ask for, before anything runs; contents of a file that
 * exists stay until there are new ones. Returns 0, or -1 after saying why. */
int perf_files_open(perf_files *f, const perf_options *o);
/* Writes and closes all. Returns 0, or -1 after saying what could not be written. */
int perf_files_write(perf_files *f, const perf_run *run);
/* Closes without writing. */
void perf_files_drop(perf_files *f);

/* The plot, as bytes of an SVG or PNG (by the file's name) passed to write(), which
 * returns 0 to go on. Returns 0, or -1 with a reason. Built without cairo: -1. */
typedef int (*perf_write_fn)(void *arg, const void *data, size_t bytes);
int perf_plot(const perf_run *run, const char *path, perf_write_fn write, void *arg, const char **why);
/* 1 if this build can plot. */
int perf_plot_available(void);

#endif
