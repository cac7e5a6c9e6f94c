"""CLIP's tokenizer: byte-pair encoding of lower-case words, from the files of a folder. No keras here.

There are two flavours, which agree on plain English and on little else. transformers' composes letters and accents (NFC), takes
HTML entities as they stand, and knows a mark wherever it stands in a prompt; keras-cv's is OpenAI's first one, which does none
of that. A folder is transformers' unless its tokenizer_config.json says `"triptych_flavour": "keras-cv"`.

Which characters are letters and digits is said by the Unicode tables of `tokenizers`, as in transformers. keras-cv asks `regex`,
whose release 2026.11.15 knows 17,480 more: to it an a, U+0558 and a b are one word, and here three. Beside its release 2025.9.18
no difference was found.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from triptych.errors import CheckpointError, InvalidValue

START = "<|startoftext|>"
END = "<|endoftext|>"

FLAVOUR_KEY = "triptych_flavour"

_WORDS = r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

_CLIP_NORMALIZER = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
_CLIP_WORDS = rf"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|{_WORDS}"

# keras-cv's compares without regard to case, after it has made all lower case: that leaves the long s, which is an s too.
_KERAS_CV_WORDS = rf"<\|[s\x{{17F}}]tartoftext\|>|<\|endoftext\|>|'[s\x{{17F}}]|'t|'re|'ve|'m|'ll|'d|{_WORDS}"


class Flavour(StrEnum):
    """Whose tokens they are."""

    CLIP = "clip"
    KERAS_CV = "keras-cv"


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Prompts to tokens.

    Attributes:
        bpe: Splits a prompt, or with keras-cv's flavour its words, into tokens, without the marks of start and end.
        start, end, pad: Tokens of the marks, and what fills a row up.
    """

    bpe: tokenizers.Tokenizer
    start: int
    end: int
    pad: int
    flavour: Flavour = Flavour.CLIP

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a folder as transformers writes it.

        It has vocab.json and merges.txt, or tokenizer.json. The marks, and what else is one token wherever it stands, are in
        tokenizer_config.json, special_tokens_map.json and added_tokens.json, as far as these are there.

        Raises:
            CheckpointError: A file is missing or damaged, or the vocabulary lacks one of the marks.
        """
        try:
            return _TokenizerFolder(folder).read()
        except FileNotFoundError as error:
            raise CheckpointError(f"the tokenizer has no {Path(error.filename).name} in {folder}") from error
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exceptions on what it cannot use
            raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from error

    @property
    def vocabulary_size(self) -> int:
        return self.bpe.get_vocab_size()

    def count(self, prompt: str) -> int:
        """Tokens that the prompt takes of a context, the marks of start and end included."""
        return len(self.tokens(prompt)) + 2

    def tokens(self, prompt: str) -> list[int]:
        """The prompt's tokens, without marks.

        Raises:
            InvalidValue: The prompt has half a surrogate pair.
        """
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise InvalidValue("prompt has a text that is not valid Unicode", param="prompt") from None
        if self.flavour is Flavour.KERAS_CV:
            return self.bpe.encode(_keras_cv_words(prompt), is_pretokenized=True, add_special_tokens=False).ids
        return self.bpe.encode(prompt, add_special_tokens=False).ids

    def encode(self, prompts: Sequence[str], length: int) -> NDArray[np.int32]:
        """Tokens (B, length) with their marks, filled up with the pad.

        Raises:
            InvalidValue: A prompt takes more than `length` tokens.
        """
        rows = [self.tokens(prompt) for prompt in prompts]
        longest = max(map(len, rows), default=0)
        if longest > length - 2:
            raise InvalidValue(f"the prompt has {longest} tokens, at most {length - 2} fit", param="prompt")
        return self.in_chunks(rows, length)[:, 0]

    def in_chunks(self, rows: Sequence[Sequence[int]], length: int) -> NDArray[np.int32]:
        """Rows of tokens cut into chunks of `length`, each with marks of its own: (B, k, length), where the longest row takes k.

        A chunk holds `length - 2` tokens and is full before the next one begins, though a word be cut in two; what a row has
        fewer of them than the longest is empty chunks, which are what an empty prompt is.
        """
        room = length - 2
        chunks = max([1, *(-(-len(row) // room) for row in rows if row)])
        filled = np.full((len(rows), chunks, length), self.pad, np.int32)
        for row, into in zip(rows, filled, strict=True):
            for number, chunk in enumerate(into):
                marked = [self.start, *row[number * room : (number + 1) * room], self.end]
                chunk[: len(marked)] = marked
        return filled


def unknown_words(prompt: str, known: Collection[str]) -> tuple[str, ...]:
    """The words of a prompt that are not among the known ones, in lower case, each once, in order."""
    words = re.findall(r"\w+", prompt.lower())
    return tuple(dict.fromkeys(word for word in words if word not in known))


def save_tokenizer(
    folder: Path,
    vocabulary: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    *,
    length: int,
    flavour: Flavour = Flavour.CLIP,
) -> None:
    """Writes a tokenizer as CLIPTokenizer has it on disk, padding with the mark of the end.

    Args:
        folder: Made if it is missing.
        vocabulary: Tokens to their numbers, START and END among them.
        merges: Pairs in the order in which they are merged.
        length: Of a context, in tokens.
        flavour: transformers itself knows none but its own.
    """
    marks = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **marks}
    if flavour is not Flavour.CLIP:
        about[FLAVOUR_KEY] = flavour.value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    merge_lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(merge_lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(marks, indent=2) + "\n", encoding="utf-8")


# Words


def _keras_cv_words(prompt: str) -> list[str]:
    text = html.unescape(html.unescape(prompt)).strip()
    text = _WHITE_SPACE.normalize_str(text).strip().lower()
    return [word for word, _ in _KERAS_CV_SPLIT.pre_tokenize_str(text)]


def _letters(*, use_regex: bool) -> pre_tokenizers.ByteLevel:
    """A printable letter for every byte."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _split(words: str) -> pre_tokenizers.Split:
    return pre_tokenizers.Split(Regex(words), behavior="removed", invert=True)


_WHITE_SPACE = normalizers.Replace(Regex(r"\s+"), " ")
_KERAS_CV_SPLIT = _split(_KERAS_CV_WORDS)


# Files


class _TokenizerFolder:
    """What the files of a folder say, where several say the same with the precedence that it has in transformers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = self._optional("tokenizer_config.json")
        self._serialized = self._optional("tokenizer.json")

    def read(self) -> Tokenizer:
        flavour = self._flavour()
        added, marks = self._added_tokens(), self._marks()
        unknown = str(marks["unk_token"])
        vocabulary, merges = self._byte_pairs()
        bpe = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, end_of_word_suffix="</w>"))
        if flavour is Flavour.CLIP:
            bpe.normalizer = _CLIP_NORMALIZER
            # The second cuts words once more; it makes a difference to marks that were not in lower case alone.
            bpe.pre_tokenizer = pre_tokenizers.Sequence([_split(_CLIP_WORDS), _letters(use_regex=True)])
        else:
            bpe.pre_tokenizer = _letters(use_regex=False)
        bpe.add_tokens(added)
        numbers = {name: self._number(bpe, str(mark)) for name, mark in marks.items()}
        if flavour is Flavour.CLIP:
            bpe.add_tokens([mark for mark in marks.values() if str(mark) not in set(map(str, added))])
        else:  # keras-cv knows these two, and only as words of their own
            bpe.add_special_tokens([START, END])
        return Tokenizer(bpe=bpe, start=numbers["bos_token"], end=numbers["eos_token"], pad=numbers["pad_token"], flavour=flavour)

    def _number(self, bpe: tokenizers.Tokenizer, token: str) -> int:
        number = bpe.token_to_id(token)
        if number is None:
            raise CheckpointError(f"the tokenizer's vocabulary in {self._folder} has no {token}")
        return number

    def _flavour(self) -> Flavour:
        value = self._config.get(FLAVOUR_KEY, Flavour.CLIP)
        if value not in set(Flavour):
            raise CheckpointError(
                f"the tokenizer in {self._folder} has the {FLAVOUR_KEY} {value!r}; there are {', '.join(Flavour)}"
            )
        return Flavour(value)

    def _byte_pairs(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Vocabulary and merges."""
        if self._serialized:
            model = self._serialized["model"]
            return model["vocab"], [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
        lines = (self._folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges: Any = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
        return json.loads((self._folder / "vocab.json").read_text(encoding="utf-8")), merges

    def _added_tokens(self) -> list[AddedToken]:
        """Tokens that are one wherever they stand, in the order of their numbers."""
        if (declared := self._config.get("added_tokens_decoder")) is not None:
            return [_added_token(token) for _, token in sorted(declared.items(), key=lambda item: int(item[0]))]
        added = {number: AddedToken(token) for token, number in self._optional("added_tokens.json").items()}
        added |= {token["id"]: _added_token(token) for token in self._serialized.get("added_tokens", [])}
        return [token for _, token in sorted(added.items())]

    def _marks(self) -> dict[str, AddedToken]:
        """What marks start and end, stands for the unknown, and fills up."""
        told = self._config
        if "added_tokens_decoder" not in told:
            told = told | self._optional("special_tokens_map.json")
        marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
        return {name: _added_token(told.get(name) or mark, special=True) for name, mark in marks.items()}

    def _optional(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _added_token(token: str | Mapping[str, Any], **flags: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, **flags)
    known = {name: token[name] for name in ("lstrip", "rstrip", "single_word", "normalized", "special") if name in token}
    return AddedToken(token["content"], **{**known, **flags})
