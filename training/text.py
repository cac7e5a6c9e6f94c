"""The text encoder, taught to parse before it is asked to help painting."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from training.cache import cache_folder, report
from training.loop import Schedule, train, use_averages
from training.pictures import Batch
from training.tokenizer import CONTEXT_LENGTH, load_tokenizer
from training.world.captions import caption
from training.world.scenes import BACKGROUNDS, CODE_LENGTH, COLOUR_NAMES, PLACES, SHAPES, SIZES, random_scene, to_code
from triptych.models.config import CLIPTextConfig
from triptych.models.text_encoder import build_text_encoder
from triptych.models.tokenizer import Tokenizer

# What there is to say of a scene, in the order of its code; one answer more for "there is no such thing".
ANSWERS = (len(BACKGROUNDS), *(len(names) + 1 for names in (COLOUR_NAMES, SHAPES, SIZES, PLACES) * 2))


def text_config() -> CLIPTextConfig:
    """Four layers of width 192."""
    return CLIPTextConfig(
        vocab_size=load_tokenizer().vocabulary_size,
        max_position_embeddings=CONTEXT_LENGTH,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        hidden_act="quick_gelu",
    )


class ParseTraining(keras.Model):
    """Reads all that a prompt says off the context at one of its end marks, and returns each row's loss.

    The marks that fill a prompt up see all of it. A different one is asked each time, so that all of them carry the whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build_text_encoder(text_config())
        self.answers = layers.Dense(sum(ANSWERS), dtype="float32")

    def call(self, batch: Any) -> Any:
        context = ops.cast(self.encoder({"tokens": batch["tokens"]})["context"], "float32")
        asked = ops.one_hot(batch["asked"], CONTEXT_LENGTH, dtype="float32")
        answers = self.answers(ops.einsum("btd,bt->bd", context, asked))
        loss, start = 0.0, 0
        for i, count in enumerate(ANSWERS):
            logits = answers[:, start : start + count]
            loss = loss + ops.sparse_categorical_crossentropy(batch["code"][:, i], logits, from_logits=True)
            start += count
        return loss


def prompts(tokenizer: Tokenizer, rng: np.random.Generator, rows: int) -> Batch:
    """Prompts of random scenes, kept-out ones too: the parser is to know all words in all combinations."""
    scenes = [random_scene(rng) for _ in range(rows)]
    texts = [caption(scene, rng) for scene in scenes]
    tokens = tokenizer.encode(texts, CONTEXT_LENGTH)
    ends = np.array([tokenizer.count(text) - 1 for text in texts])
    codes = np.stack([to_code(scene) for scene in scenes]).astype(np.int32)
    absent = np.array([0, *(count - 1 for count in ANSWERS[1:])], np.int32)
    return {
        "tokens": tokens,
        "asked": rng.integers(ends, CONTEXT_LENGTH).astype(np.int32),
        "code": np.where(codes < 0, absent, codes),
    }


def train_text(*, steps: int = 6000, rows: int = 96, rate: float = 7e-4, minutes: float | None = None) -> None:
    """Trains the parser and keeps its encoder. A run without a state begins with the weights in the stage's folder, if any."""
    tokenizer = load_tokenizer()
    network = ParseTraining()
    if (weights := cache_folder("text") / "encoder.weights.h5").exists():
        network.encoder.load_weights(weights)
    schedule = Schedule(steps=steps, rate=rate, ema=0.99, seed=31, report_every=50, minutes=minutes)
    train(network, lambda step, rng: prompts(tokenizer, rng, rows), schedule, "text")
    use_averages(network)
    network.encoder.save_weights(weights)
    report("text", **accuracy(network, tokenizer))


def accuracy(network: ParseTraining, tokenizer: Tokenizer, *, rows: int = 960) -> dict[str, Any]:
    """How often fresh prompts are understood, by question and altogether; where "and" leaves it open, half is right."""
    batch = prompts(tokenizer, np.random.default_rng(77), rows)
    context = ops.convert_to_numpy(network.encoder.predict({"tokens": batch["tokens"]}, verbose=0)["context"])
    answers = context[np.arange(rows), batch["asked"]].astype(np.float32) @ ops.convert_to_numpy(network.answers.kernel)
    answers += ops.convert_to_numpy(network.answers.bias)
    right, start = [], 0
    for i, count in enumerate(ANSWERS):
        right.append(answers[:, start : start + count].argmax(axis=1) == batch["code"][:, i])
        start += count
    assert len(right) == CODE_LENGTH
    alone = batch["code"][:, 5] == ANSWERS[5] - 1
    everything = np.all(right, axis=0)
    return {
        "by_question": [round(float(r.mean()), 3) for r in right],
        "all_of_one_thing": round(float(everything[alone].mean()), 3),
        "all_of_two_things": round(float(everything[~alone].mean()), 3),
    }
