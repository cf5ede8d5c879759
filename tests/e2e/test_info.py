#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""gradsync-info as a user runs it: test_info.py GRADSYNC_INFO. TAP."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys

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

with open("/dev/full", "wb") as full:
    p = subprocess.run([INFO], stdout=full, stderr=subprocess.PIPE, timeout=120, check=False)
tap.ok(p.returncode == 1 and b"cannot write standard output" in p.stderr, "a full disk is an error")
sys.exit(tap.done())
