"""Compiled networks on disk: a folder each, named by the sha256 of everything that decides what is in it.

A folder is filled under another name and then renamed, so that it is there as a whole or not at all, however many processes
fill it at once. Whoever uses one holds a shared lock on it for as long as the process lives, and `prune` leaves it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.errors import EngineError

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_DIGEST_BYTES = 32

_in_use: dict[Path, int] = {}
"""Folders that this process uses: the open files that hold the locks."""


def find_or_fill(cache_folder: Path, name: str, key: Mapping[str, Any], fill: Callable[[Path], None]) -> tuple[Path, bool]:
    """The folder of the key, and whether it was there already.

    Args:
        cache_folder: Made if it is missing.
        name: For people: how the folder's name begins.
        key: As JSON has it.
        fill: Writes the files into an empty folder; called where the folder is missing or damaged.

    Raises:
        EngineError: The cache folder cannot be written.
    """
    canonical, folder = _canonical(key), _folder(cache_folder, name, key)
    if _use(folder):
        return folder, True
    if folder.exists():
        if _use(folder):  # another process finished it between the two looks
            return folder, True
        _log.warning("the compiled network in %s is damaged and is made anew", folder)
        shutil.rmtree(folder)
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache_folder))
    except OSError as error:
        raise EngineError(f"compiled networks cannot be kept in {cache_folder}: {error}; choose another cache folder") from error
    try:
        fill(unfinished)
        _write_manifest(unfinished, json.loads(canonical))
        _rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _use(folder)
    return folder, False


def find(cache_folder: Path, name: str, key: Mapping[str, Any]) -> Path | None:
    """The folder of the key; None where `find_or_fill` would fill it."""
    folder = _folder(cache_folder, name, key)
    return folder if _use(folder) else None


def prune(cache_folder: Path, most_bytes: int) -> None:
    """Removes compiled networks, the least recently used first, until the rest take no more than so many bytes.

    Those that a process uses stay, whatever they take.
    """
    used = {path.parent: path.stat().st_mtime for path in cache_folder.glob(f"[!.]*/{MANIFEST}")}
    sizes = {folder: sum(_sizes(folder).values()) for folder in used}
    surplus = sum(sizes.values()) - most_bytes
    for folder in sorted(used, key=used.__getitem__):
        if surplus <= 0:
            return
        if _remove_unless_used(folder):
            _log.info("the compiled network in %s was removed: the cache may take %d bytes", folder, most_bytes)
            surplus -= sizes[folder]


def keep_bytes(path: Path, content: bytes) -> None:
    """Adds a file to a folder of the cache; a folder that cannot be written stays as it is, for it is whole without."""
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)
        Path(file.name).chmod(0o644)  # a temporary file is for one user alone, the cache may be for several
        os.replace(file.name, path)
    except OSError as error:
        _log.warning("%s is not kept: %s", path, error)


def kept_bytes(path: Path) -> NDArray[np.uint8] | None:
    """What `keep_bytes` wrote, mapped into memory; None where it is missing or damaged.

    The array may be written to: the file will not know.
    """
    try:
        file = np.memmap(path, np.uint8, mode="c")
    except (FileNotFoundError, ValueError):  # ValueError: it is empty
        return None
    digest, content = file[:_DIGEST_BYTES], file[_DIGEST_BYTES:]
    return content if hashlib.sha256(content.data).digest() == digest.tobytes() else None


def code_digest(package: str) -> str:
    """sha256 of a package's own modules, without importing it: a changed network is another network."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is no package"
    content = hashlib.sha256()
    for path in sorted(Path(spec.submodule_search_locations[0]).glob("*.py")):
        content.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, indent=1)


def _folder(cache_folder: Path, name: str, key: Mapping[str, Any]) -> Path:
    return cache_folder / f"{name}-{hashlib.sha256(_canonical(key).encode()).hexdigest()[:32]}"


def _use(folder: Path) -> bool:
    """Whether the folder is there as a whole. Then it is in use from now on."""
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    with contextlib.suppress(OSError):  # a file system without locks has no prune either
        fcntl.flock(file, fcntl.LOCK_SH)
    if not _is_whole(folder):
        os.close(file)
        return False
    with contextlib.suppress(OSError):  # a cache that is only read has no order of use
        os.utime(folder / MANIFEST)
    if (before := _in_use.get(folder)) is not None:
        os.close(before)
    _in_use[folder] = file
    return True


def _remove_unless_used(folder: Path) -> bool:
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as removed:
            folder.rename(Path(removed) / folder.name)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file, by its path in the folder."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def _write_manifest(folder: Path, key: Any) -> None:
    (folder / MANIFEST).write_text(json.dumps({"key": key, "files": _sizes(folder)}, indent=1), encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _rename(unfinished: Path, folder: Path) -> None:
    unfinished.chmod(0o755)  # like the files of `keep_bytes`
    try:
        unfinished.rename(folder)
    except OSError:
        if not _is_whole(folder):  # else another process was faster, and theirs is as good
            raise
