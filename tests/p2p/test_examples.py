#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The short examples as a user runs them: test_examples.py GRADSYNC_RUN PARAMETER_SERVER PIPELINE."""
from __future__ import annotations

import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import tap  # noqa: E402

LAUNCHER, SERVER, PIPELINE = sys.argv[1:4]
HANG_S = 120  # nothing here takes that long


class Run:
    def __init__(self, ranks: int, *command: str) -> None:
        whole = ([LAUNCHER, "-n", str(ranks)] if ranks else []) + list(command)
        try:
            p = subprocess.run(whole, capture_output=True, text=True, timeout=HANG_S)
            self.status, self.out, self.err = p.returncode, p.stdout, p.stderr
        except subprocess.TimeoutExpired as hung:
            self.status, self.out, self.err = -1, "", "hung: %s" % hung
        found = re.search(r"([0-9.]+) % of [0-9]+ test images after ([0-9]+) epochs", self.out)
        self.accuracy = float(found.group(1)) if found else 0.0
        self.epochs = int(found.group(2)) if found else 0

    def check(self, good: bool, name: str) -> bool:
        why = [] if good else ["status %s" % self.status] + (self.out + self.err).splitlines()[-20:]
        return bool(tap.ok(good, name, *why))


def check_training() -> None:
    accuracies = []
    for ranks in (2, 3, 4):
        run = Run(ranks, SERVER)
        run.check(run.status == 0 and run.accuracy > 90, "a server and %d workers: %.2f %%" % (ranks - 1, run.accuracy))
        accuracies.append(run.accuracy)
    # The same batches in other shares: only the order of additions differs.
    tap.ok(max(accuracies) - min(accuracies) < 2, "any number of workers learns the same", str(accuracies))
    run = Run(4, PIPELINE)
    run.check(run.status == 0 and run.accuracy > 90, "a pipeline of four stages: %.2f %%" % run.accuracy)
    # Long batches: messages of more than one chunk of staging memory, and shares that do not divide.
    run = Run(4, PIPELINE, "--batch", "1021", "--epochs", "3", "--require", "0")
    run.check(run.status == 0 and run.epochs == 3, "batches of 1021 images go through it too")


def check_options() -> None:
    for program in (SERVER, PIPELINE):
        name = os.path.basename(program)
        run = Run(0, program, "--help")
        run.check(run.status == 0 and "--epochs" in run.out and "gradsync-run -n 4" in run.out, "%s --help" % name)
        run = Run(0, program, "--epochs", "0")
        run.check(run.status == 2 and "--epochs 0" in run.err, "%s --epochs 0 is refused" % name)
        run = Run(0, program, "--wrong")
        run.check(run.status == 2, "%s --wrong is refused" % name)
        run = Run(0, program, "--data", "/nowhere/digits.csv")
        run.check(run.status == 1 and "/nowhere/digits.csv" in run.err, "%s says which data it misses" % name)
        run = Run(4, program, "--epochs", "1", "--lr", "0", "--require", "90")
        run.check(run.status == 1 and "below the required" in run.err, "%s fails if it has not learnt" % name)
    run = Run(1, SERVER)
    run.check(run.status == 1 and "needs a server and a worker" in run.err, "a server alone is refused")
    run = Run(3, PIPELINE)
    run.check(run.status == 1 and "gradsync-run -n 4" in run.err, "a pipeline of three is refused")


def main() -> int:
    check_training()
    check_options()
    return int(tap.done())


if __name__ == "__main__":
    sys.exit(main())
