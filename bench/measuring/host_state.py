"""The state of the host during a measurement, read between bursts: clock, temperature, other load.

A figure is None if the host does not report it. A missing sensor must not look like a good reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.core.schema import FrozenModel

# The low four bits of the firmware's word are the present state: under-voltage, capped, throttled, hot.
_PI_THROTTLED = Path("sys/devices/platform/soc/soc:firmware/get_throttled")
_PI_NOW = 0xF


class HostState(FrozenModel):
    """One reading of the host.

    Attributes:
        frequency_khz: the highest current clock of the measured cores (cpufreq, scaling_cur_freq).
        frequency_limit_khz: the lowest of the cores' maximum clocks (scaling_max_freq). The system lowers
            this limit to cool a board.
        temperature_mc: temperature of the hottest thermal zone, in thousandths of a degree Celsius.
        throttle_bits: the firmware's current reasons to slow down; 0 means none (Raspberry Pi).
        throttle_count: how often the measured cores were slowed down because of heat since boot (x86,
            thermal_throttle).
        steal_ticks: time that the hypervisor gave to other machines since boot, in clock ticks (proc(5),
            stat).
        load_1min: load average of the last minute.
    """

    frequency_khz: int | None = None
    frequency_limit_khz: int | None = None
    temperature_mc: int | None = None
    throttle_bits: int | None = None
    throttle_count: int | None = None
    steal_ticks: int | None = None
    load_1min: float | None = None


def read_state(cores: Sequence[int] | None, root: Path = Path("/")) -> HostState:
    """Read the state of the host.

    Args:
        cores: the measured cores; None for all.
        root: folder that contains `proc` and `sys`.
    """
    cpu = root / "sys/devices/system/cpu"
    names = [f"cpu{core}" for core in cores] if cores is not None else ["cpu[0-9]*"]
    throttled = _integer(root / _PI_THROTTLED, base=16)
    counts = _integers(cpu, (f"{name}/thermal_throttle/core_throttle_count" for name in names))
    load = _text(root / "proc/loadavg").split()
    return HostState(
        frequency_khz=max(
            _integers(cpu, (f"{name}/cpufreq/scaling_cur_freq" for name in names)), default=None
        ),
        frequency_limit_khz=min(
            _integers(cpu, (f"{name}/cpufreq/scaling_max_freq" for name in names)), default=None
        ),
        temperature_mc=max(_integers(root / "sys/class/thermal", ["thermal_zone*/temp"]), default=None),
        throttle_bits=None if throttled is None else throttled & _PI_NOW,
        throttle_count=sum(counts) if counts else None,
        steal_ticks=_steal(_text(root / "proc/stat")),
        load_1min=float(load[0]) if load else None,
    )


def throttled(states: Iterable[HostState]) -> bool:
    """Whether the host slowed down because of heat or power during or between the readings."""
    seen = list(states)
    counts = [state.throttle_count for state in seen if state.throttle_count is not None]
    limits = {state.frequency_limit_khz for state in seen} - {None}
    return (
        any(state.throttle_bits for state in seen)
        or (len(counts) > 1 and counts[-1] > counts[0])
        or len(limits) > 1
    )


def _steal(stat: str) -> int | None:
    fields = stat.partition("\n")[0].split()
    return int(fields[8]) if len(fields) > 8 and fields[0] == "cpu" else None


def _integers(folder: Path, patterns: Iterable[str]) -> list[int]:
    read = (_integer(path) for pattern in patterns for path in folder.glob(pattern))
    return [value for value in read if value is not None]


def _integer(path: Path, base: int = 10) -> int | None:
    try:
        return int(_text(path), base)
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
