"""Folders as diffusers and transformers themselves write them: whole, in half precision, in bfloat16, in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DEISMultistepScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.tiny_models import TEXT_ENCODER, UNET, VAE, write_tiny_model
from triptych.checkpoints.checkpoint import Network, load_network
from triptych.checkpoints.diffusers_folder import DiffusersFolder

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def pipeline(tokenizer: Path, dtype: torch.dtype, scheduler: Any) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    parts = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER.to_dict())),
        "unet": UNet2DConditionModel(sample_size=4, **UNET.to_dict()),
        "vae": AutoencoderKL(sample_size=32, **VAE.to_dict()),
    }
    return StableDiffusionPipeline(
        **{name: part.to(dtype) for name, part in parts.items()},
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny") / "tokenizer"


@pytest.mark.parametrize(
    ("dtype", "variant", "max_shard_size"),
    [
        (torch.float32, None, None),
        (torch.float16, "fp16", None),
        (torch.float16, "fp16", "30KB"),
        (torch.bfloat16, None, "30KB"),
    ],
    ids=["whole", "half", "half in shards", "bfloat16 in shards"],
)
def test_what_they_write_is_read_to_the_last_bit(
    tokenizer: Path, tmp_path: Path, dtype: torch.dtype, variant: str | None, max_shard_size: str | None
) -> None:
    pipe = pipeline(tokenizer, dtype, PNDMScheduler(skip_prk_steps=True, steps_offset=1, **SCHEDULE))
    folder = tmp_path / "model"
    pipe.save_pretrained(folder, variant=variant, safe_serialization=True)
    if max_shard_size:
        for name in ("text_encoder", "unet", "vae"):
            for path in (folder / name).glob("*.safetensors"):
                path.unlink()
            getattr(pipe, name).save_pretrained(folder / name, variant=variant, max_shard_size=max_shard_size)
        assert len(list(folder.glob("unet/*-of-*.safetensors"))) > 1
        assert len(list(folder.glob("text_encoder/*-of-*.safetensors"))) > 1
    for network, part in ((Network.TEXT_ENCODER, "text_encoder"), (Network.UNET, "unet"), (Network.VAE_DECODER, "vae")):
        ours = load_network(DiffusersFolder(folder), network)
        state = getattr(pipe, part).state_dict()
        for layer in ours.layers:
            for variable in layer.weights:
                key = f"{layer.name}.{'bias' if variable.name in ('bias', 'beta') else 'weight'}"
                theirs = state[key if key in state else key.removeprefix("text_model.")].to(torch.float32).numpy()
                if variable.name == "kernel":
                    theirs = theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs.T
                np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), theirs)


def test_what_they_write_says_what_it_is(tokenizer: Path, tmp_path: Path) -> None:
    scheduler = DEISMultistepScheduler(prediction_type="v_prediction", steps_offset=1, **SCHEDULE)
    pipeline(tokenizer, torch.float32, scheduler).save_pretrained(tmp_path / "model")
    files = DiffusersFolder(tmp_path / "model")
    assert (files.unet, files.vae, files.text_encoder) == (UNET, VAE, TEXT_ENCODER)
    assert (files.facts.sizes, files.facts.sampler) == (((32, 32),), "dpm++_2m")
    assert files.facts.warnings == ("the model recommends DEISMultistepScheduler; dpm++_2m is used in its place",)
    assert files.scheduler["prediction_type"] == "v_prediction"


def test_old_options_of_a_scheduler_are_read_as_their_pipeline_reads_them(tokenizer: Path, tmp_path: Path) -> None:
    written = write_tiny_model(tmp_path / "old")
    (written / "triptych.json").unlink()
    path = written / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "PNDMScheduler", "skip_prk_steps": True, "clip_sample": True, **SCHEDULE}))
    scheduler = PNDMScheduler.from_pretrained(written, subfolder="scheduler")
    with pytest.warns(FutureWarning, match="steps_offset"):
        theirs = pipeline(tokenizer, torch.float32, scheduler).scheduler.config
    ours = DiffusersFolder(written).scheduler
    assert theirs["steps_offset"] == ours["steps_offset"] == 1
