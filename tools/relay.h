/* SPDX-License-Identifier: Apache-2.0 */
/* Whole lines from many pipes to one descriptor, without ever blocking on it. */
#ifndef TOOLS_RELAY_H
#define TOOLS_RELAY_H

#include <stddef.h>

/* Bytes on their way to a descriptor that others share (so it cannot be made
 * non-blocking): written in pieces that poll(2)'s POLLOUT promises not to block. */
typedef struct relay_sink {
    int fd;
    int failed; /* errno of the first failed write; what comes later is dropped */
    char *data;
    size_t head, used, room; /* data[head .. used) waits */
} relay_sink;

/* One pipe of one rank. Owns fd, and the bytes of a line not yet complete. */
typedef struct relay_source {
    int fd; /* -1: none, or at its end; non-blocking */
    int rank;
    relay_sink *sink;
    char *line;
    size_t used, room;
} relay_source;

/* A line longer than this is broken into lines of about this size. */
enum { RELAY_LINE_MAX = 16 << 20, RELAY_SINK_FULL = 1 << 20 };

/* Appends to what waits; memory running out counts as a failed write. */
void relay_put(relay_sink *sink, const void *data, size_t bytes);
size_t relay_waiting(const relay_sink *sink);
/* Writes one piece after poll() said POLLOUT (or POLLERR). */
void relay_write(relay_sink *sink);
/* Writes all that waits, blocking. */
void relay_flush(relay_sink *sink);

/* Reads what is there now, at most about 64 KiB, and passes on its whole lines.
 * Returns 1 if there may be more at once, 0 if not now; at the end closes the
 * source, with a newline behind an unfinished line. */
int relay_read(relay_source *source);
/* Ends a source as if it had ended by itself. */
void relay_close(relay_source *source);

#endif
