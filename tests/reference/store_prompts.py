"""Stores what transformers and keras-cv make of the prompts, so that `make test` can compare without either::

.venv-reference/bin/python -m tests.reference.store_prompts
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np
import transformers

from tests.prompts import PROMPTS, clip_vocabulary, digest_of
from tests.reference.keras_cv_tokens import keras_cv_tokens

STORED = Path(__file__).resolve().parent.parent / "models" / "prompts.npz"


def transformers_tokens(prompts: list[str]) -> list[list[int]]:
    """With the marks of start and end."""
    vocabulary, merges = clip_vocabulary()
    tokens: list[list[int]] = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)(prompts)["input_ids"]
    return tokens


def main() -> None:
    arrays = {"digest": np.array(digest_of(PROMPTS))}
    for flavour, tokens in (("clip", transformers_tokens(PROMPTS)), ("keras-cv", keras_cv_tokens(PROMPTS))):
        arrays[f"{flavour}/tokens"] = np.array([token for row in tokens for token in row], np.uint16)
        arrays[f"{flavour}/ends"] = np.array(list(accumulate(map(len, tokens))), np.uint16)
    np.savez_compressed(STORED, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
