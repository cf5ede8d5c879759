# SPDX-License-Identifier: Apache-2.0
"""Runs unittest modules and prints TAP.

usage: run.py MODULE...

GRADSYNC_LIBRARY names the library, GRADSYNC_RUN the launcher (without it the tests
with processes skip). The package is imported from the source tree, or from where
PYTHONPATH says.
"""
from __future__ import annotations

import os
import sys
import traceback
import unittest
from types import TracebackType
from typing import Any, Optional, Tuple, Type, Union

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:1] = [HERE, os.path.join(ROOT, "tests")]
# behind PYTHONPATH and the site folders: an installed package is the one to test
sys.path.append(os.path.join(ROOT, "bindings", "python"))
import tap  # noqa: E402

_Error = Union[Tuple[Type[BaseException], BaseException, TracebackType], Tuple[None, None, None]]


class Result(unittest.TestResult):
    """Prints each test as it ends."""

    def _name(self, test: Any) -> str:
        return test.id().split(".", 1)[-1] + (": " + test.shortDescription() if test.shortDescription() else "")

    def addSuccess(self, test: unittest.TestCase) -> None:
        tap.ok(True, self._name(test))

    def addError(self, test: unittest.TestCase, err: _Error) -> None:
        tap.ok(False, self._name(test), "".join(traceback.format_exception(*err)))

    addFailure = addError

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Optional[_Error]) -> None:
        if err is not None:
            tap.ok(False, self._name(subtest), "".join(traceback.format_exception(*err)))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        tap.skip(self._name(test), reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: _Error) -> None:
        tap.ok(False, self._name(test) + ": no test here may be expected to fail")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        tap.ok(False, self._name(test) + ": no test here may be expected to fail")


def main() -> int:
    suite = unittest.defaultTestLoader.loadTestsFromNames(sys.argv[1:])
    suite.run(Result())
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
