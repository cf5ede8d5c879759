/* SPDX-License-Identifier: Apache-2.0 */
/* An independent reference of what every collective must give, bit for bit. It shares no
 * code with the library: conversions by the compiler's own types or by exact arithmetic. */
#ifndef TESTS_REFERENCE_H
#define TESTS_REFERENCE_H

#include <gradsync/gradsync.h>

enum reference_data {
    REFERENCE_EXACT, /* values whose sums and products are exact in every order */
    REFERENCE_WILD,  /* any bits: NaN, infinities, denormals; only the canonical order gives the same bits */
};

typedef struct reference_case {
    uint64_t seed; /* of the data */
    int coll, dtype, op, n, root;
    int data; /* enum reference_data */
    uint64_t count;
    int scaled;
    double scale[64]; /* by rank, if scaled */
} reference_case;

/* Fills buf with rank's contribution: `elements` of it from element `first` on. */
void reference_fill(const reference_case *c, int rank, uint64_t first, uint64_t elements, void *buf);
/* The elements of rank's SEND and RECV; 0 where the rank does not use it. */
uint64_t reference_send_count(const reference_case *c, int rank);
uint64_t reference_recv_count(const reference_case *c, int rank);
/* Compares rank's result with what it must be; returns the number of wrong elements and the first. */
uint64_t reference_check(const reference_case *c, int rank, const void *recv, uint64_t *first_wrong);

/* A counter-based random number: the same on all ranks. */
uint64_t reference_random(uint64_t seed, uint64_t i);

#endif
