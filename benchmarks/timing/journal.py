"""What was measured so far, a line of JSON each, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triptych.errors import StartError

Record = dict[str, Any]


class Journal:
    """The file. Its first line says what is measured; every other one is a unit that was.

    Args:
        path: Of the file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.header: Record | None = None
        self.records: list[Record] = []
        if path.exists():
            self._read()

    def begin(self, header: Mapping[str, Any]) -> None:
        """Writes the first line, or sees that the one that is there asks for the same.

        Raises:
            StartError: It asks for something else.
        """
        if self.header is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.header = dict(header)
            self._write(self.header)
        elif (differing := _differing(self.header["options"], header["options"])) is not None:
            raise StartError(f"{self._path.parent.name} was begun with another {differing}: give the same, or another folder")

    def add(self, record: Mapping[str, Any]) -> None:
        """Keeps a unit, on the disk when this returns."""
        self.records.append(dict(record))
        self._write(record)

    def calmest(self, unit: str) -> Record:
        """What was measured of a unit, when the machine was least busy with others."""
        return min(self._of(unit), key=lambda record: record["busy"]["others_share"])

    def attempts(self, unit: str) -> int:
        return len(self._of(unit))

    def _of(self, unit: str) -> list[Record]:
        return [record for record in self.records if record["unit"] == unit]

    def _read(self) -> None:
        """A line without an end is of a process that was killed while it wrote: it is as if it had never begun."""
        content = self._path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if complete != content:
            os.truncate(self._path, len(complete))
        lines = [json.loads(line) for line in complete.splitlines()]
        if lines:
            self.header, *self.records = lines

    def _write(self, record: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first option that is not what it was."""
    now = json.loads(json.dumps(now))
    return next((name for name in sorted({*before, *now}) if before.get(name) != now.get(name)), None)
