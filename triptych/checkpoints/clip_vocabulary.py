"""CLIP's vocabulary as OpenAI published it: a compressed list of merges, from which the tokens follow."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from triptych.errors import CheckpointError
from triptych.models.tokenizer import END, START

MERGES = 49152 - 256 - 2
"""How many of the list CLIP uses; the rest are of a larger vocabulary."""


def read_clip_vocabulary(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens by number and merges in order, of `bpe_simple_vocab_16e6.txt.gz`.

    Raises:
        CheckpointError: The file is missing, or is not that one.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : MERGES + 1]
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {path}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines) if right]
    if len(merges) != MERGES:
        raise CheckpointError(f"{path} is not CLIP's vocabulary: of its first {MERGES} lines {len(merges)} are merges")
    letters = _letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges), START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def _letters() -> list[str]:
    """A visible letter for each byte: first those that are visible themselves, then stand-ins for the rest."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, visible), *(chr(256 + i) for i in range(256 - len(visible)))]
