/* SPDX-License-Identifier: Apache-2.0 */
#include "report.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../cli.h"
#include "json.h"

/* ---- Opening and closing ----------------------------------------------------------- */

/* A disk without room shows at once where the file system can reserve some. */
enum { RESERVE = 64 << 10 };

static int open_file(perf_file *f, const char *path)
{
    struct stat st;

    f->path = path;
    f->fd = -1;
    f->created = 0;
    if (!path)
        return 0;
    f->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (f->fd >= 0)
        f->created = 1;
    else if (errno == EEXIST)
        f->fd = open(path, O_WRONLY | O_CLOEXEC);
    if (f->fd < 0) {
        cli_error(PERF_NAME, "cannot write '%s': %s", path, strerror(errno));
        return -1;
    }
    if (fstat(f->fd, &st) == 0 && S_ISREG(st.st_mode) && fallocate(f->fd, FALLOC_FL_KEEP_SIZE, 0, RESERVE) != 0 &&
        (errno == ENOSPC || errno == EDQUOT)) {
        cli_error(PERF_NAME, "cannot write '%s': %s", path, strerror(errno));
        return -1;
    }
    return 0;
}

int perf_files_open(perf_files *f, const perf_options *o)
{
    *f = (perf_files){{NULL, -1, 0}, {NULL, -1, 0}, {NULL, -1, 0}};
    if (o->plot && !perf_plot_available()) {
        cli_error(PERF_NAME, "--plot: built without cairo; install its development files, and build again");
        return -1;
    }
    if (o->json && !PERF_HAVE_JANSSON) {
        cli_error(PERF_NAME, "--json: built without jansson; install its development files, and build again");
        return -1;
    }
    if (open_file(&f->json, o->json) == 0 && open_file(&f->csv, o->csv) == 0 && open_file(&f->plot, o->plot) == 0)
        return 0;
    perf_files_drop(f);
    return -1;
}

static void drop(perf_file *f)
{
    if (f->fd < 0)
        return;
    if (f->created)
        unlink(f->path);
    else if (ftruncate(f->fd, lseek(f->fd, 0, SEEK_END)) != 0) {
        /* the reserve stays allocated behind the end: harmless */
    }
    close(f->fd);
    f->fd = -1;
}

void perf_files_drop(perf_files *f)
{
    drop(&f->json);
    drop(&f->csv);
    drop(&f->plot);
}

/* A perf_write_fn: everything, or -1 with errno. */
static int write_all(void *arg, const void *data, size_t bytes)
{
    int fd = *(int *)arg;
    const char *at = data;

    while (bytes > 0) {
        ssize_t n = write(fd, at, bytes);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        at += n;
        bytes -= (size_t)n;
    }
    return 0;
}

/* Cuts a regular file to what is written from now on. */
static int begin(const perf_file *f)
{
    struct stat st;

    return fstat(f->fd, &st) == 0 && S_ISREG(st.st_mode) ? ftruncate(f->fd, 0) : 0;
}

/* Closes; `rc` and errno are the writer's. */
static int finish(perf_file *f, int rc)
{
    int error = errno;

    if (close(f->fd) != 0 && rc == 0) {
        rc = -1;
        error = errno;
    }
    f->fd = -1;
    if (rc != 0)
        cli_error(PERF_NAME, "cannot write '%s': %s", f->path, strerror(error));
    return rc;
}

/* ---- CSV --------------------------------------------------------------------------- */

static const char csv_head[] = "cycle,size,count,type,redop,root,ranks,collective,memory,algorithm,placement,"
                               "time_us,cpu_us,algbw_GBps,busbw_GBps,wrong,min_us,p50_us,mean_us,p95_us,p99_us,max_us,"
                               "stdev_us,cpu_s_per_GB\n";

static int csv_row(int fd, const perf_run *run, const perf_row *row, int place)
{
    const perf_result *p = &row->place[place];
    char text[1024], wrong[32] = "";

    if (p->wrong >= 0)
        snprintf(wrong, sizeof wrong, "%.0f", p->wrong);
    int n = snprintf(
        text, sizeof text,
        "%lld,%llu,%llu,%s,%s,%d,%d,%s,%s,%s,%s,%.4f,%.4f,%.6g,%.6g,%s,%.4f,%.4f,%.4f,%.4f,%.4f,%.4f,%.4f,"
        "%.6g\n",
        row->cycle, (unsigned long long)row->bytes, (unsigned long long)row->count, perf_dtype_name(row->dtype),
        row->op < 0 ? "none" : perf_op_name(row->op), row->root, run->nranks, gradsync_coll_name(run->options->coll),
        perf_memory_name(run->options->memory), row->algo < 0 ? "" : gradsync_algo_name(row->algo),
        place == PERF_IN_PLACE ? "in_place" : "out_of_place", p->wall_us, p->cpu_us, p->algbw, p->busbw, wrong,
        p->min_us, p->p50_us, p->mean_us, p->p95_us, p->p99_us, p->max_us, p->stdev_us, p->cpu_s_per_gb);
    return write_all(&fd, text, (size_t)n);
}

static int write_csv(perf_file *f, const perf_run *run)
{
    int rc = begin(f);

    if (rc == 0)
        rc = write_all(&f->fd, csv_head, sizeof csv_head - 1);
    for (uint64_t i = 0; i < run->nrows && rc == 0; i++) {
        for (int place = 0; place < PERF_PLACES && rc == 0; place++)
            rc = csv_row(f->fd, run, &run->rows[i], place);
    }
    return finish(f, rc);
}

/* ---- All --------------------------------------------------------------------------- */

static int write_json(perf_file *f, const perf_run *run)
{
    char *text = perf_json_text(run);

    if (!text) {
        errno = ENOMEM;
        return finish(f, -1);
    }
    int rc = begin(f);
    if (rc == 0)
        rc = write_all(&f->fd, text, strlen(text));
    if (rc == 0)
        rc = write_all(&f->fd, "\n", 1);
    int error = errno;
    free(text);
    errno = error;
    return finish(f, rc);
}

static int write_plot(perf_file *f, const perf_run *run)
{
    const char *why = NULL;
    int rc = begin(f);

    if (rc != 0)
        return finish(f, rc);
    errno = 0;
    rc = perf_plot(run, f->path, write_all, &f->fd, &why);
    if (rc == 0 || errno != 0)
        return finish(f, rc);
    cli_error(PERF_NAME, "cannot draw '%s': %s", f->path, why);
    drop(f);
    return -1;
}

int perf_files_write(perf_files *f, const perf_run *run)
{
    int rc = 0;

    if (f->json.fd >= 0)
        rc |= write_json(&f->json, run);
    if (f->csv.fd >= 0)
        rc |= write_csv(&f->csv, run);
    if (f->plot.fd >= 0)
        rc |= write_plot(&f->plot, run);
    return rc;
}
