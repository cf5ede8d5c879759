/* SPDX-License-Identifier: Apache-2.0 */
/* The core's way to the verbs module: opened at run time, so that the library runs where libibverbs is not installed.
 */
#ifndef GSI_VERBS_LOAD_H
#define GSI_VERBS_LOAD_H

#include "transport/net/rail.h"

/* The module's open function: of libgradsync-verbs.so.0 beside this library, or else wherever the dynamic linker
 * finds it. UNSUPPORTED: it cannot be had; the text says why, and the remedy. Any thread; loaded once, never unloaded.
 */
int gsi_verbs_load(gsi_rail_open_fn *open);
/* The same from one place, which is a file name with a slash; not remembered. For tests. */
int gsi_verbs_load_from(const char *path, gsi_rail_open_fn *open);

#endif
