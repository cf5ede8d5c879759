# SPDX-License-Identifier: Apache-2.0
"""The loaded library, and what the process must do with it at its end."""
from __future__ import annotations

import atexit
import weakref
from typing import Optional, Protocol

from ._find import find_and_load

lib, library_path = find_and_load()


class _Closeable(Protocol):
    def close_at_exit(self) -> None: ...


# Communicators that are open. They have threads, and those may call a Python log
# function, so they end while the interpreter can still run it.
live: "weakref.WeakSet[_Closeable]" = weakref.WeakSet()

# True once the interpreter goes down: then nothing is freed any more. The
# operating system takes the memory back, and views of it may still be in use.
exiting = False


def text(raw: Optional[bytes]) -> str:
    """A C string as str; what is not UTF-8 in it is replaced, not an error."""
    return (raw or b"").decode("utf-8", "replace")


@atexit.register
def _at_exit() -> None:
    global exiting
    for item in list(live):
        item.close_at_exit()
    exiting = True
