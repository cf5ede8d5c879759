/* SPDX-License-Identifier: Apache-2.0 */
/* What the launchers' environments mean: real ones, broken ones, garbage. */
#include "base/error.h"
#include "bootstrap/bootstrap.h"
#include "bootstrap/hostlist.h"
#include "tap.h"

#include <string.h>

/* "NAME=value" strings, NULL-terminated. */
static const char *lookup(void *arg, const char *name)
{
    size_t n = strlen(name);

    for (const char *const *v = arg; *v; v++)
        if (!strncmp(*v, name, n) && (*v)[n] == '=')
            return *v + n + 1;
    return NULL;
}

struct good {
    const char *what, *env[16];
    const char *launcher;
    int rank, nranks, local_rank, local_ranks;
    const char *addr;
    int port, ports; /* 0: derived, only bounded here */
    const char *id;
};

static const struct good goods[] = {
    {"gradsync-run",
     {"GRADSYNC_RANK=3", "GRADSYNC_SIZE=8", "GRADSYNC_LOCAL_RANK=3", "GRADSYNC_LOCAL_SIZE=8",
      "GRADSYNC_ROOT=127.0.0.1:41234", "GRADSYNC_JOB=run-77"},
     "gradsync",
     3,
     8,
     3,
     8,
     "127.0.0.1",
     41234,
     1,
     "run-77"},
    {"gradsync-run wins over all",
     {"GRADSYNC_RANK=1", "GRADSYNC_SIZE=2", "GRADSYNC_ROOT=[fe80::1%eth0]:500", "RANK=5", "WORLD_SIZE=9",
      "MASTER_ADDR=x", "MASTER_PORT=1", "OMPI_COMM_WORLD_RANK=7", "OMPI_COMM_WORLD_SIZE=8", "PMI_RANK=3", "PMI_SIZE=4",
      "SLURM_PROCID=2", "SLURM_NTASKS=3"},
     "gradsync",
     1,
     2,
     -1,
     -1,
     "fe80::1%eth0",
     500,
     1,
     ""},
    {"a range of ports",
     {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=2", "GRADSYNC_ROOT=node-1.cluster:5000-5015"},
     "gradsync",
     0,
     2,
     -1,
     -1,
     "node-1.cluster",
     5000,
     16,
     ""},
    {"one rank needs no address", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=1"}, "gradsync", 0, 1, -1, 1, "", 0, 0, ""},
    {"torchrun, one machine",
     {"RANK=1", "WORLD_SIZE=4", "LOCAL_RANK=1", "LOCAL_WORLD_SIZE=4", "GROUP_RANK=0", "MASTER_ADDR=localhost",
      "MASTER_PORT=29500", "TORCHELASTIC_RUN_ID=none", "TORCHELASTIC_RESTART_COUNT=0", "TORCHELASTIC_MAX_RESTARTS=0"},
     "torchrun",
     1,
     4,
     1,
     4,
     "localhost",
     29501,
     16,
     "none:29500:0"},
    {"torchrun, after a restart",
     {"RANK=1", "WORLD_SIZE=4", "LOCAL_RANK=1", "LOCAL_WORLD_SIZE=2", "MASTER_ADDR=10.1.2.3", "MASTER_PORT=65535",
      "TORCHELASTIC_RUN_ID=6f0d2c1a-ff", "TORCHELASTIC_RESTART_COUNT=2"},
     "torchrun",
     1,
     4,
     1,
     2,
     "10.1.2.3",
     65519,
     16,
     "6f0d2c1a-ff:65535:2"},
    {"its variables by hand, IPv6",
     {"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=2001:db8::7", "MASTER_PORT=4000"},
     "torchrun",
     0,
     2,
     -1,
     -1,
     "2001:db8::7",
     4001,
     16,
     "torch:4000:0"},
    {"torchrun, a run id that is too long",
     {"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=a", "MASTER_PORT=4000",
      "TORCHELASTIC_RUN_ID=0123456789012345678901234567890123456789012345678901234567890123456789"},
     "torchrun",
     0,
     2,
     -1,
     -1,
     "a",
     4001,
     16,
     "?"},
    {"an id of the user's own",
     {"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=a", "MASTER_PORT=4000", "GRADSYNC_JOB=mine"},
     "torchrun",
     0,
     2,
     -1,
     -1,
     "a",
     4001,
     16,
     "mine"},
    {"an address of the user's own",
     {"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=a", "MASTER_PORT=4000", "GRADSYNC_ROOT=b:7"},
     "torchrun",
     0,
     2,
     -1,
     -1,
     "b",
     7,
     1,
     ""},
    {"srun, four nodes",
     {"SLURM_PROCID=9", "SLURM_NTASKS=16", "SLURM_STEP_NUM_TASKS=16", "SLURM_LOCALID=1", "SLURM_NODEID=2",
      "SLURM_JOB_ID=123456", "SLURM_STEP_ID=0", "SLURM_STEP_NODELIST=node[003-005,20],gpu-a",
      "SLURM_JOB_NODELIST=other", "SLURM_STEP_TASKS_PER_NODE=4(x4)", "SLURM_STEP_NUM_NODES=4"},
     "slurm",
     9,
     16,
     1,
     4,
     "node003",
     0,
     16,
     "123456.0"},
    {"srun with MASTER_ADDR and MASTER_PORT",
     {"SLURM_PROCID=0", "SLURM_NTASKS=2", "SLURM_JOB_ID=1", "SLURM_STEP_ID=3", "SLURM_STEP_NODELIST=n[1-2]",
      "MASTER_ADDR=n2", "MASTER_PORT=12345"},
     "slurm",
     0,
     2,
     -1,
     -1,
     "n2",
     12346,
     16,
     "1.3"},
    {"srun on one node",
     {"SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_JOB_ID=8", "SLURM_STEP_ID=0", "SLURM_STEP_NODELIST=n7",
      "SLURM_STEP_NUM_NODES=1"},
     "slurm",
     1,
     2,
     -1,
     2,
     "127.0.0.1",
     0,
     16,
     "8.0"},
    {"a single Slurm task, in a batch script too",
     {"SLURM_PROCID=0", "SLURM_NTASKS=1", "SLURM_JOB_ID=8"},
     "slurm",
     0,
     1,
     -1,
     1,
     "",
     0,
     0,
     ""},
    {"Open MPI, one machine",
     {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_RANK=1",
      "OMPI_COMM_WORLD_LOCAL_SIZE=2", "OMPI_COMM_WORLD_NODE_RANK=1", "OMPI_UNIVERSE_SIZE=2", "PMIX_RANK=1",
      "PMIX_NAMESPACE=1924399105", "PMIX_ID=1924399105.1"},
     "openmpi",
     1,
     2,
     1,
     2,
     "127.0.0.1",
     0,
     16,
     "ompi-1924399105"},
    {"Open MPI, two machines, MASTER_ADDR given",
     {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_RANK=1",
      "OMPI_COMM_WORLD_LOCAL_SIZE=2", "PMIX_NAMESPACE=prterun-login-4711@1", "MASTER_ADDR=10.0.0.1"},
     "openmpi",
     1,
     4,
     1,
     2,
     "10.0.0.1",
     0,
     16,
     "ompi-prterun-login-4711@1"},
    {"mpirun inside a Slurm allocation, whose own variables do not count",
     {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_RANK=1",
      "OMPI_COMM_WORLD_LOCAL_SIZE=2", "PMIX_NAMESPACE=5", "SLURM_PROCID=0", "SLURM_NTASKS=1", "SLURM_STEP_ID=0",
      "SLURM_JOB_ID=3"},
     "openmpi",
     1,
     2,
     1,
     2,
     "127.0.0.1",
     0,
     16,
     "ompi-5"},
    {"MPICH, one machine",
     {"PMI_RANK=1", "PMI_SIZE=2", "PMI_FD=8", "MPI_LOCALRANKID=1", "MPI_LOCALNRANKS=2", "PMI_KVSNAME=kvs_44_0"},
     "pmi",
     1,
     2,
     1,
     2,
     "127.0.0.1",
     0,
     16,
     "pmi-kvs_44_0"},
    {"MPICH, its own variables only: the id is the proxy's or the parent's",
     {"PMI_RANK=1", "PMI_SIZE=2", "PMI_FD=8", "MPI_LOCALRANKID=1", "MPI_LOCALNRANKS=2", "HYDI_CONTROL_FD=7"},
     "pmi",
     1,
     2,
     1,
     2,
     "127.0.0.1",
     0,
     16,
     "?"},
    {"srun --mpi=pmi2: Slurm knows the hosts",
     {"PMI_RANK=3", "PMI_SIZE=4", "PMI_JOBID=77.0", "SLURM_PROCID=3", "SLURM_NTASKS=4", "SLURM_JOB_ID=77",
      "SLURM_STEP_ID=0", "SLURM_STEP_NODELIST=c[08,10]", "SLURM_LOCALID=1"},
     "pmi",
     3,
     4,
     1,
     -1,
     "c08",
     0,
     16,
     "77.0"},
    {"an empty variable is an unset one",
     {"GRADSYNC_RANK=", "GRADSYNC_SIZE=", "RANK=0", "WORLD_SIZE=1", "LOCAL_RANK="},
     "torchrun",
     0,
     1,
     -1,
     1,
     "",
     0,
     0,
     ""},
};

static void test_good(const struct good *g)
{
    gsi_job job;
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    int r = gsi_job_from_env(lookup, (void *)g->env, &job);

    if (r) {
        gradsync_last_error(&info);
        tap_ok(0, "%s: %s", g->what, info.message);
        return;
    }
    int port = g->port ? job.port == g->port && job.ports == g->ports
                       : g->ports == 0 || (job.port >= 20000 && job.port + 15 <= 32767 && job.ports == g->ports);
    int same = !strcmp(job.launcher, g->launcher) && job.rank == g->rank && job.nranks == g->nranks &&
               job.local_rank == g->local_rank && job.local_ranks == g->local_ranks && !strcmp(job.addr, g->addr) &&
               port &&
               (*g->id == '?' ? job.id[0] != 0
                : *g->id      ? !strcmp(job.id, g->id)
                              : 1);
    tap_ok(same, "%s", g->what);
    if (!same)
        tap_note("%s rank %d/%d local %d/%d at '%s' port %d+%d id '%s'", job.launcher, job.rank, job.nranks,
                 job.local_rank, job.local_ranks, job.addr, job.port, job.ports, job.id);
}

struct bad {
    const char *what, *env[12], *says[2];
};

static const struct bad bads[] = {
    {"nothing at all", {NULL}, {"gradsync-run", "srun"}},
    {"PMIx without a size", {"PMIX_RANK=0", "PMIX_NAMESPACE=x"}, {"PMIX_RANK"}},
    {"no size", {"GRADSYNC_RANK=0"}, {"GRADSYNC_SIZE is not set"}},
    {"no rank", {"GRADSYNC_SIZE=2"}, {"GRADSYNC_RANK is not set"}},
    {"no root", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=2"}, {"GRADSYNC_ROOT is not set"}},
    {"a rank that is text", {"GRADSYNC_RANK=zero", "GRADSYNC_SIZE=2"}, {"GRADSYNC_RANK is 'zero'"}},
    {"a negative rank", {"GRADSYNC_RANK=-1", "GRADSYNC_SIZE=2"}, {"GRADSYNC_RANK is '-1'"}},
    {"a plus sign", {"GRADSYNC_RANK=+1", "GRADSYNC_SIZE=2"}, {"GRADSYNC_RANK is '+1'"}},
    {"a space before", {"GRADSYNC_RANK= 1", "GRADSYNC_SIZE=2"}, {"GRADSYNC_RANK is ' 1'"}},
    {"a tail", {"GRADSYNC_RANK=1x", "GRADSYNC_SIZE=2"}, {"GRADSYNC_RANK is '1x'"}},
    {"hexadecimal", {"GRADSYNC_RANK=0x1", "GRADSYNC_SIZE=2"}, {"GRADSYNC_RANK is '0x1'"}},
    {"no ranks", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=0"}, {"GRADSYNC_SIZE is '0'", "1 to 65536"}},
    {"too many ranks", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=65537"}, {"GRADSYNC_SIZE is '65537'"}},
    {"2^32 + 1 ranks", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=4294967297"}, {"GRADSYNC_SIZE is '4294967297'"}},
    {"2^64 + 1 ranks", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=18446744073709551617"}, {"GRADSYNC_SIZE"}},
    {"a rank past the end", {"GRADSYNC_RANK=4", "GRADSYNC_SIZE=4", "GRADSYNC_ROOT=a:1"}, {"rank 4 of 4"}},
    {"a local rank past the end",
     {"GRADSYNC_RANK=1", "GRADSYNC_SIZE=4", "GRADSYNC_ROOT=a:1", "GRADSYNC_LOCAL_RANK=2", "GRADSYNC_LOCAL_SIZE=2"},
     {"local rank 2 of 2"}},
    {"more local ranks than ranks",
     {"GRADSYNC_RANK=1", "GRADSYNC_SIZE=2", "GRADSYNC_ROOT=a:1", "GRADSYNC_LOCAL_RANK=1", "GRADSYNC_LOCAL_SIZE=3"},
     {"local rank 1 of 3"}},
    {"control characters are not shown",
     {"GRADSYNC_RANK=\x1b[31m\n", "GRADSYNC_SIZE=2"},
     {"GRADSYNC_RANK is '?[31m?'"}},
    {"a long value is shortened",
     {"GRADSYNC_RANK=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "GRADSYNC_SIZE=2"},
     {"aaaaaaaaaa...'"}},
    {"a root without a port", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=2", "GRADSYNC_ROOT=host"}, {"host:port"}},
    {"a root with port 0", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=2", "GRADSYNC_ROOT=host:0"}, {"host:port"}},
    {"a root with port 65536", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=2", "GRADSYNC_ROOT=host:65536"}, {"host:port"}},
    {"a root with port -5", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=2", "GRADSYNC_ROOT=host:-5"}, {"host:port"}},
    {"a range backwards", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=2", "GRADSYNC_ROOT=host:9-8"}, {"host:port"}},
    {"a range too wide", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=2", "GRADSYNC_ROOT=host:1000-1016"}, {"at most 16"}},
    {"a root without a host", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=2", "GRADSYNC_ROOT=:70"}, {"host:port"}},
    {"IPv6 without brackets", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=2", "GRADSYNC_ROOT=::1:70"}, {"[IPv6 address]"}},
    {"a root of garbage", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=2", "GRADSYNC_ROOT=a b;c:70"}, {"no host name"}},
    {"empty brackets", {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=2", "GRADSYNC_ROOT=[]:70"}, {"no host name"}},
    {"torchrun without MASTER_ADDR", {"RANK=0", "WORLD_SIZE=2", "MASTER_PORT=5"}, {"MASTER_ADDR is not"}},
    {"torchrun without MASTER_PORT", {"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=a"}, {"MASTER_PORT is not set"}},
    {"torchrun with a bad port",
     {"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=a", "MASTER_PORT=http"},
     {"MASTER_PORT is 'http'"}},
    {"torchrun with garbage", {"RANK=one", "WORLD_SIZE=2"}, {"RANK is 'one'", "torchrun"}},
    {"a Slurm batch script",
     {"SLURM_PROCID=0", "SLURM_NTASKS=8", "SLURM_JOB_ID=9", "SLURM_JOB_NODELIST=a,b"},
     {"batch script", "srun"}},
    {"a Slurm batch step",
     {"SLURM_PROCID=0", "SLURM_NTASKS=8", "SLURM_JOB_ID=9", "SLURM_STEP_ID=4294967291"},
     {"batch script", "srun"}},
    {"Slurm without a size", {"SLURM_PROCID=0", "SLURM_STEP_ID=0"}, {"SLURM_NTASKS"}},
    {"Slurm without a job id", {"SLURM_PROCID=0", "SLURM_NTASKS=2", "SLURM_STEP_ID=0"}, {"SLURM_JOB_ID"}},
    {"Slurm without a node list",
     {"SLURM_PROCID=0", "SLURM_NTASKS=2", "SLURM_STEP_ID=0", "SLURM_JOB_ID=1"},
     {"SLURM_STEP_NODELIST", "MASTER_ADDR"}},
    {"Slurm with a broken node list",
     {"SLURM_PROCID=0", "SLURM_NTASKS=2", "SLURM_STEP_ID=0", "SLURM_JOB_ID=1", "SLURM_JOB_NODELIST=n[1-"},
     {"SLURM_JOB_NODELIST is 'n[1-'", "MASTER_ADDR"}},
    {"Open MPI on two machines",
     {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_RANK=1",
      "OMPI_COMM_WORLD_LOCAL_SIZE=2", "PMIX_NAMESPACE=1"},
     {"OMPI_COMM_WORLD_SIZE is 4, of which 2", "-x MASTER_ADDR"}},
    {"Open MPI without a size", {"OMPI_COMM_WORLD_RANK=1"}, {"OMPI_COMM_WORLD_SIZE is not set"}},
    {"MPICH on two machines",
     {"PMI_RANK=0", "PMI_SIZE=4", "MPI_LOCALRANKID=0", "MPI_LOCALNRANKS=2"},
     {"PMI_SIZE is 4", "MASTER_ADDR"}},
    {"MPICH with garbage", {"PMI_RANK=?", "PMI_SIZE=4"}, {"PMI_RANK is '?'"}},
    {"an interface list that is too long",
     {"GRADSYNC_RANK=0", "GRADSYNC_SIZE=1",
      "GRADSYNC_IFNAME=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
      "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
     {"GRADSYNC_IFNAME"}},
};

static void test_bad(const struct bad *b)
{
    gsi_job job;
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    int r = gsi_job_from_env(lookup, (void *)b->env, &job);

    gradsync_last_error(&info);
    int ok = r == GRADSYNC_ERR_INVALID && info.code == r && strstr(info.message, b->says[0]) &&
             (!b->says[1] || strstr(info.message, b->says[1]));
    for (const char *p = info.message; *p; p++)
        ok &= *p >= ' ' && *p <= '~';
    tap_ok(ok, "refused: %s", b->what);
    if (!ok)
        tap_note("%d: %s", r, info.message);
}

static void test_interfaces(void)
{
    const char *env[] = {"RANK=0", "WORLD_SIZE=1", "NCCL_SOCKET_IFNAME=^docker,lo", NULL, NULL};
    gsi_job job;
    int r = gsi_job_from_env(lookup, env, &job);

    tap_ok(!r && !strcmp(job.ifname, "^docker,lo"), "NCCL_SOCKET_IFNAME is taken");
    env[3] = "GRADSYNC_IFNAME=eth0";
    r = gsi_job_from_env(lookup, env, &job);
    tap_ok(!r && !strcmp(job.ifname, "eth0"), "GRADSYNC_IFNAME wins over it");
}

static void test_hostlist(void)
{
    static const struct {
        const char *list, *first; /* NULL: garbage */
    } table[] = {
        {"node1", "node1"},
        {"node[003-010,20],gpu-a", "node003"},
        {"gpu-a,node[1-2]", "gpu-a"},
        {"n[1]", "n1"},
        {"n[1,5-7].rack2.example", "n1.rack2.example"},
        {"r[1-2]n[08-10],x", "r1n08"},
        {"[5-6]", "5"},
        {"a_b", "a_b"},
        {"n[000000001-2]", "n000000001"},
        {"", NULL},
        {",a", NULL},
        {"a,", NULL},
        {"a,,b", NULL},
        {"n[", NULL},
        {"n[]", NULL},
        {"n[1-", NULL},
        {"n[1-2", NULL},
        {"n[2-1]", NULL},
        {"n[1-2-3]", NULL},
        {"n[a]", NULL},
        {"n[1],", NULL},
        {"a]", NULL},
        {"a b", NULL},
        {"a;rm", NULL},
        {"n[1234567890]", NULL},
        {"n[[1]]", NULL},
        {"a,n[", NULL},
        {"\xff", NULL},
    };
    char out[64], tiny[4];

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const char *why = gsi_hostlist_first(table[i].list, out, sizeof out);
        tap_ok(table[i].first ? !why && !strcmp(out, table[i].first) : why != NULL, "host list '%s'",
               table[i].list[0] == '\xff' ? "(no ASCII)" : table[i].list);
    }
    tap_ok(!gsi_hostlist_first("abc,defgh", tiny, sizeof tiny) && !strcmp(tiny, "abc"), "a name that just fits");
    tap_ok(gsi_hostlist_first("abcd", tiny, sizeof tiny) != NULL, "a name that just does not fit");
    tap_ok(gsi_hostlist_first("ab[12]", tiny, sizeof tiny) != NULL, "a number that just does not fit");
    tap_ok(gsi_tasks_on_node("4", 0) == 4 && gsi_tasks_on_node("4(x3),2", 2) == 4 &&
               gsi_tasks_on_node("4(x3),2", 3) == 2 && gsi_tasks_on_node("4(x3),2", 4) == -1,
           "tasks on a node");
    tap_ok(gsi_tasks_on_node("", 0) == -1 && gsi_tasks_on_node("4(x", 3) == -1 && gsi_tasks_on_node("4(x0)", 3) == -1 &&
               gsi_tasks_on_node("4;2", 1) == -1,
           "tasks on a node: garbage");
}

int main(void)
{
    for (size_t i = 0; i < sizeof goods / sizeof *goods; i++)
        test_good(&goods[i]);
    for (size_t i = 0; i < sizeof bads / sizeof *bads; i++)
        test_bad(&bads[i]);
    test_interfaces();
    test_hostlist();
    return tap_done();
}
