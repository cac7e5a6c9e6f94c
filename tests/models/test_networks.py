"""U-Net, VAE and text encoder on OpenVINO. The other backends: test_backends.py; diffusers: tests/reference."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.tiny_models import TEXT_ENCODER, UNET, VAE, randomize, run_network
from triptych.engines import NetworkSource, RowSpec
from triptych.engines.openvino import OpenVINOEngine
from triptych.models.config import (
    STABLE_DIFFUSION_1_5_TEXT_ENCODER,
    STABLE_DIFFUSION_1_5_UNET,
    STABLE_DIFFUSION_1_5_VAE,
)
from triptych.models.layers import UpsamplingConv2D
from triptych.models.text_encoder import build_text_encoder
from triptych.models.unet import build_shallow_unet, build_unet
from triptych.models.vae import build_vae_decoder, build_vae_encoder

TOLERANCE = 1e-5  # of the output's norm, float32


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


UNET_INPUTS = {"latents": normal(2, 4, 8, 4), "timestep": np.array([999, 0.5], np.float32), "context": normal(2, 5, 32)}


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


# Sizes


@pytest.mark.parametrize(
    ("builds", "config", "parameters"),
    [
        ([build_unet], STABLE_DIFFUSION_1_5_UNET, 859_520_964),
        ([build_vae_encoder, build_vae_decoder], STABLE_DIFFUSION_1_5_VAE, 83_653_863),
        ([build_text_encoder], STABLE_DIFFUSION_1_5_TEXT_ENCODER, 123_060_480),
    ],
)
def test_stable_diffusion_1_5_has_its_number_of_parameters(builds: list[Callable[..., Any]], config: Any, parameters: int):
    # Shapes only: the U-Net's values would take 3.4 GB. Keras would make them up for when it next comes to it.
    with keras.StatelessScope(initialize_variables=False):
        networks = [build(config) for build in builds]
    keras.utils.clear_session()
    assert sum(math.prod(variable.shape) for network in networks for variable in network.weights) == parameters


@pytest.mark.parametrize("build", [build_unet, build_vae_encoder, build_vae_decoder])
def test_every_layer_with_weights_is_named_by_a_module_path(build: Callable[..., Any]):
    network = build(UNET if build is build_unet else VAE)
    names = [layer.name for layer in network.layers if layer.weights]
    assert len(names) == len(set(names))
    assert sum(len(layer.weights) for layer in network.layers) == len(network.weights)


# Shapes and formats


@pytest.mark.parametrize("size", [(4, 4), (6, 10)])
def test_one_network_takes_every_size(size: tuple[int, int]):
    height, width = size
    prediction = run_network(build_unet(UNET), {**UNET_INPUTS, "latents": normal(2, height, width, 4)})
    images = run_network(build_vae_decoder(VAE), {"latents": normal(1, height, width, 4)})
    encoded = run_network(build_vae_encoder(VAE), {"images": normal(1, 8 * height, 8 * width, 3)})
    assert prediction["prediction"].shape == (2, height, width, 4)
    assert images["images"].shape == (1, 8 * height, 8 * width, 3)
    assert encoded["mean"].shape == encoded["logvar"].shape == (1, height, width, 4)


@pytest.mark.parametrize("layers_per_block", [1, 2])
def test_the_shallow_unet_on_the_features_of_the_same_latents_predicts_what_the_whole_one_does(layers_per_block: int):
    config = type(UNET)(**{**UNET.to_dict(), "layers_per_block": layers_per_block})
    whole, shallow = build_unet(config, keep_features=True), build_shallow_unet(config)
    randomize(whole, seed=1)
    weights = {variable.path: variable for variable in whole.weights}
    for variable in shallow.weights:
        variable.assign(weights[variable.path])
    found = run_network(whole, UNET_INPUTS)
    assert found["features"].shape == (2, 4, 8, config.num_features)

    shallow_prediction = run_network(shallow, {**UNET_INPUTS, "features": found["features"]})["prediction"]
    of_others = run_network(shallow, {**UNET_INPUTS, "features": np.zeros_like(found["features"])})["prediction"]

    assert relative_error(shallow_prediction, found["prediction"]) < TOLERANCE
    assert relative_error(of_others, found["prediction"]) > 0.1


def test_an_inpainting_unet_takes_nine_channels_and_predicts_four():
    inpainting = build_unet(type(UNET)(**{**UNET.to_dict(), "in_channels": 9}))
    prediction = run_network(inpainting, {**UNET_INPUTS, "latents": normal(2, 4, 8, 9)})["prediction"]
    assert prediction.shape == (2, 4, 8, 4)


@pytest.mark.parametrize(
    ("build", "config", "inputs"),
    [
        (build_unet, UNET, UNET_INPUTS),
        (build_vae_encoder, VAE, {"images": normal(1, 16, 32, 3)}),
        (build_vae_decoder, VAE, {"latents": normal(1, 2, 4, 4)}),
    ],
    ids=["unet", "vae_encoder", "vae_decoder"],
)
def test_both_data_formats_compute_the_same_of_the_same_weights(
    build: Callable[..., Any], config: Any, inputs: dict[str, np.ndarray]
):
    first, last = build(config, data_format="channels_first"), build(config, data_format="channels_last")
    randomize(first, 0)
    randomize(last, 0)
    assert (_inner_format(first), _inner_format(last)) == ("channels_first", "channels_last")
    outputs, others = run_network(first, inputs), run_network(last, inputs)
    for name in outputs:
        assert relative_error(outputs[name], others[name]) < TOLERANCE


def _inner_format(network: Any) -> str:
    (data_format,) = {layer.data_format for layer in network.layers if isinstance(layer, keras.layers.Conv2D)}
    return data_format


@pytest.mark.parametrize("use_bias", [True, False])
def test_an_upsampling_convolution_is_that_of_the_larger_image(use_bias: bool):
    if keras.config.backend() != "openvino":
        pytest.skip("it is for channels first, which is OpenVINO's")
    options = {"data_format": "channels_first", "padding": "same", "use_bias": use_bias, "name": "conv"}
    image = keras.Input((8, None, None), name="image")
    larger = keras.layers.UpSampling2D(2, data_format="channels_first")(image)
    both = [keras.layers.Conv2D(6, 3, **options)(larger), UpsamplingConv2D(6, 3, **options)(image)]
    two_layers, one_layer = (keras.Model({"image": image}, {"image": output}) for output in both)
    randomize(two_layers, 1)
    randomize(one_layer, 1)
    assert one_layer.outputs[0].shape == two_layers.outputs[0].shape == (None, 6, None, None)
    seen = {"image": np.random.default_rng(2).standard_normal((2, 8, 5, 7)).astype(np.float32)}
    expected, found = (run_network(each, seen)["image"] for each in (two_layers, one_layer))
    assert found.shape == (2, 6, 10, 14)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# What depends on what


def test_a_token_is_seen_only_by_those_after_it():
    encoder = build_text_encoder(TEXT_ENCODER)
    randomize(encoder, 0)
    tokens = np.arange(16, dtype=np.int32)[None]
    changed = tokens.copy()
    changed[0, 7] = 99
    difference = np.abs(
        run_network(encoder, {"tokens": tokens})["context"] - run_network(encoder, {"tokens": changed})["context"]
    )
    assert difference[0, :7].max() < 1e-6
    assert difference[0, 7:].max(axis=-1).min() > 1e-3


def test_the_prediction_depends_on_every_input():
    unet = build_unet(UNET)
    randomize(unet, 0)
    rows = {name: np.repeat(array[:1], 4, axis=0) for name, array in UNET_INPUTS.items()}
    for row, array in enumerate(rows.values(), start=1):
        array[row] += 1
    prediction = run_network(unet, rows)["prediction"]
    for row in (1, 2, 3):
        assert relative_error(prediction[row], prediction[0]) > 1e-2


def test_the_decoder_divides_by_the_scaling_factor():
    plain, scaled = (build_vae_decoder(type(VAE)(**{**VAE.to_dict(), "scaling_factor": factor})) for factor in (1.0, 0.5))
    randomize(plain, 0)
    randomize(scaled, 0)
    latents = normal(1, 2, 2, 4)
    images = run_network(plain, {"latents": latents})["images"]
    assert relative_error(run_network(scaled, {"latents": latents / 2})["images"], images) < TOLERANCE
    assert relative_error(run_network(scaled, {"latents": latents})["images"], images) > 1e-2


# Precision


def test_timesteps_survive_bfloat16(tmp_path):
    # OpenVINO rounds between its kernels: 999 and 1000 became one, and the prediction was wrong by a tenth.
    import openvino

    unet = build_unet(UNET)
    randomize(unet, 0)
    inputs = {**UNET_INPUTS, "timestep": np.array([999, 500.25], np.float32)}
    signature = {name: keras.InputSpec(shape=array.shape, dtype="float32") for name, array in inputs.items()}
    unet.export(str(tmp_path / "unet.xml"), format="openvino", input_signature=signature, verbose=False)

    compiled = openvino.compile_model(tmp_path / "unet.xml", "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    prediction = compiled([inputs[name] for name in sorted(inputs)])[0]

    # Eight bits of mantissa through 60 layers make one to two hundredths.
    assert relative_error(prediction, run_network(unet, inputs)["prediction"]) < 0.03


def test_mixed_precision_leaves_timesteps_weights_and_norms_in_float32():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        unet = build_unet(UNET)
    finally:
        keras.config.set_dtype_policy(policy)
    assert unet.get_layer("time_proj").output.dtype == "float32"
    assert unet.get_layer("conv_in").output.dtype == "bfloat16"
    assert {variable.dtype for variable in unet.weights} == {"float32"}


# What OpenVINO makes of them


@pytest.mark.parametrize(
    ("build", "config", "shapes"),
    [
        (build_text_encoder, TEXT_ENCODER, {"tokens": (1, 16)}),
        (build_unet, UNET, {name: array.shape for name, array in UNET_INPUTS.items()}),
        (build_vae_decoder, VAE, {"latents": (1, 2, 4, 4)}),
    ],
    ids=["text_encoder", "unet", "vae_decoder"],
)
def test_openvino_normalizes_and_enlarges_in_one_operation_each(
    build: Callable[..., Any], config: Any, shapes: dict[str, tuple[int, ...]], tmp_path: Path
):
    if keras.config.backend() != "openvino":
        pytest.skip("it is about OpenVINO")
    import openvino as ov

    network = build(config)
    randomize(network, 0)
    rows = {name: RowSpec(shape=shapes[name][1:], dtype=network_input.dtype) for name, network_input in network.input.items()}
    source = NetworkSource(name="network", build=lambda: network, key={})
    folder = OpenVINOEngine(threads=1).graph_folder(source, rows, tmp_path)
    graph = ov.Core().read_model(folder / "network.xml")
    graph.reshape({name: list(shape) for name, shape in shapes.items()})
    compiled = ov.Core().compile_model(graph, "CPU").get_runtime_model()
    found = Counter(node.get_rt_info()["layerType"].astype(str) for node in compiled.get_ops())
    norms = [
        layer for layer in network.layers if isinstance(layer, (keras.layers.GroupNormalization, keras.layers.LayerNormalization))
    ]
    upsamplers = [layer for layer in network.layers if isinstance(layer, UpsamplingConv2D)]
    assert found["MVN"] + found["GroupNormalization"] == len(norms) > 0
    assert found["DepthToSpace"] == len(upsamplers)
