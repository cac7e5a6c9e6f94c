from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load, save

from tests.checkpoints.hub_server import COMMIT, Hub, files_below, serving
from tests.tiny_models import FACTS, write_tiny_model
from triptych.checkpoints import hub as our_hub
from triptych.checkpoints.checkpoint import Network
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.checkpoints.hub import (
    NotOnTheHub,
    fetch_file_from_hub,
    fetch_from_hub,
    file_in_cache,
    folder_in_cache,
)
from triptych.errors import CheckpointError

REPO = "owner/tiny"
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
WEIGHTS = {UNET, VAE, TEXT}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return files_below(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def hub(tiny: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub(REPO, dict(tiny))) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 256)  # what came of a chunk that was cut is not kept
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


# What is fetched


def test_the_decoders_fetch_never_touches_the_other_networks(hub: Hub):
    folder = fetch_from_hub(REPO, [Network.VAE_DECODER])
    assert hub.names_asked_for() & WEIGHTS == {VAE}
    assert {each.path for each in hub.asked if "diffusion_pytorch_model" in each.path} == {f"/{REPO}/resolve/{COMMIT}/{VAE}"}
    assert (folder / VAE).read_bytes() == hub.files[VAE]
    assert DiffusersFolder(folder).facts == FACTS
    assert (DiffusersFolder(folder).tokenizer / "merges.txt").read_bytes() == hub.files["tokenizer/merges.txt"]


def test_without_networks_the_descriptions_alone_are_fetched(hub: Hub):
    folder = fetch_from_hub(REPO, [])
    assert hub.names_asked_for() == hub.files.keys() - WEIGHTS
    assert DiffusersFolder(folder).unet.in_channels == 4


def test_other_files_of_the_repository_are_left_there(hub: Hub):
    others = (
        "README.md",
        "v1-5-pruned.safetensors",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/x.json",
    )
    hub.files |= dict.fromkeys(others, b"large")
    fetch_from_hub(REPO)
    assert hub.names_asked_for() == hub.files.keys() - set(others)


def test_what_is_here_is_not_fetched_again(hub: Hub):
    fetch_from_hub(REPO, [Network.VAE_DECODER])
    hub.asked.clear()
    fetch_from_hub(REPO, [Network.VAE_ENCODER, Network.UNET])
    assert hub.names_asked_for() == {UNET}


def test_two_at_once_fetch_a_file_once(hub: Hub):
    with ThreadPoolExecutor(2) as threads:
        folders = list(threads.map(lambda _: fetch_from_hub(REPO, [Network.VAE_DECODER]), range(2)))
    assert (folders[0] / VAE).read_bytes() == (folders[1] / VAE).read_bytes() == hub.files[VAE]
    assert len([each for each in hub.asked if each.method == "GET" and each.path == f"/lfs/{hub.sha256(VAE)}"]) == 1


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub):
    hub.revisions["v1"] = COMMIT
    folders = {fetch_from_hub(REPO, [], revision=revision) for revision in (None, "main", "v1", COMMIT)}
    assert [folder.name for folder in folders] == [COMMIT]


def test_how_far_it_is_is_told(hub: Hub):
    told: list[tuple[int, int]] = []
    fetch_from_hub(REPO, [Network.VAE_DECODER], on_progress=lambda done, total: told.append((done, total)))
    total = len(hub.files[VAE])
    assert told[0] == (0, total) and told[-1] == (total, total) and len(told) > 5
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    told.clear()
    fetch_from_hub(REPO, [Network.VAE_DECODER], on_progress=lambda done, total: told.append((done, total)))
    assert told == [(total, total)]


# Variants and shards


def renamed(files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    """The same with these weights in half precision's place."""
    return {name.replace(".safetensors", ".fp16.safetensors") if name in names else name: files[name] for name in files}


@pytest.mark.parametrize(("half", "fetched"), [(WEIGHTS, "fp16"), ({UNET}, "plain")])
def test_the_variant_is_the_same_for_all_networks_whoever_asks(hub: Hub, tiny: dict[str, bytes], half: set[str], fetched: str):
    hub.files = renamed(tiny, *half)
    hub.files[VAE] = tiny[VAE]
    folder = fetch_from_hub(REPO, [Network.VAE_DECODER])
    (name,) = (path.name for path in folder.glob("vae/*.safetensors"))
    assert ("fp16" if ".fp16." in name else "plain") == fetched
    with DiffusersFolder(folder).tensors(Network.VAE_DECODER) as tensors:
        assert "decoder.conv_in.weight" in tensors.names()


def test_a_variant_that_is_asked_for_is_fetched_or_named(hub: Hub, tiny: dict[str, bytes]):
    hub.files = {**tiny, **renamed(tiny, VAE)}
    folder = fetch_from_hub(REPO, [Network.VAE_DECODER], variant="fp16")
    assert [path.name for path in folder.glob("vae/*.safetensors")] == ["diffusion_pytorch_model.fp16.safetensors"]
    with pytest.raises(
        CheckpointError, match=r"owner/tiny@main has no fp16 weights in unet; it has config\.json, diffusion_pytor"
    ):
        fetch_from_hub(REPO, [Network.UNET], variant="fp16")


def sharded(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same with the text encoder in two shards, and a third that no index lists."""
    tensors = load(files[TEXT])
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    parts = [dict(list(tensors.items())[start::2]) for start in (0, 1)]
    shards = {f"text_encoder/{name}": save(part) for name, part in zip(names, [*parts, {"x": np.zeros(1)}], strict=True)}
    weight_map = {key: name for name, part in zip(names, parts, strict=False) for key in part}
    index = json.dumps({"weight_map": weight_map}).encode()
    return {name: content for name, content in files.items() if name != TEXT} | shards | {f"{TEXT}.index.json": index}


def test_of_shards_those_that_the_index_lists_are_fetched(hub: Hub, tiny: dict[str, bytes]):
    hub.files = sharded(tiny)
    folder = fetch_from_hub(REPO, [Network.TEXT_ENCODER])
    assert sorted(path.name for path in folder.glob("text_encoder/*.safetensors")) == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
    ]
    with DiffusersFolder(folder).tensors(Network.TEXT_ENCODER) as tensors:
        assert set(tensors.names()) == load(tiny[TEXT]).keys()


def test_a_shard_that_the_repository_lacks_is_named(hub: Hub, tiny: dict[str, bytes]):
    hub.files = sharded(tiny)
    del hub.files["text_encoder/model-00002-of-00003.safetensors"]
    with pytest.raises(
        CheckpointError, match=r"owner/tiny@main lacks text_encoder/model-00002-of-00003\.safetensors, which text_enc"
    ):
        fetch_from_hub(REPO, [Network.TEXT_ENCODER])


# Cut in the middle


def test_a_transfer_that_is_cut_goes_on_where_it_was(hub: Hub):
    hub.sends[VAE] = 5 * 256
    folder = fetch_from_hub(REPO, [Network.VAE_DECODER])
    assert (folder / VAE).read_bytes() == hub.files[VAE]
    assert [each.range for each in hub.asked if each.method == "GET" and each.path.startswith("/lfs/")] == [
        None,
        f"bytes={5 * 256}-",
    ]


def test_a_fetch_that_failed_is_gone_on_with_by_the_next(hub: Hub):
    hub.sends[VAE], hub.breaks = 5 * 256, True
    with pytest.raises(CheckpointError, match="answered owner/tiny@main with status 503: try again later, what has come is kept"):
        fetch_from_hub(REPO, [Network.VAE_DECODER])
    assert folder_in_cache(REPO, [Network.VAE_DECODER]) is None
    hub.refuses.clear()
    hub.asked.clear()
    told: list[int] = []
    folder = fetch_from_hub(REPO, [Network.VAE_DECODER], on_progress=lambda done, total: told.append(done))
    assert (folder / VAE).read_bytes() == hub.files[VAE]
    assert [each.range for each in hub.asked if each.method == "GET" and each.path.startswith("/lfs/")] == [f"bytes={5 * 256}-"]
    assert told[0] == 5 * 256


def test_what_came_otherwise_than_the_hub_states_is_not_kept(hub: Hub, tmp_path: Path):
    hub.garbled[VAE] = bytes(len(hub.files[VAE]))
    with pytest.raises(
        CheckpointError, match=rf"{VAE} of owner/tiny@main came with the sha256 .*, and the Hub states {hub.sha256(VAE)}"
    ):
        fetch_from_hub(REPO, [Network.VAE_DECODER])
    assert list(tmp_path.rglob("*.incomplete")) == []
    hub.garbled.clear()
    assert (fetch_from_hub(REPO, [Network.VAE_DECODER]) / VAE).read_bytes() == hub.files[VAE]


# Offline


def test_what_was_fetched_is_found_without_a_network(hub: Hub):
    folder = fetch_from_hub(REPO, [Network.VAE_DECODER])
    hub.stop()
    assert fetch_from_hub(REPO, [Network.VAE_DECODER]) == folder
    assert fetch_from_hub(REPO, [Network.VAE_DECODER], offline=True) == folder
    assert folder_in_cache(REPO, [Network.VAE_DECODER]) == folder
    assert folder_in_cache(REPO, [Network.VAE_DECODER], revision=COMMIT) == folder
    assert folder_in_cache(REPO, [Network.UNET]) is None
    with pytest.raises(
        CheckpointError, match=rf"cannot be reached .*, and the cache of huggingface_hub lacks {UNET} of owner/tiny"
    ):
        fetch_from_hub(REPO, [Network.UNET])
    with pytest.raises(
        CheckpointError, match=rf"^offline, and the cache of huggingface_hub lacks {UNET} of owner/tiny@main: fetch it"
    ):
        fetch_from_hub(REPO, [Network.UNET], offline=True)


def test_a_cache_that_an_older_huggingface_hub_filled_is_used_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    for name in hub.files.keys() - {UNET}:
        huggingface_hub.hf_hub_download(REPO, name)
    hub.asked.clear()
    assert folder_in_cache(REPO, [Network.VAE_DECODER]) is None  # nobody can tell whether it is all: who may ask, asks
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = folder_in_cache(REPO, [Network.VAE_DECODER])
    assert folder is not None
    assert DiffusersFolder(folder).facts == FACTS
    assert (folder / VAE).read_bytes() == hub.files[VAE]
    assert folder_in_cache(REPO, [Network.UNET]) is None
    assert hub.asked == []


def test_offline_nothing_is_asked(hub: Hub):
    with pytest.raises(
        CheckpointError, match=r"^offline, and the cache of huggingface_hub has no owner/tiny@main: fetch it once"
    ):
        fetch_from_hub(REPO, offline=True)
    assert folder_in_cache(REPO, []) is None
    assert hub.asked == []


def test_without_a_network_the_sentence_says_so(hub: Hub):
    hub.stop()
    with pytest.raises(
        CheckpointError, match=rf"{hub.url} cannot be reached, and the cache of huggingface_hub has no owner/tiny@main"
    ):
        fetch_from_hub(REPO)


def test_a_network_that_goes_down_in_the_middle(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: hub.stop())
    hub.sends[VAE] = 5 * 256
    with pytest.raises(
        CheckpointError, match=r"did not come: .* cannot be reached .*; connect and fetch it again, what has come is kept"
    ):
        fetch_from_hub(REPO, [Network.VAE_DECODER])


PROGRAM = f"""
import sys
from triptych.checkpoints import hub
assert "huggingface_hub" not in sys.modules
try:
    print(hub.fetch_from_hub("{REPO}", [], revision="v1"))
except hub.CheckpointError as error:
    print(error)
"""


def test_the_environment_is_heard(hub: Hub, tmp_path: Path):
    hub.revisions["v1"] = COMMIT

    def fetched(**environment: str) -> str:
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=os.environ | environment, capture_output=True, text=True, check=True, timeout=60
        )
        return run.stdout.strip()

    home = tmp_path / "home"
    expected = home / "hub" / "models--owner--tiny" / "snapshots" / COMMIT
    assert "offline" in fetched(HF_ENDPOINT=hub.url, HF_HOME=str(home), HF_HUB_OFFLINE="1")
    assert hub.asked == []
    assert fetched(HF_ENDPOINT=hub.url, HF_HOME=str(home)) == str(expected)
    hub.asked.clear()
    assert fetched(HF_ENDPOINT=hub.url, HF_HOME=str(home), HF_HUB_OFFLINE="1") == str(expected)
    assert hub.asked == []


# Refused


class Disk(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize("free", [0, 300_000])
def test_a_disk_too_full_is_refused_before_anything_is_downloaded(hub: Hub, monkeypatch: pytest.MonkeyPatch, free: int):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10**9, 10**9 - free, free))
    with pytest.raises(
        CheckpointError, match=r"fetching owner/tiny@main takes .* GB, and .* has .* GB free: make room, or set HF_HOME"
    ):
        fetch_from_hub(REPO)
    assert hub.names_asked_for() == (set() if free == 0 else hub.files.keys() - WEIGHTS)


def test_what_came_already_needs_no_room(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.sends[VAE], hub.breaks = 5 * 256, True
    with pytest.raises(CheckpointError, match="503"):
        fetch_from_hub(REPO, [Network.VAE_DECODER])
    hub.refuses.clear()
    left = len(hub.files[VAE]) - 5 * 256
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10**9, 0, left - 1))
    with pytest.raises(CheckpointError, match="make room"):
        fetch_from_hub(REPO, [Network.VAE_DECODER])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10**9, 0, left))
    assert (fetch_from_hub(REPO, [Network.VAE_DECODER]) / VAE).exists()


def test_a_disk_that_fills_on_the_way_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    def full(self: Any, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(our_hub._Reported, "write", full)
    with pytest.raises(CheckpointError, match=r"the disk of .* is full: make room and fetch owner/tiny@main again"):
        fetch_from_hub(REPO, [Network.VAE_DECODER])


def test_a_model_that_is_not_there(hub: Hub):
    with pytest.raises(
        NotOnTheHub, match=rf"{hub.url} has no model owner/none, or does not show it: check the name, and set HF_TOKEN"
    ):
        fetch_from_hub("owner/none")


@pytest.mark.parametrize("repo_id", ["a/b/c", "a b", "../x", ""])
def test_no_id_at_all(hub: Hub, repo_id: str):
    with pytest.raises(NotOnTheHub, match="is no id of the Hub, which has owner/name"):
        fetch_from_hub(repo_id)
    assert hub.asked == []


def test_a_revision_that_is_not_there(hub: Hub):
    with pytest.raises(CheckpointError, match="owner/tiny has no revision 'v9': name a branch, a tag or a commit of http"):
        fetch_from_hub(REPO, revision="v9")


def test_a_licence_that_was_not_accepted(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.token = "hf_secret"
    with pytest.raises(CheckpointError, match=rf"accept it at {hub.url}/owner/tiny, and set HF_TOKEN to a token of that account"):
        fetch_from_hub(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch_from_hub(REPO, [Network.VAE_DECODER]).is_dir()


def test_a_repository_of_pickles(hub: Hub):
    hub.files["unet/diffusion_pytorch_model.bin"] = hub.files.pop(UNET)
    with pytest.raises(
        CheckpointError, match=r"unet/diffusion_pytorch_model\.bin of owner/tiny@main is a pickle, .*; convert it with diff"
    ):
        fetch_from_hub(REPO, [Network.UNET])
    assert fetch_from_hub(REPO, [Network.VAE_DECODER]).is_dir()


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["v1.safetensors"], "is no model in the layout of diffusers, but holds v1.safetensors: download one and name its path"),
        (["v1.ckpt"], r"v1\.ckpt of owner/tiny@main is a pickle"),
        (["README.md"], "it has neither unet, vae nor text_encoder"),
    ],
)
def test_a_repository_in_another_layout(hub: Hub, files: list[str], sentence: str):
    hub.files = dict.fromkeys(files, b"x")
    with pytest.raises(CheckpointError, match=sentence):
        fetch_from_hub(REPO)
    assert hub.names_asked_for() == set()


def test_a_network_that_the_repository_lacks(hub: Hub):
    del hub.files[UNET], hub.files["unet/config.json"]
    with pytest.raises(CheckpointError, match="owner/tiny@main has no weights in unet; it has no such folder"):
        fetch_from_hub(REPO, [Network.UNET])


@pytest.mark.parametrize("file", [VAE, "vae/config.json"])
@pytest.mark.parametrize(("status", "sentence"), [(403, "set HF_TOKEN to a token that may read it"), (410, "try again later")])
def test_a_hub_that_will_not_give_it(hub: Hub, file: str, status: int, sentence: str):
    hub.refuses[file] = status
    with pytest.raises(CheckpointError, match=rf"owner/tiny.*status {status}.*{sentence}"):
        fetch_from_hub(REPO)


# Single files


def test_a_single_file(hub: Hub):
    hub.files["v1.safetensors"] = hub.files[VAE]
    assert file_in_cache(REPO, "v1.safetensors") is None
    path = fetch_file_from_hub(REPO, "v1.safetensors")
    assert path.read_bytes() == hub.files[VAE]
    assert hub.names_asked_for() & {UNET, TEXT, "model_index.json"} == set()
    hub.stop()
    assert file_in_cache(REPO, "v1.safetensors") == path


def test_a_single_file_that_is_not_there_or_a_pickle(hub: Hub):
    with pytest.raises(CheckpointError, match=r"owner/tiny@main has no v2\.safetensors; it has model_index\.json, "):
        fetch_file_from_hub(REPO, "v2.safetensors")
    with pytest.raises(CheckpointError, match=r"v1\.ckpt of owner/tiny is a pickle"):
        fetch_file_from_hub(REPO, "v1.ckpt")


def test_the_cache_is_one_that_others_read(hub: Hub):
    """transformers, diffusers and huggingface_hub's own command line find what we fetched."""
    folder = fetch_from_hub(REPO, [Network.VAE_DECODER])
    assert huggingface_hub.try_to_load_from_cache(REPO, VAE) == str(folder / VAE)
    shutil.rmtree(folder)
    asked = len(hub.asked)
    assert (fetch_from_hub(REPO, [Network.VAE_DECODER]) / VAE).exists()
    assert not any(each.method == "GET" and each.path.startswith("/lfs/") for each in hub.asked[asked:])
