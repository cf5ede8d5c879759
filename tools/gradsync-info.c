/* SPDX-License-Identifier: Apache-2.0 */
/* gradsync-info: what libgradsync finds on this machine. See gradsync-info(1). */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <gradsync/gradsync.h>

#include "cli.h"
#include "info_machine.h"

#if HAVE_JANSSON
#include <jansson.h>
#endif

static const char name[] = "gradsync-info";

static const char help[] =
    "Usage: gradsync-info [options]\n"
    "Shows what libgradsync finds and can use on this machine: CPU, NUMA nodes, pages, devices,\n"
    "transports (or why not, and the remedy), and the GRADSYNC_ variables that are set.\n"
    "\n"
    "  -r, --rails          instead: the RDMA ports, which of them each local rank would use, and why\n"
    "  -t, --topo           instead: how far each port is from each GPU and NUMA node (with --rails: both)\n"
    "  -m, --memory LIST    with --rails: where the memory of each local rank is, commas between: gpuN, nodeN,\n"
    "                       a PCI address, or - for unknown (default: a rank a GPU, else a rank a NUMA node)\n"
    "  -k, --rank N         with --rails: tell the reasons for this local rank (default 0)\n"
    "  -R, --root FOLDER    of a machine whose /sys, /proc and /dev were copied to this folder\n"
    "  -j, --json           as JSON\n"
    "  -h, --help           this text\n"
    "  -V, --version        the version\n"
    "\n"
    "Exit status: 0; 1 if the library could not be asked; 2 for a wrong command line.\n";

static const struct option longs[] = {{"rails", no_argument, NULL, 'r'},
                                      {"topo", no_argument, NULL, 't'},
                                      {"memory", required_argument, NULL, 'm'},
                                      {"rank", required_argument, NULL, 'k'},
                                      {"root", required_argument, NULL, 'R'},
                                      {"json", no_argument, NULL, 'j'},
                                      {"help", no_argument, NULL, 'h'},
                                      {"version", no_argument, NULL, 'V'},
                                      {NULL, 0, NULL, 0}};

enum { MOST_TRANSPORTS = 16, MOST_DEVICES = 64, MOST_VARIABLES = 64 };

typedef struct device {
    char name[64], state[96]; /* "mlx5_0", "port 1 ACTIVE, port 2 DOWN" */
} device;

typedef struct findings {
    gradsync_system_info system;
    gradsync_transport_info transports[MOST_TRANSPORTS];
    int ntransports;
    device devices[MOST_DEVICES];
    int ndevices;
    const char *variables[MOST_VARIABLES]; /* "NAME=value", sorted */
    int nvariables;
    struct utsname host;
    long long huge_total, huge_free; /* reserved huge pages of the default size; -1 unknown */
    char thp[64], shmem_thp[64];     /* the chosen words: "madvise" */
} findings;

/* ---- Asking ------------------------------------------------------------------------ */

static int fail(const char *what)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

    gradsync_last_error(&info);
    cli_error(name, "%s: %s: %s", what, gradsync_error_name(info.code), info.message);
    return -1;
}

static int ask_library(findings *f)
{
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    gradsync_context *ctx;
    int rc;

    if (gradsync_context_create(&config, &ctx) != 0)
        return fail("cannot start libgradsync");
    f->system.size = sizeof f->system;
    rc = gradsync_context_query(ctx, &f->system);
    if (rc != 0)
        fail("cannot ask libgradsync");
    for (int i = 0; i < MOST_TRANSPORTS && rc == 0; i++) {
        f->transports[i].size = sizeof f->transports[i];
        if (gradsync_context_transport(ctx, i, &f->transports[i]) != 0)
            break;
        f->ntransports++;
    }
    gradsync_context_destroy(ctx);
    return rc;
}

/* The first line of a small file, without its newline; "" if there is none. */
static void read_line(const char *path, char *text, size_t room)
{
    FILE *in = fopen(path, "re");

    text[0] = '\0';
    if (!in)
        return;
    if (!fgets(text, (int)room, in))
        text[0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    fclose(in);
}

/* Of "always [madvise] never" the word in brackets. */
static void read_choice(const char *path, char *text, size_t room)
{
    char line[128];

    read_line(path, line, sizeof line);
    char *open = strchr(line, '['), *close = open ? strchr(open, ']') : NULL;
    if (close)
        *close = '\0';
    snprintf(text, room, "%s", close ? open + 1 : "not in this kernel");
}

static void read_huge_pages(findings *f)
{
    FILE *in = fopen("/proc/meminfo", "re");
    char line[160];

    f->huge_total = f->huge_free = -1;
    while (in && fgets(line, sizeof line, in)) {
        sscanf(line, "HugePages_Total: %lld", &f->huge_total);
        sscanf(line, "HugePages_Free: %lld", &f->huge_free);
    }
    if (in)
        fclose(in);
    read_choice("/sys/kernel/mm/transparent_hugepage/enabled", f->thp, sizeof f->thp);
    read_choice("/sys/kernel/mm/transparent_hugepage/shmem_enabled", f->shmem_thp, sizeof f->shmem_thp);
}

/* The RDMA devices that the kernel has, whether the library can use them or not. */
static void read_devices(findings *f)
{
    static const char root[] = "/sys/class/infiniband";
    DIR *dir = opendir(root);

    for (struct dirent *e; dir && (e = readdir(dir)) && f->ndevices < MOST_DEVICES;) {
        device *d = &f->devices[f->ndevices];
        size_t at = 0;

        if (e->d_name[0] == '.')
            continue;
        snprintf(d->name, sizeof d->name, "%.63s", e->d_name);
        for (int port = 1; port <= 8 && at + 24 < sizeof d->state; port++) {
            char path[160], state[32];

            snprintf(path, sizeof path, "%s/%s/ports/%d/state", root, d->name, port);
            read_line(path, state, sizeof state);
            const char *word = strchr(state, ':'); /* "4: ACTIVE" */
            if (word)
                at += (size_t)snprintf(d->state + at, sizeof d->state - at, "%sport %d%.12s", at ? ", " : "", port,
                                       word + 1);
        }
        f->ndevices++;
    }
    if (dir)
        closedir(dir);
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void read_variables(findings *f)
{
    for (char **e = environ; *e && f->nvariables < MOST_VARIABLES; e++) {
        if (strncmp(*e, "GRADSYNC_", 9) == 0 || strncmp(*e, "NCCL_IB_", 8) == 0 ||
            strncmp(*e, "NCCL_SOCKET_IFNAME=", 19) == 0 || strncmp(*e, "NCCL_TOPO_FILE=", 15) == 0)
            f->variables[f->nvariables++] = *e;
    }
    qsort(f->variables, (size_t)f->nvariables, sizeof f->variables[0], compare);
}

/* Splits a variable; a secret's value is not for anybody's eyes. */
static const char *value_of(const char *variable, char *label, size_t room)
{
    size_t n = strcspn(variable, "=");

    snprintf(label, room, "%.*s", (int)n, variable);
    int secret = strncmp(label, "GRADSYNC_KEY", 12) == 0 && strcmp(label, "GRADSYNC_KEY_FILE") != 0;
    return secret ? "(set, not shown)" : variable + n + 1;
}

/* ---- Telling ------------------------------------------------------------------------ */

static void put_bytes(char *text, size_t room, uint64_t bytes)
{
    if (bytes >= 1 << 30 && bytes % (1 << 30) == 0)
        snprintf(text, room, "%llu GiB", (unsigned long long)(bytes >> 30));
    else if (bytes >= 1 << 20 && bytes % (1 << 20) == 0)
        snprintf(text, room, "%llu MiB", (unsigned long long)(bytes >> 20));
    else
        snprintf(text, room, "%llu KiB", (unsigned long long)(bytes >> 10));
}

static void print_text(const findings *f)
{
    const gradsync_system_info *s = &f->system;
    char page[32], huge[32], label[64];

    put_bytes(page, sizeof page, s->page_bytes);
    put_bytes(huge, sizeof huge, s->huge_page_bytes);
    printf("libgradsync   %s\n", gradsync_version());
    printf("host          %s, %s %s, %s\n", f->host.nodename, f->host.sysname, f->host.release, f->host.machine);
    printf("cpu           %s\n", s->cpu_model);
    printf("cpu tier      %s (of the reduction kernels)\n", s->cpu_tier);
    printf("usable cpus   %d\n", s->cpus);
    printf("numa nodes    %d\n", s->numa_nodes);
    printf("pages         %s; huge: %s\n", page, s->huge_page_bytes ? huge : "none");
    if (f->huge_total >= 0)
        printf("huge pages    %lld reserved, %lld free; transparent: %s, in shared memory: %s\n", f->huge_total,
               f->huge_free, f->thp, f->shmem_thp);
    printf("library mem   %s\n", s->huge_pages[0] ? s->huge_pages : "no huge pages");
    printf("rdma devices  %d%s\n", s->rdma_devices,
           s->rdma_devices == 0 && f->ndevices == 0 ? " (the kernel has none: no NIC with RDMA, or no driver for it)"
                                                    : "");
    for (int i = 0; i < f->ndevices; i++)
        printf("  %-12s %s\n", f->devices[i].name, f->devices[i].state);
    printf("transports\n");
    for (int i = 0; i < f->ntransports; i++)
        printf("  %-12s %s%s%s\n", f->transports[i].name, f->transports[i].usable ? "usable" : "not usable",
               f->transports[i].reason[0] ? ": " : "", f->transports[i].reason);
    printf("environment   %s\n", f->nvariables ? "" : "no GRADSYNC_ variable is set");
    for (int i = 0; i < f->nvariables; i++) {
        const char *value = value_of(f->variables[i], label, sizeof label);
        printf("  %s = %s\n", label, value);
    }
}

#if HAVE_JANSSON
/* A string as JSON, or null if it is no valid UTF-8. */
static json_t *text(const char *value)
{
    json_t *s = json_string(value);

    return s ? s : json_null();
}

static int print_json(const findings *f)
{
    const gradsync_system_info *s = &f->system;
    json_t *devices = json_array(), *transports = json_array(), *variables = json_object();
    char label[64];

    for (int i = 0; i < f->ndevices; i++)
        json_array_append_new(
            devices, json_pack("{s:o, s:o}", "name", text(f->devices[i].name), "ports", text(f->devices[i].state)));
    for (int i = 0; i < f->ntransports; i++)
        json_array_append_new(transports,
                              json_pack("{s:o, s:b, s:o}", "name", text(f->transports[i].name), "usable",
                                        f->transports[i].usable != 0, "reason", text(f->transports[i].reason)));
    for (int i = 0; i < f->nvariables; i++) {
        const char *value = value_of(f->variables[i], label, sizeof label);
        json_object_set_new(variables, label, text(value));
    }
    json_t *root =
        json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:i, s:i, s:I, s:I, s:o, s:o, s:o, s:I, s:I, s:i, s:o, s:o, s:o}",
                  "program", name, "library_version", gradsync_version(), "host", text(f->host.nodename), "kernel",
                  text(f->host.release), "cpu_model", text(s->cpu_model), "cpu_tier", text(s->cpu_tier), "usable_cpus",
                  s->cpus, "numa_nodes", s->numa_nodes, "page_bytes", (json_int_t)s->page_bytes, "huge_page_bytes",
                  (json_int_t)s->huge_page_bytes, "library_memory", text(s->huge_pages), "transparent_huge_pages",
                  text(f->thp), "transparent_huge_pages_shmem", text(f->shmem_thp), "huge_pages_reserved",
                  (json_int_t)f->huge_total, "huge_pages_free", (json_int_t)f->huge_free, "rdma_devices_found",
                  s->rdma_devices, "rdma_devices", devices, "transports", transports, "environment", variables);
    int rc = root ? json_dumpf(root, stdout, JSON_INDENT(2)) : -1;

    json_decref(root);
    putchar('\n');
    if (rc != 0)
        cli_error(name, "cannot write the JSON");
    return rc;
}
#else
static int print_json(const findings *f)
{
    (void)f;
    cli_error(name, "--json: built without jansson; install its development files, and build again");
    return -1;
}
#endif

/* --rails and --topo: 0, or the exit status. */
static int tell_machine(const info_options *options, int json)
{
    info_machine *m;
    int rc = info_read(name, options, &m);

    if (rc != 0)
        return rc;
    if (!json) {
        info_print_text(m);
    } else {
#if HAVE_JANSSON
        json_t *root = json_pack("{s:s, s:s}", "program", name, "library_version", gradsync_version());
        info_add_json(m, root);
        if (json_dumpf(root, stdout, JSON_INDENT(2)) != 0)
            rc = 1;
        json_decref(root);
        putchar('\n');
#else
        cli_error(name, "--json: built without jansson; install its development files, and build again");
        rc = 1;
#endif
    }
    info_free(m);
    return rc;
}

/* The overview: 0, or the exit status. */
static int tell_overview(int json)
{
    static findings f;
    int rc = 0;

    if (ask_library(&f) != 0)
        return 1;
    uname(&f.host);
    read_huge_pages(&f);
    read_devices(&f);
    read_variables(&f);
    if (json)
        rc = print_json(&f);
    else
        print_text(&f);
    return rc != 0;
}

int main(int argc, char **argv)
{
    info_options options = {.rank = 0};
    int option, json = 0, rank_given = 0;
    long long rank;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":rtm:k:R:jhV", longs, NULL)) != -1) {
        switch (option) {
        case 'r':
            options.rails = 1;
            break;
        case 't':
            options.topo = 1;
            break;
        case 'm':
            options.memory = optarg;
            break;
        case 'k':
            if (cli_int(optarg, 0, 1 << 20, &rank) != 0) {
                cli_usage_error(name, "--rank: '%s' is no rank", optarg);
                return 2;
            }
            options.rank = (int)rank;
            rank_given = 1;
            break;
        case 'R':
            options.root = optarg;
            break;
        case 'j':
            json = 1;
            break;
        case 'h':
            fputs(help, stdout);
            return cli_close_stdout(name) ? 1 : 0;
        case 'V':
            cli_print_version(name);
            return cli_close_stdout(name) ? 1 : 0;
        default:
            cli_option_error(name, option, argv, longs);
            return 2;
        }
    }
    if (optind < argc) {
        cli_usage_error(name, "unexpected argument '%s'", argv[optind]);
        return 2;
    }
    if ((options.memory || rank_given) && !options.rails) {
        cli_usage_error(name, "--memory and --rank belong to --rails");
        return 2;
    }
    if (options.root && !options.rails && !options.topo) {
        cli_usage_error(name, "--root belongs to --rails or --topo");
        return 2;
    }
    int rc = options.rails || options.topo ? tell_machine(&options, json) : tell_overview(json);
    return cli_close_stdout(name) != 0 && rc == 0 ? 1 : rc;
}
