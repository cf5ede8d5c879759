#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What tests/run needs to know about tests.

  meson_tests.py select BUILD SUITE...     names of the tests of these suites ("-SUITE": all but)
  meson_tests.py tally BUILD STAGE N       results of BUILD's last `meson test`, which was to run N tests
  meson_tests.py tap STAGE NAME STATUS     results of the TAP on standard input, from a
                                           program that ended with STATUS

Results are lines of state, name and reason (pass, fail or skip), tab-separated.
A suite is a folder of tests/; a test may belong to more by meson's suite argument.
"""
import json
import re
import subprocess
import sys

RESULT = re.compile(r"^\s*(not )?ok\b\s*(\d+)?\s*(?:-\s*)?(.*?)\s*$")
DIRECTIVE = re.compile(r"^(.*?)\s*#\s*(skip|todo)\S*\s*(.*)$", re.IGNORECASE)
PLAN = re.compile(r"^1\.\.(\d+)(?:\s*#\s*skip\S*\s*(.*))?$", re.IGNORECASE)


def suites_of(test):
    """A test's suites: meson's own, and the folder of tests/ that its command names."""
    found = {s.split(":", 1)[-1] for s in test["suite"]} - {"gradsync"}
    for word in test["cmd"]:
        folder = re.search(r"/tests/(\w+)/", word)
        if folder:
            found.add(folder.group(1))
    return found


def select(build, wanted):
    listing = subprocess.run(["meson", "introspect", "--tests", build], check=True, capture_output=True, text=True)
    yes = {w for w in wanted if not w.startswith("-")}
    no = {w[1:] for w in wanted if w.startswith("-")}
    for test in json.loads(listing.stdout):
        suites = suites_of(test)
        if (not yes or suites & yes) and not suites & no:
            print(test["name"])


def parse_tap(text):
    """(state, name, reason) of each test in a TAP stream, its plan, and why everything was skipped."""
    results, plan, skipped, notes = [], None, None, []
    for line in text.splitlines():
        at_plan = PLAN.match(line)
        at_result = RESULT.match(line)
        if at_plan:
            plan, skipped = int(at_plan.group(1)), at_plan.group(2)
        elif at_result:
            failed, number, name = at_result.groups()
            state, reason = ("fail" if failed else "pass"), ""
            directive = DIRECTIVE.match(name)
            if directive:
                name, reason = directive.group(1), directive.group(3)
                state = "skip"
            results.append([state, f"{number or len(results) + 1} {name}".strip(), reason])
            notes = []
        elif line.lstrip().startswith("#"):
            notes.append(line.strip("# \t"))
            if results and results[-1][0] == "fail":
                results[-1][2] = " / ".join(notes)[:300]
    return results, plan, skipped


def show(state, name, reason=""):
    print(state, name, " ".join(reason.split()), sep="\t")


def report(stage, name, text, bad, how):
    """Prints the results of one test program; bad: it failed as a whole, how: in which way."""
    results, plan, skipped = parse_tap(text)
    for state, test, reason in results:
        show(state, f"{stage}: {name}: {test}", reason)
    failed = any(state == "fail" for state, _, _ in results)
    if not results and plan is not None and not bad:
        show("skip", f"{stage}: {name}", skipped or "no reason given")
    elif results and plan is None and not failed:
        show("fail", f"{stage}: {name}", f"ended before its plan line ({how})")
    elif plan is not None and plan != len(results) and not failed:
        show("fail", f"{stage}: {name}", f"{len(results)} of {plan} tests ran ({how})")
    elif bad and not failed:
        show("fail", f"{stage}: {name}", how)
    elif not results and plan is None:
        show("pass", f"{stage}: {name}")


def tally(build, stage, wanted):
    ran = 0
    with open(f"{build}/meson-logs/testlog.json", encoding="utf-8", errors="replace") as log:
        for line in log:
            test = json.loads(line)
            ran += 1
            result, name = test["result"], test["name"].split(" / ")[-1]
            how = f"{result.lower()}, exit status {test['returncode']}"
            text = test.get("stdout") or ""
            if result == "SKIP" and not parse_tap(text)[0]:
                show("skip", f"{stage}: {name}", parse_tap(text)[2] or text.strip()[-200:] or "no reason given")
            else:
                report(stage, name, text, result not in ("OK", "SKIP", "EXPECTEDFAIL"), how)
    if ran < wanted:
        show("fail", f"{stage}: meson test ended early", f"{ran} of {wanted} tests were run; see the end of the log")


def main(args):
    if len(args) >= 2 and args[0] == "select":
        select(args[1], args[2:])
    elif len(args) == 4 and args[0] == "tally":
        tally(args[1], args[2], int(args[3]))
    elif len(args) == 4 and args[0] == "tap":
        report(args[1], args[2], sys.stdin.read(), args[3] != "0", f"exit status {args[3]}")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
