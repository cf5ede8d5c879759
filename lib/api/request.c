/* SPDX-License-Identifier: Apache-2.0 */
/* Requests: a gradsync_request is a posted gsi_op. */
#include "api/check.h"
#include "engine/engine.h"

static gsi_op *op_of(gradsync_request *request)
{
    return (gsi_op *)request;
}

static int null_request(void)
{
    return gsi_fail(GRADSYNC_ERR_INVALID, "the request is NULL");
}

int gradsync_test(gradsync_request *request)
{
    if (!request)
        return null_request();
    int rc = gsi_engine_check_process(op_of(request)->engine);
    return rc ? rc : gsi_engine_test(op_of(request));
}

int gradsync_wait(gradsync_request *request)
{
    if (!request)
        return null_request();
    int rc = gsi_engine_check_process(op_of(request)->engine);
    return rc ? rc : gsi_engine_wait(op_of(request));
}

int gradsync_wait_all(gradsync_request **requests, size_t n)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    int first = 0;

    if (!requests && n)
        return gsi_fail(GRADSYNC_ERR_INVALID, "requests is NULL");
    for (size_t i = 0; i < n; i++) {
        int rc = gradsync_wait(requests[i]);
        if (rc && !first) {
            first = rc;
            gradsync_last_error(&info);
        }
    }
    return first ? gsi_fail_info(&info) : 0;
}

int gradsync_request_fd(gradsync_request *request)
{
    if (!request)
        return null_request();
    int rc = gsi_engine_check_process(op_of(request)->engine);
    return rc ? rc : gsi_engine_fd(op_of(request));
}

int gradsync_request_free(gradsync_request *request)
{
    if (request)
        gsi_engine_release(op_of(request));
    return 0;
}
