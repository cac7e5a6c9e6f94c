from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import re
import time
from typing import Any, ClassVar

import numpy as np
import pytest
import structlog
from PIL import Image

from tests.fakes import FakeDecoder, FakeDiffusion, with_profile
from tests.gateway.running import Connection, Stages, events_of, until
from triptych.contract import IMAGE_TEXT_KEYWORD
from triptych.errors import QueueFull, StageFailed, StageNotReady, StageTimeout

FULL = {
    "prompt": "a red circle",
    "negative_prompt": "blue",
    "num_steps": 3,
    "guidance_scale": 4,
    "seed": 11,
    "width": 96,
    "height": 64,
    "num_images": 2,
    "sampler": "euler",
    "model": "fake",
    "output_format": "png",
    "truncate": False,
    "long_prompt": False,
}


def open_image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


class TestJson:
    async def test_every_field_is_carried_out_and_told(self) -> None:
        stages = Stages()
        async with stages.client() as client:
            response = await client.post("/generate", json=FULL)

        assert response.status_code == 200
        assert response.headers["Content-Type"] == "application/json"
        answer = response.json()
        assert list(answer) == ["id", "model", "images", "parameters", "warnings", "timings", "receipt"]
        assert answer["model"] == "fake"
        assert answer["parameters"] == {**FULL, "guidance_scale": 4.0}
        assert answer["warnings"] == []
        assert [image["seed"] for image in answer["images"]] == [11, 12]
        pictures = [open_image(base64.b64decode(image["b64_json"])) for image in answer["images"]]
        assert [(picture.format, picture.size) for picture in pictures] == [("PNG", (96, 64))] * 2
        (asked,) = stages.diffusion.asked
        assert (asked.sampler, asked.num_steps, asked.guidance_scale) == ("euler", 3, 4.0)
        assert stages.text_encoder.asked[0].prompts == ("a red circle", "blue")

    async def test_what_is_absent_or_null_is_the_models_default(self) -> None:
        async with Stages().client() as client:
            answers = [
                (await client.post("/generate", json=body)).json()
                for body in ({"prompt": "x", "seed": 1}, {**dict.fromkeys(FULL), "prompt": "x", "seed": 1})
            ]
        assert answers[0]["parameters"] == {
            "model": "fake",
            "prompt": "x",
            "negative_prompt": "",
            "num_steps": 4,
            "guidance_scale": 7.5,
            "seed": 1,
            "width": 64,
            "height": 64,
            "num_images": 1,
            "sampler": "ddim",
            "output_format": "png",
            "truncate": False,
            "long_prompt": False,
        }
        assert answers[1]["parameters"] == answers[0]["parameters"]

    @pytest.mark.parametrize(
        ("alias", "name", "value"),
        [
            ("num_inference_steps", "num_steps", 2),
            ("steps", "num_steps", 2),
            ("unconditional_guidance_scale", "guidance_scale", 2.5),
            ("batch_size", "num_images", 2),
        ],
    )
    async def test_aliases(self, alias: str, name: str, value: float) -> None:
        async with Stages().client() as client:
            answer = (await client.post("/generate", json={"prompt": "x", alias: value})).json()
        assert answer["parameters"][name] == value

    async def test_a_seed_that_is_absent_is_drawn_where_javascript_keeps_it(self) -> None:
        async with Stages().client() as client:
            answers = [(await client.post("/generate", json={"prompt": "x"})).json() for _ in range(8)]
        seeds = [answer["parameters"]["seed"] for answer in answers]
        assert len(set(seeds)) > 1
        assert all(0 <= seed < 2**32 for seed in seeds)
        assert [answer["images"][0]["seed"] for answer in answers] == seeds

    async def test_seeds_run_over_the_end(self) -> None:
        stages = Stages()
        async with stages.client() as client:
            answer = (await client.post("/generate", json={"prompt": "x", "seed": 2**64 - 1, "num_images": 3})).json()
        assert [image["seed"] for image in answer["images"]] == [2**64 - 1, 0, 1]
        assert stages.diffusion.asked[0].seeds.tolist() == [2**64 - 1, 0, 1]

    async def test_a_picture_of_several_is_the_one_that_its_seed_makes_alone(self) -> None:
        async with Stages().client() as client:
            several = (await client.post("/generate", json={"prompt": "x", "seed": 5, "num_images": 3})).json()["images"]
            alone = [
                (await client.post("/generate", json={"prompt": "x", "seed": seed})).json()["images"][0] for seed in (5, 6, 7)
            ]
        assert several == alone

    async def test_where_the_time_went_adds_up(self) -> None:
        stages = Stages(diffusion=FakeDiffusion(delay_seconds=0.05))
        async with stages.client() as client:
            timings = (await client.post("/generate", json={"prompt": "x"})).json()["timings"]
        assert list(timings) == [
            "queue_seconds",
            "text_encoder_seconds",
            "diffusion_seconds",
            "decoder_seconds",
            "gateway_seconds",
            "total_seconds",
        ]
        assert timings["diffusion_seconds"] >= 0.05
        assert all(seconds >= 0 for seconds in timings.values())
        assert sum(timings.values()) == pytest.approx(2 * timings["total_seconds"])

    async def test_a_prompt_that_is_cut_is_warned_of(self) -> None:
        body = {"prompt": " ".join(["word"] * 100), "truncate": True}
        async with Stages().client() as client:
            answer = (await client.post("/generate", json=body)).json()
        assert answer["warnings"] == ["the prompt was cut from 100 to 77 tokens"]

    async def test_what_a_default_sampler_stands_for_is_told_to_whoever_asked_for_none(self) -> None:
        sentence = "the model recommends DEIS, which is not here; ddim is used in its place"
        stages = Stages(diffusion=with_profile(FakeDiffusion(), warnings=(sentence,)))
        async with stages.client() as client:
            left_open = (await client.post("/generate", json={"prompt": "x"})).json()
            asked_for = (await client.post("/generate", json={"prompt": "x", "sampler": "ddim"})).json()
        assert (left_open["warnings"], asked_for["warnings"]) == ([sentence], [])

    async def test_no_accept_header_means_json(self) -> None:
        async with Stages().client() as client:
            del client.headers["Accept"]
            response = await client.post("/generate", json={"prompt": "x"})
        assert response.headers["Content-Type"] == "application/json"


class TestImage:
    @pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
    async def test_the_picture_itself(self, kind: str) -> None:
        async with Stages().client() as client:
            headers = {"Accept": f"image/{kind}", "X-Request-Id": "my-request"}
            response = await client.post("/generate", json={"prompt": "x", "seed": 3}, headers=headers)
        assert response.status_code == 200
        assert response.headers["Content-Type"] == f"image/{kind}"
        assert open_image(response.content).format == kind.upper()
        assert response.headers["X-Triptych-Id"] == "my-request"
        assert response.headers["X-Triptych-Seed"] == "3"
        durations = re.findall(r"(\w+);dur=[\d.]+", response.headers["Server-Timing"])
        assert durations == ["queue", "text_encoder", "diffusion", "decoder", "gateway", "total"]

    async def test_any_picture_is_of_the_format_that_the_body_asks_for(self) -> None:
        body = {"prompt": "x", "output_format": "webp"}
        async with Stages().client() as client:
            for accept in ("image/*", "image/png, image/webp;q=0.1"):
                response = await client.post("/generate", json=body, headers={"Accept": accept})
                assert response.headers["Content-Type"] == "image/webp"

    async def test_several_pictures_go_as_json_to_a_caller_that_takes_it(self) -> None:
        body = {"prompt": "x", "num_images": 2}
        async with Stages().client() as client:
            response = await client.post("/generate", json=body, headers={"Accept": "image/png, application/json;q=0.1"})
        assert len(response.json()["images"]) == 2

    async def test_a_png_carries_what_makes_it_again(self) -> None:
        body = {**FULL, "prompt": 'a "red" circle, naïve 円', "num_images": 2}
        async with Stages().client() as client:
            images = (await client.post("/generate", json=body)).json()["images"]
            texts = [open_image(base64.b64decode(image["b64_json"])).info[IMAGE_TEXT_KEYWORD] for image in images]
            documents = [json.loads(text) for text in texts]
            again = [
                (await client.post("/generate", json=document, headers={"Accept": "image/png"})).content for document in documents
            ]
        assert documents[1] == {
            "guidance_scale": 4.0,
            "height": 64,
            "model": "fake",
            "negative_prompt": "blue",
            "num_steps": 3,
            "prompt": 'a "red" circle, naïve 円',
            "sampler": "euler",
            "seed": 12,
            "width": 96,
        }
        assert list(documents[1]) == sorted(documents[1])
        assert again == [base64.b64decode(image["b64_json"]) for image in images]

    async def test_other_formats_carry_nothing(self) -> None:
        stages = Stages()
        async with stages.client() as client:
            await client.post("/generate", json={"prompt": "x"}, headers={"Accept": "image/jpeg"})
        assert stages.decoder.asked[0].image_texts == ()

    async def test_equal_requests_give_equal_bytes(self) -> None:
        async with Stages().client() as client:
            pictures = {
                (await client.post("/generate", json={"prompt": "x", "seed": seed}, headers={"Accept": "image/png"})).content
                for seed in (1, 1, 2)
            }
        assert len(pictures) == 2


class TestEvents:
    ACCEPT: ClassVar = {"Accept": "text/event-stream"}

    async def test_progress_and_then_what_json_would_have_said(self) -> None:
        body = {"prompt": "x", "seed": 4, "num_steps": 2}
        async with Stages().client() as client:
            response = await client.post("/generate", json=body, headers=self.ACCEPT)
            as_json = (await client.post("/generate", json=body)).json()

        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert "Content-Length" not in response.headers
        *progress, (name, completed) = events_of(response.text)
        assert progress == [
            ("progress", {"stage": "text_encoder"}),
            ("progress", {"stage": "diffusion"}),
            ("progress", {"stage": "diffusion", "position": 1, "num_evaluations": 2}),
            ("progress", {"stage": "diffusion", "position": 2, "num_evaluations": 2}),
            ("progress", {"stage": "decoder"}),
        ]
        assert name == "completed"
        assert completed["id"] == response.headers["X-Triptych-Id"]
        differing = {"id", "timings"}
        assert {key: value for key, value in completed.items() if key not in differing} == {
            key: value for key, value in as_json.items() if key not in differing
        }

    async def test_what_fails_before_the_work_begins_is_an_ordinary_answer(self) -> None:
        async with Stages().client() as client:
            response = await client.post("/generate", json={"prompt": ""}, headers=self.ACCEPT)
        assert response.status_code == 422
        assert response.json()["error"]["param"] == "prompt"

    async def test_what_fails_later_is_the_last_event(self) -> None:
        stages = Stages(decoder=FakeDecoder(failure=StageFailed("the decoder stage broke off", stage="decoder")))
        async with stages.client() as client:
            response = await client.post("/generate", json={"prompt": "x"}, headers=self.ACCEPT)
        assert response.status_code == 200
        assert list(events_of(response.text))[-1] == (
            "error",
            {
                "error": {
                    "message": "the decoder stage broke off",
                    "type": "stage_error",
                    "param": "decoder",
                    "code": "stage_failed",
                }
            },
        )

    async def test_a_bug_is_an_event_without_its_details(self) -> None:
        stages = Stages(decoder=FakeDecoder(failure=ZeroDivisionError("secret")))
        with structlog.testing.capture_logs() as logs:
            async with stages.client() as client:
                response = await client.post("/generate", json={"prompt": "x"}, headers=self.ACCEPT)
        assert "generate_failed" in [entry["event"] for entry in logs]
        name, data = list(events_of(response.text))[-1]
        assert name == "error"
        assert data["error"]["type"] == "internal_error"
        assert "secret" not in response.text


class TestReceipts:
    BODY: ClassVar = {"prompt": "x", "seed": 5, "num_images": 2}

    async def test_pixels_latents_and_context_are_named_by_their_digests(self) -> None:
        async with Stages().client() as client:
            answer = (await client.post("/generate", json=self.BODY)).json()
        receipt = answer["receipt"]
        pictures = [np.asarray(open_image(base64.b64decode(image["b64_json"]))) for image in answer["images"]]
        assert receipt["pixels"] == [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]
        assert len(set(receipt["latents"])) == 2
        digests = [receipt["context"], *receipt["latents"]]
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)

    async def test_the_stages_say_who_they_were(self) -> None:
        async with Stages().client() as client:
            receipt = (await client.post("/generate", json=self.BODY)).json()["receipt"]
            stages = (await client.get("/models")).json()["models"][0]["stages"]
        assert receipt["stages"] == stages
        assert stages["diffusion"]["weights_digest"] == "2" * 64
        assert stages["decoder"]["numerics"]["engine"] == "fake"

    async def test_it_names_the_pictures_that_were_decoded_in_another_precision(self) -> None:
        stages = Stages()
        stages.decoder.float32_pictures = (1,)
        async with stages.client() as client:
            told = (await client.post("/generate", json=self.BODY)).json()["receipt"]["decoded_in_float32"]
            stages.decoder.float32_pictures = ()
            again = (await client.post("/generate", json=self.BODY)).json()["receipt"]["decoded_in_float32"]
        assert (told, again) == ([1], [])

    @pytest.mark.parametrize(
        ("change", "changed"),
        [
            ({"prompt": "y"}, {"context", "latents", "pixels"}),
            ({"seed": 6}, {"latents", "pixels"}),
            ({"output_format": "jpeg"}, set()),
        ],
    )
    async def test_a_receipt_tells_from_which_stage_on_two_pictures_differ(
        self, change: dict[str, Any], changed: set[str]
    ) -> None:
        async with Stages().client() as client:
            one, other = [
                (await client.post("/generate", json={**self.BODY, **changes})).json()["receipt"] for changes in ({}, change)
            ]
        assert {name for name in one if one[name] != other[name]} == changed

    async def test_a_picture_by_itself_comes_with_its_pixels_digest(self) -> None:
        async with Stages().client() as client:
            answer = await client.post("/generate", json={"prompt": "x"}, headers={"Accept": "image/png"})
        assert answer.headers["X-Triptych-Pixels-Sha256"] == hashlib.sha256(np.asarray(open_image(answer.content))).hexdigest()

    async def test_a_decoder_that_tells_no_digests_has_a_receipt_without_them(self) -> None:
        stages = Stages()
        stages.decoder.tells_digests = False
        async with stages.client() as client:
            answer = await client.post("/generate", json={"prompt": "x"})
            picture = await client.post("/generate", json={"prompt": "x"}, headers={"Accept": "image/png"})
        assert answer.json()["receipt"]["pixels"] is None
        assert "X-Triptych-Pixels-Sha256" not in picture.headers


class TestFailures:
    @pytest.mark.parametrize("missing", ["text_encoder", "diffusion", "decoder"])
    async def test_a_stage_that_is_down_is_named_and_the_next_request_finds_it_back(self, missing: str) -> None:
        stages = Stages()
        getattr(stages, missing).started = False
        async with stages.client(stage_wait_seconds=0) as client:
            refused = await client.post("/generate", json={"prompt": "x"})
            getattr(stages, missing).started = True
            answered = await client.post("/generate", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.json()["error"] == {
            "message": f"the {missing} stage is still starting",
            "type": "stage_not_ready_error",
            "param": missing,
            "code": "stage_not_ready",
        }
        assert answered.status_code == 200

    @pytest.mark.parametrize(
        ("failure", "status"),
        [
            (StageFailed("the diffusion stage broke off", stage="diffusion"), 502),
            (StageNotReady("the diffusion stage is stopping", stage="diffusion"), 503),
            (StageTimeout("the diffusion stage is slow", stage="diffusion"), 504),
        ],
    )
    async def test_a_stage_that_fails_in_the_middle_is_named(self, failure: Exception, status: int) -> None:
        stages = Stages(diffusion=FakeDiffusion(failure=failure))
        async with stages.client(stage_wait_seconds=0) as client:
            response = await client.post("/generate", json={"prompt": "x"})
            stages.diffusion.failure = None
            answered = await client.post("/generate", json={"prompt": "x"})
        assert response.status_code == status
        assert response.json()["error"]["param"] == "diffusion"
        assert response.json()["error"]["message"] == str(failure)
        assert answered.status_code == 200

    async def test_a_stage_that_failed_is_asked_who_it_is_before_the_next_request(self) -> None:
        stages = Stages(diffusion=FakeDiffusion(failure=StageFailed("gone", stage="diffusion")))
        async with stages.client() as client:
            await client.post("/generate", json={"prompt": "x"})
            stages.diffusion.failure = None
            with_profile(stages.diffusion, model="another", samplers=("euler",))
            answer = (await client.post("/generate", json={"prompt": "x"})).json()
        assert answer["model"] == "another"
        assert answer["parameters"]["sampler"] == "euler"

    async def test_a_caller_without_patience_does_not_make_the_stages_unknown(self) -> None:
        stages = Stages(diffusion=FakeDiffusion(failure=StageTimeout("slow", stage="diffusion")))
        async with stages.client() as client:
            await client.post("/generate", json={"prompt": "x"})
            stages.diffusion.failure = None
            with_profile(stages.diffusion, model="another")
            answer = (await client.post("/generate", json={"prompt": "x"})).json()
        assert answer["model"] == "fake", "nobody had to be asked again"

    async def test_a_stage_that_hangs_is_given_up_at_the_deadline(self) -> None:
        stages = Stages(decoder=FakeDecoder(gate=asyncio.Event()))
        async with stages.client() as client:
            response = await client.post("/generate", json={"prompt": "x"}, headers={"X-Request-Timeout-Seconds": "0.1"})
        assert response.status_code == 504
        assert response.json()["error"]["param"] == "decoder"
        assert stages.decoder.cancelled == 1

    async def test_the_deadline_goes_to_every_stage_and_is_never_later_than_ours(self) -> None:
        stages = Stages()
        async with stages.client(request_timeout_seconds=50) as client:
            for wish in ("20", "1e9"):
                await client.post("/generate", json={"prompt": "x"}, headers={"X-Request-Timeout-Seconds": wish})
        now = time.monotonic()
        for stage in (stages.text_encoder, stages.diffusion, stages.decoder):
            shorter, longer = (deadline - now for deadline in stage.deadlines if deadline)
            assert 15 < shorter <= 20
            assert 45 < longer <= 50

    async def test_what_a_stage_refuses_the_caller_reads(self) -> None:
        async with Stages().client() as client:
            response = await client.post("/generate", json={"prompt": " ".join(["word"] * 100)})
        assert response.status_code == 422
        assert "the prompt has 100 tokens" in response.json()["error"]["message"]

    async def test_a_full_stage_says_when_to_come_back(self) -> None:
        stages = Stages(diffusion=FakeDiffusion(failure=QueueFull("the diffusion stage is full", retry_after_seconds=2.2)))
        async with stages.client() as client:
            response = await client.post("/generate", json={"prompt": "x"})
        assert response.status_code == 429
        assert response.headers["Retry-After"] == "3"

    async def test_a_bug_is_500_in_the_same_shape_and_without_details(self) -> None:
        stages = Stages(diffusion=FakeDiffusion(failure=ZeroDivisionError("secret")))
        with structlog.testing.capture_logs() as logs:
            async with stages.client() as client:
                response = await client.post("/generate", json={"prompt": "x"})
        assert "unexpected_error" in [entry["event"] for entry in logs]
        assert response.status_code == 500
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert "secret" not in response.text

    async def test_stages_that_do_not_fit_are_refused_with_the_sentence(self) -> None:
        stages = Stages(diffusion=with_profile(FakeDiffusion(), context_width=1024))
        async with stages.client(stage_wait_seconds=0) as client:
            response = await client.post("/generate", json={"prompt": "x"})
        assert response.status_code == 503
        assert "context width 768" in response.json()["error"]["message"]


class TestQueue:
    async def test_a_full_queue_refuses_and_says_when_to_come_back(self) -> None:
        gate = asyncio.Event()
        stages = Stages(diffusion=FakeDiffusion(gate=gate))
        async with stages.client(max_running_requests=1, max_waiting_requests=1) as client:
            running = asyncio.create_task(client.post("/generate", json={"prompt": "x"}))
            await until(lambda: stages.diffusion.asked)
            waiting = asyncio.create_task(client.post("/generate", json={"prompt": "x"}))
            await until(lambda: "triptych_generations_waiting 1.0" in metrics_of(client))
            refused = [
                await client.post("/generate", json={"prompt": "x"}, headers={"Accept": accept})
                for accept in ("application/json", "text/event-stream")
            ]
            gate.set()
            assert [response.status_code for response in (await running, await waiting)] == [200, 200]
            assert len(stages.text_encoder.asked) == 2

        for response in refused:
            assert response.status_code == 429
            assert response.json()["error"]["code"] == "queue_full"
            assert int(response.headers["Retry-After"]) >= 1
        assert (await waiting).json()["timings"]["queue_seconds"] > 0


def metrics_of(client: Any) -> str:
    from prometheus_client import generate_latest

    return generate_latest(client._transport.app.state.metrics.registry).decode()


class TestLeaving:
    @pytest.mark.parametrize("accept", ["application/json", "image/png", "text/event-stream"])
    @pytest.mark.parametrize("stage", ["text_encoder", "diffusion", "decoder"])
    async def test_a_caller_that_leaves_cancels_the_stage_at_work(self, stage: str, accept: str) -> None:
        stages = Stages()
        getattr(stages, stage).gate = asyncio.Event()
        connection = Connection(stages.app(max_running_requests=1, max_waiting_requests=0), {"prompt": "x"}, accept=accept)
        await until(lambda: getattr(stages, stage).asked)

        await connection.close()

        assert getattr(stages, stage).cancelled == 1
        if accept != "text/event-stream":
            assert connection.status == 499

    async def test_the_place_of_a_caller_that_left_is_free(self) -> None:
        stages = Stages(diffusion=FakeDiffusion(gate=asyncio.Event()))
        app = stages.app(max_running_requests=1, max_waiting_requests=0)
        connection = Connection(app, {"prompt": "x"})
        await until(lambda: stages.diffusion.asked)
        await connection.close()

        stages.diffusion.gate = None
        patient = Connection(app, {"prompt": "x"})
        await until(lambda: patient.sent)
        assert patient.status == 200
        await patient.close()

    async def test_a_caller_that_leaves_in_line_leaves_the_line(self) -> None:
        gate = asyncio.Event()
        stages = Stages(diffusion=FakeDiffusion(gate=gate))
        app = stages.app(max_running_requests=1, max_waiting_requests=1)
        running = Connection(app, {"prompt": "first"})
        await until(lambda: stages.diffusion.asked)
        waiting = Connection(app, {"prompt": "second"})
        await until(lambda: app.state.gateway.admission.waiting == 1)
        await waiting.close()

        assert app.state.gateway.admission.waiting == 0
        gate.set()
        await until(lambda: running.sent)
        assert [request.prompts[0] for request in stages.text_encoder.asked] == ["first"]
        await running.close()


class TestDoors:
    SETTINGS: ClassVar[dict[str, Any]] = {"api_keys": ("one", "two")}

    @pytest.mark.parametrize("header", [None, "Bearer three", "Bearer", "Basic b25l", "one"])
    async def test_without_a_key_nothing_is_done(self, header: str | None) -> None:
        stages = Stages()
        headers = {"Authorization": header} if header else {}
        async with stages.client(**self.SETTINGS) as client:
            response = await client.post("/generate", json={"prompt": "x"}, headers=headers)
            listed = await client.get("/models", headers=headers)
        assert (response.status_code, listed.status_code) == (401, 401)
        assert response.json()["error"]["type"] == "authentication_error"
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert stages.text_encoder.asked == []

    async def test_each_key_opens(self) -> None:
        async with Stages().client(**self.SETTINGS) as client:
            for key in ("one", "two"):
                response = await client.post("/generate", json={"prompt": "x"}, headers={"Authorization": f"Bearer {key}"})
                assert response.status_code == 200

    async def test_health_is_for_everybody(self) -> None:
        async with Stages().client(**self.SETTINGS) as client:
            assert (await client.get("/health/live")).status_code == 200
            assert (await client.get("/health/ready")).status_code == 200

    async def test_a_refused_caller_has_not_been_read(self) -> None:
        async with Stages().client(**self.SETTINGS) as client:
            response = await client.post("/generate", content=b"no json", headers={"Content-Type": "text/plain"})
        assert response.status_code == 401


async def test_pictures_and_stages_are_counted() -> None:
    async with Stages().client() as client:
        await client.post("/generate", json={"prompt": "x", "num_images": 3})
        text = (await client.get("/metrics")).text
    assert 'triptych_images_total{model="fake"} 3.0' in text
    for stage in ("text_encoder", "diffusion", "decoder"):
        assert f'triptych_stage_seconds_count{{model="fake",stage="{stage}"}} 1.0' in text
    assert "triptych_generations_running 0.0" in text


async def test_the_pixels_are_those_of_the_stages() -> None:
    """What comes out at the gateway's end is what the decoder was given, and not another request's."""
    stages = Stages()
    async with stages.client() as client:
        answers = await asyncio.gather(
            *(client.post("/generate", json={"prompt": "x", "seed": seed}, headers={"Accept": "image/png"}) for seed in range(10))
        )
    assert len({answer.content for answer in answers}) == 10
    assert len({np.asarray(open_image(answer.content)).tobytes() for answer in answers}) == 10
    assert [int(answer.headers["X-Triptych-Seed"]) for answer in answers] == list(range(10))
