/* SPDX-License-Identifier: Apache-2.0 */
/* The table on stdout, in nccl-tests' columns, and the progress line on stderr. */
#ifndef TOOLS_PERF_TABLE_H
#define TOOLS_PERF_TABLE_H

#include "perf.h"

void perf_table_head(const perf_run *run);
void perf_table_row(const perf_run *run, const perf_row *row);
void perf_table_note(const char *text);
void perf_table_foot(const perf_run *run);

/* Shows how far a long run is, if stderr is a terminal; redrawn at most 5 times a second. */
void perf_progress(const perf_options *o, uint64_t done, uint64_t rows, const char *now);
void perf_progress_clear(void);

#endif
