#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lab: --hosts 4 --rails 4
# long: a minute and more
# The verbs provider by itself, through the seam of rails: two processes write to each other.
# shellcheck source=tests/rdma/lib.sh disable=SC2317
. "$(dirname "$0")/../lib.sh"

test=$(prog tests/verbs/test-verbs-rail)
if [ ! -x "$test" ]; then
    echo "1..0 # SKIP the verbs module is not built"
    exit 0
fi
here=$(rail 0 0 name)
there=$(rail 1 0 name)
pair() { timeout 60 "$test" --module "$(prog lib/libgradsync-verbs.so.0)" "$@"; }
by_rdma_cm() { GRADSYNC_CONNECT=cm pair "$@"; }
faults=(--down "rail 0 0 down" --up "rail 0 0 up")
two_hosts() {
    local server status=0
    on-host 1 timeout 60 "$test" --module "$(prog lib/libgradsync-verbs.so.0)" --devices "$there" --listen 7101 &
    server=$!
    on-host 0 timeout 60 "$test" --module "$(prog lib/libgradsync-verbs.so.0)" --devices "$here" --connect 127.0.0.1:7101 || status=1
    wait "$server" || status=1
    return "$status"
}
ok "over the wire, and its port goes down and up" pair --devices "$here,$there" "${faults[@]}"
ok "a device to itself" pair --devices "$here,$here"
ok "on two hosts" two_hosts
ok "by rdma_cm, and its port goes down and up" by_rdma_cm --devices "$here,$there" "${faults[@]}"
ok "by rdma_cm, a device to itself" by_rdma_cm --devices "$here,$here"
ok "another GID, a small MTU, relaxed ordering" pair --devices "$here,$there" --gid 0 --mtu 1024 --relaxed
done_testing
