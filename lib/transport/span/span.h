/* SPDX-License-Identifier: Apache-2.0 */
/* The endpoint over several hosts with several ranks on some: shared memory inside this rank's host, rails to the
 * others. It is the two endpoints side by side, and who is reached by which. */
#ifndef GSI_SPAN_H
#define GSI_SPAN_H

#include "transport/transport.h"

/* local: among the ranks of this host, in order of rank; net: among all n, with connections to the other hosts' only,
 * staging in local's stage. host: n entries, copied. Takes both endpoints over, also on error. The ranks of this host
 * go on only when all have called this (gsi_span_start). Errors: NOMEM, SYSTEM. */
int gsi_span_create(gsi_endpoint *local, gsi_endpoint *net, const int32_t *host, gsi_endpoint **out);
/* Once all ranks have made theirs. */
void gsi_span_start(gsi_endpoint *ep);
/* The part between hosts, for queries; ep itself if it is no span. */
gsi_endpoint *gsi_span_net(gsi_endpoint *ep);

#endif
