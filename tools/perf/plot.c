/* SPDX-License-Identifier: Apache-2.0 */
/* Bandwidth and time over size, both axes logarithmic, as SVG or PNG. */
#include "report.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if PERF_HAVE_CAIRO
#include <cairo-svg.h>
#include <cairo.h>

enum { WIDTH = 860, HEIGHT = 916, MOST_SERIES = 8 };
enum { LEFT = 78, RIGHT = 24, TOP = 92, PANEL = 340, GAP = 64 };

typedef struct point {
    double size, bandwidth, us; /* means over the cycles */
    int n;
} point;

/* One type and operation, one placement. */
typedef struct series {
    int dtype, op, place;
    point *points; /* by size; owned */
    size_t npoints;
} series;

typedef struct picture {
    const perf_run *run;
    cairo_t *cr;
    series list[MOST_SERIES];
    int n, left_out;
    int single; /* 1: one type and operation, both placements; 0: of each only in place */
    int bus;    /* 1: bus bandwidth, 0: algorithm bandwidth (with one rank there is no bus) */
    double lo_x, hi_x;
} picture;

/* One panel: where it is, and what its y axis spans. */
typedef struct panel {
    double top;
    double lo, hi;
    double (*value)(const point *p);
} panel;

/* Blue, orange, green, purple, red, brown, teal, grey: told apart in black and white, too. */
static const double colours[MOST_SERIES][3] = {{0.12, 0.37, 0.68}, {0.88, 0.45, 0.05}, {0.20, 0.55, 0.25},
                                               {0.48, 0.32, 0.65}, {0.75, 0.15, 0.18}, {0.50, 0.34, 0.25},
                                               {0.10, 0.58, 0.60}, {0.40, 0.40, 0.40}};

static double bandwidth_of(const point *p)
{
    return p->bandwidth;
}

static double time_of(const point *p)
{
    return p->us;
}

/* ---- Data --------------------------------------------------------------------------- */

static series *find_series(picture *pic, const perf_row *row, int place)
{
    for (int i = 0; i < pic->n; i++) {
        series *s = &pic->list[i];
        if (s->dtype == row->dtype && s->op == row->op && s->place == place)
            return s;
    }
    if (pic->n == MOST_SERIES) {
        pic->left_out = 1;
        return NULL;
    }
    series *s = &pic->list[pic->n];
    s->points = calloc(pic->run->nrows, sizeof *s->points);
    if (!s->points)
        return NULL;
    s->dtype = row->dtype;
    s->op = row->op;
    s->place = place;
    pic->n++;
    return s;
}

static void add_point(picture *pic, series *s, const perf_row *row, int place)
{
    const perf_result *r = &row->place[place];
    size_t i = 0;

    while (i < s->npoints && s->points[i].size != (double)row->bytes)
        i++;
    if (i == s->npoints)
        s->points[s->npoints++].size = (double)row->bytes;
    s->points[i].n++;
    s->points[i].bandwidth += ((pic->bus ? r->busbw : r->algbw) - s->points[i].bandwidth) / s->points[i].n;
    s->points[i].us += (r->time_us - s->points[i].us) / s->points[i].n;
}

static int collect(picture *pic)
{
    const perf_run *run = pic->run;

    pic->bus = run->sum_busbw > 0;
    pic->single = run->options->ndtypes * run->options->nops == 1;
    pic->lo_x = INFINITY;
    for (uint64_t i = 0; i < run->nrows; i++) {
        const perf_row *row = &run->rows[i];

        for (int place = pic->single ? 0 : PERF_IN_PLACE; place < PERF_PLACES && row->bytes > 0; place++) {
            series *s = row->place[place].time_us > 0 ? find_series(pic, row, place) : NULL;
            if (!s)
                continue;
            add_point(pic, s, row, place);
            pic->lo_x = fmin(pic->lo_x, (double)row->bytes);
            pic->hi_x = fmax(pic->hi_x, (double)row->bytes);
        }
    }
    if (pic->n == 0)
        return -1;
    if (pic->hi_x < pic->lo_x * 4) {
        pic->lo_x /= 2;
        pic->hi_x *= 2;
    }
    return 0;
}

/* The largest of 1, 2, 5 times a power of ten that is not above v; or the smallest not below. */
static double nice(double v, int up)
{
    double base = pow(10, floor(log10(v)));
    const double steps[] = {1, 2, 5, 10};

    if (up) {
        for (int i = 0; i < 4; i++) {
            if (steps[i] * base >= v * (1 - 1e-9))
                return steps[i] * base;
        }
        return 10 * base;
    }
    for (int i = 3; i >= 0; i--) {
        if (steps[i] * base <= v * (1 + 1e-9))
            return steps[i] * base;
    }
    return base;
}

static void span(const picture *pic, panel *p)
{
    p->lo = INFINITY;
    p->hi = 0;
    for (int i = 0; i < pic->n; i++) {
        for (size_t k = 0; k < pic->list[i].npoints; k++) {
            double v = p->value(&pic->list[i].points[k]);
            if (v > 0) {
                p->lo = fmin(p->lo, v);
                p->hi = fmax(p->hi, v);
            }
        }
    }
    if (p->hi <= 0)
        p->lo = p->hi = 1;
    p->lo = nice(p->lo * 0.9, 0);
    p->hi = nice(p->hi * 1.1, 1);
    if (p->hi < p->lo * 4) {
        p->lo = nice(p->lo / 2, 0);
        p->hi = nice(p->hi * 2, 1);
    }
}

/* ---- Drawing ------------------------------------------------------------------------- */

static double x_of(const picture *pic, double size)
{
    double share = log(size / pic->lo_x) / log(pic->hi_x / pic->lo_x);

    return LEFT + share * (WIDTH - LEFT - RIGHT);
}

static double y_of(const panel *p, double v)
{
    return p->top + PANEL * (1 - log(v / p->lo) / log(p->hi / p->lo));
}

/* align: 0 begins at x, 0.5 is centred, 1 ends there. */
static void put_text(cairo_t *cr, double x, double y, double align, double size, int bold, const char *text)
{
    cairo_text_extents_t e;

    cairo_select_font_face(cr, "sans-serif", CAIRO_FONT_SLANT_NORMAL,
                           bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(cr, size);
    cairo_text_extents(cr, text, &e);
    cairo_move_to(cr, x - align * e.x_advance, y);
    cairo_show_text(cr, text);
}

static void line(cairo_t *cr, double x0, double y0, double x1, double y1)
{
    cairo_move_to(cr, x0, y0);
    cairo_line_to(cr, x1, y1);
    cairo_stroke(cr);
}

static void size_label(double size, char text[32])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int u = 0;

    for (; size >= 1024 && u < 4; u++)
        size /= 1024;
    snprintf(text, 32, "%g %s", size, units[u]);
}

static void value_label(double v, char text[32])
{
    if (v >= 1e6)
        snprintf(text, 32, "%g M", v / 1e6);
    else if (v >= 1e4)
        snprintf(text, 32, "%g k", v / 1e3);
    else
        snprintf(text, 32, "%g", v);
}

static void x_axis(const picture *pic, const panel *p, int labels)
{
    cairo_t *cr = pic->cr;
    int lo = (int)ceil(log2(pic->lo_x) - 1e-9), hi = (int)floor(log2(pic->hi_x) + 1e-9);
    int every = (hi - lo) / 9 + 1;
    char text[32];

    for (int e = lo; e <= hi; e++) {
        double x = x_of(pic, ldexp(1, e));
        int marked = (e - lo) % every == 0 || (e == hi && (hi - lo) % every * 2 > every);

        cairo_set_source_rgb(cr, 0.93, 0.93, 0.93);
        if (marked)
            cairo_set_source_rgb(cr, 0.85, 0.85, 0.85);
        line(cr, x, p->top, x, p->top + PANEL);
        cairo_set_source_rgb(cr, 0.25, 0.25, 0.25);
        if (marked && labels) {
            size_label(ldexp(1, e), text);
            put_text(cr, x, p->top + PANEL + 18, 0.5, 12, 0, text);
        }
    }
}

static void y_axis(const picture *pic, const panel *p, const char *name)
{
    static const int steps[] = {1, 2, 5};
    cairo_t *cr = pic->cr;
    double decades = log10(p->hi / p->lo);
    char text[32];

    for (int e = (int)floor(log10(p->lo) + 1e-9); e <= (int)floor(log10(p->hi) + 1e-9); e++) {
        for (int i = 0; i < 3; i++) {
            double v = steps[i] * pow(10, e);

            if (v < p->lo * (1 - 1e-9) || v > p->hi * (1 + 1e-9))
                continue;
            cairo_set_source_rgb(cr, i ? 0.93 : 0.85, i ? 0.93 : 0.85, i ? 0.93 : 0.85);
            line(cr, LEFT, y_of(p, v), WIDTH - RIGHT, y_of(p, v));
            cairo_set_source_rgb(cr, 0.25, 0.25, 0.25);
            if (i == 0 || decades < 3.5) {
                value_label(v, text);
                put_text(cr, LEFT - 8, y_of(p, v) + 4, 1, 12, 0, text);
            }
        }
    }
    cairo_set_source_rgb(cr, 0.25, 0.25, 0.25);
    cairo_rectangle(cr, LEFT, p->top, WIDTH - LEFT - RIGHT, PANEL);
    cairo_stroke(cr);
    cairo_save(cr);
    cairo_translate(cr, 22, p->top + PANEL / 2.0);
    cairo_rotate(cr, -M_PI / 2);
    put_text(cr, 0, 0, 0.5, 13, 0, name);
    cairo_restore(cr);
}

static void set_line(const picture *pic, int i)
{
    static const double dashes[] = {6, 4};

    cairo_set_source_rgb(pic->cr, colours[i][0], colours[i][1], colours[i][2]);
    cairo_set_line_width(pic->cr, 2);
    cairo_set_dash(pic->cr, dashes, pic->list[i].place == PERF_OUT_OF_PLACE ? 2 : 0, 0);
}

static void draw_series(const picture *pic, const panel *p, int i)
{
    const series *s = &pic->list[i];
    cairo_t *cr = pic->cr;

    set_line(pic, i);
    for (size_t k = 0; k < s->npoints; k++) {
        double v = p->value(&s->points[k]);
        if (v > 0)
            cairo_line_to(cr, x_of(pic, s->points[k].size), y_of(p, v));
    }
    cairo_stroke(cr);
    cairo_set_dash(cr, NULL, 0, 0);
    for (size_t k = 0; k < s->npoints && s->npoints <= 60; k++) {
        double v = p->value(&s->points[k]);
        if (v > 0) {
            cairo_arc(cr, x_of(pic, s->points[k].size), y_of(p, v), 3, 0, 2 * M_PI);
            cairo_fill(cr);
        }
    }
    cairo_set_line_width(cr, 1);
}

static void draw_panel(const picture *pic, panel *p, const char *name, int labels)
{
    span(pic, p);
    cairo_set_line_width(pic->cr, 1);
    x_axis(pic, p, labels);
    y_axis(pic, p, name);
    cairo_save(pic->cr);
    cairo_rectangle(pic->cr, LEFT - 4, p->top - 4, WIDTH - LEFT - RIGHT + 8, PANEL + 8);
    cairo_clip(pic->cr);
    for (int i = 0; i < pic->n; i++)
        draw_series(pic, p, i);
    cairo_restore(pic->cr);
}

static void legend(const picture *pic)
{
    double x = LEFT;
    double y = 62;
    char text[64];

    for (int i = 0; i < pic->n; i++) {
        const series *s = &pic->list[i];
        cairo_text_extents_t e;

        snprintf(text, sizeof text, "%s%s%s%s", perf_dtype_name(s->dtype), s->op < 0 ? "" : " ",
                 s->op < 0 ? "" : perf_op_name(s->op),
                 !pic->single                ? ""
                 : s->place == PERF_IN_PLACE ? ", in place"
                                             : ", out of place");
        cairo_set_font_size(pic->cr, 12);
        cairo_text_extents(pic->cr, text, &e);
        if (x > LEFT && x + e.x_advance + 40 > WIDTH - RIGHT) {
            x = LEFT;
            y += 16;
        }
        set_line(pic, i);
        line(pic->cr, x, y - 4, x + 24, y - 4);
        cairo_set_dash(pic->cr, NULL, 0, 0);
        cairo_set_source_rgb(pic->cr, 0.25, 0.25, 0.25);
        put_text(pic->cr, x + 30, y, 0, 12, 0, text);
        x += e.x_advance + 54;
    }
}

static void draw(const picture *pic)
{
    const perf_options *o = pic->run->options;
    double foot = TOP + 2 * PANEL + GAP + 40;
    panel upper = {.top = TOP, .value = bandwidth_of}, lower = {.top = TOP + PANEL + GAP, .value = time_of};
    char text[256];

    cairo_set_source_rgb(pic->cr, 1, 1, 1);
    cairo_paint(pic->cr);
    cairo_set_source_rgb(pic->cr, 0.1, 0.1, 0.1);
    snprintf(text, sizeof text, "gradsync %s, %d rank%s, %s%s", gradsync_coll_name(o->coll), pic->run->nranks,
             pic->run->nranks > 1 ? "s" : "", pic->run->comm.transport, pic->single ? "" : ", in place");
    put_text(pic->cr, LEFT, 26, 0, 17, 1, text);
    snprintf(text, sizeof text, "%s memory, algorithm %s%s, %lld iterations, %.60s, libgradsync %s",
             perf_memory_name(o->memory), gradsync_algo_name(o->algo), o->ordered ? ", ordered" : "", o->iters,
             pic->run->ranks ? pic->run->ranks[0].cpu_model : "", gradsync_version());
    put_text(pic->cr, LEFT, 44, 0, 12, 0, text);
    legend(pic);
    draw_panel(pic, &upper, pic->bus ? "bus bandwidth (GB/s)" : "algorithm bandwidth (GB/s)", 1);
    draw_panel(pic, &lower, o->cpu_time ? "CPU time per operation (\xc2\xb5s)" : "time per operation (\xc2\xb5s)", 1);
    cairo_set_source_rgb(pic->cr, 0.25, 0.25, 0.25);
    put_text(pic->cr, (LEFT + WIDTH - RIGHT) / 2.0, foot, 0.5, 13, 0, "message size");
    if (pic->left_out) {
        snprintf(text, sizeof text, "the first %d curves; all are in --json and --csv", (int)MOST_SERIES);
        put_text(pic->cr, WIDTH - RIGHT, foot + 18, 1, 11, 0, text);
    }
}

/* ---- The file ------------------------------------------------------------------------ */

typedef struct stream {
    perf_write_fn write;
    void *arg;
    int error; /* errno of the first failed write */
} stream;

static cairo_status_t put_bytes(void *closure, const unsigned char *data, unsigned int bytes)
{
    stream *s = closure;

    if (s->error == 0 && s->write(s->arg, data, bytes) != 0)
        s->error = errno ? errno : EIO;
    return s->error ? CAIRO_STATUS_WRITE_ERROR : CAIRO_STATUS_SUCCESS;
}

int perf_plot_available(void)
{
    return 1;
}

int perf_plot(const perf_run *run, const char *path, perf_write_fn write, void *arg, const char **why)
{
    picture pic = {.run = run};
    stream out = {write, arg, 0};
    int png = strcmp(path + strlen(path) - 4, ".png") == 0;
    int sharp = 2; /* pixels of a PNG per unit */
    cairo_status_t status = CAIRO_STATUS_NO_MEMORY;

    errno = 0;
    if (collect(&pic) != 0) {
        *why = "there is no row with a size above 0";
        return -1;
    }
    cairo_surface_t *surface = png ? cairo_image_surface_create(CAIRO_FORMAT_RGB24, WIDTH * sharp, HEIGHT * sharp)
                                   : cairo_svg_surface_create_for_stream(put_bytes, &out, WIDTH, HEIGHT);
    pic.cr = cairo_create(surface);
    if (png)
        cairo_scale(pic.cr, sharp, sharp);
    draw(&pic);
    status = cairo_status(pic.cr);
    cairo_destroy(pic.cr);
    if (png && status == CAIRO_STATUS_SUCCESS)
        status = cairo_surface_write_to_png_stream(surface, put_bytes, &out);
    cairo_surface_finish(surface);
    if (status == CAIRO_STATUS_SUCCESS)
        status = cairo_surface_status(surface);
    cairo_surface_destroy(surface);
    for (int i = 0; i < pic.n; i++)
        free(pic.list[i].points);
    *why = cairo_status_to_string(status);
    errno = out.error;
    return status == CAIRO_STATUS_SUCCESS && out.error == 0 ? 0 : -1;
}

#else

int perf_plot_available(void)
{
    return 0;
}

int perf_plot(const perf_run *run, const char *path, perf_write_fn write, void *arg, const char **why)
{
    (void)run, (void)path, (void)write, (void)arg;
    *why = "built without cairo";
    return -1;
}

#endif
