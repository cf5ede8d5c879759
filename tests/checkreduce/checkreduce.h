/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of checkreduce share. */
#ifndef CHECKREDUCE_H
#define CHECKREDUCE_H

#include "reduce/reduce.h"

#include <stddef.h>
#include <stdint.h>

#define MAX_TIERS 8
#define MAX_BUFS  17 /* most sources, and most outputs, of a test */

extern const char *const dtype_names[GRADSYNC_DTYPE_COUNT];
extern const unsigned dtype_sizes[GRADSYNC_DTYPE_COUNT];
extern const char *const op_names[4];

/* Chosen on the command line. -1, 0 or NULL: all of them. */
typedef struct {
    uint64_t seed;
    int rounds; /* how often every shape is tried */
    int quick;
    int dtype, op;
    uint32_t nsrc, ndst;
    uint64_t bytes;
    uint32_t flags;
    const char *tier;
} options;

/* Random numbers: splitmix64, the same on every machine for the same seed. */
extern uint64_t random_state;
uint64_t random_bits(void);
uint32_t random_below(uint32_t limit);

/* checkreduce.c: TAP, counted in one place. check() is one test, and returns ok. */
__attribute__((format(printf, 2, 3))) int check(int ok, const char *format, ...);
__attribute__((format(printf, 1, 2))) void note(const char *format, ...);
void skip(const char *why);

/* The index-th supported tier that the options allow; NULL past the last. */
const gsi_reduce_tier *wanted_tier(const options *opt, int index);

int is_float(int dtype);
int is_half(int dtype);

/* compare.c: tiers against the reference, bit for bit. */
void compare_tiers(const options *opt);
void compare_copies(const options *opt);
void compare_all_f32(const options *opt); /* every f32 value to f16 and bf16 */

/* expected.c: values worked out by hand, and the choice of a tier. */
void check_expected(const options *opt);
void check_choice(void);

/* model.c: the reference against another formulation of the same rules. */
void check_conversions(const options *opt);
void check_model(const options *opt);

/* compare.c: fills count elements with values of all kinds, specials and rounding edges among them. */
void fill_values(void *p, int dtype, uint64_t count);

/* bench.c */
void bench(const options *opt);

#endif
