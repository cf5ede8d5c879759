# SPDX-License-Identifier: Apache-2.0
"""lib/plan is pure: its objects call nothing that does input, output, threads or
clocks. A list of what they may call is shorter than one of what they may not.

usage: purity.py BUILD
"""
from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import List, Set

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import tap  # noqa: E402

PURE = re.compile(
    # memory and text
    r"free|mem(cpy|move|set|cmp|chr)|str\w+|v?snprintf|qsort|bsearch|abs|labs|llabs"
    # arithmetic
    r"|(ceil|floor|round|trunc|rint|log|log2|exp|exp2|sqrt|pow|fabs|fmin|fmax|fmod|ldexp|frexp)f?"
    # what compilers, hardening and sanitizers add
    r"|__stack_chk_fail|__(mem|str)\w+_chk|__v?snprintf_chk|__assert_fail|_GLOBAL_OFFSET_TABLE_"
    r"|__(asan|ubsan|tsan|sanitizer|gcov|llvm)_\w+|__popcount\w+|__\w+[st]i[234]"
    # names of enum values
    r"|gradsync_(dtype_size|\w+_name)"
)
# Of lib/base: the thread's last error, and memory.
BASE = ("error", "alloc")


def symbols(path: str, defined: bool) -> Set[str]:
    which = "--defined-only" if defined else "--undefined-only"
    run = subprocess.run(["nm", which, path], check=True, capture_output=True, text=True)
    return {line.split()[-1].split("@")[0] for line in run.stdout.splitlines() if line.strip()}


def main() -> int:
    folder = os.path.join(sys.argv[1], "lib", "libgsi.a.p")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    plan = [os.path.join(folder, name) for name in names if re.match(r"plan_.*\.o$", name)]
    base = [os.path.join(folder, name) for name in names if re.match(r"base_(%s).*\.o$" % "|".join(BASE), name)]
    if not tap.ok(plan and base, "the objects of lib/plan and lib/base were found", "looked in %s" % folder):
        return tap.done()
    known: Set[str] = set()
    for path in plan + base:
        known |= symbols(path, True)
    bad: List[str] = []
    for path in plan:
        for name in sorted(symbols(path, False) - known):
            if not PURE.fullmatch(name):
                bad.append("%s uses %s" % (os.path.basename(path), name))
    tap.ok(not bad, "the %d objects of lib/plan call pure functions only" % len(plan), *bad)
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
