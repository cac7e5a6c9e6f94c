"""`triptych swap`: another stage in a model's place, at a gateway that is running."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.cli.console import say, waiting_for
from triptych.client import Client
from triptych.errors import InvalidValue


def swap_stage(
    stage: str,
    *,
    to: Sequence[str],
    rollback: bool,
    model: str | None,
    url: str,
    admin_token: str | None,
    timeout_seconds: float,
) -> None:
    """Has the gateway check the new stage and swap it in, and says what was done.

    Raises:
        TriptychError: It was refused; nothing has changed.
    """
    if bool(to) is rollback:
        raise InvalidValue("say either where the new stage is, with --to, or --rollback", param="to")
    with (
        Client(url, api_key=admin_token, timeout_seconds=timeout_seconds) as client,
        waiting_for(f"checking the {stage} that is to come"),
    ):
        done = client.swap(stage, to, model=model, rollback=rollback)
    before, now = (", ".join(done[each]) or "its decoder's place" for each in ("before", "now"))
    say(f"{done['model']}: {done['stage']} from {before} to {now}")
