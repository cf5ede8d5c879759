/* SPDX-License-Identifier: Apache-2.0 */
#include "doctor/facts.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"

int gsi_peers_parse(const char *text, gsi_peer *peers, int *n)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

    *n = 0;
    while (text && *text) {
        size_t len = strcspn(text, ",");
        gsi_peer *p = &peers[*n];
        char address[64], *slash, *end;
        if (*n == GSI_PEERS)
            return gsi_fail(GRADSYNC_ERR_INVALID, "more than %d addresses of peers; give fewer at a time", GSI_PEERS);
        if (len >= sizeof address)
            return gsi_fail(GRADSYNC_ERR_INVALID, "'%.40s...' is no address; give one like 10.0.1.2 or 10.0.1.0/24",
                            text);
        memset(p, 0, sizeof *p);
        memcpy(address, text, len);
        address[len] = 0;
        snprintf(p->text, sizeof p->text, "%s", address);
        if ((slash = strchr(address, '/')))
            *slash = 0;
        int v6 = strchr(address, ':') != NULL, most = v6 ? 128 : 32;
        memcpy(p->raw, mapped, v6 ? 0 : sizeof mapped);
        if (inet_pton(v6 ? AF_INET6 : AF_INET, address, p->raw + (v6 ? 0 : 12)) != 1)
            return gsi_fail(GRADSYNC_ERR_INVALID,
                            "'%.60s' is no address; give a numeric one like 10.0.1.2, 10.0.1.0/24 or fd00::2", p->text);
        if (slash) {
            long bits = strtol(slash + 1, &end, 10);
            if (slash[1] < '0' || slash[1] > '9' || *end || bits < 1 || bits > most)
                return gsi_fail(GRADSYNC_ERR_INVALID, "'%.60s' has no prefix length from 1 to %d behind its slash",
                                p->text, most);
            p->prefix = (uint8_t)(bits + (v6 ? 0 : 96));
        }
        ++*n;
        text += len;
        text += *text == ',';
    }
    return 0;
}

/* 1 if a file of this name (a prefix) is in one of the folders where a system has its libraries. */
static int has_library(const char *root, const char *prefix)
{
    static const char *const folders[] = {"/usr/lib",
                                          "/usr/lib64",
                                          "/lib",
                                          "/lib64",
                                          "/usr/local/lib",
                                          "/usr/local/lib64",
                                          "/usr/lib/x86_64-linux-gnu",
                                          "/usr/lib/aarch64-linux-gnu",
                                          "/usr/local/lib/x86_64-linux-gnu",
                                          "/usr/local/lib/aarch64-linux-gnu"};
    char path[PATH_MAX];
    int found = 0;

    for (size_t i = 0; i < sizeof folders / sizeof *folders && !found; i++) {
        if (snprintf(path, sizeof path, "%s%s", root, folders[i]) >= (int)sizeof path)
            return 0;
        DIR *d = opendir(path);
        for (const struct dirent *e; d && !found && (e = readdir(d));)
            found = !strncmp(e->d_name, prefix, strlen(prefix));
        if (d)
            closedir(d);
    }
    return found;
}

/* Of a copied tree: whether the libraries are in it, if it has any at all. */
static void look_for_verbs(const char *root, gsi_facts *f)
{
    static const char *const names[] = {"libibverbs.so.1", "librdmacm.so.1", "libgradsync-verbs.so.0"};

    f->verbs = -1;
    if (!has_library(root, "libc.so") && !has_library(root, "libibverbs.so"))
        return;
    f->verbs = 1;
    for (size_t i = 0; i < sizeof names / sizeof *names && f->verbs; i++)
        if (!has_library(root, names[i])) {
            f->verbs = 0;
            snprintf(f->verbs_error, sizeof f->verbs_error, "%s is not installed", names[i]);
        }
}

static int read_settings(gsi_settings_getenv lookup, void *arg, gsi_facts *f)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    int rc = gsi_settings_read(lookup, arg, &f->settings);

    if (rc == GRADSYNC_ERR_INVALID) { /* that is a finding; go on as if nothing was set */
        gradsync_last_error(&info);
        snprintf(f->settings_error, sizeof f->settings_error, "%s", info.message);
        memset(&f->settings, 0, sizeof f->settings);
        f->settings.gid_index = -1;
        rc = 0;
    }
    return rc;
}

/* A topology file that cannot be read is a finding too. */
static int read_topology(const char *root, gsi_facts *f)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;
    int rc = gsi_topology_read(root, f->settings.topo_file, &f->topology);

    if (rc && rc != GRADSYNC_ERR_NOMEM) {
        gradsync_last_error(&info);
        snprintf(f->settings_error, sizeof f->settings_error, "%s", info.message);
        rc = gsi_topology_read(root, NULL, &f->topology);
    }
    return rc;
}

static int read_rails(gsi_facts *f)
{
    const gsi_place anywhere = {.numa_node = -1};

    return gsi_rails_select(&f->topology, &f->ports, &anywhere, 1, 0, &f->settings, 0, &f->rails);
}

int gsi_facts_read(const char *root, const char *peer, gsi_settings_getenv lookup, void *arg, const char *verbs_error,
                   gsi_facts *out)
{
    int rc;

    memset(out, 0, sizeof *out);
    out->real = !root[0];
    if ((rc = gsi_peers_parse(peer, out->peers, &out->npeers)) || (rc = read_settings(lookup, arg, out)) ||
        (rc = read_topology(root, out)) || (rc = gsi_ports_read(root, &out->ports)) ||
        (rc = gsi_addresses_read(root, &out->addresses)) || (rc = read_rails(out)) ||
        (rc = gsi_facts_read_ports(root, out)) || (rc = gsi_facts_read_pci(root, out))) {
        gsi_facts_free(out);
        return rc;
    }
    gsi_facts_read_host(root, out);
    if (verbs_error) {
        out->verbs = !verbs_error[0];
        snprintf(out->verbs_error, sizeof out->verbs_error, "%s", verbs_error);
    } else {
        look_for_verbs(root, out);
    }
    return 0;
}

void gsi_facts_free(gsi_facts *f)
{
    gsi_rails_free(&f->rails);
    gsi_topology_free(&f->topology);
    gsi_ports_free(&f->ports);
    free(f->addresses.items);
    free(f->more);
    free(f->gpus);
    free(f->bridges);
    memset(f, 0, sizeof *f);
}
