/* SPDX-License-Identifier: Apache-2.0 */
/* What unit tests share: small measurements of this process. */
#ifndef TESTS_UNIT_H
#define TESTS_UNIT_H

#include <errno.h>
#include <gradsync/gradsync.h>
#include <stdint.h>

/* splitmix64; advances *seed. */
uint64_t unit_random(uint64_t *seed);
/* Entries of /proc/self/fd and /proc/self/task. */
int unit_count_fds(void);
int unit_count_threads(void);
/* Lines of /proc/self/maps with the library's memfds. */
int unit_count_mappings(void);
/* 1 if the page at addr is mapped. */
int unit_is_mapped(const void *addr);
/* Entries of /dev/shm. */
int unit_count_shm(void);
/* Kilobytes of a line of /proc/self/smaps_rollup, "Pss:" say. -1: there is none. */
long unit_rollup_kb(const char *line);
/* CPU time of this process in microseconds. */
long unit_cpu_us(void);
/* The last error of this thread. */
gradsync_error_info unit_error(void);

#endif
