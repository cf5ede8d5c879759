/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rank, size and rendezvous address from the environments of the launchers.
 *
 * The first launcher that is found wins, in the order of the table at the end:
 * what was set for this library, then the launcher nearest to the process
 * (mpirun inside a Slurm allocation leaves the outer SLURM_ variables in place).
 */
#include "bootstrap/bootstrap.h"
#include "base/error.h"
#include "bootstrap/hostlist.h"
#include "bootstrap/keys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ABSENT = 1 }; /* this launcher did not start us */

/* Derived ports lie below the range that Linux hands out to outgoing connections. */
enum { PORT_BASE = 20000, PORT_SLOTS = 700 };

struct env {
    gsi_getenv_fn lookup;
    void *arg;
    const char *remedy; /* of the launcher that is being read */
};

/* An empty variable counts as unset, as in most shells' scripts. */
static const char *get(const struct env *e, const char *name)
{
    const char *v = e->lookup(e->arg, name);

    return v && *v ? v : NULL;
}

/* A value as an error message may show it: short and printable. */
struct shown {
    char text[40];
};

static struct shown show(const char *value)
{
    struct shown s;
    size_t n = 0;

    for (; value[n] && n < 32; n++)
        s.text[n] = value[n] >= ' ' && value[n] <= '~' ? value[n] : '?';
    s.text[n] = 0;
    if (value[n])
        strcat(s.text, "...");
    return s;
}

/* Reads a number from low to high. 0, ABSENT, or INVALID. Digits only: what strtol()
 * would also take (spaces, signs, a tail) is a mistake in a job script. */
static int number(const struct env *e, const char *name, int low, int high, int *out)
{
    const char *v = get(e, name);
    long n = 0;
    size_t i = 0;

    if (!v)
        return ABSENT;
    for (; v[i] >= '0' && v[i] <= '9' && i < 10; i++)
        n = n * 10 + (v[i] - '0');
    if (v[i] || n < low || n > high)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is '%s', not a number from %d to %d; %s", name, show(v).text, low,
                        high, e->remedy);
    *out = (int)n;
    return 0;
}

/* The same, of a variable that has to be there. */
static int need(const struct env *e, const char *name, int low, int high, int *out)
{
    int r = number(e, name, low, high, out);

    if (r == ABSENT)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is not set, though other variables of this launcher are; %s", name,
                        e->remedy);
    return r;
}

/* The same, of one that may be missing: *out keeps its value. */
static int maybe(const struct env *e, const char *name, int low, int high, int *out)
{
    int r = number(e, name, low, high, out);

    return r == ABSENT ? 0 : r;
}

/* A host name or address, n bytes. Not checked in depth: the resolver does that. */
static int set_addr(const struct env *e, const char *name, const char *host, size_t n, gsi_job *job)
{
    if (n >= 2 && host[0] == '[' && host[n - 1] == ']') {
        host++;
        n -= 2;
    }
    for (size_t i = 0; i < n; i++) {
        char c = host[i];
        if (!(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') && !strchr(".-_:%", c))
            n = 0;
    }
    if (n == 0 || n >= sizeof job->addr)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is '%s', which holds no host name or address; %s", name,
                        show(get(e, name)).text, e->remedy);
    memcpy(job->addr, host, n);
    job->addr[n] = 0;
    return 0;
}

static int set_addr_from(const struct env *e, const char *name, gsi_job *job)
{
    const char *v = get(e, name);

    return v ? set_addr(e, name, v, strlen(v), job) : ABSENT;
}

/* An id that is too long for the field is replaced by its hash. The first one stays:
 * that of the user, GRADSYNC_JOB, comes before any launcher's. */
static void set_id(gsi_job *job, const char *a, const char *b, const char *c)
{
    char text[1024];

    if (job->id[0])
        return;
    if ((size_t)snprintf(text, sizeof text, "%s%s%s", a, b, c) < sizeof job->id) {
        strcpy(job->id, text);
        return;
    }
    gsi_text_hash(job->id, a, b, c);
}

/* A port of our own for the job, the same on every rank. */
static void derive_port(gsi_job *job)
{
    uint32_t h = 2166136261u; /* FNV-1a: only to spread jobs, nothing is secret here */

    for (const char *p = job->id; *p; p++)
        h = (h ^ (unsigned char)*p) * 16777619u;
    job->port = PORT_BASE + (int)(h % PORT_SLOTS) * GSI_JOB_PORTS;
    job->ports = GSI_JOB_PORTS;
}

/* MASTER_PORT may be in use by the launcher's or framework's own store: take the ports after it. */
static void ports_beside(gsi_job *job, int master)
{
    job->port = master + GSI_JOB_PORTS <= 65535 ? master + 1 : master - GSI_JOB_PORTS;
    job->ports = GSI_JOB_PORTS;
}

/* MASTER_ADDR and MASTER_PORT, which people set beside every launcher. Without a
 * MASTER_PORT the port comes from the job's id. */
static int master(const struct env *e, gsi_job *job)
{
    int port = 0;
    int r = set_addr_from(e, "MASTER_ADDR", job);

    if (r < 0 || maybe(e, "MASTER_PORT", 1, 65535, &port) < 0)
        return GRADSYNC_ERR_INVALID;
    if (port)
        ports_beside(job, port);
    else
        derive_port(job);
    return r;
}

static int locals(const struct env *e, const char *rank, const char *ranks, gsi_job *job)
{
    int r = maybe(e, rank, 0, GSI_MAX_RANKS - 1, &job->local_rank);

    return r ? r : maybe(e, ranks, 1, GSI_MAX_RANKS, &job->local_ranks);
}

static int all_local(const gsi_job *job)
{
    return job->local_ranks == job->nranks;
}

/* ---- gradsync-run ---- */

/* "host:port", "[v6]:port", "host:first-last" */
static int set_root(const struct env *e, gsi_job *job)
{
    const char *v = get(e, "GRADSYNC_ROOT"), *colon = v ? strrchr(v, ':') : NULL;
    long first = 0, last;
    char *end = NULL;

    if (!v)
        return ABSENT;
    if (colon && colon > v && (v[0] != '[' ? memchr(v, ':', (size_t)(colon - v)) == NULL : colon[-1] == ']') &&
        colon[1] >= '0' && colon[1] <= '9') {
        last = first = strtol(colon + 1, &end, 10);
        if (*end == '-' && end[1] >= '0' && end[1] <= '9')
            last = strtol(end + 1, &end, 10);
    }
    if (!end || *end || first < 1 || last < first || last > 65535 || last - first >= GSI_JOB_PORTS)
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "GRADSYNC_ROOT is '%s'; set it to host:port or [IPv6 address]:port of rank 0, port 1 to 65535 "
                        "(or a range of at most %d ports, first-last)",
                        show(v).text, GSI_JOB_PORTS);
    job->port = (int)first;
    job->ports = (int)(last - first) + 1;
    return set_addr(e, "GRADSYNC_ROOT", v, (size_t)(colon - v), job);
}

static int from_gradsync(struct env *e, gsi_job *job)
{
    e->remedy = "start the job with gradsync-run, or set GRADSYNC_RANK, GRADSYNC_SIZE and GRADSYNC_ROOT on every rank";
    if (!get(e, "GRADSYNC_RANK") && !get(e, "GRADSYNC_SIZE"))
        return ABSENT;
    int r = need(e, "GRADSYNC_SIZE", 1, GSI_MAX_RANKS, &job->nranks);
    if (!r)
        r = need(e, "GRADSYNC_RANK", 0, GSI_MAX_RANKS - 1, &job->rank);
    if (!r)
        r = locals(e, "GRADSYNC_LOCAL_RANK", "GRADSYNC_LOCAL_SIZE", job);
    return r;
}

/* ---- torchrun, and everybody who sets its variables by hand ---- */

static int from_torchrun(struct env *e, gsi_job *job)
{
    char port_text[16];
    int port = 0;

    e->remedy = "start the job with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT on every rank";
    if (!get(e, "RANK") || !get(e, "WORLD_SIZE"))
        return ABSENT;
    int r = need(e, "WORLD_SIZE", 1, GSI_MAX_RANKS, &job->nranks);
    if (!r)
        r = need(e, "RANK", 0, GSI_MAX_RANKS - 1, &job->rank);
    if (!r)
        r = locals(e, "LOCAL_RANK", "LOCAL_WORLD_SIZE", job);
    if (r || get(e, "GRADSYNC_ROOT") || job->nranks == 1)
        return r;
    r = set_addr_from(e, "MASTER_ADDR", job);
    if (r == ABSENT)
        return gsi_fail(GRADSYNC_ERR_INVALID, "RANK and WORLD_SIZE are set, MASTER_ADDR is not; %s", e->remedy);
    if (!r)
        r = need(e, "MASTER_PORT", 1, 65535, &port);
    if (r)
        return r;
    ports_beside(job, port);
    /* The restart count keeps a straggler of an earlier attempt out of the next one. */
    const char *run = get(e, "TORCHELASTIC_RUN_ID"), *restarts = get(e, "TORCHELASTIC_RESTART_COUNT");
    snprintf(port_text, sizeof port_text, ":%d:", port);
    set_id(job, run ? run : "torch", port_text, restarts ? restarts : "0");
    return 0;
}

/* ---- Slurm ---- */

static int slurm_id(const struct env *e, gsi_job *job)
{
    const char *id = get(e, "SLURM_JOB_ID"), *step = get(e, "SLURM_STEP_ID");

    if (!id || !step)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is not set; %s", id ? "SLURM_STEP_ID" : "SLURM_JOB_ID", e->remedy);
    set_id(job, id, ".", step);
    return 0;
}

static int slurm_local(const struct env *e, gsi_job *job)
{
    int node = -1;
    const char *tasks = get(e, "SLURM_STEP_TASKS_PER_NODE");
    int r = maybe(e, "SLURM_LOCALID", 0, GSI_MAX_RANKS - 1, &job->local_rank);

    if (!r)
        r = maybe(e, "SLURM_NODEID", 0, GSI_MAX_RANKS - 1, &node);
    if (r)
        return r;
    if (tasks && node >= 0)
        job->local_ranks = gsi_tasks_on_node(tasks, node);
    return 0;
}

static int slurm_addr(const struct env *e, gsi_job *job)
{
    int nodes = 0, r = maybe(e, "SLURM_STEP_NUM_NODES", 1, GSI_MAX_RANKS, &nodes);

    if (r)
        return r;
    r = master(e, job);
    if (r != ABSENT)
        return r;
    if (nodes == 1 || all_local(job)) {
        strcpy(job->addr, "127.0.0.1");
        return 0;
    }
    const char *name = get(e, "SLURM_STEP_NODELIST") ? "SLURM_STEP_NODELIST" : "SLURM_JOB_NODELIST";
    const char *list = get(e, name);
    if (!list)
        return gsi_fail(GRADSYNC_ERR_INVALID, "SLURM_STEP_NODELIST is not set; %s, or set MASTER_ADDR", e->remedy);
    const char *why = gsi_hostlist_first(list, job->addr, sizeof job->addr);
    if (why)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is '%s', no list of hosts: %s; set MASTER_ADDR to rank 0's host",
                        name, show(list).text, why);
    return 0;
}

static int slurm_size(const struct env *e, int *out)
{
    int r = number(e, "SLURM_STEP_NUM_TASKS", 1, GSI_MAX_RANKS, out);

    return r == ABSENT ? number(e, "SLURM_NTASKS", 1, GSI_MAX_RANKS, out) : r;
}

static int from_slurm(struct env *e, gsi_job *job)
{
    e->remedy = "start the ranks with srun";
    if (!get(e, "SLURM_PROCID"))
        return ABSENT;
    int r = slurm_size(e, &job->nranks);
    if (r == ABSENT)
        return gsi_fail(GRADSYNC_ERR_INVALID, "SLURM_PROCID is set, SLURM_NTASKS is not; %s", e->remedy);
    if (!r)
        r = need(e, "SLURM_PROCID", 0, GSI_MAX_RANKS - 1, &job->rank);
    if (r || job->nranks == 1)
        return r;
    /* In a batch script the step is absent or one of Slurm's special numbers (batch, interactive, extern). */
    const char *step = get(e, "SLURM_STEP_ID");
    if (!step || (strlen(step) == 10 && strcmp(step, "4294967200") > 0))
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "this is the batch script of a Slurm job of %d tasks, not one of its tasks; start the program "
                        "in it with srun",
                        job->nranks);
    r = slurm_id(e, job);
    if (!r)
        r = slurm_local(e, job);
    return r || get(e, "GRADSYNC_ROOT") ? r : slurm_addr(e, job);
}

/* True if srun itself started us: then Slurm knows the hosts, which PMI does not tell. */
static int slurm_agrees(const struct env *e, const gsi_job *job)
{
    int rank = -1, size = -1;

    return get(e, "SLURM_STEP_ID") && !number(e, "SLURM_PROCID", 0, GSI_MAX_RANKS - 1, &rank) &&
           !slurm_size(e, &size) && rank == job->rank && size == job->nranks;
}

/* ---- Open MPI (PMIx), MPICH (PMI) ---- */

/* What both lack: an address. The ranks of one machine do not need one. */
static int mpi_addr(struct env *e, const char *size_name, gsi_job *job)
{
    if (get(e, "GRADSYNC_ROOT") || job->nranks == 1)
        return 0;
    int r = master(e, job);
    if (r != ABSENT)
        return r;
    if (!all_local(job))
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "%s is %d, of which %d on this machine, and MPI does not tell where rank 0 is; set MASTER_ADDR "
                        "to its host on every rank (Open MPI: mpirun -x MASTER_ADDR=..., MPICH: -genv MASTER_ADDR ...)",
                        size_name, job->nranks, job->local_ranks < 0 ? 0 : job->local_ranks);
    strcpy(job->addr, "127.0.0.1");
    return 0;
}

static int from_openmpi(struct env *e, gsi_job *job)
{
    e->remedy = "start the job with mpirun";
    if (!get(e, "OMPI_COMM_WORLD_RANK") && !get(e, "OMPI_COMM_WORLD_SIZE"))
        return ABSENT;
    int r = need(e, "OMPI_COMM_WORLD_SIZE", 1, GSI_MAX_RANKS, &job->nranks);
    if (!r && get(e, "OMPI_COMM_WORLD_RANK"))
        r = need(e, "OMPI_COMM_WORLD_RANK", 0, GSI_MAX_RANKS - 1, &job->rank);
    else if (!r)
        r = need(e, "PMIX_RANK", 0, GSI_MAX_RANKS - 1, &job->rank);
    if (!r)
        r = locals(e, "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", job);
    if (r)
        return r;
    if (slurm_agrees(e, job))
        return from_slurm(e, job);
    const char *id = get(e, "PMIX_NAMESPACE");
    if (!id)
        id = get(e, "OMPI_MCA_ess_base_jobid");
    if (id)
        set_id(job, "ompi-", id, "");
    return mpi_addr(e, "OMPI_COMM_WORLD_SIZE", job);
}

/* Reads pid's parent and start time; 0 if /proc does not tell. */
static int parent_of(long pid, char comm[32], long *ppid, unsigned long long *start)
{
    char path[64], text[512];

    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    /* "pid (comm) state ppid ... starttime": comm may hold anything, so look from its end. */
    char *open = strchr(text, '('), *close = strrchr(text, ')');
    if (!open || !close || close < open)
        return 0;
    *close = 0;
    snprintf(comm, 32, "%s", open + 1);
    return sscanf(close + 1, " %*c %ld %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu", ppid,
                  start) == 2;
}

/* MPICH's mpiexec tells the ranks of a machine nothing that names their job, but they
 * all descend from one of its proxies. Wrappers (a shell, numactl) may stand between. */
static void id_from_proxy(gsi_job *job)
{
    long pid = getpid(), ppid = 0, first_parent = getppid();
    unsigned long long start = 0;
    char comm[32];

    for (int i = 0; i < 64 && pid > 1; i++) {
        if (!parent_of(pid, comm, &ppid, &start))
            break;
        if (strstr(comm, "pmi_proxy")) {
            snprintf(job->id, sizeof job->id, "pmi-%ld-%llu", pid, start);
            return;
        }
        pid = ppid;
    }
    snprintf(job->id, sizeof job->id, "pmi-%ld", first_parent);
}

static int from_pmi(struct env *e, gsi_job *job)
{
    e->remedy = "start the job with mpiexec";
    if (!get(e, "PMI_RANK") || !get(e, "PMI_SIZE"))
        return ABSENT;
    int r = need(e, "PMI_SIZE", 1, GSI_MAX_RANKS, &job->nranks);
    if (!r)
        r = need(e, "PMI_RANK", 0, GSI_MAX_RANKS - 1, &job->rank);
    if (!r)
        r = locals(e, "MPI_LOCALRANKID", "MPI_LOCALNRANKS", job);
    if (r)
        return r;
    if (slurm_agrees(e, job))
        return from_slurm(e, job);
    const char *id = get(e, "PMI_KVSNAME");
    if (!id)
        id = get(e, "PMI_JOBID");
    if (id)
        set_id(job, "pmi-", id, "");
    else if (all_local(job) && job->nranks > 1 && !job->id[0])
        id_from_proxy(job);
    return mpi_addr(e, "PMI_SIZE", job);
}

/* ---- all of them ---- */

static int is_loopback(const char *addr)
{
    return !strcmp(addr, "localhost") || !strcmp(addr, "::1") || !strncmp(addr, "127.", 4);
}

/* What may be set beside any launcher, and the checks that all need. */
static int finish(struct env *e, gsi_job *job)
{
    const char *ifname = get(e, "GRADSYNC_IFNAME");
    int r = set_root(e, job);

    if (r < 0)
        return r;
    if (r == ABSENT && !job->addr[0] && job->nranks > 1)
        return gsi_fail(GRADSYNC_ERR_INVALID, "GRADSYNC_ROOT is not set; %s", e->remedy);
    if (!ifname)
        ifname = get(e, "NCCL_SOCKET_IFNAME");
    if (ifname && strlen(ifname) < sizeof job->ifname)
        strcpy(job->ifname, ifname);
    else if (ifname)
        return gsi_fail(GRADSYNC_ERR_INVALID, "%s is '%s', longer than %zu characters; shorten the list",
                        get(e, "GRADSYNC_IFNAME") ? "GRADSYNC_IFNAME" : "NCCL_SOCKET_IFNAME", show(ifname).text,
                        sizeof job->ifname - 1);
    if (job->rank >= job->nranks)
        return gsi_fail(GRADSYNC_ERR_INVALID, "the launcher (%s) gives rank %d of %d, but ranks count from 0 to %d; %s",
                        job->launcher, job->rank, job->nranks, job->nranks - 1, e->remedy);
    /* Then all are on this machine, even if the launcher does not say so. */
    if (job->local_ranks < 0 && (job->nranks == 1 || is_loopback(job->addr)))
        job->local_ranks = job->nranks;
    if (job->local_ranks > job->nranks || (job->local_ranks >= 0 && job->local_rank >= job->local_ranks))
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        "the launcher (%s) gives local rank %d of %d in a job of %d ranks, which cannot be; %s",
                        job->launcher, job->local_rank, job->local_ranks, job->nranks, e->remedy);
    return 0;
}

int gsi_job_from_env(gsi_getenv_fn lookup, void *arg, gsi_job *job)
{
    static const struct {
        const char *name;
        int (*read)(struct env *e, gsi_job *job);
    } launchers[] = {
        {"gradsync", from_gradsync}, {"torchrun", from_torchrun}, {"openmpi", from_openmpi},
        {"pmi", from_pmi},           {"slurm", from_slurm},
    };
    struct env e = {lookup, arg, ""};
    const char *id = get(&e, "GRADSYNC_JOB");

    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) {
        *job = (gsi_job){.local_rank = -1, .local_ranks = -1};
        strcpy(job->launcher, launchers[i].name);
        if (id)
            set_id(job, id, "", "");
        int r = launchers[i].read(&e, job);
        if (r < 0)
            return r;
        if (r != ABSENT)
            return finish(&e, job);
    }
    return gsi_fail(GRADSYNC_ERR_INVALID,
                    "no launcher's variables are set%s; start the program with gradsync-run -n N, torchrun, srun or "
                    "mpirun, or set GRADSYNC_RANK, GRADSYNC_SIZE and GRADSYNC_ROOT=host:port on every rank",
                    get(&e, "PMIX_RANK") ? " (PMIX_RANK is, but it comes without a size)" : "");
}
