#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lab: --hosts 4 --rails 4
# 2,000 random collectives over verbs, bit by bit against the reference.
# shellcheck source=tests/rdma/lib.sh disable=SC2317
. "$(dirname "$0")/../lib.sh"
need_verbs

random() { # SHAPE COUNT
    ok "$1: $2 random collectives" job "$1" 250 "$(prog tests/conformance/test_random)" --env --between "$between" \
        --count "$2" --seed "${RANDOM_SEED:-$2}"
}
random 2x1x1 600
random 2x1x2 500
random 3x1x1 300
random 2x2x2 300
random 4x1x2 200
random 2x4x4 100
done_testing
