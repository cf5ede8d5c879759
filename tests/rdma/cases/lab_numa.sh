#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lab: --hosts 2 --rails 4 --numa --ipv6
# The lab itself: rails are on NUMA nodes, which sysfs tells in the way that real cards do.
# shellcheck source=tests/rdma/lib.sh disable=SC2317
. "$(dirname "$0")/../lib.sh"

# The node of the card under the network device of a rail.
node() { # HOST RAIL
    local path
    path=$(readlink -f "/sys/class/net/$(rail "$1" "$2" device)"/lower_*/device)
    while [ -n "$path" ] && [ ! -e "$path/numa_node" ]; do path=${path%/*}; done
    cat "$path/numa_node"
}
ok "two nodes" test -e /sys/devices/system/node/node1/cpulist
for ((h = 0; h < LAB_HOSTS; h++)); do
    for ((r = 0; r < LAB_RAILS; r++)); do
        ok "rail $r of host $h is on node $((r % 2))" same "$(node $h $r)" $((r % 2))
    done
done
ok "the rails work" perftest 0:3 1:3 ib_write_bw -s 65536 -n 20
done_testing
