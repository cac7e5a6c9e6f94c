"""`python -m triptych.cli`, which is how a command starts further services with the Python that it runs on itself."""

from __future__ import annotations

from triptych.cli import main

main()
