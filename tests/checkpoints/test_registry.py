from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_models
from tests.fake_hub import FakeHub
from tests.tiny_models import FACTS, write_tiny_model
from triptych.checkpoints import entries, hub, registry
from triptych.checkpoints.checkpoint import Checkpoint, Network
from triptych.checkpoints.diffusers_folder import save_description, save_json
from triptych.checkpoints.entries import PACKAGE_FILE, read_file, write_entry
from triptych.checkpoints.registry import EMBEDDED, NamedModel, Registry, find_model
from triptych.errors import CheckpointError
from triptych.sampling.samplers import replaced_sampler


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


class Names:
    """A user's own models.toml and folder of models."""

    def __init__(self, folder: Path) -> None:
        self.file, self.folder = folder / "models.toml", folder / "models"

    def add(self, name: str, source: object, **facts: Any) -> None:
        write_entry(self.file, name, {"source": str(source), **facts})

    def find(self, name: str) -> NamedModel:
        return Registry.read(self.file, self.folder).find(name)


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub().put_in_place(monkeypatch)


@pytest.fixture
def names(tmp_path: Path) -> Names:
    return Names(tmp_path / "own")


class TestNames:
    def test_the_embedded_model_is_package_data(self) -> None:
        assert EMBEDDED["vignette"].parent.name == "triptych"
        assert find_model("vignette").facts.model == "vignette"

    def test_every_embedded_model_has_an_entry(self) -> None:
        assert {name: read_file(PACKAGE_FILE)[name].source.path for name in EMBEDDED} == EMBEDDED

    def test_a_model_without_weights_yet_is_refused_in_a_sentence(
        self, names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_entry(tmp_path / "package.toml", "vignette-upscaler", {"source": str(tmp_path / "nowhere")})
        for module in (entries, registry):
            monkeypatch.setattr(module, "PACKAGE_FILE", tmp_path / "package.toml")
        assert "vignette-upscaler" not in Registry.read(names.file, names.folder).entries
        with pytest.raises(
            CheckpointError, match=r"^vignette-upscaler has not been released: its weights are not in this package$"
        ):
            names.find("vignette-upscaler")

    def test_the_embedded_models_share_what_is_the_same(self) -> None:
        lender, *siblings = map(find_model, EMBEDDED)
        for sibling in siblings:
            assert replace(sibling.facts, model=lender.facts.model) == lender.facts
            shared = set(Network) - {Network.UNET}
            assert all(sibling.weights_digest(network) == lender.weights_digest(network) for network in shared)

    def test_all_weights_of_the_package_are_small_enough_to_travel_with_it(self) -> None:
        folder = Path(registry.__file__).parents[1]
        weights = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".h5", ".bin", ".npz", ".onnx")]
        assert {path.parts[-2] for path in weights} >= {"unet", "vae", "text_encoder"}
        assert sum(path.stat().st_size for path in weights) <= 32_000_000

    def test_a_path_is_the_folder_as_it_is(self, tiny: Path, names: Names) -> None:
        found: Checkpoint = names.find(str(tiny))
        assert found.facts == tiny_models.FACTS
        assert found.unet == tiny_models.UNET
        assert found.scheduler == tiny_models.SCHEDULER
        assert found.tokenizer == tiny / "tokenizer"
        with found.tensors(Network.UNET) as tensors:
            assert "conv_in.weight" in tensors.names()

    def test_a_name_goes_before_a_path(self, tiny: Path, names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "vignette").mkdir()
        assert names.find("vignette").facts.model == "vignette"
        with pytest.raises(CheckpointError, match="vignette"):
            names.find("./vignette").facts  # noqa: B018 - read for its error

    def test_a_path_goes_before_the_hub(
        self, tiny: Path, names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_hub: FakeHub
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "owner").mkdir()
        (tmp_path / "owner" / "name").symlink_to(tiny)
        assert names.find("owner/name").facts.model == "tiny"
        assert fake_hub.asked == []

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("vignete", "did you mean vignette or vignette-inpainting?"),
            ("sd-v15", "did you mean sd-v1-5"),
            ("keras-cv:sd-v1-4", "did you mean keras-cv/sd-v1-4"),
            ("zzzzzzzz", "`triptych models list` names those there are"),
            ("", "`triptych models list` names those there are"),
            ("owner/name/more", "it is no owner/name on the Hub"),
            ("owner/na me", "it is no owner/name on the Hub"),
            ("owner/name@", "it is no owner/name on the Hub"),
            ("sd-v1-5@", "sd-v1-5 has no revision ''"),
            ("vignette@main", "vignette has no revision 'main'"),
        ],
    )
    def test_what_is_unknown_is_refused_with_the_nearest_names(self, names: Names, name: str, hint: str) -> None:
        with pytest.raises(CheckpointError) as refused:
            names.find(name)
        assert hint in refused.value.message
        assert "\n" not in refused.value.message

    def test_a_name_of_the_users_own_is_known(self, tiny: Path, names: Names) -> None:
        names.add("mine/tiny", tiny)
        assert names.find("mine/tiny").facts.model == "mine/tiny"

    def test_a_path_that_is_gone_is_named(self, names: Names, tmp_path: Path) -> None:
        names.add("gone", tmp_path / "gone")
        with pytest.raises(CheckpointError, match=rf"there is no {tmp_path}/gone, where gone is said to be"):
            names.find("gone").facts  # noqa: B018 - read for its error

    def test_a_pickle_is_refused_with_what_to_do(self, names: Names, tmp_path: Path) -> None:
        (tmp_path / "model.ckpt").touch()
        with pytest.raises(CheckpointError, match="pickle"):
            names.find(str(tmp_path / "model.ckpt")).unet  # noqa: B018 - read for its error

    def test_files_of_keras_cv_are_to_be_converted_first(self, names: Names, tmp_path: Path) -> None:
        (tmp_path / "kcv_encoder.h5").touch()
        with pytest.raises(CheckpointError, match=f"`triptych pull keras-cv/sd-v1-4 --from {tmp_path}`"):
            names.find(str(tmp_path)).facts  # noqa: B018 - read for its error


class TestFacts:
    def test_what_the_registry_knows_goes_before_what_the_files_say(self, tiny: Path, names: Names, tmp_path: Path) -> None:
        facts = {"size": [64, 64], "sampler": "euler", "num_steps": 7, "guidance_scale": 2.5}
        names.add("mine", tiny, **facts, latent_space="mine-1", prediction_type="epsilon", tokenizer=str(tmp_path / "words"))
        found = names.find("mine")
        assert found.facts.sizes == ((64, 64),)
        assert (found.facts.sampler, found.facts.num_steps, found.facts.guidance_scale) == ("euler", 7, 2.5)
        assert (found.facts.latent_space, found.facts.text_space) == ("mine-1", "tiny")
        assert found.facts.words == tiny_models.FACTS.words
        assert found.scheduler == {**tiny_models.SCHEDULER, "prediction_type": "epsilon"}
        assert found.tokenizer == tmp_path / "words"

    def test_a_family_tells_both_spaces(self, tiny: Path, names: Names) -> None:
        names.add("mine", tiny, family="sd-2")
        facts = names.find("mine").facts
        assert (facts.latent_space, facts.text_space) == ("sd-1", "openclip-vit-h-14")
        assert facts.sampler == tiny_models.FACTS.sampler


class TestTheHub:
    def test_each_network_is_fetched_when_it_is_asked_for_and_no_other(self, tiny: Path, names: Names, fake_hub: FakeHub) -> None:
        fake_hub.folders["o/n"] = tiny
        model = names.find("o/n")
        assert fake_hub.asked == []
        assert model.facts.model == "o/n"
        assert model.vae == tiny_models.VAE
        assert fake_hub.asked == [("o/n", ())]
        model.weights_digest(Network.VAE_DECODER)
        with model.tensors(Network.VAE_DECODER):
            pass
        assert fake_hub.asked == [("o/n", ()), ("o/n", (Network.VAE_DECODER,))]

    def test_revision_and_variant_are_asked_for(self, tiny: Path, names: Names, fake_hub: FakeHub) -> None:
        fake_hub.folders["o/n"] = tiny
        names.add("mine", "o/n", revision="v1", variant="fp16")
        names.find("mine").fetch()
        fake_hub.cached.clear()
        names.find("mine@v2").fetch()
        fake_hub.cached.clear()
        names.find("o/other@v3")
        assert fake_hub.told == [{"revision": "v1", "variant": "fp16"}, {"revision": "v2", "variant": "fp16"}]
        assert names.find("o/other@v3").entry.revision == "v3"

    def test_a_mirror_is_asked_where_the_original_is_gone(self, tiny: Path, names: Names, fake_hub: FakeHub) -> None:
        fake_hub.folders["stable-diffusion-v1-5/stable-diffusion-v1-5"] = tiny
        assert names.find("sd-v1-5").fetch() == tiny
        assert [repo for repo, _ in fake_hub.asked] == [
            "runwayml/stable-diffusion-v1-5",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
        ]

    def test_what_a_mirror_left_in_the_cache_is_used_without_asking(self, tiny: Path, names: Names, fake_hub: FakeHub) -> None:
        mirror = "stable-diffusion-v1-5/stable-diffusion-v1-5"
        fake_hub.folders[mirror] = tiny
        fake_hub.cached = {(mirror, ""), (mirror, Network.UNET)}
        model = names.find("sd-v1-5")
        assert model.is_here((Network.UNET,))
        assert not model.is_here((Network.UNET, Network.TEXT_ENCODER))
        model.weights_digest(Network.UNET)
        assert fake_hub.asked == []

    def test_half_precision_that_was_pulled_is_used(self, tiny: Path, names: Names, fake_hub: FakeHub) -> None:
        fake_hub.folders = {"o/n": tiny, "o/whole": tiny}
        fake_hub.cached, fake_hub.variant = {("o/n", Network.UNET), ("o/whole", Network.UNET)}, "fp16"
        names.add("whole", "o/whole", variant="other")
        assert names.find("o/n").is_here((Network.UNET,))
        assert not names.find("whole").is_here((Network.UNET,))

    def test_what_was_fetched_is_not_looked_for_again(self, tiny: Path, names: Names, fake_hub: FakeHub) -> None:
        fake_hub.folders["o/n"] = tiny
        model = names.find("o/n")
        model.weights_digest(Network.UNET)
        fake_hub.cached.clear()
        model.weights_digest(Network.UNET)
        assert len(fake_hub.asked) == 1

    def test_further_parts_come_from_where_the_first_came_from(self, tiny: Path, names: Names, fake_hub: FakeHub) -> None:
        mirror = "stable-diffusion-v1-5/stable-diffusion-v1-5"
        fake_hub.folders = {"runwayml/stable-diffusion-v1-5": tiny, mirror: tiny}
        fake_hub.cached = {(mirror, "")}
        names.find("sd-v1-5").weights_digest(Network.UNET)
        assert fake_hub.asked == [(mirror, (Network.UNET,))]

    def test_gone_everywhere_is_one_sentence(self, names: Names, fake_hub: FakeHub) -> None:
        with pytest.raises(CheckpointError) as refused:
            names.find("sd-v1-5").fetch()
        assert refused.value.message == (
            "sd-v1-5 cannot be had: there is no runwayml/stable-diffusion-v1-5 on the Hub; "
            "there is no stable-diffusion-v1-5/stable-diffusion-v1-5 on the Hub"
        )

    def test_any_other_failure_ends_it(self, names: Names, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def full(repo: str, networks: Collection[Network], **options: Any) -> Path:
            asked.append(repo)
            raise CheckpointError("the disk is too full")

        monkeypatch.setattr(hub, "fetch_from_hub", full)
        with pytest.raises(CheckpointError, match="the disk is too full"):
            names.find("sd-v1-5").fetch()
        assert len(asked) == 1

    @pytest.mark.parametrize("old", ["runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"])
    def test_an_id_that_an_entry_has_is_that_entry(self, names: Names, old: str) -> None:
        assert names.find(old).entry == names.find("sd-v1-5").entry
        assert names.find(f"{old}@fp16").entry.revision == "fp16"

    def test_a_service_that_waits_says_so_and_under_which_licence(
        self, tiny: Path, names: Names, fake_hub: FakeHub, caplog: pytest.LogCaptureFixture
    ) -> None:
        fake_hub.folders["o/n"] = tiny
        names.add("mine", "o/n", licence="MIT", licence_url="https://example.org/mit")
        with caplog.at_level(logging.INFO):
            names.find("mine").weights_digest(Network.UNET)
        assert caplog.messages == [
            "mine is under the licence MIT: https://example.org/mit",
            "mine: 0 of 2 MB are here",
            "mine: 2 of 2 MB are here",
        ]

    def test_a_warning_about_a_sampler_goes_with_that_sampler(self, names: Names, tmp_path: Path) -> None:
        folder = write_tiny_model(tmp_path / "plain")
        (folder / "triptych.json").unlink()
        save_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DEISMultistepScheduler"})
        names.add("another", folder, sampler="euler")
        names.add("same", folder, sampler="dpm++_2m")
        names.add("open", folder)
        assert names.find("another").facts.warnings == ()
        assert names.find("same").facts.warnings == names.find("open").facts.warnings != ()

    def test_other_warnings_stay(self, names: Names, tmp_path: Path) -> None:
        folder = write_tiny_model(tmp_path / "plain")
        scheduler = {"_class_name": "DEISMultistepScheduler"}
        _, about_the_sampler = replaced_sampler(scheduler)
        assert about_the_sampler is not None
        save_description(folder, replace(FACTS, sampler="dpm++_2m", warnings=(about_the_sampler, "it is old")), scheduler)
        names.add("another", folder, sampler="euler")
        names.add("same", folder, sampler="dpm++_2m")
        assert names.find("another").facts.warnings == ("it is old",)
        assert names.find("same").facts.warnings == (about_the_sampler, "it is old")


class TestSingleFiles:
    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> list[Any]:
        """Files that were opened, each in place of the tiny model."""
        opened: list[Any] = []

        class File:
            def __init__(self, path: Path, options: Any) -> None:
                self.path, self.options = path, options
                opened.append(self)

            @property
            def tokenizer(self) -> Path:
                assert self.options.tokenizer is not None
                return Path(self.options.tokenizer)

            @contextmanager
            def tensors(self, network: Network) -> Iterator[None]:
                yield

        monkeypatch.setattr(registry, "SingleFile", File)
        return opened

    def test_it_is_told_what_the_registry_knows(self, names: Names, tmp_path: Path, opened: list[Any]) -> None:
        path = tmp_path / "dream.safetensors"
        path.touch()
        names.add("dream", path, family="sd-2", prediction_type="v_prediction", size=[768, 768], num_steps=20)
        with names.find("dream").tensors(Network.UNET):
            pass
        (file,) = opened
        assert file.path == path
        assert file.options.prediction_type == "v_prediction"
        assert file.options.facts == {
            "model": "dream",
            "sizes": ((768, 768),),
            "num_steps": 20,
            "latent_space": "sd-1",
            "text_space": "openclip-vit-h-14",
        }

    def test_one_of_the_hub_is_fetched(self, names: Names, tmp_path: Path, opened: list[Any], fake_hub: FakeHub) -> None:
        path = tmp_path / "blob"
        path.touch()
        fake_hub.files["o/n", "v1.safetensors"] = path
        model = names.find("o/n:v1.safetensors")
        assert not model.is_here((Network.UNET,))
        with model.tensors(Network.UNET):
            pass
        assert model.is_here((Network.UNET,))
        assert fake_hub.asked == [("o/n", "v1.safetensors")]
        assert [file.path for file in opened] == [path]

    def test_its_vocabulary_is_the_one_that_all_share(
        self, names: Names, tmp_path: Path, opened: list[Any], fake_hub: FakeHub, tiny: Path
    ) -> None:
        path = tmp_path / "dream.safetensors"
        path.touch()
        fake_hub.folders["runwayml/stable-diffusion-v1-5"] = tiny
        assert names.find(str(path)).tokenizer == tiny / "tokenizer"
        assert fake_hub.asked == [("runwayml/stable-diffusion-v1-5", ())]

    def test_without_its_vocabulary_the_text_encoder_is_not_here(
        self, names: Names, tmp_path: Path, opened: list[Any], fake_hub: FakeHub, tiny: Path
    ) -> None:
        path = tmp_path / "dream.safetensors"
        path.touch()
        fake_hub.folders["runwayml/stable-diffusion-v1-5"] = tiny
        assert names.find(str(path)).is_here((Network.UNET,))
        assert not names.find(str(path)).is_here((Network.TEXT_ENCODER,))
        names.find(str(path)).tokenizer  # noqa: B018 - fetches it
        assert names.find(str(path)).is_here((Network.TEXT_ENCODER,))
        names.add("dream", path, tokenizer=str(tiny / "tokenizer"))
        fake_hub.cached.clear()
        assert names.find("dream").is_here((Network.TEXT_ENCODER,))

    def test_the_lender_may_not_be_the_borrower(
        self, names: Names, tmp_path: Path, opened: list[Any], fake_hub: FakeHub, tiny: Path
    ) -> None:
        (tmp_path / "v1-5.safetensors").touch()
        names.add("sd-v1-5", tmp_path / "v1-5.safetensors")
        fake_hub.folders["runwayml/stable-diffusion-v1-5"] = tiny
        assert names.find("sd-v1-5").tokenizer == tiny / "tokenizer"

    def test_or_its_entrys_own(self, names: Names, tmp_path: Path, opened: list[Any], fake_hub: FakeHub) -> None:
        path = tmp_path / "dream.safetensors"
        path.touch()
        names.add("dream", path, tokenizer=str(tmp_path / "words"))
        assert names.find("dream").tokenizer == tmp_path / "words"
        assert fake_hub.asked == []

    def test_where_there_is_none_the_sentence_says_what_to_do(
        self, names: Names, tmp_path: Path, opened: list[Any], fake_hub: FakeHub
    ) -> None:
        path = tmp_path / "dream.safetensors"
        path.touch()
        with pytest.raises(
            CheckpointError, match=r"which has no vocabulary of its own .* and sd-v1-5 cannot be had: there is no runwayml"
        ):
            names.find(str(path)).tokenizer  # noqa: B018 - read for its error


class TestKerasCv:
    def test_a_preset_is_to_be_pulled_first(self, names: Names) -> None:
        model = names.find("keras-cv/sd-v1-4")
        assert not model.is_here((Network.UNET,))
        with pytest.raises(CheckpointError, match="`triptych pull keras-cv/sd-v1-4` has keras-cv download it, and writes it to"):
            model.facts  # noqa: B018 - read for its error

    def test_what_was_pulled_is_a_folder(self, names: Names, tiny: Path) -> None:
        (names.folder / "keras-cv").mkdir(parents=True)
        (names.folder / "keras-cv" / "sd-v1-4").symlink_to(tiny)
        model = names.find("keras-cv/sd-v1-4")
        assert model.is_here(tuple(Network))
        assert model.facts.model == "keras-cv/sd-v1-4"
        assert model.facts.sizes == ((512, 512),)

    def test_a_part_is_converted_alone(self, names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []
        monkeypatch.setattr("triptych.checkpoints.keras_cv.pull_keras_cv", lambda *given, **named: asked.append((given, named)))
        names.find("keras-cv/sd-v2-1").convert((Network.VAE_DECODER, Network.VAE_ENCODER), source=tmp_path)
        assert asked == [
            (("keras-cv/sd-v2-1", names.folder / "keras-cv" / "sd-v2-1"), {"parts": {"vae"}, "source": tmp_path}),
        ]
