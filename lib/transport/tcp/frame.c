/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/tcp/frame.h"

#include <endian.h>
#include <string.h>

enum { MAGIC = 0x5447, AT_MAGIC = 2, AT_IMM = 4, AT_ACK = 8, AT_REMOTE = 16, AT_KEY = 24, AT_BYTES = 32 };

static void put64(unsigned char *at, uint64_t value)
{
    value = htole64(value);
    memcpy(at, &value, sizeof value);
}

static uint64_t get64(const unsigned char *at)
{
    uint64_t value;

    memcpy(&value, at, sizeof value);
    return le64toh(value);
}

void gsi_tcp_frame_pack(const gsi_tcp_frame *frame, unsigned char head[GSI_TCP_HEAD])
{
    uint16_t magic = htole16(MAGIC);
    uint32_t imm = htole32(frame->imm);

    head[0] = (unsigned char)frame->kind;
    head[1] = (unsigned char)frame->flags;
    memcpy(head + AT_MAGIC, &magic, sizeof magic);
    memcpy(head + AT_IMM, &imm, sizeof imm);
    put64(head + AT_ACK, frame->ack);
    put64(head + AT_REMOTE, frame->remote);
    put64(head + AT_KEY, frame->key);
    put64(head + AT_BYTES, frame->bytes);
}

int gsi_tcp_frame_parse(const unsigned char head[GSI_TCP_HEAD], gsi_tcp_frame *frame)
{
    uint16_t magic;
    uint32_t imm;

    memcpy(&magic, head + AT_MAGIC, sizeof magic);
    memcpy(&imm, head + AT_IMM, sizeof imm);
    *frame = (gsi_tcp_frame){
        .kind = head[0],
        .flags = head[1],
        .imm = le32toh(imm),
        .ack = get64(head + AT_ACK),
        .remote = get64(head + AT_REMOTE),
        .key = get64(head + AT_KEY),
        .bytes = get64(head + AT_BYTES),
    };
    if (le16toh(magic) != MAGIC || frame->kind < GSI_TCP_WRITE || frame->kind > GSI_TCP_ERROR ||
        frame->flags & ~(uint32_t)(GSI_TCP_IMM | GSI_TCP_SIGNAL))
        return GSI_TCP_FAULT_FRAME;
    return GSI_TCP_FAULT_NONE;
}

void gsi_tcp_frame_ack(unsigned char head[GSI_TCP_HEAD], uint64_t ack)
{
    put64(head + AT_ACK, ack);
}

const char *gsi_tcp_fault_text(uint32_t fault, int told)
{
    switch (fault) {
    case GSI_TCP_FAULT_FRAME:
        return told ? "the peer received bytes that are no frame: do both run the same version?"
                    : "the peer sent bytes that are no frame: do both run the same version?";
    case GSI_TCP_FAULT_KEY:
        return told ? "the peer refused a remote key: its memory is not registered (any more)"
                    : "the peer named memory that is not registered here";
    case GSI_TCP_FAULT_RANGE:
        return told ? "the peer refused an address outside of its registered memory"
                    : "the peer named an address outside of the registered memory";
    case GSI_TCP_FAULT_ACK:
        return told ? "the peer received an acknowledgement of what it never sent"
                    : "the peer acknowledged what was never sent";
    case GSI_TCP_FAULT_ANSWER:
        return told ? "the peer received an answer to a read that it never made"
                    : "the peer answered a read that was never made";
    case GSI_TCP_FAULT_READS:
        return told ? "the peer refused to serve more reads at once than were announced"
                    : "the peer made more reads at once than it had announced";
    case GSI_TCP_FAULT_GONE:
        return told ? "the peer took memory away that was in use"
                    : "memory was deregistered while the peer was using it";
    default:
        return told ? "the peer gave the connection up" : "the connection was given up";
    }
}
