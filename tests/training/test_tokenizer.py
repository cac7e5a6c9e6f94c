"""Every word of the grammar is one token, and the longest caption fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.tokenizer import CONTEXT_LENGTH, load_tokenizer, train_tokenizer
from training.world.captions import all_words, caption
from training.world.scenes import random_scene
from triptych.models.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    train_tokenizer()
    return load_tokenizer()


def test_words_are_whole_and_captions_fit(tokenizer: Tokenizer) -> None:
    assert all(tokenizer.count(word) == 3 for word in all_words())
    rng = np.random.default_rng(0)
    assert max(tokenizer.count(caption(random_scene(rng), rng)) for _ in range(2000)) <= CONTEXT_LENGTH


def test_case_does_not_matter_and_unknown_words_fall_into_known_pieces(tokenizer: Tokenizer) -> None:
    lower, upper = tokenizer.encode(["red heart, pink background!", "RED Heart, pink  BACKGROUND!"], CONTEXT_LENGTH)
    assert np.array_equal(lower, upper)
    dragon = tokenizer.encode(["dragon"], CONTEXT_LENGTH)[0]
    end = dragon[-1]
    assert list(dragon).index(end) > 3
