"""The command line: `triptych up`, `demo`, `generate`, `verify`, `serve` and `prepare`."""

from __future__ import annotations

from triptych.cli.commands import app, main

__all__ = ["app", "main"]
