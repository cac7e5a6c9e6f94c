"""Diffusers' StableDiffusionPipeline, or its networks on OpenVINO: `python -m benchmarks.timing.peers.run_diffusers TASK`.

The sampler is DDIM in all settings. `compiled` takes bfloat16 where the processor multiplies it by itself, else float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from benchmarks.line_processes import Lines
from benchmarks.timing.peers.stopwatches import Stopwatches

PROMPT = "a red circle on a blue background"
GUIDANCE_SCALE = 7.5
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def has_bfloat16() -> bool:
    """Whether the processor multiplies it by itself."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return not _BFLOAT16_FLAGS.isdisjoint(flags.split())


def load_pipeline(model: str, setting: str) -> tuple[Any, torch.dtype]:
    bfloat16 = setting == "bfloat16" or (setting == "compiled" and has_bfloat16())
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        model, torch_dtype=dtype, safety_checker=None, requires_safety_checker=False
    )
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, dtype


def compile_networks(pipeline: Any) -> None:
    pipeline.unet = torch.compile(pipeline.unet)
    pipeline.vae.decode = torch.compile(pipeline.vae.decode)


def move_to_openvino(pipeline: Any, task: dict[str, Any]) -> str:
    """The three networks, converted from diffusers' own, at fixed shapes.

    Returns:
        The precision that OpenVINO chose.
    """
    import openvino as ov

    core = ov.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": task["threads"], "PERFORMANCE_HINT": "LATENCY"})
    latents = torch.zeros(task["num_images"], pipeline.unet.config.in_channels, task["height"] // 8, task["width"] // 8)
    tokens = torch.zeros(1, pipeline.tokenizer.model_max_length, dtype=torch.int64)
    width = pipeline.unet.config.cross_attention_dim
    context = torch.zeros(2 * len(latents), tokens.shape[1], width)

    def compiled(module: torch.nn.Module, *example: torch.Tensor) -> Any:
        model = ov.convert_model(module, example_input=example)
        model.reshape({model.input(number): list(each.shape) for number, each in enumerate(example)})
        return core.compile_model(model, "CPU")

    text_encoder = compiled(_TextEncoder(pipeline.text_encoder), tokens)
    unet = compiled(_UNet(pipeline.unet), latents.repeat(2, 1, 1, 1), torch.tensor(1.0), context)
    decoder = compiled(_Decoder(pipeline.vae), latents)

    def encode(tokens: torch.Tensor, **_: Any) -> Any:
        return (torch.from_numpy(text_encoder([tokens])[0].copy()),)

    def predict(latents: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> Any:
        return (torch.from_numpy(unet([latents, timestep.float(), encoder_hidden_states])[0]),)

    def decode(latents: torch.Tensor, **_: Any) -> Any:
        return (torch.from_numpy(decoder([latents])[0]),)

    pipeline.text_encoder.forward, pipeline.unet.forward, pipeline.vae.decode = encode, predict, decode
    return str(unet.get_property("INFERENCE_PRECISION_HINT"))


class _Wrapped(torch.nn.Module):  # type: ignore[misc]
    """A network with tensors alone as its inputs and its output."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network


class _TextEncoder(_Wrapped):
    def forward(self, tokens: torch.Tensor) -> Any:
        return self.network(tokens, return_dict=False)[0]


class _UNet(_Wrapped):
    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> Any:
        return self.network(latents, timestep, context, return_dict=False)[0]


class _Decoder(_Wrapped):
    def forward(self, latents: torch.Tensor) -> Any:
        return self.network.decode(latents, return_dict=False)[0]


def main() -> None:
    """Is ready after one picture, which compiles what is to be compiled."""
    lines, watches = Lines(), Stopwatches()
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    torch.set_grad_enabled(False)
    pipeline, dtype = load_pipeline(task["model"], task["setting"])
    precision = str(dtype).removeprefix("torch.")
    if task["setting"] == "compiled":
        compile_networks(pipeline)
    elif task["setting"] == "openvino":
        precision = move_to_openvino(pipeline, task)
    pipeline.encode_prompt = watches.around("encode", pipeline.encode_prompt)
    pipeline.vae.decode = watches.around("decode", pipeline.vae.decode)
    whole = watches.around("whole", pipeline)

    def picture(asked: dict[str, Any]) -> dict[str, float]:
        whole(
            PROMPT,
            width=asked["width"],
            height=asked["height"],
            num_inference_steps=asked["num_steps"],
            guidance_scale=GUIDANCE_SCALE,
            num_images_per_prompt=asked["num_images"],
            generator=torch.Generator().manual_seed(asked["seed"]),
        )
        seconds = watches.take()
        rest = seconds["whole"] - seconds["encode"] - seconds["decode"]
        return {"encode": seconds["encode"], "diffuse": rest, "decode": seconds["decode"]}

    picture({**task, "num_steps": task["warm_up_steps"], "seed": 0})
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__}
    lines.say({"precision": precision, "versions": versions})
    lines.answer(picture)


if __name__ == "__main__":
    main()
