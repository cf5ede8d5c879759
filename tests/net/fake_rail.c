/* SPDX-License-Identifier: Apache-2.0 */
#include "fake_rail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <gradsync/gradsync.h>

enum { MAX_RAILS = 128, MAX_CONNS = 2048, MAX_REGIONS = 256 };

typedef struct fake_work {
    struct fake_work *next;
    gsi_rail_work w;
    int read;
    char *copy; /* inline */
} fake_work;

typedef struct fake_event {
    struct fake_event *next;
    uint64_t born;
    gsi_rail_event e;
} fake_event;

typedef struct region {
    char *base;
    uint64_t bytes, key;
    int live;
} region;

typedef struct fake_rail_ {
    gsi_rail rail;
    fake_fabric *f;
    int owner, index, closed;
    region regions[MAX_REGIONS];
    int nregions;
    uint64_t bytes;
    uint64_t looked; /* when it was last polled */
} fake_rail_;

struct gsi_conn {
    fake_rail_ *rail;
    uint32_t number;
    uint32_t id;
    gsi_conn *peer;
    int linked;    /* connect() was called */
    int dead, end; /* failed; disconnected */
    int refuses;
    fake_work *works, **works_tail;     /* not done yet */
    fake_work *unacked, **unacked_tail; /* done, SENT not told */
    fake_event *events, **events_tail;
    uint64_t in_flight;  /* as the endpoint knows it */
    uint64_t imms;       /* arrived and not yet polled here */
    uint64_t quiet[256]; /* ring: works that each SENT event stands for */
    uint32_t quiet_head, quiet_tail, quiet_now;
};

struct fake_fabric {
    uint64_t state;
    fake_rail_ *rails[MAX_RAILS];
    int nrails;
    gsi_conn *conns[MAX_CONNS];
    uint32_t nconns;
    int lazy_polls, lazy_completions, hold;
    uint64_t events, fail_at, failures, denied, violations, most_imm, most_work;
    int fail_last;
    uint64_t clock;
    void (*others)(void *arg, int rank);
    void *others_arg;
    int in_interlude;
};

/* splitmix64 */
uint64_t fake_random(fake_fabric *f)
{
    uint64_t z = (f->state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int chance(fake_fabric *f, int percent)
{
    return (int)(fake_random(f) % 100) < percent;
}

static void violation(fake_fabric *f, const char *what)
{
    if (f->violations++ < 5)
        printf("# the endpoint breaks the contract of rails: %s\n", what);
}

static fake_rail_ *rail_of(gsi_rail *rail)
{
    return (fake_rail_ *)rail;
}

/* ---- Memory ------------------------------------------------------------------------- */

static int fake_reg(gsi_rail *rail, void *base, uint64_t bytes, gsi_region *out)
{
    fake_rail_ *r = rail_of(rail);
    int at = 0;

    while (at < r->nregions && r->regions[at].base)
        at++;
    if (at == MAX_REGIONS)
        return GRADSYNC_ERR_NOMEM;
    if (at == r->nregions)
        r->nregions++;
    /* A key is never used twice. */
    r->regions[at] = (region){base, bytes, fake_random(r->f) << 8 | (uint64_t)at, 1};
    *out = (gsi_region){&r->regions[at], base, bytes, r->regions[at].key};
    return 0;
}

static void fake_dereg(gsi_rail *rail, gsi_region *out)
{
    fake_rail_ *r = rail_of(rail);
    region *reg = out->handle;

    for (uint32_t c = 0; c < r->f->nconns; c++) {
        const gsi_conn *conn = r->f->conns[c];
        if (conn->rail != r || conn->dead || conn->end)
            continue;
        for (const fake_work *work = conn->works; work; work = work->next)
            if (!(work->w.flags & GSI_RAIL_INLINE) && work->w.region && work->w.region->handle == reg)
                violation(r->f, "memory is deregistered with work in flight on it");
    }
    memset(reg, 0, sizeof *reg);
    memset(out, 0, sizeof *out);
}

static int within(const region *reg, const void *addr, uint64_t bytes)
{
    const char *at = addr;
    return reg->live && at >= reg->base && bytes <= reg->bytes && (uint64_t)(at - reg->base) <= reg->bytes - bytes;
}

/* ---- Connections ------------------------------------------------------------------------ */

static int fake_conn(gsi_rail *rail, uint32_t number, gsi_conn **out, gsi_rail_address *mine)
{
    fake_rail_ *r = rail_of(rail);
    fake_fabric *f = r->f;
    gsi_conn *conn = calloc(1, sizeof *conn);

    if (!conn || f->nconns == MAX_CONNS)
        abort();
    conn->rail = r;
    conn->number = number;
    conn->id = f->nconns;
    conn->works_tail = &conn->works;
    conn->unacked_tail = &conn->unacked;
    conn->events_tail = &conn->events;
    f->conns[f->nconns++] = conn;
    memset(mine, 0, sizeof *mine);
    memcpy(mine->blob, &conn->id, sizeof conn->id);
    *out = conn;
    return 0;
}

static int fake_connect(gsi_conn *conn, const gsi_rail_address *peer)
{
    uint32_t id;

    memcpy(&id, peer->blob, sizeof id);
    if (id >= conn->rail->f->nconns)
        return GRADSYNC_ERR_INVALID;
    conn->peer = conn->rail->f->conns[id];
    conn->linked = 1;
    return 0;
}

static int fake_ready(gsi_conn *conn)
{
    if (conn->dead)
        return GRADSYNC_ERR_DEVICE;
    return conn->linked && conn->peer->linked && conn->peer->peer == conn;
}

static void push_event(gsi_conn *conn, const gsi_rail_event *event)
{
    fake_event *e = calloc(1, sizeof *e);
    if (!e)
        abort();
    e->e = *event;
    e->born = ++conn->rail->f->clock;
    e->e.conn = conn->number;
    *conn->events_tail = e;
    conn->events_tail = &e->next;
}

static void free_work(fake_work *work)
{
    free(work->copy);
    free(work);
}

static void free_works(fake_work **head, fake_work ***tail)
{
    while (*head) {
        fake_work *work = *head;
        *head = work->next;
        free_work(work);
    }
    *tail = head;
}

/* What this side sends is gone; what it has received so far is still told. */
static void die(gsi_conn *conn, const char *why)
{
    if (conn->dead)
        return;
    conn->dead = 1;
    free_works(&conn->works, &conn->works_tail);
    free_works(&conn->unacked, &conn->unacked_tail);
    if (!conn->end)
        push_event(conn, &(gsi_rail_event){.kind = GSI_RAIL_FAILED, .why = why});
}

static void fail_pair(gsi_conn *conn, const char *why)
{
    conn->rail->f->failures++;
    die(conn, why);
    if (conn->peer)
        die(conn->peer, why);
}

static int alive(const gsi_conn *conn)
{
    return !conn->dead && !conn->end && conn->peer && !conn->peer->dead && !conn->peer->end;
}

/* Is there another connection between the same two ranks? */
static int can_be_spared(const fake_fabric *f, const gsi_conn *conn)
{
    for (uint32_t c = 0; c < f->nconns; c++) {
        const gsi_conn *other = f->conns[c];
        if (other != conn && alive(other) && !other->refuses && !other->peer->refuses &&
            other->rail->owner == conn->rail->owner && other->peer->rail->owner == conn->peer->rail->owner)
            return 1;
    }
    return 0;
}

static void fake_disconnect(gsi_conn *conn)
{
    conn->end = 1;
    free_works(&conn->works, &conn->works_tail);
    free_works(&conn->unacked, &conn->unacked_tail);
    while (conn->events) {
        fake_event *e = conn->events;
        conn->events = e->next;
        free(e);
    }
    conn->events_tail = &conn->events;
    if (conn->peer && !conn->peer->dead)
        die(conn->peer, "the peer has gone");
}

/* ---- Posting ------------------------------------------------------------------------------ */

static int post(gsi_conn *conn, const gsi_rail_work *w, int read)
{
    fake_rail_ *r = conn->rail;
    fake_work *work;

    if (conn->end) {
        violation(r->f, "work for a connection that was ended");
        return GRADSYNC_ERR_SYSTEM;
    }
    if (conn->refuses)
        return GRADSYNC_ERR_DEVICE;
    if (!conn->linked)
        violation(r->f, "work for a connection that is not ready");
    if (w->flags & GSI_RAIL_INLINE) {
        if (w->bytes > r->rail.max_inline || read)
            violation(r->f, "too much inline data");
    } else if (w->bytes && (!w->region || !w->region->handle || !within(w->region->handle, w->local, w->bytes))) {
        violation(r->f, "work on memory that is not registered");
        return GRADSYNC_ERR_SYSTEM;
    }
    if (r->rail.max_bytes && w->bytes > r->rail.max_bytes)
        violation(r->f, "too long a write");
    if (++conn->in_flight > FAKE_SEND_DEPTH)
        violation(r->f, "too much work in flight on a connection");
    if (conn->in_flight > r->f->most_work)
        r->f->most_work = conn->in_flight;
    conn->quiet_now++;
    if (w->flags & GSI_RAIL_SIGNAL) {
        conn->quiet[conn->quiet_tail++ % 256] = conn->quiet_now;
        conn->quiet_now = 0;
    }
    if (conn->dead)
        return 0; /* dropped: FAILED is there or will come */
    work = calloc(1, sizeof *work);
    if (!work)
        abort();
    work->w = *w;
    work->read = read;
    if (w->flags & GSI_RAIL_INLINE && w->bytes) {
        work->copy = malloc(w->bytes);
        memcpy(work->copy, w->local, w->bytes);
    }
    r->bytes += w->bytes;
    *conn->works_tail = work;
    conn->works_tail = &work->next;
    return 0;
}

static int fake_write(gsi_conn *conn, const gsi_rail_work *work)
{
    return post(conn, work, 0);
}

static int fake_read(gsi_conn *conn, const gsi_rail_work *work)
{
    return post(conn, work, 1);
}

static void fake_ring(gsi_conn *conn)
{
    (void)conn;
}

/* ---- What happens --------------------------------------------------------------------------- */

static const region *find_key(const fake_rail_ *r, uint64_t key)
{
    int at = (int)(key & 255);
    return at < r->nregions && r->regions[at].live && r->regions[at].key == key ? &r->regions[at] : NULL;
}

/* The first `bytes` of a work. 0, or -1: the peer does not allow it. */
static int move(const gsi_conn *conn, const fake_work *work, uint64_t bytes)
{
    const gsi_rail_work *w = &work->w;
    const region *target = find_key(conn->peer->rail, w->remote_key);
    char *remote = (char *)(uintptr_t)w->remote;

    if (!w->bytes)
        return 0;
    if (!target || !within(target, remote, w->bytes))
        return -1;
    if (work->read)
        memcpy(w->local, remote, bytes);
    else
        memcpy(remote, work->copy ? work->copy : w->local, bytes);
    return 0;
}

/* Fails in the midst of the next work: none, a part or all of it is done, and in the last case the peer may know. */
static void fail_within(gsi_conn *conn)
{
    fake_fabric *f = conn->rail->f;
    const fake_work *work = conn->works;
    uint64_t how = fake_random(f) % 4;

    if (work && how == 1)
        move(conn, work, work->w.bytes / 2);
    else if (work && how >= 2 && !move(conn, work, work->w.bytes) && how == 3 && work->w.flags & GSI_RAIL_IMM) {
        push_event(conn->peer, &(gsi_rail_event){.kind = GSI_RAIL_ARRIVED, .imm = work->w.imm});
        conn->peer->imms++;
    }
    fail_pair(conn, "the test says so");
}

static void do_work(gsi_conn *conn)
{
    fake_fabric *f = conn->rail->f;
    fake_work *work = conn->works;

    if (move(conn, work, work->w.bytes)) {
        f->denied++;
        fail_pair(conn, "remote access error");
        return;
    }
    if (work->w.flags & GSI_RAIL_IMM) {
        push_event(conn->peer, &(gsi_rail_event){.kind = GSI_RAIL_ARRIVED, .imm = work->w.imm});
        if (++conn->peer->imms > FAKE_RECV_DEPTH)
            violation(f, "more immediates than the receiver has room for");
        if (conn->peer->imms > f->most_imm)
            f->most_imm = conn->peer->imms;
    }
    conn->works = work->next;
    if (!conn->works)
        conn->works_tail = &conn->works;
    work->next = NULL;
    *conn->unacked_tail = work;
    conn->unacked_tail = &work->next;
}

static void acknowledge(gsi_conn *conn)
{
    fake_work *work = conn->unacked;

    conn->unacked = work->next;
    if (!conn->unacked)
        conn->unacked_tail = &conn->unacked;
    if (work->w.flags & GSI_RAIL_SIGNAL)
        push_event(conn, &(gsi_rail_event){.kind = GSI_RAIL_SENT, .id = work->w.id});
    free_work(work);
}

/* One thing happens on one connection. 0: there is nothing to do. */
static int step(fake_fabric *f)
{
    uint32_t start = f->nconns ? (uint32_t)(fake_random(f) % f->nconns) : 0;

    for (uint32_t i = 0; i < f->nconns; i++) {
        gsi_conn *conn = f->conns[(start + i) % f->nconns];
        if (!alive(conn) || (!conn->works && !conn->unacked))
            continue;
        f->events++;
        if (f->fail_at && f->events >= f->fail_at && (f->fail_last || can_be_spared(f, conn))) {
            f->fail_at = 0;
            fail_within(conn);
            return 1;
        }
        if (conn->unacked && (!conn->works || !chance(f, f->lazy_completions)) && !chance(f, f->lazy_completions))
            acknowledge(conn);
        else if (conn->works)
            do_work(conn);
        return 1;
    }
    return 0;
}

/* ---- Polling ---------------------------------------------------------------------------------- */

/* Of those from before `until`. */
static int take_event(fake_rail_ *r, uint64_t until, gsi_rail_event *out)
{
    fake_fabric *f = r->f;
    uint32_t start = f->nconns ? (uint32_t)(fake_random(f) % f->nconns) : 0;

    for (uint32_t i = 0; i < f->nconns; i++) {
        gsi_conn *conn = f->conns[(start + i) % f->nconns];
        fake_event *e = conn->events;
        if (conn->rail != r || conn->end || !e || e->born > until)
            continue;
        *out = e->e;
        conn->events = e->next;
        if (!conn->events)
            conn->events_tail = &conn->events;
        free(e);
        if (out->kind == GSI_RAIL_SENT)
            conn->in_flight -= conn->quiet[conn->quiet_head++ % 256];
        else if (out->kind == GSI_RAIL_ARRIVED)
            conn->imms--;
        return 1;
    }
    return 0;
}

/* The others go on while this rank has been stopped between two looks. */
static void interlude(fake_rail_ *r)
{
    fake_fabric *f = r->f;

    if (!f->others || f->in_interlude || !f->lazy_polls || fake_random(f) % 400)
        return;
    f->in_interlude = 1;
    f->others(f->others_arg, r->owner);
    f->in_interlude = 0;
}

static int fake_poll(gsi_rail *rail, gsi_rail_event *events, int max)
{
    fake_rail_ *r = rail_of(rail);
    fake_fabric *f = r->f;
    int n = 0;

    for (uint64_t i = fake_random(f) % 8; i > 0 && !f->hold; i--)
        step(f);
    interlude(r);
    /* It may look a moment too early, but never miss what was there when it looked before. */
    uint64_t until = chance(f, f->lazy_polls) ? r->looked : UINT64_MAX;
    r->looked = f->clock;
    while (n < max && take_event(r, until, &events[n]))
        n++;
    return n;
}

static int fake_arm(gsi_rail *rail)
{
    (void)rail;
    return 0;
}

static void fake_disarm(gsi_rail *rail)
{
    (void)rail;
}

static void fake_close(gsi_rail *rail)
{
    fake_rail_ *r = rail_of(rail);

    for (uint32_t c = 0; c < r->f->nconns; c++)
        if (r->f->conns[c]->rail == r && !r->f->conns[c]->end)
            fake_disconnect(r->f->conns[c]);
    for (int i = 0; i < r->nregions; i++)
        if (r->regions[i].live)
            violation(r->f, "a rail is closed with memory registered");
    close(rail->fd);
    r->closed = 1;
}

static const gsi_rail_ops fake_ops = {
    .name = "fake",
    .close = fake_close,
    .reg = fake_reg,
    .dereg = fake_dereg,
    .conn = fake_conn,
    .connect = fake_connect,
    .ready = fake_ready,
    .disconnect = fake_disconnect,
    .write = fake_write,
    .read = fake_read,
    .ring = fake_ring,
    .poll = fake_poll,
    .arm = fake_arm,
    .disarm = fake_disarm,
};

/* ---- The fabric --------------------------------------------------------------------------------- */

fake_fabric *fake_new(uint64_t seed)
{
    fake_fabric *f = calloc(1, sizeof *f);
    if (!f)
        abort();
    f->state = seed;
    return f;
}

gsi_rail *fake_rail(fake_fabric *f, int owner, double gbps, uint32_t max_inline, uint64_t max_bytes)
{
    fake_rail_ *r = calloc(1, sizeof *r);

    if (!r || f->nrails == MAX_RAILS)
        abort();
    r->f = f;
    r->owner = owner;
    for (int i = 0; i < f->nrails; i++)
        r->index += f->rails[i]->owner == owner;
    r->rail = (gsi_rail){.ops = &fake_ops, .fd = eventfd(1, EFD_CLOEXEC), .async_fd = -1, .max_inline = max_inline};
    r->rail.gbps = gbps;
    r->rail.max_bytes = max_bytes;
    r->rail.numa_node = -1;
    snprintf(r->rail.name, sizeof r->rail.name, "fake%d:%d", owner, r->index);
    f->rails[f->nrails++] = r;
    return &r->rail;
}

void fake_free(fake_fabric *f)
{
    for (int i = 0; i < f->nrails; i++) {
        if (!f->rails[i]->closed)
            violation(f, "a rail is never closed");
        free(f->rails[i]);
    }
    for (uint32_t c = 0; c < f->nconns; c++)
        free(f->conns[c]);
    free(f);
}

void fake_lazy(fake_fabric *f, int polls, int completions)
{
    f->lazy_polls = polls;
    f->lazy_completions = completions;
}

void fake_others(fake_fabric *f, void (*fn)(void *arg, int rank), void *arg)
{
    f->others = fn;
    f->others_arg = arg;
}

void fake_fail_at(fake_fabric *f, uint64_t event, int last)
{
    f->fail_at = event;
    f->fail_last = last;
}

void fake_cut(fake_fabric *f, int a, int b)
{
    for (uint32_t c = 0; c < f->nconns; c++) {
        gsi_conn *conn = f->conns[c];
        if (alive(conn) && conn->rail->owner == a && conn->peer->rail->owner == b)
            fail_pair(conn, "the test says so");
    }
}

int fake_refuse_one(fake_fabric *f)
{
    uint32_t start = (uint32_t)(fake_random(f) % f->nconns);

    for (uint32_t i = 0; i < f->nconns; i++) {
        gsi_conn *conn = f->conns[(start + i) % f->nconns];
        if (alive(conn) && !conn->refuses && !conn->peer->refuses && can_be_spared(f, conn)) {
            conn->refuses = 1;
            return 1;
        }
    }
    return 0;
}

void fake_hold(fake_fabric *f, int on)
{
    f->hold = on;
}

int fake_forge(fake_fabric *f, int owner, int from, uint32_t imm)
{
    uint32_t start = (uint32_t)(fake_random(f) % f->nconns);

    for (uint32_t i = 0; i < f->nconns; i++) {
        gsi_conn *conn = f->conns[(start + i) % f->nconns];
        if (!alive(conn) || conn->rail->owner != owner || conn->peer->rail->owner != from)
            continue;
        push_event(conn, &(gsi_rail_event){.kind = GSI_RAIL_ARRIVED, .imm = imm});
        conn->imms++;
        return 0;
    }
    return -1;
}

uint64_t fake_events(const fake_fabric *f)
{
    return f->events;
}

uint64_t fake_failures(const fake_fabric *f)
{
    return f->failures;
}

uint64_t fake_denied(const fake_fabric *f)
{
    return f->denied;
}

uint64_t fake_violations(const fake_fabric *f)
{
    return f->violations;
}

uint64_t fake_most_imm(const fake_fabric *f)
{
    return f->most_imm;
}

uint64_t fake_most_work(const fake_fabric *f)
{
    return f->most_work;
}

uint64_t fake_bytes(const fake_fabric *f, int owner, int index)
{
    for (int i = 0; i < f->nrails; i++)
        if (f->rails[i]->owner == owner && f->rails[i]->index == index)
            return f->rails[i]->bytes;
    return 0;
}
