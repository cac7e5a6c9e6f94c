"""Quantizing to int8, with NNCF: weights and activations of the layers that take the time, by ranges seen on real inputs."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import openvino as ov

from triptych.engines import NetworkSource, RowSpec
from triptych.engines.compiled import Arrays
from triptych.engines.distributions import installed_version
from triptych.engines.openvino import OpenVINOEngine
from triptych.engines.quantized import GRAPH, Quantized, find_quantized, keep_quantized
from triptych.errors import EngineError

_log = logging.getLogger(__name__)

_LAYERS = frozenset({"Convolution", "GroupConvolution", "MatMul"})
_PASSING = frozenset({"Convert", "Reshape", "Unsqueeze", "Squeeze", "Transpose"})


def check_quantizer() -> None:
    """Refuses early what would fail late.

    Raises:
        EngineError: NNCF is not installed.
    """
    if installed_version("nncf") is None:
        raise EngineError("quantizing needs nncf, which is not installed: install the extra quantize")


def quantize(
    source: NetworkSource,
    rows: Mapping[str, RowSpec],
    inputs: Sequence[Arrays],
    *,
    engine: OpenVINOEngine,
    cache_folder: Path,
    folder: Path,
    facts: Mapping[str, Any],
) -> tuple[Quantized, bool]:
    """The network in int8, and whether it was kept already, in which case it stays as it is.

    Activations are quantized by the ranges that they have on the inputs, weights channel by channel by their own. Some layers
    stay as they are. The first and the last convolution, and what depends on the timestep alone, take hardly any time, and all
    that the others make passes through them. What looks at single pixels or tokens, and reads what no normalization has bounded,
    would lose most of it to a few large values: shortcuts, the ends of transformers and of their gated feed-forwards.

    Args:
        source: The network in float.
        rows: What one row of each input looks like.
        inputs: Real ones, of one row each.
        engine: Whose graph of the network it is made from.
        cache_folder: Where that is.
        folder: Where quantized networks are kept.
        facts: To be kept with it: how the inputs came about.

    Raises:
        EngineError: NNCF is not installed or fails, or a folder cannot be written.
        CheckpointError: As `source.build` raises it.
    """
    check_quantizer()
    if (found := find_quantized(folder, source, rows)) is not None:
        return found, True
    graph = engine.graph_folder(source, rows, cache_folder)
    facts = {**facts, "samples": len(inputs), "versions": {name: installed_version(name) for name in ("nncf", "openvino")}}

    def save(unfinished: Path) -> None:
        model = ov.Core().read_model(graph / GRAPH[0])
        ov.save_model(_quantized(model, inputs), os.fspath(unfinished / GRAPH[0]), compress_to_fp16=False)

    return keep_quantized(folder, source, rows, save, facts)


def _quantized(model: ov.Model, inputs: Sequence[Arrays]) -> ov.Model:
    nncf = _import_nncf()
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    kept = sorted(layers_to_keep(model))
    _log.info("quantizing %s: %d layers stay in float", model.get_friendly_name(), len(kept))
    with contextlib.redirect_stdout(sys.stderr):  # bars of progress
        try:
            return nncf.quantize(
                model,
                nncf.Dataset([dict(each) for each in inputs]),
                preset=nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER,  # without it the inside of every norm is quantized, attention or not
                subset_size=len(inputs),
                ignored_scope=nncf.IgnoredScope(names=kept),
                advanced_parameters=AdvancedQuantizationParameters(
                    # A mean over the inputs, its default, would cut off what the last steps of sampling see.
                    activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                    # Outliers moved into the weights cost vignette more than they save.
                    smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
                ),
            )
        except (RuntimeError, nncf.InternalError, nncf.ValidationError, nncf.UnsupportedModelError) as error:
            raise EngineError(f"NNCF cannot quantize {model.get_friendly_name()}: {error}") from error


def _import_nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # without it, it tells its makers over the network that it is used
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own function would silence the handlers that others gave it, too
    return nncf


def layers_to_keep(model: ov.Model) -> set[str]:
    """Names of the layers that are not to be quantized: see `quantize`."""
    starts = {parameter.get_friendly_name(): set(_layers_after(parameter)) for parameter in model.get_parameters()}
    of_timestep = starts.pop("timestep", set()) - set().union(*starts.values())
    main = next(parameter for parameter in model.get_parameters() if parameter.get_friendly_name() in ("latents", "images"))
    first = set(_nearest_layers([main], _users))
    # What one evaluation leaves to later ones goes through more layers there, the last one among them.
    results = [output.get_node() for output in model.outputs if "features" not in output.get_names()]
    last = set(_nearest_layers(results, _sources))
    unbounded = {layer.get_friendly_name() for layer in model.get_ops() if _is_pointwise(layer) and _reads_unbounded(layer)}
    return of_timestep | first | last | unbounded


def _is_pointwise(layer: Any) -> bool:
    """What looks at one pixel or token at a time."""
    kind = layer.get_type_name()
    return kind == "MatMul" or (kind == "Convolution" and list(layer.get_input_shape(1)[2:]) == [1, 1])


def _reads_unbounded(layer: Any) -> bool:
    """Whether its input is a sum, as any layer with a bias ends in, a product, or several activations side by side.

    What a normalization ends in is not.
    """
    source = _through(next(_sources(layer)))
    before = {_through(each).get_type_name() for each in _sources(source)}
    match source.get_type_name():
        case "Concat":
            return True
        case "Multiply":
            return "Constant" not in before
        case "Add":
            return "Multiply" not in before  # of which a normalization's last sum is one
        case _:
            return False


def _through(node: Any) -> Any:
    """What passes through a node that changes no value, or the node."""
    while node.get_type_name() in _PASSING:
        node = next(_sources(node))
    return node


def _layers_after(node: Any) -> Iterator[str]:
    """Of all that depends on a node."""
    seen, waiting = set(), [node]
    while waiting:
        for user in _users(waiting.pop()):
            if (name := user.get_friendly_name()) not in seen:
                seen.add(name)
                waiting.append(user)
                if user.get_type_name() in _LAYERS:
                    yield name


def _nearest_layers(nodes: Iterable[Any], neighbours: Any) -> Iterator[str]:
    """The first layers on every way from these nodes."""
    seen, waiting = set(), list(nodes)
    while waiting:
        for other in neighbours(waiting.pop()):
            if (name := other.get_friendly_name()) in seen:
                continue
            seen.add(name)
            if other.get_type_name() in _LAYERS:
                yield name
            else:
                waiting.append(other)


def _users(node: Any) -> Iterator[Any]:
    return (target.get_node() for output in node.outputs() for target in output.get_target_inputs())


def _sources(node: Any) -> Iterator[Any]:
    return (value.get_source_output().get_node() for value in node.inputs())
