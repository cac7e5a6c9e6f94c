"""Identities as the `parameters` of a model's metadata, where all values are scalars.

Lists are joined by commas, sentences by newlines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, get_type_hints

from triptych.contract import (
    DecoderIdentity,
    DiffusionIdentity,
    ImageEncoderIdentity,
    Memory,
    Numerics,
    Task,
    TextEncoderIdentity,
)
from triptych.errors import MalformedRequest
from triptych.wire.open_inference import Scalar

Identity = TypeVar("Identity", TextEncoderIdentity, DiffusionIdentity, DecoderIdentity, ImageEncoderIdentity)

_NUMERICS = "numerics_"


def to_parameters(identity: TextEncoderIdentity | DiffusionIdentity | DecoderIdentity) -> dict[str, Scalar]:
    """The identity's fields under their own names; those of its numerics as `numerics_engine` and so on."""
    parameters: dict[str, Scalar] = {}
    for field in dataclasses.fields(identity):
        value = getattr(identity, field.name)
        if isinstance(value, Numerics):
            parameters |= {_NUMERICS + name: part for name, part in value.told().items()}
        elif isinstance(value, tuple):
            parameters[field.name] = _separator(field.name).join(map(_write_element, value))
        else:
            parameters[field.name] = value
    return parameters


def memory_parameters(memory: Memory | None) -> dict[str, Scalar]:
    """What pictures cost at a stage; nothing where it does not count that."""
    if memory is None:
        return {}
    pictures = ",".join(f"{width}x{height}={size}" for (width, height), size in memory.picture_bytes.items())
    return {"memory_bytes": memory.most_bytes, "picture_bytes": pictures, "call_bytes": memory.call_bytes}


def from_parameters(kind: type[Identity], parameters: Mapping[str, Any]) -> Identity:
    """The identity in a model's parameters; those it does not know are passed over, those it can do without may be missing.

    Raises:
        MalformedRequest: One is missing or cannot be read.
    """
    optional = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in parameters or name not in optional}
    return kind(**{name: _read(name, hint, parameters) for name, hint in hints.items()})


def _read(name: str, hint: Any, parameters: Mapping[str, Any]) -> Any:
    if hint is Numerics:
        return Numerics(**dict(_numerics(parameters)))
    if hint in _ELEMENTS:
        return _read_list(name, _need(parameters, name, str), _ELEMENTS[hint])
    return _need(parameters, name, hint)


def _numerics(parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(Numerics):
        if field.default is dataclasses.MISSING or _NUMERICS + field.name in parameters:
            yield field.name, _need(parameters, _NUMERICS + field.name, str)


def _need(parameters: Mapping[str, Any], name: str, kind: type) -> Any:
    value = parameters.get(name)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise MalformedRequest(
            f"the metadata has no parameter {name}" if value is None else f"{name} in the metadata is no {kind.__name__}"
        )
    return value


def _read_list(name: str, text: str, read: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(read(element) for element in text.split(_separator(name)) if element)
    except ValueError:
        raise MalformedRequest(f"{name} in the metadata cannot be read: {text[:64]!r}") from None


def _read_size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return width, height


def _separator(name: str) -> str:
    return "\n" if name == "warnings" else ","


def _write_element(element: Any) -> str:
    return "x".join(map(str, element)) if isinstance(element, tuple) else str(element)


_ELEMENTS: dict[Any, Callable[[str], Any]] = {
    tuple[str, ...]: str,
    tuple[int, ...]: int,
    tuple[Task, ...]: Task,
    tuple[tuple[int, int], ...]: _read_size,
}
