"""How close an int8 model is to the float model, and the remedies that were tried."""

from __future__ import annotations

from exporter.results.base import Figures

ADVICE = (
    "try another range method, the repair adaround, or a largest accuracy drop; else use the float model"
)
# A bound this near to the estimate says nothing more.
_NEAR_DB = 1.0


class Closeness(Figures):
    """Outputs of an int8 model compared with those of the float model.

    Attributes:
        sqnr_db: SQNR of the output with the lowest SQNR, in dB.
        sqnr_lower_db: lower 95 % bound of it for other samples, in dB; None if the samples are too few.
        output: name of that output.
        agreement: fraction of samples whose largest value is at the same index, in the output with the
            lowest agreement; None if no output has the form [N, classes].
    """

    sqnr_db: float
    output: str
    agreement: float | None
    sqnr_lower_db: float | None = None

    def text(self) -> str:
        """The figures in words. The bound is stated if the samples differ much."""
        found = f"SQNR {self.sqnr_db:.1f} dB"
        if self.sqnr_lower_db is not None and self.sqnr_lower_db < self.sqnr_db - _NEAR_DB:
            found += f" (at least {self.sqnr_lower_db:.1f} dB)"
        return found if self.agreement is None else f"{found}, agreement {self.agreement:.1%}"


class Remedy(Figures):
    """A change that was tried because the int8 model was not close to the float model.

    Attributes:
        remedy: the change.
        kept: whether the written model has it.
        before: closeness without the change.
        after: closeness with the change.
        in_float: nodes that the change left in float.
    """

    remedy: str
    kept: bool
    before: Closeness
    after: Closeness
    in_float: tuple[str, ...] = ()

    def line(self) -> str:
        """The report in one line."""
        text = f"{self.remedy}: {self.before.text()}, then {self.after.text()}"
        return text if self.kept else f"{text}; not kept"


class Fidelity(Closeness):
    """Closeness of the written int8 model, measured on few samples.

    Attributes:
        samples: number of samples.
        held_out: whether these samples were left out of calibration.
        low: whether the outputs differ so much that the model may not be useful.
        first_layers: if `low`, the first layers in graph order whose results are far from float.
        remedies: the changes that were tried.
    """

    samples: int
    held_out: bool
    low: bool
    first_layers: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()

    def lines(self) -> list[str]:
        """The figures, and the remedies that were kept, for people."""
        where = "held-out" if self.held_out else "calibration"
        found = [f"against float on {self.samples} {where} samples: {self.text()}"]
        return [*found, *(f"remedy: {remedy.line()}" for remedy in self.remedies if remedy.kept)]

    def warning(self) -> str | None:
        """The warning about a low fidelity, with its place and what to try; None if it is not low."""
        if not self.low:
            return None
        where = "held-out samples" if self.held_out else "the calibration samples"
        text = f"the int8 model differs much from float: {self.text()} in output {self.output!r} on {where}"
        if self.first_layers:
            text += f"; the error begins at {', '.join(self.first_layers)}"
        return f"{text}; {ADVICE}"
