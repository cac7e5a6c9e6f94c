from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from triptych.cli.commands import app
from triptych.errors import InvalidValue
from triptych.gateway.settings import GatewaySettings
from triptych.serving.keys import find_key
from triptych.serving.settings import read_settings


def test_a_new_key_opens_the_door_that_its_entry_is_given_to(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = CliRunner().invoke(app, ["keys", "new", "laptop"])
    assert shown.exit_code == 0
    (key,) = re.findall(r"^[\w-]{43}$", shown.output, re.MULTILINE)
    (entry,) = re.findall(r"^laptop:sha256:[0-9a-f]{64}$", shown.output, re.MULTILINE)
    monkeypatch.setenv("TRIPTYCH_API_KEYS", f"another,{entry}")
    found = find_key(read_settings(GatewaySettings).demanded_keys(), key.encode())
    assert found is not None
    assert found.name == "laptop"


def test_an_impossible_name_is_refused() -> None:
    ended = CliRunner().invoke(app, ["keys", "new", "a,b"])
    assert isinstance(ended.exception, InvalidValue)
    assert ended.output == ""
