"""The host's fingerprint: two measurements are comparable only if their fingerprints are equal."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final, Literal

from bench.core.model_file import read_model_file
from bench.core.schema import FrozenModel

# The kinds of CPU that int8 models are made for; a `portable` model gives correct results on every CPU.
ConcreteTarget = Literal["x86-vnni", "x86-avx2", "arm64", "portable"]
PORTABLE: Final = "portable"
# Metadata key for the kind of CPU in an .onnx that edgeproof wrote.
TARGET_KEY: Final = "edgeproof.target"

# CPU flags by which ONNX Runtime selects its integer kernel.
_DECISIVE_FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8",
    "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


class HostFingerprint(FrozenModel):
    """A CPU and the software that runs models on it; a value that cannot be read is None."""

    machine: str
    system: str
    cpu_model: str | None
    cpu_flags: tuple[str, ...]
    cpu_count: int | None
    memory_bytes: int | None
    python: str
    numpy: str
    onnxruntime: str


def fingerprint() -> HostFingerprint:
    """Read this host's fingerprint."""
    from importlib.metadata import version

    model, flags = cpu_info()
    return HostFingerprint(
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cpu_model=model,
        cpu_flags=flags,
        cpu_count=os.cpu_count(),
        memory_bytes=_memory_bytes(),
        python=platform.python_version(),
        numpy=version("numpy"),
        onnxruntime=version("onnxruntime"),
    )


def has_vnni(host: HostFingerprint) -> bool:
    """Whether the CPU sums 8-bit products in 32 bits, so U8S8 products cannot saturate."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(host.cpu_flags)


def host_target(host: HostFingerprint) -> ConcreteTarget:
    """Return the kind of CPU of a host."""
    if host.machine in {"aarch64", "arm64"}:
        return "arm64"
    if host.machine in {"x86_64", "AMD64"}:
        return "x86-vnni" if has_vnni(host) else "x86-avx2"
    return PORTABLE


def stated_target(model: Path) -> str | None:
    """Return the kind of CPU that an .onnx was made for, from its metadata; None if it states none."""
    return read_model_file(model).metadata.get(TARGET_KEY)


def other_target(target: str | None, host: HostFingerprint) -> str | None:
    """Return `target` if it is another kind of CPU than `host` has: times on `host` then do not apply.

    Return None if the model states no kind, or was made for every kind or for this one.
    """
    return None if target in (None, PORTABLE, host_target(host)) else target


def available_cores() -> tuple[int, ...] | None:
    """Return the cores that this process may run on, or None if the system does not provide them."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return tuple(sorted(os.sched_getaffinity(0)))


def cpu_info(root: Path = Path("/")) -> tuple[str | None, tuple[str, ...]]:
    """Return the CPU's name and its flags that select a kernel; `root` is the folder of `proc`."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None, ()
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
    words = set((fields.get("flags") or fields.get("features") or "").split())
    part = f"implementer {fields.get('cpu implementer')} part {fields.get('cpu part')}"
    model = fields.get("model name") or (part if "cpu part" in fields else None)
    return model, tuple(flag for flag in _DECISIVE_FLAGS if flag in words)


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
