"""Pure mathematics on numpy arrays: noise schedules, timesteps, guidance, samplers and noise.

`make_plan` turns a sampler's name, a network's noise schedule and a number of steps into a `Plan`; `plan.py` says how one is run.
"""

from __future__ import annotations

from triptych.sampling.guidance import guide
from triptych.sampling.noise import NOISE_VERSION, Purpose, normal
from triptych.sampling.plan import Plan
from triptych.sampling.samplers import SAMPLERS, make_plan, named_sampler, replaced_sampler
from triptych.sampling.schedule import PredictionType, ScheduleConfig, TimestepSpacing

__all__ = [
    "NOISE_VERSION",
    "SAMPLERS",
    "Plan",
    "PredictionType",
    "Purpose",
    "ScheduleConfig",
    "TimestepSpacing",
    "guide",
    "make_plan",
    "named_sampler",
    "normal",
    "replaced_sampler",
]
