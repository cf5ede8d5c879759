/* SPDX-License-Identifier: Apache-2.0 */
#include "relay.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Makes room for `more` bytes behind the used ones; -1 without memory. */
static int reserve(char **data, size_t *room, size_t used, size_t more)
{
    if (used + more <= *room)
        return 0;
    size_t want = *room ? *room : 4096;
    while (want < used + more)
        want *= 2;
    char *grown = realloc(*data, want);
    if (!grown)
        return -1;
    *data = grown;
    *room = want;
    return 0;
}

size_t relay_waiting(const relay_sink *sink)
{
    return sink->failed ? 0 : sink->used - sink->head;
}

void relay_put(relay_sink *sink, const void *data, size_t bytes)
{
    if (sink->failed || bytes == 0)
        return;
    if (sink->head > 0 && sink->used + bytes > sink->room) {
        memmove(sink->data, sink->data + sink->head, sink->used - sink->head);
        sink->used -= sink->head;
        sink->head = 0;
    }
    if (reserve(&sink->data, &sink->room, sink->used, bytes) != 0) {
        sink->failed = ENOMEM;
        return;
    }
    memcpy(sink->data + sink->used, data, bytes);
    sink->used += bytes;
}

static void write_some(relay_sink *sink, size_t most)
{
    size_t n = sink->used - sink->head;
    ssize_t done = write(sink->fd, sink->data + sink->head, n < most ? n : most);

    if (done < 0) {
        if (errno != EINTR && errno != EAGAIN)
            sink->failed = errno;
        return;
    }
    sink->head += (size_t)done;
    if (sink->head == sink->used)
        sink->head = sink->used = 0;
}

void relay_write(relay_sink *sink)
{
    struct stat st;
    /* POLLOUT promises PIPE_BUF bytes in a pipe; files never block for long. */
    int file = fstat(sink->fd, &st) == 0 && S_ISREG(st.st_mode);

    if (relay_waiting(sink) > 0)
        write_some(sink, file ? SSIZE_MAX : PIPE_BUF);
}

void relay_flush(relay_sink *sink)
{
    while (relay_waiting(sink) > 0) {
        struct pollfd p = {.fd = sink->fd, .events = POLLOUT};

        if (poll(&p, 1, -1) < 0 && errno != EINTR)
            return;
        relay_write(sink);
    }
}

/* Passes a line, or what there is of one, on behind its prefix. */
static void put_line(relay_source *source, const char *rest, size_t bytes)
{
    char prefix[24];
    int n = snprintf(prefix, sizeof prefix, "[%d] ", source->rank);

    relay_put(source->sink, prefix, (size_t)n);
    relay_put(source->sink, source->line, source->used);
    relay_put(source->sink, rest, bytes);
    source->used = 0;
}

void relay_close(relay_source *source)
{
    if (source->fd < 0)
        return;
    close(source->fd);
    source->fd = -1;
    if (source->used > 0)
        put_line(source, "\n", 1);
    free(source->line);
    source->line = NULL;
    source->room = 0;
}

int relay_read(relay_source *source)
{
    static char piece[64 << 10]; /* one thread */
    ssize_t got = read(source->fd, piece, sizeof piece);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return errno == EINTR;
    if (got <= 0 || source->sink->failed) { /* a failed sink: the writer gets SIGPIPE, as in a pipeline */
        relay_close(source);
        return 0;
    }
    const char *at = piece, *end = piece + got, *nl;
    while (at < end && (nl = memchr(at, '\n', (size_t)(end - at))) != NULL) {
        put_line(source, at, (size_t)(nl + 1 - at));
        at = nl + 1;
    }
    if (at < end) {
        size_t left = (size_t)(end - at);

        if (source->used + left > RELAY_LINE_MAX)
            put_line(source, "\n", 1);
        if (reserve(&source->line, &source->room, source->used, left) != 0) {
            source->sink->failed = ENOMEM;
            relay_close(source);
            return 0;
        }
        memcpy(source->line + source->used, at, left);
        source->used += left;
    }
    return got == (ssize_t)sizeof piece;
}
