# SPDX-License-Identifier: Apache-2.0
"""Loads the ctypes table of the Python package, without the package and without a library."""
from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

Table = Any


def load(source: str) -> Table:
    path = os.path.join(source, "bindings", "python", "gradsync", "_abi.py")
    spec = importlib.util.spec_from_file_location("gradsync_abi_table", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
