from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.cli.conftest import Run
from tests.fake_hub import FakeHub
from tests.tiny_models import write_tiny_model
from triptych.checkpoints.checkpoint import Network
from triptych.checkpoints.entries import read_file

ORIGINAL, MIRROR = "runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub().put_in_place(monkeypatch)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a person sees at a terminal."""
    seen = io.StringIO()
    console = Console(file=seen, force_terminal=True, highlight=False, soft_wrap=True, width=120, color_system=None)
    monkeypatch.setattr("triptych.cli.console.out", console)
    monkeypatch.setattr("triptych.cli.console.err", console)
    return seen


def rows(out: str) -> dict[str, list[str]]:
    """The lines that a pipe gets, by their first cell."""
    return {line.split("\t")[0]: line.split("\t")[1:] for line in out.splitlines()}


class TestList:
    def test_a_pipe_gets_a_line_a_model(self, run: Run) -> None:
        ended = run("models", "list")
        assert ended.code == 0
        found = rows(ended.out)
        assert found["sd-v2-1"] == ["sd-2", "768x768", "CreativeML Open RAIL++-M", "-"]
        assert found["vignette"] == ["-", "-", "Apache-2.0", "all"]
        assert list(found) == sorted(found)

    def test_a_terminal_gets_a_table(self, run: Run, terminal: io.StringIO) -> None:
        assert run("models", "list").code == 0
        header, _, *lines = terminal.getvalue().splitlines()
        assert [cell.strip() for cell in header.split("┃")] == ["name", "family", "size", "licence", "here"]
        assert "sd-v1-5" in [line.split("│")[0].strip() for line in lines]

    def test_what_is_here_is_told_by_stage(self, run: Run, fake_hub: FakeHub, tiny: Path) -> None:
        fake_hub.folders[MIRROR] = tiny
        fake_hub.cached = {(MIRROR, network) for network in ("", Network.VAE_DECODER, Network.VAE_ENCODER, Network.TEXT_ENCODER)}
        assert rows(run("models", "list").out)["sd-v1-5"][-1] == "text_encoder, decoder"

    def test_ones_own_are_among_them(self, run: Run, tiny: Path) -> None:
        run("models", "add", "mine", tiny, "--family", "sd-1", "--size", "64x32")
        assert rows(run("models", "list").out)["mine"] == ["sd-1", "64x32", "-", "all"]

    def test_a_file_that_cannot_be_read_is_one_sentence(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "models.toml").write_text("[a]\nsource = 1")
        ended = run("models", "list")
        assert ended.code == 1
        assert ended.err == f"error: {tmp_path / 'models.toml'}: model 'a': source must be a text, not 1\n"

    def test_without_an_engine_the_sentence_says_what_to_install(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "triptych.checkpoints.registry", None)
        ended = run("models", "list")
        assert ended.code == 1
        assert "pip install 'triptych[openvino]'" in ended.err
        assert "Traceback" not in ended.err


class TestShow:
    def test_all_that_is_known(self, run: Run) -> None:
        found = rows(run("models", "show", "sd-v1-5").out)
        assert found["source"] == [ORIGINAL]
        assert found["mirrors"] == [MIRROR]
        assert found["text_space"] == ["clip-vit-l-14"]
        assert found["licence_url"] == ["https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5"]
        assert (found["sampler"], found["num_steps"], found["guidance_scale"]) == (["pndm"], ["50"], ["7.5"])
        assert "here" not in found

    def test_an_id_of_the_hub_is_shown_as_what_it_is(self, run: Run) -> None:
        assert rows(run("models", "show", ORIGINAL).out)["name"] == ["sd-v1-5"]

    def test_an_unknown_one_is_one_sentence(self, run: Run) -> None:
        ended = run("models", "show", "vignete")
        assert ended.code == 1
        assert ended.err.endswith("did you mean vignette or vignette-inpainting?\n")


class TestAdd:
    def test_every_option_is_written(self, run: Run, tmp_path: Path, tiny: Path) -> None:
        options = (
            "--family sd-2 --revision main --variant fp16 --licence MIT --licence-url https://example.org/ --latent-space a-1 "
            "--text-space a-2 --size 768x512 --sampler euler --num-steps 20 --guidance-scale 6 --prediction-type v_prediction "
            f"--tokenizer {tiny}/tokenizer"
        )
        ended = run("models", "add", "mine", "owner/name", *options.split())
        assert (ended.code, ended.err) == (0, "")
        entry = read_file(tmp_path / "models.toml")["mine"]
        told = {name: value for name, value in vars(entry).items() if value is None}
        assert told == {}
        assert (entry.size, entry.variant, entry.tokenizer) == ((768, 512), "fp16", tiny / "tokenizer")

    def test_a_path_is_kept_absolute(self, run: Run, tmp_path: Path, tiny: Path) -> None:
        (tmp_path / "sd").symlink_to(tiny)
        ended = run("models", "add", "mine", "sd")
        assert ended.code == 0
        assert ended.out == f"mine is {tiny} from now on: {tmp_path / 'models.toml'}\n"

    def test_a_path_where_nothing_is_may_be_meant_for_later(self, run: Run, tmp_path: Path) -> None:
        ended = run("models", "add", "mine", tmp_path / "later")
        assert ended.code == 0
        assert ended.err == f"warning: there is no {tmp_path / 'later'} yet\n"
        assert rows(run("models", "list").out)["mine"][-1] == "-"

    def test_a_taken_name_wants_replace(self, run: Run, tmp_path: Path) -> None:
        assert run("models", "add", "mine", "owner/name").code == 0
        ended = run("models", "add", "mine", "owner/other")
        assert ended.code == 1
        assert "has a model 'mine' already; --replace writes it anew" in ended.err
        assert run("models", "add", "mine", "owner/other", "--replace").code == 0
        assert read_file(tmp_path / "models.toml")["mine"].source.location == "owner/other"

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["mine", "nowhere"], "source must be owner/name"),
            (["mi ne", "owner/name"], "a name is made of"),
            (["mine", "owner/name", "--size", "512"], "a size is width x height in pixels, such as 512x512, not '512'"),
            (["mine", "owner/name", "--size", "0x8"], "size must be [width, height] in pixels"),
            (["mine", "owner/name", "--sampler", "eulr"], "there is no sampler 'eulr'; there are ddim, euler"),
            (["mine", "owner/name", "--family", "sdxl"], "family must be one of sd-1, sd-2, not 'sdxl'"),
        ],
    )
    def test_what_is_impossible_is_one_sentence_and_nothing_is_written(
        self, run: Run, tmp_path: Path, arguments: list[str], sentence: str
    ) -> None:
        ended = run("models", "add", *arguments)
        assert ended.code == 1
        assert sentence in ended.err
        assert ended.err.count("\n") == 1
        assert not (tmp_path / "models.toml").exists()


class TestPull:
    def test_all_three_parts(self, run: Run, fake_hub: FakeHub, tiny: Path) -> None:
        fake_hub.folders[MIRROR] = tiny
        ended = run("pull", "sd-v1-5")
        assert ended.code == 0
        assert fake_hub.asked[-1] == (MIRROR, (Network.TEXT_ENCODER, Network.UNET, Network.VAE_DECODER, Network.VAE_ENCODER))
        assert ended.out.endswith(f"sd-v1-5 is on this machine: {tiny}\n")

    @pytest.mark.parametrize(
        ("stage", "networks"),
        [
            ("text_encoder", (Network.TEXT_ENCODER,)),
            ("diffusion", (Network.UNET,)),
            ("decoder", (Network.VAE_DECODER, Network.VAE_ENCODER)),
        ],
    )
    def test_one_stage_fetches_its_own_part(
        self, run: Run, fake_hub: FakeHub, tiny: Path, stage: str, networks: tuple[Network, ...]
    ) -> None:
        fake_hub.folders["o/n"] = tiny
        ended = run("pull", "o/n", "--stage", stage)
        assert ended.out == f"the {stage} of o/n is on this machine: {tiny}\n"
        assert fake_hub.asked == [("o/n", networks)]

    def test_again_it_fetches_nothing(self, run: Run, fake_hub: FakeHub, tiny: Path) -> None:
        fake_hub.folders["o/n"] = tiny
        run("pull", "o/n")
        asked = len(fake_hub.asked)
        ended = run("pull", "o/n")
        assert (ended.code, ended.err) == (0, "")
        assert ended.out == f"o/n is on this machine already: {tiny}\n"
        assert len(fake_hub.asked) == asked

    def test_the_licence_is_said_once(self, run: Run, fake_hub: FakeHub, tiny: Path, tmp_path: Path) -> None:
        fake_hub.folders[ORIGINAL] = tiny
        first = run("pull", "sd-v1-5", "--stage", "decoder")
        then = run("pull", "sd-v1-5", "--stage", "diffusion")
        notice = "sd-v1-5 is under the licence CreativeML OpenRAIL-M, to be read at https://huggingface.co/"
        assert first.out.startswith(notice)
        assert "licence" not in then.out
        assert [path.name for path in (tmp_path / "models").iterdir()] == ["licences-shown.json"]

    def test_it_is_said_again_where_nothing_was_pulled(self, run: Run, fake_hub: FakeHub, tiny: Path) -> None:
        refused = run("pull", "sd-v1-5")
        fake_hub.folders[ORIGINAL] = tiny
        assert refused.code == 1
        assert "is under the licence" in refused.out
        assert "is under the licence" in run("pull", "sd-v1-5").out

    def test_another_licence_is_said_again(self, run: Run, fake_hub: FakeHub, tiny: Path) -> None:
        fake_hub.folders["o/n"] = tiny
        run("models", "add", "mine", "o/n", "--licence", "MIT")
        assert "mine is under the licence MIT; who uses it" in run("pull", "mine", "--stage", "decoder").out
        run("models", "add", "mine", "o/n", "--licence", "MIT-0", "--replace")
        assert "mine is under the licence MIT-0; who uses it" in run("pull", "mine", "--stage", "diffusion").out

    def test_a_list_of_licences_that_is_damaged_is_begun_anew(
        self, run: Run, fake_hub: FakeHub, tiny: Path, tmp_path: Path
    ) -> None:
        fake_hub.folders[ORIGINAL] = tiny
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "licences-shown.json").write_text("[1")
        assert "is under the licence" in run("pull", "sd-v1-5", "--stage", "decoder").out
        assert "is under the licence" not in run("pull", "sd-v1-5", "--stage", "diffusion").out

    def test_revision_and_variant_reach_the_hub(self, run: Run, fake_hub: FakeHub, tiny: Path) -> None:
        fake_hub.folders["o/n"] = tiny
        run("pull", "o/n", "--variant", "fp16", "--revision", "v1", "--stage", "decoder")
        assert fake_hub.told == [{"revision": "v1", "variant": "fp16"}]

    def test_a_pipe_gets_lines_of_progress(self, run: Run, fake_hub: FakeHub, tiny: Path) -> None:
        fake_hub.folders["o/n"] = tiny
        assert run("pull", "o/n").err == "o/n: 0.0 of 2.0 MB\no/n: 2.0 of 2.0 MB\n"

    def test_a_terminal_gets_a_bar(self, run: Run, fake_hub: FakeHub, tiny: Path, terminal: io.StringIO) -> None:
        fake_hub.folders["o/n"] = tiny
        run("pull", "o/n")
        assert "━" in terminal.getvalue()
        assert "2.0/2.0 MB" in terminal.getvalue()

    def test_what_is_here_already_need_not_be_pulled(self, run: Run, tiny: Path, root: Path) -> None:
        assert run("pull", "vignette").out == f"vignette is on this machine already: {root / 'triptych' / 'vignette'}\n"
        assert run("pull", tiny).code == 0

    def test_a_part_that_a_folder_lacks_is_named(self, run: Run, tiny: Path, tmp_path: Path) -> None:
        shutil.copytree(tiny, tmp_path / "half")
        shutil.rmtree(tmp_path / "half" / "unet")
        assert run("pull", "half", "--stage", "decoder").code == 0
        ended = run("pull", "half")
        assert ended.code == 1
        assert "unet" in ended.err

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["nothing"], "there is no model 'nothing'"),
            (["o/n"], "o/n cannot be had: it is no path here; there is no o/n on the Hub"),
            (["vignette", "--variant", "fp16"], "vignette is not on the Hub: it has no revisions and no variants"),
            (["vignette", "--from", "."], "--from is for what keras-cv downloaded, and vignette comes from"),
        ],
    )
    def test_what_cannot_be_had_is_one_sentence(self, run: Run, arguments: list[str], sentence: str) -> None:
        ended = run("pull", *arguments)
        assert ended.code == 1
        assert sentence in ended.err
        assert ended.err.count("\n") == 1

    def test_presets_are_for_keras_cv_to_make(
        self, run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []

        def convert(name: str, target: Path, **options: Any) -> Path:
            asked.append((name, options))
            return Path(shutil.copytree(tiny, target))

        monkeypatch.setattr("triptych.checkpoints.keras_cv.pull_keras_cv", convert)
        ended = run("pull", "keras-cv/sd-v1-4", "--from", tmp_path)
        target = tmp_path / "models" / "keras-cv" / "sd-v1-4"
        assert ended.code == 0
        assert ended.out.endswith(f"keras-cv/sd-v1-4 is on this machine: {target}\n")
        assert asked == [("keras-cv/sd-v1-4", {"parts": {"text_encoder", "unet", "vae"}, "source": tmp_path})]
        assert "already" in run("pull", "keras-cv/sd-v1-4").out


class TestCheck:
    def test_a_sound_model(self, run: Run, tiny: Path) -> None:
        run("models", "add", "mine", tiny)
        ended = run("check", "mine")
        assert ended.code == 0
        found = rows(ended.out)
        assert {"text_encoder", "unet", "vae_decoder", "vae_encoder"} < found.keys()
        parameters, size, dtype, digest = found["text_encoder"]
        assert (int(parameters.replace(",", "")) > 10_000, size.endswith(" MB"), dtype, len(digest)) == (
            True,
            True,
            "float16",
            64,
        )
        assert ended.out.endswith("mine is sound: latent_space tiny, text_space tiny, ddim, 4 steps\n")

    def test_one_stage_alone(self, run: Run, tiny: Path, tmp_path: Path) -> None:
        shutil.copytree(tiny, tmp_path / "half")
        shutil.rmtree(tmp_path / "half" / "unet")
        ended = run("check", "half", "--stage", "decoder")
        assert ended.code == 0
        assert rows(ended.out).keys() == {"vae_decoder", "vae_encoder", ended.out.splitlines()[-1]}

    def test_a_part_that_is_damaged_is_one_sentence(self, run: Run, tiny: Path, tmp_path: Path) -> None:
        shutil.copytree(tiny, tmp_path / "damaged")
        weights = tmp_path / "damaged" / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        ended = run("check", "damaged")
        assert ended.code == 1
        assert "damaged/unet/diffusion_pytorch_model.safetensors is damaged" in ended.err
        assert ended.err.count("\n") == 1

    def test_parts_that_do_not_fit_are_one_sentence(self, run: Run, tiny: Path) -> None:
        run("models", "add", "mine", tiny, "--family", "sd-1")
        ended = run("check", "mine")
        assert ended.code == 1
        assert "contexts 32 wide; those of text_space clip-vit-l-14 are 768 wide" in ended.err

    def test_what_is_not_here_is_to_be_pulled_first(self, run: Run, fake_hub: FakeHub) -> None:
        ended = run("check", "sd-v1-5")
        assert ended.code == 1
        assert ended.err == "error: sd-v1-5 is not on this machine, or not all of it: `triptych pull sd-v1-5` comes first\n"
        assert fake_hub.asked == []
