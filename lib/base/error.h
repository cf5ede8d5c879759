/* SPDX-License-Identifier: Apache-2.0 */
/* The calling thread's last failure, behind gradsync_last_error(). */
#ifndef GSI_BASE_ERROR_H
#define GSI_BASE_ERROR_H

#include <gradsync/gradsync.h>

/* Records a failure of `code` with one sentence (what happened, what to do) and
 * returns `code`, so that a caller writes: return gsi_fail(GRADSYNC_ERR_..., ...). */
__attribute__((format(printf, 2, 3))) int gsi_fail(int code, const char *format, ...);
/* As gsi_fail(GRADSYNC_ERR_SYSTEM) with errno `err` recorded and its text appended. */
__attribute__((format(printf, 2, 3))) int gsi_fail_errno(int err, const char *format, ...);
/* Makes `info` the thread's last failure and returns its code. */
int gsi_fail_info(const gradsync_error_info *info);
/* Fills an info: everything -1 or 0 but the code and the sentence. */
__attribute__((format(printf, 3, 4))) void gsi_error_fill(gradsync_error_info *info, int code, const char *format, ...);

#ifdef __clang_analyzer__
/* The analyzer sees one file at a time: so it is told that a failure is never 0. */
static inline int gsi_fails(int code, int result)
{
    (void)result;
    return code;
}
#define gsi_fail(code, ...) gsi_fails(code, gsi_fail(code, __VA_ARGS__))
#define gsi_fail_errno(...) gsi_fails(GRADSYNC_ERR_SYSTEM, gsi_fail_errno(__VA_ARGS__))
#endif

#endif
