"""What models are called, and what is known of them: models.toml of the package, and the user's own over it. No keras here."""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import platformdirs

from triptych.errors import CheckpointError

PACKAGE_FILE = Path(__file__).with_name("models.toml")

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*(/[A-Za-z0-9][\w.+-]*)*", re.ASCII)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)

KERAS_CV = "keras-cv:"
PICKLES = (".ckpt", ".bin", ".pt", ".pth")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the models of a family share, where they do not say otherwise.

    Attributes:
        latent_space, text_space: See `ModelFacts`. Stable Diffusion 2.x kept the VAE of 1.x, and took another text encoder.
        context_width: Of that text encoder.
    """

    latent_space: str
    text_space: str
    context_width: int


FAMILIES: Mapping[str, Family] = {
    "sd-1": Family(latent_space="sd-1", text_space="clip-vit-l-14", context_width=768),
    "sd-2": Family(latent_space="sd-1", text_space="openclip-vit-h-14", context_width=1024),
}


class SourceKind(StrEnum):
    """Where a model comes from."""

    FOLDER = "folder"
    FILE = "file"
    HUB = "hub"
    HUB_FILE = "hub file"
    KERAS_CV = "keras-cv"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place that a model can be had from.

    Attributes:
        location: A path; a Hub id, `owner/name`; or keras-cv's preset.
        file: The name of a single file in the Hub's repository.
    """

    kind: SourceKind
    location: str
    file: str = ""

    @property
    def path(self) -> Path:
        assert self.kind in (SourceKind.FOLDER, SourceKind.FILE), "only these two are places on this machine"
        return Path(self.location)

    @property
    def is_gone(self) -> bool:
        """Whether it is a place on this machine where nothing is."""
        return self.kind in (SourceKind.FOLDER, SourceKind.FILE) and not self.path.exists()

    def __str__(self) -> str:
        match self.kind:
            case SourceKind.HUB_FILE:
                return f"{self.location}:{self.file}"
            case SourceKind.KERAS_CV:
                return KERAS_CV + self.location
        return self.location


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model by name. What is None is as the checkpoint itself says.

    Attributes:
        mirrors: Where the source can be had when it is no longer there itself, tried in this order.
        revision: Branch, tag or commit on the Hub.
        variant: Of the weights' files, such as `fp16`.
        size: (width, height) in pixels of a picture.
        tokenizer: Folder of the vocabulary, instead of the checkpoint's own; for a single file, OpenAI's list of merges too.
        anonymous: Whether the name is but the path by which somebody asked: what it is called, it says itself.
    """

    name: str
    source: Source
    mirrors: tuple[str, ...] = ()
    revision: str | None = None
    variant: str | None = None
    family: str | None = None
    licence: str | None = None
    licence_url: str | None = None
    latent_space: str | None = None
    text_space: str | None = None
    size: tuple[int, int] | None = None
    sampler: str | None = None
    num_steps: int | None = None
    guidance_scale: float | None = None
    prediction_type: str | None = None
    tokenizer: Path | None = None
    anonymous: bool = False

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """Where to ask for it on the Hub, in this order."""
        on_the_hub = self.source.kind in (SourceKind.HUB, SourceKind.HUB_FILE)
        return (self.source.location, *self.mirrors) if on_the_hub else ()

    @property
    def spaces(self) -> dict[str, str]:
        """Its `latent_space` and `text_space`, as far as the entry or its family tells them."""
        family = FAMILIES.get(self.family or "")
        told = {name: getattr(self, name) or getattr(family, name, None) for name in ("latent_space", "text_space")}
        return {name: space for name, space in told.items() if space is not None}


def user_models_file() -> Path:
    """The user's own models.toml, which need not be there."""
    return platformdirs.user_config_path("triptych") / "models.toml"


def read_entries(user_file: Path | None = None) -> dict[str, ModelEntry]:
    """All models by name: the package's, and over them those of the user's file, if there is one.

    A model of the package's own whose folder is not in it has not been released, and is no model yet.

    Raises:
        CheckpointError: A file cannot be read or is not TOML, or an entry is impossible; file, entry and key are named.
    """
    own = user_file or user_models_file()
    released = {name: entry for name, entry in read_file(PACKAGE_FILE).items() if not entry.source.is_gone}
    return {**released, **(read_file(own) if own.exists() else {})}


def read_file(path: Path) -> dict[str, ModelEntry]:
    """The entries of one file.

    Raises:
        CheckpointError: As `read_entries`.
    """
    return entries_of(_read_text(path), path)


def entries_of(text: str, path: Path) -> dict[str, ModelEntry]:
    """The entries of a file's content; paths in it are relative to the file."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CheckpointError(f"{path} is not TOML: {error}") from None
    return {name: entry_of(name, table, path) for name, table in tables.items()}


def entry_of(name: str, table: Any, path: Path) -> ModelEntry:
    """One entry as it stands in a file.

    Raises:
        CheckpointError: One sentence that names file, entry and key.
    """
    where = f"{path}: model {name!r}"
    if not NAME.fullmatch(name):
        raise CheckpointError(f"{where}: a name is made of letters, digits and . _ + -, with / between parts")
    if not isinstance(table, Mapping):
        raise CheckpointError(f"{where} must be a table, with a source at least")
    if unknown := table.keys() - _READERS.keys():
        raise CheckpointError(f"{where}: there is no key {min(unknown)!r}; there are {', '.join(_READERS)}")
    if "source" not in table:
        raise CheckpointError(f"{where} has no source")
    values = {}
    for key, value in table.items():
        try:
            values[key] = _READERS[key](value, path.parent)
        except ValueError as error:
            raise CheckpointError(f"{where}: {key} must be {error}, not {value!r}") from None
    entry = ModelEntry(name=name, **values)
    if entry.mirrors and not entry.hub_ids:
        raise CheckpointError(f"{where}: mirrors are for a source on the Hub, which {str(entry.source)!r} is not")
    return entry


def write_entry(path: Path, name: str, table: Mapping[str, Any], *, replace: bool = False) -> ModelEntry:
    """Writes one entry into the user's file, which is made if it is missing; all else in it stays as it is, comments too.

    Args:
        table: As it is to stand in the file; what is None is left out.
        replace: Whether an entry of that name in the file gives way.

    Raises:
        CheckpointError: The file has that name already, the entry is impossible, or the file cannot be written.
    """
    given = {key: value for key, value in table.items() if value is not None}
    path = path.resolve()
    entry = entry_of(name, given, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            before = _read_text(path) if path.exists() else ""
            present = entries_of(before, path)
            if name in present and not replace:
                raise CheckpointError(f"{path} has a model {name!r} already; --replace writes it anew")
            after = _with_table(_without_table(before, name), name, given)
            if not _says(after, path, {**present, name: entry}):
                raise CheckpointError(f"{path} is written in a way that cannot be changed in place; change {name!r} by hand")
            _write_text(path, after)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None
    return entry


def local_source(path: Path) -> Source | None:
    """The model at a path, if there is anything."""
    if path.is_dir():
        return Source(kind=SourceKind.FOLDER, location=str(path))
    return Source(kind=SourceKind.FILE, location=str(path)) if path.is_file() else None


def hub_source(text: str) -> Source | None:
    """What `owner/name` or `owner/name:file.safetensors` stands for, if it is one of them."""
    location, colon, file = text.partition(":")
    if not HUB_ID.fullmatch(location) or (colon and not re.fullmatch(r"[^:\\]+\.safetensors", file)):
        return None
    return Source(kind=SourceKind.HUB_FILE if colon else SourceKind.HUB, location=location, file=file)


def _source(value: Any, folder: Path) -> Source:
    text = _text(value, folder)
    if text.startswith(KERAS_CV):
        return Source(kind=SourceKind.KERAS_CV, location=text.removeprefix(KERAS_CV))
    if text.startswith(("/", "./", "../", "~")):
        path = _path(text, folder)
        return local_source(path) or Source(kind=_kind_by_name(path), location=str(path))
    if (source := hub_source(text)) is None:
        raise ValueError(
            "owner/name or owner/name:file.safetensors on the Hub, keras-cv:preset, or a path that begins with /, ./, ../ or ~"
        )
    return source


def _kind_by_name(path: Path) -> SourceKind:
    """Of what is not there now."""
    return SourceKind.FILE if path.suffix in (".safetensors", *PICKLES) else SourceKind.FOLDER


def _text(value: Any, folder: Path) -> str:
    if not (isinstance(value, str) and value and value.isprintable()):
        raise ValueError("a text")
    return value


def _path(value: Any, folder: Path) -> Path:
    return Path(os.path.normpath(folder / Path(_text(value, folder)).expanduser()))


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[Any, Path], str]:
    def read(value: Any, folder: Path) -> str:
        if not (isinstance(value, str) and pattern.fullmatch(value)):
            raise ValueError(what)
        return value

    return read


def _one_of(*choices: str) -> Callable[[Any, Path], str]:
    def read(value: Any, folder: Path) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return str(value)

    return read


def _mirrors(value: Any, folder: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and HUB_ID.fullmatch(each) for each in value):
        raise ValueError("a list of owner/name on the Hub")
    return tuple(value)


def _size(value: Any, folder: Path) -> tuple[int, int]:
    if not (isinstance(value, list) and len(value) == 2 and all(_is_whole(side) and side > 0 for side in value)):
        raise ValueError("[width, height] in pixels")
    return value[0], value[1]


def _steps(value: Any, folder: Path) -> int:
    if not (_is_whole(value) and 1 <= value <= 1000):
        raise ValueError("a whole number from 1 to 1000")
    return int(value)


def _guidance(value: Any, folder: Path) -> float:
    if not ((_is_whole(value) or isinstance(value, float)) and 1 <= value <= 100):
        raise ValueError("a number from 1 to 100")
    return float(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Every key of an entry and what reads it, given the folder that paths are relative to. It raises ValueError with what is allowed.
_READERS: Mapping[str, Callable[[Any, Path], Any]] = {
    "source": _source,
    "mirrors": _mirrors,
    "revision": _matching(REVISION, "a branch, a tag or a commit"),
    "variant": _matching(re.compile(r"[A-Za-z0-9_]+"), "letters and digits, such as fp16"),
    "family": _one_of(*FAMILIES),
    "licence": _text,
    "licence_url": _matching(re.compile(r"https?://[!-~]+"), "an address that begins with https://"),
    "latent_space": _text,
    "text_space": _text,
    "size": _size,
    "sampler": _text,
    "num_steps": _steps,
    "guidance_scale": _guidance,
    "prediction_type": _one_of(*PREDICTION_TYPES),
    "tokenizer": _path,
}
assert _READERS.keys() == {field.name for field in fields(ModelEntry)} - {"name", "anonymous"}, "every field of an entry is read"


def _says(text: str, path: Path, wanted: Mapping[str, ModelEntry]) -> bool:
    try:
        return entries_of(text, path) == wanted
    except CheckpointError:
        return False


def _with_table(text: str, name: str, table: Mapping[str, Any]) -> str:
    lines = [f"[{_key(name)}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    separator = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    return text + separator + "\n".join(lines) + "\n"


def _without_table(text: str, name: str) -> str:
    """The file without the lines from the header of a table up to the next header, or to comments right above it."""
    header = re.compile(rf"^[ \t]*\[[ \t]*({re.escape(_key(name))}|{re.escape(_value(name))})[ \t]*\][^\n]*\n?", re.MULTILINE)
    found = header.search(text)
    if found is None:
        return text
    following = re.compile(r"^(?:[ \t]*#[^\n]*\n)*[ \t]*\[", re.MULTILINE).search(text, found.end())
    return text[: found.start()] + (text[following.start() :] if following else "")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    """As TOML writes it: JSON's way, where texts are printable."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not TOML: it is not UTF-8") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def _write_text(path: Path, text: str) -> None:
    """All of it or nothing, whenever the machine stops."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else who asks so changes anything in the folder meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
