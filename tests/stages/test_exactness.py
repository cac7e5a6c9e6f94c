"""The promise that a picture's bytes depend on its request alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from tests.stages.mixed_requests import COUNT, alone_and_together, check_mixed, differing, latents_of, run_mixed
from tests.stages.resume_states import request_of
from tests.stages.scripts import run_script
from triptych.contract import State
from triptych.engines import CompiledNetwork
from triptych.engines.exactness import example_rows, find_exactness
from triptych.errors import EngineError
from triptych.sampling.samplers import SAMPLERS
from triptych.stages.decoder import DecoderStage
from triptych.stages.diffusion import DiffusionStage
from triptych.stages.text_encoder import TextEncoderStage


@pytest.fixture
def stage(options) -> Iterator[DiffusionStage]:
    stage = DiffusionStage(replace(options, queue_size=2 * COUNT))
    stage.start()
    yield stage
    stage.close()


def networks_of(stage: DiffusionStage) -> list[CompiledNetwork]:
    assert stage._batcher is not None
    networks: list[Any] = list(stage._batcher._networks.values())
    return networks


def plant_an_inexact_size(network: CompiledNetwork, inexact: int) -> None:
    """At this size, rows get a little more than they should."""
    run = network._run
    network._run = lambda inputs: {
        name: array + np.float32(1e-6 if len(array) == inexact else 0) for name, array in run(inputs).items()
    }


def test_32_requests_at_once_give_the_bytes_that_each_gives_alone(options):
    answer = run_mixed("openvino", options.model, str(options.cache_folder))
    check_mixed(answer)
    assert answer["exact_batch_sizes"] == (1, 2, 4)


async def test_a_size_that_is_listed_as_exact_and_is_not_shows(stage):
    for network in networks_of(stage):
        plant_an_inexact_size(network, 4)
    alone, together = await alone_and_together(stage)
    assert differing(alone, together)


async def test_a_size_that_is_not_exact_is_found_and_then_not_run(stage):
    for network in networks_of(stage):
        plant_an_inexact_size(network, 4)
        exactness = find_exactness(network, example_rows(network.rows, 8))
        assert exactness.batch_sizes == (1, 2)
        assert 1e-7 < exactness.largest_difference < 1e-5
        network.use(exactness, exactly=True)
    alone, together = await alone_and_together(stage)
    assert differing(alone, together) == []


@pytest.mark.parametrize("kind", [TextEncoderStage, DiffusionStage, DecoderStage])
async def test_all_stages_say_whether_they_are_exact(options, kind, monkeypatch, caplog):
    def worst_of(network):
        exactness = find_exactness(network, example_rows(network.rows, 8))
        return replace(exactness, batch_sizes=(1, 2), largest_difference=0.25)

    monkeypatch.setattr("triptych.stages.networks.exactness_of", worst_of)
    for exact, difference in ((True, 0.0), (False, 0.25)):
        stage = kind(replace(options, exact=exact))
        stage.start()
        identity = asdict(await stage.identity())
        stage.close()
        assert (identity["exact"], identity["exact_batch_sizes"], identity["largest_difference"]) == (exact, (1, 2), difference)
    assert "exact=false: a row's batch-mates may change what the" in caplog.text


def test_a_stage_without_an_exact_size_does_not_start(options, monkeypatch):
    monkeypatch.setattr(
        "triptych.stages.networks.exactness_of",
        lambda network: replace(find_exactness(network, example_rows(network.rows, 8)), batch_sizes=()),
    )
    with pytest.raises(EngineError, match="no batch size of 1, 2, 4 gives a row the same bytes twice"):
        DiffusionStage(options).start()


def test_a_start_from_disk_tries_nothing(options, monkeypatch):
    stage = DiffusionStage(options)
    stage.start()
    stage.close()

    def refuse(*arguments):
        raise AssertionError("the batch sizes were tried although the answer is kept")

    monkeypatch.setattr("triptych.engines.exactness.find_exactness", refuse)
    stage.start()
    stage.close()
    assert stage.started_from_cache


async def test_cut_at_every_position_and_resumed_in_another_process_it_gives_the_same_bytes(stage, options, tmp_path):
    states: dict[str, Any] = {}
    results: dict[str, np.ndarray] = {}
    for sampler in SAMPLERS:
        request = request_of(sampler)
        results[sampler] = await latents_of(stage, request)
        events = [event async for event in stage.denoise(replace(request, progress_every=1))]
        for number, state in enumerate(event.state for event in events if isinstance(event, State)):
            states |= {f"{sampler}/{number}/{name}": array for name, array in asdict(state).items()}
    cut, ended = tmp_path / "states.npz", tmp_path / "results.npz"
    np.savez(cut, **states)

    run_script("tests.stages.resume_states", options.model, options.cache_folder, cut, ended)

    with np.load(ended, allow_pickle=False) as resumed:
        for sampler in SAMPLERS:
            cuts = [name for name in resumed.files if name.startswith(f"{sampler}/")]
            assert len(cuts) >= 5
            for name in cuts:
                np.testing.assert_array_equal(resumed[name], results[sampler])
