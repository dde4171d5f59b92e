"""Recurrent layers: RNN, GRU and LSTM, in one direction or in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from exporter.training.qat.operators.table import Attributes, Operator

_Activation = Callable[[Tensor], Tensor]
_States = tuple[Tensor, ...]
# (sums of the input, states) -> states; the first state is the output.
_Cell = Callable[[Tensor, _States], _States]
_ACTIVATIONS: dict[str, _Activation] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softsign": functional.softsign,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
}


def is_known(attributes: Attributes) -> bool:
    """Whether `OPERATORS` can run a recurrent layer: time first, and activations without parameters."""
    activations = [name.decode().lower() for name in attributes.get("activations", [])]
    return not attributes.get("layout") and set(activations) <= _ACTIVATIONS.keys()


def _activations(attributes: Attributes, direction: int, defaults: Sequence[str]) -> list[_Activation]:
    stated = [name.decode().lower() for name in attributes.get("activations", [])]
    names = stated[direction * len(defaults) :][: len(defaults)] or defaults
    return [_ACTIVATIONS[name] for name in names]


def _clipped(attributes: Attributes, sums: Tensor) -> Tensor:
    limit = attributes.get("clip")
    return sums if limit is None else sums.clamp(-limit, limit)


def _layer(
    attributes: Attributes,
    inputs: Sequence[Tensor | None],
    cells: Callable[[int, Tensor, Tensor | None], _Cell],
    state_count: int,
) -> tuple[Tensor, ...]:
    """Run cells along time, in each direction.

    Args:
        attributes: the attributes of the node.
        inputs: x [L, N, inputs], weights [directions, gates, inputs], recurrent weights [directions, gates,
            size], and if given biases [directions, 2 * gates], lengths [N] and initial states
            [directions, N, size].
        cells: (direction, recurrent weights, biases) -> the cell.
        state_count: number of states of a cell.

    Returns:
        The outputs [L, directions, N, size], and the last states [directions, N, size].
    """
    x, weights, recurrent, biases, lengths, *initial = (*inputs, *[None] * 7)[: 5 + state_count]
    assert x is not None
    assert weights is not None
    assert recurrent is not None
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    outputs, lasts = [], []
    for number, back in enumerate(backwards[attributes.get("direction", "forward")]):
        bias = None if biases is None else biases[number]
        zeros = x.new_zeros(x.shape[1], recurrent.shape[-1])
        states = tuple(zeros if state is None else state[number] for state in initial)
        cell = cells(number, recurrent[number], bias)
        output, states = _along_time(x @ weights[number].t(), states, cell, lengths, back=back)
        outputs.append(output)
        lasts.append(states)
    last = tuple(torch.stack(states) for states in zip(*lasts, strict=True))
    return torch.stack(outputs, 1), *last


def _along_time(
    sums: Tensor, states: _States, cell: _Cell, lengths: Tensor | None, *, back: bool
) -> tuple[Tensor, _States]:
    """Run a cell over sums of the input [L, N, gates]; after its length, a sequence keeps its states."""
    outputs: list[Tensor] = []
    for time in reversed(range(len(sums))) if back else range(len(sums)):
        found = cell(sums[time], states)
        if lengths is None:
            states, output = found, found[0]
        else:
            inside = (time < lengths)[:, None]
            states = tuple(torch.where(inside, *pair) for pair in zip(found, states, strict=True))
            output = torch.where(inside, found[0], torch.zeros_like(found[0]))
        outputs.append(output)
    return torch.stack(outputs[::-1] if back else outputs), states


def _rnn(attributes: Attributes, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    def cells(number: int, recurrent: Tensor, bias: Tensor | None) -> _Cell:
        (activation,) = _activations(attributes, number, ["tanh"])
        shift = 0.0 if bias is None else bias.reshape(2, -1).sum(0)

        def cell(sums: Tensor, states: _States) -> _States:
            return (activation(_clipped(attributes, sums + states[0] @ recurrent.t() + shift)),)

        return cell

    return _layer(attributes, inputs, cells, 1)


def _gru(attributes: Attributes, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """Gates in the order update z, reset r, hidden h (ONNX's text of GRU-14)."""

    def cells(number: int, recurrent: Tensor, bias: Tensor | None) -> _Cell:
        gate, hidden = _activations(attributes, number, ["sigmoid", "tanh"])
        size = recurrent.shape[-1]
        own, again = recurrent.new_zeros(2, 3 * size) if bias is None else bias.reshape(2, -1)
        first, last = recurrent[: 2 * size].t(), recurrent[2 * size :].t()

        def cell(sums: Tensor, states: _States) -> _States:
            (state,) = states
            sums = sums + own
            both = sums[:, : 2 * size] + state @ first + again[: 2 * size]
            z, r = gate(_clipped(attributes, both)).chunk(2, -1)
            if attributes.get("linear_before_reset"):
                past = r * (state @ last + again[2 * size :])
            else:
                past = (r * state) @ last + again[2 * size :]
            h = hidden(_clipped(attributes, sums[:, 2 * size :] + past))
            return ((1 - z) * h + z * state,)

        return cell

    return _layer(attributes, inputs, cells, 1)


def _lstm(attributes: Attributes, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """Gates in the order input i, output o, forget f, cell c (ONNX's text of LSTM-14)."""
    peepholes = (*inputs, *[None] * 8)[7]

    def cells(number: int, recurrent: Tensor, bias: Tensor | None) -> _Cell:
        gate, candidate, hidden = _activations(attributes, number, ["sigmoid", "tanh", "tanh"])
        shift = 0.0 if bias is None else bias.reshape(2, -1).sum(0)
        zeros = recurrent.new_zeros(3, recurrent.shape[-1])
        seen = zeros if peepholes is None else peepholes[number].reshape(3, -1)

        def cell(sums: Tensor, states: _States) -> _States:
            state, memory = states
            i, o, f, c = (sums + state @ recurrent.t() + shift).chunk(4, -1)
            i = gate(_clipped(attributes, i + seen[0] * memory))
            f = (
                1 - i
                if attributes.get("input_forget")
                else gate(_clipped(attributes, f + seen[2] * memory))
            )
            memory = f * memory + i * candidate(_clipped(attributes, c))
            o = gate(_clipped(attributes, o + seen[1] * memory))
            return o * hidden(memory), memory

        return cell

    return _layer(attributes, inputs[:7], cells, 2)


OPERATORS: dict[str, Operator] = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}
