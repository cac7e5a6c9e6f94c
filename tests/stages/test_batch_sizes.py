from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from triptych.checkpoints.checkpoint import Network
from triptych.checkpoints.registry import find_model
from triptych.contract import StageName
from triptych.models.config import (
    STABLE_DIFFUSION_1_5_TEXT_ENCODER,
    STABLE_DIFFUSION_1_5_UNET,
    STABLE_DIFFUSION_1_5_VAE,
)
from triptych.stages.batch_sizes import default_batch_sizes
from triptych.stages.text_encoder import TextEncoderStage


@pytest.mark.parametrize(
    ("stage", "network", "large", "sizes_of_large", "sizes_of_small"),
    [
        (StageName.TEXT_ENCODER, Network.TEXT_ENCODER, STABLE_DIFFUSION_1_5_TEXT_ENCODER, (1, 2), (1, 2, 4)),
        (StageName.DIFFUSION, Network.UNET, STABLE_DIFFUSION_1_5_UNET, (2,), (1, 2, 4, 8, 16)),
        (StageName.DECODER, Network.VAE_DECODER, STABLE_DIFFUSION_1_5_VAE, (1,), (1, 2, 4, 8)),
    ],
)
def test_large_networks_have_few_batch_sizes(stage, network, large, sizes_of_large, sizes_of_small):
    assert default_batch_sizes(stage, large) == sizes_of_large
    assert default_batch_sizes(stage, find_model("vignette").config(network)) == sizes_of_small


def test_a_stage_says_what_it_chose(options, caplog):
    with caplog.at_level(logging.INFO):
        stage = TextEncoderStage(replace(options, batch_sizes=None))
        stage.start()
    stage.close()
    assert "the text_encoder is compiled for 1 and 2 and 4 rows at once; TRIPTYCH_BATCH_SIZES changes that" in caplog.text
