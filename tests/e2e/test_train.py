#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The trainer of the examples as a user runs it: test_train.py TRAIN_DIGITS [GRADSYNC_RUN]."""

import array
import gzip
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import tap  # noqa: E402

TRAIN = sys.argv[1]
LAUNCHER = sys.argv[2] if len(sys.argv) > 2 else None
# Nothing here takes that long; what does hangs.
HANG_S = 240
# Sums of another shape round in another way: weights of about 0.1 end up to 1e-6 apart, measured.
ROUNDING_ABS, ROUNDING_REL = 2e-5, 5e-6



def check(good, name, why=""):
    return tap.ok(good, name, *([] if good else str(why).splitlines()[-20:]))


class Run:
    """One run to its end: status, output, its summary, and the weights if any were saved."""

    def __init__(self, *args, save=None, before=()):
        command = [*before, TRAIN, *args, "--json"] + (["--save", save] if save else [])
        try:
            p = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
            self.status, self.out, self.err = p.returncode, p.stdout, p.stderr
        except subprocess.TimeoutExpired as hung:
            self.status, self.out, self.err = None, "", f"hung: {hung}"
        self.summary = {}
        for line in self.out.splitlines():
            # A launcher may put the rank in front of each line.
            found = re.search(r"\{.*\}$", line)
            if found and '"event": "summary"' in line:
                self.summary = json.loads(found.group())
        self.bytes = b""
        if save and os.path.exists(save):
            with open(save, "rb") as f:
                self.bytes = f.read()
            os.unlink(save)

    def accurate(self):
        return self.status == 0 and self.summary.get("test_accuracy", 0) > 95

    def why(self):
        return f"status {self.status}\n{self.err}\n{self.summary}"

    def weights(self):
        values = array.array("f")
        values.frombytes(self.bytes)
        return values

    def sha256(self):
        return hashlib.sha256(self.bytes).hexdigest() if self.bytes else None


def distance(a, b):
    """The largest difference, and the length of the difference by that of b."""
    if len(a) != len(b) or not b:
        return math.inf, math.inf
    largest = max(abs(x - y) for x, y in zip(a, b))
    return largest, math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)) / sum(y * y for y in b))


def near(a, b):
    largest, relative = distance(a, b)
    tap.note(f"largest difference {largest:.3g}, relative {relative:.3g}")
    return largest < ROUNDING_ABS and relative < ROUNDING_REL


def test_ranks(save):
    one = Run("--ranks", "1", "--check", save=save)
    check(one.accurate(), "1 rank learns the digits: over 95 %", one.why())
    check(one.summary.get("ranks") == 1, "the summary tells the number of ranks", one.summary)
    again = Run("--ranks", "1", save=save)
    check(again.sha256() == one.sha256() is not None, "1 rank: the same bits on every run", again.why())
    for n in 2, 4, 7:
        many = Run("--ranks", str(n), "--check", save=save)
        check(many.accurate(), f"{n} ranks learn them too, and end with the same weights", many.why())
        check(many.summary.get("transport") not in (None, "self"), f"{n} ranks: the transport is told", many.summary)
        check(near(many.weights(), one.weights()), f"{n} ranks end where 1 ends, to rounding", many.why())
    return one


def test_odd_batches(save):
    """Shares of other sizes, and of none."""
    for batch, n in ("61", 4), ("3", 4), ("2000", 3):
        args = ("--batch", batch, "--epochs", "1", "--lr", "0.02")
        one, many = Run("--ranks", "1", *args, save=save), Run("--ranks", str(n), *args, "--check", save=save)
        check(
            many.status == 0 and near(many.weights(), one.weights()),
            f"batches of {batch} images on {n} ranks give the weights of 1 rank, to rounding",
            one.why() + many.why(),
        )


def test_ordered(save):
    first, second = (Run("--ranks", "4", "--ordered", "--check", save=save) for _ in range(2))
    check(first.accurate(), "ordered: over 95 %", first.why())
    check(first.sha256() == second.sha256() is not None, "ordered: the same bits on every run", second.why())
    # Small layers: oneshot takes no large ones.
    args = ("--ranks", "4", "--ordered", "--epochs", "3", "--hidden", "16,8", "--check")
    reference = Run(*args, save=save)
    for algo in "oneshot", "direct", "staged", "ring", "doubling", "pairwise":
        run = Run(*args, "--algo", algo, save=save)
        same = run.sha256() == reference.sha256() is not None
        check(same and run.summary.get("last_algo") == algo, f"ordered: {algo} gives the same bits", run.why())
    run = Run(*args, "--algo", "tree")
    refused = run.status == 1 and not run.summary and "UNSUPPORTED" in run.err and "tree" in run.err
    check(refused, "ordered: tree, which cannot do it, says so", run.why())
    run = Run("--ranks", "4", "--algo", "tree", "--check")
    check(run.accurate() and run.summary.get("last_algo") == "tree", "tree without ordered: over 95 %", run.why())


def test_variants(save, one):
    run = Run("--ranks", "4", "--dtype", "bf16", "--check")
    check(run.accurate(), "bf16 gradients: over 95 %", run.why())
    run = Run("--ranks", "4", "--memory", "plain", "--check", save=save)
    check(run.accurate() and near(run.weights(), one.weights()), "plain memory: over 95 %, same weights", run.why())
    run = Run("--ranks", "3", "--dtype", "bf16", "--memory", "plain", "--ordered", "--check")
    check(run.accurate(), "bf16, plain memory and ordered together", run.why())
    run = Run("--epochs", "1")
    check(run.status == 0 and run.summary.get("ranks") == 1, "without a launcher it runs alone", run.why())
    if LAUNCHER:
        run = Run("--check", save=save, before=(LAUNCHER, "-n", "3", "--"))
        check(
            run.accurate() and run.summary.get("ranks") == 3 and near(run.weights(), one.weights()),
            "started by gradsync-run",
            run.why() + run.out[-1000:],
        )
    else:
        tap.skip("started by gradsync-run", "it is not built")


def test_compare(save, folder, one):
    saved = os.path.join(folder, "saved")
    with open(saved, "wb") as f:
        f.write(one.bytes)
    run = Run("--ranks", "2", "--compare", saved, "--tolerance", str(ROUNDING_ABS), save=save)
    largest, relative = distance(run.weights(), one.weights())
    told = run.summary.get("compared", {})
    check(
        run.status == 0
        and math.isclose(told.get("max_abs", -1), largest, rel_tol=1e-4, abs_tol=1e-12)
        and math.isclose(told.get("relative", -1), relative, rel_tol=1e-4, abs_tol=1e-12),
        "--compare tells the distance between weights",
        f"{told} {largest} {relative}\n{run.why()}",
    )
    run = Run("--ranks", "2", "--seed", "2", "--epochs", "1", "--compare", saved, "--tolerance", "1e-4")
    check(run.status == 1 and "differs" in run.err, "--tolerance fails on other weights", run.why())
    run = Run("--ranks", "2", "--epochs", "1", "--require", "99.9")
    check(run.status == 1 and "below" in run.err, "--require fails on too low an accuracy", run.why())


def fails_with(run, status, *words):
    return run.status == status and all(word in run.err for word in words) and not run.summary


def test_errors(folder):
    run = Run("--ranks", "4", "--data", os.path.join(folder, "absent"))
    check(fails_with(run, 1, "absent", "No such file", "--data"), "no data file: a clear error", run.why())
    check(run.err.count("absent") == 1, "and only once", run.why())
    run = Run("--data", folder)
    check(fails_with(run, 1, folder), "a folder for data: an error", run.why())

    data = os.path.join(folder, "data")
    row = ",".join(["0"] * 64)
    for name, text, words in (
        ("a pixel too bright", f"{row},1\n17{row[1:]},1\n", ["line 2"]),
        ("a label too large", f"{row},10\n", ["line 1"]),
        ("a pixel too few", f"{row}\n", ["line 1"]),
        ("a column too many", f"{row},1,1\n", ["line 1"]),
        ("no number", f"{row},one\n", ["line 1"]),
        ("a very long line", f"{row},{' ' * 4096}1\n", ["line 1"]),
        ("too few images", f"{row},1\n", ["1 images"]),
        ("nothing", "", ["0 images"]),
    ):
        with open(data, "w", encoding="ascii") as f:
            f.write(text)
        run = Run("--data", data)
        check(fails_with(run, 1, data, *words), f"bad data, {name}: an error", run.why())
    whole = gzip.compress("".join(f"{row},{i % 10}\n" for i in range(50)).encode())
    with open(data, "wb") as f:
        f.write(whole)
    run = Run("--data", data, "--epochs", "1", "--ranks", "2")
    check(run.status == 0 and run.summary, "a small file of one's own is fine", run.why())
    with open(data, "wb") as f:
        f.write(whole[:-12])
    run = Run("--data", data)
    check(fails_with(run, 1, data), "a file that is cut short: an error", run.why())

    run = Run("--epochs", "1", "--save", os.path.join(folder, "absent", "weights"))
    check(fails_with(run, 1, "cannot write"), "weights that cannot be saved: an error", run.why())
    for args in (
        ["--ranks", "0"],
        ["--ranks", "-1"],
        ["--epochs", "x"],
        ["--batch", ""],
        ["--lr", "nan"],
        ["--dtype", "f8"],
        ["--algo", "best"],
        ["--memory", "gpu"],
        ["--hidden", "64,"],
        ["--seed", "-1"],
        ["--tolerance", "1"],
        ["--unknown"],
        ["surplus"],
    ):
        run = Run(*args)
        check(fails_with(run, 2, "--help"), f"wrong usage: {' '.join(args)}", run.why())
    run = Run("--help")
    check(run.status == 0 and "usage: train_digits" in run.out, "--help", run.why())
    run = Run("--version")
    check(run.status == 0 and re.search(r"libgradsync \d+\.\d+\.\d+", run.out), "--version", run.why())


def parent_of(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
        return int(f.read().rpartition(")")[2].split()[1])


def test_killed_rank():
    """The survivors name the rank that died, whichever it is."""
    for victim in 2, 0:
        name = f"rank {victim} of 4 killed while training"
        args = [TRAIN, "--ranks", "4", "--json", "--epochs", "1000000"]
        p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        pids = []
        for line in p.stdout:
            event = json.loads(line)
            pids = event.get("pids", pids)
            if event["event"] == "epoch":
                break
        told = len(pids) == 4 and all(pid > 1 and parent_of(pid) == p.pid for pid in pids)
        check(told, f"{name}: it trains, and tells its processes", pids)
        os.kill(pids[victim] if told else p.pid, signal.SIGKILL)
        try:
            _, err = p.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            p.kill()
            _, err = p.communicate()
            err += "\nhung"
        check(p.returncode == 1, f"{name}: the whole fails", f"status {p.returncode}\n{err}")
        named = set()
        for line in err.splitlines():
            # A rank that posts its next bucket after the loss is told that, with the cause in brackets.
            found = re.match(r"train_digits: rank (\d+): .*?: (?:BROKEN: .*\()?PEER_LOST: (.*)", line)
            if found and re.search(rf"\brank {victim}\b", found.group(2)):
                named.add(int(found.group(1)))
        check(named == {0, 1, 2, 3} - {victim}, f"{name}: every other rank says who is lost", err)
        check(f"rank {victim} (pid {pids[victim] if told else 0}) was killed by signal 9" in err, f"{name}: and why", err)


def main():
    for name in [name for name in os.environ if name.startswith("GRADSYNC_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as folder:
        save = os.path.join(folder, "weights")
        one = test_ranks(save)
        test_odd_batches(save)
        test_ordered(save)
        test_variants(save, one)
        test_compare(save, folder, one)
        test_errors(folder)
        test_killed_rank()
    return tap.done()


sys.exit(main())
