/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the TCP provider share. All of it is under the lock of the rail's owner. */
#ifndef GSI_TCP_STATE_H
#define GSI_TCP_STATE_H

#include "transport/tcp/frame.h"
#include "transport/tcp/hello.h"
#include "transport/tcp/tcp.h"

#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>

enum {
    GSI_TCP_INLINE = 4096,
    GSI_TCP_LOOK = 64 << 10, /* bytes read at once where no big payload is expected */
    GSI_TCP_HOT = 2,         /* connections that poll() tries without asking epoll */
    GSI_TCP_MAX_DEPTH = 1 << 16,
    GSI_TCP_SLOT = (GSI_TCP_HEAD + GSI_TCP_INLINE + 63) & ~63,
};

typedef struct gsi_tcp_rail gsi_tcp_rail;

/* What an epoll event leads to: the first member of what it is about. */
typedef enum gsi_tcp_source { GSI_TCP_LISTENER, GSI_TCP_TIMER, GSI_TCP_GUEST, GSI_TCP_CONN } gsi_tcp_source;

/* An address that fits both families. */
typedef struct gsi_tcp_addr {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    };
    socklen_t len;
} gsi_tcp_addr;

/* A write or read of ours that is not complete. */
typedef struct gsi_tcp_work {
    uint64_t id, bytes;
    char *into; /* reads: where the answer goes; NULL: it is a write */
    uint8_t signal, read, answered;
} gsi_tcp_work;

/* A frame to be sent. Its head, and its payload if `copied`, are in the slot of the same index. */
typedef struct gsi_tcp_out {
    const char *from;
    uint64_t bytes;
    uint8_t work; /* it is a work of ours: counts as sent when it has gone */
    uint8_t copied;
    uint8_t answer;
} gsi_tcp_out;

enum gsi_tcp_state {
    GSI_TCP_NEW,       /* conn(): the peer is not known; it may already have come as a guest */
    GSI_TCP_ACCEPTING, /* the peer is the one that connects */
    GSI_TCP_PAUSING,   /* until the next attempt to connect */
    GSI_TCP_DIALING,   /* connect(2) runs */
    GSI_TCP_GREETING,  /* the hello is sent */
    GSI_TCP_OPEN,
    GSI_TCP_DEAD,
};

struct gsi_conn {
    gsi_tcp_source source;
    gsi_tcp_rail *rail;
    gsi_conn *next;
    uint32_t number;
    int fd; /* -1: none */
    enum gsi_tcp_state state;
    uint8_t told_ready, failure_due, dirty;
    uint32_t idle; /* fruitless tries of a hot one */

    /* Setting up: setup.c */
    gsi_tcp_card mine, peer;
    gsi_tcp_secret secret;
    unsigned char hello_key[32]; /* of hellos to us */
    unsigned char greeting[GSI_TCP_CHALLENGE];
    uint32_t greeting_have, attempts;
    int64_t begun_ns, next_try_ns;
    int error; /* of a set-up that failed: its code, errno and sentence */
    char text[192];

    /* Sending: send.c */
    uint64_t posted, sent, acked, done; /* works of ours, counted: done <= acked <= sent <= posted */
    uint64_t answered;                  /* works up to here are no unanswered reads */
    uint32_t depth;
    gsi_tcp_work *works; /* [depth], by number */
    gsi_tcp_out *out;    /* [out_room], a ring */
    unsigned char *slots;
    uint32_t out_room, out_head, out_count;
    uint64_t out_at; /* bytes of the first frame that have gone */
    uint8_t blocked; /* the socket was full: epoll tells when there is room */
    int send_error;  /* errno; told when what has arrived is read */

    /* Receiving: receive.c */
    uint64_t received; /* works of the peer that are complete */
    uint8_t ack_due, ack_prompt;
    uint8_t big;      /* the last payload was one: read little ahead */
    uint32_t answers; /* frames in `out` that are answers */
    unsigned char head[GSI_TCP_HEAD];
    uint32_t head_have;
    gsi_tcp_frame frame; /* whose payload is being received */
    char *into;
    uint64_t left; /* bytes of payload to come; 0: a head comes next */

    int32_t status; /* dead: what FAILED tells */
    const char *why;
    uint64_t failed_id;
    gsi_conn *next_dirty;
};

/* A connection that came in and has not proved anything, or only its hello. */
typedef struct gsi_tcp_guest {
    gsi_tcp_source source;
    int fd; /* -1: to be freed */
    struct gsi_tcp_guest *next;
    gsi_conn *conn; /* whose hello it had; NULL: none yet */
    int challenged;
    uint32_t have;
    int64_t since_ns;
    gsi_tcp_secret secret;
    unsigned char in[GSI_TCP_HELLO];
} gsi_tcp_guest;

typedef struct gsi_tcp_region {
    char *base; /* NULL: free */
    uint64_t bytes;
    uint32_t generation;
} gsi_tcp_region;

struct gsi_tcp_rail {
    gsi_rail base;
    gsi_tcp_source listener_source, timer_source;
    int listener, timer;
    int listening; /* the listener is in the epoll set */
    gsi_tcp_addr address;
    uint32_t send_depth;

    gsi_conn *conns;
    int awaiting; /* connections that a guest may become */
    int dialing;  /* connections that wait for something of set-up other than a guest */
    gsi_tcp_guest *guests;
    int nguests; /* those without a hello */

    gsi_tcp_region *regions;
    uint32_t nregions;

    gsi_conn *hot[GSI_TCP_HOT];
    gsi_conn *dirty; /* connections that have something to send */
    int open;        /* connections that are open */
    int blocked;     /* connections with blocked */
    int failures;    /* connections with failure_due */
    uint32_t tick;
    int armed, woken, timer_on;
    int64_t next_check_ns;
    int64_t silent_ms; /* a host that acknowledges nothing for so long is dead; tests make it short */

    /* Where events go: to the caller of poll(), and what is too much for him is kept. */
    gsi_rail_event *sink;
    int sink_max, sink_n;
    gsi_rail_event *kept; /* [kept_room] */
    uint32_t kept_room, kept_at, kept_end;

    unsigned char look[GSI_TCP_LOOK];
};

/* rail.c */
void gsi_tcp_emit(gsi_conn *c, uint32_t kind, uint64_t id, uint32_t imm);
/* Ends an open connection, once: FAILED will be told. */
void gsi_tcp_fail(gsi_conn *c, int32_t status, const char *why);
/* Ends it because of what the peer did, and tells it so if possible. */
void gsi_tcp_refuse(gsi_conn *c, enum gsi_tcp_fault fault);
/* poll() will acknowledge and flush it; armed: see to it that poll() is called. */
void gsi_tcp_mark_dirty(gsi_conn *c);
/* Moves c to `state`, and counts it there. */
void gsi_tcp_set_state(gsi_conn *c, enum gsi_tcp_state state);
void gsi_tcp_dereg(gsi_rail *rail, gsi_region *region);
/* The memory of a key; NULL and *fault if the peer must not touch it. */
char *gsi_tcp_region_at(gsi_tcp_rail *rail, uint64_t key, uint64_t address, uint64_t bytes, enum gsi_tcp_fault *fault);
/* Armed: poll() has something to do at once, or in ms. */
void gsi_tcp_wake_in(gsi_tcp_rail *rail, int64_t ms);
/* Watches fd for `events`, or changes what it is watched for. 0 or an errno. */
int gsi_tcp_watch(gsi_tcp_rail *rail, int fd, uint32_t events, gsi_tcp_source *source, int again);

/* Makes progress with connecting only. */
void gsi_tcp_setup_round(gsi_tcp_rail *rail);

/* setup.c */
int gsi_tcp_listen(gsi_tcp_rail *rail);
int gsi_tcp_conn(gsi_rail *rail, uint32_t number, gsi_conn **out, gsi_rail_address *mine);
int gsi_tcp_connect(gsi_conn *c, const gsi_rail_address *peer);
int gsi_tcp_ready(gsi_conn *c);
void gsi_tcp_disconnect(gsi_conn *c);
void gsi_tcp_setup_event(gsi_tcp_rail *rail, gsi_tcp_source *source, uint32_t events);
/* After a round of events: time limits, attempts to connect, guests that left. */
void gsi_tcp_setup_tidy(gsi_tcp_rail *rail);
void gsi_tcp_drop_guests(gsi_tcp_rail *rail, const gsi_conn *of);

/* send.c */
int gsi_tcp_write(gsi_conn *c, const gsi_rail_work *work);
int gsi_tcp_read(gsi_conn *c, const gsi_rail_work *work);
void gsi_tcp_ring(gsi_conn *c);
/* Sends what the socket takes; what it does not take makes the connection blocked. */
void gsi_tcp_flush(gsi_conn *c);
void gsi_tcp_unblock(gsi_conn *c);
/* Acknowledges what is due, with the next frame or with one of its own. */
void gsi_tcp_send_ack(gsi_conn *c);
/* Queues the answer to a read. */
void gsi_tcp_answer(gsi_conn *c, const char *from, uint64_t bytes);

/* receive.c */
/* Takes what has arrived. 1: something had. */
int gsi_tcp_receive(gsi_conn *c);
/* Takes n received bytes; what the socket's reader does, and the fuzzer. */
void gsi_tcp_feed(gsi_conn *c, const unsigned char *data, size_t n);

/* Tests: the socket, to make its buffers small or to break it. */
int gsi_tcp_test_socket(const gsi_conn *c);

#endif
