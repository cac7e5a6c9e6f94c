"""For how many rows at once the stages' networks are compiled where nobody says so: the one rule.

Each batch size costs a copy of the weights and of the memory between the layers, and seconds or minutes at the start. A small
network gains from large batches; one of Stable Diffusion's size keeps all cores busy with a row or two.
"""

from __future__ import annotations

from collections.abc import Mapping

from triptych.contract import StageName
from triptych.models.config import NetworkConfig

LARGE_WIDTH = 512
"""From this width on a network is large: all of Stable Diffusion's are, and none of vignette's."""

_OF_SMALL: Mapping[StageName, tuple[int, ...]] = {
    StageName.TEXT_ENCODER: (1, 2, 4),
    StageName.DIFFUSION: (1, 2, 4, 8, 16),
    StageName.DECODER: (1, 2, 4, 8),
}
# The two rows of a guided picture; a prompt alone, and one with its negative prompt; a picture.
_OF_LARGE: Mapping[StageName, tuple[int, ...]] = {
    StageName.TEXT_ENCODER: (1, 2),
    StageName.DIFFUSION: (2,),
    StageName.DECODER: (1,),
}


def _is_large(config: NetworkConfig) -> bool:
    """Whether a network is of Stable Diffusion's size."""
    return config.width >= LARGE_WIDTH


def default_batch_sizes(stage: StageName, config: NetworkConfig) -> tuple[int, ...]:
    """Numbers of rows to compile a stage's network for."""
    return (_OF_LARGE if _is_large(config) else _OF_SMALL)[stage]
