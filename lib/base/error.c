/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static _Thread_local gradsync_error_info last = GRADSYNC_ERROR_INFO_INIT;

static void fill(gradsync_error_info *info, int code, const char *format, va_list args)
{
    *info = (gradsync_error_info)GRADSYNC_ERROR_INFO_INIT;
    info->code = code;
    vsnprintf(info->message, sizeof info->message, format, args);
}

int(gsi_fail)(int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fill(&last, code, format, args);
    va_end(args);
    return code;
}

int(gsi_fail_errno)(int err, const char *format, ...)
{
    va_list args;
    char text[96];

    va_start(args, format);
    fill(&last, GRADSYNC_ERR_SYSTEM, format, args);
    va_end(args);
    last.sys_errno = err;
    /* GNU strerror_r returns the text, which need not be in the buffer. */
    const char *what = strerror_r(err, text, sizeof text);
    size_t at = strlen(last.message);
    snprintf(last.message + at, sizeof last.message - at, ": %s", what);
    return GRADSYNC_ERR_SYSTEM;
}

int gsi_fail_info(const gradsync_error_info *info)
{
    last = *info;
    return info->code;
}

void gsi_error_fill(gradsync_error_info *info, int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fill(info, code, format, args);
    va_end(args);
}

int gradsync_last_error(gradsync_error_info *out)
{
    if (!out || out->size < sizeof(uint32_t))
        return last.code;
    uint32_t size = out->size < sizeof *out ? out->size : (uint32_t)sizeof *out;
    memcpy(out, &last, size);
    out->size = size;
    if (size > offsetof(gradsync_error_info, message)) /* a caller's shorter message ends where its room does */
        ((char *)out)[size - 1] = 0;
    return last.code;
}
