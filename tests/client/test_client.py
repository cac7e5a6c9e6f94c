from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.fakes import FakeDecoder, FakeDiffusion
from tests.gateway.running import Stages
from tests.gateway.served import served
from triptych import errors
from triptych.cli.processes import free_ports
from triptych.client import Client, Preview, Progress
from triptych.errors import (
    CallerError,
    InvalidValue,
    NotFound,
    QueueFull,
    RequestCancelled,
    StageError,
    StageFailed,
    TriptychError,
    Unauthenticated,
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A gateway in front of fake stages that work."""
    with served(Stages().app()) as address:
        yield address


def answering(response: httpx2.Response) -> Client:
    """A client of a gateway that always answers this."""
    return Client(transport=httpx2.MockTransport(lambda request: response))


class TestGenerate:
    def test_pictures_with_all_that_was_used(self, url: str, tmp_path: Path) -> None:
        with Client(url) as client:
            generation = client.generate("a red circle", seed=7, num_images=2, num_steps=2, output_format="webp")
        assert generation.model == "fake"
        assert [picture.seed for picture in generation.pictures] == [7, 8]
        assert generation.parameters["num_steps"] == 2
        assert generation.timings["total_seconds"] > 0
        assert generation.warnings == ()
        generation.pictures[1].save(tmp_path / "picture.webp")
        assert (tmp_path / "picture.webp").read_bytes()[8:12] == b"WEBP"

    def test_progress_on_the_way_and_the_same_pictures(self, url: str) -> None:
        told: list[Progress] = []
        with Client(url) as client:
            followed = client.generate("a red circle", seed=7, num_steps=2, on_progress=told.append)
            asked = client.generate("a red circle", seed=7, num_steps=2)
        assert followed.pictures == asked.pictures
        assert told == [
            Progress(stage="text_encoder"),
            Progress(stage="diffusion"),
            Progress(stage="diffusion", position=1, num_evaluations=2),
            Progress(stage="diffusion", position=2, num_evaluations=2),
            Progress(stage="decoder"),
        ]

    def test_what_others_take_for_the_end_of_a_line_is_a_letter_of_the_prompt(self, url: str) -> None:
        prompt = "a red\u2028circle\x85\x0bor\rso"
        with Client(url) as client:
            assert client.generate(prompt, num_steps=1, on_progress=lambda _: None).parameters["prompt"] == prompt

    def test_lines_end_where_the_standard_says_also_between_two_parts(self) -> None:
        parts = [
            "event: err",
            "or\r",
            '\ndata: {"error": {"message": "a\u2028b", "type": "x", "code": "NotFound", "param": null}}\r\n',
            "\r\n",
        ]
        stream = httpx2.Response(200, text="".join(parts), headers={"Content-Type": "text/event-stream"})
        with answering(stream) as client, pytest.raises(TriptychError, match="a\u2028b"):
            client.generate("x", on_progress=lambda _: None)

    @pytest.mark.parametrize("on_progress", [None, lambda progress: None])
    def test_previews_on_the_way(self, url: str, on_progress) -> None:
        with Client(url) as client:
            answer = client._request("POST", "/generate", json={"prompt": "x"})
        preview = {"position": 4, "num_evaluations": 8, "images": [{"b64_json": "/9j/"}, {"b64_json": "/9g="}]}
        asked: list[httpx2.Request] = []

        def tell(request: httpx2.Request) -> httpx2.Response:
            asked.append(request)
            events = {"progress": {"stage": "diffusion"}, "preview": preview, "completed": answer}
            return httpx2.Response(200, text="".join(f"event: {e}\ndata: {json.dumps(data)}\n\n" for e, data in events.items()))

        told: list[Preview] = []
        with Client(transport=httpx2.MockTransport(tell)) as client:
            client.generate("x", on_preview=told.append, previews=2, on_progress=on_progress)
        assert told == [Preview(position=4, num_evaluations=8, images=(b"\xff\xd8\xff", b"\xff\xd8"))]
        assert json.loads(asked[0].content)["previews"] == 2
        assert asked[0].headers["Accept"] == "text/event-stream"

    def test_warnings_come_along(self, url: str) -> None:
        with Client(url) as client:
            generation = client.generate("word " * 100, truncate=True)
        assert generation.warnings == ("the prompt was cut from 100 to 77 tokens",)

    def test_what_there_is_to_ask_for(self, url: str) -> None:
        with Client(url) as client:
            (model,) = client.models()
        assert model["name"] == "fake"
        assert model["abilities"]["samplers"] == ["ddim", "euler"]


class TestErrors:
    @pytest.mark.parametrize("on_progress", [None, lambda progress: None])
    def test_the_gateways_errors_are_raised_as_what_they_are(self, url: str, on_progress) -> None:
        with Client(url) as client:
            with pytest.raises(InvalidValue, match="num_steps must be a whole number from 1 to 150, not 0") as invalid:
                client.generate("x", num_steps=0, on_progress=on_progress)
            with pytest.raises(NotFound, match="there is no model 'other'"):
                client.generate("x", model="other", on_progress=on_progress)
        assert invalid.value.param == "num_steps"

    @pytest.mark.parametrize("on_progress", [None, lambda progress: None])
    def test_a_failing_stage_is_named(self, on_progress) -> None:
        stages = Stages(decoder=FakeDecoder(failure=StageFailed("the decoder stage broke off", stage="decoder")))
        with (
            served(stages.app()) as address,
            Client(address) as client,
            pytest.raises(StageFailed, match="the decoder stage broke off") as failure,
        ):
            client.generate("x", on_progress=on_progress)
        assert failure.value.stage == "decoder"

    def test_a_full_queue_says_when_to_come_back(self) -> None:
        stages = Stages(diffusion=FakeDiffusion(failure=QueueFull("full", retry_after_seconds=4.0)))
        with served(stages.app()) as address, Client(address) as client, pytest.raises(QueueFull) as full:
            client.generate("x")
        assert full.value.retry_after_seconds == 4.0

    def test_a_key_opens_the_door(self) -> None:
        with served(Stages().app(api_keys=("secret",))) as address:
            with Client(address, api_key="secret") as client:
                assert client.generate("x").pictures
            with Client(address) as client, pytest.raises(Unauthenticated):
                client.generate("x")

    def test_no_gateway_is_one_sentence(self) -> None:
        (port,) = free_ports(1)
        with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(TriptychError, match="no gateway answers at") as error:
            client.generate("x")
        assert str(port) in error.value.message

    @pytest.mark.parametrize("url", ["gateway", "ftp://gateway", "http://a:b", "http://"])
    def test_what_is_no_address_is_one_sentence(self, url: str) -> None:
        with pytest.raises(TriptychError, match="is not an address"), Client(url) as client:
            client.models()

    @pytest.mark.parametrize(
        ("response", "sentence"),
        [
            (httpx2.Response(200, text="<html>hello</html>"), "not JSON; is it a Triptych gateway"),
            (httpx2.Response(502, text="<html>bad gateway</html>"), "answered 502 without a sentence"),
            (httpx2.Response(500, json={"detail": "oh"}), "answered 500 without a sentence"),
            (httpx2.Response(500, json=["oh"]), "answered 500 without a sentence"),
            (
                httpx2.Response(
                    418, json={"error": {"message": "a teapot", "type": "x", "param": None, "code": "of_the_future"}}
                ),
                "a teapot",
            ),
        ],
    )
    def test_answers_of_somebody_else(self, response: httpx2.Response, sentence: str) -> None:
        with answering(response) as client, pytest.raises(TriptychError, match=sentence):
            client.generate("x")

    @pytest.mark.parametrize("body", ["", 'event: progress\ndata: {"stage": "diffusion"}\n\n', ": ping\n\n"])
    def test_a_stream_that_ends_early(self, body: str) -> None:
        response = httpx2.Response(200, text=body)
        with answering(response) as client, pytest.raises(TriptychError, match="ended before the pictures came"):
            client.generate("x", on_progress=lambda progress: None)

    @pytest.mark.parametrize(
        ("failure", "sentence"),
        [
            (httpx2.ReadTimeout("slow"), "did not answer in time"),
            (httpx2.ReadError("reset"), "broke off"),
            (httpx2.RemoteProtocolError("garbage"), "broke off"),
        ],
    )
    @pytest.mark.parametrize("on_progress", [None, lambda progress: None])
    def test_a_connection_that_fails(self, failure: Exception, sentence: str, on_progress) -> None:
        def fail(request: httpx2.Request) -> httpx2.Response:
            raise failure

        with Client(transport=httpx2.MockTransport(fail)) as client, pytest.raises(TriptychError, match=sentence):
            client.generate("x", on_progress=on_progress)

    def test_every_class_of_the_tree_comes_back_as_itself(self) -> None:
        kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CallerError | StageError)]
        assert len(kinds) > 15
        for kind in kinds:
            body = {"error": {"message": "words", "type": kind.type, "param": "diffusion", "code": kind.code}}
            response = httpx2.Response(kind.status, json=body, headers={"Retry-After": "3"})
            with answering(response) as client, pytest.raises(kind) as raised:
                client.generate("x")
            assert type(raised.value) is kind


def test_a_request_is_cancelled_by_its_name() -> None:
    stages = Stages(diffusion=FakeDiffusion(gate=asyncio.Event()))
    with served(stages.app()) as address, ThreadPoolExecutor(1) as pool, Client(address) as client, Client(address) as other:
        waiting = pool.submit(client.generate, "x", request_id="mine")
        deadline = time.monotonic() + 20
        while not stages.diffusion.asked and time.monotonic() < deadline:
            time.sleep(0.005)
        other.cancel("mine")
        with pytest.raises(RequestCancelled):
            waiting.result(timeout=20)
        with pytest.raises(NotFound, match="no request 'yours'"):
            other.cancel("yours")


def test_the_gateway_is_told_how_long_somebody_waits() -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(404, json={"error": {"message": "no", "type": "x", "param": None, "code": "not_found"}})

    transport = httpx2.MockTransport(answer)
    with Client(timeout_seconds=12.5, transport=transport) as client, pytest.raises(NotFound):
        client.generate("a red circle", seed=2**64 - 1)

    assert seen[0].headers["X-Request-Timeout-Seconds"] == "12.5"
    assert json.loads(seen[0].content) == {"prompt": "a red circle", "seed": 2**64 - 1}
