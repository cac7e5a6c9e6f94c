"""The topology file: what it may say, and how it is written."""

from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path

import pytest

from triptych.errors import Conflict, StartError
from triptych.gateway import topology_file
from triptych.gateway.topology_file import (
    ModelEntry,
    StageEntry,
    parse_topology,
    read_topology,
    replace_text,
    with_stage,
    write_new,
)

TEXT = """\
# ours
[[models]]
name = "vignette"  # the small one
text_encoder = "http://cpu:8001"
diffusion = ["http://a:8002", "http://b:8002"]  # the panel
decoder = "http://t4:8003/base"

# the same ends
[[models]]
text_encoder = "http://cpu:8001"
diffusion = "http://c:8002"
decoder = "http://t4:8003/base"
image_encoder = ["http://t4:8004"]
previous = {diffusion = ["http://old:8002"], image_encoder = []}
"""

SHORT = '[[models]]\ntext_encoder = "http://a"\ndiffusion = "http://b"\ndecoder = "http://c"\n'


class TestParse:
    def test_models_in_their_order(self) -> None:
        first, second = parse_topology(TEXT)
        assert first == ModelEntry(
            name="vignette",
            text_encoder=("http://cpu:8001",),
            diffusion=("http://a:8002", "http://b:8002"),
            decoder=("http://t4:8003/base",),
        )
        assert (second.name, second.image_encoder) == ("", ("http://t4:8004",))
        assert second.previous == {"diffusion": ("http://old:8002",), "image_encoder": ()}

    def test_what_was_before_makes_no_other_model(self) -> None:
        (before,), (after,) = parse_topology(SHORT), parse_topology(SHORT + 'previous = {decoder = "http://d"}\n')
        assert before == after
        assert hash(before) == hash(after)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("models = ", "the topology is not valid TOML"),
            ("", "names no model"),
            ("models = []", "names no model"),
            ("models = 3", "names no model"),
            ('model = "x"', "unknown key 'model'"),
            (SHORT + 'difusion = "http://x"', "model 1 of the topology has an unknown key 'difusion'; there are name, text_enc"),
            (SHORT + "name = 3", "the name of model 1 of the topology must be a text"),
            (SHORT + 'name = " "', "the name of model 1"),
            (SHORT.replace("decoder", "image_encoder"), "model 1 of the topology does not say where its decoder is"),
            (SHORT.replace('"http://b"', "[]"), "diffusion of model 1 of the topology must be an address or a list"),
            (SHORT.replace('"http://b"', "8002"), "diffusion of model 1 of the topology must be an address or a list"),
            (SHORT.replace('"http://b"', "[8002]"), "diffusion of model 1 of the topology must be like http://127.0.0.1:8001"),
            (SHORT.replace("http://b", "b:8002"), "diffusion of model 1 of the topology must be like http://127.0.0.1:8001"),
            (SHORT.replace("http://b", "http://"), "must be like"),
            (
                SHORT.replace('"http://b"', '["http://b", "http://b"]'),
                "diffusion of model 1 of .* names an address twice",
            ),
            (SHORT + 'previous = {name = "x"}', "previous of model 1 of the topology must be a table of addresses by stage"),
            (SHORT + "previous = {decoder = []}", "previous decoder of model 1 of the topology must be an address"),
            (2 * (SHORT + 'name = "x"\n'), "two models of the topology are named 'x'"),
            (2 * SHORT.replace("http://b", "http://me:secret@b"), "two models of the topology are named by .* at http://b;"),
        ],
    )
    def test_what_is_impossible_is_one_sentence(self, text: str, words: str) -> None:
        with pytest.raises(StartError, match=words) as error:
            parse_topology(text)
        assert "secret" not in error.value.message

    def test_a_file_that_is_not_there_is_a_sentence_too(self, tmp_path: Path) -> None:
        with pytest.raises(StartError, match=r"topology .*gone\.toml cannot be read: No such file"):
            read_topology(tmp_path / "gone.toml")
        (tmp_path / "latin.toml").write_bytes(b"# \xe9")
        with pytest.raises(StartError, match="not UTF-8"):
            read_topology(tmp_path / "latin.toml")
        (tmp_path / "bad.toml").write_text("x = 1")
        with pytest.raises(StartError, match=r"bad\.toml has an unknown key 'x'"):
            read_topology(tmp_path / "bad.toml")


class TestWithStage:
    def test_one_stage_changes_and_everything_else_stays_to_the_byte(self) -> None:
        after = with_stage(TEXT, place=0, stage=StageEntry.DIFFUSION, to=("http://new:8002",))
        expected = TEXT.replace('["http://a:8002", "http://b:8002"]', '["http://new:8002"]').replace(
            '8003/base"\n\n# the', '8003/base"\nprevious = {diffusion = ["http://a:8002", "http://b:8002"]}\n\n# the', 1
        )
        assert after == expected

    def test_what_was_before_is_kept_for_each_stage(self) -> None:
        text = TEXT
        for stage, to in ((StageEntry.DECODER, "http://d"), (StageEntry.DIFFUSION, "http://e"), (StageEntry.DECODER, "http://f")):
            text = with_stage(text, place=1, stage=stage, to=(to,))
        entry = parse_topology(text)[1]
        assert (entry.decoder, entry.diffusion) == (("http://f",), ("http://e",))
        assert entry.previous == {"decoder": ("http://d",), "diffusion": ("http://c:8002",), "image_encoder": ()}

    def test_the_image_encoder_may_come_and_go(self) -> None:
        there = with_stage(SHORT, place=0, stage=StageEntry.IMAGE_ENCODER, to=("http://i",))
        (entry,) = parse_topology(there)
        assert (entry.image_encoder, entry.previous) == (("http://i",), {"image_encoder": ()})
        (entry,) = parse_topology(with_stage(there, place=0, stage=StageEntry.IMAGE_ENCODER, to=()))
        assert (entry.image_encoder, entry.previous) == ((), {"image_encoder": ("http://i",)})

    def test_models_in_one_line_too(self) -> None:
        text = 'models = [{text_encoder = "http://a", diffusion = "http://b", decoder = "http://c"}]\n'
        (entry,) = parse_topology(with_stage(text, place=0, stage=StageEntry.TEXT_ENCODER, to=("http://z",)))
        assert (entry.text_encoder, entry.previous) == (("http://z",), {"text_encoder": ("http://a",)})


class TestWriting:
    def test_a_new_file_says_what_it_was_made_of(self, tmp_path: Path) -> None:
        topology = parse_topology(TEXT)
        write_new(tmp_path / "t.toml", topology)
        text, read = read_topology(tmp_path / "t.toml")
        assert read == topology
        assert text.startswith("# ")
        assert os.listdir(tmp_path) == ["t.toml"]

    def test_a_file_that_is_there_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "t.toml"
        path.write_text(TEXT)
        write_new(path, parse_topology(SHORT))
        assert path.read_text() == TEXT

    def test_a_folder_that_is_not_there_is_a_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(StartError, match="cannot be written: No such file"):
            write_new(tmp_path / "gone" / "t.toml", parse_topology(SHORT))

    def test_replaced_at_once_with_its_mode_and_behind_its_link(self, tmp_path: Path) -> None:
        real, link = tmp_path / "real.toml", tmp_path / "link.toml"
        real.write_text(TEXT)
        real.chmod(0o640)
        link.symlink_to(real)
        before = real.stat().st_ino
        replace_text(link, before=TEXT, after=SHORT)
        assert link.is_symlink()
        assert real.read_text() == SHORT
        assert real.stat().st_ino != before, "written over, a reader could see half of it"
        assert stat.S_IMODE(real.stat().st_mode) == 0o640
        assert sorted(os.listdir(tmp_path)) == ["link.toml", "real.toml"]

    def test_a_file_that_somebody_changed_meanwhile_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "t.toml"
        path.write_text(SHORT)
        with pytest.raises(Conflict, match="changed by somebody else"):
            replace_text(path, before=TEXT, after="")
        assert path.read_text() == SHORT

    def test_two_writers_wait_for_each_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "t.toml"
        path.write_text("0")
        done: list[str] = []
        replace = os.replace

        def slowly(*paths: object) -> None:
            if not done:
                done.append("first")
                second.start()
                second.join(0.2)  # it must still be waiting
                assert second.is_alive()
            replace(*paths)

        def write_too() -> None:
            with pytest.raises(Conflict, match="changed by somebody else"):
                replace_text(path, before="0", after="2")
            done.append("second")

        second = threading.Thread(target=write_too)
        monkeypatch.setattr(os, "replace", slowly)
        replace_text(path, before="0", after="1")
        second.join(10)
        assert done == ["first", "second"]
        assert path.read_text() == "1"

    def test_what_cannot_be_replaced_is_as_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "t.toml"
        path.write_text(TEXT)

        def fail(*paths: object) -> None:
            raise OSError(16, "Device or resource busy")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(Conflict, match=r"cannot be replaced: Device or resource busy; .* the folder must be mounted"):
            replace_text(path, before=TEXT, after=SHORT)
        assert path.read_text() == TEXT
        assert os.listdir(tmp_path) == ["t.toml"]


def test_the_example_in_the_docstring_can_be_read() -> None:
    assert topology_file.__doc__
    example = re.search(r"    \[\[models\]\].*?\n\n", topology_file.__doc__, re.DOTALL)
    assert example
    (entry,) = parse_topology(re.sub(r"^    ", "", example.group(), flags=re.MULTILINE))
    assert entry.name == "vignette"
    assert entry.previous == {"diffusion": ("http://127.0.0.1:8022",)}
