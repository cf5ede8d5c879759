/* SPDX-License-Identifier: Apache-2.0 */
/* What the fuzz targets share: the entry point, and a check that ends the process. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void must_hold(int cond, const char *text, int line)
{
    if (cond)
        return;
    fprintf(stderr, "line %d: broken: %s\n", line, text);
    abort();
}
#define must(cond) must_hold((cond) != 0, #cond, __LINE__)

#endif
