/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const level_names[] = {"none", "error", "warn", "info", "debug"};

static void to_stderr(void *arg, int level, const char *message)
{
    (void)arg;
    fprintf(stderr, "gradsync %s: %s\n", level_names[level], message);
}

void gsi_log_init(gsi_log *log, const gradsync_config *config)
{
    *log = (gsi_log){config->log, config->log_arg, config->log_level ? config->log_level : GRADSYNC_LOG_WARN};
    const char *wanted = getenv("GRADSYNC_LOG");
    if (!wanted || !*wanted)
        return;
    for (int i = 0; i <= GRADSYNC_LOG_DEBUG; i++)
        if (!strcmp(wanted, level_names[i]))
            log->level = i;
    if (!log->fn)
        log->fn = to_stderr;
}

void gsi_logf(const gsi_log *log, int level, const char *format, ...)
{
    if (!log || !log->fn || level > log->level)
        return;
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    log->fn(log->arg, level, line);
}
