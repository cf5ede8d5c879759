/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/hosts.h"
#include "base/alloc.h"
#include "base/error.h"

#include <stdlib.h>

/* Numbers hosts by their lowest rank. Quadratic in hosts only where every rank has one of its own, and
 * done once for a communicator. */
static int number_hosts(const int32_t *host, int n, int32_t *of, int32_t *lowest)
{
    int hosts = 0;

    for (int r = 0; r < n; r++) {
        /* Mostly the host of the rank before, or a new one: looked for from the last one down. */
        int h = hosts - 1;
        while (h >= 0 && host[lowest[h]] != host[r])
            h--;
        if (h < 0) {
            h = hosts++;
            lowest[h] = r;
        }
        of[r] = h;
    }
    return hosts;
}

int gsi_hosts_make(const int32_t *host, int n, gsi_hosts **out)
{
    *out = NULL;
    if (n < 1 || !host)
        return gsi_fail(GRADSYNC_ERR_INVALID, "hosts of %d ranks: give a host for each of them", n);
    size_t size = sizeof(gsi_hosts) + (4 * (size_t)n + 1) * sizeof(int32_t);
    gsi_hosts *h = gsi_calloc(1, size);
    if (!h)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the hosts of %d ranks", n);
    int32_t *of = (int32_t *)(h + 1), *index = of + n, *order = index + n, *first = order + n;
    int hosts = number_hosts(host, n, of, order);
    for (int r = 0; r < n; r++)
        index[r] = first[of[r] + 1]++;
    *h = (gsi_hosts){.n = n, .hosts = hosts, .least = n, .neighbours = 1};
    for (int i = 0; i < hosts; i++) {
        int ranks = first[i + 1];
        h->least = ranks < h->least ? ranks : h->least;
        h->most = ranks > h->most ? ranks : h->most;
        first[i + 1] += first[i];
    }
    for (int r = 0; r < n; r++) {
        order[first[of[r]] + index[r]] = r;
        h->neighbours &= !r || of[r] >= of[r - 1];
    }
    h->of = of;
    h->index = index;
    h->order = order;
    h->first = first;
    *out = h;
    return 0;
}
