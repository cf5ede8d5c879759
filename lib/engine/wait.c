/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting without burning the CPU: spin while the answer can be there in a moment, yield while a
 * rank on the same core may need it, then sleep until a peer wakes this rank. */
#include "engine/engine.h"

#include <sched.h>

#include "base/cpu.h"

static const int64_t nap_ns = 50000000, check_ns = 100000000;

static void sleep_once(gsi_engine *e, gsi_backoff *b)
{
    atomic_fetch_add(&e->asleep, 1); /* before the queue is looked at once more: pairs with gsi_engine_post */
    uint32_t ticket = e->ep->ops->sleep_begin(e->ep);
    /* Nothing that happens from here on is missed: the sleep returns at once if it did. */
    int moved = gsi_engine_progress(e) || e->broken;
    if (!moved) {
        pthread_mutex_unlock(&e->lock);
        e->ep->ops->sleep(e->ep, ticket, nap_ns);
        pthread_mutex_lock(&e->lock);
    }
    e->ep->ops->sleep_end(e->ep);
    atomic_fetch_sub(&e->asleep, 1);
    if (moved) {
        *b = (gsi_backoff){.checked_ns = b->checked_ns};
        return;
    }
    int64_t now = gsi_now_ns();
    if (!b->checked_ns)
        b->checked_ns = now;
    if (now - b->checked_ns >= check_ns) {
        b->checked_ns = now;
        gsi_engine_look_for_trouble(e);
    }
}

void gsi_engine_back_off(gsi_engine *e, gsi_backoff *b)
{
    uint64_t now = gsi_ticks();

    if (!b->since)
        b->since = now;
    uint64_t waited = now - b->since;
    if (waited < e->spin_ticks) {
        gsi_pause();
    } else if (waited < e->yield_ticks) {
        pthread_mutex_unlock(&e->lock);
        sched_yield();
        pthread_mutex_lock(&e->lock);
    } else {
        sleep_once(e, b);
    }
}
