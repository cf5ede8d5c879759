#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lab: --hosts 4 --rails 4
# Waiting over verbs takes no CPU time.
# shellcheck source=tests/rdma/lib.sh disable=SC2317
. "$(dirname "$0")/../lib.sh"
need_verbs

ok "2x1x2" job 2x1x2 200 "$(prog tests/rdma/idle)" 3
ok "2x2x2" job 2x2x2 200 "$(prog tests/rdma/idle)" 3
done_testing
