/* SPDX-License-Identifier: Apache-2.0 */
/* Names, sizes and defaults of the public values. */
#include <gradsync/gradsync.h>

#define TEXT2(x) #x
#define TEXT(x)  TEXT2(x)

const char *gradsync_version(void)
{
    return TEXT(GRADSYNC_VERSION_MAJOR) "." TEXT(GRADSYNC_VERSION_MINOR) "." TEXT(GRADSYNC_VERSION_PATCH);
}

uint32_t gradsync_version_number(void)
{
    return GRADSYNC_VERSION_MAJOR * 1000000 + GRADSYNC_VERSION_MINOR * 1000 + GRADSYNC_VERSION_PATCH;
}

size_t gradsync_dtype_size(int dtype)
{
    static const size_t sizes[GRADSYNC_DTYPE_COUNT] = {4, 8, 2, 2, 1, 1, 4, 4, 8, 8};
    return dtype >= 0 && dtype < GRADSYNC_DTYPE_COUNT ? sizes[dtype] : 0;
}

static const char *name_of(const char *const *names, int count, int value)
{
    return value >= 0 && value < count ? names[value] : "?";
}

const char *gradsync_dtype_name(int dtype)
{
    static const char *const names[GRADSYNC_DTYPE_COUNT] = {"f32", "f64", "f16", "bf16", "i8",
                                                            "u8",  "i32", "u32", "i64",  "u64"};
    return name_of(names, GRADSYNC_DTYPE_COUNT, dtype);
}

const char *gradsync_op_name(int op)
{
    static const char *const names[GRADSYNC_OP_COUNT] = {"sum", "prod", "min", "max", "avg", "premul_sum"};
    return name_of(names, GRADSYNC_OP_COUNT, op);
}

const char *gradsync_coll_name(int coll)
{
    static const char *const names[GRADSYNC_COLL_COUNT] = {"all_reduce", "reduce_scatter", "all_gather",
                                                           "broadcast",  "reduce",         "barrier"};
    static const char *const pairs[] = {"put", "get", "send", "recv", "signal", "wait_signal"};
    if (coll >= GRADSYNC_PUT)
        return name_of(pairs, sizeof pairs / sizeof *pairs, coll - GRADSYNC_PUT);
    return name_of(names, GRADSYNC_COLL_COUNT, coll);
}

const char *gradsync_algo_name(int algo)
{
    static const char *const names[GRADSYNC_ALGO_COUNT] = {"auto", "oneshot",  "direct",   "staged",      "ring",
                                                           "tree", "doubling", "pairwise", "hierarchical"};
    return name_of(names, GRADSYNC_ALGO_COUNT, algo);
}

static const struct {
    const char *name, *meaning;
} errors[] = {
    {"OK", "success"},
    {"INVALID", "an argument is wrong"},
    {"NOMEM", "out of memory"},
    {"UNSUPPORTED", "not possible with this memory, transport or build"},
    {"TIMEOUT", "the deadline passed"},
    {"PEER_LOST", "a rank died, left or aborted"},
    {"MISMATCH", "ranks called different things"},
    {"AUTH", "a peer could not prove the job's key"},
    {"SYSTEM", "an operating-system call failed"},
    {"DEVICE", "a NIC or GPU failed"},
    {"BROKEN", "the communicator failed earlier"},
    {"INTERNAL", "a bug in libgradsync"},
};

const char *gradsync_error_name(int error)
{
    if (error == GRADSYNC_IN_PROGRESS)
        return "IN_PROGRESS";
    return error <= 0 && error >= GRADSYNC_ERR_INTERNAL ? errors[-error].name : "?";
}

const char *gradsync_strerror(int error)
{
    if (error == GRADSYNC_IN_PROGRESS)
        return "in progress";
    return error <= 0 && error >= GRADSYNC_ERR_INTERNAL ? errors[-error].meaning : "unknown error";
}

void gradsync_config_init(gradsync_config *config)
{
    *config = (gradsync_config)GRADSYNC_CONFIG_INIT;
}

void gradsync_mem_config_init(gradsync_mem_config *config)
{
    *config = (gradsync_mem_config)GRADSYNC_MEM_CONFIG_INIT;
}

void gradsync_comm_config_init(gradsync_comm_config *config)
{
    *config = (gradsync_comm_config)GRADSYNC_COMM_CONFIG_INIT;
}

void gradsync_coll_opts_init(gradsync_coll_opts *opts)
{
    *opts = (gradsync_coll_opts)GRADSYNC_COLL_OPTS_INIT;
}
