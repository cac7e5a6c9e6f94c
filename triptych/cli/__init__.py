"""The command line: `triptych up`, `demo`, `generate` and `serve`."""

from __future__ import annotations

from triptych.cli.commands import app, main

__all__ = ["app", "main"]
