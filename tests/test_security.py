"""docs/security.md says what is checked where, and by which test it is shown: those tests and files exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "`tests/" in line]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+(?:::\w+)?))?`", PAGE)))


def names_in(path: Path) -> set[str]:
    """The tests of a file, those of classes as `Class::test`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + each.name for each in members if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda part: part.rpartition("/")[2])
def test_a_test_that_the_page_names_exists(path: str, name: str) -> None:
    assert (ROOT / path).is_file()
    assert not name or name in names_in(ROOT / path)


def test_every_promise_of_the_page_names_a_test() -> None:
    table = PAGE.partition("| promise | where | shown by |\n|---|---|---|\n")[2].partition("\n\n")[0]
    promises = table.splitlines()
    assert len(promises) > 20
    assert [line for line in promises if line not in ROWS] == []


def test_a_file_of_the_code_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(triptych/[\w/]+\.py)`", PAGE))
    assert len(named) > 8
    assert [path for path in named if not (ROOT / path).is_file()] == []
