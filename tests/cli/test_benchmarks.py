from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from triptych.cli.benchmarks import CHECKOUT, become_benchmark
from triptych.errors import TriptychError


def test_an_installed_package_says_that_benchmarks_are_not_in_it(tmp_path: Path) -> None:
    with pytest.raises(TriptychError, match="part of the repository"):
        become_benchmark("benchmarks.timing", [], checkout=tmp_path)


def test_options_are_passed_on_to_a_process_that_knows_the_checkout(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    became = []
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append(arguments))
    assert run("bench", "--profile", "quick", "--peers").code == 0
    ((_, command, environment),) = became
    assert command[1:] == ["-m", "benchmarks.timing", "--profile", "quick", "--peers"]
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(CHECKOUT), "elsewhere"]
    assert (CHECKOUT / "pyproject.toml").exists()
