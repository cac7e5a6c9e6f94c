"""What a model says of itself, and whether tensors fit it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from triptych.errors import InvalidValue, MalformedRequest, NotSupported
from triptych.wire.datatypes import BYTES, DATATYPES, Array, bytes_tensor, datatype_of
from triptych.wire.open_inference import VERSION, Announced, InferRequest, Scalar, quoted

ANY = -1
"""A dimension that varies."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of a model. -1 stands for a dimension that varies, the first one being the rows.

    Attributes:
        may_be_empty: Whether it may have rows of no elements. Metadata do not say it: the protocol has no word for it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    may_be_empty: bool = field(default=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """A model: its tensors, and as `parameters` who it is."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    versions: tuple[str, ...] = (VERSION,)
    platform: str = "triptych"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": list(self.versions),
            "platform": self.platform,
            "inputs": [_spec_to_json(spec) for spec in self.inputs],
            "outputs": [_spec_to_json(spec) for spec in self.outputs],
            "parameters": dict(self.parameters),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelMetadata:
        """Reads another server's metadata.

        Raises:
            MalformedRequest: A field is missing or of another type than it must be.
        """
        try:
            return cls(
                name=value["name"],
                versions=tuple(value.get("versions", ())),
                platform=value.get("platform", ""),
                inputs=tuple(_spec_from_json(spec) for spec in value["inputs"]),
                outputs=tuple(_spec_from_json(spec) for spec in value["outputs"]),
                parameters=dict(value.get("parameters", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MalformedRequest(f"the metadata cannot be read: {error!r}") from error


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    optional = {"optional": True} if spec.optional else {}
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape), **optional}


def _spec_from_json(value: Mapping[str, Any]) -> TensorSpec:
    if value["datatype"] not in DATATYPES:
        raise ValueError(value["datatype"])
    return TensorSpec(
        name=value["name"],
        datatype=value["datatype"],
        shape=tuple(int(size) for size in value["shape"]),
        optional=bool(value.get("optional", False)),
    )


def check_inputs(tensors: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    """Refuses inputs that do not fit a model.

    Raises:
        InvalidValue: A name, datatype, shape or value; the sentence says what is allowed.
    """
    _check_known(tensors, specs)
    for spec in specs:
        if spec.name in tensors:
            check_tensor(tensors[spec.name], spec)
        elif not spec.optional:
            raise InvalidValue(f"the input {spec.name} is missing", param=spec.name)


def check_announced(tensors: Sequence[Announced], specs: Sequence[TensorSpec], *, max_rows: int) -> None:
    """Refuses inputs that will not fit a model by what is said of them, before any of them is made.

    Raises:
        InvalidValue: A name, datatype, shape or number of rows; the sentence says what is allowed.
    """
    _check_known([tensor.name for tensor in tensors], specs)
    by_name = {spec.name: spec for spec in specs}
    for tensor in tensors:
        spec = by_name[tensor.name]
        _check_datatype(tensor.datatype, spec)
        check_shape(tensor.shape, spec)
        if tensor.shape[0] > max_rows:
            raise InvalidValue(f"{spec.name} has {tensor.shape[0]} rows; this service takes {max_rows}", param=spec.name)


def _check_known(names: Iterable[str], specs: Sequence[TensorSpec]) -> None:
    if unknown := sorted(set(names) - {spec.name for spec in specs}):
        known = ", ".join(spec.name for spec in specs)
        raise InvalidValue(f"there is no input {quoted(unknown[0])}; the inputs are {known}", param=unknown[0])


def check_tensor(array: Array, spec: TensorSpec) -> None:
    """Refuses a tensor of another datatype or shape than its model's, without rows, or with NaN or infinity in it.

    Raises:
        InvalidValue: The sentence says what is allowed.
    """
    _check_datatype(datatype_of(array), spec)
    check_shape(array.shape, spec)
    if array.size == 0 and not (spec.may_be_empty and len(array)):
        raise InvalidValue(f"{spec.name} is empty", param=spec.name)
    if not is_finite(array):
        raise InvalidValue(f"{spec.name} has values that are NaN or infinite", param=spec.name)


def _check_datatype(datatype: str, spec: TensorSpec) -> None:
    if datatype != spec.datatype:
        raise InvalidValue(f"{spec.name} must be {spec.datatype}, not {datatype}", param=spec.name)


def check_shape(shape: Sequence[int], spec: TensorSpec) -> None:
    """Refuses another shape than the model's.

    Raises:
        InvalidValue: The sentence says what is allowed.
    """
    if not _fits(shape, spec.shape):
        raise InvalidValue(f"{spec.name} must have the shape {list(spec.shape)}, not {list(shape)}", param=spec.name)


def is_finite(array: Array) -> bool:
    """Whether no value is NaN or infinite; tensors without such values always are."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _fits(shape: Sequence[int], pattern: Sequence[int]) -> bool:
    return len(shape) == len(pattern) and all(wanted in (ANY, size) for size, wanted in zip(shape, pattern, strict=True))


def check_outputs(request: InferRequest, specs: Sequence[TensorSpec]) -> None:
    """Refuses a request for outputs that a model does not have.

    Raises:
        InvalidValue: The sentence says which it has.
    """
    known = [spec.name for spec in specs]
    for wanted in request.outputs:
        if wanted.name not in known:
            raise InvalidValue(f"there is no output {quoted(wanted.name)}; the outputs are {', '.join(known)}", param=wanted.name)


def take_output(outputs: Mapping[str, Array], spec: TensorSpec) -> Array:
    """One output of an answer; others that are there are passed over.

    Raises:
        MalformedRequest: It is missing.
        InvalidValue: It is not as the spec says.
    """
    if spec.name not in outputs:
        raise MalformedRequest(f"the output {spec.name} is missing")
    check_tensor(outputs[spec.name], spec)
    return outputs[spec.name]


def raw_request(content: bytes, metadata: ModelMetadata) -> InferRequest:
    """A request of the raw form (header length 0): the body is the one element of the model's one input.

    Raises:
        NotSupported: The shape of this model's input cannot be told from a number of bytes.
    """
    if [spec.datatype for spec in metadata.inputs] != [BYTES]:
        raise NotSupported(f"{metadata.name} takes more than one text: send a request with a header")
    return InferRequest(inputs={metadata.inputs[0].name: bytes_tensor([content])})
