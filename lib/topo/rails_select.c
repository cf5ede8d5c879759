/* SPDX-License-Identifier: Apache-2.0 */
/* Deals the usable ports of a host to its ranks. */
#include "topo/rails.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

enum { SLOW = 4 }; /* a port slower than the fastest by more than this is for other things: management, storage */

/* All ranks' view: far[r * nports + p] and used[r * nports + p]. */
struct deal {
    const gsi_ports *ports;
    const gsi_place *places;
    int nranks, nports;
    gsi_distance *far;
    unsigned char *used, *usable, *dealt; /* dealt: by rank */
    double *load;                         /* ranks on a port */
    int *members, *level;                 /* scratch: ranks and ports of a group */
};

/* ---- Which ports can be used ------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void refuse(gsi_rail_verdict *v, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(v->reason, sizeof v->reason, format, args);
    va_end(args);
    v->usable = 0;
}

static void judge_state(const gsi_port *p, gsi_rail_verdict *v)
{
    const char *phys = p->phys_state[0] ? p->phys_state : "unknown";

    if (p->state == GSI_PORT_DOWN || p->state == GSI_PORT_NOP)
        refuse(v, "it is %s (physical state %s); check the cable, the switch port, and that its network device is up",
               gsi_port_state_name(p->state), phys);
    else if (p->state == GSI_PORT_INIT)
        refuse(v, "it is initialising (INIT): on InfiniBand this waits for the subnet manager; start opensm, or ask "
                  "who runs the fabric");
    else
        refuse(v, "it is %s (physical state %s), not ACTIVE", gsi_port_state_name(p->state), phys);
}

static void judge_access(const gsi_port *p, gsi_rail_verdict *v)
{
    if (!p->uverbs[0])
        refuse(v, "the kernel offers no user access to it; load the module ib_uverbs");
    else if (p->access == ENOENT)
        refuse(v, "/dev/infiniband/%s is missing; in a container, pass /dev/infiniband in (docker run --device)",
               p->uverbs);
    else if (p->access == EACCES || p->access == EPERM)
        refuse(v, "/dev/infiniband/%s may not be opened; give this user read and write access to it", p->uverbs);
    else
        refuse(v, "/dev/infiniband/%s cannot be opened (errno %d)", p->uverbs, (int)p->access);
}

static int gid_at(const gsi_port *p, int index)
{
    for (int i = 0; i < p->ngids; i++)
        if (p->gids[i].index == index)
            return i;
    return -1;
}

/* *named: the filter names it, rather than only letting it pass. */
static void judge(const gsi_port *p, const gsi_settings *settings, gsi_rail_verdict *v, unsigned char *named)
{
    const gsi_filter_item *item = NULL;

    v->usable = 1;
    v->rail = -1;
    *named = 0;
    if (settings && !gsi_filter_match(&settings->hca, p->device, (int)p->number, &item)) {
        if (item)
            refuse(v, "%s excludes it (^%s%s)", settings->hca.variable, item->exact ? "=" : "", item->name);
        else
            refuse(v, "%s does not name it", settings->hca.variable);
        return;
    }
    *named = item != NULL;
    if (p->state != GSI_PORT_ACTIVE)
        judge_state(p, v);
    else if (p->access || !p->uverbs[0])
        judge_access(p, v);
    else if (p->link_layer == GSI_LINK_UNKNOWN)
        refuse(v, "its link layer is neither InfiniBand nor Ethernet");
    else if (p->link_layer == GSI_LINK_ETHERNET && !p->ngids)
        refuse(v, "it has no GID; give its network device%s%s an address and bring it up", p->netdev[0] ? " " : "",
               p->netdev);
    else if (settings && settings->gid_index >= 0 && gid_at(p, settings->gid_index) < 0)
        refuse(v, "its GID index %d (%s) is empty", (int)settings->gid_index, settings->gid_index_variable);
    else if (p->link_layer == GSI_LINK_INFINIBAND && !p->lid && !p->ngids)
        refuse(v, "it has neither a LID nor a GID; is there a subnet manager?");
}

static void judge_all(struct deal *d, const gsi_settings *settings, gsi_rail_verdict *verdicts)
{
    uint32_t fastest = 0;

    for (int p = 0; p < d->nports; p++) {
        judge(&d->ports->items[p], settings, &verdicts[p], &d->usable[p]);
        if (verdicts[p].usable && d->ports->items[p].rate_mbps > fastest)
            fastest = d->ports->items[p].rate_mbps;
    }
    for (int p = 0; p < d->nports; p++) {
        uint32_t rate = d->ports->items[p].rate_mbps;
        if (verdicts[p].usable && !d->usable[p] && rate && (uint64_t)rate * SLOW < fastest)
            refuse(&verdicts[p],
                   "its %.4g Gb/s are less than a quarter of the fastest port's %.4g; name it in "
                   "GRADSYNC_HCA to use it all the same",
                   rate / 1000.0, fastest / 1000.0);
        d->usable[p] = (unsigned char)verdicts[p].usable;
    }
}

/* ---- Who gets which ----------------------------------------------------------------------- */

static gsi_distance nearest(const struct deal *d, int rank)
{
    gsi_distance best = {GSI_DISTANCE_COUNT, 0};

    for (int p = 0; p < d->nports; p++)
        if (d->usable[p] && gsi_distance_compare(d->far[rank * d->nports + p], best) < 0)
            best = d->far[rank * d->nports + p];
    return best;
}

static int is_candidate(const struct deal *d, int rank, gsi_distance best, int p)
{
    return d->usable[p] && !gsi_distance_compare(d->far[rank * d->nports + p], best);
}

static int same_candidates(const struct deal *d, int a, int b)
{
    gsi_distance best_a = nearest(d, a), best_b = nearest(d, b);

    for (int p = 0; p < d->nports; p++)
        if (is_candidate(d, a, best_a, p) != is_candidate(d, b, best_b, p))
            return 0;
    return 1;
}

static int count_candidates(const struct deal *d, int rank)
{
    gsi_distance best = nearest(d, rank);
    int n = 0;

    for (int p = 0; p < d->nports; p++)
        n += is_candidate(d, rank, best, p);
    return n;
}

/* n ranks take k ports, k >= n: as many each of its own, and what is left over all of them. */
static void share_out(struct deal *d, const int *ranks, int n, const int *ports, int k)
{
    int own = k / n;

    for (int i = 0; i < k; i++) {
        for (int r = 0; r < n; r++)
            if (i >= own * n || i % n == r)
                d->used[ranks[r] * d->nports + ports[i]] = 1;
        d->load[ports[i]] += (double)n / k;
    }
}

/* Deals the ports of one group's candidates to its members, the least loaded ports first. */
static void deal_group(struct deal *d, const int *ranks, int n)
{
    int any = ranks[0]; /* their candidates are the same, at distances of their own */
    gsi_distance best = nearest(d, any);

    while (n > 0) {
        double least = -1;
        int k = 0;
        for (int p = 0; p < d->nports; p++)
            if (is_candidate(d, any, best, p) && (least < 0 || d->load[p] < least))
                least = d->load[p];
        for (int p = 0; p < d->nports; p++)
            if (is_candidate(d, any, best, p) && d->load[p] < least + 1e-6)
                d->level[k++] = p;
        if (!k)
            return;
        if (n < k) {
            share_out(d, ranks, n, d->level, k);
            return;
        }
        for (int i = 0; i < k; i++) {
            d->used[ranks[i] * d->nports + d->level[i]] = 1;
            d->load[d->level[i]] += 1;
        }
        ranks += k;
        n -= k;
    }
}

/* Groups of ranks with the same candidates, those with the fewest first. */
static void deal_nearest(struct deal *d)
{
    for (int dealt = 0; dealt < d->nranks;) {
        int first = -1, fewest = 0, n = 0;
        for (int r = 0; r < d->nranks; r++) {
            int c = d->dealt[r] ? 0 : count_candidates(d, r);
            if (!d->dealt[r] && (first < 0 || c < fewest)) {
                first = r;
                fewest = c;
            }
        }
        for (int r = first; r < d->nranks; r++)
            if (!d->dealt[r] && same_candidates(d, first, r)) {
                d->members[n++] = r;
                d->dealt[r] = 1;
            }
        deal_group(d, d->members, n);
        dealt += n;
    }
}

/* 1 if rank r is among those in host memory that port p is nearest to. */
static int is_heir(const struct deal *d, int r, int p)
{
    if (d->places[r].pci[0])
        return 0;
    for (int other = 0; other < d->nranks; other++)
        if (!d->places[other].pci[0] &&
            gsi_distance_compare(d->far[other * d->nports + p], d->far[r * d->nports + p]) < 0)
            return 0;
    return 1;
}

static int same_heirs(const struct deal *d, int p, int q)
{
    for (int r = 0; r < d->nranks; r++)
        if (is_heir(d, r, p) != is_heir(d, r, q))
            return 0;
    return 1;
}

/* Ports that nobody has go to the ranks in host memory that are nearest to them. */
static void deal_rest(struct deal *d)
{
    for (int p = 0; p < d->nports; p++) {
        int n = 0, k = 0;
        if (!d->usable[p] || d->load[p] > 0)
            continue;
        for (int r = 0; r < d->nranks; r++)
            if (is_heir(d, r, p))
                d->members[n++] = r;
        if (!n)
            continue;
        for (int q = p; q < d->nports; q++)
            if (d->usable[q] && d->load[q] <= 0 && same_heirs(d, p, q))
                d->level[k++] = q;
        if (n <= k)
            share_out(d, d->members, n, d->level, k);
        else /* all of them share all of these */
            for (int i = 0; i < k; i++) {
                for (int r = 0; r < n; r++)
                    d->used[d->members[r] * d->nports + d->level[i]] = 1;
                d->load[d->level[i]] += 1;
            }
    }
}

static void deal_all(struct deal *d)
{
    for (int r = 0; r < d->nranks; r++)
        for (int p = 0; p < d->nports; p++)
            d->used[r * d->nports + p] = d->usable[p];
}

/* ---- One rank's result --------------------------------------------------------------------- */

static int users(const struct deal *d, int p)
{
    int n = 0;

    for (int r = 0; r < d->nranks; r++)
        n += d->used[r * d->nports + p];
    return n;
}

/* Ports of one card: its PCI address without the function, or the device itself. */
static int same_card(const gsi_port *a, const gsi_port *b)
{
    size_t n = strcspn(a->place.pci, ".");

    if (a->place.pci[0] && b->place.pci[0])
        return n == strcspn(b->place.pci, ".") && !strncmp(a->place.pci, b->place.pci, n);
    return !strcmp(a->device, b->device);
}

/* How many of the rails found so far are on the same card: with a limit, two cards are better than one. */
static int turn_of(const struct deal *d, const gsi_rails *rails, int p)
{
    int n = 0;

    for (int i = 0; i < rails->nrails; i++)
        n += same_card(&d->ports->items[rails->rails[i].port], &d->ports->items[p]);
    return n;
}

/* The nearest first; of those the ones with the fewest ranks, so that a rank's own come before shared ones; of those
 * one of each card, then the second of each. */
static int compare_rails(const void *a, const void *b)
{
    const gsi_rail_use *x = a, *y = b;
    int c = gsi_distance_compare(x->distance, y->distance);

    if (c)
        return c;
    if (x->ranks != y->ranks)
        return x->ranks < y->ranks ? -1 : 1;
    return x->turn != y->turn ? (x->turn > y->turn) - (x->turn < y->turn) : (x->port > y->port) - (x->port < y->port);
}

static void explain(const struct deal *d, int me, int max, gsi_rails *out)
{
    char best[GSI_RDMA_NAME + 8] = "";

    if (out->nrails)
        gsi_port_name(&d->ports->items[out->rails[0].port], best, sizeof best);
    for (int p = 0; p < d->nports; p++) {
        gsi_rail_verdict *v = &out->verdicts[p];
        if (!v->usable)
            continue;
        const char *how = gsi_distance_name(v->distance.kind);
        int n = users(d, p), owner = -1;
        for (int r = 0; r < d->nranks && owner < 0; r++)
            if (d->used[r * d->nports + p])
                owner = r;
        if (v->rail >= 0 && n > 1)
            snprintf(v->reason, sizeof v->reason, "rail %d: %s; shared by %d local ranks", v->rail, how, n);
        else if (v->rail >= 0)
            snprintf(v->reason, sizeof v->reason, "rail %d: %s", v->rail, how);
        else if (d->used[me * d->nports + p])
            snprintf(v->reason, sizeof v->reason, "%s, but %d rails are the most that are used", how, max);
        else if (out->nrails && gsi_distance_compare(out->rails[0].distance, v->distance) < 0)
            snprintf(v->reason, sizeof v->reason, "farther (%s) than %s (%s)", how, best,
                     gsi_distance_name(out->rails[0].distance.kind));
        else
            snprintf(v->reason, sizeof v->reason, "%s, as near as %s, but used by local rank %d%s", how, best, owner,
                     n > 1 ? " and others" : "");
    }
}

static void result(const struct deal *d, int me, int max, gsi_rails *out)
{
    for (int p = 0; p < d->nports; p++) {
        out->verdicts[p].distance = d->far[me * d->nports + p];
        out->verdicts[p].ranks = users(d, p);
        if (d->used[me * d->nports + p]) {
            int turn = turn_of(d, out, p);
            out->rails[out->nrails++] = (gsi_rail_use){p, out->verdicts[p].distance, out->verdicts[p].ranks, turn};
        }
    }
    if (out->nrails)
        qsort(out->rails, (size_t)out->nrails, sizeof *out->rails, compare_rails);
    if (max > 0 && out->nrails > max)
        out->nrails = max;
    for (int i = 0; i < out->nrails; i++)
        out->verdicts[out->rails[i].port].rail = i;
    explain(d, me, max, out);
}

static void free_deal(struct deal *d)
{
    free(d->far);
    free(d->used);
    free(d->usable);
    free(d->dealt);
    free(d->load);
    free(d->members);
    free(d->level);
}

void gsi_rails_free(gsi_rails *rails)
{
    free(rails->rails);
    free(rails->verdicts);
    *rails = (gsi_rails){.nrails = 0};
}

int gsi_rails_select(const gsi_topology *t, const gsi_ports *ports, const gsi_place *places, int nlocal, int me,
                     const gsi_settings *settings, int max, gsi_rails *out)
{
    int policy = settings ? settings->rails : GSI_RAILS_AUTO, n = ports->n;
    struct deal d = {.ports = ports, .places = places, .nranks = nlocal, .nports = n};

    *out = (gsi_rails){.nports = n};
    if (me < 0 || me >= nlocal)
        return gsi_fail(GRADSYNC_ERR_INVALID, "there is no local rank %d of %d", me, nlocal);
    if (!n)
        return 0;
    size_t cells = (size_t)n * (size_t)nlocal;
    d.far = gsi_calloc(cells, sizeof *d.far);
    d.used = gsi_calloc(cells, 1);
    d.usable = gsi_calloc((size_t)n, 1);
    d.dealt = gsi_calloc((size_t)nlocal, 1);
    d.load = gsi_calloc((size_t)n, sizeof *d.load);
    d.members = gsi_calloc((size_t)nlocal, sizeof *d.members);
    d.level = gsi_calloc((size_t)n, sizeof *d.level);
    out->rails = gsi_calloc((size_t)n, sizeof *out->rails);
    out->verdicts = gsi_calloc((size_t)n, sizeof *out->verdicts);
    if (!d.far || !d.used || !d.usable || !d.dealt || !d.load || !d.members || !d.level || !out->rails ||
        !out->verdicts) {
        free_deal(&d);
        gsi_rails_free(out);
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to choose rails");
    }
    judge_all(&d, settings, out->verdicts);
    for (int r = 0; r < nlocal; r++)
        for (int p = 0; p < n; p++)
            d.far[r * n + p] = gsi_topology_distance(t, &places[r], &ports->items[p].place);
    if (policy == GSI_RAILS_ALL) {
        deal_all(&d);
    } else {
        deal_nearest(&d);
        if (policy == GSI_RAILS_AUTO)
            deal_rest(&d);
    }
    result(&d, me, max, out);
    free_deal(&d);
    return 0;
}
