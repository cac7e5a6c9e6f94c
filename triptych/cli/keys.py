"""`triptych keys`: keys of callers, drawn here and shown once."""

from __future__ import annotations

from triptych.cli.console import say
from triptych.errors import InvalidValue


def new_key(name: str) -> None:
    """Draws a key and says what to do with it; nothing is kept of it.

    Raises:
        InvalidValue: The name is none that fits into a setting.
    """
    from triptych.serving.keys import draw_key

    try:
        key, entry = draw_key(name)
    except ValueError as error:
        raise InvalidValue(str(error), param="name") from None
    say(f"the key, for whoever calls; it is not shown again:\n{key}")
    say(f"\nits entry, for TRIPTYCH_API_KEYS, TRIPTYCH_ADMIN_TOKEN or a stage's TRIPTYCH_TOKEN:\n{entry}")
