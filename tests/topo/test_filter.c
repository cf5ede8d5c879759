/* SPDX-License-Identifier: Apache-2.0 */
/* Device filters and settings, as operators write them. */
#include <string.h>

#include "base/error.h"
#include "tap.h"
#include "topo/settings.h"

static const char *last_message(void)
{
    static gradsync_error_info info;

    info.size = sizeof info;
    gradsync_last_error(&info);
    return info.message;
}

/* passes: names (with ports) that have to pass, stopped: that must not; blanks between them. */
static void check(const char *list, int ports, const char *passes, const char *stopped)
{
    gsi_filter f;
    const char *const lists[2] = {passes, stopped};
    int rc = gsi_filter_parse("GRADSYNC_HCA", list, ports, &f), bad = 0;

    for (int stop = 0; stop < 2; stop++) {
        char copy[256], *save, *word;
        snprintf(copy, sizeof copy, "%s", lists[stop]);
        for (word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
            char *colon = ports ? strchr(word, ':') : NULL;
            int port = colon ? atoi(colon + 1) : -1;
            if (colon)
                *colon = 0;
            if (gsi_filter_match(&f, word, port, NULL) == stop) {
                tap_note("%s:%d is %s", word, port, stop ? "let pass" : "stopped");
                bad++;
            }
        }
    }
    tap_ok(!rc && !bad, "'%s' lets pass: %s; stops: %s", list ? list : "(unset)", passes, stopped);
}

static void refused(const char *list, const char *says)
{
    gsi_filter f;
    int rc = gsi_filter_parse("NCCL_IB_HCA", list, 1, &f);
    const char *m = last_message();

    tap_ok(rc == GRADSYNC_ERR_INVALID && strstr(m, says) && strstr(m, "NCCL_IB_HCA") && strstr(m, "mlx5_0,mlx5_1:1"),
           "refused: %s", rc ? m : list);
}

static void test_filter(void)
{
    char many[2048] = "";
    gsi_filter f;
    const gsi_filter_item *item;

    check(NULL, 1, "mlx5_0:1 rxe0:1", "");
    check("", 1, "mlx5_0:1 rxe0:1", "");
    check("mlx5_0,mlx5_1:1", 1, "mlx5_0:1 mlx5_0:2 mlx5_1:1 mlx5_10:1", "mlx5_1:2 mlx5_2:1 rxe0:1");
    check("mlx5_0,mlx5_1:1,^mlx5_bond", 1, "mlx5_0:1 mlx5_1:1", "mlx5_1:2 mlx5_bond_0:1 mlx5_2:1");
    check("mlx5,^mlx5_bond", 1, "mlx5_0:1 mlx5_31:2", "mlx5_bond_0:1 hfi1_0:1");
    check("=mlx5_1", 1, "mlx5_1:1 mlx5_1:2", "mlx5_10:1 mlx5_0:1");
    check("=mlx5_1:2,mlx5_3", 1, "mlx5_1:2 mlx5_3:1", "mlx5_1:1 mlx5_10:2 mlx5_30:1");
    check("^mlx5_3,mlx5_4", 1, "mlx5_0:1 mlx5_5:1", "mlx5_3:1 mlx5_4:1 mlx5_30:1");
    check("^=mlx5_3,mlx5_4", 1, "mlx5_30:1 mlx5_0:1", "mlx5_3:1 mlx5_4:2");
    check("=^mlx5_3", 1, "mlx5_30:1", "mlx5_3:1");
    check("^mlx5_1:1", 1, "mlx5_1:2 mlx5_0:1", "mlx5_1:1");
    check("^a,^b", 1, "c:1", "a:1 b:1");
    check(" mlx5_0 , rxe1\t,", 1, "mlx5_0:1 rxe1:1", "mlx5_1:1");
    check("eth,^eth0:1", 0, "eth0 eth1", "eth0:1 lo");
    check("^docker,lo", 0, "eth0 ib0", "docker0 lo");
    check("=eth0", 0, "eth0", "eth01");
    refused(",mlx5_0", "no name");
    refused("mlx5_0,,mlx5_1", "no name");
    refused("^", "no name");
    refused("^^mlx5_0", "twice");
    refused("mlx5_0:", "port");
    refused("mlx5_0:0", "port");
    refused("mlx5_0:256", "port");
    refused("mlx5_0:99999999999999999999", "port");
    refused("mlx5_0:1:2", "port");
    refused("mlx5 0", "character");
    refused("mlx5_0;rm -rf", "character");
    refused("mlx5_\xff", "character");
    refused("a-name-that-is-very-much-longer-than-the-sixty-three-letters-that-a-device-may-have", "too long");
    for (int i = 0; i < 129; i++)
        snprintf(many + strlen(many), sizeof many - strlen(many), "m%d,", i);
    refused(many, "128");
    gsi_filter_parse("X", "mlx5,^mlx5_1", 1, &f);
    tap_ok(!gsi_filter_match(&f, "mlx5_1", 1, &item) && item && item->exclude && !strcmp(item->name, "mlx5_1"),
           "the item that decided is told");
    tap_ok(!gsi_filter_match(&f, "rxe0", 1, &item) && !item, "or that none did");
}

/* ---- Settings ------------------------------------------------------------------------ */

struct variable {
    const char *name, *value;
};

static const char *lookup(void *arg, const char *name)
{
    for (const struct variable *v = arg; v->name; v++)
        if (!strcmp(v->name, name))
            return v->value;
    return NULL;
}

static int read_with(struct variable *list, gsi_settings *s)
{
    return gsi_settings_read(lookup, list, s);
}

static void test_defaults(void)
{
    gsi_settings s;
    struct variable none[] = {{NULL, NULL}};

    tap_ok(!read_with(none, &s) && s.gid_index == -1 && s.traffic_class == -1 && s.service_level == -1 &&
               s.pkey_index == -1 && s.pkey_value == -1 && s.timeout == -1 && s.retry_count == -1 && s.mtu == 0 &&
               s.qps_per_connection == -1 && s.relaxed_ordering == 2 && s.rails == GSI_RAILS_AUTO && !s.disabled &&
               !s.hca.n && !s.interfaces.n && !s.topo_file[0] && !s.gid_index_variable[0],
           "nothing set: defaults");
}

static void test_nccl(void)
{
    gsi_settings s;
    struct variable nccl[] = {{"NCCL_IB_HCA", "=mlx5_0,mlx5_1"},
                              {"NCCL_IB_GID_INDEX", "3"},
                              {"NCCL_IB_TC", "106"},
                              {"NCCL_IB_SL", "5"},
                              {"NCCL_IB_PKEY", "1"},
                              {"NCCL_IB_TIMEOUT", "22"},
                              {"NCCL_IB_RETRY_CNT", "7"},
                              {"NCCL_IB_QPS_PER_CONNECTION", "4"},
                              {"NCCL_IB_PCI_RELAXED_ORDERING", "1"},
                              {"NCCL_SOCKET_IFNAME", "^docker0,lo"},
                              {"NCCL_TOPO_FILE", "/opt/topo.xml"},
                              {NULL, NULL}};

    tap_ok(!read_with(nccl, &s) && s.gid_index == 3 && s.traffic_class == 106 && s.service_level == 5 &&
               s.pkey_index == 1 && s.timeout == 22 && s.retry_count == 7 && s.qps_per_connection == 4 &&
               s.relaxed_ordering == 1 && s.hca.n == 2 && s.hca.items[1].exact && s.interfaces.n == 2 &&
               !strcmp(s.topo_file, "/opt/topo.xml"),
           "NCCL's variables are honoured");
    tap_ok(!strcmp(s.hca.variable, "NCCL_IB_HCA") && !strcmp(s.gid_index_variable, "NCCL_IB_GID_INDEX"),
           "and named in messages");
}

static void test_ours(void)
{
    gsi_settings s;
    struct variable both[] = {{"NCCL_IB_HCA", "mlx5"},
                              {"GRADSYNC_HCA", "rxe0"},
                              {"NCCL_IB_GID_INDEX", "3"},
                              {"GRADSYNC_IB_GID_INDEX", "auto"},
                              {"NCCL_IB_TC", "106"},
                              {"GRADSYNC_IB_TC", ""},
                              {"NCCL_IB_TIMEOUT", "garbage"},
                              {"GRADSYNC_IB_TIMEOUT", "17"},
                              {"GRADSYNC_IB_PKEY", "0x8003"},
                              {"GRADSYNC_IB_MTU", "2048"},
                              {"GRADSYNC_RAILS", "near"},
                              {"NCCL_IB_RETRY_CNT", "-1"},
                              {NULL, NULL}};

    tap_ok(!read_with(both, &s) && !strcmp(s.hca.items[0].name, "rxe0") && s.gid_index == -1 && s.timeout == 17,
           "ours come first, even where theirs is garbage");
    tap_ok(s.traffic_class == 106, "an empty one counts as unset");
    tap_ok(s.pkey_value == 0x8003 && s.pkey_index == -1 && s.mtu == 2048 && s.rails == GSI_RAILS_NEAR &&
               s.retry_count == -1,
           "a key, an MTU, a policy, NCCL's -1");
}

static void test_bounds(void)
{
    static const struct variable wrong[] = {{"GRADSYNC_IB_GID_INDEX", "65536"},
                                            {"GRADSYNC_IB_GID_INDEX", "-2"},
                                            {"NCCL_IB_GID_INDEX", "1x"},
                                            {"GRADSYNC_IB_TC", "256"},
                                            {"GRADSYNC_IB_SL", "16"},
                                            {"GRADSYNC_IB_SL", " 3"},
                                            {"GRADSYNC_IB_TIMEOUT", "0"},
                                            {"GRADSYNC_IB_TIMEOUT", "32"},
                                            {"GRADSYNC_IB_RETRY_CNT", "8"},
                                            {"GRADSYNC_IB_RETRY_CNT", "99999999999999999999"},
                                            {"GRADSYNC_IB_MTU", "1500"},
                                            {"GRADSYNC_IB_MTU", "8192"},
                                            {"GRADSYNC_QPS_PER_CONNECTION", "0"},
                                            {"GRADSYNC_QPS_PER_CONNECTION", "129"},
                                            {"GRADSYNC_IB_RELAXED_ORDERING", "yes"},
                                            {"GRADSYNC_IB_PKEY", "0x10000"},
                                            {"GRADSYNC_IB_PKEY", "0x8000"},
                                            {"GRADSYNC_IB_PKEY", "0x"},
                                            {"NCCL_IB_PKEY", "0x8001"},
                                            {"GRADSYNC_RAILS", "some"},
                                            {"GRADSYNC_HCA", "a,,b"},
                                            {"NCCL_SOCKET_IFNAME", "et h0"},
                                            {"GRADSYNC_IB_DISABLE", "2"}};
    char path[400];
    gsi_settings s;

    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct variable one[] = {wrong[i], {NULL, NULL}};
        int rc = read_with(one, &s);
        tap_ok(rc == GRADSYNC_ERR_INVALID && strstr(last_message(), wrong[i].name) &&
                   (strstr(last_message(), "set it to") || strstr(last_message(), "write names")),
               "refused: %s", rc ? last_message() : wrong[i].name);
    }
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = 0;
    struct variable longest[] = {{"GRADSYNC_TOPO_FILE", path}, {NULL, NULL}};
    tap_ok(read_with(longest, &s) == GRADSYNC_ERR_INVALID && strstr(last_message(), "GRADSYNC_TOPO_FILE"),
           "a path that is too long is refused, not cut");
    struct variable nasty[] = {{"GRADSYNC_IB_TC", "\x1b[31m\n\xff"}, {NULL, NULL}};
    tap_ok(read_with(nasty, &s) && strstr(last_message(), "'?[31m?\?'"), "messages show no control characters");
}

int main(void)
{
    test_filter();
    test_defaults();
    test_nccl();
    test_ours();
    test_bounds();
    return tap_done();
}
