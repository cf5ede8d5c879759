/* SPDX-License-Identifier: Apache-2.0 */
/* gradsync_diagnose(): facts, checks, findings. */
#include <stdlib.h>

#include "base/error.h"
#include "doctor/doctor.h"
#include "transport/verbs/load.h"

int gradsync_diagnose(const char *root, const char *peer, gradsync_finding_fn fn, void *arg)
{
    static const char *const real = "";
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    gsi_findings list = {.n = 0};
    gsi_facts facts;

    if (!fn)
        return gsi_fail(GRADSYNC_ERR_INVALID, "the function that receives the findings is NULL");
    if (!root || !*root)
        root = real;
    if (root == real) { /* only here can the module be tried */
        gsi_rail_open_fn open;
        if (gsi_verbs_load(&open))
            gradsync_last_error(&info);
    }
    int rc = gsi_facts_read(root, peer, NULL, NULL, root == real ? info.message : NULL, &facts);
    if (rc)
        return rc;
    gsi_doctor_run(NULL, &facts, &list);
    gsi_facts_free(&facts);
    if (list.failed)
        rc = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for the findings");
    for (int i = 0; !rc && i < list.n; i++)
        fn(arg, &list.items[i]);
    free(list.items);
    return rc;
}
