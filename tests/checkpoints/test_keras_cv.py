"""keras-cv's presets, as far as it goes without keras-cv. With it: tests/reference/test_keras_cv.py."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.tiny_models import UNET
from triptych.checkpoints import keras_cv
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.checkpoints.keras_cv import PARTS, PRESETS, pull_keras_cv, write_folder
from triptych.errors import CheckpointError

NAME = "keras-cv/sd-v1-4"


class Pretended:
    """Stands for the process that writes a preset."""

    def __init__(self, *, fails: str | None = None) -> None:
        self.fails = fails
        self.asked: list[list[str]] = []

    def __call__(self, command: list[str], **options: Any) -> SimpleNamespace:
        self.asked.append(command)
        assert options["env"]["KERAS_BACKEND"] == "tensorflow"
        staged = Path(command[4])
        parts = command[command.index("--parts") + 1 :]
        for entry in (*parts, "scheduler", *(["tokenizer"] if "text_encoder" in parts else [])):
            (staged / entry).mkdir(parents=True)
            (staged / entry / ("written.safetensors" if entry in parts else "written")).touch()
        (staged / "triptych.json").write_text("{}")
        return SimpleNamespace(returncode=0 if self.fails is None else 1, stdout=self.fails or "")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    pretended = Pretended()
    monkeypatch.setattr(subprocess, "run", pretended)
    monkeypatch.setattr(metadata, "version", lambda _: "0.9.0")
    return pretended


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(CheckpointError, match=r"which is not installed: pip install 'triptych\[keras-cv\]'"):
        pull_keras_cv(NAME, tmp_path / "model")
    assert entries(tmp_path) == set()


def test_another_release_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "0.8.2")
    with pytest.raises(CheckpointError, match=r"needs keras-cv 0\.9, and 0\.8\.2 is installed"):
        pull_keras_cv(NAME, tmp_path / "model")


@pytest.mark.parametrize("do", [pull_keras_cv, write_folder])
def test_an_unknown_preset_is_refused_with_those_there_are(do: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'keras-cv/sd-v3' for us; there are keras-cv/sd-v1-4 and keras-cv/sd-v2-1"):
        do("keras-cv/sd-v3", tmp_path / "model")


def test_a_folder_appears_whole(pretended: Pretended, tmp_path: Path) -> None:
    target = tmp_path / "models" / "sd"
    assert pull_keras_cv(NAME, target) == target
    assert entries(target) == {"text_encoder", "tokenizer", "unet", "vae", "scheduler", "triptych.json"}
    assert entries(target.parent) == {"sd"}


def test_only_what_is_not_there_is_written(pretended: Pretended, tmp_path: Path) -> None:
    target = tmp_path / "sd"
    pull_keras_cv(NAME, target, parts=["vae"])
    assert entries(target) == {*PARTS, "scheduler", "triptych.json"}
    (target / "vae" / "written.safetensors").write_text("before")
    pull_keras_cv(NAME, target, parts=["vae", "text_encoder"])
    assert [command[command.index("--parts") + 1 :] for command in pretended.asked] == [["vae"], ["text_encoder"]]
    assert entries(target) == {*PARTS, "tokenizer", "scheduler", "triptych.json"}
    assert entries(target / "text_encoder") == {"config.json", "written.safetensors"}
    assert (target / "vae" / "written.safetensors").read_text() == "before"  # not written again
    assert entries(tmp_path) == {"sd"}

    pull_keras_cv(NAME, target, parts=["text_encoder"])
    assert len(pretended.asked) == 2


def test_a_part_alone_has_its_neighbours_configurations(pretended: Pretended, tmp_path: Path) -> None:
    folder = DiffusersFolder(pull_keras_cv(NAME, tmp_path / "sd", parts=["unet"]))
    preset = PRESETS[NAME]
    assert (folder.text_encoder, folder.unet, folder.vae) == (preset.text_encoder, preset.unet, preset.vae)
    assert entries(folder.path / "vae") == {"config.json"}


def test_a_failure_leaves_nothing(pretended: Pretended, tmp_path: Path) -> None:
    pretended.fails = "the disk is too full"
    with pytest.raises(CheckpointError, match="keras-cv/sd-v1-4 was not written: the disk is too full"):
        pull_keras_cv(NAME, tmp_path / "sd")
    assert entries(tmp_path) == set()


def test_a_process_that_says_nothing_is_told_by_its_status(pretended: Pretended, tmp_path: Path) -> None:
    pretended.fails = ""
    with pytest.raises(CheckpointError, match="its process ended with status 1"):
        pull_keras_cv(NAME, tmp_path / "sd")


@pytest.mark.parametrize(("name", "parameters"), [(NAME, 1_066_235_307), ("keras-cv/sd-v2-1", 1_289_952_427)])
def test_presets_have_the_numbers_of_parameters_of_stable_diffusion(name: str, parameters: int) -> None:
    shapes = [shape for part in PARTS for shape in keras_cv._shapes(PRESETS[name], part).values()]
    assert sum(math.prod(shape) for shape in shapes) == parameters


def test_a_full_disk_is_refused_before_anything_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"unet": {"weight": (1000, 1000, 500)}}
    usage = SimpleNamespace(free=3_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    cache = tmp_path / "cache"
    preset = PRESETS[NAME]

    with pytest.raises(CheckpointError, match=r"is too full: 4\.0 GB are needed, 3\.0 GB are free"):
        keras_cv._refuse_full_disk(preset, shapes, tmp_path / "model", cache=cache)
    keras_cv._refuse_full_disk(preset, shapes, tmp_path / "model", cache=None)
    cache.mkdir()
    (cache / "kcv_diffusion_model.h5").touch()
    keras_cv._refuse_full_disk(preset, shapes, tmp_path / "model", cache=cache)


def test_downloads_stay_where_keras_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "kcv_encoder.h5").touch()
    script = "import keras; print(keras.utils.get_file(origin='http://127.0.0.1:1/kcv_encoder.h5'))"  # nobody listens there
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert Path(found.splitlines()[-1]).parent == keras_cv._keras_cache()


# What is written of networks


class Weight:
    """A variable of keras-cv's."""

    def __init__(self, name: str, *shape: int) -> None:
        self.name = name
        self.array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def numpy(self) -> np.ndarray:
        return self.array


def test_weights_are_written_in_single_precision_and_in_the_order_of_files(tmp_path: Path) -> None:
    weights = {
        "a.weight": Weight("kernel", 3, 2, 5, 7),
        "b.weight": Weight("kernel", 5, 7),
        "c.weight": Weight("kernel", 1, 1, 5, 7),
        "c.bias": Weight("bias", 7),
    }
    shapes = {"a.weight": (7, 5, 3, 2), "b.weight": (7, 5), "c.weight": (7, 5), "c.bias": (7,)}
    keras_cv._write_part(tmp_path, "unet", UNET, weights, shapes)
    written = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")

    assert {array.dtype for array in written.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(written["a.weight"], weights["a.weight"].array.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(written["b.weight"], weights["b.weight"].array.T)
    np.testing.assert_array_equal(written["c.weight"], weights["c.weight"].array[0, 0].T)
    np.testing.assert_array_equal(written["c.bias"], weights["c.bias"].array)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"a.weight": Weight("kernel", 5, 7)}, r"a\.weight has shape \(7, 5\), ours \(5, 7\)"),
        ({"a.bias": Weight("bias", 5)}, r"keras-cv's unet differs from ours in a\.bias, a\.weight"),
    ],
)
def test_what_is_not_ours_in_name_or_shape_is_refused(weights: dict[str, Weight], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        keras_cv._write_part(tmp_path, "unet", UNET, weights, {"a.weight": (5, 7)})


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    weight = Weight("bias", 2)
    weight.array[1] = np.nan
    with pytest.raises(CheckpointError, match=r"a\.bias has values that are no numbers"):
        keras_cv._write_part(tmp_path, "unet", UNET, {"a.bias": weight}, {"a.bias": (2,)})


# A folder of its files


def test_files_come_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "kcv_encoder.h5").touch()
    theirs = keras.utils.get_file
    with keras_cv._files_from(tmp_path):
        assert keras.utils.get_file(origin="https://example.org/kcv_encoder.h5", file_hash="0") == str(
            tmp_path / "kcv_encoder.h5"
        )
        with pytest.raises(CheckpointError, match=r"there is no .*vocabulary\.txt"):
            keras.utils.get_file("vocabulary.txt", "https://example.org/other.txt")
    assert keras.utils.get_file is theirs


def test_what_keras_cv_cannot_load_is_told_in_one_sentence() -> None:
    class Theirs:
        @property
        def decoder(self) -> None:
            raise Exception("URL fetch failure")  # as Keras does

    with pytest.raises(CheckpointError, match="keras-cv cannot load its decoder: URL fetch failure"):
        keras_cv._built(Theirs(), "decoder")


def test_this_process_has_another_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "0.9.0")
    with pytest.raises(CheckpointError, match="whose Keras runs on tensorflow, not on openvino"):
        write_folder(NAME, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_half_an_installation_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "0.9.0")
    monkeypatch.setattr(keras.config, "backend", lambda: "tensorflow")
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    with pytest.raises(CheckpointError, match=r"needs keras_cv, which is not installed: pip install 'triptych\[keras-cv\]'"):
        write_folder(NAME, tmp_path / "model")
