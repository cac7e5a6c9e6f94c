"""Diffusers' StableDiffusionPipeline in float32, in a process of its own.

::

    python -m tests.full.run_pipeline CHECKPOINT FOLDER       reads noise.npy and task.json in FOLDER, writes theirs.npz there
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import diffusers
import numpy as np
import torch


def main() -> None:
    """Writes contexts, latents and pixels."""
    torch.set_grad_enabled(False)
    checkpoint, folder = map(Path, sys.argv[1:])
    task = json.loads((folder / "task.json").read_text())
    noise = torch.from_numpy(np.load(folder / "noise.npy")).permute(0, 3, 1, 2)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32, safety_checker=None)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    prompt, negative_prompt = task["prompts"]
    started = time.monotonic()
    contexts = pipeline.encode_prompt(prompt, "cpu", 1, True, negative_prompt)
    latents = pipeline(
        prompt_embeds=contexts[0],
        negative_prompt_embeds=contexts[1],
        latents=noise,
        num_inference_steps=task["num_steps"],
        guidance_scale=task["guidance_scale"],
        height=task["size"],
        width=task["size"],
        output_type="latent",
    ).images
    images = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    pixels = pipeline.image_processor.postprocess(images, output_type="np")
    np.savez(
        folder / "theirs.npz",
        context=torch.cat(contexts[:2]).numpy(),
        latents=latents.permute(0, 2, 3, 1).numpy(),
        pixels=(pixels * 255).round().astype(np.uint8),
        seconds=time.monotonic() - started,
    )


if __name__ == "__main__":
    main()
