/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

uint64_t unit_random(uint64_t *seed)
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int count_entries(const char *folder)
{
    DIR *d = opendir(folder);
    int count = 0;
    for (const struct dirent *e; d && (e = readdir(d));)
        count += e->d_name[0] != '.';
    if (d)
        closedir(d);
    return count;
}

int unit_count_fds(void)
{
    return count_entries("/proc/self/fd") - 1; /* but for the folder's own */
}

int unit_count_threads(void)
{
    return count_entries("/proc/self/task");
}

int unit_count_shm(void)
{
    return count_entries("/dev/shm");
}

int unit_count_mappings(void)
{
    FILE *f = fopen("/proc/self/maps", "re");
    char line[512];
    int count = 0;
    while (f && fgets(line, sizeof line, f))
        count += strstr(line, "memfd:gradsync") != NULL;
    if (f)
        fclose(f);
    return count;
}

int unit_is_mapped(const void *addr)
{
    unsigned char resident;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    return !mincore((void *)((uintptr_t)addr / page * page), 1, &resident);
}

long unit_rollup_kb(const char *line)
{
    FILE *f = fopen("/proc/self/smaps_rollup", "re");
    char text[256];
    long kb = -1;
    while (f && kb < 0 && fgets(text, sizeof text, f))
        if (!strncmp(text, line, strlen(line)))
            sscanf(text + strlen(line), "%ld", &kb);
    if (f)
        fclose(f);
    return kb;
}

long unit_cpu_us(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000 + u.ru_utime.tv_usec + u.ru_stime.tv_usec;
}

gradsync_error_info unit_error(void)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&info);
    return info;
}
