#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lab: --hosts 4 --rails 4
# long: minutes: seven jobs, two of them trainings
# Messages, puts, gets and signals over verbs: random traffic, bit by bit, and the examples.
# shellcheck source=tests/rdma/lib.sh disable=SC2317
. "$(dirname "$0")/../lib.sh"
need_verbs

random() { # SHAPE ROUNDS
    ok "$1: $2 rounds of random traffic" job "$1" 250 "$(prog tests/p2p/test_p2p_random)" --env "$2"
}
random 2x1x1 8
random 2x1x2 6
random 4x1x2 4
random 2x2x2 4
ok "a parameter server learns the digits" job 4x1x1 250 "$(prog examples/parameter_server)"
ok "a pipeline learns the digits" job 4x1x1 250 "$(prog examples/pipeline)"
ok "a pipeline of two hosts" job 2x2x2 250 "$(prog examples/pipeline)" --epochs 5
done_testing
