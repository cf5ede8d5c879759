/* SPDX-License-Identifier: Apache-2.0 */
/* What a machine is, for those who ask: a snapshot of lib/topo. */
#include <stdio.h>
#include <stdlib.h>

#include "api/check.h"
#include "base/alloc.h"
#include "topo/rails.h"

struct gradsync_machine {
    gsi_topology topology;
    gsi_ports ports;
    gsi_settings settings;
    int *gpus; /* positions among the topology's devices */
    int ngpus;
};

_Static_assert((int)GRADSYNC_DISTANCE_SAME == GSI_DISTANCE_SAME &&
                   (int)GRADSYNC_DISTANCE_SWITCH == GSI_DISTANCE_SWITCH &&
                   (int)GRADSYNC_DISTANCE_ROOT == GSI_DISTANCE_ROOT &&
                   (int)GRADSYNC_DISTANCE_NODE == GSI_DISTANCE_NODE &&
                   (int)GRADSYNC_DISTANCE_SOCKET == GSI_DISTANCE_SOCKET &&
                   (int)GRADSYNC_DISTANCE_FAR == GSI_DISTANCE_FAR &&
                   (int)GRADSYNC_DISTANCE_UNKNOWN == GSI_DISTANCE_UNKNOWN,
               "the public numbers are the internal ones");

const char *gradsync_distance_name(int distance)
{
    return distance >= 0 && distance < GRADSYNC_DISTANCE_COUNT ? gsi_distance_name(distance) : "?";
}

/* ---- Making ------------------------------------------------------------------- */

static int find_gpus(gradsync_machine *m)
{
    m->gpus = gsi_calloc((size_t)m->topology.ndevices + 1, sizeof *m->gpus);
    if (!m->gpus)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to list the GPUs");
    for (int i = 0; i < m->topology.ndevices; i++)
        if (gsi_pci_is_gpu(&m->topology.devices[i]))
            m->gpus[m->ngpus++] = i;
    return 0;
}

int gradsync_machine_read(const char *root, gradsync_machine **out)
{
    int rc;

    if (!out)
        return gsi_fail(GRADSYNC_ERR_INVALID, "out is NULL");
    gradsync_machine *m = gsi_calloc(1, sizeof *m);
    if (!m)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory to read a machine");
    if (!root)
        root = "";
    if ((rc = gsi_settings_read(NULL, NULL, &m->settings)) ||
        (rc = gsi_topology_read(root, m->settings.topo_file, &m->topology)) || (rc = gsi_ports_read(root, &m->ports)) ||
        (rc = find_gpus(m))) {
        gradsync_machine_free(m);
        return rc;
    }
    *out = m;
    return 0;
}

int gradsync_machine_free(gradsync_machine *machine)
{
    if (!machine)
        return 0;
    gsi_topology_free(&machine->topology);
    gsi_ports_free(&machine->ports);
    free(machine->gpus);
    free(machine);
    return 0;
}

/* ---- Asking ------------------------------------------------------------------- */

/* The argument checks that all questions share: 0, or INVALID. */
static int check(const gradsync_machine *m, int index, int n, const char *what)
{
    if (!m)
        return gsi_fail(GRADSYNC_ERR_INVALID, "the machine is NULL; read one with gradsync_machine_read()");
    if (index < 0 || index >= n)
        return gsi_fail(GRADSYNC_ERR_INVALID, "there is no %s %d: the machine has %d", what, index, n);
    return 0;
}

int gradsync_machine_query(const gradsync_machine *machine, gradsync_machine_info *out)
{
    int rc = check(machine, 0, 1, "");

    if (rc)
        return rc;
    gradsync_machine_info info = {
        .numa_nodes = machine->topology.nnodes, .ports = machine->ports.n, .gpus = machine->ngpus};
    snprintf(info.topology_file, sizeof info.topology_file, "%s", machine->topology.file);
    return gsi_give_info(out, &info, sizeof info, "gradsync_machine_info");
}

int gradsync_machine_node(const gradsync_machine *machine, int index)
{
    int rc = check(machine, index, machine ? machine->topology.nnodes : 0, "NUMA node");

    return rc ? rc : machine->topology.nodes[index].id;
}

int gradsync_machine_port(const gradsync_machine *machine, int index, gradsync_port_info *out)
{
    int rc = check(machine, index, machine ? machine->ports.n : 0, "RDMA port");

    if (rc)
        return rc;
    const gsi_port *p = &machine->ports.items[index];
    const gsi_pci_device *d = p->place.pci[0] ? gsi_topology_device(&machine->topology, p->place.pci) : NULL;
    gradsync_port_info info = {.number = p->number,
                               .state = p->state,
                               .numa_node = d && d->numa_node >= 0 ? d->numa_node : p->place.numa_node,
                               .ngids = p->ngids,
                               .access = p->access,
                               .rate_mbps = p->rate_mbps,
                               .mtu = p->active_mtu,
                               .netdev_mtu = p->netdev_mtu,
                               .lid = p->lid,
                               .sm_lid = p->sm_lid,
                               .node_guid = p->node_guid};
    snprintf(info.device, sizeof info.device, "%s", p->device);
    snprintf(info.state_name, sizeof info.state_name, "%s", gsi_port_state_name(p->state));
    snprintf(info.phys_state, sizeof info.phys_state, "%s", p->phys_state);
    snprintf(info.link_layer, sizeof info.link_layer, "%s", gsi_link_layer_name(p->link_layer));
    snprintf(info.netdev, sizeof info.netdev, "%s", p->netdev);
    snprintf(info.uverbs, sizeof info.uverbs, "%s", p->uverbs);
    snprintf(info.firmware, sizeof info.firmware, "%s", p->firmware);
    snprintf(info.board, sizeof info.board, "%s", p->board);
    snprintf(info.pci, sizeof info.pci, "%s", p->place.pci);
    snprintf(info.pci_path, sizeof info.pci_path, "%s", d ? d->path : "");
    return gsi_give_info(out, &info, sizeof info, "gradsync_port_info");
}

int gradsync_machine_gid(const gradsync_machine *machine, int port, int index, gradsync_gid_info *out)
{
    int rc = check(machine, port, machine ? machine->ports.n : 0, "RDMA port");

    if (rc || (rc = check(machine, index, machine->ports.items[port].ngids, "GID")))
        return rc;
    const gsi_gid *g = &machine->ports.items[port].gids[index];
    gradsync_gid_info info = {.index = g->index,
                              .prefix = g->prefix && gsi_gid_is_ipv4(g->raw) ? g->prefix - 96 : g->prefix};
    gsi_gid_text(g->raw, info.gid, sizeof info.gid);
    snprintf(info.type, sizeof info.type, "%s", gsi_gid_type_name(g->type));
    snprintf(info.netdev, sizeof info.netdev, "%s", g->netdev);
    return gsi_give_info(out, &info, sizeof info, "gradsync_gid_info");
}

int gradsync_machine_gpu(const gradsync_machine *machine, int index, gradsync_gpu_info *out)
{
    int rc = check(machine, index, machine ? machine->ngpus : 0, "GPU");

    if (rc)
        return rc;
    const gsi_pci_device *d = &machine->topology.devices[machine->gpus[index]];
    gradsync_gpu_info info = {
        .numa_node = d->numa_node, .pci_class = d->class_code, .vendor = d->vendor, .device = d->device};
    snprintf(info.pci, sizeof info.pci, "%s", d->addr);
    snprintf(info.pci_path, sizeof info.pci_path, "%s", d->path);
    return gsi_give_info(out, &info, sizeof info, "gradsync_gpu_info");
}

/* The public struct may hold anything: only a terminated address is passed on. */
static int take_place(const gradsync_place *from, gsi_place *to)
{
    if (!from || !memchr(from->pci, 0, sizeof from->pci))
        return gsi_fail(GRADSYNC_ERR_INVALID,
                        from ? "the PCI address of a place does not end; write it as 0000:81:00.0" : "a place is NULL");
    *to = (gsi_place){.numa_node = from->numa_node >= 0 ? from->numa_node : -1};
    snprintf(to->pci, sizeof to->pci, "%s", from->pci);
    return 0;
}

int gradsync_machine_distance(const gradsync_machine *machine, const gradsync_place *a, const gradsync_place *b)
{
    gsi_place from, to;
    int rc = check(machine, 0, 1, "");

    if (rc || (rc = take_place(a, &from)) || (rc = take_place(b, &to)))
        return rc;
    return gsi_topology_distance(&machine->topology, &from, &to).kind;
}

static int give_choices(const gsi_rails *rails, gradsync_rail_choice *choices)
{
    for (int i = 0; i < rails->nports; i++) {
        const gsi_rail_verdict *v = &rails->verdicts[i];
        gradsync_rail_choice choice = {
            .rail = v->rail, .usable = v->usable, .distance = v->distance.kind, .ranks = v->ranks};
        snprintf(choice.reason, sizeof choice.reason, "%s", v->reason);
        int rc = gsi_give_info(&choices[i], &choice, sizeof choice, "gradsync_rail_choice");
        if (rc)
            return rc;
    }
    return rails->nrails;
}

int gradsync_machine_rails(const gradsync_machine *machine, const gradsync_place *places, int nranks, int rank,
                           gradsync_rail_choice *choices)
{
    gsi_rails rails;
    int rc = check(machine, 0, 1, "");

    if (rc)
        return rc;
    if (!places || nranks < 1 || rank < 0 || rank >= nranks || (!choices && machine->ports.n))
        return gsi_fail(GRADSYNC_ERR_INVALID, "rank %d of %d local ranks does not exist, or places or choices is NULL",
                        rank, nranks);
    gsi_place *at = gsi_calloc((size_t)nranks, sizeof *at);
    if (!at)
        return gsi_fail(GRADSYNC_ERR_NOMEM, "no memory for %d local ranks", nranks);
    for (int r = 0; !rc && r < nranks; r++)
        rc = take_place(&places[r], &at[r]);
    if (!rc)
        rc = gsi_rails_select(&machine->topology, &machine->ports, at, nranks, rank, &machine->settings, 0, &rails);
    free(at);
    if (rc)
        return rc;
    rc = give_choices(&rails, choices);
    gsi_rails_free(&rails);
    return rc;
}
