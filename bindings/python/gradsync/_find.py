# SPDX-License-Identifier: Apache-2.0
"""Finds the shared library, and says where it looked when it is not there."""
from __future__ import annotations

import ctypes
import ctypes.util
import glob
import os
import sys
from typing import Iterator, List, Tuple

from . import _abi

SONAME = "libgradsync.so.0"
_REMEDY = (
    "install libgradsync (meson setup build && meson install -C build, then ldconfig), "
    "or set GRADSYNC_LIBRARY to the path of " + SONAME
)


def candidates() -> Iterator[Tuple[str, str]]:
    """Pairs (why, path), the most specific first. A path may not exist."""
    here = os.path.dirname(os.path.abspath(__file__))
    yield "beside the package", os.path.join(here, SONAME)
    # a source checkout: bindings/python/gradsync with build directories in the root
    root = os.path.dirname(os.path.dirname(os.path.dirname(here)))
    if os.path.isfile(os.path.join(root, "include", "gradsync", "gradsync.h")):
        builds = glob.glob(os.path.join(glob.escape(root), "build*", "lib", SONAME))
        builds += glob.glob(os.path.join(glob.escape(root), "build", "*", "lib", SONAME))
        for path in sorted(builds, key=os.path.getmtime, reverse=True):
            yield "the newest build in the source tree", path
    yield "the environment of this Python", os.path.join(sys.prefix, "lib", SONAME)


def find_and_load() -> Tuple[ctypes.CDLL, str]:
    """The library and where it was found. Raises ImportError with the remedy."""
    wanted = os.environ.get("GRADSYNC_LIBRARY")
    if wanted:
        # the user decided: never fall back to another one behind their back
        path = os.path.join(wanted, SONAME) if os.path.isdir(wanted) else wanted
        return _load(path, "GRADSYNC_LIBRARY"), path
    looked: List[str] = []
    for why, path in candidates():
        if os.path.exists(path):
            return _load(path, why), path
        looked.append("%s (%s)" % (path, why))
    for name in (SONAME, ctypes.util.find_library("gradsync")):
        if name is None:
            continue
        try:
            ctypes.CDLL(name)
        except OSError as error:
            looked.append("the system's linker: %s" % error)
            continue
        return _load(name, "the system's linker"), name
    raise ImportError("gradsync: cannot find %s; %s. Looked at: %s" % (SONAME, _REMEDY, "; ".join(looked)))


def _load(path: str, why: str) -> ctypes.CDLL:
    try:
        lib = _abi.load(path)
    except OSError as error:
        raise ImportError("gradsync: cannot load %s (%s): %s; %s" % (path, why, error, _REMEDY)) from error
    except AttributeError as error:
        raise ImportError(
            "gradsync: %s (%s) is older than this Python package: %s; "
            "install both from the same version" % (path, why, error)
        ) from error
    major = lib.gradsync_version_number() // 1000000
    if major != _abi.VERSION[0]:
        raise ImportError(
            "gradsync: %s (%s) is version %s, this Python package needs %d.x; install both from the same version"
            % (path, why, lib.gradsync_version().decode(), _abi.VERSION[0])
        )
    return lib
