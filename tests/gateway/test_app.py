from __future__ import annotations

import subprocess
import sys

import pytest
from asgi_lifespan import LifespanManager

from tests.fakes import with_profile
from tests.gateway.running import Stages, until
from triptych.gateway.app import create_app
from triptych.gateway.body import ALIASES, GenerateBody
from triptych.gateway.documentation import BODY_SCHEMA, EXAMPLES
from triptych.gateway.settings import GatewaySettings


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/", 405, "method_not_allowed"),
        ("GET", "/generate", 405, "method_not_allowed"),
        ("DELETE", "/models", 405, "method_not_allowed"),
    ],
)
async def test_the_frameworks_own_errors_have_our_shape(method: str, path: str, status: int, code: str) -> None:
    async with Stages().client() as client:
        response = await client.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == code


class TestDocumentation:
    async def test_the_page_is_there(self) -> None:
        async with Stages().client() as client:
            page = await client.get("/docs")
        assert page.status_code == 200
        assert "openapi.json" in page.text

    async def test_the_body_is_described_with_its_aliases(self) -> None:
        async with Stages().client() as client:
            document = (await client.get("/openapi.json")).json()
        operation = document["paths"]["/generate"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        aliases = {alias for each in ALIASES.values() for alias in each}
        assert set(schema["properties"]) == set(GenerateBody.model_fields) | aliases
        assert schema["required"] == ["prompt"]
        assert schema["additionalProperties"] is False
        assert schema["properties"]["steps"]["anyOf"][0]["maximum"] == 150

    async def test_all_forms_of_the_answer_and_all_refusals_are_described(self) -> None:
        async with Stages().client() as client:
            document = (await client.get("/openapi.json")).json()
        responses = document["paths"]["/generate"]["post"]["responses"]
        assert set(responses["200"]["content"]) == {
            "application/json",
            "image/png",
            "image/jpeg",
            "image/webp",
            "text/event-stream",
        }
        refusals = {"400", "401", "403", "404", "406", "408", "409", "413", "415", "422", "429", "499", "502", "503", "504"}
        assert set(responses) == {"200"} | refusals
        for status in refusals:
            assert responses[status]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorAnswer"}

    async def test_the_answers_keep_the_schemas_that_describe_them(self) -> None:
        async with Stages().client() as client:
            document = (await client.get("/openapi.json")).json()
            answers = {
                "GenerateAnswer": (await client.post("/generate", json={"prompt": "x"})).json(),
                "ErrorAnswer": (await client.post("/generate", json={})).json(),
                "ModelsAnswer": (await client.get("/models")).json(),
                "SamplersAnswer": (await client.get("/samplers")).json(),
            }
        for name, answer in answers.items():
            assert set(answer) == set(document["components"]["schemas"][name]["properties"])

    @pytest.mark.parametrize("name", list(EXAMPLES))
    async def test_the_examples_work(self, name: str) -> None:
        async with Stages().client() as client:
            assert (await client.post("/generate", json=EXAMPLES[name]["value"])).status_code == 200
        assert set(EXAMPLES[name]["value"]) <= set(BODY_SCHEMA["properties"])


class TestLifespan:
    async def test_resources_live_as_long_as_the_app(self) -> None:
        class Resource:
            state = "made"

            async def __aenter__(self) -> None:
                self.state = "open"

            async def __aexit__(self, *error: object) -> None:
                self.state = "closed"

        resource = Resource()
        app = create_app(GatewaySettings(), {"": Stages().pipeline}, resources=[resource])
        states = [resource.state]
        async with LifespanManager(app):
            states.append(resource.state)
        assert [*states, resource.state] == ["made", "open", "closed"]

    async def test_an_exchanged_stage_is_noticed_without_a_request(self) -> None:
        stages = Stages()
        app = stages.app(poll_seconds=0.01)
        model = next(iter(app.state.gateway.registry))
        async with LifespanManager(app):
            await until(lambda: model.name == "fake")
            with_profile(stages.diffusion, model="another")
            await until(lambda: model.name == "another")


def test_the_gateway_never_imports_what_runs_networks() -> None:
    program = """
import sys
from triptych.gateway.settings import GatewaySettings
from triptych.gateway.topology import remote_gateway
import services.central.app
import triptych.client
remote_gateway(GatewaySettings())
heavy = {"keras", "tensorflow", "jax", "openvino", "scipy", "tokenizers", "safetensors", "PIL"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
import PIL
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}) != [])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    # The second line shows that the first one can tell.
    assert ended.stdout.splitlines()[-2:] == ["[]", "True"]


def test_importing_a_service_builds_nothing() -> None:
    program = """
import sys
import services.central.app
print("fastapi.applications" in sys.modules, [name for name in vars(services.central.app) if name == "app"])
"""
    environment = {"TRIPTYCH_PORT": "not a port", "PATH": "", "PYTHONPATH": "."}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True, env=environment
    )
    assert ended.stdout.split("\n")[0] == "True []"
