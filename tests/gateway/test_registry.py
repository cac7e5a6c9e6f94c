from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
import structlog

from tests.fakes import FakeDecoder, FakeDiffusion, FakeImageEncoder, FakeTextEncoder, with_profile
from triptych.errors import NotFound, StageNotReady, StagesDoNotFit, StageTimeout
from triptych.gateway import registry as registry_module
from triptych.gateway.registry import NAMED_BY_ITS_DIFFUSION_STAGE, Identities, Model, Registry
from triptych.gateway.steps import KEPT_STEPS, StepKind, Steps
from triptych.pipeline import Pipeline


def fake_pipeline(**diffusion_profile: object) -> Pipeline:
    return Pipeline(FakeTextEncoder(), with_profile(FakeDiffusion(), **diffusion_profile), FakeDecoder())


class CountingDiffusion(FakeDiffusion):
    """Counts how often it is asked who it is, and takes its time with the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.questions = 0
        self.may_answer = asyncio.Event()

    async def identity(self):
        self.questions += 1
        await self.may_answer.wait()
        return await super().identity()


async def test_a_model_is_known_once_its_stages_are() -> None:
    pipeline = fake_pipeline(model="painter")
    model = Model(NAMED_BY_ITS_DIFFUSION_STAGE, pipeline)
    names = [model.name]

    identities = await model.known()

    names.append(model.name)
    assert names == [None, "painter"]
    assert model.problems == {}
    assert identities.sizes == ((64, 64), (96, 64), (64, 96))


async def test_a_configured_name_goes_before_the_stages_own() -> None:
    model = Model("mine", fake_pipeline())
    assert model.name == "mine"
    await model.known()
    assert model.name == "mine"


@pytest.mark.parametrize("missing", ["text_encoder", "diffusion", "decoder"])
async def test_a_missing_stage_is_named(missing: str) -> None:
    pipeline = fake_pipeline()
    getattr(pipeline, missing).started = False
    model = Model("mine", pipeline)

    with pytest.raises(StageNotReady, match=f"the {missing} stage is still starting") as error:
        await model.known()

    assert error.value.stage == missing
    assert list(model.problems) == [missing]
    getattr(pipeline, missing).started = True
    await model.known()


async def test_all_missing_stages_are_named() -> None:
    pipeline = fake_pipeline()
    pipeline.diffusion.started = pipeline.decoder.started = False  # type: ignore[attr-defined]
    model = Model("mine", pipeline)

    await model.learn()

    assert list(model.problems) == ["diffusion", "decoder"]


async def test_stages_that_do_not_fit_are_refused_with_a_sentence_in_the_log_too() -> None:
    model = Model("mine", fake_pipeline(context_width=1024))

    with structlog.testing.capture_logs() as logs, pytest.raises(StageNotReady, match=r"context width 768.*wants 1024"):
        await model.known()

    assert [entry["event"] for entry in logs] == ["model_not_ready"]
    assert "context width 768" in logs[0]["problems"]["stages"]


async def test_a_problem_that_stays_is_logged_once() -> None:
    model = Model("mine", fake_pipeline(context_width=1024))

    with structlog.testing.capture_logs() as logs:
        await model.learn()
        await model.learn()

    assert len(logs) == 1


def test_stages_without_a_common_size_do_not_fit() -> None:
    with pytest.raises(StagesDoNotFit, match="no size in common"):
        Identities(
            text_encoder=FakeTextEncoder.profile,
            diffusion=with_profile(FakeDiffusion(), sizes=((8, 8),)).profile,
            decoder=FakeDecoder.profile,
        )


async def test_only_sizes_that_both_stages_take_are_offered() -> None:
    model = Model("mine", fake_pipeline(sizes=((512, 512), (64, 96), (64, 64))))
    assert (await model.known()).sizes == ((64, 96), (64, 64))


async def test_an_exchanged_stage_is_noticed_at_the_next_question() -> None:
    pipeline = fake_pipeline(model="before")
    model = Model(NAMED_BY_ITS_DIFFUSION_STAGE, pipeline)
    await model.known()
    with_profile(pipeline.diffusion, model="after")

    assert (await model.known()).diffusion.model == "before"
    await model.learn()

    assert (await model.known()).diffusion.model == "after"
    assert model.name == "after"


async def test_a_model_that_was_forgotten_is_asked_again() -> None:
    pipeline = fake_pipeline(model="before")
    model = Model(NAMED_BY_ITS_DIFFUSION_STAGE, pipeline)
    await model.known()
    with_profile(pipeline.diffusion, model="after")

    model.forget()

    assert (await model.known()).diffusion.model == "after"


async def test_questions_at_the_same_time_are_one() -> None:
    diffusion = CountingDiffusion()
    model = Model("mine", Pipeline(FakeTextEncoder(), diffusion, FakeDecoder()))
    first = asyncio.create_task(model.known())
    while diffusion.questions == 0:  # noqa: ASYNC110 - the fake has no event for it
        await asyncio.sleep(0)
    others = [asyncio.create_task(model.known()) for _ in range(10)]
    await asyncio.sleep(0)
    diffusion.may_answer.set()
    await asyncio.gather(first, *others)

    # The others came while the first question was under way, so its answer may be too old for them: one more serves all.
    assert diffusion.questions == 2


async def test_a_caller_that_leaves_does_not_answer_for_the_others() -> None:
    diffusion = CountingDiffusion()
    model = Model("mine", Pipeline(FakeTextEncoder(), diffusion, FakeDecoder()))
    first = asyncio.create_task(model.known())
    while diffusion.questions == 0:  # noqa: ASYNC110
        await asyncio.sleep(0)
    second = asyncio.create_task(model.known())
    await asyncio.sleep(0)
    first.cancel()
    diffusion.may_answer.set()

    assert (await second).diffusion == FakeDiffusion.profile


async def test_a_stage_that_never_says_who_it_is_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "IDENTITY_TIMEOUT_SECONDS", 0.01)
    model = Model("mine", Pipeline(FakeTextEncoder(), CountingDiffusion(), FakeDecoder()))

    with pytest.raises(StageNotReady, match=r"did not say who it is within 0\.01 s"):
        await model.known()


async def test_a_question_ends_with_the_callers_patience_and_names_who_was_silent() -> None:
    diffusion = CountingDiffusion()
    model = Model("mine", Pipeline(FakeTextEncoder(), diffusion, FakeDecoder()))

    with pytest.raises(StageTimeout, match="the diffusion stage did not say who it is before the request's deadline") as error:
        await model.known(deadline=time.monotonic() + 0.01)

    assert error.value.stage == "diffusion"
    diffusion.may_answer.set()
    await model.known(deadline=time.monotonic() + 10)


async def test_a_bug_in_a_stage_is_a_problem_and_goes_to_the_log() -> None:
    class Broken(FakeDecoder):
        async def identity(self):
            raise ZeroDivisionError("secret")

    model = Model("mine", Pipeline(FakeTextEncoder(), FakeDiffusion(), Broken()))

    with structlog.testing.capture_logs() as logs:
        await model.learn()

    assert model.problems == {"decoder": "the decoder stage cannot say who it is"}
    assert logs[0]["event"] == "identity_failed"


async def test_all_who_wait_for_a_stage_share_a_question_and_the_pause_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "ASK_AGAIN_SECONDS", 0.05)
    diffusion = CountingDiffusion()
    diffusion.may_answer.set()
    diffusion.started = False
    model = Model("mine", Pipeline(FakeTextEncoder(), diffusion, FakeDecoder()))
    await model.learn()

    for asked in (2, 3):
        before = time.monotonic()
        await asyncio.gather(*(model.learn_again() for _ in range(20)))
        assert diffusion.questions == asked
        # A little less than the pause, which counts from when the stages were last asked and not from when they answered.
        assert time.monotonic() - before > 0.03


async def test_one_of_those_who_wait_may_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "ASK_AGAIN_SECONDS", 0.05)
    model = Model("mine", fake_pipeline())
    await model.learn()
    model.forget()
    first, second = (asyncio.create_task(model.learn_again()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert model.identities is not None


class TestFind:
    async def test_the_first_model_is_the_default(self) -> None:
        registry = Registry({"one": fake_pipeline(), "two": fake_pipeline()})
        assert (await registry.find(None)).name == "one"
        assert (await registry.find("two")).name == "two"

    async def test_an_unknown_name_is_refused_with_those_there_are(self) -> None:
        registry = Registry({"one": fake_pipeline(), "two": fake_pipeline()})
        with pytest.raises(NotFound, match="there is no model 'three' here; there is one, two") as error:
            await registry.find("three")
        assert error.value.param == "model"

    async def test_a_model_named_by_its_stage_is_asked_for_its_name(self) -> None:
        registry = Registry({"": fake_pipeline(model="painter")})
        assert (await registry.find("painter")).name == "painter"
        with pytest.raises(NotFound, match="there is painter"):
            await registry.find("other")

    async def test_whether_an_unheard_model_has_the_name_cannot_be_said(self) -> None:
        pipeline = fake_pipeline()
        pipeline.diffusion.started = False  # type: ignore[attr-defined]
        with pytest.raises(StageNotReady):
            await Registry({"": pipeline}).find("painter")

    def test_a_gateway_without_models_is_a_mistake(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            Registry({})

    async def test_a_mask_prefers_a_model_that_sees_masks_and_is_ready(self) -> None:
        registry = Registry({"one": fake_pipeline(), "two": masking_pipeline()})
        assert (await registry.find(None, masked=True)).name == "one", "it has not been heard"

        await registry.learn()

        assert (await registry.find(None, masked=True)).name == "two"
        assert (await registry.find(None)).name == "one"
        assert (await registry.find("one", masked=True)).name == "one"

    async def test_a_model_that_is_replaced_while_it_is_asked_is_not_found(self) -> None:
        diffusion = CountingDiffusion()
        registry = Registry({"": Pipeline(FakeTextEncoder(), diffusion, FakeDecoder())})
        finding = asyncio.create_task(registry.find("fake"))
        while diffusion.questions == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
        registry.replace([Model("fake", fake_pipeline())])
        diffusion.may_answer.set()

        assert await finding is next(iter(registry))


def masking_pipeline() -> Pipeline:
    return replace(fake_pipeline(takes_masked_image=True), image_encoder=FakeImageEncoder())


class TestReplace:
    async def test_a_model_that_goes_finishes_what_it_has(self) -> None:
        registry = Registry({"old": fake_pipeline(), "kept": fake_pipeline()})
        old, kept = registry
        new = Model("new", fake_pipeline())
        with old.in_use():
            with old.in_use():
                registry.replace([new, kept])
            assert [(each.name, each.model.jobs) for each in registry.retiring] == [("old", 1)]
            assert list(registry) == [new, kept]
            assert list(registry.steps) == []
        assert registry.retiring == []
        assert [(step.kind, step.model) for step in registry.steps] == [("let_go", "old")]

    async def test_a_model_without_requests_is_let_go_at_once(self) -> None:
        registry = Registry({"old": fake_pipeline()})
        registry.replace([Model("new", fake_pipeline())])
        assert registry.retiring == []
        assert [step.model for step in registry.steps] == ["old"]

    def test_there_is_always_a_model(self) -> None:
        registry = Registry({"one": fake_pipeline()})
        with pytest.raises(ValueError, match="at least one"):
            registry.replace([])


class TestSteps:
    def test_the_latest_are_kept_and_all_are_logged(self) -> None:
        steps = Steps()
        with structlog.testing.capture_logs() as logs:
            for number in range(KEPT_STEPS + 1):
                steps.note(StepKind.CHECKED, f"step {number}")
            steps.note(StepKind.REFUSED, "no", model="mine")
        assert [len(list(steps)), len(logs)] == [KEPT_STEPS, KEPT_STEPS + 2]
        first, *_, last = steps
        assert (first.message, last.message) == ("step 2", "no")
        assert logs[-1] == {"event": "topology_refused", "log_level": "warning", "model": "mine", "message": "no"}
