/* SPDX-License-Identifier: Apache-2.0 */
/* The verbs module where there may be no RDMA at all: what is missing is an error with its remedy, never a crash. The
 * module's file is the argument; without one, the build has none. */
#include "transport/verbs/load.h"

#include "tap.h"

#include <dlfcn.h>
#include <gradsync/gradsync.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static gradsync_error_info last;

static const char *message(void)
{
    last = (gradsync_error_info)GRADSYNC_ERROR_INFO_INIT;
    gradsync_last_error(&last);
    return last.message;
}

static int refused(const char *path, const char *text)
{
    gsi_rail_open_fn open = NULL;
    int rc = gsi_verbs_load_from(path, &open);

    if (rc == GRADSYNC_ERR_UNSUPPORTED && strstr(message(), text) && strstr(last.message, "install"))
        return 1;
    tap_note("%d: %s", rc, rc ? message() : "");
    return 0;
}

static int open_refused(gsi_rail_open_fn open, const gsi_rail_config *config, int code, const char *text)
{
    gsi_rail *rail = NULL;
    int rc = open(config, &rail);

    if (rc == code && strstr(message(), text))
        return 1;
    tap_note("%d: %s", rc, rc ? message() : "");
    return 0;
}

/* In a process of its own, where the first libibverbs that the dynamic linker finds is an empty file. */
static int without_libibverbs(const char *self, const char *module)
{
    char folder[] = "/tmp/gradsync-verbs-XXXXXX", file[64], variable[80];
    int status = -1;

    if (!mkdtemp(folder))
        return 0;
    snprintf(file, sizeof file, "%s/libibverbs.so.1", folder);
    snprintf(variable, sizeof variable, "LD_LIBRARY_PATH=%s", folder);
    FILE *empty = fopen(file, "w");
    if (empty)
        fclose(empty);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        char *args[] = {(char *)self, (char *)"--without", (char *)module, NULL};
        char *environment[] = {variable, NULL};

        execve("/proc/self/exe", args, environment);
        _exit(127);
    }
    waitpid(child, &status, 0);
    unlink(file);
    rmdir(folder);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void *load_too(void *module)
{
    gsi_rail_open_fn open = NULL;

    return (void *)(uintptr_t)(gsi_verbs_load_from(module, &open) == 0 && open);
}

static void with_module(const char *self, const char *module)
{
    gsi_rail_open_fn open = NULL, again = NULL;
    gsi_rail_config config = {.device = "no_such_0",
                              .port = 1,
                              .gid_index = -1,
                              .numa_node = -1,
                              .connections = 1,
                              .send_depth = 8,
                              .recv_depth = 8};

    tap_ok(without_libibverbs(self, module), "a module without its libibverbs is refused by name");
    pthread_t threads[4];
    void *fine;
    int all = 1;
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, load_too, (void *)module);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], &fine);
        all &= fine != NULL;
    }
    tap_ok(all, "the module loads, from several threads at once");
    tap_ok(!gsi_verbs_load_from(module, &open) && !gsi_verbs_load_from(module, &again) && open == again,
           "and is the same each time");
    if (!open)
        return;
    tap_ok(open_refused(open, &config, GRADSYNC_ERR_DEVICE, "no RDMA device no_such_0"), "a device that is not there");
    config.connections = 0;
    tap_ok(open_refused(open, &config, GRADSYNC_ERR_INVALID, "0 connections"), "no connections");
    config.connections = 1, config.timeout = 32;
    tap_ok(open_refused(open, &config, GRADSYNC_ERR_INVALID, "1 to 31"), "a timeout out of range");
    config.timeout = 0, config.service_level = 16;
    tap_ok(open_refused(open, &config, GRADSYNC_ERR_INVALID, "service level 16"), "a service level out of range");

    gsi_rail_host future = {.abi = GSI_RAIL_ABI + 1};
    gsi_rail_module_fn function;
    void *handle = dlopen(module, RTLD_NOW), *symbol = handle ? dlsym(handle, GSI_VERBS_SYMBOL) : NULL;
    memcpy(&function, &symbol, sizeof function);
    tap_ok(symbol && !function(&future), "a host of another ABI is refused");
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--without"))
        return !refused(argv[2], "libibverbs.so.1");
    tap_ok(refused("/no/such/folder/libgradsync-verbs.so.0", "/no/such/folder"), "a module that is not there");
    tap_ok(refused("libm.so.6", "no gradsync module"), "a library that is no module");
    if (argc > 1)
        with_module(argv[0], argv[1]);
    else
        tap_skip(8, "the module is not built: libibverbs-dev, librdmacm-dev or libnuma-dev is not installed");
    return tap_done();
}
