"""The table of option sets on which our samplers agree with diffusers', and what diffusers makes of each.

Run in the reference environment, this stores what diffusers computes, so that `make test` can compare without torch::

    .venv-reference/bin/python -m tests.reference.store_sampling
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch

from triptych.sampling.noise import Purpose, normal

STORED = Path(__file__).resolve().parent.parent / "sampling" / "reference.npz"
SHAPE = (1, 1, 4)
"""Of the stored latents: samplers treat every element alike."""

NUM_STEPS = (1, 2, 3, 25, 50)

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Stable Diffusion 1.x and 2.x."""

LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
"""Ends in almost pure noise."""

SD_1 = SCALED_LINEAR | {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False, "skip_prk_steps": True}
"""The scheduler_config.json of Stable Diffusion 1.5."""

LEADING, TRAILING, LINSPACE = ({"timestep_spacing": name} for name in ("leading", "trailing", "linspace"))
V, SAMPLE = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
ZERO_SNR = LINEAR | TRAILING | V | {"rescale_betas_zero_snr": True}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}

SIGMA_SAMPLERS: list[dict[str, Any]] = [
    SD_1,
    LINEAR,
    SCALED_LINEAR | LEADING | {"steps_offset": 1},
    SCALED_LINEAR | TRAILING,
    SCALED_LINEAR | LINSPACE | V,
    LINEAR | TRAILING | V,
    LINEAR | LEADING | V,
    ZERO_SNR,
]
OPTION_SETS: dict[str, list[dict[str, Any]]] = {
    "ddim": [
        SD_1,
        LINEAR,
        SCALED_LINEAR | TRAILING,
        SCALED_LINEAR | LINSPACE,
        LINEAR | TRAILING | V,
        LINEAR | LEADING | V | {"set_alpha_to_one": False},
        SCALED_LINEAR | TRAILING | SAMPLE,
        ZERO_SNR,
        SD_1 | {"eta": 1.0},
        LINEAR | TRAILING | V | {"eta": 1.0},
        LINEAR | LINSPACE | SAMPLE | {"eta": 0.5},
        # Not eta 1: there diffusers takes the root of a difference of equal float32 numbers, and adds 3e-4 of noise of its own.
        ZERO_SNR | {"eta": 0.5},
    ],
    "euler": [*SIGMA_SAMPLERS, SCALED_LINEAR | SIGMA_MIN, LINEAR | TRAILING | V | SIGMA_MIN, SCALED_LINEAR | SAMPLE],
    "euler_ancestral": SIGMA_SAMPLERS,
    "dpm++_2m": [
        *SIGMA_SAMPLERS,
        SCALED_LINEAR | {"lower_order_final": False},
        SCALED_LINEAR | SIGMA_MIN,
        LINEAR | TRAILING | V | SIGMA_MIN | {"lower_order_final": False},
        SCALED_LINEAR | SAMPLE,
    ],
    "dpm++_2m_karras": [
        SD_1,
        LINEAR | V,
        SCALED_LINEAR | {"lower_order_final": False},
        SCALED_LINEAR | SIGMA_MIN,
        LINEAR | SIGMA_MIN | {"lower_order_final": False},
        SCALED_LINEAR | SAMPLE,
    ],
    "unipc": [
        *SIGMA_SAMPLERS,
        SCALED_LINEAR | SIGMA_MIN,
        LINEAR | TRAILING | V | SIGMA_MIN | {"lower_order_final": False},
        SCALED_LINEAR | SAMPLE,
    ],
    "pndm": [
        SD_1,
        LINEAR,
        SCALED_LINEAR | {"set_alpha_to_one": True},
        SCALED_LINEAR | TRAILING,
        SCALED_LINEAR | LINSPACE,
        LINEAR | TRAILING | V,
        SCALED_LINEAR | LEADING | V | {"steps_offset": 1},
    ],
    "lcm": [SD_1, LINEAR, SCALED_LINEAR | V, SCALED_LINEAR | SAMPLE],
}

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lcm": ("LCMScheduler", {}),
}
NOISE = {
    "euler_ancestral": "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor",
    "lcm": "diffusers.schedulers.scheduling_lcm.randn_tensor",
}
"""Where each draws its own; DDIM is given it."""


def predictions_and_noises(num_evaluations: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What the network is taken to predict, and what noise comes, at each evaluation: any numbers, the same in every run."""
    evaluations = range(num_evaluations)
    predictions = np.stack([normal(1, Purpose.KNOWN_REGION, evaluation, shape) for evaluation in evaluations])
    noises = np.stack([normal(2, Purpose.ANCESTRAL, evaluation, shape) for evaluation in evaluations])
    return predictions, noises


def original(shape: tuple[int, ...]) -> np.ndarray:
    """The known latents of a run that does not begin with noise alone."""
    return normal(3, Purpose.POSTERIOR, 0, shape)


def run_diffusers(
    sampler: str, options: dict[str, Any], num_steps: int, shape: tuple[int, ...], first_step: int = 0
) -> dict[str, np.ndarray]:
    """A whole run of diffusers' scheduler.

    Args:
        options: Of scheduler_config.json, and `eta`.
        shape: Of the latents.
        first_step: Steps left out at the start, as image-to-image does; the latents begin as a known picture that is as noisy.

    Returns:
        `timesteps` (E,); `network_inputs` (E, *shape); `latents` (E + 1, *shape), before each evaluation and after the last.
    """
    config = dict(options)
    eta = config.pop("eta", 0.0)
    name, fixed = SCHEDULERS[sampler]
    scheduler = getattr(diffusers, name).from_config(config | fixed)
    scheduler.set_timesteps(num_steps)
    timesteps = scheduler.timesteps[first_step:]
    predictions, noises = (torch.from_numpy(each) for each in predictions_and_noises(len(timesteps), shape))
    latents = torch.from_numpy(normal(0, Purpose.INITIAL, 0, shape))
    if first_step:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first_step)
        latents = scheduler.add_noise(torch.from_numpy(original(shape)), latents, timesteps[:1])
    else:
        latents = latents * scheduler.init_noise_sigma
    all_latents, network_inputs = [latents], []
    for timestep, prediction, noise in zip(timesteps, predictions, noises, strict=True):
        network_inputs.append(scheduler.scale_model_input(latents, timestep))
        extra = {"eta": eta, "variance_noise": noise if eta else None} if sampler == "ddim" else {}
        with mock.patch(NOISE[sampler], return_value=noise) if sampler in NOISE else nullcontext():
            latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
        all_latents.append(latents)
    return {
        "timesteps": timesteps.numpy().astype(np.float32),
        "network_inputs": torch.stack(network_inputs).numpy(),
        "latents": torch.stack(all_latents).numpy(),
    }


def main() -> None:
    """Writes the stored values anew."""
    cases, timesteps, latents = [], [], []
    for sampler, option_sets in OPTION_SETS.items():
        for options in option_sets:
            for num_steps in NUM_STEPS:
                run = run_diffusers(sampler, options, num_steps, SHAPE)
                cases.append(
                    {"sampler": sampler, "options": options, "num_steps": num_steps, "num_evaluations": len(run["timesteps"])}
                )
                timesteps.append(run["timesteps"])
                latents.append(run["latents"])
    description = {"made_with": f"diffusers {diffusers.__version__}", "cases": cases}
    np.savez_compressed(
        STORED, description=json.dumps(description), timesteps=np.concatenate(timesteps), latents=np.concatenate(latents)
    )


if __name__ == "__main__":
    main()
