from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.tiny_models import FACTS, SCHEDULER, TEXT_ENCODER, UNET, VAE, write_tiny_model
from triptych.checkpoints.checkpoint import ModelFacts, Network, load_network, load_weights
from triptych.checkpoints.diffusers_folder import DiffusersFolder, save_description, save_network
from triptych.errors import CheckpointError

Tensors = dict[str, np.ndarray]

TEXT_FILE = "text_encoder/model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"


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


LAST_NORM = "text_model.final_layer_norm.weight"
FC1 = "text_model.encoder.layers.1.mlp.fc1.weight"


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
        (lambda t: {**t, LAST_NORM: np.ones(32, np.float64)}, "is of type F64; only F16 and F32 are read"),
    ],
    ids=["missing", "many missing", "surplus", "shape", "transposed", "double"],
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
