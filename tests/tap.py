# SPDX-License-Identifier: Apache-2.0
"""The Test Anything Protocol for our Python tests: the twin of tap.h."""
from __future__ import annotations

import sys

count = 0
failed = 0


def ok(condition: object, name: str, *details: str) -> bool:
    """One test: prints its line, and details if it failed; returns the truth of condition."""
    global count, failed
    count += 1
    print("%s %d - %s" % ("ok" if condition else "not ok", count, name.replace("#", "")))
    if not condition:
        failed += 1
        for detail in details:
            note(detail)
    sys.stdout.flush()
    return bool(condition)


def skip(name: str, why: str) -> None:
    """A test that cannot run here, and why."""
    global count
    count += 1
    print("ok %d - %s # SKIP %s" % (count, name.replace("#", ""), why), flush=True)


def note(text: str) -> None:
    """Lines for the reader of the log."""
    for line in text.splitlines() or [""]:
        print("# " + line, flush=True)


def same(left: object, right: object, name: str, left_is: str = "left", right_is: str = "right") -> bool:
    """One test: two sets are equal; else prints what is in one only."""
    left_set, right_set = set(left), set(right)  # type: ignore[call-overload]
    only_left = sorted(left_set - right_set)
    only_right = sorted(right_set - left_set)
    return ok(
        left_set == right_set,
        name,
        *["only in %s: %s" % (left_is, item) for item in only_left],
        *["only in %s: %s" % (right_is, item) for item in only_right],
    )


def done() -> int:
    """Prints the plan; returns the exit status."""
    print("1..%d" % count, flush=True)
    return 1 if failed or not count else 0
