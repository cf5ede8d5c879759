/* SPDX-License-Identifier: Apache-2.0 */
/* The rails of several hosts, what each pair of them was measured at, and what is wrong with it. */
#ifndef TOOLS_DOCTOR_RAILS_H
#define TOOLS_DOCTOR_RAILS_H

#include <gradsync/gradsync.h>

enum { RAILS_MAX = 64, RAIL_SUBNETS = 4, PAIR_CHUNK = 256 << 10, PAIR_WINDOW = 8 };

typedef struct rail {
    char name[72];      /* "mlx5_0:1", "eth0" */
    uint32_t rate_mbps; /* nominal; 0: unknown */
    uint32_t mtu;       /* of RDMA packets; 0: unknown */
    int32_t nsubnets;   /* 0: not known */
    struct {
        unsigned char raw[16]; /* IPv4: the first 4 bytes */
        int32_t bits, ipv4;
    } subnets[RAIL_SUBNETS];
} rail;

/* One host, told by the first of its ranks. Plain data: all ranks exchange it. */
typedef struct host {
    char name[64];
    char machine[64]; /* equal for ranks of one machine */
    int32_t nrails, ntcp;
    rail rails[RAILS_MAX]; /* RDMA ports that can be used, */
    rail tcp[RAILS_MAX];   /* and network interfaces */
    char no_rdma[160];     /* why there is no port */
} host;

/* Rail i of host a with rail k of host b, a < b. */
typedef struct pairing {
    int32_t a, i, b, k;
    int32_t status;    /* 0: measured; else the error */
    int32_t connected; /* 0: it failed before anything could be sent */
    double latency_us; /* of 8 bytes, one way */
    double gbps[2];    /* of writes, the better of two tries: from a to b, from b to a */
    char why[240];
} pairing;

typedef struct survey {
    const char *wire; /* "verbs", "tcp" */
    host *hosts;
    int nhosts;
    pairing *pairs;
    int npairs;
} survey;

/* The name of a rail of a host, by the survey's wire. */
const rail *survey_rail(const survey *s, int h, int i);
int survey_rails(const survey *s, int h);

/* 1 if they may be able to talk: they have a subnet in common, or it is not known. Pure. */
int rails_meet(const rail *x, const rail *y);
/* Whether rail i of host a and rail k of host b are to be measured: they meet, or neither meets any other of the two
 * hosts, and the fabric may route. Pure. */
int survey_pairs(const survey *s, int a, int i, int b, int k);

/* Finds what is wrong: pure. Each of its checks gives at least one finding. fn: as for gradsync_diagnose(). */
void judge(const survey *s, gradsync_finding_fn fn, void *arg);

/* One pair, measured by both of its ranks at once: `control` connects them by other means. first: this rank is a's.
 * Fills the result in both. Errors are in it. */
typedef struct measure_config {
    gradsync_comm *control;
    int peer;  /* rank in control */
    int first; /* 1: this rank's rail is rail i of host a */
    const char *wire;
    const char *rail; /* this rank's */
    int64_t timeout_ms;
    double seconds; /* of each direction's bandwidth */
} measure_config;
void measure(const measure_config *config, pairing *out);

/* The table of all pairs. */
void rails_text(const survey *s);
/* JSON members, without the braces around them. */
void rails_json(const survey *s);

#endif
