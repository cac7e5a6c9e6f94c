"""Our networks against diffusers' and transformers' on the same random weights, through the files that they share.

Tolerance: float32 sums in another order make about 1e-6 of the output's norm; 1e-5 is refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from tests import tiny_models
from tests.tiny_models import TEXT_ENCODER, UNET, VAE, run_network
from triptych.checkpoints.checkpoint import Network, load_network
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.checkpoints.tiny_vae_folder import TinyVAEFolder
from triptych.models.config import CLIPTextConfig, TinyVAEConfig, UNetConfig, VAEConfig

TOLERANCE = 1e-5

FOUR_LEVELS = replace(
    UNET,
    block_out_channels=(32, 32, 64, 64),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    layers_per_block=2,
)
STABLE_DIFFUSION_2 = replace(FOUR_LEVELS, use_linear_projection=True, attention_head_dim=(2, 4, 8, 8), cross_attention_dim=48)
UNETS = {
    "tiny": UNET,
    "Stable Diffusion 1": FOUR_LEVELS,
    "Stable Diffusion 1 inpainting": replace(FOUR_LEVELS, in_channels=9),
    "Stable Diffusion 2": STABLE_DIFFUSION_2,
    "Stable Diffusion 2 inpainting": replace(STABLE_DIFFUSION_2, in_channels=9),
    "vignette": replace(
        UNET,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    "by level": replace(UNET, layers_per_block=(1, 2), transformer_layers_per_block=(1, 2)),
    "other waves": replace(UNET, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-4),
}
VAES = {
    "tiny": VAE,
    "Stable Diffusion 1": replace(VAE, block_out_channels=(32, 32, 64, 64), layers_per_block=2, norm_num_groups=32),
    "vignette": replace(VAE, block_out_channels=(24, 48, 96, 128), scaling_factor=1.3),
}
TINY_VAES = {
    "TAESD": TinyVAEConfig(),
    "other": TinyVAEConfig(
        decoder_block_out_channels=(16, 16, 16), num_decoder_blocks=(2, 1, 2), latent_channels=8, scaling_factor=0.5
    ),
    "vignette": TinyVAEConfig(decoder_block_out_channels=(16,) * 4, num_decoder_blocks=(6, 3, 1, 0)),
}
TEXT_ENCODERS = {
    "tiny": TEXT_ENCODER,
    "Stable Diffusion 2": replace(TEXT_ENCODER, hidden_act="gelu", num_hidden_layers=3),
}


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS.keys())
def test_unet_predicts_as_diffusers(config: UNetConfig, tmp_path: Path) -> None:
    theirs = _randomized(diffusers.UNet2DConditionModel(**config.to_dict()))
    theirs.save_pretrained(tmp_path / "unet")
    latents, context = _normal(2, 16, 24, config.in_channels), _normal(2, 16, config.cross_attention_dim)
    timestep = np.array([981.0, 3.25], np.float32)

    ours = load_network(DiffusersFolder(tmp_path), Network.UNET)
    prediction = run_network(ours, {"latents": latents, "timestep": timestep, "context": context})["prediction"]

    expected = theirs(_channels_first(latents), torch.from_numpy(timestep), torch.from_numpy(context)).sample
    _assert_close(prediction, _channels_last(expected))


@pytest.mark.parametrize("config", VAES.values(), ids=VAES.keys())
def test_vae_encodes_and_decodes_as_diffusers(config: VAEConfig, tmp_path: Path) -> None:
    theirs = _randomized(diffusers.AutoencoderKL(**config.to_dict()))
    theirs.save_pretrained(tmp_path / "vae")
    images, latents = _normal(2, 32, 64, 3), _normal(2, 4, 8, 4)

    encoded = run_network(load_network(DiffusersFolder(tmp_path), Network.VAE_ENCODER), {"images": images})
    decoded = run_network(load_network(DiffusersFolder(tmp_path), Network.VAE_DECODER), {"latents": latents})

    expected = theirs.encode(_channels_first(images)).latent_dist
    _assert_close(encoded["mean"], _channels_last(expected.mean))
    _assert_close(encoded["logvar"], _channels_last(expected.logvar))
    _assert_close(decoded["images"], _channels_last(theirs.decode(_channels_first(latents) / config.scaling_factor).sample))


@pytest.mark.parametrize("config", TINY_VAES.values(), ids=TINY_VAES.keys())
def test_tiny_vae_decodes_as_diffusers(config: TinyVAEConfig, tmp_path: Path) -> None:
    theirs = _randomized(diffusers.AutoencoderTiny(**config.to_dict()))
    theirs.save_pretrained(tmp_path)
    latents = 2 * _normal(2, 4, 8, config.latent_channels)

    files = TinyVAEFolder(tmp_path)
    decoded = run_network(files.load_decoder(), {"latents": latents})["images"]

    assert files.config == config
    _assert_close(decoded, _channels_last(theirs.decode(_channels_first(latents) / config.scaling_factor).sample))


@pytest.mark.parametrize("config", TEXT_ENCODERS.values(), ids=TEXT_ENCODERS.keys())
def test_text_encoder_agrees_with_transformers(config: CLIPTextConfig, tmp_path: Path) -> None:
    marks = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    theirs = _randomized(transformers.CLIPTextModel(transformers.CLIPTextConfig(**config.to_dict(), **marks)))
    theirs.save_pretrained(tmp_path / "text_encoder")
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, config.max_position_embeddings)).astype(np.int32)

    context = run_network(load_network(DiffusersFolder(tmp_path), Network.TEXT_ENCODER), {"tokens": tokens})["context"]

    _assert_close(context, theirs(torch.from_numpy(tokens).long()).last_hidden_state.numpy())


@pytest.mark.parametrize(
    ("their_class", "network"),
    [
        (diffusers.UNet2DConditionModel, Network.UNET),
        (diffusers.AutoencoderKL, Network.VAE_DECODER),
        (transformers.CLIPTextModel, Network.TEXT_ENCODER),
    ],
)
def test_they_read_what_we_write(their_class: Any, network: Network, tmp_path: Path) -> None:
    folder = tiny_models.write_tiny_model(tmp_path)
    theirs, report = their_class.from_pretrained(folder / network.subfolder, output_loading_info=True)
    assert not any(report.values())
    (file,) = (folder / network.subfolder).glob("*.safetensors")
    written = load_file(file)
    for name, parameter in theirs.state_dict().items():
        key = name if name in written else f"text_model.{name}"
        np.testing.assert_array_equal(parameter.float().numpy(), written.pop(key).astype(np.float32))
    assert not written


def test_norms_have_their_epsilons(tmp_path: Path) -> None:
    # Against activations near one an epsilon is too small to show in the outputs.
    folder = tiny_models.write_tiny_model(tmp_path)
    vae = diffusers.AutoencoderKL(**VAE.to_dict())
    for network, theirs in (
        (Network.UNET, diffusers.UNet2DConditionModel(**UNET.to_dict())),
        (Network.VAE_ENCODER, vae),
        (Network.VAE_DECODER, vae),
    ):
        ours = {
            layer.name: layer.epsilon
            for layer in load_network(DiffusersFolder(folder), network).layers
            if hasattr(layer, "epsilon")
        }
        assert len(ours) > 5
        assert ours == {name: theirs.get_submodule(name).eps for name in ours}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def _randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Values that keep activations near one; biases and norms are not left at theirs, which would hide an exchange."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise / parameter[0].numel() ** 0.5
        elif "norm" in name and name.endswith("weight"):
            parameter.data = 1 + 0.2 * noise
        else:
            parameter.data = 0.2 * noise
    return module.eval()


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
