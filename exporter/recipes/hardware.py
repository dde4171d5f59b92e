"""`[train]` and `[bench]`: the hardware to train on, and the threads to measure with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bench.core.schema import FrozenModel


class TrainConfig(FrozenModel):
    """`[train]`: the hardware to train on. Any other than one CPU process needs the extra `train`."""

    accelerator: Literal["cpu", "gpu", "auto"] = Field(
        "cpu",
        description="Device to train on; `auto` uses a GPU if there is one. Results on a GPU differ "
        "slightly from those on the CPU.",
    )
    devices: int = Field(
        1,
        ge=1,
        le=1024,
        description="Processes per machine, one GPU each; `batch_size` is divided among all processes.",
    )
    nodes: int = Field(
        1,
        ge=1,
        le=1024,
        description="Number of machines. They need a shared file system, and `edgeproof follow` must run "
        "on each machine except the first.",
    )
    main: str = Field(
        "127.0.0.1:29500",
        pattern=r"^[A-Za-z0-9._-]+:[0-9]{1,5}$",
        description="`host:port` at which the other machines reach the first one; the next port number is "
        "used too.",
    )
    precision: Literal["32", "bf16-mixed"] = Field(
        "32",
        description="Number format of the forward and backward pass; weights are always stored in 32 bits.",
    )


class BenchConfig(FrozenModel):
    """`[bench]`: settings of the build's measurements."""

    threads: int = Field(1, ge=1, le=1024, description="Number of threads of each ONNX Runtime session.")
