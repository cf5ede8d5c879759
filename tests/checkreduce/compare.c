/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every tier against the reference. Both work on arenas with the same contents and
 * the same layout, which must be the same afterwards, byte for byte: that compares
 * the outputs, and proves that the inputs and the guards between the buffers were
 * left alone. One buffer ends at an unmapped page, so reading or writing past it is
 * a crash; which one is random.
 */
#include "checkreduce/checkreduce.h"
#include "reduce/fpenv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ARENA     (4u << 20)
#define GUARD     64
#define MAX_COUNT 4099

static unsigned char *arenas[2]; /* of the reference, of the tier under test */
static unsigned char *image;     /* what both hold before a run */

static unsigned char *map_arena(void)
{
    unsigned char *p =
        mmap(NULL, ARENA + 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED || mprotect(p + ARENA, 65536, PROT_NONE)) {
        perror("checkreduce: mmap");
        exit(2);
    }
    return p;
}

static void map_arenas(void)
{
    if (image)
        return;
    image = map_arena();
    arenas[0] = map_arena();
    arenas[1] = map_arena();
}

/* ---- Values ---- */

static uint64_t special(int dtype)
{
    static const uint32_t f32[] = {
        0,          0x80000000, 1,          0x80000001, 0x007fffff, 0x00800000, 0x7f7fffff, 0xff7fffff,
        0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000, 0x7f800001, 0xffbfffff, 0x7fffffff, 0x3f800000,
        0xbf800000, 0x477fe000, 0x477fefff, 0x477ff000, 0x387fc000, 0x33000000, 0x33000001, 0x33800000,
    };
    static const uint64_t f64[] = {
        0,
        UINT64_C(0x8000000000000000),
        1,
        UINT64_C(0x800fffffffffffff),
        UINT64_C(0x0010000000000000),
        UINT64_C(0x7fefffffffffffff),
        UINT64_C(0x7ff0000000000000),
        UINT64_C(0xfff0000000000000),
        UINT64_C(0x7ff8000000000000),
        UINT64_C(0xfff0000000000001),
        UINT64_C(0x7fffffffffffffff),
        UINT64_C(0x3ff0000000000000),
    };
    static const uint16_t f16[] = {0,      0x8000, 1,      0x8001, 0x3ff,  0x400,  0x7bff, 0xfbff,
                                   0x7c00, 0xfc00, 0x7e00, 0xfe00, 0x7c01, 0xfdff, 0x7fff, 0x3c00};
    static const uint16_t bf16[] = {0,      0x8000, 1,      0x8001, 0x7f,   0x80,   0x7f7f, 0xff7f,
                                    0x7f80, 0xff80, 0x7fc0, 0xffc0, 0x7f81, 0xffbf, 0x7fff, 0x3f80};
    static const uint64_t integers[] = {0,
                                        1,
                                        UINT64_MAX,
                                        UINT64_C(0x8000000000000000),
                                        UINT64_C(0x7fffffffffffffff),
                                        UINT64_C(0x80000000),
                                        UINT64_C(0x7fffffff),
                                        UINT64_C(0x100000000),
                                        0x80,
                                        0x7f};

    switch (dtype) {
    case GRADSYNC_F32:
        return f32[random_below(sizeof f32 / sizeof *f32)];
    case GRADSYNC_F64:
        return f64[random_below(sizeof f64 / sizeof *f64)];
    case GRADSYNC_F16:
        return f16[random_below(sizeof f16 / sizeof *f16)];
    case GRADSYNC_BF16:
        return bf16[random_below(sizeof bf16 / sizeof *bf16)];
    default:
        return integers[random_below(sizeof integers / sizeof *integers)];
    }
}

/* A number of moderate size: sums and products of such stay numbers, and need rounding. */
static uint64_t moderate(int dtype)
{
    uint64_t r = random_bits(), sign = r >> 63;

    switch (dtype) {
    case GRADSYNC_F32:
        return sign << 31 | (UINT64_C(120) + (r >> 40 & 15)) << 23 | (r & 0x7fffff);
    case GRADSYNC_F64:
        return sign << 63 | (UINT64_C(1016) + (r >> 56 & 15)) << 52 | (r & UINT64_C(0xfffffffffffff));
    case GRADSYNC_F16:
        return sign << 15 | (UINT64_C(11) + (r >> 40 & 7)) << 10 | (r & 0x3ff);
    case GRADSYNC_BF16:
        return sign << 15 | (UINT64_C(120) + (r >> 40 & 15)) << 7 | (r & 0x7f);
    default:
        return r & 15;
    }
}

void fill_values(void *p, int dtype, uint64_t count)
{
    const unsigned size = dtype_sizes[dtype];
    const uint32_t style = random_below(4); /* numbers; bits; few specials; many */
    unsigned char *at = p;

    for (uint64_t i = 0; i < count; i++, at += size) {
        uint64_t value;
        if (style >= 2 && random_below(style == 2 ? 50 : 2) == 0)
            value = special(dtype);
        else
            value = style == 1 ? random_bits() : moderate(dtype);
        memcpy(at, &value, size); /* little endian */
    }
}

/* ---- Shapes ---- */

typedef struct {
    gsi_reduce_args args;
    uint32_t src_at[MAX_BUFS], dst_at[MAX_BUFS]; /* offsets in the arena */
    double scale[MAX_BUFS];
    uint32_t first, end; /* what of the arena is in use */
    uint64_t env;        /* the host's floating-point environment */
} trial;

static unsigned source_size(const trial *t, uint32_t k)
{
    return k == 0 && is_half(t->args.dtype) && t->args.flags & GSI_REDUCE_ACC_IN ? 4 : dtype_sizes[t->args.dtype];
}

static unsigned output_size(const trial *t)
{
    return is_half(t->args.dtype) && t->args.flags & GSI_REDUCE_ACC_OUT ? 4 : dtype_sizes[t->args.dtype];
}

/* Where a buffer goes, below *end. The first ends at the end of the arena, unless all are aligned. */
static uint32_t place(uint32_t *end, uint32_t bytes, unsigned size, uint32_t alignment)
{
    uint32_t at = *end - bytes;

    if (alignment == 0) /* lines, as the library's own memory has */
        at &= ~63u;
    else if (*end == ARENA)
        ;
    else if (alignment == 1) /* elements */
        at = (at & ~63u) - random_below(64) / size * size;
    else if (alignment == 2) /* bytes */
        at -= random_below(64);
    else /* the same gap: the head that aligns one output aligns them all */
        at = (at & ~63u) - 8 * size % 64;
    *end = at - GUARD;
    return at;
}

static void lay_out(trial *t)
{
    const uint32_t count = (uint32_t)t->args.count, buffers = t->args.nsrc + t->args.ndst;
    const uint32_t alignment = random_below(4), flush = random_below(buffers), alias = random_below(3);
    uint32_t end = ARENA, taken = 0;

    /* From the end of the arena downwards, the one that touches the end first. */
    for (uint32_t i = 0; i < buffers; i++) {
        uint32_t k = (flush + i) % buffers;
        if (k < t->args.nsrc)
            t->src_at[k] = place(&end, count * source_size(t, k), source_size(t, k), alignment);
        else
            t->dst_at[k - t->args.nsrc] = place(&end, count * output_size(t), output_size(t), alignment);
    }
    /* In place: every output is a source, or some are, in any order. */
    for (uint32_t d = 0; alias && d < t->args.ndst; d++) {
        uint32_t k = alias == 1 ? d : random_below(t->args.nsrc);
        if (k < t->args.nsrc && !(taken >> k & 1) && source_size(t, k) == output_size(t)) {
            t->dst_at[d] = t->src_at[k];
            taken |= 1u << k;
        }
    }
    t->first = end & ~63u;
    t->end = ARENA;
}

static void draw_flags(trial *t)
{
    gsi_reduce_args *args = &t->args;

    args->flags = random_below(3) ? 0 : GSI_REDUCE_NT;
    args->divisor = 0;
    args->scale = NULL;
    if (is_half(args->dtype) && random_below(3) == 0)
        args->flags |= random_below(4) * GSI_REDUCE_ACC_IN; /* in, out, both */
    switch (random_below(6)) {
    case 0:
        args->divisor = 1 + random_below(20);
        break;
    case 1:
        args->divisor = UINT64_C(1) << random_below(64);
        break;
    case 2:
        args->divisor = random_bits() >> random_below(64);
        break;
    default:
        break;
    }
    if (random_below(4) == 0) {
        for (uint32_t k = 0; k < args->nsrc; k++)
            fill_values(&t->scale[k], random_below(4) ? GRADSYNC_F64 : GRADSYNC_U64, 1);
        if (random_below(2))
            t->scale[0] = 1. / args->nsrc;
        args->scale = t->scale;
    }
}

/* What the host process may have set: flush to zero, a rounding mode, traps. */
static uint64_t draw_env(void)
{
#if defined(__x86_64__)
    static const uint32_t envs[] = {0x1f80, 0x1f80 | 0x8040, 0x1f80 | 0x6000, 0x1f80 | 0x2000, 0x0000, 0x1fbf};
#else
    /* Flush to zero; round down; alternative half precision; default NaN; FZ16. */
    static const uint32_t envs[] = {0, 1u << 24, 2u << 22, 1u << 26, 1u << 25, 1u << 19};
#endif
    return random_below(2) ? FPENV_DEFAULT : envs[random_below(sizeof envs / sizeof *envs)];
}

/* ---- Runs ---- */

static int run_in(unsigned char *arena, const trial *t, const gsi_reduce_tier *tier)
{
    const void *src[MAX_BUFS];
    void *dst[MAX_BUFS];
    gsi_reduce_args args = t->args;
    uint64_t after;

    for (uint32_t k = 0; k < args.nsrc; k++)
        src[k] = arena + t->src_at[k];
    for (uint32_t d = 0; d < args.ndst; d++)
        dst[d] = arena + t->dst_at[d];
    args.src = src;
    args.dst = dst;
    memcpy(arena + t->first, image + t->first, t->end - t->first);
    fpenv_write(t->env);
    tier->reduce(&args);
    after = fpenv_read();
    fpenv_write(FPENV_DEFAULT);
    return (after & FPENV_CONTROL) == (t->env & FPENV_CONTROL);
}

static void describe(const trial *t, const gsi_reduce_tier *tier, const char *what)
{
    const gsi_reduce_args *a = &t->args;

    note("%s: %s %s: %s: count %llu nsrc %u ndst %u flags %u divisor %llu scaled %d env %llx", tier->name,
         dtype_names[a->dtype], op_names[a->op], what, (unsigned long long)a->count, a->nsrc, a->ndst, a->flags,
         (unsigned long long)a->divisor, a->scale != NULL, (unsigned long long)t->env);
    for (uint32_t d = 0; d < a->ndst; d++) {
        const unsigned size = output_size(t);
        const unsigned char *want = arenas[0] + t->dst_at[d], *got = arenas[1] + t->dst_at[d];
        for (uint64_t i = 0; i < a->count; i++) {
            uint64_t bits[2] = {0, 0};
            memcpy(&bits[0], want + i * size, size);
            memcpy(&bits[1], got + i * size, size);
            if (bits[0] == bits[1])
                continue;
            note("  output %u (at ...%02x), element %llu: %llx, reference %llx", d, t->dst_at[d] & 63,
                 (unsigned long long)i, (unsigned long long)bits[1], (unsigned long long)bits[0]);
            for (uint32_t k = 0; k < a->nsrc; k++) {
                uint64_t in = 0;
                memcpy(&in, image + t->src_at[k] + i * source_size(t, k), source_size(t, k));
                note("    source %u: %llx times %a", k, (unsigned long long)in, a->scale ? a->scale[k] : 1.);
            }
            return;
        }
    }
    note("  the outputs are right: a guard or an input was overwritten");
}

/* One random trial of a shape with all tiers; bad[i] counts tier i's failures. */
static void try_shape(const options *opt, int dtype, int op, uint32_t nsrc, uint32_t ndst, uint32_t count, int *bad)
{
    const gsi_reduce_tier *tier, *reference = gsi_reduce_tier_at(0);
    trial t = {.args = {.count = count, .nsrc = nsrc, .ndst = ndst, .dtype = (uint8_t)dtype, .op = (uint8_t)op}};

    draw_flags(&t);
    lay_out(&t);
    t.env = draw_env();
    for (uint32_t at = t.first; at < t.end; at += 8) {
        uint64_t r = random_bits();
        memcpy(image + at, &r, 8);
    }
    for (uint32_t k = 0; k < nsrc; k++)
        fill_values(image + t.src_at[k], source_size(&t, k) == dtype_sizes[dtype] ? dtype : GRADSYNC_F32, count);
    int kept = run_in(arenas[0], &t, reference);
    for (int i = 0; (tier = wanted_tier(opt, i)); i++) {
        if (tier == reference) {
            if (!kept && !bad[i]++)
                describe(&t, tier, "the floating-point environment was not put back");
            continue;
        }
        int same = run_in(arenas[1], &t, tier);
        if (!same && !bad[i]++)
            describe(&t, tier, "the floating-point environment was not put back");
        if (memcmp(arenas[0] + t.first, arenas[1] + t.first, t.end - t.first) && !bad[i]++)
            describe(&t, tier, "differs from the reference");
    }
}

static uint32_t draw_count(uint32_t size_index)
{
    static const uint32_t counts[] = {0,  1,  2,  3,  4,  5,  7,   8,   9,   15,  16,  17,   31,   32,
                                      33, 47, 63, 64, 65, 96, 127, 128, 129, 255, 257, 1000, 1025, MAX_COUNT};
    const uint32_t n = sizeof counts / sizeof *counts;

    return size_index < n ? counts[size_index] : random_below(600);
}

static void compare_op(const options *opt, int dtype, int op)
{
    static const uint32_t many[] = {1, 2, 3, 4, 5, 8, 9, 17};
    const uint32_t sizes = opt->quick ? 8 : 34;
    int bad[MAX_TIERS] = {0};
    const gsi_reduce_tier *tier;
    long trials = 0;

    for (int round = 0; round < opt->rounds; round++)
        for (size_t n = 0; n < sizeof many / sizeof *many; n++)
            for (int shape = 0; shape < 3; shape++)
                for (uint32_t s = 0; s < sizes; s++) {
                    uint32_t ndst = shape == 2 ? many[n] : (uint32_t)shape + 1;
                    uint32_t count = draw_count(opt->quick ? random_below(34) : s);
                    if ((opt->nsrc && opt->nsrc != many[n]) || (opt->ndst && opt->ndst != ndst))
                        continue;
                    try_shape(opt, dtype, op, many[n], ndst, count, bad);
                    trials++;
                }
    for (int i = 0; (tier = wanted_tier(opt, i)); i++)
        check(bad[i] == 0, "%s: %s %s, %ld shapes%s", tier->name, dtype_names[dtype], op_names[op], trials,
              tier == gsi_reduce_tier_at(0) ? ": environment kept" : " as the reference");
}

void compare_tiers(const options *opt)
{
    map_arenas();
    for (int dtype = 0; dtype < GRADSYNC_DTYPE_COUNT; dtype++)
        for (int op = 0; op < 4; op++)
            if ((opt->dtype < 0 || opt->dtype == dtype) && (opt->op < 0 || opt->op == op))
                compare_op(opt, dtype, op);
}

/* ---- Copies ---- */

static int copy_once(const gsi_reduce_tier *tier)
{
    const uint32_t bytes = random_below(4) ? random_below(400) : random_below(20000), ndst = 1 + random_below(9);
    const uint32_t alignment = random_below(3), in_place = random_below(4) == 0;
    uint32_t end = ARENA, at[10];
    void *dst[9];

    for (uint32_t i = 0; i <= ndst; i++)
        at[i] = place(&end, bytes, 1, alignment);
    if (in_place)
        at[random_below(ndst)] = at[ndst];
    for (uint32_t i = end & ~7u; i < ARENA; i += 8) {
        uint64_t r = random_bits();
        memcpy(image + i, &r, 8);
    }
    for (int a = 0; a < 2; a++)
        memcpy(arenas[a] + end, image + end, ARENA - end);
    for (uint32_t i = 0; i < ndst; i++) {
        memcpy(arenas[0] + at[i], image + at[ndst], bytes);
        dst[i] = arenas[1] + at[i];
    }
    tier->copy(dst, ndst, arenas[1] + at[ndst], bytes, (int)random_below(2));
    return !memcmp(arenas[0] + end, arenas[1] + end, ARENA - end);
}

void compare_copies(const options *opt)
{
    const gsi_reduce_tier *tier;

    map_arenas();
    for (int i = 0; (tier = wanted_tier(opt, i)); i++) {
        int good = 1, n = opt->quick ? 100 : 3000;
        for (int k = 0; k < n; k++)
            good &= copy_once(tier);
        check(good, "%s: %d copies to many outputs", tier->name, n);
    }
}

/* ---- Every f32 value ---- */

static int convert_all(const gsi_reduce_tier *tier, int dtype)
{
    enum { BLOCK = 1 << 16 };
    static uint32_t in[BLOCK];
    static uint16_t out[2][BLOCK];
    const void *src = in;

    for (uint32_t base = 0; base < UINT32_MAX / BLOCK + 1; base++) {
        for (uint32_t i = 0; i < BLOCK; i++)
            in[i] = base * BLOCK + i;
        for (int a = 0; a < 2; a++) {
            void *dst = out[a];
            gsi_reduce_args args = {.dst = &dst, .src = &src, .count = BLOCK, .ndst = 1, .nsrc = 1};
            args.flags = GSI_REDUCE_ACC_IN;
            args.dtype = (uint8_t)dtype;
            (a ? tier : gsi_reduce_tier_at(0))->reduce(&args);
        }
        if (memcmp(out[0], out[1], sizeof out[0]))
            return 0;
    }
    return 1;
}

void compare_all_f32(const options *opt)
{
    const gsi_reduce_tier *tier;

    for (int i = 0; (tier = wanted_tier(opt, i)); i++)
        for (int dtype = GRADSYNC_F16; dtype <= GRADSYNC_BF16 && tier != gsi_reduce_tier_at(0); dtype++)
            check(convert_all(tier, dtype), "%s: every f32 value to %s", tier->name, dtype_names[dtype]);
}
