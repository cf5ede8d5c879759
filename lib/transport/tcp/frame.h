/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The frames of a connection: a head of fixed size, little-endian, and `bytes` of payload after WRITE and ANSWER.
 * Works (writes and reads) are numbered from 1 in each direction; every head acknowledges those of the other
 * direction that are complete. Pure.
 */
#ifndef GSI_TCP_FRAME_H
#define GSI_TCP_FRAME_H

#include <stdint.h>

enum { GSI_TCP_HEAD = 40 };

enum gsi_tcp_kind {
    GSI_TCP_WRITE = 1,
    GSI_TCP_READ = 2,   /* asks for `bytes` at `remote`; answered in order */
    GSI_TCP_ANSWER = 3, /* to the oldest read */
    GSI_TCP_ACK = 4,
    GSI_TCP_ERROR = 5, /* the last frame of a side that gives up; imm: enum gsi_tcp_fault */
};

enum gsi_tcp_frame_flags {
    GSI_TCP_IMM = 1,
    GSI_TCP_SIGNAL = 2, /* the sender waits for the acknowledgement */
};

typedef struct gsi_tcp_frame {
    uint32_t kind, flags, imm;
    uint64_t ack; /* works of the other side that are complete */
    uint64_t remote, key, bytes;
} gsi_tcp_frame;

/* What can be wrong with a peer. */
enum gsi_tcp_fault {
    GSI_TCP_FAULT_NONE,
    GSI_TCP_FAULT_FRAME,  /* no frame of ours */
    GSI_TCP_FAULT_KEY,    /* the key names no region */
    GSI_TCP_FAULT_RANGE,  /* not inside the region */
    GSI_TCP_FAULT_ACK,    /* acknowledges what was never sent */
    GSI_TCP_FAULT_ANSWER, /* answers no read, or with another size */
    GSI_TCP_FAULT_READS,  /* more reads at once than announced */
    GSI_TCP_FAULT_GONE,   /* the memory was taken away while in use */
};

/* The sentence of a fault; `told`: it is the peer that found it. Static. */
const char *gsi_tcp_fault_text(uint32_t fault, int told);

void gsi_tcp_frame_pack(const gsi_tcp_frame *frame, unsigned char head[GSI_TCP_HEAD]);
/* 0, or GSI_TCP_FAULT_FRAME. */
int gsi_tcp_frame_parse(const unsigned char head[GSI_TCP_HEAD], gsi_tcp_frame *frame);
/* Sets the acknowledgement of a packed head. */
void gsi_tcp_frame_ack(unsigned char head[GSI_TCP_HEAD], uint64_t ack);

#endif
