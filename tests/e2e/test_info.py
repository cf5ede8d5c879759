#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""gradsync-info as a user runs it: test_info.py GRADSYNC_INFO. TAP."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), ".."))
import tap  # noqa: E402

INFO = sys.argv[1]
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("GRADSYNC_")}


def run(*args, **env):
    p = subprocess.run([INFO, *args], capture_output=True, text=True, timeout=120, env={**CLEAN, **env}, check=False)
    return p.returncode, p.stdout, p.stderr


status, out, err = run("--help")
tap.ok(status == 0 and out.startswith("Usage: gradsync-info"), "--help", err)
status, out, err = run("--version")
tap.ok(status == 0 and re.match(r"gradsync-info \d+\.\d+\.\d+ ", out), "--version", err)
version = out.split("libgradsync ")[1].rstrip(")\n")
for args, says in ((["--jsn"], "unknown option '--jsn'"), (["--json=1"], "takes no value"), (["x"], "unexpected argument")):
    status, _, err = run(*args)
    tap.ok(status == 2 and says in err and "--help" in err, f"refused: {' '.join(args)}", err)

status, out, err = run()
tap.ok(status == 0 and not err, "runs", err)
for line in (
    rf"libgradsync +{re.escape(version)}$", r"cpu tier +(c|avx2|avx512|neon) ", r"numa nodes +\d+$", r"pages +\d+ KiB",
    r"rdma devices +\d+", r"  shm +usable: \S", r"environment +no GRADSYNC_ variable is set$",
):
    tap.ok(re.search("^" + line, out, re.M), f"says {line!r}", out)
cpus = re.search(r"^usable cpus +(\d+)$", out, re.M)
tap.ok(cpus and int(cpus.group(1)) == len(os.sched_getaffinity(0)), "counts the usable CPUs", out)
for line in re.findall(r"^  \w+ +not usable.*$", out, re.M):
    tap.ok(re.match(r"  \w+ +not usable: \S.{10,}", line), f"{line.split()[0]}: says why it is not usable", line)

secret = "a-secret-to-be-kept"
status, out, err = run(GRADSYNC_KEY=secret, GRADSYNC_TIMEOUT="7", GRADSYNC_KEY_FILE="/some/file")
tap.ok(status == 0 and "GRADSYNC_TIMEOUT = 7" in out and "GRADSYNC_KEY_FILE = /some/file" in out, "shows the environment", out)
tap.ok("GRADSYNC_KEY = (set, not shown)" in out and secret not in out + err, "but never the key", out)

status, out, err = run("--json", GRADSYNC_KEY=secret, GRADSYNC_TIMEOUT="7")
if "built without jansson" in err:
    tap.ok(status == 1, "without jansson, --json fails")
else:
    found = json.loads(out)
    tap.ok(status == 0 and found["library_version"] == version, "--json", err)
    tap.ok(secret not in out and found["environment"]["GRADSYNC_TIMEOUT"] == "7", "its environment, without the key")
    shm = [t for t in found["transports"] if t["name"] == "shm"]
    tap.ok(len(shm) == 1 and shm[0]["usable"] is True, "real booleans")
    tap.ok(found["usable_cpus"] == len(os.sched_getaffinity(0)) and found["page_bytes"] == os.sysconf("SC_PAGE_SIZE"), "real numbers")

# ---- Ports, distances and rails, of a machine that is a few files ----


def put(root: str, path: str, text: str) -> None:
    path = os.path.join(root, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        file.write(text + "\n")


def put_link(root: str, path: str, target: str) -> None:
    path = os.path.join(root, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(target, path)


def make_machine(root: str) -> None:
    """Two sockets; on each a GPU and a NIC behind one switch; mlx5_1's port is down."""
    for n in (0, 1):
        put(root, f"sys/devices/system/node/node{n}/distance", "10 20" if n == 0 else "20 10")
        bus = f"pci0000:{n}0/0000:{n}0:01.0/0000:{n}1:00.0"
        gpu, nic = f"{bus}/0000:{n}2:00.0/0000:{n}3:00.0", f"{bus}/0000:{n}2:01.0/0000:{n}4:00.0"
        for path, kind, vendor in ((gpu, "0x030200", "0x10de"), (nic, "0x020700", "0x15b3")):
            put(root, f"sys/devices/{path}/class", kind)
            put(root, f"sys/devices/{path}/vendor", vendor)
            put(root, f"sys/devices/{path}/numa_node", str(n))
            put_link(root, f"sys/bus/pci/devices/{os.path.basename(path)}", f"../../../devices/{path}")
        device = f"sys/devices/{nic}/infiniband/mlx5_{n}"
        put_link(root, f"{device}/device", "../..")
        put_link(root, f"sys/class/infiniband/mlx5_{n}", f"../../devices/{nic}/infiniband/mlx5_{n}")
        put(root, f"sys/class/infiniband_verbs/uverbs{n}/ibdev", f"mlx5_{n}")
        put(root, f"dev/infiniband/uverbs{n}", "")
        put(root, f"{device}/fw_ver", "28.39.1002")
        port = f"{device}/ports/1"
        put(root, f"{port}/state", "4: ACTIVE" if n == 0 else "1: DOWN")
        put(root, f"{port}/phys_state", "5: LinkUp" if n == 0 else "2: Polling")
        put(root, f"{port}/rate", "400 Gb/sec (4X NDR)")
        put(root, f"{port}/link_layer", "InfiniBand")
        put(root, f"{port}/lid", f"0x{n + 7}")
        put(root, f"{port}/gids/0", f"fe80:0000:0000:0000:0000:0000:0000:000{n + 1}")


with tempfile.TemporaryDirectory() as machine:
    make_machine(machine)
    status, out, err = run("--rails", "--topo", "--root", machine)
    tap.ok(status == 0 and not err and not re.search(r" $", out, re.M), "--rails --topo of another machine", err)
    for line in (
        r"  mlx5_0:1     ACTIVE \(LinkUp\), InfiniBand, 400 Gb/s, LID 7,",
        r"    card 0000:04:00.0, NUMA node 0, firmware 28.39.1002, /dev/infiniband/uverbs0$",
        r"    PCI path pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:04:00.0$",
        r"    GID 0: fe80::1/64 \(IB\)$",
        r"distances      GPU0    GPU1    node0   node1$",
        r"  mlx5_0:1     switch  far     node    far$",
        r"  mlx5_1:1     far     switch  far     node$",
        r"  rank 0, GPU0 0000:03:00.0: mlx5_0:1 \(switch, shared\)$",
        r"  rank 1, GPU1 0000:13:00.0: mlx5_0:1 \(far, shared\)$",
        r"  mlx5_1:1     not used: it is DOWN \(physical state Polling\); check the cable",
    ):
        tap.ok(re.search("^" + line, out, re.M), f"says {line!r}", out)
    status, out, err = run("--rails", "--root", machine, "--memory", "gpu1,node0,0000:03:00.0,-", "--rank", "1")
    tap.ok(status == 0 and "rails of 4 local ranks" in out and "why, for rank 1" in out, "--memory and --rank", out + err)
    status, out, err = run("--rails", "--root", machine, GRADSYNC_HCA="^mlx5_0")
    tap.ok(status == 0 and "GRADSYNC_HCA excludes it (^mlx5_0)" in out and "rank 0, GPU0 0000:03:00.0: none" in out,
           "no rail, and why", out + err)
    status, out, err = run("--topo", "--root", machine, NCCL_TOPO_FILE="/nowhere")
    tap.ok(status == 1 and "/nowhere" in err and not out, "a topology file that is not there is an error", err)
    status, out, err = run("--rails", "--json", "--root", machine)
    if "built without jansson" not in err:
        found = json.loads(out)
        tap.ok(status == 0 and [p["state"] for p in found["ports"]] == ["ACTIVE", "DOWN"], "--rails --json", err)
        tap.ok(found["ranks"][0]["rails"][0]["port"] == "mlx5_0:1" and found["ranks"][1]["not_used"][0]["usable"] is False,
               "rails and the others of every rank")
        tap.ok(found["distances"][1]["gpus"] == ["far", "switch"] and found["gpus"][1]["pci"] == "0000:13:00.0", "distances")
        tap.ok(found["ports"][0]["rate_mbps"] == 400000 and found["ports"][0]["gids"][0]["gid"] == "fe80::1", "numbers, GIDs")
for args in (["--memory", "gpu0"], ["--rank", "0"], ["--root", "/"], ["--rails", "--rank", "x"], ["--rails", "--rank", "99999"],
             ["--rails", "--memory", "gpu99"], ["--rails", "--memory", "over there"], ["--rails", "--memory", ","]):
    status, out, err = run(*args)
    tap.ok(status == 2 and not out and "--help" in err, f"refused: {' '.join(args)}", err)
status, out, err = run("--rails")
tap.ok(status == 0 and out.startswith("ports"), "--rails of this machine", out + err)

with open("/dev/full", "wb") as full:
    p = subprocess.run([INFO], stdout=full, stderr=subprocess.PIPE, timeout=120, check=False)
tap.ok(p.returncode == 1 and b"cannot write standard output" in p.stderr, "a full disk is an error")
sys.exit(tap.done())
