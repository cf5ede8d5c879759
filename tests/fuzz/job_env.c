/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes the reading of launchers' environments. Input: lines NAME=value. */
#include "bootstrap/bootstrap.h"
#include "fuzz.h"

struct env {
    char *text; /* the lines, each with a NUL at its end */
    size_t n;
};

static const char *lookup(void *arg, const char *name)
{
    const struct env *e = arg;
    size_t length = strlen(name);

    for (size_t at = 0; at < e->n; at += strlen(e->text + at) + 1)
        if (!strncmp(e->text + at, name, length) && e->text[at + length] == '=')
            return e->text + at + length + 1;
    return NULL;
}

static int ends(const char *s, size_t room)
{
    return memchr(s, 0, room) != NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct env e = {malloc(size + 1), size};
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    gsi_job job;

    memcpy(e.text, data, size);
    e.text[size] = 0;
    for (size_t i = 0; i < size; i++)
        if (e.text[i] == '\n')
            e.text[i] = 0;
    memset(&job, 0xee, sizeof job);
    int r = gsi_job_from_env(lookup, &e, &job);
    if (r == 0) {
        must(job.nranks >= 1 && job.nranks <= GSI_MAX_RANKS && job.rank >= 0 && job.rank < job.nranks);
        must(job.local_ranks >= -1 && job.local_ranks <= job.nranks && job.local_rank >= -1);
        must(job.local_ranks < 0 || job.local_rank < job.local_ranks);
        must(ends(job.addr, sizeof job.addr) && ends(job.id, sizeof job.id) && ends(job.ifname, sizeof job.ifname) &&
             ends(job.launcher, sizeof job.launcher));
        must(job.nranks == 1 || (job.addr[0] && job.port >= 1 && job.ports >= 1 && job.ports <= GSI_JOB_PORTS &&
                                 job.port + job.ports - 1 <= 65535));
    } else {
        must(r == GRADSYNC_ERR_INVALID);
        gradsync_last_error(&info);
        must(info.code == r && info.message[0] && ends(info.message, sizeof info.message));
        for (const char *p = info.message; *p; p++)
            must(*p >= ' ' && *p <= '~');
    }
    free(e.text);
    return 0;
}
