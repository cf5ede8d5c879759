/* SPDX-License-Identifier: Apache-2.0 */
#include "hosts.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

enum { TAG_FINDINGS = 100, TAG_PAIRS = 101, ALL_PAIRS_HOSTS = 4, CONTROL_TIMEOUT_MS = 3600 * 1000 };

static int complain(const char *program, const char *what)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

    gradsync_last_error(&info);
    cli_error(program, "%s: %s", what, info.message);
    return -1;
}

/* ---- Who is there --------------------------------------------------------------------------- */

/* The subnets of a port: of its routable addresses, on InfiniBand of its GIDs. */
static void list_subnets(const gradsync_machine *machine, int port, int ngids, rail *r)
{
    for (int g = 0; g < ngids && r->nsubnets < RAIL_SUBNETS; g++) {
        gradsync_gid_info gid = {.size = sizeof gid};
        if (gradsync_machine_gid(machine, port, g, &gid))
            return;
        int ib = !strcmp(gid.type, "IB"), ipv4 = !strchr(gid.gid, ':');
        if ((!ib && strcmp(gid.type, "RoCE v2") != 0) || (!ib && !strncmp(gid.gid, "fe80:", 5)))
            continue;
        r->subnets[r->nsubnets].ipv4 = ipv4;
        r->subnets[r->nsubnets].bits = gid.prefix ? gid.prefix : ipv4 ? 24 : 64;
        if (inet_pton(ipv4 ? AF_INET : AF_INET6, gid.gid, r->subnets[r->nsubnets].raw) == 1)
            r->nsubnets++;
    }
}

/* RDMA ports that a rank of this host could use, from what the kernel says. */
static void list_ports(host *own)
{
    gradsync_machine *machine = NULL;
    gradsync_machine_info info = {.size = sizeof info};
    gradsync_place anywhere = {.numa_node = -1};
    gradsync_rail_choice *choices = NULL;
    gradsync_error_info error = GRADSYNC_ERROR_INFO_INIT;

    if (gradsync_machine_read(NULL, &machine) || gradsync_machine_query(machine, &info)) {
        gradsync_last_error(&error);
        snprintf(own->no_rdma, sizeof own->no_rdma, "%.159s", error.message);
        gradsync_machine_free(machine);
        return;
    }
    snprintf(own->no_rdma, sizeof own->no_rdma, "the kernel has no RDMA device");
    if (info.ports > 0)
        choices = calloc((size_t)info.ports, sizeof *choices);
    for (int i = 0; choices && i < info.ports; i++)
        choices[i].size = sizeof *choices;
    if (choices && gradsync_machine_rails(machine, &anywhere, 1, 0, choices) < 0) {
        gradsync_last_error(&error);
        snprintf(own->no_rdma, sizeof own->no_rdma, "%.159s", error.message);
    } else {
        for (int i = 0; choices && i < info.ports && own->nrails < RAILS_MAX; i++) {
            gradsync_port_info port = {.size = sizeof port};
            if (gradsync_machine_port(machine, i, &port))
                break;
            if (!choices[i].usable) {
                snprintf(own->no_rdma, sizeof own->no_rdma, "%.40s: %.110s", port.device, choices[i].reason);
                continue;
            }
            rail *r = &own->rails[own->nrails++];
            snprintf(r->name, sizeof r->name, "%.60s:%d", port.device, (int)port.number);
            r->rate_mbps = port.rate_mbps;
            r->mtu = port.mtu;
            list_subnets(machine, i, port.ngids, r);
        }
    }
    free(choices);
    gradsync_machine_free(machine);
}

/* The interfaces that the control communicator runs over are the TCP rails. */
static void list_interfaces(gradsync_comm *comm, host *own)
{
    for (int i = 0; i < RAILS_MAX; i++) {
        gradsync_rail_info info = {.size = sizeof info};
        if (gradsync_comm_rail(comm, i, &info))
            break;
        snprintf(own->tcp[own->ntcp++].name, sizeof own->tcp[0].name, "%.63s", info.device);
    }
}

static void describe(gradsync_comm *comm, host *own)
{
    char id[64] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

    memset(own, 0, sizeof *own);
    if (gethostname(own->name, sizeof own->name - 1))
        snprintf(own->name, sizeof own->name, "?");
    if (f && fgets(id, sizeof id, f))
        id[strcspn(id, "\n")] = 0;
    if (f)
        fclose(f);
    /* One kernel may serve several hosts of a lab: the name counts too. */
    snprintf(own->machine, sizeof own->machine, "%.23s %.38s", own->name, id);
    list_ports(own);
    list_interfaces(comm, own);
}

/* The rank that speaks for each host; all ranks, if they are on one machine. Returns the number of hosts. */
static int choose_speakers(host *all, int n, int *speakers)
{
    int count = 0;

    for (int r = 0; r < n; r++) {
        int known = 0;
        for (int k = 0; k < count; k++)
            known |= !strcmp(all[speakers[k]].machine, all[r].machine);
        if (!known)
            speakers[count++] = r;
    }
    if (count > 1)
        return count;
    for (int r = 0; r < n; r++) { /* to be told apart */
        size_t at = strnlen(all[r].name, sizeof all[r].name - 12);
        snprintf(all[r].name + at, sizeof all[r].name - at, "/%d", r);
        speakers[r] = r;
    }
    return n;
}

/* ---- Findings -------------------------------------------------------------------------------- */

/* Rank 0 collects what each host's speaker has found. */
static int gather_findings(hosts *h, const int *speakers, const report *mine, report *all)
{
    uint64_t room = (uint64_t)1 << 20, got = 0;
    int rc = 0, me = -1;

    for (int k = 0; k < h->s.nhosts; k++)
        me = speakers[k] == h->rank ? k : me;
    if (h->rank)
        return me < 0 ? 0
                      : gradsync_send(h->comm, 0, mine->items, (uint64_t)mine->n * sizeof *mine->items, TAG_FINDINGS);
    report_item *buffer = malloc(room);
    if (!buffer)
        return GRADSYNC_ERR_NOMEM;
    for (int k = 0; !rc && k < h->s.nhosts; k++) {
        const report_item *from = mine->items;
        got = (uint64_t)mine->n * sizeof *from;
        if (speakers[k]) {
            rc = gradsync_recv(h->comm, speakers[k], buffer, room, TAG_FINDINGS, &got);
            from = buffer;
        }
        for (uint64_t i = 0; !rc && i < got / sizeof *from; i++)
            report_add_of(all, &from[i].f, h->s.hosts[k].name);
    }
    free(buffer);
    return rc;
}

/* ---- Pairs of rails ---------------------------------------------------------------------------- */

/* Hosts a and b meet in a round; a host has one partner a round at most. Returns the partner of host `me` in `round`,
 * -1 if it has none, or -2 if there is no such round. Few hosts: everyone meets everyone, one pair at a time. Many:
 * everyone meets the next two, in a ring. */
static int partner(int me, int nhosts, int round)
{
    if (nhosts <= ALL_PAIRS_HOSTS) {
        int at = 0;
        for (int a = 0; a < nhosts; a++)
            for (int b = a + 1; b < nhosts; b++)
                if (at++ == round)
                    return me == a ? b : me == b ? a : -1;
        return -2;
    }
    /* Even ones with their right neighbours, odd ones with theirs, and the last one of an odd ring with the first. */
    if (round >= 2 + nhosts % 2)
        return -2;
    int even = nhosts - nhosts % 2;
    if (round == 2)
        return me == nhosts - 1 ? 0 : me == 0 ? nhosts - 1 : -1;
    if (round == 1 && nhosts % 2)
        return me == 0 ? -1 : me % 2 ? me + 1 : me - 1;
    if (me >= even)
        return -1;
    return round == 0 ? me ^ 1 : me % 2 ? (me + 1) % nhosts : (me + nhosts - 1) % nhosts;
}

static int add_pair(survey *s, const pairing *p)
{
    if ((s->npairs & (s->npairs - 1)) == 0) { /* room doubles at each power of two */
        pairing *more = realloc(s->pairs, (s->npairs ? (size_t)s->npairs * 2 : 1) * sizeof *more);
        if (!more)
            return -1;
        s->pairs = more;
    }
    s->pairs[s->npairs++] = *p;
    return 0;
}

/* All rails of this host with all of another's, one pair at a time. */
static int measure_hosts(hosts *h, const hosts_config *config, const int *speakers, int me, int other)
{
    int a = me < other ? me : other, b = me < other ? other : me;

    for (int i = 0; i < survey_rails(&h->s, a); i++)
        for (int k = 0; k < survey_rails(&h->s, b); k++) {
            pairing p = {.a = a, .i = i, .b = b, .k = k};
            measure_config c = {.control = h->comm,
                                .peer = speakers[other],
                                .first = me == a,
                                .wire = h->s.wire,
                                .rail = survey_rail(&h->s, me, me == a ? i : k)->name,
                                .timeout_ms = config->timeout_ms,
                                .seconds = config->seconds};
            if (survey_pairs(&h->s, a, i, b, k)) {
                measure(&c, &p);
            } else {
                p.status = GRADSYNC_ERR_UNSUPPORTED;
                snprintf(p.why, sizeof p.why, "they have no subnet in common");
            }
            if (me == a && add_pair(&h->s, &p))
                return GRADSYNC_ERR_NOMEM;
        }
    return 0;
}

/* Rank 0 collects what the others have measured. */
static int gather_pairs(hosts *h, const int *speakers, int me)
{
    int rc = 0;

    if (h->rank)
        return me < 0 ? 0
                      : gradsync_send(h->comm, 0, h->s.pairs, (uint64_t)h->s.npairs * sizeof *h->s.pairs, TAG_PAIRS);
    uint64_t room = (uint64_t)4 * RAILS_MAX * RAILS_MAX * sizeof(pairing), got;
    pairing *buffer = malloc(room);
    if (!buffer)
        return GRADSYNC_ERR_NOMEM;
    for (int k = 0; k < h->s.nhosts && !rc; k++) {
        if (!speakers[k])
            continue;
        rc = gradsync_recv(h->comm, speakers[k], buffer, room, TAG_PAIRS, &got);
        for (uint64_t i = 0; !rc && i < got / sizeof *buffer; i++)
            rc = add_pair(&h->s, &buffer[i]) ? GRADSYNC_ERR_NOMEM : 0;
    }
    free(buffer);
    return rc;
}

static int measure_all(hosts *h, const hosts_config *config, const int *speakers)
{
    int me = -1, rc = 0;

    for (int k = 0; k < h->s.nhosts; k++)
        me = speakers[k] == h->rank ? k : me;
    for (int round = 0, other; !rc && (other = partner(me < 0 ? h->s.nhosts : me, h->s.nhosts, round)) != -2; round++) {
        if (me >= 0 && other >= 0)
            rc = measure_hosts(h, config, speakers, me, other);
        if (!rc)
            rc = gradsync_barrier(h->comm, NULL); /* rounds do not disturb each other */
    }
    return rc ? rc : gather_pairs(h, speakers, me);
}

/* ---- All together -------------------------------------------------------------------------------- */

/* RDMA if every host has it, or what the operator wants. */
static void choose_wire(hosts *h, report *all)
{
    const char *wanted = getenv("GRADSYNC_TRANSPORT");
    int lacking = -1;

    for (int k = 0; k < h->s.nhosts && lacking < 0; k++)
        lacking = h->s.hosts[k].nrails ? -1 : k;
    h->s.wire = wanted && !strcmp(wanted, "tcp")                        ? "tcp"
                : lacking >= 0 && !(wanted && !strcmp(wanted, "verbs")) ? "tcp"
                                                                        : "verbs";
    if (lacking < 0 || h->rank || (wanted && !strcmp(wanted, "tcp")))
        return;
    gradsync_finding f = {.size = sizeof f, .severity = GRADSYNC_FINDING_WARNING};
    snprintf(f.id, sizeof f.id, "rail-none");
    snprintf(f.subject, sizeof f.subject, "%.90s", h->s.hosts[lacking].name);
    snprintf(f.cause, sizeof f.cause,
             "it has no port that can be used (%s), so that the network interfaces are measured by TCP",
             h->s.hosts[lacking].no_rdma);
    snprintf(f.remedy, sizeof f.remedy, "see that host's findings; GRADSYNC_TRANSPORT=tcp accepts it");
    report_add(all, &f);
}

static int meet(const char *program, hosts *h, int *nranks)
{
    gradsync_config config = GRADSYNC_CONFIG_INIT;

    config.transport = "tcp";
    config.timeout_ms = CONTROL_TIMEOUT_MS;
    config.progress = GRADSYNC_PROGRESS_MANUAL; /* no thread reads the environment while measure() sets it */
    if (gradsync_context_create(&config, &h->ctx))
        return complain(program, "cannot start libgradsync");
    gradsync_comm_config comm = GRADSYNC_COMM_CONFIG_INIT;
    if (gradsync_comm_create_from_env(h->ctx, &comm, &h->comm))
        return complain(program, "the ranks cannot meet by TCP");
    h->rank = gradsync_comm_rank(h->comm);
    *nranks = gradsync_comm_size(h->comm);
    if (*nranks > 1)
        return 0;
    cli_error(
        program,
        "--hosts needs 2 ranks or more, on different hosts: start it with mpirun, srun, torchrun or gradsync-run, "
        "as 'mpirun -n 2 --host a,b %s --hosts'",
        program);
    return -1;
}

int hosts_survey(const char *program, const hosts_config *config, const report *mine, hosts *h, report *all)
{
    int n = 0, rc = 0;

    *h = (hosts){.rank = -1};
    if (meet(program, h, &n))
        return -1;
    host *everyone = calloc((size_t)n, sizeof *everyone);
    host *own = malloc(sizeof *own);
    int *speakers = calloc((size_t)n, sizeof *speakers);
    if (!everyone || !own || !speakers) {
        cli_error(program, "out of memory");
        rc = -1;
        goto done;
    }
    describe(h->comm, own);
    rc = gradsync_all_gather(h->comm, own, everyone, sizeof *own, GRADSYNC_U8, NULL);
    if (!rc) {
        h->s.nhosts = choose_speakers(everyone, n, speakers);
        for (int k = 0; k < h->s.nhosts; k++) /* speakers ascend: nothing is overwritten that is still needed */
            everyone[k] = everyone[speakers[k]];
        h->s.hosts = everyone;
        everyone = NULL;
        choose_wire(h, all);
        rc = gather_findings(h, speakers, mine, all);
    }
    if (!rc)
        rc = measure_all(h, config, speakers);
    if (rc)
        complain(program, "the hosts lost each other");
    else if (!h->rank)
        judge(&h->s, report_add, all);
done:
    free(everyone);
    free(own);
    free(speakers);
    return rc ? -1 : 0;
}

int hosts_status(hosts *h, int status)
{
    int32_t told = status;

    return gradsync_broadcast(h->comm, &told, &told, 1, GRADSYNC_I32, 0, NULL) ? status : told;
}

void hosts_end(hosts *h)
{
    free(h->s.hosts);
    free(h->s.pairs);
    gradsync_comm_destroy(h->comm);
    gradsync_context_destroy(h->ctx);
}
