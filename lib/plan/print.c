/* SPDX-License-Identifier: Apache-2.0 */
/* A plan as text, one step a line. */
#include "plan/plan.h"

#include <stdarg.h>
#include <stdio.h>

typedef struct text {
    char *at;
    size_t room;
    int length; /* of the whole, as snprintf counts */
} text;

__attribute__((format(printf, 2, 3))) static void say(text *t, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    int n = vsnprintf(t->at, t->room, format, args);
    va_end(args);
    size_t used = (size_t)n < t->room ? (size_t)n : t->room;
    t->at += used;
    t->room -= used;
    t->length += n;
}

static const char *const space_names[] = {"send", "recv", "stage"};
static const char *const kind_names[] = {"copy", "reduce", "put", "signal", "wait", "flush"};

static void say_place(text *t, const gsi_place *place, int source)
{
    say(t, " %s%d+%llu", place->space <= GSI_STAGE ? space_names[place->space] : "?", (int)place->rank,
        (unsigned long long)place->off);
    if (source && place->from != GSI_PARTIAL)
        say(t, "(of %d)", (int)place->from);
}

static void say_step(text *t, const gsi_plan *plan, const gsi_step *step)
{
    say(t, "  %s", step->kind <= GSI_STEP_FLUSH ? kind_names[step->kind] : "?");
    if (step->kind >= GSI_STEP_PUT && step->peer == GSI_ALL)
        say(t, " all");
    else if (step->kind >= GSI_STEP_PUT)
        say(t, " %d", (int)step->peer);
    if (step->kind == GSI_STEP_WAIT)
        say(t, " #%u", (unsigned)step->value);
    if (step->kind <= GSI_STEP_PUT) {
        say(t, " %llu bytes:", (unsigned long long)step->bytes);
        for (int i = 0; i < step->nsrc; i++)
            say_place(t, &plan->places[step->place + (uint32_t)i], 1);
        say(t, " ->");
        for (int i = 0; i < step->ndst; i++)
            say_place(t, &plan->places[step->place + step->nsrc + (uint32_t)i], 0);
    }
    say(t, "%s%s%s%s\n", step->flags & GSI_STEP_NOTIFY ? " notify" : "", step->flags & GSI_STEP_FINAL ? " final" : "",
        step->flags & GSI_STEP_ACC_IN ? " acc-in" : "", step->flags & GSI_STEP_ACC_OUT ? " acc-out" : "");
}

int gsi_plan_print(const gsi_plan *plan, char *buffer, size_t room)
{
    text t = {buffer, room, 0};

    say(&t, "%s by %s, rank %d of %d:%s%s%s%s%s%s eager %llu stage %llu\n", gradsync_coll_name(plan->coll),
        gradsync_algo_name(plan->algo), (int)plan->rank, (int)plan->n, plan->gather ? " gather" : "",
        plan->loadstore ? " loadstore" : "", plan->signal_all ? " signal-all" : "",
        plan->user_memory ? " user-memory" : "", plan->ordered ? " ordered" : "", plan->slot ? " slot" : "",
        (unsigned long long)plan->eager, (unsigned long long)plan->stage_bytes);
    for (int s = 0; s < plan->nstreams; s++) {
        say(&t, " stream %d:\n", s);
        for (uint32_t i = 0; i < plan->streams[s].count; i++)
            say_step(&t, plan, &plan->steps[plan->streams[s].first + i]);
    }
    return t.length;
}
