/* SPDX-License-Identifier: Apache-2.0 */
/* The handwritten digits: 8x8 pixels and a label each. */
#ifndef DIGITS_DATA_H
#define DIGITS_DATA_H

#include <stddef.h>
#include <stdint.h>

enum { DIGITS_PIXELS = 64, DIGITS_CLASSES = 10, DIGITS_MAX_PIXEL = 16 };

typedef struct digits {
    size_t n;
    float *pixels;   /* n rows of DIGITS_PIXELS, 0..1 */
    uint8_t *labels; /* n of 0..9 */
} digits;

/* Reads a CSV file, gzip-compressed or not: 64 pixels of 0..16 and the label on
 * each line. Returns 0, or -1 with a sentence in why. The caller ends *out with
 * digits_free(). */
int digits_load(const char *file, digits *out, char *why, size_t room);
void digits_free(digits *d);

/* Fills order[0..n) with a permutation that depends on n and seed only. */
void digits_permutation(uint32_t *order, size_t n, uint64_t seed);

/* A step of splitmix64: the same numbers on every machine. */
uint64_t digits_random(uint64_t *state);

#endif
