/* SPDX-License-Identifier: Apache-2.0 */
/* The verifier, tried on plans of ranks on several hosts, written by hand. */
#include "byhand.h"

#include <stdlib.h>

/* The same plan as the one before, by ranks on these hosts. */
static void on_hosts(int a, int b, int c, uint32_t share)
{
    static gsi_hosts *hosts;
    const int32_t host[] = {a, b, c, c};

    free(hosts);
    if (gsi_hosts_make(host, w.args.n, &hosts))
        abort();
    w.args.hosts = hosts;
    w.args.share = share;
}

/* Between hosts there is nothing but PUTs, single signals and what came with the headers. */
static void test_hosts(void)
{
    ring();
    on_hosts(0, 1, 2, 0);
    accepted("a ring of PUTs over three hosts");
    ring();
    on_hosts(5, 5, 1, 0);
    accepted("a ring of PUTs over two hosts");
    barrier();
    on_hosts(0, 1, 2, 0);
    accepted("a barrier of single signals over hosts");
    eager();
    on_hosts(0, 1, 1, 0);
    accepted("what came with the headers from another host");
    direct();
    on_hosts(3, 3, 3, 1);
    accepted("loads and stores on one host that shares its memory");
    direct();
    on_hosts(3, 3, 3, 0);
    rejected("loads of memory that is not shared", "which only that rank can load and store", STATIC);
    direct();
    on_hosts(0, 0, 1, 1);
    rejected("a load from another host", "reads SEND of rank 2, which is on another host", STATIC);
    direct();
    for (int r = 0; r < 3; r++)
        w.plan[r].steps[0].ndst = 0;
    for (int r = 0; r < 3; r++)
        w.plan[r].steps[0].nsrc = 1;
    w.plan[0].places[0].rank = 0;
    w.plan[0].steps[0].ndst = 1;
    on_hosts(0, 1, 0, 1);
    PLACE(0, 0, 1)->rank = 1;
    PLACE(0, 0, 1)->space = GSI_RECV;
    rejected("a store to another host", "writes RECV of rank 1, which is on another host", STATIC);
    eager();
    on_hosts(0, 1, 1, 0);
    w.plan[0].stage_bytes = w.plan[1].stage_bytes = 64;
    PLACE(0, 1, 0)->off = 4;
    rejected("more of another host's STAGE than came with the header", "which is on another host", STATIC);
    eager();
    on_hosts(0, 1, 1, 0);
    PLACE(0, 1, 1)->rank = 1;
    PLACE(0, 1, 1)->space = GSI_STAGE;
    rejected("a store to another host's header", "writes STAGE of rank 1, which is on another host", STATIC);
    start(GRADSYNC_BARRIER, 3, 0);
    flags(1, 0, 1, 0, 0);
    for (int r = 0; r < 3; r++) {
        notify(r, GSI_ALL);
        await(r, GSI_ALL, 1);
    }
    on_hosts(0, 0, 0, 0);
    accepted("one signal to all on one host");
    on_hosts(0, 0, 1, 0);
    rejected("one signal to all on two hosts", "signals all ranks, but they are on different hosts", STATIC);
}

int main(void)
{
    test_hosts();
    return done();
}
