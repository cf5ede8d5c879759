#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""gradsync-perf as a user runs it: test_perf.py GRADSYNC_PERF GRADSYNC_RUN PERF_WITH_DEFECTS. TAP."""
from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), ".."))
import tap  # noqa: E402

PERF, RUN, DEFECTS = map(os.path.abspath, sys.argv[1:4])
HANG_S = 240  # nothing here takes that long; what does hangs
NOISE = ("GRADSYNC_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(NOISE)}
TYPES = ["int8", "uint8", "int32", "uint32", "int64", "uint64", "half", "float", "double", "bfloat16"]
FLOATS = TYPES[6:]
OPS = ["sum", "prod", "max", "min", "avg", "mulsum"]
QUICK = ["-n", "2", "-w", "0"]


def run(*args, program=PERF, before=(), **env):
    """To its end: (status, stdout, stderr)."""
    try:
        p = subprocess.run(
            [*before, program, *args], capture_output=True, text=True, timeout=HANG_S, env={**CLEAN, **env}, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        return None, "", "hung"
    return p.returncode, p.stdout, p.stderr


def table(out):
    """The rows of a table, as lists of words."""
    return [line.split() for line in out.splitlines() if line and not line.startswith("#")]


def test_options():
    status, out, err = run("--help")
    tap.ok(status == 0 and out.startswith("Usage: gradsync-perf"), "--help", err)
    status, out, err = run("--version")
    tap.ok(status == 0 and re.match(r"gradsync-perf \d+\.\d+\.\d+ ", out), "--version", err)
    for args, says in (
        (["--rank"], "needs a value"),
        (["--fast"], "unknown option '--fast'"),
        (["-k"], "unknown option '-k'"),
        (["x"], "unexpected argument 'x'"),
        (["-b", "1X"], "-b '1X' is wrong"),
        (["-b", "2M", "-e", "1M"], "larger than the largest"),
        (["-b", "1M", "-e", "2M", "-i", "0"], "never gets from"),
        (["-o", "xor"], "-o 'xor' is wrong"),
        (["-d", "int4"], "-d 'int4' is wrong"),
        (["-d", "f8e4m3"], "UNSUPPORTED: this version of libgradsync has no 8-bit floating types"),
        (["-o", "mulsum", "-d", "int32"], "floating types only"),
        (["-c", "2"], "-c '2' is wrong"),
        (["-n", "0"], "-n '0' is wrong"),
        (["--coll", "alltoall"], "no all-to-all"),
        (["--coll", "gossip"], "all_reduce, reduce_scatter"),
        (["--algo", "magic"], "--algo 'magic' is wrong"),
        (["--transport", "pigeon"], "auto, shm, verbs or tcp"),
        (["--rails", "mlx5_0"], "uses no network rails"),
        (["--memory", "gpu"], "library, plain or remap"),
        (["--plot", "x.jpg"], ".svg or .png"),
        (["--ranks", "0"], "--ranks '0' is wrong"),
        (["--ranks", "2", "--coll", "reduce", "-r", "2"], "-r 2 is no rank"),
    ):
        status, out, err = run(*args)
        tap.ok(status == 2 and says in err and "Try 'gradsync-perf --help'" in err and not out, f"refused: {' '.join(args)}", err)


def test_table():
    status, out, err = run("--ranks", "2", "-b", "8", "-e", "4K", "-f", "8", *QUICK)
    lines = out.splitlines()
    tap.ok(status == 0 and not err, "two ranks", out, err)
    tap.ok(all(line.startswith("#") or re.match(r" *\d", line) for line in lines), "headers begin with #")
    tap.ok(sum(bool(re.match(r"#  Rank +[01] Group +0 Pid +\d+ on +\S+ device", line)) for line in lines) == 2, "the ranks", out)
    tap.ok(any(re.match(r"# Transport: shm, rails: 0", line) for line in lines), "transport and rails", out)
    rows = [line for line in lines if line and not line.startswith("#")]
    width = 12 + 2 + 12 + 2 + 8 + 2 + 6 + 2 + 6
    place = 2 + 7 + 2 + 6 + 2 + 6 + 2 + 6
    columns = re.compile(r" *\d+   *\d+  +float  +sum  +-1$")
    tap.ok(
        len(rows) == 4 and all(columns.match(r[:width]) and len(r) == width + 2 * place + 2 + 7 + 2 + 8 for r in rows), "columns", out
    )
    words = table(out)
    tap.ok([r[0] for r in words] == ["8", "64", "512", "4096"] and [r[1] for r in words] == ["2", "16", "128", "1024"], "sizes", out)
    # What scripts for nccl-tests read: time, algbw, busbw, #wrong, twice, from the sixth column on.
    tap.ok(all(float(r[k]) > 0 and r[k + 3] == "0" for r in words for k in (5, 9)) and all(len(r) == 15 for r in words), "values", out)
    tap.ok("# Out of bounds values : 0 OK" in lines and re.search(r"^# Avg bus bandwidth    : [\d.e+-]+$", out, re.M), "footer", out)
    big = table(run("--ranks", "4", "-b", "4M", "-e", "4M", "-n", "3", "-c", "0")[1])[0]
    tap.ok(abs(float(big[6]) - 4194304 / float(big[5]) / 1e3) < 0.02, "algbw is size / time", str(big))
    tap.ok(abs(float(big[7]) - float(big[6]) * 1.5) < 0.02, "busbw of all_reduce is 2 (n - 1) / n of it", str(big))
    tap.ok(big[8] == big[12] == "N/A", "-c 0: not checked")
    status, out, err = run("--ranks", "2", "-b", "1K", "-e", "3K", "-i", "1K", "-N", "2", "-I", "1", "-C", "1", *QUICK)
    words = table(out)
    tap.ok(status == 0 and [r[0] for r in words] == ["1024", "2048", "3072"] * 2, "-i and -N", out, err)
    tap.ok(all(len(r) == 23 for r in words) and "i_cv%" in out and "cputime" in out, "-I adds columns, -C names its", out)
    tap.ok(all(float(r[9]) <= float(r[11]) <= float(r[10]) for r in words), "min <= p99 <= max", out)
    status, out, err = run("--ranks", "3", "--coll", "all_gather", "-b", "8", "-e", "128", "-f", "2", *QUICK)
    tap.ok(status == 0 and [r[0] for r in table(out)] == ["0", "12", "24", "60", "120"], "slices are whole elements", out, err)
    with open("/dev/full", "wb") as full:
        p = subprocess.run(
            [PERF, "-b", "8", "-e", "8", *QUICK], stdout=full, stderr=subprocess.PIPE, timeout=HANG_S, env=CLEAN, check=False
        )
    tap.ok(p.returncode == 1 and b"cannot write standard output" in p.stderr, "a full disk is an error", p.stderr.decode())


def test_everything():
    """All collectives, types and operations; sizes that do not divide; a root that is not 0."""
    for n in (1, 3, 4):
        for coll in ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "barrier"):
            reduces = coll in ("all_reduce", "reduce_scatter", "reduce")
            rows = 1 if coll == "barrier" else 3 * (len(TYPES) * len(OPS) - len(TYPES) + len(FLOATS) if reduces else len(TYPES))
            status, out, err = run(
                "--ranks", str(n), "--coll", coll, "-b", "24", "-e", "130K", "-f", "73", "-d", "all", "-o", "all", "-r", str(n - 1), *QUICK
            )
            found = table(out)
            tap.ok(
                status == 0 and len(found) == rows and all(r[8] == r[12] == "0" for r in found),
                f"{coll}, {n} ranks: every type and operation",
                "\n".join(out.splitlines()[-5:]),
                err,
            )


def test_variants():
    for args in (
        ["-z", "0"], ["-m", "4"], ["--memory", "plain"], ["--memory", "plain", "-R", "1"], ["--memory", "remap"], ["--ordered"],
        ["--transport", "shm"], ["-a", "0"], ["-a", "3"], ["-T", "60"],
    ):
        status, out, err = run("--ranks", "3", "-b", "100", "-e", "1000000", "-f", "100", *QUICK, *args)
        tap.ok(status == 0 and len(table(out)) == 3 and "0 OK" in out, " ".join(args), out, err)
    for algo in ("oneshot", "direct", "staged", "ring", "tree", "doubling", "pairwise"):
        status, out, err = run("--ranks", "3", "-b", "4K", "-e", "4K", "--algo", algo, *QUICK)
        good = status == 0 and len(table(out)) == 1 and "0 OK" in out
        # Not every version has every algorithm: then it says so, and does not hang.
        tap.ok(good or (status == 1 and "UNSUPPORTED: " in err), f"--algo {algo}", out, err)
    for name in ("verbs", "tcp"):
        status, out, err = run("--ranks", "2", "-b", "8", "-e", "8", "--transport", name, *QUICK)
        tap.ok(status == 0 or (status == 1 and re.search(r"failed: (UNSUPPORTED|INVALID): \S", err)), f"--transport {name}", out, err)
    status, out, err = run("-b", "1K", "-e", "1K", *QUICK, before=[RUN, "-n", "3", "--output", "raw", "--"])
    tap.ok(status == 0 and "# nRanks 3 " in out and len(table(out)) == 1, "under gradsync-run", out, err)


    status, out, err = run("--ranks", "2", "-b", "4096G", "-e", "4096G", *QUICK)
    tap.ok(status == 1 and "give a smaller -e" in err and not table(out), "more memory than there is", out, err)


def test_files():
    with tempfile.TemporaryDirectory() as folder:
        names = {kind: f"{folder}/x.{kind}" for kind in ("json", "csv", "svg", "png")}
        base = ["--ranks", "2", "-b", "1K", "-e", "256K", "-f", "4", *QUICK]
        status, out, err = run(*base, "--json", names["json"], SOME_SECRET="not-for-files")
        if "built without jansson" in err:
            tap.skip("--json", "built without jansson")
        else:
            with open(names["json"], encoding="utf-8") as f:
                text = f.read()
            found = json.loads(text)
            rows = found["results"]
            tap.ok(status == 0 and len(rows) == len(table(out)) == 5, "--json", err)
            tap.ok(found["config"]["validation"] is True and found["out_of_bounds"] == {"count": 0, "okay": True}, "real booleans")
            tap.ok(
                all(isinstance(r[p]["bus_bw"], float) and r[p]["nwrong"] == 0 and len(r[p]["rank_times_us"]) == 2
                    for r in rows for p in ("in_place", "out_of_place")),
                "real numbers",
            )
            tap.ok(
                all(abs(r["in_place"]["time"] - float(w[9])) <= 0.01 * r["in_place"]["time"] for r, w in zip(rows, table(out))),
                "the table's times",
            )
            tap.ok("not-for-files" not in text and "SOME_SECRET" not in text, "nothing of the environment")
            tap.ok([d["rank"] for d in found["devices"]] == [0, 1], "the ranks")
        status, out, err = run(*base, "--csv", names["csv"])
        with open(names["csv"], encoding="utf-8", newline="") as f:
            rows = list(csv.DictReader(f))
        tap.ok(
            status == 0 and len(rows) == 10 and {r["placement"] for r in rows} == {"in_place", "out_of_place"}
            and all(float(r["time_us"]) > 0 and None not in r.values() for r in rows),
            "--csv",
            err,
        )
        # fontconfig keeps what it has allocated: not ours for a leak checker to count.
        with open(folder + "/lsan", "w", encoding="utf-8") as f:
            f.write("leak:libfontconfig\n")
        for kind in ("svg", "png"):
            status, _, err = run(*base, "-d", "all", "--plot", names[kind], LSAN_OPTIONS=f"suppressions={folder}/lsan:print_suppressions=0")
            if "built without cairo" in err:
                tap.ok(status == 1, "without cairo, --plot fails")
                continue
            with open(names[kind], "rb") as f:
                picture = f.read()
            good = xml.etree.ElementTree.fromstring(picture).tag.endswith("svg") if kind == "svg" else picture[:8] == b"\x89PNG\r\n\x1a\n"
            tap.ok(status == 0 and good and len(picture) > 5000, f"--plot of {kind}", err)
        status, out, err = run("--ranks", "2", "--csv", folder + "/no/such/file", *QUICK)
        tap.ok(status == 1 and "cannot write" in err and "No such file" in err and not table(out), "an unwritable file is said first", err)
        status, out, err = run("--ranks", "2", "-b", "8", "-e", "8", "--csv", "/dev/full", *QUICK)
        tap.ok(status == 1 and "cannot write '/dev/full': No space left" in err, "a full disk is an error", err)
        with open(names["csv"], "w", encoding="utf-8") as f:
            f.write("old\n")
        fresh = folder + "/fresh.csv"
        for name in (names["csv"], fresh):
            status, _, err = run("--ranks", "2", "-b", "8", "-e", "8", "--csv", name, *QUICK, program=DEFECTS, TEST_DEFECT="die")
            tap.ok(status != 0, "a run that fails", err)
        with open(names["csv"], encoding="utf-8") as f:
            tap.ok(f.read() == "old\n", "leaves an older file as it was")
        tap.ok(not os.path.exists(fresh), "and no empty file")


def test_verification():
    base = ["--ranks", "3", "-b", "4K", "-e", "4K", *QUICK]
    status, out, err = run(*base, program=DEFECTS)
    tap.ok(status == 0 and "0 OK" in out, "without a defect all is well", out, err)
    for defect, wrong, bounds in (
        ("value", ("1", "1"), "2 FAILED"),
        ("input", ("1", "0"), "1 FAILED"),
        ("behind", ("0", "0"), "2 FAILED"),
        ("before", ("0", "0"), "2 FAILED"),
    ):
        status, out, err = run(*base, program=DEFECTS, TEST_DEFECT=defect)
        rows = table(out)
        tap.ok(
            status == 3 and len(rows) == 1 and (rows[0][8], rows[0][12]) == wrong and f"# Out of bounds values : {bounds}" in out,
            f"a defect is found: {defect}",
            out,
            err,
        )
    status, out, err = run(*base, "-c", "0", program=DEFECTS, TEST_DEFECT="value")
    tap.ok(status == 0 and "not checked" in out, "but not with -c 0", out, err)


def test_ends():
    status, out, err = run("--ranks", "3", "-b", "4K", "-e", "4K", *QUICK, program=DEFECTS, TEST_DEFECT="die")
    tap.ok(status == 137 and "was killed by SIGKILL" in err, "a rank that is killed ends the run", out, err)
    tap.ok(len(re.findall(r"rank [02]: .*: PEER_LOST: ", err)) == 2, "the others tell why", err)
    p = subprocess.Popen(
        [PERF, "--ranks", "2", "-b", "1K", "-e", "1K", "-N", "0", *QUICK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=CLEAN
    )
    seen = ""
    while len(table(seen)) < 3:
        line = p.stdout.readline()
        if not line:
            break
        seen += line
    p.send_signal(signal.SIGINT)
    try:
        out, err = p.communicate(timeout=HANG_S)
    except subprocess.TimeoutExpired:
        p.kill()
        out, err = "", "hung"
    tap.ok(p.returncode == 0 and "# Avg bus bandwidth" in out and "stopped by a signal" in out, "-N 0 runs until SIGINT", seen + out, err)


for test in (test_options, test_table, test_everything, test_variants, test_files, test_verification, test_ends):
    test()
sys.exit(tap.done())
