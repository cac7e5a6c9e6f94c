from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.engines.test_cache import filled_by_another_process
from triptych.engines import CompiledNetwork
from triptych.engines.openvino import OpenVINOEngine
from triptych.errors import CheckpointError, EngineError, StartError
from triptych.stages import networks
from triptych.stages.decoder import DecoderStage
from triptych.stages.diffusion import DiffusionStage
from triptych.stages.image_encoder import ImageEncoderStage
from triptych.stages.text_encoder import TextEncoderStage

Kind = type[TextEncoderStage] | type[DiffusionStage] | type[DecoderStage]
STAGES: tuple[Kind, ...] = (TextEncoderStage, DiffusionStage, DecoderStage)


@pytest.mark.parametrize("kind", STAGES)
def test_the_second_start_is_from_compiled_networks(kind, options, cache_folder, caplog):
    first, second = (kind(replace(options, cache_folder=cache_folder, batch_sizes=(1,))) for _ in range(2))
    assert first.started_from_cache is None
    with caplog.at_level(logging.INFO):
        first.start()
        second.start()
    assert [stage.started_from_cache for stage in (first, second)] == [False, True]
    assert "networks compiled, float32 on openvino" in caplog.text
    assert "from compiled networks, float32 on openvino" in caplog.text
    first.close()
    second.close()


def test_a_start_from_compiled_networks_imports_no_keras(options, root):
    for kind in STAGES:
        stage = kind(options)
        stage.start()
        stage.close()
    code = f"""
import sys
from pathlib import Path
from tests.engines.test_cache import filled_by_another_process
from tests.stages.options import Options
from triptych.stages.decoder import DecoderStage
from triptych.stages.diffusion import DiffusionStage
from triptych.stages.text_encoder import TextEncoderStage

assert "openvino" not in sys.modules
for kind in (TextEncoderStage, DiffusionStage, DecoderStage):
    stage = kind(Options(model={options.model!r}, cache_folder=Path({str(options.cache_folder)!r})))
    stage.start()
    assert stage.started_from_cache
    stage.close()
assert not sys.modules.keys() & {{"keras", "tensorflow", "jax"}}
"""
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_other_weights_are_built_anew(options, tiny_model, tmp_path):
    stage = DecoderStage(options)
    stage.start()
    stage.close()

    other = shutil.copytree(tiny_model, tmp_path / "other")
    stage = DecoderStage(replace(options, model=str(other)))
    stage.start()
    assert stage.started_from_cache  # the same weights in another place are the same network
    stage.close()

    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    stage = DecoderStage(replace(options, model=str(other)))
    stage.start()
    assert stage.started_from_cache is False
    stage.close()


def test_a_model_that_is_not_there_fails_the_start(options):
    with pytest.raises(CheckpointError, match="there is no model 'vinyet'"):
        TextEncoderStage(replace(options, model="vinyet")).start()


def test_a_precision_that_is_not_there_fails_the_start(options):
    with pytest.raises(EngineError, match="openvino has no precision 'float8'"):
        TextEncoderStage(replace(options, precision="float8")).start()


async def test_a_precision_that_the_cpu_lacks_gives_way_visibly(options, monkeypatch, caplog):
    monkeypatch.setattr("triptych.engines.openvino.has_bfloat16", lambda: False)
    stage = TextEncoderStage(replace(options, precision="bfloat16"))
    with caplog.at_level(logging.WARNING):
        stage.start()
    assert (await stage.identity()).numerics.precision == "float32"
    assert [record.message for record in caplog.records] == [
        "this machine does not compute in bfloat16: the next best is taken, float32"
    ]
    stage.close()


def test_sizes_that_the_network_cannot_make_fail_the_start(options):
    with pytest.raises(StartError, match="must be multiples of 16, not 40; nearest is 32"):
        DiffusionStage(replace(options, sizes=((32, 40),))).start()
    with pytest.raises(StartError, match="must be multiples of 8, not 500; nearest is 496"):
        DecoderStage(replace(options, sizes=((500, 32),))).start()


async def test_sizes_may_be_chosen(options):
    stage = DecoderStage(replace(options, sizes=((64, 64), (32, 32))))
    stage.start()
    assert (await stage.identity()).sizes == ((64, 64), (32, 32))
    stage.close()


def test_a_start_leaves_no_more_in_the_cache_than_it_may(options, cache_folder):
    (unused,) = filled_by_another_process(cache_folder, "unused")
    stage = TextEncoderStage(replace(options, cache_folder=cache_folder, cache_bytes=0, batch_sizes=(1,)))
    stage.start()
    stage.close()
    assert not unused.exists()
    assert [folder.name.partition("-")[0] for folder in cache_folder.iterdir()] == ["text_encoder"]


def test_stages_that_start_side_by_side_take_turns_network_by_network(options, monkeypatch):
    """So that nobody else's memory is taken for a call's. The first one does not go on before the second one has come."""
    at_work: list[int] = []
    together: list[list[int]] = []
    second_came = threading.Event()
    turn = threading.Lock()

    class Turn:
        def __enter__(self) -> None:
            if not turn.acquire(blocking=False):
                second_came.set()
                turn.acquire()

        def __exit__(self, *exception: object) -> None:
            turn.release()

    def compile_visibly(self, *arguments, **options):
        at_work.append(threading.get_ident())
        together.append(at_work.copy())
        if len(at_work) > 1:
            second_came.set()
        return compile_(self, *arguments, **options)

    def warm_up_late(self):
        assert second_came.wait(60)
        warm_up(self)
        at_work.remove(threading.get_ident())

    compile_, warm_up = OpenVINOEngine.compile, CompiledNetwork.warm_up
    monkeypatch.setattr(OpenVINOEngine, "compile", compile_visibly)
    monkeypatch.setattr(CompiledNetwork, "warm_up", warm_up_late)
    monkeypatch.setattr(networks, "_one_at_a_time", Turn())
    stages = DecoderStage(options), ImageEncoderStage(options)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda stage: stage.start(), stages))
    assert [len(threads) for threads in together] == [1] * 4
    assert len({threads[0] for threads in together}) == 2
    for stage in stages:
        stage.close()


def test_a_failed_warm_up_fails_the_start(options, monkeypatch):
    def fail(self):
        raise EngineError("the warm-up gave values in images that are no numbers")

    monkeypatch.setattr(CompiledNetwork, "warm_up", fail)
    stage = DecoderStage(options)
    with pytest.raises(EngineError, match="no numbers"):
        stage.start()
    stage.close()
