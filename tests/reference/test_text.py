"""From prompts to contexts: our text encoder stage against transformers' tokenizer and network, from the folder that both read.

Tolerance: float32 sums in another order make about 1e-6 of the output's norm; 1e-5 is refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.prompts import VOCABULARY, clip_vocabulary
from tests.stages.options import Options
from tests.tiny_models import FACTS, SCHEDULER, TEXT_ENCODER
from triptych.checkpoints.diffusers_folder import save_description
from triptych.contract import EncodeRequest
from triptych.models.tokenizer import END, START, save_tokenizer
from triptych.stages.text_encoder import TextEncoderStage

pytestmark = pytest.mark.skipif(not VOCABULARY.exists(), reason="CLIP's vocabulary is not beside the repository, in shared/data")

TOLERANCE = 1e-5
LENGTH = 77
ROOM = LENGTH - 2
LAYERS = 4

SD_1 = replace(TEXT_ENCODER, vocab_size=49408, max_position_embeddings=LENGTH, num_hidden_layers=LAYERS)
SD_2 = replace(SD_1, hidden_act="gelu", num_hidden_layers=LAYERS - 1)
"""As diffusers has Stable Diffusion 2's: without OpenCLIP's last layer, because it was trained on the one before it."""

PROMPTS = ("a photo of an astronaut riding a horse on mars!", "", "Ünïcödé, 北京 & 🐱!!!")
LONG = "the quick brown fox jumps over the lazy dog, and 99 red balloons go by! " * 9


@dataclass(frozen=True)
class Both:
    """A folder, and what transformers makes of it.

    Attributes:
        whole: The network with the layer that Stable Diffusion 2 leaves out; the same as `network` for Stable Diffusion 1.
    """

    folder: Path
    tokenizer: Any
    network: Any
    whole: Any

    def contexts(self, prompts: tuple[str, ...]) -> np.ndarray:
        """As diffusers encodes prompts."""
        tokens = self.tokenizer(prompts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        with torch.no_grad():
            context: np.ndarray = self.network(tokens.input_ids).last_hidden_state.numpy()
        return context


@pytest.fixture(scope="module", params=["Stable Diffusion 1", "Stable Diffusion 2"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("checkpoint")
    config, pad = (SD_1, END) if request.param == "Stable Diffusion 1" else (SD_2, "!")
    numbers = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    whole = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**{**config.to_dict(), "num_hidden_layers": LAYERS}, **numbers)
    )
    generator = torch.Generator().manual_seed(3)
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    network = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config.to_dict(), **numbers))
    network.load_state_dict({name: whole.state_dict()[name] for name in network.state_dict()})
    network.eval().save_pretrained(folder / "text_encoder")
    save_tokenizer(folder / "tokenizer", *clip_vocabulary(), length=LENGTH)
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(marks))
    save_description(folder, FACTS, SCHEDULER)
    return Both(folder, transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"), network, whole.eval())


@pytest.fixture(scope="module")
def stage(both: Both, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEncoderStage]:
    options = Options(model=str(both.folder), cache_folder=tmp_path_factory.mktemp("networks"), max_prompt_chunks=4)
    stage = TextEncoderStage(replace(options, batch_sizes=(1, 2)))
    stage.start()
    yield stage
    stage.close()


def encode(stage: TextEncoderStage, *prompts: str, **options: bool) -> np.ndarray:
    return asyncio.run(stage.encode(EncodeRequest(prompts=prompts, **options))).context


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) < TOLERANCE * np.linalg.norm(theirs)


def test_contexts_are_those_of_transformers(both: Both, stage: TextEncoderStage) -> None:
    assert_close(encode(stage, *PROMPTS), both.contexts(PROMPTS))


def test_the_pad_is_that_of_the_family(both: Both, stage: TextEncoderStage) -> None:
    expected = 49407 if both.network.config.hidden_act == "quick_gelu" else 0
    assert stage._tokenizer.pad == both.tokenizer.pad_token_id == expected
    assert stage._tokenizer.encode([""], 4)[0].tolist() == [49406, 49407, expected, expected]


def test_stable_diffusion_2_sees_the_layer_before_the_last(both: Both, stage: TextEncoderStage) -> None:
    tokens = both.tokenizer(PROMPTS, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    with torch.no_grad():
        states = both.whole(tokens, output_hidden_states=True)
        norm = next(module for name, module in both.whole.named_modules() if name.endswith("final_layer_norm"))
        last, before = (norm(states.hidden_states[layer]).numpy() for layer in (-1, -2))
    is_second = both.network.config.num_hidden_layers < LAYERS
    ours = encode(stage, *PROMPTS)
    assert_close(ours, before if is_second else last)
    assert np.linalg.norm(ours - (last if is_second else before)) > 0.1 * np.linalg.norm(ours)


def test_a_long_prompt_is_its_chunks_as_transformers_encodes_them_one_by_one(both: Both, stage: TextEncoderStage) -> None:
    tokens = both.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    pad = both.tokenizer.pad_token_id
    assert 2 * ROOM < len(tokens) < 3 * ROOM
    rows = []
    for start in range(0, len(tokens), ROOM):
        marked = [49406, *tokens[start : start + ROOM], 49407]
        rows.append(marked + [pad] * (LENGTH - len(marked)))
    with torch.no_grad():
        theirs = torch.cat([both.network(torch.tensor([row])).last_hidden_state for row in rows], dim=1).numpy()
    negative = np.concatenate([both.contexts(("bad hands",)), both.contexts(("",)), both.contexts(("",))], axis=1)
    assert_close(encode(stage, LONG, "bad hands", long_prompt=True), np.concatenate([theirs, negative]))
