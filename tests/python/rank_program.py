# SPDX-License-Identifier: Apache-2.0
"""One rank of the tests with processes: rank_program.py PART. Prints JSON lines."""
from __future__ import annotations

import array
import json
import os
import signal
import sys
from typing import Any

import gradsync


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def told(error: gradsync.GradsyncError) -> None:
    say(error=type(error).__name__, rank=error.rank, peer=error.peer, seq=error.seq, message=error.message)


def collectives(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
    n, rank = comm.size, comm.rank
    for count in (1, 1000, 300000):
        plain = array.array("f", [rank + 1.0]) * count
        library = ctx.alloc(4 * count)
        library.view("f32")[:] = plain
        comm.all_reduce(plain)
        comm.all_reduce(library, dtype="f32")
        want = n * (n + 1) / 2.0
        assert set(plain) == {want}, set(plain)
        assert set(library.view("f32")) == {want}
        whole = array.array("i", [-1]) * (n * count)
        comm.all_gather(array.array("i", [rank]) * count, whole)
        assert whole == array.array("i", [r for r in range(n) for _ in range(count)])
        part = array.array("d", bytes(8 * count))
        comm.reduce_scatter(array.array("d", [1.0]) * (n * count), part, "sum")
        assert set(part) == {float(n)}
        requests = [comm.broadcast_post(bytearray([rank]) * 10, root=root) for root in range(n)]
        assert [request.wait()[0] for request in requests] == list(range(n))
    comm.barrier()
    say(rank=rank, size=n, launched=int(os.environ["GRADSYNC_RANK"]), transport=comm.info().transport)


def mismatch(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
    try:
        comm.all_reduce(bytearray(4000 + 4 * comm.rank), dtype="f32")
    except gradsync.MismatchError as error:
        told(error)


def killed(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
    comm.barrier()
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            comm.all_reduce(bytearray(40000), dtype="f32")
    except ConnectionError as error:
        assert isinstance(error, gradsync.PeerLostError)
        told(error)
    try:
        comm.barrier()
    except gradsync.GradsyncError as after:
        told(after)


def killed_posted(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
    """as killed, with the waiting done by asyncio"""
    import asyncio

    async def main() -> None:
        while True:
            await comm.all_reduce_post(bytearray(40000), dtype="f32")

    comm.barrier()
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        asyncio.run(main())
    except gradsync.PeerLostError as error:
        told(error)


def raises(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
    """an exception in one rank's program ends its communicator, which tells the others"""
    comm.barrier()
    if comm.rank == 2:
        raise RuntimeError("the program of rank 2 failed")
    try:
        comm.all_reduce(bytearray(4000), dtype="f32")
    except gradsync.PeerLostError as error:
        told(error)


def abandoned(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
    """everything is left open, and requests in progress, at the interpreter's end"""
    global keep
    comm.barrier()
    memory = ctx.alloc(1 << 20)
    keep = [comm.all_reduce_post(memory, dtype="f32"), memory.view(), comm, ctx]
    say(rank=comm.rank)


def forks(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
    """a forked child ends as programs do, with all that it inherited: that is not its own to end"""
    global keep
    keep = [ctx.alloc(100).view(), comm.barrier_post()]
    keep[1].wait()
    child = os.fork()
    if child == 0:
        try:
            comm.barrier()
        except gradsync.InvalidError as error:
            assert "parent" in str(error), error
            comm.close()
            with gradsync.Context() as own, own.comm() as alone:  # what it makes itself works
                alone.all_reduce(own.alloc(100), dtype="f32")
            sys.exit(7)
        sys.exit(1)
    _, status = os.waitpid(child, 0)
    comm.barrier()
    comm.all_reduce(bytearray(4000), dtype="f32")
    say(child=os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1)


keep: Any = None


def main() -> None:
    part = globals()[sys.argv[1]]
    if part is abandoned:
        ctx = gradsync.Context(timeout=60)
        part(ctx, ctx.comm_from_env())
        return
    with gradsync.Context(timeout=60) as ctx, ctx.comm_from_env() as comm:
        part(ctx, comm)


if __name__ == "__main__":
    main()
