from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import math
import string
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.original_layout import Tensors, as_original, clip_as_original, contiguous, leftovers
from tests.prompts import VOCABULARY
from tests.tiny_models import TEXT_ENCODER, UNET, VAE, tiny_tokenizer, write_tiny_model
from triptych.checkpoints.checkpoint import Network, load_network
from triptych.checkpoints.clip_vocabulary import MERGES
from triptych.checkpoints.diffusers_folder import DiffusersFolder, text_space_of
from triptych.checkpoints.original_layout import parts_of, text_config, unet_config, vae_config
from triptych.checkpoints.single_file import (
    STABLE_DIFFUSION_2_TEXT_ENCODER,
    SingleFile,
    SingleFileOptions,
    looks_like_single_file,
)
from triptych.errors import CheckpointError
from triptych.models.config import (
    STABLE_DIFFUSION_1_5_TEXT_ENCODER,
    STABLE_DIFFUSION_1_5_UNET,
    STABLE_DIFFUSION_1_5_VAE,
    CLIPTextConfig,
    UNetConfig,
    VAEConfig,
)
from triptych.models.text_encoder import build_text_encoder
from triptych.models.tokenizer import Tokenizer, save_tokenizer
from triptych.models.unet import build_unet
from triptych.models.vae import build_vae_decoder, build_vae_encoder

ROOT = Path(__file__).resolve().parents[2]

# What the shapes of so small networks cannot tell, and the families' rules do not fit
TINY = {
    "unet": {"attention_head_dim": 4, "norm_num_groups": 8},
    "vae": {"norm_num_groups": 8},
    "text_encoder": {"num_attention_heads": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tensors_1(folder: Path) -> Tensors:
    """A tiny model of the first family as one file, with all that training leaves behind."""
    return _original(folder, openclip=False) | leftovers()


@pytest.fixture(scope="module")
def tensors_2(folder: Path) -> Tensors:
    """A tiny model of the second family: OpenCLIP, and dense layers where the first has 1x1 convolutions."""
    original = _original(folder, openclip=True)
    is_projection = {key for key in original if key.endswith(("proj_in.weight", "proj_out.weight")) and "attn_1" not in key}
    return {key: tensor[:, :, 0, 0] if key in is_projection and tensor.ndim == 4 else tensor for key, tensor in original.items()}


def _original(folder: Path, *, openclip: bool) -> Tensors:
    unet, vae, text = (load_file(next((folder / part).glob("*.safetensors"))) for part in ("unet", "vae", "text_encoder"))
    return as_original(unet, vae, text, openclip=openclip, configs=(UNET, VAE))


def single_file(tmp_path: Path, tensors: Tensors, *, metadata: dict[str, str] | None = None, **options: Any) -> SingleFile:
    """A file of tensors, which are tiny networks'."""
    path = tmp_path / "dreams.safetensors"
    save_file(contiguous(tensors), path, metadata=metadata)
    return SingleFile(path, SingleFileOptions(**{"configs": TINY, **options}))


# Weights


@pytest.mark.parametrize("network", Network)
@pytest.mark.parametrize("family", ["tensors_1", "tensors_2"])
def test_the_weights_are_those_of_the_diffusers_folder(
    family: str, network: Network, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    ours = load_network(single_file(tmp_path, request.getfixturevalue(family)), network)
    expected = load_network(DiffusersFolder(folder), network)
    for variable, other in zip(ours.weights, expected.weights, strict=True):
        array, wanted = keras.ops.convert_to_numpy(variable), keras.ops.convert_to_numpy(other)
        np.testing.assert_array_equal(array, wanted.reshape(array.shape))  # 1x1 convolutions are dense layers in the second
        assert array.any()


@pytest.mark.parametrize("prefix", ["transformer.text_model.", "transformer.", "text_model.", ""])
def test_the_text_encoder_is_found_behind_all_its_prefixes(prefix: str, tensors_1: Tensors, tmp_path: Path):
    usual = "cond_stage_model.transformer.text_model."
    file = single_file(tmp_path, {key.replace(usual, f"cond_stage_model.{prefix}"): tensor for key, tensor in tensors_1.items()})
    with (
        file.tensors(Network.TEXT_ENCODER) as found,
        single_file(tmp_path / "..", tensors_1).tensors(Network.TEXT_ENCODER) as wanted,
    ):
        assert set(found.names()) == set(wanted.names())
        assert len(found.names()) == 4 + 16 * TEXT_ENCODER.num_hidden_layers


@pytest.mark.parametrize(
    ("prefix", "network"),
    [
        ("first_stage_model.", Network.VAE_DECODER),
        ("first_stage_model.", Network.VAE_ENCODER),
        ("model.diffusion_model.", Network.UNET),
    ],
)
def test_a_file_of_one_part_may_have_no_prefix(prefix: str, network: Network, tensors_1: Tensors, tmp_path: Path):
    part = {key.removeprefix(prefix): tensor for key, tensor in tensors_1.items() if key.startswith(prefix)}
    network_of_part = load_network(single_file(tmp_path, part), network)
    assert all(keras.ops.convert_to_numpy(variable).any() for variable in network_of_part.weights)


def test_a_fused_projection_is_read_by_thirds(tensors_2: Tensors, tmp_path: Path):
    key = "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"
    with single_file(tmp_path, tensors_2, prediction_type="epsilon").tensors(Network.TEXT_ENCODER) as tensors:
        read = [tensors.read(f"text_model.encoder.layers.1.self_attn.{part}_proj.weight") for part in "qkv"]
    np.testing.assert_array_equal(np.concatenate(read), tensors_2[key])
    assert not np.array_equal(read[0], read[1])


def test_bfloat16_is_read_too(tensors_2: Tensors, tmp_path: Path):
    rounded = {key: tensor.astype(ml_dtypes.bfloat16) for key, tensor in tensors_2.items()}
    network = load_network(single_file(tmp_path, rounded), Network.TEXT_ENCODER)
    kernel = keras.ops.convert_to_numpy(network.get_layer("text_model.encoder.layers.1.self_attn.k_proj").kernel)
    fused = rounded["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"]
    np.testing.assert_array_equal(kernel, fused[32:64].T.astype(np.float32))


def test_the_last_layer_of_openclip_is_left_aside(tensors_2: Tensors, tmp_path: Path):
    assert any(key.startswith("cond_stage_model.model.transformer.resblocks.2.") for key in tensors_2)
    file = single_file(tmp_path, tensors_2)
    assert file.text_encoder.num_hidden_layers == 2
    with file.tensors(Network.TEXT_ENCODER) as tensors:
        assert not any(".layers.2." in name for name in tensors.names())


# What the shapes tell


def shapes_of(*models: keras.Model) -> dict[str, tuple[int, ...]]:
    """Names and shapes as diffusers has them."""
    suffix = {"kernel": "weight", "gamma": "weight", "embeddings": "weight", "bias": "bias", "beta": "bias"}
    variables = ((layer, variable) for model in models for layer in model.layers for variable in layer.weights)
    return {
        f"{layer.name}.{suffix[variable.name]}": (*variable.shape[:-3:-1], *variable.shape[:-2])
        if variable.name == "kernel"
        else tuple(variable.shape)
        for layer, variable in variables
    }


def described(unet: UNetConfig, vae: VAEConfig, text: CLIPTextConfig) -> tuple[Tensors, Tensors, Tensors]:
    """The tensors of networks that take no memory, whatever their size."""
    with keras.StatelessScope(initialize_variables=False):
        parts = [build_unet(unet)], [build_vae_encoder(vae), build_vae_decoder(vae)], [build_text_encoder(text)]
        shapes = [shapes_of(*models) for models in parts]
    keras.utils.clear_session()  # else Keras would still mean to initialize them
    unet_tensors, vae_tensors, text_tensors = (
        {name: np.broadcast_to(np.False_, shape) for name, shape in each.items()} for each in shapes
    )
    return unet_tensors, vae_tensors, text_tensors


UNET_2 = UNetConfig(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
MODELS = {
    "1.5": (STABLE_DIFFUSION_1_5_UNET, STABLE_DIFFUSION_1_5_TEXT_ENCODER),
    "1.5 inpainting": (UNetConfig(in_channels=9, cross_attention_dim=768), STABLE_DIFFUSION_1_5_TEXT_ENCODER),
    "2.1": (UNET_2, STABLE_DIFFUSION_2_TEXT_ENCODER),
    "2.1 inpainting": (UNetConfig(**{**UNET_2.to_dict(), "in_channels": 9}), STABLE_DIFFUSION_2_TEXT_ENCODER),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SingleFile]:
    """Files of full size, of holes: names and shapes are there, and no weights."""
    folder = tmp_path_factory.mktemp("published")

    @cache
    def keys_of(name: str) -> dict[str, tuple[int, ...]]:
        unet, text = MODELS[name]
        networks = unet, STABLE_DIFFUSION_1_5_VAE
        tensors = as_original(*described(*networks, text), openclip=text.hidden_act == "gelu", configs=networks)
        return {key: tensor.shape for key, tensor in tensors.items()}

    def write(name: str, *, without: str | None = None, **options: Any) -> SingleFile:
        shapes = {key: shape for key, shape in keys_of(name).items() if without is None or without not in key}
        assert (without is None) == (len(shapes) == len(keys_of(name)))
        write_holes(folder / "published.safetensors", shapes)
        return SingleFile(folder / "published.safetensors", SingleFileOptions(**options))

    return write


def write_holes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    header, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + end)


@pytest.mark.parametrize("name", MODELS)
def test_the_published_models_are_recognised(name: str, published: Callable[..., SingleFile]):
    file = published(name, prediction_type="epsilon")
    assert (file.unet, file.text_encoder) == MODELS[name]
    assert file.vae == STABLE_DIFFUSION_1_5_VAE
    assert file.facts.latent_space == "sd-1"
    assert file.facts.text_space == {"1": "clip-vit-l-14", "2": "openclip-vit-h-14"}[name[0]]


def test_stable_diffusion_1_5_has_as_many_tensors_as_its_publishers_file(published: Callable[..., SingleFile]):
    with safe_open(published("1.5").path, framework="numpy") as file:
        keys = list(file.keys())
    counts = [sum(key.startswith(prefix) for key in keys) for prefix in ("model.diff", "first_stage", "cond_stage")]
    assert counts == [686, 248, 196 + 1]  # the last is position_ids
    for key in (
        "model.diffusion_model.input_blocks.11.0.out_layers.3.weight",
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.8.2.conv.weight",
        "model.diffusion_model.output_blocks.2.1.conv.bias",
        "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight",
        "first_stage_model.encoder.mid.attn_1.proj_out.weight",
    ):
        assert key in keys


@pytest.mark.parametrize("name", ["1.5", "2.1"])
def test_the_tensors_are_those_that_the_networks_want(name: str, published: Callable[..., SingleFile]):
    file = published(name, prediction_type="epsilon")
    networks = dict(zip(("unet", "vae", "text_encoder"), described(file.unet, file.vae, file.text_encoder), strict=True))
    for network in Network:
        with file.tensors(network) as tensors:
            half = {"vae_encoder": ("encoder.", "quant_conv."), "vae_decoder": ("decoder.", "post_quant_conv.")}.get(network, "")
            assert set(tensors.names()) == {key for key in networks[network.subfolder] if key.startswith(half)}


def test_openclip_whose_last_layer_is_gone_already_keeps_all(published: Callable[..., SingleFile]):
    file = published("2.1", without=".resblocks.23.", prediction_type="epsilon")
    assert file.text_encoder.num_hidden_layers == 23


@pytest.mark.parametrize("name", MODELS)
def test_a_unet_alone_knows_its_text_encoder_and_its_vae(name: str, published: Callable[..., SingleFile]):
    file = published(name, without="_stage_model.", prediction_type="epsilon")
    assert (file.unet, file.text_encoder) == MODELS[name]
    assert file.vae == STABLE_DIFFUSION_1_5_VAE
    assert (file.facts.text_space, file.facts.latent_space) == (text_space_of(file.text_encoder), "sd-1")


BY_LEVEL = {
    **{"block_out_channels": (64, 128, 64), "layers_per_block": (1, 2, 1), "transformer_layers_per_block": (1, 2, 3)},
    **{"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 48},
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}


def test_other_networks_of_the_same_layout_are_recognised_too():
    unet = UNetConfig(**BY_LEVEL)
    vae = VAEConfig(**{**VAE.to_dict(), "latent_channels": 6, "layers_per_block": 3, "norm_num_groups": 32})
    text = CLIPTextConfig(vocab_size=50, max_position_embeddings=9, hidden_size=128, num_attention_heads=2, num_hidden_layers=3)
    tensors = as_original(*described(unet, vae_of_32(vae), text), openclip=False, configs=(unet, vae))
    parts = parts_of("it", {key: tensor.shape for key, tensor in tensors.items()})
    assert unet_config(parts["unet"]) == unet
    assert vae_config(parts["vae"]) == vae_of_32(vae)
    assert text_config(parts["text_encoder"]) == text
    decoder = {key: tensor.shape for key, tensor in tensors.items() if key.startswith("first_stage_model.decoder.")}
    assert vae_config(parts_of("it", decoder)["vae"]) == vae_of_32(vae)


def vae_of_32(vae: VAEConfig) -> VAEConfig:
    return VAEConfig(**{**vae.to_dict(), "block_out_channels": (32, 32, 64, 64)})


def test_the_tiny_model_is_what_was_written(tensors_1: Tensors, tmp_path: Path):
    file = single_file(tmp_path, tensors_1)
    assert (file.text_encoder, file.unet, file.vae) == (TEXT_ENCODER, UNET, VAE)
    assert file.config(Network.VAE_ENCODER) is file.config(Network.VAE_DECODER) is file.vae


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("unet", "configuration of the U-Net has 64 channels, which attention_head_dim 7 does not divide"),
        ("vae", "configuration of the VAE has 16 channels, which norm_num_groups 32 does not divide"),
        ("text_encoder", "configuration of the text encoder has num_attention_heads=0; it must be"),
    ],
)
def test_what_a_family_s_rule_cannot_split_is_refused(part: str, sentence: str, tensors_1: Tensors, tmp_path: Path):
    configs = {"unet": {**TINY["unet"], "attention_head_dim": 7}} if part == "unet" else {}
    with pytest.raises(CheckpointError, match=rf"dreams\.safetensors: the {sentence}"):
        getattr(single_file(tmp_path, tensors_1, configs=configs), part)


def test_an_option_that_means_nothing_is_refused(tensors_1: Tensors, tmp_path: Path):
    with pytest.raises(CheckpointError, match="the vae has no groups to be given for "):
        _ = single_file(tmp_path, tensors_1, configs={"vae": {"groups": 8}}).vae


# What the family tells


def test_what_the_first_family_is(tensors_1: Tensors, tmp_path: Path):
    file = single_file(tmp_path, tensors_1)
    assert (file.facts.model, file.facts.latent_space, file.facts.text_space) == ("dreams",) * 3  # it is not Stable Diffusion's
    assert (file.facts.sizes, file.facts.sampler) == (((512, 512),), "pndm")
    assert file.scheduler == {
        "_class_name": "PNDMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "prediction_type": "epsilon",
    }


def test_what_the_second_family_predicts_must_be_told(tensors_2: Tensors, tmp_path: Path):
    file = single_file(tmp_path, tensors_2)
    for ask in (lambda: file.scheduler, lambda: file.facts):
        with pytest.raises(CheckpointError, match="weights do not tell what they predict: give as its prediction_type epsilon"):
            ask()
    load_network(file, Network.VAE_DECODER)


V = "v_prediction"


@pytest.mark.parametrize(
    ("prediction_type", "metadata", "expected"),
    [
        ("epsilon", {}, ("epsilon", (512, 512), "pndm")),
        (V, {}, (V, (768, 768), "ddim")),
        (None, {"modelspec.prediction_type": "v"}, (V, (768, 768), "ddim")),
        (None, {"modelspec.prediction_type": "epsilon"}, ("epsilon", (512, 512), "pndm")),
        (None, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, (V, (768, 768), "ddim")),
        (None, {"modelspec.architecture": "stable-diffusion-v2-512"}, ("epsilon", (512, 512), "pndm")),
        (None, {"modelspec.prediction_type": "v", "modelspec.resolution": "640x512"}, (V, (640, 512), "ddim")),
        (None, {"modelspec.prediction_type": "v", "modelspec.resolution": "large"}, (V, (768, 768), "ddim")),
        ("epsilon", {"modelspec.prediction_type": "v"}, ("epsilon", (512, 512), "pndm")),
    ],
)
def test_option_and_header_tell_what_it_predicts(
    prediction_type: str | None, metadata: dict[str, str], expected: Any, tensors_2: Tensors, tmp_path: Path
):
    file = single_file(tmp_path, tensors_2, metadata=metadata, prediction_type=prediction_type)
    assert (file.scheduler["prediction_type"], file.facts.sizes[0], file.facts.sampler) == expected


@pytest.mark.parametrize(("metadata", "option"), [({"modelspec.prediction_type": "flow"}, None), ({}, "flow")])
def test_what_nothing_can_predict_is_refused(metadata: dict[str, str], option: str | None, tensors_1: Tensors, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"must be epsilon, v_prediction, sample, not 'flow'"):
        _ = single_file(tmp_path, tensors_1, metadata=metadata, prediction_type=option).facts


def test_an_inpainting_model_of_the_second_family_predicts_the_noise(tensors_2: Tensors, tmp_path: Path):
    key = "model.diffusion_model.input_blocks.0.0.weight"
    wide = np.zeros((UNET.block_out_channels[0], 9, 3, 3), np.float16)
    file = single_file(tmp_path, {**tensors_2, key: wide})
    assert (file.unet.in_channels, file.scheduler["prediction_type"]) == (9, "epsilon")


def test_one_of_the_first_family_may_predict_v_too(tensors_1: Tensors, tmp_path: Path):
    file = single_file(tmp_path, tensors_1, prediction_type=V)
    assert (file.scheduler["prediction_type"], file.facts.sizes, file.facts.sampler) == (V, ((512, 512),), "ddim")


def test_options_go_before_what_the_file_tells(tensors_1: Tensors, tmp_path: Path):
    configs = {**TINY, "scheduler": {"timestep_spacing": "trailing"}}
    facts = {"model": "mine", "sizes": ((64, 32),)}
    file = single_file(tmp_path, tensors_1, facts=facts, configs=configs)
    assert (file.facts.model, file.facts.sizes, file.facts.num_steps) == ("mine", ((64, 32),), 50)
    assert file.scheduler["timestep_spacing"] == "trailing"


def test_parts_that_do_not_fit_are_refused(tensors_1: Tensors, tensors_2: Tensors, tmp_path: Path):
    text = {key: tensor for key, tensor in tensors_1.items() if key.startswith("cond_stage_model.")}
    wider = {key: np.repeat(tensor, 2, axis=-1) for key, tensor in text.items()}
    with pytest.raises(CheckpointError, match="do not fit: its text encoder's contexts are 64 wide, its U-Net wants 32"):
        _ = single_file(tmp_path, {**tensors_1, **wider}).facts


# Parts alone


def test_a_stage_needs_only_its_own_part(tensors_1: Tensors, tmp_path: Path):
    file = single_file(tmp_path, {key: tensor for key, tensor in tensors_1.items() if key.startswith("model.")})
    assert file.unet == UNET
    with pytest.raises(CheckpointError, match=r"has no vae: no key of it begins with first_stage_model\."):
        load_network(file, Network.VAE_DECODER)
    with pytest.raises(CheckpointError, match="has no text_encoder: no key of it begins with cond_stage_model"):
        file.weights_digest(Network.TEXT_ENCODER)
    with pytest.raises(CheckpointError, match="has no text encoder, and its U-Net wants contexts 32 wide, not 768"):
        _ = file.facts


def test_a_vae_alone_serves_both_families(tensors_1: Tensors, tmp_path: Path):
    file = single_file(tmp_path, {key: tensor for key, tensor in tensors_1.items() if key.startswith("first_stage_model.")})
    assert (file.vae, file.facts.latent_space, file.facts.sizes) == (VAE, "dreams", ((512, 512),))
    with pytest.raises(CheckpointError, match="has no unet"):
        _ = file.unet
    with pytest.raises(CheckpointError, match="has no unet"):
        _ = file.text_encoder


# Refusals


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight", "is a LoRA, which changes a model and is none"),
        ("unet.up_blocks.0.attentions.0.to_q.lora.down.weight", "is a LoRA"),
        ("unet.up_blocks.0.attentions.0.to_q.lora_A.weight", "is a LoRA"),
        ("conditioner.embedders.1.model.ln_final.weight", "is of Stable Diffusion XL's kind, which is not supported"),
        ("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", "is Stable Diffusion 3"),
        ("double_blocks.0.img_attn.norm.key_norm.scale", "is Flux"),
        ("control_model.time_embed.0.weight", "is a ControlNet"),
        ("model.diffusion_model.label_emb.0.0.weight", "has a U-Net that wants more than a text"),
        ("down_blocks.0.resnets.0.conv1.weight", "is one network in diffusers' layout; name the folder"),
        ("encoder.down_blocks.0.resnets.0.conv1.weight", "is one network in diffusers' layout"),
        ("text_model.final_layer_norm.weight", "is one network in diffusers' layout"),
        ("emb_params", "holds no part of Stable Diffusion in its original layout, but emb_params"),
        ("betas", "holds no part of Stable Diffusion in its original layout, but nothing"),
    ],
)
def test_other_models_are_refused_by_name(key: str, sentence: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=f"dreams.safetensors {sentence}"):
        _ = single_file(tmp_path, {key: np.zeros(2, np.float16)}).unet


DECODER_CONV = "first_stage_model.decoder.up.0.block.0.conv1.weight"
UNET_CONV = "model.diffusion_model.input_blocks.1.0.in_layers.2.bias"


@pytest.mark.parametrize(
    ("change", "network", "sentence"),
    [
        (lambda t: {**t, "optimizer.state": t[UNET_CONV]}, Network.VAE_DECODER, "it has surplus optimizer.state"),
        (
            lambda t: {**t, **{f"z.{i}": t[UNET_CONV] for i in range(7)}},
            Network.UNET,
            r"surplus z\.0, z\.1, z\.2, z\.3, z\.4 and 2 more",
        ),
        (
            lambda t: {**t, "model.diffusion_model.depth.weight": t[UNET_CONV]},
            Network.UNET,
            r"surplus model\.diffusion_model\.depth\.weight",
        ),
        (
            lambda t: {**t, "first_stage_model.quantize.embedding.weight": t[UNET_CONV]},
            Network.VAE_ENCODER,
            r"surplus first_stage_model\.quantize\.embedding\.weight",
        ),
        (
            lambda t: {**t, "cond_stage_model.mapper.weight": t[UNET_CONV]},
            Network.TEXT_ENCODER,
            r"surplus cond_stage_model\.mapper\.weight",
        ),
        (
            lambda t: {**t, "model.diffusion_model.input_blocks.1.1.norm.weight": t[UNET_CONV]},
            Network.UNET,
            r"lacks down_blocks\.0\.attentions\.0\.norm\.bias, .* and 20 more",
        ),
        (lambda t: _without(t, UNET_CONV), Network.UNET, r"it lacks down_blocks\.0\.resnets\.0\.conv1\.bias"),
        (lambda t: _without(t, DECODER_CONV), Network.VAE_DECODER, r"it lacks decoder\.up_blocks\.3\.resnets\.0\.conv1\.weight"),
        (lambda t: _without(t, "in_layers.2.weight"), Network.UNET, r"lacks .*conv1\.weight"),
        (
            lambda t: _without(t, "text_model.encoder.layers.0."),
            Network.TEXT_ENCODER,
            r"lacks text_model\.encoder\.layers\.0\.",
        ),
        (
            lambda t: _without(t, "token_embedding"),
            Network.TEXT_ENCODER,
            r"lacks text_model\.embeddings\.token_embedding\.weight",
        ),
        (lambda t: {**t, UNET_CONV: np.zeros(7, np.float16)}, Network.UNET, r"conv1\.bias has shape \(7,\)"),
        (
            lambda t: {**t, UNET_CONV: t[UNET_CONV].astype(np.float64)},
            Network.UNET,
            f"{UNET_CONV} is of type F64; only F16, BF16 and F32 are read",
        ),
        (
            lambda t: {**t, **{f"cond_stage_model.{key}": tensor for key, tensor in _text_again(t).items()}},
            Network.TEXT_ENCODER,
            r"has text_model\.final_layer_norm\.bias twice, as cond_stage_model\.",
        ),
    ],
)
def test_other_tensors_are_refused(
    change: Callable[[Tensors], Tensors], network: Network, sentence: str, tensors_1: Tensors, tmp_path: Path
):
    with pytest.raises(CheckpointError, match=sentence):
        load_network(single_file(tmp_path, change(tensors_1)), network)


def _without(tensors: Tensors, part: str) -> Tensors:
    left = {key: tensor for key, tensor in tensors.items() if part not in key}
    assert len(left) < len(tensors)
    return left


def _text_again(tensors: Tensors) -> Tensors:
    key = "text_model.final_layer_norm.bias"
    return {key: tensors[f"cond_stage_model.transformer.{key}"]}


def test_a_fused_projection_that_is_none_is_refused(tensors_2: Tensors, tmp_path: Path):
    key = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias"
    file = single_file(tmp_path, {**tensors_2, key: np.zeros(97, np.float16)})
    with pytest.raises(CheckpointError, match=f"{key} is no fused projection: it has 97 rows"):
        load_network(file, Network.TEXT_ENCODER)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(kept: int, tensors_1: Tensors, tmp_path: Path):
    file = single_file(tmp_path, tensors_1)
    file.path.write_bytes(file.path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"dreams\.safetensors is damaged"):
        load_network(file, Network.VAE_DECODER)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.ckpt", b""),
        ("model.PT", b""),
        ("model.bin", b"\x00" * 100),
        ("model.safetensors", b"PK\x03\x04" + b"\x00" * 100),
        ("model.safetensors", b"\x80\x02\x8a\n" + b"\x00" * 100),
    ],
)
def test_a_pickle_is_refused_with_what_to_do(name: str, content: bytes, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    assert looks_like_single_file(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name} is a pickle, which can run code .* convert it with diffusers: "):
        _ = SingleFile(tmp_path / name).facts


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"there is no file .*gone\.safetensors"):
        _ = SingleFile(tmp_path / "gone.safetensors").vae
    assert not looks_like_single_file(tmp_path)


# Digests


def test_the_digest_is_of_the_network_alone(tensors_1: Tensors, tmp_path: Path):
    before = {network: single_file(tmp_path, tensors_1).weights_digest(network) for network in Network}
    assert len(set(before.values())) == 4
    changed = {**tensors_1, DECODER_CONV: tensors_1[DECODER_CONV] + 1, "betas": np.ones(1000, np.float32)}
    file = single_file(tmp_path, changed, metadata={"modelspec.title": "another"})
    after = {network: file.weights_digest(network) for network in Network}
    assert [network for network in Network if before[network] != after[network]] == [Network.VAE_DECODER]


def test_the_digest_is_what_the_docstring_says(tensors_1: Tensors, tmp_path: Path):
    digest = hashlib.sha256()
    keys = [key for key in tensors_1 if key.startswith(("first_stage_model.decoder.", "first_stage_model.post_quant_conv."))]
    for key in sorted(keys):
        digest.update(f"{key} float16 {tensors_1[key].shape}\n".encode())
        digest.update(tensors_1[key].tobytes())
    assert single_file(tmp_path, tensors_1).weights_digest(Network.VAE_DECODER) == digest.hexdigest()


# The vocabulary


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    tokens, merges = tiny_tokenizer()
    save_tokenizer(tmp_path / "vocabulary", tokens, merges, length=16)
    return tmp_path / "vocabulary"


def test_without_a_vocabulary_all_else_works(tensors_1: Tensors, tmp_path: Path):
    file = single_file(tmp_path, tensors_1)
    load_network(file, Network.TEXT_ENCODER)
    with pytest.raises(CheckpointError, match=r"holds no vocabulary, .*: give as its tokenizer a folder with CLIP's vocab\.json"):
        _ = file.tokenizer


def test_the_first_family_takes_a_folder_as_it_is(vocabulary: Path, tensors_1: Tensors, tmp_path: Path):
    assert single_file(tmp_path, tensors_1, tokenizer=vocabulary).tokenizer == vocabulary


def test_the_second_family_pads_with_token_0(vocabulary: Path, tensors_2: Tensors, tmp_path: Path):
    file = single_file(tmp_path, tensors_2, tokenizer=vocabulary, prediction_type="epsilon")
    folder = file.tokenizer
    given, own = Tokenizer.from_folder(vocabulary), Tokenizer.from_folder(folder)
    assert given.pad == given.end != 0
    assert own.pad == 0
    assert given.tokens("red,2") == own.tokens("red,2") != []
    del file
    assert not folder.exists()
    assert vocabulary.exists()


def test_a_pad_of_the_second_family_is_not_the_first_s(vocabulary: Path, tensors_1: Tensors, tmp_path: Path):
    (vocabulary / "special_tokens_map.json").write_text(json.dumps({"pad_token": "a"}))
    (vocabulary / "tokenizer_config.json").unlink()
    assert Tokenizer.from_folder(vocabulary).pad == 0
    file = single_file(tmp_path, tensors_1, tokenizer=vocabulary)
    assert (tokenizer := Tokenizer.from_folder(file.tokenizer)).pad == tokenizer.end


def test_a_folder_without_vocabulary_is_refused(vocabulary: Path, tensors_1: Tensors, tmp_path: Path):
    (vocabulary / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"has no merges\.txt"):
        _ = single_file(tmp_path, tensors_1, tokenizer=vocabulary).tokenizer


def test_more_tokens_than_the_text_encoder_has_are_refused(vocabulary: Path, tensors_1: Tensors, tmp_path: Path):
    key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    with pytest.raises(CheckpointError, match=r"vocabulary has \d+ tokens, the text encoder of .* only 20"):
        _ = single_file(tmp_path, {**tensors_1, key: tensors_1[key][:20]}, tokenizer=vocabulary).tokenizer


def openai_list(path: Path) -> Path:
    """A list like OpenAI's, with some merges more than CLIP uses."""
    twos = ["".join(pair) for pair in itertools.product(string.ascii_letters, repeat=2)]
    pairs = itertools.chain(itertools.product(string.ascii_letters, repeat=2), itertools.product(twos, repeat=2))
    lines = ["#version", *map(" ".join, itertools.islice(pairs, MERGES + 9)), ""]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def whole_vocabulary(tensors: Tensors) -> Tensors:
    key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    return {**tensors, key: np.zeros((49408, TEXT_ENCODER.hidden_size), np.float16)}


def test_openai_s_list_of_merges_is_a_vocabulary(tensors_1: Tensors, tmp_path: Path):
    file = single_file(tmp_path, whole_vocabulary(tensors_1), tokenizer=openai_list(tmp_path / "bpe.txt.gz"))
    tokenizer = Tokenizer.from_folder(file.tokenizer)
    assert (tokenizer.start, tokenizer.end, tokenizer.pad) == (49406, 49407, 49407)
    assert tokenizer.vocabulary_size == 49408
    assert tokenizer.tokens("!") == [256]  # the first letter, at the end of a word
    assert tokenizer.bpe.id_to_token(512) == "aa"


@pytest.mark.skipif(not VOCABULARY.exists(), reason="CLIP's vocabulary is not ours to give away")
def test_clip_s_own_vocabulary_gives_its_own_tokens(tensors_1: Tensors, tmp_path: Path):
    file = single_file(tmp_path, whole_vocabulary(tensors_1), tokenizer=VOCABULARY)
    tokens = Tokenizer.from_folder(file.tokenizer).tokens("a photo of an astronaut riding a horse on mars")
    assert tokens == [320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"none", "is damaged"),
        (gzip.compress(b"#version\na b\n"), "is not CLIP's vocabulary: of its first 48894 lines 1 are merges"),
    ],
    ids=["no gzip", "another list"],
)
def test_what_is_no_list_of_merges_is_refused(content: bytes, sentence: str, tensors_1: Tensors, tmp_path: Path):
    (tmp_path / "bpe.txt.gz").write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence):
        _ = single_file(tmp_path, tensors_1, tokenizer=tmp_path / "bpe.txt.gz").tokenizer
    (tmp_path / "bpe.txt.gz").unlink()
    with pytest.raises(CheckpointError, match=r"there is no .*bpe\.txt\.gz"):
        _ = single_file(tmp_path, tensors_1, tokenizer=tmp_path / "bpe.txt.gz").tokenizer


# Imports


def test_a_description_imports_no_keras(tensors_1: Tensors, tmp_path: Path):
    path = single_file(tmp_path, tensors_1).path
    program = (
        "import sys; from pathlib import Path\n"
        "from triptych.checkpoints.single_file import SingleFile\n"
        f"assert SingleFile(Path({str(path)!r})).scheduler['prediction_type'] == 'epsilon'\n"
        "assert 'keras' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_clip_as_original_has_position_ids(folder: Path):
    text = load_file(folder / "text_encoder" / "model.safetensors")
    assert clip_as_original(text).keys() - {f"transformer.{key}" for key in text} == {
        "transformer.text_model.embeddings.position_ids"
    }
