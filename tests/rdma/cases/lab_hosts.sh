#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lab: --hosts 4 --rails 4
# The lab itself: hosts have devices, memory, names and processes of their own.
# shellcheck source=tests/rdma/lib.sh disable=SC2317
. "$(dirname "$0")/../lib.sh"

devices() { "$@" ibv_devices | awk 'NR > 2 { print $1 }' | sort -V | paste -sd' '; }
own_devices() { # HOST RAILS
    local r names=()
    for ((r = 0; r < $2; r++)); do names+=("rxe$(($1 * LAB_RAILS + r))"); done
    same "$(devices on-host -R "$2" "$1")" "${names[*]}"
}
for ((h = 0; h < LAB_HOSTS; h++)); do
    ok "host $h sees its $LAB_RAILS rails only" own_devices "$h" "$LAB_RAILS"
    ok "host $h has its own name" same "$(on-host $h hostname)" "host$h"
done
ok "ports are active" same "$(on-host 2 ibv_devinfo | grep -c PORT_ACTIVE)" "$LAB_RAILS"
ok "host 1 with one rail sees the first" own_devices 1 1
ok "host 1 without rails sees none" own_devices 1 0
ok "rdma_cm is there" on-host 1 test -c /dev/infiniband/rdma_cm
ok "a device cannot be opened from another host" not on-host 1 ibv_devinfo -d rxe0

ok "a file in /dev/shm" on-host 0 sh -c 'echo x >/dev/shm/lab-test'
ok "is there on its host" on-host 0 test -e /dev/shm/lab-test
ok "and on no other" not on-host 1 test -e /dev/shm/lab-test
# shellcheck disable=SC2016 # the other shell expands it
ok "process ids begin with the host" on-host 1 sh -c 'test $(ls -d /proc/[0-9]* | wc -l) -lt 10'
ok "hosts know each other by name" same "$(on-host 0 getent hosts host1 | awk '{ print $1 }')" 10.77.0.2

launched() { lab-launch "$@" 2>/dev/null | sort -n; }
# shellcheck disable=SC2016 # the ranks' shells expand it
{
    ok "lab-launch places ranks on hosts" same \
        "$(launched -H 2 -r 2 -- sh -c 'echo $(hostname) $GRADSYNC_RANK $GRADSYNC_SIZE $GRADSYNC_LOCAL_RANK $GRADSYNC_LOCAL_SIZE' | paste -sd,)" \
        "0: host0 0 4 0 2,1: host0 1 4 1 2,2: host1 2 4 0 2,3: host1 3 4 1 2"
    ok "plain: rank 0's output as it is" same "$(lab-launch -p -H 3 -- sh -c 'echo $GRADSYNC_RANK' 2>/dev/null)" 0
    lab-launch -H 2 -- sh -c 'exit $((GRADSYNC_RANK * 3))' 2>/dev/null
    ok "a rank's failure is the job's" same $? 3
    lab-launch -g 1 -H 2 -- sh -c '[ $GRADSYNC_RANK = 0 ] || exit 5; sleep 1000' 2>/dev/null
    ok "the others are ended after it" same $? 5
}
lab-launch -t 1 -H 2 -r 2 -- sleep 1234 2>/dev/null
ok "a job that takes too long is ended" same $? 124
ok "and nothing is left of it" not pgrep -f "sleep 1234"
done_testing
