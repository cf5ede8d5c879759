/* SPDX-License-Identifier: Apache-2.0 */
/* Checks: can this process use RDMA at all. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "doctor/doctor.h"

static int count_open(const gsi_facts *f)
{
    int n = 0;

    for (int i = 0; i < f->ports.n; i++)
        n += !f->ports.items[i].access;
    return n;
}

void gsi_check_settings(const gsi_facts *f, gsi_findings *list)
{
    char cause[448];

    if (f->settings_error[0]) {
        snprintf(cause, sizeof cause, "%s", f->settings_error);
        char *remedy = strchr(cause, ';');
        if (remedy)
            *remedy = 0;
        gsi_find(list, GRADSYNC_FINDING_ERROR, "", "%s", cause);
        gsi_remedy(list, "%s", remedy ? remedy + 1 + strspn(remedy + 1, " ") : "correct it, or unset it");
    }
    if (f->settings.disabled) {
        gsi_find(list, GRADSYNC_FINDING_WARNING, "", "RDMA is switched off by NCCL_IB_DISABLE or GRADSYNC_IB_DISABLE");
        gsi_remedy(list, "unset the variable to use RDMA");
    }
    int n = 0;
    for (int i = 0; i < f->ports.n; i++)
        n += f->more[i].excluded;
    if (n && n == f->ports.n) {
        gsi_find(list, GRADSYNC_FINDING_ERROR, "", "%s lets none of the %d RDMA ports pass", f->settings.hca.variable,
                 n);
        gsi_remedy(list, "correct %s, or unset it to use every port", f->settings.hca.variable);
    }
}

/* The first reason why no port can be used, split into cause and remedy. */
static void first_reason(const gsi_facts *f, char *cause, size_t room, char *remedy, size_t more)
{
    char name[GSI_RDMA_NAME + 8];
    int others = f->rails.nports - 1;

    gsi_port_name(&f->ports.items[0], name, sizeof name);
    const char *reason = f->rails.verdicts[0].reason, *cut = strchr(reason, ';');
    snprintf(cause, room, "%s cannot be used: %.*s%s", name, cut ? (int)(cut - reason) : 200, reason,
             others > 1    ? " (the others neither)"
             : others == 1 ? " (the other neither)"
                           : "");
    snprintf(remedy, more, "%s", cut ? cut + 1 + strspn(cut + 1, " ") : "see the findings about the port");
}

void gsi_check_fallback(const gsi_facts *f, gsi_findings *list)
{
    char cause[352], remedy[300];
    int severity = GRADSYNC_FINDING_ERROR;

    if (f->rails.nrails && !f->settings.disabled && f->verbs)
        return;
    if (f->settings.disabled) {
        severity = GRADSYNC_FINDING_WARNING;
        snprintf(cause, sizeof cause, "it is switched off by a variable");
        snprintf(remedy, sizeof remedy, "unset NCCL_IB_DISABLE and GRADSYNC_IB_DISABLE");
    } else if (!f->ports.n) {
        severity = GRADSYNC_FINDING_WARNING;
        snprintf(cause, sizeof cause, "the kernel has no RDMA device%s",
                 f->ncardless ? ", though there is a card for it" : "");
        snprintf(remedy, sizeof remedy, "%s",
                 f->ncardless      ? "load the card's RDMA driver (see rdma-driver)"
                 : f->container[0] ? "give the container the host's RDMA devices, if it has any"
                                   : "nothing to do if one host is enough; else a network card with RDMA is needed, "
                                     "or Soft-RoCE (rdma link add) to try it out");
    } else if (!f->rails.nrails) {
        first_reason(f, cause, sizeof cause, remedy, sizeof remedy);
    } else {
        snprintf(cause, sizeof cause, "the RDMA module cannot be loaded");
        snprintf(remedy, sizeof remedy, "see rdma-module");
    }
    gsi_find(list, severity, "",
             "no RDMA: ranks on other hosts are reached by TCP at a fraction of the speed, because %s", cause);
    gsi_remedy(list, "%s", remedy);
}

void gsi_check_driver(const gsi_facts *f, gsi_findings *list)
{
    char seen[GSI_RDMA_NAME] = "";

    for (int i = 0; i < f->ncardless; i++) {
        int none = strstr(f->cardless[i], "(no driver)") != NULL;
        gsi_find(
            list, f->ports.n ? GRADSYNC_FINDING_HINT : GRADSYNC_FINDING_WARNING, f->cardless[i],
            none ? "a network card that has RDMA has no driver"
                 : "a network card that has RDMA has no RDMA device: only the driver of its network half is loaded");
        gsi_remedy(list, none ? "load the card's driver (NVIDIA: modprobe mlx5_core mlx5_ib)"
                              : "load the other half (NVIDIA: modprobe mlx5_ib; in a container or network namespace: "
                                "on the host, and 'rdma system' shows whether devices are shared)");
    }
    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        if (p->uverbs[0] || !strcmp(seen, p->device))
            continue;
        snprintf(seen, sizeof seen, "%s", p->device);
        gsi_find(list, GRADSYNC_FINDING_ERROR, p->device, "the kernel offers programs no access to it");
        gsi_remedy(list, "load the module ib_uverbs (modprobe ib_uverbs)");
    }
}

static void missing_node(const gsi_facts *f, const gsi_port *p, gsi_findings *list)
{
    if (f->container[0]) {
        gsi_find(list, GRADSYNC_FINDING_ERROR, p->device,
                 "this container (%s) has no /dev/infiniband/%s, though the kernel has the device", f->container,
                 p->uverbs);
        gsi_remedy(list, "%s",
                   strcmp(f->container, "kubernetes")
                       ? "start it with --device=/dev/infiniband --cap-add=IPC_LOCK --ulimit memlock=-1"
                       : "request the RDMA resource of the cluster's device plugin in the pod's limits, and add the "
                         "capability IPC_LOCK");
    } else {
        gsi_find(list, GRADSYNC_FINDING_ERROR, p->device, "/dev/infiniband/%s is missing", p->uverbs);
        gsi_remedy(
            list,
            "load ib_uverbs and let udev make the node (udevadm trigger); in a container, pass /dev/infiniband in");
    }
}

/* Somebody chose: this host, or container, has a part of the devices. */
static void foreign_devices(const gsi_facts *f, gsi_findings *list)
{
    const char *last = "";
    char names[96] = "";
    size_t at = 0;
    int n = 0;

    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        if (!f->more[i].foreign || f->more[i].excluded || !strcmp(last, p->device))
            continue;
        last = p->device;
        if (n < 4 && at < sizeof names)
            at += (size_t)snprintf(names + at, sizeof names - at, "%s%.20s", n ? ", " : "", p->device);
        n++;
    }
    if (!n)
        return;
    if (n > 4 && at < sizeof names)
        snprintf(names + at, sizeof names - at, ", ...");
    gsi_find(list, GRADSYNC_FINDING_HINT, names,
             "%d RDMA device%s no node in /dev/infiniband, while others have: another container's, or forgotten", n,
             n > 1 ? "s have" : " has");
    gsi_remedy(list, "if this container should use %s, pass the node%s in", n > 1 ? "them" : "it", n > 1 ? "s" : "");
}

void gsi_check_devices(const gsi_facts *f, gsi_findings *list)
{
    char seen[GSI_RDMA_NAME] = "";

    foreign_devices(f, list);
    for (int i = 0; i < f->ports.n; i++) {
        const gsi_port *p = &f->ports.items[i];
        if (!p->access || !p->uverbs[0] || f->more[i].excluded || f->more[i].foreign || !strcmp(seen, p->device))
            continue;
        snprintf(seen, sizeof seen, "%s", p->device);
        if (p->access == ENOENT) {
            missing_node(f, p, list);
        } else if (p->access == EACCES || p->access == EPERM) {
            gsi_find(list, GRADSYNC_FINDING_ERROR, p->device, "this user may not open /dev/infiniband/%s", p->uverbs);
            gsi_remedy(list,
                       "give the user read and write access: distributions do so by udev (rdma-core's rules, mode "
                       "0666), or by a group such as rdma");
        } else {
            gsi_find(list, GRADSYNC_FINDING_ERROR, p->device, "/dev/infiniband/%s cannot be opened: %s", p->uverbs,
                     strerror(p->access));
            gsi_remedy(list, "a container's device rules may forbid it: allow it there (docker run --device)");
        }
    }
}

void gsi_check_rdma_cm(const gsi_facts *f, gsi_findings *list)
{
    if (!f->rdma_cm || !count_open(f))
        return;
    gsi_find(list, GRADSYNC_FINDING_HINT, "",
             "/dev/infiniband/rdma_cm %s: connections by address (librdmacm) do not work",
             f->rdma_cm == ENOENT ? "is missing" : "may not be opened");
    gsi_remedy(list, f->rdma_cm == ENOENT ? "load the module rdma_ucm; in a container, pass the node in"
                                          : "give the user read and write access to it");
}

void gsi_check_module(const gsi_facts *f, gsi_findings *list)
{
    if (f->verbs > 0)
        return;
    if (f->verbs < 0) {
        gsi_find(list, GRADSYNC_FINDING_SKIPPED, "", "the copied files do not tell which libraries are installed");
        return;
    }
    char cause[448];
    snprintf(cause, sizeof cause, "%s", f->verbs_error);
    char *cut = strchr(cause, ';');
    if (cut)
        *cut = 0;
    gsi_find(list, f->ports.n ? GRADSYNC_FINDING_ERROR : GRADSYNC_FINDING_HINT, "libgradsync-verbs.so", "%s", cause);
    gsi_remedy(list,
               "install libibverbs, librdmacm and the device's provider (Debian, Ubuntu: ibverbs-providers "
               "librdmacm1 libnuma1; Fedora: libibverbs librdmacm numactl-libs), and libgradsync-verbs.so.0 beside "
               "libgradsync.so");
}
