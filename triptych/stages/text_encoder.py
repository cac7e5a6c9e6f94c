"""The text encoder: prompts to contexts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from triptych.checkpoints.checkpoint import Network
from triptych.contract import Encoded, EncodeRequest, Float32, StageName, TextEncoderIdentity
from triptych.engines import RowSpec
from triptych.errors import CheckpointError, InvalidValue
from triptych.models.tokenizer import Tokenizer, unknown_words
from triptych.stages.call_batcher import CallBatcher
from triptych.stages.context_cache import ContextCache
from triptych.stages.local_stage import CallingStage
from triptych.stages.networks import NetworkLoader
from triptych.stages.options import StageOptions

Tokens = NDArray[np.int32]


class TextEncoderStage(CallingStage[TextEncoderIdentity]):
    """See `contract.TextEncoder`."""

    name = StageName.TEXT_ENCODER

    def __init__(self, options: StageOptions) -> None:
        super().__init__(options)
        self._contexts = ContextCache(options.cached_contexts)

    def load(self, networks: NetworkLoader) -> TextEncoderIdentity:
        facts, config = networks.files.facts, networks.files.text_encoder
        tokens = RowSpec(shape=(config.max_position_embeddings,), dtype="int32", below=config.vocab_size)
        self._tokenizer = Tokenizer.from_folder(networks.files.tokenizer)
        if self._tokenizer.vocabulary_size > config.vocab_size:
            has, knows = self._tokenizer.vocabulary_size, config.vocab_size
            raise CheckpointError(f"the tokenizer has {has} tokens, the text encoder knows {knows}: they do not belong together")
        self._known_words = None if facts.words is None else frozenset(facts.words)
        network = networks.load(Network.TEXT_ENCODER, {"tokens": tokens})
        self._network = CallBatcher(network, self._worker, capacity=network.capacity)
        return TextEncoderIdentity(
            model=facts.model,
            weights_digest=networks.weights_digest(Network.TEXT_ENCODER),
            numerics=networks.numerics,
            exact=self.options.exact,
            exact_batch_sizes=networks.exact_batch_sizes,
            largest_difference=networks.largest_difference,
            text_space=facts.text_space,
            context_length=config.max_position_embeddings,
            context_width=config.hidden_size,
            max_prompt_chunks=self.options.max_prompt_chunks,
        )

    async def encode(self, request: EncodeRequest, *, deadline: float | None = None) -> Encoded:
        identity = await self.identity()
        tokens, warnings = await asyncio.to_thread(self._tokenize, request, identity.context_length)
        rows, chunks, length = tokens.shape
        contexts = await self._contexts_of(tokens.reshape(rows * chunks, length), deadline)
        return Encoded(context=contexts.reshape(rows, chunks * length, -1), warnings=warnings)

    def _tokenize(self, request: EncodeRequest, length: int) -> tuple[Tokens, tuple[str, ...]]:
        """Tokens (B, k, T) of the prompts in k chunks, and what the caller should know of them."""
        if not request.prompts:
            raise InvalidValue("there is no prompt", param="prompt")
        rows = [self._tokenizer.tokens(prompt) for prompt in request.prompts]
        room = (self.options.max_prompt_chunks if request.long_prompt else 1) * (length - 2)
        longest = max(map(len, rows))
        if longest > room and not request.truncate:
            sentence = self._too_long(longest, length - 2, room, long_prompt=request.long_prompt)
            raise InvalidValue(sentence, param="prompt")
        tokens = self._tokenizer.in_chunks([row[:room] for row in rows], length)
        return tokens, tuple(self._warnings(request, rows, room))

    def _too_long(self, tokens: int, room: int, fitting: int, *, long_prompt: bool) -> str:
        """What can be done about a prompt of so many tokens, where a chunk has room for `room` and the request for `fitting`."""
        refusal = f"the prompt has {tokens} tokens, at most {fitting} fit; shorten it"
        needed = -(-tokens // room)
        if needed <= self.options.max_prompt_chunks:
            return f"{refusal}, or send truncate=true or long_prompt=true"
        return (
            f"{refusal} or send truncate=true; it fits when the text encoder and the diffusion stage are started with "
            f"TRIPTYCH_MAX_PROMPT_CHUNKS={needed}{'' if long_prompt else ' and long_prompt=true is sent'}"
        )

    def _warnings(self, request: EncodeRequest, rows: list[list[int]], room: int) -> Iterator[str]:
        for row in rows:
            if len(row) > room:
                yield f"the prompt has {len(row)} tokens, only the first {room} were used"
        if self._known_words is not None:
            unknown = unknown_words(" ".join(request.prompts), self._known_words)
            if unknown:
                yield f"the model does not know {', '.join(unknown)}"

    async def _contexts_of(self, tokens: Tokens, deadline: float | None) -> Float32:
        """Contexts (B, T, D), computed for those prompts alone that are not in the cache, each once."""
        keys = [row.tobytes() for row in tokens]
        contexts = {key: context for key in keys if (context := self._contexts.get(key)) is not None}
        missing = {key: row for key, row in zip(keys, tokens, strict=True) if key not in contexts}
        if missing:
            computed = await self._network({"tokens": np.stack(list(missing.values()))}, deadline=deadline)
            contexts |= zip(missing, computed["context"], strict=True)
            self._contexts.keep({key: contexts[key] for key in missing})
        return np.stack([contexts[key] for key in keys])
