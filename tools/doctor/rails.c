/* SPDX-License-Identifier: Apache-2.0 */
/* What was measured, as a table and as JSON. */
#include "rails.h"

#include <stdio.h>
#include <string.h>

#include "report.h"

/* Pairs that are not meant to talk to each other are no rows, if each of the two has others. */
static int is_row(const pairing *p)
{
    return p->connected || p->status != GRADSYNC_ERR_UNSUPPORTED;
}

void rails_text(const survey *s)
{
    int apart = 0;

    printf("Rails between %d hosts by %s: 8 bytes one way, and writes of %d KiB in each direction.\n\n", s->nhosts,
           s->wire, PAIR_CHUNK >> 10);
    printf("%-30s %-30s %10s %9s %9s %8s\n", "from", "to", "latency", "there", "back", "nominal");
    printf("%-30s %-30s %10s %9s %9s %8s\n", "", "", "(us)", "(Gb/s)", "(Gb/s)", "(Gb/s)");
    for (int q = 0; q < s->npairs; q++) {
        const pairing *p = &s->pairs[q];
        const rail *x = survey_rail(s, p->a, p->i), *y = survey_rail(s, p->b, p->k);
        uint32_t nominal = x->rate_mbps < y->rate_mbps ? x->rate_mbps : y->rate_mbps;
        char from[64], to[64], rate[16] = "?";
        if (!is_row(p)) {
            apart++;
            continue;
        }
        snprintf(from, sizeof from, "%.30s %.30s", s->hosts[p->a].name, x->name);
        snprintf(to, sizeof to, "%.30s %.30s", s->hosts[p->b].name, y->name);
        if (nominal)
            snprintf(rate, sizeof rate, "%.4g", nominal / 1000.0);
        if (p->status)
            printf("%-30s %-30s %10s: %s\n", from, to, gradsync_error_name(p->status), p->why);
        else
            printf("%-30s %-30s %10.2f %9.2f %9.2f %8s\n", from, to, p->latency_us, p->gbps[0], p->gbps[1], rate);
    }
    if (apart)
        printf("%d pairs of rails are of different subnets or kinds, and not used together.\n", apart);
    putchar('\n');
}

void rails_json(const survey *s)
{
    printf(",\n  \"wire\": \"%s\",\n  \"hosts\": [", s->wire);
    for (int h = 0; h < s->nhosts; h++) {
        printf("%s", h ? ", " : "");
        json_text(s->hosts[h].name);
    }
    printf("],\n  \"pairs\": [");
    for (int q = 0; q < s->npairs; q++) {
        const pairing *p = &s->pairs[q];
        const rail *x = survey_rail(s, p->a, p->i), *y = survey_rail(s, p->b, p->k);
        printf("%s\n    {\"from\": ", q ? "," : "");
        json_text(s->hosts[p->a].name);
        printf(", \"rail\": ");
        json_text(x->name);
        printf(", \"to\": ");
        json_text(s->hosts[p->b].name);
        printf(", \"peer_rail\": ");
        json_text(y->name);
        printf(", \"status\": %d", (int)p->status);
        if (p->status) {
            printf(", \"why\": ");
            json_text(p->why);
        } else {
            printf(", \"latency_us\": %.3f, \"gbps\": %.4f, \"gbps_back\": %.4f", p->latency_us, p->gbps[0],
                   p->gbps[1]);
        }
        printf(", \"nominal_gbps\": [%.4g, %.4g]}", x->rate_mbps / 1000.0, y->rate_mbps / 1000.0);
    }
    printf("%s]", s->npairs ? "\n  " : "");
}
