"""The samplers by the names that users type, and the plans that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from triptych.errors import InvalidValue
from triptych.sampling.ddim import ddim
from triptych.sampling.dpmpp_2m import dpmpp_2m
from triptych.sampling.euler import euler
from triptych.sampling.euler_ancestral import euler_ancestral
from triptych.sampling.plan import Plan
from triptych.sampling.pndm import pndm
from triptych.sampling.schedule import ScheduleConfig
from triptych.sampling.unipc import unipc

SAMPLERS: Mapping[str, Callable[..., Plan]] = {
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "dpm++_2m": dpmpp_2m,
    "dpm++_2m_karras": partial(dpmpp_2m, karras=True),
    "unipc": unipc,
    "pndm": pndm,
}
"""Each takes a ScheduleConfig and a number of steps. A new sampler is one file, a line here, and lines in the reference table."""

OPTIONS: Mapping[str, frozenset[str]] = {"ddim": frozenset({"eta"})}
"""What else a sampler takes, by name."""


def make_plan(sampler: str, config: ScheduleConfig, num_steps: int, **options: float) -> Plan:
    """The plan of a denoising.

    Args:
        sampler: One of SAMPLERS.
        config: The network's noise schedule.
        num_steps: At least 1; at most as many as the sampler finds distinct timesteps for.
        options: Of the sampler: `eta` (0 to 1) of ddim.

    Raises:
        InvalidValue: No such sampler or option, or an impossible number of steps; the sentence says what is allowed.
    """
    if sampler not in SAMPLERS:
        raise InvalidValue(f"there is no sampler {sampler!r}; there are {', '.join(SAMPLERS)}", param="sampler")
    for name in options:
        if name not in OPTIONS.get(sampler, ()):
            raise InvalidValue(f"the sampler {sampler} takes no {name}", param=name)
    return SAMPLERS[sampler](config, num_steps, **options)


def named_sampler(scheduler_config: Mapping[str, Any]) -> str | None:
    """The sampler that a `scheduler_config.json` recommends by its class and options; None where it is none of ours."""
    karras = bool(scheduler_config.get("use_karras_sigmas"))
    match scheduler_config.get("_class_name"):
        case "DDIMScheduler":
            return "ddim"
        case "PNDMScheduler":
            return "pndm"
        case "EulerDiscreteScheduler" if not karras:
            return "euler"
        case "EulerAncestralDiscreteScheduler":
            return "euler_ancestral"
        case "DPMSolverMultistepScheduler" if _options_are(scheduler_config, _DPMPP_2M):
            return "dpm++_2m_karras" if karras else "dpm++_2m"
        case "UniPCMultistepScheduler" if not karras and _options_are(scheduler_config, _UNIPC):
            return "unipc"
    return None


_MULTISTEP = {"solver_order": 2, "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_flow_sigmas": False}
_DPMPP_2M = _MULTISTEP | {
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "euler_at_final": False,
    "use_lu_lambdas": False,
}
_UNIPC = _MULTISTEP | {"solver_type": "bh2", "predict_x0": True, "disable_corrector": []}


def _options_are(scheduler_config: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(scheduler_config.get(name, value) == value for name, value in wanted.items())
