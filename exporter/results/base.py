"""Base classes of all results."""

from __future__ import annotations

from typing import ClassVar

from pydantic import JsonValue, SerializerFunctionWrapHandler, model_serializer

from bench.core.schema import FrozenModel


class Figures(FrozenModel):
    """Immutable, typed figures that the cache and the manifest store as JSON.

    A field whose value is its default is not written, so a figure that does not apply has no key.
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
    """The result of a step of a build.

    Attributes:
        warnings: problems that the user should look at, one line each.
    """

    # The kind of the step, as written in recipes, cache and manifest.
    kind: ClassVar[str]

    warnings: tuple[str, ...] = ()

    def headline(self) -> tuple[str, ...]:
        """The most important figures, as short texts for the progress line."""
        return ()
