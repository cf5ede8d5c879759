# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What cases and benchmarks have in common; sourced by them, inside of the lab.

# ---- TAP ----

case_n=0 case_failed=0
case_log=$(mktemp)

# ok NAME COMMAND...: one test; what a failing COMMAND has printed is shown.
ok() {
    local name=$1 status=0
    shift
    case_n=$((case_n + 1))
    "$@" >"$case_log" 2>&1 </dev/null || status=$?
    if [ "$status" -eq 0 ]; then
        echo "ok $case_n - $name"
    else
        echo "not ok $case_n - $name"
        echo "# status $status: $*"
        tail -n 30 "$case_log" | sed 's/^/# /'
        case_failed=1
    fi
    return 0
}
not() { ! "$@"; }
same() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'" && return 1; }; }
done_testing() {
    rm -f "$case_log"
    echo "1..$case_n"
    exit $case_failed
}
# Ends the case, all skipped, where the library has no verbs.
need_verbs() {
    [ -n "${CASE_NO_VERBS-}" ] || return 0
    echo "1..0 # SKIP $CASE_NO_VERBS"
    exit 0
}

# ---- programs of the project, by name ----

prog() { echo "${CASE_BUILD:?}/$1"; }

# ---- perftest ----

# Until something listens on TCP port $1. No process for every look: they are slow here.
wait_port() {
    local listens lines i
    printf -v listens ':%04X [0-9A-F]+:0000 0A' "$1"
    for ((i = 0; i < 400; i++)); do
        mapfile -t lines </proc/net/tcp
        mapfile -t -O ${#lines[@]} lines </proc/net/tcp6
        ! [[ ${lines[*]} =~ $listens ]] || return 0
        sleep 0.05
    done
    echo "nobody listens on port $1"
    return 1
}

perftest_port=18500
# perftest HOST:RAIL HOST:RAIL TOOL ARG...: TOOL from the first rail to the second one; prints
# the rows of its table. A time-out of 1 s (18): with perftest's own, 67 ms, what is merely slow
# would be sent again. $PERFTEST_LIMIT: seconds that it may take. $PERFTEST_GID: index (1: IPv4).
perftest() {
    local from=$1 to=$2 tool=$3 log server status=0 common
    shift 3
    log=$(mktemp)
    perftest_port=$((perftest_port + 1))
    common=(-x "${PERFTEST_GID:-1}" -F -u "${PERFTEST_TIMEOUT:-18}" -p "$perftest_port" "$@")
    timeout -k 1 "${PERFTEST_LIMIT:-60}" on-host "${to%:*}" "$tool" -d "$(rail "${to%:*}" "${to#*:}" name)" \
        "${common[@]}" >"$log.server" 2>&1 &
    server=$!
    if wait_port "$perftest_port"; then
        timeout -k 1 "${PERFTEST_LIMIT:-60}" on-host "${from%:*}" "$tool" \
            -d "$(rail "${from%:*}" "${from#*:}" name)" "${common[@]}" 127.0.0.1 >"$log" 2>&1 || status=$?
    else
        status=1
    fi
    if [ "$status" -ne 0 ]; then
        kill $server 2>/dev/null
        echo "$tool from $from to $to: status $status"
        tail -n 5 "$log" "$log.server"
    fi
    wait $server 2>/dev/null || status=$?
    grep -E '^ *[0-9]+ +[0-9]+ +[0-9.]+' "$log" || [ "$status" -ne 0 ] || status=1
    rm -f "$log" "$log.server"
    return $status
}

# ---- jobs of the library over verbs ----

# The transport that ranks of different hosts must be joined by.
between=${CASE_TRANSPORT:-verbs}

# What RDMA devices have sent, packets: a line a rail. What went another way does not count here.
rdma_sent() { # HOSTS RAILS
    local h r packets
    for ((h = 0; h < $1; h++)); do
        for ((r = 0; r < $2; r++)); do
            read -r packets <"/sys/class/infiniband/rxe$((h * LAB_RAILS + r))/ports/1/hw_counters/sent_pkts"
            echo "$packets"
        done
    done
}

# job HxRxL LIMIT COMMAND...: COMMAND as R ranks on each of H hosts with L rails each, which must
# end well within LIMIT seconds, with at least $job_packets (default 1) more packets on each rail.
job() {
    local h r l limit=$2 before after i
    IFS=x read -r h r l <<<"$1"
    shift 2
    mapfile -t before < <(rdma_sent "$h" "$l")
    GRADSYNC_TRANSPORT=$between lab-launch -p -t "$limit" -H "$h" -r "$r" -R "$l" -- "$@" || return
    [ "$between" = verbs ] || return 0
    mapfile -t after < <(rdma_sent "$h" "$l")
    for ((i = 0; i < h * l; i++)); do
        if [ $((after[i] - before[i])) -lt "${job_packets:-1}" ]; then
            echo "rail $((i % l)) of host $((i / l)) has sent $((after[i] - before[i])) packets only"
            return 1
        fi
    done
}

# perf HxRxL LIMIT ARG...: the same for gradsync-perf, whose table must say that it ran over verbs,
# with $perf_rows rows.
perf_rows=1
perf() {
    local h out status=0
    h=${1%%x*}
    out=$(mktemp)
    job "$1" "$2" "$(prog tools/gradsync-perf)" --transport "$between" "${@:3}" >"$out" 2>&1 || status=$?
    cat "$out"
    [ $status -eq 0 ] || return $status
    awk -v rows="$perf_rows" -v hosts="$h" -v transport="$between" '
        /^# +Rank / { on = $0; sub(/.* on +/, "", on); sub(/ .*/, "", on); host[on]++ }
        /^# +Rank / && on != "host0" && $0 !~ ", transport " transport "$" { print "not over " transport ": " $0; bad = 1 }
        /^ +[0-9]+ +[0-9]+ / { n++ }
        END {
            if (length(host) != hosts) { print length(host) " hosts, not " hosts; bad = 1 }
            if (n != rows) { print n + 0 " rows, not " rows; bad = 1 }
            exit bad
        }' "$out" || status=1
    rm -f "$out"
    return $status
}
