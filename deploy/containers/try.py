"""Runs compose.yaml on a real container engine (`make containers`), and takes it down again, whatever happens.

Builds the images one after the other, brings the services up, has a picture made through the published port, exchanges the
diffusion container while the others stay, has the same picture made again, and compares, and once more as a job, whose gateway
is killed. Then it exchanges the model in both known ways while pictures are asked for all the time: the container is recreated
with another MODEL, and requests wait; and diffusion-next is swapped in, and none does. On the way it looks at what the images
and containers are: who runs in them, what is installed, what can be written, which doors are open.

Needs `docker compose` or docker-compose 1.29, and an engine that `docker` reaches (DOCKER_HOST). The images stay, tagged `try`,
because their layers are the next build's cache.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from triptych.client import Client
from triptych.errors import TriptychError

ROOT = Path(__file__).resolve().parents[2]
STAGES = {"text_encoder": 8001, "diffusion": 8002, "decoder": 8003}
SERVICES = (*STAGES, "central")
NEXT = "diffusion-next"
TRIPTYCH = (sys.executable, "-m", "triptych.cli")

# The embedded model, told by its place in the image: another value of MODEL that every image can serve.
OTHER_MODEL = "/opt/triptych/triptych/vignette"
PROMPT = "a red circle on a blue background"
SEED = 7
DEADLINE_MINUTES = 60.0
READY_SECONDS = 600.0
POLL_SECONDS = 0.2

# What is looked for in every image, and what each may have of it.
MACHINE_LEARNING = ("jax", "keras", "openvino", "safetensors", "scipy", "tensorflow", "tokenizers", "torch")
STAGE_PACKAGES = {"keras", "openvino", "safetensors", "scipy", "tokenizers"}
FOLDERS = ("/", "/opt/triptych", "/opt/venv", "/var/cache/triptych", "/tmp", "/topology", "/jobs")

LOOK_INSIDE = """
import importlib.util, json, os, sys
def writable(folder):
    try:
        with open(os.path.join(folder, "try"), "w"):
            pass
    except OSError:
        return False
    os.remove(os.path.join(folder, "try"))
    return True
print(json.dumps({
    "user": os.getuid(),
    "packages": [name for name in sys.argv[1].split(",") if importlib.util.find_spec(name)],
    "writable": [name for name in sys.argv[2].split(",") if writable(name)],
}))
"""
CPU_SECONDS = """
import os
user, system = open("/proc/1/stat").read().rpartition(")")[2].split()[11:13]
print((int(user) + int(system)) / os.sysconf("SC_CLK_TCK"))
"""
ASK_A_STAGE = """
import http.client, os, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=10)
token = os.environ["TRIPTYCH_STAGE_TOKEN"]
statuses = []
for headers in ({}, {"Authorization": "Bearer " + token}):
    connection.request("GET", "/v2", headers=headers)
    response = connection.getresponse()
    response.read()
    statuses.append(response.status)
print(statuses)
"""


class Failure(Exception):
    """A check did not hold, or a command did not work: the sentence says which."""


def check(condition: object, sentence: str) -> None:
    """Says that something holds, or fails because it does not."""
    if not condition:
        raise Failure(f"not so: {sentence}")
    print(f"  ok: {sentence}", flush=True)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The container engine, and the one project on it that is ours.

    Attributes:
        compose: The command, with the files that it reads.
        environment: Of every command.
        deadline: Of `time.monotonic()`, for all commands but those that clean up.
    """

    compose: tuple[str, ...]
    environment: dict[str, str]
    deadline: float

    def run(self, *command: str, seconds: float | None = None) -> str:
        """What a command printed.

        Args:
            seconds: How long it may take; what is left of the whole time by default.

        Raises:
            Failure: It ended with another status than 0, or takes too long.
        """
        seconds = self.deadline - time.monotonic() if seconds is None else seconds
        try:
            ended = subprocess.run(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=max(seconds, 0.0),
            )
        except subprocess.TimeoutExpired:
            raise Failure(f"{' '.join(command[:4])} ... takes too long") from None
        if ended.returncode:
            lines = "\n".join(ended.stdout.splitlines()[-30:])
            raise Failure(f"{' '.join(command)} ended with {ended.returncode}:\n{lines}")
        return ended.stdout

    def run_compose(self, *arguments: str, seconds: float | None = None) -> str:
        return self.run(*self.compose, *arguments, seconds=seconds)

    def container(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's container."""
        number = self.run_compose("ps", "--all", "--quiet", service).strip()
        return dict(json.loads(self.run("docker", "inspect", number))[0])

    def run_inside(self, service: str, program: str, *arguments: str) -> str:
        """What a Python program prints in a service's container."""
        return self.run("docker", "exec", self.container(service)["Id"], "python", "-c", program, *arguments)


def main() -> None:
    """See above. Ends with status 0 only if everything was as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--file", action="append", default=[], metavar="FILE", help="one more compose file on top; may be repeated"
    )
    parser.add_argument("--minutes", type=float, default=DEADLINE_MINUTES, help="when to give up (default: %(default)s)")
    parser.add_argument("--prompt", default=PROMPT, help="of the picture; its colours are checked for the default only")
    parser.add_argument("--other-model", default=OTHER_MODEL, help="what diffusion is exchanged for (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="where to write the picture to, if it is to be kept")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    url = f"http://127.0.0.1:{_free_port()}"
    try:
        engine = _engine(url, arguments.file, arguments.minutes)
        build(engine)
        with taken_down(engine):
            picture = try_it(engine, url, arguments.prompt, arguments.other_model)
    except (Failure, TriptychError) as error:
        sys.exit(f"failed: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if arguments.output:
        arguments.output.write_bytes(picture)
    print("everything is as it should be, and taken down")


def build(engine: Engine) -> None:
    """The images, one after the other: the stages' large layers are built once and found again."""
    print("building")
    for service in SERVICES:
        started = time.monotonic()
        engine.run_compose("build", service)
        image = json.loads(engine.run("docker", "image", "inspect", f"triptych/{service}:try"))[0]
        print(f"  {service}: {image['Size'] / 1e6:.0f} MB, built in {time.monotonic() - started:.0f} s", flush=True)
    print(f"  of which the base image: {_base_size(engine) / 1e6:.0f} MB")


def try_it(engine: Engine, url: str, prompt: str, other_model: str) -> bytes:
    """Everything that is done with running services. Returns the picture."""
    started = time.monotonic()
    # A stage that does not start is started again and again, and not every compose gives up on it.
    engine.run_compose("up", "--detach", "--no-build", seconds=min(READY_SECONDS, engine.deadline - time.monotonic()))
    wait_for("the gateway to be ready", lambda: _status(f"{url}/health/ready") == 200)
    print(f"up: all four ready after {time.monotonic() - started:.1f} s")
    show_starts(engine, SERVICES)

    print("containers")
    for service in SERVICES:
        check_container(engine, service)
    check_doors(engine, url)

    print("pictures")
    before = generate(engine, url, prompt)
    check_picture(before, colours=prompt == PROMPT)
    exchange_diffusion(engine, url)
    check(generate(engine, url, prompt) == before, "the exchanged stage makes the very same picture")
    kill_the_gateway_of_a_job(engine, url, prompt, before)
    print("memory in use, and the limit")
    for service in SERVICES:
        used = engine.run("docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", engine.container(service)["Id"])
        print(f"  {service}: {used.strip()}")
    recreate_with_another_model(engine, url, prompt, other_model)
    swap_without_a_gap(engine, url, prompt, other_model)
    check_stop(engine)
    return before


def show_starts(engine: Engine, services: Sequence[str]) -> None:
    """From the start of each container's process until it logged that it serves, by the engine's own clock.

    On a busy machine the processor's time says more, which here is that of the process up to now.
    """
    for service in services:
        container = engine.container(service)
        words = "ready" if service in STAGES else "Application startup complete."
        logs = engine.run("docker", "logs", "--timestamps", container["Id"]).splitlines()
        times = [line.split(" ", 1)[0] for line in logs if f'"event": "{words}"' in line]
        if not times:
            raise Failure(f"{service} never logged that it started")
        seconds = (_time(times[0]) - _time(container["State"]["StartedAt"])).total_seconds()
        cpu_seconds = float(engine.run_inside(service, CPU_SECONDS))
        print(f"  {service}: {seconds:.1f} s to start, {cpu_seconds:.1f} s of a processor", flush=True)


def check_container(engine: Engine, service: str) -> None:
    """Who runs in it, what is installed, what can be written, which limits and doors it has."""
    container = engine.container(service)
    inside = json.loads(engine.run_inside(service, LOOK_INSIDE, ",".join(MACHINE_LEARNING), ",".join(FOLDERS)))
    host = container["HostConfig"]
    expected = STAGE_PACKAGES if service in STAGES else set()
    check(inside["user"] != 0, f"{service} runs as user {inside['user']}")
    check(set(inside["packages"]) == expected, f"{service} has of machine learning: {', '.join(sorted(expected)) or 'nothing'}")
    writable = ["/tmp"] if service in STAGES else ["/tmp", "/topology", "/jobs"]
    check(host["ReadonlyRootfs"] and inside["writable"] == writable, f"{service} can write to {' and '.join(writable)} only")
    check(host["Memory"] > 0, f"{service} may use {host['Memory'] / 2**20:.0f} MiB")
    published = [port for ports in container["NetworkSettings"]["Ports"].values() for port in ports or ()]
    check(len(published) == (service not in STAGES), f"{service} publishes {'no' if service in STAGES else 'one'} port")
    if service in STAGES:
        logs = engine.run("docker", "logs", container["Id"])
        check("from compiled networks" in logs and "is not kept" not in logs, f"{service} had nothing to compile")


def check_doors(engine: Engine, url: str) -> None:
    """Nobody comes in without a token, neither at the gateway nor, from inside, at a stage."""
    for stage, port in STAGES.items():
        statuses = engine.run_inside("central", ASK_A_STAGE, stage, str(port)).strip()
        check(statuses == "[401, 200]", f"{stage} answers 401 without the token and 200 with it")
    check(_status(f"{url}/models") == 401, "the gateway answers 401 without a key")


def generate(engine: Engine, url: str, prompt: str) -> bytes:
    """A picture, through the published port."""
    seconds = min(READY_SECONDS, engine.deadline - time.monotonic())
    with Client(url, api_key=engine.environment["TRIPTYCH_API_KEYS"], timeout_seconds=seconds) as client:
        generation = client.generate(prompt, seed=SEED, output_format="png")
    (picture,) = generation.pictures
    print(f"  a picture of {len(picture.data)} bytes in {generation.timings['total_seconds']:.2f} s")
    return picture.data


def kill_the_gateway_of_a_job(engine: Engine, url: str, prompt: str, expected: bytes) -> None:
    """A job outlives its gateway: the container is killed and started again, and the picture is the one that was to come."""
    print("jobs")
    seconds = min(READY_SECONDS, engine.deadline - time.monotonic())
    with Client(url, api_key=engine.environment["TRIPTYCH_API_KEYS"], timeout_seconds=seconds) as client:
        job = client.submit(prompt, seed=SEED, output_format="png")
        started = time.monotonic()
        engine.run("docker", "restart", "--time", "0", engine.container("central")["Id"])
        ended = client.wait(job)
        took = time.monotonic() - started
        check(ended["status"] == "completed", f"a job whose gateway was killed is completed, {took:.1f} s later")
        (picture,) = client.fetch(job)
    check(picture.data == expected, "its picture is the very same")


def check_picture(data: bytes, *, colours: bool) -> None:
    """That it is a PNG, and red and blue where that was asked for: roughly, for it is a small model."""
    picture = Image.open(io.BytesIO(data))
    check(picture.format == "PNG", f"it is a PNG of {picture.width} x {picture.height} pixels")
    if not colours:
        return
    pixels = np.asarray(picture.convert("RGB"), np.int16)
    red, green, blue = (pixels[..., channel] for channel in range(3))
    red_part = float(np.mean((red > green + 40) & (red > blue + 40)))
    blue_part = float(np.mean((blue > green + 20) & (blue > red + 40)))
    check(red_part > 0.03 and blue_part > 0.2, f"{red_part:.0%} of it is red and {blue_part:.0%} is blue")


def exchange_diffusion(engine: Engine, url: str) -> None:
    """Another container in the place of diffusion's, while the others stay as they are."""
    before = {service: _life(engine.container(service)) for service in SERVICES}
    started = time.monotonic()
    engine.run_compose("up", "--detach", "--no-build", "--no-deps", "--force-recreate", "diffusion")
    after = {service: _life(engine.container(service)) for service in SERVICES}
    check(before.pop("diffusion") != after.pop("diffusion"), "diffusion has another container")
    check(before == after, "the other three still run, and were not started anew")
    wait_for("diffusion to be healthy", lambda: engine.container("diffusion")["State"]["Health"]["Status"] == "healthy")
    wait_for("the gateway to be ready again", lambda: _status(f"{url}/health/ready") == 200)
    print(f"  ready again after {time.monotonic() - started:.1f} s")
    show_starts(engine, ["diffusion"])


class Posting:
    """A caller who asks for one picture after the other, as a context manager.

    Attributes:
        times: When each was asked for and when it was there, by `time.monotonic()`.
        queue_seconds: How long each waited, for its turn or for a stage that was gone.
        failures: What went wrong instead.
    """

    def __init__(self, engine: Engine, url: str, prompt: str) -> None:
        self.times: list[tuple[float, float]] = []
        self.queue_seconds: list[float] = []
        self.failures: list[str] = []
        self._client = Client(url, api_key=engine.environment["TRIPTYCH_API_KEYS"], timeout_seconds=READY_SECONDS)
        self._prompt = prompt
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._post)

    def _post(self) -> None:
        with self._client:
            while not self._enough.is_set():
                asked = time.monotonic()
                try:
                    generation = self._client.generate(self._prompt, seed=SEED)
                except TriptychError as error:
                    self.failures.append(str(error))
                    continue
                self.times.append((asked, time.monotonic()))
                self.queue_seconds.append(generation.timings["queue_seconds"])

    def wait_for_one_more(self) -> None:
        """Until a picture has come that was asked for from now on."""
        now = time.monotonic()
        wait_for("one more picture", lambda: bool(self.failures or (self.times and self.times[-1][0] > now)))

    def __enter__(self) -> Posting:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._enough.set()
        self._thread.join()

    def check_none_failed(self) -> None:
        check(not self.failures, f"none of {len(self.times) + len(self.failures)} requests failed {self.failures[:1] or ''}")

    @property
    def longest_seconds(self) -> float:
        return max(there - asked for asked, there in self.times)


def recreate_with_another_model(engine: Engine, url: str, prompt: str, model: str) -> None:
    """`up diffusion` with another MODEL, while somebody asks for pictures: who comes in the gap waits."""
    print(f"diffusion recreated with MODEL={model}")
    other = replace(engine, environment={**engine.environment, "MODEL": model})
    with Posting(engine, url, prompt) as posting, ThreadPoolExecutor() as pool:
        posting.wait_for_one_more()
        recreated = pool.submit(other.run_compose, "up", "--detach", "--no-build", "--no-deps", "diffusion")
        wait_for("the gateway to miss diffusion", lambda: _status(f"{url}/health/ready") == 503)
        missed = time.monotonic()
        recreated.result()
        posting.wait_for_one_more()
    posting.check_none_failed()
    first = min(there for _, there in posting.times if there > missed)
    check(f"TRIPTYCH_MODEL={model}" in engine.container("diffusion")["Config"]["Env"], "diffusion has the other model")
    check(max(posting.queue_seconds) > 0, "a request waited for it")
    print(f"  the gap: {first - missed:.1f} s from the first 503 of /health/ready to the next picture")
    print(f"  the longest request took {posting.longest_seconds:.1f} s, {max(posting.queue_seconds):.1f} s of which it waited")


def swap_without_a_gap(engine: Engine, url: str, prompt: str, model: str) -> None:
    """diffusion-next is started, swapped in and the old one stopped, while somebody asks for pictures: nobody waits."""
    print(f"{NEXT} with {model} swapped in")
    both = _with_next(engine, model)
    with Posting(engine, url, prompt) as posting:
        both.run_compose("up", "--detach", "--no-build", "--no-deps", NEXT)
        wait_for(f"{NEXT} to be healthy", lambda: both.container(NEXT)["State"]["Health"]["Status"] == "healthy")
        posting.wait_for_one_more()
        # The token is in the environment.
        said = engine.run(*TRIPTYCH, "swap", "diffusion", "--to", f"http://{NEXT}:{STAGES['diffusion']}", "--gateway", url)
        print(f"  {said.strip()}", flush=True)
        posting.wait_for_one_more()
        engine.run_compose("stop", "diffusion")
        posting.wait_for_one_more()
    posting.check_none_failed()
    check(max(posting.queue_seconds) < 1, f"none waited: {max(posting.queue_seconds):.3f} s at most")
    print(f"  the longest request took {posting.longest_seconds:.1f} s")
    engine.run_compose("up", "--detach", "--no-build", "--no-deps", "--force-recreate", "central")
    wait_for("the new gateway to be ready", lambda: _status(f"{url}/health/ready") == 200)
    check(generate(engine, url, prompt), f"a new gateway knows that diffusion is at {NEXT}, for the old one is stopped")


def _with_next(engine: Engine, model: str) -> Engine:
    """The same project with its sleeping service awake."""
    return replace(engine, environment={**engine.environment, "COMPOSE_PROFILES": "next", "DIFFUSION_NEXT_MODEL": model})


def check_stop(engine: Engine) -> None:
    """SIGTERM ends every service by itself and in order; the engine does not have to kill it."""
    engine = _with_next(engine, OTHER_MODEL)
    numbers = {service: engine.container(service)["Id"] for service in (NEXT, *SERVICES)}
    started = time.monotonic()
    engine.run_compose("stop")
    states = {service: json.loads(engine.run("docker", "inspect", number))[0]["State"] for service, number in numbers.items()}
    codes = {service: state["ExitCode"] for service, state in states.items()}
    check(not any(codes.values()), f"SIGTERM ended all five with status 0, in {time.monotonic() - started:.1f} s: {codes}")
    check(not any(state["OOMKilled"] for state in states.values()), "none was killed for its memory")


@contextmanager
def taken_down(engine: Engine) -> Iterator[None]:
    """Removes containers, networks and volumes at the end; after a failure, shows first what the services logged."""
    try:
        yield
    except BaseException:
        print(engine.run_compose("logs", "--no-color", "--tail", "30", seconds=60), file=sys.stderr)
        raise
    finally:
        # A second Ctrl-C does not leave half of it behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _with_next(engine, OTHER_MODEL).run_compose("down", "--volumes", "--remove-orphans", seconds=180)


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    """Polls.

    Raises:
        Failure: It does not become true in time.
    """
    give_up = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > give_up:
            raise Failure(f"waited {READY_SECONDS:.0f} s for {what}")
        time.sleep(POLL_SECONDS)


def _engine(url: str, files: Sequence[str], minutes: float) -> Engine:
    compose = _compose_command()
    environment = {
        **os.environ,
        "COMPOSE_PROJECT_NAME": f"triptych-try-{os.getpid()}",
        "TRIPTYCH_ADMIN_TOKEN": secrets.token_hex(16),
        "TRIPTYCH_API_KEYS": secrets.token_hex(16),
        "TRIPTYCH_PUBLISH": url.removeprefix("http://"),
        "TRIPTYCH_STAGE_TOKEN": secrets.token_hex(16),
        "TRIPTYCH_TAG": "try",
    }
    named = [argument for file in ("compose.yaml", *files) for argument in ("--file", file)]
    return Engine(compose=(*compose, *named), environment=environment, deadline=time.monotonic() + 60 * minutes)


def _compose_command() -> tuple[str, ...]:
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ("docker", "compose")
    if shutil.which("docker") and shutil.which("docker-compose"):
        return ("docker-compose",)
    raise Failure("neither `docker compose` nor docker-compose is installed")


def _base_size(engine: Engine) -> int:
    dockerfile = (ROOT / "services/central/Dockerfile").read_text(encoding="utf-8")
    base = next(line.split()[1] for line in dockerfile.splitlines() if line.startswith("FROM "))
    return int(json.loads(engine.run("docker", "image", "inspect", base))[0]["Size"])


def _life(container: dict[str, Any]) -> tuple[str, str]:
    return container["Id"], container["State"]["StartedAt"]


def _status(url: str) -> int:
    """0 where nobody answers. A proxy of the environment is not for this machine's own ports."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _time(text: str) -> datetime.datetime:
    """The engine's times have nine digits after the point, Python's six."""
    return datetime.datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
