/* SPDX-License-Identifier: Apache-2.0 */
#include "world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "plan/plan.h"
#include "transport/net/create.h"

enum { STREAMS = 2, PUTS = 4, MAX_LANES = 4, PATIENCE = 300000 };

uint64_t world_mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9e3779b97f4a7c15u + b + 0x632be59bd9b4e019u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* ---- Making ------------------------------------------------------------------------ */

static int prove(world *w, char *why, size_t room)
{
    for (int tries = 0; tries < 100000; tries++) {
        int proven = 0;
        for (int r = 0; r < w->o.n; r++) {
            int rc = gsi_net_prove(w->eps[r], 0);
            proven += !rc;
            if (rc && rc != GRADSYNC_ERR_TIMEOUT) {
                gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
                gradsync_last_error(&info);
                snprintf(why, room, "%.200s", info.message);
                return -1;
            }
        }
        if (proven == w->o.n)
            return 0;
    }
    snprintf(why, room, "the connections do not prove themselves");
    return -1;
}

static void count_warning(void *arg, int level, const char *message)
{
    world *w = arg;
    (void)level;
    if (!w->warnings++)
        snprintf(w->warning, sizeof w->warning, "%s", message);
}

int world_make(world *w, const world_options *o, char *why, size_t room)
{
    gsi_net_card cards[WORLD_RANKS];
    gsi_net_row(*rows)[WORLD_RANKS] = calloc(WORLD_RANKS, sizeof *rows);
    gsi_net_peer peers[WORLD_RANKS] = {{.pid = 1, .host = "somewhere"}};
    int rc = 0;

    memset(w, 0, sizeof *w);
    w->o = *o;
    w->fabric = fake_new(o->seed);
    w->log = (gsi_log){count_warning, w, GRADSYNC_LOG_WARN};
    for (int r = 0; !rc && r < o->n; r++) {
        gsi_net_pairs pairs[WORLD_RANKS] = {{0}};
        gsi_net_config config = {
            .rank = r, .n = o->n, .nrails = o->rails, .pairs = pairs, .peers = peers, .log = &w->log};
        for (int k = 0; k < o->rails; k++)
            config.rails[k] = fake_rail(w->fabric, r, o->gbps[k], o->max_inline, o->max_bytes);
        for (int p = 0; p < o->n; p++) {
            pairs[p].count = p == r ? 0 : o->rails;
            for (int k = 0; k < o->rails; k++) {
                int there = o->crossed ? (k + 1 + r + p) % o->rails : k;
                pairs[p].mine[k] = (uint8_t)(r < p ? k : there);
                pairs[p].theirs[k] = (uint8_t)(r < p ? there : k);
            }
        }
        rc = gsi_net_prepare(&config, &cards[r], rows[r], &w->eps[r]);
    }
    for (int r = 0; !rc && r < o->n; r++) {
        gsi_net_row theirs[WORLD_RANKS];
        for (int p = 0; p < o->n; p++)
            theirs[p] = rows[p][r];
        rc = gsi_net_join(w->eps[r], cards, theirs);
    }
    free(rows);
    if (rc)
        snprintf(why, room, "cannot be made: %d", rc);
    return rc ? -1 : prove(w, why, room);
}

void world_end(world *w)
{
    for (int r = 0; r < w->o.n; r++)
        if (w->eps[r])
            w->eps[r]->ops->destroy(w->eps[r]);
    fake_free(w->fabric);
}

/* ---- What is sent ----------------------------------------------------------------------- */

/* The puts of one stream from one rank to another in one collective. The last one signals. */
typedef struct script {
    int puts, signals;
    uint64_t bytes[PUTS], all;
    int notify[PUTS];
    uint64_t pattern;
} script;

static int uses_stage(const world_options *o, uint64_t seq)
{
    return world_mix(o->seed, seq) % 3 == 0;
}

static uint64_t room_of(const world *w, uint64_t seq)
{
    uint64_t stage = w->eps[0]->stage_bytes / w->eps[0]->lanes / (uint64_t)w->o.n / STREAMS;
    uint64_t memory = w->o.longest + 8192;
    return uses_stage(&w->o, seq) && stage < memory ? stage : memory;
}

static script make_script(const world *w, uint64_t seq, int from, int to, int stream)
{
    uint64_t pattern = world_mix(world_mix(w->o.seed, seq), (uint64_t)from * 64 + (uint64_t)to * 8 + (uint64_t)stream);
    script s = {.pattern = pattern, .puts = (int)(pattern % (PUTS + 1))};
    uint64_t room = room_of(w, seq);

    for (int i = 0; i < s.puts; i++) {
        uint64_t r = world_mix(pattern, (uint64_t)i), most = w->o.longest;
        if (r % 4)
            most = most < 3000 ? most : 3000;
        s.bytes[i] = r % 16 == 0 ? 0 : (r >> 8) % (most + 1);
        if (s.bytes[i] > room - s.all)
            s.bytes[i] = room - s.all;
        s.notify[i] = i == s.puts - 1 || (r >> 40) % 2;
        s.all += s.bytes[i];
        s.signals += s.notify[i];
    }
    return s;
}

static void fill(char *at, uint64_t bytes, uint64_t pattern)
{
    for (uint64_t i = 0; i < bytes; i += 8) {
        uint64_t word = world_mix(pattern, i);
        memcpy(at + i, &word, bytes - i < 8 ? bytes - i : 8);
    }
}

static int differs(const char *at, uint64_t bytes, uint64_t pattern)
{
    for (uint64_t i = 0; i < bytes; i += 8) {
        uint64_t word = world_mix(pattern, i);
        if (memcmp(at + i, &word, bytes - i < 8 ? bytes - i : 8))
            return 1;
    }
    return 0;
}

static uint64_t payload_bytes(const world *w, uint64_t seq)
{
    uint64_t r = world_mix(w->o.seed + 5, seq);
    if (!uses_stage(&w->o, seq))
        return 0; /* the header names memory */
    return r % 3 == 0 ? 0 : r % 3 == 1 ? 1 + (r >> 8) % GSI_INLINE_BYTES : (r >> 8) % w->eps[0]->slot_bytes;
}

/* ---- One rank's part ------------------------------------------------------------------------ */

typedef struct part {
    uint64_t seq;
    int phase, next;
    gsi_memory send, recv; /* as the context's register would know it */
    int shared;
    char *payload;
} part;

enum { PREPARE, ENTER, ENTERED, WAIT, OVER };

typedef struct member {
    part parts[MAX_LANES];
    uint64_t entered, finished;
    gsi_memory send[MAX_LANES], recv[MAX_LANES]; /* kept from collective to collective, unless `fresh` */
    int shared[MAX_LANES];
    uint32_t last_id;
} member;

static int prepare(world *w, member *m, int rank, part *p)
{
    int lane = (int)(p->seq % w->eps[0]->lanes);
    uint64_t bytes = (uint64_t)w->o.n * STREAMS * (w->o.longest + 8192);
    gsi_endpoint *ep = w->eps[rank];

    if (!m->send[lane].addr) {
        gsi_memory *both[] = {&m->send[lane], &m->recv[lane]};
        for (int i = 0; i < 2; i++) {
            char *addr = malloc(bytes);
            memset(addr, 0x5a, bytes);
            *both[i] = (gsi_memory){.id = ++m->last_id, .addr = addr, .bytes = bytes, .fd = -1};
        }
        m->shared[lane] = 0;
    }
    p->send = m->send[lane];
    p->recv = m->recv[lane];
    while (m->shared[lane] < 2) {
        int rc = m->shared[lane] == 0 && w->o.plain ? 0 : ep->ops->share(ep, m->shared[lane] ? &p->recv : &p->send);
        if (rc == GRADSYNC_IN_PROGRESS)
            return 0;
        if (rc)
            return rc;
        m->shared[lane]++;
    }
    return 1;
}

static void enter(world *w, int rank, part *p)
{
    gsi_endpoint *ep = w->eps[rank];
    uint64_t bytes = payload_bytes(w, p->seq);
    gsi_header header = {.fingerprint = world_mix(p->seq, 1), .count = p->seq, .scale = 1 + rank};

    header.done = (uint32_t)(p->seq - 1 < ep->lanes ? 0 : p->seq - ep->lanes);
    header.u.mem.recv = p->recv.id;
    p->payload = malloc(bytes + 1);
    fill(p->payload, bytes, world_mix(p->seq, 100 + (uint64_t)rank));
    ep->ops->enter(ep, p->seq, &header, p->payload, bytes);
    /* It must have been copied. */
    memset(p->payload, 0, bytes);
    free(p->payload);
}

static int headers_wrong(world *w, int rank, const part *p)
{
    gsi_endpoint *ep = w->eps[rank];
    uint64_t bytes = payload_bytes(w, p->seq);

    for (int r = 0; r < w->o.n; r++) {
        const gsi_header *h = ep->ops->header(ep, p->seq, r);
        if (h->fingerprint != world_mix(p->seq, 1) || h->count != p->seq || h->scale < 1 + r || h->scale > 1 + r)
            return 1;
        if (bytes && differs(ep->ops->slot(ep, p->seq, r, bytes), bytes, world_mix(p->seq, 100 + (uint64_t)r)))
            return 1;
    }
    return 0;
}

static int post_puts(world *w, int rank, const part *p)
{
    gsi_endpoint *ep = w->eps[rank];
    char *at = p->send.addr;

    for (int to = 0; to < w->o.n; to++)
        for (int stream = 0; stream < STREAMS && to != rank; stream++) {
            script s = make_script(w, p->seq, rank, to, stream);
            uint64_t lane = uses_stage(&w->o, p->seq) ? p->seq % ep->lanes : 0;
            uint64_t off =
                ((lane * (uint64_t)w->o.n + (uint64_t)rank) * STREAMS + (uint64_t)stream) * room_of(w, p->seq);
            gsi_target target = {.off = off, .space = uses_stage(&w->o, p->seq) ? GSI_STAGE : GSI_RECV};
            if (target.space != GSI_STAGE)
                target.mem = ep->ops->header(ep, p->seq, to)->u.mem.recv;
            fill(at, s.all, s.pattern);
            for (int i = 0; i < s.puts; i++) {
                int rc = ep->ops->put(ep, p->seq, stream, to, &target, at, s.bytes[i], s.notify[i]);
                if (rc)
                    return rc;
                at += s.bytes[i];
                target.off += s.bytes[i];
            }
        }
    if (world_mix(p->seq, 9) % 2)
        ep->ops->signal_all(ep, p->seq);
    return 0;
}

/* 1: all have come and the sources are free; 0: not yet; -1: wrong. */
static int arrived(world *w, int rank, const part *p)
{
    gsi_endpoint *ep = w->eps[rank];
    uint32_t all = world_mix(p->seq, 9) % 2;

    for (int from = 0; from < w->o.n; from++)
        for (int stream = 0; stream < STREAMS && from != rank; stream++) {
            uint32_t want = (uint32_t)make_script(w, p->seq, from, rank, stream).signals;
            uint32_t got = ep->ops->signals(ep, p->seq, stream, from, 0);
            uint32_t got_all = ep->ops->signals(ep, p->seq, 0, from, 1);
            if (got > want || got_all > all)
                return -1;
            if (got < want || got_all < all)
                return 0;
        }
    for (int stream = 0; stream < STREAMS; stream++)
        if (!ep->ops->flushed(ep, p->seq, stream, -1))
            return 0;
    return 1;
}

static int data_wrong(world *w, int rank, const part *p)
{
    gsi_endpoint *ep = w->eps[rank];
    const char *base = uses_stage(&w->o, p->seq) ? ep->ops->stage(ep, rank) : p->recv.addr;
    uint64_t lane = uses_stage(&w->o, p->seq) ? p->seq % ep->lanes : 0;

    for (int from = 0; from < w->o.n; from++)
        for (int stream = 0; stream < STREAMS && from != rank; stream++) {
            script s = make_script(w, p->seq, from, rank, stream);
            uint64_t off =
                ((lane * (uint64_t)w->o.n + (uint64_t)from) * STREAMS + (uint64_t)stream) * room_of(w, p->seq);
            if (differs(base + off, s.all, s.pattern))
                return 1;
        }
    return 0;
}

/* What the sources hold now must not reach anybody any more. */
static void let_go(world *w, member *m, int rank, const part *p, int all)
{
    gsi_endpoint *ep = w->eps[rank];
    int lane = (int)(p->seq % ep->lanes);

    memset(m->send[lane].addr, 0xee, m->send[lane].bytes);
    memset(m->recv[lane].addr, 0xee, m->recv[lane].bytes);
    if (!w->o.fresh && !all)
        return;
    ep->ops->unshare(ep, m->send[lane].id);
    ep->ops->unshare(ep, m->recv[lane].id);
    free(m->send[lane].addr);
    free(m->recv[lane].addr);
    m->send[lane].addr = m->recv[lane].addr = NULL;
}

static int wrong(world_result *out, int rank, const part *p, const char *what)
{
    out->end = WORLD_WRONG;
    snprintf(out->text, sizeof out->text, "rank %d, collective %llu: %s", rank, (unsigned long long)p->seq, what);
    return -1;
}

/* As far as it goes: 1 if something was done, -1 at an error. */
static int advance(world *w, member *m, int rank, part *p, world_result *out)
{
    gsi_endpoint *ep = w->eps[rank];
    int rc;

    switch (p->phase) {
    case PREPARE:
        rc = prepare(w, m, rank, p);
        p->phase += rc > 0;
        return rc < 0 ? wrong(out, rank, p, "memory cannot be shared") : rc;
    case ENTER:
        if (m->entered + 1 != p->seq)
            return 0;
        enter(w, rank, p);
        m->entered = p->seq;
        p->next = 0;
        p->phase++;
        return 1;
    case ENTERED:
        if (!ep->ops->entered(ep, p->seq, &p->next))
            return 0;
        if (headers_wrong(w, rank, p))
            return wrong(out, rank, p, "another header or payload than was sent");
        if (post_puts(w, rank, p))
            return wrong(out, rank, p, "a put was refused");
        p->phase++;
        return 1;
    case WAIT:
        rc = arrived(w, rank, p);
        if (rc < 0)
            return wrong(out, rank, p, "more signals than were sent");
        if (!rc || m->finished + 1 != p->seq)
            return 0;
        if (data_wrong(w, rank, p))
            return wrong(out, rank, p, "other bytes than were sent");
        m->finished = p->seq;
        ep->ops->finish(ep, p->seq);
        let_go(w, m, rank, p, p->seq + ep->lanes > (uint64_t)w->o.collectives);
        p->phase++;
        return 1;
    default:
        return 0;
    }
}

/* ---- All of it ---------------------------------------------------------------------------------- */

static int run_rank(world *w, member *m, int rank, world_result *out)
{
    gsi_endpoint *ep = w->eps[rank];
    int moved = ep->ops->progress(ep);
    uint64_t newest = m->finished;

    for (uint32_t i = 0; i < ep->lanes; i++) {
        uint64_t seq = m->finished + 1 + i;
        part *p = &m->parts[seq % ep->lanes];
        if (seq > (uint64_t)w->o.collectives)
            break;
        if (p->seq != seq) {
            if ((seq > ep->lanes && ep->ops->done(ep) < seq - ep->lanes) || newest + 1 != seq)
                break;
            *p = (part){.seq = seq};
        }
        newest = seq;
        int rc = advance(w, m, rank, p, out);
        if (rc < 0)
            return -1;
        moved |= rc;
    }
    return moved;
}

static int look_for_losses(world *w, const member *members, world_result *out)
{
    for (int r = 0; r < w->o.n; r++) {
        gsi_endpoint *ep = w->eps[r];
        if (members[r].finished >= (uint64_t)w->o.collectives)
            continue;
        if (ep->ops->check(ep, members[r].finished + 1, &out->culprit, out->text, sizeof out->text)) {
            out->end = WORLD_LOST;
            out->teller = r;
            return 1;
        }
    }
    return 0;
}

static int all_done(const world *w, const member *members)
{
    for (int r = 0; r < w->o.n; r++)
        if (members[r].finished < (uint64_t)w->o.collectives)
            return 0;
    return 1;
}

static void note_figures(world *w, world_result *out)
{
    out->warnings = w->warnings;
    if (w->warnings && !out->text[0])
        snprintf(out->text, sizeof out->text, "%s", w->warning);
    out->events = fake_events(w->fabric);
    out->failures = fake_failures(w->fabric);
    out->violations = fake_violations(w->fabric);
    out->denied = fake_denied(w->fabric);
    out->most_imm = fake_most_imm(w->fabric);
    out->most_work = fake_most_work(w->fabric);
    for (int i = 0; i < w->o.rails; i++)
        out->bytes[i] = fake_bytes(w->fabric, 0, i);
}

/* More failures, as the options want them. */
static void disturb(world *w, uint64_t *next_failure, int *refuse)
{
    if (w->o.fail_every && *next_failure && fake_events(w->fabric) > *next_failure) {
        *next_failure = fake_events(w->fabric) + w->o.fail_every;
        fake_fail_at(w->fabric, *next_failure, w->o.fail_last);
    }
    if (*refuse && fake_random(w->fabric) % 50 == 0 && fake_refuse_one(w->fabric))
        --*refuse;
}

typedef struct run {
    world *w;
    member *members;
    world_result *out;
    int failed;
} run;

/* All but `rank` for a while. */
static void go_on(void *arg, int rank)
{
    run *all = arg;

    for (int i = 0; i < 200; i++)
        for (int r = 0; r < all->w->o.n; r++)
            if (r != rank && !all->failed && run_rank(all->w, &all->members[r], r, all->out) < 0)
                all->failed = 1;
}

void world_run(const world_options *o, world_result *out)
{
    world w;
    member members[WORLD_RANKS] = {{.entered = 0}};
    int idle = 0, refuse = o->refuse;

    memset(out, 0, sizeof *out);
    if (world_make(&w, o, out->text, sizeof out->text)) {
        out->end = WORLD_STUCK;
        world_end(&w);
        return;
    }
    run all = {&w, members, out, 0};
    fake_lazy(w.fabric, o->lazy, o->lazy);
    fake_others(w.fabric, go_on, &all);
    uint64_t next_failure = o->fail_at ? fake_events(w.fabric) + o->fail_at : 0;
    fake_fail_at(w.fabric, next_failure, o->fail_last);
    for (int i = 0; !all_done(&w, members); i++) {
        int rank = (int)(fake_random(w.fabric) % (uint64_t)o->n), rc = run_rank(&w, &members[rank], rank, out);
        idle = rc ? 0 : idle + 1;
        disturb(&w, &next_failure, &refuse);
        if (rc < 0 || all.failed || ((idle > 50 || i % 512 == 0) && look_for_losses(&w, members, out)))
            break;
        if (idle > PATIENCE || i > 3000000) {
            out->end = WORLD_STUCK;
            snprintf(out->text, sizeof out->text, "stuck: finished %llu %llu %llu %llu",
                     (unsigned long long)members[0].finished, (unsigned long long)members[1].finished,
                     (unsigned long long)members[2].finished, (unsigned long long)members[3].finished);
            break;
        }
    }
    fake_others(w.fabric, NULL, NULL);
    for (int i = 0; i < 100 * o->n;
         i++) /* what is still on its way: who ends waits for it, and the others do not move then */
        w.eps[i % o->n]->ops->progress(w.eps[i % o->n]);
    note_figures(&w, out);
    world_end(&w);
    for (int r = 0; r < o->n; r++) /* an early end left them */
        for (int l = 0; l < MAX_LANES; l++) {
            free(members[r].send[l].addr);
            free(members[r].recv[l].addr);
        }
}
