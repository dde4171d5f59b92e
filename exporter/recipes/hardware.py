"""`[train]` and `[bench]`: the hardware that stages train and the build measures on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bench.core.schema import FrozenModel


class TrainConfig(FrozenModel):
    """`[train]`: the hardware that stages train on. Other than one CPU process: extra `train`."""

    accelerator: Literal["cpu", "gpu", "auto"] = Field(
        "cpu", description="`auto` is the GPU where there is one. GPUs do not give the CPU's very numbers."
    )
    devices: int = Field(
        1, ge=1, le=1024, description="Processes a machine, a GPU each; they share a batch."
    )
    nodes: int = Field(
        1,
        ge=1,
        le=1024,
        description="Machines, with one file system between them; on each but the first runs "
        "`edgeproof follow`.",
    )
    main: str = Field(
        "127.0.0.1:29500",
        pattern=r"^[A-Za-z0-9._-]+:[0-9]{1,5}$",
        description="`host:port` of the first machine, for the others; the port after it is used too.",
    )
    precision: Literal["32", "bf16-mixed"] = Field(
        "32", description="Of forward and backward pass; weights stay at 32 bit."
    )


class BenchConfig(FrozenModel):
    """`[bench]`: how the build measures."""

    threads: int = Field(1, ge=1, le=1024, description="Threads of each session.")
