/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzz target over its corpus with any compiler: each file as it is, cut off
 * at every length, and with single bytes changed. A broken promise of the target
 * aborts, so a run that reaches the plan line has passed.
 *
 * usage: replay DIRECTORY
 */
#include "fuzz.h"
#include "tap.h"

#include <dirent.h>

enum { MAX_FILE = 1 << 16, MAX_CUTS = 600 };

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int visible(const struct dirent *e)
{
    return e->d_name[0] != '.';
}

/* Copies of exactly n bytes, so that a sanitizer sees the first byte past the end. */
static void run(const uint8_t *data, size_t n)
{
    uint8_t *copy = malloc(n ? n : 1);

    memcpy(copy, data, n);
    LLVMFuzzerTestOneInput(copy, n);
    free(copy);
}

static int replay(const char *path)
{
    static uint8_t data[MAX_FILE];
    static const uint8_t changes[] = {0x01, 0x80, 0xff};
    FILE *f = fopen(path, "rb");
    int runs = 1;

    if (!f)
        return 0;
    size_t n = fread(data, 1, sizeof data, f);
    fclose(f);
    run(data, n);
    for (size_t i = 0; i < n && i < MAX_CUTS; i++) {
        run(data, i);
        for (size_t k = 0; k < sizeof changes; k++, runs++) {
            data[i] ^= changes[k];
            run(data, n);
            data[i] ^= changes[k];
        }
        runs++;
    }
    return runs;
}

int main(int argc, char **argv)
{
    struct dirent **names;
    char path[1024];
    int n = argc == 2 ? scandir(argv[1], &names, visible, by_name) : -1;

    if (n < 0) {
        fprintf(stderr, "usage: replay DIRECTORY\n");
        return 99;
    }
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%s/%s", argv[1], names[i]->d_name);
        int runs = replay(path);
        tap_ok(runs > 0, "%s, %d variations", names[i]->d_name, runs);
        free(names[i]);
    }
    free(names);
    tap_ok(n > 0, "there is a corpus");
    return tap_done();
}
