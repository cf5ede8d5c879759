/* SPDX-License-Identifier: Apache-2.0 */
/* A run as JSON text. Nothing of the process's environment is in it. */
#ifndef TOOLS_PERF_JSON_H
#define TOOLS_PERF_JSON_H

#include "perf.h"

/* The caller frees it. NULL: no memory, or built without jansson. */
char *perf_json_text(const perf_run *run);

#endif
