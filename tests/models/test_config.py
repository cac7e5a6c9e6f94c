from __future__ import annotations

from typing import Any

import pytest

from triptych.errors import CheckpointError
from triptych.models.config import CLIPTextConfig, UNetConfig, VAEConfig


def test_lists_of_json_become_tuples_and_keys_without_consequence_are_passed_over():
    config = UNetConfig.from_dict(
        {"block_out_channels": [32, 32, 32, 32], "sample_size": 64, "_diffusers_version": "0.6.0", "dropout": 0.1}
    )
    assert config == UNetConfig(block_out_channels=(32, 32, 32, 32))


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
        (CLIPTextConfig, {"hidden_act": "relu"}, "'gelu' or 'gelu_pytorch_tanh', the configuration has 'relu'"),
        (CLIPTextConfig, {"model_type": "t5"}, "clip_text_model"),
    ],
)
def test_what_our_networks_cannot_do_is_refused(kind: type[Any], values: dict[str, Any], sentence: str):
    with pytest.raises(CheckpointError) as caught:
        kind.from_dict(values)
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (UNetConfig, {"in_channels": "4"}, "the U-Net has in_channels=4; it must be a whole number above 0"),
        (UNetConfig, {"in_channels": True}, "in_channels=True; it must be a whole number"),
        (UNetConfig, {"in_channels": 4.0}, "in_channels=4.0; it must be a whole number"),
        (UNetConfig, {"block_out_channels": [320, -640]}, "block_out_channels=(320, -640); it must be a list of whole numbers"),
        (UNetConfig, {"block_out_channels": []}, "block_out_channels=(); it must be a list"),
        (UNetConfig, {"block_out_channels": 320}, "block_out_channels=320; it must be a list"),
        (UNetConfig, {"down_block_types": "DownBlock2D"}, "down_block_types=DownBlock2D; it must be a list of strings"),
        (UNetConfig, {"cross_attention_dim": [768, 768]}, "cross_attention_dim=(768, 768); it must be a whole number"),
        (
            UNetConfig,
            {"attention_head_dim": [5, 0, 5, 5]},
            "attention_head_dim=(5, 0, 5, 5); it must be a whole number above 0, or a",
        ),
        (UNetConfig, {"attention_head_dim": None}, "attention_head_dim=None"),
        (UNetConfig, {"use_linear_projection": "no"}, "use_linear_projection=no; it must be true or false"),
        (UNetConfig, {"norm_eps": float("nan")}, "norm_eps=nan; it must be a number above 0"),
        (UNetConfig, {"norm_num_groups": 48}, "has 320 channels, which norm_num_groups 48 does not divide"),
        (UNetConfig, {"attention_head_dim": [8, 8, 8, 6]}, "has 1280 channels, which attention_head_dim 6 does not divide"),
        (UNetConfig, {"freq_shift": 160}, "320 first channels and freq_shift=160; the channels must be even"),
        (UNetConfig, {"block_out_channels": [33] * 4, "norm_num_groups": 1, "attention_head_dim": 1}, "33 first channels"),
        (VAEConfig, {"scaling_factor": 0}, "the VAE has scaling_factor=0; it must be a number above 0"),
        (VAEConfig, {"norm_num_groups": 3}, "has 64 channels, which norm_num_groups 3 does not divide"),
        (CLIPTextConfig, {"hidden_size": -768}, "the text encoder has hidden_size=-768"),
        (CLIPTextConfig, {"num_attention_heads": 7}, "has 512 hidden_size, which num_attention_heads 7 does not divide"),
        (CLIPTextConfig, {"hidden_act": None}, "hidden_act=None; it must be a string"),
        (CLIPTextConfig, {"hidden_size": "x" * 1000}, f"hidden_size={'x' * 64}; it must"),
    ],
)
def test_what_no_network_can_have_is_refused(kind: type[Any], values: dict[str, Any], sentence: str):
    with pytest.raises(CheckpointError) as caught:
        kind.from_dict(values)
    assert sentence in caught.value.message


def test_heads_need_divide_the_channels_only_where_there_is_attention():
    config = {"block_out_channels": [20, 32], "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    assert UNetConfig.from_dict({**config, "norm_num_groups": 4, "attention_head_dim": 8}).num_heads == (8, 8)


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
