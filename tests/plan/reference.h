/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A second opinion on plans: what verify.h promises, by brute force. It shares no
 * code with the verifier: an explicit graph of what happens before what, its
 * transitive closure, and every pair of accesses to every cell. For small plans.
 */
#ifndef TESTS_PLAN_REFERENCE_H
#define TESTS_PLAN_REFERENCE_H

#include "plan/verify.h"

/* 1: the plans are right; 0: they are not, and *why says in a few words what is
 * wrong; -1: too large to tell. `alias` as in gsi_verify_opts. */
int reference_verify(gsi_plan *const *plans, const gsi_plan_args *args, int alias, const char **why);

#endif
