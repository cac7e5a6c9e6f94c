"""What schemas cannot see in the Dockerfiles and compose files: names, ports and paths that must agree with each other.

Without a container engine; `make containers` runs them on one.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from pydantic_settings import BaseSettings

from triptych.gateway.settings import GatewaySettings
from triptych.serving.settings import GATEWAY_PORT, STAGE_PORTS, StageSettings

ROOT = Path(__file__).resolve().parent.parent
BASE = "python:3.11-slim-bookworm"
STAGES = {str(stage): port for stage, port in STAGE_PORTS.items()}
PORTS = {**STAGES, "central": GATEWAY_PORT, "all_in_one": GATEWAY_PORT}
NEXT = "diffusion-next"
COMPOSED = {**STAGES, NEXT: STAGES["diffusion"], "central": GATEWAY_PORT}
HEALTH = {**dict.fromkeys(STAGES, "/v2/health/ready"), "central": "/health/live", "all_in_one": "/health/ready"}

# What docker-compose 1.29 and the builder of that time do not know.
TOO_NEW = re.compile(
    r"# *syntax *=|RUN --|COPY --chmod|COPY --link|<<-?['\"]?EOF|^name:|start_interval|--start-interval", re.MULTILINE
)


def dockerfile(service: str) -> str:
    return (ROOT / "services" / service / "Dockerfile").read_text(encoding="utf-8")


def instructions(service: str, name: str) -> list[str]:
    """The arguments of all instructions of that name, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", dockerfile(service))
    return re.findall(rf"^{name} (.+)$", joined, re.MULTILINE)


def environment(service: str) -> dict[str, str]:
    """What the image's last stage sets."""
    last = re.sub(r"\\\n\s*", " ", dockerfile(service)).rpartition("\nFROM ")[2]
    return dict(pair.split("=", 1) for line in re.findall(r"^ENV (.+)$", last, re.MULTILINE) for pair in line.split())


def read_compose(name: str) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def composed(service: str) -> dict[str, Any]:
    return dict(read_compose("compose.yaml")["services"][service])


def settings_of(service: str) -> list[type[BaseSettings]]:
    if service in (*STAGES, NEXT):
        return [StageSettings]
    return [GatewaySettings] if service == "central" else [GatewaySettings, StageSettings]


def unknown_settings(service: str, names: set[str]) -> set[str]:
    """Those TRIPTYCH_ variables that no settings of the service read."""
    known = {f"TRIPTYCH_{field}".upper() for kind in settings_of(service) for field in kind.model_fields}
    return {name for name in names if name.startswith("TRIPTYCH_")} - known


@pytest.mark.parametrize("service", PORTS)
class TestDockerfile:
    def test_it_stands_on_the_slim_base_alone(self, service: str) -> None:
        stages = instructions(service, "FROM")
        names = {words[2] for stage in stages if len(words := stage.split()) == 3}
        assert {stage.split()[0] for stage in stages} - names == {BASE}
        assert stages[-1] == BASE

    def test_it_does_not_end_as_root(self, service: str) -> None:
        assert instructions(service, "USER") == ["10001:10001"]
        assert dockerfile(service).index("USER") < dockerfile(service).index("\nCMD")

    def test_it_serves_its_own_service_at_its_own_port(self, service: str) -> None:
        assert instructions(service, "CMD") == [f'["python", "-m", "triptych.cli", "serve", "{service}"]']
        assert environment(service)["TRIPTYCH_PORT"] == str(PORTS[service])
        assert instructions(service, "EXPOSE") == [str(PORTS[service])]

    def test_its_variables_are_settings(self, service: str) -> None:
        assert unknown_settings(service, set(environment(service))) == set()

    def test_its_health_is_asked_by_python(self, service: str) -> None:
        (check,) = instructions(service, "HEALTHCHECK")
        assert 'CMD ["python"' in check
        assert f"'GET', '{HEALTH[service]}'" in check
        assert "os.environ['TRIPTYCH_PORT']" in check

    def test_dependencies_come_first_and_under_constraints(self, service: str) -> None:
        text = dockerfile(service)
        assert text.index("install --requirement") < text.index("COPY triptych")
        assert "PIP_CONSTRAINT=/build/constraints.txt" in text
        assert "COPY --from=dependencies /opt/venv /opt/venv" in text

    def test_what_it_copies_is_in_the_context(self, service: str) -> None:
        ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        allowed = {line[1:] for line in ignored if line.startswith("!")}
        sources = {name for line in instructions(service, "COPY") if not line.startswith("--") for name in line.split()[:-1]}
        assert "*" in ignored
        assert sources <= allowed
        assert [name for name in sources if not (ROOT / name).exists()] == []

    def test_older_builders_understand_it(self, service: str) -> None:
        assert TOO_NEW.search(dockerfile(service)) is None


def test_what_is_too_new_is_found() -> None:
    assert TOO_NEW.search("RUN --mount=type=cache,target=/cache pip install x")
    assert TOO_NEW.search("services:\n  a: {}\nname: triptych\n")


def test_the_stages_differ_in_name_and_port_only() -> None:
    texts = set()
    for stage, port in STAGES.items():
        text = dockerfile(stage).replace(stage, "STAGE").replace(str(port), "PORT")
        texts.add(text.replace(f"The {stage.replace('_', ' ')} stage", "The STAGE stage").replace("The STAGE stage", "The stage"))
    assert len(texts) == 1


def test_the_gateway_gets_the_base_install_and_what_keeps_jobs() -> None:
    assert re.findall(r'optional-dependencies"\]\["(\w+)"\]', dockerfile("central")) == ["jobs"]
    assert "rm -rf triptych/vignette" in dockerfile("central")


@pytest.mark.parametrize("service", COMPOSED)
class TestComposedService:
    def test_it_is_built_from_its_own_dockerfile(self, service: str) -> None:
        name = service.removesuffix("-next")
        assert composed(service)["build"] == {"context": ".", "dockerfile": f"services/{name}/Dockerfile"}
        assert composed(service)["image"] == f"triptych/{name}:${{TRIPTYCH_TAG:-latest}}"

    def test_its_variables_are_settings(self, service: str) -> None:
        assert unknown_settings(service, set(composed(service)["environment"])) == set()

    def test_it_can_do_little(self, service: str) -> None:
        container = composed(service)
        assert container["read_only"] is True
        assert container["tmpfs"] == ["/tmp:size=64m"]
        assert container["cap_drop"] == ["ALL"]
        assert container["security_opt"] == ["no-new-privileges:true"]
        assert re.fullmatch(r"\d+[mg]", container["mem_limit"])

    def test_it_may_finish_what_runs(self, service: str) -> None:
        (settings,) = settings_of(service)
        shutdown_seconds = settings.model_fields["shutdown_seconds"].default
        assert float(composed(service)["stop_grace_period"].removesuffix("s")) > shutdown_seconds
        assert "TRIPTYCH_SHUTDOWN_SECONDS" not in composed(service)["environment"]


def test_all_services_are_composed() -> None:
    assert set(read_compose("compose.yaml")["services"]) == set(COMPOSED)


def test_a_stage_finishes_what_runs_however_long_that_is() -> None:
    fields = StageSettings.model_fields
    assert fields["shutdown_seconds"].default >= fields["request_timeout_seconds"].default


def test_the_next_diffusion_is_like_the_first_but_for_its_model_and_starts_only_when_it_is_named() -> None:
    first, following = composed("diffusion"), composed(NEXT)
    assert following.pop("profiles") == ["next"]
    assert following["environment"].pop("TRIPTYCH_MODEL") == "${DIFFUSION_NEXT_MODEL:-vignette}"
    assert first["environment"].pop("TRIPTYCH_MODEL") == "${MODEL:-vignette}"
    assert following == first


def test_where_the_stages_are_and_jobs_outlive_the_gateway() -> None:
    settings = composed("central")["environment"] | dict(re.findall(r"(TRIPTYCH_\w+)=(\S+)", dockerfile("central")))
    volumes = dict(volume.split(":") for volume in composed("central")["volumes"])
    assert set(volumes) == set(read_compose("compose.yaml")["volumes"])
    assert Path(settings["TRIPTYCH_TOPOLOGY"]).parent == Path(volumes["topology"])
    for setting in ("TRIPTYCH_JOBS_DATABASE", "TRIPTYCH_JOBS_STORE"):
        assert Path(settings[setting]).parent == Path(volumes["jobs"])
    # Else the volumes would be root's, and the service could not write to them.
    assert f"install --directory --owner 10001 --group 10001 {' '.join(volumes.values())}" in dockerfile("central")


def test_long_prompts_are_told_to_all_stages() -> None:
    for service in (*STAGES, NEXT):
        assert composed(service)["environment"]["TRIPTYCH_MAX_PROMPT_CHUNKS"] == "${TRIPTYCH_MAX_PROMPT_CHUNKS:-1}"


def test_the_gateway_finds_its_stages() -> None:
    variables = composed("central")["environment"]
    for stage, port in STAGES.items():
        assert variables[f"TRIPTYCH_{stage.upper()}_URL"] == f"http://{stage}:{port}"
        assert set(composed(stage)["networks"]) <= set(composed("central")["networks"])


def test_the_stages_are_told_one_model() -> None:
    assert {composed(stage)["environment"]["TRIPTYCH_MODEL"] for stage in STAGES} == {"${MODEL:-vignette}"}
    assert "TRIPTYCH_MODEL" not in composed("central")["environment"]


def test_the_gateway_waits_for_its_stages() -> None:
    assert composed("central")["depends_on"] == {stage: {"condition": "service_healthy"} for stage in STAGES}


def test_only_the_gateways_port_is_published() -> None:
    published = {service: container["ports"] for service in COMPOSED if "ports" in (container := composed(service))}
    assert published == {"central": ["${TRIPTYCH_PUBLISH:-127.0.0.1:8000}:8000"]}
    assert read_compose("compose.yaml")["networks"]["stages"] == {"internal": True}


def test_the_doors_have_locks_that_nobody_can_forget() -> None:
    gateway = composed("central")["environment"]
    tokens = {composed(stage)["environment"]["TRIPTYCH_TOKEN"] for stage in STAGES} | {gateway["TRIPTYCH_STAGE_TOKEN"]}
    assert len(tokens) == 1
    assert tokens.pop().startswith("${TRIPTYCH_STAGE_TOKEN:?")
    assert gateway["TRIPTYCH_API_KEYS"].startswith("${TRIPTYCH_API_KEYS:?")


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_older_composes_understand_it(name: str) -> None:
    assert TOO_NEW.search((ROOT / name).read_text(encoding="utf-8")) is None


class TestGPUs:
    def test_diffusion_and_decoder_have_one_each(self) -> None:
        gpus = {}
        for service, container in read_compose("compose.gpu.yaml")["services"].items():
            (device,) = container["deploy"]["resources"]["reservations"]["devices"]
            assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
            gpus[service] = device["device_ids"]
        diffusion = ["${TRIPTYCH_DIFFUSION_GPU:-0}"]
        assert gpus == {"diffusion": diffusion, NEXT: diffusion, "decoder": ["${TRIPTYCH_DECODER_GPU:-1}"]}

    def test_their_images_are_built_with_an_extra_that_exists(self) -> None:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        for service, container in read_compose("compose.gpu.yaml")["services"].items():
            arguments = container["build"]["args"]
            assert {line.partition("=")[0] for line in instructions(service.removesuffix("-next"), "ARG")} == set(arguments)
            for engine in ("tensorflow", "jax"):
                extra = arguments["EXTRA"].replace("${TRIPTYCH_GPU_ENGINE:-tensorflow}", engine)
                assert arguments["ENGINE"].replace("${TRIPTYCH_GPU_ENGINE:-tensorflow}", engine) == engine
                assert extra in extras
                assert extra.endswith("-gpu")

    def test_what_they_compile_is_kept_where_the_image_looks(self) -> None:
        gpu = read_compose("compose.gpu.yaml")
        for service, container in gpu["services"].items():
            (volume,) = container["volumes"]
            name, folder = volume.split(":")
            assert name in gpu["volumes"]
            assert folder == environment(service.removesuffix("-next"))["TRIPTYCH_CACHE_FOLDER"]
