# SPDX-License-Identifier: Apache-2.0
"""What queries return: plain, immutable records."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Union

from ._abi import Algo, Coll, ErrorCode, MemKind, P2p


@dataclass(frozen=True)
class Report:
    """What a finished operation did."""

    coll: Union[Coll, P2p]
    algo: Algo  #: the algorithm that ran; AUTO between two ranks
    result: ErrorCode
    seq: int  #: its number in the communicator, from 1
    nbytes: int  #: of the message
    predicted_us: float
    measured_us: float
    wait_us: float  #: of that, not spent moving or reducing data on this rank
    reason: str  #: why this algorithm


@dataclass(frozen=True)
class MemInfo:
    """What the library knows about some memory."""

    kind: MemKind
    address: int
    nbytes: int
    page_bytes: int
    numa_node: int  #: -1 if unknown
    shareable: bool  #: local peers can reach all whole pages of it
    reason: str  #: why not shareable or no huge pages; "" if all is well


@dataclass(frozen=True)
class CommInfo:
    """What a communicator is."""

    rank: int
    size: int
    local_rank: int
    local_ranks: int
    nrails: int
    memory_bytes: int  #: that it takes in this rank
    create_ms: float
    transport: str


@dataclass(frozen=True)
class PeerInfo:
    """What is known about another rank."""

    rank: int
    pid: int
    same_host: bool
    alive: bool
    host: str
    transport: str


@dataclass(frozen=True)
class RailInfo:
    """A network rail in use."""

    index: int
    device: str
    numa_node: int
    up: bool
    nbytes: int  #: sent over it
    share: float  #: of the striping, 0..1
    reason: str


@dataclass(frozen=True)
class Counters:
    """Totals since the communicator was made."""

    operations: int
    failures: int
    nbytes: int
    sleeps: int
    wakes: int
    wait_ns: int
    by_algo: Dict[Algo, int]


@dataclass(frozen=True)
class SystemInfo:
    """What the library found on this machine."""

    cpus: int
    numa_nodes: int
    rdma_devices: int
    page_bytes: int
    huge_page_bytes: int
    cpu_tier: str
    cpu_model: str
    huge_pages: str


@dataclass(frozen=True)
class TransportInfo:
    """A transport that the library knows, and whether it can be used here."""

    name: str
    usable: bool
    reason: str
