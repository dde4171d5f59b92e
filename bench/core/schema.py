"""Strict validation of structured files, with one clear line for the first error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

# A JSON object, as in the output of commands and in files.
Json: TypeAlias = dict[str, JsonValue]
THE_FILE = "the file"


class FrozenModel(BaseModel):
    """Base class of objects read from a file: immutable, strictly typed, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def explain_validation(error: ValidationError, model: type[BaseModel]) -> tuple[str, str, str]:
    """Return place, cause and fix of the first error that pydantic found.

    If a value may have several forms (a union of types), the error is about the form that fits best.
    """
    found = _nearest(error.errors(include_url=False), model)
    parts = _follow(model, found["loc"])[0]
    kind, context = found["type"], found.get("ctx", {})
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        parts.append(context["discriminator"].strip("'"))
    place = ".".join(parts) or THE_FILE
    if kind == "extra_forbidden":
        holder = _follow(model, found["loc"][:-1])[2]
        known = sorted(_fields(holder)) if _is_model(holder) else []
        return place, "unknown key", f"use one of: {', '.join(known)}" if known else "remove it"
    if kind in {"missing", "union_tag_not_found"}:
        return place, "is missing", "add it"
    if kind == "union_tag_invalid":
        return place, f"{context['tag']!r} is refused", f"choose one of {context['expected_tags']}"
    message = found["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = found["input"]
    # The message does not quote a table or list. A rule about it names the keys; for a wrong type, the
    # kind (table or list) is enough.
    whole = isinstance(given, Mapping | list | tuple)
    if whole and kind == "value_error":
        cause, _, fix = message.partition("; " if "; " in message else ": ")
        return place, cause, fix or "correct it"
    if whole and given:
        return place, f"a {'table' if isinstance(given, Mapping) else 'list'} is refused", message
    text = repr(given)
    return place, f"{text if len(text) <= 60 else text[:59] + '…'} is refused", message


def _nearest(errors: Sequence[ErrorDetails], model: type[BaseModel]) -> ErrorDetails:
    """Return the first error; for a union of forms, the first error of the form with the fewest errors."""
    forks = _follow(model, errors[0]["loc"])[1]
    if not forks:
        return errors[0]
    value = errors[0]["loc"][: forks[0]]
    forms: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for error in errors:
        if error["loc"][: len(value)] == value:
            last = _follow(model, error["loc"])[1][-1]
            forms.setdefault(error["loc"][: last + 1], []).append(error)

    def distance(form: tuple[int | str, ...]) -> tuple[bool, int]:
        # An error in the type of the whole value (a list for a string) means that the user did not intend
        # this form. If that holds for every form, the most deeply nested value is the wrong one.
        first = forms[form][0]
        unlike = first["loc"] == form and first["type"].endswith("_type")
        return unlike, -len(form) if unlike else len(forms[form])

    return forms[min(forms, key=distance)][0]


def _follow(model: type[BaseModel], location: Sequence[int | str]) -> tuple[list[str], list[int], object]:
    """Translate a location of pydantic into the keys of the file.

    If a value may have several forms, pydantic adds the name of the form that it tried. Such names do not
    occur in the file, so they are left out.

    Returns:
        The keys; the indices of the form names in `location`; the type at the location, or None.
    """
    parts: list[str] = []
    forks: list[int] = []
    at: object = model
    for index, part in enumerate(location):
        at, tag = _bare(at)
        forms = _forms(at)
        if forms and tag is None:
            forks.append(index)
            at = next((form for form in forms if _is_called(form, str(part))), None)
            continue
        parts.append(str(part))
        if forms:
            at = next((form for form in forms if part in _tags(form, str(tag))), None)
        elif _is_model(at):
            field = _fields(at).get(str(part))
            at = None if field is None else Annotated[field.annotation, field]
        else:
            inner = get_args(at)
            at = inner[-1 if get_origin(at) is dict else 0] if inner else None
    return parts, forks, _bare(at)[0]


def _bare(annotation: object) -> tuple[object, str | None]:
    """Return a type without `| None` and annotations, and the discriminator key if it has one."""
    tag = None
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *notes = get_args(annotation)
            tag = next((t for note in notes if (t := getattr(note, "discriminator", None))), tag)
        elif len(forms := _forms(annotation)) == 1:
            annotation = forms[0]
        else:
            return annotation, tag


def _forms(annotation: object) -> list[object]:
    """Return the members of a union except None; an empty list for other types."""
    if get_origin(annotation) not in {Union, UnionType}:
        return []
    return [form for form in get_args(annotation) if form is not NoneType]


def _is_called(form: object, name: str) -> bool:
    """Whether `name` is pydantic's name of a union member: the class name, or as in `tuple[str, ...]`."""
    form = _bare(form)[0]
    if get_origin(form) is None:
        return name == getattr(form, "__name__", None)
    kind = "union" if _forms(form) else getattr(get_origin(form), "__name__", "")
    return name.startswith(f"{kind}[")


def _tags(form: object, key: str) -> tuple[object, ...]:
    """Return the values of the discriminator `key` that select this table."""
    return get_args(form.model_fields[key].annotation) if _is_model(form) else ()


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a table by their keys in the file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _is_model(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
