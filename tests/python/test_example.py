# SPDX-License-Identifier: Apache-2.0
"""examples/train_digits.py, as its docstring says to run it."""
from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import unittest

from harness import HERE, launcher

try:
    import numpy as np
except ImportError:
    raise unittest.SkipTest("this Python has no numpy") from None

PROGRAM = os.path.join(os.path.dirname(os.path.dirname(HERE)), "examples", "train_digits.py")
OPTIONS = ["--epochs", "8", "--check", "--require", "95"]


class TrainDigits(unittest.TestCase):
    def train(self, nranks: int, *options: str) -> str:
        launch = [launcher(), "-n", str(nranks), "--timeout", "150", "--"] if nranks > 1 else []
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
        command = [*launch, sys.executable, PROGRAM, *OPTIONS, *options]
        run = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(run.returncode, 0, run.stdout)
        return run.stdout

    def test_accuracy_on_four_ranks(self) -> None:
        output = self.train(4)
        accuracy = re.search(r"test accuracy ([\d.]+) %.* on 4 ranks over shm", output)
        self.assertIsNotNone(accuracy, output)
        self.assertGreater(float(accuracy.group(1)), 95.0)  # type: ignore[union-attr]

    def test_ranks_agree_with_one(self) -> None:
        """the same weights to rounding, and the same bits on every ordered run"""
        with tempfile.TemporaryDirectory() as folder:
            weights = []
            for index, nranks in enumerate((1, 3, 3)):
                path = os.path.join(folder, "weights%d.npy" % index)
                self.train(nranks, "--ordered", "--quiet", "--save", path)
                weights.append(np.load(path))
        difference = np.linalg.norm(weights[0] - weights[1]) / np.linalg.norm(weights[0])
        self.assertLess(difference, 1e-3)
        self.assertTrue((weights[1] == weights[2]).all())

    def test_wrong_use(self) -> None:
        run = subprocess.run([sys.executable, PROGRAM, "--epochs", "0"], capture_output=True, text=True)
        self.assertEqual(run.returncode, 2)
        self.assertIn("1 or more", run.stderr)


if __name__ == "__main__":
    unittest.main()
