"""The topology file: which models there are and where their stages live, as TOML.

::

    [[models]]                                    # the first is the default
    name = "vignette"                             # left out: the name that its diffusion stage gives itself
    text_encoder = "http://127.0.0.1:8001"        # one address is a list of one
    diffusion = ["http://127.0.0.1:8002", "http://127.0.0.1:8012"]
    decoder = "http://127.0.0.1:8003"
    # image_encoder: left out: the decoder's addresses
    previous = {diffusion = ["http://127.0.0.1:8022"]}    # written by a swap, for its way back

It is the one source of truth. Gateways that share it see the same; whoever writes it writes all of it at once.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

import httpx2
import tomlkit

from triptych.errors import Conflict, StartError

Addresses: TypeAlias = tuple[str, ...]
"""Of a stage's replicas."""


class StageEntry(StrEnum):
    """What a model has addresses of: the three stages, and the image encoder where it is not with the decoder."""

    TEXT_ENCODER = "text_encoder"
    DIFFUSION = "diffusion"
    DECODER = "decoder"
    IMAGE_ENCODER = "image_encoder"


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model of a topology.

    Attributes:
        name: Empty where its diffusion stage names it.
        image_encoder: Empty where it is with the decoder.
        previous: What the last swap of a stage replaced. Two entries that differ in nothing else are the same model.
    """

    name: str = ""
    text_encoder: Addresses
    diffusion: Addresses
    decoder: Addresses
    image_encoder: Addresses = ()
    previous: Mapping[StageEntry, Addresses] = field(default_factory=dict, compare=False)

    def at(self, stage: StageEntry) -> Addresses:
        addresses: Addresses = getattr(self, stage)
        return addresses

    def with_stage(self, stage: StageEntry, to: Addresses) -> ModelEntry:
        """The same model with one stage elsewhere; where it was is `previous`."""
        changes: dict[str, Any] = {stage: to}
        return replace(self, previous={**self.previous, stage: self.at(stage)}, **changes)


Topology: TypeAlias = tuple[ModelEntry, ...]

KEYS = ("name", *StageEntry, "previous")


def read_topology(path: Path) -> tuple[str, Topology]:
    """The file's text, and what it says.

    Raises:
        StartError: It cannot be read, or says something that is impossible; one sentence.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StartError(f"the topology {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StartError(f"the topology {path} is not UTF-8 text") from None
    return text, parse_topology(text, what=f"the topology {path}")


def parse_topology(text: str, *, what: str = "the topology") -> Topology:
    """See `read_topology`.

    Args:
        what: What the text is, for the sentence of the error.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StartError(f"{what} is not valid TOML: {error}") from None
    if unknown := [key for key in document if key != "models"]:
        raise StartError(f"{what} has an unknown key {unknown[0]!r}; it has [[models]] and nothing else")
    tables = document.get("models")
    if not (isinstance(tables, list) and tables and all(isinstance(table, dict) for table in tables)):
        raise StartError(f"{what} names no model: each is a table [[models]], the first one is the default")
    topology = tuple(_entry(table, f"model {place} of {what}") for place, table in enumerate(tables, start=1))
    _refuse_doubles(topology, what)
    return topology


def _entry(table: Mapping[str, Any], what: str) -> ModelEntry:
    for key in table:
        if key not in KEYS:
            raise StartError(f"{what} has an unknown key {key!r}; there are {', '.join(KEYS)}")
    name = table.get("name", "")
    if "name" in table and not (isinstance(name, str) and name.strip() and name.isprintable()):
        raise StartError(f"the name of {what} must be a text; without one the model goes by its diffusion stage's name")
    for stage in (StageEntry.TEXT_ENCODER, StageEntry.DIFFUSION, StageEntry.DECODER):
        if stage not in table:
            raise StartError(f"{what} does not say where its {stage} is: {stage} = 'http://...'")
    previous = table.get("previous", {})
    if not isinstance(previous, dict) or not set(previous) <= set(StageEntry):
        raise StartError(f"previous of {what} must be a table of addresses by stage; there are {', '.join(StageEntry)}")
    return ModelEntry(
        name=name,
        **{stage: _addresses(table[stage], f"{stage} of {what}") for stage in StageEntry if stage in table},
        previous={
            StageEntry(stage): _addresses(value, f"previous {stage} of {what}", may_be_none=stage == StageEntry.IMAGE_ENCODER)
            for stage, value in previous.items()
        },
    )


def _addresses(value: Any, what: str, *, may_be_none: bool = False) -> Addresses:
    addresses = [value] if isinstance(value, str) else value
    if not isinstance(addresses, list) or not (addresses or may_be_none):
        raise StartError(f"{what} must be an address or a list of addresses")
    for address in addresses:
        if not is_address(address):
            raise StartError(f"{what} must be like http://127.0.0.1:8001")
    if len(set(addresses)) < len(addresses):
        raise StartError(f"{what} names an address twice")
    return tuple(addresses)


def is_address(value: Any) -> bool:
    """Whether a stage can be asked there."""
    try:
        url = httpx2.URL(value)
    except (httpx2.InvalidURL, TypeError):
        return False
    return url.scheme in ("http", "https") and bool(url.host)


def shown_address(address: str) -> str:
    """An address as logs and callers may see it: without a password."""
    return str(httpx2.URL(address).copy_with(username=None, password=None))


def _refuse_doubles(topology: Topology, what: str) -> None:
    names = [entry.name for entry in topology if entry.name]
    unnamed = [entry.diffusion for entry in topology if not entry.name]
    for each in (names, unnamed):
        for place, one in enumerate(each):
            if one in each[:place]:
                said = f"named {one!r}" if isinstance(one, str) else f"named by the diffusion stage at {shown_address(one[0])}"
                raise StartError(f"two models of {what} are {said}; every model has a name of its own")


# Writing


def write_new(path: Path, topology: Topology) -> None:
    """Writes a file that was not there. Where another process was faster, its file stays.

    Raises:
        StartError: It cannot be written, or could not be read again.
    """
    text = _render(topology)
    parse_topology(text, what=f"the topology {path}")
    try:
        with _temporary_beside(path, text) as temporary:
            os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise StartError(f"the topology {path} cannot be written: {error.strerror}") from None


def replace_text(path: Path, *, before: str, after: str) -> None:
    """Replaces the file's text all at once: whoever reads it sees the one or the other, also after the machine has failed.

    Raises:
        Conflict: The text is not `before` any more, or the file cannot be written. It is as it was.
    """
    # A link, such as a mounted configuration's, stays one.
    path = path.resolve()
    try:
        with _alone_in(path.parent):
            if path.read_text(encoding="utf-8") != before:
                raise Conflict(f"the topology {path} was changed by somebody else meanwhile; try again")
            with _temporary_beside(path, after, mode=path.stat().st_mode) as temporary:
                os.replace(temporary, path)
            _sync(path.parent)
    except OSError as error:
        raise Conflict(
            f"the topology {path} cannot be replaced: {error.strerror}; its folder must be writable, "
            "and in a container the folder must be mounted, not the file alone"
        ) from None


def with_stage(text: str, *, place: int, stage: StageEntry, to: Addresses) -> str:
    """The file's text after a swap, its comments and everything else as they are.

    Args:
        place: Of the model, from 0.
        stage: What is exchanged.
        to: Its new addresses; none puts the image encoder back to the decoder.
    """
    document = tomlkit.parse(text)
    table: Any = document["models"][place]
    before = table.get(stage, [])
    with _before_what_trails(table):
        previous = table.setdefault("previous", tomlkit.inline_table())
        previous[stage] = _array((before,) if isinstance(before, str) else tuple(before))
        if to:
            table[stage] = _array(to)
        else:
            del table[stage]
    return tomlkit.dumps(document)


@contextmanager
def _before_what_trails(table: Any) -> Iterator[None]:
    """What is added to a table goes before the blank lines and comments at its end, which belong to the table that follows."""
    body = table.value.body
    trailing: list[Any] = []
    while body and body[-1][0] is None:
        trailing.insert(0, body.pop())
    yield
    body.extend(trailing)


def _array(addresses: Addresses) -> Any:
    array = tomlkit.array()
    array.extend(map(str, addresses))
    return array


def _render(topology: Topology) -> str:
    document = tomlkit.document()
    document.add(tomlkit.comment("Which models there are, and where their stages live: docs/topology.md."))
    models = tomlkit.aot()
    for entry in topology:
        table = tomlkit.table()
        if entry.name:
            table["name"] = entry.name
        for stage in StageEntry:
            if entry.at(stage):
                table[stage] = _array(entry.at(stage))
        models.append(table)
    document["models"] = models
    return tomlkit.dumps(document)


@contextmanager
def _temporary_beside(path: Path, text: str, *, mode: int | None = None) -> Iterator[str]:
    """A file in the same folder that holds the text, on the disk; gone afterwards unless it was renamed."""
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            if mode is not None:
                os.fchmod(file.fileno(), mode & 0o777)
            file.flush()
            os.fsync(file.fileno())
        yield name
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keeps other gateways of this machine from writing at the same time."""
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
