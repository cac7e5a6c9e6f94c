from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_models import ROOT, WORDS, tiny_tokenizer
from triptych.errors import CheckpointError, InvalidValue
from triptych.models.tokenizer import END, START, Tokenizer, save_tokenizer, unknown_words


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vocabulary, merges = tiny_tokenizer()
    save_tokenizer(tmp_path, vocabulary, merges, length=16)
    return tmp_path


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


def test_a_known_word_is_one_token_between_the_marks(tokenizer: Tokenizer):
    vocabulary, _ = tiny_tokenizer()
    expected = [vocabulary[token] for token in (START, "red</w>", "circle</w>", END, END, END)]
    tokens = tokenizer.encode(["red circle"], 6)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [expected]


def test_case_and_spaces_do_not_matter(tokenizer: Tokenizer):
    tokens = tokenizer.encode(["a RED\n\t circle ", "a red circle"], 16)
    assert (tokens[0] == tokens[1]).all()


def test_an_unknown_word_is_spelt(tokenizer: Tokenizer):
    vocabulary, _ = tiny_tokenizer()
    assert tokenizer.encode(["xyz"], 5)[0].tolist() == [vocabulary[token] for token in (START, "x", "y", "z</w>", END)]


def test_the_pad_of_the_folder_fills_up(folder: Path):
    vocabulary, _ = tiny_tokenizer()
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "!"}}))
    assert Tokenizer.from_folder(folder).encode(["a"], 5)[0].tolist()[2:] == [vocabulary[token] for token in (END, "!", "!")]


def test_a_prompt_that_is_too_long_is_refused_with_its_count(tokenizer: Tokenizer):
    assert tokenizer.count("a red circle") == 5
    assert tokenizer.encode(["a red circle"], 5).shape == (1, 5)
    with pytest.raises(InvalidValue, match="the prompt has 3 tokens, at most 2 fit") as caught:
        tokenizer.encode(["a", "a red circle"], 4)
    assert caught.value.param == "prompt"


def test_truncating_keeps_the_first_tokens_and_the_end(tokenizer: Tokenizer):
    vocabulary, _ = tiny_tokenizer()
    tokens = tokenizer.encode(["a red circle"], 4, truncate=True)
    assert tokens[0].tolist() == [vocabulary[token] for token in (START, "a</w>", "red</w>", END)]


def test_an_empty_prompt_is_its_marks(tokenizer: Tokenizer):
    assert tokenizer.count("") == 2
    assert tokenizer.encode([""], 2)[0].tolist() == [tokenizer.start, tokenizer.end]


def test_unknown_words_come_once_each_in_order():
    assert unknown_words("A red Zebra, on a zebra's MOON", WORDS) == ("zebra", "s", "moon")
    assert unknown_words("a RED circle!", WORDS) == ()


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("vocab.json", None, "the tokenizer has no vocab.json"),
        ("merges.txt", None, "the tokenizer has no merges.txt"),
        ("vocab.json", "{", "cannot be read"),
        ("vocab.json", '{"a": 0}', "cannot be read"),
        ("vocab.json", '{"<|startoftext|>": 0}', "cannot be read"),
        ("merges.txt", "a red circle", "cannot be read"),
        ("special_tokens_map.json", '{"pad_token": "<pad>"}', "has no <pad>"),
    ],
)
def test_a_damaged_folder_is_refused(folder: Path, file: str, content: str | None, sentence: str):
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_folder(folder)
    assert sentence in caught.value.message


def test_a_vocabulary_without_marks_is_refused(folder: Path):
    (folder / "vocab.json").write_text('{"a": 0, "<|endoftext|>": 1}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(CheckpointError, match=r"has no <\|startoftext\|>"):
        Tokenizer.from_folder(folder)


def test_configurations_and_tokenizer_are_read_without_keras():
    code = (
        "import sys, triptych.checkpoints.diffusers_folder, triptych.checkpoints.registry, triptych.models.tokenizer\n"
        "assert not {'keras', 'openvino', 'tensorflow', 'jax'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
