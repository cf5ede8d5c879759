/* SPDX-License-Identifier: Apache-2.0 */
/* Defects to be found by gradsync-perf's verification: linked into a build of it
 * with --wrap. TEST_DEFECT names one; all of them are rank 1's alone. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include <gradsync/gradsync.h>

int __real_gradsync_all_reduce(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype, int op,
                               const gradsync_coll_opts *opts);
int __wrap_gradsync_all_reduce(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype, int op,
                               const gradsync_coll_opts *opts);

int __wrap_gradsync_all_reduce(gradsync_comm *comm, const void *send, void *recv, uint64_t count, int dtype, int op,
                               const gradsync_coll_opts *opts)
{
    const char *defect = getenv("TEST_DEFECT");
    unsigned char *out = recv;
    int rc = __real_gradsync_all_reduce(comm, send, recv, count, dtype, op, opts);

    /* What is measured and verified is f32; the program's own exchanges are not. */
    if (!defect || dtype != GRADSYNC_F32 || gradsync_comm_rank(comm) != 1 || rc != 0 || count == 0)
        return rc;
    if (strcmp(defect, "value") == 0)
        out[4 * (count / 2)] ^= 1;
    if (strcmp(defect, "behind") == 0)
        out[4 * count] ^= 1;
    if (strcmp(defect, "before") == 0)
        out[-1] ^= 1;
    if (strcmp(defect, "input") == 0 && send != recv)
        memset((void *)(uintptr_t)send, 0, 4);
    if (strcmp(defect, "die") == 0)
        raise(SIGKILL);
    return rc;
}
