from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.tiny_models import CONTEXT_LENGTH, FACTS, TEXT_ENCODER
from triptych.contract import EncodeRequest
from triptych.errors import InvalidValue, StageNotReady, StageTimeout
from triptych.stages.text_encoder import TextEncoderStage


@pytest.fixture
def stage(options) -> Iterator[TextEncoderStage]:
    stage = TextEncoderStage(options)
    stage.start()
    yield stage
    stage.close()


@pytest.fixture
def calls(stage) -> list[int]:
    """The number of prompts of each call of the network."""
    calls = []
    network = stage._network._network

    def count(inputs):
        calls.append(len(inputs["tokens"]))
        return network(inputs)

    stage._network._network = count
    return calls


async def encode(stage, *prompts: str, **arguments):
    return await stage.encode(EncodeRequest(prompts=prompts, **arguments))


async def test_it_says_who_it_is(stage):
    identity = await stage.identity()
    assert identity.model == "tiny"
    assert identity.text_space == FACTS.text_space
    assert (identity.context_length, identity.context_width) == (CONTEXT_LENGTH, TEXT_ENCODER.hidden_size)
    assert len(identity.weights_digest) == 64
    assert (identity.numerics.engine, identity.numerics.precision, identity.numerics.device) == ("openvino", "float32", "cpu")


async def test_it_is_not_ready_before_its_start_and_after_its_end(options):
    stage = TextEncoderStage(options)
    with pytest.raises(StageNotReady, match="text_encoder stage is starting or stopping"):
        await encode(stage, "a red circle")
    stage.start()
    await stage.identity()
    stage.close()
    with pytest.raises(StageNotReady):
        await stage.identity()


async def test_prompts_become_contexts_one_a_row(stage):
    encoded = await encode(stage, "a red circle", "a blue star", "a red circle")
    assert encoded.context.shape == (3, CONTEXT_LENGTH, TEXT_ENCODER.hidden_size)
    assert encoded.context.dtype == np.float32
    np.testing.assert_array_equal(encoded.context[0], encoded.context[2])
    assert np.abs(encoded.context[0] - encoded.context[1]).max() > 0.1
    assert encoded.warnings == ()


async def test_a_prompt_means_the_same_whatever_its_company(stage, options):
    together = await encode(stage, "a red circle", "a blue star", "a green square")
    fresh = TextEncoderStage(replace(options, cached_contexts=0))
    fresh.start()
    alone = await encode(fresh, "a green square")
    np.testing.assert_array_equal(alone.context[0], together.context[2])
    fresh.close()


async def test_a_prompt_is_computed_once(stage, calls):
    first = await encode(stage, "a red circle", "", "a red circle")
    again = await encode(stage, "a red circle", "a blue star", "")
    assert calls == [2, 1]
    np.testing.assert_array_equal(first.context[:2], again.context[[0, 2]])


async def test_without_a_cache_every_prompt_is_computed(options):
    stage = TextEncoderStage(replace(options, cached_contexts=0))
    stage.start()
    first, again = await encode(stage, "a star"), await encode(stage, "a star")
    np.testing.assert_array_equal(first.context, again.context)
    assert len(stage._contexts) == 0
    stage.close()


async def test_more_prompts_than_the_cache_holds_are_all_encoded(options):
    stage = TextEncoderStage(replace(options, cached_contexts=1))
    stage.start()
    prompts = ("a red star", "a blue star", "a green star", "a white star", "a black star")
    encoded = await encode(stage, *prompts)
    one = await encode(stage, prompts[0])
    np.testing.assert_array_equal(encoded.context[:1], one.context)
    stage.close()


async def test_a_prompt_that_is_too_long_is_refused_with_its_number_of_tokens(stage):
    fits = " ".join(["red"] * (CONTEXT_LENGTH - 2))
    await encode(stage, fits)
    with pytest.raises(InvalidValue, match=f"has {CONTEXT_LENGTH - 1} tokens, at most {CONTEXT_LENGTH - 2} fit"):
        await encode(stage, fits + " red")


async def test_a_prompt_that_is_too_long_is_cut_where_that_was_asked_for(stage):
    fits = " ".join(["red"] * (CONTEXT_LENGTH - 2))
    cut = await encode(stage, fits + " blue", truncate=True)
    assert cut.warnings == ("the prompt has 15 tokens, only the first 14 were used",)
    np.testing.assert_array_equal(cut.context, (await encode(stage, fits)).context)


async def test_unknown_words_are_a_warning(stage):
    encoded = await encode(stage, "A red dragon", "on a purple dragon")
    assert encoded.warnings == ("the model does not know dragon, purple",)


async def test_no_prompt_is_refused(stage):
    with pytest.raises(InvalidValue, match="there is no prompt"):
        await encode(stage)


async def test_two_requests_at_once_both_succeed(stage):
    one, other = await asyncio.gather(encode(stage, "a red star"), encode(stage, "a blue star"))
    assert np.abs(one.context - other.context).max() > 0.1


async def test_past_the_deadline_nothing_is_computed(stage, calls):
    with pytest.raises(StageTimeout, match="text_encoder"):
        await stage.encode(EncodeRequest(prompts=("a red star",)), deadline=0.0)
    assert calls == []
    assert len(stage._contexts) == 0
