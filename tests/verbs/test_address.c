/* SPDX-License-Identifier: Apache-2.0 */
/* The address that two sides exchange: what is packed comes out again, and what a stranger sends is refused. */
#include "transport/verbs/verbs.h"

#include "tap.h"

#include <string.h>

static const gsi_verbs_address roce = {.qpn = 0x123456,
                                       .psn = 0xfedcba,
                                       .max_bytes = 8 << 20,
                                       .ethernet = 1,
                                       .global = 1,
                                       .mtu = IBV_MTU_4096,
                                       .reads_in = 16,
                                       .reads_out = 7,
                                       .cm_port = 0xABCD,
                                       .token = 0x123456789ABCDEF0,
                                       .gid = {[10] = 0xff, [11] = 0xff, [12] = 10, [13] = 77, [15] = 1}};
static const gsi_verbs_address infiniband = {.qpn = 1, .max_bytes = 1 << 30, .lid = 0xBFFF, .mtu = IBV_MTU_256};

static int round_trip(const gsi_verbs_address *address)
{
    gsi_verbs_address out;
    gsi_rail_address blob;

    memset(&out, 0, sizeof out);
    gsi_verbs_pack(address, &blob);
    return !gsi_verbs_unpack(&blob, &out) && out.qpn == address->qpn && out.psn == address->psn &&
           out.max_bytes == address->max_bytes && out.lid == address->lid && out.ethernet == address->ethernet &&
           out.global == address->global && out.mtu == address->mtu && out.reads_in == address->reads_in &&
           out.reads_out == address->reads_out && out.cm_port == address->cm_port && out.token == address->token &&
           !memcmp(out.gid, address->gid, sizeof out.gid);
}

static int refused(gsi_verbs_address address, const char *text)
{
    gsi_verbs_address out;
    gsi_rail_address blob;

    gsi_verbs_pack(&address, &blob);
    const char *wrong = gsi_verbs_unpack(&blob, &out);
    return wrong && strstr(wrong, text);
}

int main(void)
{
    gsi_verbs_address a, out;
    gsi_rail_address blob;

    tap_ok(round_trip(&roce), "RoCE, there and back");
    tap_ok(round_trip(&infiniband), "InfiniBand, there and back");
    gsi_verbs_pack(&roce, &blob);
    tap_ok(blob.blob[12] == 0 && blob.blob[13] == 0x12 && blob.blob[15] == 0x56, "numbers are big endian");
    blob.blob[0] ^= 1;
    tap_ok(gsi_verbs_unpack(&blob, &out) != NULL, "no verbs address");
    blob.blob[0] ^= 1, blob.blob[3]++;
    tap_ok(strstr(gsi_verbs_unpack(&blob, &out), "version") != NULL, "another format");
    a = roce, a.qpn = 1 << 24;
    tap_ok(refused(a, "queue pair"), "a queue pair out of range");
    a = roce, a.qpn = 0;
    tap_ok(refused(a, "queue pair"), "no queue pair");
    a = roce, a.psn = 1 << 24;
    tap_ok(refused(a, "packet number"), "a packet number out of range");
    a = roce, a.mtu = 6;
    tap_ok(refused(a, "MTU"), "an MTU out of range");
    a = roce, a.mtu = 0;
    tap_ok(refused(a, "MTU"), "no MTU");
    a = roce, a.global = 0;
    tap_ok(refused(a, "GID"), "RoCE without GID");
    a = roce, a.global = 2;
    tap_ok(refused(a, "flag"), "a flag that is none");
    a = roce, memset(a.gid, 0, sizeof a.gid);
    tap_ok(refused(a, "GID is zero"), "a zero GID");
    a = infiniband, a.lid = 0xC000;
    tap_ok(refused(a, "LID"), "a multicast LID");
    a = infiniband, a.lid = 0;
    tap_ok(refused(a, "LID"), "no LID");
    a = infiniband, a.max_bytes = 0;
    tap_ok(refused(a, "message size"), "a message size of 0");
    return tap_done();
}
