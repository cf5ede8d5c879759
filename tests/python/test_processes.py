# SPDX-License-Identifier: Apache-2.0
"""Ranks as processes under gradsync-run: they work together, die, and disagree."""
from __future__ import annotations

import os
import unittest
from typing import Any, Dict, List

import gradsync
from harness import launcher, processes

N = 4


class Processes(unittest.TestCase):
    def setUp(self) -> None:
        launcher()
        self.before = set(os.listdir("/dev/shm"))

    def tearDown(self) -> None:
        left = [name for name in set(os.listdir("/dev/shm")) - self.before if "gradsync" in name]
        self.assertEqual(left, [])

    def lines(self, part: str, *options: str, status: int = 0) -> Dict[int, List[Any]]:
        outcome = processes(N, "rank_program.py", part, options=options)
        self.assertEqual(outcome.status, status, outcome.output)
        return outcome.lines()

    def test_collectives(self) -> None:
        lines = self.lines("collectives")
        for rank in range(N):
            facts = lines[rank][0]
            self.assertEqual((facts["rank"], facts["size"], facts["launched"]), (rank, N, rank))

    def test_mismatch(self) -> None:
        lines = self.lines("mismatch")
        for rank in range(N):
            self.assertEqual((lines[rank][0]["error"], lines[rank][0]["rank"]), ("MismatchError", rank))

    def check_killed(self, part: str) -> Dict[int, List[Any]]:
        lines = self.lines(part, "--keep-going", status=128 + 9)
        self.assertEqual(sorted(lines), [0, 2, 3])
        for rank, told in lines.items():
            self.assertEqual((told[0]["error"], told[0]["peer"], told[0]["rank"]), ("PeerLostError", 1, rank), told)
            self.assertIn("1", told[0]["message"])
        return lines

    def test_killed_rank(self) -> None:
        """every survivor gets PeerLostError naming it, and fails fast from then on"""
        for rank, told in self.check_killed("killed").items():
            self.assertIn(told[1]["error"], ("PeerLostError", "BrokenError"), rank)

    def test_killed_rank_asyncio(self) -> None:
        self.check_killed("killed_posted")

    def test_exception_in_a_rank(self) -> None:
        lines = self.lines("raises", "--keep-going", status=1)
        for rank in (0, 1, 3):
            self.assertEqual((lines[rank][0]["error"], lines[rank][0]["peer"]), ("PeerLostError", 2))

    def test_left_open_at_exit(self) -> None:
        self.assertEqual(sorted(self.lines("abandoned")), list(range(N)))


    def test_forked_children(self) -> None:
        """they end, and the ranks go on"""
        for rank, told in self.lines("forks").items():
            self.assertEqual(told, [{"child": 7}], rank)


class NoLauncher(unittest.TestCase):
    def test_from_env_without_one(self) -> None:
        """the error says how to start the program"""
        names = [name for name in os.environ if name.startswith(("GRADSYNC_RANK", "RANK", "WORLD_SIZE", "PMI", "SLURM"))]
        if names:
            self.skipTest("this test itself runs under a launcher")
        with gradsync.Context() as ctx:
            with self.assertRaises(gradsync.InvalidError) as caught:
                ctx.comm_from_env()
        self.assertIn("gradsync-run", caught.exception.message)


if __name__ == "__main__":
    unittest.main()
