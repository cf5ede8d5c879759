/* SPDX-License-Identifier: Apache-2.0 */
/* The base: errors, log, allocation, clock, ticks, names, and the structs that callers size. */
#include "tap.h"
#include "unit.h"

#include <pthread.h>
#include <stddef.h>
#include <string.h>

#include "api/check.h"
#include "base/alloc.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/log.h"

/* ---- Errors ------------------------------------------------------------------------ */

static void *other_thread(void *arg)
{
    int *good = arg;
    gradsync_error_info info = unit_error();
    *good = info.code == 0 && info.message[0] == 0 && info.rank == -1 && info.peer == -1;
    gsi_fail(GRADSYNC_ERR_NOMEM, "another thread's");
    return NULL;
}

static void test_errors(void)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    pthread_t thread;
    int good = 0;

    tap_ok(gradsync_last_error(&info) == 0 && !info.message[0], "nothing has failed yet");
    tap_ok(gsi_fail(GRADSYNC_ERR_TIMEOUT, "rank %d", 7) == GRADSYNC_ERR_TIMEOUT &&
               gradsync_last_error(&info) == GRADSYNC_ERR_TIMEOUT && info.code == GRADSYNC_ERR_TIMEOUT &&
               !strcmp(info.message, "rank 7") && info.rank == -1 && info.peer == -1 && info.rail == -1 &&
               info.step == -1 && !info.sys_errno,
           "a failure is kept, with what does not apply at -1");
    pthread_create(&thread, NULL, other_thread, &good);
    pthread_join(thread, NULL);
    tap_ok(good && unit_error().code == GRADSYNC_ERR_TIMEOUT, "each thread has its own");
    tap_ok(gsi_fail_errno(ENOENT, "cannot open %s", "it") == GRADSYNC_ERR_SYSTEM && unit_error().sys_errno == ENOENT &&
               !strcmp(unit_error().message, "cannot open it: No such file or directory"),
           "errno has its text");
    char long_text[2000];
    memset(long_text, 'x', sizeof long_text);
    long_text[sizeof long_text - 1] = 0;
    gsi_fail(GRADSYNC_ERR_INVALID, "%s", long_text);
    tap_ok(strlen(unit_error().message) == sizeof info.message - 1, "a long message is cut");
    gsi_fail_errno(EINVAL, "%s", long_text);
    tap_ok(strlen(unit_error().message) == sizeof info.message - 1, "and with errno too");
    /* Callers whose struct is shorter or longer than ours. */
    struct {
        gradsync_error_info info;
        char guard[32];
    } big;
    int bad = 0;
    gsi_fail(GRADSYNC_ERR_INVALID, "a message of some length");
    for (uint32_t size = 0; size <= sizeof big; size++) {
        memset(&big, 0x55, sizeof big);
        big.info.size = size;
        bad += gradsync_last_error(&big.info) != GRADSYNC_ERR_INVALID;
        if (size < 4)
            continue;
        uint32_t most = size < sizeof info ? size : (uint32_t)sizeof info;
        bad += big.info.size != most;
        for (size_t i = most; i < sizeof big; i++)
            bad += ((char *)&big)[i] != 0x55;
        if (size > offsetof(gradsync_error_info, message))
            bad += !memchr(big.info.message, 0, most - offsetof(gradsync_error_info, message));
    }
    tap_ok(!bad, "no byte beyond the caller's size is written, and what is of the message ends");
    tap_ok(gradsync_last_error(NULL) == GRADSYNC_ERR_INVALID, "the code alone");
}

/* ---- Structs of the caller's size ------------------------------------------------------ */

typedef struct sized {
    uint32_t size, a;
    uint64_t b;
} sized;

static void test_sizes(void)
{
    char room[64];
    int bad = 0;

    for (uint32_t size = 0; size <= 48; size++) {
        sized own = {sizeof own, 1, 2}, known = {sizeof known, 7, 8};
        memset(room, 0x33, sizeof room);
        memcpy(room, &size, sizeof size);
        int rc = gsi_take_config(&own, room, sizeof own, "sized");
        bad += rc != (size < 4 ? GRADSYNC_ERR_INVALID : 0);
        if (!rc)
            bad += own.size != sizeof own || (size >= 8 && own.a != 0x33333333) || (size == 4 && own.a != 1) ||
                   (size >= 16 && own.b != 0x3333333333333333);
        if (size < 16 && size >= 4)
            bad += (own.b & 0xff) != (size > 8 ? 0x33 : 2);
        rc = gsi_give_info(room, &known, sizeof known, "sized");
        bad += rc != (size < 4 ? GRADSYNC_ERR_INVALID : 0);
        uint32_t given = size < sizeof known ? size : (uint32_t)sizeof known, told;
        memcpy(&told, room, sizeof told);
        bad += !rc && told != given;
        for (size_t i = given < 4 ? 4 : given; i < sizeof room; i++)
            bad += room[i] != 0x33;
    }
    tap_ok(!bad, "older and newer callers' structs are read and written within their size");
    sized own = {sizeof own, 1, 2};
    uint32_t wild = 0x55555555;
    memcpy(room, &wild, 4);
    tap_ok(gsi_take_config(&own, room, sizeof own, "sized") == GRADSYNC_ERR_INVALID && own.a == 1 &&
               strstr(unit_error().message, "sized.size") && strstr(unit_error().message, "_INIT"),
           "a struct that was never initialised is refused: %s", unit_error().message);
    tap_ok(!gsi_take_config(&own, NULL, sizeof own, "sized") && own.b == 2, "no struct: the defaults");
    tap_ok(gsi_give_info(NULL, &own, sizeof own, "sized") == GRADSYNC_ERR_INVALID, "no place for a result");
}

/* ---- Log --------------------------------------------------------------------------------- */

static char lines[2048];
static int last_level;

static void note(void *arg, int level, const char *message)
{
    last_level = level;
    strncat(lines, (char *)arg, sizeof lines - strlen(lines) - 1);
    strncat(lines, message, sizeof lines - strlen(lines) - 1);
}

static void test_log(void)
{
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    gsi_log log;

    unsetenv("GRADSYNC_LOG");
    gsi_log_init(&log, &config);
    tap_ok(!log.fn, "nobody asked: to nobody");
    gsi_logf(&log, GRADSYNC_LOG_ERROR, "to nobody");
    gsi_logf(NULL, GRADSYNC_LOG_ERROR, "no log at all");
    config.log = note;
    config.log_arg = (void *)(uintptr_t) ">";
    gsi_log_init(&log, &config);
    gsi_logf(&log, GRADSYNC_LOG_INFO, "not wanted");
    gsi_logf(&log, GRADSYNC_LOG_WARN, "wanted %d", 1);
    tap_ok(!strcmp(lines, ">wanted 1") && last_level == GRADSYNC_LOG_WARN, "warnings by default");
    setenv("GRADSYNC_LOG", "debug", 1);
    gsi_log_init(&log, &config);
    lines[0] = 0;
    gsi_logf(&log, GRADSYNC_LOG_DEBUG, "%02000d", 7);
    tap_ok(strlen(lines) == 1024 && lines[1023] == '0', "the environment's level counts; a long line is cut");
    setenv("GRADSYNC_LOG", "none", 1);
    gsi_log_init(&log, &config);
    lines[0] = 0;
    gsi_logf(&log, GRADSYNC_LOG_ERROR, "silence");
    tap_ok(!lines[0], "none is none");
    config.log = NULL;
    setenv("GRADSYNC_LOG", "warn", 1);
    gsi_log_init(&log, &config);
    tap_ok(log.fn != NULL, "asked for by the environment: to stderr");
    unsetenv("GRADSYNC_LOG");
}

/* ---- Allocation, clock ---------------------------------------------------------------------- */

static void test_alloc(void)
{
    gsi_alloc_fail_at(3);
    char *a = gsi_calloc(10, 10), *b = gsi_strdup("b"), *c = gsi_calloc_aligned(100), *d = gsi_realloc(NULL, 10);
    tap_ok(a && !a[99] && b && !c && d && gsi_alloc_count() == 4, "the third allocation fails, and it alone");
    gsi_alloc_fail_at(0);
    free(a), free(b), free(d);
    tap_ok(!gsi_calloc_aligned(SIZE_MAX) && !gsi_calloc_aligned(SIZE_MAX - 62), "sizes that wrap fail");
    c = gsi_calloc_aligned(0);
    d = gsi_calloc_aligned(65);
    tap_ok(c && d && (uintptr_t)c % 64 == 0 && (uintptr_t)d % 64 == 0 && !d[64], "aligned and zeroed");
    free(c), free(d);
}

static void *tick(void *arg)
{
    *(double *)arg = gsi_ticks_us(1000000);
    return NULL;
}

static void test_clock(void)
{
    int64_t now = gsi_now_ns();
    tap_ok(gsi_deadline_ns(now, 5) == now + 5000000 && gsi_deadline_ns(now, INT64_MAX) == INT64_MAX &&
               gsi_deadline_ns(now, INT64_MAX / 1000000) == INT64_MAX && gsi_deadline_ns(now, 0) == now,
           "deadlines do not overflow");
    pthread_t threads[4];
    double us[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, tick, &us[i]);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    int bad = 0;
    for (int i = 0; i < 4; i++)
        bad += !(us[i] > 50 && us[i] < 5000000);
    tap_ok(!bad, "ticks are of a sane length, from several threads at once");
    while (gsi_now_ns() - now < 25000000)
        gsi_pause();
    uint64_t from = gsi_ticks();
    now = gsi_now_ns();
    while (gsi_now_ns() - now < 2000000)
        gsi_pause();
    double us_ticks = gsi_ticks_us(gsi_ticks() - from), us_clock = (double)(gsi_now_ns() - now) / 1000;
    /* The process may be put aside between the two looks, so only the order of magnitude counts. */
    tap_ok(us_ticks > us_clock / 10 && us_ticks < us_clock * 10, "ticks agree with the clock");
}

/* ---- Values ------------------------------------------------------------------------------------ */

static void test_values(void)
{
    int bad = 0;
    for (int i = -3; i < 30; i++) {
        int dtype = i >= 0 && i < GRADSYNC_DTYPE_COUNT;
        bad += (gradsync_dtype_size(i) != 0) != dtype || (strcmp(gradsync_dtype_name(i), "?") != 0) != dtype;
        bad += (strcmp(gradsync_op_name(i), "?") != 0) != (i >= 0 && i < GRADSYNC_OP_COUNT);
        bad += (strcmp(gradsync_coll_name(i), "?") != 0) !=
               ((i >= 0 && i < GRADSYNC_COLL_COUNT) || (i >= GRADSYNC_PUT && i <= GRADSYNC_WAIT_SIGNAL));
        bad += (strcmp(gradsync_algo_name(i), "?") != 0) != (i >= 0 && i < GRADSYNC_ALGO_COUNT);
    }
    for (int e = -20; e < 5; e++) {
        int known = e <= 1 && e >= GRADSYNC_ERR_INTERNAL;
        bad += (strcmp(gradsync_error_name(e), "?") != 0) != known || !gradsync_strerror(e)[0];
    }
    tap_ok(!bad, "every value has a name, and no other");
    char text[32];
    uint32_t v = gradsync_version_number();
    snprintf(text, sizeof text, "%u.%u.%u", v / 1000000, v / 1000 % 1000, v % 1000);
    tap_ok(!strcmp(text, gradsync_version()), "version %s, twice", text);
    gradsync_config config;
    gradsync_mem_config mem;
    gradsync_comm_config comm;
    gradsync_coll_opts opts;
    memset(&config, 1, sizeof config);
    memset(&mem, 1, sizeof mem);
    memset(&comm, 1, sizeof comm);
    memset(&opts, 1, sizeof opts);
    gradsync_config_init(&config);
    gradsync_mem_config_init(&mem);
    gradsync_comm_config_init(&comm);
    gradsync_coll_opts_init(&opts);
    tap_ok(config.size == sizeof config && !config.log && !config.key && mem.size == sizeof mem && !mem.numa_node &&
               comm.size == sizeof comm && !comm.algo && opts.size == sizeof opts && !opts.stream,
           "the init functions");
}

int main(void)
{
    test_errors();
    test_sizes();
    test_log();
    test_alloc();
    test_clock();
    test_values();
    return tap_done();
}
