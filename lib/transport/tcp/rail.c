/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/tcp/state.h"
#include "transport/tcp/interfaces.h"
#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    ROUND = 64,       /* epoll events at once */
    BUSY_TICKS = 16,  /* polls between looks at the connections that are not hot, while the hot ones are busy */
    FEW_TICKS = 64,   /* the same where all connections are hot */
    COLD_AFTER = 512, /* fruitless tries of a hot connection */
    CHECK_TICKS = 256,
    CHECK_MS = 1000,
    SETUP_MS = 20,
    SILENT_MS = 15000,
    RETRANSMITS = 3,
    DEPTH = 1024,
};

static gsi_tcp_rail *of(gsi_rail *rail)
{
    return (gsi_tcp_rail *)rail;
}

/* ---- Events ---- */

void gsi_tcp_emit(gsi_conn *c, uint32_t kind, uint64_t id, uint32_t imm)
{
    gsi_tcp_rail *rail = c->rail;
    gsi_rail_event event = {.id = id, .kind = kind, .conn = c->number, .imm = imm};

    if (kind == GSI_RAIL_FAILED) {
        event.status = c->status;
        event.why = c->why;
    }
    if (rail->kept_end == 0 && rail->sink_n < rail->sink_max)
        rail->sink[rail->sink_n++] = event;
    else if (rail->kept_end < rail->kept_room)
        rail->kept[rail->kept_end++] = event; /* there is room: receiving stops as soon as something is kept */
}

static int full(const gsi_tcp_rail *rail)
{
    return rail->sink_n == rail->sink_max || rail->kept_end;
}

static void deliver_kept(gsi_tcp_rail *rail)
{
    while (rail->sink_n < rail->sink_max && rail->kept_at < rail->kept_end) {
        const gsi_rail_event *e = &rail->kept[rail->kept_at++];
        if (e->kind)
            rail->sink[rail->sink_n++] = *e;
    }
    if (rail->kept_at == rail->kept_end)
        rail->kept_at = rail->kept_end = 0;
}

/* After everything else: a connection's failure is its last event. */
static void tell_failures(gsi_tcp_rail *rail)
{
    for (gsi_conn *c = rail->conns; c && rail->failures && !full(rail); c = c->next) {
        if (!c->failure_due)
            continue;
        c->failure_due = 0;
        rail->failures--;
        gsi_tcp_emit(c, GSI_RAIL_FAILED, c->failed_id, 0);
    }
}

/* ---- Connections ---- */

static void count(gsi_tcp_rail *rail, enum gsi_tcp_state state, int by)
{
    switch (state) {
    case GSI_TCP_NEW:
    case GSI_TCP_ACCEPTING:
        rail->awaiting += by;
        break;
    case GSI_TCP_PAUSING:
    case GSI_TCP_DIALING:
    case GSI_TCP_GREETING:
        rail->dialing += by;
        break;
    case GSI_TCP_OPEN:
        rail->open += by;
        break;
    case GSI_TCP_DEAD:
        break;
    }
}

void gsi_tcp_set_state(gsi_conn *c, enum gsi_tcp_state state)
{
    count(c->rail, c->state, -1);
    c->state = state;
    count(c->rail, c->state, 1);
}

int gsi_tcp_watch(gsi_tcp_rail *rail, int fd, uint32_t events, gsi_tcp_source *source, int again)
{
    struct epoll_event event = {.events = events, .data.ptr = source};

    return epoll_ctl(rail->base.fd, again ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) < 0 ? errno : 0;
}

void gsi_tcp_wake_in(gsi_tcp_rail *rail, int64_t ms)
{
    struct itimerspec when = {.it_value = {ms / 1000, ms % 1000 * 1000000 + 1}};

    if (rail->timer_on && ms)
        return;
    rail->timer_on = 1;
    timerfd_settime(rail->timer, 0, &when, NULL);
}

void gsi_tcp_mark_dirty(gsi_conn *c)
{
    if (!c->dirty) {
        c->dirty = 1;
        c->next_dirty = c->rail->dirty;
        c->rail->dirty = c;
    }
    if (c->rail->armed)
        gsi_tcp_wake_in(c->rail, 0);
}

static void flush_dirty(gsi_tcp_rail *rail)
{
    gsi_conn *c = rail->dirty, *next;

    rail->dirty = NULL;
    for (; c; c = next) {
        next = c->next_dirty;
        c->dirty = 0;
        if (c->state != GSI_TCP_OPEN)
            continue;
        if (c->ack_due)
            gsi_tcp_send_ack(c);
        else if (!c->blocked)
            gsi_tcp_flush(c);
        if (c->send_error && !full(rail))
            gsi_tcp_receive(c);
        if (c->send_error && c->state == GSI_TCP_OPEN)
            gsi_tcp_mark_dirty(c);
    }
}

void gsi_tcp_fail(gsi_conn *c, int32_t status, const char *why)
{
    gsi_tcp_rail *rail = c->rail;

    if (c->state == GSI_TCP_DEAD)
        return;
    gsi_tcp_set_state(c, GSI_TCP_DEAD);
    gsi_tcp_unblock(c);
    for (int i = 0; i < GSI_TCP_HOT; i++)
        if (rail->hot[i] == c)
            rail->hot[i] = NULL;
    close(c->fd);
    c->fd = -1;
    c->left = 0;
    c->out_count = 0;
    c->status = status;
    c->why = why;
    c->failed_id = c->done < c->posted ? c->works[c->done % c->depth].id : 0;
    c->error = GRADSYNC_ERR_PEER_LOST;
    if (c->told_ready) {
        c->failure_due = 1;
        rail->failures++;
        if (rail->armed)
            gsi_tcp_wake_in(rail, 0);
    }
}

void gsi_tcp_refuse(gsi_conn *c, enum gsi_tcp_fault fault)
{
    unsigned char head[GSI_TCP_HEAD];

    if (c->state != GSI_TCP_OPEN)
        return;
    if (c->out_at == 0 && !c->send_error) {
        gsi_tcp_frame_pack(&(gsi_tcp_frame){.kind = GSI_TCP_ERROR, .imm = fault, .ack = c->received}, head);
        (void)!send(c->fd, head, sizeof head, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    gsi_tcp_fail(c, EPROTO, gsi_tcp_fault_text(fault, 0));
}

/* A host that is gone sends no goodbye. Keep-alives tell while nothing is on its way; otherwise the kernel would
 * repeat itself for a quarter of an hour. A peer that does not read is no reason: its kernel answers probes. */
static void check_hosts(gsi_tcp_rail *rail)
{
    int64_t now = gsi_now_ns();

    if (now < rail->next_check_ns)
        return;
    rail->next_check_ns = gsi_deadline_ns(now, CHECK_MS);
    for (gsi_conn *c = rail->conns; c; c = c->next) {
        struct tcp_info info;
        socklen_t length = sizeof info;
        if (c->state != GSI_TCP_OPEN || c->done == c->posted)
            continue;
        if (getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
            continue;
        if (info.tcpi_last_ack_recv > rail->silent_ms &&
            (info.tcpi_retransmits >= RETRANSMITS || info.tcpi_probes >= RETRANSMITS))
            gsi_tcp_fail(c, ETIMEDOUT, "the peer's host does not answer any more");
    }
}

/* ---- Polling ---- */

static void make_hot(gsi_conn *c)
{
    gsi_conn **hot = c->rail->hot;
    int i = 0;

    while (i < GSI_TCP_HOT - 1 && hot[i] && hot[i] != c)
        i++;
    for (; i > 0; i--)
        hot[i] = hot[i - 1];
    hot[0] = c;
    c->idle = 0;
}

static int poll_hot(gsi_tcp_rail *rail)
{
    int any = 0;

    for (int i = 0; i < GSI_TCP_HOT; i++) {
        gsi_conn *c = rail->hot[i];
        if (!c || full(rail))
            continue;
        if (gsi_tcp_receive(c)) {
            c->idle = 0;
            any = 1;
        } else if (++c->idle > COLD_AFTER && rail->open > GSI_TCP_HOT) {
            rail->hot[i] = NULL;
        }
    }
    return any;
}

static int all_hot(const gsi_tcp_rail *rail)
{
    int n = 0;

    for (int i = 0; i < GSI_TCP_HOT; i++)
        n += rail->hot[i] != NULL;
    return n == rail->open && !rail->listening && !rail->dialing;
}

/* Asks epoll. data: take what has arrived; else only set up connections. */
static void look_round(gsi_tcp_rail *rail, int data)
{
    struct epoll_event events[ROUND];
    int n = epoll_wait(rail->base.fd, events, ROUND, 0);

    for (int i = 0; i < n; i++) {
        gsi_tcp_source *source = events[i].data.ptr;
        gsi_conn *c = (gsi_conn *)source;
        uint64_t ticks;
        if (*source == GSI_TCP_TIMER) {
            (void)!read(rail->timer, &ticks, sizeof ticks);
            rail->timer_on = 0;
        } else if (*source == GSI_TCP_CONN && c->state == GSI_TCP_OPEN) {
            if (data && events[i].events & EPOLLOUT)
                gsi_tcp_flush(c);
            if (data && events[i].events & ~(uint32_t)EPOLLOUT && !full(rail) && gsi_tcp_receive(c) &&
                c->state == GSI_TCP_OPEN)
                make_hot(c);
        } else {
            gsi_tcp_setup_event(rail, source, events[i].events);
        }
    }
    if (rail->dialing || rail->guests)
        gsi_tcp_setup_tidy(rail);
}

void gsi_tcp_setup_round(gsi_tcp_rail *rail)
{
    look_round(rail, 0);
}

static int poll_rail(gsi_rail *base, gsi_rail_event *events, int max)
{
    gsi_tcp_rail *rail = of(base);

    rail->sink = events;
    rail->sink_max = max;
    rail->sink_n = 0;
    if (rail->kept_end)
        deliver_kept(rail);
    if (rail->failures)
        tell_failures(rail);
    if (rail->sink_n == 0) {
        uint32_t tick = rail->tick++;
        int any, look;
        if (rail->dirty)
            flush_dirty(rail);
        any = poll_hot(rail);
        if (any)
            look = tick % BUSY_TICKS == 0 || rail->blocked;
        else
            look = rail->armed || rail->woken || rail->blocked || tick % FEW_TICKS == 0 || !all_hot(rail);
        if (look)
            look_round(rail, 1);
        if (rail->woken || tick % CHECK_TICKS == 0)
            check_hosts(rail);
        rail->woken = 0;
        if (rail->failures)
            tell_failures(rail);
        if (rail->armed && (rail->kept_end || rail->failures))
            gsi_tcp_wake_in(rail, 0);
    }
    rail->sink_max = 0;
    return rail->sink_n;
}

static void idle(gsi_rail *base)
{
    gsi_tcp_rail *rail = of(base);

    /* There is nobody to tell events to, so what is broken waits for poll(). */
    for (gsi_conn *c = rail->dirty; c; c = c->next_dirty)
        if (c->state == GSI_TCP_OPEN && !c->blocked) {
            gsi_tcp_send_ack(c);
            gsi_tcp_flush(c);
        }
}

static int arm(gsi_rail *base)
{
    gsi_tcp_rail *rail = of(base);
    int waits = 0, broken = 0;

    rail->sink_n = rail->sink_max = 0;
    for (gsi_conn *c = rail->conns; c; c = c->next) {
        if (c->state != GSI_TCP_OPEN)
            continue;
        gsi_tcp_send_ack(c);
        if (!c->blocked)
            gsi_tcp_flush(c);
        broken |= c->send_error;
        waits |= c->done < c->posted;
    }
    rail->armed = 1;
    if (rail->kept_end || rail->failures || broken)
        gsi_tcp_wake_in(rail, 0);
    else if (rail->dialing || rail->guests)
        gsi_tcp_wake_in(rail, SETUP_MS);
    else if (waits)
        gsi_tcp_wake_in(rail, CHECK_MS);
    return 0;
}

static void disarm(gsi_rail *base)
{
    gsi_tcp_rail *rail = of(base);
    uint64_t ticks;

    rail->armed = 0;
    rail->woken = 1;
    if (rail->timer_on && read(rail->timer, &ticks, sizeof ticks) > 0)
        rail->timer_on = 0;
}

/* ---- Memory ---- */

static int reg(gsi_rail *base, void *memory, uint64_t bytes, gsi_region *out)
{
    gsi_tcp_rail *rail = of(base);
    uint32_t i = 0;

    while (i < rail->nregions && rail->regions[i].base)
        i++;
    if (i == rail->nregions) {
        uint32_t n = rail->nregions ? 2 * rail->nregions : 16;
        gsi_tcp_region *more = gsi_realloc(rail->regions, n * sizeof *more);
        if (!more)
            return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to register another region on rail %s; free some",
                            rail->base.name);
        memset(more + rail->nregions, 0, (n - rail->nregions) * sizeof *more);
        rail->regions = more;
        rail->nregions = n;
    }
    /* Keys are not to be guessed, nor to be valid again for another region. */
    gsi_tcp_region *r = &rail->regions[i];
    *r = (gsi_tcp_region){memory, bytes, randombytes_random() | 1};
    *out = (gsi_region){rail, memory, bytes, (uint64_t)r->generation << 32 | i};
    return 0;
}

void gsi_tcp_dereg(gsi_rail *base, gsi_region *region)
{
    gsi_tcp_rail *rail = of(base);
    gsi_tcp_region *r = &rail->regions[(uint32_t)region->remote_key];
    const char *end = r->base + r->bytes;

    /* A peer that still writes to it or reads from it must not reach what comes after it in this memory. */
    for (gsi_conn *c = rail->conns; c; c = c->next) {
        int used = c->state == GSI_TCP_OPEN && c->left && c->into >= r->base && c->into < end;
        for (uint32_t i = 0, at = c->out_head; c->state == GSI_TCP_OPEN && i < c->out_count; i++) {
            const gsi_tcp_out *o = &c->out[at];
            used |= !o->copied && o->bytes && o->from >= r->base && o->from < end;
            at = at + 1 == c->out_room ? 0 : at + 1;
        }
        if (used)
            gsi_tcp_refuse(c, GSI_TCP_FAULT_GONE);
    }
    *r = (gsi_tcp_region){0};
    *region = (gsi_region){0};
}

char *gsi_tcp_region_at(gsi_tcp_rail *rail, uint64_t key, uint64_t address, uint64_t bytes, enum gsi_tcp_fault *fault)
{
    uint32_t index = (uint32_t)key;
    const gsi_tcp_region *r = index < rail->nregions ? &rail->regions[index] : NULL;

    if (!r || !r->base || r->generation != key >> 32) {
        *fault = GSI_TCP_FAULT_KEY;
        return NULL;
    }
    uint64_t at = address - (uint64_t)(uintptr_t)r->base;
    if (address < (uint64_t)(uintptr_t)r->base || at > r->bytes || bytes > r->bytes - at) {
        *fault = GSI_TCP_FAULT_RANGE;
        return NULL;
    }
    return r->base + at;
}

/* ---- Opening ---- */

static void close_rail(gsi_rail *base)
{
    gsi_tcp_rail *rail = of(base);

    while (rail->conns)
        gsi_tcp_disconnect(rail->conns);
    gsi_tcp_drop_guests(rail, NULL);
    gsi_tcp_setup_tidy(rail);
    if (rail->listener >= 0)
        close(rail->listener);
    if (rail->timer >= 0)
        close(rail->timer);
    if (base->fd >= 0)
        close(base->fd);
    free(rail->regions);
    free(rail->kept);
    free(rail);
}

static const gsi_rail_ops ops = {
    .name = "tcp",
    .close = close_rail,
    .reg = reg,
    .dereg = gsi_tcp_dereg,
    .conn = gsi_tcp_conn,
    .connect = gsi_tcp_connect,
    .ready = gsi_tcp_ready,
    .disconnect = gsi_tcp_disconnect,
    .write = gsi_tcp_write,
    .read = gsi_tcp_read,
    .ring = gsi_tcp_ring,
    .poll = poll_rail,
    .idle = idle,
    .arm = arm,
    .disarm = disarm,
};

static int set_address(gsi_tcp_rail *rail, const char *text)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST}, *list;

    if (getaddrinfo(text, NULL, &hints, &list))
        return gsi_fail(GRADSYNC_ERR_INVALID, "'%s' is no numeric IPv4 or IPv6 address for a TCP rail", text);
    int fits = list->ai_addrlen <= sizeof rail->address.v6;
    if (fits) {
        memcpy(&rail->address.v6, list->ai_addr, list->ai_addrlen);
        rail->address.len = list->ai_addrlen;
    }
    freeaddrinfo(list);
    return fits ? 0 : gsi_fail(GRADSYNC_ERR_INVALID, "'%s' is no IPv4 or IPv6 address for a TCP rail", text);
}

/* The interface that is meant; by name, else by address, else the first. */
static int set_interface(gsi_tcp_rail *rail, const gsi_rail_config *config)
{
    gsi_tcp_interface list[GSI_TCP_INTERFACES], *found = NULL;
    int n = gsi_tcp_interfaces(NULL, NULL, list);

    if (n < 0)
        return n;
    for (int i = 0; i < n && !found; i++)
        if (config->device[0] ? !strcmp(list[i].name, config->device)
                              : !config->address[0] || !strcmp(list[i].address, config->address))
            found = &list[i];
    if (!found && config->device[0])
        found = gsi_tcp_interface_find(config->device, &list[0]) ? &list[0] : NULL;
    if (!found && !config->address[0])
        return config->device[0]
                   ? gsi_fail(GRADSYNC_ERR_DEVICE, "there is no network interface '%s' that is up and has an address",
                              config->device)
                   : gsi_fail(GRADSYNC_ERR_DEVICE, "no network interface is up and has an address");
    if (found) {
        rail->base.gbps = found->mbps / 1000.0;
        rail->base.numa_node = found->numa_node;
    }
    snprintf(rail->base.name, sizeof rail->base.name, "%s", found ? found->name : config->address);
    return set_address(rail, config->address[0] ? config->address : found->address);
}

int gsi_tcp_rail_open(const gsi_rail_config *config, gsi_rail **out)
{
    if (sodium_init() < 0)
        return gsi_fail(GRADSYNC_ERR_SYSTEM, "the system's random number source cannot be opened; check that "
                                             "getrandom() or /dev/urandom works here");
    gsi_tcp_rail *rail = gsi_calloc(1, sizeof *rail);
    if (!rail)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a TCP rail");
    int depth = config->send_depth > 0 ? config->send_depth : DEPTH;
    rail->send_depth = (uint32_t)(depth < GSI_TCP_MAX_DEPTH ? depth : GSI_TCP_MAX_DEPTH);
    /* What one look ahead can hold, and what one acknowledgement can end. */
    rail->kept_room = GSI_TCP_LOOK / GSI_TCP_HEAD + 2 + rail->send_depth;
    rail->kept = gsi_calloc(rail->kept_room, sizeof *rail->kept);
    rail->base = (gsi_rail){
        .ops = &ops,
        .fd = epoll_create1(EPOLL_CLOEXEC),
        .async_fd = -1,
        .max_inline = GSI_TCP_INLINE,
        .max_bytes = 1 << 30,
        .numa_node = -1,
    };
    rail->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    rail->silent_ms = SILENT_MS;
    rail->listener = -1;
    rail->listener_source = GSI_TCP_LISTENER;
    rail->timer_source = GSI_TCP_TIMER;
    int r = 0;
    if (!rail->kept)
        r = gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for a TCP rail");
    else if (rail->base.fd < 0 || rail->timer < 0 || gsi_tcp_watch(rail, rail->timer, EPOLLIN, &rail->timer_source, 0))
        r = gsi_fail_errno(errno, "no file descriptors for a TCP rail; raise the limit (ulimit -n)");
    if (!r)
        r = set_interface(rail, config);
    if (!r)
        r = gsi_tcp_listen(rail);
    if (r) {
        close_rail(&rail->base);
        return r;
    }
    *out = &rail->base;
    return 0;
}
