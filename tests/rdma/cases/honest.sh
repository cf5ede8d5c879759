#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lab: --hosts 4 --rails 4
# The library tells what it runs over: without usable rails verbs is an error, never something else.
# shellcheck source=tests/rdma/lib.sh disable=SC2317
. "$(dirname "$0")/../lib.sh"
need_verbs

hello() { job "$1" 200 "$(prog examples/hello_allreduce)"; }
alone() { GRADSYNC_TRANSPORT=verbs lab-launch -p -t 200 -g 5 -H 2 -R 0 -- "$(prog examples/hello_allreduce)"; }
ok "over verbs where there are rails" hello 2x1x1
alone >"$case_log.alone" 2>&1
status=$?
ok "an error where there are none" test $status -ne 0 -a $status -ne 124
ok "which says so" grep -qiE 'verbs|rdma' "$case_log.alone"
tells() { on-host -R "$1" 1 "$(prog tools/gradsync-info)" | grep -E "^ +verbs +$2"; }
ok "gradsync-info finds verbs usable" tells 4 usable
ok "and not without devices" tells 0 "not usable"
rm -f "$case_log.alone"
done_testing
