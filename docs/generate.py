"""Writes the pages of docs/ that are made from the code: settings.md and cli.md (`make fix`)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings
from typer import Typer

from triptych.cli import app
from triptych.gateway.settings import GatewaySettings
from triptych.serving.settings import ServerSettings, StageSettings

FOLDER = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/generate.py from the code (`make fix`); do not edit. -->\n\n"


def settings_page() -> str:
    """Every setting of every service, field by field."""
    return "\n".join(
        [
            f"{NOTE}# Settings\n",
            "A service reads its settings from environment variables when its app is made. It refuses to start on an impossible",
            "value, with a sentence that names the variable. A variable that is set to nothing counts as not set.\n",
            f"## Every service\n\n{_settings_table(ServerSettings)}",
            f"## Stages\n\nThe three are told alike.\n\n{_settings_table(StageSettings, ServerSettings)}",
            "## Gateway\n\nAlso those of `all_in_one`, where the stages' settings hold as well.\n",
            _settings_table(GatewaySettings, ServerSettings),
        ]
    )


def _settings_table(settings: type[BaseSettings], base: type[BaseSettings] | None = None) -> str:
    """The fields of some settings; with a base those that it has not, or has with another default."""
    prefix = settings.model_config.get("env_prefix", "")
    known = {name: field.default for name, field in base.model_fields.items()} if base else {}
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in settings.model_fields.items():
        if name not in known or field.default != known[name]:
            rows.append(
                f"| `{prefix}{name.upper()}` | {_default(field.default)} | {_cell(field.description or '')}{_choices(field)} |"
            )
    return "\n".join(rows) + "\n"


def _choices(field: FieldInfo) -> str:
    if get_origin(field.annotation) is not Literal:
        return ""
    return " One of " + ", ".join(f"`{choice}`" for choice in get_args(field.annotation)) + "."


def _default(value: object) -> str:
    """How a default is written in an environment variable; nothing where there is none, or none that is the same everywhere."""
    if value is PydanticUndefined or value is None or value in ((), ""):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def cli_page() -> str:
    """Every command of `triptych`, as `--help` shows it."""
    sections = [f"## triptych {' '.join(words)}\n\n```\n{_help(*words)}```\n" for words in _commands(app)]
    return "\n".join([f"{NOTE}# The command line\n\n```\n{_help()}```\n", *sections])


def _commands(commands: Typer, *group: str) -> Iterator[tuple[str, ...]]:
    """The words of every command, those of groups at the end."""
    for command in commands.registered_commands:
        assert command.callback is not None
        yield (*group, command.name or command.callback.__name__)
    for each in commands.registered_groups:
        assert each.typer_instance is not None and each.name is not None
        yield from _commands(each.typer_instance, *group, each.name)


def _help(*command: str) -> str:
    """The help of a command as plain text, the same on every terminal."""
    plain = {"TYPER_USE_RICH": "0", "COLUMNS": "80", "PYTHONPATH": str(FOLDER.parent)}
    run = "from triptych.cli import app; app(prog_name='triptych')"
    arguments = [sys.executable, "-c", run, *command, "--help"]
    return subprocess.run(arguments, env=plain, capture_output=True, check=True, text=True).stdout


PAGES = {"settings.md": settings_page, "cli.md": cli_page}


def main() -> None:
    """Writes the pages."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
