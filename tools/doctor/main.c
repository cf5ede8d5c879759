/* SPDX-License-Identifier: Apache-2.0 */
/* gradsync-doctor: what keeps RDMA from working, or from its full speed. See gradsync-doctor(1). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <gradsync/gradsync.h>

#include "cli.h"
#include "hosts.h"
#include "report.h"

static const char name[] = "gradsync-doctor";

static const char help[] =
    "Usage: gradsync-doctor [options]\n"
    "Looks for what keeps RDMA from working, or from its full speed, on this machine; says cause\n"
    "and remedy of each finding.\n"
    "\n"
    "  -p, --peer ADDRESS  an address that the RoCE ports should reach: 10.0.1.2, 10.0.1.0/24,\n"
    "                      fd00::2; several with commas or by repeating the option\n"
    "  -H, --hosts         run by mpirun, srun, torchrun or gradsync-run on several hosts: the findings of\n"
    "                      all, and latency and bandwidth of every pair of rails between them\n"
    "      --seconds S     how long to measure each direction of a pair (default 0.2)\n"
    "      --timeout S     how long to wait for a pair that does not answer (default 10)\n"
    "      --only IDS      only these checks: --only port-down,memlock\n"
    "      --skip IDS      all but these\n"
    "      --root DIR      look at a copy of another machine's /sys, /proc and /dev\n"
    "  -v, --verbose       tell of the checks too that found nothing, and of those left out\n"
    "  -q, --quiet         print nothing: the exit status says it\n"
    "  -j, --json          as JSON\n"
    "  -h, --help          this text\n"
    "  -V, --version       the version\n"
    "\n"
    "Exit status: 0 all well (there may be hints), 1 warnings, 2 errors; 3 if it could not look,\n"
    "or was called wrongly.\n";

enum { OPT_ONLY = 256, OPT_SKIP, OPT_ROOT, OPT_SECONDS, OPT_TIMEOUT };

static const struct option longs[] = {{"peer", required_argument, NULL, 'p'},
                                      {"hosts", no_argument, NULL, 'H'},
                                      {"seconds", required_argument, NULL, OPT_SECONDS},
                                      {"timeout", required_argument, NULL, OPT_TIMEOUT},
                                      {"only", required_argument, NULL, OPT_ONLY},
                                      {"skip", required_argument, NULL, OPT_SKIP},
                                      {"root", required_argument, NULL, OPT_ROOT},
                                      {"verbose", no_argument, NULL, 'v'},
                                      {"quiet", no_argument, NULL, 'q'},
                                      {"json", no_argument, NULL, 'j'},
                                      {"help", no_argument, NULL, 'h'},
                                      {"version", no_argument, NULL, 'V'},
                                      {NULL, 0, NULL, 0}};

typedef struct settings {
    char peers[1024]; /* "": none */
    char only[512], skip[512];
    const char *root;
    int verbose, quiet, json, hosts;
    double seconds, timeout_s;
} settings;

/* Appends "value" or ",value". */
static int append(char *list, size_t room, const char *option, const char *value)
{
    size_t n = strlen(list);

    if (!*value || n + strlen(value) + 2 > room) {
        cli_usage_error(name, "%s '%.60s' is %s", option, value, *value ? "too long" : "empty");
        return -1;
    }
    snprintf(list + n, room - n, "%s%s", n ? "," : "", value);
    return 0;
}

/* One option; 0, or -1 after saying what is wrong with it. */
static int take_option(int option, const char *value, settings *s)
{
    switch (option) {
    case 'p':
        return append(s->peers, sizeof s->peers, "--peer", value);
    case OPT_ONLY:
        return append(s->only, sizeof s->only, "--only", value);
    case OPT_SKIP:
        return append(s->skip, sizeof s->skip, "--skip", value);
    case OPT_ROOT:
        s->root = value;
        if (access(value, R_OK | X_OK)) {
            cli_usage_error(name, "--root '%s' is no folder that can be read", value);
            return -1;
        }
        return 0;
    case OPT_SECONDS:
        if (!cli_double(value, 0.001, 3600, &s->seconds))
            return 0;
        cli_usage_error(name, "--seconds '%s' is wrong: give 0.001 to 3600", value);
        return -1;
    case OPT_TIMEOUT:
        if (!cli_double(value, 0.1, 3600, &s->timeout_s))
            return 0;
        cli_usage_error(name, "--timeout '%s' is wrong: give seconds, 0.1 to 3600", value);
        return -1;
    case 'H':
        s->hosts = 1;
        return 0;
    case 'v':
        s->verbose = 1;
        return 0;
    case 'q':
        s->quiet = 1;
        return 0;
    default:
        s->json = 1;
        return 0;
    }
}

static int check_ids(const report *r, const char *option, const char *list)
{
    char id[64];

    for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',') {
        size_t length = strcspn(p, ",");
        if (length >= sizeof id)
            length = sizeof id - 1; /* no check has so long a name: it is told by its beginning */
        memcpy(id, p, length);
        id[length] = 0;
        if (!report_has_id(r, id)) {
            cli_usage_error(name, "%s: there is no check '%s'; --verbose lists them", option, id);
            return -1;
        }
    }
    return 0;
}

/* Of a copy, its own name if it has one. */
static void read_host(const char *root, char *text, size_t room)
{
    struct utsname u;
    char path[4096];

    snprintf(text, room, "%s", uname(&u) ? "this machine" : u.nodename);
    if (!root)
        return;
    snprintf(text, room, "a machine");
    snprintf(path, sizeof path, "%s/proc/sys/kernel/hostname", root);
    FILE *f = fopen(path, "re");
    if (f && fgets(text, (int)room, f))
        text[strcspn(text, "\n")] = 0;
    if (f)
        fclose(f);
}

/* This machine's findings, or the copy's. */
static int examine(const settings *s, report *r)
{
    int rc = gradsync_diagnose(s->root, s->peers[0] ? s->peers : NULL, report_add, r);

    if (rc || r->failed) {
        gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
        gradsync_last_error(&info);
        if (rc == GRADSYNC_ERR_INVALID)
            cli_usage_error(name, "%s", info.message);
        else
            cli_error(name, "%s", rc ? info.message : "out of memory");
        return -1;
    }
    return 0;
}

/* Prints what the options let pass; returns the exit status. */
static int tell(const settings *s, report *r, const survey *rails)
{
    if (check_ids(r, "--only", s->only) || check_ids(r, "--skip", s->skip))
        return DOCTOR_EXIT_FAILED;
    report_filter(r, s->only[0] ? s->only : NULL, s->skip[0] ? s->skip : NULL);
    r->root = s->root;
    if (rails)
        snprintf(r->host, sizeof r->host, "%d hosts", rails->nhosts);
    else
        read_host(s->root, r->host, sizeof r->host);
    if (s->json && !s->quiet) {
        puts("{");
        report_json(r);
        if (rails)
            rails_json(rails);
        puts("\n}");
    } else if (!s->quiet) {
        if (rails)
            rails_text(rails);
        report_text(r, s->verbose);
    }
    return cli_close_stdout(name) ? DOCTOR_EXIT_FAILED : report_status(r);
}

/* On several hosts: rank 0 tells, all have its status. */
static int survey_hosts(const settings *s, const report *mine)
{
    hosts_config config = {.seconds = s->seconds, .timeout_ms = (int64_t)(s->timeout_s * 1000)};
    report all = {.n = 0};
    hosts h;
    int status = DOCTOR_EXIT_FAILED;

    if (!hosts_survey(name, &config, mine, &h, &all)) {
        if (!h.rank)
            status = all.failed ? DOCTOR_EXIT_FAILED : tell(s, &all, &h.s);
        status = hosts_status(&h, status);
    }
    hosts_end(&h);
    report_free(&all);
    return status;
}

int main(int argc, char **argv)
{
    static settings s = {.seconds = 0.2, .timeout_s = 10};
    report r = {.n = 0};
    int option;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":p:HvqjhV", longs, NULL)) != -1) {
        if (option == 'h' || option == 'V') {
            if (option == 'h')
                fputs(help, stdout);
            else
                cli_print_version(name);
            return cli_close_stdout(name) ? DOCTOR_EXIT_FAILED : 0;
        }
        if (option == '?' || option == ':') {
            cli_option_error(name, option, argv, longs);
            return DOCTOR_EXIT_FAILED;
        }
        if (take_option(option, optarg, &s))
            return DOCTOR_EXIT_FAILED;
    }
    if (optind < argc) {
        cli_usage_error(name, "unexpected argument '%s'", argv[optind]);
        return DOCTOR_EXIT_FAILED;
    }
    if (s.hosts && s.root) {
        cli_usage_error(name, "--hosts measures real machines: it does not go with --root");
        return DOCTOR_EXIT_FAILED;
    }
    int status = examine(&s, &r) ? DOCTOR_EXIT_FAILED : s.hosts ? survey_hosts(&s, &r) : tell(&s, &r, NULL);
    report_free(&r);
    return status;
}
