/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/verbs/load.h"

#include "base/error.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const gsi_rail_host host = {.abi = GSI_RAIL_ABI, .fail = gsi_fail};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static gsi_rail_open_fn loaded; /* under lock */

/* The module is never closed: its code may be running, and rails of it may be open, until the process ends. */
static int load(const char *path, gsi_rail_open_fn *open)
{
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);

    if (!module) {
        const char *why = dlerror();

        return gsi_fail(
            GRADSYNC_ERR_UNSUPPORTED,
            "RDMA cannot be used: %s; install libgradsync-verbs.so.0 beside libgradsync.so, and what it needs: "
            "libibverbs, librdmacm, libnuma (packages ibverbs-providers, librdmacm1, libnuma1)",
            why ? why : path);
    }
    gsi_rail_module_fn function;
    void *symbol = dlsym(module, GSI_VERBS_SYMBOL);

    memcpy(&function, &symbol, sizeof function); /* ISO C has no cast from an object's pointer to a function's */
    if (!symbol)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED,
                        "RDMA cannot be used: %s is no gradsync module; install the one of this version", path);
    *open = function(&host);
    if (!*open)
        return gsi_fail(GRADSYNC_ERR_UNSUPPORTED,
                        "RDMA cannot be used: %s is of another version than libgradsync; install both from one build",
                        path);
    return GRADSYNC_OK;
}

/* Where the module is, if it lies beside the library that this function is in. */
static int beside(char *path, size_t room)
{
    Dl_info info;

    if (!dladdr(&host, &info) || !info.dli_fname)
        return 0;
    const char *slash = strrchr(info.dli_fname, '/');
    int folder = slash ? (int)(slash - info.dli_fname) : 1;
    int n = snprintf(path, room, "%.*s/%s", folder, slash ? info.dli_fname : ".", GSI_VERBS_MODULE);

    return slash && n > 0 && (size_t)n < room && access(path, F_OK) == 0;
}

int gsi_verbs_load_from(const char *path, gsi_rail_open_fn *open)
{
    int rc;

    pthread_mutex_lock(&lock);
    rc = load(path, open);
    pthread_mutex_unlock(&lock);
    return rc;
}

int gsi_verbs_load(gsi_rail_open_fn *open)
{
    char path[PATH_MAX];
    int rc = GRADSYNC_OK;

    pthread_mutex_lock(&lock);
    if (!loaded)
        rc = load(beside(path, sizeof path) ? path : GSI_VERBS_MODULE, &loaded);
    *open = loaded;
    pthread_mutex_unlock(&lock);
    return rc;
}
