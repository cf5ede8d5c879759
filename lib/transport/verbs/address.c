/* SPDX-License-Identifier: Apache-2.0 */
/* The address of one side of a connection, as it travels: big endian, a magic with the version first. */
#include "transport/verbs/verbs.h"

#include <stddef.h>
#include <string.h>

static const unsigned char magic[4] = {'G', 'S', 'V', 1};

enum {
    AT_ETHERNET = 4,
    AT_GLOBAL,
    AT_MTU,
    AT_READS_IN,
    AT_READS_OUT,
    AT_LID = 10,
    AT_QPN = 12,
    AT_PSN = 16,
    AT_MAX_BYTES = 20,
    AT_GID = 24,
    AT_CM_PORT = 40,
    AT_TOKEN = 42
};

static void put(unsigned char *p, uint32_t v, int bytes)
{
    for (int i = bytes - 1; i >= 0; i--, v >>= 8)
        p[i] = (unsigned char)v;
}

static uint32_t get(const unsigned char *p, int bytes)
{
    uint32_t v = 0;

    for (int i = 0; i < bytes; i++)
        v = v << 8 | p[i];
    return v;
}

void gsi_verbs_pack(const gsi_verbs_address *address, gsi_rail_address *out)
{
    unsigned char *p = out->blob;

    memset(out, 0, sizeof *out);
    memcpy(p, magic, sizeof magic);
    p[AT_ETHERNET] = address->ethernet;
    p[AT_GLOBAL] = address->global;
    p[AT_MTU] = address->mtu;
    p[AT_READS_IN] = address->reads_in;
    p[AT_READS_OUT] = address->reads_out;
    put(p + AT_LID, address->lid, 2);
    put(p + AT_QPN, address->qpn, 4);
    put(p + AT_PSN, address->psn, 4);
    put(p + AT_MAX_BYTES, address->max_bytes, 4);
    memcpy(p + AT_GID, address->gid, sizeof address->gid);
    put(p + AT_CM_PORT, address->cm_port, 2);
    memcpy(p + AT_TOKEN, &address->token, 8); /* no number, only 8 bytes */
}

const char *gsi_verbs_unpack(const gsi_rail_address *blob, gsi_verbs_address *out)
{
    static const uint8_t no_gid[16];
    const unsigned char *p = blob->blob;

    if (memcmp(p, magic, 3))
        return "it is no verbs address: the peer uses another transport, or sent garbage";
    if (p[3] != magic[3])
        return "the peer's gradsync has another verbs address format: use the same version on all hosts";
    out->ethernet = p[AT_ETHERNET];
    out->global = p[AT_GLOBAL];
    out->mtu = p[AT_MTU];
    out->reads_in = p[AT_READS_IN];
    out->reads_out = p[AT_READS_OUT];
    out->lid = (uint16_t)get(p + AT_LID, 2);
    out->qpn = get(p + AT_QPN, 4);
    out->psn = get(p + AT_PSN, 4);
    out->max_bytes = get(p + AT_MAX_BYTES, 4);
    memcpy(out->gid, p + AT_GID, sizeof out->gid);
    out->cm_port = (uint16_t)get(p + AT_CM_PORT, 2);
    memcpy(&out->token, p + AT_TOKEN, 8);
    if (out->ethernet > 1 || out->global > 1)
        return "a flag in it is neither 0 nor 1";
    if (out->mtu < IBV_MTU_256 || out->mtu > IBV_MTU_4096)
        return "its MTU is out of range";
    if (out->qpn == 0 || out->qpn >> 24 || out->psn >> 24)
        return "its queue pair or packet number is out of range";
    if (out->max_bytes == 0)
        return "its message size is 0";
    if (out->ethernet && !out->global)
        return "it is of RoCE, but has no GID";
    if (out->global && !memcmp(out->gid, no_gid, sizeof no_gid))
        return "its GID is zero";
    if (!out->ethernet && !out->global && (out->lid == 0 || out->lid >= 0xC000))
        return "its LID is no unicast LID: the subnet manager may not have set up the peer's port";
    return NULL;
}
