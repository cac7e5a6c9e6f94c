from __future__ import annotations

from typing import Any

import pytest

from triptych.errors import CheckpointError
from triptych.models.config import CLIPTextConfig, UNetConfig, VAEConfig


def test_lists_of_json_become_tuples_and_keys_without_consequence_are_passed_over():
    config = UNetConfig.from_dict(
        {"block_out_channels": [8, 8, 8, 8], "sample_size": 64, "_diffusers_version": "0.6.0", "dropout": 0.1}
    )
    assert config == UNetConfig(block_out_channels=(8, 8, 8, 8))


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (UNetConfig, {"act_fn": "gelu"}, "our U-Net wants act_fn to be 'silu', the configuration has 'gelu'"),
        (UNetConfig, {"class_embed_type": "timestep"}, "class_embed_type to be None"),
        (UNetConfig, {"addition_embed_type": "text_time"}, "addition_embed_type"),
        (UNetConfig, {"num_attention_heads": 8}, "num_attention_heads"),
        (UNetConfig, {"_class_name": "AutoencoderKL"}, "UNet2DConditionModel"),
        (UNetConfig, {"down_block_types": ["AttnDownBlock2D"] * 4}, "'DownBlock2D' or 'CrossAttnDownBlock2D'"),
        (UNetConfig, {"block_out_channels": [8, 16]}, "2 block_out_channels but 4 down_block_types"),
        (UNetConfig, {"attention_head_dim": [5, 10]}, "4 block_out_channels but 2 attention_head_dim"),
        (VAEConfig, {"_class_name": "AutoencoderTiny"}, "AutoencoderKL"),
        (VAEConfig, {"shift_factor": 0.1}, "shift_factor to be None"),
        (VAEConfig, {"up_block_types": ["AttnUpDecoderBlock2D"]}, "UpDecoderBlock2D"),
        (CLIPTextConfig, {"hidden_act": "relu"}, "'quick_gelu' or 'gelu', the configuration has 'relu'"),
        (CLIPTextConfig, {"model_type": "t5"}, "clip_text_model"),
    ],
)
def test_what_our_networks_cannot_do_is_refused(kind: type[Any], values: dict[str, Any], sentence: str):
    with pytest.raises(CheckpointError) as caught:
        kind.from_dict(values)
    assert sentence in caught.value.message


def test_a_dictionary_and_back():
    config = UNetConfig(attention_head_dim=(5, 10, 20, 20), transformer_norm_eps=1e-5, norm_num_groups=8)
    assert UNetConfig.from_dict(config.to_dict()) == config


def test_fields_that_diffusers_does_not_have_are_written_only_when_they_matter():
    assert "norm_eps" not in VAEConfig().to_dict()
    assert VAEConfig(norm_eps=1e-5).to_dict()["norm_eps"] == 1e-5


def test_one_number_stands_for_every_level():
    assert UNetConfig().num_heads == (8, 8, 8, 8)
    assert UNetConfig(attention_head_dim=(5, 10, 20, 20)).num_heads == (5, 10, 20, 20)
    assert VAEConfig(block_out_channels=(8,) * 4).downsampling == 8
