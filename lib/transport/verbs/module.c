/* SPDX-License-Identifier: Apache-2.0 */
/* The one symbol of the module. */
#include "transport/verbs/verbs.h"

#include <stddef.h>

gsi_rail_host gsi_verbs_host;

/* The loader calls this under its lock, before anyone can open a rail. */
__attribute__((visibility("default"))) gsi_rail_open_fn gsi_verbs_module(const gsi_rail_host *host)
{
    if (host->abi != GSI_RAIL_ABI)
        return NULL;
    gsi_verbs_host = *host;
    return gsi_verbs_open;
}
