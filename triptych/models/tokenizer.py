"""CLIP's tokenizer: byte-pair encoding of lower-case words, from the vocab.json and merges.txt of a folder. No keras here."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, models, normalizers, pre_tokenizers

from triptych.errors import CheckpointError, InvalidValue

START = "<|startoftext|>"
END = "<|endoftext|>"

_NORMALIZER = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
_WORDS = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Prompts to tokens.

    Attributes:
        bpe: Splits a prompt into tokens, without the marks of start and end.
        start, end, pad: Tokens of the marks, and what fills a row up.
    """

    bpe: tokenizers.Tokenizer
    start: int
    end: int
    pad: int

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a folder with vocab.json and merges.txt, and special_tokens_map.json where the pad is not the end.

        Raises:
            CheckpointError: A file is missing or damaged, or the vocabulary lacks one of the marks.
        """
        try:
            vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
            merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
            bpe = _byte_pair_encoding(vocabulary, merges)
            start, end, pad = (vocabulary[mark] for mark in (START, END, _pad_token(folder)))
        except FileNotFoundError as error:
            raise CheckpointError(f"the tokenizer has no {Path(error.filename).name} in {folder}") from error
        except KeyError as error:
            raise CheckpointError(f"the tokenizer's vocabulary in {folder} has no {error.args[0]}") from error
        except Exception as error:  # the library raises bare Exceptions on what it cannot use
            raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from error
        return cls(bpe=bpe, start=start, end=end, pad=pad)

    @property
    def vocabulary_size(self) -> int:
        return self.bpe.get_vocab_size()

    def count(self, prompt: str) -> int:
        """Tokens that the prompt takes of a context, the marks of start and end included."""
        return len(self._tokens(prompt)) + 2

    def encode(self, prompts: Sequence[str], length: int, *, truncate: bool = False) -> NDArray[np.int32]:
        """Tokens (B, length) with their marks, filled up with the pad.

        Raises:
            InvalidValue: A prompt takes more than `length` tokens and `truncate` is not set.
        """
        rows = np.full((len(prompts), length), self.pad, np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            tokens = self._tokens(prompt)
            if len(tokens) > length - 2 and not truncate:
                raise InvalidValue(
                    f"the prompt has {len(tokens)} tokens, at most {length - 2} fit; shorten it or send truncate=true",
                    param="prompt",
                )
            marked = [self.start, *tokens[: length - 2], self.end]
            row[: len(marked)] = marked
        return rows

    def _tokens(self, prompt: str) -> list[int]:
        return self.bpe.encode(prompt, add_special_tokens=False).ids


def unknown_words(prompt: str, known: Collection[str]) -> tuple[str, ...]:
    """The words of a prompt that are not among the known ones, in lower case, each once, in order."""
    words = re.findall(r"\w+", prompt.lower())
    return tuple(dict.fromkeys(word for word in words if word not in known))


def save_tokenizer(folder: Path, vocabulary: dict[str, int], merges: Iterable[tuple[str, str]], *, length: int) -> None:
    """Writes a tokenizer as CLIPTokenizer has it on disk, padding with the mark of the end.

    Args:
        folder: Made if it is missing.
        vocabulary: Tokens to their numbers, START and END among them.
        merges: Pairs in the order in which they are merged.
        length: Of a context, in tokens.
    """
    marks = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **marks}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    merge_lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(merge_lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(marks, indent=2) + "\n", encoding="utf-8")


def _byte_pair_encoding(vocabulary: dict[str, int], merges: list[Any]) -> tokenizers.Tokenizer:
    bpe = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=END, end_of_word_suffix="</w>"))
    bpe.normalizer = _NORMALIZER
    words = pre_tokenizers.Split(_WORDS, behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.add_special_tokens([START, END])
    return bpe


def _pad_token(folder: Path) -> str:
    marks = folder / "special_tokens_map.json"
    pad = json.loads(marks.read_text(encoding="utf-8")).get("pad_token", END) if marks.exists() else END
    return pad["content"] if isinstance(pad, dict) else pad
