# SPDX-License-Identifier: Apache-2.0
"""gradsync-doctor as scripts use it: options, exit status, JSON.

usage: test_tool.py GRADSYNC_DOCTOR GRADSYNC_RUN
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Dict, List

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import tap  # noqa: E402

TOOL, LAUNCHER = sys.argv[1:3]
PORT = "sys/class/infiniband/mlx5_0/ports/1/"
FILES = {
    "sys/class/infiniband/mlx5_0/node_guid": "b859:9f03:0012:3456",
    PORT + "state": "4: ACTIVE",
    PORT + "phys_state": "5: LinkUp",
    PORT + "rate": "200 Gb/sec (4X HDR)",
    PORT + "link_layer": "Ethernet",
    PORT + "gids/0": "0000:0000:0000:0000:0000:ffff:0a00:0001",
    PORT + "gid_attrs/types/0": "RoCE v2",
    PORT + "gid_attrs/ndevs/0": "eth0",
    "sys/class/net/eth0/mtu": "9000",
    "sys/class/infiniband_verbs/uverbs0/ibdev": "mlx5_0",
    "dev/infiniband/uverbs0": "",
    "dev/infiniband/rdma_cm": "",
    "proc/self/limits": "Max open files            65536     65536   files\n"
    "Max locked memory         unlimited unlimited bytes",
    "proc/sys/kernel/hostname": 'host-"a"\u00e9',
}


def make(folder: str, changes: Dict[str, str]) -> str:
    for name, text in {**FILES, **changes}.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    return folder


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GRADSYNC_", "NCCL_"))}
    return subprocess.run([TOOL, *arguments], capture_output=True, text=True, env=environment)


def check_status(folder: str) -> None:
    good = make(os.path.join(folder, "good"), {})
    slow = make(os.path.join(folder, "slow"), {"sys/class/net/eth0/mtu": "1500"})
    down = make(os.path.join(folder, "down"), {PORT + "state": "1: DOWN", PORT + "phys_state": "2: Polling"})
    for root, status, word in ((good, 0, "0 errors, 0 warnings"), (slow, 1, "mtu-small"), (down, 2, "port-down")):
        result = run("--root", root)
        tap.ok(result.returncode == status and word in result.stdout, "status %d: %s" % (status, word), result.stdout)
        quiet = run("--root", root, "--quiet")
        tap.ok(quiet.returncode == status and not quiet.stdout and not quiet.stderr, "quiet: nothing but the status")
    text = run("--root", down).stdout
    tap.ok(text.startswith("error"), "the worst comes first", text)
    tap.ok(max(len(line) for line in text.splitlines()[:-1]) <= 100, "lines are broken")
    tap.ok(run("--root", down, "--only", "mtu-small,gid-missing").returncode == 0, "--only leaves the rest out")
    skipped = run("--root", down, "--skip", "port-down", "--skip", "tcp-fallback")
    tap.ok(skipped.returncode == 0 and "port-down" not in skipped.stdout, "--skip leaves these out", skipped.stdout)
    tap.ok("gid-subnet" not in run("--root", good).stdout, "what is well is not told")
    verbose = run("--root", good, "--verbose", "--peer", "10.0.0.2").stdout
    tap.ok("gid-subnet  10.0.0.2: in one subnet with mlx5_0:1" in verbose, "but with --verbose", verbose)
    far = run("--root", good, "-p", "10.0.0.2", "-p", "10.9.0.0/16", "--only", "gid-subnet")
    tap.ok(far.returncode == 1 and "10.9.0.0/16" in far.stdout, "two peers, one out of reach", far.stdout)


def check_json(folder: str) -> None:
    root = make(os.path.join(folder, "json"), {PORT + "state": "1: DOWN"})
    result = run("--root", root, "--json")
    report = json.loads(result.stdout)
    findings: List[Dict[str, str]] = report["findings"]
    tap.ok(result.returncode == report["status"] == 2 and report["errors"] == 2, "JSON: the status", result.stdout)
    tap.ok(report["root"] == root and report["host"].startswith('host-"a"'), "JSON: host and root")
    down = [f for f in findings if f["id"] == "port-down"]
    tap.ok(len(down) == 1 and down[0]["severity"] == "error" and down[0]["subject"] == "mlx5_0:1", "JSON: the finding")
    tap.ok(all(f["cause"] and (f["remedy"] or f["severity"] in ("ok", "skipped")) for f in findings), "JSON: cause, remedy")
    here = json.loads(run("--json").stdout)
    tap.ok(here["root"] is None and len(here["findings"]) >= len({f["id"] for f in findings}), "JSON: this machine")


def run_hosts(ranks: int, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GRADSYNC_", "NCCL_"))}
    command = [LAUNCHER, "-n", str(ranks), "--output", "raw", "--", TOOL, "--hosts", "--seconds", "0.05", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**environment, **variables}, timeout=100)


def check_hosts() -> None:
    """Ranks of one machine stand for hosts, and TCP for RDMA."""
    for ranks, pairs in ((2, 1), (3, 3), (5, 5)):
        result = run_hosts(ranks, "--json", GRADSYNC_TRANSPORT="tcp", GRADSYNC_IFNAME="lo")
        try:
            report = json.loads(result.stdout)
        except ValueError:
            tap.ok(False, "%d hosts: JSON" % ranks, result.stdout, result.stderr)
            continue
        rows = report["pairs"]
        good = [p for p in rows if p["status"] == 0 and p["latency_us"] > 0 and p["gbps"] > 0 and p["gbps_back"] > 0]
        tap.ok(len(rows) == len(good) == pairs, "%d hosts: %d pairs measured" % (ranks, pairs), result.stdout)
        meets = {(p["from"], p["to"]) for p in rows}
        tap.ok(
            len(report["hosts"]) == ranks and len(meets) == pairs and {p["rail"] for p in rows} == {"lo"},
            "%d hosts: each meets others, by the rail that is allowed" % ranks,
            str(meets),
        )
        named = [f for f in report["findings"] if f["id"] == "tcp-fallback"]
        tap.ok(named and all(f["hosts"] for f in named), "%d hosts: findings say where" % ranks, str(named))
    text = run_hosts(2, "--only", "rail-failed,rail-apart", GRADSYNC_TRANSPORT="tcp", GRADSYNC_IFNAME="lo")
    tap.ok(text.returncode == 0 and "(Gb/s)" in text.stdout, "as a table", text.stdout, text.stderr)
    tap.ok(text.stdout.count("hosts: 0 errors") == 1, "one rank speaks for all", text.stdout)
    wrong = run_hosts(2, "--only", "no-such", GRADSYNC_TRANSPORT="tcp")
    tap.ok(wrong.returncode == 3 and wrong.stderr.count("there is no check") == 1, "wrong: all ranks fail", wrong.stderr)
    alone = run("--hosts")
    tap.ok(alone.returncode == 3 and "mpirun" not in alone.stdout and alone.stderr, "alone: says what to do", alone.stderr)
    one = run_hosts(1)
    tap.ok(one.returncode == 3 and "2 ranks or more" in one.stderr, "one rank is too few", one.stderr)


def check_usage(folder: str) -> None:
    cases = (
        (["--only", "no-such"], "there is no check 'no-such'"),
        (["--skip", ""], "empty"),
        (["--root", os.path.join(folder, "nowhere")], "no folder"),
        (["--peer", "host-b"], "no address"),
        (["--peer"], "needs a value"),
        (["--frobnicate"], "unknown option"),
        (["extra"], "unexpected argument"),
        (["--hosts", "--root", folder], "does not go with --root"),
        (["--seconds", "0"], "--seconds '0'"),
        (["--timeout", "x"], "--timeout 'x'"),
    )
    for arguments, words in cases:
        result = run(*arguments)
        tap.ok(result.returncode == 3 and words in result.stderr and not result.stdout, "wrong: %s" % arguments, result.stderr)
    tap.ok("Exit status" in run("--help").stdout and run("--version").stdout.startswith("gradsync-doctor 0."), "help, version")
    with open("/dev/full", "w", encoding="utf-8") as full:
        lost = subprocess.run([TOOL], stdout=full, stderr=subprocess.PIPE, text=True)
    tap.ok(lost.returncode == 3 and "cannot write" in lost.stderr, "output that is lost is told", lost.stderr)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        check_status(folder)
        check_json(folder)
        check_usage(folder)
    check_hosts()
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
