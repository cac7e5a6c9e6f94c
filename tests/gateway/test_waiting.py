"""A stage that is gone, is exchanged, or breaks off: its requests wait and are taken up again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator

import pytest

from tests.fakes import FakeDecoder, FakeDiffusion, with_profile
from tests.gateway.running import Connection, Stages, client_of, events_of, until
from triptych.contract import Denoised, DenoiseEvent, DenoiseRequest
from triptych.errors import StageBrokeOff, StageFailed, StageNotReady
from triptych.gateway import registry
from triptych.gateway.registry import Model

BODY = {"prompt": "x", "num_steps": 3, "seed": 7}
GONE = StageNotReady("the diffusion stage is stopping", stage="diffusion")
BROKE = StageBrokeOff("the diffusion stage broke off", stage="diffusion")


@pytest.fixture(autouse=True)
def asked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "ASK_AGAIN_SECONDS", 0.01)


class BreakingDiffusion(FakeDiffusion):
    """Breaks off after some evaluations, as often as it is told, and then does not any more."""

    def __init__(self, *errors: Exception, after: int = 2) -> None:
        super().__init__()
        self.errors = list(errors)
        self.after = after

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
        told = 0
        async for event in super().denoise(request, deadline=deadline):
            if told == self.after and self.errors:
                raise self.errors.pop(0)
            told += 1
            yield event


class SilentDiffusion(FakeDiffusion):
    """Tells nothing on the way, as a stage of somebody else."""

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
        async for event in super().denoise(request, deadline=deadline):
            if isinstance(event, Denoised):
                yield event


class CountingDiffusion(FakeDiffusion):
    """Counts how often it is asked who it is."""

    questions = 0

    async def identity(self):
        self.questions += 1
        return await super().identity()


def document_of(connection: Connection) -> dict:
    return json.loads(connection.body)


class TestAStageThatIsGone:
    @pytest.mark.parametrize("missing", ["text_encoder", "diffusion", "decoder"])
    @pytest.mark.parametrize("accept", ["application/json", "image/png", "text/event-stream"])
    async def test_a_request_waits_until_it_is_back(self, missing: str, accept: str) -> None:
        stages = Stages()
        getattr(stages, missing).started = False
        app = stages.app()
        connection = Connection(app, BODY, accept=accept)
        await until(lambda: app.state.gateway.admission.running == 1)
        assert connection.status == (200 if "event" in accept else None)

        getattr(stages, missing).started = True
        await until(connection.task.done)

        assert connection.status == 200
        assert stages.diffusion.asked[0].seeds.tolist() == [7]
        if "event" in accept:
            assert [name for name, _ in events_of(connection.body.decode())][-1] == "completed"

    async def test_all_who_wait_share_one_question_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry, "ASK_AGAIN_SECONDS", 0.1)
        diffusion = CountingDiffusion(started=False)
        stages = Stages(diffusion=diffusion)
        app = stages.app()
        connections = [Connection(app, BODY) for _ in range(20)]
        await until(lambda: app.state.gateway.admission.running == 20)
        asked_at_arrival, began = diffusion.questions, time.monotonic()
        await asyncio.sleep(0.5)
        asked = diffusion.questions - asked_at_arrival
        at_most = (time.monotonic() - began) / 0.1 + 1

        stages.diffusion.started = True
        await asyncio.gather(*(connection.task for connection in connections))

        assert 1 <= asked <= at_most
        assert [connection.status for connection in connections] == [200] * 20

    async def test_when_the_wait_is_over_the_caller_reads_why(self) -> None:
        stages = Stages()
        stages.diffusion.started = False
        async with stages.client(stage_wait_seconds=0.1) as client:
            began = time.monotonic()
            answer = await client.post("/generate", json=BODY)
            took = time.monotonic() - began
        assert answer.status_code == 503
        assert answer.json()["error"] == {
            "message": "the diffusion stage is still starting; waited 0 s",
            "type": "stage_not_ready_error",
            "param": "diffusion",
            "code": "stage_not_ready",
        }
        assert took >= 0.1

    async def test_nobody_waits_longer_than_the_requests_own_deadline(self) -> None:
        stages = Stages()
        stages.diffusion.started = False
        async with stages.client() as client:
            answer = await client.post("/generate", json=BODY, headers={"X-Request-Timeout-Seconds": "1.2"})
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "the diffusion stage is still starting; waited 1 s"

    async def test_a_stage_that_says_nothing_before_the_deadline_is_too_slow(self) -> None:
        class Silent(FakeDiffusion):
            async def identity(self):
                await asyncio.Event().wait()

        gate = asyncio.Event()
        stages = Stages(diffusion=FakeDiffusion(gate=gate))
        app = stages.app(max_running_requests=1)
        running = Connection(app, BODY)
        await until(lambda: stages.diffusion.asked)
        async with client_of(app) as client:
            request = client.post("/generate", json=BODY, headers={"X-Request-Timeout-Seconds": "0.5"})
            waiting = asyncio.create_task(request)
            await until(lambda: app.state.gateway.admission.waiting == 1)
            (before,) = app.state.gateway.registry
            app.state.gateway.registry.replace([Model("", Stages(diffusion=Silent()).pipeline)])
            before.forget()
            gate.set()
            answer = await waiting
        await running.task
        assert answer.status_code == 504
        assert "the diffusion stage did not say who it is" in answer.json()["error"]["message"]

    async def test_who_waits_has_a_place_and_those_behind_keep_theirs(self) -> None:
        stages = Stages()
        stages.diffusion.started = False
        app = stages.app(max_running_requests=1, max_waiting_requests=1)
        admission = app.state.gateway.admission
        first = Connection(app, {**BODY, "prompt": "first"})
        await until(lambda: admission.running == 1)
        second = Connection(app, {**BODY, "prompt": "second"})
        await until(lambda: admission.waiting == 1)
        third = Connection(app, BODY)
        await third.task
        assert third.status == 429

        stages.diffusion.started = True
        await asyncio.gather(first.task, second.task)

        assert [request.prompts[0] for request in stages.text_encoder.asked] == ["first", "second"]
        assert document_of(first)["timings"]["queue_seconds"] > 0

    @pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
    async def test_who_waits_can_be_cancelled(self, accept: str) -> None:
        stages = Stages()
        stages.diffusion.started = False
        app = stages.app()
        connection = Connection(app, BODY, accept=accept, name="mine")
        await until(lambda: app.state.gateway.admission.running == 1)

        async with client_of(app) as client:
            assert (await client.delete("/requests/mine")).status_code == 204
        await connection.task

        assert app.state.gateway.admission.running == 0
        error = dict(events_of(connection.body.decode()))["error"] if "event" in accept else document_of(connection)
        assert error["error"]["code"] == "request_cancelled"

    @pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
    async def test_who_waits_may_leave(self, accept: str) -> None:
        stages = Stages()
        stages.diffusion.started = False
        app = stages.app()
        connection = Connection(app, BODY, accept=accept)
        await until(lambda: app.state.gateway.admission.running == 1)

        await connection.close()

        assert app.state.gateway.admission.running == 0
        stages.diffusion.started = True
        async with client_of(app) as client:
            assert (await client.post("/generate", json=BODY)).status_code == 200
        assert len(stages.text_encoder.asked) == 1


class TestAnotherModelInItsPlace:
    async def test_defaults_are_its_own_and_a_drawn_seed_stays(self) -> None:
        stages = Stages(diffusion=FakeDiffusion(failure=GONE))
        connection = Connection(stages.app(), {"prompt": "x"})
        await until(lambda: stages.diffusion.asked)
        with_profile(stages.diffusion, model="another", samplers=("euler",), default_num_steps=2)
        stages.diffusion.failure = None
        await connection.task

        first, *_, last = stages.diffusion.asked
        answer = document_of(connection)
        assert answer["model"] == "another"
        assert (answer["parameters"]["sampler"], answer["parameters"]["num_steps"]) == ("euler", 2)
        assert answer["parameters"]["seed"] == first.seeds[0] == last.seeds[0]
        assert answer["receipt"]["stages"]["diffusion"]["model"] == "another"
        assert answer["warnings"] == [], "nothing was lost: it had not begun"

    @pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
    async def test_what_it_cannot_do_the_caller_reads(self, accept: str) -> None:
        stages = Stages(diffusion=FakeDiffusion(failure=GONE))
        connection = Connection(stages.app(), {**BODY, "sampler": "ddim"}, accept=accept)
        await until(lambda: stages.diffusion.asked)
        with_profile(stages.diffusion, samplers=("euler",))
        await connection.task

        error = dict(events_of(connection.body.decode()))["error"] if "event" in accept else document_of(connection)
        assert connection.status == (200 if "event" in accept else 422)
        assert error["error"]["param"] == "sampler"
        assert error["error"]["message"] == 'sampler must be one of euler, not "ddim"'

    async def test_a_request_in_line_is_for_the_model_that_is_there_at_its_turn(self) -> None:
        gate = asyncio.Event()
        stages = Stages(diffusion=FakeDiffusion(gate=gate))
        app = stages.app(max_running_requests=1)
        running = Connection(app, BODY)
        await until(lambda: stages.diffusion.asked)
        waiting = Connection(app, {"prompt": "x"})
        await until(lambda: app.state.gateway.admission.waiting == 1)

        with_profile(stages.diffusion, model="another", default_num_steps=2)
        await app.state.gateway.registry.learn()
        gate.set()
        await asyncio.gather(running.task, waiting.task)

        assert document_of(running)["model"] == "fake"
        assert (document_of(waiting)["model"], document_of(waiting)["parameters"]["num_steps"]) == ("another", 2)

    async def test_a_model_that_was_replaced_while_its_requests_waited_is_not_waited_for(self) -> None:
        gate = asyncio.Event()
        gone, there = Stages(diffusion=FakeDiffusion(started=False)), Stages(diffusion=FakeDiffusion(gate=gate))
        app = gone.app()
        gateway = app.state.gateway
        connection = Connection(app, BODY)
        await until(lambda: gateway.admission.running == 1)

        with_profile(there.diffusion, model="another")
        gateway.registry.replace([Model("", there.pipeline)])
        await until(lambda: there.diffusion.asked)
        assert gateway.registry.retiring == [], "it has no request any more, though this one is not answered yet"

        gate.set()
        await connection.task
        assert document_of(connection)["model"] == "another"


class TestAStageThatBreaksOff:
    @pytest.mark.parametrize("error", [BROKE, GONE])
    async def test_the_same_picture_is_made_from_the_beginning(self, error: StageNotReady | StageBrokeOff) -> None:
        stages = Stages(diffusion=BreakingDiffusion(error))
        async with stages.client() as client:
            answer = (await client.post("/generate", json=BODY)).json()
        async with Stages().client() as client:
            undisturbed = (await client.post("/generate", json=BODY)).json()

        assert len(stages.diffusion.asked) == 2
        assert answer["warnings"] == [f"{error}; the pictures were begun anew"]
        assert answer["images"] == undisturbed["images"]
        assert answer["receipt"] == undisturbed["receipt"]

    async def test_once_and_not_twice(self) -> None:
        stages = Stages(diffusion=BreakingDiffusion(BROKE, BROKE))
        async with stages.client() as client:
            answer = await client.post("/generate", json=BODY)
        assert answer.status_code == 502
        assert answer.json()["error"]["message"] == "the diffusion stage broke off"
        assert len(stages.diffusion.asked) == 2

    @pytest.mark.parametrize("diffusion", [FakeDiffusion, SilentDiffusion])
    async def test_so_is_one_whose_decoder_is_gone_when_it_comes(self, diffusion: type[FakeDiffusion]) -> None:
        failure = StageNotReady("the decoder stage is stopping", stage="decoder")
        stages = Stages(diffusion=diffusion(), decoder=FakeDecoder(failure=failure))
        connection = Connection(stages.app(), BODY)
        await until(lambda: stages.decoder.asked)
        stages.decoder.failure = None
        await connection.task
        assert document_of(connection)["warnings"] == ["the decoder stage is stopping; the pictures were begun anew"]

    async def test_one_that_never_comes_back_is_waited_for_in_vain(self) -> None:
        class Dying(BreakingDiffusion):
            async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None):
                async for event in super().denoise(request, deadline=deadline):
                    yield event
                    self.started = False

        stages = Stages(diffusion=Dying(BROKE))
        async with stages.client(stage_wait_seconds=0.1) as client:
            answer = await client.post("/generate", json=BODY)
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "the diffusion stage is still starting; waited 0 s"

    async def test_not_where_nobody_is_to_wait(self) -> None:
        stages = Stages(diffusion=BreakingDiffusion(BROKE))
        async with stages.client(stage_wait_seconds=0) as client:
            answer = await client.post("/generate", json=BODY)
        assert (answer.status_code, len(stages.diffusion.asked)) == (502, 1)

    async def test_an_error_that_the_stage_answered_is_not_asked_for_again(self) -> None:
        stages = Stages(diffusion=FakeDiffusion(failure=StageFailed("computed NaN", stage="diffusion")))
        async with stages.client() as client:
            answer = await client.post("/generate", json=BODY)
        assert (answer.status_code, len(stages.diffusion.asked)) == (502, 1)

    async def test_previews_are_no_more_than_were_asked_for(self) -> None:
        class Slow(BreakingDiffusion):
            """Leaves the decoder time for a preview of each state."""

            async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None):
                async for event in super().denoise(request, deadline=deadline):
                    await asyncio.sleep(0.02)
                    yield event

        stages = Stages(diffusion=Slow(BROKE, after=13))
        async with stages.client() as client:
            body = {**BODY, "num_steps": 12, "previews": 3}
            answer = await client.post("/generate", json=body, headers={"Accept": "text/event-stream"})
        events = list(events_of(answer.text))
        assert events[-1][0] == "completed"
        assert len(events[-1][1]["warnings"]) == 1
        assert [name for name, _ in events].count("preview") == 3
