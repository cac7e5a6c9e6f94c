from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from triptych.checkpoints import entries
from triptych.checkpoints.entries import FAMILIES, PACKAGE_FILE, SourceKind, read_entries, read_file, write_entry
from triptych.errors import CheckpointError


def read(tmp_path: Path, text: str) -> dict[str, entries.ModelEntry]:
    path = tmp_path / "models.toml"
    path.write_text(text, encoding="utf-8")
    return read_file(path)


class TestThePackagesOwn:
    def test_all_names_of_the_issue_are_there(self) -> None:
        names = read_file(PACKAGE_FILE).keys()
        assert names >= {"vignette", "sd-v1-4", "sd-v1-5", "sd-v1-5-inpainting", "dreamshaper-8", "sd-v2-1", "sd-v2-1-base"}
        assert names >= {"keras-cv/sd-v1-4", "keras-cv/sd-v2-1"}

    def test_each_has_a_licence_with_an_address(self) -> None:
        assert [name for name, entry in read_file(PACKAGE_FILE).items() if not (entry.licence and entry.licence_url)] == []

    def test_what_was_withdrawn_has_a_mirror(self) -> None:
        found = read_file(PACKAGE_FILE)
        assert found["sd-v1-5"].hub_ids == ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5")
        withdrawn = [entry for entry in found.values() if entry.source.location.partition("/")[0] in ("runwayml", "stabilityai")]
        assert len(withdrawn) == 5
        assert [entry.name for entry in withdrawn if not entry.mirrors] == []

    def test_a_family_tells_the_spaces(self) -> None:
        found = read_file(PACKAGE_FILE)
        assert found["sd-v1-5"].spaces == {"latent_space": "sd-1", "text_space": "clip-vit-l-14"}
        assert found["sd-v2-1"].spaces == {"latent_space": "sd-1", "text_space": "openclip-vit-h-14"}
        assert found["vignette"].spaces == {}

    def test_the_embedded_model_is_a_folder_of_the_package(self) -> None:
        source = read_file(PACKAGE_FILE)["vignette"].source
        assert source.kind is SourceKind.FOLDER
        assert source.path == PACKAGE_FILE.parents[1] / "vignette"

    def test_what_has_not_been_released_is_not_listed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "package" / "models.toml"
        (package.parent / "here").mkdir(parents=True)
        package.write_text('[here]\nsource = "./here"\n[later]\nsource = "./later"\n[hub]\nsource = "owner/name"\n')
        monkeypatch.setattr(entries, "PACKAGE_FILE", package)
        assert list(read_entries(tmp_path / "none.toml")) == ["here", "hub"]
        write_entry(tmp_path / "mine.toml", "mine", {"source": str(tmp_path / "gone")})  # the user's own are never hidden
        assert list(read_entries(tmp_path / "mine.toml")) == ["here", "hub", "mine"]


class TestSources:
    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("owner/name", SourceKind.HUB),
            ("owner/na.me-1:v1.safetensors", SourceKind.HUB_FILE),
            ("owner/name:folder/v1.safetensors", SourceKind.HUB_FILE),
            ("keras-cv:sd-v1-4", SourceKind.KERAS_CV),
            ("/models/sd", SourceKind.FOLDER),
            ("/models/sd-v1.5", SourceKind.FOLDER),
            ("/models/sd.safetensors", SourceKind.FILE),
            ("/models/sd.ckpt", SourceKind.FILE),
        ],
    )
    def test_each_kind_is_known_by_its_form(self, tmp_path: Path, text: str, kind: SourceKind) -> None:
        source = read(tmp_path, f'[a]\nsource = "{text}"')["a"].source
        assert source.kind is kind
        assert str(source) == text

    def test_a_path_is_relative_to_its_file(self, tmp_path: Path) -> None:
        found = read(tmp_path, '[a]\nsource = "./sd"\ntokenizer = "../words"')["a"]
        assert found.source.path == tmp_path / "sd"
        assert found.tokenizer == tmp_path.parent / "words"

    def test_the_home_folder_is_meant_by_a_tilde(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert read(tmp_path, '[a]\nsource = "~/sd"')["a"].source.path == tmp_path / "home" / "sd"


IMPOSSIBLE = {
    "source = 3": "source must be a text, not 3",
    'source = ""': "source must be a text, not ''",
    'source = "name"': "source must be owner/name or owner/name:file.safetensors on the Hub, keras-cv:preset, or a path",
    'source = "owner/name:model.ckpt"': "source must be owner/name or",
    'source = "owner/name/more"': "source must be owner/name or",
    'source = "o/n"\nmirrors = "p/n"': "mirrors must be a list of owner/name on the Hub, not 'p/n'",
    'source = "o/n"\nmirrors = ["n"]': "mirrors must be a list of owner/name on the Hub",
    'source = "/n"\nmirrors = ["o/n"]': "mirrors are for a source on the Hub, which '/n' is not",
    'source = "o/n"\nrevision = "../x y"': "revision must be a branch, a tag or a commit",
    'source = "o/n"\nrevision = 1': "revision must be a branch, a tag or a commit, not 1",
    'source = "o/n"\nvariant = "fp16/"': "variant must be letters and digits, such as fp16",
    'source = "o/n"\nfamily = "sd-3"': "family must be one of sd-1, sd-2, not 'sd-3'",
    'source = "o/n"\nfamily = ["sd-1"]': "family must be one of sd-1, sd-2",
    'source = "o/n"\nlicence = true': "licence must be a text, not True",
    'source = "o/n"\nlicence = "a\\u001b[1m"': "licence must be a text",
    'source = "o/n"\nlicence_url = "javascript:x"': "licence_url must be an address that begins with https://",
    'source = "o/n"\nsize = 512': "size must be [width, height] in pixels, not 512",
    'source = "o/n"\nsize = [512]': "size must be [width, height] in pixels",
    'source = "o/n"\nsize = [512, 0]': "size must be [width, height] in pixels",
    'source = "o/n"\nsize = [512, true]': "size must be [width, height] in pixels",
    'source = "o/n"\nnum_steps = 0': "num_steps must be a whole number from 1 to 1000, not 0",
    'source = "o/n"\nnum_steps = 2.5': "num_steps must be a whole number from 1 to 1000",
    'source = "o/n"\nguidance_scale = "7"': "guidance_scale must be a number from 1 to 100, not '7'",
    'source = "o/n"\nguidance_scale = nan': "guidance_scale must be a number from 1 to 100, not nan",
    'source = "o/n"\nprediction_type = "v"': "prediction_type must be one of epsilon, v_prediction, sample, not 'v'",
    'source = "o/n"\nsampelr = "ddim"': "there is no key 'sampelr'; there are source, mirrors,",
    'licence = "MIT"': "has no source",
}


@pytest.mark.parametrize(("table", "sentence"), IMPOSSIBLE.items())
def test_an_impossible_entry_is_one_sentence_with_file_entry_and_key(tmp_path: Path, table: str, sentence: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        read(tmp_path, f'[good]\nsource = "o/n"\n\n["my/model"]\n{table}')
    message = refused.value.message
    assert message.startswith(f"{tmp_path / 'models.toml'}: model 'my/model'")
    assert sentence in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[a", "is not TOML: "),
        ('[a]\nsource = "o/n"\n[a]\nsource = "o/n"', "is not TOML: "),
        ('a = "o/n"', "model 'a' must be a table, with a source at least"),
        ('["../a"]\nsource = "o/n"', "model '../a': a name is made of letters, digits and . _ + -"),
        ('["a@b"]\nsource = "o/n"', "model 'a@b': a name is made of"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        read(tmp_path, text)
    assert refused.value.message.startswith(str(tmp_path / "models.toml"))
    assert sentence in refused.value.message


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_bytes(b"[a]\nsource = '\xff'")
    with pytest.raises(CheckpointError, match="it is not UTF-8"):
        read_file(path)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_entries(tmp_path)


def test_the_users_entries_go_before_the_packages(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text('[sd-v1-5]\nsource = "/mine"\n[tiny]\nsource = "/tiny"')
    found = read_entries(path)
    assert str(found["sd-v1-5"].source) == "/mine"
    assert found["sd-v1-5"].num_steps is None
    assert {"tiny", "sd-v2-1"} <= found.keys()


def test_the_users_file_need_not_be_there(tmp_path: Path) -> None:
    assert read_entries(tmp_path / "models.toml").items() <= read_file(PACKAGE_FILE).items()


FULL: dict[str, Any] = {
    "source": "o/n",
    "mirrors": ["p/n"],
    "revision": "main",
    "variant": "fp16",
    "family": "sd-2",
    "licence": 'It\'s "mine", über \\',
    "licence_url": "https://example.org/?a=b#c",
    "latent_space": "mine-1",
    "text_space": "mine-2",
    "size": [768, 512],
    "sampler": "dpm++_2m",
    "num_steps": 20,
    "guidance_scale": 5.5,
    "prediction_type": "v_prediction",
    "tokenizer": "/words",
}


class TestWriting:
    def test_every_key_is_written_and_read_again(self, tmp_path: Path) -> None:
        path = tmp_path / "folder" / "models.toml"
        written = write_entry(path, "mine/one.a", FULL)
        assert read_file(path) == {"mine/one.a": written}
        assert {name for name in FULL if getattr(written, name) is None} == set()
        assert (written.size, written.guidance_scale, written.licence) == ((768, 512), 5.5, FULL["licence"])

    def test_what_is_none_is_left_out(self, tmp_path: Path) -> None:
        path = tmp_path / "models.toml"
        write_entry(path, "a", {"source": "o/n", "licence": None})
        assert path.read_text() == '[a]\nsource = "o/n"\n'

    def test_comments_and_other_entries_stay_as_they_are(self, tmp_path: Path) -> None:
        path = tmp_path / "models.toml"
        before = '# mine\n\n[b]  # the second\nsource = "o/b"   # there\n'
        path.write_text(before)
        write_entry(path, "c", {"source": "o/c"})
        assert path.read_text() == before + '\n[c]\nsource = "o/c"\n'

    def test_a_file_without_a_last_newline_is_gone_on_with(self, tmp_path: Path) -> None:
        path = tmp_path / "models.toml"
        path.write_text('[b]\nsource = "o/b"')
        write_entry(path, "c", {"source": "o/c"})
        assert read_file(path).keys() == {"b", "c"}

    def test_a_name_that_is_taken_is_refused_and_nothing_written(self, tmp_path: Path) -> None:
        path = tmp_path / "models.toml"
        write_entry(path, "a", {"source": "o/n"})
        before = path.read_text()
        with pytest.raises(CheckpointError, match="has a model 'a' already; --replace"):
            write_entry(path, "a", {"source": "o/m"})
        assert path.read_text() == before

    @pytest.mark.parametrize("header", ["[a]", "[ a ] # mine", '["a"]'])
    def test_replacing_changes_that_entry_alone(self, tmp_path: Path, header: str) -> None:
        path = tmp_path / "models.toml"
        path.write_text(f'# top\n{header}\nsource = "o/a"\nsize = [\n  512,\n  512,\n]\n\n# about b\n[b]\nsource = "o/b"\n')
        write_entry(path, "a", {"source": "o/new"}, replace=True)
        assert path.read_text() == '# top\n# about b\n[b]\nsource = "o/b"\n\n[a]\nsource = "o/new"\n'

    def test_what_cannot_be_changed_in_place_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "models.toml"
        before = 'a = { source = "o/a" }\n'
        path.write_text(before)
        with pytest.raises(CheckpointError, match="cannot be changed in place; change 'a' by hand"):
            write_entry(path, "a", {"source": "o/new"}, replace=True)
        assert path.read_text() == before

    def test_an_impossible_entry_is_not_written(self, tmp_path: Path) -> None:
        path = tmp_path / "models.toml"
        with pytest.raises(CheckpointError, match="num_steps must be"):
            write_entry(path, "a", {"source": "o/n", "num_steps": 0})
        assert not path.exists()

    def test_a_failure_in_the_middle_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "models.toml"
        write_entry(path, "a", {"source": "o/n"})
        before = path.read_text()

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
            write_entry(path, "b", {"source": "o/n"})
        assert path.read_text() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        real, path = tmp_path / "real.toml", tmp_path / "models.toml"
        real.write_text('[b]\nsource = "o/b"\n')
        path.symlink_to(real)
        write_entry(path, "a", {"source": "o/n"})
        assert path.is_symlink()
        assert read_file(real).keys() == {"a", "b"}

    def test_two_at_a_time_lose_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "models.toml"
        names = [f"model-{number}" for number in range(12)]
        threads = [threading.Thread(target=write_entry, args=(path, name, {"source": "o/n"})) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert read_file(path).keys() == set(names)


def test_families_are_told_apart_by_their_text() -> None:
    assert FAMILIES["sd-1"].latent_space == FAMILIES["sd-2"].latent_space
    assert FAMILIES["sd-1"].text_space != FAMILIES["sd-2"].text_space
