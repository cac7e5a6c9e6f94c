"""What a network computes in: the names that there are, and what is taken where a processor lacks one."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum

from triptych.engines.hardware import has_bfloat16, has_float16
from triptych.errors import EngineError

_log = logging.getLogger(__name__)


class Precision(StrEnum):
    """What the network computes in. Weights on disk, inputs and outputs are what they are, whatever is chosen.

    A network in `int8` is one that was quantized before, see `quantized.py`. What of it was not computes in one of the others.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"


FLOATS = (Precision.FLOAT32, Precision.BFLOAT16, Precision.FLOAT16)


AUTO = "auto"

# Another half precision takes as little time and memory. bfloat16 may stand in for float16: it has fewer digits, and overflows
# later. float16 may not stand in for bfloat16: it overflows above 65504, where who asked for bfloat16 had the range of float32.
_NEXT_BEST: Mapping[Precision, Sequence[Precision]] = {
    Precision.FLOAT16: (Precision.BFLOAT16, Precision.FLOAT32),
    Precision.BFLOAT16: (Precision.FLOAT32,),
    Precision.INT8: (Precision.BFLOAT16, Precision.FLOAT32),
}


# The first NVIDIA generation that multiplies in bfloat16, Ampere, by its compute capability; older ones do in float16.
_BFLOAT16_SINCE = 8


def precisions_of_cpu() -> tuple[Precision, ...]:
    """What this CPU has instructions for: in anything else it is slower than in float32."""
    has = {Precision.FLOAT32: True, Precision.BFLOAT16: has_bfloat16(), Precision.FLOAT16: has_float16()}
    return tuple(precision for precision, there in has.items() if there)


def precisions_of_gpu(generation: int | None) -> tuple[Precision, ...]:
    """What a GPU computes in, the best first.

    Args:
        generation: The first number of NVIDIA's compute capability; None where there is none, or it is not known.
    """
    if generation is None or generation >= _BFLOAT16_SINCE:
        return Precision.BFLOAT16, Precision.FLOAT16, Precision.FLOAT32
    return Precision.FLOAT16, Precision.FLOAT32


def chosen_precision(
    wanted: str,
    *,
    engine: str,
    known: Collection[Precision] = FLOATS,
    offered: Collection[Precision],
    best: Precision,
) -> Precision:
    """The precision of a name; where the processor lacks it the next best, which the log says.

    Args:
        wanted: A name, or `auto`.
        engine: Its name, for sentences.
        known: What the engine can be asked for, on whatever machine.
        offered: What this machine computes in; `float32` among them.
        best: What `auto` is here.

    Raises:
        EngineError: The engine knows no such precision.
    """
    if wanted == AUTO:
        return best
    if wanted not in known:
        raise EngineError(f"the engine {engine} has no precision {wanted!r}; choose {', '.join(known)} or auto")
    precision = Precision(wanted)
    if precision in offered:
        return precision
    taken = next(other for other in _NEXT_BEST[precision] if other in offered)
    _log.warning("this machine does not compute in %s: the next best is taken, %s", precision, taken)
    return taken
