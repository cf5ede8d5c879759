# SPDX-License-Identifier: Apache-2.0
"""The C ABI of libgradsync as ctypes declarations: nothing else.

Every function, struct and enum of ``gradsync/gradsync.h`` appears here once.
``tests/abi`` compares this file with the header, the symbol map and what a
compiler makes of them, so it never drifts. It imports only the standard library
and loads nothing, so a test can read it without a library.
"""
from __future__ import annotations

import ctypes as c
from enum import IntEnum, IntFlag
from typing import Any, Dict, Tuple, Type

VERSION = (0, 1)  # major and minor of the header that this file mirrors


# ---- Enums -------------------------------------------------------------------


class DType(IntEnum):
    """Element types."""

    F32 = 0
    F64 = 1
    F16 = 2
    BF16 = 3
    I8 = 4
    U8 = 5
    I32 = 6
    U32 = 7
    I64 = 8
    U64 = 9

    @property
    def nbytes(self) -> int:
        """Bytes of one element."""
        return _DTYPE_BYTES[self]

    @property
    def short(self) -> str:
        """The name that the library uses: "f32", "bf16", ..."""
        return self.name.lower()


_DTYPE_BYTES = (4, 8, 2, 2, 1, 1, 4, 4, 8, 8)


class Op(IntEnum):
    """Reductions."""

    SUM = 0
    PROD = 1
    MIN = 2
    MAX = 3
    AVG = 4
    PREMUL_SUM = 5


class Coll(IntEnum):
    """Collectives, as reports name them."""

    ALL_REDUCE = 0
    REDUCE_SCATTER = 1
    ALL_GATHER = 2
    BROADCAST = 3
    REDUCE = 4
    BARRIER = 5


class P2p(IntEnum):
    """Operations between two ranks, as reports name them."""

    PUT = 16
    GET = 17
    SEND = 18
    RECV = 19
    SIGNAL = 20
    WAIT_SIGNAL = 21


class Algo(IntEnum):
    """Algorithms; AUTO takes the one with the lowest predicted time."""

    AUTO = 0
    ONESHOT = 1
    DIRECT = 2
    STAGED = 3
    RING = 4
    TREE = 5
    DOUBLING = 6
    PAIRWISE = 7
    HIER = 8


class ErrorCode(IntEnum):
    """Results of the C functions."""

    OK = 0
    IN_PROGRESS = 1
    INVALID = -1
    NOMEM = -2
    UNSUPPORTED = -3
    TIMEOUT = -4
    PEER_LOST = -5
    MISMATCH = -6
    AUTH = -7
    SYSTEM = -8
    DEVICE = -9
    BROKEN = -10
    INTERNAL = -11


class LogLevel(IntEnum):
    """Levels of log lines."""

    NONE = 0
    ERROR = 1
    WARN = 2
    INFO = 3
    DEBUG = 4


class Progress(IntEnum):
    """Who drives posted collectives on."""

    AUTO = 0
    THREAD = 1
    MANUAL = 2


class MemFlags(IntFlag):
    """Wishes at allocation and registration."""

    REMAP = 1
    NO_HUGE = 2


class MemKind(IntEnum):
    """What memory is to the library."""

    PLAIN = 0
    LIBRARY = 1
    REMAPPED = 2


class Distance(IntEnum):
    """How far things are from each other."""

    SAME = 0
    SWITCH = 1
    ROOT = 2
    NODE = 3
    SOCKET = 4
    FAR = 5
    UNKNOWN = 6


class Severity(IntEnum):
    """How bad a finding of diagnose() is."""

    SKIPPED = -1
    OK = 0
    HINT = 1
    WARNING = 2
    ERROR = 3


class CollFlags(IntFlag):
    """Flags of a collective."""

    ORDERED = 1
    PRESCALE = 2


DTYPE_COUNT = 10
OP_COUNT = 6
COLL_COUNT = 6
SIGNAL_SLOTS = 64
ALGO_COUNT = 9
DISTANCE_COUNT = 7

# C enum -> (class, prefix of its enumerators). Where C mixes prefixes (the two
# results that are no errors) the test tries the short one too.
ENUMS: Dict[str, Tuple[Type[IntEnum], str]] = {
    "gradsync_dtype": (DType, "GRADSYNC_"),
    "gradsync_op": (Op, "GRADSYNC_"),
    "gradsync_coll": (Coll, "GRADSYNC_"),
    "gradsync_p2p": (P2p, "GRADSYNC_"),
    "gradsync_algo": (Algo, "GRADSYNC_ALGO_"),
    "gradsync_error": (ErrorCode, "GRADSYNC_ERR_"),
    "gradsync_log_level": (LogLevel, "GRADSYNC_LOG_"),
    "gradsync_progress": (Progress, "GRADSYNC_PROGRESS_"),
    "gradsync_mem_flags": (MemFlags, "GRADSYNC_MEM_"),  # type: ignore[dict-item]
    "gradsync_mem_kind": (MemKind, "GRADSYNC_MEM_"),
    "gradsync_coll_flags": (CollFlags, "GRADSYNC_"),  # type: ignore[dict-item]
    "gradsync_distance": (Distance, "GRADSYNC_DISTANCE_"),
    "gradsync_severity": (Severity, "GRADSYNC_FINDING_"),
}

# C macro -> its value here.
COUNTS: Dict[str, int] = {
    "GRADSYNC_DTYPE_COUNT": DTYPE_COUNT,
    "GRADSYNC_OP_COUNT": OP_COUNT,
    "GRADSYNC_COLL_COUNT": COLL_COUNT,
    "GRADSYNC_ALGO_COUNT": ALGO_COUNT,
    "GRADSYNC_DISTANCE_COUNT": DISTANCE_COUNT,
}


# ---- Callbacks ---------------------------------------------------------------

LogFn = c.CFUNCTYPE(None, c.c_void_p, c.c_int, c.c_char_p)
AllgatherFn = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_void_p, c.c_size_t)


# ---- Structs -----------------------------------------------------------------


class Sized(c.Structure):
    """A struct whose first field is its own size; set on construction."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(size=c.sizeof(self), **fields)


class ErrorInfo(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("code", c.c_int32),
        ("rank", c.c_int32),
        ("peer", c.c_int32),
        ("rail", c.c_int32),
        ("step", c.c_int32),
        ("sys_errno", c.c_int32),
        ("wc_status", c.c_int32),
        ("seq", c.c_uint64),
        ("message", c.c_char * 448),
    ]


class Config(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("log_level", c.c_int32),
        ("log", LogFn),
        ("log_arg", c.c_void_p),
        ("timeout_ms", c.c_int64),
        ("progress", c.c_int32),
        ("strict", c.c_int32),
        ("transport", c.c_char_p),
        ("key", c.c_char_p),
    ]


class MemConfig(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("flags", c.c_uint32),
        ("numa_node", c.c_int32),
        ("reserved", c.c_int32),
    ]


class MemInfo(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("kind", c.c_int32),
        ("addr", c.c_void_p),
        ("bytes", c.c_uint64),
        ("page_bytes", c.c_uint64),
        ("numa_node", c.c_int32),
        ("shareable", c.c_int32),
        ("reason", c.c_char * 160),
    ]


class CommConfig(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("flags", c.c_uint32),
        ("timeout_ms", c.c_int64),
        ("algo", c.c_int32),
        ("reserved", c.c_int32),
    ]


class CollOpts(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("flags", c.c_uint32),
        ("timeout_ms", c.c_int64),
        ("prescale", c.c_double),
        ("algo", c.c_int32),
        ("reserved", c.c_int32),
        ("stream", c.c_void_p),
    ]


class Key(c.Structure):
    """A peer's leave to put and get; opaque."""

    _fields_ = [("opaque", c.c_uint64 * 8)]


class Report(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("coll", c.c_int32),
        ("algo", c.c_int32),
        ("result", c.c_int32),
        ("seq", c.c_uint64),
        ("bytes", c.c_uint64),
        ("predicted_us", c.c_double),
        ("measured_us", c.c_double),
        ("wait_us", c.c_double),
        ("reason", c.c_char * 256),
    ]


class CommInfo(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("rank", c.c_int32),
        ("nranks", c.c_int32),
        ("local_rank", c.c_int32),
        ("local_ranks", c.c_int32),
        ("nrails", c.c_int32),
        ("memory_bytes", c.c_uint64),
        ("create_ms", c.c_double),
        ("transport", c.c_char * 16),
    ]


class PeerInfo(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("rank", c.c_int32),
        ("pid", c.c_int64),
        ("same_host", c.c_int32),
        ("alive", c.c_int32),
        ("host", c.c_char * 64),
        ("transport", c.c_char * 16),
    ]


class RailInfo(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("index", c.c_int32),
        ("numa_node", c.c_int32),
        ("state", c.c_int32),
        ("bytes", c.c_uint64),
        ("share", c.c_double),
        ("device", c.c_char * 64),
        ("reason", c.c_char * 160),
    ]


class Counters(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("reserved", c.c_uint32),
        ("operations", c.c_uint64),
        ("failures", c.c_uint64),
        ("bytes", c.c_uint64),
        ("sleeps", c.c_uint64),
        ("wakes", c.c_uint64),
        ("wait_ns", c.c_uint64),
        ("by_algo", c.c_uint64 * ALGO_COUNT),
    ]


class SystemInfo(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("cpus", c.c_int32),
        ("numa_nodes", c.c_int32),
        ("rdma_devices", c.c_int32),
        ("page_bytes", c.c_uint64),
        ("huge_page_bytes", c.c_uint64),
        ("cpu_tier", c.c_char * 16),
        ("cpu_model", c.c_char * 96),
        ("huge_pages", c.c_char * 160),
    ]


class TransportInfo(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("usable", c.c_int32),
        ("name", c.c_char * 16),
        ("reason", c.c_char * 240),
    ]


class Place(c.Structure):
    _fields_ = [
        ("numa_node", c.c_int32),
        ("pci", c.c_char * 20),
    ]


class MachineInfo(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("numa_nodes", c.c_int32),
        ("ports", c.c_int32),
        ("gpus", c.c_int32),
        ("topology_file", c.c_char * 256),
    ]


class PortInfo(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("number", c.c_int32),
        ("state", c.c_int32),
        ("numa_node", c.c_int32),
        ("ngids", c.c_int32),
        ("access", c.c_int32),
        ("rate_mbps", c.c_uint32),
        ("mtu", c.c_uint32),
        ("netdev_mtu", c.c_uint32),
        ("lid", c.c_uint32),
        ("sm_lid", c.c_uint32),
        ("reserved", c.c_uint32),
        ("node_guid", c.c_uint64),
        ("device", c.c_char * 64),
        ("state_name", c.c_char * 16),
        ("phys_state", c.c_char * 24),
        ("link_layer", c.c_char * 16),
        ("netdev", c.c_char * 16),
        ("uverbs", c.c_char * 32),
        ("firmware", c.c_char * 32),
        ("board", c.c_char * 32),
        ("pci", c.c_char * 20),
        ("pci_path", c.c_char * 256),
    ]


class GidInfo(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("index", c.c_int32),
        ("prefix", c.c_int32),
        ("reserved", c.c_int32),
        ("gid", c.c_char * 48),
        ("type", c.c_char * 16),
        ("netdev", c.c_char * 16),
    ]


class GpuInfo(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("numa_node", c.c_int32),
        ("pci_class", c.c_uint32),
        ("vendor", c.c_uint32),
        ("device", c.c_uint32),
        ("pci", c.c_char * 20),
        ("pci_path", c.c_char * 256),
    ]


class RailChoice(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("rail", c.c_int32),
        ("usable", c.c_int32),
        ("distance", c.c_int32),
        ("ranks", c.c_int32),
        ("reason", c.c_char * 240),
    ]


class Finding(Sized):
    _fields_ = [
        ("size", c.c_uint32),
        ("severity", c.c_int32),
        ("id", c.c_char * 32),
        ("subject", c.c_char * 96),
        ("cause", c.c_char * 352),
        ("remedy", c.c_char * 352),
    ]


FindingFn = c.CFUNCTYPE(None, c.c_void_p, c.POINTER(Finding))


# C typedef -> its class here.
STRUCTS: Dict[str, Type[c.Structure]] = {
    "gradsync_error_info": ErrorInfo,
    "gradsync_config": Config,
    "gradsync_mem_config": MemConfig,
    "gradsync_mem_info": MemInfo,
    "gradsync_comm_config": CommConfig,
    "gradsync_coll_opts": CollOpts,
    "gradsync_key": Key,
    "gradsync_report": Report,
    "gradsync_comm_info": CommInfo,
    "gradsync_peer_info": PeerInfo,
    "gradsync_rail_info": RailInfo,
    "gradsync_counters": Counters,
    "gradsync_system_info": SystemInfo,
    "gradsync_transport_info": TransportInfo,
    "gradsync_place": Place,
    "gradsync_machine_info": MachineInfo,
    "gradsync_port_info": PortInfo,
    "gradsync_gid_info": GidInfo,
    "gradsync_gpu_info": GpuInfo,
    "gradsync_rail_choice": RailChoice,
    "gradsync_finding": Finding,
}


# ---- Functions ---------------------------------------------------------------

_int = c.c_int
_u32 = c.c_uint32
_u64 = c.c_uint64
_size = c.c_size_t
_str = c.c_char_p
_ptr = c.c_void_p  # memory, and the opaque context, comm, mem and request
_out = c.POINTER(c.c_void_p)  # where an opaque handle is returned
_opts = c.POINTER(CollOpts)
_key = c.POINTER(Key)
_message = (_ptr, _int, _ptr, _u64, _int)
_access = (_ptr, _int, _ptr, _key, _u64, _u64)
_reduction = (_ptr, _ptr, _ptr, _u64, _int, _int, _opts)
_rooted = (_ptr, _ptr, _ptr, _u64, _int, _int, _int, _opts)

# name -> (result, arguments)
FUNCTIONS: Dict[str, Tuple[Any, Tuple[Any, ...]]] = {
    "gradsync_version": (_str, ()),
    "gradsync_version_number": (_u32, ()),
    "gradsync_dtype_size": (_size, (_int,)),
    "gradsync_dtype_name": (_str, (_int,)),
    "gradsync_op_name": (_str, (_int,)),
    "gradsync_coll_name": (_str, (_int,)),
    "gradsync_algo_name": (_str, (_int,)),
    "gradsync_error_name": (_str, (_int,)),
    "gradsync_strerror": (_str, (_int,)),
    "gradsync_last_error": (_int, (c.POINTER(ErrorInfo),)),
    "gradsync_config_init": (None, (c.POINTER(Config),)),
    "gradsync_context_create": (_int, (c.POINTER(Config), _out)),
    "gradsync_context_destroy": (_int, (_ptr,)),
    "gradsync_mem_config_init": (None, (c.POINTER(MemConfig),)),
    "gradsync_mem_alloc": (_int, (_ptr, _size, c.POINTER(MemConfig), _out)),
    "gradsync_mem_register": (_int, (_ptr, _ptr, _size, c.POINTER(MemConfig), _out)),
    "gradsync_mem_deregister": (_int, (_ptr,)),
    "gradsync_mem_free": (_int, (_ptr,)),
    "gradsync_mem_addr": (_ptr, (_ptr,)),
    "gradsync_mem_query": (_int, (_ptr, c.POINTER(MemInfo))),
    "gradsync_comm_config_init": (None, (c.POINTER(CommConfig),)),
    "gradsync_comm_create": (_int, (_ptr, _int, _int, AllgatherFn, _ptr, c.POINTER(CommConfig), _out)),
    "gradsync_comm_create_from_env": (_int, (_ptr, c.POINTER(CommConfig), _out)),
    "gradsync_comm_split": (_int, (_ptr, _int, _int, c.POINTER(CommConfig), _out)),
    "gradsync_comm_abort": (_int, (_ptr, _str)),
    "gradsync_comm_destroy": (_int, (_ptr,)),
    "gradsync_comm_rank": (_int, (_ptr,)),
    "gradsync_comm_size": (_int, (_ptr,)),
    "gradsync_coll_opts_init": (None, (_opts,)),
    "gradsync_all_reduce": (_int, _reduction),
    "gradsync_reduce_scatter": (_int, _reduction),
    "gradsync_all_gather": (_int, (_ptr, _ptr, _ptr, _u64, _int, _opts)),
    "gradsync_broadcast": (_int, _reduction),  # an int root where the others have the op
    "gradsync_reduce": (_int, _rooted),
    "gradsync_barrier": (_int, (_ptr, _opts)),
    "gradsync_all_reduce_post": (_int, _reduction + (_out,)),
    "gradsync_reduce_scatter_post": (_int, _reduction + (_out,)),
    "gradsync_all_gather_post": (_int, (_ptr, _ptr, _ptr, _u64, _int, _opts, _out)),
    "gradsync_broadcast_post": (_int, _reduction + (_out,)),
    "gradsync_reduce_post": (_int, _rooted + (_out,)),
    "gradsync_barrier_post": (_int, (_ptr, _opts, _out)),
    "gradsync_send": (_int, _message),
    "gradsync_recv": (_int, _message + (_ptr,)),
    "gradsync_send_post": (_int, _message + (_out,)),
    "gradsync_recv_post": (_int, _message + (_ptr, _out)),
    "gradsync_mem_key": (_int, (_ptr, _ptr, _key)),
    "gradsync_put": (_int, _access),
    "gradsync_get": (_int, _access),
    "gradsync_put_post": (_int, _access + (_out,)),
    "gradsync_get_post": (_int, _access + (_out,)),
    "gradsync_signal": (_int, (_ptr, _int, _int)),
    "gradsync_signal_post": (_int, (_ptr, _int, _int, _out)),
    "gradsync_wait_signal": (_int, (_ptr, _int, _int, _u64)),
    "gradsync_signal_count": (_int, (_ptr, _int, _int, _ptr)),
    "gradsync_test": (_int, (_ptr,)),
    "gradsync_wait": (_int, (_ptr,)),
    "gradsync_wait_all": (_int, (_out, _size)),
    "gradsync_request_fd": (_int, (_ptr,)),
    "gradsync_request_free": (_int, (_ptr,)),
    "gradsync_request_report": (_int, (_ptr, c.POINTER(Report))),
    "gradsync_comm_report": (_int, (_ptr, c.POINTER(Report))),
    "gradsync_comm_explain": (_int, (_ptr, _int, _u64, _int, _int, _u32, _int, _ptr, _size)),
    "gradsync_comm_query": (_int, (_ptr, c.POINTER(CommInfo))),
    "gradsync_comm_peer": (_int, (_ptr, _int, c.POINTER(PeerInfo))),
    "gradsync_comm_rail": (_int, (_ptr, _int, c.POINTER(RailInfo))),
    "gradsync_comm_counters": (_int, (_ptr, c.POINTER(Counters))),
    "gradsync_context_query": (_int, (_ptr, c.POINTER(SystemInfo))),
    "gradsync_context_transport": (_int, (_ptr, _int, c.POINTER(TransportInfo))),
    "gradsync_distance_name": (_str, (_int,)),
    "gradsync_machine_read": (_int, (_str, _out)),
    "gradsync_machine_free": (_int, (_ptr,)),
    "gradsync_machine_query": (_int, (_ptr, c.POINTER(MachineInfo))),
    "gradsync_machine_node": (_int, (_ptr, _int)),
    "gradsync_machine_port": (_int, (_ptr, _int, c.POINTER(PortInfo))),
    "gradsync_machine_gid": (_int, (_ptr, _int, _int, c.POINTER(GidInfo))),
    "gradsync_machine_gpu": (_int, (_ptr, _int, c.POINTER(GpuInfo))),
    "gradsync_machine_distance": (_int, (_ptr, c.POINTER(Place), c.POINTER(Place))),
    "gradsync_machine_rails": (_int, (_ptr, c.POINTER(Place), _int, _int, c.POINTER(RailChoice))),
    "gradsync_diagnose": (_int, (_str, _str, FindingFn, _ptr)),
}


def load(path: str) -> c.CDLL:
    """Opens the library and gives every function its types.

    Raises OSError if it cannot be opened, AttributeError if a function is missing.
    """
    lib = c.CDLL(path)
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = list(arguments)
    return lib
