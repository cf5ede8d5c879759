/* SPDX-License-Identifier: Apache-2.0 */
/* The rendezvous between ranks that are all what they claim to be, mostly. */
#include "ranks.h"
#include "base/alloc.h"

#include <signal.h>
#include <sys/resource.h>

/* ---- All well ---- */

static void run_well(struct job *j, int rank, struct result *out)
{
    static const size_t sizes[] = {16, 0, 1, 7, 1000, 65536, 3};
    gsi_bootstrap *b;

    if (create(j, rank, j->nranks, j->key, &b, out))
        return;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (gather(b, rank, j->nranks, sizes[i], (int)i, i % 2, out))
            break;
    gsi_bootstrap_destroy(b);
}

static void test_sizes(void)
{
    for (int n = 1; n <= 16; n++) {
        struct job *j = job_new(n, run_well);
        as_threads(j, n);
        tap_ok(all_have(j, 0, n - 1, 0, -2), "%d ranks as threads", n);
        memset(j->results, 0, sizeof j->results);
        int bad = as_processes(j, n);
        tap_ok(!bad && all_have(j, 0, n - 1, 0, -2), "%d ranks as processes", n);
        job_free(j);
    }
}

static void test_addresses(void)
{
    char host[256] = "";
    const char *addrs[] = {"localhost", "::1", host};
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    int v6 = fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0;

    if (fd >= 0)
        close(fd);
    gethostname(host, sizeof host - 1);
    for (int i = 0; i < 3; i++) {
        if (i == 1 && !v6) {
            tap_skip(1, "this machine has no IPv6");
            continue;
        }
        struct job *j = job_new(3, run_well);
        j->addr = addrs[i];
        as_threads(j, 3);
        tap_ok(all_have(j, 0, 2, 0, -2), "rank 0 at %s", i == 2 ? "this host's name" : addrs[i]);
        job_free(j);
    }
}

static void run_often(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;

    for (int i = 0; i < 20; i++) {
        if (create(j, rank, j->nranks, j->key, &b, out))
            return;
        int r = i % 3 ? gather(b, rank, j->nranks, 100, i, 0, out) : 0;
        gsi_bootstrap_destroy(b);
        if (r)
            return;
    }
}

static void test_often(void)
{
    struct job *j = job_new(4, run_often);

    tap_ok(!as_processes(j, 4) && all_have(j, 0, 3, 0, -2), "20 times at the same port");
    job_free(j);
}

static void run_too_large(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;
    char byte = 0;

    if (create(j, rank, j->nranks, j->key, &b, out))
        return;
    if (keep(out, gsi_bootstrap_allgather(b, &byte, &byte, (size_t)GSI_GATHER_MAX / 2 + 1)) == GRADSYNC_ERR_INVALID)
        gather(b, rank, j->nranks, 5, 0, 0, out);
    gsi_bootstrap_destroy(b);
}

static void test_too_large(void)
{
    struct job *j = job_new(2, run_too_large);

    as_threads(j, 2);
    tap_ok(all_have(j, 0, 1, 0, -2), "a block that is too large is INVALID and changes nothing");
    job_free(j);
}

static void test_arguments(void)
{
    struct job *j = job_new(2, NULL);
    struct result r;
    gsi_bootstrap *b;

    tap_ok(create(j, 2, 2, 1, &b, &r) == GRADSYNC_ERR_INVALID && create(j, -1, 2, 1, &b, &r) == GRADSYNC_ERR_INVALID &&
               create(j, 0, 0, 1, &b, &r) == GRADSYNC_ERR_INVALID,
           "ranks that cannot be are INVALID");
    j->port = 65530;
    j->ports = 16;
    tap_ok(create(j, 0, 2, 1, &b, &r) == GRADSYNC_ERR_INVALID, "ports past 65535 are INVALID");
    gsi_bootstrap_destroy(NULL);
    job_free(j);
}

/* ---- Wrong ranks ---- */

static void run_wrong_key(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;

    create(j, rank, j->nranks, rank == 2 ? 99 : j->key, &b, out);
    gsi_bootstrap_destroy(b);
}

static void test_wrong_key(void)
{
    struct job *j = job_new(4, run_wrong_key);

    j->timeout_ms = 2000;
    as_threads(j, 4);
    tap_ok(all_have(j, 2, 2, GRADSYNC_ERR_AUTH, 0) && says(&j->results[2], "same GRADSYNC_KEY"),
           "a rank with another key gets AUTH");
    tap_ok(all_have(j, 0, 1, GRADSYNC_ERR_TIMEOUT, 2) && all_have(j, 3, 3, GRADSYNC_ERR_TIMEOUT, 2) &&
               says(&j->results[0], "ranks 2 of 4") && says(&j->results[0], "did not have the job's key") &&
               says(&j->results[1], "ranks 2 of 4"),
           "the others learn which rank is missing, and of the key");
    job_free(j);
}

static void run_twice(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;

    /* Number 4 claims rank 2; rank 3 comes only when one of the two was refused. */
    if (rank == 3)
        wait_flag(j, 0, 1);
    if (create(j, rank == 4 ? 2 : rank, 4, j->key, &b, out)) {
        atomic_fetch_add(&j->flags[0], 1);
        return;
    }
    gather(b, rank == 4 ? 2 : rank, 4, 33, 0, 0, out);
    gsi_bootstrap_destroy(b);
}

static void test_twice(void)
{
    struct job *j = job_new(4, run_twice);

    as_threads(j, 5);
    struct result *refused = &j->results[j->results[2].code ? 2 : 4], *other = &j->results[j->results[2].code ? 4 : 2];
    tap_ok(all_have(j, 0, 1, 0, -2) && all_have(j, 3, 3, 0, -2) && other->code == 0,
           "a rank that is taken twice does not disturb the job");
    tap_ok(refused->code == GRADSYNC_ERR_INVALID && refused->peer == 2 && says(refused, "rank 2 is taken twice"),
           "the second one gets INVALID, naming the rank");
    job_free(j);
}

static void run_zero_twice(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;

    if (rank == 1)
        wait_flag(j, 0, 1);
    if (create(j, rank == 2 ? 0 : rank, 2, j->key, &b, out)) {
        atomic_fetch_add(&j->flags[0], 1);
        return;
    }
    gather(b, rank == 2 ? 0 : rank, 2, 33, 0, 0, out);
    gsi_bootstrap_destroy(b);
}

static void test_zero_twice(void)
{
    for (int ports = 1; ports <= 4; ports += 3) {
        struct job *j = job_new(2, run_zero_twice);
        j->ports = ports;
        as_threads(j, 3);
        struct result *refused = &j->results[j->results[0].code ? 0 : 2],
                      *other = &j->results[j->results[0].code ? 2 : 0];
        tap_ok(all_have(j, 1, 1, 0, -2) && other->code == 0 && refused->code == GRADSYNC_ERR_INVALID &&
                   says(refused, "rank 0 is taken twice"),
               "two processes with rank 0, %d port%s: the second gets INVALID", ports, ports > 1 ? "s" : "");
        job_free(j);
    }
}

static void run_other_size(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;

    create(j, rank, rank == 3 ? 5 : 4, j->key, &b, out);
    gsi_bootstrap_destroy(b);
}

static void test_other_size(void)
{
    struct job *j = job_new(4, run_other_size);
    int good = 1;

    as_processes(j, 4);
    for (int i = 0; i < 4; i++)
        good &= says(&j->results[i], "of 5 ranks") && says(&j->results[i], "of 4");
    tap_ok(all_have(j, 0, 3, GRADSYNC_ERR_MISMATCH, 3) && good,
           "ranks that disagree on their number get MISMATCH, naming both");
    job_free(j);
}

/* ---- Missing ranks ---- */

static int is_missing(int rank)
{
    return rank == 3 || (rank >= 7 && rank <= 9);
}

static void run_some(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b = NULL;

    if (!is_missing(rank))
        create(j, rank, j->nranks, j->key, &b, out);
    gsi_bootstrap_destroy(b);
}

static void test_missing(void)
{
    struct job *j = job_new(16, run_some);
    int good = 1;

    j->timeout_ms = 2000;
    as_threads(j, 16);
    for (int i = 0; i < 16; i++)
        if (!is_missing(i))
            good &= all_have(j, i, i, GRADSYNC_ERR_TIMEOUT, -2) && says(&j->results[i], "3, 7-9 of 16");
    tap_ok(good, "a timeout names the missing ranks on all the others");
    job_free(j);
}

/* Rank 1 has less patience than rank 0, and rank 3 never comes. */
static void run_impatient(struct job *j, int rank, struct result *out)
{
    struct job mine = job_view(j);
    gsi_bootstrap *b = NULL;

    if (rank == 1)
        mine.timeout_ms = 2500;
    if (rank != 3)
        create(&mine, rank, j->nranks, j->key, &b, out);
    gsi_bootstrap_destroy(b);
}

static void test_impatient(void)
{
    struct job *j = job_new(4, run_impatient);
    int good = 1;

    as_threads(j, 4);
    for (int i = 0; i < 3; i++)
        good &= says(&j->results[i], "rank 1 waited 2500 ms") && says(&j->results[i], "for ranks 3 of 4");
    tap_ok(good && all_have(j, 0, 2, GRADSYNC_ERR_TIMEOUT, 3),
           "a rank that gives up before rank 0 knows for whom it waited, and tells the others");
    job_free(j);
}

static void run_no_root(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b = NULL;

    if (rank)
        create(j, rank, j->nranks, j->key, &b, out);
    gsi_bootstrap_destroy(b);
}

static void test_no_root(void)
{
    struct job *j = job_new(2, run_no_root);

    j->timeout_ms = 700;
    as_threads(j, 2);
    tap_ok(all_have(j, 1, 1, GRADSYNC_ERR_TIMEOUT, 0) && says(&j->results[1], "did not reach rank 0 at 127.0.0.1:"),
           "no rank 0: a timeout that names the place");
    j->addr = "no-such-host.invalid";
    j->results[1].done = 0;
    as_threads(j, 2);
    tap_ok(all_have(j, 1, 1, GRADSYNC_ERR_TIMEOUT, 0) && says(&j->results[1], "no-such-host.invalid"),
           "a name that nobody knows is in the message");
    job_free(j);
}

static void run_silent(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;

    if (create(j, rank, j->nranks, j->key, &b, out))
        return;
    if (gather(b, rank, j->nranks, 10, 0, 0, out) == 0) {
        if (rank == 2)
            wait_flag(j, 0, 3); /* alive, but not in the call */
        gather(b, rank, j->nranks, 10, 1, 0, out);
        struct result again;
        if (keep(&again, gsi_bootstrap_allgather(b, "0123456789", again.message, 10)) != out->code)
            out->code = 1;
    }
    atomic_fetch_add(&j->flags[0], 1);
    gsi_bootstrap_destroy(b);
}

static void test_silent(void)
{
    struct job *j = job_new(4, run_silent);

    j->timeout_ms = 1500;
    as_processes(j, 4);
    tap_ok(all_have(j, 0, 3, GRADSYNC_ERR_TIMEOUT, 2) && says(&j->results[0], "for ranks 2 of 4") &&
               says(&j->results[3], "for ranks 2 of 4"),
           "a rank that does not call: TIMEOUT naming it, again at the next call");
    job_free(j);
}

/* ---- Lost ranks, and ranks of another opinion ---- */

static void run_lost(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;

    if (create(j, rank, j->nranks, j->key, &b, out))
        return;
    for (int i = 0; i < 1000; i++) {
        if (rank == atomic_load(&j->flags[0]) && i == atomic_load(&j->flags[1])) {
            out->done = 1;
            raise(SIGKILL);
        }
        if (gather(b, rank, j->nranks, 2000, i, 0, out))
            break;
    }
    gsi_bootstrap_destroy(b);
}

static void test_lost(void)
{
    for (int victim = 0; victim < 5; victim += 2)
        for (int at = 0; at < 3; at++) {
            struct job *j = job_new(5, run_lost);
            int good = 1;
            atomic_store(&j->flags[0], victim);
            atomic_store(&j->flags[1], at);
            as_processes(j, 5);
            for (int i = 0; i < 5; i++)
                good &= i == victim || all_have(j, i, i, GRADSYNC_ERR_PEER_LOST, victim);
            tap_ok(good, "rank %d is killed before all-gather %d: PEER_LOST naming it, everywhere", victim, at);
            job_free(j);
        }
}

static void run_killed_outside(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;

    if (create(j, rank, j->nranks, j->key, &b, out))
        return;
    if (rank == 3)
        atomic_store(&j->flags[0], getpid());
    for (int i = 0; i < 1000000; i++) {
        if (gather(b, rank, j->nranks, 20000, i, 0, out))
            break;
        if (rank == 3)
            atomic_store(&j->flags[1], i);
    }
    gsi_bootstrap_destroy(b);
}

static void *assassin(void *arg)
{
    struct job *j = arg;

    wait_flag(j, 1, atomic_load(&j->flags[2]));
    kill((pid_t)atomic_load(&j->flags[0]), SIGKILL);
    return NULL;
}

/* The moment is wherever the victim happens to be: inside a call as a rule. */
static void test_killed_outside(void)
{
    int good = 1, rounds = 10;

    for (int k = 0; k < rounds; k++) {
        struct job *j = job_new(5, run_killed_outside);
        pid_t killer;
        atomic_store(&j->flags[2], 3 + 5 * k);
        fflush(NULL);
        killer = fork();
        if (killer == 0) {
            assassin(j);
            _exit(0);
        }
        as_processes(j, 5);
        waitpid(killer, NULL, 0);
        for (int i = 0; i < 5; i++)
            good &= i == 3 || all_have(j, i, i, GRADSYNC_ERR_PEER_LOST, 3);
        job_free(j);
    }
    tap_ok(good, "a rank killed from outside in the middle of things, %d times", rounds);
}

static void run_leaves(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;

    if (create(j, rank, j->nranks, j->key, &b, out))
        return;
    if (gather(b, rank, j->nranks, 10, 0, 0, out) == 0 && rank != 1)
        gather(b, rank, j->nranks, 10, 1, 0, out);
    gsi_bootstrap_destroy(b);
}

static void run_sizes_differ(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;

    if (create(j, rank, j->nranks, j->key, &b, out))
        return;
    if (rank == 0 && atomic_load(&j->flags[0]))
        poll(NULL, 0, 50); /* often, so that the others' blocks are early; either way is right */
    gather(b, rank, j->nranks, rank == 2 ? 11 : 10, 0, 0, out);
    gsi_bootstrap_destroy(b);
}

static void test_opinions(void)
{
    struct job *j = job_new(4, run_leaves);

    as_threads(j, 4);
    tap_ok(all_have(j, 0, 0, GRADSYNC_ERR_PEER_LOST, 1) && all_have(j, 1, 1, 0, -2) &&
               all_have(j, 2, 3, GRADSYNC_ERR_PEER_LOST, 1),
           "a rank that leaves early: PEER_LOST naming it");
    job_free(j);
    for (int late = 0; late < 2; late++) {
        j = job_new(4, run_sizes_differ);
        atomic_store(&j->flags[0], late);
        as_threads(j, 4);
        tap_ok(all_have(j, 0, 3, GRADSYNC_ERR_MISMATCH, 2) && says(&j->results[3], "rank 2 gave 11 bytes") &&
                   says(&j->results[2], "rank 0 gave 10"),
               "sizes that differ: MISMATCH naming both, on all ranks%s", late ? " (rank 0 comes last)" : "");
        job_free(j);
    }
}

/* ---- The machine's limits ---- */

static void run_few_files(struct job *j, int rank, struct result *out)
{
    struct rlimit few = {40, 40};
    gsi_bootstrap *b;

    (void)rank;
    setrlimit(RLIMIT_NOFILE, &few);
    create(j, 0, 100, j->key, &b, out);
}

static void test_few_files(void)
{
    struct job *j = job_new(1, run_few_files);

    as_processes(j, 1);
    tap_ok(all_have(j, 0, 0, GRADSYNC_ERR_SYSTEM, -1) && says(&j->results[0], "ulimit -n"),
           "too few file descriptors for the ranks: SYSTEM with the remedy, at once");
    job_free(j);
}

static void test_interfaces(void)
{
    struct job *j = job_new(2, run_well);
    struct result r;
    gsi_bootstrap *b;

    j->ifname = "no-such-interface";
    j->addr = "192.0.2.1";
    create(j, 0, 2, 1, &b, &r);
    tap_ok(r.code == GRADSYNC_ERR_INVALID && says(&r, "no-such-interface") && says(&r, "it has: "),
           "an interface that is not there: INVALID, with those that are");
    job_free(j);
}

static void run_poor(struct job *j, int rank, struct result *out)
{
    gsi_bootstrap *b;

    if (create(j, rank, j->nranks, j->key, &b, out))
        return;
    for (int i = 0; i < 2; i++)
        if (gather(b, rank, j->nranks, 100, i, 0, out))
            break;
    gsi_bootstrap_destroy(b);
}

/* Whichever allocation fails: no rank hangs, and one that fails says why. */
static void test_poor(void)
{
    int good = 1, failed = 0, last = 0;

    for (int at = 1; at <= 60 && !last; at++) {
        struct job *j = job_new(3, run_poor);
        j->timeout_ms = 400;
        gsi_alloc_fail_at(at);
        as_threads(j, 3);
        last = gsi_alloc_count() < at;
        gsi_alloc_fail_at(0);
        for (int i = 0; i < 3; i++) {
            int c = j->results[i].code;
            good &= c == 0 || c == GRADSYNC_ERR_NOMEM || c == GRADSYNC_ERR_TIMEOUT || c == GRADSYNC_ERR_PEER_LOST;
            failed += c == GRADSYNC_ERR_NOMEM;
        }
        if (!good)
            all_have(j, 0, 2, 0, -2);
        job_free(j);
    }
    tap_ok(good && failed > 10, "every allocation fails once: errors, no hang");
}

int main(void)
{
    alarm(280); /* a hang is a failure, not a wait */
    test_sizes();
    test_addresses();
    test_often();
    test_too_large();
    test_arguments();
    test_wrong_key();
    test_twice();
    test_zero_twice();
    test_other_size();
    test_missing();
    test_impatient();
    test_no_root();
    test_silent();
    test_lost();
    test_killed_outside();
    test_opinions();
    test_few_files();
    test_interfaces();
    test_poor();
    return tap_done();
}
