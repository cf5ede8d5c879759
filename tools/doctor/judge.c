/* SPDX-License-Identifier: Apache-2.0 */
/* Which rails are slow, fail or reach nobody: a function of what was measured. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rails.h"

/* Below this part of what equal rails reach, or of the other direction, a rail is slow; beyond that many times their
 * latency it is late. Of its nominal rate a good link reaches more than NOMINAL. */
#define SLOW    0.75
#define LATE    2.0
#define ASIDE   0.7
#define NOMINAL 0.8

enum { LATE_US = 2 }; /* and at least so much later */

typedef struct bench {
    const survey *s;
    gradsync_finding_fn fn;
    void *arg;
    const char *id;
    int found; /* findings of the running check */
} bench;

/* One rail of one host, and the best that it did with any other. */
typedef struct best {
    int h, i;
    int tried, measured, failed; /* pairs; failed: not for want of a common subnet */
    double gbps, latency_us;     /* of the slower direction; of the fastest pair */
    int pair;                    /* the one with gbps; -1 */
    int last;                    /* the last that was tried */
} best;

const rail *survey_rail(const survey *s, int h, int i)
{
    return strcmp(s->wire, "tcp") ? &s->hosts[h].rails[i] : &s->hosts[h].tcp[i];
}

int survey_rails(const survey *s, int h)
{
    return strcmp(s->wire, "tcp") ? s->hosts[h].nrails : s->hosts[h].ntcp;
}

int rails_meet(const rail *x, const rail *y)
{
    for (int i = 0; i < x->nsubnets; i++)
        for (int k = 0; k < y->nsubnets; k++) {
            int bits = x->subnets[i].bits, bytes = bits / 8;
            const unsigned char *p = x->subnets[i].raw, *q = y->subnets[k].raw;
            if (x->subnets[i].ipv4 == y->subnets[k].ipv4 && bits == y->subnets[k].bits &&
                !memcmp(p, q, (size_t)bytes) && (bits % 8 == 0 || !((p[bytes] ^ q[bytes]) >> (8 - bits % 8))))
                return 1;
        }
    return !x->nsubnets || !y->nsubnets;
}

int survey_pairs(const survey *s, int a, int i, int b, int k)
{
    const rail *x = survey_rail(s, a, i), *y = survey_rail(s, b, k);
    int others = 0;

    if (rails_meet(x, y))
        return 1;
    for (int m = 0; m < survey_rails(s, b); m++)
        others |= rails_meet(x, survey_rail(s, b, m));
    for (int m = 0; m < survey_rails(s, a); m++)
        others |= rails_meet(survey_rail(s, a, m), y);
    return !others;
}

__attribute__((format(printf, 5, 6))) static void tell(bench *b, int severity, const char *subject, const char *remedy,
                                                       const char *cause, ...)
{
    gradsync_finding f;
    va_list args;

    memset(&f, 0, sizeof f);
    f.size = (uint32_t)sizeof f;
    f.severity = severity;
    snprintf(f.id, sizeof f.id, "%s", b->id);
    snprintf(f.subject, sizeof f.subject, "%s", subject);
    snprintf(f.remedy, sizeof f.remedy, "%s", remedy);
    va_start(args, cause);
    /* The analyser loses va_start() where it inlines a variadic function. */
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized) */
    vsnprintf(f.cause, sizeof f.cause, cause, args);
    va_end(args);
    b->fn(b->arg, &f);
    b->found++;
}

static void name_rail(const survey *s, int h, int i, char *text, size_t room)
{
    snprintf(text, room, "%.48s %.40s", s->hosts[h].name, survey_rail(s, h, i)->name);
}

static void name_pair(const survey *s, const pairing *p, char *text, size_t room)
{
    snprintf(text, room, "%.24s %.20s - %.24s %.20s", s->hosts[p->a].name, survey_rail(s, p->a, p->i)->name,
             s->hosts[p->b].name, survey_rail(s, p->b, p->k)->name);
}

static double slower(const pairing *p)
{
    return p->gbps[0] < p->gbps[1] ? p->gbps[0] : p->gbps[1];
}

/* UNSUPPORTED: their subnets or link layers do not meet, which is as it should be for different rails. */
static int is_apart(const pairing *p)
{
    return p->status == GRADSYNC_ERR_UNSUPPORTED && !p->connected;
}

/* The best of every rail; *n of them. NULL without memory. */
static best *find_best(const survey *s, int *n)
{
    int count = 0;

    for (int h = 0; h < s->nhosts; h++)
        count += survey_rails(s, h);
    best *all = calloc(count ? (size_t)count : 1, sizeof *all);
    *n = 0;
    for (int h = 0; all && h < s->nhosts; h++)
        for (int i = 0; i < survey_rails(s, h); i++) {
            best *b = &all[(*n)++];
            *b = (best){.h = h, .i = i, .pair = -1, .last = -1};
            for (int p = 0; p < s->npairs; p++) {
                const pairing *q = &s->pairs[p];
                if ((q->a != h || q->i != i) && (q->b != h || q->k != i))
                    continue;
                b->tried++;
                b->last = p;
                b->failed += q->status && !is_apart(q);
                if (q->status)
                    continue;
                if (!b->measured++ || q->latency_us < b->latency_us)
                    b->latency_us = q->latency_us;
                if (b->pair < 0 || slower(q) > b->gbps) {
                    b->gbps = slower(q);
                    b->pair = p;
                }
            }
        }
    return all;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* The median of the other rails of the same nominal rate, 0 if there is none; latency: of that instead. The upper one
 * of an even number, so that of two equal rails the slow one is seen. */
static double median_of_others(const survey *s, const best *all, int n, const best *b, int latency)
{
    double *values = malloc((size_t)n * sizeof *values), median = 0;
    int count = 0;

    for (int k = 0; values && k < n; k++)
        if (&all[k] != b && all[k].measured &&
            survey_rail(s, all[k].h, all[k].i)->rate_mbps == survey_rail(s, b->h, b->i)->rate_mbps)
            values[count++] = latency ? all[k].latency_us : all[k].gbps;
    if (count) {
        qsort(values, (size_t)count, sizeof *values, compare);
        median = values[latency ? (count - 1) / 2 : count / 2];
    }
    free(values);
    return median;
}

static const best *best_of(const best *all, int n, int h, int i)
{
    for (int k = 0; k < n; k++)
        if (all[k].h == h && all[k].i == i)
            return &all[k];
    return NULL;
}

/* If a rail has one partner and that has only it, nobody can tell which of the two it is: 1, and 2 if the partner is
 * the one to speak for both. */
static int is_couple(const survey *s, const best *all, int n, const best *b)
{
    const pairing *p = b->pair >= 0 ? &s->pairs[b->pair] : &s->pairs[b->last];
    int mine = p->a == b->h && p->i == b->i;
    const best *other = mine ? best_of(all, n, p->b, p->k) : best_of(all, n, p->a, p->i);
    int alone = b->measured ? b->measured == 1 : b->failed == 1;
    int other_alone = other && (other->measured ? other->measured == 1 : other->failed == 1);

    return !alone || !other_alone ? 0 : mine ? 1 : 2;
}

/* ---- Checks ------------------------------------------------------------------------------ */

static void check_failed(bench *b, const best *all, int n)
{
    char name[96];

    for (int k = 0; k < n; k++) {
        const best *r = &all[k];
        /* A rail with which nothing works speaks for all of its pairs, but only if its partners work otherwise. */
        if (!r->failed || r->measured || is_couple(b->s, all, n, r) == 2)
            continue;
        const pairing *p = NULL;
        for (int q = 0; q < b->s->npairs && !p; q++) {
            const pairing *x = &b->s->pairs[q];
            if (((x->a == r->h && x->i == r->i) || (x->b == r->h && x->k == r->i)) && x->status && !is_apart(x))
                p = x;
        }
        if (!p)
            continue;
        if (is_couple(b->s, all, n, r))
            name_pair(b->s, p, name, sizeof name);
        else
            name_rail(b->s, r->h, r->i, name, sizeof name);
        tell(
            b, GRADSYNC_FINDING_ERROR, name,
            "compare the two ports' state, MTU, VLAN and addresses; ping between their network devices, and the switch "
            "in between",
            "no data gets through, though the subnets match: %s", p->why);
    }
    for (int q = 0; q < b->s->npairs; q++) {
        const pairing *p = &b->s->pairs[q];
        const best *x = best_of(all, n, p->a, p->i), *y = best_of(all, n, p->b, p->k);
        if (!p->status || is_apart(p) || !x || !y || !x->measured || !y->measured)
            continue;
        name_pair(b->s, p, name, sizeof name);
        tell(b, GRADSYNC_FINDING_WARNING, name, "each of the two works with others: look at the path between them",
             "this pair fails: %s", p->why);
    }
}

static void check_apart(bench *b, const best *all, int n)
{
    char name[96];

    for (int k = 0; k < n; k++) {
        const best *r = &all[k];
        if (r->measured || r->failed || !r->tried)
            continue;
        name_rail(b->s, r->h, r->i, name, sizeof name);
        tell(b, GRADSYNC_FINDING_WARNING, name,
             "put the ports of one rail on all hosts into one subnet (gradsync-info shows their GIDs)",
             "no rail of the other hosts can talk to it: %s", b->s->pairs[r->last].why);
    }
}

static void check_slow(bench *b, const best *all, int n)
{
    char name[96];

    for (int k = 0; k < n; k++) {
        const best *r = &all[k];
        double usual = r->measured ? median_of_others(b->s, all, n, r, 0) : 0;
        if (!r->measured || r->gbps >= usual * SLOW || is_couple(b->s, all, n, r) == 2)
            continue;
        if (is_couple(b->s, all, n, r))
            name_pair(b->s, &b->s->pairs[r->pair], name, sizeof name);
        else
            name_rail(b->s, r->h, r->i, name, sizeof name);
        tell(b, GRADSYNC_FINDING_WARNING, name,
             "look at its link rate, PCIe link, NUMA node and error counters, and at the switch's port",
             "it writes at %.3g Gb/s at best, while like rails reach %.3g Gb/s", r->gbps, usual);
    }
}

static void check_late(bench *b, const best *all, int n)
{
    char name[96];

    for (int k = 0; k < n; k++) {
        const best *r = &all[k];
        double usual = r->measured ? median_of_others(b->s, all, n, r, 1) : 0;
        if (!r->measured || usual <= 0 || r->latency_us <= usual * LATE || r->latency_us < usual + LATE_US ||
            is_couple(b->s, all, n, r) == 2)
            continue;
        if (is_couple(b->s, all, n, r))
            name_pair(b->s, &b->s->pairs[r->pair], name, sizeof name);
        else
            name_rail(b->s, r->h, r->i, name, sizeof name);
        tell(b, GRADSYNC_FINDING_WARNING, name,
             "look at the switches on its path, at interrupt moderation and at the CPU's power states",
             "8 bytes take %.3g us one way, on like rails %.3g us", r->latency_us, usual);
    }
}

static void check_direction(bench *b)
{
    char name[96];

    for (int q = 0; q < b->s->npairs; q++) {
        const pairing *p = &b->s->pairs[q];
        double more = p->gbps[0] > p->gbps[1] ? p->gbps[0] : p->gbps[1];
        if (p->status || slower(p) >= more * ASIDE)
            continue;
        int from = p->gbps[0] < p->gbps[1] ? p->a : p->b;
        name_pair(b->s, p, name, sizeof name);
        tell(b, GRADSYNC_FINDING_WARNING, name,
             "look at the sender's PCIe link and at flow control (pause frames) towards the receiver",
             "from %s it writes at %.3g Gb/s, the other way at %.3g Gb/s", b->s->hosts[from].name, slower(p), more);
    }
}

static void check_nominal(bench *b, const best *all, int n)
{
    char name[96];

    for (int k = 0; k < n; k++) {
        const best *r = &all[k];
        double nominal = survey_rail(b->s, r->h, r->i)->rate_mbps / 1000.0;
        if (!r->measured || nominal <= 0 || r->gbps >= nominal * NOMINAL)
            continue;
        /* The other end's rate may be the lower one. */
        const pairing *p = &b->s->pairs[r->pair];
        double other =
            (p->a == r->h && p->i == r->i ? survey_rail(b->s, p->b, p->k) : survey_rail(b->s, p->a, p->i))->rate_mbps /
            1000.0;
        if (other > 0 && other < nominal && r->gbps >= other * NOMINAL)
            continue;
        name_rail(b->s, r->h, r->i, name, sizeof name);
        tell(b, GRADSYNC_FINDING_HINT, name,
             "see mtu-small, pcie-narrow, pcie-relaxed and iommu above; Soft-RoCE and TCP are limited by the CPU",
             "it writes at %.3g Gb/s, %.0f %% of its nominal %.4g Gb/s", r->gbps, r->gbps / nominal * 100, nominal);
    }
}

static void check_mtu(bench *b)
{
    char name[96];

    for (int q = 0; q < b->s->npairs; q++) {
        const pairing *p = &b->s->pairs[q];
        const rail *x = survey_rail(b->s, p->a, p->i), *y = survey_rail(b->s, p->b, p->k);
        if (is_apart(p) || !x->mtu || !y->mtu || x->mtu == y->mtu)
            continue;
        name_pair(b->s, p, name, sizeof name);
        tell(b, GRADSYNC_FINDING_WARNING, name, "set the same MTU on both network devices and on the switch's ports",
             "RDMA packets carry %u bytes at one end, %u at the other", x->mtu, y->mtu);
    }
}

static void begin(bench *b, const char *id)
{
    b->id = id;
    b->found = 0;
}

__attribute__((format(printf, 2, 3))) static void end(bench *b, const char *well, ...)
{
    char text[200];
    va_list args;

    if (b->found)
        return;
    va_start(args, well);
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized) */
    vsnprintf(text, sizeof text, well, args);
    va_end(args);
    tell(b, GRADSYNC_FINDING_OK, "", "", "%s", text);
}

void judge(const survey *s, gradsync_finding_fn fn, void *arg)
{
    bench b = {.s = s, .fn = fn, .arg = arg};
    int n, measured = 0;
    best *all = find_best(s, &n);

    if (!all)
        return;
    for (int q = 0; q < s->npairs; q++)
        measured += !s->pairs[q].status;
    begin(&b, "rail-failed");
    check_failed(&b, all, n);
    end(&b, "all %d pairs of rails that can talk to each other do", measured);
    begin(&b, "rail-apart");
    check_apart(&b, all, n);
    end(&b, "every rail can talk to a rail of the other hosts");
    begin(&b, "rail-slow");
    check_slow(&b, all, n);
    end(&b, "no rail is slower than its like");
    begin(&b, "rail-latency");
    check_late(&b, all, n);
    end(&b, "no rail has a higher latency than its like");
    begin(&b, "rail-direction");
    check_direction(&b);
    end(&b, "both directions are as fast");
    begin(&b, "rail-nominal");
    check_nominal(&b, all, n);
    end(&b, "no rail is known to stay below its nominal rate");
    begin(&b, "rail-mtu");
    check_mtu(&b);
    end(&b, "both ends of every pair have the same MTU");
    free(all);
}
