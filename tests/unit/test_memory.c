/* SPDX-License-Identifier: Apache-2.0 */
/* Memory: the register, shareable allocations, and private pages moved onto a memfd and back. */
#include "tap.h"
#include "unit.h"

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "device/device.h"

enum { PAGE = 4096, MIB = 1 << 20 };

/* ---- The register against a list ------------------------------------------------------- */

static void test_register(void)
{
    enum { PLACES = 200, GAP = 1000 };
    static gsi_memory mems[PLACES];
    static char there[PLACES];
    gsi_register reg;
    uint64_t seed = 7;
    int bad = 0;

    tap_ok(!gsi_register_init(&reg), "a register");
    for (int i = 0; i < 50000 && !bad; i++) {
        uint64_t r = unit_random(&seed);
        int k = (int)(r % PLACES), at;
        char *base = (char *)(uintptr_t)(0x10000 + k * GAP);
        uint64_t bytes = 1 + (uint64_t)k * 37 % GAP, off = (r >> 16) % GAP, len = (r >> 32) % (2 * GAP);
        if (r >> 8 & 1) {
            /* Anything inside is found with its owner, anything that sticks out is not. */
            gsi_memory *m = gsi_register_get(&reg, base + off, len);
            bad |= (m != NULL) != (there[k] && off < bytes && len <= bytes - off) || (m && m != &mems[k]);
            if (m) {
                bad |= m->users != 1 || gsi_register_remove(&reg, m) != GRADSYNC_ERR_INVALID ||
                       gsi_register_begin_change(&reg, m) != GRADSYNC_ERR_INVALID;
                gsi_register_put(&reg, m);
            }
        } else if (!there[k]) {
            mems[k] = (gsi_memory){.addr = base, .bytes = bytes, .fd = -1};
            bad |= gsi_register_add(&reg, &mems[k]) || !mems[k].id;
            there[k] = 1;
        } else if (r >> 9 & 1) {
            /* One that overlaps it is refused: ends in it, begins in it, lies in it, holds it. */
            gsi_memory other = {.fd = -1};
            at = (int)(r >> 10 & 3);
            other.addr = at == 0 || at == 3 ? base - 10 : base + bytes - 1;
            other.bytes = at == 0 ? 11 : at == 3 ? bytes + 20 : 1;
            bad |= gsi_register_add(&reg, &other) != GRADSYNC_ERR_INVALID || !strstr(unit_error().message, "overlaps");
        } else {
            bad |= gsi_register_remove(&reg, &mems[k]) != 0;
            there[k] = 0;
        }
    }
    tap_ok(!bad, "50000 additions, removals and look-ups agree with a list");
    gsi_memory *m = &mems[0], now = {.addr = m->addr, .bytes = m->bytes, .fd = 5, .kind = GRADSYNC_MEM_REMAPPED};
    if (!there[0]) {
        *m = (gsi_memory){.addr = (char *)0x10000, .bytes = 1, .fd = -1};
        gsi_register_add(&reg, m);
    }
    uint32_t id = m->id;
    now.addr = m->addr, now.bytes = m->bytes;
    tap_ok(!gsi_register_begin_change(&reg, m) && !gsi_register_get(&reg, m->addr, 1),
           "memory on the move is not given");
    gsi_register_end_change(&reg, m, &now);
    tap_ok(gsi_register_get(&reg, m->addr, 1) == m && m->id == id && m->fd == 5 && m->users == 1,
           "and then is what it became");
    gsi_register_free(&reg);
}

/* ---- Allocation ---------------------------------------------------------------------------- */

static int is_zero(const char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (p[i])
            return 0;
    return 1;
}

static void test_alloc(void)
{
    static const size_t sizes[] = {1, PAGE - 1, PAGE, PAGE + 1, MIB, 2 * MIB - 1, 2 * MIB, 5 * MIB + 3};
    int bad = 0, fds = unit_count_fds(), mappings = unit_count_mappings();

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int huge = 0; huge < 2; huge++) {
            gsi_memory mem;
            if (gsi_host_alloc(sizes[i], huge, -1, &mem)) {
                bad++;
                continue;
            }
            bad += mem.bytes != sizes[i] || (uintptr_t)mem.addr % PAGE || !is_zero(mem.addr, sizes[i]) ||
                   mem.share_addr != mem.addr || mem.share_bytes < sizes[i] || mem.file_off ||
                   mem.kind != GRADSYNC_MEM_LIBRARY;
            if (huge && sizes[i] >= 2 * MIB)
                bad += (uintptr_t)mem.addr % (2 * MIB) != 0 || (mem.page_bytes != 2 * MIB && !mem.reason[0]);
            /* A peer sees the same bytes, and cannot take them away. */
            char *there = gsi_host_map(mem.fd, 0, mem.share_bytes);
            mem.addr[sizes[i] - 1] = 'z';
            bad += !there || there[sizes[i] - 1] != 'z' || !ftruncate(mem.fd, 0);
            if (there)
                munmap(there, mem.share_bytes);
            gsi_host_free(&mem);
        }
    tap_ok(!bad, "allocations are zeroed, aligned, shared and cannot shrink");
    tap_ok(unit_count_fds() == fds && unit_count_mappings() == mappings, "and leave nothing behind");
    gsi_memory mem;
    int huge_rc = gsi_host_alloc(SIZE_MAX, 1, -1, &mem), big_rc = gsi_host_alloc(SIZE_MAX / 2 - PAGE, 0, -1, &mem);
    int room_rc = gsi_host_alloc((size_t)1 << 55, 0, -1, &mem);
    tap_ok(huge_rc == GRADSYNC_ERR_NOMEM && big_rc == GRADSYNC_ERR_NOMEM && room_rc == GRADSYNC_ERR_NOMEM,
           "more than there is of address space is NOMEM (%d %d %d)", huge_rc, big_rc, room_rc);
    int rc = gsi_host_alloc(PAGE, 0, 500, &mem);
    tap_ok(!rc && strstr(mem.reason, "node 500"), "a NUMA node that is not there is a reason, no error: %s",
           mem.reason);
    if (!rc)
        gsi_host_free(&mem);
    char text[160];
    uint64_t size = gsi_host_huge_pages(text, sizeof text);
    tap_ok(text[0] && (size == 0 || size == 2 * MIB), "huge pages: %s", text);
    int node = gsi_host_node_of(text);
    tap_ok(node >= -1, "this page is on node %d", node);
}

/* ---- Remapping ------------------------------------------------------------------------------- */

static char pattern(size_t i)
{
    return (char)(i * 131 >> 3 ^ i);
}

static void fill(char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        p[i] = pattern(i);
}

static int holds(const char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (p[i] != pattern(i))
            return 0;
    return 1;
}

/* From any offset in a page: the whole pages move, the fringes do not, nothing changes for the user. */
static void test_remap(void)
{
    static const size_t offsets[] = {0, 1, 64, PAGE - 1}, sizes[] = {2 * PAGE, 3 * PAGE + 5, MIB, 37 * MIB + 17};
    int bad = 0, fds = unit_count_fds();

    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++) {
            size_t bytes = sizes[k], room = bytes + 2 * PAGE;
            char *map = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            char *p = map + offsets[i];
            gsi_memory mem;
            fill(map, room);
            if (gsi_host_remap(p, bytes, &mem)) {
                bad++;
                tap_note("%zu bytes at +%zu: %s", bytes, offsets[i], unit_error().message);
                continue;
            }
            bad += !holds(map, room) || mem.share_addr < p || mem.share_addr >= p + PAGE ||
                   mem.share_addr + mem.share_bytes > p + bytes || mem.share_addr + mem.share_bytes + PAGE <= p + bytes;
            char *there = gsi_host_map(mem.fd, mem.file_off, mem.share_bytes);
            bad += !there || memcmp(there, mem.share_addr, mem.share_bytes) != 0;
            if (there) {
                there[7]++;
                bad += there[7] != mem.share_addr[7];
                there[7]--;
                munmap(there, mem.share_bytes);
            }
            bad += gsi_host_unmap(&mem) != 0 || !holds(map, room);
            /* Private again: a child's writes are its own. */
            pid_t child = fork();
            if (!child) {
                memset(map, 0, room);
                _exit(0);
            }
            waitpid(child, NULL, 0);
            bad += !holds(map, room);
            munmap(map, room);
        }
    tap_ok(!bad, "pages move onto a memfd and back, with contents and addresses kept");
    tap_ok(unit_count_fds() == fds && !unit_count_mappings(), "nothing is left of it");
}

static int refuses(void *addr, size_t bytes, const char *what)
{
    gsi_memory mem;
    int rc = gsi_host_remap(addr, bytes, &mem);
    int good = rc == GRADSYNC_ERR_UNSUPPORTED && strstr(unit_error().message, "REMAP");
    if (!good)
        tap_note("%s: %d %s", what, rc, unit_error().message);
    if (!rc)
        gsi_host_unmap(&mem);
    return good;
}

static void test_refusals(void)
{
    char stack[4 * PAGE];
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), good;
    size_t bytes = 8 * PAGE;
    char *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *of_file = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);

    fill(map, bytes);
    memset(stack, 1, sizeof stack);
#if defined(__SANITIZE_ADDRESS__)
    good = 1; /* locals lie in memory of the sanitizer's own, which is like any other */
#else
    good = refuses(stack, sizeof stack, "the stack");
#endif
    good = good & refuses(shared, bytes, "shared memory") & refuses(of_file, bytes, "a file") &
           refuses(map + 1, PAGE + 10, "less than a page") & refuses(map, (size_t)1 << 40, "beyond the mapping");
    mprotect(map + 2 * PAGE, PAGE, PROT_READ);
    good &= refuses(map, bytes, "read-only memory");
    mprotect(map + 2 * PAGE, PAGE, PROT_READ | PROT_WRITE);
    tap_ok(good && holds(map, bytes), "stack, shared, file, read-only and unmapped memory is refused, nothing done");
    munmap(map + 3 * PAGE, PAGE);
    tap_ok(refuses(map, bytes, "a hole"), "a hole is refused");
    munmap(map, bytes);
    munmap(shared, bytes);
    munmap(of_file, bytes);
    close(file);
}

/* A mapping with a path of 4,000 bytes in front, as deep build trees have. */
static void test_long_path(void)
{
    char path[PATH_MAX], name[256];
    char *start = getcwd(NULL, 0);
    int depth = 0, good = 0;

    snprintf(path, sizeof path, "/tmp/gradsync-unit-%d", (int)getpid());
    memset(name, 'd', 200);
    name[200] = 0;
    if (!mkdtemp(strcat(path, "XXXXXX")) || chdir(path)) {
        tap_skip(1, "no folder in /tmp");
        free(start);
        return;
    }
    while (depth < 15 && !mkdir(name, 0700) && !chdir(name))
        depth++;
    int fd = open("f", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    size_t bytes = 4 * PAGE;
    char *both = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fd >= 0 && !ftruncate(fd, (off_t)bytes) &&
        mmap(both, bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0) != MAP_FAILED) {
        gsi_memory mem;
        fill(both + bytes, bytes);
        int rc = gsi_host_remap(both + bytes, bytes, &mem);
        good = !rc && holds(both + bytes, bytes) && !gsi_host_unmap(&mem) && refuses(both, bytes, "a deep file");
        if (rc)
            tap_note("%s", unit_error().message);
    }
    munmap(both, 2 * bytes);
    if (fd >= 0)
        close(fd);
    unlink("f");
    while (depth-- > 0 && !chdir(".."))
        rmdir(name);
    if (chdir(start) || rmdir(path))
        good = 0;
    free(start);
    tap_ok(good, "mappings of files with long paths do not confuse it");
}

/* ---- Through the API --------------------------------------------------------------------------- */

static void test_api(void)
{
    gradsync_context *ctx;
    gradsync_mem *mem, *other;
    gradsync_mem_config config = GRADSYNC_MEM_CONFIG_INIT;
    gradsync_mem_info info = {.size = sizeof info};
    size_t bytes = 3 * MIB;
    char *p = malloc(bytes);
    int fds = unit_count_fds();

    gradsync_context_create(NULL, &ctx);
    fill(p, bytes);
    config.flags = GRADSYNC_MEM_REMAP;
    int rc = gradsync_mem_register(ctx, p, bytes, &config, &mem);
    gradsync_mem_query(mem, &info);
    tap_ok(!rc && info.kind == GRADSYNC_MEM_REMAPPED && info.shareable && info.addr == p && info.bytes == bytes &&
               gradsync_mem_addr(mem) == p && holds(p, bytes),
           "a malloc'ed block is remapped at registration");
    tap_ok(gradsync_mem_register(ctx, p + 100, 10, NULL, &other) == GRADSYNC_ERR_INVALID && !other &&
               gradsync_mem_register(ctx, p + 100, 10, &config, &other) == GRADSYNC_ERR_INVALID && !other &&
               holds(p, bytes),
           "no range is registered twice");
    tap_ok(gradsync_mem_free(mem) == GRADSYNC_ERR_INVALID, "free is not for registered memory");
    tap_ok(gradsync_context_destroy(ctx) == GRADSYNC_ERR_INVALID && strstr(unit_error().message, "1 pieces"),
           "the context does not end before its memory");
    tap_ok(!gradsync_mem_deregister(mem) && holds(p, bytes) && !unit_count_mappings(), "and private again");
    char small[100];
    rc = gradsync_mem_register(ctx, small, sizeof small, &config, &mem);
    tap_ok(rc == GRADSYNC_ERR_UNSUPPORTED && !mem && !gradsync_mem_register(ctx, small, sizeof small, NULL, &mem),
           "after a refused remap the range is free");
    gradsync_mem_query(mem, &info);
    tap_ok(info.kind == GRADSYNC_MEM_PLAIN && !info.shareable && strstr(info.reason, "REMAP"),
           "plain memory says why it is not shareable: %s", info.reason);
    gradsync_mem_deregister(mem);
    rc = gradsync_mem_alloc(ctx, bytes, NULL, &mem);
    gradsync_mem_query(mem, &info);
    tap_ok(!rc && info.kind == GRADSYNC_MEM_LIBRARY && info.shareable &&
               gradsync_mem_deregister(mem) == GRADSYNC_ERR_INVALID && !gradsync_mem_free(mem),
           "deregister is not for allocated memory");
    int bad = gradsync_mem_register(ctx, NULL, 10, NULL, &mem) != GRADSYNC_ERR_INVALID;
    bad |= gradsync_mem_register(ctx, p, 0, NULL, &mem) != GRADSYNC_ERR_INVALID;
    bad |= gradsync_mem_register(ctx, p, SIZE_MAX, NULL, &mem) != GRADSYNC_ERR_INVALID;
    bad |= gradsync_mem_alloc(ctx, 0, NULL, &mem) != GRADSYNC_ERR_INVALID;
    bad |= gradsync_mem_alloc(NULL, 1, NULL, &mem) != GRADSYNC_ERR_INVALID;
    bad |= gradsync_mem_alloc(ctx, 1, NULL, NULL) != GRADSYNC_ERR_INVALID;
    config.flags = 64;
    bad |= gradsync_mem_alloc(ctx, 1, &config, &mem) != GRADSYNC_ERR_INVALID;
    config.flags = 0;
    config.numa_node = -1;
    bad |= gradsync_mem_alloc(ctx, 1, &config, &mem) != GRADSYNC_ERR_INVALID;
    bad |= gradsync_mem_free(NULL) != 0 || gradsync_mem_deregister(NULL) != GRADSYNC_ERR_INVALID;
    bad |= gradsync_mem_query(NULL, &info) != GRADSYNC_ERR_INVALID || gradsync_mem_addr(NULL) != NULL;
    tap_ok(!bad, "nonsense is INVALID");
    tap_ok(!gradsync_context_destroy(ctx) && unit_count_fds() == fds, "all gone");
    free(p);
}

/* ---- Memory that cannot be made private again -------------------------------------------------------- */

/* In a child whose address space is limited after the remap. */
static int restore_under_limit(void)
{
    gradsync_context *ctx;
    gradsync_mem *mem;
    gradsync_mem_config config = GRADSYNC_MEM_CONFIG_INIT;
    size_t bytes = 40 * MIB;
    char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct rlimit before, tight;

    gradsync_context_create(NULL, &ctx);
    fill(p, bytes);
    config.flags = GRADSYNC_MEM_REMAP;
    if (gradsync_mem_register(ctx, p, bytes, &config, &mem))
        return 1;
    getrlimit(RLIMIT_AS, &before);
    tight = before;
    tight.rlim_cur = MIB;
    setrlimit(RLIMIT_AS, &tight);
    int rc = gradsync_mem_deregister(mem);
    setrlimit(RLIMIT_AS, &before);
    if (rc != GRADSYNC_ERR_SYSTEM || !holds(p, bytes))
        return 2;
    /* Nothing is lost: it can be used, and be tried again. */
    memset(p, 1, PAGE);
    fill(p, bytes);
    if (gradsync_mem_deregister(mem) || !holds(p, bytes) || unit_count_mappings())
        return 3;
    return gradsync_context_destroy(ctx) ? 4 : 0;
}

/* The remap itself fails under a limit: the memory stays as it was, whole. */
static int remap_under_limit(void)
{
    gsi_memory mem;
    size_t bytes = 40 * MIB;
    char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct rlimit before, tight;

    fill(p, bytes);
    getrlimit(RLIMIT_AS, &before);
    tight = before;
    tight.rlim_cur = MIB;
    setrlimit(RLIMIT_AS, &tight);
    int rc = gsi_host_remap(p, bytes, &mem);
    setrlimit(RLIMIT_AS, &before);
    return !(rc == GRADSYNC_ERR_SYSTEM && holds(p, bytes) && !unit_count_mappings());
}

static int in_child(int (*fn)(void))
{
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (!child)
        _exit(fn());
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 100;
}

/* Under a limit of file sizes nothing but the limit's error happens: no signal. */
static int limited_files(void)
{
    gradsync_context *ctx;
    gradsync_mem *mem;
    gradsync_mem_config config = GRADSYNC_MEM_CONFIG_INIT;
    size_t bytes = 4 * MIB;
    char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct rlimit limit = {MIB, MIB};

    gradsync_context_create(NULL, &ctx);
    fill(p, bytes);
    setrlimit(RLIMIT_FSIZE, &limit);
    if (gradsync_mem_alloc(ctx, bytes, NULL, &mem) != GRADSYNC_ERR_NOMEM || !strstr(unit_error().message, "ulimit -f"))
        return 1;
    config.flags = GRADSYNC_MEM_REMAP;
    if (gradsync_mem_register(ctx, p, bytes, &config, &mem) != GRADSYNC_ERR_SYSTEM || !holds(p, bytes))
        return 2;
    gradsync_comm *comm;
    if (gradsync_comm_create(ctx, 0, 1, NULL, NULL, NULL, &comm) != GRADSYNC_ERR_SYSTEM)
        return 3;
    return gradsync_mem_alloc(ctx, MIB / 2, NULL, &mem) ? 4 : 0;
}

static void test_limits(void)
{
    int files = in_child(limited_files);
    tap_ok(!files, "a limit of file sizes is an error, no signal (%d)", files);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    tap_skip(2, "a sanitizer needs its address space");
    (void)restore_under_limit, (void)remap_under_limit;
#else
    int rc = in_child(remap_under_limit);
    tap_ok(!rc, "a remap that fails changes nothing (%d)", rc);
    rc = in_child(restore_under_limit);
    tap_ok(!rc, "memory that cannot be made private again stays usable and registered (%d)", rc);
#endif
}

/* ---- Under the eyes of other threads ------------------------------------------------------------------- */

static _Atomic int stop;

static void *reduce_on(void *arg)
{
    /* One rank alone, on memory that another thread registers and deregisters all the while. */
    gradsync_comm *comm = ((void **)arg)[0];
    const char *p = ((void **)arg)[1];
    static char recv[8 * PAGE];
    long rc = 0;
    while (!stop && !rc)
        rc = gradsync_all_reduce(comm, p, recv, sizeof recv, GRADSYNC_U8, GRADSYNC_SUM, NULL) ||
             memcmp(p, recv, sizeof recv) != 0;
    return (void *)rc;
}

static void test_race(void)
{
    gradsync_context *ctx;
    gradsync_comm *comm;
    gradsync_mem *mem;
    gradsync_mem_config config = GRADSYNC_MEM_CONFIG_INIT;
    char *p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *arg[2], *failed;
    pthread_t thread;
    int bad = 0;

    fill(p, 8 * PAGE);
    gradsync_context_create(NULL, &ctx);
    gradsync_comm_create(ctx, 0, 1, NULL, NULL, NULL, &comm);
    arg[0] = comm, arg[1] = p;
    config.flags = GRADSYNC_MEM_REMAP;
    pthread_create(&thread, NULL, reduce_on, arg);
    for (int i = 0; i < 500 && !bad; i++) {
        bad = gradsync_mem_register(ctx, p, 8 * PAGE, &config, &mem);
        /* In use is a matter of moments. */
        while (!bad && gradsync_mem_deregister(mem))
            bad = unit_error().code != GRADSYNC_ERR_INVALID;
    }
    stop = 1;
    pthread_join(thread, &failed);
    tap_ok(!bad && !failed && holds(p, 8 * PAGE), "memory is registered and deregistered while it is read");
    gradsync_comm_destroy(comm);
    tap_ok(!gradsync_context_destroy(ctx), "and counted right");
    munmap(p, 8 * PAGE);
}

int main(void)
{
    test_register();
    test_alloc();
    test_remap();
    test_refusals();
    test_long_path();
    test_api();
    test_limits();
    test_race();
    return tap_done();
}
