#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lab: --hosts 4 --rails 4
# long: minutes of training on two emulated CPUs
# The trainer of the examples over verbs: it learns, ranks end with the same weights, and with
# --ordered with the very bits that ranks of one host end with.
# shellcheck source=tests/rdma/lib.sh disable=SC2317
. "$(dirname "$0")/../lib.sh"
need_verbs

weights=$(mktemp -d)
chmod 777 "$weights"
one_host() {
    GRADSYNC_TRANSPORT=shm lab-launch -p -t 200 -H 1 -r 4 -- \
        "$(prog examples/train_digits)" --quiet --check --ordered --epochs 3 --save "$weights/one_host"
}
two_hosts() {
    job 2x2x2 250 "$(prog examples/train_digits)" --quiet --check --ordered --epochs 3 --save "$weights/two_hosts"
}
learns() { job 2x2x2 250 "$(prog examples/train_digits)" --quiet --check --epochs 12 --require 95; }
ok "2x2x2 learns the digits" learns
ok "4 ranks on one host, ordered" one_host
ok "2 ranks on each of 2 hosts, ordered" two_hosts
ok "have the same weights" cmp "$weights/one_host" "$weights/two_hosts"
rm -rf "$weights"
done_testing
