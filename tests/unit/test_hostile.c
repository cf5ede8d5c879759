/* SPDX-License-Identifier: Apache-2.0 */
/* A rank that writes garbage where all ranks write: the others may get an error or wrong numbers, as
 * from a rank that contributes garbage, but they never touch memory that is not theirs, and never hang. */
#include "ranks.h"
#include "tap.h"
#include "unit.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "comm/comm.h"

enum { BYTES = 192 << 10, ID = 0x70000000 };

static gradsync_comm *open_comm(ranks_world *world, int rank, gradsync_context **ctx)
{
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    config.timeout_ms = 1500;
    return ranks_comm(world, rank, &config, ctx);
}

/* ---- Headers that lie ------------------------------------------------------------------- */

typedef struct lie {
    const char *name;
    uint32_t send, recv;
    int64_t send_off, recv_off;
    uint16_t head, tail;
    uint8_t kind;
    int coll;
} lie;

static const lie lies[] = {
    {"an unknown id", ID + 1, ID + 1, 0, 0, 0, 0, GSI_HEADER_SHAREABLE, GRADSYNC_ALL_REDUCE},
    {"no id", 0, 0, 0, 0, 0, 0, GSI_HEADER_SHAREABLE, GRADSYNC_ALL_REDUCE},
    {"an offset at the end of the memory", ID, ID, 4096, 4096, 0, 0, GSI_HEADER_SHAREABLE, GRADSYNC_ALL_REDUCE},
    {"an offset beyond it", ID, ID, 1 << 30, 1 << 30, 0, 0, GSI_HEADER_SHAREABLE, GRADSYNC_ALL_REDUCE},
    {"an offset that overflows", ID, ID, INT64_MAX / 2, INT64_MAX / 2, 0, 0, GSI_HEADER_SHAREABLE, GRADSYNC_ALL_REDUCE},
    {"the greatest offset", ID, ID, INT64_MAX, INT64_MAX - 5, 0, 0, GSI_HEADER_SHAREABLE, GRADSYNC_ALL_REDUCE},
    {"the least offset", ID, ID, INT64_MIN, INT64_MIN, 65535, 65535, GSI_HEADER_SHAREABLE, GRADSYNC_ALL_REDUCE},
    {"an offset before its head", ID, ID, -4097, -4097, 4096, 0, GSI_HEADER_SHAREABLE, GRADSYNC_ALL_REDUCE},
    {"a tail that is too short", ID, ID, 0, 0, 0, 100, GSI_HEADER_SHAREABLE, GRADSYNC_ALL_REDUCE},
    {"a fringe for a broadcast", ID, ID, -100, -100, 100, 0, GSI_HEADER_SHAREABLE, GRADSYNC_BROADCAST},
    {"a receive buffer that is not there", ID, 0, 0, 0, 0, 0, GSI_HEADER_SHAREABLE, GRADSYNC_BROADCAST},
    {"a payload that did not come", 0, 0, 0, 0, 0, 0, GSI_HEADER_PAYLOAD, GRADSYNC_ALL_REDUCE},
    {"kinds that there are not", ID, ID, 0, 0, 65535, 65535, 0xff, GRADSYNC_ALL_REDUCE},
};

/* Rank 0 has entered; this rank says the same, but for the lie. */
static void tell_lie(gradsync_comm *comm, const lie *l, const gsi_memory *mem)
{
    gsi_endpoint *ep = comm->engine.ep;
    uint64_t seq = comm->engine.last_seq + 1;
    int64_t deadline = gsi_deadline_ns(gsi_now_ns(), 5000);
    int next = 0;

    while (!ep->ops->share(ep, mem) && gsi_now_ns() < deadline && !ep->ops->entered(ep, seq, &next))
        next = 0;
    gsi_header h = *ep->ops->header(ep, seq, 0);
    h.kind = l->kind;
    h.head = l->head, h.tail = l->tail;
    h.u.mem.send = l->send, h.u.mem.recv = l->recv;
    h.u.mem.send_off = l->send_off, h.u.mem.recv_off = l->recv_off;
    ep->ops->enter(ep, seq, &h, NULL, 0);
}

static int call(gradsync_comm *comm, int coll, char *buf)
{
    return coll == GRADSYNC_BROADCAST
               ? gradsync_broadcast(comm, buf, buf, BYTES, GRADSYNC_U8, 0, NULL)
               : gradsync_all_reduce(comm, buf, buf, BYTES / 4, GRADSYNC_F32, GRADSYNC_SUM, NULL);
}

/* Honest calls in every lane, with memory that is gone afterwards: what they leave behind must not be used. */
static int be_honest(gradsync_context *ctx, gradsync_comm *comm)
{
    gradsync_mem *mem;
    int rc = gradsync_mem_alloc(ctx, BYTES, NULL, &mem);
    for (int i = 0; !rc && i < 6; i++)
        rc = call(comm, GRADSYNC_ALL_REDUCE, gradsync_mem_addr(mem));
    return rc ? rc : gradsync_mem_free(mem);
}

static int lie_rank(ranks_world *world, int rank, void *arg)
{
    const lie *l = arg;
    gradsync_context *ctx;
    gradsync_comm *comm = open_comm(world, rank, &ctx);
    int rc = 0;

    if (!comm || be_honest(ctx, comm))
        return 1;
    if (rank == 0) {
        gradsync_mem *mem;
        if (gradsync_mem_alloc(ctx, BYTES, NULL, &mem))
            return 1;
        char *buf = gradsync_mem_addr(mem);
        memset(buf, 0, BYTES);
        rc = call(comm, l->coll, buf) == 0; /* an error of any kind */
        gradsync_mem_free(mem);
    } else {
        gsi_memory mem;
        if (gsi_host_alloc(4096, 0, -1, &mem))
            return 1;
        mem.id = ID;
        tell_lie(comm, l, &mem);
        gsi_host_free(&mem);
    }
    ranks_barrier(world, rank); /* the liar stays until the other has been led astray */
    ranks_end(ctx, comm);
    return rc;
}

/* ---- Garbage everywhere -------------------------------------------------------------------- */

typedef struct shared {
    _Atomic int going;
    uint64_t seed;
} shared;

static char *find_segment(size_t *bytes)
{
    FILE *f = fopen("/proc/self/maps", "re");
    char line[512], *found = NULL;
    while (f && !found && fgets(line, sizeof line, f)) {
        unsigned long a, b;
        if (strstr(line, "memfd:gradsync-comm") && sscanf(line, "%lx-%lx", &a, &b) == 2) {
            found = (char *)a;
            *bytes = b - a;
        }
    }
    if (f)
        fclose(f);
    return found;
}

/* Values that are more trying than random ones. */
static uint64_t garbage(uint64_t *seed)
{
    uint64_t r = unit_random(seed), v = unit_random(seed);
    switch (r % 6) {
    case 0:
        return v;
    case 1:
        return v >> (r >> 8) % 64;
    case 2:
        return ~(uint64_t)0 << (r >> 8) % 64;
    case 3:
        return (v % 64) << 32 | (r >> 40) % 8; /* a flag of a collective near the first ones */
    case 4:
        return (v % 64) << 32 | (v >> 40) % 64;
    default:
        return r >> 16 & 1;
    }
}

static void scribble(shared *s, uint64_t seed)
{
    size_t bytes = 0;
    char *segment = find_segment(&bytes);
    size_t control = bytes > (256 << 10) ? 256 << 10 : bytes; /* flags, headers, the failure record */

    while (segment && atomic_load(&s->going)) {
        uint64_t r = unit_random(&seed), v = garbage(&seed);
        _Atomic uint64_t *at = (_Atomic uint64_t *)(segment + r % control / 8 * 8);
        if (r >> 60 == 0)
            at = (_Atomic uint64_t *)(segment + r % bytes / 8 * 8);
        atomic_store(at, v);
        if (r >> 48 & 7)
            atomic_store(at, v ^ 1);
    }
}

static void suffer(gradsync_context *ctx, gradsync_comm *comm, int rank, uint64_t seed)
{
    gradsync_mem *mem;
    if (gradsync_mem_alloc(ctx, 4 * BYTES, NULL, &mem))
        return;
    char *lib = gradsync_mem_addr(mem), *plain = calloc(1, 4 * BYTES);
    gradsync_counters counters = {.size = sizeof counters};
    int rc = 0;
    for (int i = 0; i < 400 && (!rc || rc == GRADSYNC_ERR_MISMATCH || rc == GRADSYNC_ERR_UNSUPPORTED); i++) {
        uint64_t r = unit_random(&seed);
        uint64_t count = 1 + (r >> 8) % (r & 1 ? BYTES / 4 : 200);
        char *buf = (r & 2 ? lib : plain) + (rank & 1) * 64;
        gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;
        opts.algo = r >> 60 < 8 ? (int)(r >> 60) : 0;
        opts.timeout_ms = 150;
        if (r >> 40 & 3)
            rc = gradsync_all_reduce(comm, buf, buf, count, GRADSYNC_F32, GRADSYNC_SUM, &opts);
        else
            rc = gradsync_all_gather(comm, buf, buf + BYTES, count / 4, GRADSYNC_U8, &opts);
    }
    gradsync_comm_counters(comm, &counters);
    gradsync_mem_free(mem);
    free(plain);
}

static int garbage_rank(ranks_world *world, int rank, void *arg)
{
    shared *s = arg;
    gradsync_context *ctx;
    gradsync_comm *comm = open_comm(world, rank, &ctx);

    if (!comm)
        return 1;
    ranks_barrier(world, rank);
    if (rank) {
        suffer(ctx, comm, rank, s->seed);
        atomic_fetch_sub(&s->going, 1);
    } else {
        scribble(s, s->seed + 99);
    }
    ranks_end(ctx, comm);
    return 0;
}

int main(void)
{
    shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int rounds = getenv("GRADSYNC_TEST_FULL") ? 200 : 6, failed = 0;

    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        lie l = lies[i];
        tap_ok(!ranks_run_processes(2, lie_rank, &l), "a header with %s does no harm", l.name);
    }
    for (int i = 0; i < rounds; i++) {
        s->seed = 20261120 + (uint64_t)i * 1000;
        s->going = 2;
        failed += ranks_run_processes(3, garbage_rank, s) != 0;
    }
    tap_ok(!failed, "%d rounds of garbage in the control segment: the other ranks live on", rounds);
    return tap_done();
}
