# SPDX-License-Identifier: Apache-2.0
"""Struct sizes and offsets, enum values and counts: the compiler against ctypes.

usage: layout.py SOURCE COMPILER...
"""
from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from typing import Dict, List

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import header  # noqa: E402
import table  # noqa: E402
import tap  # noqa: E402


def from_ctypes(api: header.Header, abi: table.Table) -> Dict[str, int]:
    facts: Dict[str, int] = {}
    for name, kind in abi.STRUCTS.items():
        facts["sizeof %s" % name] = ctypes.sizeof(kind)
        for member, *_ in kind._fields_:
            facts["offset %s.%s" % (name, member)] = getattr(kind, member).offset
            facts["bytes %s.%s" % (name, member)] = getattr(kind, member).size
    for name, (kind, prefix) in abi.ENUMS.items():
        known = api.enums.get(name, [])
        for label, value in kind.__members__.items():
            full = prefix + label if prefix + label in known else "GRADSYNC_" + label
            facts["enum %s" % full] = int(value)
    for name, value in abi.COUNTS.items():
        facts["macro %s" % name] = value
    return facts


def probe(api: header.Header) -> str:
    """A C program that prints the same facts, for everything that the header declares."""
    lines: List[str] = ["#include <gradsync/gradsync.h>", "#include <stdio.h>", "int main(void)", "{"]

    def fact(name: str, value: str) -> None:
        lines.append('    printf("%s = %%lld\\n", (long long)(%s));' % (name, value))

    for name, members in api.structs.items():
        fact("sizeof %s" % name, "sizeof(%s)" % name)
        for member in members:
            fact("offset %s.%s" % (name, member), "offsetof(%s, %s)" % (name, member))
            fact("bytes %s.%s" % (name, member), "sizeof(((%s *)0)->%s)" % (name, member))
    for enumerators in api.enums.values():
        for label in enumerators:
            fact("enum %s" % label, label)
    for name in api.numbers:
        if name.endswith("_COUNT"):
            fact("macro %s" % name, name)
    return "\n".join(lines + ["    return 0;", "}", ""])


def run_probe(source: str, compiler: List[str], text: str) -> Dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        program, path = os.path.join(folder, "probe"), os.path.join(folder, "probe.c")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        subprocess.run(
            [*compiler, "-std=c11", "-I", os.path.join(source, "include"), path, "-o", program], check=True
        )
        output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split(" = ") for line in output.splitlines())}


def main() -> int:
    source, compiler = sys.argv[1], sys.argv[2:]
    api = header.read(source)
    abi = table.load(source)
    ours = from_ctypes(api, abi)
    theirs = run_probe(source, compiler, probe(api))
    tap.ok(len(api.structs) >= 10 and len(api.enums) >= 8, "the header's structs and enums were found")
    tap.same(theirs, ours, "the header and the table declare the same things", "the header", "the table")
    for kind in ("sizeof", "offset", "bytes", "enum", "macro"):
        facts = [name for name in theirs if name.startswith(kind + " ") and name in ours]
        wrong = ["%s: C %d, ctypes %d" % (name, theirs[name], ours[name]) for name in facts if theirs[name] != ours[name]]
        tap.ok(facts and not wrong, "%d values of %s agree" % (len(facts), kind), *wrong)
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
