#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lab: --hosts 2 --rails 2
# long: minutes: it makes communicators of every pair of rails, with faults; its checks are tested by fixtures too
# gradsync-doctor names the rail that is down, slow or dead, on one host and between two.
# shellcheck source=tests/rdma/lib.sh disable=SC2317
. "$(dirname "$0")/../lib.sh"
need_verbs

doctor=$(prog tools/gradsync-doctor)
first=$(rail 0 0 name):1 second=$(rail 0 1 name):1
far=$(rail 1 1 name):1

# finding FILE ID SEVERITY SUBJECT: the JSON has it.
finding() {
    python3 - "$@" <<'END'
import json, sys
path, wanted = sys.argv[1], tuple(sys.argv[2:5])
report = json.load(open(path))
found = [(f["id"], f["severity"], f["subject"]) for f in report["findings"]]
print(*(f for f in report["findings"] if f["severity"] not in ("ok", "skipped")), *report.get("pairs", []), sep="\n")
sys.exit(wanted not in found)
END
}
# measured FILE N: N pairs were measured, and took time.
measured() {
    python3 - "$@" <<'END'
import json, sys
report = json.load(open(sys.argv[1]))
good = [p for p in report["pairs"] if p["status"] == 0 and p["latency_us"] > 1 and p["gbps"] > 0 and p["gbps_back"] > 0]
print(report["wire"], *report["pairs"], sep="\n")
sys.exit(report["wire"] != "verbs" or len(good) != int(sys.argv[2]))
END
}
report=$(mktemp)
here() { # STATUS ARG...: on host 0, with two rails
    local wanted=$1 status=0
    on-host -R 2 0 "$doctor" --json "${@:2}" >"$report" || status=$?
    same "$status" "$wanted"
}
between() { # STATUS ARG...: two hosts, two rails
    local wanted=$1 status=0
    GRADSYNC_TRANSPORT=verbs lab-launch -p -t 250 -g 5 -H 2 -R 2 -- "$doctor" --hosts --json --timeout 30 "${@:2}" >"$report" || status=$?
    same "$status" "$wanted"
}

ok "a host is well" here 0 --peer "$(rail 1 0 address)"
ok "the peer is in the subnet of the first rail" finding "$report" gid-subnet ok "$(rail 1 0 address)"
ok "two hosts are well" between 0 --only rail-failed,rail-apart,rail-mtu
ok "both rails are measured" measured "$report" 2

rail 0 1 rate 20mbit
ok "a slow rail is a warning" between 1 --only rail-slow,rail-failed
ok "which names it" finding "$report" rail-slow warning "host0 $second - host1 $far"
rail 0 1 heal
rail 0 1 loss 100%
ok "a rail that loses everything is an error" between 2 --only rail-failed --timeout 8
ok "which names it" finding "$report" rail-failed error "host0 $second - host1 $far"
ok "the other one is measured" measured "$report" 1
rail 0 1 heal
rail 0 1 down
ok "a rail that is down is a warning" here 1
ok "which names it" finding "$report" port-down warning "$second"
rail 0 0 down
ok "without any rail it is an error" here 2
ok "which names them" finding "$report" port-down error "$first"
ok "and says that it will be TCP" finding "$report" tcp-fallback error ""
rail 0 all heal
ok "all is well again" here 0
rm -f "$report"
done_testing
