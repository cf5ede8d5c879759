/* SPDX-License-Identifier: Apache-2.0 */
/* The cases of test_rail.c that are about what is refused, and with which words. */
#include "cases.h"
#include "pair.h"
#include "tap.h"

#include <dirent.h>
#include <errno.h>
#include <gradsync/gradsync.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

const char *case_message(void)
{
    static gradsync_error_info info;

    info = (gradsync_error_info)GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    return info.message;
}

int case_refuses(pair *p, gsi_rail_config config, int code, const char *text)
{
    gsi_rail *rail = NULL;
    int rc = p->open(&config, &rail);

    if (rc != code || !strstr(case_message(), text)) {
        fprintf(stderr, "# %d '%s', not %d '%s'\n", rc, rc ? case_message() : "", code, text);
        if (!rc)
            rail->ops->close(rail);
        return 0;
    }
    return 1;
}

int case_wrong_addresses(pair *p)
{
    gsi_rail_address good, bad = {{0}};
    gsi_conn *conn = NULL;

    EXPECT(!p->rail->ops->conn(p->rail, 3, &conn, &good));
    EXPECT(p->rail->ops->connect(conn, &bad) == GRADSYNC_ERR_DEVICE);
    bad = good;
    bad.blob[4] ^= 1; /* of the other link layer */
    EXPECT(p->rail->ops->connect(conn, &bad) == GRADSYNC_ERR_DEVICE);
    EXPECT(p->rail->ops->ready(conn) == 0);
    EXPECT(p->rail->ops->write(conn, &(gsi_rail_work){.flags = GSI_RAIL_IMM}) == GRADSYNC_ERR_SYSTEM);
    p->rail->ops->disconnect(conn);
    return 1;
}

/* One side by rdma_cm, the other not. */
int case_mixed_managers(pair *p)
{
    const char *was = getenv("GRADSYNC_CONNECT");
    int cm = was && !strcmp(was, "cm");
    gsi_rail *other = NULL;
    gsi_rail_address mine, theirs;
    gsi_conn *conn = NULL;

    setenv("GRADSYNC_CONNECT", "pigeon", 1);
    EXPECT(p->open(&p->config, &other) == GRADSYNC_ERR_INVALID && strstr(case_message(), "pigeon"));
    setenv("GRADSYNC_CONNECT", cm != (p->role == 1) ? "cm" : "exchange", 1);
    int rc = p->open(&p->config, &other);
    if (was)
        setenv("GRADSYNC_CONNECT", was, 1);
    else
        unsetenv("GRADSYNC_CONNECT");
    /* A GID that is no IP address cannot be connected to by rdma_cm. */
    EXPECT(!rc || (rc == GRADSYNC_ERR_UNSUPPORTED && strstr(case_message(), "IP address")));
    if (!pair_meet(p, !rc)) {
        if (!rc)
            other->ops->close(other);
        return 1;
    }
    EXPECT(!other->ops->conn(other, 1, &conn, &mine));
    pair_swap(p, &mine, &theirs, sizeof mine);
    EXPECT(other->ops->connect(conn, &theirs) == GRADSYNC_ERR_INVALID && strstr(case_message(), "GRADSYNC_CONNECT"));
    other->ops->close(other);
    return 1;
}

int case_wrong_memory(pair *p)
{
    gsi_region region;
    void *read_only = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    EXPECT(p->rail->ops->reg(p->rail, read_only, 8192, &region) == GRADSYNC_ERR_UNSUPPORTED);
    munmap(read_only, 8192);
    EXPECT(p->rail->ops->reg(p->rail, read_only, 8192, &region) == GRADSYNC_ERR_UNSUPPORTED);
    EXPECT(p->rail->ops->reg(p->rail, p->mem, 0, &region) == GRADSYNC_ERR_UNSUPPORTED);
    /* Many, given back in another order. */
    gsi_region many[20];
    for (unsigned i = 0; i < 20; i++)
        EXPECT(!p->rail->ops->reg(p->rail, p->mem + 4096 * (size_t)i, 4096, &many[i]));
    for (unsigned i = 0; i < 20; i++)
        p->rail->ops->dereg(p->rail, &many[i * 7 % 20]);
    return 1;
}

/* As a user without privileges and with a small limit of locked memory. */
int case_memlock(pair *p)
{
    pid_t child = fork();

    if (child == 0) {
        struct rlimit limit = {65536, 65536};
        gsi_rail *rail;
        gsi_region region;
        int rc;

        if (setrlimit(RLIMIT_MEMLOCK, &limit) || setgid(65534) || setuid(65534))
            _exit(2);
        rc = p->open(&p->config, &rail);
        if (!rc)
            rc = rail->ops->reg(rail, p->mem, 1 << 20, &region);
        if (rc != GRADSYNC_ERR_NOMEM || !strstr(case_message(), "ulimit -l unlimited"))
            fprintf(stderr, "# %d: %s\n", rc, case_message());
        _exit(rc == GRADSYNC_ERR_NOMEM && strstr(case_message(), "ulimit -l unlimited") ? 0 : 1);
    }
    int status = -1;
    EXPECT(waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status) == 0;
}

/* Sees to it that this process, a child, has no /dev/infiniband but an empty one, of its own; then one whose nodes are
 * root's, and is not root. What libibverbs says of either is to be told with the remedy. */
static int without_nodes(pair *p)
{
    char names[64][32];
    dev_t numbers[64];
    int n = 0;
    DIR *folder = opendir("/dev/infiniband");
    struct dirent *entry;

    EXPECT(folder);
    while (n < 64 && (entry = readdir(folder))) {
        struct stat node;

        if (strncmp(entry->d_name, "uverbs", 6) || fstatat(dirfd(folder), entry->d_name, &node, 0))
            continue;
        snprintf(names[n], sizeof names[n], "%.31s", entry->d_name);
        numbers[n++] = node.st_rdev;
    }
    closedir(folder);
    EXPECT(n > 0 && !mount("none", "/dev/infiniband", "tmpfs", 0, NULL));
    EXPECT(case_refuses(p, p->config, GRADSYNC_ERR_DEVICE, "--device=/dev/infiniband"));
    for (int i = 0; i < n; i++) {
        char path[64];

        snprintf(path, sizeof path, "/dev/infiniband/%.31s", names[i]);
        EXPECT(!mknod(path, S_IFCHR | 0600, numbers[i]));
    }
    EXPECT(!setgid(65534) && !setuid(65534));
    return case_refuses(p, p->config, GRADSYNC_ERR_DEVICE, "no access to /dev/infiniband/uverbs");
}

int case_no_access(pair *p)
{
    enum { CANNOT = 77 };
    int status = -1;
    pid_t child = fork();

    if (child == 0) {
        if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
            _exit(CANNOT);
        _exit(!without_nodes(p));
    }
    EXPECT(waitpid(child, &status, 0) == child && WIFEXITED(status));
    if (WEXITSTATUS(status) == CANNOT && p->role == 0)
        tap_note("not tried: this user cannot hide the device's nodes");
    return WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == CANNOT;
}

int case_wrong_configs(pair *p)
{
    gsi_rail_config c = p->config;

    strcpy(c.device, "no_such_0");
    EXPECT(case_refuses(p, c, GRADSYNC_ERR_DEVICE, p->config.device));
    c = p->config, c.port = 9;
    EXPECT(case_refuses(p, c, GRADSYNC_ERR_DEVICE, "no port 9"));
    c = p->config, c.gid_index = 200;
    EXPECT(case_refuses(p, c, GRADSYNC_ERR_DEVICE, "index 200"));
    c = p->config, c.gid_index = 256;
    EXPECT(case_refuses(p, c, GRADSYNC_ERR_INVALID, "GID index 256"));
    c = p->config, c.mtu = 1500;
    EXPECT(case_refuses(p, c, GRADSYNC_ERR_INVALID, "1500"));
    c = p->config, c.connections = 60000;
    EXPECT(case_refuses(p, c, GRADSYNC_ERR_UNSUPPORTED, "completion queue"));
    c = p->config, c.traffic_class = 256;
    EXPECT(case_refuses(p, c, GRADSYNC_ERR_INVALID, "traffic class"));
    c = p->config, c.retry_count = 8;
    EXPECT(case_refuses(p, c, GRADSYNC_ERR_INVALID, "retries"));
    return 1;
}

/* Queues go to the rail's node; the caller's own memory goes on going where it did. */
int case_memory_policy(pair *p)
{
    enum { INTERLEAVE = 3, BITS = 1024 };
    unsigned long mine[BITS / 64] = {1}, now[BITS / 64] = {0};
    gsi_rail_config config = p->config;
    gsi_rail_address address;
    gsi_rail *rail;
    gsi_conn *conn;
    int mode = -1;

    if (syscall(SYS_set_mempolicy, INTERLEAVE, mine, BITS)) {
        tap_note("no memory policies here: %s", strerror(errno));
        return 1;
    }
    config.numa_node = 0;
    EXPECT(!p->open(&config, &rail));
    EXPECT(rail->numa_node == 0);
    EXPECT(!rail->ops->conn(rail, 0, &conn, &address));
    EXPECT(!syscall(SYS_get_mempolicy, &mode, now, BITS, NULL, 0));
    EXPECT(mode == INTERLEAVE && now[0] == 1);
    EXPECT(!syscall(SYS_set_mempolicy, 0, NULL, 0));
    rail->ops->disconnect(conn);
    rail->ops->close(rail);
    EXPECT(!syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0));
    return mode == 0;
}
