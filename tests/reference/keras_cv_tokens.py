"""Tokens of keras-cv's SimpleTokenizer, in a process of their own, because keras-cv starts TensorFlow:
`python -m tests.reference.keras_cv_tokens < prompts.json > tokens.json`.

Where keras-cv is not installed, the algorithm stands in that it and OpenAI published: regular expression and greedy merges.
"""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import regex

from tests.prompts import VOCABULARY, byte_letters, clip_vocabulary
from tests.tiny_models import ROOT
from triptych.models.tokenizer import END, START

IS_REAL = find_spec("keras_cv") is not None
"""Whether it is keras-cv itself."""

PATTERN = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


def keras_cv_tokens(prompts: Sequence[str]) -> list[list[int]]:
    """With the marks of start and end."""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", __name__]
    told = json.dumps(list(prompts)).encode()
    ended = subprocess.run(command, cwd=ROOT, env=environment, check=True, input=told, stdout=subprocess.PIPE)
    tokens: list[list[int]] = json.loads(ended.stdout.splitlines()[-1])
    return tokens


def _make_encode() -> Callable[[str], list[int]]:
    if not IS_REAL:
        return published()
    from keras_cv.src.models.stable_diffusion.clip_tokenizer import SimpleTokenizer

    tokenizer: Any = SimpleTokenizer(str(VOCABULARY))
    encode: Callable[[str], list[int]] = tokenizer.encode
    return encode


def published() -> Callable[[str], list[int]]:
    vocabulary, merges = clip_vocabulary()
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    letters = byte_letters()

    def encode(prompt: str) -> list[int]:
        text = html.unescape(html.unescape(prompt)).strip()
        text = regex.sub(r"\s+", " ", text).strip().lower()
        words = [[START], *map(parts_of, PATTERN.findall(text)), [END]]
        return [vocabulary[part] for word in words for part in word]

    def parts_of(word: str) -> list[str]:
        if word in (START, END):
            return [word]
        parts = [letters[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while known := [pair for pair in pairwise(parts) if pair in ranks]:
            parts = merged(parts, min(known, key=lambda pair: ranks[pair]))
        return parts

    def merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
        result: list[str] = []
        rest = iter(range(len(parts)))
        for place in rest:
            if tuple(parts[place : place + 2]) == pair:
                result.append("".join(pair))
                next(rest)
            else:
                result.append(parts[place])
        return result

    return encode


if __name__ == "__main__":
    encode = _make_encode()
    answer = [encode(prompt) for prompt in json.load(sys.stdin)]
    print(json.dumps(answer))  # noqa: T201
