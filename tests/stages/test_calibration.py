from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from tests.shared_folder import made_once
from tests.stages.options import Options
from tests.stages.test_preview_decoder import write_tiny_vae
from tests.tiny_models import INPAINTING_UNET, WORDS, write_tiny_model
from triptych.contract import DecodeRequest, Denoised, DenoiseRequest, EncodeRequest, Float32, StageName
from triptych.engines.openvino import OpenVINOEngine
from triptych.engines.quantization import layers_to_keep
from triptych.errors import EngineError
from triptych.stages.calibration import PROMPTS, Outcome, default_prompts, quantize_model
from triptych.stages.decoder import DecoderStage
from triptych.stages.diffusion import DiffusionStage
from triptych.stages.text_encoder import TextEncoderStage

# NNCF runs twice, before the first test.
pytestmark = pytest.mark.timeout(300)

BOTH = (StageName.DIFFUSION, StageName.DECODER)
SIZE = (32, 32)


def quantize(options: Options, stages: tuple[StageName, ...] = BOTH, prompts: Any = None) -> tuple[list[Outcome], list[int]]:
    """The outcomes, and of how many pictures it was told."""
    told: list[int] = []
    outcomes = quantize_model(options, stages, samples=16, prompts=prompts, on_progress=lambda done, total: told.append(total))
    return list(outcomes), told


@pytest.fixture(scope="session")
def small(options) -> Options:
    """Of one size."""
    return replace(options, sizes=(SIZE,))


@pytest.fixture(scope="session")
def quantized(small) -> Options:
    """Options in int8, with both networks quantized."""

    def fill(folder: Path) -> None:
        outcomes, told = quantize(replace(small, quantized_folder=folder / "quantized"))
        kept = [[outcome.name, outcome.inputs, outcome.was_there] for outcome in outcomes]
        (folder / "outcome.json").write_text(json.dumps([kept, told]), encoding="utf-8")

    folder = made_once("quantized", fill)
    return replace(small, precision="int8", quantized_folder=folder / "quantized")


@pytest.fixture(scope="session")
def quantized_for_reuse(small) -> Options:
    """Options in int8 with feature reuse, with the networks of the diffusion stage quantized."""
    reusing = replace(small, feature_reuse=True)

    def fill(folder: Path) -> None:
        outcomes, told = quantize(replace(reusing, quantized_folder=folder / "quantized"), (StageName.DIFFUSION,))
        kept = [[outcome.name, outcome.inputs, outcome.was_there] for outcome in outcomes]
        (folder / "outcome.json").write_text(json.dumps([kept, told]), encoding="utf-8")

    folder = made_once("quantized-for-reuse", fill)
    return replace(reusing, precision="int8", quantized_folder=folder / "quantized")


@pytest.fixture(scope="module")
def contexts(small) -> Float32:
    """Of a prompt that was not sampled, and of none."""
    stage = TextEncoderStage(small)
    stage.start()
    encoded = asyncio.run(stage.encode(EncodeRequest(prompts=("a white star on a red background", ""))))
    stage.close()
    return encoded.context


async def denoise(stage: DiffusionStage, contexts: Float32, rows: int = 3, cache_interval: int = 1) -> Float32:
    request = DenoiseRequest(
        context=contexts[:1],
        unconditional_context=contexts[1:],
        seeds=np.arange(rows, dtype=np.uint64),
        width=SIZE[0],
        height=SIZE[1],
        sampler="ddim",
        num_steps=4,
        guidance_scale=3.0,
        cache_interval=cache_interval,
    )
    async for event in stage.denoise(request):
        if isinstance(event, Denoised):
            return event.latents
    raise AssertionError("it ended without latents")


async def decode(stage: DecoderStage, latents: Float32, *, preview: bool = False) -> np.ndarray[Any, Any]:
    images = (await stage.decode(DecodeRequest(latents=latents, preview=preview))).images
    assert isinstance(images, np.ndarray)
    return images


def psnr(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    error = float(np.square(one.astype(np.float64) - other).mean())
    return 10 * float(np.log10(255**2 / error))


def some_latents() -> Float32:
    return np.random.default_rng(8).standard_normal((3, 4, 4, 4)).astype(np.float32)


def test_pictures_are_made_once_for_both_networks(quantized):
    outcomes, told = json.loads((quantized.quantized_folder.parent / "outcome.json").read_text(encoding="utf-8"))
    assert outcomes == [["unet", "32x32", False], ["vae_decoder", "32x32", False]]
    assert told == [2, 2]
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in quantized.quantized_folder.glob("*/quantization.json")]
    assert {each["network"]: each["samples"] for each in facts} == {"unet": 16, "vae_decoder": 2}
    assert facts[0]["prompts"] == ["a red circle on a green background", "a green square on a blue background"]


def test_a_second_run_leaves_what_there_is_and_makes_no_picture(quantized):
    outcomes, told = quantize(replace(quantized, precision="float32"))
    assert [outcome.was_there for outcome in outcomes] == [True, True]
    assert told == []


async def test_the_decoder_in_int8_makes_nearly_the_same_pictures_whoever_their_mates_are(quantized, small):
    stages = [DecoderStage(options) for options in (small, quantized)]
    pictures = []
    for stage in stages:
        stage.start()
        pictures.append(await decode(stage, some_latents()))
    # Random weights hide nothing: what is rounded in one layer is not smoothed by the next.
    assert 25 < psnr(*pictures) < 60
    for row in range(3):
        np.testing.assert_array_equal(await decode(stages[1], some_latents()[row : row + 1]), pictures[1][row : row + 1])
    numerics = (await stages[1].identity()).numerics
    assert (numerics.precision, numerics.engine) == ("int8", "openvino")
    assert numerics.float_precision in ("bfloat16", "float32")
    assert len(numerics.quantized) == 64
    for stage in stages:
        stage.close()


async def test_the_unet_in_int8_makes_nearly_the_same_latents_whoever_their_mates_are(quantized, small, contexts):
    stages = [DiffusionStage(options) for options in (small, quantized)]
    latents = []
    for stage in stages:
        stage.start()
        latents.append(await denoise(stage, contexts))
    error = np.sqrt(np.square(latents[0] - latents[1]).mean()) / latents[0].std()
    # Four steps with a guidance of three, which triples what one step rounds, by random weights, which smooth nothing.
    assert 1e-3 < error < 0.3
    assert len((await stages[1].identity()).exact_batch_sizes) > 1
    np.testing.assert_array_equal(await denoise(stages[1], contexts, 1), latents[1][:1])
    np.testing.assert_array_equal(await denoise(stages[1], contexts, 2), latents[1][:2])
    for stage in stages:
        stage.close()


async def test_a_network_that_is_never_quantized_computes_in_float(quantized):
    stage = TextEncoderStage(quantized)
    stage.start()
    numerics = (await stage.identity()).numerics
    assert numerics.precision in ("bfloat16", "float32")
    assert numerics.told().keys() == {"engine", "version", "precision", "instruction_set", "device"}
    await stage.encode(EncodeRequest(prompts=("a red star",)))
    stage.close()


@pytest.mark.parametrize(("kind", "stage"), [(DiffusionStage, "diffusion"), (DecoderStage, "decoder")])
def test_without_the_quantized_network_the_start_is_refused_with_the_command(quantized, tmp_path, kind, stage):
    for lacking in (replace(quantized, quantized_folder=tmp_path), replace(quantized, sizes=((64, 32),))):
        with pytest.raises(
            EngineError, match=rf"int8 for latents \(4, [48], 4\).*: `triptych quantize .*tiny --stage {stage}` makes"
        ):
            kind(lacking).start()


def test_a_start_in_int8_from_disk_imports_neither_keras_nor_nncf(quantized, root):
    for kind in (DiffusionStage, DecoderStage):
        stage = kind(quantized)
        stage.start()
        stage.close()
    code = f"""
import sys
from pathlib import Path
from tests.stages.options import Options
from triptych.stages.decoder import DecoderStage
from triptych.stages.diffusion import DiffusionStage

told = {{"cache_folder": Path({str(quantized.cache_folder)!r}), "quantized_folder": Path({str(quantized.quantized_folder)!r})}}
for kind in (DiffusionStage, DecoderStage):
    stage = kind(Options(model={quantized.model!r}, precision="int8", sizes=({SIZE},), **told))
    stage.start()
    assert stage.started_from_cache
    stage.close()
assert not sys.modules.keys() & {{"keras", "tensorflow", "jax", "nncf"}}
"""
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_what_all_passes_through_and_what_reads_large_values_stays_in_float(quantized):
    (path,) = quantized.quantized_folder.glob("unet-*/network.xml")
    graph = ov.Core().read_model(path)
    kept = layers_to_keep(graph)
    types = [node.get_type_name() for node in graph.get_ops() if node.get_friendly_name() in kept]
    # The first and the last convolution; shortcuts of all eight residual blocks but one down and two in the middle; and what each
    # of four transformers ends in. The time embedding is two layers, and each residual block has one that hears of it; the
    # feed-forward of each transformer ends in one.
    assert sorted(types) == ["Convolution"] * (2 + 5 + 4) + ["MatMul"] * (2 + 8 + 4)
    fakes = [node for node in graph.get_ops() if node.get_friendly_name() in kept and _is_quantized(node)]
    assert fakes == []


def test_nothing_inside_a_norm_is_quantized(quantized, quantized_for_reuse):
    """With attention and without: the shallow network has none."""
    folders = [*quantized.quantized_folder.iterdir(), *quantized_for_reuse.quantized_folder.iterdir()]
    assert len(folders) == 4
    for folder in folders:
        nodes = ov.Core().read_model(folder / "network.xml").get_ops()
        inside = [node for node in nodes if node.get_type_name() in ("ReduceMean", "Power", "Sqrt", "Divide")]
        assert inside
        assert [node for node in inside if _is_quantized(node)] == [], folder.name


def _is_quantized(node: Any) -> bool:
    return any(value.get_source_output().get_node().get_type_name() == "FakeQuantize" for value in node.inputs())


def test_it_is_for_openvino(small, tmp_path):
    with pytest.raises(EngineError, match="int8 is for the engine openvino, not for jax"):
        quantize(replace(small, engine="jax", quantized_folder=tmp_path))


def test_a_unet_that_sees_a_masked_picture_is_refused(small, tmp_path):
    folder = write_tiny_model(tmp_path / "inpainting", unet=INPAINTING_UNET)
    with pytest.raises(EngineError, match="the U-Net of tiny sees a masked picture: there is no int8 for such yet"):
        quantize(replace(small, model=str(folder), quantized_folder=tmp_path / "quantized"))


def test_prompts_have_words_that_the_model_knows():
    prompts = default_prompts(WORDS, 12)
    assert len(set(prompts)) == 12
    assert {word for prompt in prompts for word in prompt.split()} <= set(WORDS)
    assert default_prompts(None, 3) == PROMPTS[:3]
    assert default_prompts(("nothing",), 3) == PROMPTS[:3]


def test_both_networks_of_feature_reuse_are_quantized_by_the_same_pictures(quantized_for_reuse):
    outcomes, told = json.loads((quantized_for_reuse.quantized_folder.parent / "outcome.json").read_text(encoding="utf-8"))
    assert outcomes == [["unet_whole", "32x32", False], ["unet_shallow", "32x32", False]]
    assert told == [2, 2]
    facts = [
        json.loads(path.read_text(encoding="utf-8")) for path in quantized_for_reuse.quantized_folder.glob("*/quantization.json")
    ]
    # Of each picture two of its four evaluations are whole, and each takes two rows.
    assert {each["network"]: each["samples"] for each in facts} == {"unet_whole": 8, "unet_shallow": 8}


async def test_the_unet_in_int8_reuses_features_whoever_its_mates_are(quantized_for_reuse, small, contexts):
    stages = [DiffusionStage(options) for options in (replace(small, feature_reuse=True), quantized_for_reuse)]
    latents = []
    for stage in stages:
        stage.start()
        latents.append(await denoise(stage, contexts, cache_interval=2))
    error = np.sqrt(np.square(latents[0] - latents[1]).mean()) / latents[0].std()
    assert 1e-3 < error < 0.3
    numerics = (await stages[1].identity()).numerics
    assert (numerics.precision, len(numerics.quantized)) == ("int8", 64)
    np.testing.assert_array_equal(await denoise(stages[1], contexts, 1, cache_interval=2), latents[1][:1])
    for stage in stages:
        stage.close()


def test_features_are_not_the_last_layers_output(quantized_for_reuse):
    """Of the layers that give them none is kept in float for it; the shallow network begins and ends where the whole one does."""
    for part, (resnets, shortcuts, transformers) in {"whole": (8, 5, 4), "shallow": (3, 2, 0)}.items():
        (path,) = quantized_for_reuse.quantized_folder.glob(f"unet_{part}-*/network.xml")
        graph = ov.Core().read_model(path)
        types = [node.get_type_name() for node in graph.get_ops() if node.get_friendly_name() in layers_to_keep(graph)]
        convolutions, products = 2 + shortcuts + transformers, 2 + resnets + transformers
        assert sorted(types) == ["Convolution"] * convolutions + ["MatMul"] * products, part


def test_without_the_networks_of_feature_reuse_the_start_is_refused_with_the_command(quantized):
    with pytest.raises(EngineError, match=r"has no unet_whole of tiny .*: `TRIPTYCH_FEATURE_REUSE=true triptych quantize .*tiny"):
        DiffusionStage(replace(quantized, feature_reuse=True)).start()


def test_what_is_run_in_tiles_is_not_run_in_int8(quantized) -> None:
    with pytest.raises(EngineError, match="int8 does not go with pictures above TRIPTYCH_TILE_SIDE"):
        DecoderStage(replace(quantized, sizes=((64, 64),), tile_side=48)).start()


@pytest.fixture(scope="session")
def quantized_previews(small) -> Options:
    """Options in float with previews in int8, with the decoder's networks quantized."""

    def fill(folder: Path) -> None:
        (folder / "taesd").mkdir()
        options = replace(small, preview_decoder=write_tiny_vae(folder / "taesd"), preview_precision="int8")
        outcomes, _ = quantize(replace(options, quantized_folder=folder / "quantized"), (StageName.DECODER,))
        (folder / "outcome.json").write_text(json.dumps([outcome.name for outcome in outcomes]), encoding="utf-8")

    folder = made_once("quantized-previews", fill)
    told = {"preview_decoder": folder / "taesd", "quantized_folder": folder / "quantized"}
    return replace(small, preview_precision="int8", **told)


async def test_previews_in_int8_are_nearly_the_same_beside_the_same_pictures(quantized_previews):
    folder = quantized_previews.quantized_folder
    assert json.loads((folder.parent / "outcome.json").read_text(encoding="utf-8")) == ["vae_decoder", "tiny_decoder"]
    previews, pictures, identities = [], [], []
    for precision in ("auto", "int8"):
        stage = DecoderStage(replace(quantized_previews, preview_precision=precision))
        stage.start()
        previews.append(await decode(stage, some_latents(), preview=True))
        pictures.append(await decode(stage, some_latents()))
        identities.append(await stage.identity())
        np.testing.assert_array_equal(await decode(stage, some_latents()[1:2], preview=True), previews[-1][1:2])
        stage.close()
    assert 25 < psnr(*previews) < 60
    np.testing.assert_array_equal(*pictures)
    assert identities[0] == identities[1]  # no picture goes through it


async def test_previews_and_pictures_in_int8(quantized_previews):
    stage = DecoderStage(replace(quantized_previews, precision="int8"))
    stage.start()
    assert (await stage.identity()).numerics.precision == "int8"
    in_float = DecoderStage(replace(quantized_previews, preview_precision="auto"))
    in_float.start()
    for preview in (False, True):
        pictures = [await decode(each, some_latents(), preview=preview) for each in (stage, in_float)]
        assert 25 < psnr(*pictures) < 60
    stage.close()
    in_float.close()


def test_previews_in_int8_without_a_decoder_for_them_are_refused(small, tmp_path):
    options = replace(small, preview_precision="int8", quantized_folder=tmp_path)
    sentence = "TRIPTYCH_PREVIEW_PRECISION is int8, but tiny has no decoder for previews: TRIPTYCH_PREVIEW_DECODER names one"
    with pytest.raises(EngineError, match=sentence):
        DecoderStage(options).start()
    with pytest.raises(EngineError, match=sentence):
        quantize(options, (StageName.DECODER,))
    assert list(tmp_path.iterdir()) == []


def test_previews_in_int8_are_for_openvino(quantized_previews, monkeypatch):
    monkeypatch.setattr(OpenVINOEngine, "name", "jax")
    with pytest.raises(EngineError, match="TRIPTYCH_PREVIEW_PRECISION=int8 is for the engine openvino, not for jax"):
        DecoderStage(quantized_previews).start()


def test_what_is_decoded_in_tiles_is_left_out_but_for_its_previews(quantized_previews, tmp_path, caplog):
    options = replace(quantized_previews, sizes=((64, 64),), tile_side=56, quantized_folder=tmp_path)
    outcomes, _ = quantize(options, (StageName.DECODER,))
    assert [outcome.name for outcome in outcomes] == ["tiny_decoder"]
    assert "pictures of 64x64 are decoded in tiles, and those not in int8" in caplog.text


def test_without_the_quantized_network_of_previews_the_start_is_refused_with_the_command(quantized_previews, tmp_path):
    command = r"`TRIPTYCH_PREVIEW_PRECISION=int8 TRIPTYCH_PREVIEW_DECODER=.*taesd triptych quantize .*tiny --stage decoder`"
    with pytest.raises(EngineError, match=rf"has no tiny_decoder of tiny in int8 .*: {command}"):
        DecoderStage(replace(quantized_previews, quantized_folder=tmp_path)).start()


def test_where_no_features_are_reused_there_is_nothing_to_go_by(small, tmp_path):
    model = write_tiny_model(tmp_path / "turbo")
    facts = model / "triptych.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"num_steps": 1}))
    with pytest.raises(EngineError, match="makes its pictures in one step, where nothing is reused"):
        quantize(replace(small, model=str(model), feature_reuse=True, quantized_folder=tmp_path / "q"), (StageName.DIFFUSION,))
