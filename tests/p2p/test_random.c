/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random traffic, the same script on every rank: messages of random sizes, tags and kinds of memory, blocking and
 * posted, amid puts, gets, signals and collectives; every byte is looked at. Over shared memory as it is, over the
 * protocol for transports that cannot load and store, and over one that is slow and short of room on top.
 *
 * In order: everyone goes through the script from top to bottom, and may block, since the first thing that is not
 * done yet has nobody before it. Shuffled: everything is posted, sends and receives each in the order of the script.
 */
#include "ranks.h"
#include "tap.h"

#include <pthread.h>
#include <string.h>

#include "comm/comm.h"
#include "engine/p2p.h"

enum { MESSAGES = 40, TAGS = 3, POOL = 8 << 20, AREA = 400000, SLOW_JOBS = 6 };

typedef struct script {
    uint64_t seed;
    int rounds, transport; /* 0: as it is, 1: no loads and stores, 2: slow */
} script;

typedef struct message {
    size_t bytes, room; /* room < bytes: too long */
    int src, dst, tag, src_kind, dst_kind, src_posts, dst_posts;
    int collective; /* not a message, but an all-reduce of `bytes` floats */
} message;

static uint64_t next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static unsigned below(uint64_t *state, unsigned n)
{
    return (unsigned)(next(state) % n);
}

static size_t draw_bytes(uint64_t *state)
{
    static const size_t edges[] = {0, 1, 240, 241, 65535, 65536, 65537, 131072, 1 << 20, (1 << 20) + 1};
    switch (below(state, 5)) {
    case 0:
        return edges[below(state, sizeof edges / sizeof *edges)];
    case 1:
        return below(state, 300);
    case 2:
        return below(state, 10000);
    case 3:
        return below(state, 200000);
    default:
        return below(state, 30) ? below(state, 70000) : below(state, 3000000);
    }
}

static void draw_messages(uint64_t *state, int n, message *m)
{
    for (int i = 0; i < MESSAGES; i++) {
        m[i] = (message){.src = (int)below(state, (unsigned)n),
                         .dst = (int)below(state, (unsigned)n),
                         .tag = (int)below(state, TAGS),
                         .bytes = draw_bytes(state),
                         .src_kind = (int)below(state, 3),
                         .dst_kind = (int)below(state, 3),
                         .src_posts = (int)below(state, 2),
                         .dst_posts = (int)below(state, 2)};
        m[i].room = m[i].bytes + (below(state, 2) ? below(state, 100) : 0);
        if (m[i].bytes && !below(state, 25))
            m[i].room = below(state, (unsigned)m[i].bytes);
        if (m[i].src == m[i].dst)
            m[i].src_posts = m[i].dst_posts = 1;
        if (!below(state, 10)) {
            m[i].collective = 1;
            m[i].bytes = 1 + below(state, 3000);
        }
    }
}

static void fill(unsigned char *at, size_t bytes, uint64_t seed)
{
    for (size_t i = 0; i < bytes; i++)
        at[i] = (unsigned char)((i * 2654435761u + seed * 97u) >> 7);
}

static int holds(const unsigned char *at, size_t bytes, uint64_t seed)
{
    for (size_t i = 0; i < bytes; i++)
        if (at[i] != (unsigned char)((i * 2654435761u + seed * 97u) >> 7))
            return 0;
    return 1;
}

/* ---- A transport that is slow ----------------------------------------------------------- */

typedef struct slow_job {
    int used, get, peer, polls, begun;
    uint64_t ticket; /* of the real one, once it has begun */
    uint32_t mem;
    uint64_t off, bytes;
    void *buf;
} slow_job;

typedef struct slow {
    const gsi_endpoint_ops *real;
    gsi_endpoint_ops ops;
    gsi_endpoint *ep;
    uint64_t state;
    int refusals;
    slow_job jobs[SLOW_JOBS];
} slow;

enum { MOST_RANKS = 8 };
static slow slows[MOST_RANKS]; /* by rank: threads have one each */

static slow *slow_of(gsi_endpoint *ep)
{
    return &slows[ep->rank];
}

/* No room, but never for long. */
static int refuse(slow *s)
{
    s->refusals = below(&s->state, 3) ? 0 : s->refusals + 1;
    return s->refusals > 0 && s->refusals < 3;
}

static int slow_mail(gsi_endpoint *ep, int peer, const void *msg, uint32_t bytes)
{
    slow *s = slow_of(ep);
    return refuse(s) ? 0 : s->real->mail(ep, peer, msg, bytes);
}

static int start_job(gsi_endpoint *ep, slow_job job, uint64_t *ticket)
{
    slow *s = slow_of(ep);
    for (uint64_t i = 0; i < SLOW_JOBS; i++)
        if (!s->jobs[i].used && !refuse(s)) {
            job.used = 1;
            job.polls = (int)below(&s->state, 6);
            s->jobs[i] = job;
            *ticket = 1000 + i;
            return 0;
        }
    return GRADSYNC_IN_PROGRESS;
}

static int slow_rput(gsi_endpoint *ep, int peer, uint32_t mem, uint64_t off, const void *src, uint64_t bytes,
                     uint64_t *ticket)
{
    slow_job job = {.peer = peer, .mem = mem, .off = off, .bytes = bytes, .buf = (void *)(uintptr_t)src};
    return start_job(ep, job, ticket);
}

static int slow_rget(gsi_endpoint *ep, int peer, uint32_t mem, uint64_t off, void *dst, uint64_t bytes,
                     uint64_t *ticket)
{
    slow_job job = {.get = 1, .peer = peer, .mem = mem, .off = off, .bytes = bytes, .buf = dst};
    return start_job(ep, job, ticket);
}

/* The bytes move as late as they may. */
static int slow_rdone(gsi_endpoint *ep, uint64_t ticket)
{
    slow *s = slow_of(ep);
    slow_job *job = &s->jobs[ticket - 1000];

    if (job->polls-- > 0)
        return 0;
    if (!job->begun) {
        int rc = job->get ? s->real->rget(ep, job->peer, job->mem, job->off, job->buf, job->bytes, &job->ticket)
                          : s->real->rput(ep, job->peer, job->mem, job->off, job->buf, job->bytes, &job->ticket);
        if (rc == GRADSYNC_IN_PROGRESS)
            return 0;
        job->begun = !rc;
        job->used = !rc;
        if (rc)
            return rc;
    }
    int rc = s->real->rdone(ep, job->ticket);
    job->used = !rc;
    return rc;
}

static void set_transport(gradsync_comm *comm, int transport, uint64_t seed)
{
    gsi_endpoint *ep = comm->engine.ep;

    if (!transport)
        return;
    gradsync_signal(comm, ep->rank, 0); /* makes what is set here */
    comm->engine.p2p->loadstore = 0;
    if (transport == 1)
        return;
    slow *s = &slows[ep->rank];
    *s = (slow){.real = ep->ops, .ops = *ep->ops, .ep = ep, .state = seed + (uint64_t)ep->rank};
    s->ops.mail = slow_mail;
    s->ops.rput = slow_rput;
    s->ops.rget = slow_rget;
    s->ops.rdone = slow_rdone;
    ep->ops = &s->ops;
}

/* ---- One rank ------------------------------------------------------------------------------- */

typedef struct side {
    gradsync_context *ctx;
    gradsync_comm *comm;
    int rank, n, failed;
    uint64_t round_seed;
    unsigned char *pools[3]; /* by kind; [0] is plain memory */
    size_t used[3];
    gradsync_mem *mems[3];
    gradsync_request *requests[2 * MESSAGES];
    int is_send[2 * MESSAGES], which[2 * MESSAGES], nrequests;
    int results[2][MESSAGES];
    unsigned char *out[MESSAGES], *in[MESSAGES];
    uint64_t got[MESSAGES];
    float *sums[MESSAGES];
} side;

static void complain(side *s, const char *what, int index, int rc)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    if (s->failed++ < 5)
        printf("# rank %d, %d: %s: %d, %s\n", s->rank, index, what, rc, info.message);
    fflush(stdout);
}

static unsigned char *take(side *s, int kind, size_t bytes)
{
    if (s->used[kind] + bytes + 8 > POOL)
        kind = 0;
    unsigned char *at = s->pools[kind] + s->used[kind];
    s->used[kind] += bytes + 1; /* a byte to guard; and no alignment at all */
    return at;
}

static void do_send(side *s, const message *m, int i, int posts)
{
    fill(s->out[i], m->bytes, s->round_seed + (uint64_t)i);
    if (!posts) {
        s->results[1][i] = gradsync_send(s->comm, m->dst, s->out[i], m->bytes, m->tag);
        return;
    }
    int rc = gradsync_send_post(s->comm, m->dst, s->out[i], m->bytes, m->tag, &s->requests[s->nrequests]);
    if (rc)
        complain(s, "posting a send", i, rc);
    s->is_send[s->nrequests] = 1;
    s->which[s->nrequests++] = i;
}

static void do_recv(side *s, const message *m, int i, int posts)
{
    memset(s->in[i], 0xee, m->room + 1);
    s->got[i] = UINT64_MAX;
    if (!posts) {
        s->results[0][i] = gradsync_recv(s->comm, m->src, s->in[i], m->room, m->tag, &s->got[i]);
        return;
    }
    int rc = gradsync_recv_post(s->comm, m->src, s->in[i], m->room, m->tag, &s->got[i], &s->requests[s->nrequests]);
    if (rc)
        complain(s, "posting a receive", i, rc);
    s->is_send[s->nrequests] = 0;
    s->which[s->nrequests++] = i;
}

static void do_collective(side *s, const message *m, int i, int posts)
{
    s->sums[i] = malloc(m->bytes * sizeof(float));
    for (size_t k = 0; k < m->bytes; k++)
        s->sums[i][k] = (float)(s->rank + 1);
    if (posts) {
        int rc = gradsync_all_reduce_post(s->comm, s->sums[i], s->sums[i], m->bytes, GRADSYNC_F32, GRADSYNC_SUM, NULL,
                                          &s->requests[s->nrequests]);
        if (rc)
            complain(s, "posting an all-reduce", i, rc);
        s->is_send[s->nrequests] = 1;
        s->which[s->nrequests++] = i;
    } else {
        s->results[1][i] =
            gradsync_all_reduce(s->comm, s->sums[i], s->sums[i], m->bytes, GRADSYNC_F32, GRADSYNC_SUM, NULL);
    }
}

static void run_in_order(side *s, const message *m)
{
    for (int i = 0; i < MESSAGES; i++) {
        if (m[i].collective) {
            do_collective(s, &m[i], i, m[i].src_posts);
            continue;
        }
        /* To itself: the receive first, by turns. */
        if (m[i].dst == s->rank && m[i].src == s->rank && m[i].tag == 1)
            do_recv(s, &m[i], i, 1);
        if (m[i].src == s->rank)
            do_send(s, &m[i], i, m[i].src_posts);
        if (m[i].dst == s->rank && (m[i].src != s->rank || m[i].tag != 1))
            do_recv(s, &m[i], i, m[i].dst_posts);
    }
}

static void run_shuffled(side *s, const message *m, uint64_t *own)
{
    int at[3] = {0, 0, 0}; /* in the script: sends, receives, collectives */

    while (at[0] < MESSAGES || at[1] < MESSAGES || at[2] < MESSAGES) {
        int which = (int)below(own, 3), i = at[which]++;
        if (i >= MESSAGES)
            continue;
        if (which == 0 && !m[i].collective && m[i].src == s->rank)
            do_send(s, &m[i], i, 1);
        else if (which == 1 && !m[i].collective && m[i].dst == s->rank)
            do_recv(s, &m[i], i, 1);
        else if (which == 2 && m[i].collective)
            do_collective(s, &m[i], i, 1);
    }
}

static void check_messages(side *s, const message *m)
{
    for (int k = 0; k < s->nrequests; k++) {
        s->results[s->is_send[k]][s->which[k]] = gradsync_wait(s->requests[k]);
        gradsync_request_free(s->requests[k]);
    }
    for (int i = 0; i < MESSAGES; i++) {
        int fits = m[i].room >= m[i].bytes, sent = s->results[1][i], received = s->results[0][i];
        if (m[i].collective) {
            int want_sum = s->n * (s->n + 1) / 2;
            float want = (float)want_sum;
            for (size_t k = 0; k < m[i].bytes; k++)
                if (sent || s->sums[i][k] != want) {
                    complain(s, "an all-reduce", i, sent);
                    break;
                }
            free(s->sums[i]);
            continue;
        }
        if (m[i].src == s->rank && sent && (fits || sent != GRADSYNC_ERR_MISMATCH))
            complain(s, "a send", i, sent);
        if (m[i].dst != s->rank)
            continue;
        if (received != (fits ? 0 : GRADSYNC_ERR_MISMATCH))
            complain(s, "a receive", i, received);
        if (fits && (s->got[i] != m[i].bytes || !holds(s->in[i], m[i].bytes, s->round_seed + (uint64_t)i)))
            complain(s, "what was received", i, (int)s->got[i]);
        for (size_t k = fits ? m[i].bytes : 0; k <= m[i].room; k++)
            if (s->in[i][k] != 0xee) {
                complain(s, "a byte that was not sent", i, (int)k);
                break;
            }
    }
}

/* Everyone puts pieces into everyone's memory, signals, and looks at what it got; then gets pieces back. */
static void run_access(side *s, const gradsync_key *keys, unsigned char *area, uint64_t *shared, uint64_t signals)
{
    enum { PIECES = 6 };
    unsigned char *src = malloc(AREA), *dst = malloc(AREA);
    size_t cuts[PIECES + 1] = {0};
    gradsync_request *requests[PIECES];

    for (int i = 1; i <= PIECES; i++)
        cuts[i] = i == PIECES ? AREA : cuts[i - 1] + below(shared, (unsigned)(AREA - cuts[i - 1] + 1));
    uint64_t blocking = next(shared);
    for (int r = 0; r < s->n; r++) {
        int to = (s->rank + r) % s->n, posted = 0;
        fill(src, AREA, s->round_seed ^ (uint64_t)(s->rank * 64 + to));
        for (int i = 0; i < PIECES; i++) {
            uint64_t off = (uint64_t)AREA * (uint64_t)s->rank + cuts[i], bytes = cuts[i + 1] - cuts[i];
            int rc = blocking >> i & 1
                         ? gradsync_put(s->comm, to, src + cuts[i], &keys[to], off, bytes)
                         : gradsync_put_post(s->comm, to, src + cuts[i], &keys[to], off, bytes, &requests[posted++]);
            if (rc)
                complain(s, "a put", i, rc);
        }
        if (gradsync_signal(s->comm, to, 7))
            complain(s, "a signal", to, -1);
        if (gradsync_wait_all(requests, (size_t)posted))
            complain(s, "posted puts", to, -1);
        for (int i = 0; i < posted; i++)
            gradsync_request_free(requests[i]);
    }
    for (int r = 0; r < s->n; r++) {
        if (gradsync_wait_signal(s->comm, r, 7, signals))
            complain(s, "waiting for a signal", r, -1);
        if (!holds(area + (size_t)AREA * (size_t)r, AREA, s->round_seed ^ (uint64_t)(r * 64 + s->rank)))
            complain(s, "what was put", r, 0);
    }
    if (gradsync_barrier(s->comm, NULL))
        complain(s, "a barrier", 0, -1);
    for (int i = 0; i < PIECES; i++) {
        int of = (int)below(shared, (unsigned)s->n), writer = (int)below(shared, (unsigned)s->n);
        size_t bytes = cuts[i + 1] - cuts[i];
        int rc = gradsync_get(s->comm, of, dst, &keys[of], (uint64_t)AREA * (uint64_t)writer + cuts[i], bytes);
        fill(src, AREA, s->round_seed ^ (uint64_t)(writer * 64 + of));
        if (rc || memcmp(dst, src + cuts[i], bytes))
            complain(s, "a get", i, rc);
    }
    if (gradsync_barrier(s->comm, NULL))
        complain(s, "a barrier", 0, -1);
    free(src);
    free(dst);
}

static int set_up(side *s, gradsync_mem **area, gradsync_key *keys)
{
    gradsync_mem_config remap = GRADSYNC_MEM_CONFIG_INIT;
    gradsync_key own;

    remap.flags = GRADSYNC_MEM_REMAP;
    s->pools[0] = malloc((size_t)POOL * 12); /* plain memory takes what finds no room elsewhere */
    s->pools[2] = aligned_alloc(4096, POOL);
    if (gradsync_mem_alloc(s->ctx, POOL, NULL, &s->mems[1]) ||
        gradsync_mem_register(s->ctx, s->pools[2], POOL, &remap, &s->mems[2]) ||
        gradsync_mem_alloc(s->ctx, (size_t)AREA * (size_t)s->n, NULL, area) || gradsync_mem_key(s->comm, *area, &own) ||
        gradsync_all_gather(s->comm, &own, keys, sizeof own, GRADSYNC_U8, NULL))
        return -1;
    s->pools[1] = gradsync_mem_addr(s->mems[1]);
    return 0;
}

static int run_rank(ranks_world *world, int rank, void *arg)
{
    const script *plan = arg;
    side *s = calloc(1, sizeof *s);
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    message messages[MESSAGES];
    gradsync_mem *area;
    gradsync_key keys[MOST_RANKS];
    uint64_t shared = plan->seed, own = plan->seed * 31 + (uint64_t)rank;

    config.timeout_ms = 120000;
    s->rank = rank;
    s->n = ranks_count(world);
    s->comm = ranks_comm(world, rank, &config, &s->ctx);
    if (!s->comm)
        return 1;
    set_transport(s->comm, plan->transport, plan->seed);
    if (set_up(s, &area, keys)) {
        complain(s, "setting up", 0, -1);
        return 1;
    }
    for (int round = 0; round < plan->rounds && !s->failed; round++) {
        draw_messages(&shared, s->n, messages);
        s->round_seed = next(&shared);
        s->nrequests = 0;
        memset(s->results, 0, sizeof s->results);
        s->used[0] = s->used[1] = s->used[2] = 0;
        for (int i = 0; i < MESSAGES; i++) {
            const message *m = &messages[i];
            if (!m->collective && m->src == rank)
                s->out[i] = take(s, m->src_kind, m->bytes);
            if (!m->collective && m->dst == rank)
                s->in[i] = take(s, m->dst_kind, m->room);
        }
        if (round % 2)
            run_shuffled(s, messages, &own);
        else
            run_in_order(s, messages);
        check_messages(s, messages);
        if (round % 4 == 3)
            run_access(s, keys, gradsync_mem_addr(area), &shared, (uint64_t)round / 4 + 1);
    }
    int failed = s->failed;
    gradsync_comm_destroy(s->comm);
    gradsync_mem_free(area);
    gradsync_mem_free(s->mems[1]);
    gradsync_mem_deregister(s->mems[2]);
    failed += gradsync_context_destroy(s->ctx) != 0;
    free(s->pools[0]);
    free(s->pools[2]);
    free(s);
    return failed;
}

int main(int argc, char **argv)
{
    static const char *const transports[] = {"the transport as it is", "puts and gets", "slow puts and gets"};
    int env = argc > 1 && !strcmp(argv[1], "--env"); /* this process is one rank of a job that is started already */
    int rounds = argc > 1 + env ? atoi(argv[1 + env]) : 16;

    if (env) {
        script s = {.seed = 99, .rounds = rounds};
        tap_ok(!ranks_run_environment(run_rank, &s), "%d rounds of random traffic with the ranks of the environment",
               rounds);
        return tap_done();
    }
    for (int transport = 0; transport < 3; transport++)
        for (int n = 1; n <= 5; n += n < 3 ? 1 : 2) {
            script s = {.seed = 1000u + (uint64_t)(n * 10 + transport), .rounds = rounds, .transport = transport};
            tap_ok(!ranks_run_processes(n, run_rank, &s), "%d rounds of random traffic over %s: %d processes", rounds,
                   transports[transport], n);
            s.seed += 5000;
            tap_ok(!ranks_run_threads(n, run_rank, &s), "%d rounds of random traffic over %s: %d threads", rounds,
                   transports[transport], n);
        }
    return tap_done();
}
