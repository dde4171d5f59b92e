"""Requests to a measured process and its replies: one JSON object per line in each direction.

Both sides import this module. Its imports use little memory, because the worker's peak memory is reported.
A request states its kind under "op". A reply has exactly the fields of its class. The request determines
that class, unless the worker failed: then the reply is a `Refusal` or a `Fault`.
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
    """Memory use of a process at one moment, in bytes; None if the system does not report it."""

    rss_bytes: int | None
    pss_bytes: int | None
    private_bytes: int | None


@dataclass(frozen=True)
class Opened:
    """Reply to `Open`: the session was created.

    Attributes:
        session_ns: CPU time used to create the session.
        import_rss_bytes: resident memory just before the session was created.
        imported, created: memory use before and after the session was created.
    """

    session_ns: int
    import_rss_bytes: int | None
    imported: MemoryUse
    created: MemoryUse


@dataclass(frozen=True)
class FirstRun:
    """Reply to `First`: time of the first inference, number of different feeds, and memory use after it."""

    first_run_ns: int
    samples: int
    memory: MemoryUse


@dataclass(frozen=True)
class Times:
    """Times of the inferences, in order."""

    ns: Sequence[int]


@dataclass(frozen=True)
class BurstTimes:
    """Times of the inferences of a burst, and the number of involuntary context switches during it."""

    ns: Sequence[int]
    switches: int


@dataclass(frozen=True)
class StreamTimes:
    """Times of the inferences of every stream, [streams][any], and the wall-clock time of all together."""

    ns: Sequence[Sequence[int]]
    elapsed_ns: int


@dataclass(frozen=True)
class PeakMemory:
    """Peak resident memory since just before the session was created, and the present memory use."""

    peak_rss_bytes: int | None
    steady: MemoryUse


@dataclass(frozen=True)
class Nearness:
    """SQNR of the outputs for the timed feeds, against the outputs from which accuracy was computed."""

    sqnr_db: float


@dataclass(frozen=True)
class Predicted:
    """Predicted class of each evaluation sample; labels and names if the evaluation set has them."""

    predictions: Sequence[int]
    labels: Sequence[int] | None
    ids: Sequence[str] | None


@dataclass(frozen=True)
class Refusal:
    """Reply if the input is wrong: an error of `bench.core.errors`.

    Attributes:
        error: name of the error's class.
        place, cause, fix: the three parts of the error message.
    """

    error: str
    place: str
    cause: str
    fix: str


@dataclass(frozen=True)
class Fault:
    """Reply after an unexpected exception.

    Attributes:
        fault: file and line in edgeproof.
        cause: type and message of the exception.
        trace: traceback of the exception.
    """

    fault: str
    cause: str
    trace: str


@dataclass(frozen=True)
class Request(Generic[Reply]):
    """A request to a worker.

    Attributes:
        op: the kind of request.
        reply: class of the reply if the worker does not fail.
    """

    op: ClassVar[str]
    reply: ClassVar[type[object]]


@dataclass(frozen=True)
class Open(Request[Opened]):
    """Create the session.

    Attributes:
        model: path of the .onnx file.
        feeds: path of an `.npz` with feeds, which are used in turn; None for random feeds.
        threads: number of intra-op threads.
        arena: whether ONNX Runtime's memory arena is on.
        cores: the cores that the process is pinned to; None for no pinning.
        exact_sums: compute sums of int8 products without saturation, whatever the CPU.
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
    """Run the first inference, on the first feeds."""

    op, reply = "first", FirstRun


@dataclass(frozen=True)
class Warm(Request[Times]):
    """Run inferences until their times stop falling, or until the time limit."""

    op, reply = "warm", Times
    limit_ns: int


@dataclass(frozen=True)
class Burst(Request[BurstTimes]):
    """Run `untimed` inferences to refill the caches, then time `count` inferences."""

    op, reply = "burst", BurstTimes
    count: int
    untimed: int


@dataclass(frozen=True)
class Memory(Request[PeakMemory]):
    """Report the memory use of the process."""

    op, reply = "memory", PeakMemory


@dataclass(frozen=True)
class Predict(Request[Predicted]):
    """Classify a whole evaluation set, and write the outputs of its first samples to `outputs`."""

    op, reply = "predict", Predicted
    evaluation: str
    outputs: str


@dataclass(frozen=True)
class Check(Request[Nearness]):
    """Compare the outputs for the timed feeds with the outputs that `Predict` wrote."""

    op, reply = "check", Nearness
    outputs: str


@dataclass(frozen=True)
class Streams(Request[StreamTimes]):
    """Run inferences from `count` threads at the same time for `duration_ns`."""

    op, reply = "streams", StreamTimes
    count: int
    duration_ns: int


@dataclass(frozen=True)
class Batch(Request[Times]):
    """Run batches of `size` samples for `duration_ns`."""

    op, reply = "batch", Times
    size: int
    duration_ns: int


@dataclass(frozen=True)
class Golden(Request[Parity]):
    """Run an artifact's golden feeds and compare the outputs with the expected ones."""

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
    """Encode a request as a line."""
    return json.dumps({"op": request.op, **vars(request)}).encode() + b"\n"


def read_request(line: bytes) -> AnyRequest:
    """Decode the request in a line."""
    arguments = json.loads(line)
    kind = {kind.op: kind for kind in REQUESTS}[arguments.pop("op")]
    request: AnyRequest = kind(**arguments)
    return request


def reply_line(reply: AnyReply) -> str:
    """Encode a reply as a line.

    The reply is not copied, because a copy would be measured as memory of the model.
    """
    return json.dumps(reply, default=vars) + "\n"
