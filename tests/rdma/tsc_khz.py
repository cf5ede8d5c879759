#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the frequency of this machine's time stamp counter, in kHz.

The emulated machine has the same counter, but on a busy host its kernel measures it wrong by as
much as half, and with that all of its times. Here it is held against the real clock.
"""
import ctypes
import mmap
import time

# rdtsc; shl rdx, 32; or rax, rdx; ret
CODE = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"
page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(CODE)
read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))


def sample():
    """Clock and counter at one moment: the closest of several pairs."""
    pairs = []
    for _ in range(20):
        before = time.monotonic_ns()
        ticks = read()
        after = time.monotonic_ns()
        pairs.append((after - before, (before + after) // 2, ticks))
    return min(pairs)[1:]


t0, ticks0 = sample()
time.sleep(0.05)
t1, ticks1 = sample()
print((ticks1 - ticks0) * 1000000 // (t1 - t0))
