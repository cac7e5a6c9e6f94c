"""Ctrl-C for processes of tests."""

from __future__ import annotations

import signal


def hear_interrupts() -> None:
    """A shell that runs the tests in its background, and a worker of theirs, ignore SIGINT, and so does what they start.

    For `preexec_fn` of a process that shall not.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
