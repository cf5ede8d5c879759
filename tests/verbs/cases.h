/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of test_rail.c share: each case is run by both sides, and is 1 if this side found all well. */
#ifndef TESTS_VERBS_CASES_H
#define TESTS_VERBS_CASES_H

#include "pair.h"

#include <stdio.h>

#define EXPECT(cond)                                                                                                   \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "# side %d, line %d: %s\n", p->role, __LINE__, #cond);                                     \
            return 0;                                                                                                  \
        }                                                                                                              \
    } while (0)

/* The last error's sentence. */
const char *case_message(void);
/* Opening a rail so fails with this code, and these words in its sentence. */
int case_refuses(pair *p, gsi_rail_config config, int code, const char *text);

int case_wrong_addresses(pair *p);
int case_mixed_managers(pair *p);
int case_wrong_memory(pair *p);
int case_memlock(pair *p);
int case_no_access(pair *p);
int case_wrong_configs(pair *p);
int case_memory_policy(pair *p);

#endif
