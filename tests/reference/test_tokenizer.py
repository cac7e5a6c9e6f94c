"""Our tokenizer against transformers' CLIPTokenizer and keras-cv's SimpleTokenizer, on CLIP's own vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import transformers
from tokenizers import Regex, normalizers

from tests.prompts import PROMPTS, VOCABULARY, clip_vocabulary, random_prompts
from tests.reference.keras_cv_tokens import IS_REAL, keras_cv_tokens
from triptych.models.tokenizer import END, START, Flavour, Tokenizer, save_tokenizer

pytestmark = pytest.mark.skipif(not VOCABULARY.exists(), reason="CLIP's vocabulary is not beside the repository, in shared/data")

LENGTH = 77
FUZZ = 4000
FUZZ_OF_EACH_FOLDER = 500


def flags(content: str, *, normalized: bool = True, **others: Any) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False, **others}


def typed(content: str) -> dict[str, Any]:
    return {"__type": "AddedToken", **flags(content)}


CLIP = {"add_prefix_space": False, "do_lower_case": True, "model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer"}
TYPED = {**CLIP, "bos_token": typed(START), "eos_token": typed(END), "pad_token": END, "unk_token": typed(END)}
SD_1 = {"bos_token": flags(START), "eos_token": flags(END), "pad_token": END, "unk_token": flags(END)}
SD_2 = {**SD_1, "pad_token": "!"}
DECLARED = {"0": flags("!", normalized=False), "49406": flags(START), "49407": flags(END)}
NAMED = {"bos_token": START, "eos_token": END, "unk_token": END}

FOLDERS: dict[str, dict[str, Any]] = {
    "as we write it": {"config": CLIP, "map": {**NAMED, "pad_token": END}},
    "Stable Diffusion 1": {"config": TYPED, "map": SD_1},
    "Stable Diffusion 2": {"config": TYPED, "map": SD_2},
    "Stable Diffusion 1, written by a newer transformers": {
        "config": {**CLIP, **NAMED, "pad_token": END, "added_tokens_decoder": {k: DECLARED[k] for k in ("49406", "49407")}},
        "map": SD_1,
    },
    "Stable Diffusion 2, written by a newer transformers": {
        "config": {**CLIP, **NAMED, "pad_token": "!", "added_tokens_decoder": DECLARED},
        "map": SD_1,
    },
    "no description": {},
    "a description and no map": {"config": {**TYPED, "pad_token": "!"}},
    "marks that take the blanks around them": {
        "config": CLIP,
        "map": {
            **SD_1,
            "pad_token": flags("!", normalized=False) | {"lstrip": True, "rstrip": True},
            "eos_token": flags(END, normalized=False) | {"single_word": True},
        },
    },
    "words of a fine-tune": {"config": TYPED, "map": SD_1, "added": {"<cat-toy>": 49408, "sks": 49409}},
    "a pad of its own": {"config": TYPED, "map": {**SD_1, "pad_token": "<pad>"}, "added": {"<pad>": 49408}},
}
NAMES = {"config": "tokenizer_config.json", "map": "special_tokens_map.json", "added": "added_tokens.json"}


def write_folder(folder: Path, files: dict[str, Any]) -> Path:
    save_tokenizer(folder, *clip_vocabulary(), length=LENGTH)
    for kind, name in NAMES.items():
        (folder / name).unlink(missing_ok=True)
        if kind in files:
            (folder / name).write_text(json.dumps(files[kind]))
    return folder


def assert_same(ours: Tokenizer, theirs: Any, prompts: list[str]) -> None:
    expected = theirs(prompts)["input_ids"]
    tokens = [[ours.start, *ours.tokens(prompt), ours.end] for prompt in prompts]
    assert {prompt: row for prompt, row in zip(prompts, tokens, strict=True)} == dict(zip(prompts, expected, strict=True))
    fitting = [prompt for prompt, row in zip(prompts, tokens, strict=True) if len(row) <= LENGTH]
    padded = theirs(fitting, padding="max_length", max_length=LENGTH)["input_ids"]
    np.testing.assert_array_equal(ours.encode(fitting, LENGTH), padded)
    assert ours.vocabulary_size == len(theirs)


@pytest.mark.parametrize("files", FOLDERS.values(), ids=FOLDERS.keys())
def test_tokens_are_those_of_transformers(files: dict[str, Any], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "old", files)
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / "vocab.json").exists()

    prompts = [*PROMPTS, *random_prompts(FUZZ_OF_EACH_FOLDER, seed=7), "<CAT-TOY> <cat-toy>sks asks SKS <pad>"]
    assert_same(Tokenizer.from_folder(folder), theirs, prompts)
    assert_same(Tokenizer.from_folder(tmp_path / "new"), transformers.CLIPTokenizer.from_pretrained(tmp_path / "new"), prompts)


def test_thousands_of_random_prompts_have_the_tokens_of_transformers(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, FOLDERS["Stable Diffusion 2"])
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    assert_same(Tokenizer.from_folder(folder), theirs, list(random_prompts(FUZZ, seed=9)))


def test_known_numbers(tmp_path: Path) -> None:
    # The numbers that every user of Stable Diffusion has seen.
    for name, pad in (("Stable Diffusion 1", 49407), ("Stable Diffusion 2", 0)):
        ours = Tokenizer.from_folder(write_folder(tmp_path, FOLDERS[name]))
        assert ours.encode(["a photo of an astronaut"], 9)[0].tolist() == [49406, 320, 1125, 539, 550, 18376, 49407, pad, pad]


LETTER_OR_DIGIT = Regex(r"[\p{L}\p{N}]")


def is_newer(character: str) -> bool:
    """Whether it is a letter or digit to the Unicode tables of `regex`, with which keras-cv cuts words, but not yet to ours.

    Which they are depends on the release of `regex`: keras-cv beside 2025.9.18 agrees with us on all of Unicode, and beside
    2026.11.15 there are 17,480 letters and digits more than in `tokenizers` 0.23.3.
    """
    to_keras_cv = regex.fullmatch(r"[\p{L}\p{N}]", character) is not None
    return to_keras_cv and normalizers.Replace(LETTER_OR_DIGIT, "").normalize_str(character) != ""


def test_tokens_are_those_of_keras_cv(tmp_path: Path) -> None:
    """By keras-cv itself where it is installed, else by the algorithm that it and OpenAI published."""
    save_tokenizer(tmp_path, *clip_vocabulary(), length=LENGTH, flavour=Flavour.KERAS_CV)
    ours = Tokenizer.from_folder(tmp_path)
    random = list(random_prompts(FUZZ, seed=8))
    prompts = [*PROMPTS, *(prompt for prompt in random if not any(map(is_newer, prompt)))]
    assert len(prompts) > len(PROMPTS) + 0.98 * FUZZ
    expected = dict(zip(prompts, keras_cv_tokens(prompts), strict=True))
    assert {prompt: [ours.start, *ours.tokens(prompt), ours.end] for prompt in prompts} == expected


@pytest.mark.skipif(not IS_REAL, reason="keras-cv is not installed")
def test_the_published_algorithm_is_that_of_keras_cv() -> None:
    from tests.reference.keras_cv_tokens import published

    encode = published()
    assert keras_cv_tokens(PROMPTS) == [encode(prompt) for prompt in PROMPTS]


def test_a_letter_of_a_newer_unicode_is_the_only_difference(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, *clip_vocabulary(), length=LENGTH, flavour=Flavour.KERAS_CV)
    ours = Tokenizer.from_folder(tmp_path)
    if not is_newer("\u0558"):
        pytest.skip("both have the same Unicode tables")
    (theirs,) = keras_cv_tokens(["a\u0558b"])
    assert theirs[1:-1] == [64, 145, 246, 321]  # one word
    assert ours.tokens("a\u0558b") == [320, 145, 502, 321]  # three
