"""Our tokenizer against transformers' CLIPTokenizer, on CLIP's own vocabulary."""

# ruff: noqa: RUF001 (letters that look like others are what a tokenizer must not confuse)
from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path

import pytest
import transformers

from triptych.models.tokenizer import END, START, Tokenizer

VOCABULARY = Path(__file__).resolve().parents[3] / "shared" / "data" / "bpe_simple_vocab_16e6.txt.gz"
LENGTH = 77

PROMPTS = [
    "",
    " ",
    "a",
    "a photo of an astronaut riding a horse on mars",
    "A Photo Of An ASTRONAUT Riding A Horse On Mars",
    "  leading,  double   and trailing spaces   ",
    "tabs\tand\nnew\r\nlines",
    "a red circle on a blue background",
    "don't, can't, it's, they're, I've, we'll, she'd, I'm",
    "DON'T SHOUT, IT'S RUDE",
    "rock'n'roll 'quoted' ''twice''",
    "1234567890",
    "in 1984 there were 99 luftballons",
    "3.14159, 1,000,000 and 50%",
    "4k, 8k, uhd, f/1.8, 35mm, iso-400",
    "hello!!! what??? no... yes?!",
    "(masterpiece:1.2), [bad hands], {best quality}",
    "((((very nested))))",
    "trending on artstation, by greg rutkowski and alphonse mucha",
    "semi-detached state-of-the-art co-op",
    "snake_case and camelCase and kebab-case",
    "https://example.org/path?query=1&other=two#fragment",
    "mail@example.org",
    "#hashtag @mention $100 €50 £20 ¥1000",
    "a & b < c > d",
    "&amp; &lt;b&gt; &#39;",
    "<b>bold</b>",
    "back\\slash / slash | pipe ~ tilde ` tick ^ hat",
    "café naïve façade",
    "cafe\u0301 nai\u0308ve",
    "Ångström ÅNGSTRÖM ångström",
    "straße STRASSE",
    "İstanbul ISTANBUL ıstanbul",
    "Москва зимой",
    "Αθήνα ΑΘΗΝΑ",
    "北京的冬天",
    "東京タワーの夜景",
    "서울의 밤",
    "מגדל בירושלים",
    "القاهرة ليلا",
    "ประเทศไทย",
    "हिन्दी में लिखा",
    "🐱 and 🐶",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag",
    "zero\u200bwidth and non\u00a0breaking and em\u2003space",
    "\ufb01ne \ufb02our ligatures",
    "x² + y³ = ½ ⅓ Ⅳ",
    "“curly quotes” ‘single’ — dash – en … ellipsis",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "the word <|endoftext|> in the middle",
    "<|startoftext|>a prompt that brings its own mark",
    "one two three " * 40,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's vocabulary as vocab.json and merges.txt: bytes, bytes at a word's end, merges, marks."""
    if not VOCABULARY.exists():
        pytest.skip(f"CLIP's vocabulary is not at {VOCABULARY.name} beside the repository")
    lines = gzip.decompress(VOCABULARY.read_bytes()).decode().splitlines()
    merges = [tuple(line.split()) for line in islice(lines, 1, 49152 - 256 - 2 + 1)]
    letters = list(_byte_letters())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]))
    return folder


def test_tokens_are_those_of_transformers(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    theirs = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
    ours = Tokenizer.from_folder(folder)
    assert ours.vocabulary_size == 49408

    expected = theirs(PROMPTS, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    tokens = ours.encode(PROMPTS, LENGTH, truncate=True)

    assert {prompt: row.tolist() for prompt, row in zip(PROMPTS, tokens, strict=True)} == dict(
        zip(PROMPTS, expected, strict=True)
    )
    assert [ours.count(prompt) for prompt in PROMPTS] == [len(row) for row in theirs(PROMPTS)["input_ids"]]


def test_known_numbers(folder: Path) -> None:
    # The numbers that every user of Stable Diffusion 1 has seen.
    ours = Tokenizer.from_folder(folder)
    assert ours.encode(["a photo of an astronaut"], 8)[0].tolist() == [49406, 320, 1125, 539, 550, 18376, 49407, 49407]


def _byte_letters() -> list[str]:
    """A printable letter for every byte, printable bytes first: the order of GPT-2's and CLIP's vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]
