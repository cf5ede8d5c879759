#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lab: --hosts 4 --rails 4
# The lab itself: what goes between hosts takes the rail that it was sent on.
# shellcheck source=tests/rdma/lib.sh disable=SC2317
. "$(dirname "$0")/../lib.sh"

sent() { cat "/sys/class/net/$(rail "$1" "$2" device)/statistics/tx_bytes"; }
# Writes 8 MiB; looks which device of the sender and of the receiver has sent how much.
over_the_rail() { # FROM-HOST TO-HOST RAIL
    local r before=() other=$(((${3} + 1) % LAB_RAILS))
    for r in $3 $other; do before[r]=$(sent "$1" "$r"); done
    perftest "$1:$3" "$2:$3" ib_write_bw -s 65536 -n 128 || return
    [ $(($(sent "$1" "$3") - before[$3])) -gt 8388608 ] || { echo "not over rail $3" && return 1; }
    [ $(($(sent "$1" "$other") - before[other])) -lt 100000 ] || { echo "over rail $other" && return 1; }
}
ok "0 writes to 1 over rail 0" over_the_rail 0 1 0
ok "3 writes to 2 over rail 3" over_the_rail 3 2 3
ok "both ways at once" perftest 1:1 2:1 ib_write_bw -b -s 65536 -n 50
ok "sends" perftest 0:2 3:2 ib_send_bw -s 65536 -n 50
ok "reads of 1 MiB" perftest 0:2 3:2 ib_read_bw -s 1048576 -n 10
ok "atomics" perftest 0:2 3:2 ib_atomic_bw -n 50

by_rdma_cm() {
    local server status=0
    timeout 30 on-host 1 rping -s -a 10.77.1.2 -p 7174 -C 3 &
    server=$!
    # rdma_cm listens nowhere that could be waited for: try until it answers.
    for _ in {1..50}; do
        status=0
        timeout 30 on-host 0 rping -c -I 10.77.1.1 -a 10.77.1.2 -p 7174 -C 3 && break
        status=1
        sleep 0.1
    done
    kill "$server" 2>/dev/null
    wait "$server"
    return "$status"
}
ok "librdmacm connects" by_rdma_cm
done_testing
