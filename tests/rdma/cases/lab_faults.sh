#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lab: --hosts 4 --rails 4
# long: a minute and more: of the lab itself
# The lab itself: rails fail, slow down and heal as told.
# shellcheck source=tests/rdma/lib.sh disable=SC2317
. "$(dirname "$0")/../lib.sh"

state() { cat "/sys/class/infiniband/$(rail "$1" "$2" name)/ports/1/state"; }
is() { # HOST RAIL STATE: in the end, since it is told to the driver by an event
    for _ in {1..100}; do
        [[ $(state "$1" "$2") != *$3 ]] || return 0
        sleep 0.05
    done
    echo "host $1, rail $2: $(state "$1" "$2")"
    return 1
}
works() { ping -q -c 1 -W 5 -I 10.77.1.1 10.77.1.2; }
fails() { not ping -q -c 1 -W 1 -I 10.77.1.1 10.77.1.2; }
writes() { perftest 0:1 1:1 ib_write_bw -s 65536 -n 20; }
# With perftest's 7 retries Soft-RoCE goes on for ever.
no_writes() { PERFTEST_LIMIT=3 PERFTEST_TIMEOUT=12 not perftest 0:1 1:1 ib_write_bw -s 65536 -n 20; }

ok "the rail works" works
ok "down" rail 0 1 down
ok "its port is down" is 0 1 DOWN
ok "the far port is not" is 1 1 ACTIVE
ok "other rails are not" is 0 0 ACTIVE
ok "nothing gets through" fails
ok "up" rail 0 1 up
ok "its port is up" is 0 1 ACTIVE
ok "the rail works again" works
ok "writes get through again" writes

ok "unplug" rail 1 1 unplug
ok "its port is down" is 1 1 DOWN
ok "nothing gets through" fails
ok "plug" rail 1 1 plug
ok "its port is up" is 1 1 ACTIVE
ok "the rail works again" works

ok "cut" rail 0 1 cut
ok "no port tells" is 0 1 ACTIVE
ok "nothing gets through" fails
ok "no write does" no_writes
ok "join" rail 0 1 join
ok "writes get through again" writes
ok "the rail works again" works

ok "all is lost one way" rail 0 1 loss 100%
ok "nothing gets through" fails
ok "clear" rail 0 1 clear
ok "the rail works again" works

# The mean rate, MiB/s, in the fourth column; 80 Mbit/s are 9.5 MiB/s.
slow() { perftest 0:1 1:1 ib_write_bw -s 65536 -n 40 | awk '{ print; exit !($4 > 0.5 && $4 < 10) }'; }
ok "a limit" rail 0 1 rate 80mbit
ok "limits" slow
ok "clear" rail 0 1 clear
ok "clear once more is no error" rail 0 1 clear

ok "remove" rail 0 1 remove
ok "the device is gone" not on-host 0 ibv_devinfo -d "$(rail 0 1 name)"

ok "down, cut, and no device" rail 2 2 down
ok "cut" rail 2 2 cut
ok "all is lost" rail 2 2 loss 100%
ok "heal" rail all all heal
ok "the device is back" on-host 0 ibv_devinfo -d "$(rail 0 1 name)"
ok "the other rail is, too" ping -q -c 1 -W 5 -I 10.77.2.3 10.77.2.2
done_testing
