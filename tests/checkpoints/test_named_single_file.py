"""Single files of Stable Diffusion's published shapes, by a name of the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.test_single_file import MODELS, described, write_holes
from tests.original_layout import as_original
from tests.tiny_models import write_tiny_model
from triptych.checkpoints.checkpoint import Network
from triptych.checkpoints.entries import write_entry
from triptych.checkpoints.registry import Registry
from triptych.errors import CheckpointError
from triptych.models.config import STABLE_DIFFUSION_1_5_VAE
from triptych.stages.fit import check_fit


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny")) / "tokenizer"


def add(folder: Path, name: str, **facts: Any) -> Registry:
    """A model of published size, of holes, under the name `dream`."""
    unet, text = MODELS[name]
    tensors = as_original(
        *described(unet, STABLE_DIFFUSION_1_5_VAE, text),
        openclip=text.hidden_act == "gelu",
        configs=(unet, STABLE_DIFFUSION_1_5_VAE),
    )
    write_holes(folder / "dream.safetensors", {key: tensor.shape for key, tensor in tensors.items()})
    write_entry(folder / "models.toml", "dream", {"source": "./dream.safetensors", **facts})
    return Registry.read(folder / "models.toml", folder / "models")


@pytest.mark.parametrize(
    ("name", "facts", "size"),
    [
        ("1.5", {"family": "sd-1"}, (512, 512)),
        ("1.5 inpainting", {}, (512, 512)),
        ("2.1", {"family": "sd-2", "prediction_type": "v_prediction"}, (768, 768)),
        ("2.1", {"prediction_type": "epsilon", "size": [640, 512]}, (640, 512)),
    ],
)
def test_it_fits(name: str, facts: dict[str, Any], size: tuple[int, int], tmp_path: Path, vocabulary: Path) -> None:
    model = add(tmp_path, name, **facts, tokenizer=str(vocabulary)).find("dream")
    check_fit(model)
    assert model.is_here(tuple(Network))
    assert (model.facts.model, model.facts.sizes) == ("dream", (size,))
    assert model.scheduler["prediction_type"] == facts.get("prediction_type", "epsilon")


def test_a_family_that_it_is_not_is_refused(tmp_path: Path, vocabulary: Path) -> None:
    model = add(tmp_path, "1.5", family="sd-2", prediction_type="epsilon", tokenizer=str(vocabulary)).find("dream")
    with pytest.raises(CheckpointError, match="contexts 768 wide; those of text_space openclip-vit-h-14 are 1024 wide"):
        check_fit(model)
