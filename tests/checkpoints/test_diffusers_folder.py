from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.tiny_models import FACTS, INPAINTING_UNET, SCHEDULER, TEXT_ENCODER, UNET, VAE, write_tiny_model
from triptych.checkpoints.checkpoint import ModelFacts, Network, load_network, load_weights
from triptych.checkpoints.diffusers_folder import DiffusersFolder, save_description, save_json, save_network, save_sibling
from triptych.errors import CheckpointError
from triptych.models.config import STABLE_DIFFUSION_1_5_VAE, CLIPTextConfig, UNetConfig
from triptych.sampling import ScheduleConfig
from triptych.sampling.samplers import REPLACEMENTS
from triptych.stages.fit import check_fit

Tensors = dict[str, np.ndarray]

TEXT_FILE = "text_encoder/model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
LAST_NORM = "text_model.final_layer_norm.weight"
FC1 = "text_model.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny")


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> keras.Model:
    return load_network(DiffusersFolder(write_tiny_model(tmp_path_factory.mktemp("tiny"))), Network.TEXT_ENCODER)


def rewrite(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(path)), path)


# Descriptions


def test_the_folder_says_what_was_written(folder: Path):
    files = DiffusersFolder(folder)
    assert (files.text_encoder, files.unet, files.vae) == (TEXT_ENCODER, UNET, VAE)
    assert (files.facts, files.scheduler) == (FACTS, SCHEDULER)
    assert files.config(Network.VAE_DECODER) is files.config(Network.VAE_ENCODER) is files.vae


def test_it_says_the_size_of_a_picture_as_diffusers_pipelines_ask_for_it(folder: Path):
    def sizes() -> list[Any]:
        return [json.loads((folder / part / "config.json").read_text())["sample_size"] for part in ("vae", "unet")]

    assert sizes() == [32, 4]
    save_description(folder, replace(FACTS, sizes=((64, 32),)), SCHEDULER)
    assert sizes() == [[32, 64], [4, 8]]


def test_a_model_without_vocabulary_knows_every_word(tmp_path: Path):
    save_description(tmp_path, replace(FACTS, words=None), SCHEDULER)
    assert DiffusersFolder(tmp_path).facts.words is None


def test_a_stage_needs_only_its_own_files(folder: Path):
    for path in (folder / "unet").iterdir():
        path.unlink()
    files = DiffusersFolder(folder)
    assert files.vae == VAE
    with pytest.raises(CheckpointError, match=r"there is no .*unet/config\.json"):
        _ = files.unet


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"models": "tiny"}, "keys that mean nothing: models"),
        ({"sizes": [128]}, "sizes in triptych.json must be a list of"),
        ({"sizes": 128}, "sizes in triptych.json must be a list of"),
    ],
)
def test_wrong_facts_are_refused(folder: Path, change: dict[str, object], sentence: str):
    facts = json.loads((folder / "triptych.json").read_text())
    with pytest.raises(CheckpointError, match=sentence):
        ModelFacts.from_dict({**facts, **change})


def test_missing_facts_are_named():
    with pytest.raises(CheckpointError, match="lacks guidance_scale, latent_space, model, num_steps, sampler and 2 more"):
        ModelFacts.from_dict({})


@pytest.mark.parametrize(("content", "sentence"), [("{", "is not JSON"), ("[]", "holds no JSON object"), ("\x00", "is not JSON")])
def test_damaged_json_is_refused(folder: Path, content: str, sentence: str):
    (folder / "vae" / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=sentence):
        _ = DiffusersFolder(folder).vae


# A folder that does not say what it is, as others write it

DIFFUSERS_1_5 = {
    "text_encoder": CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12),
    "unet": UNetConfig(cross_attention_dim=768),
    "vae": STABLE_DIFFUSION_1_5_VAE,
}
PNDM = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "trained_betas": None,
}


def plain_folder(
    folder: Path, configs: dict[str, Any], *, scheduler: dict[str, Any] | None = None, unet: dict[str, Any] | None = None
) -> DiffusersFolder:
    """A folder of configurations alone, with nothing of ours in it."""
    for subfolder, config in configs.items():
        save_json(folder / subfolder / "config.json", config.to_dict() | ((unet or {}) if subfolder == "unet" else {}))
    save_json(folder / "scheduler" / "scheduler_config.json", scheduler or PNDM)
    save_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    return DiffusersFolder(folder)


def test_stable_diffusion_1_5_is_known_by_its_architecture(tmp_path: Path):
    files = plain_folder(tmp_path / "sd", DIFFUSERS_1_5, unet={"sample_size": 64})
    assert files.facts == ModelFacts(
        model="sd",
        latent_space="sd-1",
        text_space="clip-vit-l-14",
        sizes=((512, 512),),
        sampler="pndm",
        num_steps=50,
        guidance_scale=7.5,
    )


def test_stable_diffusion_2_1_is_known_by_its_architecture(tmp_path: Path):
    encoder = CLIPTextConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu"
    )
    unet = UNetConfig(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
    scheduler = {**PNDM, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    configs = {**DIFFUSERS_1_5, "text_encoder": encoder, "unet": unet}
    facts = plain_folder(tmp_path, configs, scheduler=scheduler, unet={"sample_size": 96}).facts
    assert (facts.latent_space, facts.text_space) == ("sd-1", "openclip-vit-h-14")
    assert (facts.sizes, facts.sampler) == (((768, 768),), "ddim")


def test_strangers_do_not_fit_by_accident(folder: Path):
    (folder / "triptych.json").unlink()
    assert DiffusersFolder(folder).facts.latent_space == DiffusersFolder(folder).facts.text_space == "tiny"
    named = DiffusersFolder(folder, name="owner/tiny").facts
    assert (named.model, named.latent_space, named.text_space) == ("owner/tiny", "owner/tiny", "owner/tiny")
    assert named.sampler == "ddim"


def test_another_scaling_of_latents_is_another_space(tmp_path: Path):
    configs = {**DIFFUSERS_1_5, "vae": replace(STABLE_DIFFUSION_1_5_VAE, scaling_factor=0.13025)}
    assert plain_folder(tmp_path / "other", configs).facts.latent_space == "other"


@pytest.mark.parametrize(
    ("unet", "size"),
    [
        ({}, (512, 512)),
        ({"sample_size": None}, (512, 512)),
        ({"sample_size": 96}, (768, 768)),
        ({"sample_size": [64, 96]}, (768, 512)),
        ({"sample_size": 32, "_diffusers_version": "0.6.0"}, (512, 512)),
        ({"sample_size": 32, "_diffusers_version": "0.9.0"}, (256, 256)),
        ({"sample_size": 32, "_diffusers_version": "0.31.0"}, (256, 256)),
    ],
)
def test_the_size_is_the_one_that_the_unet_was_trained_at(tmp_path: Path, unet: dict[str, Any], size: tuple[int, int]):
    assert plain_folder(tmp_path, DIFFUSERS_1_5, unet=unet).facts.sizes == (size,)


@pytest.mark.parametrize("sample_size", ["64", -64, [64], [64, 0], 64.0, True])
def test_an_impossible_size_is_refused(tmp_path: Path, sample_size: Any):
    with pytest.raises(CheckpointError, match=r"sample_size=.*; it must be a whole number above 0"):
        _ = plain_folder(tmp_path, DIFFUSERS_1_5, unet={"sample_size": sample_size}).facts


def test_a_sampler_that_is_replaced_is_warned_of(tmp_path: Path):
    facts = plain_folder(tmp_path, DIFFUSERS_1_5, scheduler={**PNDM, "_class_name": "DEISMultistepScheduler"}).facts
    assert facts.sampler == "dpm++_2m"
    assert facts.warnings == ("the model recommends DEISMultistepScheduler; dpm++_2m is used in its place",)


def test_old_schedulers_are_read_as_diffusers_pipeline_reads_them(tmp_path: Path):
    # It sets both whatever the file says, because the first checkpoints' files lack them
    for values in ({}, {"steps_offset": 0, "clip_sample": True}):
        read = plain_folder(tmp_path, DIFFUSERS_1_5, scheduler={**PNDM, **values}).scheduler
        assert (read["steps_offset"], read["clip_sample"]) == (1, False)
        assert ScheduleConfig.from_dict(read).steps_offset == 1


def test_the_scheduler_of_a_folder_of_ours_is_read_as_it_is(folder: Path):
    save_json(folder / "scheduler" / "scheduler_config.json", {**SCHEDULER, "steps_offset": 0})
    assert DiffusersFolder(folder).scheduler["steps_offset"] == 0


@pytest.mark.parametrize("pipeline", ["StableDiffusionXLPipeline", "FluxPipeline", "StableDiffusion3Pipeline", None])
def test_another_kind_of_model_is_refused(folder: Path, pipeline: str | None):
    save_json(folder / "model_index.json", {"_class_name": pipeline})
    with pytest.raises(CheckpointError, match=rf"is a model for diffusers' {pipeline}; only models of Stable Diffusion 1"):
        _ = DiffusersFolder(folder).facts


def test_the_identity_needs_no_weights_and_no_list_of_parts(folder: Path):
    for path in [*folder.rglob("*.safetensors"), folder / "model_index.json", folder / "triptych.json"]:
        path.unlink()
    assert DiffusersFolder(folder).facts.sampler == "ddim"


# Variants and shards


def text_encoder_of(folder: Path, **options: Any) -> keras.Model:
    return load_network(DiffusersFolder(folder, **options), Network.TEXT_ENCODER)


def test_a_variant_is_read_where_it_is_asked_for_or_alone(folder: Path, text_encoder: keras.Model):
    plain, variant = folder / TEXT_FILE, folder / "text_encoder" / "model.fp16.safetensors"
    shutil.copy(plain, variant)
    rewrite(plain, lambda tensors: {key: array + np.float16(1) for key, array in tensors.items()})
    _assert_same_weights(text_encoder_of(folder, variant="fp16"), text_encoder)
    with pytest.raises(AssertionError):
        _assert_same_weights(text_encoder_of(folder), text_encoder)
    plain.unlink()
    _assert_same_weights(text_encoder_of(folder), text_encoder)


def test_a_variant_that_is_not_there_is_named(folder: Path):
    with pytest.raises(CheckpointError, match=r"there is no .*text_encoder/model\.fp16\.safetensors"):
        text_encoder_of(folder, variant="fp16")


def test_brain_floats_are_read_exactly(folder: Path, text_encoder: keras.Model):
    rewrite(folder / TEXT_FILE, lambda tensors: {key: array.astype(ml_dtypes.bfloat16) for key, array in tensors.items()})
    with safe_open(folder / TEXT_FILE, framework="numpy") as file:
        assert file.get_slice(LAST_NORM).get_dtype() == "BF16"
    gamma = text_encoder_of(folder).get_layer("text_model.final_layer_norm").gamma
    expected = keras.ops.convert_to_numpy(text_encoder.get_layer("text_model.final_layer_norm").gamma)
    rounded = (expected.view(np.uint32) + np.uint32(0x7FFF) + ((expected.view(np.uint32) >> 16) & 1)) & np.uint32(0xFFFF0000)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(gamma), rounded.view(np.float32))
    assert (rounded.view(np.float32) != expected).any()


def split(folder: Path, *, variant: str = "") -> Path:
    """Splits the text encoder's file in two as `save_pretrained` does, and returns the index."""
    tensors = load_file(folder / TEXT_FILE)
    (folder / TEXT_FILE).unlink()
    keys = sorted(tensors)
    shard_of: dict[str, str] = {}
    for number, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), 1):
        name = f"model{variant}-{number:05}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, folder / "text_encoder" / name)
        shard_of |= dict.fromkeys(part, name)
    index = folder / "text_encoder" / f"model.safetensors.index{variant}.json"
    save_json(index, {"metadata": {"total_size": 1}, "weight_map": shard_of})
    return index


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_read_by_their_index(folder: Path, text_encoder: keras.Model, variant: str):
    split(folder, variant=variant)
    (folder / "text_encoder" / "model-00003-of-00003.safetensors").write_bytes(b"not listed")
    _assert_same_weights(text_encoder_of(folder), text_encoder)


def test_the_digest_of_shards_is_over_all_of_them_in_the_order_of_their_names(folder: Path):
    index = split(folder)
    shards = sorted(folder.glob("text_encoder/model-*.safetensors"))
    both = b"".join(shard.read_bytes() for shard in shards)
    assert DiffusersFolder(folder).weights_digest(Network.TEXT_ENCODER) == hashlib.sha256(both).hexdigest()
    values = json.loads(index.read_text())
    save_json(index, {"weight_map": dict(reversed(values["weight_map"].items()))})
    assert DiffusersFolder(folder).weights_digest(Network.TEXT_ENCODER) == hashlib.sha256(both).hexdigest()


def test_a_missing_shard_is_named(folder: Path):
    split(folder)
    (folder / "text_encoder" / "model-00002-of-00002.safetensors").unlink()
    files = DiffusersFolder(folder)
    for ask in (lambda: load_network(files, Network.TEXT_ENCODER), lambda: files.weights_digest(Network.TEXT_ENCODER)):
        with pytest.raises(CheckpointError, match=r"there is no .*text_encoder/model-00002-of-00002\.safetensors"):
            ask()


def test_a_damaged_shard_is_named(folder: Path):
    split(folder)
    shard = folder / "text_encoder" / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is damaged, or was not downloaded to its end"):
        text_encoder_of(folder)


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({FC1: SECOND}, rf"model-00002-of-00002.safetensors lacks {FC1}, which model.safetensors.index.json says it holds"),
        ({FC1: None}, rf"model-00001-of-00002.safetensors holds {FC1}, of which model.safetensors.index.json says nothing"),
        ({"more": FIRST}, "model-00001-of-00002.safetensors lacks more, which"),
        (
            {"more": "../../unet/x.safetensors"},
            r"lists '\.\./\.\./unet/x\.safetensors', which is not the name of a safetensors file",
        ),
        ({"more": "pytorch_model.bin"}, "lists 'pytorch_model.bin', which is not the name of a safetensors file beside it"),
        ({"more": 7}, "lists '7', which is not"),
    ],
    ids=["elsewhere", "unlisted", "nowhere", "outside", "pickle", "number"],
)
def test_an_index_that_lies_is_refused(folder: Path, change: dict[str, Any], sentence: str):
    index = split(folder)
    shard_of = json.loads(index.read_text())["weight_map"] | change
    save_json(index, {"weight_map": {key: shard for key, shard in shard_of.items() if shard is not None}})
    with pytest.raises(CheckpointError, match=sentence):
        text_encoder_of(folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path):
    split(folder)
    rewrite(folder / "text_encoder" / SECOND, lambda tensors: {**tensors, FC1: np.zeros((64, 32), np.float16)})
    with pytest.raises(CheckpointError, match=rf"{FC1} is in two shards, {FIRST} and {SECOND} of .*index\.json"):
        text_encoder_of(folder)


@pytest.mark.parametrize("values", [{}, {"weight_map": {}}, {"weight_map": ["a"]}])
def test_an_index_of_nothing_is_refused(folder: Path, values: dict[str, Any]):
    save_json(split(folder), values)
    with pytest.raises(CheckpointError, match="lists no shards: it lacks weight_map"):
        text_encoder_of(folder)


# Weights, read


def test_half_and_single_precision_are_read_alike(folder: Path, text_encoder: keras.Model):
    rewrite(folder / TEXT_FILE, lambda tensors: {key: array.astype(np.float32) for key, array in tensors.items()})
    _assert_same_weights(load_network(DiffusersFolder(folder), Network.TEXT_ENCODER), text_encoder)


def test_keys_of_transformers_5_are_read(folder: Path, text_encoder: keras.Model):
    rewrite(folder / TEXT_FILE, lambda tensors: {key.removeprefix("text_model."): array for key, array in tensors.items()})
    _assert_same_weights(load_network(DiffusersFolder(folder), Network.TEXT_ENCODER), text_encoder)


def test_position_ids_of_old_files_are_passed_over(folder: Path, text_encoder: keras.Model):
    rewrite(folder / TEXT_FILE, lambda tensors: {**tensors, "text_model.embeddings.position_ids": np.arange(16)})
    _assert_same_weights(load_network(DiffusersFolder(folder), Network.TEXT_ENCODER), text_encoder)


def test_attention_of_old_vae_files_is_read(folder: Path):
    # As in Stable Diffusion 1.5 itself: other names, and in some files 1x1 convolutions in place of dense layers.
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    expected = load_network(DiffusersFolder(folder), Network.VAE_DECODER)

    def as_of_old(tensors: Tensors) -> Tensors:
        old = {}
        for key, array in tensors.items():
            is_matrix = ".attentions." in key and array.ndim == 2
            for new_name, old_name in names.items():
                key = key.replace(new_name, old_name)
            old[key] = array[:, :, None, None] if is_matrix else array
        assert old.keys() != tensors.keys()
        return old

    rewrite(folder / VAE_FILE, as_of_old)
    _assert_same_weights(load_network(DiffusersFolder(folder), Network.VAE_DECODER), expected)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: {k: v for k, v in t.items() if k != FC1}, f"it lacks {FC1}"),
        (
            lambda t: {k: v for k, v in t.items() if "layers.0" not in k},
            r"lacks text_model\.encoder\.layers\.0\.layer_norm1\.bias, .* and 11 more",
        ),
        (
            lambda t: {**t, "text_model.encoder.layers.2.mlp.fc1.bias": t[LAST_NORM]},
            "surplus text_model.encoder.layers.2.mlp.fc1.bias",
        ),
        (
            lambda t: {**t, LAST_NORM: np.ones(33, np.float16)},
            r"final_layer_norm.weight has shape \(33,\) in Keras' order, not \(32,\)",
        ),
        (lambda t: {**t, FC1: t[FC1].T.copy()}, r"fc1.weight has shape \(64, 32\) in Keras' order, not \(32, 64\)"),
        (
            lambda t: {**t, LAST_NORM: np.full(32, np.nan, np.float16)},
            f"{LAST_NORM} holds NaN or infinity, so the file is damaged",
        ),
        (lambda t: {**t, LAST_NORM: np.full(32, np.inf, np.float32)}, "holds NaN or infinity"),
        (lambda t: {**t, LAST_NORM.removeprefix("text_model."): t[LAST_NORM]}, f"has {LAST_NORM} twice"),
        (lambda t: {**t, LAST_NORM: np.ones(32, np.float64)}, "is of type F64; only F16, BF16 and F32 are read"),
    ],
    ids=["missing", "many missing", "surplus", "shape", "transposed", "NaN", "infinity", "twice", "double"],
)
def test_other_tensors_are_refused(folder: Path, text_encoder: keras.Model, change: Callable[[Tensors], Tensors], sentence: str):
    rewrite(folder / TEXT_FILE, change)
    with pytest.raises(CheckpointError, match=sentence):
        load_weights(text_encoder, DiffusersFolder(folder), Network.TEXT_ENCODER)


def test_a_stray_tensor_beside_the_vae_is_refused(folder: Path):
    rewrite(folder / VAE_FILE, lambda tensors: {**tensors, "loss.logvar": np.zeros(1, np.float16)})
    with pytest.raises(CheckpointError, match=r"surplus loss\.logvar"):
        load_network(DiffusersFolder(folder), Network.VAE_DECODER)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(folder: Path, text_encoder: keras.Model, kept: int):
    path = folder / TEXT_FILE
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_weights(text_encoder, DiffusersFolder(folder), Network.TEXT_ENCODER)


def test_a_pointer_of_git_lfs_is_told_from_a_damaged_file(folder: Path, text_encoder: keras.Model):
    (folder / TEXT_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 492265168\n")
    with pytest.raises(CheckpointError, match="git-lfs's pointer to it; run `git lfs pull`"):
        load_weights(text_encoder, DiffusersFolder(folder), Network.TEXT_ENCODER)


def test_a_folder_in_the_place_of_a_file_is_refused(folder: Path, text_encoder: keras.Model):
    (folder / TEXT_FILE).unlink()
    (folder / TEXT_FILE).mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(text_encoder, DiffusersFolder(folder), Network.TEXT_ENCODER)


def test_a_pickle_is_refused_and_not_opened(folder: Path, text_encoder: keras.Model):
    (folder / TEXT_FILE).rename(folder / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle, .* convert it with diffusers"):
        load_weights(text_encoder, DiffusersFolder(folder), Network.TEXT_ENCODER)


def test_a_missing_file_is_named(folder: Path, text_encoder: keras.Model):
    (folder / TEXT_FILE).unlink()
    with pytest.raises(CheckpointError, match=f"there is no .*{TEXT_FILE}"):
        load_weights(text_encoder, DiffusersFolder(folder), Network.TEXT_ENCODER)


# Weights, written


def test_saved_again_the_bytes_are_the_same(folder: Path, tmp_path: Path):
    again = tmp_path / "again"
    networks = {network: load_network(DiffusersFolder(folder), network) for network in Network}
    save_network(again, "text_encoder", TEXT_ENCODER, networks[Network.TEXT_ENCODER])
    save_network(again, "unet", UNET, networks[Network.UNET])
    save_network(again, "vae", VAE, networks[Network.VAE_DECODER], networks[Network.VAE_ENCODER])
    for network in Network:
        assert DiffusersFolder(again).weights_digest(network) == DiffusersFolder(folder).weights_digest(network)


def test_the_digest_is_that_of_the_file(folder: Path):
    before = DiffusersFolder(folder).weights_digest(Network.TEXT_ENCODER)
    assert before == hashlib.sha256((folder / TEXT_FILE).read_bytes()).hexdigest()
    rewrite(folder / TEXT_FILE, lambda tensors: {**tensors, LAST_NORM: tensors[LAST_NORM] + 1})
    assert DiffusersFolder(folder).weights_digest(Network.TEXT_ENCODER) != before


def test_another_seed_is_another_model(folder: Path, tmp_path: Path):
    other = write_tiny_model(tmp_path / "other", seed=1)
    assert DiffusersFolder(other).weights_digest(Network.UNET) != DiffusersFolder(folder).weights_digest(Network.UNET)


@pytest.mark.parametrize("value", [1e5, np.nan])
def test_what_half_precision_cannot_hold_is_not_saved(folder: Path, tmp_path: Path, value: float):
    network = load_network(DiffusersFolder(folder), Network.TEXT_ENCODER)
    gamma = network.get_layer("text_model.final_layer_norm").gamma
    gamma.assign(np.full(gamma.shape, value, np.float32))
    with pytest.raises(CheckpointError, match=f"half precision cannot hold {LAST_NORM}; not saved"):
        save_network(tmp_path / "new", "text_encoder", TEXT_ENCODER, network)
    assert not (tmp_path / "new").exists()


def _assert_same_weights(network: keras.Model, expected: keras.Model) -> None:
    for ours, theirs in zip(network.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs))
        assert keras.ops.convert_to_numpy(ours).any()


# Documented


def test_the_documented_table_of_samplers_is_the_one_that_holds(root: Path):
    page = (root / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    table = page.partition("| class | is replaced by |\n|---|---|\n")[2].partition("\n\n")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| `([\w+]+)` \|$", table, re.MULTILINE)) == REPLACEMENTS
    assert len(table.splitlines()) == len(REPLACEMENTS)


# A model that shares all but its U-Net with another


@pytest.fixture
def sibling(folder: Path, tmp_path: Path) -> Path:
    inpainting = write_tiny_model(tmp_path / "inpainting", unet=INPAINTING_UNET)
    shutil.move(inpainting / "unet", folder / "sibling" / "unet")
    save_sibling(folder / "sibling", "tiny-inpainting", "..")
    return folder / "sibling"


def test_a_sibling_has_its_own_unet_and_the_other_parts_of_its_base(folder: Path, sibling: Path):
    files, base = DiffusersFolder(sibling), DiffusersFolder(folder)
    assert files.facts == replace(FACTS, model="tiny-inpainting")
    assert (files.text_encoder, files.unet, files.vae) == (TEXT_ENCODER, INPAINTING_UNET, VAE)
    assert files.scheduler == SCHEDULER and files.tokenizer == sibling / ".." / "tokenizer"
    for network in Network:
        assert (files.weights_digest(network) == base.weights_digest(network)) is (network is not Network.UNET)
    with files.tensors(Network.UNET) as tensors:
        assert tensors.read("conv_in.weight").shape[1] == 9
    with files.tensors(Network.VAE_DECODER) as tensors:
        assert "decoder.conv_in.weight" in tensors.names()
    check_fit(files)


def test_what_a_sibling_has_itself_goes_before_its_base(folder: Path, sibling: Path):
    save_json(sibling / "scheduler" / "scheduler_config.json", {**SCHEDULER, "beta_end": 0.03})
    save_json(sibling / "triptych.json", {"model": "other", "base": "..", "num_steps": 7})
    files = DiffusersFolder(sibling)
    assert files.scheduler["beta_end"] == 0.03 and files.facts == replace(FACTS, model="other", num_steps=7)


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (3, "must be a folder relative to it, not '3'"),
        ("/models/sd", "must be a folder relative to it, not '/models/sd'"),
        ("../gone", "there is no .*gone, which .* names as its base"),
        (".", "has a base itself"),
    ],
)
def test_a_base_that_is_none_is_refused(sibling: Path, base: object, sentence: str):
    save_json(sibling / "triptych.json", {"model": "other", "base": base})
    with pytest.raises(CheckpointError, match=sentence):
        DiffusersFolder(sibling).facts  # noqa: B018 - read for its error
    with pytest.raises(CheckpointError, match=sentence):
        DiffusersFolder(sibling).weights_digest(Network.VAE_DECODER)
