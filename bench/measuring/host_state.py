"""What the host is doing while it measures, read between bursts: clock, heat, neighbours.

Every figure is None where this host does not tell it: a missing sensor must not read as a calm one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.core.schema import FrozenModel

# The low four bits of the firmware's word say what holds now: under-voltage, capped, throttled, hot.
_PI_THROTTLED = Path("sys/devices/platform/soc/soc:firmware/get_throttled")
_PI_NOW = 0xF


class HostState(FrozenModel):
    """One reading of the host.

    Attributes:
        frequency_khz: the fastest clock among the measured cores (cpufreq, scaling_cur_freq).
        frequency_limit_khz: the lowest clock that the system caps one of them at (scaling_max_freq);
            what cools a board lowers it.
        temperature_mc: the hottest thermal zone, in thousandths of a degree Celsius.
        throttle_bits: the firmware's present reasons to slow down; 0 is "none" (Raspberry Pi).
        throttle_count: how often cores were slowed for heat since boot (x86, thermal_throttle).
        steal_ticks: time that the hypervisor gave to others since boot, in clock ticks (proc(5), stat).
        load_1min: the load average of one minute.
    """

    frequency_khz: int | None = None
    frequency_limit_khz: int | None = None
    temperature_mc: int | None = None
    throttle_bits: int | None = None
    throttle_count: int | None = None
    steal_ticks: int | None = None
    load_1min: float | None = None


def read_state(cores: Sequence[int] | None, root: Path = Path("/")) -> HostState:
    """Read the host's state; `root` is where `proc` and `sys` are found."""
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
    """Whether the host slowed down for heat or power in any of the readings, or between them."""
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
