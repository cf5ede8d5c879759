# SPDX-License-Identifier: Apache-2.0
"""Reads gradsync.h, as far as its own plain style needs it: no C parser."""
from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Dict, List, Tuple


@dataclass
class Header:
    functions: Dict[str, Tuple[str, List[str]]] = field(default_factory=dict)  # name -> result, argument types
    enums: Dict[str, List[str]] = field(default_factory=dict)  # name -> enumerators
    structs: Dict[str, List[str]] = field(default_factory=dict)  # name -> members
    numbers: List[str] = field(default_factory=list)  # macros that are a plain number
    exported: int = 0  # declarations that say GRADSYNC_API, found by counting


def path(source: str) -> str:
    return os.path.join(source, "include", "gradsync", "gradsync.h")


def read(source: str) -> Header:
    with open(path(source), encoding="utf-8") as file:
        text = file.read()
    header = Header()
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = text.replace("\\\n", " ")
    header.numbers = re.findall(r"^#define[ \t]+(GRADSYNC_\w+)[ \t]+-?\d+[ \t]*$", text, flags=re.M)
    text = re.sub(r"^[ \t]*#.*$", " ", text, flags=re.M)
    header.exported = len(re.findall(r"\bGRADSYNC_API\b", text))
    for match in re.finditer(r"\bGRADSYNC_API\s+([\w\s*]+?)\b(\w+)\s*\(([^()]*)\)\s*;", text):
        result, name, arguments = match.groups()
        header.functions[name] = (_squeeze(result), [_type_of(part) for part in _split(arguments)])
    for match in re.finditer(r"\benum\s+(\w+)\s*\{(.*?)\}", text, flags=re.S):
        header.enums[match.group(1)] = re.findall(r"\b(GRADSYNC_\w+)\b(?=\s*(?:=|,|$))", match.group(2))
    for match in re.finditer(r"\btypedef\s+struct\s+(\w+)\s*\{(.*?)\}\s*\1\s*;", text, flags=re.S):
        members: List[str] = []
        for declaration in match.group(2).split(";"):
            if not declaration.strip():
                continue
            for part in declaration.split(","):
                members.append(re.findall(r"(\w+)\s*(?:\[\w+\])?\s*$", part.strip())[0])
        header.structs[match.group(1)] = members
    return header


def _squeeze(text: str) -> str:
    return re.sub(r"\s*\*", " *", " ".join(text.split())).replace("* *", "**")


def _split(arguments: str) -> List[str]:
    parts = [" ".join(part.split()) for part in arguments.split(",")]
    return [] if parts in (["void"], [""]) else parts


def _type_of(argument: str) -> str:
    """The type in "const void *send": everything but the last name."""
    match = re.fullmatch(r"(.*[\s*])(\w+)", argument)
    assert match, argument
    return _squeeze(match.group(1))
