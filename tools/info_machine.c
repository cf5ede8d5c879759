/* SPDX-License-Identifier: Apache-2.0 */
#include "info_machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { MOST_RANKS = 1024 };

typedef struct port {
    gradsync_port_info info;
    gradsync_gid_info *gids;
    char name[80]; /* "mlx5_0:1" */
} port;

struct info_machine {
    info_options options;
    gradsync_machine *machine;
    gradsync_machine_info info;
    port *ports;
    gradsync_gpu_info *gpus;
    int *nodes;
    gradsync_place *places; /* of the local ranks */
    int nranks;
    gradsync_rail_choice *choices; /* nranks x ports */
};

/* Short forms for the matrix; gradsync_distance_name() has the long ones. */
static const char *const short_names[GRADSYNC_DISTANCE_COUNT] = {"self",   "switch", "root", "node",
                                                                 "socket", "far",    "?"};

static const char *short_name(int distance)
{
    return short_names[distance >= 0 && distance < GRADSYNC_DISTANCE_COUNT ? distance : GRADSYNC_DISTANCE_UNKNOWN];
}

/* ---- Reading ------------------------------------------------------------------------ */

static int cannot(const char *program, const char *what)
{
    gradsync_error_info info = GRADSYNC_ERROR_INFO_INIT;

    gradsync_last_error(&info);
    cli_error(program, "%s: %s: %s", what, gradsync_error_name(info.code), info.message);
    return 1;
}

static void *array(size_t n, size_t size)
{
    return calloc(n ? n : 1, size);
}

static int read_ports(info_machine *m)
{
    for (int i = 0; i < m->info.ports; i++) {
        port *p = &m->ports[i];
        p->info.size = sizeof p->info;
        if (gradsync_machine_port(m->machine, i, &p->info))
            return -1;
        snprintf(p->name, sizeof p->name, "%s:%d", p->info.device, p->info.number);
        p->gids = array((size_t)p->info.ngids, sizeof *p->gids);
        for (int k = 0; p->gids && k < p->info.ngids; k++) {
            p->gids[k].size = sizeof p->gids[k];
            if (gradsync_machine_gid(m->machine, i, k, &p->gids[k]))
                return -1;
        }
        if (!p->gids)
            return -1;
    }
    return 0;
}

static int read_rest(info_machine *m)
{
    for (int i = 0; i < m->info.gpus; i++) {
        m->gpus[i].size = sizeof m->gpus[i];
        if (gradsync_machine_gpu(m->machine, i, &m->gpus[i]))
            return -1;
    }
    for (int i = 0; i < m->info.numa_nodes; i++)
        if ((m->nodes[i] = gradsync_machine_node(m->machine, i)) < 0)
            return -1;
    return read_ports(m);
}

/* "gpu3", "node1", "0000:81:00.0", "-": of one rank. */
static int parse_place(const char *program, const info_machine *m, const char *word, gradsync_place *out)
{
    long long n;

    *out = (gradsync_place){.numa_node = -1};
    if (strcmp(word, "-") == 0)
        return 0;
    if (strncmp(word, "gpu", 3) == 0 && cli_int(word + 3, 0, m->info.gpus - 1, &n) == 0) {
        snprintf(out->pci, sizeof out->pci, "%s", m->gpus[n].pci);
        out->numa_node = m->gpus[n].numa_node;
        return 0;
    }
    if (strncmp(word, "node", 4) == 0 && cli_int(word + 4, 0, 1 << 20, &n) == 0) {
        out->numa_node = (int32_t)n;
        return 0;
    }
    if (strchr(word, ':') && strlen(word) < sizeof out->pci) {
        snprintf(out->pci, sizeof out->pci, "%s", word);
        return 0;
    }
    cli_usage_error(program, "--memory: '%s' is none of gpuN (there are %d), nodeN, a PCI address or - (unknown)", word,
                    m->info.gpus);
    return 2;
}

static int parse_places(const char *program, info_machine *m)
{
    char *copy = strdup(m->options.memory), *save = NULL;
    int rc = copy ? 0 : 1;

    for (char *word = copy ? strtok_r(copy, ",", &save) : NULL; word && rc == 0; word = strtok_r(NULL, ",", &save)) {
        if (m->nranks == MOST_RANKS) {
            cli_usage_error(program, "--memory: more than %d ranks", MOST_RANKS);
            rc = 2;
            break;
        }
        rc = parse_place(program, m, word, &m->places[m->nranks++]);
    }
    free(copy);
    if (rc == 0 && m->nranks == 0) {
        cli_usage_error(program, "--memory: no place is given");
        rc = 2;
    }
    return rc;
}

static void default_places(info_machine *m)
{
    for (int i = 0; i < m->info.gpus && m->nranks < MOST_RANKS; i++) {
        m->places[m->nranks].numa_node = m->gpus[i].numa_node;
        memcpy(m->places[m->nranks++].pci, m->gpus[i].pci, sizeof m->gpus[i].pci);
    }
    for (int i = 0; i < m->info.numa_nodes && m->info.gpus == 0 && m->nranks < MOST_RANKS; i++)
        m->places[m->nranks++].numa_node = m->nodes[i];
}

static int choose(const char *program, info_machine *m)
{
    size_t n = (size_t)m->info.ports;

    if (m->options.rank >= m->nranks) {
        cli_usage_error(program, "--rank: there are %d ranks, from 0", m->nranks);
        return 2;
    }
    m->choices = array((size_t)m->nranks * n, sizeof *m->choices);
    if (!m->choices)
        return 1;
    for (size_t i = 0; i < (size_t)m->nranks * n; i++)
        m->choices[i].size = sizeof m->choices[i];
    for (int r = 0; r < m->nranks; r++)
        if (gradsync_machine_rails(m->machine, m->places, m->nranks, r, &m->choices[(size_t)r * n]) < 0)
            return cannot(program, "cannot choose rails");
    return 0;
}

int info_read(const char *program, const info_options *options, info_machine **out)
{
    info_machine *m = calloc(1, sizeof *m);
    int rc = 1;

    if (!m) {
        cli_error(program, "out of memory");
        return 1;
    }
    m->options = *options;
    m->info.size = sizeof m->info;
    if (gradsync_machine_read(options->root, &m->machine) || gradsync_machine_query(m->machine, &m->info)) {
        cannot(program, "cannot read the machine");
        goto fail;
    }
    m->ports = array((size_t)m->info.ports, sizeof *m->ports);
    m->gpus = array((size_t)m->info.gpus, sizeof *m->gpus);
    m->nodes = array((size_t)m->info.numa_nodes, sizeof *m->nodes);
    m->places = array(MOST_RANKS, sizeof *m->places);
    if (!m->ports || !m->gpus || !m->nodes || !m->places || read_rest(m)) {
        cli_error(program, "cannot read the machine, or out of memory");
        goto fail;
    }
    rc = 0;
    if (options->memory)
        rc = parse_places(program, m);
    else
        default_places(m);
    if (rc == 0)
        rc = choose(program, m);
    if (rc == 0) {
        *out = m;
        return 0;
    }
fail:
    info_free(m);
    return rc;
}

void info_free(info_machine *m)
{
    for (int i = 0; m->ports && i < m->info.ports; i++)
        free(m->ports[i].gids);
    free(m->ports);
    free(m->gpus);
    free(m->nodes);
    free(m->places);
    free(m->choices);
    gradsync_machine_free(m->machine);
    free(m);
}

/* ---- Text ------------------------------------------------------------------------- */

static gradsync_place place_of_port(const port *p)
{
    gradsync_place place = {.numa_node = p->info.numa_node};

    memcpy(place.pci, p->info.pci, sizeof place.pci);
    return place;
}

static int distance_to_gpu(const info_machine *m, int p, int gpu)
{
    gradsync_place from = place_of_port(&m->ports[p]), to = {.numa_node = m->gpus[gpu].numa_node};

    memcpy(to.pci, m->gpus[gpu].pci, sizeof to.pci);
    return gradsync_machine_distance(m->machine, &from, &to);
}

static int distance_to_node(const info_machine *m, int p, int node)
{
    gradsync_place from = place_of_port(&m->ports[p]), to = {.numa_node = m->nodes[node]};

    return gradsync_machine_distance(m->machine, &from, &to);
}

/* "GPU3 0000:81:00.0" or "memory of node 1": where a rank's memory is. */
static void describe(const info_machine *m, int rank, char *text, size_t room)
{
    const gradsync_place *p = &m->places[rank];

    for (int i = 0; i < m->info.gpus; i++)
        if (strcmp(p->pci, m->gpus[i].pci) == 0) {
            snprintf(text, room, "GPU%d %s", i, p->pci);
            return;
        }
    if (p->pci[0])
        snprintf(text, room, "device %s", p->pci);
    else if (p->numa_node >= 0)
        snprintf(text, room, "memory of node %d", p->numa_node);
    else
        snprintf(text, room, "memory of an unknown node");
}

static void print_node(int node)
{
    if (node >= 0)
        printf("%d", node);
    else
        printf("unknown");
}

static void print_port(const port *p)
{
    const gradsync_port_info *i = &p->info;

    printf("  %-12s %s%s%s%s, %s", p->name, i->state_name, i->phys_state[0] ? " (" : "", i->phys_state,
           i->phys_state[0] ? ")" : "", i->link_layer);
    if (i->rate_mbps)
        printf(", %g Gb/s", i->rate_mbps / 1000.0);
    if (i->mtu)
        printf(", MTU %u", i->mtu);
    if (i->netdev[0] && i->netdev_mtu)
        printf(" (%s: %u)", i->netdev, i->netdev_mtu);
    else if (i->netdev[0])
        printf(" (%s)", i->netdev);
    if (i->lid)
        printf(", LID %u, subnet manager %u", i->lid, i->sm_lid);
    printf("\n    card %s, NUMA node ", i->pci[0] ? i->pci : "unknown");
    print_node(i->numa_node);
    printf(", firmware %s%s%s, %s%s\n", i->firmware[0] ? i->firmware : "unknown", i->board[0] ? ", board " : "",
           i->board, i->uverbs[0] ? "/dev/infiniband/" : "no device node", i->uverbs);
    if (i->pci_path[0])
        printf("    PCI path %s\n", i->pci_path);
    for (int k = 0; k < i->ngids; k++) {
        const gradsync_gid_info *g = &p->gids[k];
        printf("    GID %d: %s", g->index, g->gid);
        if (g->prefix)
            printf("/%d", g->prefix);
        printf(" (%s%s%s)\n", g->type, g->netdev[0] ? ", " : "", g->netdev);
    }
}

/* A cell of the matrix; the last of a line is not padded. */
static void print_cell(const char *word, int last)
{
    printf(last ? " %s\n" : " %-7s", word);
}

static void print_matrix(const info_machine *m)
{
    char label[32];

    printf("distances     ");
    for (int g = 0; g < m->info.gpus; g++) {
        snprintf(label, sizeof label, "GPU%d", g);
        print_cell(label, 0);
    }
    for (int n = 0; n < m->info.numa_nodes; n++) {
        snprintf(label, sizeof label, "node%d", m->nodes[n]);
        print_cell(label, n == m->info.numa_nodes - 1);
    }
    for (int p = 0; p < m->info.ports; p++) {
        printf("  %-12s", m->ports[p].name);
        for (int g = 0; g < m->info.gpus; g++)
            print_cell(short_name(distance_to_gpu(m, p, g)), 0);
        for (int n = 0; n < m->info.numa_nodes; n++)
            print_cell(short_name(distance_to_node(m, p, n)), n == m->info.numa_nodes - 1);
    }
    for (int g = 0; g < m->info.gpus; g++) {
        printf("  GPU%d is %s, NUMA node ", g, m->gpus[g].pci);
        print_node(m->gpus[g].numa_node);
        printf(", PCI path %s\n", m->gpus[g].pci_path[0] ? m->gpus[g].pci_path : "unknown");
    }
    printf("  ");
    for (int d = GRADSYNC_DISTANCE_SWITCH; d < GRADSYNC_DISTANCE_COUNT; d++)
        printf("%s%s: %s", d > GRADSYNC_DISTANCE_SWITCH ? "; " : "", short_names[d], gradsync_distance_name(d));
    printf("\n");
}

static const gradsync_rail_choice *choice_of(const info_machine *m, int rank, int p)
{
    return &m->choices[(size_t)rank * (size_t)m->info.ports + (size_t)p];
}

/* The port that is a rank's k-th rail; -1. */
static int rail_at(const info_machine *m, int rank, int k)
{
    for (int p = 0; p < m->info.ports; p++)
        if (choice_of(m, rank, p)->rail == k)
            return p;
    return -1;
}

static void print_rails(const info_machine *m)
{
    char where[64];

    printf("rails of %d local rank%s\n", m->nranks, m->nranks == 1 ? "" : "s");
    for (int r = 0; r < m->nranks; r++) {
        describe(m, r, where, sizeof where);
        printf("  rank %d, %s:", r, where);
        for (int k = 0, p; (p = rail_at(m, r, k)) >= 0; k++) {
            const gradsync_rail_choice *c = choice_of(m, r, p);
            printf("%s %s (%s%s)", k ? "," : "", m->ports[p].name, short_name(c->distance),
                   c->ranks > 1 ? ", shared" : "");
        }
        printf("%s\n", rail_at(m, r, 0) < 0 ? " none" : "");
    }
    printf("why, for rank %d\n", m->options.rank);
    for (int k = 0, p; (p = rail_at(m, m->options.rank, k)) >= 0; k++)
        printf("  %-12s %s\n", m->ports[p].name, choice_of(m, m->options.rank, p)->reason);
    for (int p = 0; p < m->info.ports; p++)
        if (choice_of(m, m->options.rank, p)->rail < 0)
            printf("  %-12s not used: %s\n", m->ports[p].name, choice_of(m, m->options.rank, p)->reason);
}

void info_print_text(const info_machine *m)
{
    if (m->info.topology_file[0])
        printf("topology file %s\n", m->info.topology_file);
    if (m->options.rails) {
        printf("ports%s\n", m->info.ports ? "" : "         none: no NIC with RDMA, or no driver for it");
        for (int p = 0; p < m->info.ports; p++)
            print_port(&m->ports[p]);
    }
    if (m->options.topo)
        print_matrix(m);
    if (m->options.rails && m->info.ports)
        print_rails(m);
}

/* ---- JSON ------------------------------------------------------------------------- */

#if HAVE_JANSSON
static json_t *text(const char *value)
{
    json_t *s = json_string(value);

    return s ? s : json_null();
}

static json_t *json_port(const port *p)
{
    const gradsync_port_info *i = &p->info;
    json_t *gids = json_array();
    char guid[24];

    for (int k = 0; k < i->ngids; k++) {
        const gradsync_gid_info *g = &p->gids[k];
        json_array_append_new(gids, json_pack("{s:i, s:o, s:i, s:o, s:o}", "index", g->index, "gid", text(g->gid),
                                              "prefix", g->prefix, "type", text(g->type), "netdev", text(g->netdev)));
    }
    snprintf(guid, sizeof guid, "%016llx", (unsigned long long)i->node_guid);
    json_t *o =
        json_pack("{s:o, s:o, s:i, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I}", "name", text(p->name), "device",
                  text(i->device), "port", i->number, "state", text(i->state_name), "phys_state", text(i->phys_state),
                  "link_layer", text(i->link_layer), "rate_mbps", (json_int_t)i->rate_mbps, "mtu", (json_int_t)i->mtu,
                  "netdev_mtu", (json_int_t)i->netdev_mtu, "lid", (json_int_t)i->lid, "sm_lid", (json_int_t)i->sm_lid);
    json_t *rest = json_pack("{s:o, s:i, s:s, s:o, s:o, s:o, s:o, s:o, s:i, s:o}", "netdev", text(i->netdev),
                             "numa_node", i->numa_node, "node_guid", guid, "firmware", text(i->firmware), "board",
                             text(i->board), "uverbs", text(i->uverbs), "pci", text(i->pci), "pci_path",
                             text(i->pci_path), "access_errno", i->access, "gids", gids);
    json_object_update(o, rest);
    json_decref(rest);
    return o;
}

static json_t *json_rank(const info_machine *m, int rank)
{
    json_t *rails = json_array(), *unused = json_array();
    char where[64];

    describe(m, rank, where, sizeof where);
    for (int k = 0, p; (p = rail_at(m, rank, k)) >= 0; k++) {
        const gradsync_rail_choice *c = choice_of(m, rank, p);
        json_array_append_new(rails, json_pack("{s:o, s:s, s:i, s:o}", "port", text(m->ports[p].name), "distance",
                                               short_name(c->distance), "ranks", c->ranks, "reason", text(c->reason)));
    }
    for (int p = 0; p < m->info.ports; p++) {
        const gradsync_rail_choice *c = choice_of(m, rank, p);
        if (c->rail < 0)
            json_array_append_new(unused,
                                  json_pack("{s:o, s:s, s:b, s:o}", "port", text(m->ports[p].name), "distance",
                                            short_name(c->distance), "usable", c->usable, "reason", text(c->reason)));
    }
    return json_pack("{s:i, s:o, s:i, s:o, s:o, s:o}", "rank", rank, "memory", text(where), "numa_node",
                     m->places[rank].numa_node, "pci", text(m->places[rank].pci), "rails", rails, "not_used", unused);
}

static json_t *json_distances(const info_machine *m, int p)
{
    json_t *gpus = json_array(), *nodes = json_array();

    for (int g = 0; g < m->info.gpus; g++)
        json_array_append_new(gpus, text(short_name(distance_to_gpu(m, p, g))));
    for (int n = 0; n < m->info.numa_nodes; n++)
        json_array_append_new(nodes, text(short_name(distance_to_node(m, p, n))));
    return json_pack("{s:o, s:o, s:o}", "port", text(m->ports[p].name), "gpus", gpus, "numa_nodes", nodes);
}

void info_add_json(const info_machine *m, json_t *root)
{
    json_t *ports = json_array(), *gpus = json_array(), *nodes = json_array(), *rows = json_array(),
           *ranks = json_array();

    for (int p = 0; p < m->info.ports; p++) {
        json_array_append_new(ports, json_port(&m->ports[p]));
        json_array_append_new(rows, json_distances(m, p));
    }
    for (int g = 0; g < m->info.gpus; g++)
        json_array_append_new(gpus, json_pack("{s:o, s:o, s:i, s:I, s:I}", "pci", text(m->gpus[g].pci), "pci_path",
                                              text(m->gpus[g].pci_path), "numa_node", m->gpus[g].numa_node, "vendor",
                                              (json_int_t)m->gpus[g].vendor, "device", (json_int_t)m->gpus[g].device));
    for (int n = 0; n < m->info.numa_nodes; n++)
        json_array_append_new(nodes, json_integer(m->nodes[n]));
    for (int r = 0; r < m->nranks; r++)
        json_array_append_new(ranks, json_rank(m, r));
    json_object_set_new(root, "topology_file", m->info.topology_file[0] ? text(m->info.topology_file) : json_null());
    json_object_set_new(root, "ports", ports);
    json_object_set_new(root, "gpus", gpus);
    json_object_set_new(root, "numa_node_ids", nodes);
    json_object_set_new(root, "distances", rows);
    json_object_set_new(root, "ranks", ranks);
}
#endif
