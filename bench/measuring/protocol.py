"""What a measured process is asked, and what it replies: one JSON object a line, each way.

Both ends import this module; it needs nothing that takes memory, because the worker's peak is what is
reported. A request says its kind under "op". A reply holds the fields of its class and nothing else; which
class that is follows from the request, unless the worker could not do what it was asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from bench.metrics.parity import Parity

Reply = TypeVar("Reply")


@dataclass(frozen=True)
class MemoryUse:
    """What a process takes at one moment, in bytes; None where the system does not tell."""

    rss_bytes: int | None
    pss_bytes: int | None
    private_bytes: int | None


@dataclass(frozen=True)
class Opened:
    """A session was created.

    Attributes:
        session_ns: the processor's time for it.
        import_rss_bytes: resident memory just before.
        imported, created: memory before and after.
    """

    session_ns: int
    import_rss_bytes: int | None
    imported: MemoryUse
    created: MemoryUse


@dataclass(frozen=True)
class FirstRun:
    """The first inference; `samples` is how many different feeds there are."""

    first_run_ns: int
    samples: int
    memory: MemoryUse


@dataclass(frozen=True)
class Times:
    """The time of each inference, in order."""

    ns: Sequence[int]


@dataclass(frozen=True)
class BurstTimes:
    """The time of each inference of a burst, and how often the system took the core away meanwhile."""

    ns: Sequence[int]
    switches: int


@dataclass(frozen=True)
class StreamTimes:
    """The times of every stream, [streams][any], and how long they all took by the clock."""

    ns: Sequence[Sequence[int]]
    elapsed_ns: int


@dataclass(frozen=True)
class PeakMemory:
    """The peak of resident memory since just before the session was created, and what is taken now."""

    peak_rss_bytes: int | None
    steady: MemoryUse


@dataclass(frozen=True)
class Nearness:
    """How near outputs come to those that accuracy was computed from."""

    sqnr_db: float


@dataclass(frozen=True)
class Predicted:
    """The class of each sample of an evaluation set, its label and its name, where it has them."""

    predictions: Sequence[int]
    labels: Sequence[int] | None
    ids: Sequence[str] | None


@dataclass(frozen=True)
class Refusal:
    """What is wrong with the input: an error of `bench.core.errors`, by the name of its class."""

    error: str
    place: str
    cause: str
    fix: str


@dataclass(frozen=True)
class Fault:
    """An unforeseen exception, and its traceback."""

    fault: str
    cause: str
    trace: str


@dataclass(frozen=True)
class Request(Generic[Reply]):
    """What a worker is asked; `reply` is the class of its reply."""

    op: ClassVar[str]
    reply: ClassVar[type[object]]


@dataclass(frozen=True)
class Open(Request[Opened]):
    """Create the session.

    Attributes:
        model: the .onnx.
        feeds: an `.npz` of feeds that take turns; None for random ones.
        threads: intra-op threads.
        arena: whether ONNX Runtime's memory arena is on.
        cores: those that the process is kept on; None for any.
        exact_sums: no sum of int8 products saturates, on whatever CPU.
    """

    op, reply = "open", Opened
    model: str
    feeds: str | None
    threads: int
    arena: bool
    cores: Sequence[int] | None
    exact_sums: bool = False


@dataclass(frozen=True)
class First(Request[FirstRun]):
    """Run for the first time, on the first feeds."""

    op, reply = "first", FirstRun


@dataclass(frozen=True)
class Warm(Request[Times]):
    """Run until the times stop falling, or until the limit."""

    op, reply = "warm", Times
    limit_ns: int


@dataclass(frozen=True)
class Burst(Request[BurstTimes]):
    """Time `count` inferences after `untimed` ones that refill the caches."""

    op, reply = "burst", BurstTimes
    count: int
    untimed: int


@dataclass(frozen=True)
class Memory(Request[PeakMemory]):
    """Tell the memory of the process."""

    op, reply = "memory", PeakMemory


@dataclass(frozen=True)
class Predict(Request[Predicted]):
    """Classify a whole evaluation set, and write the outputs of its first samples to `outputs`."""

    op, reply = "predict", Predicted
    evaluation: str
    outputs: str


@dataclass(frozen=True)
class Check(Request[Nearness]):
    """Compare outputs of the timed feeds with those that `Predict` wrote."""

    op, reply = "check", Nearness
    outputs: str


@dataclass(frozen=True)
class Streams(Request[StreamTimes]):
    """Run from `count` threads at once for a while."""

    op, reply = "streams", StreamTimes
    count: int
    duration_ns: int


@dataclass(frozen=True)
class Batch(Request[Times]):
    """Run batches of `size` samples for a while."""

    op, reply = "batch", Times
    size: int
    duration_ns: int


@dataclass(frozen=True)
class Golden(Request[Parity]):
    """Run an artifact's golden feeds and compare with the outputs expected of them."""

    op, reply = "golden", Parity
    golden: str


REQUESTS = (Open, First, Warm, Burst, Memory, Predict, Check, Streams, Batch, Golden)
AnyRequest = Open | First | Warm | Burst | Memory | Predict | Check | Streams | Batch | Golden
AnyReply = (
    Opened
    | FirstRun
    | Times
    | BurstTimes
    | PeakMemory
    | Predicted
    | Nearness
    | StreamTimes
    | Parity
    | Refusal
    | Fault
)


def request_line(request: Request[Reply]) -> bytes:
    """A request as a line."""
    return json.dumps({"op": request.op, **vars(request)}).encode() + b"\n"


def read_request(line: bytes) -> AnyRequest:
    """The request of a line."""
    arguments = json.loads(line)
    kind = {kind.op: kind for kind in REQUESTS}[arguments.pop("op")]
    request: AnyRequest = kind(**arguments)
    return request


def reply_line(reply: AnyReply) -> str:
    """A reply as a line. Nothing is copied: memory that a reply takes would count as the model's."""
    return json.dumps(reply, default=vars) + "\n"
