/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/shm/segment.h"

#include "transport/shm/mail.h"

static uint64_t take(uint64_t *at, uint64_t bytes)
{
    uint64_t here = *at;
    *at = (here + bytes + 4095) & ~(uint64_t)4095; /* pages of their own: untouched parts cost no memory */
    return here;
}

void shm_layout_of(int n, shm_layout *out)
{
    uint64_t ranks = (uint64_t)n, at = 0;

    out->n = n;
    take(&at, sizeof(shm_head));
    out->controls = take(&at, ranks * sizeof(shm_control));
    out->doorbells = take(&at, ranks * sizeof(shm_doorbell));
    out->entries = take(&at, SHM_LANES * ranks * sizeof(shm_entry));
    out->pairs = take(&at, SHM_LANES * GSI_MAX_STREAMS * ranks * ranks * sizeof(shm_pair));
    out->slots = take(&at, SHM_LANES * ranks * SHM_SLOT_BYTES);
    out->stages = take(&at, ranks * SHM_STAGE_BYTES);
    out->mail_masks = take(&at, ranks * sizeof(shm_mail_mask));
    out->mailboxes = take(&at, ranks * ranks * sizeof(shm_mailbox));
    out->total = at;
}
