"""What every result has in common."""

from __future__ import annotations

from typing import ClassVar

from pydantic import JsonValue, SerializerFunctionWrapHandler, model_serializer

from bench.core.schema import FrozenModel


class Figures(FrozenModel):
    """Frozen, typed figures, written to the cache and the manifest by this one definition.

    A field whose value is its default is left out of JSON: what does not apply has no key.
    """

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        written: dict[str, JsonValue] = write(self)
        left_out = self.left_out()
        return {name: value for name, value in written.items() if name not in left_out}

    def left_out(self) -> set[str]:
        """Names of fields that are not written: those whose value is their default."""
        fields = type(self).model_fields.items()
        return {
            name
            for name, field in fields
            if not field.is_required() and getattr(self, name) == field.default
        }

    def as_json(self) -> dict[str, JsonValue]:
        """The result as JSON values."""
        return self.model_dump(mode="json")


class StepResult(Figures):
    """What a step of a build found.

    Attributes:
        warnings: what a person should look at, a line each.
    """

    # The kind of step, as recipes, cache and manifest call it.
    kind: ClassVar[str]

    warnings: tuple[str, ...] = ()

    def headline(self) -> tuple[str, ...]:
        """The one or two figures that a person waiting wants to see."""
        return ()
