"""The samplers by the names that users type, and the plans that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from triptych.errors import CheckpointError, InvalidValue
from triptych.sampling.ddim import ddim
from triptych.sampling.dpmpp_2m import dpmpp_2m
from triptych.sampling.euler import euler
from triptych.sampling.euler_ancestral import euler_ancestral
from triptych.sampling.lcm import ORIGINAL_STEPS, lcm
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
    "lcm": lcm,
}
"""Each takes a ScheduleConfig, a number of steps and `first_step`.

A new sampler is one file, a line here, and lines in the reference table.
"""

OPTIONS: Mapping[str, frozenset[str]] = {"ddim": frozenset({"eta"})}
"""What else a sampler takes, by name."""


def make_plan(sampler: str, config: ScheduleConfig, num_steps: int, *, first_step: int = 0, **options: float) -> Plan:
    """The plan of a denoising.

    Args:
        sampler: One of SAMPLERS.
        config: The network's noise schedule.
        num_steps: At least 1; at most as many as the sampler finds distinct timesteps for.
        first_step: Steps to leave out at the start, fewer than `num_steps`: the plan begins with latents as noisy as after them.
        options: Of the sampler: `eta` (0 to 1) of ddim.

    Raises:
        InvalidValue: No such sampler or option, or an impossible number of steps; the sentence says what is allowed.
    """
    if sampler not in SAMPLERS:
        raise InvalidValue(f"there is no sampler {sampler!r}; there are {', '.join(SAMPLERS)}", param="sampler")
    for name in options:
        if name not in OPTIONS.get(sampler, ()):
            raise InvalidValue(f"the sampler {sampler} takes no {name}", param=name)
    if not 0 <= first_step < max(num_steps, 1):
        raise InvalidValue(f"of {num_steps} steps, {first_step} cannot be left out", param="strength")
    return SAMPLERS[sampler](config, num_steps, first_step=first_step, **options)


def first_step_of(strength: float, num_steps: int) -> int:
    """How many steps to leave out so that a picture is changed by `strength`, as diffusers counts them.

    Args:
        strength: 0 to 1: from nothing of the picture changed to all of it.
        num_steps: Of the whole plan.

    Raises:
        InvalidValue: No step is left, or no such strength.
    """
    if not 0.0 <= strength <= 1.0:
        raise InvalidValue(f"strength must be between 0 and 1, not {strength}", param="strength")
    steps = int(num_steps * strength)
    if steps < 1:
        raise InvalidValue(f"strength {strength} of {num_steps} steps leaves none; raise strength or num_steps", param="strength")
    return num_steps - steps


def named_sampler(scheduler_config: Mapping[str, Any]) -> str | None:
    """The sampler that a `scheduler_config.json` recommends by its class and options; None where it is none of ours."""
    karras = bool(scheduler_config.get("use_karras_sigmas"))
    match scheduler_config.get("_class_name"):
        case "DDIMScheduler" | "DDIMParallelScheduler":
            return "ddim"
        case "PNDMScheduler" if scheduler_config.get("skip_prk_steps", False):
            return "pndm"
        case "EulerDiscreteScheduler" if not karras and _options_are(scheduler_config, _SIGMAS):
            return "euler"
        case "EulerAncestralDiscreteScheduler":
            return "euler_ancestral"
        case "DPMSolverMultistepScheduler" if _options_are(scheduler_config, _DPMPP_2M):
            return "dpm++_2m_karras" if karras else "dpm++_2m"
        case "UniPCMultistepScheduler" if not karras and _options_are(scheduler_config, _UNIPC):
            return "unipc"
        case "LCMScheduler" if _options_are(scheduler_config, _LCM):
            return "lcm"
    return None


REPLACEMENTS: Mapping[str, str] = {
    "DDPMParallelScheduler": "ddim",
    "DDPMScheduler": "ddim",
    "DEISMultistepScheduler": "dpm++_2m",
    "DPMSolverMultistepScheduler": "dpm++_2m",
    "DPMSolverSDEScheduler": "dpm++_2m",
    "DPMSolverSinglestepScheduler": "dpm++_2m",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "dpm++_2m",
    "KDPM2AncestralDiscreteScheduler": "euler_ancestral",
    "KDPM2DiscreteScheduler": "dpm++_2m",
    "LMSDiscreteScheduler": "euler",
    "PNDMScheduler": "pndm",
    "SASolverScheduler": "dpm++_2m",
    "UniPCMultistepScheduler": "unipc",
}
"""What stands in for a class, or for options of a class, that `named_sampler` does not know: a sampler of the same schedule
that comes to the same pictures, or to pictures as good, in as many steps. Where Karras' sigmas are asked for, dpm++_2m is
dpm++_2m_karras. Other classes belong to networks that were trained to be sampled in their way alone."""


def replaced_sampler(scheduler_config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The sampler that a `scheduler_config.json` comes to, and a sentence where it is not the very one that it recommends.

    Raises:
        CheckpointError: It names no class, or one that nothing here can stand in for.
    """
    if (sampler := named_sampler(scheduler_config)) is not None:
        return sampler, None
    name = scheduler_config.get("_class_name")
    if not isinstance(name, str):
        raise CheckpointError("scheduler_config.json names no scheduler: it lacks _class_name")
    if name not in REPLACEMENTS or scheduler_config.get("use_flow_sigmas"):
        raise CheckpointError(
            f"the model was trained to be sampled by {name[:64]}, which nothing here can stand in for; "
            "models of Stable Diffusion 1.x and 2.x that diffusers samples by DDIM, PNDM, Euler or DPM-Solver are served"
        )
    sampler = REPLACEMENTS[name]
    if sampler == "dpm++_2m" and scheduler_config.get("use_karras_sigmas"):
        sampler = "dpm++_2m_karras"
    wanted = f"{name} with options that we do not have" if name in _KNOWN_IN_PART else name
    return sampler, f"the model recommends {wanted}; {sampler} is used in its place"


_KNOWN_IN_PART = {"DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler"}
_LCM = {"original_inference_steps": ORIGINAL_STEPS, "timestep_scaling": 10.0}
_SIGMAS = {"use_exponential_sigmas": False, "use_beta_sigmas": False}
_MULTISTEP = _SIGMAS | {"solver_order": 2, "use_flow_sigmas": False}
_DPMPP_2M = _MULTISTEP | {
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "euler_at_final": False,
    "use_lu_lambdas": False,
}
_UNIPC = _MULTISTEP | {"solver_type": "bh2", "predict_x0": True, "disable_corrector": []}


def _options_are(scheduler_config: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether all options are as wanted; absent and null ones are diffusers' defaults, which are wanted."""
    return all(scheduler_config.get(name) in (None, value) for name, value in wanted.items())
