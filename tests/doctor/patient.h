/* SPDX-License-Identifier: Apache-2.0 */
/* A machine that is made up, and what the doctor finds on it. */
#ifndef TESTS_DOCTOR_PATIENT_H
#define TESTS_DOCTOR_PATIENT_H

#include "doctor/doctor.h"
#include "machine.h"

/* Two hosts' worth of nothing wrong: 2 sockets with a GPU and a 200 Gb/s RoCE port each, on one switch; all limits
 * lifted. Tests then break one thing. The ports are mlx5_0 (eth0, 10.0.0.1/24) and mlx5_1 (eth1, 10.0.1.1/24). */
void patient_new(machine *m);
/* Paths of its cards, GPUs and the bridges above them: "pci0000:00/0000:00:01.0/...". */
const char *patient_nic(int i);
const char *patient_gpu(int i);
/* The configuration space of a PCI function. */
void patient_config(const machine *m, const char *path, int relaxed, int max_read, int acs);
/* Links of a PCI function, as sysfs shows them. */
void patient_link(const machine *m, const char *path, const char *speed, const char *max_speed, int width,
                  int max_width);

/* Environment of the next examination: "NAME=value", NULL at the end. */
extern const char *const *patient_env;
/* Examines the machine; "" for verbs_error: the module is there. */
void patient_examine(const machine *m, const char *peer, const char *verbs_error, gsi_findings *list);
/* The first finding of a check about a subject (NULL: any); NULL: none. */
const gradsync_finding *patient_find(const gsi_findings *list, const char *id, const char *subject);
/* 1 if the check gives that severity for the subject, with `cause` and `remedy` (NULL: anything) in its sentences.
 * text: what it says, for the test's name. Examines, looks, frees. */
int patient_has(const machine *m, const char *peer, const char *id, const char *subject, int severity,
                const char *cause, const char *remedy, char *text, size_t room);

#endif
