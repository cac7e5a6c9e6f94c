"""Prompts of several chunks: what the text encoder joins, and what the diffusion stage makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest

from tests.stages.mixed_requests import latents_of
from tests.tiny_models import CONTEXT_LENGTH, TEXT_ENCODER, UNET
from triptych.contract import DenoiseRequest, EncodeRequest, State
from triptych.errors import CheckpointError, InvalidValue
from triptych.sampling.samplers import SAMPLERS
from triptych.stages.diffusion import DiffusionStage
from triptych.stages.evaluation import Network
from triptych.stages.text_encoder import TextEncoderStage

ROOM = CONTEXT_LENGTH - 2
"""Words in a chunk: each of the tiny model's is one token."""

WORDS = ("red", "a", "circle", "star", "on")


def words(count: int, start: int = 0) -> list[str]:
    return [WORDS[number % 5] for number in range(start, start + count)]


@pytest.fixture(scope="module")
def encoder(options) -> Iterator[TextEncoderStage]:
    stage = TextEncoderStage(replace(options, max_prompt_chunks=3, cached_contexts=0))
    stage.start()
    yield stage
    stage.close()


async def encode(stage: TextEncoderStage, *prompts: list[str], long_prompt: bool = True, truncate: bool = False):
    joined = tuple(map(" ".join, prompts))
    return await stage.encode(EncodeRequest(prompts=joined, long_prompt=long_prompt, truncate=truncate))


async def test_it_says_how_many_chunks_it_joins(encoder):
    assert (await encoder.identity()).max_prompt_chunks == 3


@pytest.mark.parametrize(("count", "chunks"), [(0, 1), (1, 1), (ROOM, 1), (ROOM + 1, 2), (2 * ROOM, 2), (3 * ROOM, 3)])
async def test_a_context_is_as_long_as_its_chunks(encoder, count, chunks):
    encoded = await encode(encoder, words(count))
    assert encoded.context.shape == (1, chunks * CONTEXT_LENGTH, TEXT_ENCODER.hidden_size)
    assert encoded.context.flags.c_contiguous
    assert encoded.warnings == ()


async def test_each_chunk_is_encoded_as_a_prompt_of_its_own(encoder):
    prompt = words(3 * ROOM - 5)
    parts = [prompt[start : start + ROOM] for start in range(0, len(prompt), ROOM)]
    one_by_one = [(await encode(encoder, part, long_prompt=False)).context[0] for part in parts]
    (joined,) = (await encode(encoder, prompt)).context
    np.testing.assert_array_equal(joined, np.concatenate(one_by_one))
    assert len({part.tobytes() for part in one_by_one}) == 3


async def test_prompts_of_one_request_have_equally_many_chunks(encoder):
    long, short = words(2 * ROOM + 3), words(4)
    encoded = await encode(encoder, long, short, [])
    alone = [(await encode(encoder, prompt)).context[0] for prompt in (long, short, [])]
    np.testing.assert_array_equal(encoded.context[0], alone[0])
    np.testing.assert_array_equal(encoded.context[1], np.concatenate([alone[1], alone[2], alone[2]]))
    np.testing.assert_array_equal(encoded.context[2], np.concatenate([alone[2]] * 3))


async def test_a_short_prompt_is_the_same_as_without(encoder):
    for prompt in ([], words(1), words(ROOM)):
        long, plain = await encode(encoder, prompt), await encode(encoder, prompt, long_prompt=False)
        np.testing.assert_array_equal(long.context, plain.context)


async def test_chunks_are_computed_once_where_contexts_are_kept(options):
    stage = TextEncoderStage(replace(options, max_prompt_chunks=2))
    stage.start()
    try:
        first = await encode(stage, words(2 * ROOM), words(ROOM), [])
        assert len(stage._contexts) == 3  # two chunks, of which the second prompt is the first, and the empty one
        np.testing.assert_array_equal(first.context, (await encode(stage, words(2 * ROOM), words(ROOM), [])).context)
    finally:
        stage.close()


@pytest.mark.parametrize(
    ("count", "long_prompt", "sentence"),
    [
        (15, False, "the prompt has 15 tokens, at most 14 fit; shorten it, or send truncate=true or long_prompt=true"),
        (42, False, "the prompt has 42 tokens, at most 14 fit; shorten it, or send truncate=true or long_prompt=true"),
        (
            43,
            False,
            "the prompt has 43 tokens, at most 14 fit; shorten it or send truncate=true; it fits when the text encoder and the "
            "diffusion stage are started with TRIPTYCH_MAX_PROMPT_CHUNKS=4 and long_prompt=true is sent",
        ),
        (
            57,
            True,
            "the prompt has 57 tokens, at most 42 fit; shorten it or send truncate=true; it fits when the text encoder and the "
            "diffusion stage are started with TRIPTYCH_MAX_PROMPT_CHUNKS=5",
        ),
    ],
)
async def test_a_prompt_that_is_too_long_is_refused_with_what_can_be_done(encoder, count, long_prompt, sentence):
    with pytest.raises(InvalidValue) as refused:
        await encode(encoder, [], words(count), long_prompt=long_prompt)
    assert (refused.value.message, refused.value.param) == (sentence, "prompt")


async def test_truncate_cuts_what_no_chunk_is_left_for(encoder):
    cut = await encode(encoder, words(50), words(3), truncate=True)
    assert cut.warnings == ("the prompt has 50 tokens, only the first 42 were used",)
    np.testing.assert_array_equal(cut.context, (await encode(encoder, words(42), words(3))).context)
    assert (await encode(encoder, words(42), truncate=True)).warnings == ()


def test_a_tokenizer_that_knows_more_than_the_text_encoder_is_refused(options, monkeypatch):
    monkeypatch.setattr("triptych.models.tokenizer.Tokenizer.vocabulary_size", 257)
    with pytest.raises(CheckpointError, match="the tokenizer has 257 tokens, the text encoder knows 256"):
        TextEncoderStage(options).start()


# Diffusion


@pytest.fixture(scope="module")
def diffusion(options) -> Iterator[DiffusionStage]:
    stage = DiffusionStage(replace(options, max_prompt_chunks=2, queue_size=64))
    stage.start()
    yield stage
    stage.close()


CONTEXTS = np.random.default_rng(17).standard_normal((9, 2 * CONTEXT_LENGTH, UNET.cross_attention_dim)).astype(np.float32)


def request_of(number: int, chunks: int, sampler: str = "ddim") -> DenoiseRequest:
    contexts = np.ascontiguousarray(CONTEXTS[:, : chunks * CONTEXT_LENGTH])
    return DenoiseRequest(
        context=contexts[number : number + 1],
        unconditional_context=contexts[-1:],
        seeds=np.array([number], np.uint64),
        width=32,
        height=32,
        sampler=sampler,
        num_steps=5,
        guidance_scale=(1.0, 3.0)[number % 2],
    )


def plant_a_leak(stage: DiffusionStage) -> None:
    """Rows get a little of what is in the same call."""

    def leaky(network: Network) -> Network:
        return lambda inputs: {name: array + np.float32(1e-6) * len(array) for name, array in network(inputs).items()}

    replace_networks(stage, leaky)


def replace_networks(stage: DiffusionStage, by: Callable[[Network], Network]) -> None:
    """As the batcher calls them: what it asks for at once, a compiled network may run in several calls, as they cost least."""
    assert stage._batcher is not None
    stage._batcher._networks = {shape: by(network) for shape, network in stage._batcher._networks.items()}


def hold_the_next_call(stage: DiffusionStage, number: int) -> None:
    """It waits until so many requests are there; after it they share calls."""
    batcher = stage._batcher
    assert batcher is not None
    is_next = iter([True])

    def held(network: Network) -> Network:
        def call(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            if next(is_next, False):
                with batcher._changed:
                    assert batcher._changed.wait_for(lambda: len(batcher._present()) == number, timeout=60)
            return network(inputs)

        return call

    replace_networks(stage, held)


async def test_it_says_how_many_chunks_it_takes(diffusion):
    identity = await diffusion.identity()
    assert (identity.context_length, identity.max_prompt_chunks) == (CONTEXT_LENGTH, 2)


async def test_short_and_long_prompts_at_once_give_the_bytes_that_each_gives_alone(diffusion):
    requests = [request_of(number, 1 + number % 2, sorted(SAMPLERS)[number % len(SAMPLERS)]) for number in range(8)]
    alone = [await latents_of(diffusion, request) for request in requests]
    together = await asyncio.gather(*(latents_of(diffusion, request) for request in requests))
    assert [latents.tobytes() for latents in together] == [latents.tobytes() for latents in alone]
    assert len({latents.tobytes() for latents in alone}) == len(requests)


async def test_company_that_shows_would_be_seen(options):
    stage = DiffusionStage(replace(options, max_prompt_chunks=2, queue_size=64))
    stage.start()
    try:
        plant_a_leak(stage)
        requests = [request_of(number, 2) for number in (1, 3, 5)]
        alone = [await latents_of(stage, request) for request in requests]
        hold_the_next_call(stage, len(requests))
        together = await asyncio.gather(*(latents_of(stage, request) for request in requests))
        assert [latents.tobytes() for latents in together] != [latents.tobytes() for latents in alone]
    finally:
        stage.close()


async def test_what_the_second_chunk_says_matters(diffusion):
    request = request_of(1, 2)
    other = request.context.copy()
    other[:, CONTEXT_LENGTH:] += 1
    assert (await latents_of(diffusion, request)).tobytes() != (
        await latents_of(diffusion, replace(request, context=other))
    ).tobytes()


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
async def test_a_long_prompt_is_resumed_from_every_state(diffusion, sampler):
    request = request_of(1, 2, sampler)
    expected = await latents_of(diffusion, request)
    events = [event async for event in diffusion.denoise(replace(request, progress_every=1))]
    states = [event.state for event in events if isinstance(event, State)]
    assert len(states) >= 4
    for state in states:
        np.testing.assert_array_equal(await latents_of(diffusion, replace(request, resume=state)), expected)


async def test_more_chunks_than_it_has_networks_for_are_refused(diffusion):
    long = np.zeros((1, 3 * CONTEXT_LENGTH, UNET.cross_attention_dim), np.float32)
    request = replace(request_of(0, 1), context=long)
    with pytest.raises(InvalidValue, match=r"the context is 3 chunks of 16, the diffusion model takes 2; .*MAX_PROMPT_CHUNKS=3"):
        await latents_of(diffusion, request)


async def test_nothing_is_compiled_after_the_start(diffusion, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a network was compiled for a request")

    monkeypatch.setattr("triptych.stages.networks.NetworkLoader.load", refuse)
    for chunks in (1, 2):
        for width, height in (await diffusion.identity()).sizes:
            await latents_of(diffusion, replace(request_of(0, chunks), width=width, height=height))
