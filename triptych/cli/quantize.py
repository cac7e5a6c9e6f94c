"""`triptych quantize`: a model's networks in int8, by what they see while it makes pictures."""

from __future__ import annotations

from pathlib import Path

from triptych.cli.console import say, shown_count
from triptych.cli.models import read_registry, stage_settings
from triptych.errors import TriptychError

STAGES = ("diffusion", "decoder")


def quantize_model(name: str, *, stage: str | None, samples: int, prompts: Path | None) -> None:
    """Quantizes what is not yet, and says where it is.

    Args:
        stage: Whose network; None is both.
        samples: Rows of the U-Net's inputs to go by.
        prompts: A file with one prompt a line.

    Raises:
        TriptychError: It cannot be done; one sentence.
    """
    read_registry()  # this machine may have the base install only
    from triptych.stages.calibration import quantize_model as quantize

    settings = stage_settings(name, precision="auto")
    wanted = [each for each in STAGES if stage in (None, each)]
    lines = None if prompts is None else _read_prompts(prompts)
    with shown_count("pictures to go by") as show:
        outcomes = list(quantize(settings, wanted, samples=samples, prompts=lines, on_progress=show))
    for outcome in outcomes:
        what = f"the {outcome.name} of {name} for {outcome.inputs}"
        if outcome.was_there:
            say(f"{what} is quantized already; remove {outcome.folder} to have it done anew")
        else:
            say(f"{what} is quantized: {outcome.folder}")


def _read_prompts(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TriptychError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None
    if not (prompts := tuple(line.strip() for line in lines if line.strip())):
        raise TriptychError(f"{path} has no prompts, of which it wants one a line")
    return prompts
