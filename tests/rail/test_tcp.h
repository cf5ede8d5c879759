/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the TCP provider's test share. */
#ifndef TESTS_RAIL_TEST_TCP_H
#define TESTS_RAIL_TEST_TCP_H

#include "contract.h"
#include "transport/tcp/state.h"

/* A contract_factory's open(); arg: the address. */
int tcp_open_at(void *arg, int side, gsi_rail_config *config, gsi_rail **out);
/* test_tcp_hostile.c */
void test_hostile(void);
/* test_tcp_bench.c */
int tcp_bench(const char *address);

#endif
