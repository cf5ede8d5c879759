# SPDX-License-Identifier: Apache-2.0
"""The loaded library, and what the process must do with it at its end."""
from __future__ import annotations

import atexit
import os
import weakref
from typing import Optional, Protocol

from ._find import find_and_load

lib, library_path = find_and_load()


class _Closeable(Protocol):
    def close_at_exit(self) -> None: ...


# Communicators that are open. They have threads, and those may call a Python log
# function, so they end while the interpreter can still run it.
live: "weakref.WeakSet[_Closeable]" = weakref.WeakSet()

# Objects note the era that they are of, and are freed in that one only. A forked
# child is a new era: what it inherits is its parent's to end. So is the end of the
# interpreter: views of memory may still be in use then, and the system frees it all.
era = 0
_ENDED = -1


def text(raw: Optional[bytes]) -> str:
    """A C string as str; what is not UTF-8 in it is replaced, not an error."""
    return (raw or b"").decode("utf-8", "replace")


@atexit.register
def _at_exit() -> None:
    global era
    for item in list(live):
        item.close_at_exit()
    era = _ENDED


def _in_child() -> None:
    global era
    era += 1
    live.clear()


os.register_at_fork(after_in_child=_in_child)
