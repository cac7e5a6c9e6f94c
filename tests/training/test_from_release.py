"""A fresh machine begins with what was released; what is there already stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from keras import ops

from training.from_release import start_from_release
from training.release import release
from training.tokenizer import load_tokenizer
from training.unet import RELEASED, load_shape, starting_weights
from training.vae import vae_config
from training.world.scenes import Grammar
from triptych.checkpoints.checkpoint import Network, load_network
from triptych.checkpoints.registry import find_model
from triptych.models.unet import build_unet
from triptych.models.vae import build_vae_decoder


@pytest.fixture
def started(cache_folder: Path) -> Path:
    start_from_release()
    return cache_folder / "training"


def test_every_network_that_learns_on_begins_with_the_released_weights(started: Path) -> None:
    released = find_model("vignette")
    assert load_shape(started / RELEASED) == released.unet
    for network, ours, path in (
        (Network.UNET, build_unet(load_shape(started / RELEASED)), started / RELEASED / "unet.weights.h5"),
        (Network.VAE_DECODER, build_vae_decoder(vae_config()), started / "vae" / "decoder.weights.h5"),
    ):
        ours.load_weights(path)
        expected = load_network(released, network)
        for ours_one, expected_one in zip(ours.variables, expected.variables, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(ours_one), ops.convert_to_numpy(expected_one))
    assert load_tokenizer().encode(["a red heart"], 8).tolist()[0][0] == load_tokenizer().encode([""], 8).tolist()[0][0]
    assert starting_weights(Grammar.FIRST_LIGHT) == started / RELEASED / "unet.weights.h5"


def test_what_was_learnt_here_is_not_overwritten(started: Path) -> None:
    (started / "vae" / "decoder.weights.h5").write_bytes(b"learnt here")
    (started / "text" / "encoder.weights.h5").unlink()
    (started / "text" / "state.npz").write_bytes(b"half way")
    start_from_release()
    assert (started / "vae" / "decoder.weights.h5").read_bytes() == b"learnt here"
    assert not (started / "text" / "encoder.weights.h5").exists()


def test_a_narrower_grammar_comes_before_the_release_and_a_wider_one_never(started: Path) -> None:
    for grammar in (Grammar.FIRST_LIGHT, Grammar.FULL):
        (started / f"unet-{grammar}").mkdir()
        (started / f"unet-{grammar}" / "unet.weights.h5").touch()
    assert starting_weights(Grammar.ONE_THING) == started / f"unet-{Grammar.FIRST_LIGHT}" / "unet.weights.h5"
    assert starting_weights(Grammar.FIRST_LIGHT) == started / RELEASED / "unet.weights.h5"


def test_a_release_of_what_was_only_started_is_refused(started: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no U-Net has been trained"):
        release(tmp_path / "model", version=2)
    assert not (tmp_path / "model").exists()
