/* SPDX-License-Identifier: Apache-2.0 */
/* What gradsync-doctor makes of measured pairs of rails. */
#include <stdio.h>
#include <string.h>

#include "rails.h"
#include "tap.h"

enum { MOST = 64 };

static survey s;
static host hosts[8];
static pairing pairs[MOST];
static gradsync_finding found[MOST];
static int nfound;

static void keep(void *arg, const gradsync_finding *f)
{
    (void)arg;
    if (nfound < MOST)
        found[nfound++] = *f;
}

/* nhosts hosts of nrails RDMA rails of 100 Gb/s; rail i of one host and rail k of another: 97 Gb/s and 2 us if i == k,
 * or if `flat`; else apart. */
static void make(int nhosts, int nrails, int flat)
{
    memset(hosts, 0, sizeof hosts);
    memset(pairs, 0, sizeof pairs);
    s = (survey){.wire = "verbs", .hosts = hosts, .nhosts = nhosts, .pairs = pairs};
    for (int h = 0; h < nhosts; h++) {
        snprintf(hosts[h].name, sizeof hosts[h].name, "node%d", h);
        hosts[h].nrails = nrails;
        for (int i = 0; i < nrails; i++) {
            snprintf(hosts[h].rails[i].name, sizeof hosts[h].rails[i].name, "mlx5_%d:1", i);
            hosts[h].rails[i].rate_mbps = 100000;
            hosts[h].rails[i].mtu = 4096;
        }
    }
    for (int a = 0; a < nhosts; a++)
        for (int b = a + 1; b < nhosts; b++)
            for (int i = 0; i < nrails; i++)
                for (int k = 0; k < nrails; k++) {
                    pairing *p = &pairs[s.npairs++];
                    *p = (pairing){.a = a, .i = i, .b = b, .k = k, .connected = 1, .latency_us = 2, .gbps = {97, 97}};
                    if (i == k || flat)
                        continue;
                    *p = (pairing){.a = a, .i = i, .b = b, .k = k, .status = GRADSYNC_ERR_UNSUPPORTED};
                    snprintf(p->why, sizeof p->why, "their subnets differ");
                }
}

static pairing *pair(int a, int i, int b, int k)
{
    for (int q = 0; q < s.npairs; q++)
        if (pairs[q].a == a && pairs[q].i == i && pairs[q].b == b && pairs[q].k == k)
            return &pairs[q];
    return &pairs[MOST - 1];
}

/* Rail i of host h does `gbps` with everyone. */
static void slow_down(int h, int i, double gbps)
{
    for (int q = 0; q < s.npairs; q++)
        if ((pairs[q].a == h && pairs[q].i == i) || (pairs[q].b == h && pairs[q].k == i))
            pairs[q].gbps[0] = pairs[q].gbps[1] = gbps;
}

static void fail_pair(pairing *p, int error, const char *why)
{
    p->status = error;
    snprintf(p->why, sizeof p->why, "%s", why);
}

static int count(const char *id)
{
    int n = 0;

    for (int i = 0; i < nfound; i++)
        n += !strcmp(found[i].id, id) && found[i].severity > GRADSYNC_FINDING_OK;
    return n;
}

/* One test: the check finds exactly `n` things, one of them about the subject with `cause` in its sentence. */
static void finds(const char *id, int n, const char *subject, int severity, const char *cause)
{
    const gradsync_finding *f = NULL;

    nfound = 0;
    judge(&s, keep, NULL);
    for (int i = 0; i < nfound && !f; i++)
        if (!strcmp(found[i].id, id) && !strcmp(found[i].subject, subject))
            f = &found[i];
    int good = f && f->severity == severity && strstr(f->cause, cause) && count(id) == n;
    tap_ok(good, "%s: %s%s%s", id, f ? f->subject : "", f && f->subject[0] ? ": " : "",
           f ? f->cause : "no such finding");
    for (int i = 0; !good && i < nfound; i++)
        tap_note("%s %d '%s' %s", found[i].id, found[i].severity, found[i].subject, found[i].cause);
}

static void nothing(const char *what)
{
    int bad = 0;

    nfound = 0;
    judge(&s, keep, NULL);
    for (int i = 0; i < nfound; i++)
        if (found[i].severity != GRADSYNC_FINDING_OK) {
            tap_note("%s '%s' %s", found[i].id, found[i].subject, found[i].cause);
            bad++;
        }
    tap_ok(!bad && nfound == 7, "%s: nothing is wrong", what);
}

int main(void)
{
    make(2, 4, 0);
    nothing("2 hosts, 4 rails of their own subnets");
    make(3, 2, 1);
    nothing("3 hosts, 2 rails of one subnet");
    make(2, 1, 0);
    slow_down(0, 0, 81);
    nothing("one pair alone has nothing to be compared with");

    make(2, 4, 0);
    slow_down(0, 2, 40);
    finds("rail-slow", 1, "node0 mlx5_2:1 - node1 mlx5_2:1", GRADSYNC_FINDING_WARNING,
          "40 Gb/s at best, while like rails reach 97");
    finds("rail-nominal", 2, "node1 mlx5_2:1", GRADSYNC_FINDING_HINT, "40 % of its nominal 100");
    make(2, 2, 0);
    slow_down(0, 1, 40);
    finds("rail-slow", 1, "node0 mlx5_1:1 - node1 mlx5_1:1", GRADSYNC_FINDING_WARNING, "40 Gb/s");
    make(2, 2, 1);
    slow_down(1, 1, 40);
    finds("rail-slow", 1, "node1 mlx5_1:1", GRADSYNC_FINDING_WARNING, "40 Gb/s"); /* the others do well elsewhere */
    make(4, 2, 0);
    slow_down(2, 0, 40);
    finds("rail-slow", 1, "node2 mlx5_0:1", GRADSYNC_FINDING_WARNING, "40 Gb/s");
    make(2, 4, 0); /* a rail that is made for less is no slow one */
    for (int h = 0; h < 2; h++)
        hosts[h].rails[3].rate_mbps = 25000;
    slow_down(0, 3, 24);
    nothing("a rail of 25 Gb/s beside those of 100");

    make(2, 4, 0);
    pair(0, 1, 1, 1)->latency_us = 9;
    finds("rail-latency", 1, "node0 mlx5_1:1 - node1 mlx5_1:1", GRADSYNC_FINDING_WARNING,
          "9 us one way, on like rails 2 us");
    make(2, 4, 0);
    pair(0, 1, 1, 1)->gbps[1] = 60;
    finds("rail-direction", 1, "node0 mlx5_1:1 - node1 mlx5_1:1", GRADSYNC_FINDING_WARNING,
          "from node1 it writes at 60 Gb/s, the other way at 97");
    make(2, 2, 0);
    hosts[1].rails[0].mtu = 1024;
    finds("rail-mtu", 1, "node0 mlx5_0:1 - node1 mlx5_0:1", GRADSYNC_FINDING_WARNING, "4096 bytes at one end, 1024");

    make(2, 2, 0);
    fail_pair(pair(0, 1, 1, 1), GRADSYNC_ERR_TIMEOUT, "no answer");
    finds("rail-failed", 1, "node0 mlx5_1:1 - node1 mlx5_1:1", GRADSYNC_FINDING_ERROR, "subnets match: no answer");
    finds("rail-apart", 0, "", GRADSYNC_FINDING_OK, "every rail");
    make(3, 2, 0); /* the same, but others can tell who it is */
    fail_pair(pair(0, 1, 1, 1), GRADSYNC_ERR_TIMEOUT, "no answer");
    fail_pair(pair(0, 1, 2, 1), GRADSYNC_ERR_DEVICE, "no answer");
    finds("rail-failed", 1, "node0 mlx5_1:1", GRADSYNC_FINDING_ERROR, "no answer");
    make(3, 2, 0);
    fail_pair(pair(0, 1, 1, 1), GRADSYNC_ERR_TIMEOUT, "no answer");
    finds("rail-failed", 1, "node0 mlx5_1:1 - node1 mlx5_1:1", GRADSYNC_FINDING_WARNING, "this pair fails: no answer");
    make(2, 2, 0);
    fail_pair(pair(0, 1, 1, 1), GRADSYNC_ERR_UNSUPPORTED, "10.1.0.1/24 and 10.2.0.1/24 do not meet");
    pair(0, 1, 1, 1)->connected = 0;
    finds("rail-apart", 2, "node1 mlx5_1:1", GRADSYNC_FINDING_WARNING, "no rail of the other hosts can talk to it");
    finds("rail-failed", 0, "", GRADSYNC_FINDING_OK, "all 1 pairs");
    /* Subnets: rails of one that all have meet only there. */
    make(2, 2, 0);
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 2; i++) {
            rail *r = &hosts[h].rails[i];
            r->nsubnets = 1;
            r->subnets[0].ipv4 = 1;
            r->subnets[0].bits = 20;
            memcpy(r->subnets[0].raw, (unsigned char[]){10, 0, (unsigned char)(i * 16 + h), 1}, 4);
        }
    tap_ok(survey_pairs(&s, 0, 0, 1, 0) && survey_pairs(&s, 0, 1, 1, 1) && !survey_pairs(&s, 0, 0, 1, 1) &&
               !survey_pairs(&s, 0, 1, 1, 0),
           "rails with subnets are measured inside of them");
    hosts[1].rails[1].subnets[0].raw[1] = 99;
    tap_ok(!survey_pairs(&s, 0, 1, 1, 0) && survey_pairs(&s, 0, 1, 1, 1),
           "two that are left over are tried: the fabric may route");
    hosts[1].rails[1].nsubnets = 0;
    tap_ok(survey_pairs(&s, 0, 0, 1, 1), "what is not known is tried");
    hosts[0].rails[0].subnets[0].ipv4 = 0;
    tap_ok(!rails_meet(&hosts[0].rails[0], &hosts[1].rails[0]), "IPv4 and IPv6 do not meet");
    make(2, 0, 0);
    nothing("no rails at all");
    s.wire = "tcp";
    for (int h = 0; h < 2; h++)
        hosts[h].ntcp = 1;
    s.npairs = 1;
    pairs[0] = (pairing){.a = 0, .b = 1, .connected = 1, .latency_us = 20, .gbps = {9, 9}};
    nothing("TCP");
    return tap_done();
}
