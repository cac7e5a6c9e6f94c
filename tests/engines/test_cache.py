from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_models import ROOT
from triptych.engines.cache import MANIFEST, code_digest, find_or_fill, keep_bytes, kept_bytes, prune
from triptych.errors import EngineError


def fill(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "network").write_bytes(b"weights")


def refuse(folder: Path) -> None:
    raise AssertionError("filled again")


def test_a_folder_is_filled_once(cache_folder):
    first, found_first = find_or_fill(cache_folder, "toy", {"a": 1}, fill)
    again, found_again = find_or_fill(cache_folder, "toy", {"a": 1}, refuse)

    assert (found_first, found_again) == (False, True)
    assert first == again
    assert first.name.startswith("toy-")
    assert (first / "deep" / "network").read_bytes() == b"weights"
    assert list(cache_folder.iterdir()) == [first]


def test_another_key_is_another_folder(cache_folder):
    one, _ = find_or_fill(cache_folder, "toy", {"a": 1, "b": 2}, fill)
    same, _ = find_or_fill(cache_folder, "toy", {"b": 2, "a": 1}, refuse)
    other, _ = find_or_fill(cache_folder, "toy", {"a": 1, "b": 3}, fill)
    assert one == same != other


@pytest.mark.parametrize("name", ["deep/network", "manifest.json"])
def test_a_damaged_folder_is_filled_anew(cache_folder, caplog, name):
    folder, _ = find_or_fill(cache_folder, "toy", {}, fill)
    (folder / name).write_bytes(b"{")

    with caplog.at_level(logging.WARNING):
        _, found = find_or_fill(cache_folder, "toy", {}, fill)

    assert not found
    assert (folder / "deep" / "network").read_bytes() == b"weights"
    assert "is damaged and is made anew" in caplog.text


def test_a_failed_filling_leaves_nothing(cache_folder):
    def fail(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        find_or_fill(cache_folder, "toy", {}, fail)
    assert list(cache_folder.iterdir()) == []


def test_of_two_processes_that_fill_the_same_folder_the_first_one_wins(cache_folder):
    def fill_while_another_does(folder: Path) -> None:
        find_or_fill(cache_folder, "toy", {}, lambda other: (other / "winner").write_bytes(b"1") and None)
        fill(folder)

    folder, found = find_or_fill(cache_folder, "toy", {}, fill_while_another_does)

    assert not found
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "winner"]
    assert list(cache_folder.iterdir()) == [folder]


def test_a_folder_that_another_process_finishes_meanwhile_is_taken(cache_folder, monkeypatch):
    """Finished after it was looked for, and before it is asked whether it is there at all."""
    exists = Path.exists

    def finished_by_another(folder: Path) -> bool:
        if folder.name.startswith("toy-"):
            monkeypatch.undo()
            find_or_fill(cache_folder, "toy", {"a": 1}, fill)
        return exists(folder)

    monkeypatch.setattr(Path, "exists", finished_by_another)
    folder, found = find_or_fill(cache_folder, "toy", {"a": 1}, refuse)
    assert found
    assert (folder / "deep" / "network").read_bytes() == b"weights"


def test_a_cache_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"cannot be kept in .*file.*; choose another cache folder"):
        find_or_fill(tmp_path / "file" / "cache", "toy", {}, fill)


def test_bytes_are_kept(tmp_path):
    path = tmp_path / "compiled" / "1"
    assert kept_bytes(path) is None
    keep_bytes(path, b"machine code")
    kept = kept_bytes(path)
    assert kept is not None
    assert kept.tobytes() == b"machine code"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("damage", [b"", b"short", bytes(32), bytes(60)])
def test_damaged_bytes_are_not_returned(tmp_path, damage):
    path = tmp_path / "compiled" / "1"
    keep_bytes(path, b"machine code")
    path.write_bytes(damage)
    assert kept_bytes(path) is None


def test_bytes_that_cannot_be_kept_are_only_a_warning(tmp_path, caplog):
    (tmp_path / "compiled").touch()
    with caplog.at_level(logging.WARNING):
        keep_bytes(tmp_path / "compiled" / "1", b"machine code")
    assert "is not kept" in caplog.text


def test_changed_code_has_another_digest(tmp_path, monkeypatch):
    package = tmp_path / "some_package_of_networks"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "unet.py").write_text("width = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = code_digest("some_package_of_networks")
    assert code_digest("some_package_of_networks") == before

    (package / "unet.py").write_text("width = 2\n", encoding="utf-8")
    assert code_digest("some_package_of_networks") != before


# How much is kept


def filled_by_another_process(cache_folder: Path, *names: str) -> list[Path]:
    """The least recently used first. That process has ended."""
    command = [sys.executable, "-m", "tests.engines.test_cache", str(cache_folder), *names]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    folders = [Path(line) for line in printed.splitlines()]
    for age, folder in enumerate(reversed(folders)):
        os.utime(folder / MANIFEST, (1e9 - age, 1e9 - age))
    return folders


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_was_not_used_for_longest_goes_first(cache_folder: Path):
    old, middle, new = filled_by_another_process(cache_folder, "old", "middle", "new")
    prune(cache_folder, size(old) + size(middle) + size(new))
    assert old.exists()
    prune(cache_folder, size(middle) + size(new))
    assert sorted(cache_folder.iterdir()) == sorted([middle, new])
    prune(cache_folder, 0)
    assert list(cache_folder.iterdir()) == []


def test_what_is_used_stays_and_is_the_newest(cache_folder: Path):
    used, other = filled_by_another_process(cache_folder, "used", "other")
    find_or_fill(cache_folder, "used", {}, refuse)
    prune(cache_folder, size(used))
    assert list(cache_folder.iterdir()) == [used]
    prune(cache_folder, 0)
    assert used.exists()
    assert not other.exists()


def test_what_was_filled_here_is_used(cache_folder: Path):
    folder, _ = find_or_fill(cache_folder, "toy", {}, fill)
    prune(cache_folder, 0)
    assert folder.exists()


def test_what_went_is_made_anew(cache_folder: Path):
    (folder,) = filled_by_another_process(cache_folder, "toy")
    prune(cache_folder, 0)
    assert find_or_fill(cache_folder, "toy", {}, fill) == (folder, False)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(find_or_fill(Path(sys.argv[1]), name, {}, fill)[0])  # noqa: T201
