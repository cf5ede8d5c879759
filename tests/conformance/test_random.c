/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random collectives: every collective, dtype, op, algorithm, kind and alignment of memory, in and
 * out of place, blocking and posted with several outstanding, 1 to 9 ranks as processes and as
 * threads; each result compared bit for bit with the independent reference.
 *
 *   test_random [--count N] [--seed S] [--ranks N] [--threads | --processes]
 *               [--between TRANSPORT]
 *   test_random --env [--between TRANSPORT] [--count N] [--seed S]
 *
 * With --env the process is one rank of a job that somebody else has started (gradsync-run, or
 * the lab of tests/rdma), and runs N collectives with the others. --between names the transport
 * that peers on other hosts (see TEST_HOSTS in ranks.h) must be reached by, and says that there
 * must be such peers.
 */
#include "ranks.h"
#include "reference.h"
#include "tap.h"

#include <string.h>

enum { GUARD = 64, MAX_POSTED = 6, MAX_BYTES = 6 << 20 };

typedef struct plan {
    uint64_t seed;
    int count;
    const char *between; /* the transport to peers on other hosts; NULL: any */
} plan;

/* One collective as all ranks see it, and as this rank sees it. */
typedef struct job {
    reference_case c;
    int algo, ordered, posted;
    int in_place, kind, misalign; /* this rank's own */
    gradsync_mem *mems[2];
    unsigned char *room[2]; /* with guards and misalignment */
    unsigned char *send, *recv;
    uint64_t send_bytes, recv_bytes, room_bytes[2];
    void *plain[2];
    gradsync_request *request;
} job;

static uint64_t pick_count(uint64_t r, size_t size)
{
    uint64_t kind = r % 100, v = r >> 8;
    if (kind < 8)
        return 0;
    if (kind < 25)
        return 1 + v % 9;
    if (kind < 70)
        return 1 + v % 600;
    if (kind < 94)
        return 1 + v % 20000;
    return 1 + v % (MAX_BYTES / 8 / size);
}

static job make_job(uint64_t seed, int n, int rank)
{
    uint64_t i = 0;
    job j = {.c = {.seed = reference_random(seed, i++), .n = n}};
    reference_case *c = &j.c;

    c->coll = (int)(reference_random(seed, i++) % GRADSYNC_COLL_COUNT);
    if (c->coll != GRADSYNC_ALL_REDUCE && reference_random(seed, i++) % 2)
        c->coll = GRADSYNC_ALL_REDUCE;
    c->dtype = (int)(reference_random(seed, i++) % GRADSYNC_DTYPE_COUNT);
    c->op = (int)(reference_random(seed, i++) % GRADSYNC_OP_COUNT);
    c->root = (int)(reference_random(seed, i++) % (uint64_t)n);
    c->count = pick_count(reference_random(seed, i++), gradsync_dtype_size(c->dtype));
    int reduces = c->coll == GRADSYNC_ALL_REDUCE || c->coll == GRADSYNC_REDUCE_SCATTER || c->coll == GRADSYNC_REDUCE;
    if (c->coll == GRADSYNC_REDUCE_SCATTER || c->coll == GRADSYNC_ALL_GATHER)
        c->count = (c->count + (uint64_t)n - 1) / (uint64_t)n;
    if (c->coll == GRADSYNC_BARRIER)
        c->count = 0;
    if (c->op == GRADSYNC_PREMUL_SUM && (!reduces || c->dtype > GRADSYNC_BF16))
        c->op = GRADSYNC_SUM;
    j.ordered = reference_random(seed, i++) % 3 == 0;
    j.algo =
        reference_random(seed, i++) % 3 ? GRADSYNC_ALGO_AUTO : (int)(reference_random(seed, i++) % GRADSYNC_ALGO_COUNT);
    j.posted = reference_random(seed, i++) % 2;
    c->scaled = c->op == GRADSYNC_PREMUL_SUM ||
                (reduces && c->dtype <= GRADSYNC_BF16 && (c->op == GRADSYNC_SUM || c->op == GRADSYNC_AVG) &&
                 reference_random(seed, i++) % 4 == 0);
    for (int r = 0; r < n; r++)
        c->scale[r] = (double)(1 << reference_random(seed, i++) % (c->dtype == GRADSYNC_BF16 ? 2 : 3));
    /* Bits that depend on the order are only promised in the canonical one. */
    c->data = j.ordered ? REFERENCE_WILD : REFERENCE_EXACT;
    uint64_t own = reference_random(seed, 1000 + (uint64_t)rank);
    j.in_place = own % 2;
    j.kind = (int)((own >> 8) % 3);
    j.misalign = own >> 16 & 1 ? (int)(own >> 17 & 63) : 0;
    return j;
}

/* Room for bytes between guards; library, remapped or plain memory. */
static int make_room(gradsync_context *ctx, job *j, int which, uint64_t bytes)
{
    uint64_t total = bytes + 2 * GUARD + 64;
    j->room_bytes[which] = total;
    if (j->kind == 1) {
        if (gradsync_mem_alloc(ctx, total, NULL, &j->mems[which]))
            return -1;
        j->room[which] = gradsync_mem_addr(j->mems[which]);
    } else {
        j->room[which] = j->plain[which] = malloc(total);
        gradsync_mem_config config = GRADSYNC_MEM_CONFIG_INIT;
        config.flags = GRADSYNC_MEM_REMAP;
        if (j->kind == 2 && total >= 256 << 10 &&
            gradsync_mem_register(ctx, j->room[which], total, &config, &j->mems[which]))
            return -1;
    }
    memset(j->room[which], 0xa5, total);
    return 0;
}

static int prepare(gradsync_context *ctx, job *j, int rank)
{
    reference_case *c = &j->c;
    size_t size = gradsync_dtype_size(c->dtype);
    int at = GUARD + j->misalign;

    j->send_bytes = reference_send_count(c, rank) * size;
    j->recv_bytes = reference_recv_count(c, rank) * size;
    if (!j->send_bytes || !j->recv_bytes)
        j->in_place = 0;
    uint64_t longer = j->send_bytes > j->recv_bytes ? j->send_bytes : j->recv_bytes;
    if (make_room(ctx, j, 0, j->in_place ? longer : j->send_bytes) ||
        (!j->in_place && make_room(ctx, j, 1, j->recv_bytes)))
        return -1;
    j->send = j->room[0] + at;
    j->recv = j->in_place ? j->send : j->room[1] + at;
    if (j->in_place && c->coll == GRADSYNC_REDUCE_SCATTER)
        j->recv += (uint64_t)rank * c->count * size;
    if (j->in_place && c->coll == GRADSYNC_ALL_GATHER)
        j->send += (uint64_t)rank * c->count * size;
    reference_fill(c, rank, 0, reference_send_count(c, rank), j->send);
    return 0;
}

static int launch(gradsync_comm *comm, job *j, int rank)
{
    const reference_case *c = &j->c;
    gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;

    opts.algo = j->algo;
    opts.flags =
        (j->ordered ? GRADSYNC_ORDERED : 0) | (c->scaled && c->op != GRADSYNC_PREMUL_SUM ? GRADSYNC_PRESCALE : 0);
    opts.prescale = c->scale[rank];
    opts.timeout_ms = 60000;
    gradsync_request **q = &j->request;
    switch (c->coll * 2 + j->posted) {
    case GRADSYNC_ALL_REDUCE * 2:
        return gradsync_all_reduce(comm, j->send, j->recv, c->count, c->dtype, c->op, &opts);
    case GRADSYNC_ALL_REDUCE * 2 + 1:
        return gradsync_all_reduce_post(comm, j->send, j->recv, c->count, c->dtype, c->op, &opts, q);
    case GRADSYNC_REDUCE_SCATTER * 2:
        return gradsync_reduce_scatter(comm, j->send, j->recv, c->count, c->dtype, c->op, &opts);
    case GRADSYNC_REDUCE_SCATTER * 2 + 1:
        return gradsync_reduce_scatter_post(comm, j->send, j->recv, c->count, c->dtype, c->op, &opts, q);
    case GRADSYNC_ALL_GATHER * 2:
        return gradsync_all_gather(comm, j->send, j->recv, c->count, c->dtype, &opts);
    case GRADSYNC_ALL_GATHER * 2 + 1:
        return gradsync_all_gather_post(comm, j->send, j->recv, c->count, c->dtype, &opts, q);
    case GRADSYNC_BROADCAST * 2:
        return gradsync_broadcast(comm, j->send, j->recv, c->count, c->dtype, c->root, &opts);
    case GRADSYNC_BROADCAST * 2 + 1:
        return gradsync_broadcast_post(comm, j->send, j->recv, c->count, c->dtype, c->root, &opts, q);
    case GRADSYNC_REDUCE * 2:
        return gradsync_reduce(comm, j->send, j->recv, c->count, c->dtype, c->op, c->root, &opts);
    case GRADSYNC_REDUCE * 2 + 1:
        return gradsync_reduce_post(comm, j->send, j->recv, c->count, c->dtype, c->op, c->root, &opts, q);
    case GRADSYNC_BARRIER * 2:
        return gradsync_barrier(comm, &opts);
    default:
        return gradsync_barrier_post(comm, &opts, q);
    }
}

/* Bytes outside of the buffers that are no longer what they were. */
static uint64_t count_strays(const job *j)
{
    uint64_t strays = 0;
    for (int w = 0; w < 2; w++) {
        if (!j->room[w])
            continue;
        const unsigned char *lo = w == 0 ? (j->in_place && j->recv < j->send ? j->recv : j->send) : j->recv;
        uint64_t bytes = w == 1        ? j->recv_bytes
                         : j->in_place ? (j->send_bytes > j->recv_bytes ? j->send_bytes : j->recv_bytes)
                                       : j->send_bytes;
        for (uint64_t i = 0; i < j->room_bytes[w]; i++) {
            const unsigned char *p = j->room[w] + i;
            strays += (p < lo || p >= lo + bytes) && *p != 0xa5;
        }
    }
    return strays;
}

/* A comment without its end. */
static void describe(const job *j, int rank, uint64_t index)
{
    const reference_case *c = &j->c;
    gradsync_report report = {.size = sizeof report, .algo = -1};

    if (j->request)
        gradsync_request_report(j->request, &report);
    printf("# rank %d of %d, collective %llu: %s %s %s count %llu root %d algo %s ordered %d in place %d kind %d "
           "misaligned %d posted %d: ran %s",
           rank, c->n, (unsigned long long)index, gradsync_coll_name(c->coll), gradsync_dtype_name(c->dtype),
           gradsync_op_name(c->op), (unsigned long long)c->count, c->root, gradsync_algo_name(j->algo), j->ordered,
           j->in_place, j->kind, j->misalign, j->posted, gradsync_algo_name(report.algo));
}

static int check(const job *j, int rank, uint64_t index, int rc)
{
    const reference_case *c = &j->c;
    uint64_t first = 0, wrong, strays;
    unsigned char own[8];
    uint64_t spoilt = 0;

    /* A fixed algorithm may have no plan for a call: then every rank is told the same. */
    if (rc == GRADSYNC_ERR_UNSUPPORTED && j->algo)
        return 0;
    if (rc) {
        ranks_complain(rank, "collective", rc);
        describe(j, rank, index);
        printf(": error %d\n", rc);
        return 1;
    }
    wrong = reference_check(c, rank, j->recv, &first);
    strays = count_strays(j);
    size_t size = gradsync_dtype_size(c->dtype);
    for (uint64_t i = 0; !j->in_place && i < reference_send_count(c, rank); i += 1 + i / 64) {
        reference_fill(c, rank, i, 1, own);
        spoilt += memcmp(own, j->send + i * size, size) != 0;
    }
    if (!wrong && !strays && !spoilt)
        return 0;
    describe(j, rank, index);
    printf(": %llu wrong (first %llu), %llu bytes beyond the buffers, %llu of send changed\n",
           (unsigned long long)wrong, (unsigned long long)first, (unsigned long long)strays,
           (unsigned long long)spoilt);
    return 1;
}

static int clean_up(job *j)
{
    int rc = 0;
    for (int w = 0; w < 2; w++) {
        if (j->mems[w])
            rc |= j->kind == 1 ? gradsync_mem_free(j->mems[w]) : gradsync_mem_deregister(j->mems[w]);
        free(j->plain[w]);
    }
    gradsync_request_free(j->request);
    return rc;
}

/* Waits for posted jobs in a random order. */
static int finish(job *jobs, int *posted, uint64_t *indices, int rank, uint64_t seed)
{
    int bad = 0;
    while (*posted) {
        int k = (int)(reference_random(seed, 77 + (uint64_t)*posted + (uint64_t)rank) % (uint64_t)*posted);
        int rc = gradsync_wait(jobs[k].request);
        bad += check(&jobs[k], rank, indices[k], rc);
        bad += clean_up(&jobs[k]) != 0;
        --*posted;
        jobs[k] = jobs[*posted];
        indices[k] = indices[*posted];
    }
    return bad;
}

/* A test of one transport must not pass over another. */
static int check_transport(gradsync_comm *comm, int rank, int n, const char *between)
{
    int bad = 0, far = 0;

    for (int r = 0; r < n; r++) {
        gradsync_peer_info peer = {.size = sizeof peer};
        if (r == rank)
            continue;
        int rc = gradsync_comm_peer(comm, r, &peer);
        if (rc) {
            ranks_complain(rank, "gradsync_comm_peer", rc);
            return 1;
        }
        far += !peer.same_host;
        if (!peer.same_host && strcmp(peer.transport, between) != 0) {
            printf("# rank %d reaches rank %d on %s by %s, not by %s\n", rank, r, peer.host, peer.transport, between);
            bad++;
        }
    }
    if (!far)
        printf("# rank %d has no peer on another host\n", rank);
    return bad || !far;
}

static int run_rank(ranks_world *world, int rank, void *arg)
{
    const plan *p = arg;
    gradsync_context *ctx;
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    job jobs[MAX_POSTED];
    uint64_t indices[MAX_POSTED];
    int posted = 0, bad = 0;

    config.timeout_ms = 120000;
    gradsync_comm *comm = ranks_comm(world, rank, &config, &ctx);
    if (!comm)
        return 1;
    if (p->between && check_transport(comm, rank, ranks_count(world), p->between)) {
        ranks_end(ctx, comm);
        return 1;
    }
    for (int i = 0; i < p->count && bad < 5; i++) {
        uint64_t seed = reference_random(p->seed, (uint64_t)i);
        job j = make_job(seed, ranks_count(world), rank);
        if (prepare(ctx, &j, rank)) {
            ranks_complain(rank, "memory", -1);
            return 1;
        }
        int rc = launch(comm, &j, rank);
        if (j.posted && !rc) {
            jobs[posted] = j;
            indices[posted++] = (uint64_t)i;
            if (posted == MAX_POSTED || reference_random(seed, 55) % 5 == 0)
                bad += finish(jobs, &posted, indices, rank, seed);
        } else {
            bad += check(&j, rank, (uint64_t)i, rc);
            bad += clean_up(&j) != 0;
        }
        if (rc == GRADSYNC_ERR_BROKEN)
            break;
    }
    bad += finish(jobs, &posted, indices, rank, p->seed);
    ranks_end(ctx, comm);
    return bad;
}

int main(int argc, char **argv)
{
    uint64_t seed = 20261120;
    int total = getenv("GRADSYNC_TEST_FULL") ? 10000 : 1800, only_ranks = 0, only_threads = 0, env = 0, last = 1;
    const char *between = NULL;

    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "0";
        if (!strcmp(argv[i], "--threads")) {
            only_threads = 1;
            continue;
        }
        if (!strcmp(argv[i], "--processes")) {
            last = 0;
            continue;
        }
        if (!strcmp(argv[i], "--env")) {
            env = 1;
            continue;
        }
        if (!strcmp(argv[i], "--count"))
            total = atoi(value);
        else if (!strcmp(argv[i], "--seed"))
            seed = strtoull(value, NULL, 0);
        else if (!strcmp(argv[i], "--ranks"))
            only_ranks = atoi(value);
        else if (!strcmp(argv[i], "--between"))
            between = value;
        i++;
    }
    tap_note("seed %llu, %d collectives", (unsigned long long)seed, total);
    if (env) {
        plan p = {seed, total, between};
        tap_ok(ranks_run_environment(run_rank, &p) == 0, "%d collectives with the ranks of the environment", p.count);
        return tap_done();
    }
    for (int n = 1; n <= 9; n++) {
        if (only_ranks && n != only_ranks)
            continue;
        for (int threads = only_threads; threads <= last; threads++) {
            plan p = {reference_random(seed, (uint64_t)n * 2 + (uint64_t)threads), total / 18, n > 1 ? between : NULL};
            int failed = threads ? ranks_run_threads(n, run_rank, &p) : ranks_run_processes(n, run_rank, &p);
            tap_ok(!failed, "%d collectives over %d ranks as %s", p.count, n, threads ? "threads" : "processes");
        }
    }
    return tap_done();
}
