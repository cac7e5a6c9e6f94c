"""Single files against diffusers: its own conversion of them is the referee, of every tensor and of whole networks.

Tolerance of the networks: as in test_networks.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file

from tests.original_layout import as_original, leftovers
from tests.tiny_models import run_network
from triptych.checkpoints.checkpoint import Network, load_network
from triptych.checkpoints.original_layout import parts_of
from triptych.checkpoints.single_file import STABLE_DIFFUSION_2_TEXT_ENCODER, SingleFile, SingleFileOptions
from triptych.models.config import (
    STABLE_DIFFUSION_1_5_TEXT_ENCODER,
    STABLE_DIFFUSION_1_5_UNET,
    STABLE_DIFFUSION_1_5_VAE,
    CLIPTextConfig,
    UNetConfig,
    VAEConfig,
)

TOLERANCE = 1e-5

Originals = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Model:
    """Configurations that follow from shapes and from the rules of their family, with no option."""

    unet: UNetConfig
    vae: VAEConfig
    text: CLIPTextConfig

    @property
    def openclip(self) -> bool:
        return self.text.hidden_act == "gelu"


SMALL_1 = Model(
    unet=UNetConfig(block_out_channels=(32, 32, 64, 64), cross_attention_dim=64),
    vae=replace(STABLE_DIFFUSION_1_5_VAE, block_out_channels=(32, 32, 64, 64)),
    text=CLIPTextConfig(
        vocab_size=99,
        max_position_embeddings=9,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=1,
    ),
)
SMALL_2 = Model(
    unet=UNetConfig(
        block_out_channels=(64, 64, 128, 128),
        attention_head_dim=(1, 1, 2, 2),
        cross_attention_dim=128,
        use_linear_projection=True,
    ),
    vae=SMALL_1.vae,
    text=replace(SMALL_1.text, hidden_size=128, num_attention_heads=2, hidden_act="gelu"),
)
SMALL = {
    "1.x": SMALL_1,
    "1.x inpainting": replace(SMALL_1, unet=replace(SMALL_1.unet, in_channels=9)),
    "2.x": SMALL_2,
    "2.x inpainting": replace(SMALL_2, unet=replace(SMALL_2.unet, in_channels=9)),
}
UNET_2 = replace(
    STABLE_DIFFUSION_1_5_UNET, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
)
PUBLISHED = {
    "1.5": Model(unet=STABLE_DIFFUSION_1_5_UNET, vae=STABLE_DIFFUSION_1_5_VAE, text=STABLE_DIFFUSION_1_5_TEXT_ENCODER),
    "2.1": Model(unet=UNET_2, vae=STABLE_DIFFUSION_1_5_VAE, text=STABLE_DIFFUSION_2_TEXT_ENCODER),
}
COUNTS = {"1.5": (686, 248, 196), "2.1": (686, 248, 372)}


@pytest.mark.parametrize("name", SMALL)
def test_every_tensor_is_the_one_that_diffusers_reads(name: str, tmp_path: Path) -> None:
    model = SMALL[name]
    original = _original(model)
    file = _written(original, tmp_path)
    expected = _converted(model, original)
    assert (file.unet, file.vae, file.text_encoder) == (model.unet, model.vae, model.text)
    for network in Network:
        with file.tensors(network) as tensors:
            ours = {key: tensors.read(key) for key in tensors.names()}
        for key, array in ours.items():
            np.testing.assert_array_equal(array.reshape(expected[key].shape), expected.pop(key).numpy(), err_msg=key)
    assert not expected


@pytest.mark.parametrize("name", SMALL)
def test_unet_predicts_as_diffusers(name: str, tmp_path: Path) -> None:
    model = SMALL[name]
    original = _original(model)
    theirs = _loaded(diffusers.UNet2DConditionModel(**model.unet.to_dict()), _converted_unet(model, original))
    latents, context = _normal(2, 8, 8, model.unet.in_channels), _normal(2, 9, model.unet.cross_attention_dim)
    timestep = np.array([981.0, 3.0], np.float32)

    ours = load_network(_written(original, tmp_path), Network.UNET)
    prediction = run_network(ours, {"latents": latents, "timestep": timestep, "context": context})["prediction"]

    expected = theirs(_channels_first(latents), torch.from_numpy(timestep), torch.from_numpy(context)).sample
    _assert_close(prediction, _channels_last(expected))


def test_vae_encodes_and_decodes_as_diffusers(tmp_path: Path) -> None:
    original = _original(SMALL_1)
    theirs = _loaded(diffusers.AutoencoderKL(**SMALL_1.vae.to_dict()), _converted_vae(SMALL_1, original))
    images, latents = _normal(1, 32, 64, 3), _normal(1, 4, 8, 4)
    file = _written(original, tmp_path)

    mean = run_network(load_network(file, Network.VAE_ENCODER), {"images": images})["mean"]
    decoded = run_network(load_network(file, Network.VAE_DECODER), {"latents": latents})["images"]

    _assert_close(mean, _channels_last(theirs.encode(_channels_first(images)).latent_dist.mean))
    _assert_close(decoded, _channels_last(theirs.decode(_channels_first(latents) / SMALL_1.vae.scaling_factor).sample))


@pytest.mark.parametrize("model", [SMALL_1, SMALL_2], ids=["CLIP", "OpenCLIP"])
def test_text_encoder_agrees_with_transformers(model: Model, tmp_path: Path) -> None:
    original = _original(model)
    converted = {key.removeprefix("text_model."): tensor for key, tensor in _converted_text(model, original).items()}
    theirs = _loaded(_text_module(model.text), converted)
    tokens = np.random.default_rng(0).integers(3, model.text.vocab_size, (2, 9)).astype(np.int32)

    context = run_network(load_network(_written(original, tmp_path), Network.TEXT_ENCODER), {"tokens": tokens})["context"]

    _assert_close(context, theirs(torch.from_numpy(tokens).long()).last_hidden_state.numpy())


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_of_the_published_files_is_where_diffusers_finds_it(name: str) -> None:
    # Full size without its memory: each tensor is one number, at all places the same, and each a number of its own.
    model = PUBLISHED[name]
    original = {key: _marked(key, tensor.shape, number) for number, (key, tensor) in enumerate(_original(model).items())}
    expected = _converted(model, original)
    parts = parts_of("it", {key: tuple(tensor.shape) for key, tensor in original.items()})
    assert tuple(len(parts[part].pieces) for part in ("unet", "vae", "text_encoder")) == (
        *COUNTS[name][:2],
        COUNTS[name][2] + 16 * model.openclip,
    )
    for part in parts.values():
        for ours, piece in part.pieces.items():
            if model.openclip and ".layers.23." in ours:  # left aside
                assert ours not in expected
                continue
            third = _third(original[piece.key], piece.third)
            theirs = expected.pop(ours)
            assert part.shapes[ours] == tuple(third.shape)
            assert theirs[(0,) * theirs.ndim] == third[(0,) * third.ndim], ours
    assert not expected


# Their side


def _converted(model: Model, original: Originals) -> Originals:
    return {**_converted_unet(model, original), **_converted_vae(model, original), **_converted_text(model, original)}


def _converted_unet(model: Model, original: Originals) -> Originals:
    return single_file_utils.convert_ldm_unet_checkpoint(dict(original), model.unet.to_dict())


def _converted_vae(model: Model, original: Originals) -> Originals:
    vae = {key: tensor for key, tensor in original.items() if key.startswith("first_stage_model.") and ".loss." not in key}
    return single_file_utils.convert_ldm_vae_checkpoint(vae, model.vae.to_dict())


def _converted_text(model: Model, original: Originals) -> Originals:
    """Without what their text model has no place for, which they pass over."""
    if model.openclip:
        with torch.device("meta"):
            converted = single_file_utils.convert_open_clip_checkpoint(_text_module(model.text), dict(original))
    else:
        converted = single_file_utils.convert_ldm_clip_checkpoint(dict(original))
    with torch.device("meta"):
        wanted = {_with_prefix(name) for name, _ in _text_module(model.text).named_parameters()}
    assert wanted <= converted.keys()
    return {key: converted[key] for key in wanted}


def _text_module(config: CLIPTextConfig) -> torch.nn.Module:
    marks = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config.to_dict(), **marks)).eval()


def _loaded(module: torch.nn.Module, tensors: Originals) -> torch.nn.Module:
    """Strictly: all of them, and all that it has."""
    buffers = {name: buffer for name, buffer in module.state_dict().items() if name.endswith("position_ids")}
    module.load_state_dict({**tensors, **buffers})
    return module.eval()


# Files


def _original(model: Model) -> Originals:
    """A file's tensors; with no memory where it is of full size."""
    is_small = model in SMALL.values()
    with torch.device("cpu" if is_small else "meta"):
        modules = (
            diffusers.UNet2DConditionModel(**model.unet.to_dict()),
            diffusers.AutoencoderKL(**model.vae.to_dict()),
            _text_module(model.text),
        )
    unet, vae, text = ({name: _random(name, each) for name, each in module.named_parameters()} for module in modules)
    text = {_with_prefix(name): array for name, array in text.items()}
    tensors = as_original(unet, vae, text, openclip=model.openclip, configs=(model.unet, model.vae))
    tensors |= leftovers() if is_small else {}
    return {key: torch.from_numpy(np.require(array, requirements="W")) for key, array in tensors.items()}


def _with_prefix(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _random(name: str, parameter: torch.nn.Parameter) -> np.ndarray:
    """Values that keep activations near one; biases and norms too, so that an exchange shows."""
    if parameter.is_meta:
        return np.broadcast_to(np.float16(0), parameter.shape)
    noise = np.random.default_rng([*name.encode()]).standard_normal(parameter.shape, dtype=np.float32)
    if parameter.ndim > 1:
        return noise / np.sqrt(parameter[0].numel(), dtype=np.float32)
    return np.float32("norm" in name and name.endswith("weight")) + np.float32(0.2) * noise


def _marked(key: str, shape: Any, number: int) -> torch.Tensor:
    if ".in_proj_" not in key:
        return torch.tensor(float(number)).expand(shape)
    thirds = torch.tensor([number, number + 0.25, number + 0.5]).repeat_interleave(shape[0] // 3)
    return thirds.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def _third(tensor: torch.Tensor, third: int | None) -> torch.Tensor:
    return tensor if third is None else tensor.chunk(3)[third]


def _written(original: Originals, folder: Path) -> SingleFile:
    save_file({key: tensor.contiguous().clone() for key, tensor in original.items()}, folder / "model.safetensors")
    return SingleFile(folder / "model.safetensors", SingleFileOptions(prediction_type="epsilon"))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def _channels_first(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def _channels_last(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(0, 2, 3, 1).numpy()


def _assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error < TOLERANCE, f"relative error {error:.1e}"
