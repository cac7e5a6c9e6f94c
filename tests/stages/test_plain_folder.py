"""A diffusers folder with nothing of ours in it, as others write it, served by the three stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.stages.options import Options
from tests.tiny_models import write_tiny_model
from triptych.contract import check_fit
from triptych.stages.decoder import DecoderStage
from triptych.stages.diffusion import DiffusionStage
from triptych.stages.local_stage import Identity, LocalStage
from triptych.stages.text_encoder import TextEncoderStage


def rewrite(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def plain_folder(folder: Path, network: str) -> Path:
    """The tiny model as somebody else's, with the weights of one network alone."""
    write_tiny_model(folder)
    (folder / "triptych.json").unlink()
    rewrite(folder / "unet" / "config.json", sample_size=4)
    rewrite(folder / "scheduler" / "scheduler_config.json", _class_name="DEISMultistepScheduler")
    for path in folder.rglob("*.safetensors"):
        if path.parent.name != network:
            path.unlink()
    return folder


async def test_each_stage_is_served_from_its_own_weights_and_the_three_fit(tmp_path: Path) -> None:
    def options(network: str) -> Options:
        folder = plain_folder(tmp_path / network / "dream", network)
        return Options(model=str(folder), cache_folder=tmp_path / "cache", batch_sizes=(1,))

    async def identity_of(stage: LocalStage[Identity]) -> Identity:
        stage.start()
        try:
            return await stage.identity()
        finally:
            stage.close()

    text_encoder = await identity_of(TextEncoderStage(options("text_encoder")))
    diffusion = await identity_of(DiffusionStage(options("unet")))
    decoder = await identity_of(DecoderStage(options("vae")))
    check_fit(text_encoder, diffusion, decoder)
    assert text_encoder.model == diffusion.model == decoder.model == "dream"
    assert diffusion.sizes == decoder.sizes == ((32, 32),)
    assert (diffusion.samplers[0], diffusion.default_num_steps, diffusion.default_guidance_scale) == ("dpm++_2m", 50, 7.5)
    assert diffusion.warnings == ("the model recommends DEISMultistepScheduler; dpm++_2m is used in its place",)
