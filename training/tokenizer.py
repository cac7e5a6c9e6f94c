"""A byte-pair vocabulary in which every word of the grammar is one token; other words fall into letters."""

from __future__ import annotations

import json
import string

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from training.cache import cache_folder, report
from training.world.captions import all_words
from triptych.models.tokenizer import END, START, Tokenizer, save_tokenizer

CONTEXT_LENGTH = 32
_MARKS = ",.!?:;'-"


def train_tokenizer() -> None:
    """Writes the tokenizer to the cache. One that is there stays: the text encoder was trained with it."""
    if (cache_folder("tokenizer") / "vocab.json").exists():
        return
    words = all_words()
    letters = list(string.ascii_lowercase + string.digits + _MARKS)
    bpe = tokenizers.Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # more than it takes: it stops when every word is whole
        special_tokens=[START, END],
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator([*words, *letters], trainer)
    state = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    save_tokenizer(cache_folder("tokenizer"), state["vocab"], merges, length=CONTEXT_LENGTH)
    ours = load_tokenizer()
    broken = [word for word in words if ours.count(word) != 3]
    assert not broken, broken
    report("tokenizer", vocabulary=ours.vocabulary_size, words=len(words))


def load_tokenizer() -> Tokenizer:
    """The tokenizer that `train_tokenizer` wrote."""
    return Tokenizer.from_folder(cache_folder("tokenizer"))
