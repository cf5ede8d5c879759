/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"

#include <math.h>
#include <stdlib.h>

#if PERF_HAVE_JANSSON
#include <jansson.h>

/* JSON knows no infinity. */
static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *text_or_null(const char *text)
{
    json_t *s = json_string(text); /* NULL if it is no UTF-8 */

    return s ? s : json_null();
}

static json_t *config(const perf_run *run)
{
    const perf_options *o = run->options;
    json_t *c = json_pack(
        "{s:s, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:s, s:b, s:s, s:b, s:s, s:i}", "collective",
        gradsync_coll_name(o->coll), "ranks", run->nranks, "minimum_bytes", (json_int_t)o->min_bytes, "maximum_bytes",
        (json_int_t)o->max_bytes, "warmup_iters", (json_int_t)o->warmup, "iterations", (json_int_t)o->iters,
        "aggregated_iterations", (json_int_t)o->agg, "cycles", (json_int_t)o->cycles, "validation", o->check,
        "blocking_collectives", o->blocking, "memory", perf_memory_name(o->memory), "registered",
        o->memory != PERF_MEMORY_PLAIN || o->register_memory, "algorithm", gradsync_algo_name(o->algo), "ordered",
        o->ordered, "transport", o->transport ? o->transport : "auto", "average", o->average);

    if (!c)
        return NULL;
    if (o->step_factor > 1)
        json_object_set_new(c, "step_factor", json_integer((json_int_t)o->step_factor));
    else
        json_object_set_new(c, "step_bytes", json_integer((json_int_t)o->step_bytes));
    return c;
}

static json_t *ranks(const perf_run *run)
{
    json_t *list = json_array();

    for (int r = 0; r < run->nranks; r++) {
        const perf_rank *k = &run->ranks[r];

        json_array_append_new(list, json_pack("{s:i, s:I, s:o, s:s, s:o, s:s, s:b}", "rank", r, "pid",
                                              (json_int_t)k->peer.pid, "hostname", text_or_null(k->peer.host), "device",
                                              "cpu", "device_info", text_or_null(k->cpu_model), "cpu_tier", k->cpu_tier,
                                              "same_host", k->peer.same_host));
    }
    return list;
}

static json_t *rails(const perf_run *run)
{
    json_t *list = json_array();

    for (int i = 0; i < run->comm.nrails; i++) {
        const gradsync_rail_info *k = &run->rails[i];

        json_array_append_new(list,
                              json_pack("{s:o, s:i, s:o, s:o}", "device", text_or_null(k->device), "numa_node",
                                        k->numa_node, "share", number(k->share), "reason", text_or_null(k->reason)));
    }
    return list;
}

static json_t *result(const perf_run *run, const perf_result *p)
{
    json_t *each = json_array();

    for (int r = 0; r < run->nranks; r++)
        json_array_append_new(each, number(p->rank_us[r]));
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "time",
                     number(p->wall_us), "cpu_time", number(p->cpu_us), "alg_bw", number(p->algbw), "bus_bw",
                     number(p->busbw), "nwrong", p->wrong < 0 ? json_null() : json_integer((json_int_t)p->wrong),
                     "min_us", number(p->min_us), "p50_us", number(p->p50_us), "avg_us", number(p->mean_us), "p95_us",
                     number(p->p95_us), "p99_us", number(p->p99_us), "max_us", number(p->max_us), "stdev_us",
                     number(p->stdev_us), "cpu_s_per_gb", number(p->cpu_s_per_gb), "guard_bytes_damaged",
                     p->wrong < 0 ? json_null() : json_integer((json_int_t)p->guards), "rank_times_us", each);
}

static json_t *rows(const perf_run *run)
{
    json_t *list = json_array();

    for (uint64_t i = 0; i < run->nrows; i++) {
        const perf_row *row = &run->rows[i];

        json_array_append_new(
            list, json_pack("{s:I, s:I, s:s, s:s, s:i, s:o, s:I, s:o, s:o}", "size", (json_int_t)row->bytes, "count",
                            (json_int_t)row->count, "type", perf_dtype_name(row->dtype), "redop",
                            row->op < 0 ? "none" : perf_op_name(row->op), "root", row->root, "algorithm",
                            row->algo < 0 ? json_null() : json_string(gradsync_algo_name(row->algo)), "cycle",
                            (json_int_t)row->cycle, "out_of_place", result(run, &row->place[PERF_OUT_OF_PLACE]),
                            "in_place", result(run, &row->place[PERF_IN_PLACE])));
    }
    return list;
}

char *perf_json_text(const perf_run *run)
{
    double bad = run->wrong + run->guards;
    json_t *bounds = run->options->check ? json_pack("{s:I, s:b}", "count", (json_int_t)bad, "okay", bad == 0)
                                         : json_pack("{s:n, s:n}", "count", "okay");
    json_t *root = json_pack("{s:s, s:s, s:s, s:o, s:o, s:{s:s, s:o}, s:o, s:o, s:o, s:b}", "program", PERF_NAME,
                             "library_version", gradsync_version(), "start_time", run->started, "config", config(run),
                             "devices", ranks(run), "transport", "name", run->comm.transport, "rails", rails(run),
                             "results", rows(run), "out_of_bounds", bounds, "average_bus_bandwidth",
                             number(run->nbusbw ? run->sum_busbw / (double)run->nbusbw : 0), "stopped", run->stopped);
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;

    json_decref(root);
    return text;
}

#else

char *perf_json_text(const perf_run *run)
{
    (void)run;
    return NULL;
}

#endif
