/* SPDX-License-Identifier: Apache-2.0 */
/* The network transports, for queries. */
#ifndef GSI_COMM_WIRES_H
#define GSI_COMM_WIRES_H

#include "base/log.h"

enum gsi_wire { GSI_WIRE_NONE, GSI_WIRE_VERBS, GSI_WIRE_TCP };

/* 1 if ranks on other hosts could be reached so from here; text: over what, or why not. */
int gsi_wire_usable(int wire, const gsi_log *log, char *text, size_t room);

#endif
