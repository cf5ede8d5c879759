#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lab: --hosts 4 --rails 4
# All-reduce of every size over verbs, every element checked: hosts x ranks a host x rails.
# shellcheck source=tests/rdma/lib.sh disable=SC2317
. "$(dirname "$0")/../lib.sh"
need_verbs

# Large messages go over every rail: that is seen by packets. Ranks share two emulated CPUs, so
# the more of them, the smaller the largest size.
job_packets=100
perf_rows=20
ok "2x1x1, 8 B to 4 MiB" perf 2x1x1 200 -b 8 -e 4M -f 2 -n 2 -w 1
ok "2x1x2, 8 B to 4 MiB" perf 2x1x2 200 -b 8 -e 4M -f 2 -n 2 -w 1
perf_rows=18
for shape in 2x2x2 3x1x1 4x1x2; do
    ok "$shape, 8 B to 1 MiB" perf $shape 200 -b 8 -e 1M -f 2 -n 1 -w 1
done
perf_rows=9
ok "2x4x4, 8 B to 512 KiB" perf 2x4x4 200 -b 8 -e 512K -f 4 -n 1 -w 1
perf_rows=5
ok "2x1x2, sizes that nothing divides" perf 2x1x2 200 -b 1234564 -e 1234580 -i 4 -n 1 -w 1
ok "2x2x2, sizes that nothing divides" perf 2x2x2 200 -b 1234564 -e 1234580 -i 4 -n 1 -w 1
done_testing
