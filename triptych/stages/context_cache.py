"""Contexts of the prompts that were asked for last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from triptych.contract import Float32


class ContextCache:
    """The last `size` contexts (T, D) that were asked for, by the bytes of their prompt's tokens."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._contexts: OrderedDict[bytes, Float32] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contexts)

    def get(self, tokens: bytes) -> Float32 | None:
        if tokens in self._contexts:
            self._contexts.move_to_end(tokens)
        return self._contexts.get(tokens)

    def keep(self, contexts: Mapping[bytes, Float32]) -> None:
        for tokens, context in contexts.items():
            self._contexts[tokens] = context.copy()  # a row of a batch would keep the whole batch alive
            self._contexts.move_to_end(tokens)
        while len(self._contexts) > self.size:
            self._contexts.popitem(last=False)
