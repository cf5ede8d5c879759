/* SPDX-License-Identifier: Apache-2.0 */
/* Queues are made by the driver in the name of the calling thread, so its memory policy decides where they lie. */
#include "transport/verbs/verbs.h"

#include <errno.h>
#include <numaif.h>
#include <string.h>

enum { MASK_BITS = sizeof(((gsi_verbs_policy *)0)->mask) * 8, WORD_BITS = sizeof(unsigned long) * 8 };

/* Where the kernel forbids it (containers) or knows no nodes, everything stays as it is: it is only a preference. */
void gsi_verbs_prefer(int node, gsi_verbs_policy *saved)
{
    unsigned long mask[sizeof saved->mask / sizeof saved->mask[0]] = {0};
    int err = errno;

    memset(saved, 0, sizeof *saved);
    if (node < 0 || node >= MASK_BITS || get_mempolicy(&saved->mode, saved->mask, MASK_BITS, NULL, 0)) {
        errno = err;
        return;
    }
    mask[node / WORD_BITS] = 1UL << (node % WORD_BITS);
    saved->set = set_mempolicy(MPOL_PREFERRED, mask, MASK_BITS) == 0;
    errno = err;
}

void gsi_verbs_restore(const gsi_verbs_policy *saved)
{
    int err = errno;

    if (saved->set)
        set_mempolicy(saved->mode, saved->mode == MPOL_DEFAULT ? NULL : saved->mask,
                      saved->mode == MPOL_DEFAULT ? 0 : MASK_BITS);
    errno = err;
}
