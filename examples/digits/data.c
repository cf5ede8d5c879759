/* SPDX-License-Identifier: Apache-2.0 */
#include "data.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

uint64_t digits_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void digits_permutation(uint32_t *order, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        order[i] = (uint32_t)i;
    for (size_t i = n; i > 1; i--) {
        size_t j = (size_t)(digits_random(&seed) % i);
        uint32_t keep = order[i - 1];

        order[i - 1] = order[j];
        order[j] = keep;
    }
}

/* One line into a row and its label; 0 if it is well formed. */
static int parse_line(const char *line, float *row, uint8_t *label)
{
    for (int i = 0; i <= DIGITS_PIXELS; i++) {
        char *end;
        long max = i < DIGITS_PIXELS ? DIGITS_MAX_PIXEL : DIGITS_CLASSES - 1;
        long value = strtol(line, &end, 10);

        if (end == line || value < 0 || value > max)
            return -1;
        if (i < DIGITS_PIXELS) {
            if (*end != ',')
                return -1;
            row[i] = (float)value / DIGITS_MAX_PIXEL;
        } else {
            end += strspn(end, "\r\n");
            if (*end != '\0')
                return -1;
            *label = (uint8_t)value;
        }
        line = end + 1;
    }
    return 0;
}

static int grow(digits *d, size_t *room)
{
    size_t more = *room ? *room * 2 : 2048;
    float *pixels = realloc(d->pixels, more * DIGITS_PIXELS * sizeof(float));
    uint8_t *labels;

    if (!pixels)
        return -1;
    d->pixels = pixels;
    labels = realloc(d->labels, more);
    if (!labels)
        return -1;
    d->labels = labels;
    *room = more;
    return 0;
}

static int read_rows(gzFile in, const char *file, digits *out, char *why, size_t why_room)
{
    char line[512];
    size_t room = 0;
    int problem = Z_OK;

    while (gzgets(in, line, sizeof(line))) {
        if (out->n == room && grow(out, &room)) {
            snprintf(why, why_room, "no memory for the images of %s", file);
            return -1;
        }
        if (parse_line(line, out->pixels + out->n * DIGITS_PIXELS, out->labels + out->n)) {
            snprintf(why, why_room, "%s, line %zu: not %d pixels of 0..%d and a label of 0..%d", file, out->n + 1,
                     DIGITS_PIXELS, DIGITS_MAX_PIXEL, DIGITS_CLASSES - 1);
            return -1;
        }
        out->n++;
    }
    const char *text = gzerror(in, &problem);
    if (problem != Z_OK && problem != Z_STREAM_END) {
        snprintf(why, why_room, "cannot read %s: %s", file, problem == Z_ERRNO ? strerror(errno) : text);
        return -1;
    }
    if (out->n < 10) {
        snprintf(why, why_room, "%s has %zu images: too few to train on", file, out->n);
        return -1;
    }
    return 0;
}

int digits_load(const char *file, digits *out, char *why, size_t room)
{
    gzFile in = gzopen(file, "rb");
    int rc;

    *out = (digits){0};
    if (!in) {
        snprintf(why, room, "cannot open %s: %s; give the data with --data FILE", file,
                 errno ? strerror(errno) : "no memory");
        return -1;
    }
    rc = read_rows(in, file, out, why, room);
    if (gzclose(in) != Z_OK && rc == 0) {
        snprintf(why, room, "cannot read %s to its end: it is cut short or damaged", file);
        rc = -1;
    }
    if (rc)
        digits_free(out);
    return rc;
}

void digits_free(digits *d)
{
    free(d->pixels);
    free(d->labels);
    *d = (digits){0};
}
