/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes the list notations of Slurm. Input: a byte that says how much room there is
 * for the name, then the list. */
#include "bootstrap/hostlist.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    size_t room = data[0];
    char *list = malloc(size), *out = malloc(room + 1);

    memcpy(list, data + 1, size - 1);
    list[size - 1] = 0;
    memset(out, 'x', room + 1);
    const char *why = gsi_hostlist_first(list, out, room);
    must(out[room] == 'x');
    if (!why) {
        size_t n = strlen(out);
        must(n > 0 && n < room && n <= strlen(list));
        must(strspn(out, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") == n);
    }
    for (int node = 0; node < 5; node++)
        must(gsi_tasks_on_node(list, node) >= -1);
    must(gsi_tasks_on_node(list, 65535) >= -1);
    free(out);
    free(list);
    return 0;
}
