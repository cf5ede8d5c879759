#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lab: --hosts 4 --rails 4
# long: minutes: every collective, algorithm and type
# Every collective, type, operation and algorithm over verbs, every element checked.
# shellcheck source=tests/rdma/lib.sh disable=SC2317
. "$(dirname "$0")/../lib.sh"
need_verbs

perf_rows=2
for collective in reduce_scatter all_gather broadcast reduce; do
    ok "$collective" perf 2x2x2 200 --coll $collective -b 4K -e 1M -f 256 -n 2 -w 1
done
for algorithm in ring tree doubling pairwise; do
    ok "all_reduce by $algorithm" perf 3x1x1 200 --algo $algorithm -b 4K -e 1M -f 256 -n 2 -w 1
done
ok "ordered" perf 3x1x1 200 --ordered -b 4K -e 1M -f 256 -n 2 -w 1
ok "posted, 4 at once" perf 2x1x2 200 -z 0 -m 4 -b 4K -e 1M -f 256 -n 2 -w 1
ok "plain memory" perf 2x1x2 200 --memory plain -b 4K -e 1M -f 256 -n 2 -w 1
ok "plain memory, registered" perf 2x1x2 200 --memory plain -R 1 -b 4K -e 1M -f 256 -n 2 -w 1
perf_rows=10
ok "every type" perf 2x1x1 200 -d all -b 64K -n 2 -w 1
done_testing
