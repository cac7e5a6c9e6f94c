"""keras-cv's presets as our folders, against keras-cv itself, on random weights.

keras-cv's own code builds the networks, narrower; `make test-full` has them at their size. All that a preset is made of goes the
whole way: from `.h5` files, through keras-cv's `get_file`, into a folder, into our networks and stages.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.reference.keras_cv_peer import PIXEL_TOLERANCE, Peer, our_images, run_peer
from tests.reference.run_keras_cv import PROMPTS
from tests.tiny_models import run_network
from triptych.checkpoints.checkpoint import Network, load_network
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.checkpoints.keras_cv import CONTEXT_LENGTH, NORM_EPS, PRESETS
from triptych.models.tokenizer import Tokenizer

pytestmark = pytest.mark.timeout(600)

SIZE = 128


@pytest.fixture(scope="module", params=PRESETS)
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Peer:
    return run_peer(request.param, tmp_path_factory.mktemp("keras-cv"), size=SIZE, decoder_size=SIZE, narrow=True)


@pytest.fixture
def model(peer: Peer) -> DiffusersFolder:
    return DiffusersFolder(peer.folder / "model")


@pytest.mark.parametrize("network", Network)
def test_each_network_computes_what_keras_cvs_does(peer: Peer, model: DiffusersFolder, network: Network) -> None:
    answer = run_network(load_network(model, network), dict(peer.inputs_of(network)))
    error, bound = peer.error(network, answer)
    assert error < bound


async def test_three_stages_make_the_picture_of_generate_image(peer: Peer, tmp_path: Path) -> None:
    images = await our_images(peer.folder / "model", tmp_path, SIZE)
    assert images.shape == peer.images.shape
    assert np.abs(images.astype(int) - peer.images).max() <= PIXEL_TOLERANCE
    assert len(np.unique(images)) > 100  # and it is a picture


def test_tokens_are_keras_cvs(peer: Peer, model: DiffusersFolder) -> None:
    np.testing.assert_array_equal(Tokenizer.from_folder(model.tokenizer).encode(PROMPTS, CONTEXT_LENGTH), peer.tokens)


def test_norms_have_keras_cvs_epsilon(peer: Peer, model: DiffusersFolder) -> None:
    # Against activations near one an epsilon is too small to show in the outputs.
    layers = [layer for network in Network for layer in load_network(model, network).layers]
    epsilons = [layer.epsilon for layer in layers if hasattr(layer, "epsilon")]
    assert len(epsilons) > 100
    assert set(epsilons) == peer.epsilons == {NORM_EPS}


def test_the_folder_says_what_it_is(peer: Peer, model: DiffusersFolder) -> None:
    assert model.facts == PRESETS[peer.name].facts
    tokenizer = json.loads((model.tokenizer / "tokenizer_config.json").read_text())
    assert (tokenizer["tokenizer_class"], tokenizer["triptych_flavour"]) == ("SimpleTokenizer", "keras-cv")
    assert model.unet.geglu_tanh
    assert model.scheduler["timestep_spacing"] == "keras_cv"
