from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.prompts import PROMPTS, VOCABULARY, byte_letters, clip_vocabulary, digest_of
from tests.tiny_models import ROOT, WORDS, tiny_tokenizer
from triptych.errors import CheckpointError, InvalidValue
from triptych.models.tokenizer import END, START, Flavour, Tokenizer, save_tokenizer, unknown_words

STORED = Path(__file__).parent / "prompts.npz"
"""Written by tests/reference/store_prompts.py."""


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


def in_words(tokenizer: Tokenizer, tokens: np.ndarray) -> list[str]:
    """Each chunk of one row, as text: `[` and `]` are the marks, `_` what fills up behind the end."""
    names = {tokenizer.start: "[", tokenizer.end: "]"}
    chunks = []
    for chunk in tokens:
        text = "".join(names.get(token) or str(tokenizer.bpe.id_to_token(token)).replace("</w>", ".") for token in chunk)
        end = text.index("]") + 1
        chunks.append(text[:end] + text[end:].replace("]", "_"))
    return chunks


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([""], [["[]___"]]),
        (["a red star"], [["[a.red.star.]"]]),
        (["a red star on"], [["[a.red.star.]", "[on.]__"]]),
        (["a red star on a white circle"], [["[a.red.star.]", "[on.a.white.]", "[circle.]__"]]),
        (["a red star on a white"], [["[a.red.star.]", "[on.a.white.]"]]),
        # A word of several tokens is cut where the chunk is full.
        (["a red xyz a"], [["[a.red.x]", "[yz.a.]"]]),
        # Rows of one request have the same number of chunks; an empty one is an empty prompt.
        (["a red star on", "", "a"], [["[a.red.star.]", "[on.]__"], ["[]___", "[]___"], ["[a.]__", "[]___"]]),
    ],
)
def test_chunks_are_full_before_the_next_begins_and_each_has_its_marks(tokenizer: Tokenizer, prompts, expected):
    tokens = tokenizer.in_chunks([tokenizer.tokens(prompt) for prompt in prompts], 5)
    assert tokens.dtype == np.int32
    assert tokens.shape == (len(prompts), len(expected[0]), 5)
    assert [in_words(tokenizer, row) for row in tokens] == expected


@pytest.mark.parametrize(("words", "chunks"), [(0, 1), (1, 1), (75, 1), (76, 2), (150, 2), (151, 3), (225, 3)])
def test_chunks_of_75(tokenizer: Tokenizer, words: int, chunks: int):
    tokens = tokenizer.in_chunks([tokenizer.tokens("star " * words)], 77)
    assert tokens.shape == (1, chunks, 77)
    assert np.count_nonzero(tokens == tokenizer.tokens("star")[0]) == words
    assert (tokens[0, :, 0] == tokenizer.start).all()


def test_no_prompts_are_no_rows(tokenizer: Tokenizer):
    assert tokenizer.in_chunks([], 5).shape == (0, 1, 5)
    assert tokenizer.encode([], 5).shape == (0, 5)


def test_half_a_surrogate_pair_is_refused(folder: Path):
    for flavour in Flavour:
        save_tokenizer(folder, *tiny_tokenizer(), length=16, flavour=flavour)
        with pytest.raises(InvalidValue, match="prompt has a text that is not valid Unicode"):
            Tokenizer.from_folder(folder).tokens("a \ud83d")


def test_an_empty_prompt_is_its_marks(tokenizer: Tokenizer):
    assert tokenizer.count("") == 2
    assert tokenizer.encode([""], 2)[0].tolist() == [tokenizer.start, tokenizer.end]


# What stands beside the vocabulary


def tell(folder: Path, file: str, **values) -> None:
    (folder / file).write_text(json.dumps(values))


def pad_of(folder: Path) -> str:
    tokenizer = Tokenizer.from_folder(folder)
    return str(tokenizer.bpe.id_to_token(tokenizer.pad))


def test_the_pad_is_that_of_the_newest_kind_of_file(folder: Path):
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert pad_of(folder) == END
    tell(folder, "tokenizer_config.json", pad_token={"__type": "AddedToken", "content": "?", "normalized": True})
    assert pad_of(folder) == "?"
    tell(folder, "special_tokens_map.json", pad_token="!")
    assert pad_of(folder) == "!"
    tell(folder, "tokenizer_config.json", pad_token="?", added_tokens_decoder={"1": {"content": "!", "special": True}})
    assert pad_of(folder) == "?"


def test_a_pad_is_one_token_wherever_it_stands(folder: Path):
    # transformers makes a token of its own of every mark: the exclamation marks of Stable Diffusion 2's prompts are all 0.
    vocabulary, _ = tiny_tokenizer()
    assert Tokenizer.from_folder(folder).tokens("a!b") == [vocabulary[token] for token in ("a</w>", "!</w>", "b</w>")]
    tell(folder, "special_tokens_map.json", pad_token="!")
    assert Tokenizer.from_folder(folder).tokens("a!b") == [vocabulary[token] for token in ("a</w>", "!", "b</w>")]


def test_what_is_declared_of_a_mark_stands(folder: Path):
    vocabulary, _ = tiny_tokenizer()
    shouted = f"a {END.upper()}"
    assert Tokenizer.from_folder(folder).tokens(shouted) != [vocabulary["a</w>"], vocabulary[END]]
    declared = {str(vocabulary[END]): {"content": END, "normalized": True, "special": True}}
    tell(folder, "tokenizer_config.json", eos_token=END, added_tokens_decoder=declared)
    assert Tokenizer.from_folder(folder).tokens(shouted) == [vocabulary["a</w>"], vocabulary[END]]


def test_tokens_that_were_added_follow_the_vocabulary(folder: Path):
    vocabulary, _ = tiny_tokenizer()
    tell(folder, "added_tokens.json", **{"<star-ship>": len(vocabulary), "xyz": len(vocabulary) + 1})
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.tokens("a <Star-Ship> xyz") == [vocabulary["a</w>"], len(vocabulary), len(vocabulary) + 1]
    assert tokenizer.vocabulary_size == len(vocabulary) + 2


def test_one_file_can_hold_it_all(folder: Path):
    vocabulary, merges = tiny_tokenizer()
    expected = Tokenizer.from_folder(folder).encode(["a RED circle, xyz"], 16)
    for joined in (merges, [" ".join(pair) for pair in merges]):
        added = [{"id": vocabulary[mark], "content": mark, "special": True, "normalized": False} for mark in (START, END)]
        tell(folder, "tokenizer.json", model={"type": "BPE", "vocab": vocabulary, "merges": joined}, added_tokens=added)
        for file in ("vocab.json", "merges.txt"):
            (folder / file).unlink(missing_ok=True)
        assert (Tokenizer.from_folder(folder).encode(["a RED circle, xyz"], 16) == expected).all()


def test_a_flavour_that_does_not_exist_is_refused(folder: Path):
    tell(folder, "tokenizer_config.json", triptych_flavour="vanilla")
    with pytest.raises(CheckpointError, match="has the triptych_flavour 'vanilla'; there are clip, keras-cv"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("prompt", "clip", "keras_cv"),
    [
        ("a&amp;amp;b", "a & amp ; amp ; b", "a & b"),
        ("a<|endoftext|>b", "a END b", "a END b"),
        ("a,<|endoftext|>b", "a , END b", "a ,<| endoftext |> b"),
        ("a <|ENDOFTEXT|>", "a <| endoftext |>", "a END"),
        ("\x1ca", "\x1c a", "a"),
    ],
)
def test_the_flavours_differ(tmp_path: Path, prompt: str, clip: str, keras_cv: str):
    letters = byte_letters().values()
    vocabulary = {token: number for number, token in enumerate([*letters, *(letter + "</w>" for letter in letters), START, END])}
    for flavour, words in ((Flavour.CLIP, clip), (Flavour.KERAS_CV, keras_cv)):
        save_tokenizer(tmp_path, vocabulary, [], length=16, flavour=flavour)
        tokenizer = Tokenizer.from_folder(tmp_path)
        text = "".join(str(tokenizer.bpe.id_to_token(token)).replace(END, "END</w>") for token in tokenizer.tokens(prompt))
        assert text.replace("</w>", " ").replace(byte_letters()[0x1C], "\x1c").strip(" ") == words


@pytest.mark.skipif(not VOCABULARY.exists(), reason="CLIP's vocabulary is not beside the repository, in shared/data")
@pytest.mark.parametrize("flavour", Flavour)
def test_319_prompts_have_the_tokens_of_transformers_and_of_keras_cv(tmp_path: Path, flavour: Flavour):
    assert len(set(PROMPTS)) == 319
    save_tokenizer(tmp_path, *clip_vocabulary(), length=77, flavour=flavour)
    tokenizer = Tokenizer.from_folder(tmp_path)
    with np.load(STORED, allow_pickle=False) as stored:
        assert str(stored["digest"]) == digest_of(PROMPTS)
        expected = np.split(stored[f"{flavour}/tokens"], stored[f"{flavour}/ends"])
    tokens = {prompt: [tokenizer.start, *tokenizer.tokens(prompt), tokenizer.end] for prompt in PROMPTS}
    assert tokens == {prompt: row.tolist() for prompt, row in zip(PROMPTS, expected[:-1], strict=True)}


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
