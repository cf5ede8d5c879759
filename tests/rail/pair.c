/* SPDX-License-Identifier: Apache-2.0 */
/* Two rails in one process, as the contract's tests use them. */
#include "contract.h"
#include "base/clock.h"
#include "tap.h"

#include <gradsync/gradsync.h>
#include <string.h>
#include <sys/mman.h>

enum { PATIENCE_MS = 20000, QUIET_POLLS = 2000 };

int test_ok(int cond, const char *format, ...)
{
    char text[512];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return tap_ok(cond, "%s", text);
}

void test_note(const char *format, ...)
{
    char text[512];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    tap_note("%s", text);
}

void test_skip(int n, const char *why)
{
    tap_skip(n, why);
}

int test_done(void)
{
    return tap_done();
}

static uint64_t random_state = 1;

void test_seed(uint32_t seed)
{
    random_state = seed;
}

uint32_t test_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

uint32_t test_below(uint32_t n)
{
    return (uint32_t)((uint64_t)test_random() * n >> 32);
}

static uint32_t mix(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x7feb352d;
    x ^= x >> 15;
    x *= 0x846ca68b;
    return x ^ x >> 16;
}

void test_fill(unsigned char *at, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++)
        at[i] = (unsigned char)(mix(seed + (uint32_t)(i / 4)) >> i % 4 * 8);
}

int test_same(const unsigned char *at, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++)
        if (at[i] != (unsigned char)(mix(seed + (uint32_t)(i / 4)) >> i % 4 * 8))
            return 0;
    return 1;
}

static const char *last_error(void)
{
    static gradsync_error_info info;

    info = (gradsync_error_info)GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    return info.message;
}

int pair_connect(contract_pair *pair, int i)
{
    gsi_rail_address blobs[2];
    int64_t end = gsi_deadline_ns(gsi_now_ns(), PATIENCE_MS);
    int ready[2] = {0, 0};

    for (int s = 0; s < 2; s++) {
        gsi_rail *rail = pair->side[s].rail;
        if (rail->ops->conn(rail, (uint32_t)i, &pair->side[s].conns[i], &blobs[s]) < 0)
            return test_ok(0, "conn(): %s", last_error()) - 1;
    }
    for (int s = 0; s < 2; s++)
        if (pair->side[s].rail->ops->connect(pair->side[s].conns[i], &blobs[!s]) < 0)
            return test_ok(0, "connect(): %s", last_error()) - 1;
    while ((ready[0] != 1 || ready[1] != 1) && gsi_now_ns() < end)
        for (int s = 0; s < 2; s++)
            if (ready[s] == 0)
                ready[s] = pair->side[s].rail->ops->ready(pair->side[s].conns[i]);
    if (ready[0] != 1 || ready[1] != 1)
        return test_ok(0, "ready(): %d, %d, %s", ready[0], ready[1], last_error()) - 1;
    if (pair->factory->hamper)
        for (int s = 0; s < 2; s++)
            pair->factory->hamper(pair->side[s].conns[i], test_random());
    return 0;
}

int pair_open(contract_pair *pair, const contract_factory *factory, int n)
{
    memset(pair, 0, sizeof *pair);
    pair->factory = factory;
    for (int s = 0; s < 2; s++) {
        contract_side *side = &pair->side[s];
        gsi_rail_config config = {
            .gid_index = -1, .numa_node = -1, .connections = 64, .send_depth = PAIR_DEPTH, .recv_depth = PAIR_DEPTH};
        side->memory = mmap(NULL, PAIR_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (side->memory == MAP_FAILED || factory->open(factory->arg, s, &config, &side->rail) < 0)
            return test_ok(0, "open(): %s", last_error()) - 1;
        if (side->rail->ops->reg(side->rail, side->memory, PAIR_MEMORY, &side->region) < 0)
            return test_ok(0, "reg(): %s", last_error()) - 1;
    }
    for (int i = 0; i < n; i++) {
        if (pair_connect(pair, i) < 0)
            return -1;
        pair->side[0].nconns = pair->side[1].nconns = i + 1;
    }
    return 0;
}

void pair_close(contract_pair *pair)
{
    for (int s = 0; s < 2; s++) {
        contract_side *side = &pair->side[s];
        if (side->rail) {
            /* Half of the connections are left to close(). */
            for (int i = 0; i < side->nconns; i += 2)
                side->rail->ops->disconnect(side->conns[i]);
            side->rail->ops->close(side->rail);
        }
        munmap(side->memory, PAIR_MEMORY);
    }
    memset(pair, 0, sizeof *pair);
}

void pair_poll(contract_pair *pair)
{
    for (int s = 0; s < 2; s++) {
        contract_side *side = &pair->side[s];
        if (side->nlog == side->seen)
            side->nlog = side->seen = 0;
        int room = PAIR_LOG - side->nlog, max = side->max ? side->max : 64;
        if (room > 0)
            side->nlog += side->rail->ops->poll(side->rail, side->log + side->nlog, room < max ? room : max);
    }
}

const gsi_rail_event *pair_next(contract_pair *pair, int s)
{
    contract_side *side = &pair->side[s];
    int64_t end = gsi_deadline_ns(gsi_now_ns(), PATIENCE_MS);

    while (side->seen == side->nlog) {
        pair_poll(pair);
        if (side->seen == side->nlog && gsi_now_ns() > end)
            return NULL;
    }
    return &side->log[side->seen++];
}

int pair_quiet(contract_pair *pair)
{
    for (int i = 0; i < QUIET_POLLS; i++) {
        pair_poll(pair);
        if (pair->side[0].nlog != pair->side[0].seen || pair->side[1].nlog != pair->side[1].seen)
            return 0;
    }
    return 1;
}
