/* SPDX-License-Identifier: Apache-2.0 */
/* Small readers of sysfs and procfs below a root that tests can set ("": the real machine). */
#ifndef GSI_TOPO_SYSFS_H
#define GSI_TOPO_SYSFS_H

#include <stddef.h>

#include "topo/port.h"

/* The names in a folder, sorted as people do, dot files left out: *names becomes an array of *n strings,
 * to be freed with gsi_sys_free_names(). A folder that is not there has none. Errors: NOMEM. */
int gsi_sys_list(const char *root, const char *folder, char ***names, int *n);
void gsi_sys_free_names(char **names, int n);
/* The first line of a file without its newline. 0, or -1 with text "" (not there, empty, EINVAL). */
__attribute__((format(printf, 4, 5))) int gsi_sys_line(const char *root, char *text, size_t room, const char *format,
                                                       ...);
/* The number at the start of a file, in base 10 or with 0x; `otherwise` if there is none. */
__attribute__((format(printf, 3, 4))) long gsi_sys_number(const char *root, long otherwise, const char *format, ...);
/* The real path of a file or folder, without root; 0, or -1. */
int gsi_sys_real(const char *root, const char *path, char *real, size_t room);
/* 1 for "0000:81:00.0" (the domain may be longer, as behind Intel's VMD). */
int gsi_sys_is_pci(const char *name, size_t len);
/* Where a device is: follows `link` (a folder or link below /sys) and walks up. 0, or -1 if the link is not there. */
int gsi_sys_place(const char *root, const char *link, gsi_place *place);
/* The same of a network device; one without a device of its own is where the one below it is (VLAN, macvlan, bond). */
int gsi_sys_netdev_place(const char *root, const char *netdev, gsi_place *place);

#endif
