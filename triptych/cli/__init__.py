"""The command line: `triptych up`, `demo`, `generate`, `verify`, `serve`, `prepare`, `models`, `pull` and `check`."""

from __future__ import annotations

from triptych.cli.commands import app, main

__all__ = ["app", "main"]
