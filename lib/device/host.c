/* SPDX-License-Identifier: Apache-2.0 */
/* Host memory that peers can reach: memfds, huge pages, NUMA placement, and moving
 * a user's private pages onto a memfd. */
#include "device/device.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum { HUGE = 2 << 20, MPOL_PREFERRED_MODE = 1, MPOL_F_NODE_ADDR = 3, MOVE_PIECE = 16 << 20 };

static uint64_t round_up(uint64_t v, uint64_t to)
{
    return (v + to - 1) / to * to;
}

static uint64_t page_size(void)
{
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Address space of `bytes`, congruent to `offset` modulo a huge page, not accessible. */
static void *reserve(uint64_t bytes, uint64_t offset)
{
    char *p = mmap(NULL, bytes + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    uint64_t skip = (offset - (uintptr_t)p) & (HUGE - 1);
    if (skip)
        munmap(p, skip);
    if (HUGE - skip)
        munmap(p + skip + bytes, HUGE - skip);
    return p + skip;
}

void *gsi_host_map(int fd, uint64_t file_off, uint64_t bytes)
{
    void *at = reserve(bytes, file_off);
    if (!at)
        return NULL;
    if (mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, (off_t)file_off) != MAP_FAILED)
        return at;
    int err = errno;
    munmap(at, bytes);
    errno = err;
    return NULL;
}

int gsi_host_memfd(const char *name, uint64_t bytes)
{
    struct rlimit limit;

    /* Beyond the host's limit of file sizes (ulimit -f) ftruncate() would raise a signal. */
    if (!getrlimit(RLIMIT_FSIZE, &limit) && limit.rlim_cur != RLIM_INFINITY && bytes > limit.rlim_cur) {
        errno = EFBIG;
        return -1;
    }
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -1;
    if (!ftruncate(fd, (off_t)bytes) && !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        return fd;
    int err = errno;
    close(fd);
    errno = err;
    return -1;
}

int gsi_host_prefer_node(void *addr, uint64_t bytes, int node)
{
    unsigned long mask[16] = {0};
    if (node < 0 || (size_t)node >= sizeof mask * 8)
        return 0;
    mask[(size_t)node / (sizeof mask[0] * 8)] = 1ul << ((size_t)node % (sizeof mask[0] * 8));
    return (int)syscall(SYS_mbind, addr, bytes, MPOL_PREFERRED_MODE, mask, sizeof mask * 8, 0);
}

int gsi_host_node_of(const void *addr)
{
    int node = -1;
    return syscall(SYS_get_mempolicy, &node, NULL, 0, addr, MPOL_F_NODE_ADDR) ? -1 : node;
}

/* Backs [addr, addr + bytes) by huge pages now. One byte per huge page is touched first, since
 * the kernel collapses only what has a page. 0, or -1 with the reason. */
static int make_huge(char *addr, uint64_t bytes, char *reason, size_t room)
{
    char *from = (char *)round_up((uintptr_t)addr, HUGE), *end = addr + bytes;
    if (end < from + HUGE)
        return -1;
    uint64_t len = (uint64_t)(end - from) / HUGE * HUGE;
    madvise(from, len, MADV_HUGEPAGE);
    for (uint64_t at = 0; at < len; at += HUGE) {
        volatile char *p = from + at;
        *p = *p;
    }
    if (!madvise(from, len, MADV_COLLAPSE))
        return 0;
    snprintf(reason, room,
             "no huge pages (%s); a kernel of 6.1 or later, or "
             "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, gives them",
             strerror(errno));
    return -1;
}

uint64_t gsi_host_huge_pages(char *text, size_t room)
{
    gsi_memory mem;
    if (gsi_host_alloc(HUGE, 1, -1, &mem)) {
        snprintf(text, room, "a trial allocation of 2 MiB failed");
        return 0;
    }
    uint64_t size = mem.page_bytes > page_size() ? mem.page_bytes : 0;
    snprintf(text, room, "%s", size ? "2 MiB pages for allocations of 2 MiB and more" : mem.reason);
    gsi_host_free(&mem);
    return size;
}

int gsi_host_alloc(size_t bytes, int huge, int numa_node, gsi_memory *mem)
{
    uint64_t page = page_size();
    int wants_huge = huge && bytes >= HUGE;

    *mem = (gsi_memory){.kind = GRADSYNC_MEM_LIBRARY, .bytes = bytes, .page_bytes = page, .fd = -1};
    if (bytes > INT64_MAX - 2 * HUGE)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "%zu bytes of memory are more than any machine has", bytes);
    mem->map_bytes = mem->share_bytes = round_up(bytes, wants_huge ? (uint64_t)HUGE : page);
    mem->fd = gsi_host_memfd("gradsync", mem->map_bytes);
    if (mem->fd < 0) {
        if (errno == ENOMEM || errno == EFBIG || errno == ENOSPC)
            return gsi_fail(
                GRADSYNC_ERR_NOMEM,
                "no memory for %zu bytes of shareable memory (%s); ask for less, or raise the limit of file "
                "sizes (ulimit -f) if there is one",
                bytes, strerror(errno));
        return gsi_fail_errno(errno, "cannot make shareable memory of %zu bytes (memfd)", bytes);
    }
    mem->addr = gsi_host_map(mem->fd, 0, mem->map_bytes);
    if (!mem->addr) {
        close(mem->fd);
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no address space for %zu bytes of shareable memory", bytes);
    }
    mem->share_addr = mem->addr;
    if (numa_node >= 0 && gsi_host_prefer_node(mem->addr, mem->map_bytes, numa_node))
        snprintf(mem->reason, sizeof mem->reason, "NUMA node %d not preferred: %s", numa_node, strerror(errno));
    if (wants_huge && !make_huge(mem->addr, mem->map_bytes, mem->reason, sizeof mem->reason))
        mem->page_bytes = HUGE;
    return 0;
}

void gsi_host_free(gsi_memory *mem)
{
    munmap(mem->addr, mem->map_bytes);
    close(mem->fd);
}

/* Whether all of [from, end) is private anonymous read-write memory of the heap or of mmap. */
static int is_private_anonymous(uintptr_t from, uintptr_t end)
{
    FILE *f = fopen("/proc/self/maps", "re");
    char line[512];
    uintptr_t at = from;

    if (!f)
        return 0;
    while (at < end && fgets(line, sizeof line, f)) {
        uintptr_t a, b;
        uint64_t inode;
        char perms[8], name[64] = "";
        for (int c; !strchr(line, '\n') && (c = getc(f)) != '\n' && c != EOF;)
            ; /* the end of a long path */
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %7s %*s %*s %" SCNu64 " %63s", &a, &b, perms, &inode, name) < 4)
            break;
        if (b <= at)
            continue;
        if (a > at || strcmp(perms, "rw-p") || inode ||
            (name[0] == '[' && strcmp(name, "[heap]") && strncmp(name, "[anon", 5)))
            break;
        at = b;
    }
    fclose(f);
    return at >= end;
}

/* Replaces private pages by the memfd's (or the reverse) piece by piece, so that the peak of
 * extra memory is one piece; each replacement is one atomic mmap over the old pages. Returns the
 * bytes that were moved: all, or less with errno set. */
static uint64_t move_pages(char *addr, uint64_t bytes, int fd, uint64_t file_off, int to_fd)
{
    uint64_t done = 0;
    while (done < bytes) {
        uint64_t len = bytes - done < MOVE_PIECE ? bytes - done : MOVE_PIECE;
        char *at = addr + done;
        int flags = to_fd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
        char *copy =
            mmap(NULL, len, PROT_READ | PROT_WRITE, flags, to_fd ? fd : -1, to_fd ? (off_t)(file_off + done) : 0);
        if (copy == MAP_FAILED)
            return done;
        memcpy(copy, at, len);
        if (mremap(copy, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED) {
            int err = errno;
            munmap(copy, len);
            errno = err;
            return done;
        }
        done += len;
    }
    return done;
}

int gsi_host_remap(void *addr, size_t bytes, gsi_memory *mem)
{
    uint64_t page = page_size();
    uintptr_t from = (uintptr_t)round_up((uintptr_t)addr, page);
    uintptr_t end = ((uintptr_t)addr + bytes) / page * page;

    *mem = (gsi_memory){.kind = GRADSYNC_MEM_REMAPPED, .addr = addr, .bytes = bytes, .page_bytes = page, .fd = -1};
    if (end <= from)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED,
                        "%zu bytes at %p hold no whole page to remap; register without GRADSYNC_MEM_REMAP", bytes,
                        addr);
    if (!is_private_anonymous(from, end))
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED,
                        "%zu bytes at %p are not private anonymous memory (a file, a stack or shared memory); "
                        "register without GRADSYNC_MEM_REMAP or use gradsync_mem_alloc",
                        bytes, addr);
    mem->share_addr = (char *)from;
    mem->share_bytes = mem->map_bytes = end - from;
    mem->file_off = from & (HUGE - 1);
    mem->fd = gsi_host_memfd("gradsync", mem->file_off + mem->share_bytes);
    if (mem->fd < 0)
        return gsi_fail_errno(errno, "cannot make shareable memory of %" PRIu64 " bytes (memfd)", mem->share_bytes);
    /* What cannot be undone for want of memory stays on the memfd, which lives on in the mapping: no less usable. */
    uint64_t moved = move_pages(mem->share_addr, mem->share_bytes, mem->fd, mem->file_off, 1);
    if (moved < mem->share_bytes) {
        int err = errno;
        move_pages(mem->share_addr, moved, mem->fd, mem->file_off, 0);
        close(mem->fd);
        return gsi_fail_errno(err, "cannot remap %" PRIu64 " bytes at %p", mem->share_bytes, addr);
    }
    if (mem->share_bytes >= 2 * HUGE && !make_huge(mem->share_addr, mem->share_bytes, mem->reason, sizeof mem->reason))
        mem->page_bytes = HUGE;
    return 0;
}

int gsi_host_unmap(gsi_memory *mem)
{
    if (move_pages(mem->share_addr, mem->share_bytes, mem->fd, mem->file_off, 0) < mem->share_bytes)
        return gsi_fail_errno(errno, "cannot make %" PRIu64 " bytes at %p private again", mem->share_bytes,
                              (void *)mem->share_addr);
    close(mem->fd);
    return 0;
}
