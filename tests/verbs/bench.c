/* SPDX-License-Identifier: Apache-2.0 */
/* What the provider makes of the wire, to be held against ib_write_lat and ib_write_bw of the same boot. */
#include "pair.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WARM = 300, PINGS = 3000, AT = PAIR_BYTES / 2 };

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void tell_latency(const pair *p, const char *what, double *times)
{
    qsort(times, PINGS, sizeof *times, by_value);
    if (p->role == 0)
        printf("%-34s median %6.2f us, 99%% %6.2f us\n", what, times[PINGS / 2] * 5e5, times[PINGS * 99 / 100] * 5e5);
    fflush(stdout);
}

/* One ping is an 8-byte inline write there and one back. with_imm: told by an immediate; else by polling the memory,
 * as ib_write_lat does it. */
static int latency(pair *p, int with_imm)
{
    static double times[PINGS];
    volatile uint64_t *flag = (volatile uint64_t *)(void *)(p->mem + AT);
    gsi_rail_event events[16];
    unsigned in_flight = 0;

    *flag = UINT64_MAX;
    if (!pair_meet(p, 1))
        return -1;
    for (uint64_t i = 0; i < WARM + PINGS; i++) {
        double begin = pair_seconds();
        /* The first half waits after its write, the second before it. */
        for (int half = 0; half < 2; half++) {
            if (half == p->role) {
                int signal = i % 16 == 0;
                gsi_rail_work work = {.local = &i,
                                      .bytes = 8,
                                      .remote = p->peer_mem + AT,
                                      .remote_key = p->peer_key,
                                      .imm = (uint32_t)i,
                                      .flags = GSI_RAIL_INLINE | (signal ? GSI_RAIL_SIGNAL : 0) |
                                               (with_imm ? GSI_RAIL_IMM : 0)};

                in_flight += (unsigned)signal;
                if (p->rail->ops->write(p->conn, &work))
                    return -1;
                continue;
            }
            for (int got = 0; !got;) {
                int n = 0;

                if (with_imm || in_flight > 1)
                    n = p->rail->ops->poll(p->rail, events, 16);
                for (int k = 0; k < n; k++) {
                    if (events[k].kind == GSI_RAIL_FAILED)
                        return -1;
                    in_flight -= events[k].kind == GSI_RAIL_SENT;
                    got |= with_imm && events[k].kind == GSI_RAIL_ARRIVED;
                }
                got |= !with_imm && *flag == i;
            }
        }
        if (i >= WARM)
            times[i - WARM] = pair_seconds() - begin;
    }
    tell_latency(p, with_imm ? "8 B one way, write with immediate" : "8 B one way, polling memory", times);
    while (in_flight) {
        gsi_rail_event event;

        if (!pair_event(p, GSI_RAIL_SENT, &event))
            return -1;
        in_flight--;
    }
    return 0;
}

/* One direction's share: `total` writes of so many bytes, `depth` in flight, every `every`th signalled. */
static int stream(pair *p, uint64_t bytes, unsigned total, unsigned depth, unsigned every, int imm, int send,
                  int receive)
{
    unsigned posted = 0, done = 0, arrived = 0, credit_at = 0, credits = PAIR_DEPTH;
    gsi_rail_event events[16];

    while ((send && done < total) || (receive && imm && arrived < total)) {
        while (send && posted < total && posted - done < depth && (!imm || credits)) {
            unsigned last = posted + 1 == total || posted % every == every - 1;
            /* A chain for as long as there is room. */
            unsigned more = !last && posted + 1 - done < depth;

            if (pair_write(p, 0, AT, bytes,
                           (last ? GSI_RAIL_SIGNAL : 0) | (imm ? GSI_RAIL_IMM : 0) | (more ? GSI_RAIL_MORE : 0), posted,
                           posted + 1))
                return -1;
            posted++;
            credits -= (unsigned)imm;
        }
        p->rail->ops->ring(p->conn);
        int n = p->rail->ops->poll(p->rail, events, 16);
        for (int k = 0; k < n; k++) {
            if (events[k].kind == GSI_RAIL_FAILED) {
                fprintf(stderr, "failed: %s\n", events[k].why);
                return -1;
            }
            if (events[k].kind == GSI_RAIL_SENT && events[k].id)
                done = (unsigned)events[k].id;
            if (events[k].kind == GSI_RAIL_ARRIVED && events[k].imm >> 31)
                credits += events[k].imm & 0xffff;
            else if (events[k].kind == GSI_RAIL_ARRIVED)
                arrived++;
        }
        if (imm && receive && arrived - credit_at >= PAIR_DEPTH / 4) {
            gsi_rail_work work = {.imm = 1u << 31 | (arrived - credit_at), .flags = GSI_RAIL_IMM | GSI_RAIL_SIGNAL};

            if (p->rail->ops->write(p->conn, &work))
                return -1;
            credit_at = arrived;
        }
    }
    return 0;
}

static int bandwidth(pair *p, uint64_t bytes, unsigned total, unsigned depth, unsigned every, int imm, int both)
{
    double best[3];

    for (int round = 0; round < 3; round++) {
        if (!pair_meet(p, 1))
            return -1;
        double begin = pair_seconds();
        int rc = stream(p, bytes, total, depth, every, imm, both || p->role == 0, both || p->role == 1);
        if (!pair_meet(p, !rc))
            return -1;
        best[round] = (both ? 2.0 : 1.0) * (double)bytes * total / (pair_seconds() - begin) / 1048576;
        pair_forget_events(p);
    }
    qsort(best, 3, sizeof *best, by_value);
    if (p->role == 0)
        printf("%7llu B %s%s depth %2u signal every %u: %7.1f MiB/s (%.1f to %.1f)\n", (unsigned long long)bytes,
               both ? "both ways" : "one way  ", imm ? " imm" : "    ", depth, every, best[1], best[0], best[2]);
    fflush(stdout);
    return 0;
}

int pair_bench(pair *p, const char *what)
{
    memset(p->mem, 1, PAIR_BYTES);
    if (strcmp(what, "bw"))
        for (int round = 0; round < 2; round++)
            if (latency(p, 0) || latency(p, 1))
                return 1;
    for (int imm = 0; strcmp(what, "lat") && imm < 2; imm++)
        for (int both = 0; both < 2; both++)
            if (bandwidth(p, 65536, 400, 16, 4, imm, both) || bandwidth(p, 65536, 400, 48, 8, imm, both) ||
                bandwidth(p, 1 << 20, 30, 8, 2, imm, both))
                return 1;
    return 0;
}
