# SPDX-License-Identifier: Apache-2.0
"""One list of functions in five places: the library's exports, the symbol map, the
header, the man pages and the ctypes table. And what the library needs to load.

usage: symbols.py SOURCE LIBRARY
"""
from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import header  # noqa: E402
import table  # noqa: E402
import tap  # noqa: E402

# What a bare system always has; NUMA, verbs, CUDA, C++ must not be needed to load.
ALLOWED = ("libc", "libm", "libpthread", "librt", "libdl", "ld-linux", "linux-vdso", "libgcc_s")
# may be linked dynamically where the distribution has no static one
TOLERATED = ("libsodium", "libexpat")


def exports(library: str) -> "tuple[set[str], set[str]]":
    """Functions that the library defines, and version nodes."""
    text = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    names, nodes = set(), set()
    for line in text.splitlines():
        kind, name = line.split()[-2:]
        base = name.split("@")[0]
        (nodes if kind == "A" else names).add(base)
    return names, nodes


def map_names(source: str) -> "tuple[list[str], set[str]]":
    with open(os.path.join(source, "lib", "libgradsync.map"), encoding="utf-8") as file:
        text = re.sub(r"/\*.*?\*/", "", file.read(), flags=re.S)
    names = []
    for stanza in re.findall(r"\{(.*?)\}", text, flags=re.S):
        public = stanza.split("local:")[0].replace("global:", "")
        names += [name.strip() for name in public.split(";") if name.strip()]
    return names, set(re.findall(r"^\s*(\w[\w.]*)\s*\{", text, flags=re.M))


def manual(source: str) -> "set[str]":
    folder = os.path.join(source, "docs", "man")
    if not os.path.isdir(folder):
        return set()
    return {name[:-2] for name in os.listdir(folder) if name.endswith(".3")}


def check_prototypes(api: header.Header, abi: table.Table) -> None:
    """Every argument of the ctypes table has the type that the header gives it."""
    void = ctypes.c_void_p
    plain = {
        "int": ctypes.c_int,
        "size_t": ctypes.c_size_t,
        "uint32_t": ctypes.c_uint32,
        "uint64_t": ctypes.c_uint64,
        "const char *": ctypes.c_char_p,
        "char *": void,
        "void *": void,
        "const void *": void,
        "gradsync_allgather_fn": abi.AllgatherFn,
        "gradsync_finding_fn": abi.FindingFn,
        "void": None,
    }

    def expected(text: str) -> object:
        if text in plain:
            return plain[text]
        match = re.fullmatch(r"(?:const )?(\w+) (\*\*?)", text)
        if not match:
            return "no rule for %r" % text
        name, stars = match.groups()
        if stars == "**":
            return ctypes.POINTER(void)
        return ctypes.POINTER(abi.STRUCTS[name]) if name in abi.STRUCTS else void

    wrong = []
    for name in sorted(set(api.functions) & set(abi.FUNCTIONS)):
        result, arguments = api.functions[name]
        want = (expected(result), tuple(expected(argument) for argument in arguments))
        if want != tuple(abi.FUNCTIONS[name]):
            wrong.append("%s: header %s, table %s" % (name, want, abi.FUNCTIONS[name]))
    tap.ok(not wrong, "the ctypes prototypes are those of the header", *wrong)


def check_needed(library: str) -> None:
    # what this library itself asks for, and what that pulls in
    text = subprocess.run(["ldd", library], capture_output=True, text=True).stdout
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    bad = []
    for name in names:
        base = os.path.basename(name).split(".so")[0].rstrip("-.0123456789")
        if base in TOLERATED:
            tap.note("%s is linked dynamically: there was no static one to link" % name)
        elif not any(base == allowed or base.startswith(allowed + "-") for allowed in ALLOWED):
            bad.append("needs %s" % name)
    tap.ok(names and not bad, "the library loads on a bare system", *bad)


def main() -> int:
    source, library = sys.argv[1:3]
    api = header.read(source)
    abi = table.load(source)
    names, nodes = exports(library)
    mapped, map_nodes = map_names(source)
    tap.ok(len(api.functions) == api.exported, "every exported declaration of the header was understood")
    tap.ok(len(mapped) == len(set(mapped)), "the symbol map names nothing twice")
    tap.same(names, mapped, "exports = symbol map", "the library", "the map")
    tap.same(nodes, map_nodes, "version nodes = stanzas of the map", "the library", "the map")
    tap.same(api.functions, mapped, "header = symbol map", "the header", "the map")
    tap.same(api.functions, abi.FUNCTIONS, "header = ctypes table", "the header", "the table")
    tap.same(api.functions, manual(source), "header = man pages of section 3", "the header", "docs/man")
    check_prototypes(api, abi)
    check_needed(library)
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
