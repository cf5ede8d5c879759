# SPDX-License-Identifier: Apache-2.0
"""The installed Python package works where nothing of the source tree is in sight. TAP."""
import array
import os
import sys
import tempfile
import threading

count = failed = 0


def ok(good, name):
    global count, failed
    count += 1
    failed += not good
    print(f"{'ok' if good else 'not ok'} {count} - {name}", flush=True)


source = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
os.chdir(tempfile.gettempdir())
sys.path = [p for p in sys.path if p and not os.path.realpath(p).startswith(os.path.join(source, "tests"))]

import gradsync  # noqa: E402  (the path had to be cleaned first)

ok(os.path.realpath(gradsync.__file__).startswith(os.path.realpath(sys.prefix)), "imported from the environment")
ok(gradsync.library_version() == gradsync.__version__, "package and library are of one version")
ok(os.path.isfile(os.path.join(os.path.dirname(gradsync.__file__), "py.typed")), "its types are installed")

RANKS = 3
barrier = threading.Barrier(RANKS, timeout=60)
sent = [b""] * RANKS
sums = [None] * RANKS


def run(rank):
    def allgather(data):
        sent[rank] = bytes(data)
        barrier.wait()
        whole = list(sent)
        barrier.wait()
        return whole

    with gradsync.Context() as ctx, ctx.comm(rank, RANKS, allgather) as comm:
        values = array.array("f", [rank + 1.0] * 1000)
        comm.all_reduce(values, op="sum")
        sums[rank] = values
        comm.barrier()


threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(RANKS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ok(all(s is not None and all(v == 6.0 for v in s) for s in sums), f"{RANKS} threads all-reduce an array")

try:
    with gradsync.Context() as ctx, ctx.comm(0, 1, None) as comm:
        comm.all_reduce(array.array("f", [1.0]), op="nonsense")
    ok(False, "a wrong operation raises")
except (ValueError, gradsync.GradsyncError):
    ok(True, "a wrong operation raises")

print(f"1..{count}")
sys.exit(failed > 0)
