/* SPDX-License-Identifier: Apache-2.0 */
/* What every entry point does with the structs that callers size themselves. */
#ifndef GSI_API_CHECK_H
#define GSI_API_CHECK_H

#include <stdint.h>
#include <string.h>

#include "base/error.h"

/* Copies a caller's config of its own size over defaults: fields that the caller's
 * header did not know keep them. INVALID if the size makes no sense. */
static inline int gsi_take_config(void *to, const void *from, size_t known, const char *name)
{
    uint32_t size, own = (uint32_t)known;

    if (!from)
        return 0;
    memcpy(&size, from, sizeof size);
    if (size < sizeof size || size > 4096)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s.size is %u; initialise it with its _INIT macro", name, size);
    memcpy(to, from, size < known ? size : known);
    memcpy(to, &own, sizeof own);
    return 0;
}

/* The reverse, for results: at most as much as the caller has room for. */
static inline int gsi_give_info(void *to, const void *from, size_t known, const char *name)
{
    uint32_t size;

    if (!to)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is NULL", name);
    memcpy(&size, to, sizeof size);
    if (size < sizeof size || size > 4096)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s.size is %u; set it to sizeof(%s)", name, size, name);
    uint32_t given = size < known ? size : (uint32_t)known;
    memcpy(to, from, given);
    memcpy(to, &given, sizeof given);
    return 0;
}

#endif
