from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_models
from tests.tiny_models import write_tiny_model
from triptych.checkpoints import checkpoint
from triptych.checkpoints.checkpoint import Network
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.contract import StageName
from triptych.errors import CheckpointError
from triptych.stages import fit
from triptych.stages.fit import NETWORKS, check_fit, check_sampler, load_alone


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DiffusersFolder:
    return DiffusersFolder(write_tiny_model(tmp_path_factory.mktemp("tiny")))


class Altered:
    """The tiny model, but for what is told here."""

    def __init__(self, checkpoint: DiffusersFolder, **altered: Any) -> None:
        self._checkpoint = checkpoint
        vars(self).update(altered)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)


class TestLoading:
    def test_a_network_is_seen_as_it_lies_on_disk(self, tiny: DiffusersFolder) -> None:
        found = load_alone(tiny, Network.TEXT_ENCODER, backend="openvino")
        with tiny.tensors(Network.TEXT_ENCODER) as tensors:
            arrays = [tensors.read(name) for name in tensors.names()]
        assert found.parameters == sum(array.size for array in arrays)
        assert found.weights_bytes == 2 * found.parameters
        assert found.dtypes == ("float16",)
        assert found.digest == tiny.weights_digest(Network.TEXT_ENCODER)

    def test_what_cannot_be_loaded_is_one_sentence(self, tiny: DiffusersFolder) -> None:
        wider = Altered(tiny, unet=replace(tiny_models.UNET, cross_attention_dim=64))
        with pytest.raises(CheckpointError, match="has shape"):
            load_alone(wider, Network.UNET, backend="openvino")

    def test_no_network_stays(self, tiny: DiffusersFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        built: list[weakref.ref[Any]] = []
        load = checkpoint.load_network

        def watched(*arguments: Any) -> Any:
            gc.collect()
            assert [model for model in built if model() is not None] == []
            model = load(*arguments)
            built.append(weakref.ref(model))
            return model

        monkeypatch.setattr(fit, "load_network", watched)
        for network in Network:
            load_alone(tiny, network, backend="openvino")
        assert len(built) == 4
        assert [model for model in built if model() is not None] == []


class TestFit:
    def test_the_tiny_model_and_vignette_fit(self, tiny: DiffusersFolder, root: Path) -> None:
        check_fit(tiny)
        check_fit(DiffusersFolder(root / "triptych" / "vignette"))

    @pytest.mark.parametrize(
        ("stage", "altered", "sentence"),
        [
            ("text_encoder", {"text_encoder": replace(tiny_models.TEXT_ENCODER, vocab_size=100)}, "embeds 100 only"),
            (
                "text_encoder",
                {"facts": replace(tiny_models.FACTS, text_space="clip-vit-l-14")},
                "contexts 32 wide; those of text_space clip-vit-l-14 are 768 wide",
            ),
            (
                "diffusion",
                {"text_encoder": replace(tiny_models.TEXT_ENCODER, hidden_size=64)},
                "the text encoder makes contexts 64 wide, and the U-Net takes them 32 wide",
            ),
            ("diffusion", {"unet": replace(tiny_models.UNET, in_channels=5)}, "the U-Net takes 5, where 4 or, for inpainting, 9"),
            ("diffusion", {"unet": replace(tiny_models.UNET, out_channels=8)}, "and gives 8"),
            ("diffusion", {"facts": replace(tiny_models.FACTS, sizes=((40, 32),))}, "size 40x32 is no multiple of 16"),
            ("diffusion", {"facts": replace(tiny_models.FACTS, sampler="deis")}, "there is no sampler 'deis'; there are ddim,"),
            ("diffusion", {"facts": replace(tiny_models.FACTS, num_steps=2000)}, "2000 steps of ddim cannot be done: "),
            ("diffusion", {"scheduler": {**tiny_models.SCHEDULER, "prediction_type": "x"}}, "prediction_type='x'"),
            ("decoder", {"vae": replace(tiny_models.VAE, scaling_factor=0.0)}, "scaling_factor must be greater than 0"),
            ("decoder", {"vae": replace(tiny_models.VAE, out_channels=4)}, "takes 3 and gives 4 channels"),
            ("decoder", {"facts": replace(tiny_models.FACTS, sizes=((36, 32),))}, "size 36x32 is no multiple of 8"),
        ],
    )
    def test_what_does_not_fit_is_named(self, tiny: DiffusersFolder, stage: str, altered: dict[str, Any], sentence: str) -> None:
        model = Altered(tiny, **altered)
        with pytest.raises(CheckpointError) as refused:
            check_fit(model, (StageName(stage),))
        assert sentence in refused.value.message
        with pytest.raises(CheckpointError):
            check_fit(model)

    def test_a_vocabulary_may_have_as_many_tokens_as_are_embedded(self, tiny: DiffusersFolder) -> None:
        vocabulary, _ = tiny_models.tiny_tokenizer()
        just = replace(tiny_models.TEXT_ENCODER, vocab_size=len(vocabulary))
        check_fit(Altered(tiny, text_encoder=just), (StageName.TEXT_ENCODER,))
        short = replace(just, vocab_size=just.vocab_size - 1)
        with pytest.raises(
            CheckpointError, match=f"has {len(vocabulary)} tokens, but the text encoder embeds {len(vocabulary) - 1}"
        ):
            check_fit(Altered(tiny, text_encoder=short), (StageName.TEXT_ENCODER,))

    def test_a_u_net_for_inpainting_fits(self, tiny: DiffusersFolder) -> None:
        check_fit(Altered(tiny, unet=replace(tiny_models.UNET, in_channels=9)))

    def test_a_stage_alone_is_not_refused_for_another(self, tiny: DiffusersFolder) -> None:
        other = Altered(tiny, facts=replace(tiny_models.FACTS, sampler="deis"))
        check_fit(other, (StageName.TEXT_ENCODER, StageName.DECODER))


def test_every_network_belongs_to_a_stage() -> None:
    assert sorted(network for networks in NETWORKS.values() for network in networks) == sorted(Network)


def test_samplers_by_name() -> None:
    check_sampler("euler")
    with pytest.raises(CheckpointError, match="no sampler 'eulr'"):
        check_sampler("eulr")


def test_dtypes_of_a_mixed_file_are_all_told(tiny: DiffusersFolder) -> None:
    class Mixed(Altered):
        def tensors(self, network: Network) -> Any:
            return _Mixed(tiny.tensors(network))

    class _Mixed:
        def __init__(self, context: Any) -> None:
            self._context = context

        def __enter__(self) -> Any:
            self._tensors = self._context.__enter__()
            return self

        def __exit__(self, *error: Any) -> Any:
            return self._context.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tensors, name)

        def read(self, name: str) -> Any:
            array = self._tensors.read(name)
            return array.astype(np.float32) if name.endswith("bias") else array

    assert load_alone(Mixed(tiny), Network.TEXT_ENCODER, backend="openvino").dtypes == ("float16", "float32")
