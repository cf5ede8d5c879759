/* SPDX-License-Identifier: Apache-2.0 */
/* Log lines to the user's callback. Nothing is printed unless someone asked. */
#ifndef GSI_BASE_LOG_H
#define GSI_BASE_LOG_H

#include <gradsync/gradsync.h>

typedef struct gsi_log {
    gradsync_log_fn fn; /* NULL: to nobody */
    void *arg;
    int level; /* the highest that is delivered */
} gsi_log;

/* Fills `log` from the config and GRADSYNC_LOG (error, warn, info, debug: to stderr
 * if there is no callback). */
void gsi_log_init(gsi_log *log, const gradsync_config *config);
/* Formats and delivers one line; cheap when the level is not wanted. log may be NULL. */
__attribute__((format(printf, 3, 4))) void gsi_logf(const gsi_log *log, int level, const char *format, ...);

#endif
